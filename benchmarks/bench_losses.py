"""What the bag-of-words loss (RL and CRL) costs: time against its bare matrix products, memory
beyond weights and gradients. And what a vMF sample costs.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/bench_losses.py [rounds]

Time. Reference and candidates take turns in one process; each ratio is the median of the ratios
within a round, so that a slow moment of the machine hits both.
The reference is what no implementation can avoid: logits = h W', dh = dlogits W, dW = dlogits' h,
written as three lines of torch. The same with results written into memory that was allocated before
("preallocated") is shown besides: a training step cannot have that, since it has to hand out a new
gradient of W.
Memory. Each candidate runs once in a process of its own; its peak resident memory is compared with
that before the call.
Samples. Forward, and forward and backward, of 16384 locations on a sphere in 200 dimensions,
against the bare normal random numbers they are made of, taking turns as above. Targets: forward at
most 1.6 and forward + backward at most 2.6 times torch.randn(16384, 200).
"""
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.distributions import kl_divergence  # noqa: E402

from s2dm.losses import bag_of_words_loss  # noqa: E402
from s2dm.vmf import HypersphericalUniform, PowerSpherical, VonMisesFisher  # noqa: E402

THREADS, WIDTH, SUBWORDS = 2, 400, 40
MIB = 2**20


def problem(B, V):
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, WIDTH, generator=g).mul_(.05).requires_grad_() for n in (B, V))
    mask = torch.arange(SUBWORDS) < torch.randint(1, SUBWORDS + 1, (B, 1), generator=g)
    return hidden, weight, torch.zeros(V, requires_grad=True), torch.randint(
        V, (B, SUBWORDS), generator=g), mask


def dense(hidden, weight, bias, ids, mask):
    "The usual way: targets and log-softmax of the size [B,V]."
    targets = torch.zeros(len(ids), len(weight)).scatter_add_(
        1, ids, mask / mask.sum(1, keepdim=True))
    return -(F.log_softmax(F.linear(hidden, weight, bias), 1) * targets).sum(1)


def recomputed(*args): return bag_of_words_loss(*args, keep=False)


def step(loss, args):
    for x in args[:3]:
        x.grad = None
    loss(*args).mean().backward()


def times(rounds, B=120, V=119_547):
    args = problem(B, V)
    h, W = (x.detach() for x in args[:2])
    logits, dh, dW = torch.empty(B, V), torch.empty_like(h), torch.empty_like(W)

    def bare():
        dlogits = h @ W.T
        return dlogits @ W, dlogits.T @ h

    def preallocated():
        torch.mm(h, W.T, out=logits)
        torch.mm(logits, W, out=dh)
        torch.mm(logits.T, h, out=dW)

    runs = {
        "three bare products": bare,
        "three bare products, preallocated": preallocated,
        "bag_of_words_loss": lambda: step(bag_of_words_loss, args),
        "bag_of_words_loss, keep=False": lambda: step(recomputed, args),
        "dense targets": lambda: step(dense, args)}
    seconds = {name: [] for name in runs}
    for timed in [False] + [True] * rounds:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if timed:
                seconds[name].append(time.perf_counter() - start)
    print(
        f"forward + backward, B={B}, width {WIDTH}, V={V:,}, float32, {torch.get_num_threads()} "
        f"threads, median of {rounds} rounds")
    print(f"{'':36}{'ms':>8}{'ratio to bare':>16}{'to preallocated':>18}")
    for name, mine in seconds.items():
        ratio = [
            statistics.median(a / b for a, b in zip(mine, seconds[other], strict=True))
            for other in list(runs)[:2]]
        target = "   target 1.30 to bare" if name == "bag_of_words_loss" else ""
        took = 1e3 * statistics.median(mine)
        print(f"{name:36}{took:8.0f}{ratio[0]:16.2f}{ratio[1]:18.2f}{target}")


LOSSES = {
    "bag_of_words_loss, keep=False": recomputed,
    "bag_of_words_loss": bag_of_words_loss,
    "dense targets": dense}


def resident(what):
    """Bytes of this process now (VmRSS) or at most so far (VmHWM). Linux only; getrusage would
    count the parent's peak as ours."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(what))


def peak(name, B, V):
    """Peak resident bytes during one step, beyond what was there before it and the gradients it
    returns."""
    args = problem(B, V)
    step(LOSSES[name], problem(2, 1000))  # libraries make their own buffers at first use
    before = resident("VmRSS")
    step(LOSSES[name], args)
    return resident("VmHWM") - before - sum(x.grad.nbytes for x in args[:3])


def memory(B=512, V=200_095):
    print(
        f"\npeak memory of forward + backward beyond weights and gradients, B={B}, width {WIDTH}, "
        f"V={V:,}; a [B,V] matrix has {4 * B * V / MIB:.0f} MiB")
    for name in LOSSES:
        out = subprocess.run(
            [sys.executable, __file__, "--peak", name, str(B), str(V)], capture_output=True,
            text=True, check=True)
        print(
            f"{name:36}{int(out.stdout) / MIB:8.0f} "
            f"MiB{'   target 1024 MiB' if name != 'dense targets' else ''}")


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def candidates(m, n):
    loc = F.normalize(torch.randn(n, m), dim=-1).requires_grad_()
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
        "vMF forward": (lambda: forward(VonMisesFisher), 1.6),
        "vMF forward + backward": (lambda: both(VonMisesFisher), 2.6),
        "Power Spherical forward": (lambda: forward(PowerSpherical), 1.6),
        "Power Spherical forward + backward": (lambda: both(PowerSpherical), 2.6),
        "KL(vMF, uniform) and its gradient": (kl, None),
    }


def samples(rounds, m=200, n=16384):
    torch.manual_seed(0)
    jobs = candidates(m, n)
    for f, _ in jobs.values():
        f()
    times = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, (f, _) in jobs.items():
            times[name].append(seconds(f))
    print(
        f"m={m}, {n} locations, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"median of {rounds} rounds")
    for name, (_, target) in jobs.items():
        ratio = statistics.median(
            t / r for t, r in zip(times[name], times["torch.randn"], strict=True))
        verdict = (
            "" if target is None else f"target {target}: {'met' if ratio <= target else 'MISSED'}")
        print(
            f"{name:36s} {statistics.median(times[name]) * 1e3:8.2f} ms   {ratio:5.2f} x randn   "
            f"{verdict}")


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    if sys.argv[1:2] == ["--peak"]:
        print(peak(sys.argv[2], *map(int, sys.argv[3:])))
    else:
        rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
        times(rounds)
        memory()
        memory(B=1024)
        samples(2 * rounds + 1)
