"""Features and the choice of spans, against the plain ways of getting them, in the same run.

    S2DM_MIRROR=... python benchmarks/bench_reading.py [--rounds 9] [--language en]

Features: windows of XQuAD's 1190 questions with mBERT's published vocabulary and the paper's sizes,
against the fast tokenizer's one call that makes the same windows with offsets (target: at most 1.3
times its time). A new tokenizer object for neither: both are warm. Batches: all windows padded into
batches of 32 besides.
Spans: the answers to all questions from random scores, against the example's loops written plainly,
on the same windows and scores (target: under 0.10 s); both must agree.
The ways take turns in going first; each ratio is taken within a round.
"""
import argparse
import statistics
import time

import numpy as np
import torch

from s2dm.core import device_name, peak_memory
from s2dm.encoder import length_batches, mbert_tokenizer
from s2dm.features import LONGEST, SpanTokenizer, Windows, best_spans, choose_answers, pad_windows
from s2dm.reading import load_reading


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def bare(tokenizer, questions):
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


def main():
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--rounds", type=int, default=9)
    ask.add_argument("--language", default="en")
    args = ask.parse_args()
    tokenizer, questions = mbert_tokenizer(), load_reading("xquad", args.language)
    split = SpanTokenizer(tokenizer)
    windows, same = Windows(split, questions), bare(tokenizer, questions)
    print(
        f"XQuAD {args.language}: {len(questions)} questions, {len(windows)} windows of "
        f"{windows.lengths.mean():.0f} subwords on average, {device_name()}, "
        f"{torch.get_num_threads()} threads, median of {args.rounds} rounds")
    print(
        f"the bare call makes {len(same['input_ids'])} windows of "
        f"{np.mean([len(ids) for ids in same['input_ids']]):.0f} subwords (it does not cut "
        "questions after 64)")
    _, ratio, spread = compare(
        {"bare fast tokenizer": lambda: bare(tokenizer, questions),
         "Windows": lambda: Windows(split, questions, progress=False)},
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
    plain = (*prepared(windows, batch), start.numpy(), end.numpy(), questions["context"][:])
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


if __name__ == "__main__": main()
