"""Words per second of the feature cache, against the bare encoder's forward pass on the same
length-sorted batches in the same run. Target: at least 0.9.

    S2DM_MIRROR=... OMP_WAIT_POLICY=PASSIVE python benchmarks/bench_encoder.py [--rounds 9] \\
            [--sentences 60] [--layers 12] [--precision float16]

mBERT's vocabulary and true configuration with random weights: speed does not depend on them. Bare:
padded ids, already on the device, through the model, nothing kept.
The cache: words in, features on disk, so it splits, pads, selects, converts and writes besides. The
two take turns in going first; each ratio is taken within a round. Sentences are a sample of PUD in
all languages; tokenizing all of PUD for the first time, and reading batches back, are timed
besides.
"""
import argparse
import os
import statistics
import tempfile
import time
import warnings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import BertConfig, BertModel  # noqa: E402

from s2dm.core import device_name, peak_memory  # noqa: E402
from s2dm.encoder import (  # noqa: E402
    Encoder, FeatureCache, WordTokenizer, collate, length_batches, mbert_tokenizer)
from s2dm.treebanks import load_sentences  # noqa: E402

BUDGET = 4096


def seconds(f):
    start = time.perf_counter()
    f()
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter() - start


def padded(encoder, sentences): # ids and masks of the batches that the cache makes, on the device
    tokenized = encoder.split(sentences)
    for at in length_batches([len(t.ids) for t in tokenized], BUDGET):
        rows = [
            torch.tensor([*encoder.split.prefix, *tokenized[i].ids, *encoder.split.suffix])
            for i in at]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
        yield ids.to(encoder.device), mask.to(encoder.device)


@torch.no_grad()
def bare(encoder, batches):
    for ids, mask in batches: encoder.model(input_ids=ids, attention_mask=mask)


def cached(encoder, sentences, precision):
    # no word is known yet
    encoder.split = WordTokenizer(encoder.split.tokenizer, encoder.split.limit)
    with tempfile.TemporaryDirectory() as folder:
        FeatureCache(encoder, precision, folder).encode(sentences, budget=BUDGET, progress=False)


def main():
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 9), ("sentences", 60), ("layers", 12)):
        ask.add_argument(f"--{name}", type=int, default=default)
    ask.add_argument("--precision", default="float16")
    args = ask.parse_args()
    warnings.simplefilter("ignore", UserWarning) # stand-ins
    torch.manual_seed(0)
    tokenizer, everything = mbert_tokenizer(), load_sentences(("pud",))["forms"][:]
    model = BertModel(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=args.layers))
    if torch.cuda.is_available(): model = model.to(torch.bfloat16)
    encoder = Encoder(model, tokenizer, "mbert-random", "seed 0")
    sentences = [
        everything[i]
        for i in np.random.default_rng(0).permutation(len(everything))[:args.sentences]]
    words, batches = sum(map(len, sentences)), list(padded(encoder, sentences))
    bare(encoder, batches[:1])
    times = {"bare forward": [], "feature cache": []}
    runs = {
        "bare forward": lambda: bare(encoder, batches),
        "feature cache": lambda: cached(encoder, sentences, args.precision)}
    for turn in range(args.rounds):
        for name in list(runs)[::1 if turn % 2 else -1]: times[name].append(seconds(runs[name]))
    print(
        f"{len(sentences)} sentences, {words} words, {args.layers} layers of mBERT's size, "
        f"{device_name()}, {torch.get_num_threads()} threads, median of {args.rounds} rounds")
    for name, mine in times.items():
        print(
            f"{name:16}{statistics.median(mine):8.2f} s{words / statistics.median(mine):12,.0f} "
            "words/s")
    ratios = [b / c for b, c in zip(*times.values())]
    ratio = statistics.median(ratios)
    print(
        f"cache / bare, words/s: {ratio:.3f}   target 0.9: {'met' if ratio >= .9 else 'MISSED'} "
        f"(rounds {min(ratios):.2f} to {max(ratios):.2f}); peak memory {peak_memory()}")
    print(
        f"tokenizing {len(everything)} sentences for the first time: "
        f"{seconds(lambda: WordTokenizer(tokenizer)(everything)):.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(encoder, args.precision, folder)
        at = cache.encode(sentences, progress=False)
        many = [at[i:i + 60] for i in range(0, len(at) - 59, 20)]
        took = seconds(lambda: [collate([cache[i] for i in b]) for b in many])
        print(f"60 sentences read and padded (30 pairs): {1e3 * took / len(many):.1f} ms")


if __name__ == "__main__":
    main()
