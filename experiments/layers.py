"""How far languages stand apart, by layer of an encoder: which share of English sentences finds its
translation among the others, by mean-pooled states. The same encoder, cut where languages are not
yet together, is another encoder, and a cheap one (`-p layer`).

    python experiments/layers.py --model e5 --out runs/figures/e5/layers.csv

250 sentences of PUD in each of its languages (`--sentences`); both directions averaged, percent. No
question is read."""
import argparse
from pathlib import Path

import pandas as pd
import torch

from s2dm.core import plain_errors
from s2dm.encoder import load_encoder
from s2dm.geometry import some_sentences
from s2dm.vectors import parallel_treebank, retrieval_accuracy

BATCH = 50 # sentences


@torch.no_grad()
def layer_means(encoder, texts):
    "[layers + 1, N, d]: the mean of each sentence's states, from the embeddings upwards."
    found = []
    for start in range(0, len(texts), BATCH):
        some = list(texts[start:start + BATCH])
        batch = encoder.split.tokenizer(
            some, padding=True, truncation=True, max_length=encoder.split.limit,
            return_tensors="pt").to(encoder.device)
        states = encoder.model(**batch, output_hidden_states=True).hidden_states
        mask = batch["attention_mask"][..., None]
        found.append(torch.stack([(h * mask).sum(1) / mask.sum(1) for h in states]).cpu())
    return torch.cat(found, 1)


def table(model, sentences):
    "One row for each language and layer: lang, layer, percent."
    encoder = load_encoder(model)
    versions = some_sentences(parallel_treebank("pud"), sentences)
    means = {lang: layer_means(encoder, texts) for lang, texts in versions.items()}
    rows = []
    for lang in versions:
        if lang == "en": continue
        for layer, (english, other) in enumerate(zip(means["en"], means[lang], strict=True)):
            there, back = retrieval_accuracy(english, other)
            rows.append(dict(lang=lang, layer=layer, percent=100 * float(there + back) / 2))
    return pd.DataFrame(rows)


@plain_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="e5")
    parser.add_argument("--sentences", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("runs/figures/e5/layers.csv"))
    given = parser.parse_args()
    found = table(given.model, given.sentences).round(1)
    wide = found.pivot(index="lang", columns="layer", values="percent")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    wide.to_csv(given.out, lineterminator="\n")
    print(wide.to_string())


if __name__ == "__main__": main()
