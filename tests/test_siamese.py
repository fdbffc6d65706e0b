"""Training data against the treebanks it is made of, the memory against a list, and the run:
killed, refused, on two processes.
"""
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.testing import assert_close

import s2dm.pretrain as pretrain_module
from conftest import ROOT
from s2dm import losses as L
from s2dm.core import MissingData, ParameterError
from s2dm.encoder import Encoder, FeatureCache, mbert_tokenizer
from s2dm.fit import Diverged
from s2dm.model import S2DM, S2DMConfig
from s2dm.pretrain import SYSTEMS, PretrainConfig, pretrain, selection_data, training_data
from s2dm.siamese import PairData, SentenceData, Siamese, distinct_sentences, grouped_batches
from s2dm.subwords import Sentence, word_spans
from s2dm.toy import random_sentences, toy_encoder, toy_s2dm, toy_tokenizer
from s2dm.treebanks import UPOS, align, load_pairs, tree_distances
from s2dm.vectors import TextVectors

TOKENIZER = toy_tokenizer(symbols="abcdefgh")
tiny_encoder = partial(toy_encoder, TOKENIZER)


@pytest.fixture
def cache(tmp_path): return FeatureCache(tiny_encoder(), "float32", tmp_path / "cache")


def tiny_model(variant="s2dm_sp", **settings):
    sizes = dict(vocabulary=len(TOKENIZER), decoder_width=12, max_positions=16, depth_rank=4)
    return toy_s2dm(variant=variant, **sizes | settings)


# ---------------------------------------------------------------- sentences and pairs

def test_pairs_taken_apart_are_the_sentences_they_were_made_of():
    sentences = random_sentences()
    pairs = align(sentences).shuffle(seed=1)
    apart, rows = distinct_sentences(pairs)
    by_id = {s["sentence_id"]: s for s in sentences}
    assert {s["sentence_id"]: s for s in apart} == by_id and len(apart) == len(by_id)
    for pair, (s, t) in zip(pairs, rows.tolist()):
        assert apart[s]["forms"] == pair["forms_s"]
        assert apart[t]["heads"] == pair["heads_t"]
        assert apart[s]["group"] == apart[t]["group"] == pair["group"]


@given(
    st.lists(st.integers(0, 60), max_size=200), st.integers(1, 12), st.integers(1, 6),
    st.integers(0, 3))
def test_batches_hold_everything_once(lengths, size, pool, epoch):
    batches = grouped_batches(lengths, size, (0, epoch), pool)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert sorted(map(len, batches))[1:] == [size] * (len(batches) - 1)
    assert all(0 < len(b) <= size for b in batches)
    assert batches == grouped_batches(lengths, size, (0, epoch), pool)
    assert all(type(i) is int for b in batches for i in b)


def test_batches_of_similar_length_in_an_order_that_knows_no_length():
    lengths = np.random.default_rng(0).gamma(3, 7, 6000).astype(int) + 1
    batches = grouped_batches(lengths, 30, (3, 0))
    def work(batches): return sum(len(b) * lengths[b].max() for b in batches) / lengths.sum()
    assert work(batches) < 1.1 < 1.5 < work(grouped_batches(lengths, 30, (3, 0), pool=1))
    means = np.array([lengths[b].mean() for b in batches])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < .2
    assert len({tuple(map(tuple, grouped_batches(lengths, 30, seed))) for seed in ((3, 0), (3, 1), (
        4, 0))}) == 3


def same_labels(data, pairs, positions):
    "Each label of a batch, at the words that are there, is that of the treebank."
    batch = data.load(positions)
    rows = [pairs[p] for p in positions]
    for i, (row, end) in enumerate([(r, "s") for r in rows] + [(r, "t") for r in rows]):
        there, n = batch["word_mask"][i], len(row[f"forms_{end}"])
        assert not there[n:].any()
        at = there[:n].nonzero()[:, 0].tolist()
        sentence = Sentence(row[f"text_{end}"], word_spans(row[f"text_{end}"], row[f"forms_{end}"]))
        pieces = data.sentences.cache.encoder.split([sentence])[0]
        assert at == sorted({*pieces.word.tolist()} - {-1})  # words with a subword, up to the limit
        assert [UPOS[t] for t in batch["tags"][i, at]] == [row[f"upos_{end}"][w] for w in at]
        assert batch["depths"][i, at].tolist() == [row[f"depths_{end}"][w] for w in at]
        assert (
            batch["distances"][i][at][:, at].numpy()
            == tree_distances(row[f"heads_{end}"])[np.ix_(at, at)]).all()
        assert batch["ids"][i, batch["mask"][i]].tolist() == pieces.ids.tolist()
        assert batch["first"][i, at].tolist() == [pieces.word.tolist().index(w) for w in at]
        assert ((batch["group"][i] == batch["group"][:len(rows)]).tolist()
                == [r["group"] == row["group"] for r in rows])
    return batch


ALL = S2DMConfig(variant="vgvae_all").losses


@pytest.mark.parametrize("positions", [64, 9])
def test_labels_are_those_of_the_treebank_up_to_the_encoders_limit(positions, tmp_path):
    pairs = align(random_sentences(20))
    cache = FeatureCache(tiny_encoder(positions=positions), "float32", tmp_path)
    data = PairData(pairs, cache, ALL, batch=7)
    assert (data.sentences.cache.counts["truncated_words"] > 0) == (positions == 9)
    for batch in data.plan(0):
        terms = Siamese(tiny_model("vgvae_all"))(same_labels(data, pairs, batch))
        assert all(x.isfinite().all() and len(x) == len(batch) for x in terms.values())


def test_real_labels(real, tmp_path):
    pairs = load_pairs(("partut-it",)).select(range(200))
    encoder = toy_encoder(mbert_tokenizer(), positions=48)
    data = PairData(pairs, FeatureCache(encoder, folder=tmp_path), ALL)
    assert data.sentences.cache.counts["truncated_sentences"] > 3
    for batch in data.plan(0)[:4]: same_labels(data, pairs, batch)


def test_labels_that_no_loss_needs_are_left_out(cache):
    pairs = align(random_sentences())
    def has(variant):
        return (set(PairData(pairs, cache, L.TERMS[variant]).load([0, 1]))
                - {"h", "mask", "ids", "first", "word_mask", "group"})
    assert has("s2dm_pos") == {"tags"} and has("s2dm_sp") == {"depths", "distances"}
    assert (set(PairData(pairs, cache, ("RL",)).load([0]))
            == {"h", "mask", "ids", "first", "word_mask", "group"})


def test_single_networks_take_as_many_steps_over_as_many_sentences(cache, monkeypatch):
    """Both sides of the very pairs, each as often as it is in a pair: batch for batch as many
    sentences, in all the same ones."""
    sentences = random_sentences(13)
    monkeypatch.setattr(
        pretrain_module, "load_pairs", lambda collections, languages=None: align(sentences))
    config = PretrainConfig(model="real-s", variant="s2dm_single_pos", batch_pairs=4)
    single, paired = (training_data(config, cache, ("RL", "POS"), kind) for kind in (False, True))
    assert type(single) is SentenceData
    assert type(paired) is PairData
    assert len(single) == 2 * len(paired) > len(sentences)
    seen = []
    for data in single, paired:
        batches = [data.load(positions) for positions in data.plan(0)]
        everything = Counter(
            tuple(ids[mask].tolist())
            for batch in batches
            for ids, mask in zip(batch["ids"], batch["mask"]))
        seen.append((len(batches), sorted(len(batch["ids"]) for batch in batches), everything))
    assert seen[0] == seen[1] and max(seen[0][2].values()) > 1

    pairs = align(sentences)
    chosen = PretrainConfig(model="real-s", variant="s2dm_single_pos", languages="en,fi")
    data = training_data(chosen, cache, ("RL",), paired=False)
    sides = pairs["lang_s"][:] + pairs["lang_t"][:]
    assert len(data) == sum(lang in ("en", "fi") for lang in sides)
    assert len(data.sentences.lengths) == sum(lang != "de" for lang in sentences["lang"])
    with pytest.raises(ParameterError, match="languages='xx' is not possible"):
        training_data(
            PretrainConfig(model="real-s", variant="s2dm_single_pos", languages="xx"), cache,
            ("RL",), paired=False)


@pytest.mark.parametrize(
    "column, kind", [("heads", SentenceData), ("heads_t", PairData), ("sentence_id_s", PairData)])
def test_columns_that_are_missing_are_named(column, kind, cache):
    sentences = random_sentences()
    data = (align(sentences) if kind is PairData else sentences).remove_columns([column])
    with pytest.raises(ParameterError, match=f"lack the columns {column}"): kind(data, cache)


def test_no_pairs_are_an_error(cache):
    with pytest.raises(ParameterError, match="no sentences to train on"):
        PairData(align(random_sentences()).select([]), cache)


def test_embeddings_are_rows_of_the_encoders_table(cache):
    pairs = align(random_sentences())
    plain, data = PairData(pairs, cache, ALL), PairData(pairs, cache, ALL, embeddings=True)
    batch = data.load([0, 3])
    assert set(batch) - set(plain.load([0, 3])) == {"e"} and not batch["e"].requires_grad
    for row, ids, mask in zip(batch["e"], batch["ids"], batch["mask"]):
        for e, i in zip(row[mask], ids[mask]):
            assert torch.equal(e, cache.encoder.model.embeddings.word_embeddings.weight[i])
    narrow = tiny_model("vgvae_all", embedding_width=5, e_level="embeddings")
    with pytest.raises(RuntimeError): Siamese(narrow)(batch)  # the table is 16 wide
    terms = Siamese(tiny_model("vgvae_all", e_level="embeddings"))(batch)
    moved = Siamese(tiny_model("vgvae_all", e_level="embeddings"))(batch | dict(h=batch["h"] + 1))
    assert all(term.isfinite().all() for term in terms.values())
    assert not torch.equal(terms["RL"], moved["RL"])


def test_subwords_are_those_that_occur(cache):
    data = PairData(align(random_sentences(4)), cache)
    found = set()
    for positions in data.plan(0):
        batch = data.load(positions)
        found |= {*batch["ids"][batch["mask"]].tolist()}
    assert data.subwords().tolist() == sorted(found) and len(found) < len(TOKENIZER)


# ---------------------------------------------------------------- the memory

@pytest.mark.parametrize("capacity", [5, 14, 40])
def test_the_ring_is_a_list_of_the_last_sentences(capacity, cache):
    """Vectors, groups and SDL itself, step by step, against a Python list; batches of differing
    size, some larger than the ring."""
    data = PairData(align(random_sentences(14)), cache, ALL, batch=4)
    model, naive = Siamese(tiny_model("s2dm_pos", edition="paper"), capacity), []
    for step, positions in enumerate([*data.plan(0), [0], [*range(12)], *data.plan(1)]):
        batch = data.load(positions)
        torch.manual_seed(step)
        terms = model(batch)
        torch.manual_seed(step)
        latents = model.model(batch["h"], batch["mask"])
        y, group = latents.compared, batch["group"]
        chosen, found = [], []
        for i in range(len(y)):  # the nearest admissible sentence, by looking at each
            near = [
                (F.cosine_similarity(y[i], v, dim=0).item(), v)
                for v, g in [*zip(y.detach(), group), *naive]
                if g != group[i]]
            chosen.append(max(near, key=lambda x: x[0])[1] if near else torch.zeros_like(y[i]))
            found.append(bool(near))
        assert_close(
            terms["SDL"],
            L.semantic_discrimination_loss(y, torch.stack(chosen), torch.tensor(found), .4, True))
        naive = (naive + [*zip(y.detach(), group)])[-capacity:]
        filled = model.groups >= 0
        def order(vectors, groups): return sorted((g, v.tolist()) for v, g in zip(vectors, groups))
        assert filled.sum() == len(naive)
        assert (order(model.vectors[filled], model.groups[filled].tolist())
                == order([v for v, _ in naive], [g.item() for _, g in naive]))


def test_negatives_from_memory_are_never_of_the_same_group_nor_from_empty_slots(cache, monkeypatch):
    pairs = align(random_sentences(6))
    data = PairData(pairs, cache, ("RL", "SDL"), batch=3)
    model = Siamese(tiny_model("vgvae_sdl", edition="paper"), 16)
    seen = []
    find = L.hardest_negatives

    def watched(y, group, bank, bank_group):
        negatives, found = find(y, group, bank, bank_group)
        everything, groups = torch.cat([y, bank]), torch.cat([group, bank_group])
        for i in found.nonzero()[:, 0]:
            owners = groups[(everything == negatives[i]).all(1)]
            seen.append((owners >= 0).all() and (owners != group[i]).all())
        return negatives, found

    monkeypatch.setattr(L, "hardest_negatives", watched)
    for epoch in range(3):
        for batch in data.plan(epoch): model(data.load(batch))
    assert len(seen) > 20 and all(seen)


def test_a_memory_changes_nothing_but_negatives_and_only_in_training(cache):
    data = PairData(align(random_sentences()), cache, ALL, batch=4)
    plain, model = Siamese(tiny_model("s2dm_pos")), Siamese(tiny_model("s2dm_pos"), 30)
    model.model.load_state_dict(plain.model.state_dict())
    model.eval()
    for _ in range(2):
        torch.manual_seed(1)
        a = plain(data.load([0, 1, 2]))
        torch.manual_seed(1)
        b = model(data.load([0, 1, 2]))
        for name in a: assert_close(a[name], b[name], msg=name)
        assert (model.groups == -1).all()
    model.train()(data.load([3, 4]))
    again = Siamese(tiny_model("s2dm_pos"), 30)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.vectors, model.vectors) and again.next == 4
    # nothing to remember without SDL
    assert not [*Siamese(tiny_model("s2dm_single_pos"), 30).buffers()]


@pytest.mark.parametrize("variant", SYSTEMS)
def test_every_system_trains_every_parameter(variant, cache):
    "So that processes need not look for parameters without a gradient."
    sentences = random_sentences()
    model = Siamese(tiny_model(variant), 20)
    c = model.model.config
    data = (PairData(align(sentences), cache, c.losses, 4)
            if c.paired
            else SentenceData(sentences, cache, c.losses, 8))
    for batch in data.plan(0)[:2]: terms = model(data.load(batch))
    assert tuple(terms) == c.losses
    L.objective(terms, c.losses, c.weights).backward()
    assert not [
        name for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all()]


# ---------------------------------------------------------------- parameters

@pytest.mark.parametrize("params, says", [
    (dict(variant="baseline"), "nothing to pre-train"),
    (dict(variant="s2dm_pso"), "did you mean 's2dm_pos'"),
    (dict(overrides="kappa_min"), "expected name=value"),
    (dict(overrides="kappa_min=1,kappa_min=2"), "each name once"),
    (dict(overrides="kapa_min=1"), "did you mean 'kappa_min'"),
    (dict(overrides="kappa_min=-1"), "kappa_min is a float from 0"),
    (dict(overrides="vocabulary=7"), "vocabulary is decided by"),
    (dict(overrides="embedding_width=7"), "embedding_width is decided by"),
    (dict(overrides="decoder_rows=7"), "decoder_rows is decided by"),
    (dict(decoder_vocabulary="some"), "choose one of full, data"),
    (dict(overrides="edition=refined"), "edition is decided by"),
    (dict(overrides="losses=RL+KL"), "did you mean"),
    (dict(overrides="paired=false"), "paired=False is not possible with CRL and SDL"),
    (dict(collections="pd"), "did you mean 'pud'"),
    (dict(selection="sts"), "choose one of zh_sts, synthetic, none"),
    (dict(batch_pairs=0), "batch_pairs is an int from 1"),
    (dict(cache_precision="int8"), "choose one of float16"),
    (dict(memorry=3), "did you mean 'memory'")])
def test_wrong_parameters_are_named(params, says):
    with pytest.raises(ParameterError) as error: PretrainConfig(**params)
    assert says in str(error.value)


def test_systems_that_differ_have_folders_that_differ():
    folders = [
        PretrainConfig(**p).folder("pretrain")
        for p in (dict(edition="paper"), dict(edition="released"), dict(edition="refined"),
                  dict(overrides="kappa_min=1"), dict(overrides="kappa_min=2"),
                  dict(edition="released", overrides="kappa_min=1"), dict(variant="vgvae"),
                  dict(seed=1), dict(model="mbert"), dict(overrides="losses=RL+KL_z"))]
    assert len(set(folders)) == len(folders)
    assert folders[0].parts[-4:-2] == ("pretrain", "small")
    assert folders[0].parts[-1] == "seed0"
    assert (PretrainConfig(overrides="margin=.5, kappa_min=1").folder("x")
            == PretrainConfig(overrides=["kappa_min=1", "margin=.5"]).folder("x"))


def test_learning_rate_and_settings():
    assert PretrainConfig(model="xlm100").learning_rate == 5e-5
    assert PretrainConfig(model="real-s").epochs == 3
    assert PretrainConfig(model="mbert", learning_rate=.1).learning_rate == .1
    model = PretrainConfig(
        edition="released",
        overrides="kappa_min=1,weight_KL_y=0.5,losses=RL+KL_y").model_config(vocabulary=7)
    assert model.kappa_min == 1
    assert model.weight_KL_y == .5
    assert model.losses == ("RL", "KL_y")
    assert model.pooling == "parameters"
    assert model.vocabulary == 7


def test_the_notebook_shows_the_defaults():
    cells = json.loads((ROOT / "nbs/03_pretrain.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = {}
    exec("".join(next(c for c in cells if "tags" in c["metadata"])["source"]), shown)
    assert (PretrainConfig(**{k: v for k, v in shown.items() if k != "__builtins__"})
            == PretrainConfig())


def test_without_chinese_sts_the_error_says_what_to_do(monkeypatch):
    for name in ("http_proxy", "https_proxy"): monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(MissingData, match="selection='none'"):
        selection_data(PretrainConfig(model="real-s"))


# ---------------------------------------------------------------- the run

RUN = dict(
    model="real-s", epochs=6, batch_pairs=4, memory=20, log_every=2, checkpoint_seconds=0,
    patience=0, precision="float32",
    overrides="latent_width=8,mlp_width=12,decoder_width=12,max_positions=16")


def toy_run(die_at=0, **params):
    "`pretrain` on toy data, in this process; `die_at`: the step at which it kills itself."
    torch.set_num_threads(1)
    sentences, forward = random_sentences(24), Siamese.forward
    sts = Dataset.from_dict(dict(
        text_a=sentences["text"][:20], text_b=sentences["text"][20:40],
        score=[i % 5 for i in range(20)]))
    steps = [0]

    def counted(self, batch):
        steps[0] += 1
        if steps[0] == die_at: os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pretrain_module, "load_pairs", lambda collections, languages=None: align(sentences))
        patch.setattr(pretrain_module, "load_similarity", lambda corpus, part: sts)
        patch.setattr(pretrain_module, "TESTS", ())
        patch.setattr(pretrain_module, "NEW", ())
        patch.setattr(
            pretrain_module, "parallel_treebank",
            lambda *a: dict(en=sentences["forms"][:20], de=sentences["forms"][20:40]))
        patch.setattr(Siamese, "forward", counted)
        return pretrain(PretrainConfig(**RUN | params), tiny_encoder())


def start(folder, launch=(), **params): # `toy_run` in a process of its own
    env = os.environ | dict(
        S2DM_RUNS=str(folder), S2DM_DATA=str(folder / "data"),
        PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}", OMP_NUM_THREADS="1")
    return subprocess.run(
        [*(launch or [sys.executable]), __file__, json.dumps(params)], env=env, capture_output=True,
        text=True, timeout=200)


def results(result): # what must come out the same
    metrics = json.loads((result.folder / "metrics.json").read_text())
    weights = load_file(result.folder / "checkpoint/model.safetensors")
    return {k: v for k, v in metrics.items() if k != "seconds"}, {
        k: v.numpy().tobytes() for k, v in weights.items()}


def test_a_learning_rate_that_is_far_too_high_ends_with_the_step(tmp_path, monkeypatch):
    "No sampler loops for ever at what such a step leaves."
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path))
    monkeypatch.setenv("S2DM_DATA", str(tmp_path / "data"))
    with pytest.raises(Diverged, match=r"^step \d+: "):
        toy_run(variant="s2dm_sp", learning_rate=100., max_steps=40)


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "whole"))
    whole = results(toy_run())
    # in its third epoch, between two checkpoints
    assert start(tmp_path / "cut", die_at=26).returncode == -signal.SIGKILL
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "cut"))
    monkeypatch.setenv("S2DM_DATA", str(tmp_path / "cut" / "data"))
    resumed = toy_run()
    assert results(resumed) == whole and resumed.fit.steps == 54


@pytest.mark.slow
def test_two_processes_leave_one_record_and_equal_weights(tmp_path):
    done = start(
        tmp_path,
        [Path(sys.executable).with_name("accelerate"), "launch", "--multi_gpu", "--num_processes",
         "2", "--main_process_port", "0"],
        epochs=2)
    assert done.returncode == 0, done.stderr[-3000:]
    says = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sorted(s["rank"] for s in says) == [0, 1]
    assert says[0]["weights"] == says[1]["weights"]
    assert {s["steps"] for s in says} == {18}
    assert [bool(s["tables"]) for s in sorted(says, key=lambda s: s["rank"])] == [True, False]
    assert ([p.relative_to(tmp_path).parts[:2] for p in tmp_path.rglob("metrics.json")]
            == [("pretrain", "real-s")])
    assert len([*tmp_path.rglob("events.out*")]) == 1 and not [*tmp_path.rglob(".*.tmp")]


def test_a_run_leaves_record_model_encoder_and_card(tmp_path):
    result = toy_run(epochs=2)
    assert {p.name for p in result.folder.iterdir()} == {
        "config.json", "metrics.json", "fit.safetensors", "best.safetensors", "checkpoint",
        "tensorboard"}
    metrics, config = (
        json.loads((result.folder / f"{name}.json").read_text()) for name in ("metrics", "config"))
    assert config["parameters"]["learning_rate"] == 1e-3
    assert "wall_time_s" in config
    assert metrics["examples"] == 36 and metrics["precision"] in ("bfloat16", "float32")
    assert metrics["encoder"]["revision"] == "r1"
    assert len(metrics["evaluations"]) == 2
    assert metrics["retrieval_pud"][0]["lang"] == "de"
    assert (max(e["y"] for e in metrics["evaluations"])
            == next(e["y"] for e in metrics["evaluations"] if e["step"] == metrics["best_step"]))
    card = (result.folder / "checkpoint/README.md").read_text()
    assert "to be completed" not in card and "CC BY-NC-SA 4.0" in card and "r1" in card
    vectors = TextVectors.from_pretrained(result.folder / "checkpoint", encoder=tiny_encoder())
    # the run's own come from a cache in float16
    assert_close(vectors.semantic("ab c"), result.vectors.semantic("ab c"), rtol=1e-2, atol=1e-3)
    weights = load_file(result.folder / "checkpoint/model.safetensors")
    # the memory is none of the model
    assert not [name for name in weights if "groups" in name or "vectors" in name]
    assert all(torch.equal(weights[k], v) for k, v in result.vectors.model.state_dict().items())


def test_a_finished_run_is_not_trained_again_and_another_one_is_refused_without_harm(monkeypatch):
    first = toy_run(epochs=2)
    before = results(first)
    assert results(toy_run(epochs=2, die_at=1)) == before  # it would have died in the first step
    files = {p: p.read_bytes() for p in first.folder.rglob("*.json")}
    with pytest.raises(ParameterError, match="epochs was 2 and is 3"): toy_run(epochs=3)
    assert {p: p.read_bytes() for p in first.folder.rglob("*.json")} == files
    assert toy_run(epochs=3, fresh=True).fit.steps == 27


def test_another_encoder_is_another_run(monkeypatch):
    toy_run(epochs=1)
    there = Encoder.__init__
    monkeypatch.setattr(
        Encoder, "__init__",
        lambda self, model, tokenizer, name, revision, device=None: there(
                self, model, tokenizer, name, "r2", device))
    with pytest.raises(ParameterError, match="revision was 'r1' and is 'r2'"): toy_run(epochs=1)


@pytest.mark.parametrize("params", [
    dict(variant="s2dm_single_pos", memory=0),
    dict(overrides=RUN["overrides"] + ",e_level=embeddings"),
    dict(selection="none", variant="vgvae_wpl"), dict(edition="released", precision="bfloat16"),
    dict(edition="refined", collections="lines")])
def test_other_systems_run(params):
    result = toy_run(epochs=1, **params)
    assert ("retrieval_pud" in result.tables) == ("collections" not in params)
    assert (len(result.fit.evaluations) == 0) == ("selection" in params)


def test_a_run_whose_decoder_knows_the_subwords_of_its_data():
    full = toy_run(epochs=1)
    part = toy_run(
        epochs=1, decoder_vocabulary="data", edition="released",
        overrides=RUN["overrides"] + ",e_level=embeddings")
    model = S2DM.from_pretrained(part.folder / "checkpoint")
    rows = model.config.decoder_rows
    assert full.vectors.model.config.decoder_rows == 0
    assert len(full.vectors.model.decoder.output.weight) == len(TOKENIZER)
    assert 0 < rows < len(TOKENIZER)
    assert (model.decoder.row >= 0).sum() == rows
    assert model.config.vocabulary == len(TOKENIZER)
    assert torch.equal(model.decoder.row, part.vectors.model.decoder.row.cpu())


def test_figures_of_a_run():
    result = toy_run(epochs=2)
    made = pretrain_module.figures(result)
    curves = made["curves"][1]
    assert (set(curves["panel"])
            == {*result.vectors.model.config.losses, "loss", "gradient_norm", "y", "z"})
    assert set(made) == {"curves", "retrieval_pud"}
    result.tables = {}
    assert pretrain_module.figures(result) == {}


if __name__ == "__main__":
    import hashlib

    done = toy_run(**json.loads(sys.argv[1]))
    digest = hashlib.sha256(
        b"".join(v.numpy().tobytes() for v in done.vectors.model.state_dict().values())).hexdigest()
    print(
        json.dumps(dict(
            rank=int(os.environ.get("RANK", 0)), weights=digest, steps=done.fit.steps,
            tables=sorted(done.tables))),
        flush=True)
