"""Encoders and features: every way to get one, frozen, real words under mBERT's vocabulary, XLM's
slow tokenizer, kills, full disks.
"""
import errno
import hashlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from string import ascii_lowercase

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    ElectraConfig, ElectraModel, XLMConfig, XLMModel, XLMRobertaConfig, XLMRobertaModel,
    XLMTokenizer)
from transformers.modeling_utils import PreTrainedModel

import s2dm.encoder
from conftest import ROOT
from s2dm.core import DataError, MissingData, ParameterError
from s2dm.encoder import (
    Encoder, FeatureCache, WordTokenizer, collate, find_encoder, length_batches,
    load_encoder, mbert_tokenizer, scratch_folder, states_width)
from s2dm.features import SpanTokenizer
from s2dm.subwords import NOWHERE, Sentence, TextSplitter, first_subwords, labelled_sentences
from s2dm.systems import ENCODERS, OURS
from s2dm.toy import random_words, toy_bert, toy_encoder, toy_tokenizer
from s2dm.treebanks import load_sentences

LETTERS = [*ascii_lowercase]
tokenizer = partial(toy_tokenizer, symbols=ascii_lowercase, words=["."])
VOCABULARY = len(tokenizer())
bert = partial(toy_bert, VOCABULARY, layers=2, feed_forward=32, pooler=True)


@pytest.fixture
def encoder(): return Encoder(bert(), tokenizer(), "tiny", "r1", device="cpu")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    "An empty cache of the hub; `hub(repo, revision, files)` puts a model into it."
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(repo, revision, fill):
        base = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        folder = base / "snapshots" / revision
        folder.mkdir(parents=True)
        (base / "refs").mkdir()
        (base / "refs" / "main").write_text(revision)
        fill(folder)
        return folder

    return put


def saved(folder):
    bert().save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def pickled(folder):
    saved(folder)
    (folder / "model.safetensors").unlink()
    torch.save(bert().state_dict(), folder / "pytorch_model.bin")


def words(n, seed=0, longest=12):
    "Sentences of fewer than `longest` words."
    rng = np.random.default_rng(seed)
    return [random_words(rng, rng.integers(1, longest), LETTERS, 4) for _ in range(n)]


# Which encoder

def test_an_encoder_is_on_the_hub_or_ours():
    assert all((preset.hub is None) == (name in OURS) for name, preset in ENCODERS.items())


def test_a_preset_in_the_cache_needs_no_network(hub, monkeypatch):
    monkeypatch.setattr(s2dm.encoder, "hub_files", lambda *_: pytest.fail("asked the network"))
    repo, revision = ENCODERS["mbert"].hub
    hub(repo, revision, saved)
    found = load_encoder("mbert", device="cpu")
    assert found.name == "mbert"
    assert found.revision == revision
    assert found.width == 16
    assert found.split.limit == 64
    assert found.record["revision"] == revision and json.dumps(found.record)


def test_a_revision_that_is_not_pinned_is_recorded(hub):
    hub(ENCODERS["xlm100"].hub[0], "b" * 40, pickled)
    assert ENCODERS["xlm100"].hub[1] is None and find_encoder("xlm100").revision == "b" * 40
    hub("owner/name", "c" * 40, saved)
    assert load_encoder("owner/name", device="cpu").record["revision"] == "c" * 40


@pytest.mark.parametrize("files, weights", [
    (["config.json", "vocab.txt", "model.safetensors", "pytorch_model.bin", "tf_model.h5"],
     ["model.safetensors"]),
    (["config.json", "vocab.json", "merges.txt", "pytorch_model.bin"], ["pytorch_model.bin"])])
def test_a_download_takes_one_form_of_the_weights_after_the_small_files(
        hub, monkeypatch, tmp_path, files, weights):
    import huggingface_hub
    asked, real = [], huggingface_hub.snapshot_download
    def fake(repo, **how):
        return (real(repo, **how)
                if how.get("local_files_only")
                else asked.append(how) or str(tmp_path / ("d" * 40)))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    monkeypatch.setattr(s2dm.encoder, "hub_files", lambda repo, revision: files)
    assert find_encoder("owner/name").revision == "d" * 40
    assert [a["revision"] for a in asked] == [None, None]
    assert asked[1]["allow_patterns"] == weights
    assert "*.json" in asked[0]["allow_patterns"]


def test_a_repository_without_weights_and_a_disk_that_is_full(hub, monkeypatch, tmp_path):
    import huggingface_hub
    monkeypatch.setattr(s2dm.encoder, "hub_files", lambda *_: ["config.json", "tf_model.h5"])
    missing = huggingface_hub.errors.LocalEntryNotFoundError("not there")

    def fake(repo, local_files_only=False, **how):
        if local_files_only: raise missing
        if repo == "owner/full": raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    with pytest.raises(ParameterError, match="neither model.safetensors nor pytorch_model.bin"):
        find_encoder("owner/other")
    with pytest.raises(DataError, match="owner/full cannot be written .*no space left.*HF_HOME"):
        find_encoder("owner/full")


def test_an_interrupted_download_is_not_taken_for_an_encoder(hub, monkeypatch):
    monkeypatch.setattr(
        s2dm.encoder, "hub_files", lambda *_: (_ for _ in ()).throw(OSError("unplugged")))
    folder = hub("owner/half", "e" * 40, lambda f: (f / "config.json").write_text("{}"))
    with pytest.raises(MissingData, match="not in the cache"): find_encoder("owner/half")
    (folder / "model-00001-of-00002.safetensors").touch()
    (folder / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map=dict(
        a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors"))))
    with pytest.raises(MissingData): find_encoder("owner/half")
    (folder / "model-00002-of-00002.safetensors").touch()
    assert find_encoder("owner/half").folder == folder


@pytest.mark.parametrize("silent, names", [
    (False, ["real-s", "mbert", "xlm100", "xlmr", "owner/name"]), (True, ["real-m", "mbert"])])
def test_without_network_the_error_is_quick_and_says_what_to_do(tmp_path, silent, names):
    "A proxy that refuses, and one that takes the connection and never answers."
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy = f"http://127.0.0.1:{listening.getsockname()[1] if silent else 9}"
        # imported first: how long that takes is a matter of how busy the machine is
        code = (
            "import time; from huggingface_hub import HfApi, snapshot_download; from s2dm.core "
            "import MissingData; from s2dm.encoder import load_encoder\n"
            f"for name in {names!r}:\n start = time.perf_counter()\n"
            " try: load_encoder(name)\n except MissingData as error: "
            "print(round(time.perf_counter() - start, 2), error, sep='|', flush=True)\n")
        env = os.environ | dict(
            HTTPS_PROXY=proxy, HTTP_PROXY=proxy, https_proxy=proxy, http_proxy=proxy,
            HF_HOME=str(tmp_path), HF_HUB_CACHE=str(tmp_path), PYTHONPATH=str(ROOT))
        out = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    lines = out.stdout.splitlines()
    assert len(lines) == len(names), out
    for name, line in zip(names, lines):
        seconds, message = line.split("|")
        assert float(seconds) < 5
        assert name in message
        assert (("run `papermill nbs/02_encoder" if name in OURS else "run once with a network")
                in message)


def test_an_encoder_of_our_own_is_the_folder_of_its_run():
    saved(scratch_folder("real-s"))
    assert load_encoder("real-s", device="cpu").record["encoder"] == "real-s"
    assert find_encoder("real-s").revision.startswith("sha256:")


def test_a_folder_with_other_weights_has_another_revision(tmp_path):
    saved(tmp_path / "a")
    before = find_encoder(str(tmp_path / "a")).revision
    model = bert()
    model.embeddings.word_embeddings.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path / "a")
    assert find_encoder(str(tmp_path / "a")).revision != before


@pytest.mark.parametrize("name", ["mbrt", "a/b/c", "no space/x y", ""])
def test_impossible_names(name):
    with pytest.raises(ParameterError, match="model="): find_encoder(name)


def test_weights_are_never_unpickled_as_code(tmp_path):
    assert (inspect.signature(PreTrainedModel.from_pretrained).parameters["weights_only"].default
            is True)
    pickled(tmp_path / "good")
    assert torch.equal(
        load_encoder(str(tmp_path / "good"), device="cpu").model.pooler.dense.weight,
        bert().pooler.dense.weight)

    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "owned"),)

    torch.save(
        {"embeddings.word_embeddings.weight": Evil()}, tmp_path / "good" / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be read"):
        load_encoder(str(tmp_path / "good"), device="cpu")
    assert not (tmp_path / "owned").exists()


def test_broken_and_incomplete_weights(tmp_path):
    saved(tmp_path / "a")
    (tmp_path / "a/model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(DataError, match="cannot be read"):
        load_encoder(str(tmp_path / "a"), device="cpu")
    saved(tmp_path / "b")
    bert(layers=1).save_pretrained(tmp_path / "c")
    (tmp_path / "c/model.safetensors").rename(tmp_path / "b/model.safetensors")
    with pytest.raises(DataError, match=r"lacks 16 weights, such as encoder.layer.1"):
        load_encoder(str(tmp_path / "b"), device="cpu")


# Frozen

def test_frozen_means_frozen(encoder):
    holder = torch.nn.Module()
    holder.encoder, holder.head = encoder, torch.nn.Linear(16, 2)
    holder.train()
    assert len(list(holder.parameters())) == 2
    assert len(holder.state_dict()) == 2
    assert not encoder.model.training
    batch = encoder.split(words(5))
    h = encoder(batch)
    assert not h.requires_grad and torch.equal(h, encoder(batch))
    assert all(not p.requires_grad for p in encoder.model.parameters())
    assert all(not m.training for m in encoder.model.modules())


def test_a_batch_is_what_the_model_says_of_each_sentence_alone(encoder):
    "Oracle: the tokenizer's own call with special tokens, one sentence at a time, no padding."
    sentences = words(20)
    rows = encoder(encoder.split(sentences))
    for s in sentences:
        with torch.no_grad():
            whole = encoder.model(**tokenizer()(
                [s], is_split_into_words=True, return_tensors="pt")).last_hidden_state[0, 1:-1]
        here, rows = rows[:len(whole)], rows[len(whole):]
        torch.testing.assert_close(here, whole, atol=2e-6, rtol=1e-5)
    assert not len(rows)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_width_is_that_of_the_states(tmp_path, precision):
    "ELECTRA's embeddings are narrower than its states."
    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=VOCABULARY, embedding_size=8, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16)
    model = ElectraModel(config).train()
    before = torch.get_rng_state()
    assert states_width(model) == 16
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    encoder = Encoder(model, tokenizer(), "electra", "r", "cpu")
    cache = FeatureCache(encoder, precision, folder=tmp_path)
    found = cache[cache.encode(words(9))[3]]
    assert encoder.width == 16 and found.h.shape == (len(found.ids), 16)


# Words and subwords

def test_words_without_subwords_and_long_sentences_are_counted(encoder):
    cache = FeatureCache(encoder)
    at = cache.encode([["\u200b", "ab", "", "\x01"], ["abc"] * 40, [], ["a"] * 62, ["a"] * 63])
    assert cache.counts | dict(bytes=0) == dict(
        sentences=5, words=169, bare_words=3, unaligned_words=0, unaligned_sentences=0,
        truncated_words=20, truncated_sentences=2, subwords=2 + 3 * 62, bytes=0)
    odd, long, empty, fits, over = (cache[i] for i in at)
    assert odd.ids.tolist() == [5, 32]
    assert odd.first.tolist() == [0, 0, 0, 0]
    assert odd.word_mask.tolist() == [False, True, False, False]
    assert long.h.shape == (62, 16)
    assert long.word_mask.sum() == 21
    assert not long.word_mask[21:].any()
    assert long.first[20] == 60
    assert empty.h.shape == (0, 16) and len(empty.first) == 0
    assert fits.word_mask.all() and over.word_mask.tolist() == [True] * 62 + [False]
    batch = collate([odd, long, empty])
    assert batch.h.shape == (3, 62, 16)
    assert batch.mask.sum() == 64
    assert batch.word_mask.sum(1).tolist() == [1, 21, 0]


def xlm(folder):
    "XLM's own slow tokenizer on a vocabulary of ours, with Moses."
    pieces = [
        "<s>", "</s>", "<pad>", "<unk>", *(f"<special{i}>" for i in range(10)), *LETTERS,
        *(x + "</w>" for x in [*LETTERS, ".", ",", "he", "un"]), "un", "do", "&quot;"]
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    (folder / "merges.txt").write_text("h e</w> 3\nu n 2\nd o 1\n")
    return XLMTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")), len(pieces)


def test_xlms_slow_tokenizer(tmp_path):
    slow, size = xlm(tmp_path)
    assert not slow.is_fast
    split = WordTokenizer(slow, limit=12)
    one, long = split([["undo", "the", "he", "\u200b", "x."], ["undo"] * 30])
    assert (slow.convert_ids_to_tokens(one.ids.tolist())
            == ["un", "d", "o</w>", "t", "he</w>", "he</w>", "x</w>", ".</w>"])
    assert one.word.tolist() == [0, 0, 0, 1, 1, 2, 4, 4] and one.bare == 1
    assert len(long.ids) == 10 and first_subwords(long.word, 30)[1].sum() == 4
    assert (split.prefix, split.suffix) == ([0], [1]) # <s> and </s>
    torch.manual_seed(0)
    model = XLMModel(XLMConfig(
        vocab_size=size, emb_dim=16, n_layers=2, n_heads=2, max_position_embeddings=12,
        use_lang_emb=False))
    model.save_pretrained(tmp_path / "xlm")
    slow.save_pretrained(tmp_path / "xlm")
    encoder = load_encoder(str(tmp_path / "xlm"), device="cpu")
    assert (encoder.split.limit, encoder.record["tokenizer"]) == (12, "XLMTokenizer")
    rows = encoder([one, long])
    with torch.no_grad():
        whole = model.eval()(torch.tensor([[0, *one.ids.tolist(), 1]])).last_hidden_state[0, 1:-1]
    torch.testing.assert_close(rows[:8], whole, atol=2e-6, rtol=1e-5)
    assert rows.isfinite().all() and len(rows) == 18


def test_roberta_counts_positions_from_behind_the_padding():
    "All subwords up to the limit fit; one more would be an index error."
    torch.manual_seed(0)
    model = XLMRobertaModel(XLMRobertaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=34, pad_token_id=0))
    encoder = Encoder(model, tokenizer(), "r", "r", device="cpu")
    assert encoder.split.limit == 33
    assert encoder(encoder.split([["a"] * 50])).shape == (31, 16)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text(max_size=6), max_size=9), max_size=5))
def test_any_text_is_split_as_the_tokenizer_splits_it(sentences):
    "Oracle: the tokenizer on the text of the sentence; each word has those that begin in it."
    fast, got = tokenizer(), WordTokenizer(tokenizer(), limit=1000)(sentences)
    for s, t in zip(sentences, got):
        text = " ".join(s)
        oracle = fast(text, add_special_tokens=False, return_offsets_mapping=True)
        assert (t.ids.tolist() == oracle["input_ids"]
                == WordTokenizer(fast, limit=1000)([text])[0].ids.tolist())
        owner = [w for w, word in enumerate(s) for _ in word + " "]
        words = [owner[a] for a, b in oracle["offset_mapping"]]
        assert t.word.tolist() == words and (t.words, t.unaligned) == (len(s), 0)
        assert (t.bare == len(s) - len(set(words))
                == len(s) - first_subwords(t.word, len(s))[1].sum())


def test_a_sentence_that_cannot_be_aligned_keeps_its_states(encoder):
    cache = FeatureCache(encoder, "float32")
    at = cache.encode(["ab c.", Sentence("ab c.", (NOWHERE, NOWHERE)), Sentence("ab c.", (
        (0, 2), (3, 4), (4, 5)))])
    assert len(set(at.tolist())) == 3
    assert cache.counts["unaligned_words"] == 2
    assert cache.counts["unaligned_sentences"] == 1
    assert cache.counts["words"] == 5
    plain, nowhere, known = (cache[i] for i in at)
    for f in (nowhere, known): torch.testing.assert_close(f.h, plain.h, atol=2e-6, rtol=1e-5)
    assert nowhere.word_mask.tolist() == [False, False]
    assert known.first.tolist() == [0, 2, 3]
    assert known.word_mask.all()
    batch = collate([nowhere, known])
    assert batch.mask.sum(1).tolist() == [4, 4] and batch.word_mask.sum(1).tolist() == [0, 3]


# The cache

def test_batches_are_a_partition_within_the_budget():
    lengths = np.random.default_rng(0).integers(0, 90, 500).tolist()
    batches = length_batches(lengths, 400)
    assert sorted(i for b in batches for i in b) == list(range(500))
    assert all(len(b) * max(lengths[i] for i in b) <= 400 for b in batches)
    assert length_batches([], 8) == [] and length_batches([10], 8) == [[0]]


@pytest.mark.parametrize(
    "precision, error", [("float32", 1e-6), ("float16", 2**-10), ("bfloat16", 2**-7)])
def test_what_is_read_is_what_was_encoded(encoder, precision, error):
    sentences = words(60)
    cache = FeatureCache(encoder, precision)
    at = cache.encode(sentences + sentences[::-1], budget=64)
    assert len(cache) == len({tuple(s) for s in sentences}) and (at[60:] == at[59::-1]).all()
    for i, s in zip(at, sentences):
        f = cache[i]
        assert f.h.dtype == getattr(torch, precision)
        assert (f.first.tolist()
                == np.unique(encoder.split([s])[0].word, return_index=True)[1].tolist())
        torch.testing.assert_close(f.h.float(), encoder(encoder.split([s])), rtol=error, atol=2e-6)
    batch = collate([cache[i] for i in at[:7]])
    for n, (i, s) in enumerate(zip(at[:7], sentences)):
        f = cache[i]
        assert torch.equal(batch.h[n][batch.mask[n]], f.h.float())
        assert torch.equal(batch.ids[n][batch.mask[n]], f.ids)
        assert torch.equal(batch.first[n][batch.word_mask[n]], f.first)
        assert batch.word_mask[n].sum() == len(s)
    assert not batch.h[~batch.mask].any() and batch.to("cpu").h is not None


def test_nothing_is_encoded_twice(encoder, monkeypatch):
    cache = FeatureCache(encoder)
    cache.encode(words(20))
    other = FeatureCache(encoder) # opened before the next sentences are there
    cache.encode(words(40, seed=1))
    monkeypatch.setattr(Encoder, "__call__", lambda *_: pytest.fail("encoded again"))
    assert (other.encode(words(40, seed=1)) == cache.encode(words(40, seed=1))).all()
    assert other.counts == cache.counts


def test_another_encoder_tokenizer_or_precision_is_another_cache(encoder):
    kinds = [
        encoder,
        Encoder(bert(), tokenizer(), "tiny", "r2", device="cpu"),
        Encoder(bert(), tokenizer(strip_accents=True), "tiny", "r1", device="cpu"),
        Encoder(bert().to(torch.bfloat16), tokenizer(), "tiny", "r1", device="cpu")]
    folders = {FeatureCache(e, p).folder for e in kinds for p in ("float16", "float32")}
    assert len(folders) == 8
    assert (FeatureCache(Encoder(bert(), tokenizer(), "elsewhere/tiny", "r1", device="cpu")).folder
            in folders)
    with pytest.raises(ParameterError, match="choose one of float16, bfloat16, float32"):
        FeatureCache(encoder, "int8")


def test_states_that_do_not_fit_are_an_error(encoder):
    encoder.model.encoder.layer[-1].output.LayerNorm.weight.data *= 1e6
    cache = FeatureCache(encoder)
    with pytest.raises(DataError, match="precision='bfloat16'"): cache.encode(words(3))
    assert len(cache) == 0 and len(FeatureCache(encoder, "bfloat16").encode(words(3))) == 3


KILLED = """
import sys, time
from s2dm.encoder import Encoder, FeatureCache, load_encoder
encode = Encoder.__call__
Encoder.__call__ = lambda self, batch: time.sleep(.1) or encode(self, batch)
sys.path.insert(0, sys.argv[1])
from test_encoder import words
FeatureCache(load_encoder(sys.argv[2], device="cpu")).encode(words(300), budget=64)
"""


def content(cache): return [hashlib.sha256(f.read_bytes()).hexdigest() for f in cache.files]


def test_killed_half_way_it_goes_on_and_ends_with_the_same_bits(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    saved(tmp_path / "model")
    encoder = load_encoder(str(tmp_path / "model"), device="cpu")
    straight = FeatureCache(encoder, folder=tmp_path / "straight")
    straight.encode(words(300), budget=64)
    cache = FeatureCache(encoder)
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(ROOT / "tests"), str(tmp_path / "model")],
        env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"))
    deadline = time.time() + 100
    while cache.files[2].stat().st_size < 600 and time.time() < deadline: time.sleep(.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    record = np.fromfile(cache.files[2], s2dm.encoder._SENTENCE)[:1]
    record["end"] = 0 # a sentence that is not the last of its batch
    for file, torn in zip(cache.files, (b"half a row", b"12345", record.tobytes() + b"12345678")):
        with open(file, "ab") as f: f.write(torn) # what a kill in the middle of a batch could leave
    cache = FeatureCache(encoder)
    had = len(cache)
    assert 0 < had < len(straight) and cache[had - 1].h.isfinite().all()
    calls = []
    monkeypatch.setattr(
        Encoder, "__call__",
        lambda self, batch, real=Encoder.__call__: calls.append(len(batch)) or real(self, batch))
    assert (cache.encode(words(300), budget=64) == straight.encode(words(300))).all()
    assert sum(calls) == len(straight) - had and content(cache) == content(straight)


@pytest.mark.parametrize("fails_at", [1, 2, 3, 11])
def test_a_full_disk_leaves_a_clear_error_and_a_usable_cache(
        encoder, monkeypatch, tmp_path, fails_at):
    "The disk fills up in the middle of any of the three files."
    straight = FeatureCache(encoder, folder=tmp_path / "straight")
    straight.encode(words(50), budget=64)
    cache, real, calls = FeatureCache(encoder), s2dm.encoder._append, []

    def full(file, array):
        calls.append(file)
        if len(calls) < fails_at: return real(file, array)
        with open(file, "ab") as f: f.write(array.tobytes()[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(s2dm.encoder, "_append", full)
        with pytest.raises(DataError, match="No space left on device.*stays usable.*start again"):
            cache.encode(words(50), budget=64)
    assert len(cache) == len(FeatureCache(encoder))
    assert (cache.index["end"] != 0).sum() == (fails_at - 1) // 3
    assert all(torch.equal(cache[i].h, straight[i].h) for i in range(len(cache)))
    cache.encode(words(50), budget=64)
    assert content(cache) == content(straight)


@pytest.mark.parametrize("damaged", range(3))
def test_a_file_that_was_cut_costs_its_last_sentences_only(encoder, damaged):
    "As after a power failure."
    cache = FeatureCache(encoder)
    at = cache.encode(words(50), budget=64)
    before, sums = [cache[i].h for i in range(len(cache))], content(cache)
    os.truncate(cache.files[damaged], cache.files[damaged].stat().st_size // 2)
    cache = FeatureCache(encoder)
    assert 0 < len(cache) < len(before)
    assert all(torch.equal(cache[i].h, before[i]) for i in range(len(cache)))
    assert (cache.encode(words(50), budget=64) == at).all() and content(cache) == sums


def test_a_really_full_disk(encoder):
    "Linux has a device that is always full."
    if not os.path.exists("/dev/full"): pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left"):
        s2dm.encoder._append("/dev/full", np.zeros(10))


def test_the_bar_has_rate_and_size(encoder, capsys, monkeypatch):
    monkeypatch.setattr(s2dm.encoder, "tqdm", lambda real=s2dm.encoder.tqdm, **how: real(**(
        how | dict(delay=0, mininterval=0, ncols=120))))
    FeatureCache(encoder).encode(words(100), budget=64)
    bar = capsys.readouterr().err
    assert "encoding with tiny" in bar and "subword/s" in bar and " MB" in bar


def test_no_bar_for_what_takes_no_time(encoder, capsys):
    FeatureCache(encoder).encode(words(100), budget=64)
    assert "encoding" not in capsys.readouterr().err


# Real sentences, real vocabulary

def overlap(a, b): # of two bags
    a, b = Counter(a), Counter(b)
    return 2 * sum((a & b).values()) / (sum(a.values()) + sum(b.values()))


@pytest.mark.slow
def test_training_and_reading_have_the_same_subwords_in_every_language(real):
    "Of PUD in mBERT's vocabulary: bags of subwords, and the tokenizer itself as an oracle."
    tok = mbert_tokenizer()
    assert len(tok) == 119547
    assert tok.convert_tokens_to_ids("##s") == 10107
    assert tok.model_max_length == 512
    rows = load_sentences(("pud",))
    start = time.perf_counter()
    tokenized = WordTokenizer(tok)(labelled_sentences(rows))
    seconds = time.perf_counter() - start
    texts = rows["text"][:]
    reader = SpanTokenizer(tok)(texts)
    langs = np.array(rows["lang"][:])
    table = []
    for lang in sorted(set(langs)):
        at = np.flatnonzero(langs == lang)
        trained, read = (np.concatenate([x[i].ids for i in at]) for x in (tokenized, reader))
        counts = {
            name: sum(getattr(tokenized[i], name) for i in at)
            for name in ("words", "bare", "unaligned")}
        table.append(dict(lang=lang, overlap=overlap(trained.tolist(), read.tolist())) | counts)
    table = pd.DataFrame(table)
    print(f"{len(texts)} sentences in {seconds:.1f} s", table.to_string(index=False), sep="\n")
    assert len(table) == 20 and (table["overlap"] == 1).all()
    assert table.query("unaligned > 0")[["lang", "unaligned"]].values.tolist() == [["is", 5]]
    assert (table["bare"] < .17 * table["words"]).all()
    for i in range(0, len(texts), 97):
        assert tok.encode(texts[i], add_special_tokens=False) == tokenized[i].ids.tolist()


@pytest.mark.slow
def test_first_subwords_of_real_words_begin_in_them(real):
    """A sample of all languages: a word's first subword is the first that begins in it, and in no
    word before."""
    rows = load_sentences().select(range(0, 26000, 41))
    sentences = labelled_sentences(rows)
    tok = mbert_tokenizer()
    for s, t, (_, start, end) in zip(
            sentences, WordTokenizer(tok)(sentences),
            TextSplitter(tok)([s.text for s in sentences])):
        first, there = first_subwords(t.word, t.words)
        for w, (a, b) in enumerate(s.spans):
            begin = [k for k in range(len(start)) if a <= start[k] < b and start[k] < end[k]]
            shared = (a, b) in s.spans[:w]
            assert (there[w] == bool(begin and not shared)
                    and (not there[w] or first[w] == begin[0])), (s.text, s.text[a:b])


def test_real_sentences_through_the_cache(real, tmp_path):
    """mBERT's vocabulary and one layer of random weights, every pair of 40 groups: each distinct
    sentence once."""
    from s2dm.treebanks import load_pairs
    tok = mbert_tokenizer()
    encoder = toy_encoder(tok, "mbert-random", "seed0", positions=512)
    pairs = load_pairs(("pud",)).select(range(0, 19_000, 475)) # all languages
    cache = FeatureCache(encoder, folder=tmp_path)
    sides = [
        Dataset.from_dict(dict(text=pairs[f"text_{end}"][:], forms=pairs[f"forms_{end}"][:]))
        for end in "st"]
    at = cache.encode(labelled_sentences(sides[0]) + labelled_sentences(sides[1]))
    counts = cache.counts
    assert len(cache) == len(set(pairs["text_s"][:] + pairs["text_t"][:]))
    assert counts["unaligned_words"] == counts["truncated_words"] == 0
    batch = collate([cache[i] for i in at])
    assert (batch.word_mask.sum(1) <= torch.tensor([
        len(u) for u in pairs["upos_s"][:] + pairs["upos_t"][:]])).all()
    assert 0 < counts["bare_words"] < .1 * counts["words"]
    assert batch.first.max() < batch.h.shape[1] and batch.h.isfinite().all()


def zero(file, at, size):
    with open(file, "r+b") as f:
        f.seek(at)
        f.write(bytes(size))


@pytest.mark.parametrize("precision", s2dm.encoder.PRECISIONS)
@pytest.mark.parametrize("damaged", ["features", "subwords", "sentences"])
def test_features_that_became_zeros_are_noticed(encoder, damaged, precision):
    "As a disk leaves them that loses its power: of the right size, and all numbers."
    cache = FeatureCache(encoder, precision)
    cache.encode(words(50), budget=64)
    before = [cache[i].h for i in range(len(cache))]
    last = cache.index[-1]
    widths = dict(zip(("features", "subwords"), cache._sizes()))
    if damaged == "sentences": zero(cache.files[2], 48 * (len(cache) - 1) + 28, 4) # its words
    else:
        number = ("features", "subwords").index(damaged)
        zero(cache.files[number], int(last["start"]) * widths[damaged], widths[damaged])
    again = FeatureCache(encoder, precision)
    assert torch.equal(again[0].h, before[0]) # of another batch
    for read in (again.__getitem__, again.states):
        with pytest.raises(DataError, match="damaged .wrong checksum.; remove") as error:
            read(len(before) - 1)
    assert str(again.folder) in str(error.value)


def test_features_of_an_older_version_are_read_and_added_to(encoder):
    "Their batches have no checksum, but a 1 in its place."
    cache = FeatureCache(encoder)
    cache.encode(words(30), budget=64)
    before = [cache[i].h for i in range(len(cache))]
    rows = np.fromfile(cache.files[2], s2dm.encoder._SENTENCE)
    assert (rows["end"][rows["end"] != 0] & 1).all() # what that version looks at
    rows["end"] = rows["end"] != 0
    rows.tofile(cache.files[2])
    again = FeatureCache(encoder)
    assert all(torch.equal(again[i].h, h) for i, h in enumerate(before))
    again.encode(words(50), budget=64)
    assert {1} < {*again.index["end"]} - {0}


def test_a_batch_is_checked_once(encoder, monkeypatch):
    "So reading costs a checksum of each byte once in a process, and a look at a flag after that."
    cache = FeatureCache(encoder)
    cache.encode(words(50), budget=64)
    cache = FeatureCache(encoder)
    calls = []
    real = s2dm.encoder._sum
    monkeypatch.setattr(
        s2dm.encoder, "_sum", lambda *arrays: calls.append(len(arrays[2])) or real(*arrays))
    for _ in range(3):
        for i in range(len(cache)): cache.states(i)
    assert sum(calls) == len(cache) and len(calls) == (cache.index["end"] != 0).sum() > 1
