"Differences between systems: against exact values, against simulated truth, and what is refused."
import io
import json
import math
import os
import random
import re
import runpy
import shutil
import string
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from datasets import Dataset
from fake_runs import LANGUAGES, evaluation, leave
from scipy import stats

from s2dm.comparison import (
    comparison_table, difference, interval, passage_scores, passages_of)
from s2dm.core import DataError, ParameterError, write_json


def simulate(rng, seeds, gain=0., passages=60, per=5, seed_sd=3., passage_sd=15., difficulty=None):
    "Scores of a system: its mean, the passage's difficulty, the seed's luck, and chance."
    difficulty = rng.normal(0, passage_sd, passages) if difficulty is None else difficulty
    names = {lang: [p for p in range(passages) for _ in range(per)] for lang in ("de", "th")}
    scores = []
    for _ in range(seeds):
        luck = rng.normal(0, seed_sd)
        chance = {
            lang: np.clip((50 + gain + luck + np.repeat(difficulty, per)) / 100, 0, 1)
            for lang in names}
        scores.append({lang: 100. * (rng.random(passages * per) < p) for lang, p in chance.items()})
    return passage_scores(scores, names)


def test_means_are_means_over_languages_of_means_over_questions():
    rng = np.random.default_rng(0)
    names = dict(de=["a"] * 3 + ["b"], ar=["b", "c"])
    scores = [dict(de=rng.random(4) * 100, ar=rng.random(2) * 100) for _ in range(3)]
    found = passage_scores(scores, names)
    assert np.allclose(found.means(), [(s["de"].mean() + s["ar"].mean()) / 2 for s in scores])
    assert found.counts.tolist() == [[[3, 1, 0], [0, 1, 1]]] * 3
    assert found.passages == ["a", "b", "c"]


def test_one_passage_and_one_seed_leave_no_chance():
    one = passage_scores([dict(de=[100, 0])], dict(de=["a", "a"]))
    other = passage_scores([dict(de=[0, 0])], dict(de=["a", "a"]))
    found = difference(one, other, 200)
    assert (found["difference"], found["low"], found["high"]) == (50, 50, 50)
    assert found["p"] == pytest.approx(2 / 201)


def test_the_spread_is_that_of_the_sampling_distribution():
    "With passages alone and with seeds alone, against the formula of the standard error of a mean."
    rng = np.random.default_rng(1)
    names = dict(de=list(range(200)))
    none = passage_scores([dict(de=np.zeros(200))], names)
    values = rng.normal(50, 20, 200)
    wide = difference(passage_scores([dict(de=values)], names), none, 4000)
    assert ((wide["high"] - wide["low"]) / 3.92
            == pytest.approx(values.std() / np.sqrt(200), rel=.06))
    seeds = rng.normal(50, 5, 8)
    wide = difference(passage_scores([dict(de=np.full(200, s)) for s in seeds], names), none, 4000)
    error = seeds.std(ddof=1) / np.sqrt(8)
    assert (wide["high"] - wide["low"]) / 3.92 == pytest.approx(error, rel=.06)


def test_the_same_passages_for_both_take_difficulty_out():
    rng = np.random.default_rng(2)
    difficulty = rng.normal(0, 25, 60)
    pair = [simulate(rng, 4, seed_sd=0, difficulty=difficulty) for _ in range(2)]
    alone = passage_scores(
        [dict(de=np.zeros(300), th=np.zeros(300))],
        {k: [p for p in range(60) for _ in range(5)] for k in ("de", "th")})
    def width(a, b): return np.ptp([difference(a, b, 1000)[k] for k in ("low", "high")])
    assert width(*pair) < .7 * width(pair[0], alone)


def test_false_alarms_are_rare_and_a_gain_is_found():
    "Forty experiments without and with a gain of ten points."
    rng = np.random.default_rng(3)
    found = {gain: [] for gain in (0., 10.)}
    for gain, p in found.items():
        for _ in range(40):
            difficulty = rng.normal(0, 15, 60)
            a, b = (simulate(rng, 5, g, seed_sd=2., difficulty=difficulty) for g in (gain, 0.))
            p.append(difference(a, b, 500)["p"])
    assert np.mean(np.array(found[0.]) < .05) < .15
    assert np.mean(np.array(found[10.]) < .05) > .9


def test_the_same_samples_each_time_and_in_blocks():
    rng = np.random.default_rng(4)
    a, b = simulate(rng, 3), simulate(rng, 3)
    assert difference(a, b, 1500) == difference(a, b, 1500) != difference(a, b, 1500, seed=1)


def test_what_cannot_be_compared():
    rng = np.random.default_rng(5)
    a, b = simulate(rng, 2), simulate(rng, 2, passages=50)
    with pytest.raises(DataError, match="these two read others"): difference(a, b)
    with pytest.raises(ParameterError, match="samples=0"): difference(a, a, 0)
    with pytest.raises(DataError, match="seed 1, th, has 0 scores; expected 1"):
        passage_scores([dict(th=[1]), dict(de=[1])], dict(th=["a"]))


def test_a_family_is_corrected_together():
    rng = np.random.default_rng(6)
    scores = {name: simulate(rng, 3, gain) for name, gain in dict(a=12., b=0., c=0.).items()}
    table = comparison_table(scores, [("a", "b"), ("b", "c"), ("a", "c")], 400)
    assert list(table["system"] + table["other"]) == ["ab", "bc", "ac"]
    assert (table["p_holm"] >= table["p"]).all() and (table["p_holm"] <= 1).all()
    smallest = table["p"].idxmin()
    assert table["p_holm"][smallest] == pytest.approx(3 * table["p"][smallest])


def test_a_measure_without_a_question_that_counts_has_no_p():
    "Two readers of the one system have no answer at the right place in Thai."
    passages = dict(de=[0, 0, 1, 1], th=[0, 0, 1, 1])
    one = passage_scores([dict(de=[100, 0, 0, 0], th=[100, 0, 0, 0])] * 3, passages)
    counted = [dict(de=[True] * 4, th=[False] * 4)] * 3
    none = passage_scores([dict(de=[100, 0, 0, 0], th=[0] * 4)] * 3, passages, counted=counted)
    with np.errstate(invalid="ignore"):
        assert np.isnan(difference(one, none, 100)["p"])
        with pytest.raises(DataError, match="one and none cannot be compared.*no question counts"):
            comparison_table(dict(one=one, none=none), [("one", "none"), ("none", "one")], 100)


def test_real_passages(real):
    "240 passages, the same in every language; TyDi's passages belong to one language each."
    from s2dm.reading import load_reading

    german, thai = (passages_of(load_reading("xquad", lang), True, lang) for lang in ("de", "th"))
    assert german == thai and len(german) == 1190 and len(set(german)) == 240
    assert {name[0] for name in passages_of(load_reading("tydiqa", "fi"), False, "fi")} == {"fi"}


def test_a_contrast_between_languages_is_a_weighted_sum_and_its_interval_knows_of_passages():
    """The same passages in both languages: what they have in common drops out of the contrast."""
    rng = np.random.default_rng(5)
    common = rng.normal(0, 30, 300)
    names = dict(de=list(range(300)), en=list(range(300)))
    scores = [dict(de=common + 4 + rng.normal(0, 5, 300), en=common + rng.normal(0, 5, 300))]
    found = interval(passage_scores(scores, names, dict(de=1, en=-1)), 4000)
    assert found["mean"] == pytest.approx((scores[0]["de"] - scores[0]["en"]).mean())
    assert ((found["high"] - found["low"]) / 3.92
            == pytest.approx((scores[0]["de"] - scores[0]["en"]).std() / 300 ** .5, rel=.08))


@pytest.mark.usefixtures("real")
def test_the_deficit_of_made_up_answers(tmp_path, monkeypatch):
    """Answers that run on over the gold one in Chinese alone, in every question or in none: the
    deficit is that of such answers, and English has none."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    script = runpy.run_path(str(ROOT / "experiments/mechanism.py"))
    deficits = script["deficits"]
    deficits.__globals__["TARGETS"] = ("zh",)
    readers = {}
    for name, more in (("baseline", 3), ("S2DM_SP", 0)):
        readers[name] = [tmp_path / name]
        for lang in ("en", "zh"):
            questions = script["questions_of"]("xquad", lang)
            said = {}
            for id, context, gold in zip(*(questions[k][:] for k in ("id", "context", "answers"))):
                start, text = gold["answer_start"][0], gold["text"][0]
                longer = more if lang == "zh" else 0
                said[id] = context[start:start + len(text) + longer]
            write_json(readers[name][0] / f"predictions.xquad.{lang}.json", said)
    by_language, contrasts = deficits(readers, 200)
    at = by_language.set_index(["system", "lang"])["deficit"]
    # a text without its place counts if it is a constituent anywhere
    for of in (("S2DM_SP", "zh"), ("S2DM_SP", "en"), ("baseline", "en")): assert -1 < at[of] <= 0
    assert at["baseline", "zh"] > 50
    mean = at["baseline", "zh"] - at["baseline", "en"]
    gain = at["S2DM_SP", "zh"] - at["baseline", "zh"]
    assert contrasts["mean"][0] == pytest.approx(mean)
    assert contrasts["difference"].dropna().tolist() == [pytest.approx(gain)]


def test_encoders_are_drawn_before_seeds():
    """Five encoders that differ by far more than seeds do: the spread is that of a mean of five.
    Common to both systems, the encoders drop out of the difference; seeds alone remain."""
    rng = np.random.default_rng(8)
    encoders = np.repeat(range(5), 6).tolist()
    level = np.repeat(rng.normal(50, 10, 5), 6)
    names = dict(de=list(range(40)))
    def system(gain, encoders=encoders):
        means = level + gain + rng.normal(0, .5, 30)
        return passage_scores([dict(de=np.full(40, m)) for m in means], names, encoders=encoders)
    found = interval(system(0.), 4000)
    by_encoder = [level[i] for i in range(0, 30, 6)]
    assert ((found["high"] - found["low"]) / 3.92
            == pytest.approx(np.std(by_encoder) / np.sqrt(5), rel=.08))
    gain = difference(system(2.), system(0.), 2000)
    assert gain["low"] > 1 and gain["high"] < 3
    with pytest.raises(DataError, match="same encoders"):
        difference(system(0.), system(0., encoders=["a"] * 15 + ["b"] * 15))
    with pytest.raises(DataError, match="one after the other"):
        system(0., encoders=["a", "b"] * 15)


def test_a_share_of_some_questions():
    "Of the questions that a seed reached, the share that it got right; each seed reaches others."
    names = dict(de=["a", "a", "b", "b"])
    scores = [dict(de=[100, 0, 0, 0]), dict(de=[100, 100, 0, 0])]
    reached = [dict(de=[True, True, False, False]), dict(de=[True, True, True, True])]
    assert passage_scores(scores, names, counted=reached).means().tolist() == [50, 50]


BREAKS = "wrong boundaries at the right place"


@pytest.fixture(scope="module")
def design():
    "The script of docs/experiment-small.md."
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        return runpy.run_path(str(ROOT / "experiments/encoders.py"))


def by_runs(rng, encoder_sd, gain=0., run_sd=4.4, encoders=5, seeds=15):
    "Scores of two systems whose difference varies from encoder to encoder."
    names = [f"e{i}" for i in range(encoders) for _ in range(seeds)]
    level = np.repeat(rng.normal(30, 5, encoders), seeds)
    shift = np.repeat(rng.normal(gain, encoder_sd, encoders), seeds)
    def system(means):
        scores = [dict(near=np.full(4, mean)) for mean in means + rng.normal(0, run_sd, len(means))]
        return passage_scores(scores, dict(near=[0, 0, 1, 1]), encoders=names)
    return system(level + shift), system(level)


@pytest.mark.parametrize("encoder_sd", [0., 2.])
def test_the_power_of_the_design_is_that_of_simulated_experiments(design, encoder_sd):
    rng = np.random.default_rng(9)
    p = [design["tested"](*by_runs(rng, encoder_sd, gain=4.))["p"] for _ in range(400)]
    said = design["power_of"](4., encoder_sd, 4.4, 5, 15)
    assert np.mean(np.array(p) < .05) == pytest.approx(said, abs=.08)
    found = design["detectable"](encoder_sd, 4.4, 5, 15)
    assert design["power_of"](found, encoder_sd, 4.4, 5, 15) == pytest.approx(.8, abs=.01)


def test_the_design_finds_what_was_put_in(design):
    """The F-test of two systems is the square of their t-test; the components are those of the
    simulation, as far as forty encoders tell."""
    rng = np.random.default_rng(11)
    one, two = by_runs(rng, 3., gain=2., encoders=40, seeds=6)
    t = design["tested"](one, two)
    runs = design["runs_table"](dict(one=one, two=two))
    f = design["omnibus"](runs)
    assert f["p"] == pytest.approx(t["p"]) and f["df"] == "1, 39"
    assert len(runs) == 480 and set(runs["seed"]) == set(range(6))
    assert t["low"] < 2 < t["high"]
    sizes = design["components"](runs)
    assert sizes["run_sd"] == pytest.approx(4.4, rel=.1)
    assert sizes["encoder_sd"] == pytest.approx(5, rel=.35)
    # the shift of one of two systems: half of its variance is the interaction of each
    assert sizes["encoder_x_system_sd"] == pytest.approx(3 / np.sqrt(2), rel=.4)


def test_the_components_are_those_of_restricted_maximum_likelihood(design):
    """As statsmodels finds them by search. It stops early where a component is zero: there what
    is left is the spread of all runs around their systems' means."""
    formula = pytest.importorskip("statsmodels.formula.api")
    runs = design["runs_table"](dict(zip("ab", by_runs(
        np.random.default_rng(12), 6., encoders=6, seeds=4))))
    found = formula.mixedlm(
        "value ~ C(system)", runs, groups="encoder", re_formula="1",
        vc_formula={"system": "0 + C(system)"}).fit(reml=True)
    expected = np.sqrt([found.cov_re.iloc[0, 0], found.vcomp[0], found.scale])
    assert min(expected) > 1
    assert [*design["components"](runs).values()] == pytest.approx([*expected], rel=1e-3)
    # all encoders are alike: means of seeds differ less than seeds do
    runs["value"] = runs["seed"] * 2. + (runs["system"] == "b")
    spread = np.sqrt(runs.groupby("system")["value"].var().mean())
    assert [*design["components"](runs).values()] == pytest.approx([0, 0, spread])


def test_the_spread_of_runs_is_that_of_the_first_outcome(design, tmp_path):
    """Four systems with two runs. Another system, the far language, and questions in another
    language do not count."""
    archive = tmp_path / "records.tar.xz"
    with tarfile.open(archive, "w:xz") as records:
        runs = {"baseline": (1, 3), "vgvae-refined": (10, 14), "vgvae": (0, 99),
                "s2dm_sp-refined": (5, 5), "s2dm_sp-refined-untrained": (6, 6)}
        for system, ems in runs.items():
            for seed, em in enumerate(ems):
                rows = [dict(context=lang, question=lang, em=em) for lang in design["NEAR"]]
                rows += [dict(context="sov_case", question="sov_case", em=99 * seed),
                         dict(context="svo_nadj", question="svo", em=99 * seed)]
                text = json.dumps(dict(results=rows)).encode()
                about = tarfile.TarInfo(f"evaluate/small/{system}/seed{seed}/metrics.json")
                about.size = len(text)
                records.addfile(about, io.BytesIO(text))
    # squares 2, 8, 0 and 0 with one degree of freedom each
    assert design["run_spread"](archive) == pytest.approx(math.sqrt(10 / 4))


def test_an_answer_is_right_or_near_or_elsewhere(design):
    from datasets import Dataset

    from s2dm.features import Answer

    context = "the red house in Rome is old"
    asked = Dataset.from_dict(dict(
        id=["a", "b", "c"], context=[context] * 3,
        answers=[dict(text=["red house"], answer_start=[4])] * 3))
    said = dict(a=Answer("red house", 4, 13, 0.), b=Answer("house in Rome", 8, 21, 0.),
                c=Answer("old", 25, 28, 0.))
    assert design["letters"](asked, said) == "=~x"


def test_each_language_alone_has_its_interval(design, tmp_path):
    """Two encoders, two seeds. S2DM_SP answers one question of four more than the others in one
    language, where it breaks none of three at the right place, and they one."""
    said = {name: "==~x" for name in design["SYSTEMS"]} | {"S2DM_SP": "===x"}
    languages = (*design["NEAR"], *design["FAR"])
    places = {}
    for name in said:
        for model in ("small", "small-1"):
            for seed in range(2):
                folder = places[name, model, seed] = tmp_path / f"{name}-{model}-{seed}"
                folder.mkdir()
                write_json(folder / "outcomes.json", {
                    language: said[name] if language == "vso_case" else "=~~x"
                    for language in languages})
    passages = {language: [0, 0, 1, 1] for language in languages}
    table = design["single_languages"](places, ["small", "small-1"], 2, passages, 200)
    assert len(table) == (len(languages) + 2) * len(design["PAIRS"]) * 4 and "p" not in table
    gains = table.pivot_table("difference", "language", "measure")[[*design["MEASURES"]]]
    assert (gains.drop(["vso_case", "far"]) == 0).all(axis=None)
    assert gains.loc["vso_case"].tolist() == pytest.approx([25, -100 / 3, -25, 0])
    assert gains.loc["far"].tolist() == pytest.approx([25 / 4, -100 / 12, -25 / 4, 0])
    assert ((table["low"] <= table["difference"]) & (table["difference"] <= table["high"])).all()


def test_means_over_those_readers_that_learned_to_read(design, tmp_path, monkeypatch):
    "The second of two readers has 80 EM in its own language: the second mean leaves it out."
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path))
    for given in design["SYSTEMS"].values():
        for seed, em in enumerate((98., 80.)):
            system = design["ReadingSystem"](model="small", seed=seed, **given)
            write_json(system.folder("finetune") / "metrics.json",
                       dict(evaluations=[dict(step=1, em=10.), dict(step=2, em=em)]))
    dev = design["learned_of"](["small"], 2)
    assert dev["dev"].tolist() == [98., 80.] * 4
    scores = passage_scores([dict(near=[40.]), dict(near=[10.])], dict(near=["p"]),
                            encoders=["small"] * 2)
    table = design["learners"](dict(EM=dict(baseline=scores)), dev)
    assert table.to_dict("records") == [dict(
        measure="EM", system="baseline", readers=2, learned=1, mean=25., mean_of_learned=40.)]


def test_a_correlation_has_its_interval(design):
    "Fisher's, by hand; two runs of three encoders leave a third of the points to their means."
    pairs = np.array([[1., 1], [2, 3], [3, 2], [4, 4]])
    found = design["correlated"](pairs, 12, 2)
    assert found["r"] == pytest.approx(.8)
    ends = np.tanh(np.arctanh(.8) + np.array([-1.96, 1.96]) / np.sqrt(7))
    assert [found["low"], found["high"]] == pytest.approx([*ends])
    few = design["correlated"](pairs, 3) # of three points there is none
    assert (few["low"], few["high"]) == (-1, 1)
    assert math.isnan(design["correlated"](pairs * [0, 1], 12)["r"])


def test_systems_are_correlated_within_encoders(design):
    "In four encoders of five the better y reads better; the fifth says the opposite, weakly."
    means = np.array([[[-1., -2], [0, 0], [1, 2]]] * 4 + [[[-.5, 1], [0, 0], [.5, -1]]])
    found = design["between_systems"](means, 500)
    assert found["r"] == pytest.approx(15 / math.sqrt(8.5 * 34))
    assert found["points"] == 15 and found["low"] < found["r"] < found["high"] <= 1


# The design from answers to tables: three encoders, two seeds, two near and two far languages

def counts_of(name, encoder, seed, language): # of ten answers: right, wrong at the right place
    if language == "svo": return 10, 0
    if language in ("sov_case", "free_case"): return (3, 4) if name == "S2DM_SP" else (1, 5)
    if name == "S2DM_SP":
        return (10, 0) if language == "svo_nadj" else (7 + seed + encoder % 2, 1)
    more = encoder + seed
    return {"baseline": (5 + more, 2), "untrained": (4 + more, 3), "VGVAE": (5 + more, 1)}[name]


def asked_in(language): # ten questions about five contexts, the same in every language
    rows = []
    for i in range(10):
        context = " ".join(f"{language}{word}{i % 5}" for word in "abcdef")
        words = context.split()
        text = " ".join(words[1:3]) if i < 5 else words[4]
        answers = dict(text=[text], answer_start=[context.index(text)])
        rows.append(dict(id=f"q{i}", context=context, question="?", answers=answers))
    return Dataset.from_list(rows)


def said_with(right, near, asked): # the others begin the context, or there is no answer
    from s2dm.evaluation import NO_ANSWER
    from s2dm.features import Answer

    said = {}
    for i, (id, context, gold) in enumerate(zip(*(asked[k] for k in ("id", "context", "answers")))):
        start = gold["answer_start"][0]
        end = start + len(gold["text"][0])
        if i >= right: end = context.index(" ", end + 1) if i < 5 else len(context)
        if i >= right + near: start, end = 0, context.index(" ")
        said[id] = NO_ANSWER if (start, i) == (0, 9) else Answer(context[start:end], start, end, 1.)
    return said


MODELS = ["small", "small-1", "small-2"]


def leave_small_run(script, name, model, seed, folder): # answers, scores and records
    from s2dm.evaluation import write_answers

    ems, encoder = [], MODELS.index(model)
    for language in ("svo", *script.NEAR, *script.FAR):
        counts = counts_of(name, encoder, seed, language)
        said = said_with(*counts, asked_in(language))
        write_answers(folder, f"synthetic.{language}", said)
        if language in script.NEAR: ems.append(10. * counts[0])
    def record(stage, **metrics):
        root, system = folder.parents[3], folder.parts[-2]
        leave(root, stage, model, system, seed, metrics)
    rng = np.random.default_rng(0) # nobody reads these
    precision = "bfloat16" if (model, seed) == ("small-1", 1) else "float32"
    metrics = evaluation(rng, name, "synthetic", LANGUAGES, "svo", 0.)
    record("evaluate", **metrics, precision=precision)
    dev = 80. if (name, model, seed) == ("baseline", "small", 0) else 98.
    record("finetune", precision=precision, evaluations=[dict(em=dev)])
    if name not in script.TRAINED: return
    # y of S2DM_SP is as good as its reader reads; that of VGVAE as bad with each encoder, and
    # better with one that reads better
    y = np.mean(ems) if name == "S2DM_SP" else 100 - np.mean(ems) + 20 * encoder
    level = 40 + 10 * encoder + 10 * seed # EM of the control
    sts = [dict(part="svo-svo", y=0., y_untrained=0.)]
    sts += [dict(part=f"svo-{lang}", y=y, y_untrained=level / 2) for lang in script.FAR]
    found = [dict(lang="sov_case", y=y / 2, y_untrained=level / 4)]
    record("pretrain", precision=precision, sts=sts, retrieval_synthetic=found)


def small_runs(folder, patch): # the script as a module, its runs, and how it is called
    patch.setenv("S2DM_RUNS", str(folder / "runs"))
    patch.syspath_prepend(ROOT / "experiments")
    for name in ("primary", "encoders"): patch.delitem(sys.modules, name, raising=False)
    import encoders

    patch.setattr(encoders, "NEAR", ("svo_nadj", "svo_suffix"))
    patch.setattr(encoders, "FAR", ("sov_case", "free_case"))
    patch.setattr(encoders, "Synthetic", lambda: SimpleNamespace(reading=asked_in))
    patch.setattr(encoders, "experiment", lambda profile: dict(
        models=MODELS, reproduce=dict(seeds=2)))
    def call(command):
        given = ["encoders.py", command, "--out", str(folder / "out"), "--samples", "200"]
        patch.setattr(sys, "argv", given)
        encoders.main()

    places = encoders.folders(MODELS, 2)
    for place, of in places.items(): leave_small_run(encoders, *place, of)
    return SimpleNamespace(script=encoders, places=places, call=call, out=folder / "out")


@pytest.fixture
def small_design(tmp_path, monkeypatch): return small_runs(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def small_tables(tmp_path_factory): # name -> table
    with pytest.MonkeyPatch.context() as patch:
        made = small_runs(tmp_path_factory.mktemp("design"), patch)
        made.call("tables")
    return {file.stem: pd.read_csv(file) for file in made.out.iterdir()}


def test_a_letter_for_each_answer_that_was_given(small_design, capsys):
    """Once for each run, and again for one that was evaluated again."""
    small_design.call("outcomes")
    assert "outcomes of 24 runs" in capsys.readouterr().out
    for (name, model, seed), folder in small_design.places.items():
        encoder = MODELS.index(model)
        outcomes = json.loads((folder / "outcomes.json").read_text())
        assert [*outcomes] == ["svo", "svo_nadj", "svo_suffix", "sov_case", "free_case"]
        for language, letters in outcomes.items():
            right, near = counts_of(name, encoder, seed, language)
            assert letters == "=" * right + "~" * near + "x" * (10 - right - near)
    later = os.stat(folder / "outcomes.json").st_mtime + 10
    os.utime(folder / "metrics.json", (later, later))
    small_design.call("outcomes")
    assert "outcomes of 1 runs" in capsys.readouterr().out
    assert not [*small_design.out.iterdir()] # no score is shown


COLUMNS = {
    "comparisons": "measure system other mean mean_other difference low high p bootstrap_low "
                   "bootstrap_high bootstrap_p p_holm",
    "model": "measure encoder_sd encoder_x_system_sd run_sd F df p",
    "power_had": "measure encoder_sd run_sd encoders seeds power_for_2_points detectable",
    "mechanism": "measure quality over system points r low high",
    "quality": "system quality mean low high encoders",
    "learners": "measure system readers learned mean mean_of_learned",
    "single_languages": "language measure system other mean mean_other difference low high",
    "languages": "language measure system mean low high",
    "hours": "stage system device runs hours",
    "runs": "encoder system seed value measure",
}


def test_every_table_of_the_design_is_whole(small_tables):
    assert {name: " ".join(table) for name, table in small_tables.items()} == COLUMNS
    for name, table in small_tables.items():
        assert len(table) and not table.isna().any(axis=None), name
        middle = {"difference", "mean", "r"} & set(table)
        if "low" not in table: continue
        middle = table["difference" if "difference" in middle else middle.pop()]
        assert ((table["low"] <= middle) & (middle <= table["high"])).all(), name
    table = small_tables["comparisons"]
    assert (table["bootstrap_low"] <= table["difference"]).all()
    assert (table["difference"] <= table["bootstrap_high"]).all()


def test_the_comparisons_are_those_worked_out_by_hand(small_tables):
    """EM of S2DM_SP over the three encoders is 87.5, 92.5 and 87.5, of the baseline 55, 65, 75, of
    the control ten less."""
    table = small_tables["comparisons"].set_index(["measure", "other"])
    assert len(table) == 6 and set(table["system"]) == {"S2DM_SP"}
    row = table.loc["EM", "baseline"]
    gains = [32.5, 27.5, 12.5]
    assert row[["mean", "mean_other", "difference"]].tolist() == pytest.approx(
        [89.17, 65, 24.17], abs=.01)
    expected = stats.ttest_1samp(gains, 0)
    reach = expected.confidence_interval()
    assert row["p"] == pytest.approx(expected.pvalue, rel=1e-3)
    assert [row["low"], row["high"]] == pytest.approx([reach.low, reach.high], rel=1e-3)
    assert table["difference"]["EM", "untrained"] == pytest.approx(34.17, abs=.01)
    assert (table["p_holm"] >= table["p"]).all()
    assert table["p_holm"].min() == pytest.approx(6 * table["p"].min(), rel=1e-3)
    # two wrong boundaries of seven to ten answers at the right place
    breaks = 100 * np.mean([2 / (7 + encoder + seed) for encoder in range(3) for seed in range(2)])
    assert table["mean_other"][BREAKS, "baseline"] == pytest.approx(breaks, rel=1e-3)
    own = [1 / (8 + seed + encoder % 2) for encoder in range(3) for seed in range(2)]
    assert table["mean"][BREAKS, "baseline"] == pytest.approx(50 * np.mean(own), rel=1e-3)


def test_near_and_far_languages_are_told_apart(small_tables):
    table = small_tables["languages"].set_index(["measure", "language", "system"])
    every = table.loc["EM", "svo_nadj", "S2DM_SP"] # all is right there, whatever is drawn
    assert every.tolist() == [100, 100, 100]
    assert table.loc[BREAKS, "svo_nadj", "S2DM_SP"].tolist() == [0, 0, 0]
    def of(measure, system, *languages):
        return [table["mean"][measure, language, system] for language in languages]
    assert of("EM", "baseline", "svo", "near", "far") == [100, 65, 10]
    assert of("wrong boundaries", "baseline", "svo", "near", "far", "sov_case") == [0, 20, 50, 50]
    assert of("elsewhere", "S2DM_SP", "svo", "near", "far") == pytest.approx([0, 5.833, 30])
    assert of(BREAKS, "VGVAE", "far", "free_case") == pytest.approx([83.33] * 2)
    alone = small_tables["single_languages"].set_index(["measure", "language", "other"])
    gains = alone["difference"]
    for other in ("baseline", "untrained", "VGVAE"):
        assert gains["EM", "far", other] == 20 and gains["elsewhere", "far", other] == -10
        assert gains[BREAKS, "far", other] == pytest.approx(100 * (4 / 7 - 5 / 6), rel=1e-3)
    primary = small_tables["comparisons"].set_index(["measure", "other"])["difference"]
    for of, other in primary.index: assert gains[of, "near", other] == primary[of, other]


def test_quality_and_reading_go_together_as_they_were_made(small_tables):
    "y of S2DM_SP and of the control rises with EM, that of VGVAE falls within an encoder."
    table = small_tables["mechanism"].set_index(["measure", "quality", "over", "system"])
    for quality in ("sts", "retrieval"):
        for over, points, of_vgvae in (("runs", 6, -1), ("encoders", 3, 1)):
            found = table.sort_index().loc["EM", quality, over]
            assert found["r"].to_dict() == dict(untrained=1, S2DM_SP=1, VGVAE=of_vgvae)
            assert set(found["points"]) == {points}
    assert table["points"]["EM", "sts", "systems", "all"] == 9
    good = small_tables["quality"].set_index(["system", "quality"])["mean"]
    assert good["untrained"].to_dict() == pytest.approx(dict(sts=27.5, retrieval=13.75))
    assert good["S2DM_SP", "sts"] == pytest.approx(89.17)
    assert good["VGVAE", "sts"] == 55
    learned = small_tables["learners"].set_index(["measure", "system"]).loc["EM"]
    assert learned["learned"].to_dict() == dict(baseline=5, untrained=6, S2DM_SP=6, VGVAE=6)
    # the one that did not learn has 50
    assert learned["mean_of_learned"]["baseline"] == pytest.approx((6 * 65 - 50) / 5)


def test_the_power_that_was_had_is_that_of_the_fitted_components(design, small_tables):
    had, model = (small_tables[name].set_index("measure") for name in ("power_had", "model"))
    assert (had["run_sd"] == model["run_sd"]).all() and set(had["seeds"]) == {2}
    for measure, row in had.iterrows():
        assert row["encoder_sd"] == pytest.approx(
            math.sqrt(2) * model["encoder_x_system_sd"][measure], rel=1e-3)
        power = design["power_of"](2, row["encoder_sd"], row["run_sd"], 3, 2)
        assert row["power_for_2_points"] == pytest.approx(100 * power, rel=1e-2)
    runs = small_tables["runs"]
    assert len(runs) == 48
    f = design["omnibus"](runs[runs["measure"] == "EM"])
    assert model["F"]["EM"] == pytest.approx(f["F"], rel=1e-3) and model["df"]["EM"] == "3, 6"


def test_the_hours_are_those_of_all_runs(small_tables):
    table = small_tables["hours"].set_index(["stage", "system"])
    assert len(table) == 2 + 4 + 4 and set(table["runs"]) == {6}
    assert table["hours"].tolist() == pytest.approx([6 * 61.5 / 3600] * 10, rel=1e-3)


def test_no_table_of_the_design_is_made_while_a_run_is_lacking(small_design):
    folder = small_design.places["VGVAE", "small-2", 1]
    says = "1 of 24 readers .* VGVAE on small-2, seed 1: run `make reproduce-full` to its end"
    for stage in ("evaluate", "finetune", "pretrain"):
        file = small_design.script.trained_at(folder, stage)
        record = file.read_bytes()
        file.unlink()
        with pytest.raises(SystemExit, match=says): small_design.call("tables")
        file.write_bytes(record)
    assert not [*small_design.out.iterdir()]


def test_no_table_of_the_design_is_made_with_two_precisions(small_design):
    "Of an encoder and a seed; another encoder or seed may have another one."
    for stage, name in (("finetune", "untrained"), ("pretrain", "S2DM_SP")):
        folder = small_design.places[name, "small-1", 1]
        file = small_design.script.trained_at(folder, stage)
        record = json.loads(file.read_text())
        write_json(file, record | dict(precision="float32"))
        says = f"systems of small-1, seed 1 were .*float32: {name}\\).*`make reproduce-full`"
        with pytest.raises(SystemExit, match=says): small_design.call("tables")
        write_json(file, record)
    assert not [*small_design.out.iterdir()]


def test_tables_are_made_from_the_archive_of_records(small_design, small_tables, tmp_path,
                                                      monkeypatch):
    "On another machine, which has the letters and no answers."
    small_design.call("outcomes")
    records = runpy.run_path(str(ROOT / "workflow/records.py"))
    records["keep"]("encoders", tmp_path / "records.tar.xz")
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "elsewhere"))
    records["restore"](tmp_path / "records.tar.xz")
    assert len([*tmp_path.glob("elsewhere/evaluate/*/*/*/outcomes.json")]) == 24
    kept = {file.parents[1].name for file in tmp_path.glob("elsewhere/**/predictions.*.json")}
    assert kept == {"baseline"} # those that a figure shows
    small_design.call("tables")
    for name, table in small_tables.items():
        pd.testing.assert_frame_equal(pd.read_csv(small_design.out / f"{name}.csv"), table)


def test_what_the_design_can_tell_and_what_a_reader_costs(small_design, monkeypatch):
    monkeypatch.setattr(small_design.script, "run_spread", lambda: 4.7)
    small_design.call("power")
    power = pd.read_csv(small_design.out / "power.csv")
    assert power["encoder_sd"].tolist() == [0, 1, 2, 4, 6]
    assert (power["power_for_2_points"].diff().dropna() < 0).all()
    assert (power["detectable"].diff().dropna() > 0).all()
    def trained(config): # the fewer layers and epochs, the faster
        ems = [50., 90. + config.seed - config.freeze_layers]
        seconds = config.epochs * (100 - 20 * config.freeze_layers)
        evaluations = [dict(em=em, f1=em + 1) for em in ems]
        return SimpleNamespace(metrics=dict(steps=9, seconds=seconds, evaluations=evaluations))
    monkeypatch.setattr(small_design.script, "finetune", trained)
    small_design.call("trials")
    table = pd.read_csv(small_design.out / "trials.csv").set_index("arm")
    assert len(table) == 6 and not table.isna().any(axis=None)
    row = table.loc["lower 2 frozen, 4 epochs"]
    assert row[["seeds", "em", "lowest_em", "f1", "seconds"]].tolist() == [3, 89, 88, 90, 240]


# The experiments with e5

def test_two_experiments_read_scores_in_one_way(real, tmp_path, monkeypatch):
    "Whatever the systems are called: who says what is right has 100, who says nothing 0."
    from s2dm.reading import load_reading

    monkeypatch.syspath_prepend(ROOT / "experiments")
    scores_of = runpy.run_path(str(ROOT / "experiments/primary.py"))["scores_of"]
    asked = load_reading("bipar", "zh")
    right = {row["id"]: row["answers"]["text"][0] for row in asked}
    places = {}
    for name, said in (("right", right), ("silent", dict.fromkeys(right, ""))):
        places[name, 0] = tmp_path / name
        write_json(tmp_path / name / "predictions.bipar.zh.json", said)
    found = scores_of(places, "bipar", 1)
    assert {name: float(of.means().mean()) for name, of in found.items()} == dict(
        right=100, silent=0)


def leave_answers(folder, name, seed, asked): # nine of ten begin rightly, half of them too long
    rng = random.Random(f"{name}{seed}")
    for (dataset, language), (ids, answers, contexts) in asked.items():
        said = {}
        for id, answer, context in zip(ids, answers, contexts):
            text, begin = answer["text"][0], answer["answer_start"][0]
            end = begin + len(text) + rng.choice((0, 0, 3, 7))
            if rng.random() > .9: begin, end = rng.randrange(len(context) // 2), end + 30
            said[id] = context[begin:end].strip() or text
        write_json(folder / f"predictions.{dataset}.{language}.json", said)
    write_json(folder / "metrics.json", {})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tables_of_the_design_are_made_from_answers(real, tmp_path, monkeypatch):
    "With made-up answers of two seeds; the report shows what the scripts leave."
    from s2dm.reading import READING, load_reading
    from s2dm.tables import fixed_tables

    monkeypatch.setenv("S2DM_RUNS", str(tmp_path))
    monkeypatch.delenv("S2DM_FIGURES", raising=False)
    monkeypatch.syspath_prepend(ROOT / "experiments")
    for name in ("primary", "mechanism"): monkeypatch.delitem(sys.modules, name, raising=False)
    import mechanism
    import primary

    wanted = [(name, language) for name in primary.OUTCOMES for language in READING[name][0]]
    asked = {key: load_reading(*key) for key in wanted}
    asked = {key: [of[column][:] for column in ("id", "answers", "context")]
             for key, of in asked.items()}
    for (name, seed), folder in primary.folders("e5", 0, 2).items():
        leave_answers(folder, name, seed, asked)
        write_json(primary.trained_at(folder, "finetune"), dict(precision="float32"))
    for script in (primary, mechanism):
        monkeypatch.setattr(script, "experiment", lambda profile: dict(
            models=["e5"], reproduce=dict(seeds=2)))
        monkeypatch.setattr(sys, "argv", ["script", "--samples", "50"])
        script.main()
    tables = fixed_tables(tmp_path / "figures/e5")
    assert [*tables] == [
        "primary", "mechanism", "deficit", "overlap", "shares", "violations_bipar"]
    assert {*tables["primary"].data["dataset"]} == {*primary.OUTCOMES}
    shown = tables["shares"].data.set_index(["dataset", "lang", "rule", "of"])["mean"]
    assert shown["bipar", "zh", "characters", "gold"] == pytest.approx(73.2, abs=.05) # Table 1
    assert shown["bipar", "zh", "characters", "baseline"] < 60
    for table in tables.values():
        assert not any("nan" in str(cell) for block in table.blocks
                       for cell in block.cells.to_numpy().ravel())


def test_systems_of_a_seed_come_from_one_kind_of_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path))
    primary = runpy.run_path(str(ROOT / "experiments/primary.py"))
    places = primary["folders"]("e5", 0, 2)
    def trained(name, seed, precision, stage="finetune"):
        folder = tmp_path / stage / places[name, seed].relative_to(tmp_path / "evaluate")
        write_json(folder / "metrics.json", dict(precision=precision) if precision else {})

    for name, seed in places: trained(name, seed, ("float32", "bfloat16")[seed])
    trained("S2DM_POS", 1, None, "pretrain") # the first records do not say it
    trained("S2DM_SP", 1, "bfloat16", "pretrain")
    primary["check_alike"](places)
    trained("S2DM_SP", 1, "float32", "pretrain")
    with pytest.raises(DataError, match="seed 1 .*untrained; float32: S2DM_SP"):
        primary["check_alike"](places)
    trained("S2DM_SP", 1, "bfloat16", "pretrain")
    trained("S2DM_SP", 1, "float32")
    with pytest.raises(DataError, match="seed 1 .*untrained; float32: S2DM_SP"):
        primary["check_alike"](places)
    trained("S2DM_SP", 1, "bfloat16")
    # reading counts as well; the first records name the machine alone
    trained("S2DM_POS", 1, "bfloat16", "evaluate")
    trained("baseline", 1, None, "evaluate")
    machine = places["baseline", 1] / "config.json"
    write_json(machine, dict(device="cpu (x86_64, 2 cores, bfloat16)"))
    primary["check_alike"](places)
    write_json(machine, dict(device="cpu (x86_64, 2 cores)"))
    with pytest.raises(DataError, match="seed 1 .*untrained; float32: baseline"):
        primary["check_alike"](places)


# What training alone can give

@pytest.fixture
def recipe(tmp_path, monkeypatch): # the script's names, with runs of its own
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "runs"))
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return runpy.run_path(str(ROOT / "experiments/recipe.py"))


def test_the_best_setting_on_english_questions_is_taken_once_all_were_tried(recipe):
    tried = recipe["TRIED_FILE"]
    tried.parent.mkdir(parents=True)
    lines = ["arm,second_share,consistency,f1"] + [
        f"subwords,{share},{weight},{f1}"
        for share, weight, f1 in ((.3, 1, 60.), (.3, 5, 62.5), (.6, 1, 61.), (.6, 5, 58.))]
    tried.write_text("\n".join(lines), encoding="utf-8")
    assert recipe["chosen"]("subwords") == dict(
        second="subwords", second_share=.3, consistency=5.)
    assert recipe["chosen"]("no layer frozen") == dict(freeze_layers=0)
    with pytest.raises(DataError, match="0 of 4 settings of switched have been tried"):
        recipe["chosen"]("switched")
    runs = [[*recipe["runs_of"]("average of runs", seed)] for seed in range(3)]
    assert sorted(sum(runs, [])) == [*range(3, 12)] # nine runs, three readers
    assert recipe["runs_of"]("subwords", 2) == [2]


ENGLISH = { # F1 of readers: what helps alone, and joined
    "average of steps": 62., "average of runs": 60., "no layer frozen": 61.8,
    "6 layers frozen": 61.5, "8 layers frozen": 55., "subwords": 63., "switched": 64.,
    "switched + average of steps": 65., "switched + average of steps + no layer frozen": 64.9,
    "switched + average of steps + 6 layers frozen": 65.2,
    "switched + average of steps + 6 layers frozen + S2DM_SP": 10.,
}


def write_english(recipe, levels):
    for seed in range(3):
        folder = recipe["answers_of"]("baseline", seed, "finetune")
        write_json(folder / "metrics.json", dict(seconds=60, evaluations=[dict(f1=61.)]))
        write_json(folder / "config.json", dict(device=f"machine {seed % 2}"))
        for arm, f1 in levels.items():
            spent = dict(minutes=seed, device="machine 1")
            write_json(recipe["record_of"](arm, seed), spent | dict(f1=f1 + seed - 1))
            write_json(recipe["answers_of"](arm, seed) / "metrics.json", {}) # it was read with


def test_what_helped_is_joined_as_long_as_english_questions_say_so(recipe):
    "Two levers of one parameter exclude each other; S2DM comes last, whatever its F1."
    write_english(recipe, ENGLISH)
    table = recipe["join"]()
    assert table["arm"].tolist() == ["switched", *[*ENGLISH][7:10]]
    assert table["kept"].tolist() == [True, True, False, True]
    assert table["before"].tolist() == pytest.approx([61, 64, 65, 65])
    best = "switched + average of steps + 6 layers frozen"
    assert recipe["best_arm"]() == best
    assert recipe["all_arms"]()[-2:] == [best, best + " + S2DM_SP"]
    pairs = recipe["all_pairs"]()
    assert len(pairs) == 10 and pairs[-3:] == [
        (best, "baseline"), (best + " + S2DM_SP", best), (best + " + S2DM_SP", "S2DM_SP")]
    costs = recipe["costs"](["switched"]).set_index("arm")
    assert costs["f1_reddit"].to_dict() == pytest.approx({"baseline": 61, "switched": 64})
    assert costs["minutes"].tolist() == [1, 1]
    assert costs["device"].tolist() == ["machine 0; machine 1", "machine 1"]


def test_without_a_lever_that_helps_there_is_no_recipe(recipe):
    write_english(recipe, dict.fromkeys([*ENGLISH][:7], 50.))
    assert recipe["join"]().empty
    assert recipe["all_arms"]() == [*ENGLISH][:7]
    assert all(other == "baseline" for _, other in recipe["all_pairs"]())


def test_parameters_of_joined_levers_go_together(recipe):
    """In the precision of the baseline with the same seed; the runs of an average have one head."""
    with pytest.raises(DataError, match="come first .`make e5`"):
        recipe["parameters"]("8 layers frozen", 1)
    for seed, precision in enumerate(("float32", "bfloat16")):
        folder = recipe["answers_of"]("baseline", seed, "finetune")
        write_json(folder / "metrics.json", dict(precision=precision))
        write_json(recipe["answers_of"]("baseline", seed) / "metrics.json", {})
    found = recipe["parameters"]("average of steps + 6 layers frozen", 1)
    assert found == dict(model="e5", variant="baseline", precision="bfloat16", average=8,
                         average_share=.5, final_rate=1 / 3, freeze_layers=6)
    assert recipe["parameters"]("average of runs", 0) == dict(
        model="e5", variant="baseline", precision="float32", head_seed=0)


@pytest.mark.parametrize("command, says", [
    ("join", "21 of 21 have not been read with, such as"),
    ("tables", "{}/runs/recipe/joins.csv is not there: run `python experiments/recipe.py join`")])
def test_no_score_of_the_recipe_is_shown_before_all_are_there(command, says, tmp_path):
    told = subprocess.run(
        [sys.executable, ROOT / "experiments/recipe.py", command, "--out", tmp_path],
        env=os.environ | dict(S2DM_RUNS=str(tmp_path / "runs")), capture_output=True, text=True)
    assert told.returncode == 1 and told.stderr.startswith(says.format(tmp_path))


# Boundaries

@pytest.fixture
def boundaries(tmp_path, monkeypatch): # the script's names, with runs of its own
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "runs"))
    monkeypatch.syspath_prepend(ROOT / "experiments")
    monkeypatch.delitem(sys.modules, "recipe", raising=False) # it knows where runs are
    return runpy.run_path(str(ROOT / "experiments/boundaries.py"))


def test_questions_of_one_context_are_in_one_fold(boundaries):
    rows = Dataset.from_list([dict(context=f"c{i // 3}") for i in range(150)])
    folds = boundaries["folds_of"](rows)
    assert np.bincount(folds).tolist() == [30] * 5
    assert all(len(set(folds[i:i + 3])) == 1 for i in range(0, 150, 3))


def test_no_sentence_keeps_its_own_tree(boundaries):
    from s2dm.toy import random_sentences

    sentences = random_sentences(groups=60, longest=5)
    changed = boundaries["shuffled"](sentences)
    own = {row["sentence_id"]: row for row in sentences}
    lengths = [(row["lang"], len(row["forms"])) for row in sentences]
    assert len(changed) == sum(lengths.count(each) > 1 for each in lengths)
    for row in changed:
        before = own[row["sentence_id"]]
        assert row["forms"] == before["forms"] and len(row["heads"]) == len(before["heads"])
    alike = [row["heads"] == own[row["sentence_id"]]["heads"] for row in changed if len(
        row["forms"]) > 3]
    assert sum(alike) < len(alike) / 3 # short sentences have few trees


def test_the_oracle_takes_the_right_one_of_what_overlaps_the_best(boundaries):
    questions = Dataset.from_list([
        dict(id="a", context="the old house", answers=dict(text=["old house"], answer_start=[4])),
        dict(id="b", context="here or there", answers=dict(text=["there"], answer_start=[8])),
        dict(id="c", context="nothing", answers=dict(text=["nothing"], answer_start=[0]))])
    contexts = dict(zip(questions["id"], questions["context"]))
    nbest = dict(a=[[4, 7, 3.], [4, 13, 1.]], b=[[0, 4, 2.], [8, 13, 1.]], c=[])
    near = boundaries["near_best"](contexts, nbest)
    assert [span[0] for span in near["a"]] == ["old", "old house"]
    assert [span[0] for span in near["b"]] == ["here"] and near["c"][0][0] == ""
    assert boundaries["oracle"](questions, near) == pytest.approx(100 / 3)
    assert boundaries["exact"](questions, near, lambda id, spans: spans[0]) == 0
    # 3 + 2 log 3 is less than 1 + 2 log 9, and with half of it more
    third = pytest.approx(100 / 3)
    assert boundaries["by_length"](questions, near) == [third, 0, 0, 0, 0, 0, 0]


def test_readers_are_compared_seed_by_seed_where_they_are_the_same(boundaries):
    same = boundaries["same_readers"](boundaries["PAIRS"] + boundaries["CONTROLLED"])
    assert ("baseline with choice", "baseline") in same
    assert ("S2DM_SP with choice", "S2DM_SP") in same
    assert ("baseline with choice", "baseline with shuffled trees") in same
    assert ("phrases with choice", "baseline") not in same
    assert ("phrases", "baseline") not in same


# Both scripts from beginning to end, with toys

def toy_unigram(): # a tokenizer of XLM-R's kind, which knows a few words whole
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from s2dm.toy import PEOPLE, SYMBOLS, THINGS

    words = [f"▁{word}" for word in (*PEOPLE, *THINGS, "so", "made", "the", "a", "Who")]
    named = [(piece, 0.) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    letters = sorted({"▁", *SYMBOLS, *string.ascii_letters})
    letters = [(letter, -5.) for letter in letters]
    inner = Tokenizer(models.Unigram(named + [(word, -3.) for word in words] + letters, unk_id=3))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    inner.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", cls_token="<s>", eos_token="</s>",
        sep_token="</s>", pad_token="<pad>", unk_token="<unk>")


@pytest.fixture
def toy_e5(tmp_path, monkeypatch):
    """What the scripts read is small, and the rest is as it is: e5 is a random encoder of nine
    layers, each corpus has twenty toy questions in few languages, treebanks have random trees."""
    from s2dm import dictionaries, encoder, pretrain, reading
    from s2dm.subwords import labelled_sentences
    from s2dm.systems import ENCODERS, Preset
    from s2dm.toy import save_toy_encoder, save_toy_questions, toy_sentences
    from s2dm.treebanks import align

    folder = tmp_path / "e5"
    save_toy_encoder(folder, toy_unigram(), layers=9, positions=130, pad_token_id=1)
    monkeypatch.setattr(encoder, "_e5", lambda revision=None: encoder.Location(folder, "e5", "r1"))
    monkeypatch.setitem(ENCODERS, "e5", Preset(
        "e5",
        pretrain=dict(epochs=1, selection="none", measure=False, decoder_vocabulary="data"),
        finetune=dict(
            epochs=2, batch=4, learning_rate=1e-2, head_scale=5, max_length=60, stride=8, query=24,
            data="squadshifts/new_wiki", dev="squadshifts/reddit", dev_sample=12,
            freeze_embeddings=True, freeze_layers=4, dictionary_layer=2)))
    languages = dict(xquad=("en", "de", "zh"), mlqa=("en",), tydiqa=("en", "fi"))
    for name, known in languages.items():
        monkeypatch.setitem(reading.READING, name, reading.READING[name]._replace(languages=known))

    def questions(path): # instead of a corpus's file
        file = tmp_path / "corpora" / path
        if not file.exists(): save_toy_questions(file, 16 if ".de." in path else 20)
        return file

    pairs = align(toy_sentences())
    one, other = (labelled_sentences(toy_sentences((lang,))) for lang in ("en", "de"))
    monkeypatch.setattr(reading, "fetch", questions)
    monkeypatch.setattr(pretrain, "load_pairs", lambda *args: pairs)
    monkeypatch.setattr(dictionaries, "parallel_sentences", lambda languages: {
        language: [*zip(one, other)] * 2 for language in languages})
    monkeypatch.syspath_prepend(ROOT / "experiments")
    for name in ("primary", "recipe", "boundaries"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def run_script(monkeypatch, script, *words):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, words)])
    script.main()


def refused(monkeypatch, script, *words): # what a script says instead of doing it
    with pytest.raises(SystemExit) as stopped: run_script(monkeypatch, script, *words)
    return str(stopped.value)


PRECISIONS = ("float32", "bfloat16") # of the experiment with e5, by seed


def leave_e5(primary, seeds): # what `make e5` leaves: baselines, and S2DM_SP's answers
    from s2dm.evaluation import EvaluateConfig, evaluate
    from s2dm.finetune import FinetuneConfig, finetune

    for (name, seed), folder in primary.folders("e5", 0, 5).items():
        precision = PRECISIONS[seed % 2]
        if name in ("baseline", "S2DM_SP") and seed in seeds:
            about = dict(model="e5", seed=seed)
            reader = finetune(FinetuneConfig(
                variant="baseline", precision=precision, **about)).reader
            reader.precision = precision
            evaluate(EvaluateConfig(**about | primary.SYSTEMS[name]), reader)
        else: write_json(folder / "metrics.json", dict(precision=precision))
        if name != "baseline" or seed not in seeds:
            write_json(primary.trained_at(folder, "finetune"), dict(precision=precision))


def share_right(folder, dataset, language): # EM of what is kept in a folder, without our metrics
    from s2dm.reading import load_reading

    said = json.loads((folder / f"predictions.{dataset}.{language}.json").read_text())
    asked = load_reading(dataset, language)
    assert {*said} == {*asked["id"]}
    right = [said[row["id"]] == row["answers"]["text"][0] for row in asked]
    return 100 * np.mean(right)


def targets_right(folder, dataset):
    from s2dm.reading import READING

    languages = [each for each in READING[dataset].languages if each != "en"]
    return np.mean([share_right(folder, dataset, each) for each in languages])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_recipe_from_its_trials_to_its_tables(toy_e5, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    import primary
    import recipe
    from s2dm.evaluation import predict
    from s2dm.finetune import evenly
    from s2dm.metrics import score
    from s2dm.reader import S2DMReader
    from s2dm.reading import load_reading

    monkeypatch.setattr(recipe, "SEEDS", range(2))
    out, runs = tmp_path / "out", tmp_path / "runs"
    def go(*words): run_script(monkeypatch, recipe, *words, "--out", out, "--samples", 50)
    def no(*words): return refused(monkeypatch, recipe, *words, "--out", out)

    # trials: a line for each setting, once
    assert "are to come first (`make e5`)" in no("train")
    leave_e5(primary, recipe.SEEDS)
    unfinished = primary.folders("e5", 0, 5)["S2DM_POS", 4] / "metrics.json"
    unfinished.unlink()
    assert "0 of 4 settings of subwords have been tried" in no("train", "--arms", "subwords")
    assert "are to come first (`python experiments/dictionaries.py quality`)" in no("trials")
    (out / "dictionaries.csv").touch()
    go("trials")
    file = runs / "recipe/trials.csv"
    tried = pd.read_csv(file)
    assert [*tried] == [
        "arm", "second_share", "consistency", "steps", "seconds", "precision", "f1"]
    assert set(tried["precision"]) == {PRECISIONS[0]} # of the baseline, whatever the machine
    assert tried["arm"].tolist() == ["subwords"] * 4 + ["switched"] * 4
    assert tried["second_share"].tolist() == [.3, .3, .6, .6] * 2
    assert tried["consistency"].tolist() == [1, 5, 1, 5] * 2
    assert (tried["steps"] == 10).all() and tried["f1"].between(1, 100).all()
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "finetune", None)
        go("trials")
        file.write_bytes(b"".join(before.splitlines(True)[:-1])) # as if it had been stopped
        with pytest.raises(TypeError): go("trials")
    go("trials")
    again = pd.read_csv(file)
    assert again.drop(columns="seconds").equals(tried.drop(columns="seconds"))

    # train: each arm in the precision of the baseline, and what it should be
    assert "14 of 14 have not been read with" in no("join")
    go("train", "--seeds", "0,1")
    weights, base = {}, load_file(tmp_path / "e5/model.safetensors")
    dev = evenly(load_reading("squadshifts", "en", "reddit"), 12)
    for arm in recipe.LEVERS:
        for seed in recipe.SEEDS:
            trained = [runs / "recipe" / arm.replace(" ", "_") / f"finetune/e5/baseline/seed{each}"
                       for each in recipe.runs_of(arm, seed)]
            found = [json.loads((folder / "metrics.json").read_text()) for folder in trained]
            assert {each["precision"] for each in found} == {PRECISIONS[seed]}
            record = json.loads(recipe.record_of(arm, seed).read_text())
            assert record["minutes"] == pytest.approx(sum(each["seconds"] for each in found) / 60)
            assert "cpu" in record["device"]
            reader = weights[arm, seed] = S2DMReader.from_pretrained(recipe.reader_of(arm, seed))
            assert record["f1"] == pytest.approx(score(predict(reader, dev), dev).f1.mean())
            heads = [load_file(folder / "checkpoint/reader.safetensors")["head.weight"]
                     for folder in trained]
            assert torch.allclose(reader.head.weight, torch.stack(heads).mean(0))
    assert not torch.equal(heads[0], weights["subwords", 0].head.weight)
    frozen = {"no layer frozen": 0, "6 layers frozen": 6, "8 layers frozen": 8, "switched": 4}
    for arm, layers in frozen.items():
        state = weights[arm, 1].encoder.state_dict()
        name = "encoder.layer.{}.attention.self.value.weight"
        same = [torch.equal(state[name.format(i)], base[name.format(i)]) for i in range(9)]
        assert same == [True] * layers + [False] * (9 - layers)
    with monkeypatch.context() as patch: # what is there is not done again
        patch.setattr(recipe, "finetune", None)
        go("train", "--seeds", "0,1")

    # join: here subwords and means of runs helped most, and together they are better still
    assert "recipe.py join` first" in no("tables")
    helped = {"subwords": .02, "average of runs": .01, "6 layers frozen": .005}
    for arm in recipe.LEVERS:
        for seed in recipe.SEEDS:
            spent = dict(minutes=1., device="here")
            write_json(recipe.record_of(arm, seed), spent | dict(f1=helped.get(arm, 0.)))
    for seed in recipe.SEEDS:
        file = recipe.answers_of("baseline", seed, "finetune") / "metrics.json"
        write_json(file, json.loads(file.read_text()) | dict(evaluations=[dict(f1=.001)]))
    go("join")
    joins = pd.read_csv(runs / "recipe/joins.csv")
    first, both = "subwords", "subwords + average of runs"
    assert joins["arm"].tolist()[:2] == [first, both] and joins["kept"].tolist()[:2] == [True] * 2
    assert joins["before"].tolist()[:2] == pytest.approx([.001, .02])
    best = joins.loc[joins["kept"], "arm"].iloc[-1]
    with_s2dm = f"{best} + S2DM_SP"
    for seed in recipe.SEEDS:
        reader = S2DMReader.from_pretrained(recipe.reader_of(with_s2dm, seed))
        assert reader.config.head == "semantic" and reader.semantic is not None
        s2dm = runs / f"s2dm/pretrain/e5/s2dm_sp-refined/seed{seed}/metrics.json"
        assert json.loads(s2dm.read_text())["precision"] == PRECISIONS[seed]

    # what was read is kept without weights, and is not done again on another machine
    go("keep")
    shutil.rmtree(runs / "recipe")
    restore = runpy.run_path(str(ROOT / "workflow/records.py"))["restore"]
    monkeypatch.setenv("S2DM_RUNS", str(runs))
    restore(out / "recipe.tar.xz")
    assert not [*(runs / "recipe").rglob("*.safetensors")]
    place = recipe.answers_of("subwords", 0) # names no folder of this machine
    assert place == runs / "recipe/subwords/answers0/evaluate/e5/baseline/seed0"
    assert (place / "metrics.json").is_file()
    with monkeypatch.context() as patch:
        for name in ("finetune", "evaluate", "pretrain"): patch.setattr(recipe, name, None)
        go("train", "--seeds", "0,1")
        go("join")

    # what was not read with is trained again if its weights are gone
    assert "run `make e5` to its end" in no("tables")
    write_json(unfinished, {})
    gone = recipe.answers_of("8 layers frozen", 1)
    said = {file.name: file.read_text() for file in gone.glob("predictions.*.json")}
    assert len(said) == 3 + 1 + 2 + 2 # XQuAD, MLQA, TyDi QA, BiPaR
    shutil.rmtree(gone)
    assert "files that are not in" in no("keep") # they would be lost
    assert "1 of 22 have not been read with" in no("tables")
    go("train", "--arms", "8 layers frozen", "--seeds", "1")
    assert {name: (gone / name).read_text() for name in said} == said

    # tables: means of what the answers say
    go("tables")
    table = pd.read_csv(out / "recipe.csv").set_index(["dataset", "system", "other"])
    assert len(table) == 3 * (7 + 1 + 2) and (table["seeds"] == 2).all()
    means = {}
    for arm in ("baseline", "S2DM_SP", *recipe.LEVERS, best, with_s2dm):
        folders = [recipe.answers_of(arm, seed) for seed in recipe.SEEDS]
        for dataset in primary.OUTCOMES:
            scores = [targets_right(folder, dataset) for folder in folders]
            means[dataset, arm] = np.mean(scores)
    assert len({round(mean, 3) for mean in means.values()}) > 5 # or the next would say little
    for (dataset, arm, other), row in table.iterrows():
        assert row["mean"] == pytest.approx(means[dataset, arm], abs=1e-3)
        assert row["mean_other"] == pytest.approx(means[dataset, other], abs=1e-3)
        assert row["difference"] == pytest.approx(row["mean"] - row["mean_other"], abs=1e-3)
    assert table.loc["bipar"].index.tolist()[-2:] == [(with_s2dm, best), (with_s2dm, "S2DM_SP")]
    single = pd.read_csv(out / "recipe_languages.csv")
    assert len(single) == (3 + 2 + 2) * 2 * 10 and "p" not in single
    german = single[(single["language"] == "de") & (single["measure"] == "em")]
    at = german.set_index(["arm", "other"])["mean"]
    right = [share_right(recipe.answers_of("switched", seed), "xquad", "de") for seed in range(2)]
    assert at["switched", "baseline"] == pytest.approx(np.mean(right), abs=1e-3)
    costs = pd.read_csv(out / "recipe_costs.csv").set_index("arm")
    assert [*costs] == ["minutes", "f1_reddit", "device"] and len(costs) == 10
    assert costs.loc["subwords"].tolist() == [pytest.approx(1), pytest.approx(.02), "here"]
    assert costs.loc["baseline", "f1_reddit"] == pytest.approx(.001)


def toy_parser(language): # of "so ada made a cake.": its subject, and what was made with the verb
    from s2dm.constituents import Parse

    def parse(text):
        words = [word.span() for word in re.finditer(r"\w+|\.", text)]
        verb, end = text.index("made"), text.index(".")
        return Parse(words, [(0, verb - 1, "NP"), (verb, end, "VP"), (verb + 5, end, "NP")])

    return lambda texts: [parse(text) for text in texts]


def overlap(one, other): return one[0] < other[1] and other[0] < one[1]


def crosses(text, span): # of "so ada made a cake.": does it share some words, but not all, with...
    words = [word.span() for word in re.finditer(r"\w+|\.", text)]
    touched = {word for word in words if overlap(word, span)}
    verb = text.index("made")
    phrases = [{word for word in words if word[0] < verb},
               {word for word in words if word[0] >= verb and text[word[0]] != "."}]
    phrases.append(phrases[1] - {(verb, verb + 4)}) # ... a phrase, and has others besides?
    return any(touched & phrase and touched - phrase and phrase - touched for phrase in phrases)


def picked(script, nbest, dataset, language, worth): # EM if of the spans that overlap the first...
    nbest = nbest[f"nbest.{dataset}.{language}.json"]
    right = []
    for row in script.questions_of(dataset, language):
        near = [span for span in nbest[row["id"]] if overlap(span, nbest[row["id"]][0])]
        a, b, _ = max(near, key=lambda span: worth(row, span)) # ... the most worthy is taken
        right.append(row["context"][a:b] == row["answers"]["text"][0])
    return 100 * np.mean(right)


def share_broken(folder, language): # of XQuAD's answers that overlap the right one: wrong ones
    from s2dm.reading import load_reading

    spans = json.loads((folder / f"spans.xquad.{language}.json").read_text())
    wrong = []
    for row in load_reading("xquad", language):
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        gold = (start, start + len(text))
        said = tuple((spans[row["id"]] or (0, 0))[:2])
        if overlap(said, gold): wrong.append(said != gold)
    return 100 * np.mean(wrong)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_boundaries_from_training_to_tables(toy_e5, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    import boundaries
    import primary
    import s2dm.finetune
    from s2dm.evaluation import predict
    from s2dm.reader import S2DMReader
    from s2dm.toy import random_sentences

    sentences = random_sentences(groups=60)
    monkeypatch.setattr(boundaries, "load_sentences", lambda: sentences)
    monkeypatch.setattr(s2dm.finetune, "load_sentences", lambda: sentences)
    monkeypatch.setattr(boundaries, "corenlp", toy_parser)
    monkeypatch.setattr(boundaries, "SEEDS", range(2))
    out, runs = tmp_path / "out", tmp_path / "runs"
    own = runs / "boundaries"
    def go(*words): run_script(monkeypatch, boundaries, *words, "--out", out, "--samples", 50)
    def no(*words): return refused(monkeypatch, boundaries, *words, "--out", out)
    def facts(folder): return json.loads((folder / "metrics.json").read_text())

    # train: on other questions in as many steps; what `make e5` has left is not trained again
    assert "are to come first (`make e5`)" in no("train", "--arms", "fold0")
    leave_e5(primary, boundaries.SEEDS)
    unfinished = primary.folders("e5", 0, 5)["S2DM_POS", 4] / "metrics.json"
    unfinished.unlink()
    go("train", "--seeds", "0,1")
    assert boundaries.folder_of("baseline", 1) == runs / "finetune/e5/baseline/seed1"
    assert not (own / "baseline").exists()
    folds = [json.loads((own / f"{arm}.json").read_text())["data"][0]["paragraphs"]
             for arm in boundaries.FOLD_ARMS]
    assert [len(fold) for fold in folds] == [4] * 5
    assert {asked["id"] for fold in folds for each in fold for asked in each["qas"]} == {
        f"q{i}" for i in range(20)}
    questions = {arm: (16, 0) for arm in boundaries.FOLD_ARMS} | {
        "S2DM_SP": (20, 2), "phrases": (26, 2), "no articles": (20, 2)}
    for arm, (count, seeds) in questions.items():
        for seed in range(max(1, seeds)):
            said = facts(boundaries.folder_of(arm, seed))
            assert said["questions"] == count and said["precision"] == PRECISIONS[seed]
            assert said["steps"] == (8 if arm in boundaries.FOLD_ARMS else 10)
    with monkeypatch.context() as patch:
        patch.setattr(boundaries, "finetune", None)
        go("train", "--seeds", "0,1")

    # choose: from the folds, for each kind of trees
    assert "3 of 3 choices are not there yet (choose)" in no("read", "--seeds", "0,1")
    fit_choice, fitted = boundaries.fit_choice, []
    with monkeypatch.context() as patch:
        patch.setattr(boundaries, "fit_choice", lambda *given, **settings: fitted.append(
            fit_choice(*given, **settings)) or fitted[-1])
        go("choose")
    for number, how in enumerate(boundaries.LEARNING):
        table = pd.read_csv(boundaries.learned_file(how).with_suffix(".csv"))
        assert [*table] == ["epochs", "decay", "questions", "by_score", "by_worth"]
        assert table[["epochs", "decay"]].to_dict("records") == boundaries.FITS
        best = fitted[len(table) * number + table["by_worth"].idxmax()].state_dict()
        learned = load_file(boundaries.learned_file(how))
        assert {*learned} == {name for name in best if not name.startswith("phrases.")}
        assert all(torch.equal(best[name], weight) for name, weight in learned.items())
    with monkeypatch.context() as patch:
        for name in ("Trees", "finetune"): patch.setattr(boundaries, name, None)
        shutil.rmtree(boundaries.folder_of("fold3", 0)) # it is not needed any more
        go("choose")

    # ten questions teach next to nothing. So that choices differ and can be followed: one takes
    # the likeliest phrase, one the reader's own span, one that with the lowest score
    for how, weights in zip(boundaries.LEARNING, ([0., 1.], [1., 0.], [-1., 0.])):
        silent = {name: torch.zeros_like(weight)
                  for name, weight in load_file(boundaries.learned_file(how)).items()}
        given = silent | dict(weights=torch.tensor(weights))
        boundaries.save_tensors(boundaries.learned_file(how), given, dict(format="pt"))

    # read: every test with and without each choice
    assert "8 of 8 have not been read with" in no("tables")
    go("read", "--seeds", "0")
    assert "4 of 8 have not been read with" in no("tables")
    go("read", "--seeds", "0,1")
    assert "run `make e5` to its end" in no("tables")
    folder = boundaries.answers_of("baseline", 0)
    before = primary.folders("e5", 0, 1)["baseline", 0]
    for dataset, language in boundaries.TESTS:
        name = f"predictions.{dataset}.{language}.json"
        assert json.loads((folder / name).read_text()) == json.loads((before / name).read_text())
    assert {row["name"] for row in facts(folder)["phrases"]} == {"en", "de", "fi"}
    reader, changed = boundaries.reader_of("baseline", 1), {}
    choices = boundaries.Choices(reader, controlled=True)
    for dataset, language in (("xquad", "de"), ("tydiqa", "fi")): # as a reader with it answers
        asked = boundaries.questions_of(dataset, language)
        reader.choice = None
        plain = predict(reader, asked)
        for how, reader.choice in choices.of(language).items():
            kept = boundaries.answers_of(f"baseline with {how}", 1)
            said = json.loads((kept / f"predictions.{dataset}.{language}.json").read_text())
            assert said == predict(reader, asked)
            changed.setdefault(how, []).append(said != plain)
    assert changed == {"choice": [True] * 2, "english trees": [False] * 2,
                       "shuffled trees": [True] * 2, "family left out": [True] * 2}
    assert boundaries.answers_of("phrases with choice", 1).is_dir() # controls: of baselines alone
    assert not boundaries.answers_of("phrases with english trees", 1).exists()
    for seed in boundaries.SEEDS:
        kept = boundaries.answers_of("baseline with shuffled trees", seed)
        name = "nbest.xquad.zh.json"
        nbest = {name: json.loads((boundaries.answers_of("baseline", seed) / name).read_text())}
        lowest = picked(boundaries, nbest, "xquad", "zh", lambda row, span: -span[2])
        assert share_right(kept, "xquad", "zh") == lowest
    # give: the same choice as a part of a saved reader
    plain = boundaries.folder_of("baseline", 0) / "checkpoint"
    go("give", "--reader", plain, "--to", tmp_path / "chooser")
    chooser = S2DMReader.from_pretrained(tmp_path / "chooser")
    assert "from treebanks" in chooser.facts["choice"]
    kept = boundaries.answers_of("baseline with choice", 0) / "predictions.xquad.zh.json"
    said = predict(chooser, boundaries.questions_of("xquad", "zh"))
    assert said == json.loads(kept.read_text())
    without = predict(boundaries.reader_of("baseline", 0), boundaries.questions_of("xquad", "zh"))
    assert said != without

    (folder / "metrics.json").unlink()
    (folder / "nbest.tydiqa.fi.json").unlink()
    read_once, asked = boundaries.read_once, []
    with monkeypatch.context() as patch:
        patch.setattr(boundaries, "read_once", lambda *given: asked.append(1) or read_once(*given))
        go("read", "--seeds", "0,1")
        assert asked == [1] # what was lacking
        (folder / "metrics.json").unlink()
        given = json.loads((folder / "given.json").read_text())
        write_json(folder / "given.json", given | dict(choice="another"))
        assert "was read with another reader or choice" in no("read", "--seeds", "0,1")
        write_json(folder / "given.json", given)
        go("read", "--seeds", "0,1")
        assert asked == [1]

    # what was read is kept without readers, and is not done again on another machine
    nbest = {seed: boundaries.answers_of("baseline", seed) for seed in boundaries.SEEDS}
    nbest = {seed: {file.name: json.loads(file.read_text()) for file in of.glob("nbest.*.json")}
             for seed, of in nbest.items()}
    go("keep")
    shutil.rmtree(own)
    monkeypatch.setenv("S2DM_RUNS", str(runs))
    runpy.run_path(str(ROOT / "workflow/records.py"))["restore"](out / "boundaries.tar.xz")
    assert not [*own.glob("*/finetune")] and len([*own.glob("*.safetensors")]) == 3
    with monkeypatch.context() as patch:
        for name in ("finetune", "Trees", "read_once"): patch.setattr(boundaries, name, None)
        go("choose")
        go("read", "--seeds", "0,1")

    # tables: means of what the answers say
    write_json(unfinished, {})
    go("tables")
    single = pd.read_csv(out / "choice_languages.csv")
    assert len(single) == len(boundaries.TESTS) * 2 * 11 and "p" not in single
    for file, pairs in (("", boundaries.PAIRS), ("_controls", boundaries.CONTROLLED)):
        table = pd.read_csv(out / f"choice{file}.csv")
        assert len(table) == 3 * 2 * len(pairs) and (table["seeds"] == 2).all()
        for _, row in table.iterrows():
            for column, name in (("mean", row["system"]), ("mean_other", row["other"])):
                folders = [boundaries.answers_of(name, seed) for seed in range(2)]
                if row["measure"] == boundaries.EM:
                    means = [targets_right(each, row["dataset"]) for each in folders]
                elif row["dataset"] == "xquad":
                    means = [np.mean([share_broken(each, language) for language in ("de", "zh")])
                             for each in folders]
                else: continue
                assert row[column] == pytest.approx(np.mean(means), abs=1e-3)
    bounds = pd.read_csv(out / "choice_bounds.csv").set_index(["dataset", "language"])
    assert [*bounds.index] == [boundaries.DEV, *boundaries.TESTS]
    weight, penalty = bounds["length_weight"].iloc[0], bounds["tree_penalty"].iloc[0]
    assert weight in boundaries.LENGTHS and penalty in boundaries.PENALTIES
    has_trees = [key for key in bounds.index if key[0] == "xquad"]
    assert [*bounds.index[bounds["trees"].notna()]] == has_trees

    worth = {
        "plain": lambda row, span: span[2],
        "oracle": lambda row, span: row["context"][span[0]:span[1]] in row["answers"]["text"],
        "length": lambda row, span: span[2] - weight * math.log(span[1] - span[0]),
        "trees": lambda row, span: span[2] - penalty * crosses(row["context"], span[:2])}
    for column, of in worth.items():
        for key in has_trees if column == "trees" else bounds.index:
            means = [picked(boundaries, nbest[seed], *key, of) for seed in range(2)]
            assert bounds.loc[key, column] == pytest.approx(np.mean(means), abs=1e-3)
    assert (bounds["oracle"] > bounds["plain"]).all()

    # the recipe's readers, here the baseline's, as soon as there is a recipe
    assert not (out / "choice_recipe.csv").exists()
    monkeypatch.setattr(boundaries.recipe, "SEEDS", range(2))
    boundaries.recipe.JOINED_FILE.parent.mkdir(parents=True)
    boundaries.recipe.JOINED_FILE.write_text("arm,kept\nno layer frozen,True\n")
    assert "2 of 10 have not been read with" in no("tables")
    for seed in range(2):
        reader = boundaries.reader_of("baseline", seed)
        place = boundaries.recipe.reader_of("no layer frozen", seed)
        reader.save_pretrained(place)
        write_json(place.with_suffix(".json"), {})
    go("read", "--arms", "recipe")
    go("tables")
    table = pd.read_csv(out / "choice_recipe.csv")
    pairs = pd.read_csv(out / "choice.csv").query("system == 'baseline with choice'")
    assert table["system"].tolist() == ["recipe with choice"] * 6
    for column in ("mean", "mean_other", "difference"):
        assert table[column].tolist() == pytest.approx(pairs[column].tolist())


@pytest.mark.parametrize("command, says", [
    ("read --arms baseline --seeds 0,1", "3 of 3 choices are not there yet (choose), such as"),
    ("give --reader a --to b", "1 of 1 choices are not there yet (choose), such as"),
    ("tables", "20 of 20 have not been read with, such as")])
def test_no_score_of_boundaries_is_shown_before_all_are_there(
        command, says, boundaries, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", *command.split(), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped: boundaries["main"]()
    assert str(stopped.value).startswith(says)
    assert not [*(tmp_path / "runs").rglob("*.json")]


def test_what_is_gained_far_from_english(boundaries):
    "Languages whose distance is known, without English; two of them tell nothing."
    far = boundaries["far_from_english"]()
    assert far["is"] > far["de"] > 0 and "en" not in far
    about = dict(measure=boundaries["EM"], system="a", other="b")
    rows = [about | dict(dataset="xquad", language=language, difference=far[language] ** 2)
            for language in ("de", "ar", "th", "hi")]
    rows += [about | dict(dataset="xquad", language=language, difference=-100.)
             for language in ("en", "vi")]
    rows += [about | dict(dataset="tydiqa", language=language, difference=0.)
             for language in ("ar", "fi")]
    found = boundaries["by_distance"](pd.DataFrame(rows))
    assert found["dataset"].tolist() == ["xquad"] and found["languages"].tolist() == [4]
    assert found["correlation"].tolist() == pytest.approx([100])
    assert found["low"].tolist() == pytest.approx([100]) # nothing varies around the order


@pytest.mark.parametrize("command, unknown", [
    ("train --arms baseline,fold5", "'fold5' is no arm; choose from fold0, fold1,"),
    ("read --arms fold0", "'fold0' is no arm; choose from baseline, S2DM_SP, phrases, no articles"),
    ("give --reader a", "give needs --reader and --to"),
    ("test", "invalid choice: 'test'")])
def test_an_arm_of_boundaries_that_is_not_known(command, unknown, boundaries, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script", *command.split()])
    with pytest.raises(SystemExit): boundaries["main"]()
    assert unknown in capsys.readouterr().err
