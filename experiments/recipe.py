"""What training alone can give: the arms of docs/experiment-recipe.md.

    S2DM_MIRROR=... python experiments/recipe.py trials
    S2DM_MIRROR=... python experiments/recipe.py train [--arms subwords,switched] [--seeds 0,1,2]
    S2DM_MIRROR=... python experiments/recipe.py join
    S2DM_MIRROR=... python experiments/recipe.py tables --out figures/e5
    python experiments/recipe.py keep

Each arm has a folder of its own below runs/recipe/, and whatever is there already is not done
again. `trials` compares settings on English development questions and writes a line for each;
`train` takes the best of them, and reads every test with a reader as soon as it is trained, since
its weights may not outlive the machine; `join` joins what helped on English questions, which is the
recipe, and trains it with S2DM_SP under its head as well. `tables` refuses until all have been read
with: no score of a target language is looked at in between. The readers called baseline and S2DM_SP
are those of `make e5`. `keep` puts what was measured and read, without weights, into
figures/e5/recipe.tar.xz; `python workflow/records.py restore` takes it out again."""
import argparse
import os
from pathlib import Path

import pandas as pd
from primary import (
    OUTCOMES, SYSTEMS, check_alike, check_finished, folders, precision_of, scores_of, targets)

from s2dm.comparison import comparison_table, difference
from s2dm.core import DataError, atomic_write, plain_errors, read_json, runs_dir, write_json
from s2dm.evaluation import EvaluateConfig, evaluate, predict
from s2dm.finetune import FinetuneConfig, evenly, finetune, load_questions, mean_reader
from s2dm.metrics import score
from s2dm.pretrain import PretrainConfig, checkpoint_for, pretrain
from s2dm.reader import S2DMReader
from s2dm.results import pack

LEVERS = {
    "average of steps": dict(average=8, average_share=.5, final_rate=1 / 3),
    "average of runs": {}, # see `parameters`
    "no layer frozen": dict(freeze_layers=0),
    "6 layers frozen": dict(freeze_layers=6),
    "8 layers frozen": dict(freeze_layers=8),
    "subwords": dict(second="subwords"),
    "switched": dict(second="switched"),
}
S2DM = "S2DM_SP" # joined like a lever, but with the finished recipe alone
AND = " + " # an arm is one lever, or several that are joined
TRIED = ("subwords", "switched") # levers that have settings
SETTINGS = [dict(second_share=share, consistency=weight) for share in (.3, .6) for weight in (1, 5)]
SEEDS, RUNS = range(3), 3 # of each arm; of each mean of runs
ROOT = runs_dir() / "recipe"
TRIED_FILE, JOINED_FILE = ROOT / "trials.csv", ROOT / "joins.csv"


def below(*names): # from now on runs are written there
    os.environ["S2DM_RUNS"] = str(ROOT.joinpath(*(name.replace(" ", "_") for name in names)))


def english(metrics): # F1 on development questions, at the end
    return metrics["evaluations"][-1]["f1"]


def write_table(table, file): # whole, or not at all
    with atomic_write(file) as new: table.to_csv(new, index=False, lineterminator="\n")


# settings

def trials():
    "A line for each setting; one that has its line is not tried again."
    precision = precision_for(0) # none goes with a setting
    rows = pd.read_csv(TRIED_FILE).to_dict("records") if TRIED_FILE.exists() else []
    for arm in TRIED:
        for number, settings in enumerate(SETTINGS):
            trial = dict(arm=arm) | settings
            if any(row | trial == row for row in rows): continue
            below("trials", f"{arm} {number}")
            metrics = finetune(FinetuneConfig(
                model="e5", variant="baseline", seed=100, max_steps=1000, precision=precision,
                **LEVERS[arm], **settings)).metrics
            rows.append(trial | dict(steps=metrics["steps"], seconds=metrics["seconds"],
                                     precision=metrics["precision"], f1=english(metrics)))
            write_table(pd.DataFrame(rows).round(2), TRIED_FILE)
    return pd.DataFrame(rows)


def chosen(lever): # parameters of 04_finetune
    if lever == S2DM: return SYSTEMS[S2DM]
    if lever not in TRIED: return LEVERS[lever]
    rows = pd.read_csv(TRIED_FILE) if TRIED_FILE.exists() else pd.DataFrame(columns=["arm"])
    rows = rows[rows["arm"] == lever]
    if len(rows) < len(SETTINGS):
        raise DataError(f"{len(rows)} of {len(SETTINGS)} settings of {lever} have been tried: run "
                        "`python experiments/recipe.py trials` first")
    best = rows.loc[rows["f1"].idxmax()]
    return LEVERS[lever] | {name: float(best[name]) for name in SETTINGS[0]}


# readers

def runs_of(arm, seed): # seeds of the runs that make one reader
    if "average of runs" not in arm.split(AND): return [seed]
    first = len(SEEDS) + RUNS * seed # no run of the baseline is among them
    return range(first, first + RUNS)


def reader_of(arm, seed): return ROOT / arm.replace(" ", "_") / f"reader{seed}"


def is_gone(arm, seed): return not (reader_of(arm, seed) / "reader.json").is_file() # written last


def record_of(arm, seed): # what was measured of a reader, written when all else is there
    return reader_of(arm, seed).with_suffix(".json")


def s2dm_of(seed, root=ROOT):
    "The folder of the S2DM of the experiment with e5, trained again in runs/s2dm if it is gone."
    precision = precision_for(seed, root) # as there, where it was measured, too
    config = PretrainConfig(
        model="e5", variant="s2dm_sp", seed=seed, precision=precision, measure=False)
    for runs in (root.parent, root.parent / "s2dm"):
        os.environ["S2DM_RUNS"] = str(runs)
        folder = checkpoint_for(config)
        if (folder / "encoder.json").is_file(): return str(folder.resolve()) # it comes last
    pretrain(config)
    return str(folder.resolve())


def check_primary(root=ROOT): # raises DataError; these tables show scores of its readers
    "Nothing is shown before the experiment with e5 is finished."
    os.environ["S2DM_RUNS"] = str(root.parent)
    places = folders("e5", 0, 5)
    check_finished(places)
    check_alike(places)


def precision_for(seed, root=ROOT): # raises DataError
    "That of the experiment's baseline, whatever the machine: so none goes with an arm."
    os.environ["S2DM_RUNS"] = str(root.parent)
    folder = folders("e5", 0, seed + 1)["baseline", seed]
    check_there([folder / "metrics.json"], "are to come first (`make e5`)")
    return precision_of(folder)


def parameters(arm, seed): # of all runs of a reader
    given = dict(model="e5", variant="baseline", precision=precision_for(seed))
    for lever in arm.split(AND): given |= chosen(lever)
    if "average of runs" in arm.split(AND): given |= dict(head_seed=seed)
    if S2DM in arm.split(AND): given |= dict(s2dm=s2dm_of(seed))
    return given


def english_of(reader, precision): # F1 on the development questions of every run
    reader.precision = precision
    config = FinetuneConfig(model="e5", variant="baseline")
    questions = evenly(load_questions(config.dev), config.dev_sample)
    return float(score(predict(reader, questions), questions).f1.mean())


def train(arm, seed, again=False): # again: also if nothing but its weights is gone
    "The reader of an arm and a seed, with its minutes and its F1 on English questions."
    known = record_of(arm, seed).exists()
    if known and not (again and is_gone(arm, seed)): return
    given = parameters(arm, seed)
    below(arm)
    runs = [finetune(FinetuneConfig(seed=number, **given)) for number in runs_of(arm, seed)]
    reader = mean_reader([run.folder / "checkpoint" for run in runs])
    reader.save_pretrained(reader_of(arm, seed))
    if known: return # what was decided by the first one's F1 stays
    spent = pd.DataFrame([cost(run.folder) for run in runs])
    spent = spent.agg(dict(minutes="sum", device=said_once)).to_dict()
    # of one run what was measured in its training, in its precision, as that of the baseline was
    f1 = english(runs[0].metrics) if len(runs) == 1 else english_of(reader, given["precision"])
    write_json(record_of(arm, seed), spent | dict(f1=f1))


def cost(folder): # of a run: minutes of training, and where
    minutes = read_json(folder / "metrics.json")["seconds"] / 60
    return dict(minutes=minutes, device=read_json(folder / "config.json")["device"])


def said_once(names): return "; ".join(dict.fromkeys(names))


def records(arm): # of each seed
    if arm != "baseline": return [read_json(record_of(arm, seed)) for seed in SEEDS]
    folders = [answers_of(arm, seed, "finetune") for seed in SEEDS]
    return [cost(folder) | dict(f1=english(read_json(folder / "metrics.json")))
            for folder in folders]


def english_mean(arm): return sum(each["f1"] for each in records(arm)) / len(SEEDS)


# what is joined

def excludes(one, other): # two levers that set the same parameter
    return not LEVERS[one].keys().isdisjoint(LEVERS[other])


def join():
    """Join the levers that are above the baseline on English questions, the best one first, as long
    as these say it is better. A line for each arm that was tried."""
    best = english_mean("baseline")
    levels = {lever: english_mean(lever) for lever in LEVERS}
    helped = sorted((lever for lever in LEVERS if levels[lever] > best), key=levels.get)
    joined, rows = [], []
    for lever in reversed(helped):
        if any(excludes(lever, other) for other in joined): continue
        arm = AND.join([*joined, lever])
        for seed in SEEDS: train(arm, seed)
        f1 = english_mean(arm)
        rows.append(dict(arm=arm, f1=f1, before=best, kept=f1 > best))
        if f1 > best: joined, best = [*joined, lever], f1
    table = pd.DataFrame(rows, columns=["arm", "f1", "before", "kept"])
    write_table(table.round(4), JOINED_FILE)
    arms = [AND.join(joined), AND.join([*joined, S2DM])] if joined else []
    for arm in arms:
        for seed in SEEDS: train_and_read(arm, seed)
    return table


def best_arm(): # the arm; "" if no lever helped; raises DataError
    if not JOINED_FILE.exists():
        raise DataError(
            f"{JOINED_FILE} is not there: run `python experiments/recipe.py join` first")
    rows = pd.read_csv(JOINED_FILE)
    kept = rows.loc[rows["kept"], "arm"]
    return kept.iloc[-1] if len(kept) else ""


def all_arms(): # of the table, without those of `make e5`
    best = best_arm()
    joined = [best, AND.join([best, S2DM])] if best else []
    return list(dict.fromkeys([*LEVERS, *joined]))


def all_pairs(): # the family of comparisons
    best = best_arm()
    pairs = [(arm, "baseline") for arm in all_arms() if S2DM not in arm]
    both = AND.join([best, S2DM])
    return pairs + ([(both, best), (both, S2DM)] if best else [])


# answers

def check_there(places, says): # raises DataError
    lacking = [place for place in places if not place.exists()]
    if lacking: raise DataError(f"{len(lacking)} of {len(places)} {says}, such as {lacking[0]}")


def reading(arm, seed, precision="auto"): # the evaluation, which is written below the arm's folder
    ready = SYSTEMS.get(arm) # read with by `make e5`
    below(*([".."] if ready else [arm, f"answers{seed}"]))
    return EvaluateConfig(
        model="e5", seed=seed, precision=precision, across=False, **ready or SYSTEMS["baseline"])


def answers_of(arm, seed, stage="evaluate"): return reading(arm, seed).folder(stage)


def train_and_read(arm, seed):
    "Read every test with a reader, in its precision. One whose weights are gone is trained again."
    if (answers_of(arm, seed) / "metrics.json").exists(): return
    train(arm, seed, again=True)
    precision = precision_for(seed)
    reader = S2DMReader.from_pretrained(reader_of(arm, seed))
    reader.precision = precision
    evaluate(reading(arm, seed, precision), reader)


def keep(path):
    "What was measured of readers and read with them, with trials and joins."
    records = ROOT.glob("*/answers*/evaluate/*/*/seed*/metrics.json")
    answers = [file for record in records for file in record.parent.glob("[!.]*.json")]
    files = sorted([*ROOT.glob("*.csv"), *ROOT.glob("*/reader*.json"), *answers])
    pack(files, ROOT.parent, path)
    print(f"{len(files)} files are in {path}")


# tables

def places_of(arms): # (arm, seed) -> folder of its answers
    return {(arm, seed): answers_of(arm, seed) for arm in arms for seed in SEEDS}


def comparisons(pairs, samples):
    "The family's comparisons, for each outcome."
    places = places_of(dict.fromkeys(arm for pair in pairs for arm in pair))
    rows = []
    for dataset in OUTCOMES:
        scores = scores_of(places, dataset, len(SEEDS))
        table = comparison_table(scores, pairs, samples)
        rows.append(table.assign(dataset=dataset, measure="EM, targets"))
    return pd.concat(rows, ignore_index=True)


def single_languages(pairs, samples):
    "The same in each language alone, EM and F1: intervals and no tests."
    places = places_of(dict.fromkeys(arm for pair in pairs for arm in pair))
    cells = [(dataset, language, measure) for dataset in OUTCOMES
             for language in ("en", *targets(dataset)) for measure in ("em", "f1")]
    rows = []
    for dataset, language, measure in cells:
        scores = scores_of(places, dataset, len(SEEDS), [language], measure)
        for arm, other in pairs:
            row = dict(dataset=dataset, language=language, measure=measure, arm=arm, other=other)
            row |= dict(mean=scores[arm].means().mean(), mean_other=scores[other].means().mean())
            drawn = difference(scores[arm], scores[other], samples)
            rows.append(row | {end: drawn[end] for end in ("difference", "low", "high")})
    return pd.DataFrame(rows)


def costs(arms):
    """Minutes of a reader, on which machines, and what it is worth on English development
    questions: means over seeds. States of frozen layers are computed before, once for each text,
    and not counted."""
    rows = [dict(arm=arm) | record for arm in ("baseline", *arms) for record in records(arm)]
    by_arm = pd.DataFrame(rows).rename(columns=dict(f1="f1_reddit")).groupby("arm", sort=False)
    how = dict(minutes="mean", f1_reddit="mean", device=said_once)
    return by_arm.agg(how).reset_index()


def write_tables(samples, out):
    arms, pairs = all_arms(), all_pairs()
    check_primary()
    ready = ["baseline", S2DM] # of `make e5`
    answers = places_of([*ready, *arms]).values()
    check_there([folder / "metrics.json" for folder in answers], "have not been read with")
    tables = dict(recipe=comparisons(pairs, samples), recipe_costs=costs(arms))
    tables["recipe_languages"] = single_languages(pairs, samples)
    for name, table in tables.items():
        write_table(table.round(4), out / f"{name}.csv")
        print(table.round(3).to_string(index=False), end="\n\n")


@plain_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("trials", "train", "join", "tables", "keep"))
    parser.add_argument("--arms", default=",".join(LEVERS), help="with commas between (train)")
    parser.add_argument("--seeds", default="0,1,2", help="with commas between (train)")
    parser.add_argument("--out", type=Path, default=Path("figures/e5"))
    parser.add_argument("--samples", type=int, default=10_000)
    given = parser.parse_args()
    arms = given.arms.split(",")
    unknown = sorted({*arms} - {*LEVERS})
    if unknown: parser.error(f"{unknown[0]!r} is no arm; choose from {', '.join(LEVERS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    if given.command == "trials":
        check_there([given.out / "dictionaries.csv"],
                    "are to come first (`python experiments/dictionaries.py quality`)")
        print(trials().to_string(index=False))
    if given.command == "train":
        for seed in map(int, given.seeds.split(",")):
            for arm in arms: train_and_read(arm, seed)
    if given.command == "join":
        answers = places_of(LEVERS).values() # that they are there, not what they say
        check_there([folder / "metrics.json" for folder in answers], "have not been read with")
        print(join().to_string(index=False))
    if given.command == "tables": write_tables(given.samples, given.out)
    if given.command == "keep": keep(given.out / "recipe.tar.xz")


if __name__ == "__main__": main()
