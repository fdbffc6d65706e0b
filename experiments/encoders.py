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
refuses, and while the systems of an encoder and a seed were trained in two precisions. It writes

- `comparisons.csv`: the six primary tests; `model.csv`: F-test and variance components;
- `power_had.csv`: what the experiment could find, by those components;
- `mechanism.csv`: does the quality of y predict reading; `quality.csv`: that quality;
- `learners.csv`: means over readers that learned to read; `runs.csv`: every run's outcomes;
- `single_languages.csv`: the pairs in each language, in the near and in the far ones together;
- `languages.csv`: what each system scored there;
- `hours.csv`: what the runs took, on which machines."""
import argparse
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
from primary import check_alike, trained_at
from scipy import optimize, stats

from s2dm.comparison import check_tested, difference, passage_scores, passages_of
from s2dm.comparison import interval as drawn_interval
from s2dm.constituents import near_flags
from s2dm.core import DataError, device_name, plain_errors, read_json, runs_dir, write_json
from s2dm.evaluation import read_answers
from s2dm.finetune import FinetuneConfig, finetune
from s2dm.metrics import score
from s2dm.results import experiment, holm, interval, open_records
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
TRAINED = ("S2DM_SP", "VGVAE") # with an S2DM of their own in each run
FAR = ("vso_case", "sov_case", "v2_bracket", "free_case")
RIGHT, BOUNDARY, ELSEWHERE = "=~x"
LEARNED = 95. # EM on development questions: a reader below it has not learned to read
EM, BREAKS = "EM", "wrong boundaries at the right place"
PRIMARY = (EM, BREAKS)
EVERY = RIGHT + BOUNDARY + ELSEWHERE
MEASURES = { # the share of which answers among which
    EM: (RIGHT, EVERY), BREAKS: (BOUNDARY, RIGHT + BOUNDARY),
    "wrong boundaries": (BOUNDARY, EVERY), "elsewhere": (ELSEWHERE, EVERY)}
SAMPLES = 10_000
SHOWN = 40 # rows of a table that is printed, too, at most
EXPLORED = 2000 # samples of an exploratory interval, of which there are hundreds, at most


# what the design can tell

def power_of(gain, encoder_sd, run_sd, encoders, seeds):
    """The chance that a two-sided t-test of the encoders' mean differences finds a gain.

    encoder_sd: of the true difference between two systems, from encoder to encoder; run_sd: of a
    run around its system's mean with its encoder; all in points."""
    of_a_mean = math.sqrt((encoder_sd**2 + 2 * run_sd**2 / seeds) / encoders)
    limit = stats.t.ppf(.975, encoders - 1)
    chance = stats.nct(encoders - 1, gain / of_a_mean)
    power = float(chance.sf(limit) + chance.cdf(-limit))
    return 1. if math.isnan(power) else power # scipy's answer to a gain of many deviations


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
    if lacking := [name for name, scores in values.items() if not scores]:
        raise DataError(f"{archive} has no run of {', '.join(lacking)}")
    return spread(values.values())


def power_row(**given): # of `detectable`
    power = 100 * power_of(2., **given)
    return given | dict(power_for_2_points=power, detectable=detectable(**given))


def power_table(encoders, seeds):
    "A row for each guess of how much encoders differ."
    run_sd = run_spread()
    rows = [power_row(encoder_sd=encoder_sd, run_sd=run_sd, encoders=encoders, seeds=seeds)
            for encoder_sd in (0., 1., 2., 4., 6.)]
    return pd.DataFrame(rows).round(1)


def power_had(fitted, encoders, seeds): # fitted: as from `model_table`
    """The same with the components that were found. Two systems have a shift of their own each
    with an encoder, so their difference varies by the root of two of them."""
    rows = []
    for row in fitted.itertuples():
        encoder_sd = math.sqrt(2) * row.encoder_x_system_sd
        power = power_row(
            encoder_sd=encoder_sd, run_sd=row.run_sd, encoders=encoders, seeds=seeds)
        rows.append(dict(measure=row.measure) | power)
    return pd.DataFrame(rows)


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
        runs = [finetune(FinetuneConfig(seed=seed, **given)).metrics for seed in range(seeds)]
        last = pd.DataFrame([metrics["evaluations"][-1] for metrics in runs])
        rows.append(dict(
            arm=name, seeds=seeds, steps=runs[0]["steps"], em=last["em"].mean(),
            lowest_em=last["em"].min(), f1=last["f1"].mean(),
            seconds=np.mean([metrics["seconds"] for metrics in runs]), device=device_name()))
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


def letters(questions, answers):
    "A letter for each question."
    right = score({id: answer.text for id, answer in answers.items()}, questions).em > 0
    near = near_flags(questions, answers)
    return "".join(RIGHT if r else BOUNDARY if n else ELSEWHERE for r, n in zip(right, near))


def write_outcomes(places, questions):
    "Of each finished run that has no such file yet, or was evaluated again."
    written = 0
    for folder in places.values():
        file, record = folder / "outcomes.json", folder / "metrics.json"
        if not record.is_file() or not any(folder.glob("predictions.*")): continue
        if file.is_file() and file.stat().st_mtime >= record.stat().st_mtime: continue
        marks = {}
        for language, asked in questions.items():
            answers = read_answers(folder, f"synthetic.{language}", asked)
            marks[language] = letters(asked, answers)
        write_json(file, marks)
        written += 1
    return written


def records_of(name, folder): # what a run's row in the tables is made from
    files = [folder / "outcomes.json", folder / "metrics.json", trained_at(folder, "finetune")]
    return files + ([trained_at(folder, "pretrain")] if name in TRAINED else [])


def check_finished(places):
    "Raises `DataError` if a run has not been read with."
    lacking = [place for place, folder in places.items()
               if not all(file.is_file() for file in records_of(place[0], folder))]
    if not lacking: return
    name, model, seed = lacking[0]
    raise DataError(f"{len(lacking)} of {len(places)} readers have not been read with, such as "
                    f"{name} on {model}, seed {seed}: run `make reproduce-full` to its end; no "
                    "score is looked at before")


def scores_of(places, models, seeds, passages, languages, measures=PRIMARY):
    "Measure -> system -> its scores."
    by_measure = {measure: {} for measure in measures}
    encoders = [model for model in models for _ in range(seeds)]
    asked = {lang: passages[lang] for lang in languages}
    for name in SYSTEMS:
        runs = []
        for model in models:
            for seed in range(seeds):
                answers = read_json(places[name, model, seed] / "outcomes.json")
                runs.append({lang: np.array([*answers[lang]]) for lang in languages})
        for measure in measures:
            mark, among = MEASURES[measure]
            scores = [{lang: 100. * (of == mark) for lang, of in run.items()} for run in runs]
            counted = [{lang: np.isin(of, [*among]) for lang, of in run.items()} for run in runs]
            by_measure[measure][name] = passage_scores(
                scores, asked, counted=counted, encoders=encoders)
    return by_measure


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


def comparisons(by_measure, samples):
    "The primary family: three pairs, two measures; the bootstrap's interval beside the model's."
    rows = []
    for measure, systems in by_measure.items():
        for pair in PAIRS:
            one, two = (systems[name] for name in pair)
            row = dict(measure=measure, system=pair[0], other=pair[1])
            row |= dict(mean=one.means().mean(), mean_other=two.means().mean())
            drawn = difference(one, two, samples)
            drawn = {f"bootstrap_{end}": drawn[end] for end in ("low", "high", "p")}
            rows.append(row | tested(one, two) | drawn)
    table = pd.DataFrame(rows)
    check_tested(table)
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


def cell_means(runs): # [encoders,systems], and what encoder and system leave of them
    cells = runs.pivot_table(index="encoder", columns="system", values="value").to_numpy()
    return cells, cells - cells.mean(0) - cells.mean(1, keepdims=True) + cells.mean()


def omnibus(runs):
    "F-test: do the systems differ at all? Systems against encoder x system."
    cells, rest = cell_means(runs)
    encoders, systems = cells.shape
    df = (systems - 1, (encoders - 1) * (systems - 1))
    f = cells.mean(0).var() * systems * encoders / df[0] / ((rest**2).sum() / df[1])
    return dict(F=f, df=f"{df[0]}, {df[1]}", p=stats.f.sf(f, *df))


def components(runs):
    """Variance components by restricted maximum likelihood, as standard deviations in points.

    The design is balanced, so the likelihood is that of three mean squares. What is expected of
    them rises from runs to encoder x system to encoders; where they fall, a component is zero and
    its likeliest value is that of the two together, weighted by degrees of freedom. statsmodels
    says the same, but stops short of it where a component is zero."""
    cells, rest = cell_means(runs)
    encoders, systems = cells.shape
    each = len(runs) // cells.size
    residual = runs["value"] - runs.groupby(["encoder", "system"])["value"].transform("mean")
    squares = [(residual**2).sum(), each * (rest**2).sum(), each * cells.size * cells.mean(1).var()]
    df = [cells.size * (each - 1), (encoders - 1) * (systems - 1), encoders - 1]
    run, mixed, encoder = optimize.isotonic_regression(np.divide(squares, df), weights=df).x
    sizes = [(encoder - mixed) / systems / each, (mixed - run) / each, run]
    names = ("encoder_sd", "encoder_x_system_sd", "run_sd")
    return dict(zip(names, np.sqrt(sizes)))


def model_table(by_measure):
    "A row for each measure."
    rows = []
    for measure, systems in by_measure.items():
        runs = runs_table(systems)
        rows.append(dict(measure=measure) | components(runs) | omnibus(runs))
    return pd.DataFrame(rows)


# exploratory

def quality_of(models, seeds):
    """A row for each S2DM: how good its y is, as 03_pretrain measured it. The untrained control
    has the weights from which S2DM_SP of the same seed started, and they were measured, too."""
    rows = []
    for name, of, y in (("untrained", "S2DM_SP", "y_untrained"), *((n, n, "y") for n in TRAINED)):
        for model in models:
            for seed in range(seeds):
                system = ReadingSystem(model=model, seed=seed, **SYSTEMS[of])
                metrics = read_json(system.folder("pretrain") / "metrics.json")
                key = dict(encoder=model, system=name, seed=seed)
                rows.append(key | _quality(metrics, y))
    return pd.DataFrame(rows)


def _quality(metrics, y): # of y across languages, in percent
    across = [row[y] for row in metrics["sts"] if len(set(row["part"].split("-"))) == 2]
    retrieval = [row[y] for row in metrics["retrieval_synthetic"]]
    return dict(sts=np.mean(across), retrieval=np.mean(retrieval))


def quality_table(quality): # as from `quality_of`
    "Of each system its mean, with Student's interval over encoders."
    rows = []
    for name, part in quality.groupby("system", sort=False):
        means = part.groupby("encoder")[["sts", "retrieval"]].mean()
        for of in means: rows.append(dict(system=name, quality=of) | interval(means[of]))
    return pd.DataFrame(rows).rename(columns=dict(runs="encoders"))


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


def learners(by_measure, dev): # dev: as from `learned_of`
    "Each system's mean over all its readers, and over those that learned to read."
    rows = []
    for measure, systems in by_measure.items():
        runs = runs_table(systems).merge(dev, on=["encoder", "system", "seed"])
        for name, part in runs.groupby("system", sort=False):
            good = part[part["dev"] >= LEARNED]
            rows.append(dict(
                measure=measure, system=name, readers=len(part), learned=len(good),
                mean=part["value"].mean(), mean_of_learned=good["value"].mean()))
    return pd.DataFrame(rows)


def correlated(pairs, points, lost=0): # pairs: [n,2], lost: means that were taken out beside one
    "Pearson's correlation with Fisher's interval."
    a, b = (pairs - pairs.mean(0)).T
    size = math.sqrt((a @ a) * (b @ b))
    r = a @ b / size if size else math.nan # where nothing varies there is none
    middle = math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12))
    free = points - lost - 3
    reach = 1.96 / math.sqrt(free) if free > 0 else math.inf
    return dict(points=points, r=r, low=math.tanh(middle - reach), high=math.tanh(middle + reach))


def between_systems(means, samples): # means: [encoders,systems,2], the encoder's taken out
    "The correlation of systems' means within encoders; the interval draws encoders."
    encoders = len(means)
    products = [(means[..., i] * means[..., j]).sum(1) for i, j in ((0, 1), (0, 0), (1, 1))]
    drawn = np.random.default_rng(0).integers(encoders, size=(samples, encoders - 1))
    ab, aa, bb = (of[drawn].sum(1) for of in products)
    low, high = np.quantile(ab / np.sqrt(aa * bb), [.025, .975])
    ab, aa, bb = (of.sum() for of in products)
    points = encoders * means.shape[1]
    return dict(points=points, r=ab / math.sqrt(aa * bb), low=low, high=high)


def mechanism(by_measure, quality, samples): # quality: as from `quality_of`
    """Does y's quality predict reading? Correlations over the runs of one system, each encoder's
    mean taken out; of its means over encoders; and of the systems' means within encoders."""
    rows = []
    for measure, systems in by_measure.items():
        runs = runs_table(systems).merge(quality, on=["encoder", "system", "seed"])
        for of in ("sts", "retrieval"):
            key = dict(measure=measure, quality=of)
            for name, part in runs.groupby("system", sort=False):
                cells = part.groupby("encoder")[["value", of]]
                centred = (part[["value", of]] - cells.transform("mean")).to_numpy()
                within = correlated(centred, len(centred), cells.ngroups - 1)
                rows.append(key | dict(over="runs", system=name) | within)
                between = correlated(cells.mean().to_numpy(), cells.ngroups)
                rows.append(key | dict(over="encoders", system=name) | between)
            means = runs.groupby(["encoder", "system"])[["value", of]].mean()
            centred = means - means.groupby("encoder").transform("mean")
            centred = centred.to_numpy().reshape(runs["encoder"].nunique(), -1, 2)
            between = between_systems(centred, samples)
            rows.append(key | dict(over="systems", system="all") | between)
    return pd.DataFrame(rows)


def groups_of(languages): # name -> languages: each alone, and those of a kind together
    return {lang: [lang] for lang in languages} | dict(near=NEAR, far=FAR)


def single_languages(places, models, seeds, passages, samples):
    """The primary family's pairs in each language alone, and in those of a kind together:
    intervals and no tests."""
    rows = []
    for label, languages in groups_of((*NEAR, *FAR)).items():
        by_measure = scores_of(places, models, seeds, passages, languages, MEASURES)
        for measure, systems in by_measure.items():
            for pair in PAIRS:
                one, two = (systems[name] for name in pair)
                drawn = difference(one, two, samples)
                row = dict(language=label, measure=measure, system=pair[0], other=pair[1])
                row |= dict(mean=one.means().mean(), mean_other=two.means().mean())
                rows.append(row | {end: drawn[end] for end in ("difference", "low", "high")})
    return pd.DataFrame(rows)


def by_language(places, models, seeds, passages, samples):
    "What each system scored, in percent, with intervals; in the language of training, too."
    rows = []
    for label, languages in groups_of(("svo", *NEAR, *FAR)).items():
        by_measure = scores_of(places, models, seeds, passages, languages, MEASURES)
        for measure, systems in by_measure.items():
            for name, scores in systems.items():
                row = dict(language=label, measure=measure, system=name)
                rows.append(row | drawn_interval(scores, samples))
    return pd.DataFrame(rows)


def hours_table(places):
    "Hours of one core that the runs took, by stage, system and machine."
    rows = []
    for (name, _, _), folder in places.items():
        for stage in ("pretrain", "finetune", "evaluate"):
            if stage == "pretrain" and name not in TRAINED: continue
            ran = read_json(trained_at(folder, stage).with_name("config.json"), wall_time_s=float)
            rows.append(dict(stage=stage, system=name, device=ran["device"],
                             hours=ran["wall_time_s"] / 3600))
    table = pd.DataFrame(rows).groupby(["stage", "system", "device"], sort=False)["hours"]
    return table.agg(runs="size", hours="sum").reset_index()


def tables(places, models, seeds, questions, samples):
    "Name of a file -> table. Raises `DataError` as long as there is nothing to compare."
    check_finished(places)
    check_alike(places, "make reproduce-full")
    passages = {lang: passages_of(asked, True, lang) for lang, asked in questions.items()}
    by_measure = scores_of(places, models, seeds, passages, NEAR)
    quality, fitted = quality_of(models, seeds), model_table(by_measure)
    given = (places, models, seeds, passages, min(samples, EXPLORED))
    return dict(
        comparisons=comparisons(by_measure, samples), model=fitted,
        power_had=power_had(fitted, len(models), seeds),
        mechanism=mechanism(by_measure, quality, samples), quality=quality_table(quality),
        learners=learners(by_measure, learned_of(models, seeds)),
        single_languages=single_languages(*given), languages=by_language(*given),
        hours=hours_table(places),
        runs=pd.concat([runs_table(of).assign(measure=name) for name, of in by_measure.items()]))


def write(table, file):
    table.to_csv(file, index=False, float_format="%.4g", lineterminator="\n")
    long = len(table) > SHOWN
    shown = f"{len(table)} rows" if long else table.round(2).to_string(index=False)
    print(f"{file}:", shown, sep=" " if long else "\n", end="\n\n")


@plain_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("power", "trials", "outcomes", "tables"))
    parser.add_argument("--out", type=Path, default=Path("runs/figures/encoders"))
    parser.add_argument("--samples", type=int, default=SAMPLES)
    given = parser.parse_args()
    profile = experiment(PROFILE)
    models, seeds = profile["models"], profile["reproduce"]["seeds"]
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
    results = tables(places, models, seeds, questions, given.samples)
    for name, table in results.items(): write(table, given.out / f"{name}.csv")


if __name__ == "__main__": main()
