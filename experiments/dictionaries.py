"""Which layer of a frozen encoder aligns words best, and how good its dictionaries are: what
docs/experiment-recipe.md fixes before any reader is trained with them.

    S2DM_MIRROR=... python experiments/dictionaries.py layers --out figures/e5
    S2DM_MIRROR=... python experiments/dictionaries.py quality --out figures/e5

`layers` counts, for each layer, how often a number of an English sentence that stands
unchanged in its translation was aligned with itself. `quality` says the same of each language with
the layer that is in force, beside the share of aligned pairs that are spelled alike, the number of
entries, and the share of the questions' words that have one; all shares in percent."""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from s2dm.core import plain_errors
from s2dm.dictionaries import (
    LANGUAGES, aligned_words, covered, load_dictionaries, numbers_found, parallel_sentences)
from s2dm.encoder import FeatureCache, load_encoder
from s2dm.finetune import FinetuneConfig, load_questions

LAYERS = (4, 6, 8, 10, 12)


def sample(pairs, size): # of each language, evenly spaced
    return {lang: [of[i] for i in np.linspace(0, len(of) - 1, min(size, len(of)), dtype=int)]
            for lang, of in pairs.items() if of}


def numbers_table(pairs, cache, **about): # a row for each language
    rows = []
    for lang, of in pairs.items():
        met = aligned_words(of, cache, progress=False)
        found, there = numbers_found(of, met)
        every = [pair for words in met for pair in words]
        alike = sum(word.lower() == translation.lower() for word, translation in every)
        rows.append(about | dict(language=lang, numbers=there, found=100 * found / max(1, there),
                                 alike=100 * alike / max(1, len(every))))
    return rows


def layers(pairs, size):
    "A row for each layer: the mean over languages."
    rows = []
    for layer in LAYERS:
        cache = FeatureCache(load_encoder("e5", layers=layer))
        rows += numbers_table(sample(pairs, size), cache, layer=layer)
        print(pd.DataFrame(rows).groupby("layer")["found"].mean().round(1).to_string())
    table = pd.DataFrame(rows).groupby("layer")
    return table.agg(languages=("found", "size"), numbers=("numbers", "sum"),
                     found=("found", "mean")).reset_index()


def quality(pairs, encoder):
    "A row for each language."
    texts = load_questions(FinetuneConfig(model="e5").data)
    texts = [*dict.fromkeys([*texts["question"][:], *texts["context"][:]])]
    known = load_dictionaries(encoder)
    rows = numbers_table(sample(pairs, 10_000), FeatureCache(encoder))
    for row in rows:
        own = known[row["language"]]
        row |= dict(sentences=len(pairs[row["language"]]), entries=len(own))
        row |= dict(covered=100 * covered(texts, own))
    return pd.DataFrame(rows)


def write(table, file):
    table.round(1).to_csv(file, index=False, lineterminator="\n")
    print(table.round(1).to_string(index=False))


@plain_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("layers", "quality"))
    parser.add_argument("--out", type=Path, default=Path("figures/e5"))
    parser.add_argument("--size", type=int, default=100, help="sentences of each language (layers)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pairs = parallel_sentences(LANGUAGES)
    if given.command == "layers":
        write(layers(pairs, given.size), given.out / "dictionary-layers.csv")
    else:
        layer = FinetuneConfig(model="e5").dictionary_layer
        write(quality(pairs, load_encoder("e5", layers=layer)), given.out / "dictionaries.csv")


if __name__ == "__main__": main()
