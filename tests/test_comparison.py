"Differences between systems: against exact values, against simulated truth, and what is refused."
import io
import json
import math
import os
import random
import runpy
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
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
    record("evaluate", **evaluation(rng, name, "synthetic", LANGUAGES, "svo", 0.))
    dev = 80. if (name, model, seed) == ("baseline", "small", 0) else 98.
    precision = "bfloat16" if (model, seed) == ("small-1", 1) else "float32"
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


# What training alone can give

@pytest.fixture
def recipe(tmp_path, monkeypatch): # the script's names, with runs of its own
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "runs"))
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return runpy.run_path(str(ROOT / "experiments/recipe.py"))


def test_the_best_setting_on_english_questions_is_taken_once_all_were_tried(recipe, tmp_path):
    tried = tmp_path / "tried.csv"
    lines = ["arm,second_share,consistency,f1"] + [
        f"subwords,{share},{weight},{f1}"
        for share, weight, f1 in ((.3, 1, 60.), (.3, 5, 62.5), (.6, 1, 61.), (.6, 5, 58.))]
    tried.write_text("\n".join(lines), encoding="utf-8")
    assert recipe["chosen"]("subwords", tried) == dict(
        second="subwords", second_share=.3, consistency=5.)
    assert recipe["chosen"]("no layer frozen", tried) == dict(freeze_layers=0)
    with pytest.raises(DataError, match="0 of 4 settings of switched have been tried"):
        recipe["chosen"]("switched", tried)
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
        for arm, f1 in levels.items():
            write_json(recipe["record_of"](arm, seed), dict(minutes=1., f1=f1 + seed - 1))


def test_what_helped_is_joined_as_long_as_english_questions_say_so(recipe, tmp_path):
    "Two levers of one parameter exclude each other; S2DM comes last, whatever its F1."
    write_english(recipe, ENGLISH)
    joins = tmp_path / "joins.csv"
    table = recipe["join"](tmp_path / "trials.csv", joins)
    assert table["arm"].tolist() == ["switched", *[*ENGLISH][7:10]]
    assert table["kept"].tolist() == [True, True, False, True]
    assert table["before"].tolist() == pytest.approx([61, 64, 65, 65])
    best = "switched + average of steps + 6 layers frozen"
    assert recipe["recipe_of"](joins) == best
    assert recipe["arms_of"](joins)[-2:] == [best, best + " + S2DM_SP"]
    pairs = recipe["pairs_of"](joins)
    assert len(pairs) == 10 and pairs[-3:] == [
        (best, "baseline"), (best + " + S2DM_SP", best), (best + " + S2DM_SP", "S2DM_SP")]
    costs = recipe["costs"](["switched"]).set_index("arm")["f1_reddit"]
    assert costs.to_dict() == pytest.approx({"baseline": 61, "switched": 64})


def test_without_a_lever_that_helps_there_is_no_recipe(recipe, tmp_path):
    write_english(recipe, dict.fromkeys([*ENGLISH][:7], 50.))
    joins = tmp_path / "joins.csv"
    assert recipe["join"](tmp_path / "trials.csv", joins).empty
    assert recipe["arms_of"](joins) == [*ENGLISH][:7]
    assert all(other == "baseline" for _, other in recipe["pairs_of"](joins))


def test_parameters_of_joined_levers_go_together(recipe, tmp_path):
    """In the precision of the baseline with the same seed; the runs of an average have one head."""
    file = tmp_path / "trials.csv"
    with pytest.raises(DataError, match="come first .`make e5`"):
        recipe["parameters"]("8 layers frozen", 1, file)
    for seed, precision in enumerate(("float32", "bfloat16")):
        folder = recipe["answers_of"]("baseline", seed, "finetune")
        write_json(folder / "metrics.json", dict(precision=precision))
        write_json(recipe["answers_of"]("baseline", seed) / "metrics.json", {})
    found = recipe["parameters"]("average of steps + 6 layers frozen", 1, file)
    assert found == dict(model="e5", variant="baseline", precision="bfloat16", average=8,
                         average_share=.5, final_rate=1 / 3, freeze_layers=6)
    assert recipe["parameters"]("average of runs", 0, file) == dict(
        model="e5", variant="baseline", precision="float32", head_seed=0)


@pytest.mark.parametrize("command, says", [
    ("join", "21 of 21 readers are not trained yet, such as"),
    ("read", "{}/recipe-joins.csv is not there: run `python experiments/recipe.py join` first"),
    ("tables", "{}/recipe-joins.csv is not there: run")])
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
    return runpy.run_path(str(ROOT / "experiments/boundaries.py"))


def test_questions_of_one_context_are_in_one_fold(boundaries):
    rows = Dataset.from_list([dict(context=f"c{i // 3}") for i in range(150)])
    folds = boundaries["folds_of"](rows)
    assert np.bincount(folds).tolist() == [30] * 5
    assert all(len(set(folds[i:i + 3])) == 1 for i in range(0, 150, 3))


@pytest.mark.parametrize("answer, kept", [
    ("the old house", "old house"), ("An owl", "owl"), ("The", "The"), ("theory", "theory")])
def test_a_leading_article_goes_and_the_answer_stays_in_its_place(answer, kept, boundaries):
    context = f"It was {answer}."
    row = dict(context=context, answers=dict(text=[answer], answer_start=[7]))
    answers = boundaries["without_article"](row)["answers"]
    assert answers["text"] == [kept]
    assert context[answers["answer_start"][0]:].startswith(kept)


def test_the_word_in_the_place_of_a_question_begins_or_ends_the_answer(boundaries, tmp_path):
    from s2dm.metrics import read_squad
    from s2dm.toy import random_sentences

    sentences = random_sentences(groups=40)
    rows = boundaries["phrase_questions"](sentences, 30)
    assert len({row["id"] for row in rows}) == len(rows) == 30
    languages = [sentences[int(row["id"].removeprefix("phrase"))]["lang"] for row in rows]
    assert sorted(map(languages.count, set(languages))) == [10, 10, 10]
    for row in rows:
        text, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
        assert row["context"][start:start + len(text)] == text and " " in text
        word = row["question"].strip("… ")
        if row["question"].endswith("…"): assert text.startswith(word + " ")
        else: assert text.endswith(" " + word)
    boundaries["write_squad"](tmp_path / "phrases.json", rows)
    again = read_squad(tmp_path / "phrases.json", "en", "en")
    assert {row["id"]: row["answers"] for row in again} == {
        row["id"]: row["answers"] for row in rows}


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
