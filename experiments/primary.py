"""The comparisons that docs/experiment-e5.md fixed beforehand, and nothing else: S2DM_SP and
S2DM_POS, each against the baseline and the untrained control, on XQuAD's target languages, then on
TyDi QA's, then on BiPaR's Chinese.

    python experiments/primary.py --out runs/figures/e5/primary.csv

It reads the predictions of 05_evaluate below runs/ (`make e5` restores those that are kept). Until
every seed of every system has been read with, it refuses: no score is looked at in between.
"""
import argparse
from pathlib import Path

import pandas as pd

from s2dm.comparison import comparison_table, passage_scores, passages_of
from s2dm.core import DataError, figures_dir, plain_errors, read_json, runs_dir
from s2dm.metrics import read_predictions, score
from s2dm.reading import READING, load_reading
from s2dm.results import experiment
from s2dm.systems import ReadingSystem

SYSTEMS = {
    "baseline": dict(variant="baseline"),
    "S2DM_SP": dict(variant="s2dm_sp"),
    "S2DM_POS": dict(variant="s2dm_pos"),
    "untrained": dict(variant="s2dm_sp", control="untrained"),
}
PAIRS = [
    ("S2DM_SP", "baseline"), ("S2DM_SP", "untrained"),
    ("S2DM_POS", "baseline"), ("S2DM_POS", "untrained")]
OUTCOMES = ("xquad", "tydiqa", "bipar")


def folders(model, layer, seeds): # (system, seed) -> where its answers are
    places = {}
    for name, given in SYSTEMS.items():
        for seed in range(seeds):
            system = ReadingSystem(model=model, layer=layer, seed=seed, **given)
            places[name, seed] = system.folder("evaluate")
    return places


def check_finished(places): # raises DataError
    lacking = [f"{name}, seed {seed}" for (name, seed), folder in places.items()
               if not (folder / "metrics.json").is_file()]
    if not lacking: return
    raise DataError(f"{len(lacking)} of {len(places)} readers have not been read with, such as "
                    f"{lacking[0]}: run `make e5` to its end; no score is looked at before")


def trained_at(folder, stage): # the record of a training; folder: where the reader's answers are
    return runs_dir() / stage / folder.relative_to(runs_dir() / "evaluate") / "metrics.json"


def precision_of(folder): # that the reader was trained in
    return read_json(trained_at(folder, "finetune"))["precision"]


def read_in(folder): # the precision of reading; None: not known
    if not (folder / "metrics.json").is_file(): return None
    if said := read_json(folder / "metrics.json").get("precision"): return said
    config = folder / "config.json" # the first records name the machine alone
    device = read_json(config).get("device", "") if config.is_file() else ""
    if not device.startswith("cpu"): return None
    return "bfloat16" if "bfloat16" in device else "float32"


def precisions_of(folder): # of the reader, of its S2DM and of reading, as far as they are known
    s2dm = trained_at(folder, "pretrain")
    known = [read_json(s2dm).get("precision")] if s2dm.is_file() else []
    return {precision_of(folder), read_in(folder), *known} - {None}


def check_alike(places, command="make e5"): # keys: system, what else tells runs apart, seed
    """No kind of machine goes with a system: a seed's runs were all trained in one precision.
    Raises `DataError`."""
    kinds = {}
    for (name, *of), folder in places.items():
        precisions = kinds.setdefault(", ".join([*of[:-1], f"seed {of[-1]}"]), {})
        for kind in sorted(precisions_of(folder)): precisions.setdefault(kind, []).append(name)
    for of, precisions in kinds.items():
        if len(precisions) == 1: continue
        listed = [f"{kind}: {', '.join(names)}" for kind, names in sorted(precisions.items())]
        raise DataError(f"the systems of {of} were trained or read with on two kinds "
                        f"of machines ({'; '.join(listed)}); expected one: remove the runs of the "
                        f"smaller part; `{command}` makes them again, in that of the others")


def targets(dataset): # languages
    return [language for language in READING[dataset][0] if language != "en"]


def scores_of(places, dataset, seeds, languages=(), measure="em"):
    "System -> its `PassageScores` in some languages; none given: in all but English."
    languages = languages or targets(dataset)
    questions = {language: load_reading(dataset, language) for language in languages}
    parallel = dataset == "xquad"
    passages = {language: passages_of(asked, parallel, language)
                for language, asked in questions.items()}
    scores = {}
    for name in dict.fromkeys(name for name, _ in places):
        by_seed = []
        for seed in range(seeds):
            scored = {}
            for language, asked in questions.items():
                file = places[name, seed] / f"predictions.{dataset}.{language}.json"
                scored[language] = getattr(score(read_predictions(file), asked), measure)
            by_seed.append(scored)
        scores[name] = passage_scores(by_seed, passages)
    return scores


@plain_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", default="e5")
    parser.add_argument("--out", type=Path, help="file (default: that of the profile)")
    parser.add_argument("--samples", type=int, default=10_000)
    given = parser.parse_args()
    given.out = given.out or figures_dir() / given.profile / "primary.csv"
    profile = experiment(given.profile)
    seeds = profile["reproduce"]["seeds"]
    places = folders(profile["models"][0], profile.get("layer", 0), seeds)
    tables = []
    check_finished(places)
    check_alike(places)
    for dataset in OUTCOMES:
        scores = scores_of(places, dataset, seeds)
        table = comparison_table(scores, PAIRS, given.samples)
        tables.append(table.assign(dataset=dataset, measure="EM, targets"))
    comparisons = pd.concat(tables, ignore_index=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    comparisons.round(4).to_csv(given.out, index=False, lineterminator="\n")
    print(comparisons.round(3).to_string(index=False))


if __name__ == "__main__": main()
