"""Hard tests of s2dm.losses: every loss against a slow loop written from its equation, against
finite differences, against padding, order, extremes, half precision and the rules of its own. The
examples that explain them stand in nbs/02c_losses.ipynb."""
import json
import re
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mpmath
import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s2dm import losses as L
from s2dm.core import ParameterError
from s2dm.systems import EDITIONS, VARIANTS
from s2dm.treebanks import load_sentences, tree_depths, tree_distances
from s2dm.vmf import HypersphericalUniform, PowerSpherical

# vocabulary, decoder, tags, positions, latent and probe width: small, all different
V, WIDTH, K, P, M = 23, 5, 17, 9, 4


# ---------------------------------------------------------------- inputs
def a_mask(N, T, g, gaps=True):
    """Lengths from 1 to T, each at least once where N allows; with gaps, the words may stand
    anywhere."""
    lengths = torch.cat([torch.tensor([1, T]), torch.randint(1, T + 1, (N,), generator=g)])[:N]
    mask = torch.arange(T) < lengths[:, None]
    return torch.stack([row[torch.randperm(T, generator=g)] for row in mask]) if gaps else mask


def a_tree(W, g):
    """Depths [W] and distances [W,W] of a random tree on W words, and its exact embedding [W,W]:
    one axis per edge."""
    order = torch.randperm(W, generator=g).tolist()
    heads = {order[i]: order[int(torch.randint(i, (), generator=g))] for i in range(1, W)}
    graph = nx.Graph(heads.items())
    graph.add_nodes_from(range(W))
    lengths = dict(nx.all_pairs_shortest_path_length(graph))
    embedding = torch.zeros(W, W)
    for word in range(W):
        up = word
        while up in heads:
            embedding[word, up], up = 1, heads[up]
    distances = torch.tensor([[lengths[i][j] for j in range(W)] for i in range(W)])
    return distances[order[0]], distances, embedding


def make(N=6, T=7, seed=0, dtype=torch.float64):
    "Everything any loss needs, with N sentences (N/2 pairs) of at most T words."
    g = torch.Generator().manual_seed(seed)
    def randn(*shape): return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)
    trees = [a_tree(T, g) for _ in range(N)]
    return dict(
        mask=a_mask(N, T, g), hidden=randn(N, WIDTH), weight=randn(V, WIDTH), bias=randn(V),
        ids=torch.randint(V, (N, T), generator=g), mu=randn(N, T, M), logvar=randn(N, T, M),
        loc=F.normalize(randn(N, T, M), dim=-1), kappa=randn(N, T).exp() * 5, y=randn(N, M),
        z=randn(N, WIDTH - M), group=torch.randint(3, (N // 2,), generator=g).repeat(2),
        positions=randn(N, T, P), scores=randn(N, T, K), tags=torch.randint(K, (N, T), generator=g),
        probed=randn(N, T, M), depths=torch.stack([t[0] for t in trees]),
        distances=torch.stack([t[1] for t in trees]))


def notebook():
    return json.loads(
        (Path(__file__).parents[1] / "nbs/02c_losses.ipynb").read_text(encoding="utf-8"))["cells"]


# ---------------------------------------------------------------- the equations, as loops
def words(mask, n): return mask[n].nonzero().flatten().tolist()


def slow_bow(hidden, weight, bias, ids, mask):
    out = []
    for n in range(len(hidden)):
        logits = [
            sum(hidden[n, k] * weight[v, k] for k in range(WIDTH)) + bias[v] for v in range(V)]
        log_total = torch.stack(logits).logsumexp(0)
        S = words(mask, n)
        out.append(-sum(logits[ids[n, i]] - log_total for i in S) / len(S))
    return torch.stack(out)


def slow_crl(d):
    out, N = [], len(d["y"])
    for n in range(N):
        other = (n + N // 2) % N
        out.append(
            slow_bow(
                torch.cat([d["y"][other], d["z"][n]])[None], d["weight"], d["bias"],
                d["ids"][n:n+1], d["mask"][n:n+1])[0])
    return torch.stack(out)


def mean_over_words(d, loss):
    "Of each sentence n: the mean of `loss(n, i)` over its words i."
    out = []
    for n in range(len(d["mask"])):
        S = words(d["mask"], n)
        out.append(sum(loss(n, i) for i in S) / len(S))
    return torch.stack(out)


def slow_kl_z(d):
    def one(mu, logvar):
        return sum(.5 * (mu[j]**2 + logvar[j].exp() - 1 - logvar[j]) for j in range(M))
    return mean_over_words(d, lambda n, i: one(d["mu"][n, i], d["logvar"][n, i]))


def exact_kl_y(kappa, m):
    "kappa A_m(kappa) + log C_m(kappa) + log |S^{m-1}|, with 40 digits."
    with mpmath.workdps(40):
        k, v = mpmath.mpf(float(kappa)), mpmath.mpf(m) / 2 - 1
        def bessel(order): return mpmath.besseli(order, k)
        log_C = (v * mpmath.log(k) - mpmath.mpf(m) / 2 * mpmath.log(2 * mpmath.pi)
                 - mpmath.log(bessel(v)))
        log_area = (mpmath.log(2) + mpmath.mpf(m) / 2 * mpmath.log(mpmath.pi)
                    - mpmath.loggamma(mpmath.mpf(m) / 2))
        return float(k * bessel(v + 1) / bessel(v) + log_C + log_area)


def slow_kl_y(d):
    def one(n, i): return torch.tensor(exact_kl_y(d["kappa"][n, i], M), dtype=torch.float64)
    return mean_over_words(d, one)


def slow_sdl(d, crossed, margin=.4, extra=None, extra_group=None):
    y, group = list(d["y"]), d["group"].tolist()
    bank = y + ([] if extra is None else list(extra))
    bank_group = group + ([] if extra is None else extra_group.tolist())
    def sim(a, b): return (a * b).sum() / (a.norm() * b.norm())
    def negative(i):
        admissible = [c for c in range(len(bank)) if bank_group[c] != group[i]]
        return max(admissible, key=lambda c: sim(y[i], bank[c]).item()) if admissible else None
    out, B = [], len(y) // 2
    for s in range(B):
        t = s + B
        n_s, n_t, total = negative(s), negative(t), 0 * y[s].sum()
        first, second = ((s, n_t), (t, n_s)) if crossed else ((s, n_s), (t, n_t))
        for i, n in (first, second):
            if n is not None:
                total = total + torch.clamp(margin - sim(y[s], y[t]) + sim(y[i], bank[n]), min=0)
        out.append(total)
    return torch.stack(out)


def slow_violating(d, margin=.4, extra=None, extra_group=None):
    y, group = list(d["y"]), d["group"].tolist()
    bank = y + ([] if extra is None else list(extra))
    bank_group = group + ([] if extra is None else extra_group.tolist())
    def sim(a, b): return (a * b).sum() / (a.norm() * b.norm())
    out, B = [], len(y) // 2
    for s in range(B):
        total = 0 * y[s].sum()
        for i in (s, s + B):
            hinges = [
                margin - sim(y[s], y[s + B]) + sim(y[i], v)
                for v, g in zip(bank, bank_group)
                if g != group[i] and g >= 0]
            violating = [h for h in hinges if h > 0]
            if violating: total = total + sum(violating) / len(violating)
        out.append(total)
    return torch.stack(out)


def slow_wpl(d):
    out = []
    for n in range(len(d["mask"])):
        S, total = words(d["mask"], n), 0
        for position, i in enumerate(S):
            total = total - d["positions"][n, i, :len(S)].log_softmax(0)[position]
        out.append(total / len(S))
    return torch.stack(out)


def slow_pos(d):
    return mean_over_words(d, lambda n, i: -d["scores"][n, i].log_softmax(0)[d["tags"][n, i]])


def slow_depth(d):
    def one(n, i): return abs(d["depths"][n, i] - sum(x**2 for x in d["probed"][n, i]))
    return mean_over_words(d, one)


def slow_distance(d):
    out = []
    for n in range(len(d["mask"])):
        S = words(d["mask"], n)
        def d_B(i, j, n=n):
            return sum((d["probed"][n, i, k] - d["probed"][n, j, k])**2 for k in range(M))
        out.append(sum(abs(d["distances"][n, i, j] - d_B(i, j)) for i in S for j in S) / len(S)**2)
    return torch.stack(out)


# ---------------------------------------------------------------- one table of all losses
@dataclass
class Case:
    fast: Callable[[dict], Tensor]
    slow: Callable[[dict], Tensor]
    grads: tuple[str, ...]                   # differentiable inputs
    padded: dict[str, tuple[int, ...]]       # input -> its word axes
    per_pair: bool = False


def bow(d, **options):
    return L.bag_of_words_loss(d["hidden"], d["weight"], d["bias"], d["ids"], d["mask"], **options)


def crl(d, **options):
    hidden = L.decoder_inputs(d["y"], d["z"])
    return L.bag_of_words_loss(hidden, d["weight"], d["bias"], d["ids"], d["mask"], **options)[1]


def sdl(d, crossed):
    return L.semantic_discrimination_loss(
        d["y"], *L.hardest_negatives(d["y"], d["group"]), crossed=crossed)


BAG, MASK = {"ids": (1,), "mask": (1,)}, {"mask": (1,)}
CASES = {
    "RL": Case(
        lambda d: bow(d, block=7),
        lambda d: slow_bow(d["hidden"], d["weight"], d["bias"], d["ids"], d["mask"]),
        ("hidden", "weight", "bias"), BAG),
    "RL_recomputed": Case(
        lambda d: bow(d, block=4, keep=False),
        lambda d: slow_bow(d["hidden"], d["weight"], d["bias"], d["ids"], d["mask"]),
        ("hidden", "weight", "bias"), BAG),
    "CRL": Case(lambda d: crl(d, block=9), slow_crl, ("y", "z", "weight", "bias"), BAG),
    "KL_z": Case(
        lambda d: L.kl_z(d["mu"], d["logvar"], d["mask"]), slow_kl_z, ("mu", "logvar"),
        {"mu": (1,), "logvar": (1,)} | MASK),
    "KL_y": Case(
        lambda d: L.kl_y(d["loc"], d["kappa"], d["mask"]), slow_kl_y, ("kappa",),
        {"loc": (1,), "kappa": (1,)} | MASK),
    "SDL": Case(lambda d: sdl(d, True), lambda d: slow_sdl(d, True), ("y",), {}, per_pair=True),
    "SDL_own": Case(
        lambda d: sdl(d, False), lambda d: slow_sdl(d, False), ("y",), {}, per_pair=True),
    "SDL_violating": Case(
        lambda d: L.violating_discrimination_loss(d["y"], d["group"]), slow_violating, ("y",), {},
        per_pair=True),
    "WPL": Case(
        lambda d: L.word_position_loss(d["positions"], d["mask"]), slow_wpl, ("positions",),
        {"positions": (1,)} | MASK),
    "POS": Case(
        lambda d: L.part_of_speech_loss(d["scores"], d["tags"], d["mask"]),
        slow_pos,
        ("scores",),
        {"scores": (1,), "tags": (1,)} | MASK),
    "STL_depth": Case(
        lambda d: L.tree_depth_loss(d["probed"], d["depths"], d["mask"]),
        slow_depth,
        ("probed",),
        {"probed": (1,), "depths": (1,)} | MASK),
    "STL_distance": Case(
        lambda d: L.tree_distance_loss(d["probed"], d["distances"], d["mask"]),
        slow_distance,
        ("probed",),
        {"probed": (1,), "distances": (1, 2)} | MASK)}
every_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
padded_loss = pytest.mark.parametrize(
    "case", [c for c in CASES.values() if c.padded], ids=[n for n, c in CASES.items() if c.padded])


def value_and_grads(case, d, cotangent=None, autocast=None):
    d = d | {name: d[name].detach().clone().requires_grad_() for name in case.grads}
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        value = case.fast(d)  # backward runs outside, as torch asks
    # a different weight for each sentence, so that one sentence's gradient cannot stand in for
    # another's
    if cotangent is None:
        cotangent = torch.linspace(1, 2, len(value), dtype=value.dtype, device=value.device)
    return value.detach(), dict(zip(
        case.grads,
        torch.autograd.grad((value * cotangent).sum(), [d[name] for name in case.grads]),
        strict=True))


def test_table_covers_every_term():
    assert ({name.split("_")[0] if name.startswith(("RL", "SDL")) else name for name in CASES}
            == {t for terms in L.TERMS.values() for t in terms})


# ---------------------------------------------------------------- what holds for each
@every_loss
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_loop_written_from_the_equation(case, seed):
    d = make(seed=seed)
    fast, slow = case.fast(d), case.slow(d)
    assert fast.shape == (3 if case.per_pair else 6,) and fast.abs().sum() > 0
    assert_close(fast, slow, rtol=1e-9, atol=1e-10)


@every_loss
@pytest.mark.parametrize("seed", range(2))
def test_gradient_equals_finite_differences(case, seed):
    d = make(N=4, T=4, seed=seed)
    inputs = [d[name].requires_grad_() for name in case.grads]
    assert torch.autograd.gradcheck(
        lambda *xs: case.fast(d | dict(zip(case.grads, xs, strict=True))), inputs)


@padded_loss
@pytest.mark.parametrize("garbage", [0., float("nan"), float("inf"), 1e30])
def test_padding_changes_neither_value_nor_gradient(case, garbage):
    d, extra = make(), 3
    value, grads = value_and_grads(case, d)
    more = dict(d)
    for name, axes in case.padded.items():
        x = d[name]
        for axis in axes:
            shape = list(x.shape)
            shape[axis] = extra
            fill = garbage if x.is_floating_point() else 0 if x.dtype == torch.bool else -100
            x = torch.cat([x, torch.full(shape, fill).to(x.dtype)], axis)
        more[name] = x
    # what the mask hides inside the sentence is padding too
    for name, axes in case.padded.items():
        if name != "mask" and len(axes) == 1 and more[name].is_floating_point():
            more[name] = more[name].clone()
            more[name][~more["mask"]] = garbage
    more_value, more_grads = value_and_grads(case, more)
    assert_close(more_value, value, rtol=1e-12, atol=1e-12)
    for name, grad in grads.items():
        got = more_grads[name]
        if name in case.padded:
            assert ((got[:, d["mask"].shape[1]:] == 0).all()
                    and (got[~more["mask"]] == 0).all()), name
            got = got[:, :d["mask"].shape[1]]
        assert_close(got, grad, rtol=1e-12, atol=1e-12)


@every_loss
def test_batch_order_does_not_matter(case):
    d = make(N=8)
    d["group"] = torch.tensor([0, 1, 1, 2]).repeat(2)
    pairs = torch.tensor([2, 0, 3, 1])
    order = torch.cat([pairs, pairs + 4])
    shared = ("weight", "bias")
    shuffled = {name: x if name in shared else x[order] for name, x in d.items()}
    c = torch.rand(4 if case.per_pair else 8, dtype=torch.float64)
    out = pairs if case.per_pair else order
    value, grads = value_and_grads(case, d, c)
    shuffled_value, shuffled_grads = value_and_grads(case, shuffled, c[out])
    assert_close(shuffled_value, value[out], rtol=1e-12, atol=1e-12)
    for name, grad in grads.items():
        assert_close(
            shuffled_grads[name], grad if name in shared else grad[order], rtol=1e-11, atol=1e-12)


@padded_loss
def test_sentences_of_one_word_and_of_none(case):
    d = make()
    d["mask"] = torch.zeros_like(d["mask"])
    d["mask"][:3, 2] = True
    value, grads = value_and_grads(case, d)
    assert_close(
        value[:3],
        case.slow(
            {k: v if k in ("weight", "bias") else v[:3] for k, v in d.items()}
            if case is not CASES["CRL"]
            else d | {"mask": d["mask"] | (torch.arange(7) == 2)})[:3],
        rtol=1e-9, atol=1e-10)
    assert (value[3:] == 0).all()
    for name, grad in grads.items():
        assert grad.isfinite().all()
        if name in case.padded:
            assert (grad[~d["mask"]] == 0).all()


EXTREMES = {
    "hidden": 1e6, "weight": 1e6, "bias": 1e8, "y": 1e15, "positions": 1e30, "scores": 1e30,
    "probed": 1e15, "mu": 1e15}


@every_loss
@pytest.mark.parametrize("factor", ["huge", "tiny", "zero"])
def test_finite_at_extremes_in_float32(case, factor):
    d = make(dtype=torch.float32)
    scale = {"huge": EXTREMES, "tiny": dict.fromkeys(EXTREMES, 1e-12), "zero": dict.fromkeys(
        EXTREMES, 0.)}[factor]
    for name, by in scale.items():
        d[name] = d[name] * by
    d["logvar"] = {
        "huge": d["logvar"].clamp(-1, 1) * 80, "tiny": d["logvar"] * 1e-12,
        "zero": d["logvar"] * 0}[factor]
    d["kappa"] = {
        "huge": torch.full_like(d["kappa"], 1e5),
        "tiny": torch.full_like(d["kappa"], 1e-12),
        "zero": d["kappa"] * 0}[factor]
    value, grads = value_and_grads(case, d)
    assert value.dtype == torch.float32 and value.isfinite().all()
    assert all(g.isfinite().all() for g in grads.values())


@every_loss
@pytest.mark.parametrize("how", ["autocast bfloat16", "autocast float16", "bfloat16", "float16"])
def test_half_precision(case, how):
    """Under autocast and with half-precision arguments the result is float32, and as near to the
    truth as the rounded arguments and products allow."""
    exact = make(dtype=torch.float32)
    exact["group"] = torch.arange(3).repeat(2)
    if case in (CASES["SDL"], CASES["SDL_own"], CASES["SDL_violating"]):
        exact["y"] = torch.eye(4)[torch.tensor([0, 1, 2, 0, 1, 2])] + .1 * exact["y"]
    truth, true_grads = value_and_grads(case, exact)
    d = exact
    dtype = getattr(torch, how.split()[-1])
    if how.startswith("autocast"):
        value, grads = value_and_grads(case, d, autocast=dtype)
    else:
        d = {k: v.to(dtype) if v.is_floating_point() else v for k, v in d.items()}
        value, grads = value_and_grads(case, d)
    assert value.dtype == torch.float32 and value.isfinite().all()
    for name, grad in grads.items():
        assert grad.dtype == d[name].dtype and grad.isfinite().all()
    if (how.startswith("autocast")
        and case not in [CASES[n] for n in ("RL", "RL_recomputed", "CRL")]):
        # nothing in these may be rounded to half precision
        assert_close(value, truth, rtol=1e-6, atol=1e-7)
        for name, grad in grads.items():
            assert_close(grad, true_grads[name], rtol=1e-5, atol=1e-6)
    else:
        assert_close(value, truth, rtol=.03, atol=.06)


@pytest.mark.parametrize("keep", [True, False])
def test_huge_logits_under_autocast(keep):
    d = make(dtype=torch.float32)
    for name in "hidden", "weight":
        d[name] = d[name] * 1e5
    value, grads = value_and_grads(
        Case(lambda d: bow(d, block=7, keep=keep), None, ("hidden", "weight", "bias"), BAG), d,
        autocast=torch.bfloat16)
    assert value.isfinite().all() and all(g.isfinite().all() for g in grads.values())


@every_loss
def test_no_value_is_fetched_from_the_device(case):
    """Fake tensors have no values: a function that asks for one (item, nonzero, if), for which a
    GPU would have to wait, raises."""
    real = make(dtype=torch.float32)
    shape = case.fast(real).shape
    with FakeTensorMode():
        value, grads = value_and_grads(
            case, {k: torch.empty(v.shape, dtype=v.dtype) for k, v in real.items()})
        assert value.shape == shape and grads.keys() == set(case.grads)
        with pytest.raises(DataDependentOutputException):
            bool(value[0] > 0)  # what the check relies on


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_loss
def test_on_cuda(case):
    d = make()
    value, grads = value_and_grads(case, d)
    there = {k: v.cuda() for k, v in d.items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        cuda_value, cuda_grads = value_and_grads(case, there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(cuda_value.cpu(), value)
    for name in grads:
        assert_close(cuda_grads[name].cpu(), grads[name])


# ---------------------------------------------------------------- RL and CRL
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("block", [1, 22, 23, 24, 10**6])
def test_any_block_gives_the_same(block, keep):
    d = make()
    reference = value_and_grads(CASES["RL"], d)
    got = value_and_grads(
        Case(lambda d: bow(d, block=block, keep=keep), None, ("hidden", "weight", "bias"), BAG), d)
    assert_close(got, reference, rtol=1e-11, atol=1e-12)


def test_bag_of_words_with_a_frozen_output_layer_and_without_gradients():
    d = make()
    hidden = d["hidden"].requires_grad_()
    full = torch.autograd.grad(CASES["RL"].fast(d).sum(), hidden)[0]
    for frozen in ("weight", "bias"):
        assert not d[frozen].requires_grad
    assert_close(
        full,
        torch.autograd.grad(
            slow_bow(hidden, d["weight"], d["bias"], d["ids"], d["mask"]).sum(), hidden)[0])
    with torch.no_grad():
        assert_close(CASES["RL"].fast(d), CASES["RL"].slow(d))


def test_backward_twice_through_a_kept_graph_and_no_silent_second_derivative():
    d = make()
    hidden = d["hidden"].requires_grad_()
    loss = bow(d, block=5).sum()
    first = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
    assert_close(torch.autograd.grad(loss, hidden)[0], first, rtol=0, atol=0)
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(bow(d, block=5).sum(), hidden, create_graph=True)


def test_both_readings_in_one_call():
    d = make()
    both = L.bag_of_words_loss(
        L.decoder_inputs(d["y"], d["z"]), d["weight"], d["bias"], d["ids"], d["mask"], block=6)
    own = torch.cat([d["y"], d["z"]], -1)
    assert_close(both[0], slow_bow(own, d["weight"], d["bias"], d["ids"], d["mask"]))
    assert_close(both[1], slow_crl(d))


def test_disagreeing_shapes_are_an_error():
    d = make()
    for ids, mask in ((d["ids"][:3], d["mask"][:3]), (d["ids"][:, :3], d["mask"])):
        with pytest.raises(ValueError, match="must be"):
            bow(d | {"ids": ids, "mask": mask})


class Memory(TorchDispatchMode):
    "Follows the storages that operations return: bytes alive, their peak, and the largest."
    def __init__(self):
        super().__init__()
        self.live, self.peak, self.largest, self.seen = 0, 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {
            x.untyped_storage()._cdata
            for x in tree_leaves((args, kwargs))
            if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if not isinstance(x, Tensor):
                continue
            storage = x.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self.seen or key in known:
                continue
            self.seen.add(key)
            self.live += size
            self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)
            weakref.finalize(storage, self.forget, key, size)
        return out

    def forget(self, key, size):
        self.seen.discard(key)
        self.live -= size


def peak_of(loss, R=64, T=12, V=40_000, width=16):
    g = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(*s, generator=g).requires_grad_() for s in ((R, width), (V, width)))
    bias, ids = torch.zeros(V, requires_grad=True), torch.randint(V, (R, T), generator=g)
    with Memory() as memory:
        loss(hidden, weight, bias, ids, torch.ones(R, T).bool()).sum().backward()
    own = 4 * V * (width + 1)  # the gradients of the output layer
    return memory.peak - own, memory.largest, 4 * R * V


def naive(hidden, weight, bias, ids, mask):
    targets = torch.zeros(len(ids), len(weight)).scatter_add_(
        1, ids, mask / mask.sum(1, keepdim=True))
    return -(F.log_softmax(hidden @ weight.T + bias, 1) * targets).sum(1)


def test_memory_without_a_matrix_of_batch_times_vocabulary():
    """Recomputing, nothing of the size [B,V] exists; keeping, exactly the exponentials do; dense
    targets would be seen by this probe."""
    def chunked(*a): return L.bag_of_words_loss(*a, block=1000, keep=False)
    peak, largest, matrix = peak_of(chunked)
    assert largest < matrix / 3 and peak < matrix / 3, (peak / matrix, largest / matrix)
    peak, largest, matrix = peak_of(lambda *a: L.bag_of_words_loss(*a, block=1000))
    assert largest < matrix / 3 and peak < 1.3 * matrix, (peak / matrix, largest / matrix)
    peak, largest, matrix = peak_of(naive)
    assert largest >= matrix and peak >= 2.5 * matrix


# ---------------------------------------------------------------- KL
def test_kl_without_a_mask_is_one_posterior_per_sentence():
    d = make()
    all_of_them = torch.ones(6, 1).bool()
    assert_close(
        L.kl_z(d["mu"][:, 0], d["logvar"][:, 0]),
        L.kl_z(d["mu"][:, :1], d["logvar"][:, :1], all_of_them))
    assert_close(
        L.kl_y(d["loc"][:, 0], d["kappa"][:, 0]),
        L.kl_y(d["loc"][:, :1], d["kappa"][:, :1], all_of_them))


def test_kl_z_is_positive_and_zero_at_the_prior_alone():
    d = make()
    assert (L.kl_z(d["mu"], d["logvar"], d["mask"]) > 0).all()
    assert (L.kl_z(d["mu"] * 0, d["logvar"] * 0, d["mask"]) == 0).all()
    # near the prior: 1/2 (mu^2 + logvar^2 / 2) without cancellation
    assert_close(
        L.kl_z(
            torch.zeros(1, 1, dtype=torch.float64),
            torch.full((1, 1), 1e-5, dtype=torch.float64)).item(),
        2.5e-11, rtol=2e-5, atol=0)


@pytest.mark.parametrize("m, kappa", [(3, 1e-3), (20, 7.), (200, 1.), (200, 100.), (768, 1e3)])
def test_kl_y_at_model_sizes(m, kappa):
    loc = F.one_hot(torch.zeros(1).long(), m).double()
    assert_close(
        L.kl_y(loc, torch.tensor([kappa], dtype=torch.float64)).item(), exact_kl_y(kappa, m),
        rtol=1e-6, atol=1e-9)


def test_kl_y_of_another_posterior():
    d = make()
    loss = L.kl_y(d["loc"], d["kappa"], d["mask"], posterior="power_spherical")
    each = torch.distributions.kl_divergence(
        PowerSpherical(d["loc"], d["kappa"]), HypersphericalUniform(M))
    assert_close(loss, torch.stack([k[m].mean() for k, m in zip(each, d["mask"], strict=True)]))
    assert (loss - L.kl_y(d["loc"], d["kappa"], d["mask"])).abs().min() > 1e-3
    with pytest.raises(ParameterError, match="choose one of vmf, power_spherical"):
        L.kl_y(d["loc"], d["kappa"], posterior="gauss")


# ---------------------------------------------------------------- SDL
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 4), st.booleans(), st.integers(0, 5))
def test_negatives_are_never_translations(seed, B, languages, crossed, C):
    g = torch.Generator().manual_seed(seed)
    y = torch.randn(2 * B, 3, generator=g, dtype=torch.float64)
    group = torch.randint(languages, (B,), generator=g).repeat(2)
    extra = torch.randn(C, 3, generator=g, dtype=torch.float64)
    extra_group = torch.randint(languages + 1, (C,), generator=g)
    memory = (extra, extra_group) if C else ()
    negatives, found = L.hardest_negatives(y, group, *memory)
    bank, bank_group = torch.cat([y, extra]), torch.cat([group, extra_group])
    for i in range(2 * B):
        admissible = bank[bank_group != group[i]]
        assert found[i].item() == (len(admissible) > 0)
        if found[i]:
            assert (negatives[i] == admissible).all(1).any()
            assert not (negatives[i] == bank[bank_group == group[i]]).all(1).any()
            assert F.cosine_similarity(y[i], negatives[i], dim=0) == pytest.approx(
                F.cosine_similarity(y[i, None], admissible).max().item(), abs=1e-12)
    loss = L.semantic_discrimination_loss(y, negatives, found, crossed=crossed)
    assert_close(
        loss,
        slow_sdl(
            dict(y=y, group=group), crossed, extra=extra if C else None, extra_group=extra_group),
        rtol=1e-9, atol=1e-10)
    every = L.violating_discrimination_loss(y, group, *memory)
    assert_close(
        every,
        slow_violating(dict(y=y, group=group), extra=extra if C else None, extra_group=extra_group),
        rtol=1e-9, atol=1e-10)
    # a mean is at most the hardest
    assert (
        every <= L.semantic_discrimination_loss(y, negatives, found, crossed=False) + 1e-12).all()
    # slots of a memory that nothing is in
    empty = torch.cat([extra, y.detach()]), torch.cat([extra_group, torch.full((2 * B,), -1)])
    assert_close(
        L.violating_discrimination_loss(y, group, *empty),
        L.violating_discrimination_loss(y, group, extra, extra_group))


def test_twenty_translations_of_one_sentence_have_no_negative():
    y = (torch.ones(20, 8) + .01 * torch.randn(20, 8, generator=torch.Generator().manual_seed(
        0))).requires_grad_()
    negatives, found = L.hardest_negatives(y, torch.zeros(20, dtype=torch.long))
    loss = L.semantic_discrimination_loss(y, negatives, found)
    every = L.violating_discrimination_loss(y, torch.zeros(20, dtype=torch.long))
    assert (~found).sum() == 20 and (loss == 0).all() and (every == 0).all()
    (loss + every).sum().backward()
    assert (y.grad == 0).all()


@pytest.mark.parametrize("negatives", ["crossed", "own", "violating"])
def test_sdl_is_zero_exactly_when_the_margin_holds(negatives):
    """Pairs on orthogonal axes are told apart by 1; the hinge opens where that gap falls below the
    margin."""
    for gap, holds in ((1., True), (.41, True), (.39, False), (0., False)):
        # cosine with the other pair is 1 - gap, within the pair 1
        angle = torch.tensor(1 - gap, dtype=torch.float64).acos()
        a, b = torch.tensor([1., 0], dtype=torch.float64), torch.stack([angle.cos(), angle.sin()])
        y = torch.stack([a, b, a, b]).requires_grad_()
        group = torch.tensor([0, 1, 0, 1])
        loss = (
            L.violating_discrimination_loss(y, group)
            if negatives == "violating"
            else L.semantic_discrimination_loss(
                    y, *L.hardest_negatives(y, group), crossed=negatives == "crossed"))
        assert_close(loss, torch.full((2,), 2 * max(0., .4 - gap), dtype=torch.float64))
        loss.sum().backward()
        assert (y.grad == 0).all().item() == (holds or gap == 0.)


def test_own_negatives_are_the_harder_reading():
    for seed in range(20):
        d = make(N=12, seed=seed)
        assert (sdl(d, False) >= sdl(d, True) - 1e-12).all()


def test_begun_alike_the_hardest_negative_ends_in_one_point_and_all_violating_ones_do_not():
    """What edition refined is for: vectors with a large common part and a linear map that is
    trained with SDL alone."""
    g = torch.Generator().manual_seed(0)
    meaning = torch.randn(64, 32, generator=g)
    group = torch.arange(64).repeat(2)
    mean_cosine = {}
    sdl = {}
    # two noisy versions of each meaning, far from the origin
    x = 4 + torch.cat([meaning, meaning]) + 2.5 * torch.randn(128, 32, generator=g)
    def hardest(y):
        return L.semantic_discrimination_loss(y, *L.hardest_negatives(y, group), crossed=False)
    for name, loss in dict(
            hardest=hardest, violating=lambda y: L.violating_discrimination_loss(y, group)).items():
        torch.manual_seed(0)
        net = torch.nn.Linear(32, 32)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            loss(net(x)).mean().backward()
            optimizer.step()
        y = F.normalize(net(x).detach(), dim=-1)
        mean_cosine[name], sdl[name] = (y @ y.mT).mean().item(), hardest(y).mean().item()
    assert mean_cosine["hardest"] > .95 and abs(mean_cosine["violating"]) < .1
    # twice the margin is .8: even what it does not minimise is smaller
    assert sdl["hardest"] > .78 and sdl["violating"] < .7


def test_gradient_reaches_negatives_of_the_batch_and_of_a_memory():
    y = torch.tensor([[1., 0], [1, .2]], requires_grad=True)
    memory = torch.tensor([[1., .1]], requires_grad=True)
    L.semantic_discrimination_loss(
        y,
        *L.hardest_negatives(y, torch.tensor([0, 0]), memory, torch.tensor([1]))).sum().backward()
    assert y.grad.abs().sum() > 0 and memory.grad.abs().sum() > 0


# ---------------------------------------------------------------- WPL and POS
def test_wpl_of_an_ignorant_network_is_the_logarithm_of_the_length():
    mask = torch.arange(9) < torch.arange(1, 10)[:, None]
    assert_close(
        L.word_position_loss(torch.zeros(9, 9, 40), mask), torch.arange(1, 10).float().log())


def test_wpl_gives_positions_beyond_the_sentence_no_gradient():
    d = make()
    logits = d["positions"].requires_grad_()
    L.word_position_loss(logits, d["mask"]).sum().backward()
    beyond = torch.arange(P) >= d["mask"].sum(1, keepdim=True)
    assert (logits.grad.transpose(1, 2)[beyond] == 0).all()


def test_wpl_leaves_out_words_it_has_no_position_for():
    logits = torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(1, 7).bool()
    expected = -sum(logits[0, i].log_softmax(0)[i] for i in range(3)) / 3
    assert_close(L.word_position_loss(logits, mask)[0], expected)


def test_pos_is_cross_entropy_over_first_subwords():
    d = make()
    tags = d["tags"].masked_fill(~d["mask"], -100)
    # torch's own ignore_index
    one = torch.stack([F.cross_entropy(s, t) for s, t in zip(d["scores"], tags, strict=True)])
    assert_close(L.part_of_speech_loss(d["scores"], tags, d["mask"]), one)


# ---------------------------------------------------------------- STL
@pytest.mark.parametrize("W", [1, 2, 3, 8, 30])
def test_stl_is_zero_for_an_exact_embedding_of_a_tree(W):
    g = torch.Generator().manual_seed(W)
    rotation = torch.linalg.qr(torch.randn(W, W, generator=g))[0]
    depths, distances, embedding = (x[None] for x in a_tree(W, g))
    mask = torch.ones(1, W).bool()
    for probed in embedding, embedding @ rotation:
        assert L.tree_depth_loss(probed, depths, mask) < 1e-5
        assert L.tree_distance_loss(probed, distances, mask) < 1e-5
    if W > 1:
        assert L.tree_depth_loss(embedding * 1.1, depths, mask) > .05
        assert L.tree_distance_loss(embedding * 1.1, distances, mask) > .05
    # distances do not care where the root is, depths do
    assert (L.tree_distance_loss(embedding + 1, distances, mask) < 1e-5
            < L.tree_depth_loss(embedding + 1, depths, mask))


@pytest.fixture
def pud(real):
    "sent_id -> sentence of UD_English-PUD."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # stand-ins for files of other languages
        return {
            row["group"].partition("/")[2]: row
            for row in load_sentences(("pud",), languages=["en"])}


def test_the_notebook_types_its_sentence_correctly(pud):
    code = "".join("".join(c["source"]) for c in notebook() if c["cell_type"] == "code")
    assert re.search(r'forms = "(.+)"\.split', code)[1].split() == pud["n01067014"]["forms"]
    assert json.loads(re.search(r"heads = (\[.+\])", code)[1]) == pud["n01067014"]["heads"]


def test_stl_is_zero_for_every_real_tree(pud):
    for row in pud.values():
        heads, W = row["heads"], len(row["heads"])
        embedding = torch.zeros(1, W, W)  # a dimension for each edge, 1 in every word below it
        for word in range(W):
            up = word
            while heads[up]:
                embedding[0, word, up], up = 1, heads[up] - 1
        depths, distances = (
            torch.from_numpy(f(heads))[None] for f in (tree_depths, tree_distances))
        mask = torch.ones(1, W).bool()
        assert L.tree_distance_loss(embedding, distances, mask) < 1e-5
        assert L.tree_depth_loss(embedding, depths, mask) == 0


def test_depth_loss_is_bounded_below_where_the_printed_equation_is_not():
    d = make()
    assert (L.tree_depth_loss(d["probed"] * 1e3, d["depths"], d["mask"]) > 1e4).all()


@pytest.mark.parametrize("dtype, none", [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_a_sentence_z_gets_no_gradient_from_distances_and_a_token_z_does(dtype, none):
    g = torch.Generator().manual_seed(0)
    d = make(dtype=dtype)
    e, B = torch.randn(6, 7, 5, generator=g).to(dtype), torch.randn(4, 8, generator=g).to(dtype)
    for tokens, distance_reaches in ((1, False), (7, True)):
        z = torch.randn(6, tokens, 3, generator=g).to(dtype).requires_grad_()
        probed = torch.cat([e, z.expand(-1, 7, -1)], -1) @ B.T
        by_distance, = torch.autograd.grad(
            L.tree_distance_loss(probed, d["distances"], d["mask"]).sum(), z, retain_graph=True)
        by_depth, = torch.autograd.grad(L.tree_depth_loss(probed, d["depths"], d["mask"]).sum(), z)
        assert by_depth.abs().max() > .1
        assert by_distance.abs().max() > .1 if distance_reaches else by_distance.abs().max() < none


def test_distances_survive_a_large_common_offset_in_float32():
    "A sentence-level z moves all words together; the distances must not drown in it."
    d = make(dtype=torch.float32)
    moved = L.tree_distance_loss(d["probed"] + 300, d["distances"], d["mask"])
    assert_close(
        moved, L.tree_distance_loss(d["probed"], d["distances"], d["mask"]), rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------- sums
def test_objective_adds_weighted_means():
    terms = {
        name: torch.rand(5, generator=torch.Generator().manual_seed(i))
        for i, name in enumerate(L.TERMS["s2dm_sp"])}
    for wanted in (*((t,) for t in terms), L.TERMS["s2dm_sp"], L.TERMS["s2dm_single_sp"]):
        assert_close(
            L.objective(terms, wanted), torch.stack([terms[t].mean() for t in wanted]).sum())
        weights = {wanted[0]: 3.}
        assert_close(
            L.objective(terms, wanted, weights),
            torch.stack([terms[t].mean() for t in wanted]).sum() + 2 * terms[wanted[0]].mean())
    assert {"baseline", *L.TERMS} <= set(VARIANTS) and set(L.WEIGHTS) == set(EDITIONS)


@pytest.mark.parametrize("wanted, weights, message", [
    (("RL", "KL_y"), {}, "missing term 'KL_y'"),
    (("RL", "NOPE"), {}, "missing term 'NOPE'"),
    (("RL",), {"rl": 2.}, "unknown weight 'rl'"),
    (("RL",), {"SDL": 2.}, "unknown weight 'SDL'.*RL"),
    ((), {}, "no term")])
def test_objective_names_what_is_wrong(wanted, weights, message):
    with pytest.raises(ValueError, match=message):
        L.objective({"RL": torch.ones(2), "SDL": torch.ones(2)}, wanted, weights)


def test_functions_take_keywords():
    d = make()
    assert_close(L.kl_z(mu=d["mu"], logvar=d["logvar"], mask=d["mask"]), CASES["KL_z"].fast(d))
    assert_close(
        L.tree_depth_loss(mask=d["mask"], depths=d["depths"], probed=d["probed"]),
        CASES["STL_depth"].fast(d))


# ---------------------------------------------------------------- mean and sum
def units(mask): return mask.sum(1)


REDUCED = {
    "RL": (lambda d, how: bow(d, block=7, reduction=how), units),
    "CRL": (lambda d, how: crl(d, reduction=how), units),
    "WPL": (lambda d, how: L.word_position_loss(d["positions"], d["mask"], how), units),
    "POS": (lambda d, how: L.part_of_speech_loss(d["scores"], d["tags"], d["mask"], how), units),
    "STL_depth": (
        lambda d, how: L.tree_depth_loss(d["probed"], d["depths"], d["mask"], how), units),
    "STL_distance": (
        lambda d, how: L.tree_distance_loss(d["probed"], d["distances"], d["mask"], how),
        lambda mask: units(mask) ** 2)}


@pytest.mark.parametrize("name", REDUCED)
def test_the_sum_is_the_mean_times_what_counts(name):
    "In value and in gradient; a sentence in which nothing counts costs 0 either way."
    loss, count = REDUCED[name]
    d = make()
    d["mask"][2] = False
    inputs = CASES[name].grads
    d = d | {key: d[key].requires_grad_() for key in inputs}
    mean, total = loss(d, "mean"), loss(d, "sum")
    assert_close(total, mean * count(d["mask"]))
    assert total[2] == 0 and (total > mean).sum() >= 3
    scaled = torch.autograd.grad(
        (mean * count(d["mask"])).sum(), [d[key] for key in inputs], retain_graph=True)
    for got, want in zip(
            torch.autograd.grad(total.sum(), [d[key] for key in inputs]), scaled, strict=True):
        assert_close(got, want)


def test_sums_by_hand():
    "Two words of three: each loss is the sum of two numbers (of four, for the pairs of words)."
    mask, half = torch.tensor([[True, True, False]]), torch.tensor(2.).log()
    assert_close(L.word_position_loss(torch.zeros(1, 3, 9), mask, "sum"), 2 * half[None])
    assert_close(
        L.part_of_speech_loss(torch.zeros(1, 3, 2), torch.tensor([[1, 0, 7]]), mask, "sum"),
        2 * half[None])
    # squared lengths 1 and 4, squared distance 5
    probed = torch.tensor([[[1., 0], [0, 2], [9, 9]]])
    assert L.tree_depth_loss(probed, torch.tensor([[0, 1, 5]]), mask, "sum").item() == 1 + 3
    assert (L.tree_distance_loss(probed, torch.ones(1, 3, 3) - torch.eye(3), mask, "sum").item()
            == 2 * 4)
    ids, weight = torch.tensor([[0, 1, 7]]), torch.zeros(2, 1)
    assert_close(
        L.bag_of_words_loss(torch.ones(1, 1), weight, torch.zeros(2), ids, mask, reduction="sum"),
        2 * half[None])


@pytest.mark.parametrize("name", REDUCED)
def test_another_reduction_is_refused(name):
    with pytest.raises(ParameterError, match="reduction='median' is not possible"):
        REDUCED[name][0](make(), "median")


# ---------------------------------------------------------------- the notebook's promises
def test_every_deviation_marker_has_its_row_and_every_row_its_marker():
    cells = notebook()
    code = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    table = next(
        "".join(c["source"]) for c in cells if "".join(c["source"]).startswith("## Deviations"))
    markers = set(re.findall(r"# DEVIATION (\d+)", code))
    assert (markers == set(re.findall(r"^\| (\d+) \|", table, re.M))
            == {str(i) for i in range(1, len(markers) + 1)})


def test_one_section_for_each_loss():
    cells = notebook()
    titles = re.findall(
        r"^## (.+)$",
        "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown"), re.M)
    assert [t for t in titles if t not in ("Conventions", "All together", "Deviations")] == [
        "RL", "KL of z", "KL of y", "CRL", "SDL", "WPL", "POS", "STL depth", "STL distance",
        "L1 and L2"]
