"""Tables, figures and page from records: numbers by hand, missing cells, one seed and several,
malformed files, the same bytes twice.
"""
import base64
import json
import os
import re
import signal
import subprocess
import sys
from html import unescape
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import KILLED_AT_A_FILE, ROOT
from fake_runs import LANGUAGES, MAIN, SUBSETS, analysis, evaluation, fake_runs, leave
from scipy import stats

from s2dm.core import DataError, MissingData, ParameterError
from s2dm.figures import all_figures, boundary_example, draw_tree, figure1, figure5, figure6
from s2dm.report import SENTENCES, findings, key_sentences, report, unlike
from s2dm.results import (
    Measure, ReportConfig, against_baseline, collect, compare, control_of, holm, interval,
    main_effects, measures, paired, shown_as, summarise)
from s2dm.synthetic import SyntheticConfig
from s2dm.tables import (
    Cell,
    all_tables,
    constituents_table,
    detail_table,
    fixed_tables,
    graded,
    reading_table,
    separation_table,
    versus_table,
    violations_table,
)

PIXEL = base64.b64decode(  # a picture of one point
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return fake_runs(tmp_path_factory.mktemp("several"), MAIN, seeds=3)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return fake_runs(
        tmp_path_factory.mktemp("single"), ("baseline", "s2dm_sp", "s2dm_sp-untrained"), seeds=1)


def write_pixel(figure, folder):
    "One small picture for each figure."
    png = folder / f"{figure.name}.png"
    png.parent.mkdir(parents=True, exist_ok=True)
    png.write_bytes(PIXEL)
    plt.close(figure.fig)
    return png


@pytest.fixture
def quick(monkeypatch):
    """Pages whose pictures are one small picture: drawing them takes longest, and is tested
    elsewhere."""
    monkeypatch.setattr("s2dm.report.write_figure", write_pixel)
    monkeypatch.setattr("s2dm.report.screen_picture", lambda figure, dpi: PIXEL)


@pytest.fixture(scope="module")
def several(runs): return collect(("small",), runs)


def em(root, system, seed, languages=LANGUAGES):
    "Zero-shot EM, from the file."
    rows = json.loads(
        (root / f"evaluate/small/{system}/seed{seed}/metrics.json").read_text())["results"]
    return np.mean([r["em"] for r in rows if r["context"] != "svo" and r["context"] in languages])


def test_reading_by_language_has_every_score_averaged_over_seeds(runs, several):
    table = detail_table(several, "languages").data.set_index(["system", "metric", "lang"])["score"]
    systems = sorted(p.name for p in (runs / "evaluate/small").iterdir())
    assert len(table) == len(systems) * 2 * len(LANGUAGES)
    for system in systems:
        scores = [
            json.loads(p.read_text())["results"]
            for p in (runs / "evaluate/small" / system).glob("*/metrics.json")]
        for metric in ("em", "f1"):
            for i, lang in enumerate(r["context"] for r in scores[0]):
                assert (table[shown_as(system, several.edition), metric.upper(), lang]
                        == pytest.approx(np.mean([s[i][metric] for s in scores])))


# --- statistics

def test_intervals_and_tests_are_scipys():
    rng = np.random.default_rng(0)
    for n in (2, 3, 10):
        a, b = rng.normal(50, 2, n), rng.normal(49, 2, n)
        found, (low, high) = interval(a), stats.t.interval(.95, n - 1, a.mean(), stats.sem(a))
        assert np.allclose([found["mean"], found["low"], found["high"]], [a.mean(), low, high])
        seeds = rng.permutation(n)  # pairs belong together by seed, in whatever order they come
        pair, oracle = paired(pd.Series(a), pd.Series(b[seeds], seeds)), stats.ttest_rel(a, b)
        ci = oracle.confidence_interval(.95)
        assert np.allclose(
            [pair["difference"], pair["p"], pair["low"], pair["high"]],
            [(a - b).mean(), oracle.pvalue, ci.low, ci.high])


def test_pairs_are_seeds_of_both():
    found = paired(pd.Series([50., 60, 70], [0, 1, 5]), pd.Series([40., 58, 1], [1, 0, 7]))
    assert found["pairs"] == 2 and found["difference"] == (60 - 40 + 50 - 58) / 2
    none = paired(pd.Series([1.], [0]), pd.Series([1.], [1]))
    assert none["pairs"] == 0 and np.isnan([none["difference"], none["p"]]).all()


def test_holm_against_the_definition():
    p = np.array([.04, .001, .02, .5])
    ranked, expected, worst = np.sort(p), {}, 0
    for i, x in enumerate(ranked):
        worst = max(worst, min(1, x * (len(p) - i)))
        expected[x] = worst
    assert np.allclose(holm(pd.Series(p)), [expected[x] for x in p])


def test_measures_by_hand(runs, several):
    numbers = measures(several).set_index(["measure", "data", "of", "system", "seed"])["value"]
    assert np.isclose(
        numbers[Measure.EM_ZERO_SHOT, "synthetic", "", "s2dm_sp", 1], em(runs, "s2dm_sp", 1))
    assert numbers[Measure.EM_SOURCE, "synthetic", "", "baseline", 0] == 94
    tables = json.loads((runs / "analyse/small/s2dm_sp/seed2/metrics.json").read_text())["tables"]
    y = np.mean([r["pearson"] for r in tables["sts"] if r["kind"] == "y"])
    answers = np.mean(
        [r["spans_constituent"]
         for r in tables["constituents"]
         if r["of"] == "predicted" and r["lang"] != "svo"])
    assert np.isclose(numbers[Measure.STS, "synthetic", "y", "s2dm_sp", 2], y)
    assert np.isclose(
        numbers[Measure.CONSTITUENTS, "synthetic", "", "s2dm_sp", 2], answers)


def test_a_run_that_lacks_a_language_has_no_average(tmp_path):
    fake_runs(tmp_path, ("baseline",), seeds=2)
    rng = np.random.default_rng(0)
    leave(
        tmp_path, "evaluate", "small", "baseline", 1,
        evaluation(rng, "baseline", "synthetic", LANGUAGES[:4], "svo", 0), datasets=["synthetic"])
    numbers = measures(collect(("small",), tmp_path))
    assert numbers[numbers["measure"] == Measure.EM_ZERO_SHOT]["seed"].tolist() == [0]
    assert 1 in {*numbers[numbers["measure"] == Measure.EM_SOURCE]["seed"]}


def test_controls():
    there = {
        "baseline", "s2dm_sp", "s2dm_sp-untrained", "s2dm_sp-released-untrained",
        "s2dm_pos-untrained"}
    found = {
        s: control_of(s, there)
        for s in ("s2dm_pos", "s2dm_single_sp", "s2dm_pos-released", "s2dm_sp-released-semantic",
                  "s2dm_sp-trainable", "s2dm_pos-untrained")}
    assert found == {
        "s2dm_pos": "s2dm_pos-untrained",
        "s2dm_single_sp": "s2dm_sp-untrained",
        "s2dm_pos-released": "s2dm_sp-released-untrained",
        "s2dm_sp-released-semantic": None,
        "s2dm_sp-trainable": "s2dm_sp-untrained",
        "s2dm_pos-untrained": None}
    assert control_of("s2dm_sp", {"baseline"}) is None


def test_main_effects_are_those_of_a_linear_model():
    rng, rows = np.random.default_rng(1), []
    for s in SUBSETS[:-1]:
        for k in range(4):
            rows.append(dict(
                model="small", system=s, seed=k, data="d", measure="m", of="",
                value=float(rng.normal(50))))
    table = pd.DataFrame(rows)
    design = np.array(
        [[1] + [loss in s for loss in ("crl", "sdl", "wpl")] for s in table["system"]], float)
    beta = np.linalg.lstsq(design, table["value"], rcond=None)[0]
    assert np.allclose(
        main_effects(table).set_index("loss").loc[["CRL", "SDL", "WPL"], "difference"], beta[1:])
    # no effect from an incomplete design
    assert {*main_effects(table[table["system"] != "vgvae_crl"])["loss"]} == set()


# --- reading records

@pytest.mark.parametrize("stage, file, content, message", [
    ("evaluate", "metrics.json", "{", "cut off"),
    ("evaluate", "metrics.json", "[]", "found a list"),
    ("evaluate", "metrics.json", "{}", "results: found a NoneType"),
    ("evaluate", "metrics.json", '{"results": [{"dataset": "synthetic"}]}',
     "row 0: context, question, em, f1 not there"),
    ("evaluate", "metrics.json",
     '{"results": [{"dataset": "a", "context": "b", "question": "c", "em": "4", "f1": 1}]}',
     "em is '4'"),
    ("evaluate", "metrics.json",
     '{"results": [{"dataset": "a", "context": null, "question": "c", "em": 4, "f1": 1}]}',
     "context is None"),
    ("evaluate", "metrics.json", '{"results": [], "missing": "no"}', "missing is a str"),
    ("evaluate", "metrics.json", '{"results": [{"em": NaN}]}', "NaN is no number"),
    ("analyse", "metrics.json", '{"tables": []}', "no tables"),
    ("analyse", "metrics.json", '{"tables": {"sts": {}}}', "sts: found a dict"),
    ("analyse", "metrics.json", '{"tables": {"sts": [3]}}', "sts, row 0: found a int"),
    ("analyse", "metrics.json",
     '{"tables": {"gradients": [{"edition": "paper", "loss": "RL", "module": "y", "norm": true}]}}',
     "norm is True"),
    ("pretrain", "config.json", '{"parameters": 3}', "no parameters"),
    ("pretrain", "config.json", "\xff", "config.json"),
    ("finetune", "metrics.json", "[" * 100_000, "metrics.json")])
def test_malformed_records_name_the_file(tmp_path, stage, file, content, message):
    folder = leave(tmp_path, stage, "small", "baseline", 0, {})
    (folder / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError) as error: collect(("small",), tmp_path)
    assert str(folder / file) in str(error.value) and message in str(error.value)


def test_the_edition_of_the_tables_goes_without_saying(tmp_path):
    for system in (
            "baseline", "s2dm_sp", "s2dm_sp-refined", "s2dm_sp-refined-untrained",
            "vgvae_crl-refined"):
        leave(tmp_path, "finetune", "small", system, 0, {})
    assert ({*collect(("small",), tmp_path, "refined").runs["system"]}
            == {"baseline", "s2dm_sp-paper", "s2dm_sp", "s2dm_sp-untrained", "vgvae_crl"})
    assert {*collect(("small",), tmp_path, "released").runs["system"]} == {
        "baseline", "s2dm_sp-paper", "s2dm_sp-refined", "s2dm_sp-refined-untrained",
        "vgvae_crl-refined"}


def test_profiles_and_report_agree():
    import yaml
    for name in ("small", "e5", "real", "paper"):
        said = yaml.safe_load((ROOT / f"experiments/{name}.yaml").read_text(encoding="utf-8"))
        assert said["edition"] == ReportConfig(profile=name).edition
        assert tuple(said["models"]) == ReportConfig(profile=name).models
        assert said["about"].endswith(".")


def test_a_new_profile_is_a_file_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "settings.ini").write_text("lib_name = s2dm")
    mine = "models: [mine]\nedition: refined\nabout: My own.\n"
    (tmp_path / "experiments/mine.yaml").write_text(mine)
    monkeypatch.chdir(tmp_path)
    assert ReportConfig(profile="mine").models == ("mine",)
    with pytest.raises(ParameterError, match="profile='small' is not possible; choose one of mine"):
        ReportConfig()


def test_a_record_without_config_is_malformed(tmp_path):
    folder = leave(tmp_path, "evaluate", "small", "baseline", 0, dict(results=[]))
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match="config.json"): collect(("small",), tmp_path)


def test_other_folders_are_left_alone(tmp_path):
    fake_runs(tmp_path, ("baseline",), seeds=1)
    (tmp_path / "evaluate/small/baseline/seed0.old").mkdir()
    (tmp_path / "evaluate/small/baseline/seed7").mkdir()  # nothing in it yet
    (tmp_path / "evaluate/small/notes.txt").write_text("x")
    assert len(collect(("small",), tmp_path).runs) == 4
    assert not len(collect(("mbert",), tmp_path).runs)


# --- tables

def test_scores_and_tests_of_a_table_by_hand(runs, several):
    found = graded(several, measures(several)).set_index(["system", "dataset", "lang", "metric"])
    def mean_em(system, seed):
        file = runs / f"evaluate/small/{system}/seed{seed}/metrics.json"
        return np.mean([row["em"] for row in json.loads(file.read_text())["results"]])
    every = {s: [mean_em(s, seed) for seed in range(3)] for s in MAIN}
    row = found.loc[("s2dm_pos", "synthetic", "avg", "em")]
    oracle = stats.ttest_rel(every["s2dm_pos"], every["baseline"])
    assert np.isclose(row["ours"], np.mean(every["s2dm_pos"]))
    assert np.isclose(row["p"], oracle.pvalue)
    assert (row["runs"], row["pairs"]) == (3, 3)
    assert np.isclose(
        row["high"] - row["low"], 2 * stats.t.ppf(.975, 2) * stats.sem(every["s2dm_pos"]))


def test_the_papers_numbers_are_all_there(several):
    numbers = measures(several)
    for name in ("table2", "table3", "table4", "table5"):
        paper = pd.read_csv(ROOT / f"data/paper/{name}.csv", keep_default_na=False)
        table = reading_table(name, several, graded(several, numbers))
        said = table.data.dropna(subset="paper")
        assert len(said) == 2 * len(paper)
        assert np.isclose(said["paper"].sum(), paper[["em", "f1"]].to_numpy().sum())
        printed = " ".join(str(x) for _, cells in table.blocks for x in cells.to_numpy().ravel())
        assert all(f"{x:.1f}" in printed for x in paper["em"])
    table = constituents_table(several)
    assert table.data["paper"].notna().sum() == 7
    assert "89.08" in str([*map(str, table.blocks[0][1]["XQuAD", "paper"])])


def test_no_cell_is_empty_without_a_reason(several):
    for name in ("table2", "table3", "table4", "table5"):
        table = reading_table(name, several, graded(several, measures(several)))
        lost = table.data[table.data["ours"].isna()]
        assert len(lost)
        assert (lost["note"] != "").all()
        assert table.notes
        assert (table.data.dropna(subset="ours")["note"] == "").all()
        assert all(
            any(str(cell.text) in note for note in table.notes)
            for _, cells in table.blocks
            for cell in cells.to_numpy().ravel()
            if isinstance(cell, Cell) and not re.search(r"\d", cell.text) and cell.text != "–")


def test_reasons(tmp_path):
    leave(
        tmp_path, "evaluate", "mbert", "baseline", 0,
        dict(
            results=[dict(dataset="xquad", context="en", question="en", em=70, f1=80)],
            missing=["mlqa.de: not on disk Tried: /a/b"]),
        datasets=["xquad", "mlqa"])
    leave(tmp_path, "evaluate", "mbert", "s2dm_pos", 0, None, datasets=["xquad", "mlqa"])
    results = collect(("mbert",), tmp_path)
    data = reading_table("table3", results, graded(results, measures(results))).data.query(
        "metric == 'em'").set_index(["model", "system", "dataset", "lang"])
    starts = {
        ("mbert", "baseline", "mlqa", "de"): "MLQA could not be had",
        ("mbert", "s2dm_pos", "xquad", "en"): "The run of 05_evaluate for mBERT S2DM_POS has no "
            "metrics.json",
        ("mbert", "s2dm_sp", "xquad", "en"): "There is no run",
        ("xlm100", "baseline", "xquad", "en"): "These runs are of mBERT",
        ("mbert", "lakm", "mlqa", "de"): "LAKM is"}
    for place, text in starts.items():
        assert data.loc[place, "note"].startswith(text), (place, data.loc[place, "note"])
    assert data.loc[("mbert", "baseline", "xquad", "en"), "ours"] == 70
    assert np.isnan(data.loc[("mbert", "baseline", "xquad", "en"), "low"])
    tydi = reading_table("table4", results, graded(results, measures(results))).data
    assert tydi[(tydi["model"] == "mbert") & (tydi["system"] == "baseline")]["note"].str.startswith(
        "mBERT was evaluated on MLQA, XQuAD").all()


def test_paper_profile_stands_beside_the_paper(tmp_path):
    fake_runs(
        tmp_path, ("baseline", "s2dm_sp"), 2, "mbert", "mlqa",
        ("en", "ar", "de", "es", "hi", "vi", "zh"), "en")
    fake_runs(
        tmp_path, ("baseline",), 2, "xlmr", "mlqa", ("en", "ar", "de", "es", "hi", "vi", "zh"),
        "en")
    results = collect(("mbert", "xlm100", "xlmr"), tmp_path)
    heading, cells = reading_table("table3", results, graded(results, measures(results))).blocks[1]
    cells.columns = [name for _, name in cells.columns]
    de = cells.set_index(["encoder", "system", "whose"])["de"].map(str)
    assert heading == "MLQA"
    assert de["mBERT", "S2DM_SP", "paper"] == "45.3/59.9"
    assert re.match(r"\d+\.\d\*?/\d+\.\d\*? ±", de["mBERT", "S2DM_SP", "ours, 2 seeds"])
    assert re.match(r"\d", de["XLM-R", "baseline", "ours, 2 seeds"])
    assert ("XLM-R", "baseline", "paper") not in de.index
    assert de["XLM-100", "baseline", "ours"] == "not run"


def test_what_holds_nothing_of_ours_is_one_sentence(several):
    table = reading_table("table2", several, graded(several, measures(several)))
    assert {*table.blocks[0].cells["", "whose"]} == {"paper"}
    assert table.notes == [
        "Of XLM-100 and mBERT only the paper's numbers stand here: these runs are of embedded. "
        "Profile paper runs XLM-100 and mBERT."]
    first = constituents_table(several).blocks[0].cells
    assert "ours" not in first.columns.get_level_values(1)


def test_one_seed_has_neither_interval_nor_test(single):
    results = collect(("small",), single)
    numbers = measures(results)
    data = versus_table(numbers, (Measure.EM_ZERO_SHOT,), "systems", "", "").data
    data = data.set_index("system")
    assert data[["low", "high", "baseline_p", "control_p", "baseline_p_holm"]].isna().all(axis=None)
    assert data.loc["s2dm_sp", "control_pairs"] == 1
    assert np.isclose(
        data.loc["s2dm_sp", "baseline_difference"],
        em(single, "s2dm_sp", 0) - em(single, "baseline", 0))
    block = reading_table("table2", results, graded(results, numbers)).blocks[1][1]
    assert not any("±" in str(x) for x in block.to_numpy().ravel())
    answers = findings(results, numbers)[0].answers
    assert answers
    assert all("one seed, no test possible" in a for a in answers)
    assert "one seed, no test possible" in told(numbers)


def test_separation_by_hand(runs, several):
    data = separation_table(measures(several)).data.set_index(["measure", "data", "system"])
    row = data.loc[(Measure.STS, "synthetic", "s2dm_sp")]
    tables = [
        json.loads(
            (runs / f"analyse/small/s2dm_sp/seed{k}/metrics.json").read_text())["tables"]["sts"]
        for k in range(3)]
    y, z = (
        [np.mean([r["pearson"] for r in t if r["kind"] == kind]) for t in tables] for kind in "yz")
    assert np.isclose(row["difference"], np.subtract(y, z).mean())
    assert np.isclose(row["p"], stats.ttest_rel(y, z).pvalue)
    assert row["runs"] == 3


def told(numbers): # the first sentences of a report
    return " ".join(key_sentences(collect(("small",), Path("/nowhere")), numbers, "small", {}))


def test_sentences_say_what_the_numbers_say():
    def table(gain):
        return pd.DataFrame(
            [dict(
                 model="small", system=s, seed=k, data="synthetic",
                 measure=Measure.EM_ZERO_SHOT, of="",
                 value=40 + k + (gain + k / 10) * (s == "s2dm_sp"))
             for s in ("baseline", "s2dm_sp")
             for k in range(5)])
    assert ("it rises (+2.2 points, 95 % interval +2.0 to +2.4, p <0.001, 5 paired seeds)"
            in told(table(2)))
    assert "it falls" in told(table(-2))
    assert "the untrained control was not run" in told(table(2))
    noisy = table(0).assign(
        value=lambda t: t["value"] + np.where(t["system"] == "s2dm_sp", [3., -3, 2, -2, 0] * 2, 0))
    assert "the difference may be chance" in told(noisy)


def test_summarise_and_compare_keep_models_apart(several):
    numbers = measures(several)
    both = pd.concat([numbers, numbers.assign(model="other", value=numbers["value"] + 100)])
    found = compare(both, against_baseline).set_index(
        ["model", "measure", "data", "of", "system"])["difference"]
    assert np.allclose(found["small"], found["other"])
    assert len(summarise(both)) == 2 * len(summarise(numbers))


def test_many_systems_ask_for_a_smaller_p():
    rng = np.random.default_rng(0)
    gains = dict(baseline=0, s2dm_sp=1.5, s2dm_pos=.3, vgvae=.1)
    rows = [
        dict(
            model="small", system=s, seed=k, data="synthetic", measure=m, of="",
            value=40 + gain + rng.normal())
        for m in (Measure.EM_ZERO_SHOT, Measure.F1_ZERO_SHOT)
        for s, gain in gains.items()
        for k in range(6)]
    # each measure is a family of its own
    for measure, found in compare(pd.DataFrame(rows), against_baseline).groupby("measure"):
        p = sorted(found["p"])
        assert np.allclose(
            sorted(found["p_holm"]),
            np.minimum(np.maximum.accumulate([3 * p[0], 2 * p[1], p[2]]), 1)), measure
    # p = 0.039
    noisy = [
        dict(
            model="small", system=s, seed=k, data="synthetic", measure=Measure.EM_ZERO_SHOT, of="",
            value=40 + gain * (s != "baseline"))
        for s in ("baseline", "s2dm_sp", "s2dm_pos", "vgvae")
        for k, gain in enumerate((1.5, 2, .3, 1.2))]
    alone, among_others = told(pd.DataFrame(noisy[:8])), told(pd.DataFrame(noisy))
    assert "it rises" in alone
    assert "corrected" not in alone
    assert "the difference may be chance" in among_others
    assert "p = 0.039, corrected 0.118" in among_others


def test_unlike_settings_are_told(tmp_path):
    for system, epochs in (("baseline", 3), ("s2dm_sp", 2)):
        leave(tmp_path, "finetune", "small", system, 0, {}, epochs=epochs)
    assert (unlike(collect(("small",), tmp_path))
            == ["Not all runs of stage finetune (embedded encoder) have the same epochs (2 or 3)."])


def test_violations_have_both_counts(runs, several):
    rows = [
        json.loads((runs / f"analyse/small/s2dm_sp/seed{k}/metrics.json").read_text())["tables"][
            "violations"
        ][0]
        for k in range(3)
    ]
    table = violations_table(several)
    row = table.data.set_index(["system", "lang"]).loc[("s2dm_sp", rows[0]["lang"])]
    assert (
        np.isclose(row["violations"], np.mean([r["violations"] for r in rows])) and row["runs"] == 3
    )
    for name in ("questions", "violating", "violating_near"):
        assert row[name] == sum(r[name] for r in rows)
    assert (
        not table.notes
        and f"{int(row['violating'])} / 1500"
        in table.blocks[0][1]["S2DM_SP", "answers / questions"].tolist()
    )


@pytest.mark.slow
def test_violations_of_older_analyses_are_left_out(tmp_path):
    "They were another quantity: neither shown nor averaged, and one sentence says so."
    fake_runs(tmp_path, ("baseline", "s2dm_sp"), seeds=2)

    def age(system, seed): # a record as older analyses left it
        file = tmp_path / f"analyse/small/{system}/seed{seed}/metrics.json"
        found = json.loads(file.read_text())
        for row in found["tables"]["violations"]:
            for name in ("violating", "violating_near"): del row[name]
        file.write_text(json.dumps(found))

    age("baseline", 0)
    results = collect(("small",), tmp_path)
    table, numbers = violations_table(results), measures(results)
    assert (
        table.data.set_index("system").loc["baseline", "runs"].eq(1).all()
        and table.data.set_index("system").loc["s2dm_sp", "runs"].eq(2).all()
    )
    assert numbers[(numbers["measure"] == Measure.VIOLATIONS) & (numbers["system"] == "baseline")][
        "seed"
    ].tolist() == [1]
    assert len(table.notes) == 1 and table.notes[0].startswith(
        "Violations of older analyses are left out"
    )
    for system, seed in (("baseline", 1), ("s2dm_sp", 0), ("s2dm_sp", 1)): age(system, seed)
    results = collect(("small",), tmp_path)
    table, numbers = violations_table(results), measures(results)
    assert not len(table.data) and not table.blocks and len(table.notes) == 1
    assert Measure.VIOLATIONS not in {*numbers["measure"]}
    assert Measure.BOUNDARY_ERRORS in {*numbers["measure"]}
    assert table.notes[0] in all_tables(results, numbers)["boundaries"].notes
    assert not any(
        "violations" in sentence
        for finding in findings(results, numbers)
        for sentence in finding.answers
    )


def test_counts_that_are_no_numbers_are_refused(tmp_path):
    folder = (
        fake_runs(tmp_path, ("baseline",), seeds=1) / "analyse/small/baseline/seed0/metrics.json"
    )
    found = json.loads(folder.read_text())
    found["tables"]["violations"][0]["violating"] = "3"
    folder.write_text(json.dumps(found))
    with pytest.raises(DataError, match="violations, row 0: violating is '3'"):
        collect(("small",), tmp_path)


def test_both_ways_of_counting_stand_side_by_side(tmp_path, several):
    fake_runs(tmp_path, ("baseline",), 2, "mbert", "xquad", ("en", "de", "th"), "en")
    results = collect(("mbert",), tmp_path)
    table = detail_table(results, "normalisation").data.set_index(["lang", "counted"])["EM"]
    own = detail_table(results, "languages").data.query("metric == 'EM'").set_index("lang")["score"]
    assert {lang for lang, _ in table.index} == {"en", "de"} # MLQA has no rules for Thai
    for lang in ("en", "de"):
        assert table[lang, "SQuAD's"] == pytest.approx(own[lang])
        assert table[lang, "MLQA's"] == pytest.approx(own[lang] + 1) and table[
            lang, "difference"
        ] == pytest.approx(1)
    for file in tmp_path.glob("evaluate/*/*/*/metrics.json"): # records older than this table
        found = json.loads(file.read_text())
        for row in found["results"]: del row["em_mlqa"], row["f1_mlqa"]
        file.write_text(json.dumps(found))
    for lacks in (
        several,
        collect(("mbert",), tmp_path),
    ):  # generated languages have no rules either
        table = detail_table(lacks, "normalisation")
        assert not table.blocks and table.notes[0].startswith("No record has both ways of counting")


# --- figures

def test_the_example_of_figure_1_crosses_a_boundary():
    config = SyntheticConfig(held_out=60)
    (_, _, answer, none), (lang, tree, gold, _) = boundary_example({}, config)
    assert none is None and lang == "svo_nadj" and gold[1] - gold[0] >= 3
    def leaves(node):
        return [node] if isinstance(node, str) else [w for p in node[1] for w in leaves(p)]
    words = leaves(tree)
    wrong = {
        lang: {f"test-{i:05}-{n}": " ".join(words[gold[0]:gold[1] - 1])
               for i in range(60)
               for n in (0, 1)}}
    shown = boundary_example(wrong, config)[1]
    assert shown[3] == (gold[0], gold[1] - 1) and leaves(shown[1]) == words
    right = {lang: {f"test-{i:05}-{n}": " ".join(words[slice(*gold)]) for i in range(60) for n in (
        0, 1)}}
    assert boundary_example(right, config)[1][3] is None


def test_trees_have_a_node_above_each_phrase():
    fig, ax = plt.subplots()
    ends = draw_tree(ax, ("S", [("NP", ["a", "b"]), ("VP", ["c"])]), 0, 0)
    assert [t.get_text() for t in ax.texts] == ["a", "b", "NP", "c", "VP", "S"]
    assert all(a < b for a, b in ends) and all(x[1] < y[0] for x, y in zip(ends, ends[1:]))
    plt.close(fig)


def test_bars_of_figure_5_reach_from_z_to_y(several):
    figure = figure5(several)
    mean = figure.data.set_index(["test", "system", "kind"])["mean"]
    bars = [p for p in figure.fig.axes[0].patches]
    found = sorted((round(b.get_y(), 6), round(b.get_y() + b.get_height(), 6)) for b in bars)
    assert found == sorted(
        (round(mean[t, s, "z"], 6), round(mean[t, s, "y"], 6))
        for t in {*figure.data["test"]}
        for s in ("s2dm_sp", "s2dm_pos", "s2dm_single_sp", "s2dm_single_pos"))
    plt.close("all")


def test_figure_6_shows_points_of_one_seed(several):
    figure = figure6(several)
    assert figure.data.groupby("panel").size().to_dict() == {p: 12 * len(LANGUAGES) for p in "abc"}
    assert {*figure.data["seed"]} == {0}
    plt.close("all")


def test_figures_are_drawn_without_a_warning(several, recwarn):
    "Each glyph is in the font, and each layout has room."
    figures = all_figures(several, measures(several))
    assert figures["figure3"].fig is None # no ablation was run
    for figure in figures.values():
        if figure.fig: figure.fig.canvas.draw()
    plt.close("all")
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_each_of_18_languages_has_a_look_of_its_own(tmp_path):
    languages = "en ar cs de es fi fr hi id it ja ko pl pt ru th tr zh".split()
    fake_runs(tmp_path, ("baseline", "s2dm_sp", "s2dm_pos"), 1, languages=languages, source="en")
    figure = figure6(collect(("small",), tmp_path))
    rows = [[text.get_text() for text in ax.get_legend().get_texts()]
            for ax in figure.fig.axes if ax.get_legend()]
    assert [language for row in rows for language in row] == languages
    assert max(map(len, rows)) <= 6
    ax = figure.fig.axes[0]
    labelled = [dots for dots in ax.collections if not dots.get_label().startswith("_")]
    assert len({dots.get_paths()[0].vertices.tobytes() for dots in labelled}) == len(labelled)
    assert len({dots.get_facecolor().tobytes() for dots in labelled}) == len(labelled)
    plt.close("all")


def test_labels_of_figure_5_do_not_overprint(tmp_path):
    languages = [f"a_long_name_{i}" for i in range(18)]
    fake_runs(tmp_path, ("s2dm_sp",), 1, languages=languages, source=languages[0])
    figure = figure5(collect(("small",), tmp_path))
    figure.fig.canvas.draw()
    labels = figure.fig.axes[0].get_xticklabels()
    ends = [label.get_window_extent().x1 for label in labels]
    height = labels[0].get_fontsize() * figure.fig.dpi / 72
    assert all(b - a > height for a, b in zip(ends, ends[1:])) # slanted, a line apart
    assert {label.get_rotation() for label in labels} == {25}
    plt.close("all")


def test_figure_1_reads_the_predictions(tmp_path):
    config = SyntheticConfig()
    lang, tree, gold, _ = boundary_example({}, config)[1]
    folder = fake_runs(tmp_path, ("baseline",), 1) / "evaluate/small/baseline/seed0"
    assert figure1(collect(("small",), tmp_path)).notes
    def leaves(node):
        return [node] if isinstance(node, str) else [w for p in node[1] for w in leaves(p)]
    text = " ".join(leaves(tree)[gold[0]:gold[1] - 1])
    (folder / f"predictions.synthetic.{lang}.json").write_text(
        json.dumps({f"test-{i:05}-{n}": text for i in range(400) for n in (0, 1)}))
    assert not figure1(collect(("small",), tmp_path)).notes
    (folder / f"predictions.synthetic.{lang}.json").write_text("{")
    with pytest.raises(DataError, match="predictions.synthetic"):
        figure1(collect(("small",), tmp_path))
    plt.close("all")


# --- the page

def plain(html): return unescape(re.sub(r"<[^>]+>", "", html))


@pytest.mark.parametrize("systems", [MAIN, ("baseline", "s2dm_sp"), ("baseline", *SUBSETS)])
def test_what_was_found_is_at_most_ten_sentences(tmp_path, systems):
    results = collect(("small",), fake_runs(tmp_path, systems, 2))
    sentences = key_sentences(results, measures(results), "small", {})
    assert 2 <= len(sentences) <= SENTENCES == 10
    assert not any("nan" in sentence for sentence in sentences)


def leave_e5(root, seeds):
    "Readers of the experiment with a real encoder, on two of its data sets."
    for n, system in enumerate(("baseline", "s2dm_pos-refined", "s2dm_sp-refined",
                                "s2dm_sp-refined-untrained")):
        for seed in range(seeds):
            rng = np.random.default_rng([seed, n])
            rows = [row for data, languages in (("xquad", ("en", "de", "zh")), ("bipar", ("zh",)))
                    for row in evaluation(rng, system, data, languages, "en", 0)["results"]]
            leave(root, "evaluate", "e5", system, seed, dict(results=rows, missing=[]),
                  datasets=["xquad", "bipar"])
    return root


def fixed_comparisons(folder):
    "What experiments/primary.py and mechanism.py leave, with made-up numbers."
    folder.mkdir()
    pairs = [(system, other) for system in ("S2DM_SP", "S2DM_POS")
             for other in ("baseline", "untrained")]
    rows = [dict(system=system, other=other, seeds=5, seeds_other=5, mean=41., mean_other=40.,
                 difference=1., low=.5, high=1.5, p=.01, p_holm=.04 if n == 0 else .2)
            for n, (system, other) in enumerate(pairs)]
    primary = pd.concat([pd.DataFrame(rows).assign(dataset=data, measure="EM, targets")
                         for data in ("xquad", "bipar")])
    primary.to_csv(folder / "primary.csv", index=False)
    alone = [dict(system=name, mean=2., low=1., high=3.) for name in ("baseline", "S2DM_SP")]
    pd.DataFrame(alone + rows).to_csv(folder / "mechanism.csv", index=False)
    names = dict(dataset="bipar", lang="zh", rule="brackets", system="baseline", of="gold")
    counts = dict(seeds=5, questions=9, violating=1.2, wrong_overlapping=4)
    numbers = dict(mean=5., low=2., high=8., near_mean=4., near_low=1., near_high=7.)
    numbers |= dict(breaks_percent=20., both_keep_percent=30., neither_percent=50.)
    for name in ("overlap", "shares", "violations_bipar"): # those of the scripts are narrower
        pd.DataFrame([names | counts | numbers]).to_csv(folder / f"{name}.csv", index=False)


@pytest.mark.slow
def test_a_design_tells_its_own_comparisons_and_not_before_they_are_made(tmp_path, quick):
    out = tmp_path / "out"
    fixed_comparisons(out)
    runs = leave_e5(tmp_path / "runs", seeds=5)
    html = report(ReportConfig(profile="e5", runs=str(runs), out=str(out))).read_text("utf-8")
    found = plain(html[:html.index('id="words"')])
    assert "S2DM_SP: against the baseline it rises (+1.0 points, 95 % interval +0.5 to" in found
    assert "S2DM_POS: against the baseline the difference may be chance" in found
    assert "S2DM_SP is above the baseline" in found # on BiPaR
    assert "more than that of English by, in points, +2.0 for the baseline" in found
    assert "Missing are readers on mBERT and XLM-100" in found
    assert html.index('id="primary"') < html.index('id="glance"')
    assert "5 paired seeds" not in found and '<section class="item" id="mechanism">' in html
    assert (out / "summary.md").read_text("utf-8").startswith("1. Zero-shot EM on XQuAD")
    for name in ("overlap", "shares", "violations_bipar"): assert f'<details id="{name}">' in html
    assert "5.0 [2.0, 8.0]" in html and "4.0 [1.0, 7.0]" in html
    out = tmp_path / "before"
    some = leave_e5(tmp_path / "some", seeds=3)
    html = report(ReportConfig(profile="e5", runs=str(some), out=str(out))).read_text("utf-8")
    found = plain(html[:html.index('id="words"')])
    assert "12 of 20 readers have been read with; the comparisons that docs/" in found
    assert "Missing are 8 of the 20 readers of this profile" in found
    assert not fixed_tables(out)
    hidden = ("glance", "table2", "systems", "languages", "normalisation", "errors", "boundaries")
    for name in hidden: assert f'id="{name}"' not in html and not (out / f"{name}.csv").exists()
    for page in (html, (out / "summary.md").read_text("utf-8")):
        assert "EM on XQuAD" not in page and "boundary errors " not in page


def test_a_table_that_a_phone_cannot_show_says_that_it_scrolls(several, tmp_path, quick):
    html = report(ReportConfig(edition="paper", runs=several_folder(several), out=str(
        tmp_path))).read_text("utf-8")
    tables = re.findall(r'<div class="(scroll[^"]*)"[^>]*><table><thead>(.*?)<tbody>', html)
    assert len(tables) > 20
    for box, rows in tables:
        heads = re.findall(r"<th[^>]*>([^<]+)", rows.rpartition("<tr>")[2])
        if sum(map(len, heads)) > 60: assert "wide" in box, heads


def several_folder(results): return str(Path(results.runs["folder"].iloc[0]).parents[3])


def test_the_published_page_is_small_and_its_links_lead_somewhere():
    page = ROOT / "figures/small/report.html"
    html = page.read_text(encoding="utf-8")
    assert len(html.encode()) <= 839_443 / 3 # of the page before it had folds
    links = re.findall(r'href="([^"#]+)"', html)
    files = [link for link in links if not link.startswith("https://")]
    assert files and all((page.parent / link).is_file() for link in files)
    for leak in (">nan", "differ in references", "other encoder"): assert leak not in html

SCRIPT = KILLED_AT_A_FILE + """
sys.path.insert(0, "tests")
import test_report as T
import s2dm.report as R
R.write_figure = T.write_pixel
R.screen_picture = lambda figure, dpi: T.PIXEL
R.report(T.ReportConfig(edition="paper", runs=sys.argv[2], out=sys.argv[3]))
"""


def test_a_report_that_is_killed_ends_as_one_that_was_not(single, tmp_path, quick):
    "Killed at its seventh file; what is there by then is whole."
    def made(name):
        page = report(ReportConfig(edition="paper", runs=str(single), out=str(tmp_path / name)))
        return {p.name: p.read_bytes() for p in page.parent.iterdir() if p.suffix != ".tmp"}
    whole = made("whole")
    command = [sys.executable, "-c", SCRIPT, "7", str(single), str(tmp_path / "killed")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=280)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    files = [p for p in (tmp_path / "killed").iterdir() if p.suffix != ".tmp"]
    assert len([p for p in files if p.suffix != ".png"]) == 6
    assert all(p.read_bytes() == whole[p.name] for p in files)
    assert made("killed") == whole


@pytest.mark.slow
def test_report_is_one_file_and_the_same_twice(runs, tmp_path):
    pages = [
        report(ReportConfig(edition="paper", runs=str(runs), out=str(tmp_path / name)))
        for name in "ab"]
    files = {p.name: p.read_bytes() for p in pages[0].parent.iterdir()}
    assert files == {p.name: p.read_bytes() for p in pages[1].parent.iterdir()}
    tables = {f"table{i}" for i in ("1_readers", 2, 3, 4, 5)}
    assert {f"{table}.{kind}" for table in tables for kind in ("csv", "md", "tex")} <= files.keys()
    figures = {f"figure{i}" for i in (1, 2, 4, 5, 6)} # no ablations, so no Figure 3
    assert {f"{figure}.{kind}" for figure in figures for kind in ("png", "pdf")} <= files.keys()
    html = pages[0].read_text(encoding="utf-8")
    links = re.findall(r'(src|href)="([^"]+)"', html)
    assert all(
        target.startswith("data:image/webp;base64,") for kind, target in links if kind == "src")
    assert all(
        target.startswith(("#", "https://aclanthology.org/")) or target in files
        for kind, target in links
        if kind == "href")
    assert not re.search(r"<script|@import|url\(|<link|<iframe", html) and html.count("<img") == 5
    assert ({target[1:] for _, target in links if target.startswith("#")}
            <= set(re.findall(r'id="([\w-]+)"', html)))
    assert str(runs) not in html and "2026-11-23" not in html
    for name, text in files.items():
        if name.endswith((".csv", ".md", ".tex")) and not name.startswith("runs"):
            assert b"2026-11-23" not in text and str(runs).encode() not in text, name
    assert files["summary.md"].decode().startswith("1. Zero-shot EM on")


def test_report_without_runs_and_without_a_checkout(tmp_path, monkeypatch, quick):
    html = report(ReportConfig(profile="paper", runs=str(tmp_path / "none"), out=str(
        tmp_path / "out"))).read_text(encoding="utf-8")
    text = plain(html)
    assert "No S2DM_SP was evaluated yet" in text and "49.8" in text
    assert "Missing are 8 of the 8 readers of this profile" in text
    assert text.count("There is no run of 05_evaluate for mBERT S2DM_SP.") == 4 # Tables 2 to 5
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingData, match="checkout"):
        report(
            ReportConfig(edition="paper", runs=str(tmp_path / "none"), out=str(tmp_path / "out")))


@pytest.mark.slow
def test_what_a_run_could_not_have_is_told_without_its_folders(tmp_path, quick):
    folder = (fake_runs(tmp_path / "runs", ("baseline",), 1)
              / "analyse/small/baseline/seed0/metrics.json")
    metrics = json.loads(folder.read_text()) | dict(missing=[
        "bipar: /home/somebody/data/raw/bipar.json is not there; see https://example.org/a/b"])
    folder.write_text(json.dumps(metrics))
    leave(tmp_path / "runs", "evaluate", "small", "s2dm_sp", 4, None)
    html = report(ReportConfig(edition="paper", runs=str(tmp_path / "runs"), out=str(
        tmp_path / "out"))).read_text(encoding="utf-8")
    assert "somebody" not in html
    text = plain(html)
    assert "bipar: …/bipar.json is not there; see https://example.org/a/b" in text
    assert "evaluate, embedded, S2DM_SP, seed 4: began, and left no metrics.json." in text


def test_every_table_has_its_files_and_fits_its_data(several, tmp_path):
    from s2dm.tables import write_table
    for name, table in all_tables(several, measures(several)).items():
        csv = write_table(table, tmp_path)
        assert csv.stem == name and (table.blocks or table.notes), name
        back = pd.read_csv(csv, keep_default_na=False, na_values=[""])
        assert [*back] == [*table.data] and len(back) == len(table.data)
        tex = csv.with_suffix(".tex").read_text(encoding="utf-8")
        assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == len(table.blocks)


def test_names_in_a_record_cannot_break_the_page(tmp_path, quick):
    rng = np.random.default_rng(0)
    leave(
        tmp_path / "runs", "analyse", "small", "baseline", 0,
        analysis(rng, "baseline", "<b>x</b>|y", ("svo", "a&b"), "svo"))
    html = report(ReportConfig(edition="paper", runs=str(tmp_path / "runs"), out=str(
        tmp_path / "out"))).read_text(encoding="utf-8")
    assert "<b>x</b>" not in html and "&lt;b&gt;x" in html
    pages = [file.read_text(encoding="utf-8") for file in (tmp_path / "out").glob("*.md")]
    assert not any("<b>" in page for page in pages)
    tables = [page for page in pages if "&lt;b>x&lt;/b>" in page]
    assert tables
    for table in tables: # as many cells in each row
        lines = [line for line in table.splitlines() if line.startswith("|")]
        heads = [lines[i - 1] for i, line in enumerate(lines) if line.startswith("|:")]
        assert {cells(line) for line in lines} == {cells(line) for line in heads} or len(heads) > 1


def cells(line): return len(re.findall(r"(?<!\\)\|", line))


IMPOSSIBLE = [
    ("evaluate", "em", "500"), ("evaluate", "em", "-1"), ("evaluate", "f1", "1e999"),
    ("evaluate", "em", "NaN"), ("evaluate", "f1", "-Infinity"), ("evaluate", "em", "1" + "0" * 400),
    ("evaluate", "em", "true"), ("analyse", "pearson", "101"), ("analyse", "mean", "-0.1"),
    ("analyse", "silhouette_language", "1.5"), ("analyse", "norm", "-1"),
    ("analyse", "score", "101")]


@pytest.mark.parametrize("stage, name, number", IMPOSSIBLE)
def test_a_score_that_cannot_be_is_refused(tmp_path, stage, name, number):
    runs = fake_runs(tmp_path / "runs", ("baseline",), 1)
    file = runs / f"{stage}/small/baseline/seed0/metrics.json"
    text, count = re.subn(rf'"{name}": [-0-9.e]+', f'"{name}": {number}', file.read_text(), count=1)
    assert count == 1
    file.write_text(text)
    with pytest.raises(DataError, match="metrics.json.*(expected a number|is no number)"):
        collect(("small",), tmp_path / "runs")
