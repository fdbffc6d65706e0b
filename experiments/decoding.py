"""What keeping to constituents gains a reader (Section 5.3), by each rule of Table 1.

    python experiments/decoding.py [--reader e5] [--out figures/e5]

All questions count. The reader's best answer is compared with the best of its twenty that is a
constituent in Stanford CoreNLP's tree. Such trees are not perfect, but a parser of one's own will
hardly do better, so this is about what such a restriction can give. `decoding.csv` has one line for
each corpus, language and rule; a test that has its lines of this very reader is not read again."""
import argparse
from pathlib import Path

import pandas as pd
from table1 import CELLS

from s2dm.constituents import RULES, Trees, decoding_row
from s2dm.core import atomic_write, plain_errors
from s2dm.evaluation import reader_sum
from s2dm.parsers import corenlp
from s2dm.reader import S2DMReader
from s2dm.reading import load_reading

SHOWN = ["reader", "dataset", "lang", "rule", "questions", "em", "em_constituents", "gain", "low",
         "high", "f1", "f1_constituents", "reader_sum"]


def rows_of(reader, dataset, language, samples): # one for each rule
    questions = load_reading(dataset, language)
    windows = reader.windows(questions.select_columns(["question", "context"]))
    states = reader.lower_states(windows)
    answers = reader.read(windows, top_k=reader.config.n_best, states=states)
    trees = Trees(questions, corenlp(language))
    for rule in RULES:
        row = decoding_row(answers, questions, trees.by(rule), samples=samples)
        yield dict(dataset=dataset, lang=language, rule=rule) | row


def measure(name, file, samples):
    "Add the lines that are missing."
    reader = S2DMReader.from_pretrained(name)
    identity = dict(reader=name, reader_sum=reader_sum(reader))
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    # what another reader of this name was, before it was made anew, does not count
    rows = [row for row in rows if row["reader"] != name or row | identity == row]
    for dataset, language in CELLS:
        test = identity | dict(dataset=dataset, lang=language)
        if any(row | test == row for row in rows): continue
        rows += [identity | row for row in rows_of(reader, dataset, language, samples)]
        text = pd.DataFrame(rows)[SHOWN].round(2).to_csv(index=False, lineterminator="\n")
        with atomic_write(file) as new: new.write_text(text, encoding="utf-8")
        print(f"{dataset} {language}: {rows[-1]['questions']} questions", flush=True)
    return pd.DataFrame([row for row in rows if row["reader"] == name])[SHOWN[1:-1]]


@plain_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reader", default="e5", help="folder, hub id, or name of a reader")
    parser.add_argument("--out", type=Path, default=Path("figures/e5"))
    parser.add_argument("--samples", type=int, default=2000)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    table = measure(given.reader, given.out / "decoding.csv", given.samples)
    print(table.round(1).to_string(index=False))


if __name__ == "__main__": main()
