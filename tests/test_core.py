"Parameters, seeds, atomic files and the run record."
import errno
import json
import math
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from s2dm.core import (
    Config, DataError, ParameterError, RunRecord, atomic_write, has_bfloat16, is_full, param,
    runs_dir, seed_everything, write_json)
from s2dm.systems import System


@dataclass(frozen=True, init=False)
class Train(Config):
    lr: float = param(5e-5, "learning rate", low=0)
    steps: int = param(100, "steps", low=1, high=1000)
    bf16: bool = param(False, "half precision")
    name: str = param("a", "name")
    langs: tuple[str, ...] = param(("en",), "languages", choices=("en", "de"))


@pytest.mark.parametrize("text, field, value", [
    ("lr: 3e-5", "lr", 3e-5), ("lr: '0.1'", "lr", 0.1), ("lr: 1", "lr", 1.0),
    ("steps: '20'", "steps", 20), ("steps: 1e2", "steps", 100), ("bf16: 'True'", "bf16", True),
    ("langs: [de]", "langs", ("de",)), ("langs: 'de,en'", "langs", ("de", "en")),
    ("langs: ''", "langs", ())])
def test_numbers_from_yaml_are_understood(text, field, value):
    got = getattr(Train(**yaml.safe_load(text)), field)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("params, says", [
    (dict(lrr=1),
     ["unknown parameter 'lrr'", "did you mean 'lr'", "lr = 5e-05: learning rate",
      "steps is an int from 1 to 1000"]),
    (dict(lr="fast"), ["lr='fast'", "lr is a float from 0"]),
    (dict(lr=float("nan")), ["lr=nan"]),
    (dict(lr=float("inf")), ["lr=inf"]),
    (dict(lr=True), ["lr=True (bool)"]),
    (dict(steps=0), ["steps=0", "from 1 to 1000"]),
    (dict(steps=1.5), ["steps=1.5 (float)"]),
    (dict(steps=None), ["steps=None (NoneType)"]),
    (dict(bf16="yes"), ["bf16='yes'"]),
    (dict(name=3), ["name=3 (int)"]),
    (dict(langs="de,fr"), ["langs='fr'", "choose one of en, de"]),
    (dict(langs=7), ["langs=7"]),
    (dict(steps="9" * 400), ["steps="])])
def test_what_is_wrong_is_named_with_what_is_allowed(params, says):
    with pytest.raises(ParameterError) as error: Train(**params)
    for words in says: assert words in str(error.value)


@given(st.dictionaries(st.text(max_size=8), st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.lists(st.text(max_size=3)))))
def test_any_input_gives_a_config_or_a_parameter_error(params):
    try: config = Train(**params)
    except ParameterError: return
    assert isinstance(config.steps, int) and math.isfinite(config.lr)


@given(st.floats(min_value=0, allow_infinity=False), st.integers(1, 1000))
def test_what_is_written_is_read_back(lr, steps):
    config = Train(lr=lr, steps=steps)
    assert Train(**json.loads(json.dumps(config.as_dict()))) == config
    assert Train(lr=str(lr), steps=str(steps)) == config


def test_configs_are_frozen_hashable_and_inherited():
    @dataclass(frozen=True, init=False)
    class Stage(System):
        epochs: int = param(3, "epochs", low=1)

    config = Stage(model="mbert", epochs="2", seed=4)
    assert config.as_dict() == {
        "model": "mbert", "variant": "s2dm_sp", "edition": "refined", "seed": 4, "layer": 0,
        "epochs": 2}
    assert (config.folder("finetune")
            == runs_dir() / "finetune" / "mbert" / "s2dm_sp-refined" / "seed4")
    assert len({config, Stage(model="mbert", epochs=2, seed=4)}) == 1
    with pytest.raises(AttributeError): config.seed = 5


def test_model_is_a_preset_a_hub_id_or_a_folder(tmp_path):
    for model in ("mbert", "xlm100", "google-bert/bert-base-multilingual-cased", str(tmp_path)):
        assert System(model=model).model == model
    with pytest.raises(
            ParameterError,
            match="model='bert-multi' is not possible. model is one of small, real-s, real-m, e5, "
            "mbert"):
        System(model="bert-multi")


def test_seed_makes_numbers_repeatable():
    import random

    import numpy as np
    import torch

    def draw(seed):
        seed_everything(seed)
        return random.random(), np.random.rand(), torch.randn(3).tolist()
    assert draw(1) == draw(1) != draw(2)


def _write_forever(path):
    while True: write_json(path, {"numbers": list(range(20000))})


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "metrics.json"
    context = multiprocessing.get_context("fork")
    for pause in (0.05, 0.11, 0.17):
        writer = context.Process(target=_write_forever, args=(path,))
        writer.start()
        while not path.exists(): time.sleep(0.01)
        time.sleep(pause)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert json.loads(path.read_text())["numbers"][-1] == 19999


def test_failed_write_keeps_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError), atomic_write(path) as tmp:
        tmp.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


FULL = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError(errno.EDQUOT, "quota"),
        RuntimeError("I/O error: No space left on device (os error 28)")]


@pytest.mark.parametrize("error", FULL, ids=["space", "quota", "wrapped"])
def test_a_full_disk_is_an_error_with_the_path_and_a_remedy(tmp_path, error):
    "Whatever library writes, within a file or within a run."
    says = "cannot be written: no space left.*another disk.*start again"
    with pytest.raises(DataError, match=f"metrics.json {says}"):
        with atomic_write(tmp_path / "metrics.json"): raise error
    with pytest.raises(DataError, match=f"mine {says}"):
        with RunRecord(tmp_path / "mine", Train()): raise error
    assert is_full(error) and not is_full(OSError(errno.EACCES, "denied"))
    with pytest.raises(PermissionError):
        with atomic_write(tmp_path / "a"): raise PermissionError(errno.EACCES, "denied")


def test_a_really_full_disk(tmp_path):
    if not os.path.exists("/dev/full"): pytest.skip("no /dev/full here")
    with pytest.raises(DataError, match="a.txt cannot be written: no space left"):
        with atomic_write(tmp_path / "a.txt"), open("/dev/full", "w") as f:
            f.write("a")
            f.flush()


# the same kernel runs a notebook twice


def _kernel(cells): # the variables that these cells leave
    space = {"In": [""]}
    for cell in cells:
        space["In"].append(cell)
        exec(cell, space | {"Train": Train}, space)
    return space


RUN = ["lr = 0.1\nlangs = 'de'", "config = Train.from_notebook(globals() | locals())",
       "loss = config.lr * 2\nrows = []\nfor place in 'ab': rows.append(place)\nsteps_done = 3"]


def test_a_second_run_in_the_same_kernel_reads_its_parameters_alone():
    assert _kernel(RUN * 3)["config"] == Train(lr=.1, langs="de")
    changed = [*RUN, "lr = 0.2\nsteps = 7", *RUN[1:]]
    assert _kernel(changed)["config"] == Train(lr=.2, steps=7, langs="de")


@pytest.mark.parametrize("cells", [
    ["import os\nlt = 1", *RUN], [*RUN, "lr = 0.1\nlt = 1", RUN[1]], ["lt = 1", RUN[1]],
    [*RUN, "lr = 'x'", RUN[1]]])
def test_a_slip_in_a_parameters_cell_is_refused_in_any_run(cells):
    with pytest.raises(ParameterError, match="'lt'|lr='x'"): _kernel(cells)


def test_the_time_of_a_run_that_was_stopped_is_that_of_all_its_calls(tmp_path):
    "Of the last alone, the record of a training that goes on says minutes in place of hours."
    for seconds, said in ((500., 500.), (0., 0.)):
        run = RunRecord(tmp_path, System(seed=3))
        run.save(dict(seconds=dict(sts=said)), seconds)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["wall_time_s"] == pytest.approx(said, abs=60)


def test_run_record_is_complete_only_at_the_end(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")  # of an older run
    run = RunRecord(tmp_path, System(seed=3))
    assert not (tmp_path / "metrics.json").exists()
    assert "wall_time_s" not in json.loads((tmp_path / "config.json").read_text())
    time.sleep(0.02)
    run.save({"em": 1.0})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["seed"] == 3
    assert config["parameters"]["model"] == "small"
    assert 0.02 <= config["wall_time_s"] < 60
    assert config["versions"]["torch"].startswith("2.13.0")
    assert config["peak_memory_mib"] > 10
    assert config["device"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"em": 1.0}
    with pytest.raises(ValueError): run.save({"em": float("nan")})


@pytest.mark.parametrize("has, expected", [
    ({}, False), (dict(avx512_f=True), False), (dict(avx512_bf16=True), True),
    (dict(amx_bf16=True, avx512_bf16=False), True),
    (dict(amx_bf16=True, avx512_bf16=True, avx512_fp16=True), True),
    (dict(amx_bf16=False, avx512_bf16=True, avx512_fp16=True), False)])
def test_bfloat16_is_used_where_the_processor_multiplies_it(monkeypatch, has, expected):
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert has_bfloat16("cpu") is expected
