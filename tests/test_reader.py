"""The reader: scores and loss against a plain re-computation, what each head sees, long contexts in
any script, files that are broken, foreign or cut off, the hub.
"""
import contextlib
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import warnings
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import ROOT
from datasets import Dataset
from safetensors.torch import load_file, save_file
from test_features import TEXTS, sentencepiece, wordpiece, xlm
from test_subwords import xlm as segmenting_xlm
from torch import nn
from transformers import (
    ElectraConfig, ElectraModel, XLMConfig, XLMModel, XLMRobertaConfig, XLMRobertaModel)

import s2dm.reader
from s2dm.core import DataError, MissingData, ParameterError, write_json
from s2dm.encoder import load_encoder, mbert_tokenizer
from s2dm.evaluation import predict, reader_sum
from s2dm.features import SpanTokenizer, pad_windows
from s2dm.finetune import evenly
from s2dm.layers import freeze
from s2dm.metrics import score
from s2dm.reader import Calibration, ReaderConfig, S2DMReader
from s2dm.reading import load_reading
from s2dm.systems import HEADS
from s2dm.toy import (
    save_toy_encoder, save_toy_questions, toy_bert, toy_questions, toy_reader, toy_s2dm)

CONTEXT = "Zürich liegt am See. Er sagte: Nein, und ging… nach Hause. " * 6


SIZES = dict(layers=2, feed_forward=32, positions=96)
bert = partial(toy_bert, **SIZES)
network = partial(toy_s2dm, seed=100, mlp_width=8)


def make(head="semantic", seed=0, pooler=False, **settings):
    "A reader with random weights that differ from seed to seed."
    return toy_reader(head, seed, wordpiece(), SIZES | dict(pooler=pooler), **settings)


def labelled(reader, n=12):
    context = [CONTEXT[i:i + 40 + 20 * i] for i in range(n)]
    return reader.windows(dict(
        question=[f"{'wo ' * (i % 5 + 1)}?" for i in range(n)], context=context,
        answers=[dict(text=[c[i:i + 9]], answer_start=[i]) for i, c in enumerate(context)]))


# Scores and loss

def plain(reader, ids, types):
    "One window without padding, from the weights alone: states, what the head reads, scores [2,T]."
    h = reader.encoder(input_ids=ids, token_type_ids=types).last_hidden_state[0]
    w = {
        name: tensor.double()
        for name, tensor in reader.state_dict().items()
        if not name.startswith("encoder.")}
    seen = h.double()
    if reader.config.head != "baseline":
        f = ((h.double() @ w["semantic.0.weight"].T + w["semantic.0.bias"]).clamp(min=0)
             @ w["semantic.2.weight"].T
             + w["semantic.2.bias"])
        seen = (f / f.square().mean(-1, keepdim=True).sqrt()
                if reader.config.head == "semantic"
                else torch.cat([seen, f], -1))
    return h, seen, (seen @ w["head.weight"].T + w["head.bias"]).T


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_scores_and_loss_of_a_padded_batch_are_those_of_each_window_alone(head):
    reader = make(head)
    windows = labelled(reader)
    batch = pad_windows(windows, range(len(windows)))
    seen = []
    reader.head.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    start, end = reader.scores(batch)
    loss = reader(batch)
    assert len({*windows.lengths.tolist()}) > 5
    assert (windows.start > 0).any()
    assert (windows.start == 0).any()
    for i, n in enumerate(windows.lengths):
        h, read, scores = plain(
            reader, batch["input_ids"][i:i + 1, :n], batch["token_type_ids"][i:i + 1, :n])
        torch.testing.assert_close(seen[0][i, :n], read.float(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            torch.stack([start[i, :n], end[i, :n]]), scores.float(), atol=1e-5, rtol=1e-4)
        for name, s, at in zip(("start", "end"), scores, (windows.start[i], windows.end[i])):
            assert (loss[name][i].item()
                    == pytest.approx((s.exp().sum().log() - s[at]).item(), abs=1e-4))
    if head == "semantic":
        torch.testing.assert_close(
            seen[0].norm(dim=-1), seen[0].shape[-1] ** .5 * torch.ones(seen[0].shape[:2]))
    if head == "concat":
        assert torch.equal(
            seen[0][..., :16],
            reader.encoder(**{k: batch[k] for k in reader.inputs}).last_hidden_state)


@torch.no_grad()
def test_the_semantic_head_reads_what_s2dm_calls_the_meaning_of_a_token():
    s2dm, tokenizer = network(), wordpiece()
    reader = S2DMReader(
        bert(len(tokenizer)), tokenizer, s2dm,
        ReaderConfig(max_length=60, stride=16, query=12)).eval()
    h = torch.randn(2, 7, 16)
    torch.testing.assert_close(reader.features(h), s2dm.config.latent_width ** .5 * s2dm.semantic(
        h, torch.ones(2, 7, dtype=torch.bool), level="token"))


def test_the_head_is_precise_under_autocast():
    """bfloat16 has eight significant bits; the scores have more, whichever the head, and gradients
    come back."""
    for head in HEADS:
        reader = make(head)
        batch = pad_windows(labelled(reader), [0, 1])
        with torch.autocast("cpu", torch.bfloat16): start, _ = reader.scores(batch)
        assert start.dtype == torch.float32 and not torch.equal(start, start.bfloat16().float())
        start.sum().backward()
        assert reader.encoder.embeddings.word_embeddings.weight.grad.isfinite().all()
        assert reader.head.weight.grad.abs().sum() > 0


def test_gradients_pass_through_the_frozen_network():
    for frozen in (True, False):
        reader = S2DMReader(
            bert(len(wordpiece())), wordpiece(), network(),
            ReaderConfig(max_length=60, stride=16, query=12), frozen=frozen)
        sum(t.mean() for t in reader(pad_windows(labelled(reader), [0, 1, 2])).values()).backward()
        assert all((p.grad is None) == frozen for p in reader.semantic.parameters())
        assert all(
            p.grad.abs().sum() > 0
            for p in (reader.head.weight, reader.encoder.encoder.layer[0].output.dense.weight))


# Answers

class Lookup(nn.Module):
    """An encoder whose states are the subwords themselves, one-hot: a head on top can be told what
    to look for."""
    def __init__(self, size):
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=10_000)
        self.table = nn.Embedding.from_pretrained(torch.eye(size))

    def get_input_embeddings(self): return self.table

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


def looks_for(tokenizer, answer, context, **settings):
    """A reader that answers with `answer`, wherever it stands as in `context`: the score of a start
    is high at its first subword, that of an end at its last."""
    split, at = SpanTokenizer(tokenizer)([context])[0], context.index(answer)
    ids = split.ids[(split.start >= at) & (split.end <= at + len(answer))]
    reader = S2DMReader(
        Lookup(len(tokenizer)), tokenizer, None,
        ReaderConfig(**dict(head="baseline", max_length=40, stride=12, query=8) | settings)).eval()
    with torch.no_grad():
        for p in reader.head.parameters(): p.zero_()
        reader.head.weight[0, ids[0]], reader.head.weight[1, ids[-1]] = 5., 5.
    return reader


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    return xlm(tmp_path_factory.mktemp("xlm"), do_lowercase_and_remove_accent=False)


FILLER = dict(en="abc def, ghi. ", zh="中中国国，", th="ภาษาภาษา ")


@pytest.mark.parametrize("kind", ["fast", "slow"])
@pytest.mark.parametrize("language, answer", [("en", "xyz"), ("zh", "文語"), ("th", "ไทย")])
def test_an_answer_is_found_anywhere_in_a_context_of_any_length(slow, kind, language, answer):
    """The answer moves through a context of many windows, subword by subword, so that some windows
    cut it in two."""
    many = [FILLER[language] * n + answer + FILLER[language] * (30 - n) for n in range(1, 24)]
    many += [FILLER[language] * 3 + "a " * n + answer + FILLER[language] * 12 for n in range(12)]
    reader = looks_for(slow if kind == "slow" else wordpiece(), answer, many[0])
    found = reader.answer("?", many)
    assert len(reader.windows(dict(question=["?"], context=many[:1]))) > 4
    for context, (best,) in zip(many, found):
        assert ((best.text, best.start, best.end)
                == (answer, context.index(answer), context.index(answer) + len(answer))
                and best.score == 10), (context, best)


def test_one_or_many_questions_and_contexts():
    reader = make()
    one = reader.answer("Wo?", CONTEXT)
    questions = ["Wo?", "Wer sagte das?", "Wo?"]
    contexts = [CONTEXT, "Zürich.", "Am See, am See."]
    each = [reader.answer(q, c) for q, c in zip(questions, contexts)]
    assert isinstance(one[0].text, str) and len(one) == 1 and one == each[0]
    def close(a, b):
        return all(
            x[0][:3] == y[0][:3] and abs(x[0].score - y[0].score) < 1e-4
            for x, y in zip(a, b, strict=True))
    assert close(reader.answer(questions, contexts), each)
    assert close(reader.answer(questions, CONTEXT), [reader.answer(q, CONTEXT) for q in questions])
    assert close(reader.answer("Wo?", contexts), [reader.answer("Wo?", c) for c in contexts])
    assert close(reader.answer(["Wo?"], [CONTEXT]), [one])
    assert close(reader.answer(["Wo?"], CONTEXT), [one])
    columns = Dataset.from_dict(dict(question=questions, context=contexts))
    for q, c in (
            (columns["question"], columns["context"]),
            (np.array(questions), tuple(contexts)),
            (iter(questions), (c for c in contexts))):
        assert close(reader.answer(q, c), each)


def test_batches_change_nothing():
    reader = make()
    windows = labelled(reader)
    whole, alone = reader.read(windows, top_k=5), reader.read(windows, top_k=5, budget=1)
    for a, b in zip(whole, alone, strict=True):
        assert [x[:3] for x in a] == [x[:3] for x in b]
        assert np.allclose([x.score for x in a], [x.score for x in b], atol=1e-4)


def test_top_k_answers_differ_and_descend():
    reader = make()
    answers = reader.answer("Wo liegt das?", CONTEXT, top_k=20)
    assert len(answers) == len({a[:3] for a in answers}) == 20
    assert [a.score for a in answers] == sorted((a.score for a in answers), reverse=True)
    assert all(CONTEXT[a.start:a.end] == a.text and a.text == a.text.strip() for a in answers)
    assert reader.answer("Wo liegt das?", CONTEXT, top_k=3) == answers[:3]
    assert reader.answer("Wo liegt das?", CONTEXT) == answers[:1]
    assert [a.text for a in reader.answer("Wo?", "Zü", top_k=20)]
    assert len(reader.answer("Wo?", "x", top_k=20)) == 1


def test_reading_leaves_the_reader_as_it_was():
    reader = make().train()
    first, second = (reader.answer("Wo?", CONTEXT) for _ in range(2)) # dropout is off
    assert first == second
    assert reader.training
    assert reader.encoder.training
    assert all(p.grad is None for p in reader.parameters())
    with torch.no_grad(): reader.head.bias.fill_(torch.nan)
    with pytest.raises(DataError, match="not a number"): reader.answer("Wo?", CONTEXT)
    assert reader.training


@pytest.mark.parametrize("question, context, more, says", [
    ("", "a", {}, r"question 0 is '' \(str\); expected a string that is not empty"),
    ("a", " \n", {}, "context 0 is"),
    ("a", ["a", "\t"], {}, "context 1 is"),
    (["a", None], "a", {}, r"question 1 is None \(NoneType\)"),
    (["a", 3.5], "a", {}, r"question 1 is 3.5 \(float\)"),
    (None, "a", {}, r"question is None \(NoneType\); expected a string or a list of strings"),
    ("a", 7, {}, r"context is 7 \(int\)"),
    (b"a", "a", {}, "question is b'a'"),
    ([], "a", {}, "question is an empty list"),
    ("a", (), {}, "context is an empty tuple"),
    ({"a": 1}, "a", {}, r"\(dict\)"),
    ([["a"]], "a", {}, r"question 0 is \['a'\] \(list\)"),
    ("a\ud800", "a", {}, "question 0 holds half a surrogate"),
    ("a", ["a", "\udfff"], {}, "context 1 holds half a surrogate"),
    (["a", "b"], ["a", "b", "c"], {},
     "2 questions and 3 contexts; expected as many, or one of either"),
    ("a", "a", dict(top_k=0), "top_k=0 is not possible; expected 1 to 20"),
    ("a", "a", dict(top_k=21), "top_k=21"),
    ("a", "a", dict(top_k="3"), "top_k='3'"),
    ("a", "a", dict(top_k=1.5), "top_k=1.5")])
def test_what_is_no_question_or_context(question, context, more, says):
    with pytest.raises(ParameterError, match=says): make().answer(question, context, **more)


def test_texts_at_the_edge():
    reader = make()
    with pytest.raises(DataError, match="has no subwords"): reader.answer("Wo?", "\u200b")
    with pytest.warns(UserWarning, match="context 1, .* has no subwords"):
        first, second, third = reader.answer("Wo?", ["Am See.", "\u200b", "Am See."])
    assert second == [] and first == third
    # alone in its batch it is rounded in another way on some processors
    for one, alone in zip(first, reader.answer("Wo?", "Am See."), strict=True):
        assert one[:3] == alone[:3] and one[3:] == pytest.approx(alone[3:], rel=1e-5)
    # a question without subwords, one that is cut
    assert reader.answer("\u200b", "Am See.") and reader.answer("wo " * 500, "Am See.")
    for text in TEXTS:
        for a in reader.answer("Wo?", text, top_k=5): assert text[a.start:a.end] == a.text


def test_parts_that_do_not_go_together():
    tokenizer, small = wordpiece(), dict(max_length=60, stride=16, query=12)
    encoder = bert(len(tokenizer))
    for model, settings, says in (
            (None, dict(head="semantic"), "head='semantic' needs an S2DM"),
            (network(), dict(head="baseline"), "has no place for an S2DM"),
            (network(width=24), {}, "states of width 24, this encoder's have 16"),
            (network(), dict(max_length=97),
             "max_length=97 is not possible: this encoder reads 96 subwords")):
        with pytest.raises(ParameterError, match=says):
            S2DMReader(encoder, tokenizer, model, ReaderConfig(**small | settings))
    with pytest.raises(ParameterError, match="leave 5 subwords for the context"):
        S2DMReader(encoder, tokenizer, network(), ReaderConfig(**small | dict(query=52))).answer(
            "Wo?", "Am See.")


# Other encoders

def of_kind(kind, folder):
    torch.manual_seed(0)
    if kind == "xlm":
        tokenizer = xlm(folder, do_lowercase_and_remove_accent=False)
        encoder = XLMModel(XLMConfig(
            vocab_size=len(tokenizer), emb_dim=16, n_layers=2, n_heads=2,
            max_position_embeddings=96, use_lang_emb=False))
    else:
        tokenizer = sentencepiece()
        encoder = XLMRobertaModel(XLMRobertaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=98, pad_token_id=1, type_vocab_size=1))
    reader = S2DMReader(
        encoder, tokenizer, network(), ReaderConfig(max_length=60, stride=16, query=12))
    nn.init.normal_(reader.head.weight)
    return reader.eval()


@pytest.mark.parametrize("kind", ["xlm", "xlmr"])
def test_other_encoders_batch_save_and_load(kind, tmp_path):
    reader = of_kind(kind, tmp_path)
    assert reader.inputs == ("input_ids", "attention_mask")
    assert reader.tokenizer.is_fast == (kind == "xlmr")
    found = reader.answer("ภาษาไทย, Zürich?", TEXTS, top_k=3)
    for text, answers in zip(TEXTS, found):
        alone = reader.answer("ภาษาไทย, Zürich?", text, top_k=3)
        assert [a[:3] for a in answers] == [a[:3] for a in alone]
        assert all(text[a.start:a.end] == a.text for a in answers)
    again = S2DMReader.from_pretrained(reader.save_pretrained(tmp_path / "reader"), device="cpu")
    assert type(again.tokenizer) is type(reader.tokenizer)
    assert again.answer("ภาษาไทย, Zürich?", TEXTS, top_k=3) == found


@torch.no_grad()
def test_token_types_are_no_words_of_xlm(tmp_path):
    """XLM would add the vectors of words 0 and 1; some published tokenizer settings ask for token
    types."""
    reader = of_kind("xlm", tmp_path)
    windows = reader.windows(dict(question=["Wo?"], context=["Zürich liegt am See."]))
    batch = pad_windows(windows, [0])
    start, _ = reader.scores(batch)
    typed, _ = reader.scores(batch | dict(token_type_ids=batch["context_mask"].long()))
    assert torch.equal(start, typed)
    bert_reader = make()
    batch = pad_windows(labelled(bert_reader), [0])
    assert not torch.equal(
        bert_reader.scores(batch)[0],
        bert_reader.scores(batch | dict(token_type_ids=torch.zeros_like(batch["input_ids"])))[0])


# Files

@pytest.mark.parametrize("head, pooler", [
    ("semantic", False), ("semantic", True), ("concat", False), ("baseline", True)])
def test_a_reader_comes_back_from_its_folder(head, pooler, tmp_path):
    reader = make(head, pooler=pooler)
    reader.facts = dict(system="s2dm_sp", questions="87,599 in English")
    folder = reader.save_pretrained(tmp_path / "a")
    again = S2DMReader.from_pretrained(folder, device="cpu")
    assert again.config == reader.config
    assert again.s2dm_config == reader.s2dm_config
    assert again.facts == reader.facts
    assert not again.training
    other = again.state_dict()
    assert all(torch.equal(t, other[k]) for k, t in reader.state_dict().items())
    assert all(
        p.requires_grad == (not name.startswith("semantic."))
        for name, p in again.named_parameters())
    assert again.answer("Wo?", CONTEXT, top_k=5) == reader.answer("Wo?", CONTEXT, top_k=5)
    again.save_pretrained(tmp_path / "b")
    for name in ("reader.safetensors", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    first, second = (json.loads((tmp_path / at / "reader.json").read_text()) for at in "ab")
    # transformers names the folder that an encoder came from in its files
    assert first.pop("files").keys() == second.pop("files").keys() and first == second
    card = (folder / "README.md").read_text()
    assert "# s2dm_sp" in card and "87,599 in English" in card and f"head `{head}`" in card


@pytest.mark.parametrize("settings", [
    dict(variant="s2dm_single_pos"), dict(variant="vgvae_crl", mlp_layers=2),
    dict(edition="released"), dict(posterior="power_spherical")])
def test_s2dm_of_any_kind_can_be_read_with(settings, tmp_path):
    s2dm = network(**settings)
    reader = S2DMReader(
        bert(len(wordpiece())), wordpiece(), s2dm,
        ReaderConfig(max_length=60, stride=16, query=12)).eval()
    again = S2DMReader.from_pretrained(reader.save_pretrained(tmp_path), device="cpu")
    assert again.s2dm_config == s2dm.config
    assert again.answer("Wo?", CONTEXT) == reader.answer("Wo?", CONTEXT)


def test_a_loaded_reader_does_not_change_with_its_files(tmp_path):
    reader = make()
    again = S2DMReader.from_pretrained(reader.save_pretrained(tmp_path), device="cpu")
    (tmp_path / "reader.safetensors").write_bytes(
        bytes((tmp_path / "reader.safetensors").stat().st_size))
    assert again.answer("Wo?", CONTEXT) == reader.answer("Wo?", CONTEXT)


@pytest.mark.parametrize("head", ["baseline", "semantic"])
def test_a_reader_that_was_saved_in_half_precision_reads_in_float32(tmp_path, head):
    reader = make(head)
    reader.half().save_pretrained(tmp_path)
    again = S2DMReader.from_pretrained(tmp_path, device="cpu")
    assert {w.dtype for w in again._own_weights().values()} == {torch.float32}
    assert again.answer("Wo?", CONTEXT)


def test_writing_over_a_reader_that_is_interrupted_leaves_no_reader(tmp_path, monkeypatch):
    "Neither the old one nor a mixture can be loaded."
    make("semantic").save_pretrained(tmp_path)
    with monkeypatch.context() as m:
        def fail(*_, **__): raise OSError("power cut")
        m.setattr(safetensors.torch, "save_file", fail)
        with pytest.raises(OSError, match="power cut"):
            make("semantic", seed=1).save_pretrained(tmp_path)
    with pytest.raises(MissingData, match="reader.json is not there"):
        S2DMReader.from_pretrained(tmp_path)
    new = make("concat", seed=1)
    again = S2DMReader.from_pretrained(new.save_pretrained(tmp_path), device="cpu")
    assert again.answer("Wo?", CONTEXT) == new.answer("Wo?", CONTEXT)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return make().save_pretrained(tmp_path_factory.mktemp("saved") / "reader")


def edit(folder, **changes):
    file = folder / "reader.json"
    about = json.loads(file.read_text())
    for key, value in changes.items():
        target, *rest = key.split("__")
        place = about[target] if rest else about
        key = rest[0] if rest else target
        if value is ...: del place[key]
        else: place[key] = value
    file.write_text(json.dumps(about))


def change_config(folder, **changes):
    file = folder / "encoder/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
def forget_sums(folder):
    "As an older version left it: what follows the checksums is to be seen."
    file = folder / "reader.json"
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        about = json.loads(file.read_text())
        del about["files"]
        file.write_text(json.dumps(about))


def tensors(folder, change):
    own = load_file(folder / "reader.safetensors")
    change(own)
    save_file(own, folder / "reader.safetensors")


UNREADABLE = "encoder.*(cannot be read|config.json is no JSON|expected)"
BROKEN = [
    (MissingData, "reader.json is not there", lambda f: (f / "reader.json").unlink()),
    (MissingData, "reader.safetensors is not there", lambda f: (f / "reader.safetensors").unlink()),
    (MissingData, "encoder/config.json is not there", lambda f: shutil.rmtree(f / "encoder")),
    (DataError, "reader.json is no JSON", lambda f: (f / "reader.json").write_text("{")),
    (DataError, "reader.json is no JSON", lambda f: (f / "reader.json").write_bytes(b"\xff\xfe")),
    (DataError, "reader.json holds a list", lambda f: (f / "reader.json").write_text("[]")),
    (DataError, "reader.json is no JSON: maximum recursion",
     lambda f: (f / "reader.json").write_text("[" * 100_000)),
    (DataError, "reader.json is no JSON: Exceeds the limit",
     lambda f: (f / "reader.json").write_text('{"reader": ' + "9" * 5000 + "}")),
    (DataError, "reader.json: 'facts' is None; expected dict", lambda f: edit(f, facts=None)),
    (DataError, "reader.json: 's2dm' is 'x'; expected dict or null", lambda f: edit(f, s2dm="x")),
    (DataError, "reader.json: 'encoder' is 3; expected dict or null",
     lambda f: edit(f, encoder=3)),
    (DataError, "reader.json, 'encoder' lacks 'name', 'revision', 'lower_layers'",
     lambda f: edit(f, encoder=dict(layers=0, x=1))),
    (DataError, "reader.json, 'encoder': 'revision' is None; expected str",
     lambda f: edit(f, encoder=dict(name="x", revision=None, lower_layers=0))),
    *((DataError, UNREADABLE, lambda f, n=name, t=text: (
        f / "encoder" / n).write_text(t))
      for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
      for text in ("[" * 100_000, '{"a": ' + "9" * 5000 + "}", "[]", "null", "")),
    (DataError, UNREADABLE, lambda f: change_config(f, hidden_size="16")),
    (DataError, UNREADABLE, lambda f: change_config(f, hidden_act=["gelu"])),
    (DataError, UNREADABLE, lambda f: change_config(f, num_attention_heads=0)),
    (DataError, "encoder.*config.json says 1000000 layers",
     lambda f: change_config(f, num_hidden_layers=10**6)),
    (DataError, '"model_type" must be', lambda f: edit(f, model_type="s2dm")),
    (DataError, "reader.json, 'choice' lacks 'hidden', 'rank'",
     lambda f: edit(f, choice=dict(width=16))),
    (DataError, "reader.json: 'choice' is 'x'; expected dict or null",
     lambda f: edit(f, choice="x")),
    (DataError, "reader.safetensors does not belong",
     lambda f: edit(f, choice=dict(width=16, hidden=64, rank=16))),
    (DataError, "reader.json lacks 's2dm'", lambda f: edit(f, s2dm=...)),
    (DataError, "reader.json lacks 'reader'", lambda f: edit(f, reader=...)),
    (DataError, "reader.json: unknown parameter 'hed'", lambda f: edit(f, reader__hed="semantic")),
    (DataError, "reader.json: head='x' is not possible", lambda f: edit(f, reader__head="x")),
    (DataError, "reader.json: 'reader' is 3; expected dict", lambda f: edit(f, reader=3)),
    (DataError, "limits answers to 30 subwords.*replace.*longest_characters",
     lambda f: edit(f, reader__longest=30)),
    (DataError, "reader.json: mlp_layers=10000000", lambda f: edit(f, s2dm__mlp_layers=10**7)),
    (DataError, "reader.json: n_best=1000000000", lambda f: edit(f, reader__n_best=10**9)),
    *((DataError, "reader.safetensors does not belong",
       lambda f, k=key: edit(f, **{f"s2dm__{k}": 10**10}))
      for key in ("latent_width", "mlp_width")),
    (DataError, "reader.safetensors does not belong",
     lambda f: edit(f, choice=dict(width=16, hidden=10**8, rank=10**8))),
    (DataError, "reader.json: max_length=960", lambda f: edit(f, reader__max_length=960)),
    (DataError, "reader.json: the S2DM reads states of width 17",
     lambda f: edit(f, s2dm__encoder_width=17)),
    (DataError, "reader.json: head='semantic' needs an S2DM", lambda f: edit(f, s2dm=None)),
    (DataError, "reader.json: paired=False is not possible", lambda f: edit(f, s2dm__paired=False)),
    (DataError, "reader.safetensors does not belong.*semantic.2.weight",
     lambda f: edit(f, s2dm__latent_width=9)),
    (DataError, "reader.safetensors does not belong.*head.weight",
     lambda f: edit(f, reader__head="concat")),
    (DataError, "semantic.4.bias is missing", lambda f: edit(f, s2dm__mlp_layers=2)),
    (DataError, "head.bias is missing", lambda f: tensors(f, lambda t: t.pop("head.bias"))),
    (DataError, "encoder.pooler.dense.bias is unknown",
     lambda f: tensors(f, lambda t: t.update({"encoder.pooler.dense.bias": torch.zeros(16)}))),
    (DataError, "reader.safetensors does not belong",
     lambda f: os.truncate(f / "reader.safetensors", 100)),
    (DataError, "encoder.*cannot be read",
     lambda f: os.truncate(f / "encoder/model.safetensors", 1000)),
    (DataError, "encoder.*holds no transformers encoder",
     lambda f: (f / "encoder/model.safetensors").unlink()),
    (DataError, "encoder.*cannot be read",
     lambda f: (f / "encoder/config.json").write_text("{}")),
    (MissingData, "reader.json is not there",
     lambda f: (shutil.rmtree(f), network().save_pretrained(f)))]


@pytest.mark.parametrize("kind, says, damage", BROKEN, ids=range(len(BROKEN)))
def test_files_that_are_broken_or_do_not_belong_together(
        saved, tmp_path, monkeypatch, kind, says, damage):
    "Also from a relative path of one part, beside which encoder/ looks like a hub id."
    monkeypatch.setattr(s2dm.encoder, "hub_files", lambda *_: pytest.fail("asked the network"))
    shutil.copytree(saved, tmp_path / "mine")
    damage(tmp_path / "mine")
    forget_sums(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"(?s){says}") as error:
        S2DMReader.from_pretrained("mine", device="cpu")
    assert error.type is kind and "mine" in str(error.value)


def test_no_question_costs_a_second_pass_through_the_encoder(monkeypatch):
    "What the encoder's settings say of its width is not asked of the encoder."
    from s2dm.toy import toy_reader

    reader = toy_reader("baseline")
    monkeypatch.setattr("s2dm.reader.states_width", None)
    assert reader.answer("who?", "ada made a cake")


def test_a_training_reader_that_answers_from_several_threads_stays_as_it_was():
    reader = make().train()
    reader.semantic.eval() # frozen parts may have a mode of their own
    modes = [module.training for module in reader.modules()]
    inside, go = threading.Barrier(3, timeout=60), threading.Event()
    real_states = reader.states

    def states(batch): # both threads are in it before the first goes on
        inside.wait()
        if threading.current_thread().name == "late": go.wait(60)
        assert not reader.training and not reader.encoder.training
        return real_states(batch)

    object.__setattr__(reader, "states", states)
    found = {}
    def ask(name): found[name] = reader.answer("Wo?", "Am See.")
    threads = [threading.Thread(target=ask, args=(n,), name=n) for n in ("early", "late")]
    for thread in threads: thread.start()
    inside.wait()
    threads[0].join(60)
    go.set()
    threads[1].join(60)
    assert found["early"] == found["late"] and found["early"][0].text
    assert [module.training for module in reader.modules()] == modes
def partly(seed):
    "A reader whose encoder is partly frozen."
    reader = make(seed=seed)
    reader.base = dict(name="tiny", revision="first")
    reader.encoder.embeddings.requires_grad_(False)
    return reader


@pytest.mark.parametrize("whole", [True, False], ids=["encoder/", "encoder.safetensors"])
def test_parts_of_two_readers_are_not_one(tmp_path, whole):
    "Same sizes, other weights: nothing else would notice."
    kind = make if whole else partly
    mine = kind(seed=0).save_pretrained(tmp_path / "mine")
    other = kind(seed=1).save_pretrained(tmp_path / "other")
    names = [*json.loads((mine / "reader.json").read_text())["files"]]
    assert "reader.safetensors" in names
    assert ("encoder/model.safetensors" if whole else "encoder.safetensors") in names
    for name in names:
        kept = (mine / name).read_bytes()
        if kept == (other / name).read_bytes(): (mine / name).write_bytes(kept + b" ")
        else: shutil.copy(other / name, mine / name)
        with pytest.raises(DataError, match=f"{name} does not belong to its reader.json"):
            S2DMReader.from_pretrained(mine, "cpu")
        (mine / name).unlink()
        with pytest.raises(MissingData, match=f"{name} is not there"):
            S2DMReader.from_pretrained(mine, "cpu")
        (mine / name).write_bytes(kept)
    if whole: S2DMReader.from_pretrained(mine, "cpu")


def test_text_in_a_card_is_text(tmp_path):
    reader = make()
    reader.facts = {"system": "<i>s</i>", "questions": "a|b\n# [here](http://x)", "<u>": "\\|"}
    card = (reader.save_pretrained(tmp_path) / "README.md").read_text()
    assert "# &lt;i>s&lt;/i>\n" in card
    assert "- **questions**: a\\|b # [here]\\(http://x)\n" in card
    assert "- **&lt;u>**: &#92;\\|\n" in card


def test_a_reader_of_another_run_than_the_record_beside_it_is_refused(tmp_path):
    reader = make()
    reader.facts = dict(run="1f")
    folder = reader.save_pretrained(tmp_path / "checkpoint")
    for run, right in (("1f", True), ("2e", False)):
        (tmp_path / "metrics.json").write_text(json.dumps(dict(run=run)))
        if right: S2DMReader.from_pretrained(folder, "cpu")
    with pytest.raises(DataError, match="weights of run 1f, but .*metrics.json is the record of"):
        S2DMReader.from_pretrained(folder, "cpu")


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_rights_that_the_umask_leaves(tmp_path, mask):
    before = os.umask(mask)
    try: folder = make().save_pretrained(tmp_path / "reader")
    finally: os.umask(before)
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert len(files) > 5
    assert {p.stat().st_mode & 0o777 for p in files} == {0o666 & ~mask}
    assert (folder / "encoder").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.slow
def test_a_plain_process_reads_in_one_line(saved, tmp_path):
    code = ("import sys, warnings; from s2dm.reader import S2DMReader; "
            # the toy vocabulary knows neither text
            "warnings.filterwarnings('ignore', '.*unknown to the vocabulary'); "
            "print(S2DMReader.from_pretrained(sys.argv[1]).answer('Wo?', 'Zürich liegt am "
            "See.')[0])")
    out = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code, saved], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100)
    assert (out.returncode == 0 and out.stdout.startswith("Answer(text=")
            and not out.stderr), out.stderr


# The hub

class Hub:
    """A stand-in: repositories are folders; `down` makes it raise, and it counts what was asked of
    it."""
    def __init__(self, folder): self.folder, self.down, self.asked = folder, None, []

    def files(self, repo, revision):
        if self.down: raise self.down
        self.asked.append(repo)
        from huggingface_hub.errors import RepositoryNotFoundError
        if not (self.folder / repo).is_dir():
            raise RepositoryNotFoundError(
                "no such repository",
                response=SimpleNamespace(headers={}, request=None, status_code=404))
        return [p.name for p in (self.folder / repo).rglob("*")]

    def snapshot_download(self, repo, allow_patterns, ignore_patterns=(), local_files_only=False):
        assert set(allow_patterns) == {
            "reader.*", "encoder.safetensors", "encoder.rounded.safetensors", "README.md",
            "encoder/*"}
        cache = self.folder / "cache" / repo
        if local_files_only and not cache.is_dir(): raise OSError("not in the cache")
        if not local_files_only: shutil.copytree(self.folder / repo, cache, dirs_exist_ok=True)
        return str(cache)

    def create_repo(self, repo, private, exist_ok):
        if repo.startswith("others/"):
            raise PermissionError("403 Forbidden: \nyou are somebody else")
        (self.folder / repo).mkdir(parents=True, exist_ok=exist_ok)
        return f"https://hub/{repo}" + "?private" * private

    def upload_folder(self, repo_id, folder_path):
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(s2dm.reader, "hub_files", hub.files)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    return hub


def test_to_the_hub_and_back(hub):
    reader = make()
    assert reader.push_to_hub("me/reader") == "https://hub/me/reader"
    assert reader.push_to_hub("me/reader", private=True).endswith("?private")
    assert (sorted(p.name for p in (hub.folder / "me/reader").iterdir())
            == ["README.md", "encoder", "reader.json", "reader.safetensors"])
    def load(): return S2DMReader.from_pretrained("me/reader", device="cpu").answer("Wo?", CONTEXT)
    assert load() == reader.answer("Wo?", CONTEXT)
    new = make(seed=1)
    new.push_to_hub("me/reader")
    assert load() == new.answer("Wo?", CONTEXT) != reader.answer("Wo?", CONTEXT) # the newest
    hub.down = OSError("unplugged")
    assert load() == new.answer("Wo?", CONTEXT) # the one in the cache
    with pytest.raises(
            MissingData, match="'you/reader' is no folder here, and the hub does not give it"):
        S2DMReader.from_pretrained("you/reader")


def test_what_the_hub_refuses(hub):
    with pytest.raises(MissingData, match=r"'nobody/reader'.*\(RepositoryNotFoundError\)"):
        S2DMReader.from_pretrained("nobody/reader")
    with pytest.raises(
            MissingData,
            match=r"'others/reader' cannot be written on the hub \(PermissionError: 403 "
            r"Forbidden:.*hf auth login"):
        make().push_to_hub("others/reader")
    hub.down = OSError()
    with pytest.raises(MissingData, match=r"cannot be written on the hub \(OSError"):
        make().push_to_hub("me/reader")
    for name in ("nowhere", "a/b/c"):
        with pytest.raises(MissingData, match="is no folder"): S2DMReader.from_pretrained(name)
    assert hub.asked == ["nobody/reader", "others/reader"]
    hub.down = None
    (hub.folder / "me/model").mkdir(parents=True)
    with pytest.raises(MissingData, match="reader.json is not there"):
        S2DMReader.from_pretrained("me/model")


OFFLINE = """
import sys, time
from huggingface_hub import HfApi, snapshot_download
from s2dm.core import MissingData
from s2dm.reader import S2DMReader
reader = S2DMReader.from_pretrained(sys.argv[1])
for what in (S2DMReader.from_pretrained, reader.push_to_hub):
    start = time.perf_counter()
    try: what("owner/name")
    except MissingData as error:
        took = time.perf_counter() - start
        print(round(took, 2), error, sep="|", flush=True)
"""


def test_without_network_the_error_is_quick(saved, tmp_path):
    "A proxy that refuses, and one that takes the connection and never answers."
    with socket.create_server(("127.0.0.1", 0)) as listening:
        processes = []
        for port in (9, listening.getsockname()[1]):
            proxies = {
                name: f"http://127.0.0.1:{port}"
                for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy")}
            env = (os.environ | proxies
                   | dict(HF_HOME=str(tmp_path), HF_HUB_CACHE=str(tmp_path), PYTHONPATH=str(ROOT)))
            processes.append(subprocess.Popen(
                [sys.executable, "-c", OFFLINE, saved], env=env, stdout=subprocess.PIPE, text=True))
        lines = [
            line for process in processes
            for line in process.communicate(timeout=120)[0].splitlines()]
    assert len(lines) == 4
    for line in lines:
        assert float(line.split("|")[0]) < 5
        assert "owner/name" in line
        assert "is there a network" in line


# Real data

@pytest.mark.parametrize("corpus, language", [
    ("xquad", "en"), ("xquad", "th"), ("xquad", "zh"), ("xquad", "hi"), ("tydiqa", "te"),
    ("bipar", "zh")])
def test_real_questions_in_many_languages(real, corpus, language):
    "With mBERT's vocabulary: every answer stands where it says, whatever else is in the batch."
    questions = load_reading(corpus, language).select(range(0, 100, 25))
    tokenizer = mbert_tokenizer()
    reader = S2DMReader(
        bert(len(tokenizer), width=8, positions=512), tokenizer, network(width=8),
        ReaderConfig(max_length=200, stride=64)).eval()
    nn.init.normal_(reader.head.weight, generator=torch.Generator().manual_seed(0))
    found = reader.answer(questions["question"], questions["context"], top_k=4)
    for row, answers in zip(questions, found):
        assert answers
        assert all(
            row["context"][a.start:a.end] == a.text and a.text.strip() == a.text for a in answers)
        assert ([a[:3] for a in reader.answer(row["question"], row["context"], top_k=4)]
                == [a[:3] for a in answers])


@pytest.mark.parametrize("head", HEADS)
def test_the_width_of_a_reader_is_that_of_the_encoders_states(head, tmp_path):
    "ELECTRA's embeddings are narrower than its states."
    tokenizer = wordpiece()
    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=len(tokenizer), embedding_size=8, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16)
    semantic = None if head == "baseline" else network()
    reader = S2DMReader(ElectraModel(config), tokenizer, semantic, ReaderConfig(head=head)).eval()
    again = S2DMReader.from_pretrained(reader.save_pretrained(tmp_path), device="cpu")
    assert again.answer("Wo?", CONTEXT) == reader.answer("Wo?", CONTEXT) != []


def test_an_answer_is_read_in_its_language(tmp_path, segmenters):
    """A reader with XLM's tokenizer cuts a Chinese context into words; an encoder that does not ask
    reads the same in every language."""
    tokenizer = segmenting_xlm(tmp_path)
    torch.manual_seed(0)
    model = XLMModel(XLMConfig(
        vocab_size=len(tokenizer), emb_dim=16, n_layers=1, n_heads=2, max_position_embeddings=96,
        use_lang_emb=False))
    reader = S2DMReader(
        model, tokenizer, None,
        ReaderConfig(head="baseline", max_length=60, stride=16, query=12)).eval()
    asked = []
    windows = reader.windows
    reader.windows = lambda *given: asked.append(windows(*given)) or asked[-1]
    answers = [
        reader.answer("wo", "中国人民银行", **how)
        for how in (dict(language="zh", question_language="en"), dict(language="de"), {})]
    assert [len(w.subwords(0)[1]) for w in asked] == [4, 6, 6] and answers[1] == answers[2]
    reader = make()
    assert reader.answer("Wo?", CONTEXT, language="zh") == reader.answer("Wo?", CONTEXT)


# How sure

def test_a_reader_keeps_its_calibration(tmp_path):
    "Readers that were saved before have none, and answer as they did."
    reader = make()
    reader.calibration = Calibration(temperature=2.5, threshold=.3)
    folder = reader.save_pretrained(tmp_path / "mine")
    again = S2DMReader.from_pretrained(folder, device="cpu")
    assert again.calibration.as_dict() == dict(temperature=2.5, threshold=.3)
    about = json.loads((folder / "reader.json").read_text())
    for bad, says in ((dict(threshold=2), "threshold=2"), (dict(temperature=0), "temperature=0"),
                      (dict(warmth=1), "unknown parameter 'warmth'"), ([], "calibration")):
        (folder / "reader.json").write_text(json.dumps(about | dict(calibration=bad)))
        with pytest.raises(DataError, match=says) as error:
            S2DMReader.from_pretrained(folder, device="cpu")
        assert "reader.json" in str(error.value)
    del about["calibration"]
    (folder / "reader.json").write_text(json.dumps(about))
    old = S2DMReader.from_pretrained(folder, device="cpu")
    assert old.calibration.threshold == 0 and old.answer("wo?", CONTEXT)


def test_the_threshold_decides_whether_there_is_an_answer():
    reader = make()
    best = reader.answer("wo?", CONTEXT, top_k=3)
    assert 0 < sum(a.probability for a in best) < 1
    assert [a.probability for a in best] == sorted((a.probability for a in best), reverse=True)
    p = best[0].probability
    assert reader.answer("wo?", CONTEXT, top_k=3, threshold=p) == best
    assert reader.answer("wo?", CONTEXT, threshold=np.nextafter(p, 1)) == []
    reader.calibration = Calibration(temperature=100.)
    flat = reader.answer("wo?", CONTEXT, top_k=3)
    assert [a[:4] for a in flat] == [a[:4] for a in best] and flat[0].probability < p
    assert reader.read(reader.windows(dict(question=["wo?"], context=[CONTEXT])))[0][0] == (
        best[0]._replace(probability=None))


def test_readers_of_the_package_have_names(saved, tmp_path, monkeypatch):
    "A folder of that name does not stand before it, but its path does."
    monkeypatch.setattr(s2dm.reader, "published_readers", lambda: dict(e5=saved))
    (tmp_path / "e5").mkdir()
    monkeypatch.chdir(tmp_path)
    assert S2DMReader.from_pretrained("e5", device="cpu").answer("wo?", CONTEXT)
    with pytest.raises(MissingData, match="reader.json is not there"):
        S2DMReader.from_pretrained("./e5", device="cpu")
    with pytest.raises(MissingData, match=r"none of those in the package \(e5\)"):
        S2DMReader.from_pretrained("e6", device="cpu")


def test_an_unknown_script_is_told_once():
    reader = make()
    known, unknown = "Zürich liegt am See.", "ກຂຄງຈ ຊ ຍດຕ ຖທນ"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for context in (known, unknown, unknown + " ", known): reader.answer("Wo?", context)
    said = [str(warning.message) for warning in told]
    assert said.count(next(s for s in said if "Lao" in s)) == 1
    assert [s for s in said if s.startswith("100% of a text is unknown to the vocabulary, most of "
                                            "it Lao script")]


def over_another(folder, head="baseline"):
    "A reader whose encoder is that of a folder, but for its layers; and what that encoder's are."
    base = save_toy_encoder(folder)
    encoder = load_encoder(str(base), "cpu")
    before = {name: weight.clone() for name, weight in encoder.model.named_parameters()}
    s2dm = None if head == "baseline" else toy_s2dm(width=encoder.width)
    settings = ReaderConfig(head=head, max_length=64, query=16, stride=8)
    reader = S2DMReader(encoder.model, encoder.split.tokenizer, s2dm, settings)
    freeze(reader.encoder.requires_grad_(), embeddings=True)
    reader.base = dict(name=str(base), revision=encoder.revision)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in reader.encoder.parameters():
            if weight.requires_grad: weight += .01 * torch.randn(weight.shape, generator=draw)
    return reader, before


@pytest.mark.parametrize("head", ["baseline", "semantic"])
def test_a_rounded_reader_is_small_and_says_nearly_the_same(tmp_path, head):
    """What learned is rounded, the more bits the less is lost; the rest is exact. The parts belong
    together, as in any folder."""
    reader, before = over_another(tmp_path / "base", head)
    whole = reader.save_pretrained(tmp_path / "whole")
    rounded = "encoder.rounded.safetensors"
    lost = {}
    sizes = []
    for bits in (4, 6, 8):
        folder = reader.save_pretrained(tmp_path / f"bits{bits}", bits)
        assert not (folder / "encoder.safetensors").exists()
        sizes.append((folder / rounded).stat().st_size)
        back = S2DMReader.from_pretrained(folder, "cpu")
        assert torch.equal(back.head.weight, reader.head.weight)
        learned = dict(reader.encoder.named_parameters())
        lost[bits] = max(
            (weight - learned[name]).abs().max().item()
            for name, weight in back.encoder.named_parameters()
            if "pooler" not in name) # which is drawn anew, since nobody reads it
        kept = back.encoder.get_input_embeddings().weight
        assert torch.equal(kept, before["embeddings.word_embeddings.weight"])
    assert .005 > lost[4] > lost[6] > lost[8] > 0
    sizes.append((whole / "encoder.safetensors").stat().st_size)
    assert sizes == sorted(set(sizes))
    shutil.copy(tmp_path / "bits8" / rounded, tmp_path / "bits6")
    with pytest.raises(DataError, match=f"{rounded} does not belong to its reader.json"):
        S2DMReader.from_pretrained(tmp_path / "bits6", "cpu")
    # written over by one that is not rounded
    again = reader.save_pretrained(tmp_path / "bits8")
    assert not (again / rounded).exists() and S2DMReader.from_pretrained(again, "cpu")


def test_a_reader_reads_in_its_precision_whatever_the_machine(tmp_path, monkeypatch):
    reader, _ = over_another(tmp_path / "base")
    reader.keep_lower(1)
    reader.eval()
    known = toy_questions()
    asked = {name: [row[name] for row in known] for name in ("question", "context")}
    windows = reader.windows(asked)
    scores = {}
    for fast in (False, True):
        monkeypatch.setattr("s2dm.reader.has_bfloat16", lambda device, fast=fast: fast)
        for precision in ("auto", "float32", "bfloat16"):
            reader.precision = precision
            states = reader.lower_states(windows, progress=False)
            read = reader.read(windows, progress=False, states=states)
            scores[precision, fast] = [[answer.score for answer in row] for row in read]
    for precision in ("float32", "bfloat16"):
        assert scores[precision, False] == scores[precision, True]
    assert scores["float32", False] == scores["auto", False] != scores["auto", True]
    assert scores["float32", False] != scores["bfloat16", False]


@pytest.mark.parametrize("name", ["", 5, None])
def test_what_is_no_name_of_a_reader(name):
    with pytest.raises(ParameterError, match=f"reader {name!r} is no name; expected one of"):
        S2DMReader.from_pretrained(name)


def test_a_reader_whose_encoder_nobody_else_has_is_not_rounded(tmp_path):
    with pytest.raises(ParameterError, match="bits=6 is not possible"):
        make().save_pretrained(tmp_path / "mine", bits=6)


def test_calibration_makes_the_loss_smallest_and_changes_no_answer():
    reader = toy_reader("baseline", seed=3)
    with torch.no_grad(): reader.head.weight *= 30 # far too sure of itself
    known = Dataset.from_list(toy_questions())
    before = reader.answer(known["question"][:], known["context"][:])
    unsure = reader.calibrate(known)
    after = reader.answer(known["question"][:], known["context"][:])
    assert reader.calibration.temperature > 1.5
    assert [[a.text for a in row] for row in before] == [[a.text for a in row] for row in after]
    assert [row[0].probability for row in after] == pytest.approx(unsure[:, 0].tolist())
    golds = [row["text"][0] for row in known["answers"]]
    assert unsure[:, 1].tolist() == [row[0].text == gold for row, gold in zip(after, golds)]
    loss = s2dm.reader._log_loss
    sure = np.array([row[0].probability for row in before])
    assert loss(unsure[:, 0], unsure[:, 1] > 0) < loss(sure, unsure[:, 1] > 0)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    "The names of workflow/reader.py, after it put a toy reader into a package of its own."
    reader, _ = over_another(tmp_path / "base")
    reader.facts = dict(questions="4 in English: qamr/dev")
    reader.save_pretrained(tmp_path / "checkpoint")
    save_toy_questions(tmp_path / "dev.json")
    names = runpy.run_path(str(ROOT / "workflow/reader.py"))
    names["publish"].__globals__["project_root"] = lambda: tmp_path
    dev = str(tmp_path / "dev.json")
    names["publish"](tmp_path / "checkpoint", "mine", bits=6, dev=dev, count=10)
    return SimpleNamespace(
        reader=reader, dev=dev, folder=tmp_path / "s2dm/readers/mine", **names)


def test_a_trained_reader_is_put_into_the_package(mine):
    """`make reader`: calibrated, rounded, with what that cost on its card, and where its training
    data are from; found by its name."""
    found = S2DMReader.from_pretrained(mine.folder, "cpu")
    dev = evenly(Dataset.from_list(toy_questions()), 10)
    sure = mine.reader.calibrate(dev)
    assert found.calibration == mine.reader.calibration
    card = (mine.folder / "README.md").read_text()
    before = 100 * sure[:, 1].mean()
    assert "by 10 questions of" in card and f"EM on {mine.dev} {before:.1f} before" in card
    for says in ("**scores**: not measured yet", "questions: qamr (MIT; sentences CC BY-SA",
                 "of 500 characters at most", "reads 16 subwords", "English alone"):
        assert says in card
    assert "**thresholds**: not known: too few questions" in card # it answers none rightly
    assert before == 0
    assert (mine.folder / "encoder.rounded.safetensors").is_file()
    assert not (mine.folder / "encoder.safetensors").exists()


def test_what_a_threshold_does_stands_on_the_card(mine):
    questions = Dataset.from_list([
        dict(id=str(i), question="Who?", context=f"It was {name}.", answers=dict(text=[name]))
        for i, name in enumerate(("Ada", "Bob", "Cid", "ada"))])
    moved = mine.elsewhere(questions)
    assert moved["context"][:] == ["It was Cid.", "It was ada.", "It was Ada.", "It was Bob."]
    same = questions.select([0, 3])
    assert len(mine.elsewhere(same)) == 0 # the other passage has the answer
    sure = np.array([[.9, 1], [.25, 1], [.1, 0]])
    for right, lost in ((sure[2:], sure), (sure, [])): # a share of none is no number
        assert mine.silence(right, lost) == "not known: too few questions"
    said = mine.silence(sure, np.array([[.1, 0], [.35, 0], [.35, 0], [.6, 0]]))
    assert said.startswith("0.2: silent on 25% of the questions whose answer is not in the "
                           "passage, and on 0% of what it answers rightly; 0.3: silent on 25%")
    assert "0.4: silent on 75% of the questions" in said and said.endswith(
        "0.5: silent on 75% of the questions whose answer is not in the passage, and on 50% of "
        "what it answers rightly")


def test_scores_come_onto_the_card_of_the_reader_that_has_them(mine, tmp_path):
    "From a record that is made up here; that of another reader is refused, and nothing changes."
    folder = tmp_path / "runs/evaluate/mine"
    before = (mine.folder / "README.md").read_text()
    with pytest.raises(MissingData, match="metrics.json is not there"):
        mine.write_card("mine", folder)
    row = dict(dataset="made-up", context="th", question="th", questions=1200, em=41.25,
               em_low=38., em_high=44.44, f1=60., f1_low=58., f1_high=62.)
    record = dict(results=[row, row | dict(question="en")])
    for sum in ({}, dict(reader_sum=reader_sum(mine.reader))): # of the reader before it was rounded
        write_json(folder / "metrics.json", record | sum)
        with pytest.raises(DataError, match="is no record of this reader"):
            mine.write_card("mine", folder)
    assert (mine.folder / "README.md").read_text() == before
    right = reader_sum(S2DMReader.from_pretrained(mine.folder, "cpu"))
    write_json(folder / "metrics.json", record | dict(reader_sum=right))
    mine.write_card("mine", folder)
    card = (mine.folder / "README.md").read_text()
    assert "not measured" not in card
    assert card.endswith(
        "## Scores\n\n"
        "| data set | language | questions | EM, 95 % interval | F1, 95 % interval |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| made-up | th | 1,200 | 41.2 (38.0 to 44.4) | 60.0 (58.0 to 62.0) |\n")
    mine.write_card("mine") # keeps them
    assert (mine.folder / "README.md").read_text() == card
    write_json(folder / "metrics.json", dict(results=[], reader_sum=right))
    with pytest.raises(DataError, match="no test has questions and passages in the same language"):
        mine.write_card("mine", folder)


def test_what_a_reader_gains_over_others_stands_on_its_card(mine, tmp_path):
    "In languages other than English, questions and passages in one; data sets that both have."
    def write(folder, **em): # made up
        rows = [dict(dataset=dataset, context=context, question=question, questions=9, em=value,
                     em_low=0., em_high=90., f1=value, f1_low=0., f1_high=90.)
                for (dataset, context, question), value in scores(em)]
        return write_json(folder / "metrics.json", dict(results=rows, reader_sum=right))

    def scores(em):
        yield from (((name, "th", "th"), value) for name, value in em.items())
        yield from ((("one", *pair), 99.) for pair in (("en", "en"), ("th", "en")))
        yield ("one", "de", "de"), 30.

    right = reader_sum(S2DMReader.from_pretrained(mine.folder, "cpu"))
    folder, others = tmp_path / "mine", tmp_path / "others"
    write(folder, one=50., two=20.)
    with pytest.raises(MissingData, match="others has no seed.*metrics.json"):
        mine.write_card("mine", folder, others)
    with pytest.raises(ParameterError, match="--beside needs the reader's own --scores"):
        mine.write_card("mine", beside=others)
    for seed, em in enumerate((10., 20.)): write(others / f"seed{seed}", one=em)
    mine.write_card("mine", folder, others)
    assert ("**comparison**: EM in languages other than English, against the mean of 2 readers of "
            "others: one 40.0 against 22.5\n") in (mine.folder / "README.md").read_text()


def test_how_sure_beside_how_often_right(mine, tmp_path):
    "In bins of the same size, of questions that were not used for the calibration."
    sure = np.stack([np.linspace(0, 1, 40), np.arange(40) >= 20], 1)
    bins = mine.reliability(sure, 4)
    assert bins["questions"].tolist() == [10] * 4 and bins["observed"].tolist() == [0, 0, 1, 1]
    assert bins["expected"].tolist() == pytest.approx(sure[:, 0].reshape(4, 10).mean(1).tolist())
    assert ((bins["low"] <= bins["observed"]) & (bins["observed"] <= bins["high"])).all()
    assert bins["high"][0] == pytest.approx(.2775, abs=1e-4) # Wilson's, of none among ten
    out = tmp_path / "out/reliability.csv"
    mine.write_reliability("mine", mine.dev, calibrated=10, count=400, out=out)
    found = pd.read_csv(out)
    assert found["questions"].sum() == 10 # of twenty
    reader = S2DMReader.from_pretrained(mine.folder, "cpu")
    all = Dataset.from_list(toy_questions())
    used = {*evenly(all, 10)["id"]}
    rest = all.select([i for i, id in enumerate(all["id"]) if id not in used])
    said = reader.answer(rest["question"][:], rest["context"][:])
    mean = sum(row[0].probability for row in said) / len(said)
    assert (found["expected"] * found["questions"]).sum() / 10 == pytest.approx(mean, abs=1e-3)
    with pytest.raises(ParameterError, match="all questions of .* were used"):
        mine.write_reliability("mine", mine.dev, calibrated=20, count=5, out=out)


def test_readers_are_compared_on_the_same_english_questions(mine, tmp_path):
    record = dict(questions=7, steps=3, evaluations=[dict(em=1., f1=2.), dict(em=30., f1=40.)])
    write_json(tmp_path / "others/seed0/metrics.json", record)
    out = tmp_path / "readers.csv"
    mine.write_english(
        [mine.folder, tmp_path / "checkpoint"], tmp_path / "others", mine.dev, 10, out)
    table = pd.read_csv(out)
    assert table["reader"].tolist() == ["mine", "checkpoint", "others, seed0"]
    assert table["questions"].tolist() == ["4 in English: qamr/dev"] * 2 + ["7"]
    assert table.loc[2, ["em", "f1"]].tolist() == [30, 40] and table.loc[2, "training"] == "3 steps"
    dev = evenly(Dataset.from_list(toy_questions()), 10)
    counted = score(predict(mine.reader, dev), dev)
    assert table.loc[1, "em"] == pytest.approx(counted.em.mean(), abs=.01)
    assert table.loc[1, "f1"] == pytest.approx(counted.f1.mean(), abs=.01)
