"""Time of a vMF sample, forward and backward, against the bare normal random numbers it is made of.

Targets (m=200, 16384 locations, 2 threads): forward at most 2.0 and forward + backward at most 5
times torch.randn(16384, 200) in the same run.
The reference and the candidates are timed in turn, round after round, and the ratio is taken within
each round: a busy machine slows both.
Usage: OMP_WAIT_POLICY=PASSIVE python benchmarks/bench_vmf.py [--rounds 31] [--m 200] [--n 16384]
[--threads 2]
"""
import argparse
import statistics
import time

import torch
from torch.distributions import kl_divergence
from torch.nn.functional import normalize

from s2dm.vmf import HypersphericalUniform, PowerSpherical, VonMisesFisher


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def candidates(m, n):
    loc = normalize(torch.randn(n, m), dim=-1).requires_grad_()
    concentration = (torch.rand(n) * 150).requires_grad_()
    weight = torch.randn(n, m)

    def forward(cls):
        return cls(loc, concentration).rsample()

    def both(cls):
        loc.grad = concentration.grad = None
        forward(cls).backward(weight)

    def kl():
        concentration.grad = None
        kl_divergence(VonMisesFisher(loc, concentration), HypersphericalUniform(m)).sum().backward()

    return {
        "torch.randn": (lambda: torch.randn(n, m), None),
        "vMF forward": (lambda: forward(VonMisesFisher), 2.),
        "vMF forward + backward": (lambda: both(VonMisesFisher), 5.),
        "Power Spherical forward": (lambda: forward(PowerSpherical), 2.),
        "Power Spherical forward + backward": (lambda: both(PowerSpherical), 5.),
        "KL(vMF, uniform) and its gradient": (kl, None),
    }


def main():
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 31), ("m", 200), ("n", 16384), ("threads", 2)):
        ask.add_argument(f"--{name}", type=int, default=default)
    args = ask.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    jobs = candidates(args.m, args.n)
    for f, _ in jobs.values():
        f()
    times = {name: [] for name in jobs}
    for _ in range(args.rounds):
        for name, (f, _) in jobs.items():
            times[name].append(seconds(f))
    print(
        f"m={args.m}, {args.n} locations, {args.threads} threads, torch {torch.__version__}, "
        f"median of {args.rounds} rounds")
    for name, (_, target) in jobs.items():
        ratio = statistics.median(
            t / r for t, r in zip(times[name], times["torch.randn"], strict=True))
        verdict = (
            "" if target is None else f"target {target}: {'met' if ratio <= target else 'MISSED'}")
        print(
            f"{name:36s} {statistics.median(times[name]) * 1e3:8.2f} ms   {ratio:5.2f} x randn   "
            f"{verdict}")


if __name__ == "__main__":
    main()
