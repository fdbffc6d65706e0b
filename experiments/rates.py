"""How fast and how long to train with e5: a reader's batch and learning rate, an S2DM's learning
rate and epochs.

    python experiments/rates.py reader --out figures/e5/rates-reader.csv
    python experiments/rates.py s2dm --out figures/e5/rates-s2dm.csv

A reader's arms see the same questions, `--questions` of them, and are scored on English development
questions (SQuADShifts reddit). An S2DM's arms are scored as training selects it, by Pearson's
correlation of y on Chinese STS, development part, in percent. Nothing else is read. What is trained
lies in `--runs`, apart from the runs of the experiment, which would take it for theirs. One line is
written for each arm; an arm that has its line is not run again, so the script goes on where it was
stopped."""
import argparse
import os
import time
from pathlib import Path

import pandas as pd
import torch

from s2dm.core import atomic_write, device_name, plain_errors
from s2dm.features import TrainingBatches
from s2dm.finetune import FinetuneConfig, evenly, load_questions, new_reader
from s2dm.fit import fit
from s2dm.metrics import score
from s2dm.pretrain import PretrainConfig, pretrain

READER = { # settings of 04_finetune
    "batches of 16, 2e-4": dict(batch=16, learning_rate=2e-4),
    "batches of 8, 2e-4": dict(batch=8, learning_rate=2e-4),
    "batches of 16, 4e-4": dict(batch=16, learning_rate=4e-4),
}
S2DM = { # settings of 03_pretrain
    "1 epoch, 1e-3": dict(epochs=1, learning_rate=1e-3),
    "1 epoch, 3e-4": dict(epochs=1, learning_rate=3e-4),
    "3 epochs, 1e-3": dict(epochs=3, learning_rate=1e-3),
}


def reader(name, given):
    "One arm: its line of the table."
    settings = READER[name]
    config = FinetuneConfig(
        model="e5", variant="baseline", epochs=1,
        max_steps=given.questions // settings["batch"], **settings)
    reader = new_reader(config)
    reader.lower_layers = 0 # a short run does not pay for keeping the states of all texts
    data = TrainingBatches(
        reader.windows(load_questions(config.data)), config.batch, config.seed)
    found = fit(
        reader, data, config, given.runs / name.replace(" ", "_"),
        weights=dict(start=.5, end=.5), scales={"head.": config.head_scale})
    dev = evenly(load_questions(config.dev), config.dev_sample)
    answers = reader.read(reader.windows(dev))
    scores = score(
        {id: a[0].text if a else "" for id, a in zip(dev["id"][:], answers, strict=True)}, dev)
    return dict(
        arm=name, steps=found.steps, questions=len(dev), em=scores.em.mean(), f1=scores.f1.mean())


def s2dm(name, given):
    "One arm: its line of the table."
    config = PretrainConfig(
        model="e5", measure=False, fresh=True, evaluate_every=given.evaluate_every, **S2DM[name])
    found = pretrain(config).fit
    best = found.evaluations.loc[found.evaluations["y"].idxmax()]
    return dict(
        arm=name, steps=found.steps, best_step=found.best_step, y=100 * best["y"],
        z=100 * best["z"], seconds=found.seconds)


STAGES = dict(reader=(reader, READER), s2dm=(s2dm, S2DM))


@plain_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--arms", help="separated by semicolons; none given: all")
    parser.add_argument("--questions", type=int, default=9600, help="that a reader learns from")
    parser.add_argument("--evaluate-every", type=int, default=200, help="steps of S2DM")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/rates"))
    given = parser.parse_args()
    os.environ["S2DM_RUNS"] = str(given.runs)
    measure, arms = STAGES[given.stage]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    rows = pd.read_csv(given.out).to_dict("records") if given.out.exists() else []
    for name in given.arms.split(";") if given.arms else arms:
        if name in {row["arm"] for row in rows}: continue
        start = time.perf_counter()
        row = measure(name, given)
        minutes = (time.perf_counter() - start) / 60
        rows.append(row | dict(
            minutes=minutes, threads=torch.get_num_threads(), device=device_name()))
        with atomic_write(given.out) as new:
            pd.DataFrame(rows).round(4).to_csv(new, index=False, lineterminator="\n")
        print(pd.DataFrame(rows[-1:]).round(4).to_string(index=False))


if __name__ == "__main__": main()
