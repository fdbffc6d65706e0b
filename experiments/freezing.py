"""What may stay as it is in fine-tuning: all of e5, its embeddings, or its lower layers too; and
what dropout costs.

    python experiments/freezing.py --steps 600 --out figures/e5/freezing.csv

Each arm trains a baseline on the same English questions, in the same order, for the same number of
steps, and is scored on English development questions (SQuADShifts reddit). No other language is
read. One line is written for each arm; an arm that has its line is not run again, so the script
goes on where it was stopped. `seconds_per_step` is measured on twenty batches with kept states of
the frozen layers, before the training; the median counts."""
import argparse
import statistics
import time
from pathlib import Path

import pandas as pd
import torch

from s2dm.core import atomic_write, device_name, plain_errors
from s2dm.features import TrainingBatches
from s2dm.finetune import FinetuneConfig, evenly, load_questions, new_reader
from s2dm.fit import fit
from s2dm.metrics import score

ARMS = {
    "all": dict(freeze_embeddings=False, freeze_layers=0),
    "embeddings frozen": dict(freeze_embeddings=True, freeze_layers=0),
    "embeddings frozen and dropout": dict(dropout="own"),
    "lower 4 frozen": dict(freeze_layers=4),
    "lower 6 frozen": dict(freeze_layers=6),
    "lower 8 frozen": dict(freeze_layers=8),
    "LoRA": dict(adapter="lora", learning_rate=1e-3),
}


def seconds_per_step(reader, data, batches=20):
    "Median time of a step on batches of the first epoch."
    optimizer = torch.optim.AdamW(
        [p for p in reader.parameters() if p.requires_grad], lr=0., fused=True)
    half = (torch.autocast("cpu", torch.bfloat16)
            if "bfloat16" in device_name()
            else torch.autocast("cpu", enabled=False))
    taken = []
    for positions in data.plan(0)[:batches]:
        batch = data.load(positions)
        if reader.lower_layers:
            ids = batch.pop("input_ids")
            batch["states"] = torch.randn(*ids.shape, reader.encoder.config.hidden_size).half()
        start = time.perf_counter()
        with half: loss = sum(term.mean() for term in reader(batch).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.)
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def run(name, settings, steps, folder):
    "One arm: its line of the table."
    given = dict(freeze_embeddings=True, freeze_layers=0) | settings
    config = FinetuneConfig(model="e5", variant="baseline", max_steps=steps, epochs=1, **given)
    reader = new_reader(config)
    windows = reader.windows(load_questions(config.data))
    data = TrainingBatches(windows, config.batch, config.seed)
    seconds = seconds_per_step(reader, data)
    reader.lower_layers = 0 # a short run does not pay for keeping the states of all texts
    found = fit(
        reader, data, config, folder / name.replace(" ", "_"), weights=dict(start=.5, end=.5),
        scales={"head.": config.head_scale})
    dev = evenly(load_questions(config.dev), config.dev_sample)
    answers = reader.read(reader.windows(dev))
    scores = score(
        {id: a[0].text if a else "" for id, a in zip(dev["id"][:], answers, strict=True)}, dev)
    learned = sum(p.numel() for p in reader.parameters() if p.requires_grad)
    return dict(
        arm=name, steps=found.steps, questions=len(dev), em=scores.em.mean(), f1=scores.f1.mean(),
        seconds_per_step=seconds, learned_mb=4 * learned / 1e6, threads=torch.get_num_threads(),
        device=device_name())


@plain_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("figures/e5/freezing.csv"))
    parser.add_argument("--runs", type=Path, default=Path("runs/freezing"))
    parser.add_argument("--arms", default=",".join(ARMS), help="separated by commas")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    rows = pd.read_csv(given.out).to_dict("records") if given.out.exists() else []
    for name in given.arms.split(","):
        if name in {row["arm"] for row in rows}: continue
        rows.append(run(name, ARMS[name], given.steps, given.runs))
        with atomic_write(given.out) as new:
            pd.DataFrame(rows).round(3).to_csv(new, index=False, lineterminator="\n")
        print(pd.DataFrame(rows[-1:]).round(2).to_string(index=False))


if __name__ == "__main__": main()
