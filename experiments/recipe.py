"""What training alone can give: the arms of docs/experiment-recipe.md.

    S2DM_MIRROR=... python experiments/recipe.py trials
    S2DM_MIRROR=... python experiments/recipe.py train [--arms subwords,switched] [--seeds 0,1,2]
    S2DM_MIRROR=... python experiments/recipe.py read
    S2DM_MIRROR=... python experiments/recipe.py tables --out figures/e5

Each arm has a folder of its own below runs/recipe/, and whatever is there already is not done
again. `trials` compares settings on English development questions and writes a line for each;
`train` takes the best of them. `read` refuses until all readers of the table are trained, and
`tables` until all have been read with: no score of a target language is looked at in between. The
baseline's readers are those of `make e5`."""
import argparse
import os
import sys
from pathlib import Path

import pandas as pd
from primary import OUTCOMES, scores_of

from s2dm.comparison import comparison_table
from s2dm.core import DataError, read_json, runs_dir
from s2dm.evaluation import EvaluateConfig, evaluate
from s2dm.finetune import FinetuneConfig, finetune, mean_reader

ARMS = {
    "average of steps": dict(average=8, average_share=.5, final_rate=1 / 3),
    "average of runs": dict(head_seed=0),
    "no layer frozen": dict(freeze_layers=0),
    "6 layers frozen": dict(freeze_layers=6),
    "8 layers frozen": dict(freeze_layers=8),
    "subwords": dict(second="subwords"),
    "switched": dict(second="switched"),
}
TRIED = ("subwords", "switched") # arms that have settings
SETTINGS = [dict(second_share=share, consistency=weight) for share in (.3, .6) for weight in (1, 5)]
SEEDS, RUNS = range(3), 3 # of each arm; of each mean of runs
ROOT = runs_dir() / "recipe"


def below(*names): # from now on runs are written there
    os.environ["S2DM_RUNS"] = str(ROOT.joinpath(*(name.replace(" ", "_") for name in names)))


def english(metrics): # F1 on development questions, at the end
    return metrics["evaluations"][-1]["f1"]


# settings

def trials(file):
    "A line for each setting; one that has its line is not tried again."
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    for arm in TRIED:
        for number, settings in enumerate(SETTINGS):
            about = dict(arm=arm) | settings
            if any(row | about == row for row in rows): continue
            below("trials", f"{arm} {number}")
            config = FinetuneConfig(
                model="e5", variant="baseline", seed=100, max_steps=1000, **ARMS[arm], **settings)
            metrics = finetune(config).metrics
            rows.append(about | dict(steps=metrics["steps"], seconds=metrics["seconds"],
                                     f1=english(metrics)))
            pd.DataFrame(rows).round(2).to_csv(file, index=False, lineterminator="\n")
    return pd.DataFrame(rows)


def chosen(arm, file): # parameters of 04_finetune
    if arm not in TRIED: return ARMS[arm]
    rows = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["arm"])
    rows = rows[rows["arm"] == arm]
    if len(rows) < len(SETTINGS):
        raise DataError(f"{len(rows)} of {len(SETTINGS)} settings of {arm} have been tried: run "
                        "`python experiments/recipe.py trials` first")
    best = rows.loc[rows["f1"].idxmax()]
    return ARMS[arm] | {name: float(best[name]) for name in SETTINGS[0]}


# readers

def runs_of(arm, seed): # seeds of the runs that make one reader
    return range(RUNS * seed, RUNS * (seed + 1)) if arm == "average of runs" else [seed]


def reader_of(arm, seed): return ROOT / arm.replace(" ", "_") / f"reader{seed}"


def train(arm, seed, file):
    "The reader of an arm and a seed."
    if reader_of(arm, seed).is_dir(): return
    below(arm)
    checkpoints = []
    for number in runs_of(arm, seed):
        config = FinetuneConfig(model="e5", variant="baseline", seed=number, **chosen(arm, file))
        checkpoints.append(finetune(config).folder / "checkpoint")
    mean_reader(checkpoints).save_pretrained(reader_of(arm, seed))


def check_there(places, says): # raises DataError
    lacking = [place for place in places if not place.exists()]
    if lacking: raise DataError(f"{len(lacking)} of {len(places)} {says}, such as {lacking[0]}")


def reading(arm, seed): # the evaluation, which is written below the arm's folder
    below(*([".."] if arm == "baseline" else [arm, f"answers{seed}"]))
    reader = "" if arm == "baseline" else str(reader_of(arm, seed))
    return EvaluateConfig(model="e5", variant="baseline", reader=reader, seed=seed)


def answers_of(arm, seed): return reading(arm, seed).folder("evaluate")


def read(arm, seed):
    "Read every test with a reader."
    if not (answers_of(arm, seed) / "metrics.json").exists(): evaluate(reading(arm, seed))


# tables

def tables(arms, samples):
    "Each arm against the baseline, for each outcome."
    places = {(arm, seed): answers_of(arm, seed) for arm in ("baseline", *arms) for seed in SEEDS}
    rows = []
    for dataset in OUTCOMES:
        found = scores_of(places, dataset, len(SEEDS), dataset == "xquad")
        table = comparison_table(found, [(arm, "baseline") for arm in arms], samples)
        rows.append(table.assign(dataset=dataset, measure="EM, targets"))
    return pd.concat(rows, ignore_index=True)


def costs(arms):
    "Minutes of a reader, on English development questions what it is worth."
    rows = []
    for arm in arms:
        for seed in SEEDS:
            below(arm)
            runs = []
            for number in runs_of(arm, seed):
                config = FinetuneConfig(model="e5", variant="baseline", seed=number)
                runs.append(read_json(config.folder("finetune") / "metrics.json"))
            rows.append(dict(arm=arm, seed=seed, minutes=sum(r["seconds"] for r in runs) / 60,
                             f1_reddit=sum(map(english, runs)) / len(runs)))
    return pd.DataFrame(rows).groupby("arm", sort=False).mean().drop(columns="seed").reset_index()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("trials", "train", "read", "tables"))
    parser.add_argument("--arms", default=",".join(ARMS), help="with commas between")
    parser.add_argument("--seeds", default="0,1,2", help="with commas between (train)")
    parser.add_argument("--out", type=Path, default=Path("figures/e5"))
    parser.add_argument("--samples", type=int, default=10_000)
    given = parser.parse_args()
    arms = given.arms.split(",")
    unknown = sorted({*arms} - {*ARMS})
    if unknown: parser.error(f"{unknown[0]!r} is no arm; choose from {', '.join(ARMS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    tried = given.out / "recipe-trials.csv"
    try:
        if given.command == "trials": print(trials(tried).to_string(index=False))
        if given.command == "train":
            for seed in map(int, given.seeds.split(",")):
                for arm in arms: train(arm, seed, tried)
        if given.command == "read":
            readers = [reader_of(arm, seed) for arm in ARMS for seed in SEEDS]
            check_there(readers, "readers are not trained yet")
            for arm in arms:
                for seed in SEEDS: read(arm, seed)
        if given.command == "tables":
            answers = [answers_of(arm, seed) for arm in ("baseline", *ARMS) for seed in SEEDS]
            check_there([folder / "metrics.json" for folder in answers], "have not been read with")
            for name, table in (("recipe", tables(arms, given.samples)), ("costs", costs(arms))):
                file = given.out / f"{name}.csv"
                table.round(4).to_csv(file, index=False, lineterminator="\n")
                print(table.round(3).to_string(index=False))
    except DataError as error: sys.exit(str(error))


if __name__ == "__main__": main()
