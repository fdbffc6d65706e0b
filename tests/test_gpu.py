"""benchmarks/gpu.py with tiny networks: its numbers fit together. And docs/gpu.md, whose tables it
makes; the workflow's commands there are in test_workflow.
"""
import csv
import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from test_runs import OFFLINE

PAGE = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    for line in block.splitlines()
    if not line.startswith("snakemake")]
# as test_workflow has them of one encoder
RUNS = dict(
    reproduce=dict(encode=1, pretrain=2, finetune=4, evaluate=4),
    full=dict(encode=1, pretrain=85, finetune=115, evaluate=115))


def table(name):
    with open(ROOT / f"figures/{name}.csv", encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    "What the page's command leaves, without network or data."
    folder = tmp_path_factory.mktemp("gpu")
    env = {
        **os.environ, **OFFLINE, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "S2DM_DATA": str(folder / "data"), "S2DM_MIRROR": "", "PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu.py", "--tiny", "--steps", "2", "--json",
         folder / "gpu.json"],
        env=env, cwd=folder, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-3000:]
    return json.loads((folder / "gpu.json").read_text()) | dict(printed=out.stdout)


@pytest.mark.slow
@pytest.mark.timeout(600) # on a busy machine
def test_every_stage_of_both_encoders_is_measured(found):
    what = [(r["encoder"], r["stage"], r["what"].split(",")[0]) for r in found["measured"]]
    stages = [("encode", "float32"), ("pretrain", "s2dm_pos"), ("pretrain", "s2dm_sp")] + [
        (s, head) for head in ("baseline", "semantic")
        for s in ("finetune", "finetune", "evaluate")]
    assert what == [(name, *stage) for name in ("mbert", "xlm100") for stage in stages]
    assert found["tiny"]
    assert "the numbers mean nothing" in found["printed"]


def test_rates_and_shares_are_those_of_the_times(found):
    for row in found["measured"]:
        unit, n = dict(
            encode=("sentences", None), pretrain=("pairs", 2), finetune=("windows", 2),
            evaluate=("windows", 8))[row["stage"]]
        if n: assert row[f"{unit}_per_s"] * row["ms"] / 1e3 == pytest.approx(n)
        assert row["subwords_per_s"] > row[f"{unit}_per_s"] and 0 < row["launch_ms"] <= row["ms"]
        assert (row["share_of_product"]
                == pytest.approx(1e12 * row["tflops"] / found["large_product_flops_per_s"]))
        assert row["share_of_sheet"] is None
        if "of 48" in row["what"]:
            assert row["subwords_per_s"] == pytest.approx(48 * row["windows_per_s"])


def test_flops_are_the_formula(found):
    """Two layers 32 wide, windows of 48: 4 products of attention and 8 of the feed-forward network
    for each width squared."""
    done = {
        r["encoder"]: r["tflops"] * r["ms"] * 1e9
        for r in found["measured"]
        if r["what"].startswith("baseline") and "of 48" in r["what"]}
    assert done == pytest.approx(
        dict.fromkeys(("mbert", "xlm100"), 2 * (6 * 48 * 2 * 12 * 32**2 + 12 * 2 * 32 * 48**2)))


def test_hours_are_runs_times_work_over_rate(found):
    rates = {
        (r["encoder"], r["stage"]): r
        for r in found["measured"]
        if r["what"].startswith(("s2dm_sp", "semantic")) and "of 48" not in r["what"]}
    for row in found["paper"]: assert row["runs"] == RUNS[row["target"]][row["stage"]]
    for name in ("mbert", "xlm100"):
        pretrain = next(
            r["hours_per_run"]
            for r in found["paper"]
            if (r["encoder"], r["stage"]) == (name, "pretrain"))
        # epochs x pairs
        assert (pretrain
                == pytest.approx(10 * 25_895 / rates[name, "pretrain"]["pairs_per_s"] / 3600))


def test_without_a_gpu_it_says_so():
    if __import__("torch").cuda.is_available(): pytest.skip("there is one")
    out = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu.py"], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True)
    assert out.returncode == 1
    assert "there is no CUDA device here; --tiny runs on any machine" in out.stderr


def test_tables_of_the_estimate_fit_together():
    stages, memory = table("gpu_stages"), {row["encoder"]: row for row in table("gpu_memory")}
    for total in table("gpu_hours"):
        mine = [row for row in stages if row["encoder"] == total["encoder"]]
        runs = {row["stage"]: int(row[f"runs_{total['target']}"]) for row in mine}
        assert runs == RUNS[total["target"]]
        assert int(total["runs"]) == runs["pretrain"] + 3 * runs["finetune"]
        for gpu in ("H100", "A100"):
            minutes = sum(runs[r["stage"]] * float(r[f"min_{gpu}"]) for r in mine)
            assert float(total[f"hours_{gpu}"]) == pytest.approx(minutes / 60, rel=.01)
        m = {k: float(v) for k, v in memory[total["encoder"]].items() if k != "encoder"}
        assert float(total["disk_GB"]) == pytest.approx(
            m["download_GB"] + m["cache_GB"] + runs["pretrain"] * m["s2dm_run_GB"]
            + runs["finetune"] * m["reader_run_GB"],
            rel=.01)
        assert m["reader_run_GB"] == pytest.approx(2 * m["download_GB"], rel=.01)
        assert m["together_GB"] == pytest.approx(m["states_GB"] + m["activations_GB"], rel=.01)
    with open(ROOT / "data/paper/in_text.csv", encoding="utf-8", newline="") as f:
        paper = {row["quantity"]: float(row["value"]) for row in csv.DictReader(f)}
    for name in memory:
        # the paper's own count
        assert (float(memory[name]["million_weights"])
                == pytest.approx(paper[f"mrc_params_{name}"], rel=.02))


def test_other_commands_of_the_page():
    measure, load = COMMANDS
    assert measure == "python benchmarks/gpu.py --json runs/gpu.json"
    assert load.startswith("python -c ")
    exec(load.split('"')[1].replace("('mbert', 'xlm100')", "('small',)"), {})


def test_own_questions_are_read_as_the_page_says(tmp_path, capsys):
    from s2dm.encoder import load_encoder
    from s2dm.reader import ReaderConfig, S2DMReader

    encoder = load_encoder("small")
    questions = [dict(id="1", question="who visited Anna?", answers=[dict(
        text="los baker", answer_start=0)])]
    config = ReaderConfig(head="baseline", max_length=128, stride=32, query=32)
    S2DMReader(encoder.model, encoder.split.tokenizer, config=config).save_pretrained(
        tmp_path / "reader")
    (tmp_path / "mine.json").write_text(json.dumps(dict(data=[
        dict(paragraphs=[dict(context="los baker old visitmos Anna bos Rome.", qas=questions)])])))
    example, = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(
        example.replace("mine.json", str(tmp_path / "mine.json")).replace(
            "runs/finetune/mbert/s2dm_sp-refined/seed0/checkpoint", str(tmp_path / "reader")),
        {})
    assert "'questions': 1" in capsys.readouterr().out
