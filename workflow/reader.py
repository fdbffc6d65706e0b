"""The readers that come with the package.

    python workflow/reader.py publish runs/finetune/e5/baseline/seed0/checkpoint e5
    python workflow/reader.py card e5 --scores runs/evaluate/e5 --beside runs/evaluate/e5/baseline
    python workflow/reader.py reliability e5 --out figures/e5/reliability.csv
    python workflow/reader.py english e5 runs/more/checkpoint --beside runs/finetune/e5/baseline

publish: a reader that a run has trained. Its scores become probabilities on English development
questions that it was not trained on. What its encoder learned is rounded to a few bits, so the file
is small; what that costs is measured on the same questions and stands on the card. So does what a
threshold does: how often it is silent where the passage is another question's, and what it would
have answered rightly. The folder s2dm/readers/NAME replaces the old one when all of it is done.
card: its card is written anew; with --scores, those of an evaluation of this very reader
(nbs/05_evaluate.ipynb with -p reader NAME); with --beside, what it gains over the readers of an
experiment.
reliability: how sure it is beside how often it is right, on development questions by which it was
not calibrated.
english: EM and F1 of several readers on the same development questions, which say which of them is
put into the package; with --beside, what the records of an experiment's readers say of them.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.stats import binomtest

from s2dm.core import (
    DataError, MissingData, ParameterError, atomic_folder, atomic_write, plain_errors,
    project_root, read_json)
from s2dm.evaluation import predict, reader_sum
from s2dm.finetune import evenly, load_questions
from s2dm.metrics import score
from s2dm.reader import S2DMReader
from s2dm.sources import REGISTRY

ENCODERS = dict(e5="multilingual-e5-small, MIT")
LANGUAGES = ("trained on questions and passages in English alone; whatever languages its encoder "
             "has read it can be asked in, and question and passage need not share one")
NOT_MEASURED = "not measured yet"
THRESHOLDS = (.2, .3, .4, .5)


def judged(reader, questions): # [N,2] how sure of the best answer; 1 if it is right, else 0
    answers = reader.answer(questions["question"][:], questions["context"][:], threshold=0)
    said = {id: a[0].text if a else "" for id, a in zip(questions["id"][:], answers, strict=True)}
    sure = [found[0].probability if found else 0. for found in answers]
    return np.stack([sure, score(said, questions).em > 0], 1)


def reliability(sure, bins=8): # DataFrame, a row for each bin; the least sure first
    order = np.argsort(sure[:, 0], kind="stable")
    rows = []
    for part in np.array_split(sure[order], min(bins, len(sure))):
        right = int(part[:, 1].sum())
        ends = binomtest(right, len(part)).proportion_ci(method="wilson")
        rows.append(dict(
            questions=len(part), expected=part[:, 0].mean(), observed=right / len(part),
            low=ends.low, high=ends.high))
    return pd.DataFrame(rows)


def elsewhere(questions: Dataset) -> Dataset:
    "The same questions, each asked of another's passage, as far as that lacks the answer."
    contexts, answers = questions["context"][:], questions["answers"][:]
    half = len(contexts) // 2
    moved = questions.remove_columns("context").add_column(
        "context", contexts[half:] + contexts[:half])
    lacks = [i for i, row in enumerate(moved["context"][:])
             if not any(text.lower() in row.lower() for text in answers[i]["text"])]
    return moved.select(lacks)


def silence(sure, lost): # for the card; both as from `judged`, the second of `elsewhere`
    def below(odds, threshold): return (odds < threshold).mean()
    right = sure[sure[:, 1] > 0, 0]
    if not len(right) or not len(lost): return "not known: too few questions" # a share of none
    return "; ".join(
        f"{threshold:g}: silent on {below(lost[:, 0], threshold):.0%} of the questions whose answer"
        f" is not in the passage, and on {below(right, threshold):.0%} of what it answers rightly"
        for threshold in THRESHOLDS)


def said_of(reader): # what its card says besides the training
    base = ENCODERS.get(reader.base["name"] if reader.base else "", "see its own page")
    corpora = {source.corpus: source.licence for source in REGISTRY.values()}
    names = reader.facts.get("questions", "").partition(": ")[2].split(", ")
    used = sorted({name.partition("/")[0] for name in names} & set(corpora))
    licences = ", ".join(f"{name} ({corpora[name]})" for name in used) or "see their files"
    c = reader.config
    threshold = reader.calibration.threshold
    silent = f"below a probability of {threshold:g} it says that there is no answer"
    always = ("it answers even where the passage has no answer, unless a threshold is given; it was"
              " trained on no such questions")
    return dict(
        licence=f"encoder: {base}; questions: {licences}; docs/data.md says more",
        languages=LANGUAGES,
        limits=f"an answer is a piece of the passage, of {c.longest_characters} characters at most;"
               f" {silent if threshold else always}; its probabilities were fitted to English "
               f"questions; of a question it reads {c.query} subwords, and of a passage "
               f"{c.max_length} at a time")


def score_rows(folder: Path, reader): # of the card
    """Scores by language, from the record of an evaluation. Raises `MissingData` if there is none,
    `DataError` if it is of another reader."""
    file = folder / "metrics.json"
    if not file.is_file():
        raise MissingData(f"{file} is not there; expected the folder of a finished run of "
                          "nbs/05_evaluate.ipynb, such as runs/evaluate/e5")
    record = read_json(file, results=list)
    if record.get("reader_sum") != reader_sum(reader):
        raise DataError(f"{file} is no record of this reader: another one was evaluated; "
                        "run nbs/05_evaluate.ipynb with -p reader and its name")
    rows = []
    for row in record["results"]:
        if row["context"] != row["question"]: continue
        cells = {"data set": row["dataset"], "language": row["context"],
                 "questions": f"{row['questions']:,}"}
        for name in ("em", "f1"):
            mean, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
            cells[f"{name.upper()}, 95 % interval"] = f"{mean:.1f} ({low:.1f} to {high:.1f})"
        rows.append(cells)
    if rows: return rows
    raise DataError(f"{file}: no test has questions and passages in the same language")


def in_other_languages(record): # of an evaluation: data set -> EM, mean over the languages
    rows = pd.DataFrame(record["results"])
    own = rows[(rows["context"] == rows["question"]) & (rows["context"] != "en")]
    return own.groupby("dataset", sort=False)["em"].mean()


def compared(scores: Path, others: Path): # for the card
    """What it gains over other readers, data set by data set. Raises `MissingData` if they have no
    records."""
    files = sorted(others.glob("seed*/metrics.json"))
    if not files:
        raise MissingData(f"{others} has no seed*/metrics.json; expected evaluations of readers, "
                          "such as runs/evaluate/e5/baseline")
    here, *there = (in_other_languages(read_json(file, results=list))
                    for file in (scores / "metrics.json", *files))
    usual = pd.DataFrame(there).mean()
    says = [f"{name} {em:.1f} against {usual[name]:.1f}"
            for name, em in here.items() if name in usual]
    return (f"EM in languages other than English, against the mean of {len(files)} readers of "
            f"{others.name}: {', '.join(says)}")


def place(name): # of a published reader
    return project_root() / "s2dm/readers" / name


def publish(checkpoint: Path, name: str, bits: int, dev: str, count: int):
    "Calibrate, round, measure, save."
    reader = S2DMReader.from_pretrained(checkpoint, "cpu")
    questions: Dataset = evenly(load_questions([dev]), count)
    sure = reader.calibrate(questions)
    before = 100 * sure[:, 1].mean()
    temperature = f"temperature {reader.calibration.temperature:.2f}"
    bins = reliability(sure, 5).itertuples()
    says = ", ".join(f"{row.expected:.0%} sure: {row.observed:.0%} right" for row in bins)
    reader.facts = reader.facts | dict(
        calibration=f"{temperature}, by {len(sure)} questions of {dev}; {says}")
    moved = elsewhere(questions)
    thresholds = silence(sure, judged(reader, moved) if len(moved) else [])
    reader.facts |= dict(thresholds=thresholds) | said_of(reader) | dict(scores=NOT_MEASURED)
    with atomic_folder(place(name)) as new:
        reader.save_pretrained(new, bits)
        after = 100 * judged(S2DMReader.from_pretrained(new, "cpu"), questions)[:, 1].mean()
        reader.facts |= dict(
            rounding=f"{bits} bits; EM on {dev} {before:.1f} before, {after:.1f} after")
        reader.save_facts(new)
    size = sum(file.stat().st_size for file in place(name).iterdir()) / 1e6
    print(f"{place(name)}: {size:.1f} MB; {reader.facts['rounding']}")


def write_card(name: str, scores: Path | None = None, beside: Path | None = None):
    "What is known of a published reader, and its scores if there are any."
    if beside and not scores:
        raise ParameterError("--beside needs the reader's own --scores; expected both")
    reader = S2DMReader.from_pretrained(place(name), "cpu")
    known = reader.facts.get("scores", NOT_MEASURED)
    found = score_rows(scores, reader) if scores else known
    if beside: reader.facts = reader.facts | dict(comparison=compared(scores, beside))
    reader.facts = reader.facts | said_of(reader) | dict(scores=found)
    reader.save_facts(place(name))
    print(f"{place(name) / 'README.md'}: scores "
          f"{'of ' + str(len(found)) + ' tests' if isinstance(found, list) else found}")


def write_reliability(name: str, dev: str, calibrated: int, count: int, out: Path):
    "Numbers of the picture in nbs/04c_reader.ipynb."
    everything = load_questions([dev])
    used = set(evenly(everything, calibrated)["id"])
    rest = [i for i, id in enumerate(everything["id"]) if id not in used]
    if not rest: raise ParameterError(f"all questions of {dev} were used for the calibration")
    reader = S2DMReader.from_pretrained(place(name), "cpu")
    rows = reliability(judged(reader, evenly(everything.select(rest), count)))
    rows.insert(0, "reader", name)
    rows.insert(1, "corpus", dev)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as tmp: rows.to_csv(tmp, index=False, float_format="%.4f")
    print(f"{out}: {len(rows)} bins of {rows['questions'].sum()} questions")


def write_english(readers: list[str], beside: Path | None, dev: str, count: int, out: Path):
    "The table of docs/runs.md."
    questions = evenly(load_questions([dev]), count)
    rows = []
    for name in readers:
        reader = S2DMReader.from_pretrained(name, "cpu")
        counted = score(predict(reader, questions), questions)
        about = {key: reader.facts.get(key, "") for key in ("questions", "training")}
        numbers = dict(em=counted.em.mean(), f1=counted.f1.mean())
        rows.append(dict(reader=Path(name).name) | about | numbers)
    for file in sorted(beside.glob("seed*/metrics.json")) if beside else ():
        record = read_json(file, evaluations=list)
        last = {key: record["evaluations"][-1][key] for key in ("em", "f1")}
        rows.append(dict(reader=f"{beside.name}, {file.parent.name}",
                         questions=record["questions"], training=f"{record['steps']} steps") | last)
    table = pd.DataFrame(rows).round(2)
    with atomic_write(out) as new: table.to_csv(new, index=False, lineterminator="\n")
    print(table.to_string(index=False))


@plain_errors()
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    new = commands.add_parser("publish")
    card = commands.add_parser("card")
    picture = commands.add_parser("reliability")
    several = commands.add_parser("english")
    new.add_argument("checkpoint", type=Path)
    for command, run in ((new, publish), (card, write_card), (picture, write_reliability)):
        command.add_argument("name", help="by which `S2DMReader.from_pretrained` finds it")
        command.set_defaults(run=run)
    for command in (new, picture, several):
        command.add_argument("--dev", default="squadshifts/reddit", help="English questions")
    new.add_argument("--bits", type=int, default=6, help="of a rounded difference, 2 to 8")
    for command in (new, several):
        command.add_argument("--count", type=int, default=1000, help="of them, evenly spaced")
    card.add_argument("--scores", type=Path, help="folder of an evaluation")
    card.add_argument("--beside", type=Path, help="folder of evaluations of other readers")
    picture.add_argument("--calibrated", type=int, default=1000, help="--count of `publish`")
    picture.add_argument("--count", type=int, default=400, help="of the others, evenly spaced")
    picture.add_argument("--out", type=Path, default=Path("figures/e5/reliability.csv"))
    several.add_argument("readers", nargs="+", help="names or folders")
    several.add_argument("--beside", type=Path, help="folder of trained readers of an experiment")
    several.add_argument("--out", type=Path, default=Path("figures/e5/readers.csv"))
    several.set_defaults(run=write_english)
    given = vars(parser.parse_args())
    run = given.pop("run")
    run(**given)


if __name__ == "__main__": main()
