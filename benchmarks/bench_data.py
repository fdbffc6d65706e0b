"""Time to read all treebanks, against the conllu library alone on the same files in the same run;
from the cache; and tree distances against networkx. And to generate the default synthetic corpus,
kind by kind, on one core, and how much there is of it.

Targets (2 cores): the first reading under 60 s, from the cache under 2 s; all kinds of the
synthetic corpus under 30 s of one core, in seconds of the processor, since the machine may be
shared. The library's share is what a reader by conllu cannot avoid.
Usage: S2DM_MIRROR=... python benchmarks/bench_data.py [--rounds 3] [--parts treebanks synthetic]
"""
import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import conllu
import networkx as nx

from s2dm.sources import REGISTRY, fetch, read_text
from s2dm.synthetic import KINDS, SyntheticConfig, generate
from s2dm.treebanks import PAPER, load_pairs, load_sentences, tree_distances

COLLECTIONS = (*PAPER, "partut-fr")


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def bare(files):
    for file in files: conllu.parse(read_text(file))


def networkx_distances(heads):
    dict(
        nx.all_pairs_shortest_path_length(nx.Graph([(i, h - 1) for i, h in enumerate(heads) if h])))


def treebanks(rounds):
    warnings.simplefilter("ignore", UserWarning)  # stand-ins
    files = [fetch(path) for path in REGISTRY if path.startswith("ud/r2.7/")]
    times = {"conllu alone": [], "first reading": [], "from the cache": []}
    for _ in range(rounds):
        times["conllu alone"].append(seconds(lambda: bare(files)))
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


def synthetic():
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


def main():
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--parts", nargs="+", choices=("treebanks", "synthetic"),
                     default=["treebanks", "synthetic"])
    args = ask.parse_args()
    if "treebanks" in args.parts: treebanks(args.rounds)
    if "synthetic" in args.parts: synthetic()


if __name__ == "__main__": main()
