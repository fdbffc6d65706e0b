"""Hard tests of s2dm.vmf: mpmath and scipy as oracles, the whole grid of dimensions and
concentrations, both distributions."""
import math
import re
import warnings
from functools import lru_cache

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from s2dm import vmf
from s2dm.vmf import (
    HypersphericalUniform,
    PowerSpherical,
    VonMisesFisher,
    bessel_ratio,
    kl_divergence,
    log_area,
    log_bessel,
    log_mgf,
    log_normalizer,
)

DIMS = (2, 3, 5, 20, 64, 200, 768, 1024)
CONCENTRATIONS = (
    1e-3, 3e-3, .01, .1, .5, 1, 2, 5, 10, 12, 23.7, 37, 50, 100, 125, 150, 300, 500, 1e3, 2e3, 5e3,
    1e4, 3e4, 1e5)
FAMILIES = (VonMisesFisher, PowerSpherical)
f64 = dict(dtype=torch.float64)


def unit(m, i=0, **kw):
    return torch.eye(m, **kw)[i]


def some_loc(m, seed=0, **kw):
    return normalize(torch.randn(m, generator=torch.Generator().manual_seed(seed), **kw), dim=-1)


# ---- Bessel functions, KL, entropy and their derivatives

@lru_cache(None)
def oracle(m, k):
    "Values and derivatives in k with sixty digits."
    with mpmath.workdps(60):
        v, k = mpmath.mpf(m) / 2 - 1, mpmath.mpf(k)
        lower, upper = mpmath.besseli(v, k), mpmath.besseli(v + 1, k)
        A = upper / lower
        dA = 1 - A * A - (m - 1) / k * A
        d2A = -2 * A * dA - (m - 1) * (dA / k - A / k**2)
        area = (mpmath.log(2) + mpmath.mpf(m) / 2 * mpmath.log(mpmath.pi)
                - mpmath.loggamma(mpmath.mpf(m) / 2))
        ell = mpmath.log(lower) - v * mpmath.log(k / 2) + mpmath.loggamma(v + 1)
        kl = k * A - ell
        both = {
            "log_bessel": (mpmath.log(lower), A + v / k), "log_mgf": (ell, A), "ratio": (A, dA),
            "log_normalizer": (-ell - area, -A), "kl": (kl, k * dA),
            "entropy": (area - kl, -k * dA), "slope": (dA, d2A)}
        return {name: tuple(float(x) for x in pair) for name, pair in both.items()}


def ours(name, m, k):
    if name == "log_bessel":
        return log_bessel(m / 2 - 1, k)
    if name in ("log_mgf", "ratio", "log_normalizer"):
        return {"log_mgf": log_mgf, "ratio": bessel_ratio, "log_normalizer": log_normalizer}[name](
            m, k)
    d = VonMisesFisher(unit(m, dtype=k.dtype), k)
    return d.entropy() if name == "entropy" else kl_divergence(d, HypersphericalUniform(m))


@pytest.mark.parametrize("m", DIMS)
@pytest.mark.parametrize(
    "name", ["log_bessel", "log_mgf", "ratio", "log_normalizer", "kl", "entropy"])
def test_values_and_first_derivatives(name, m):
    k = torch.tensor(CONCENTRATIONS, **f64, requires_grad=True)
    value = ours(name, m, k)
    slope, = torch.autograd.grad(value.sum(), k)
    truth = torch.tensor([oracle(m, x)[name] for x in CONCENTRATIONS], **f64)
    for got, want in zip((value.detach(), slope), truth.T, strict=True):
        # relative everywhere, though 1e-9 absolute would do near 0
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("m", DIMS)
def test_float32_in_and_out(m):
    k = torch.tensor(CONCENTRATIONS, requires_grad=True)
    for name in ("log_bessel", "log_mgf", "ratio", "log_normalizer", "kl", "entropy"):
        value = ours(name, m, k)
        assert value.dtype == torch.float32
        slope, = torch.autograd.grad(value.sum(), k)
        truth = torch.tensor([oracle(m, x.item())[name] for x in k], **f64)
        torch.testing.assert_close(value.detach().double(), truth[:, 0], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(slope.double(), truth[:, 1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("m", DIMS)
def test_second_derivative(m):
    k = torch.tensor([x for x in CONCENTRATIONS if x <= 1e4], **f64, requires_grad=True)
    slope, = torch.autograd.grad(bessel_ratio(m, k).sum(), k, create_graph=True)
    curvature, = torch.autograd.grad(slope.sum(), k)
    truth = torch.tensor([oracle(m, x.item())["slope"][1] for x in k], **f64)
    torch.testing.assert_close(curvature, truth, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("m", DIMS)
def test_concentration_zero(m):
    k = torch.zeros(3, **f64, requires_grad=True)
    A, ell = bessel_ratio(m, k), log_mgf(m, k)
    assert (A == 0).all() and (ell == 0).all() and (log_normalizer(m, k) == -log_area(m)).all()
    slope, = torch.autograd.grad(A.sum(), k, create_graph=True)
    torch.testing.assert_close(slope, torch.full_like(slope, 1 / m))
    assert (torch.autograd.grad(slope.sum(), k)[0].abs() < 1e-12).all()
    d = VonMisesFisher(unit(m, **f64), k)
    kl = kl_divergence(d, HypersphericalUniform(m))
    assert (kl == 0).all() and (torch.autograd.grad(kl.sum(), k)[0] == 0).all()
    assert (d.entropy() == log_area(m)).all()
    assert torch.equal(log_bessel(0, k.detach()), torch.zeros(3, **f64))
    assert (log_bessel(1.5, k.detach()) == -math.inf).all()


HIGH = (2.**20 * 1.01, 1e7, 1e9, 1e12, 1e15, 1e16, 1e18)


@lru_cache(None)
def high_oracle(m, k):
    "log density at the mean, KL, and the first two derivatives of both in k, with 140 digits."
    with mpmath.workdps(140):
        v, k = mpmath.mpf(m) / 2 - 1, mpmath.mpf(k)
        lower, upper = mpmath.besseli(v, k), mpmath.besseli(v + 1, k)
        A = upper / lower
        dA = 1 - A * A - (m - 1) / k * A
        d2A = -2 * A * dA - (m - 1) * (dA / k - A / k**2)
        ell = mpmath.log(lower) - v * mpmath.log(k / 2) + mpmath.loggamma(v + 1)
        rest = k - ell, 1 - A, -dA
        kl = k * A - ell, k * dA, dA + k * d2A
        return tuple(tuple(float(x) for x in row) for row in (rest, kl))


@pytest.mark.parametrize("m", [2, 3, 5, 20, 49, 50, 200, 768, 1024])
def test_divergence_and_density_at_high_concentrations(m):
    "Values, slopes and curvatures, each to nine digits."
    k = torch.tensor(HIGH, **f64, requires_grad=True)
    mu = unit(m, **f64)
    d = VonMisesFisher(mu, k)
    kl = kl_divergence(d, HypersphericalUniform(m))
    rest = d.log_prob(mu) + log_area(m)
    for name, value in (("kl", kl), ("rest", rest)):
        slope, = torch.autograd.grad(value.sum(), k, create_graph=True)
        curvature, = torch.autograd.grad(slope.sum(), k)
        got = torch.stack([value, slope, curvature], -1).detach()
        want = torch.tensor([high_oracle(m, x)[name == "kl"] for x in HIGH], **f64)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=0)
    assert torch.equal(d.entropy(), log_area(m) - kl)
    d_entropy, = torch.autograd.grad(d.entropy().sum(), k)
    slopes = torch.tensor([high_oracle(m, x)[1][1] for x in HIGH], **f64)
    torch.testing.assert_close(-d_entropy, slopes, rtol=1e-9, atol=0)
    variance = torch.tensor([-high_oracle(m, x)[0][2] for x in HIGH], **f64)
    torch.testing.assert_close(d.variance[:, 0], variance, rtol=1e-9, atol=0)
    assert kl_divergence(d, d).abs().max() < 1e-9


def test_divergence_at_high_concentrations_in_float32():
    for m in (2, 200):
        k = torch.tensor(HIGH[:-1], requires_grad=True)
        kl = kl_divergence(VonMisesFisher(unit(m), k), HypersphericalUniform(m))
        slope, = torch.autograd.grad(kl.sum(), k)
        want = torch.tensor([high_oracle(m, x)[1][:2] for x in k.tolist()])
        torch.testing.assert_close(torch.stack([kl.detach(), slope], -1), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("m", [2, 3, 200])
@pytest.mark.parametrize("k", [2e6, 1e12, 1e15, 1e18])
@pytest.mark.parametrize("family", FAMILIES)
def test_samples_and_their_gradient_at_high_concentrations(family, m, k):
    "Close to mu, 1 - w is a gamma variable; dw/dk has the slope of the mean as its mean."
    torch.manual_seed(m)
    n = 20_000
    loc = some_loc(m, **f64)
    K = torch.full((n,), k, **f64)
    d = family(loc, K)
    gap = d._sample_gap(K)
    rate = k if family is VonMisesFisher else k / 2
    gamma = scipy.stats.gamma((m - 1) / 2, scale=1 / rate)
    assert scipy.stats.kstest(gap.numpy(), gamma.cdf).pvalue > 1e-3
    dw = d._slope(gap) * gap * (2 - gap)
    assert dw.isfinite().all() and (dw > 0).all()
    truth = (m - 1) / 2 / rate / k
    assert within(dw[:, None], truth) and dw.std() / math.sqrt(n) < .02 * truth
    # at a fixed quantile a gamma variable is proportional to 1/k
    torch.testing.assert_close(dw, gap / k, rtol=1e-3, atol=0)
    if k <= 1e15:
        _, d_k = per_sample_gradients(family, m, k, n, lambda x: distance(x, loc) * -1)
        assert within(d_k[:, None], truth, 5)


@pytest.mark.parametrize("m", [2, 3, 200])
def test_power_spherical_at_high_concentrations(m):
    k = torch.tensor(HIGH, **f64, requires_grad=True)
    kl = kl_divergence(PowerSpherical(unit(m, **f64), k), HypersphericalUniform(m))
    slope, = torch.autograd.grad(kl.sum(), k)
    with mpmath.workdps(80):
        b = mpmath.mpf(m - 1) / 2
        for x, *got in zip(HIGH, kl.tolist(), slope.tolist(), strict=True):
            x = mpmath.mpf(x)
            a, psi = b + x, mpmath.psi
            log_mgf = mpmath.loggamma(a) + mpmath.loggamma(2 * b)
            log_mgf -= mpmath.loggamma(a + b) + mpmath.loggamma(b)
            want = x * (psi(0, a) - psi(0, a + b)) - log_mgf, x * (psi(1, a) - psi(1, a + b))
            assert got == pytest.approx([float(y) for y in want], rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wrong", [1e19, 3e38])
def test_beyond_float64_there_are_samples_but_no_density(family, wrong):
    x = some_loc(5)
    k = torch.tensor([1., wrong])
    d, plain = family(x, k), VonMisesFisher(x, 2.)
    quiet = family(x, k, validate_args=False)
    says = f"1 of 2 concentrations, such as {k[1].item()}, are not finite or above 1e+18"
    uniform = HypersphericalUniform(5)
    for f in (lambda d: d.entropy(), lambda d: d.log_prob(x), lambda d: d.mean[..., 0],
              lambda d: d.variance[..., 0], lambda d: kl_divergence(d, uniform),
              lambda d: kl_divergence(d, plain)):
        with pytest.raises(vmf.ConcentrationError, match=re.escape(says)): f(d)
        assert f(quiet).isfinite().tolist() == [True, False] # the loss finds it
    k.requires_grad_()
    sample = family(x, k).rsample((50,))
    sample.sum().backward()
    assert (sample[:, 1] - x).abs().max() < 1e-6 and k.grad.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_makes_no_sampler_loop(family, wrong):
    k = torch.tensor([1., wrong])
    with pytest.raises(ValueError, match="concentration"): family(some_loc(5), k)
    d = family(some_loc(5), k, validate_args=False)
    for kind in (vmf.ConcentrationError, FloatingPointError, ValueError):
        with pytest.raises(kind, match=f"1 of 2 concentrations, such as {wrong}"): d.rsample()


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_unchecked_samples_of_what_is_not_finite_are_nan(wrong, monkeypatch):
    "The way of a GPU, where nothing may be asked."
    real = vmf._in_range
    def unasked(k, checked=True, highest=vmf._HIGHEST): return real(k, False, highest)
    monkeypatch.setattr(vmf, "_in_range", unasked)
    k = torch.tensor([1., wrong], **f64)
    for gap in (vmf._vmf_gap(5, k, fixed=True), vmf._beta_gap(k, 2.)):
        assert gap.isfinite().tolist() == [True, False]


def test_a_rejection_that_never_accepts_ends(monkeypatch):
    def never(m, k): return (torch.zeros_like(k), torch.zeros_like(k, dtype=torch.bool))
    monkeypatch.setattr(vmf, "_propose", never)
    says = "no proposal was accepted in 500 rounds for 3 samples"
    with pytest.raises(vmf.ConcentrationError, match=says):
        VonMisesFisher(some_loc(5), torch.ones(3)).sample()


def test_gradgradcheck():
    k = torch.tensor([0., .2, 3., 40., 500.], **f64, requires_grad=True)
    for m in (2, 3, 20, 200):
        def kl(k, m=m):
            return kl_divergence(
                VonMisesFisher(unit(m, **f64), k, validate_args=False), HypersphericalUniform(m))
        for f in (kl, lambda k, m=m: bessel_ratio(m, k), lambda k, m=m: log_mgf(m, k)):
            assert torch.autograd.gradcheck(f, k) and torch.autograd.gradgradcheck(f, k)


def test_kl_published_numbers():
    want = {
        1: .00249991, 10: .249077, 50: 5.73811, 100: 18.85057, 125: 26.3095, 150: 33.8028,
        1e3: 170.777, 1e4: 391.072, 1e5: 619.297}
    got = kl_divergence(
        VonMisesFisher(unit(200), torch.tensor([float(k) for k in want])),
        HypersphericalUniform(200))
    torch.testing.assert_close(got, torch.tensor(list(want.values())), rtol=3e-6, atol=0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 1100), st.floats(0, 1e6))
def test_properties_of_the_scalar_functions(m, x):
    k = torch.tensor([x, x * 1.01 + 1e-3], **f64, requires_grad=True)
    A, ell = bessel_ratio(m, k), log_mgf(m, k)
    kl = kl_divergence(VonMisesFisher(unit(m, **f64), k), HypersphericalUniform(m))
    assert (A >= 0).all()
    assert (A < 1).all()
    assert (kl >= 0).all()
    assert (ell >= 0).all()
    assert (ell <= k).all()
    assert A[1] > A[0] and kl[1] > kl[0] and ell[1] > ell[0]
    slope, = torch.autograd.grad(A.sum(), k)
    assert (slope > 0).all() and (slope <= 1 / m + 1e-12).all()


@pytest.mark.parametrize("m", DIMS)
def test_power_spherical_kl_and_entropy(m):
    k = torch.tensor((0., *CONCENTRATIONS), **f64, requires_grad=True)
    d = PowerSpherical(unit(m, **f64), k)
    kl = kl_divergence(d, HypersphericalUniform(m))
    slope, = torch.autograd.grad(kl.sum(), k, create_graph=True)
    curvature, = torch.autograd.grad(slope.sum(), k)
    with mpmath.workdps(60):
        b = mpmath.mpf(m - 1) / 2
        for x, *got in zip(
                k.tolist(), kl.tolist(), slope.tolist(), d.entropy().tolist(), curvature.tolist(),
                strict=True):
            a, psi = b + mpmath.mpf(x), mpmath.psi
            log_mgf = (mpmath.loggamma(a) + mpmath.loggamma(2 * b) - mpmath.loggamma(a + b)
                       - mpmath.loggamma(b))
            want_kl = x * (psi(0, a) - psi(0, a + b)) - log_mgf
            var = psi(1, a) - psi(1, a + b)
            want = [
                float(y)
                for y in (want_kl, x * var, log_area(m) - want_kl,
                          var + x * (psi(2, a) - psi(2, a + b)))]
            assert got == pytest.approx(want, rel=1e-6, abs=1e-9)
    assert kl[0] == 0 and slope[0] == 0


# ---- sampler

def vmf_cdf(m, k, n=200_001):
    "Function F of 1 - w, by the trapezoidal rule in the angle."
    gap = float(vmf._bessel_values(m, torch.tensor(float(k), **f64))[2])
    theta = np.linspace(0, min(math.pi, math.acos(1 - gap) + 40 / math.sqrt(k + 1)), n)[1:]
    log_f = -2 * k * np.sin(theta / 2) ** 2 + (m - 2) * np.log(np.sin(theta).clip(1e-300))
    f = np.exp(log_f - log_f.max())
    F = (np.cumsum(f) - f / 2) / f.sum()
    return lambda x: np.interp(x, 2 * np.sin(theta / 2) ** 2, F)


def power_cdf(m, k):
    return lambda x: scipy.stats.beta((m - 1) / 2, (m - 1) / 2 + k).cdf(x / 2)


SAMPLER_GRID = [(200, k) for k in (10.5, 12, 50, 100, 125, 150, 500, 2000, 1e5)] + [
    (m, k) for m in (2, 3, 5, 20, 64, 768, 1024) for k in (0., 1e-3, .5, 10.5, 100, 1e5)]


def distance(x, loc):
    "1 - loc.x with all its digits."
    return (x - loc).square().sum(-1) / 2


@pytest.mark.parametrize("family,cdf", [(VonMisesFisher, vmf_cdf), (PowerSpherical, power_cdf)])
@pytest.mark.parametrize("m,k", SAMPLER_GRID)
def test_sampler(family, cdf, m, k):
    torch.manual_seed(int(m + k))
    n = 20_000 if m == 200 else 8000
    d = family(some_loc(m, **f64), k)
    gap = distance(d.sample((n,)), d.loc)
    mean, var, mean_gap = (x.item() for x in d._height())
    assert abs(gap.mean().item() - mean_gap) < 4 * math.sqrt(var / n)
    assert gap.var().item() == pytest.approx(var, rel=.15)
    assert scipy.stats.kstest(gap.numpy(), cdf(m, k)).pvalue > 1e-3


@pytest.mark.parametrize("m,k", [
    (2, 0.), (2, 1e5), (3, 2.), (20, 100), (200, 10.5), (200, 125), (200, 2000), (1024, 1e5)])
def test_fixed_number_of_proposals(m, k):
    "The way a GPU samples, which asks nothing of the host."
    torch.manual_seed(3)
    gap = vmf._vmf_gap(m, torch.full((100, 80), float(k), **f64), fixed=True)
    assert gap.shape == (100, 80)
    assert scipy.stats.kstest(gap.flatten().numpy(), vmf_cdf(m, k)).pvalue > 1e-3


def test_nothing_is_left_after_the_fixed_number_of_proposals():
    torch.manual_seed(0)
    worst = min(
        vmf._propose(m, torch.full((100_000,), k, **f64))[1].double().mean().item()
        for m in (2, 3, 4)
        for k in (10., 1e3, 1e5, 1e8))
    assert (1 - worst + .01) ** 40 < 2**-53


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("m", [2, 3, 4, 200])
@pytest.mark.parametrize("which", ["e1", "-e1", "near e1", "near -e1", "e2", "random"])
def test_uniform_around_loc(family, m, which):
    """Around loc no direction is preferred, and float32 samples have length one, also for the
    awkward locs."""
    e1 = unit(m)
    loc = {
        "e1": e1, "-e1": -e1, "near e1": normalize(e1 + 3e-7, dim=-1),
        "near -e1": normalize(-e1 - 3e-7, dim=-1), "e2": unit(m, 1), "random": some_loc(m)}[which]
    torch.manual_seed(m)
    x = family(loc, 5.).sample((8000,))
    assert x.dtype == torch.float32 and (x.norm(dim=-1) - 1).abs().max() < 1e-5
    across = some_loc(m, 1, **f64)
    across = normalize(across - (across @ loc.double()) * loc.double(), dim=-1)
    gap = distance(x.double(), loc.double())
    part = (x.double() @ across) / (gap * (2 - gap)).sqrt()
    if m == 2:
        assert ((part.abs() - 1).abs() < 1e-2)[gap > 1e-4].all()
        assert abs((part > 0).double().mean() - .5) < 4 * .5 / math.sqrt(8000)
    else:
        a = (m - 2) / 2
        assert (scipy.stats.kstest(part.numpy(), scipy.stats.beta(a, a, loc=-1, scale=2).cdf).pvalue
                > 1e-3)
    d = family(loc.double(), 5.)
    assert ((x.double().mean(0) - d.mean).abs() < 4.5 * (d.variance / 8000).sqrt()).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_extremes_are_finite(family):
    torch.manual_seed(0)
    for m in (2, 3, 5, 64, 1024):
        e1 = unit(m)
        loc = normalize(
            torch.stack([e1, -e1, e1 + 1e-6, -e1 - 1e-6, e1 + 1e-7, some_loc(m)]),
            dim=-1).unsqueeze(1).requires_grad_()
        k = torch.tensor([0., 1e-30, 1e-3, 1., 100., 1e5, 1e8], requires_grad=True)
        d = family(loc, k)
        x = d.rsample((40,))
        (x.square() * torch.arange(m)).sum().add(
            kl_divergence(d, HypersphericalUniform(m)).sum()).add(d.log_prob(x).sum()).backward()
        assert (x.norm(dim=-1) - 1).abs().max() < 1e-5
        for t in (x, d.mean, d.variance, d.entropy(), loc.grad, k.grad):
            assert t.isfinite().all()


def test_float32_samples_match_the_distribution_at_high_concentration():
    torch.manual_seed(0)
    for m, k in ((5, 1e4), (200, 1e5)):
        d = VonMisesFisher(some_loc(m), k)
        gap = distance(d.sample((8000,)).double(), d.loc.double())
        assert scipy.stats.kstest(gap.numpy(), vmf_cdf(m, k)).pvalue > 1e-3


def test_a_zero_gaussian_gives_no_nan(monkeypatch):
    locs = [some_loc(m) for m in (2, 5)]
    monkeypatch.setattr(torch, "randn", torch.zeros)
    monkeypatch.setattr(torch.Tensor, "normal_", torch.Tensor.zero_)
    for loc in locs:
        m = len(loc)
        x = VonMisesFisher(loc, torch.ones(4)).sample()
        assert (x.norm(dim=-1) - 1).abs().max() < 1e-5
        assert torch.equal(HypersphericalUniform(m).sample((2,)), unit(m).expand(2, m))


def test_seed_decides_the_sample():
    d = VonMisesFisher(some_loc(20), 7.)
    torch.manual_seed(5)
    a = d.sample((6,))
    torch.manual_seed(5)
    assert torch.equal(a, d.sample((6,))) and not torch.equal(a, d.sample((6,)))


# ---- scipy as second oracle

@pytest.mark.parametrize("m,k", [(2, .7), (3, 5.), (5, 60.), (20, 12.), (64, 150.)])
def test_scipy(m, k):
    torch.manual_seed(m)
    d = VonMisesFisher(some_loc(m, **f64), k)
    s = scipy.stats.vonmises_fisher(d.loc.numpy(), k)
    x = d.sample((3000,))
    np.testing.assert_allclose(d.log_prob(x).numpy(), s.logpdf(x.numpy()), rtol=1e-9, atol=1e-9)
    assert d.entropy().item() == pytest.approx(s.entropy(), rel=1e-9)
    theirs = s.rvs(3000, random_state=m)
    assert scipy.stats.ks_2samp((x @ d.loc).numpy(), theirs @ d.loc.numpy()).pvalue > 1e-3


# ---- gradients

def per_sample_gradients(family, m, k, n, f, loc=None):
    "Gradients of f(x) in loc and in the concentration, one row per sample."
    loc = (some_loc(m, **f64) if loc is None else loc).expand(n, m).clone().requires_grad_()
    k = torch.full((n,), float(k), **f64, requires_grad=True)
    return torch.autograd.grad(f(family(loc, k).rsample()).sum(), (loc, k))


def within(draws, truth, errors=4.):
    return bool(
        ((draws.mean(0) - truth).abs()
         <= errors * draws.std(0) / math.sqrt(len(draws)) + 1e-12).all())


@pytest.mark.parametrize("m", [2, 3, 5, 20, 200])
@pytest.mark.parametrize("k", [.5, 2, 10, 100, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_of_the_mean_in_the_concentration(family, m, k):
    torch.manual_seed(m + int(k))
    loc = some_loc(m, **f64)
    _, d_k = per_sample_gradients(family, m, k, 20_000, lambda x: x @ loc)
    truth = oracle(m, k)["ratio"][1] if family is VonMisesFisher else (m - 1) / (k + m - 1) ** 2
    assert within(d_k, truth)
    # the test has power: 2 % is one standard error at the very most
    assert d_k.std() / math.sqrt(len(d_k)) < .02 * truth


@pytest.mark.parametrize("m,k", [(2, 2.), (3, .5), (5, 10.), (20, 10.), (200, 100.)])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_of_a_nonlinear_function(family, m, k):
    "d/dk E f = E f (S - E S), by quadrature."
    torch.manual_seed(1)
    loc = some_loc(m, **f64)
    def f(w): return torch.sin(9 * w) + w**4
    theta = (torch.arange(400_000, **f64) + .5) * (math.pi / 400_000)
    w = theta.cos()
    S = w if family is VonMisesFisher else torch.log1p(w)
    log_p = k * S + (m - 2) * theta.sin().log()
    p = torch.softmax(log_p, 0)
    truth = (p * f(w) * (S - (p * S).sum())).sum()
    _, d_k = per_sample_gradients(family, m, k, 40_000, lambda x: f(x @ loc))
    assert within(d_k, truth)


@pytest.mark.parametrize("m,k", [(2, 2.), (3, .5), (5, 10.), (20, 10.), (200, 100.)])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_in_loc(m, k, seed):
    """E exp(c.x) = M(|k mu + c|) / M(k): its gradient along the sphere, for a loc on either side of
    the reflection's cut."""
    torch.manual_seed(seed)
    loc = some_loc(m, **f64)
    loc = (loc * (1 if (loc[0] > 0) == bool(seed) else -1)).requires_grad_()
    c = some_loc(m, 7, **f64) * 2
    truth, = torch.autograd.grad(
        (log_mgf(m, (k * loc + c).norm()) - log_mgf(m, torch.tensor(k, **f64))).exp(), loc)
    mu = loc.detach()
    d_loc, _ = per_sample_gradients(VonMisesFisher, m, k, 40_000, lambda x: (x @ c).exp(), mu)
    assert within(d_loc, truth - (truth @ mu) * mu, 4.5)
    assert (d_loc @ mu).abs().max() < 1e-9


@pytest.mark.parametrize("m,k", [(2, 2.), (5, 10.), (200, 100.)])
def test_gradient_in_loc_power_spherical(m, k):
    torch.manual_seed(0)
    mu, c = some_loc(m, **f64), some_loc(m, 7, **f64)
    mean, var, _ = PowerSpherical(mu, k)._height()
    square = var + mean**2
    truth = 2 * (square - (1 - square) / (m - 1)) * (c @ mu) * (c - (c @ mu) * mu)
    d_loc, _ = per_sample_gradients(PowerSpherical, m, k, 40_000, lambda x: (x @ c).square(), mu)
    assert within(d_loc, truth, 4.5)


@pytest.mark.parametrize("m", [2, 3, 20, 200, 1024])
@pytest.mark.parametrize("k", [1e-3, 2., 100., 1e5, 1e8, 1e12])
def test_implicit_slope_against_mpmath(m, k):
    "The derivative of one sample at a fixed quantile, sample by sample, far into both tails."
    _, _, gap = vmf._bessel_values(m, torch.tensor(k, **f64))
    centre = 2 * math.asin(math.sqrt(gap.item() / 2)) if k > .1 else math.pi / 2
    width = 1 / math.sqrt(max(m, k))
    angles = [
        t for t in (centre + j * width for j in (-4, -2, -.5, .3, 2, 4))
        if 1e-3 * width < t < math.pi]
    angles = torch.tensor(angles, **f64)
    gap = 2 * torch.sin(angles / 2) ** 2
    truth = []
    with mpmath.workdps(50):
        kk = mpmath.mpf(k)
        mean = mpmath.besseli(mpmath.mpf(m) / 2, k) / mpmath.besseli(mpmath.mpf(m) / 2 - 1, k)
        for t in angles.tolist():
            def f(x, t=t):
                return ((mpmath.cos(x) - mean) * mpmath.exp(kk * (mpmath.cos(x) - mpmath.cos(t)))
                        * (mpmath.sin(x) / mpmath.sin(t)) ** (m - 2))
            upper = mpmath.cos(t) > mean
            end, step = (0, -width) if upper else (mpmath.pi, width)
            cuts = [t] + [
                t + j * step for j in (1, 2, 4, 8, 16, 32) if 0 < t + j * step < mpmath.pi] + [end]
            truth.append(float(abs(mpmath.quad(f, cuts)) / mpmath.sin(t)))
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        d = VonMisesFisher(unit(m, dtype=dtype), torch.full((len(angles),), k, dtype=dtype))
        np.testing.assert_allclose(d._slope(gap), truth, rtol=rtol)


def test_implicit_slope_power_spherical_against_scipy():
    u = np.array([1e-6, .01, .2, .5, .8, .99, 1 - 1e-6])
    for m in (2, 3, 20, 200):
        for k in (.5, 10., 1000.):
            b, a, step = (m - 1) / 2, (m - 1) / 2 + k, k * 1e-4
            def quantile(a, b=b): return scipy.stats.beta(b, a).ppf(u) # of (1 - w)/2
            gap, dw = 2 * quantile(a), -2 * (quantile(a + step) - quantile(a - step)) / (2 * step)
            for dtype, rtol in ((torch.float64, 1e-5), (torch.float32, 1e-4)):
                d = PowerSpherical(unit(m, dtype=dtype), torch.full((len(u),), k, dtype=dtype))
                slope = d._slope(torch.tensor(gap)).numpy()
                np.testing.assert_allclose(slope * gap * (2 - gap), dw, rtol=rtol)


def test_usual_gradient_fails_the_same_test():
    "The test above would notice the biased gradient through the accepted proposal."
    torch.manual_seed(0)
    m, k = 5, 2.
    gap = vmf._vmf_gap(m, torch.full((40_000,), k, **f64))
    root = math.sqrt(4 * k * k + (m - 1) ** 2)
    b = (m - 1) / (2 * k + root)
    zeta = gap / (2 * b + (1 - b) * gap)
    usual = 4 * b * zeta * (1 - zeta) / ((1 - (1 - b) * zeta) ** 2 * root)
    assert usual.mean().item() == pytest.approx(.1277, abs=.001)
    assert not within(usual, oracle(m, k)["ratio"][1], 30.)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_in_float32(family):
    torch.manual_seed(0)
    loc = normalize(torch.randn(500, 200), dim=-1)
    weight = torch.randn(500, 200)
    k = torch.rand(500) * 300
    grads = []
    for dtype in (torch.float32, torch.float64):
        d = family(loc.to(dtype), k.to(dtype), validate_args=False)
        d.loc.requires_grad_()
        d.concentration.requires_grad_()
        gap = (torch.rand(500, generator=torch.Generator().manual_seed(1), **f64) * .2
               + (1 - bessel_ratio(200, k.double())))
        noise = torch.randn(500, 200, generator=torch.Generator().manual_seed(2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "normal_", lambda x, noise=noise: x.copy_(noise))
            x = vmf._OnSphere.apply(d.loc, d.concentration, gap, d._slope)
        grads.append(torch.autograd.grad(x, (d.loc, d.concentration), weight.to(dtype)))
    for low, high in zip(*grads, strict=True):
        assert (low.double() - high).abs().max() < 1e-4 * high.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_parameters_sum_their_gradients(family):
    loc, k = some_loc(4, **f64).requires_grad_(), torch.tensor(3., **f64, requires_grad=True)
    torch.manual_seed(0)
    shared = torch.autograd.grad(family(loc, k).rsample((7, 2)).pow(3).sum(), (loc, k))
    many_loc = loc.detach().expand(7, 2, 4).clone().requires_grad_()
    many_k = torch.full((7, 2), 3., **f64, requires_grad=True)
    torch.manual_seed(0)
    many = torch.autograd.grad(family(many_loc, many_k).rsample().pow(3).sum(), (many_loc, many_k))
    torch.testing.assert_close(shared[0], many[0].sum((0, 1)))
    torch.testing.assert_close(shared[1], many[1].sum())


def test_only_what_is_asked_for_gets_a_gradient():
    d = VonMisesFisher(some_loc(4), torch.tensor(3., requires_grad=True))
    assert d.rsample().requires_grad and not d.sample().requires_grad
    loc = some_loc(4).requires_grad_()
    VonMisesFisher(loc, 3.).rsample().sum().backward()
    assert loc.grad.isfinite().all()


# ---- density, entropy, divergences

@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("m", [2, 3, 4, 20, 200, 1024])
def test_density_integrates_to_one(family, m):
    theta = (torch.arange(20_000, **f64) + .5) * (math.pi / 20_000)
    points = torch.zeros(len(theta), m, **f64)
    points[:, 0], points[:, 1] = theta.cos(), theta.sin()
    below = log_area(m - 1) if m > 2 else math.log(2)  # the circle has two points at each height
    for k in (0., 1e-3, 1., 30., 1000.):
        log_p = family(unit(m, **f64), k).log_prob(points)
        total = (log_p + below + (m - 2) * theta.sin().log()).exp().sum().item() * math.pi / 20_000
        assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("m,k", [(2, 1.), (5, 10.), (200, 100.), (1024, 50.)])
def test_entropy_is_minus_the_mean_log_density(family, m, k):
    torch.manual_seed(2)
    d = family(some_loc(m, **f64), k)
    assert within(-d.log_prob(d.sample((8000,))), d.entropy())


def test_log_prob_float32_keeps_its_digits():
    torch.manual_seed(0)
    for family in FAMILIES:
        d = family(some_loc(200), 1e5)
        x = d.sample((100,))
        exact = family(d.loc.double(), 1e5, validate_args=False).log_prob(x.double())
        torch.testing.assert_close(d.log_prob(x).double(), exact, rtol=1e-5, atol=1e-3)


def test_log_prob_gradient_along_the_sphere():
    d = VonMisesFisher(some_loc(5, **f64), torch.tensor(4., **f64, requires_grad=True))
    x = some_loc(5, 3, **f64).requires_grad_()
    d_x, d_k = torch.autograd.grad(d.log_prob(x), (x, d.concentration))
    x = x.detach()
    def along(v): return v - (v @ x) * x
    torch.testing.assert_close(along(d_x), along(4 * d.loc))
    torch.testing.assert_close(d_k, x @ d.loc - bessel_ratio(5, torch.tensor(4., **f64)))


def closed_forms(m):
    loc, other = some_loc(m, 0, **f64), some_loc(m, 1, **f64)
    a, b = VonMisesFisher(loc, 6.), VonMisesFisher(other, 3.)
    p, u = PowerSpherical(other, 5.), HypersphericalUniform(m, **f64)
    return [(a, b), (b, a), (a, u), (u, a), (p, u), (u, p), (p, a), (u, u)]


@pytest.mark.parametrize("m", [2, 5, 200])
def test_kl_is_the_sampled_one(m):
    torch.manual_seed(4)
    for p, q in closed_forms(m):
        x = p.sample((20_000,))
        kl = kl_divergence(p, q)
        assert kl.item() >= 0 and within(p.log_prob(x) - q.log_prob(x), kl), (p, q)


def test_kl_between_vmfs():
    loc, other = some_loc(200), some_loc(200, 1)
    for k in (0., 1., 100., 1e5):
        assert abs(kl_divergence(VonMisesFisher(loc, k), VonMisesFisher(loc, k)).item()) < 1e-6
        zero = VonMisesFisher(other, 0.)
        torch.testing.assert_close(
            kl_divergence(VonMisesFisher(loc, k), zero),
            kl_divergence(VonMisesFisher(loc, k), HypersphericalUniform(200)))
    mu = torch.stack([loc, other]).double().requires_grad_()
    k = torch.tensor([20., 70.], **f64, requires_grad=True)
    p, q = VonMisesFisher(mu[0], k[0]), VonMisesFisher(mu[1], k[1])
    A = [oracle(200, x)["ratio"][0] for x in (20, 70)]
    d_k = torch.autograd.grad(kl_divergence(p, q), k)[0]
    want = oracle(200, 20)["ratio"][1] * (20 - 70 * (mu[0] @ mu[1]).item()), A[1] - A[0] * (
        mu[0] @ mu[1]).item()
    torch.testing.assert_close(d_k, torch.tensor(want, **f64))


def test_kl_shapes_and_errors():
    d = VonMisesFisher(some_loc(5).expand(3, 1, 5), torch.rand(4))
    assert kl_divergence(d, HypersphericalUniform(5)).shape == (3, 4)
    assert kl_divergence(d, HypersphericalUniform(5, (2, 1, 1))).shape == (2, 3, 4)
    assert kl_divergence(HypersphericalUniform(5, (2, 1, 1)), d).shape == (2, 3, 4)
    assert kl_divergence(d, VonMisesFisher(some_loc(5), 1.)).shape == (3, 4)
    with pytest.raises(ValueError, match="m = 5 and m = 7"):
        kl_divergence(d, HypersphericalUniform(7))
    with pytest.raises(NotImplementedError):
        kl_divergence(PowerSpherical(some_loc(5), 1.), PowerSpherical(some_loc(5, 1), 1.))


# ---- the torch.distributions contract

@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_and_expand(family):
    loc, k = normalize(torch.randn(3, 1, 6), dim=-1), torch.rand(4)
    d = family(loc, k)
    assert (d.batch_shape, d.event_shape, d.dim) == ((3, 4), (6,), 6)
    for t in (d.loc, d.mean, d.mode, d.variance, d.stddev, d.rsample()):
        assert t.shape == (3, 4, 6)
    x = d.rsample((2, 5))
    assert x.shape == (2, 5, 3, 4, 6)
    assert d.log_prob(x).shape == (2, 5, 3, 4)
    assert d.entropy().shape == (3, 4)
    wide = d.expand((2, 3, 4))
    assert wide.batch_shape == (2, 3, 4)
    assert wide.rsample().shape == (2, 3, 4, 6)
    assert type(wide) is family
    torch.testing.assert_close(wide.log_prob(x[:, 0]), d.log_prob(x[:, 0]))
    assert torch.distributions.Independent(d, 1).log_prob(x).shape == (2, 5, 3)
    assert family(some_loc(6), 2.).rsample().shape == (6,)
    assert family(some_loc(6), 2.).batch_shape == ()
    assert "loc" in repr(d)


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_and_large_batches(family):
    loc = torch.empty(0, 6, requires_grad=True)
    x = family(loc, torch.ones(())).rsample((2,))
    x.sum().backward()
    assert x.shape == (2, 0, 6) and loc.grad.shape == (0, 6)
    assert vmf._vmf_gap(6, torch.empty(0, **f64), fixed=True).shape == (0,)
    loc = normalize(torch.randn(5000, 3), dim=-1).requires_grad_()
    x = family(loc, 1e5).rsample()
    assert ((x * loc).sum(-1) > .999).all()
    x.sum().backward()
    assert (loc.grad * loc).sum(-1).abs().max() < 1e-5


def test_uniform_contract():
    u = HypersphericalUniform(6, (3,))
    assert u.rsample((2,)).shape == (2, 3, 6)
    assert u.log_prob(u.sample((2,))).shape == (2, 3)
    assert u.entropy().shape == (3,)
    assert u.expand((4, 3)).batch_shape == (4, 3)
    assert u.mean.shape == u.variance.shape == u.mode.shape == (3, 6)
    with pytest.raises(RuntimeError):
        u.expand((4,))
    with pytest.raises(ValueError):
        u.log_prob(torch.ones(3, 6))
    with pytest.raises(ValueError, match="m >= 2"):
        HypersphericalUniform(1)
    assert HypersphericalUniform(6, **f64).sample().dtype == torch.float64
    torch.manual_seed(0)
    assert scipy.stats.kstest(
        u.sample((4000,))[:, 0, 2].numpy(),
        scipy.stats.beta(2.5, 2.5, loc=-1, scale=2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_arguments_are_checked(family):
    good = some_loc(4)
    for loc, k, name in [
            (good * .5, 1., "loc"), (good, -1., "concentration"), (good, math.nan, "concentration"),
            (good, math.inf, "concentration"), (good * math.nan, 1., "loc")]:
        with pytest.raises(ValueError, match=name):
            family(loc, k)
        family(loc, k, validate_args=False)
    with pytest.raises(ValueError, match="m >= 2"):
        family(torch.ones(1), 1.)
    with pytest.raises(ValueError):
        family(good, 1.).log_prob(torch.ones(4))
    with pytest.raises(RuntimeError):
        family(good.expand(3, 4), torch.ones(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_precision_and_autocast(family):
    assert family(some_loc(4), torch.tensor(1., **f64)).rsample().dtype == torch.float64
    assert (family(some_loc(4).bfloat16(), torch.tensor(1., dtype=torch.bfloat16)).rsample().dtype
            == torch.float32)
    assert family(some_loc(4, **f64), .1).concentration.item() == .1
    plain = family(some_loc(200), 80.)
    with torch.autocast("cpu", torch.bfloat16):
        cast = family(some_loc(200), 80.)
        torch.manual_seed(0)
        x = cast.rsample((3,))
        kl = kl_divergence(cast, HypersphericalUniform(200))
        values = bessel_ratio(200, torch.tensor(80.)), cast.log_prob(x), cast.entropy()
    torch.manual_seed(0)
    assert torch.equal(x, plain.rsample((3,)))
    assert torch.equal(kl, kl_divergence(plain, HypersphericalUniform(200)))
    for got, want in zip(
            values, (bessel_ratio(200, torch.tensor(80.)), plain.log_prob(x), plain.entropy()),
            strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_result_is_read_on_a_device(family):
    """Meta tensors have no values: code that asks for one (item, nonzero, if tensor) raises. What
    passes here never waits on a GPU."""
    loc = torch.empty(3, 1, 200, device="meta", requires_grad=True)
    k = torch.empty(4, device="meta", requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d = family(loc, k)
        x = d.rsample((2,))
        total = (x.sum() + d.log_prob(x).sum() + d.entropy().sum()
                 + kl_divergence(d, HypersphericalUniform(200)).sum())
        total = (total + kl_divergence(d, VonMisesFisher(loc, k)).sum() + d.mean.sum()
                 + d.variance.sum())
        total.backward()
    assert x.shape == (2, 3, 4, 200) and loc.grad.shape == loc.shape and k.grad.shape == k.shape
    assert HypersphericalUniform(5, device="meta").rsample((2,)).shape == (2, 5)
