"""What it takes to ask the reader of the package, beside the bare encoder in the same run.

    S2DM_MIRROR=... OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/bench_answer.py \\
        [--questions 1000] [--rounds 3] [--parts load one batch choice int8] [--out times.csv]

load    Seconds until the package and its reader are there, in a process of its own, and its peak
        memory then and after some questions. Target: at most 5 s for the reader, once its encoder
        lies in the data folder, and at most 1 GB.
one     A question on a passage of 200 subwords, in milliseconds. Target: at most 80.
batch   Questions of SQuADShifts, reddit, by `answer`, against transformers'
        AutoModelForQuestionAnswering with the same weights, in the same precision, in one loop over
        windows as its documentation has it: batches in the order of the questions, the best start
        and end of each window. Both begin with texts. Target: at least .9 of its speed.
choice  Reading with a choice between overlapping spans (s2dm.spans; of random weights, which
        takes the same time), against reading without. Target: at most 1.1 times as long.
int8    Linear layers in eight bits (torch's dynamic quantization, a scale for each row of weights)
        against the reader as it is: time, and EM on the same questions. It is worth an option if it
        is faster and loses no more than .3 EM.

The ways take turns in going first, and each ratio is taken within a round. Times are by the clock;
the load of the machine at the start stands beside each, since others may compute on it as well.
"""
import argparse
import copy
import csv
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch  # noqa: E402
from transformers import AutoModelForQuestionAnswering  # noqa: E402

from s2dm.core import device_name, has_bfloat16  # noqa: E402
from s2dm.finetune import evenly, load_questions  # noqa: E402
from s2dm.metrics import score  # noqa: E402
from s2dm.reader import S2DMReader  # noqa: E402
from s2dm.spans import SpanChoice  # noqa: E402

LOAD = """
import json, sys, time
asked, contexts = json.load(sys.stdin)
start = time.perf_counter()
from s2dm import S2DMReader
imported = time.perf_counter()
reader = S2DMReader.from_pretrained({name!r}, "cpu")
opened = time.perf_counter()
from s2dm.core import peak_memory
before = peak_memory()["peak_memory_mib"]
reader.answer(asked, contexts, progress=False)
after = peak_memory()["peak_memory_mib"]
print(json.dumps([imported - start, opened - imported, before, after]))
"""
SOME = 64 # questions that fill a few of the reader's batches
BATCH = 16 # windows of the bare loop
WORDS = "The old lighthouse stands on a small island near the harbour. "


class Table:
    "What was measured, for people and for a csv."

    def __init__(self):
        self.rows = []
        self.load = f"{os.getloadavg()[0]:.1f}"

    def add(self, what, measured, target=""):
        self.rows.append(dict(what=what, measured=measured, target=target, load=self.load))
        print(f"{what}: {measured}" + (f" (target: {target})" if target else ""), flush=True)

    def save(self, file):
        with open(file, "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, list(self.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(first, second, rounds): # seconds of either, after one turn that does not count
    took = ([], [])
    for turn in range(-1, rounds):
        for way in ((0, 1) if turn % 2 else (1, 0)):
            spent = seconds((first, second)[way])
            if turn >= 0: took[way].append(spent)
    return took


def ratio(took): # of the first's time to the second's
    each = [a / b for a, b in zip(*took)]
    return f"{statistics.median(each):.2f} (rounds {min(each):.2f} to {max(each):.2f})"


def load(args, table, questions):
    some = evenly(questions, SOME)
    texts = json.dumps([some["question"][:], some["context"][:]])
    run = [sys.executable, "-W", "ignore", "-c", LOAD.format(name=args.reader)]
    found = []
    for _ in range(args.rounds):
        done = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True, input=texts)
        found.append(json.loads(done.stdout))
    imported, opened, before, after = (statistics.median(column) for column in zip(*found))
    table.add("import of the package with torch", f"{imported:.1f} s")
    table.add("opening the reader", f"{opened:.1f} s", "at most 5 s")
    table.add("peak memory of that process", f"{before:.0f} MiB")
    table.add(f"peak memory after {len(some)} questions", f"{after:.0f} MiB", "at most 1 GB")


def passage(reader, subwords): # words whose subwords, without special ones, are so many
    def count(text): return len(reader.tokenizer(text, add_special_tokens=False)["input_ids"])
    text = WORDS * (subwords // count(WORDS))
    for word in WORDS.split():
        if count(text) >= subwords: break
        text += f"{word} "
    return text, count(text)


def one(args, table, reader):
    text, length = passage(reader, 200)
    def ask(): return reader.answer("Where does the lighthouse stand?", text, progress=False)
    for _ in range(3): ask()
    took = [seconds(ask) for _ in range(10 * args.rounds)]
    table.add(f"a question on a passage of {length} subwords",
              f"{1e3 * statistics.median(took):.0f} ms", "at most 80 ms")


def bare_model(reader):
    "The same weights in transformers' own class."
    model = AutoModelForQuestionAnswering.from_config(reader.encoder.config).eval()
    model.base_model.load_state_dict(reader.encoder.state_dict(), strict=False)
    model.qa_outputs.load_state_dict(reader.head.state_dict())
    return model


def bare_loop(model, tokenizer, questions, contexts, config):
    "Of each question the best text of each of its windows."
    half = has_bfloat16("cpu")
    cast = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
    texts = [[] for _ in questions]
    windows = tokenizer(
        questions, contexts, truncation="only_second", max_length=config.max_length,
        stride=config.stride, return_overflowing_tokens=True, return_offsets_mapping=True)
    for k in range(0, len(windows["input_ids"]), BATCH):
        fed = {name: windows[name][k:k + BATCH] for name in ("input_ids", "attention_mask")}
        batch = tokenizer.pad(fed, return_tensors="pt")
        with torch.no_grad(), cast: said = model(**batch)
        padding = batch["attention_mask"] == 0
        starts, ends = (scores.masked_fill(padding, -torch.inf).argmax(1)
                        for scores in (said.start_logits, said.end_logits))
        for w, (start, end) in enumerate(zip(starts.tolist(), ends.tolist()), k):
            places = windows["offset_mapping"][w]
            row = windows["overflow_to_sample_mapping"][w]
            texts[row].append(contexts[row][places[start][0]:places[end][1]])
    return texts


def batch(args, table, reader, questions):
    asked, contexts = questions["question"][:], questions["context"][:]
    found = []
    def ours(): found[:] = reader.answer(asked, contexts, progress=False)
    ours()
    model = bare_model(reader)
    bare = []
    def theirs(): bare[:] = bare_loop(model, reader.tokenizer, asked, contexts, reader.config)
    took = alternate(theirs, ours, args.rounds)
    table.add(f"{len(asked):,} questions at once",
              f"{len(asked) / statistics.median(took[1]):.1f} a second")
    table.add("speed beside the bare encoder in a loop", ratio(took), "at least 0.9")
    whole = [k for k, texts in enumerate(bare) if len(texts) == 1 and found[k]]
    same = sum(bare[k][0] == found[k][0].text for k in whole)
    table.add("the same answer, of questions with one window", f"{same} of {len(whole)}")


def choice(args, table, reader, questions):
    choosing = copy.copy(reader) # shares all but the choice
    choosing._modules = dict(reader._modules)
    choosing.choice = SpanChoice(reader.encoder.config.hidden_size)
    asked, contexts = questions["question"][:], questions["context"][:]
    with_choice, without = (lambda some=some: some.answer(asked, contexts, progress=False)
                            for some in (choosing, reader))
    table.add("time of reading with a choice / without",
              ratio(alternate(with_choice, without, args.rounds)), "at most 1.1")


def int8(args, table, reader, questions):
    quantized = copy.copy(reader) # shares all but the encoder
    quantized._modules = dict(reader._modules)
    rows = torch.ao.quantization.per_channel_dynamic_qconfig
    quantized.encoder = torch.ao.quantization.quantize_dynamic(
        reader.encoder, {torch.nn.Linear: rows})
    asked, contexts = questions["question"][:], questions["context"][:]
    said = {}
    def read(kind, some): said[kind] = some.answer(asked, contexts, progress=False)

    def in_eight_bits(): # its layers take no bfloat16
        with patch("s2dm.reader.has_bfloat16", lambda _: False): read("int8", quantized)

    took = alternate(lambda: read("as it is", reader), in_eight_bits, args.rounds)
    em = {}
    for kind, answers in said.items():
        texts = {id: row[0].text for id, row in zip(questions["id"][:], answers, strict=True)}
        em[kind] = score(texts, questions).em.mean()
    lost = em["as it is"] - em["int8"]
    table.add("time of the reader as it is / with eight-bit layers", ratio(took), "above 1")
    table.add(f"EM lost by eight bits, {len(asked):,} questions", f"{lost:+.1f}", "at most 0.3")


def main():
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--reader", default="e5")
    ask.add_argument("--questions", type=int, default=1000)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--parts", nargs="+", choices=("load", "one", "batch", "choice", "int8"),
                     default=["load", "one", "batch", "choice", "int8"])
    ask.add_argument("--out", type=Path, help="a csv of the table")
    args = ask.parse_args()
    warnings.simplefilter("ignore") # torch announces that its quantization will move
    table = Table()
    print(f"{device_name()}, {torch.get_num_threads()} threads, load {table.load}, "
          f"{args.rounds} rounds")
    questions = evenly(load_questions(["squadshifts/reddit"]), args.questions)
    if "load" in args.parts: load(args, table, questions)
    reader = S2DMReader.from_pretrained(args.reader, "cpu")
    if "one" in args.parts: one(args, table, reader)
    if "batch" in args.parts: batch(args, table, reader, questions)
    if "choice" in args.parts: choice(args, table, reader, questions)
    if "int8" in args.parts: int8(args, table, reader, questions)
    if args.out: table.save(args.out)


if __name__ == "__main__": main()
