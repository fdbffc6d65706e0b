"""Training and evaluation of a reader of 4 layers x 256 (random weights, mBERT's vocabulary), each
against the plain way, in one run.

    S2DM_MIRROR=... OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/bench_reader.py \\
            [--parts training loss head evaluation]

training    An epoch over XQuAD en in batches of 8, by the step of s2dm.fit (batch made, forward,
            backward, clipping, update), as TrainingBatches orders and pads it, against the same
            windows in random order, padded to 384. Only every n-th batch of each epoch, by length,
            is computed: they stand for all. Target: at least 1.8 times faster.
loss        Padding changes no loss: a batch padded to its longest window and to 384 has the same
            loss and gradient. Order: the mean loss of the first steps from the same weights, in
            several length-grouped and several random orders. Padding to 384 is left out of these,
            since it changes nothing.
head        A training step with the frozen S2DM under the span head, against the baseline's head,
            on the same batches. Target: at most 5 % more.
evaluation  Questions in 12 languages of XQuAD to answers: `reader.read` against the bare forward
            pass of the same model on the same windows, already padded in batches of similar length.
            Target: at least 0.9 of its throughput. Besides: `predict`, which splits the texts as
            well.

At the paper's size on a GPU: benchmarks/gpu.py. The ways take turns in going first, and each ratio
is taken within a round; times are by the clock, on a machine that others may use too.
"""
import argparse
import os
import statistics
import time
import warnings
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from transformers import BertConfig, BertModel  # noqa: E402

from s2dm.core import device_name, has_bfloat16, peak_memory, seed_everything  # noqa: E402
from s2dm.encoder import length_batches, mbert_tokenizer  # noqa: E402
from s2dm.evaluation import predict  # noqa: E402
from s2dm.features import SpanTokenizer, TrainingBatches, Windows, pad_windows  # noqa: E402
from s2dm.fit import FitConfig, Part, make_accelerator, make_optimizer, train_step, rate  # noqa: E402
from s2dm.model import S2DM, S2DMConfig  # noqa: E402
from s2dm.reader import S2DMReader  # noqa: E402
from s2dm.reading import READING, load_reading  # noqa: E402

CONFIG, HALVES, LENGTH = FitConfig(learning_rate=5e-4), dict(start=.5, end=.5), 384
SMALL = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)


def widen(batch, length): # the same batch, with more padding
    # mBERT's padding is 0
    return {k: F.pad(x, (0, length - x.shape[1])) if x.dim() == 2 else x for k, x in batch.items()}


class Fixed(TrainingBatches):
    "Random order, every window padded to the same length."

    def __init__(self, windows, size, seed=0): super().__init__(windows, size, seed, pool=1)

    def load(self, positions, generator=None): return widen(super().load(positions), LENGTH)


class Training:
    "A reader with its optimizer; `step` is one step of the training loop."

    def __init__(self, tokenizer, head, accelerator, encoder=None):
        seed_everything(0)
        if encoder is None:
            config = BertConfig(vocab_size=len(tokenizer), **SMALL)
            encoder = BertModel(config, add_pooling_layer=False)
        s2dm = None
        if head != "baseline":
            width = encoder.config.hidden_size
            s2dm = S2DM(S2DMConfig(encoder_width=width, vocabulary=len(tokenizer)))
        self.reader = S2DMReader(encoder, tokenizer, s2dm).to(accelerator.device).train()
        self.accelerator = accelerator
        self.net, self.optimizer = accelerator.prepare(
            self.reader, make_optimizer(self.reader, CONFIG, {}))

    def step(self, data, positions, share=.1):
        batch = {
            k: x.to(self.accelerator.device, non_blocking=True)
            for k, x in data.load(positions).items()}
        return train_step(
            self.net, self.optimizer, [Part(1., batch)], HALVES, CONFIG, self.accelerator, share)


def seconds(run, cuda=False):
    start = time.perf_counter()
    run()
    if cuda: torch.cuda.synchronize()
    return time.perf_counter() - start


def strata(windows, data, n):
    "n batches that stand for an epoch: the middle of each n-th of them, by length."
    plan = sorted(data.plan(0), key=lambda at: int(windows.lengths[at].max()))
    return [plan[(2 * i + 1) * len(plan) // (2 * n)] for i in range(n)]


def verdict(name, ratios, target, least): # the median of the rounds
    ratio = statistics.median(ratios)
    met = ratio >= target if least else ratio <= target
    print(
        f"{name}: {ratio:.3f}   target at {'least' if least else 'most'} {target}: "
        f"{'met' if met else 'MISSED'} (rounds {min(ratios):.3f} to {max(ratios):.3f})",
        flush=True)


def alternate(runs, rounds, warm=1):
    """Name -> list of functions; -> name -> [rounds] seconds of all of them. The ways take turns
    within a round."""
    times = {name: [] for name in runs}
    for turn in range(-warm, rounds):
        took = dict.fromkeys(runs, 0.)
        for i, works in enumerate(zip(*runs.values())):
            for name, work in list(zip(runs, works))[::1 if (turn + i) % 2 else -1]:
                took[name] += seconds(work)
        for name, s in took.items() if turn >= 0 else (): times[name].append(s)
    return times


def training(args, tokenizer, windows):
    side = Training(tokenizer, "semantic", make_accelerator("float32"))
    grouped = TrainingBatches(windows, args.batch)
    fixed = Fixed(windows, args.batch)
    runs = {
        name: [lambda d=data, p=p: side.step(d, p) for p in strata(windows, data, args.sample)]
        for name, data in dict(fixed=fixed, grouped=grouped).items()}
    times = alternate(runs, args.rounds)
    mean = {
        name: sum(len(b) * windows.lengths[b].max() for b in d.plan(0)) / len(windows)
        for name, d in dict(grouped=grouped, random=fixed).items()}
    steps = len(grouped.plan(0))
    for name, took in times.items():
        print(
            f"  {name:9}{1e3 * statistics.median(took) / args.sample:8.1f} ms a step, "
            f"{steps * statistics.median(took) / args.sample:.0f} s an epoch of {steps} steps")
    print(
        f"  subwords per window: {windows.lengths.mean():.0f}; padded: {mean['grouped']:.0f} "
        f"grouped, {mean['random']:.0f} in random order, {LENGTH} fixed: "
        f"{LENGTH / mean['grouped']:.2f} times fewer than fixed")
    big = [p for p in side.reader.parameters() if p.requires_grad]
    for p in big: p.grad = torch.zeros_like(p)
    update = [seconds(side.optimizer.step) for _ in range(5)]
    side.optimizer.zero_grad()
    print(
        f"  of each step, whatever the length: {1e3 * statistics.median(update):.0f} ms to update "
        f"{sum(p.numel() for p in big) / 1e6:.1f} M weights, most of them the vocabulary's")
    verdict(
        "fixed / grouped, time of an epoch",
        [a / b for a, b in zip(times["fixed"], times["grouped"])], 1.8, least=True)


def loss(args, tokenizer, windows):
    accelerator, (positions,), found = (
        make_accelerator("float32"), strata(windows, TrainingBatches(windows, args.batch), 1), [])
    for length in (None, LENGTH):
        side = Training(tokenizer, "semantic", accelerator)
        batch = pad_windows(windows, positions)
        side.reader.eval()
        value = sum(
            t.mean() / 2 for t in side.reader(widen(batch, length) if length else batch).values())
        value.backward()
        found.append((value.item(), torch.cat([
            p.grad.flatten() for p in side.reader.parameters() if p.grad is not None])))
    (a, g), (b, h) = found
    print(
        f"  a batch of {args.batch}, padded to {batch['input_ids'].shape[1]} and to {LENGTH}: loss "
        f"{a:.6f} and {b:.6f}, gradients differ by {((g - h).norm() / h.norm()).item():.1e} of "
        "their norm")
    orders = {}
    for s in range(args.orders): orders[f"grouped {s}"] = TrainingBatches(windows, args.batch, s)
    for s in range(args.orders):
        orders[f"random {s}"] = TrainingBatches(windows, args.batch, s, pool=1)
    means = {}
    for name, data in orders.items():
        side = Training(tokenizer, "semantic", accelerator)
        plan = [
            b for epoch in range(-(-args.steps // len(data.plan(0))))
            for b in data.plan(epoch)][:args.steps]
        torch.manual_seed(0) # dropout
        losses = [
            side.step(data, p, rate(i, args.steps, .1))["loss"].item() for i, p in enumerate(plan)]
        parts = [
            statistics.mean(losses[i:i + args.steps // 4])
            for i in range(0, args.steps // 4 * 4, args.steps // 4)]
        means[name] = statistics.mean(losses)
        print(
            f"  {name:10} mean loss of {args.steps} steps {means[name]:.3f}; of each quarter "
            f"{' '.join(f'{p:.3f}' for p in parts)}",
            flush=True)
    grouped, plain = (
        [m for name, m in means.items() if name.startswith(kind)] for kind in ("grouped", "random"))
    print(
        f"mean loss, grouped - random: {statistics.mean(grouped) - statistics.mean(plain):+.3f}; "
        f"orders differ by up to {max(grouped) - min(grouped):.3f} (grouped) and "
        f"{max(plain) - min(plain):.3f} (random)")


def head(args, tokenizer, windows):
    accelerator, data = make_accelerator("float32"), TrainingBatches(windows, args.batch)
    sides = {name: Training(tokenizer, name, accelerator) for name in ("baseline", "semantic")}
    some = strata(windows, data, args.sample)
    times = alternate(
        {name: [lambda s=side, p=p: s.step(data, p) for p in some] for name, side in sides.items()},
        args.rounds)
    for name, took in times.items():
        print(f"  {name:9}{1e3 * statistics.median(took) / args.sample:8.1f} ms a step")
    verdict(
        "S2DM's head / baseline's, time of a step",
        [b / a for a, b in zip(times["baseline"], times["semantic"])], 1.05, least=False)


def evaluation(args, tokenizer, _):
    reader = Training(tokenizer, "semantic", make_accelerator("float32")).reader.eval()
    questions = {
        language: load_reading("xquad", language).select(range(args.questions))
        for language in READING["xquad"][0]}
    windows = {
        language: reader.windows(mine, progress=False) for language, mine in questions.items()}
    device = reader.head.weight.device

    @torch.no_grad()
    def forward(batches): # in the precision in which `read` computes
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device.type)):
            return [reader.scores(b) for b in batches]
    def padded(w):
        for at in length_batches(w.lengths.tolist(), args.budget):
            yield {k: x.to(device) for k, x in pad_windows(w, at).items()}
    def read(w): return reader.read(w, budget=args.budget, progress=False)
    ready = {language: [*padded(w)] for language, w in windows.items()}
    runs = {
        "forward": [partial(forward, b) for b in ready.values()],
        "read": [partial(read, w) for w in windows.values()],
        "predict": [partial(predict, reader, q, progress=False) for q in questions.values()]}
    times = alternate(runs, max(3, args.rounds // 2), warm=0)
    n = sum(map(len, windows.values()))
    subwords = sum(int(w.lengths.sum()) for w in windows.values())
    for name, took in times.items():
        print(
            f"  {name:9}{statistics.median(took):7.1f} s for {n} windows: "
            f"{n / statistics.median(took):,.0f} windows/s, "
            f"{subwords / statistics.median(took):,.0f} subwords/s")
    reader.scores = lambda batch: torch.randn(2, *batch["input_ids"].shape).unbind()
    def read_all(): return [read(w) for w in windows.values()]
    rest = statistics.median(seconds(read_all) for _ in range(args.rounds))
    print(f"  read without its forward pass: {1e3 * rest:.0f} ms, on the CPU whatever the device")
    verdict(
        f"read / bare forward, throughput in {len(questions)} languages",
        [a / b for a, b in zip(times["forward"], times["read"])], .9, least=True)
    verdict(
        "from text: predict / bare forward",
        [a / b for a, b in zip(times["forward"], times["predict"])], .9, least=True)


PARTS = dict(training=training, loss=loss, head=head, evaluation=evaluation)

if __name__ == "__main__":
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    for option, default, what in (
            ("rounds", 7, "of taking turns"),
            ("batch", 8, "windows"),
            ("sample", 10, "batches of an epoch that are timed"),
            ("steps", 60, "whose losses are compared"),
            ("orders", 2, "of each kind, whose losses are compared"),
            ("questions", 25, "per language"),
            ("budget", 16384, "subwords of a batch in evaluation")):
        ask.add_argument(f"--{option}", type=int, default=default, help=what)
    args = ask.parse_args()
    warnings.simplefilter("ignore", UserWarning) # stand-ins
    tokenizer = mbert_tokenizer()
    english = Windows(SpanTokenizer(tokenizer), load_reading("xquad", "en"))
    print(
        f"XQuAD en: {len(english.gold)} questions, {len(english)} windows, batches of "
        f"{args.batch}, {device_name()}, {torch.get_num_threads()} threads, {args.rounds} rounds")
    for part in args.parts:
        print(f"{part}:", flush=True)
        PARTS[part](args, tokenizer, english)
    print(f"peak memory {peak_memory()}")
