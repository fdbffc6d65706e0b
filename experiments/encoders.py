"""The comparisons that docs/experiment-small.md fixed beforehand, and what it calls exploratory.

    python experiments/encoders.py power --out figures/encoders
    python experiments/encoders.py trials --out figures/encoders
    python experiments/encoders.py outcomes
    python experiments/encoders.py tables --out figures/encoders

`power` computes what the design can tell. `trials` compares, on development questions in the
language of training, what learns in a reader and for how long; an arm's finished runs are not run
again. `outcomes` puts a file outcomes.json beside the answers of each finished run: for each
language a letter per question (= right, ~ wrong at the right place, x elsewhere); the archive of
records keeps it. `tables` compares the systems; until all of them have been read with, it
refuses."""
import argparse
import math
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from s2dm.comparison import difference, passage_scores, passages_of
from s2dm.constituents import near_flags
from s2dm.core import DataError, device_name, read_json, runs_dir, write_json
from s2dm.evaluation import read_answers
from s2dm.finetune import FinetuneConfig, finetune
from s2dm.metrics import score
from s2dm.results import experiment, holm, open_records
from s2dm.synthetic import Synthetic
from s2dm.systems import ReadingSystem

ROOT = Path(__file__).parents[1]
PROFILE = "encoders"
SYSTEMS = {
    "baseline": dict(variant="baseline"),
    "untrained": dict(variant="s2dm_sp", control="untrained"),
    "S2DM_SP": dict(variant="s2dm_sp"),
    "VGVAE": dict(variant="vgvae"),
}
PAIRS = [("S2DM_SP", "baseline"), ("S2DM_SP", "untrained"), ("S2DM_SP", "VGVAE")]
NEAR = ("svo_nadj", "svo_ndet", "svo_post", "svo_suffix", "svo_prenominal")
FAR = ("vso_case", "sov_case", "v2_bracket", "free_case")
RIGHT, BOUNDARY, ELSEWHERE = "=~x"
LEARNED = 95. # EM on development questions: a reader below it has not learned to read
EM, BREAKS = "EM", "wrong boundaries at the right place"
SAMPLES = 10_000


# what the design can tell

def power_of(gain, encoder_sd, run_sd, encoders, seeds):
    """The chance that a two-sided t-test of the encoders' mean differences finds a gain.

    encoder_sd: of the true difference between two systems, from encoder to encoder; run_sd: of a
    run around its system's mean with its encoder; all in points."""
    of_a_mean = math.sqrt((encoder_sd**2 + 2 * run_sd**2 / seeds) / encoders)
    limit = stats.t.ppf(.975, encoders - 1)
    chance = stats.nct(encoders - 1, gain / of_a_mean)
    return float(chance.sf(limit) + chance.cdf(-limit))


def detectable(encoder_sd, run_sd, encoders, seeds):
    "The gain that is found four times out of five."
    low, high = 0., 100.
    while high - low > .001:
        middle = (low + high) / 2
        if power_of(middle, encoder_sd, run_sd, encoders, seeds) < .8: low = middle
        else: high = middle
    return high


def spread(values): # lists of numbers; the standard deviation around each list's mean, pooled
    values = list(values)
    squares = sum(np.var(each) * len(each) for each in values)
    return math.sqrt(squares / sum(len(each) - 1 for each in values))


def run_spread(archive=ROOT / "figures/small/records.tar.xz"):
    """Of a run around its system's mean, in points of the first outcome: of these systems in the
    first experiment."""
    values = {}
    with open_records(archive) as records:
        for name, given in SYSTEMS.items():
            system = ReadingSystem(model="small", **given).folder("evaluate").parts[-2]
            values[name] = []
            for file in records.glob(f"evaluate/small/{system}/*/metrics.json"):
                em = [row["em"] for row in read_json(file)["results"]
                      if row["context"] == row["question"] and row["context"] in NEAR]
                values[name].append(np.mean(em))
    if lacking := [name for name, found in values.items() if not found]:
        raise DataError(f"{archive} has no run of {', '.join(lacking)}")
    return spread(values.values())


def power_table(encoders, seeds):
    "A row for each guess of how much encoders differ."
    rows, run_sd = [], run_spread()
    for encoder_sd in (0., 1., 2., 4., 6.):
        given = dict(encoder_sd=encoder_sd, run_sd=run_sd, encoders=encoders, seeds=seeds)
        power = 100 * power_of(2., **given)
        rows.append(given | dict(power_for_2_points=power, detectable=detectable(**given)))
    return pd.DataFrame(rows).round(1)


# what learns in a reader

TRIALS = { # a baseline's parameters, and how many seeds
    "all layers, 4 epochs": (dict(freeze_layers=0, epochs=4), 1),
    "all layers, 3 epochs": (dict(freeze_layers=0, epochs=3), 1),
    "all layers, 2 epochs in batches of 8": (dict(freeze_layers=0, epochs=2, batch=8), 1),
    "lowest layer frozen, 3 epochs": (dict(freeze_layers=1, epochs=3), 1),
    "lower 2 frozen, 3 epochs": (dict(freeze_layers=2, epochs=3), 1),
    "lower 2 frozen, 4 epochs": (dict(freeze_layers=2, epochs=4), 3),
}


def trials():
    "A row for each arm. Nothing but the language of training is read."
    root, rows = runs_dir() / "encoder-trials", []
    for name, (settings, seeds) in TRIALS.items():
        os.environ["S2DM_RUNS"] = str(root / name.replace(" ", "_").replace(",", ""))
        given = dict(model="small", variant="baseline", **settings)
        found = [finetune(FinetuneConfig(seed=seed, **given)).metrics for seed in range(seeds)]
        last = pd.DataFrame([metrics["evaluations"][-1] for metrics in found])
        rows.append(dict(
            arm=name, seeds=seeds, steps=found[0]["steps"], em=last["em"].mean(),
            lowest_em=last["em"].min(), f1=last["f1"].mean(),
            seconds=np.mean([metrics["seconds"] for metrics in found]), device=device_name()))
    return pd.DataFrame(rows)


# what was answered

def folders(models, seeds):
    "(system, encoder, seed) -> where the answers are."
    places = {}
    for name, given in SYSTEMS.items():
        for model in models:
            for seed in range(seeds):
                system = ReadingSystem(model=model, seed=seed, **given)
                places[name, model, seed] = system.folder("evaluate")
    return places


def letters(questions, said):
    "A letter for each question."
    right = score({id: answer.text for id, answer in said.items()}, questions).em > 0
    near = near_flags(questions, said)
    return "".join(RIGHT if r else BOUNDARY if n else ELSEWHERE for r, n in zip(right, near))


def write_outcomes(places, questions):
    "Of each finished run that has no such file yet, or was evaluated again."
    written = 0
    for folder in places.values():
        file, record = folder / "outcomes.json", folder / "metrics.json"
        if not record.is_file() or not any(folder.glob("predictions.*")): continue
        if file.is_file() and file.stat().st_mtime >= record.stat().st_mtime: continue
        found = {}
        for language, asked in questions.items():
            said = read_answers(folder, f"synthetic.{language}", asked)
            found[language] = letters(asked, said)
        write_json(file, found)
        written += 1
    return written


def check_finished(places):
    "Raises `DataError` if a run has not been read with."
    lacking = [place for place, folder in places.items()
               if not (folder / "outcomes.json").is_file()]
    if not lacking: return
    name, model, seed = lacking[0]
    raise DataError(f"{len(lacking)} of {len(places)} readers have not been read with, such as "
                    f"{name} on {model}, seed {seed}: run `make reproduce-full` to its end; no "
                    "score is looked at before")


def scores_of(places, models, seeds, passages, languages):
    "Measure -> system -> its scores."
    found = {EM: {}, BREAKS: {}}
    encoders = [model for model in models for _ in range(seeds)]
    for name in SYSTEMS:
        right, broken, reached = [], [], []
        for model in models:
            for seed in range(seeds):
                said = read_json(places[name, model, seed] / "outcomes.json")
                flags = {lang: np.array([*said[lang]]) for lang in languages}
                right.append({k: 100. * (v == RIGHT) for k, v in flags.items()})
                broken.append({k: 100. * (v == BOUNDARY) for k, v in flags.items()})
                reached.append({k: v != ELSEWHERE for k, v in flags.items()})
        asked = {lang: passages[lang] for lang in languages}
        found[EM][name] = passage_scores(right, asked, encoders=encoders)
        found[BREAKS][name] = passage_scores(
            broken, asked, counted=reached, encoders=encoders)
    return found


# the model: system fixed; encoder, encoder x system and run random

def by_encoder(scores): # [encoders] mean over seeds
    return scores.means().reshape(len(scores.encoders), -1).mean(1)


def tested(system, other):
    """The model's test of a difference. The design is balanced, so it is the t-test of encoders'
    mean differences: what a run and what an encoder add is in their spread."""
    gains = by_encoder(system) - by_encoder(other)
    gain, error = gains.mean(), gains.std(ddof=1) / math.sqrt(len(gains))
    reach = stats.t.ppf(.975, len(gains) - 1) * error
    p = 2 * stats.t.sf(abs(gain) / error, len(gains) - 1)
    return dict(difference=gain, low=gain - reach, high=gain + reach, p=p)


def comparisons(found, samples):
    "The primary family: three pairs, two measures; the bootstrap's interval beside the model's."
    rows = []
    for measure, systems in found.items():
        for pair in PAIRS:
            one, two = (systems[name] for name in pair)
            about = dict(measure=measure, system=pair[0], other=pair[1])
            about |= dict(mean=one.means().mean(), mean_other=two.means().mean())
            drawn = difference(one, two, samples)
            drawn = {f"bootstrap_{end}": drawn[end] for end in ("low", "high", "p")}
            rows.append(about | tested(one, two) | drawn)
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"]))


def runs_table(systems):
    "A row for each run: encoder, system, seed, value."
    rows = []
    for name, scores in systems.items():
        means = scores.means().reshape(len(scores.encoders), -1)
        for model, values in zip(scores.encoders, means):
            rows += [dict(encoder=model, system=name, seed=k, value=v)
                     for k, v in enumerate(values)]
    return pd.DataFrame(rows)


def omnibus(runs):
    "F-test: do the systems differ at all? Systems against encoder x system."
    cells = runs.pivot_table(index="encoder", columns="system", values="value").to_numpy()
    encoders, systems = cells.shape
    own, level = cells.mean(0), cells.mean(1, keepdims=True)
    rest = cells - own - level + cells.mean()
    df = (systems - 1, (encoders - 1) * (systems - 1))
    f = ((own - cells.mean())**2).sum() * encoders / df[0] / ((rest**2).sum() / df[1])
    return dict(F=f, df=f"{df[0]}, {df[1]}", p=stats.f.sf(f, *df))


def components(runs):
    "Variance components by restricted maximum likelihood, as standard deviations in points."
    from statsmodels.formula.api import mixedlm

    model = mixedlm("value ~ C(system)", runs, groups="encoder", re_formula="1",
                    vc_formula={"system": "0 + C(system)"})
    fitted = model.fit(reml=True)
    sizes = [fitted.cov_re.iloc[0, 0], fitted.vcomp[0], fitted.scale]
    names = ("encoder_sd", "encoder_x_system_sd", "run_sd")
    return {name: math.sqrt(max(size, 0.)) for name, size in zip(names, sizes)}


def model_table(found):
    "A row for each measure."
    rows = []
    for measure, systems in found.items():
        runs = runs_table(systems)
        rows.append(dict(measure=measure) | components(runs) | omnibus(runs))
    return pd.DataFrame(rows)


# exploratory

def quality_of(models, seeds):
    "A row for each trained S2DM: how good its y is, as 03_pretrain measured it."
    rows = []
    for name in ("S2DM_SP", "VGVAE"):
        for model in models:
            for seed in range(seeds):
                system = ReadingSystem(model=model, seed=seed, **SYSTEMS[name])
                metrics = read_json(system.folder("pretrain") / "metrics.json")
                rows.append(dict(encoder=model, system=name, seed=seed) | _quality(metrics))
    return pd.DataFrame(rows)


def _quality(metrics): # of y across languages, in percent
    across = [row["y"] for row in metrics["sts"] if len(set(row["part"].split("-"))) == 2]
    found = [row["y"] for row in metrics["retrieval_synthetic"]]
    return dict(sts=np.mean(across), retrieval=np.mean(found))


def learned_of(models, seeds):
    "A row for each reader: EM on development questions in the language of training."
    rows = []
    for name, given in SYSTEMS.items():
        for model in models:
            for seed in range(seeds):
                system = ReadingSystem(model=model, seed=seed, **given)
                metrics = read_json(system.folder("finetune") / "metrics.json")
                dev = metrics["evaluations"][-1]["em"]
                rows.append(dict(encoder=model, system=name, seed=seed, dev=dev))
    return pd.DataFrame(rows)


def learners(found, dev): # dev: as from `learned_of`
    "Each system's mean over all its readers, and over those that learned to read."
    rows = []
    for measure, systems in found.items():
        runs = runs_table(systems).merge(dev, on=["encoder", "system", "seed"])
        for name, part in runs.groupby("system", sort=False):
            good = part[part["dev"] >= LEARNED]
            rows.append(dict(
                measure=measure, system=name, readers=len(part), learned=len(good),
                mean=part["value"].mean(), mean_of_learned=good["value"].mean()))
    return pd.DataFrame(rows)


def correlation_chance(r, freedom): # two-sided p-value of a correlation
    t = abs(r) * math.sqrt(freedom / max(1 - r**2, 1e-12))
    return float(2 * stats.t.sf(t, freedom))


def mechanism(found, quality): # quality: as from `quality_of`
    """Does y's quality predict reading? Correlations over the runs of one system, each encoder's
    mean taken out, and of the encoders' means."""
    rows = []
    for measure, systems in found.items():
        runs = runs_table(systems).merge(quality, on=["encoder", "system", "seed"])
        for name, part in runs.groupby("system"):
            for of in ("sts", "retrieval"):
                cells = part.groupby("encoder")[["value", of]]
                own = part[["value", of]] - cells.transform("mean")
                within = np.corrcoef(own.to_numpy().T)[0, 1]
                # each encoder's mean is taken out
                chance = correlation_chance(within, len(own) - cells.ngroups - 1)
                between = np.corrcoef(cells.mean().to_numpy().T)[0, 1]
                rows.append(dict(
                    measure=measure, system=name, quality=of, within=within, p=chance,
                    between_encoders=between))
    return pd.DataFrame(rows)


def single_languages(places, models, seeds, passages, samples):
    "The primary family's comparisons, in each language alone: intervals and no tests."
    rows = []
    for language in (*NEAR, *FAR):
        found = scores_of(places, models, seeds, passages, [language])
        for measure, systems in found.items():
            for pair in PAIRS:
                one, two = (systems[name] for name in pair)
                drawn = difference(one, two, samples)
                about = dict(language=language, measure=measure, system=pair[0], other=pair[1])
                about |= dict(mean=one.means().mean(), mean_other=two.means().mean())
                rows.append(about | {end: drawn[end] for end in ("difference", "low", "high")})
    return pd.DataFrame(rows)


def by_language(places):
    "Percent of the questions that were right, wrong at the right place, and elsewhere."
    words = {RIGHT: "right", BOUNDARY: "boundary", ELSEWHERE: "elsewhere"}
    rows = []
    for (name, _, _), folder in places.items():
        for language, said in read_json(folder / "outcomes.json").items():
            shares = {word: 100 * said.count(mark) / len(said) for mark, word in words.items()}
            rows.append(dict(system=name, language=language) | shares)
    table = pd.DataFrame(rows)
    return table.groupby(["language", "system"], sort=False).mean().reset_index()


def write(table, file):
    table.to_csv(file, index=False, float_format="%.4g", lineterminator="\n")
    print(table.round(2).to_string(index=False), end="\n\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("power", "trials", "outcomes", "tables"))
    parser.add_argument("--out", type=Path, default=Path("runs/figures/encoders"))
    parser.add_argument("--samples", type=int, default=SAMPLES)
    given = parser.parse_args()
    said = experiment(PROFILE)
    models, seeds = said["models"], said["reproduce"]["seeds"]
    given.out.mkdir(parents=True, exist_ok=True)
    if given.command == "power":
        write(power_table(len(models), seeds), given.out / "power.csv")
        return
    if given.command == "trials":
        write(trials(), given.out / "trials.csv")
        return
    places = folders(models, seeds)
    questions = {lang: Synthetic().reading(lang) for lang in ("svo", *NEAR, *FAR)}
    print(f"outcomes of {write_outcomes(places, questions)} runs were written")
    if given.command == "outcomes": return
    try: check_finished(places)
    except DataError as error: sys.exit(str(error))
    passages = {lang: passages_of(asked, True, lang) for lang, asked in questions.items()}
    found = scores_of(places, models, seeds, passages, NEAR)
    write(comparisons(found, given.samples), given.out / "comparisons.csv")
    write(model_table(found), given.out / "model.csv")
    write(mechanism(found, quality_of(models, seeds)), given.out / "mechanism.csv")
    write(learners(found, learned_of(models, seeds)), given.out / "learners.csv")
    alone = single_languages(places, models, seeds, passages, given.samples)
    write(alone, given.out / "single_languages.csv")
    write(by_language(places), given.out / "languages.csv")
    runs = pd.concat([runs_table(of).assign(measure=name) for name, of in found.items()])
    write(runs, given.out / "runs.csv")


if __name__ == "__main__": main()
