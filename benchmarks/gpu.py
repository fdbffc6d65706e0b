"""The paper at its true size on one GPU: how fast, how much memory, and how long the profile
`paper` takes. It has never run on a GPU yet: none was at hand.

    python benchmarks/gpu.py [--json FILE]
        measure: needs CUDA, neither network nor data; some minutes
    python benchmarks/gpu.py --tiny
        the same on tiny networks, on any machine, in seconds: a check of the benchmark, its numbers
        mean nothing
    python benchmarks/gpu.py --estimate
        measure nothing: times from FLOPs, memory and disk from sizes, into figures/gpu_*.csv (shown
        in docs/gpu.md and the README)
    S2DM_MIRROR=... python benchmarks/gpu.py --count
        count the work in the real corpora, into benchmarks/gpu_work.csv, which the others read

Measured are the library's own calls, on networks of the size of mBERT and of XLM-100 with random
weights, and on random words that are one or two subwords each, with the sentence and window lengths
that --count found. (A window of words so short never needs a second one; speed does not depend on
what is read.)
encode      FeatureCache.encode, words to features on disk, in float32 as the library does it
pretrain    a step of s2dm.fit from the cache on, batches of 30 pairs, S2DM_POS and S2DM_SP
finetune    a step of s2dm.fit, batch made on the CPU, with the paper's batch sizes: windows that
            all have 384 subwords, and windows as long as SQuAD's, grouped by length
evaluate    S2DMReader.read: windows to answers
FLOPs are those of the model's matrix products, real subwords alone. A window of n subwords: 6 n W +
12 L d n^2 for a training step (forward 2 and 4, backward twice that) and 2 n W + 4 L d n^2 to read
it, with W the encoder's weights without embeddings, L layers and d the width, and 4 n F or 2 n F
for the frozen S2DM's F. A step of S2DM: 2 for each multiplication in its linear layers, again for
the weights' gradient and, where something is trained before it, for the input's; counted by
benchmarks/bench_step.py.
The peak is the rate of one large bfloat16 product on this GPU; the share of the data sheet's is
shown besides. Where `launch` is about as long as the step, the processor that launches the kernels
is what limits it.

The estimate assumes that a step takes as long as its FLOPs at SHARE of the data sheet's peak, or as
launching its operations one after the other at LAUNCH seconds each, if that is longer. SHARE and
LAUNCH are guesses, until the first form of the command has been run. Start-up, 01_data, 06_analyse,
tokenizing and counting of answers are in neither.

On a machine that has torch, transformers, accelerate, tensorboard, pyarrow, scipy and matplotlib,
but no package index, what else s2dm imports travels as wheels, all of them pure Python:
    pip download --no-deps -d wheels datasets dill multiprocess conllu
    pip install --no-index --no-deps --target site wheels/*.whl; PYTHONPATH=.:site python
    benchmarks/gpu.py
"""
import argparse
import csv
import gc
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import bench_reader  # noqa: E402
import bench_step  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig, BertModel, PreTrainedTokenizerFast, XLMConfig, XLMModel)

from s2dm.core import device_name, seed_everything, versions  # noqa: E402
from s2dm.encoder import Encoder, FeatureCache  # noqa: E402
from s2dm.features import TrainingBatches  # noqa: E402
from s2dm.finetune import FinetuneConfig  # noqa: E402
from s2dm.fit import make_accelerator  # noqa: E402
from s2dm.losses import TERMS  # noqa: E402
from s2dm.reader import S2DMReader  # noqa: E402
from s2dm.pretrain import PretrainConfig  # noqa: E402
from s2dm.siamese import PairData  # noqa: E402
from s2dm.treebanks import UPOS, tree_depths  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
WORK = Path(__file__).with_name("gpu_work.csv")
FULL = dict(
    mbert=dict(vocabulary=119_547, width=768, layers=12, heads=12),
    xlm100=dict(vocabulary=200_000, width=1280, layers=16, heads=16))
# dense bfloat16 (V100: float16) flops/s
SHEET = {
    "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12,
    "V100": 125e12}
SHEET32 = {"H100": 67e12, "A100": 19.5e12} # float32, for encoding
SHARE, LAUNCH = .35, 10e-6 # guesses: share of the data sheet's peak; seconds to launch an operation
GB = 1e9


# --- networks and random text of the right size ---

def network(name, vocabulary, width, layers, heads, attention_dropout=.1):
    "An encoder with random weights."
    if name == "mbert":
        return BertModel(
            BertConfig(
                vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers,
                num_attention_heads=heads, intermediate_size=4 * width,
                attention_probs_dropout_prob=attention_dropout),
            add_pooling_layer=False)
    return XLMModel(XLMConfig(
        vocab_size=vocabulary, emb_dim=width, n_layers=layers, n_heads=heads,
        attention_dropout=attention_dropout, use_lang_emb=False))


def tokenizer(vocabulary, pad=0): # w4 is one subword, w4w7 two
    names = ["[UNK]", "[CLS]", "[SEP]"]
    names = ([*names[:pad], "[PAD]", *names[pad:]]
             + [f"{'##' * (i % 2)}w{i}" for i in range(4, vocabulary)])
    split = Tokenizer(
        models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    split.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(s, names.index(s)) for s in ("[CLS]", "[SEP]")])
    return PreTrainedTokenizerFast(
        tokenizer_object=split, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=512)


class Text:
    "Random words, and sentences, questions and contexts of them."

    def __init__(self, vocabulary, two): # two: share of words that are two subwords
        self.draw, self.two = np.random.default_rng(0), two
        ids = self.draw.integers(2, vocabulary // 2 - 1, (min(20_000, vocabulary), 2)) * 2
        self.words = [[f"w{a}" for a, _ in ids], [f"w{a}w{b + 1}" for a, b in ids]]

    def sentence(self, n): # words
        longer = (self.draw.random(n) < self.two).tolist()
        which = self.draw.integers(len(self.words[0]), size=n).tolist()
        return [self.words[long][i] for long, i in zip(longer, which)]

    def lengths(self, n, mean, sd, least, most): # a gamma distribution, cut off
        return self.draw.gamma((mean / sd)**2, sd**2 / mean, n).round().astype(int).clip(
            least, most)

    def pairs(self, lengths):
        "As from `load_pairs`: translations as long as their sources, random trees and tags."
        columns = dict(group=[f"g{i}" for i in range(len(lengths))])
        for end in "st":
            heads = [[0, *(self.draw.integers(1, np.arange(2, n + 1)).tolist())] for n in lengths]
            forms = [self.sentence(n) for n in lengths]
            columns |= {
                f"text_{end}": [" ".join(words) for words in forms],
                f"sentence_id_{end}": [f"{end}{i}" for i in range(len(lengths))],
                f"lang_{end}": [end] * len(lengths),
                f"forms_{end}": forms,
                f"upos_{end}": [
                    [UPOS[i] for i in self.draw.integers(len(UPOS), size=n)] for n in lengths],
                f"heads_{end}": heads,
                f"depths_{end}": [tree_depths(h).tolist() for h in heads]}
        return Dataset.from_dict(columns)

    def questions(self, lengths, asked=14):
        """One window each, of so many subwords, special tokens included; the answer is its
        context's first word."""
        two, self.two = self.two, 0
        contexts = [" ".join(self.sentence(n - asked - 3)) for n in lengths]
        questions = [" ".join(self.sentence(asked)) for _ in lengths]
        self.two = two
        return dict(
            question=questions, context=contexts,
            answers=[dict(text=[c.split(" ", 1)[0]], answer_start=[0]) for c in contexts])


# --- the work that there is ---

def work(): # what -> number
    with open(WORK, encoding="utf-8", newline="") as f:
        return {row["what"]: float(row["number"]) for row in csv.DictReader(f)}


def runs(target, folder=ROOT / "experiments"):
    "Stage -> runs of one encoder, as the Snakefile counts them."
    profile, systems = (
        yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("paper", "systems"))
    chosen = systems if profile[target]["systems"] == "all" else profile[target]["systems"]
    given = [{"edition": profile["edition"]} | systems[name] for name in chosen]
    different = {json.dumps(g, sort_keys=True) for g in given}
    s2dms = {(g["variant"], g["edition"]) for g in given if g["variant"] != "baseline"}
    return {
        stage: n * profile[target]["seeds"]
        for stage, n in dict(
                pretrain=len(s2dms), finetune=len(different), evaluate=len(different)).items()}


def per_run(name): # stage -> (how many of it a run does, of what); encode: once per encoder
    w, pretrain, finetune = work(), PretrainConfig(model=name), FinetuneConfig(model=name)
    # English progress, after each epoch
    dev = finetune.epochs * w["dev_questions"] * w["windows_per_question"] * w["window_mean"]
    return dict(
        encode=[(w["ud_subwords"], "encode")],
        pretrain=[(pretrain.epochs * w["ud_pairs"], "pretrain")],
        finetune=[(finetune.epochs * w["train_questions"] * w["windows_per_question"], "finetune"),
                  (dev, "evaluate")],
        evaluate=[(w["test_subwords"], "evaluate")])


def hours(name, target, rates):
    "rates: unit -> so many per second -> stage -> (runs, hours of one run)."
    found = {"encode": 1} | runs(target)
    return {
        stage: (found[stage], sum(n / rates[unit] for n, unit in parts) / 3600)
        for stage, parts in per_run(name).items()}


def count():
    "With mBERT's tokenizer; XLM-100's vocabulary has no mirror, and is taken to split alike."
    from s2dm.encoder import WordTokenizer, mbert_tokenizer
    from s2dm.evaluation import tests
    from s2dm.features import SpanTokenizer, Windows
    from s2dm.reading import READING, load_reading
    from s2dm.siamese import distinct_sentences
    from s2dm.treebanks import PAPER, load_pairs

    mbert, pairs = mbert_tokenizer(), load_pairs(PAPER)
    forms = distinct_sentences(pairs)[0]["forms"][:]
    words = np.array([len(f) for f in forms])
    subwords = sum(len(t.ids) for t in WordTokenizer(mbert)(forms))
    ud = f"counted: {', '.join(PAPER)}; distinct sentences, mBERT's subwords"
    rows = [
        ("ud_pairs", len(pairs), ud),
        ("ud_sentences", len(forms), ud),
        ("ud_words", words.sum(), ud),
        ("ud_subwords", subwords, ud),
        ("ud_words_mean", words.mean(), ud),
        ("ud_words_sd", words.std(), ud)]
    split, found = SpanTokenizer(mbert), {}
    for test in tests(("xquad", "tydiqa", "bipar")):
        windows = Windows(
            split,
            load_reading(test[0], test[1], question_language=test[2]).select_columns(
                ["question", "context"]))
        found[test] = len(windows.gold), windows.lengths
    english = found["xquad", "en", "en"]
    there = f"counted: {len(found)} tests of XQuAD, TyDi and BiPaR"
    like = "counted: XQuAD en, whose contexts are SQuAD's"
    rows += [
        ("windows_per_question", len(english[1]) / english[0], like),
        ("window_mean", english[1].mean(), like),
        ("window_sd", english[1].std(), like)]
    own = dict(en=11_590, de=4517, es=5254, ar=5335, zh=5137, vi=5495, hi=4918) # MLQA's README
    others = len(own) - 1
    mlqa = sum(own.values()) + 2 * (sum(own.values()) - own["en"]) + others * (others - 1) * 2210
    source = ("at most: test questions from MLQA's README; between two languages that are not "
              "English, 2,210 (largest number on the data set's card, which counts dev too)")
    each = np.mean(
        [found["xquad", lang, lang][1].sum() / found["xquad", lang, lang][0]
         for lang in READING["mlqa"][0]])
    rows += [
        ("test_questions", sum(n for n, _ in found.values()) + mlqa,
         f"{there}; MLQA {mlqa}, {source}"),
        ("test_subwords", sum(x.sum() for _, x in found.values()) + mlqa * each,
         "counted in the same windows; MLQA's questions as long as XQuAD's in its languages"),
        ("train_questions", 87_599, "SQuAD v1.1 train, as published"),
        ("dev_questions", 10_570, "SQuAD v1.1 dev, as published")]
    with open(WORK, "w", encoding="utf-8", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows([("what", "number", "source"), *(
            (what, f"{n:.10g}", source) for what, n, source in rows)])


# --- FLOPs ---

def forward_flops(encoder, lengths, frozen=0): # of windows of so many subwords
    weights = sum(
        p.numel() for name, p in encoder.named_parameters()
        if p.dim() > 1 and "embeddings" not in name)
    c, n = encoder.config, np.asarray(lengths, float)
    return float(
        (2 * n * (weights + frozen) + 4 * c.num_hidden_layers * c.hidden_size * n**2).sum())


def reader_flops(reader, lengths):
    "Of a training step: the frozen S2DM needs no gradient of its weights."
    frozen = (
        sum(p.numel() for p in reader.semantic.parameters()) if reader.semantic is not None else 0)
    return 3 * forward_flops(reader.encoder, lengths) + 4 * float(np.sum(lengths)) * frozen


def large_product(cuda, n): # flops/s of one
    where = dict(device="cuda", dtype=torch.bfloat16) if cuda else {}
    a, b = (torch.randn(n, n, **where) for _ in range(2))
    for _ in range(3): a @ b
    return 2 * n**3 / min(bench_reader.seconds(lambda: a @ b, cuda) for _ in range(10))


# --- measuring ---

class Bench:
    "Measures one encoder; `rows` are its results, `rates` what the extrapolation needs."

    def __init__(self, name, size, args, peak):
        self.name = name
        self.size = size
        self.args = args
        self.peak = peak
        self.cuda = torch.cuda.is_available()
        w = work()
        self.accelerator, self.rows, self.rates = make_accelerator("auto"), [], {}
        self.split = tokenizer(size["vocabulary"], pad=0 if name == "mbert" else 2)
        self.text = Text(size["vocabulary"], w["ud_subwords"] / w["ud_words"] - 1)
        self.longest, scale = (384, 1) if not args.tiny else (48, 8)
        self.config, self.pretraining = FinetuneConfig(model=name), PretrainConfig(model=name)
        self.batch, self.pairs = (
            (self.config.batch, self.pretraining.batch_pairs) if not args.tiny else (2, 2))
        self.sentences = self.text.lengths(
            args.steps * 2 * self.pairs, w["ud_words_mean"] / scale, w["ud_words_sd"] / scale, 2,
            80)
        self.windows = self.text.lengths(
            args.steps * 2 * self.batch, w["window_mean"] / scale, w["window_sd"] / scale, 24,
            self.longest)

    def encoder(self): # on the GPU at once, where random weights are made faster
        seed_everything(0)
        with self.accelerator.device: return network(self.name, **self.size)

    def timed(self, run, times):
        "Median of the seconds of a call, and of launching it; the first ones warm up."
        took, launched = [], []
        for i in range(times + 3):
            start = time.perf_counter()
            run(i)
            launched.append(time.perf_counter() - start)
            if self.cuda: torch.cuda.synchronize()
            took.append(time.perf_counter() - start)
        return statistics.median(took[3:]), statistics.median(launched[3:])

    def clean(self): # so that peak memory is this row's
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def row(self, stage, what, took, launched, flops, **done): # done: unit -> how many
        sheet = next((v for k, v in SHEET.items() if k in device_name()), None)
        row = dict(
            encoder=self.name, stage=stage, what=what, ms=1e3 * took, launch_ms=1e3 * launched,
            **{f"{unit}_per_s": n / took for unit, n in done.items()}, tflops=flops / took / 1e12,
            share_of_product=flops / took / self.peak,
            share_of_sheet=sheet and flops / took / sheet,
            peak_gib=torch.cuda.max_memory_allocated() / 2**30 if self.cuda else None)
        self.rows.append(row)
        shares = (f"{100 * row['share_of_product']:5.1f} % of a large product's rate"
                  + (f", {100 * row['share_of_sheet']:.1f} % of the data sheet's" if sheet else ""))
        memory = f"; {row['peak_gib']:.1f} GiB" if self.cuda else ""
        print(
            f"  {stage:9}{what:36}{row['ms']:9.1f} ms (launch {row['launch_ms']:.1f})  "
            + ", ".join(f"{n / took:,.0f} {unit}/s" for unit, n in done.items())
            + f"; {shares}{memory}",
            flush=True)

    def stages_of_s2dm(self): # encode and pretrain
        self.clean()
        pairs = self.text.pairs(self.sentences.tolist())
        encoder = Encoder(
            self.encoder(), self.split, f"{self.name}-random", "seed 0", self.accelerator.device)
        with tempfile.TemporaryDirectory() as folder:
            cache = FeatureCache(encoder, folder=folder)
            cache.encode(pairs["forms_s"][:self.pairs], progress=False) # warms up
            before, rest = cache.rows, [*pairs["forms_s"][self.pairs:], *pairs["forms_t"]]
            took = bench_reader.seconds(lambda: cache.encode(rest, progress=False), self.cuda)
            lengths = cache.index["rows"] + 2
            self.rates["encode"] = (cache.rows - before) / took
            self.row(
                "encode", f"float32, {len(rest)} sentences", took, took,
                forward_flops(encoder.model, lengths[self.pairs:]), sentences=len(rest),
                subwords=cache.rows - before)
            width, encoder.model = encoder.width, None
            for variant in ("s2dm_pos", "s2dm_sp"):
                self.pretrain(variant, PairData(pairs, cache, TERMS[variant], self.pairs), width)

    def pretrain(self, variant, data, width):
        self.clean()
        training = bench_step.Training(
            variant, self.accelerator, edition="refined", encoder_width=width,
            vocabulary=self.size["vocabulary"])
        plan = [b for b in data.plan(0) if len(b) == self.pairs]
        def work_of(batch):
            products = bench_step.products(training, data, batch)
            return sum(2 * rows * a * b * (3 if dx else 2) for (a, b), rows, dx in products)
        flops = statistics.mean(work_of(batch) for batch in plan[:3])
        took, launched = self.timed(
            lambda i: training.step(data, plan[i % len(plan)]), self.args.steps)
        # the dearer of the two stands for all systems
        if variant == "s2dm_sp": self.rates["pretrain"] = self.pairs / took
        subwords = statistics.mean(int(data.load(b)["mask"].sum()) for b in plan[:3])
        self.row(
            "pretrain", f"{variant}, {self.pairs} pairs", took, launched, flops, pairs=self.pairs,
            subwords=subwords)

    def stages_of_the_reader(self): # finetune and evaluate
        for head in ("baseline", "semantic"):
            self.clean()
            side = bench_reader.Training(self.split, head, self.accelerator, self.encoder())
            for lengths in (np.full(len(self.windows) // 2, self.longest), self.windows):
                self.finetune(side, head, lengths)
            self.evaluate(side.reader, head)

    def finetune(self, side, head, lengths):
        self.clean()
        windows = side.reader.windows(self.text.questions(lengths.tolist()), progress=False)
        data = TrainingBatches(windows, self.batch)
        plan = [b for b in data.plan(0) if len(b) == self.batch]
        took, launched = self.timed(
            lambda i: [side.step(data, b) for b in plan], max(1, self.args.steps // len(plan)))
        took, launched = took / len(plan), launched / len(plan)
        same = lengths.min() == lengths.max()
        if head == "semantic" and not same: self.rates["finetune"] = self.batch / took
        what = (f"{head}, {self.batch} of "
                f"{self.longest if same else 'SQuAD' + chr(39) + 's lengths'}")
        self.row(
            "finetune", what, took, launched,
            statistics.mean(reader_flops(side.reader, windows.lengths[b]) for b in plan),
            windows=self.batch,
            subwords=statistics.mean(int(windows.lengths[b].sum()) for b in plan))

    def evaluate(self, reader: S2DMReader, head):
        self.clean()
        windows = reader.windows(self.text.questions(self.windows.tolist()), progress=False)
        frozen = (sum(p.numel() for p in reader.semantic.parameters())
                  if reader.semantic is not None
                  else 0)
        took, launched = self.timed(lambda i: reader.read(windows, progress=False), 3)
        if head == "semantic": self.rates["evaluate"] = windows.lengths.sum() / took
        self.row(
            "evaluate", f"{head}, {len(windows)} windows", took, launched,
            forward_flops(reader.encoder, windows.lengths, frozen), windows=len(windows),
            subwords=int(windows.lengths.sum()))


def measure(args):
    if not (torch.cuda.is_available() or args.tiny):
        raise SystemExit(
            "there is no CUDA device here; --tiny runs on any machine, --estimate measures nothing")
    sizes = ({name: dict(vocabulary=400, width=32, layers=2, heads=2) for name in FULL}
             if args.tiny
             else FULL)
    peak = large_product(torch.cuda.is_available(), 128 if args.tiny else 8192)
    print(
        f"{device_name()}, torch {torch.__version__}; a large product: {peak / 1e12:.3g} TFLOP/s"
        + ("; tiny networks: the numbers mean nothing" if args.tiny else ""))
    found = dict(
        device=device_name(), versions=versions(), tiny=args.tiny, large_product_flops_per_s=peak,
        measured=[], paper=[])
    for name, size in sizes.items():
        print(f"{name}: {size}")
        bench = Bench(name, size, args, peak)
        bench.stages_of_s2dm()
        bench.stages_of_the_reader()
        found["measured"] += bench.rows
        for target in ("reproduce", "full"):
            table = hours(name, target, bench.rates)
            found["paper"] += [
                dict(target=target, encoder=name, stage=stage, runs=n, hours_per_run=h)
                for stage, (n, h) in table.items()]
            total = sum(n * h for n, h in table.values())
            parts = [f"{stage} {n} x {60 * h:.3g} min" for stage, (n, h) in table.items()]
            print(f"  profile paper, {target}: {total:.3g} GPU hours ({', '.join(parts)})")
        if args.json:
            Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


# --- estimating ---

class Operations(TorchDispatchMode):
    "Counts what is launched."
    n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += 1
        return function(*args, **kwargs or {})


def operations(run):
    run() # what is done once
    with Operations() as mode: run()
    return mode.n


def activations(name, length=384):
    """Bytes kept for the backward pass of a window, in bfloat16: of all layers, from networks of
    one and two layers and batches of one and two."""
    def kept(layers, rows):
        seed_everything(0)
        # with attention dropout the CPU keeps every score, which CUDA's fused attention does not
        # (XLM's own attention does, on either)
        model = network(
            name, **FULL[name] | dict(vocabulary=50, layers=layers),
            attention_dropout=0. if name == "mbert" else .1).train()
        found = {}
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        def seen(x):
            s = x.untyped_storage()
            # kept, so that its place is not used again
            if s.data_ptr() not in own: found[s.data_ptr()] = s.nbytes(), x
            return x
        ids = torch.full((rows, length), 9)
        with torch.autograd.graph.saved_tensors_hooks(seen, lambda x: x), torch.autocast(
                "cpu", torch.bfloat16):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        return sum(size for size, _ in found.values())
    one, two = (kept(layers, 2) - kept(layers, 1) for layers in (1, 2))
    return one + (FULL[name]["layers"] - 1) * (two - one)


def costs(name): # operations and FLOPs of a step of S2DM and of the reader; weights of both
    with torch.device("meta"): encoder = network(name, **FULL[name])
    split, text, accelerator, w = tokenizer(400), Text(400, .5), make_accelerator("float32"), work()
    batch = FinetuneConfig(model=name).batch
    pairs = PretrainConfig(model=name).batch_pairs
    width = FULL[name]["width"]
    # as many operations as the true one
    side = bench_reader.Training(
        split, "semantic", accelerator,
        network(name, vocabulary=400, width=32, layers=FULL[name]["layers"], heads=2))
    data = TrainingBatches(side.reader.windows(text.questions([30] * batch), progress=False), batch)
    found = dict(
        encoder=encoder, finetune_operations=operations(lambda: side.step(data, data.plan(0)[0])))
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(
            Encoder(
                network(name, **FULL[name] | dict(vocabulary=400, layers=1)), split, name, "random",
                device="cpu"),
            folder=folder)
        data = PairData(
            text.pairs(text.lengths(pairs, w["ud_words_mean"], w["ud_words_sd"], 2, 80).tolist()),
            cache, TERMS["s2dm_sp"], pairs)
        of_s2dm = dict(edition="refined", encoder_width=width)
        small = bench_step.Training("s2dm_sp", accelerator, vocabulary=400, **of_s2dm)
        found["pretrain_operations"] = operations(lambda: small.step(data, data.plan(0)[0]))
        true = bench_step.Training(
            "s2dm_sp", accelerator, vocabulary=FULL[name]["vocabulary"], **of_s2dm)
        found["pretrain_flops"] = sum(
            2 * rows * a * b * (3 if dx else 2)
            for (a, b), rows, dx in bench_step.products(true, data, data.plan(0)[0]))
    def parameters(module): return sum(p.numel() for p in module.parameters())
    return found | dict(
        weights=parameters(encoder), s2dm=parameters(true.model),
        semantic=parameters(true.model.model.posteriors.mu_y))


def estimated_rates(name, cost, gpu): # unit -> so many per second
    w = work()
    batch = FinetuneConfig(model=name).batch
    pairs = PretrainConfig(model=name).batch_pairs
    per_window = (3 * forward_flops(cost["encoder"], window_lengths()) / len(window_lengths())
                  + 4 * w["window_mean"] * cost["semantic"])
    window = w["test_subwords"] / w["test_questions"]
    sentence = w["ud_subwords"] / w["ud_sentences"]
    read = forward_flops(cost["encoder"], [window], cost["semantic"]) / window
    encode = forward_flops(cost["encoder"], [sentence]) / sentence
    def step(flops, n): return max(flops / (SHARE * SHEET[gpu]), n * LAUNCH)
    return dict(
        encode=SHARE * SHEET32[gpu] / encode,
        pretrain=pairs / step(cost["pretrain_flops"], cost["pretrain_operations"]),
        finetune=batch / step(batch * per_window, cost["finetune_operations"]),
        evaluate=SHARE * SHEET[gpu] / read)


def window_lengths(n=2000): # of windows as long as SQuAD's
    w = work()
    return Text(400, 0).lengths(n, w["window_mean"], w["window_sd"], 24, 384)


def disk(name, target, cost):
    """GB: what is shared, and what each run leaves: weights to go on from, the best ones of S2DM,
    and those that the next stage reads."""
    n, w = runs(target), work()
    cache = w["ud_subwords"] * (2 * FULL[name]["width"] + 8)
    return dict(
        encoder=4 * cost["weights"] / GB, cache=cache / GB, pretrain=12 * cost["s2dm"] / GB,
        finetune=8 * cost["weights"] / GB,
        all=(4 * cost["weights"] + cache + n["pretrain"] * 12 * cost["s2dm"]
             + n["finetune"] * 8 * cost["weights"])
        / GB)


def save(name, rows): # figures/name.csv
    with open(ROOT / "figures" / f"{name}.csv", "w", encoding="utf-8", newline="") as f:
        out = csv.DictWriter(f, rows[0], lineterminator="\n")
        out.writeheader()
        out.writerows(
            {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    print(f"figures/{name}.csv")


def estimate():
    stages, totals, memory = [], [], []
    for name in FULL:
        cost, batch = costs(name), FinetuneConfig(model=name).batch
        rates = {gpu: estimated_rates(name, cost, gpu) for gpu in SHEET32}
        counts = {target: {"encode": 1} | runs(target) for target in ("reproduce", "full")}
        for stage in counts["full"]:
            minutes = {
                f"min_{gpu}": 60 * hours(name, "full", rates[gpu])[stage][1] for gpu in rates}
            stages.append(dict(
                encoder=name, stage=stage,
                **{f"runs_{target}": c[stage] for target, c in counts.items()}, **minutes))
        for target in counts:
            total = {
                f"hours_{gpu}": sum(n * h for n, h in hours(name, target, rates[gpu]).values())
                for gpu in rates}
            totals.append(dict(
                target=target, encoder=name,
                runs=sum(counts[target].values()) - 1 + counts[target]["evaluate"], **total,
                disk_GB=disk(name, target, cost)["all"]))
        there, kept = disk(name, "full", cost), batch * activations(name)
        states = 16 * cost["weights"] + 2 * cost["weights"]
        memory.append(dict(
            encoder=name, million_weights=cost["weights"] / 1e6, batch=batch, states_GB=states / GB,
            activations_GB=kept / GB, together_GB=(states + kept) / GB,
            download_GB=there["encoder"], cache_GB=there["cache"], s2dm_run_GB=there["pretrain"],
            reader_run_GB=there["finetune"]))
        print(name, {k: v for k, v in cost.items() if k != "encoder"}, rates)
    for table, rows in (("gpu_stages", stages), ("gpu_hours", totals), ("gpu_memory", memory)):
        save(table, rows)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, what in (
            ("tiny", "tiny networks, on any machine"),
            ("estimate", "measure nothing: write figures/gpu_*.csv"),
            ("count", "count the work in the real corpora")):
        ask.add_argument(f"--{option}", action="store_true", help=what)
    ask.add_argument("--steps", type=int, help="that are timed (30; tiny: 3)")
    ask.add_argument("--json", help="file for the numbers")
    args = ask.parse_args()
    args.steps = args.steps or (3 if args.tiny else 30)
    if args.count: count()
    elif args.estimate: estimate()
    else: measure(args)
