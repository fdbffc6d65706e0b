"""The training loop: exact resumption after kill -9, several processes, divergence, selection,
logs, broken or foreign checkpoints.
"""
import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from torch import nn

from s2dm import fit as F
from s2dm.core import DataError, ParameterError
from s2dm.fit import Diverged, FitConfig, fit, rate


class Data:
    "Two classes of points, with noise that `load` draws."
    def __init__(self, batch=4, size=64): self.batch, self.size = batch, size

    def plan(self, epoch):
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(epoch)).view(
            -1, self.batch).tolist()

    def load(self, positions, generator):
        x = torch.tensor(positions, dtype=torch.float32)[:, None] / self.size + torch.arange(3.)
        return dict(
            x=x + 0.1 * torch.randn(x.shape, generator=generator), y=torch.tensor(positions) % 2)


class PowerCut(Data):
    "Data that ends in an error after so many batches."
    def __init__(self, left):
        super().__init__()
        self.left = left

    def load(self, positions, generator):
        if not self.left: raise RuntimeError("power cut")
        self.left -= 1
        return super().load(positions, generator)


class Net(nn.Module):
    """Dropout (global randomness), a buffer that counts, tied weights, a parameter without a
    gradient, two terms."""
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.b.weight, self.unused = self.a.weight, nn.Linear(1, 1)
        self.drop = nn.Dropout(0.3)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, batch):
        if self.training: self.seen += len(batch["x"])
        h = self.b(self.drop(self.a(batch["x"]).relu()))
        return dict(
            cross=nn.functional.cross_entropy(self.out(h).float(), batch["y"], reduction="none"),
            size=h.float().square().mean(1))


def train(folder, data=None, net=None, weights=None, evaluate=None, metric=None, **settings):
    net = net or Net()
    settings = dict(epochs=3, learning_rate=0.01, log_every=5, checkpoint_seconds=0) | settings
    return net, fit(
        net, data or Data(), FitConfig(**settings), folder, seed=1, weights=weights,
        evaluate=evaluate and (lambda: evaluate(net)), metric=metric)


def same(a, b):
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


SCRIPT = """
import sys, time
sys.path.insert(0, "tests")
import test_fit as T
class Slow(T.Data):
    def load(self, positions, generator):
        time.sleep(0.01)
        return super().load(positions, generator)
def evaluate(net): return dict(value=-float(net.out.bias.abs().sum()))
net, found = T.train(sys.argv[1], Slow(), evaluate=evaluate, metric="value", epochs=10)
T.save_file({k: v.clone() for k, v in net.state_dict().items()}, sys.argv[1] + "/end.safetensors")
found.history.to_json(sys.argv[1] + "/history.json", double_precision=15)
found.evaluations.to_json(sys.argv[1] + "/evaluations.json", double_precision=15)
"""


def start(folder, **env):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env}, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    whole, killed, kills, rng = tmp_path / "whole", tmp_path / "killed", 0, random.Random(0)
    assert start(whole).wait(120) == 0
    for _ in range(3): # wait until it is at work, then kill it at a moment of its own choosing
        process = start(killed)
        before = ((killed / "fit.safetensors").stat().st_mtime_ns
                  if (killed / "fit.safetensors").exists()
                  else 0)
        while (process.poll() is None
               and not (
                       (killed / "fit.safetensors").exists()
                       and (killed / "fit.safetensors").stat().st_mtime_ns > before)):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2 and not (killed / "end.safetensors").exists()
    assert start(killed).wait(120) == 0
    for name in ("end.safetensors", "best.safetensors", "history.json", "evaluations.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


def test_resuming_restores_the_optimizer_and_every_buffer(tmp_path):
    net, found = train(tmp_path / "a")

    with pytest.raises(RuntimeError, match="power cut"): train(tmp_path / "b", PowerCut(22))
    again, after = train(tmp_path / "b")
    assert same(net, again)
    assert found.history.equals(after.history)
    assert int(again.seen) == 3 * 64
    assert found.steps == after.steps == 48


def test_the_log_has_means_of_the_steps_and_the_weighted_loss(tmp_path):
    _, found = train(tmp_path, weights=dict(size=0.5), clip=1e9)
    h = found.history
    assert list(h.step) == [*range(5, 46, 5), 48]
    assert (list(h.columns)
            == ["step", "epoch", "learning_rate", "cross", "size", "loss", "gradient_norm"])
    assert (h.loss - h["cross"] - 0.5 * h["size"]).abs().max() < 1e-6


def test_tensorboard_shows_each_term_once_per_line_after_an_interruption_too(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path, PowerCut(33), evaluate=lambda n: dict(value=1.0))
    _, found = train(tmp_path, evaluate=lambda n: dict(value=1.0))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert ({"train/cross", "train/size", "train/loss", "train/gradient_norm",
             "train/learning_rate", "evaluation/value"}
            <= set(events.Tags()["scalars"]))
    points = events.Scalars("train/cross")
    assert [p.step for p in points] == list(found.history.step)
    assert [p.value for p in points] == pytest.approx(list(found.history["cross"]), rel=1e-6)


@pytest.mark.parametrize(
    "where, says",
    [("cross", "cross is not finite"), ("both", "cross and size are not finite"), (
        "gradient", "gradient_norm is not finite")])
def test_what_is_not_finite_is_named_and_the_last_good_checkpoint_stays(where, says, tmp_path):
    class Breaks(Net):
        def forward(self, batch):
            terms = super().forward(batch)
            if where == "gradient":
                return dict(
                    terms, root=(self.out.bias.sum() * (0 if self.seen > 40 else 1)).abs().sqrt())
            bad = torch.where(self.seen > 40, torch.nan, 1.)
            return {k: v * (bad if where == "both" or k == where else 1) for k, v in terms.items()}
    net = Breaks()
    with pytest.raises(Diverged, match=rf"^step 11: {says}") as error:
        train(tmp_path, net=net, epochs=1, log_every=4)
    assert "the last good checkpoint" in str(error.value)
    kept = load_file(tmp_path / "fit.safetensors")
    assert all(t.isfinite().all() for t in kept.values()) and int(kept["model.seen"]) == 8 * 4
    assert any(k.startswith("optimizer.") for k in kept)


@pytest.mark.parametrize("where", ["loss", "gradient", "sample"])
def test_what_is_not_finite_changes_no_weight_whatever_the_log(where, tmp_path):
    "Found in the very step, although a line of the log is due much later."
    class Breaks(Net):
        def forward(self, batch):
            terms = super().forward(batch)
            bad = self.seen > 8
            if bad and where == "sample": raise FloatingPointError("no sample for kappa = nan")
            root = (self.out.bias.sum() * (0 if bad else 1)).abs().sqrt()
            if where == "gradient": return dict(terms, root=root)
            return dict(terms, root=torch.where(bad, torch.inf, root.detach()))
    net = Breaks()
    names = dict(loss="root is not finite", gradient="gradient_norm is not finite",
                 sample=r"loss is not finite \(no sample for kappa = nan\)")
    with pytest.raises(Diverged, match="^step 3: " + names[where]) as error:
        train(tmp_path / "bad", net=net, log_every=1000)
    assert "there was no checkpoint yet" in str(error.value)
    two = Breaks()
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "two", PowerCut(2), two, log_every=1000)
    for (name, a), b in zip(net.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_best_evaluation_chooses_the_weights_and_patience_ends_the_run(tmp_path):
    values, snapshots = iter([0.1, 0.5, 0.3, 0.4, 0.9]), []

    def evaluate(net):
        assert not net.training and not torch.is_grad_enabled()
        snapshots.append({k: v.clone() for k, v in net.state_dict().items()})
        return dict(value=next(values), other=2.0)
    net, found = train(tmp_path, evaluate=evaluate, metric="value", evaluate_every=6, patience=2)
    assert list(found.evaluations.step) == [6, 12, 18, 24]
    assert (found.best_step, found.steps) == (12, 24)
    assert all(torch.equal(t, snapshots[1][k]) for k, t in net.state_dict().items())
    assert not net.training
    # no optimizer: there will be no further step
    assert all(k.startswith("model.") for k in load_file(tmp_path / "fit.safetensors"))
    # finished: nothing is evaluated again
    again, after = train(tmp_path, evaluate=evaluate, metric="value", evaluate_every=6, patience=2)
    assert same(net, again) and after.evaluations.equals(found.evaluations)


def test_a_value_that_is_never_a_number_selects_nothing(tmp_path):
    net, found = train(tmp_path, evaluate=lambda n: dict(value=float("nan")), metric="value")
    assert found.best_step == found.steps == 48 and same(net, train(tmp_path / "plain")[0])
    # finished
    assert train(tmp_path, evaluate=lambda n: dict(value=1.), metric="value")[1].evaluations[
        "value"].isna().all()


def test_evaluation_does_not_change_the_training(tmp_path):
    def noisy(net): return dict(value=float(torch.randn(())))
    assert same(train(tmp_path / "a")[0], train(tmp_path / "b", evaluate=noisy)[0])


def test_an_unknown_metric_is_named(tmp_path):
    with pytest.raises(
            ParameterError, match="metric='pearson' is not among what evaluate.. returned: value"):
        train(tmp_path, evaluate=lambda n: dict(value=1.), metric="pearson")


def test_another_run_in_the_folder_is_refused_unless_thrown_away(tmp_path):
    train(tmp_path)
    with pytest.raises(ParameterError, match="learning_rate was 0.01 and is 0.02.*fresh=True"):
        train(tmp_path, learning_rate=0.02)
    with pytest.raises(ParameterError, match="data was"): train(tmp_path, Data(batch=8))
    with pytest.raises(ParameterError, match="weights was None and is {'size': 2.0}"):
        train(tmp_path, weights=dict(size=2.))
    assert same(
        train(tmp_path, learning_rate=0.02, fresh=True)[0],
        train(tmp_path / "new", learning_rate=0.02)[0])
    train(tmp_path, learning_rate=0.02, checkpoint_seconds=9, workers=1) # says only how, not what


SECOND = """
import sys
sys.path.insert(0, "tests")
import test_fit as T
from s2dm import core
core.LOCK_SECONDS = float(sys.argv[2])
try: T.train(sys.argv[1], learning_rate=0.02, evaluate=T.closeness, metric="value")
except T.ParameterError as error: print(error)
"""


def closeness(net): return dict(value=-float(net.out.bias.abs().sum()))


def second_run(folder, seconds):
    return subprocess.run(
        [sys.executable, "-c", SECOND, str(folder), str(seconds)], cwd=ROOT, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, timeout=100).stdout


def test_a_second_run_in_the_folder_is_refused_and_named_the_first(tmp_path):
    "Other parameters, started in the middle of the first: its weights would be taken for ours."
    alone, found = train(tmp_path / "alone", evaluate=closeness, metric="value")
    said = []

    def evaluate(net):
        if not said: said.append(second_run(tmp_path / "shared", .1))
        return closeness(net)
    mine, shared = train(tmp_path / "shared", evaluate=evaluate, metric="value")
    assert f"in use by process {os.getpid()} on" in said[0]
    assert str(tmp_path / "shared") in said[0] and "S2DM_RUNS" in said[0]
    assert same(mine, alone) and shared.run == found.run
    assert not [p for p in (tmp_path / "shared").iterdir() if p.name.startswith(".")]
    # afterwards the folder is free: what is refused now are the parameters
    assert "learning_rate was 0.01 and is 0.02" in second_run(tmp_path / "shared", .1)


def test_the_best_weights_of_another_run_are_refused(tmp_path):
    for name, step in (("mine", .01), ("other", .02)):
        train(tmp_path / name, evaluate=closeness, metric="value", learning_rate=step)
    mine = tmp_path / "mine/best.safetensors"
    kept = mine.read_bytes()
    mine.write_bytes((tmp_path / "other/best.safetensors").read_bytes())
    says = "best.safetensors belongs to another run: learning_rate was 0.02 and is 0.01"
    with pytest.raises(ParameterError, match=says):
        train(tmp_path / "mine", evaluate=closeness, metric="value")
    save_file(load_file(tmp_path / "other/best.safetensors"), mine, dict(about='{"step": 1}'))
    with pytest.raises(DataError, match="does not say which run it belongs to"):
        train(tmp_path / "mine", evaluate=closeness, metric="value")
    mine.write_bytes(kept)
    train(tmp_path / "mine", evaluate=closeness, metric="value")


def test_the_lock_of_a_killed_run_is_free(tmp_path):
    "The system frees it; the name that the dead process left does no harm."
    script = ("import sys, os, signal; from s2dm.core import run_lock\n"
              "with run_lock(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)")
    subprocess.run([sys.executable, "-c", script, tmp_path], cwd=ROOT, check=False,
                   env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (tmp_path / ".lock.holder").is_file()
    train(tmp_path)
    assert not (tmp_path / ".lock.holder").exists()


@pytest.mark.parametrize("damage, says", [
    (lambda p: p.write_bytes(p.read_bytes()[:500]), "is no checkpoint"),
    (lambda p: p.write_bytes(b""), "is no checkpoint"),
    (lambda p: save_file({"x": torch.ones(1)}, p), "is no checkpoint")])
def test_a_broken_checkpoint_is_an_error_and_not_a_new_start(damage, says, tmp_path):
    train(tmp_path)
    damage(tmp_path / "fit.safetensors")
    with pytest.raises(DataError, match=says): train(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(tmp_path)
    other = Net()
    other.more = nn.Linear(2, 2)
    with pytest.raises(DataError, match="another model: more"): train(tmp_path, net=other)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    whole, calls = train(tmp_path / "whole")[0], iter(range(100))

    def save(tensors, path, metadata):
        if next(calls) == 3: raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)
    monkeypatch.setattr(safetensors.torch, "save_file", save)
    with pytest.raises(DataError, match="No space left on device.*start again"):
        train(tmp_path / "b")
    assert F._load(tmp_path / "b/fit.safetensors")[1]["progress"]["step"] == 15
    assert same(train(tmp_path / "b")[0], whole)


DIES = """
import os, sys
sys.path.insert(0, "tests")
import test_fit as T
def save(tensors, path, metadata): # safetensors writes to a file of its own first
    open(os.path.join(os.path.dirname(path), ".tmpAbCdEf"), "wb").write(bytes(1000))
    os.kill(os.getpid(), T.signal.SIGKILL)
T.safetensors.torch.save_file = save
T.train(sys.argv[1])
"""


def test_what_a_killed_process_was_writing_is_removed_at_the_next_start(tmp_path):
    command = [sys.executable, "-c", DIES, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL, timeout=100)
    assert killed.returncode == -signal.SIGKILL
    left, = tmp_path.glob(".*.tmp")
    assert [p.stat().st_size for p in left.iterdir()] == [1000]
    dead = int(left.name.split(".")[-2])
    others = [tmp_path / f".notes.{dead}x.tmp", tmp_path / f".best.safetensors.{os.getppid()}.tmp"]
    (tmp_path / "checkpoint").mkdir()
    below = tmp_path / "checkpoint" / f".README.md.{dead}.tmp" # as `atomic_write` leaves it
    # as safetensors leaves it where nobody gives it a folder of its own
    nameless = tmp_path / "checkpoint/.tmpXyZ123"
    for path in (below, nameless, *others): path.touch()
    train(tmp_path)
    assert not left.exists() and not below.exists() and not nameless.exists()
    assert all(path.exists() for path in others) # not ours, or of a process that is alive


def test_max_steps_and_warmup(tmp_path):
    _, found = train(tmp_path, max_steps=20, warmup=0.25, log_every=1)
    assert found.steps == 20
    assert (list(found.history.learning_rate)
            == pytest.approx([0.01 * rate(s, 20, 0.25) for s in range(20)]))
    shape = [rate(s, 20, 0.25) for s in range(20)]
    assert max(shape) == 1 == shape[4]
    assert shape[0] == 0.2
    assert all(0 < x <= 1 for x in shape)
    assert shape[5:] == sorted(shape[5:], reverse=True)
    assert [rate(s, 4, 0.) for s in range(4)] == [1, .75, .5, .25] and rate(3, 4, 1.) == 0.25 + 0.75


def test_a_scale_multiplies_the_learning_rate_of_some_parameters(tmp_path):
    start, (net, _) = Net(), train(tmp_path / "a", max_steps=1)
    with_scale = Net()
    fit(
        with_scale, Data(), FitConfig(epochs=3, learning_rate=0.01, max_steps=1, weight_decay=0),
        tmp_path / "b", seed=1, scales={"out.": 3.})
    def moved(a, name): return float((a.state_dict()[name] - start.state_dict()[name]).abs().max())
    assert moved(with_scale, "out.bias") == pytest.approx(3 * moved(net, "out.bias"), rel=1e-4)
    assert moved(with_scale, "a.bias") == pytest.approx(moved(net, "a.bias"), rel=1e-4)


def test_workers_change_nothing(tmp_path):
    assert same(train(tmp_path / "a", workers=2)[0], train(tmp_path / "b")[0])


def test_bfloat16_trains_and_leaves_the_model_as_it_was(tmp_path):
    net = Net()
    forward = net.forward
    train(tmp_path, net=net, precision="bfloat16")
    assert net.forward == forward and net.out.weight.dtype == torch.float32
    # it did compute otherwise; and a second precision in one process works
    assert not same(net, train(tmp_path / "full", precision="float32")[0])


def test_nothing_to_train_is_said(tmp_path):
    net = Net().requires_grad_(False)
    with pytest.raises(ParameterError, match="is all of it frozen"): train(tmp_path, net=net)


TWO = """
import os, sys
sys.path.insert(0, "tests")
import test_fit as T
from pathlib import Path
class Plain(T.Net):
    def __init__(self):
        super().__init__()
        self.drop = T.nn.Identity()
calls = []
def evaluate(net):
    calls.append(1)
    return dict(value=float(net.seen) if net.seen else 0.)
class Quiet(T.Data):
    def load(self, positions, generator):
        return super().load(positions, T.torch.Generator().manual_seed(sum(positions)))
torch = T.torch
folder, rank = sys.argv[1], os.environ.get("RANK", "")
net, found = T.train(folder, Quiet(), net=Plain(), evaluate=evaluate, metric="value", clip=1e9,
                     epochs=2, precision="float32")
weights = {k: v.clone() for k, v in net.state_dict().items()}
T.save_file(weights, f"{folder}/end{rank}.safetensors")
found.history.to_json(f"{folder}/history{rank}.json", double_precision=15)
Path(f"{folder}/calls{rank}").write_text(str(len(calls)))
"""


BAD = """
import os, sys
sys.path.insert(0, "tests")
import test_fit as T
class Breaks(T.Net):
    def forward(self, batch):
        terms = super().forward(batch)
        bad = self.seen > 4 and os.environ["RANK"] == "1"
        return dict(terms, size=terms["size"] + (T.torch.inf if bad else 0))
try: T.train(sys.argv[1], net=Breaks(), log_every=1000, precision="float32")
except T.Diverged as error: open(f"{sys.argv[1]}/error{os.environ['RANK']}", "w").write(str(error))
"""


def test_what_is_not_finite_in_one_process_ends_all_of_them(tmp_path):
    "A process that went on alone would wait for the others for ever."
    script = tmp_path / "bad.py"
    script.write_text(BAD)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc_per_node", "2", script, tmp_path]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    assert out.returncode == 0, out.stderr[-3000:]
    first, second = ((tmp_path / f"error{rank}").read_text() for rank in (0, 1))
    assert first == second and first.startswith("step 3: size is not finite")


def test_two_processes_share_the_work_and_agree(tmp_path):
    """Two processes take the steps that one takes, over the same batches, and so does one that
    computes each batch in three parts."""
    script = tmp_path / "two.py"
    script.write_text(TWO)
    # what `accelerate launch` does for GPUs
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        script, tmp_path]
    out = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=100)
    assert out.returncode == 0, out.stderr[-3000:]
    zero, one = (load_file(tmp_path / f"end{r}.safetensors") for r in (0, 1))
    assert all(torch.equal(zero[k], one[k]) for k in zero if k != "seen")
    assert (tmp_path / "history0.json").read_text() == (tmp_path / "history1.json").read_text()
    assert [(tmp_path / f"calls{r}").read_text() for r in (0, 1)] == ["2", "0"]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1

    class Joined(Data):
        def __init__(self, cuts):
            super().__init__()
            self.cuts = cuts

        def load(self, positions, generator): # the same random numbers as in the parts
            parts = [positions[cut::self.cuts] for cut in range(self.cuts)]
            loaded = [Data().load(p, torch.Generator().manual_seed(sum(p))) for p in parts if p]
            return {k: torch.cat([part[k] for part in loaded]) for k in loaded[0]}

    class Quiet(Data):
        def load(self, positions, generator):
            return super().load(positions, torch.Generator().manual_seed(sum(positions)))

    def alone(name, data, **more):
        net = Net()
        net.drop = nn.Identity()
        return train(
            tmp_path / name, data, net, evaluate=lambda n: dict(value=1.), clip=1e9, epochs=2,
            precision="float32", **more)

    def alike(a, b):
        return all(torch.allclose(t, b[k], atol=1e-5) for k, t in a.items() if k != "seen")

    net, found = alone("joined", Joined(2))
    assert alike(net.state_dict(), zero)
    two = pd.read_json(tmp_path / "history0.json")
    assert (two["cross"] - found.history["cross"]).abs().max() < 1e-5
    assert list(two.step) == list(found.history.step)
    whole, parts = alone("whole", Joined(3)), alone("parts", Quiet(), accumulate=3)
    assert alike(whole[0].state_dict(), parts[0].state_dict()) and whole[1].steps == parts[1].steps
    assert (whole[1].history["cross"] - parts[1].history["cross"]).abs().max() < 1e-5


def weights(net): return {k: v.clone() for k, v in net.state_dict().items()}


def test_the_mean_of_some_states_is_kept(tmp_path):
    """Three states, taken from runs that end after 12, 14 and 16 steps of the same path (the rate
    stays where it is), have the mean that the run with `average` ends with."""
    same = dict(epochs=1, warmup=0., final_rate=1.)
    states = []
    for steps in (12, 14, 16):
        net = Net()
        fit(net, Data(), FitConfig(**same, max_steps=steps), tmp_path / str(steps), 0)
        states.append(weights(net))
    net = Net()
    config = FitConfig(**same, max_steps=16, average=3, average_share=6 / 16)
    seen = []
    def evaluate():
        seen.append(weights(net))
        return dict(value=0.)
    fit(net, Data(), config, tmp_path / "mean", 0, evaluate=evaluate)
    for name, found in net.state_dict().items():
        if not found.is_floating_point(): continue
        mean = torch.stack([state[name] for state in states]).mean(0)
        assert torch.allclose(found, mean, atol=1e-6), name
        assert torch.equal(found, seen[-1][name]) # the last evaluation is that of the mean
    assert not torch.allclose(net.out.weight, states[-1]["out.weight"], atol=1e-6)
    assert torch.equal(net.seen, states[-1]["seen"]) # a counter has no mean


@pytest.mark.parametrize("left", [9, 13, 15])
def test_a_mean_survives_a_power_cut(tmp_path, left):
    config = FitConfig(epochs=1, average=4, average_share=.5, checkpoint_seconds=0., log_every=1)
    whole, cut = Net(), Net()
    fit(whole, Data(), config, tmp_path / "whole", 0)
    with pytest.raises(RuntimeError): fit(cut, PowerCut(left), config, tmp_path / "cut", 0)
    again = Net()
    fit(again, Data(), config, tmp_path / "cut", 0)
    for name, found in again.state_dict().items():
        assert torch.equal(found, whole.state_dict()[name]), name
    names = load_file(tmp_path / "cut/fit.safetensors")
    assert not any(name.startswith("average.") for name in names) # it is in the model now


def test_a_mean_and_a_best_evaluation_exclude_each_other(tmp_path):
    with pytest.raises(ParameterError, match="average=2 is not possible where the best"):
        fit(Net(), Data(), FitConfig(average=2), tmp_path, 0,
            evaluate=lambda: dict(value=1.), metric="value")
