"""Make a reader that comes with the package from a reader that a run has trained.

    python workflow/reader.py runs/finetune/e5/baseline/seed0/checkpoint e5

Its scores become probabilities on English development questions that it was not trained on. What
its encoder learned is rounded to a few bits, so the file is small; what that costs is measured on
the same questions and stands on the card. The folder s2dm/readers/NAME replaces the old one when
all of it is done."""
import argparse
import sys
from pathlib import Path

import numpy as np
from datasets import Dataset

from s2dm.core import DataError, ParameterError, atomic_folder, project_root
from s2dm.finetune import evenly, load_questions
from s2dm.metrics import score
from s2dm.reader import S2DMReader


def exact_match(reader, questions): # percent
    answers = reader.read(reader.windows(questions))
    said = {id: a[0].text if a else "" for id, a in zip(questions["id"][:], answers, strict=True)}
    return score(said, questions).em.mean()


def reliability(sure, bins=5): # lines for people: how sure, how often right
    order = np.argsort(sure[:, 0], kind="stable")
    lines = []
    for part in np.array_split(sure[order], bins):
        lines.append(f"{part[:, 0].mean():.0%} sure: {part[:, 1].mean():.0%} right")
    return ", ".join(lines)


def publish(checkpoint: Path, name: str, bits: int, dev: str, count: int):
    "Calibrate, round, measure, save."
    reader = S2DMReader.from_pretrained(checkpoint, "cpu")
    questions: Dataset = evenly(load_questions([dev]), count)
    sure = reader.calibrate(questions)
    before = 100 * sure[:, 1].mean()
    temperature = f"temperature {reader.calibration.temperature:.2f}"
    reader.facts = reader.facts | dict(
        calibration=f"{temperature}, by {len(sure)} questions of {dev}; {reliability(sure)}")
    folder = project_root() / "s2dm/readers" / name
    with atomic_folder(folder) as new:
        reader.save_pretrained(new, bits)
        after = exact_match(S2DMReader.from_pretrained(new, "cpu"), questions)
        reader.facts = reader.facts | dict(
            rounding=f"{bits} bits; EM on {dev} {before:.1f} before, {after:.1f} after")
        reader.save_pretrained(new, bits)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"{folder}: {size:.1f} MB; {reader.facts['rounding']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("name", help="by which `S2DMReader.from_pretrained` finds it")
    parser.add_argument("--bits", type=int, default=6, help="of a rounded difference, 2 to 8")
    parser.add_argument("--dev", default="squadshifts/reddit", help="English questions")
    parser.add_argument("--questions", type=int, default=1000, help="of them, evenly spaced")
    given = parser.parse_args()
    try: publish(given.checkpoint, given.name, given.bits, given.dev, given.questions)
    except (DataError, ParameterError) as error: sys.exit(str(error))


if __name__ == "__main__": main()
