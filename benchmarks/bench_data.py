"""What comes before a step of training, against the plain ways of getting it, in the same run.

    S2DM_MIRROR=... OMP_WAIT_POLICY=PASSIVE python benchmarks/bench_data.py PART [--rounds 9] \\
            [--language en] [--sentences 60] [--layers 12] [--precision float16]

treebanks   Reading all treebanks, against the conllu library alone on the same files, which a
            reader by conllu cannot avoid; from the cache; and tree distances against networkx.
            Targets (2 cores): the first reading under 60 s, from the cache under 2 s.
generated   Generating the default synthetic corpus, kind by kind, and how much there is of it.
            Target: under 30 s of one core for all kinds, in seconds of the processor, since the
            machine may be shared.
features    Words per second of the feature cache, against the bare encoder's forward pass on the
            same length-sorted batches. Target: at least 0.9. mBERT's vocabulary and true
            configuration with random weights: speed does not depend on them. Bare: padded ids,
            already on the device, through the model, nothing kept. The cache: words in, features on
            disk, so it splits, pads, selects, converts and writes besides. Sentences are a sample
            of PUD in all languages; tokenizing all of PUD for the first time, and reading batches
            back, are timed besides.
questions   Windows of XQuAD's 1190 questions with mBERT's published vocabulary and the paper's
            sizes, against the fast tokenizer's one call that makes the same windows with offsets
            (target: at most 1.3 times its time). A new tokenizer object for neither: both are warm.
            Batches: all windows padded into batches of 32 besides. Spans: the answers to all
            questions from random scores, against the example's loops written plainly, on the same
            windows and scores (target: under 0.10 s); both must agree.

The ways take turns in going first; each ratio is taken within a round.
"""
import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import conllu  # noqa: E402
import networkx as nx  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import BertConfig, BertModel  # noqa: E402

from s2dm.core import device_name, peak_memory  # noqa: E402
from s2dm.encoder import (  # noqa: E402
    Encoder, FeatureCache, WordTokenizer, collate, length_batches, mbert_tokenizer)
from s2dm.features import (  # noqa: E402
    LONGEST, SpanTokenizer, Windows, best_spans, choose_answers, pad_windows)
from s2dm.reading import load_reading  # noqa: E402
from s2dm.sources import REGISTRY, fetch, read_text  # noqa: E402
from s2dm.synthetic import KINDS, SyntheticConfig, generate  # noqa: E402
from s2dm.treebanks import PAPER, load_pairs, load_sentences, tree_distances  # noqa: E402

COLLECTIONS = (*PAPER, "partut-fr")
BUDGET = 4096


def seconds(f):
    start = time.perf_counter()
    f()
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter() - start


# --- treebanks

def only_conllu(files):
    for file in files: conllu.parse(read_text(file))


def networkx_distances(heads):
    dict(
        nx.all_pairs_shortest_path_length(nx.Graph([(i, h - 1) for i, h in enumerate(heads) if h])))


def treebanks(args):
    rounds = args.rounds
    files = [fetch(path) for path in REGISTRY if path.startswith("ud/r2.7/")]
    times = {"conllu alone": [], "first reading": [], "from the cache": []}
    for _ in range(rounds):
        times["conllu alone"].append(seconds(lambda: only_conllu(files)))
        with tempfile.TemporaryDirectory() as os.environ["S2DM_DATA"]:
            times["first reading"].append(seconds(lambda: load_pairs(COLLECTIONS)))
            times["from the cache"].append(seconds(lambda: load_pairs(COLLECTIONS)))
            heads = load_sentences(("pud",), languages=["en"])["heads"][:]
    size = sum(f.stat().st_size for f in files) / 1e6
    print(f"{len(files)} files, {size:.0f} MB, median of {rounds} rounds")
    for (name, mine), target in zip(times.items(), (None, 60, 2)):
        ratio = statistics.median(a / b for a, b in zip(mine, times["conllu alone"]))
        verdict = (""
                   if target is None
                   else f"   target {target} s: "
                       f"{'met' if statistics.median(mine) < target else 'MISSED'}")
        print(f"{name:16}{statistics.median(mine):8.2f} s{ratio:8.2f} x conllu alone{verdict}")
    slow, fast = (
        statistics.median(seconds(lambda f=f: [f(h) for h in heads]) for _ in range(rounds))
        for f in (networkx_distances, tree_distances))
    print(
        f"distances of {len(heads)} trees: networkx {slow:.2f} s, tree_distances {fast:.3f} s, "
        f"{slow / fast:.1f} times as fast")


# --- generated

def generated(args):
    with tempfile.TemporaryDirectory() as name:
        folder, total = Path(name), 0
        for kind in KINDS:
            start = time.process_time()
            generate(SyntheticConfig(), folder, [kind])
            spent = time.process_time() - start
            total += spent
            size = sum(f.stat().st_size for f in (folder / kind).rglob("*.*")) / 1e6
            print(f"{kind:12}{spent:6.1f} s {size:8.1f} MB")
        print(f"{'all':12}{total:6.1f} s   target 30 s: {'met' if total < 30 else 'MISSED'}")
        # not those with passages and questions apart
        for file in sorted((folder / "text/train").glob("*[!s].txt")):
            words = Counter(file.read_text().replace(".", " .").replace("?", " ?").split())
            print(f"{file.stem:16}{sum(words.values()):9,} tokens {len(words):5} types")


# --- features

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
def forward(encoder, batches):
    for ids, mask in batches: encoder.model(input_ids=ids, attention_mask=mask)


def cached(encoder, sentences, precision):
    # no word is known yet
    encoder.split = WordTokenizer(encoder.split.tokenizer, encoder.split.limit)
    with tempfile.TemporaryDirectory() as folder:
        FeatureCache(encoder, precision, folder).encode(sentences, budget=BUDGET, progress=False)


def features(args):
    torch.manual_seed(0)
    tokenizer, everything = mbert_tokenizer(), load_sentences(("pud",))["forms"][:]
    model = BertModel(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=args.layers))
    if torch.cuda.is_available(): model = model.to(torch.bfloat16)
    encoder = Encoder(model, tokenizer, "mbert-random", "seed 0")
    sentences = [
        everything[i]
        for i in np.random.default_rng(0).permutation(len(everything))[:args.sentences]]
    words, batches = sum(map(len, sentences)), list(padded(encoder, sentences))
    forward(encoder, batches[:1])
    times = {"bare forward": [], "feature cache": []}
    runs = {
        "bare forward": lambda: forward(encoder, batches),
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


# --- questions

def one_call(tokenizer, questions):
    return tokenizer(
        questions["question"][:], questions["context"][:], truncation="only_second", max_length=384,
        stride=128, return_overflowing_tokens=True, return_offsets_mapping=True)


def prepared(windows, batch):
    """What the example's loops read: the windows of each question, and per window the offsets of
    its context, None elsewhere."""
    rows, offsets = [[] for _ in windows.gold], []
    for w, row in enumerate(windows.row):
        inside = np.flatnonzero(batch["context_mask"][w])
        spans = dict(zip(inside.tolist(), zip(*(
            x.tolist() for x in windows.characters(np.full(len(inside), w), inside, inside)))))
        rows[row].append(w)
        offsets.append([spans.get(k) for k in range(windows.lengths[w])])
    return rows, offsets


def loops(rows, offsets, start, end, contexts, n_best=20, longest=LONGEST):
    answers = []
    for windows, context in zip(rows, contexts):
        found = []
        for w in windows:
            starts, ends = (
                np.argsort(x[w, :len(offsets[w])], kind="stable")[-1:-n_best - 1:-1].tolist()
                for x in (start, end))
            for i in starts:
                for j in ends:
                    if offsets[w][i] is None or offsets[w][j] is None: continue
                    if j < i or offsets[w][j][1] - offsets[w][i][0] > longest: continue
                    found.append((offsets[w][i][0], offsets[w][j][1], start[w, i] + end[w, j]))
        best = sorted(found, key=lambda x: x[2], reverse=True)[:n_best]
        answers.append(context[best[0][0]:best[0][1]] if best else "")
    return answers


def ours(windows, start, end):
    return [
        a[0].text if a else ""
        for a in choose_answers(
                windows, range(len(windows)), best_spans(start, end, windows, range(len(windows))))]


def compare(runs, rounds): # medians of the times and of the ratio second / first within a round
    times = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs)[::1 if turn % 2 else -1]: times[name].append(seconds(runs[name]))
    for name, mine in times.items():
        print(
            f"  {name:28}{1e3 * statistics.median(mine):8.1f} ms ({1e3 * min(mine):.0f} to "
            f"{1e3 * max(mine):.0f})")
    first, second = times.values()
    ratios = [b / a for a, b in zip(first, second)]
    return (
        statistics.median(second), statistics.median(ratios),
        f"(rounds {min(ratios):.2f} to {max(ratios):.2f})")


def questions(args):
    tokenizer, asked = mbert_tokenizer(), load_reading("xquad", args.language)
    split = SpanTokenizer(tokenizer)
    windows, same = Windows(split, asked), one_call(tokenizer, asked)
    print(
        f"XQuAD {args.language}: {len(asked)} questions, {len(windows)} windows of "
        f"{windows.lengths.mean():.0f} subwords on average, {device_name()}, "
        f"{torch.get_num_threads()} threads, median of {args.rounds} rounds")
    print(
        f"the bare call makes {len(same['input_ids'])} windows of "
        f"{np.mean([len(ids) for ids in same['input_ids']]):.0f} subwords (it does not cut "
        "questions after 64)")
    _, ratio, spread = compare(
        {"bare fast tokenizer": lambda: one_call(tokenizer, asked),
         "Windows": lambda: Windows(split, asked, progress=False)},
        args.rounds)
    print(
        f"features / bare call, time: {ratio:.2f}   target at most 1.3: "
        f"{'met' if ratio <= 1.3 else 'MISSED'} {spread}")
    plan = length_batches(windows.lengths, 32 * 384)
    def pad_all(): return [pad_windows(windows, b) for b in plan]
    took = 1e3 * statistics.median(seconds(pad_all) for _ in range(args.rounds))
    print(f"  all windows in {len(plan)} padded batches{took:8.1f} ms")
    stores = (windows, windows._questions, windows._contexts)
    values = [x for store in stores for x in vars(store).values()]
    arrays = [x for x in values if isinstance(x, np.ndarray)]
    batch = pad_windows(windows, range(len(windows)))
    print(
        f"  {sum(x.nbytes for x in arrays) / 1e6:.2f} MB of arrays; padded to 384: "
        f"{3 * 8 * 384 * len(windows) / 1e6:.1f} MB")
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.randn(batch["input_ids"].shape, generator=generator) for _ in range(2))
    plain = (*prepared(windows, batch), start.numpy(), end.numpy(), asked["context"][:])
    expected = loops(*plain)
    assert ours(windows, start, end) == expected
    time_taken, ratio, spread = compare(
        {"the example's loops": lambda: loops(*plain),
         "best_spans, choose_answers": lambda: ours(windows, start, end)},
        args.rounds)
    print(
        f"choice of spans: {time_taken:.3f} s   target under 0.10: "
        f"{'met' if time_taken < .1 else 'MISSED'}; {ratio:.2f} of the loops' time {spread}, the "
        f"same {len(expected)} answers; peak memory {peak_memory()}")


PARTS = {f.__name__: f for f in (treebanks, generated, features, questions)}


def main():
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("part", choices=PARTS)
    for name, default in (("rounds", 9), ("sentences", 60), ("layers", 12)):
        ask.add_argument(f"--{name}", type=int, default=default)
    ask.add_argument("--language", default="en")
    ask.add_argument("--precision", default="float16")
    args = ask.parse_args()
    warnings.simplefilter("ignore", UserWarning) # stand-ins
    PARTS[args.part](args)


if __name__ == "__main__": main()
