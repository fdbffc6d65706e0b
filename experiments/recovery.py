"""The share of gold answers that come back exactly from their subwords, per language and tokenizer:
writes figures/features_recovery.{csv,md,tex}.

    S2DM_MIRROR=... python experiments/recovery.py

Every question of XQuAD, TyDi QA-GoldP and BiPaR, in windows of the paper's sizes. mBERT's
vocabulary is the published one. XLM's slow tokenizer (which keeps case and accents, as for XLM-100)
and a Unigram tokenizer (punctuation apart, as SentencePiece learns it) have vocabularies of 30,000
learned from the contexts of these questions.
"""
import json
import tempfile
from pathlib import Path

import pandas as pd
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, XLMTokenizer

from s2dm.core import plain_errors
from s2dm.encoder import mbert_tokenizer
from s2dm.features import SpanTokenizer, Windows, recovery
from s2dm.plots import save_table
from s2dm.reading import READING, load_reading

CORPORA, VOCABULARY = ("xquad", "tydiqa", "bipar"), 30_000


def unigram(texts):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace(prepend_scheme="first")])
    tokenizer.train_from_iterator(texts, trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<unk>"], unk_token="<unk>",
        show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


def xlm(texts, folder):
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["<s>", "</s>", "<pad>", "<unk>", *(f"<special{i}>" for i in range(10))]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, end_of_word_suffix="</w>", special_tokens=special,
        show_progress=False))
    learned = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(learned["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "".join(f"{a} {b} 1\n" for a, b in learned["merges"]), encoding="utf-8")
    return XLMTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"),
        do_lowercase_and_remove_accent=False)


@plain_errors()
def main():
    data = {
        (corpus, language): load_reading(corpus, language)
        for corpus in CORPORA
        for language in READING[corpus][0]}
    texts = sorted({text for questions in data.values() for text in questions["context"][:]})
    with tempfile.TemporaryDirectory() as folder:
        tokenizers = {
            "mBERT": mbert_tokenizer(), "XLM, slow": xlm(texts, Path(folder)),
            "Unigram": unigram(texts)}
    rows = {
        key: dict(corpus=key[0], language=key[1], questions=len(questions))
        for key, questions in data.items()}
    for name, tokenizer in tokenizers.items():
        split = SpanTokenizer(tokenizer)
        for key, questions in data.items():
            found = recovery(Windows(split, questions, progress=False))
            rows[key][f"{name}: exact (%)"] = 100 * found["exact"]
            if name == "mBERT": rows[key][f"{name}: covered (%)"] = 100 * found["covered"]
            print(name, *key, found)
    print(save_table(pd.DataFrame(list(rows.values())).round(2), "features_recovery"))


if __name__ == "__main__": main()
