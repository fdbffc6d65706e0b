"""The encoder from scratch: text and its faults, subwords, masks, batches, the model, a run, its
interruption, and what it leaves.
"""
import json
import re
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from s2dm import scratch as S, treebanks
from s2dm.core import DataError, MissingData, ParameterError, atomic_folder, runs_dir
from s2dm.encoder import WordTokenizer, find_encoder, load_encoder
from s2dm.scratch import (
    MaskedBatches, MaskedLM, ScratchConfig, hide, load_parallel, load_text, new_model,
    train_encoder, train_tokenizer)
from s2dm.sources import REGISTRY, fetch

WORDS = dict(
    en=["the", "dog", "cats", "sees", "a", "house", "red", "runs"],
    de=["das", "Hündchen", "Katzen", "sieht", "ein", "Haus", "rot", "läuft"])


def write(folder, n=120):
    "Two parallel text files; their paths."
    rng = random.Random(0)
    rows = [[rng.randrange(8) for _ in range(rng.randrange(1, 9))] for _ in range(n)]
    for lang, words in WORDS.items():
        (folder / f"{lang}.txt").write_text(
            "".join(" ".join(words[i] for i in row) + " .\n" for row in rows), encoding="utf-8")
    return str(folder / "en.txt"), str(folder / "de.txt")


def tiny(folder, **changes):
    "Parameters of a run that takes a second."
    en, de = write(folder)
    return dict(
        name="real-s", texts=f"{en},{de}", parallel=f"{en}|{de}", vocabulary=100, layers=2,
        width=16, heads=2, feed_forward=16, positions=32, budget=128, apart=.1, learning_rate=3e-3,
        evaluate_every=0) | changes


# text

@pytest.mark.parametrize("raw, says", [
    (b"\xef\xbb\xbfa\n", "a.txt:1: byte-order mark"),
    (b"a\nb\rc\n", "a.txt:2: carriage return"),
    (b"a\n\xe9\n", "a.txt:2: byte 0xe9 is not UTF-8"),
    (b"", "a.txt:1: no sentence"),
    (b"\n \n\xc2\xa0\n", "a.txt:1: no sentence")])
def test_text_that_cannot_be_read_is_refused_with_its_place(tmp_path, raw, says):
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(DataError) as error: load_text([str(tmp_path / "a.txt")])
    assert says in str(error.value)


def test_text_is_read_line_by_line_and_only_at_line_feeds(tmp_path):
    (tmp_path / "a.txt").write_bytes(
        "one \r\n\r\n two\u2028still two\r\none\r\nthree\x0bstill three".encode())
    assert (load_text([str(tmp_path / "a.txt")])
            == ["one", "two\u2028still two", "three\x0bstill three"])


@pytest.mark.parametrize("en, de, says", [
    ("a\nb\n", "c\n", "de.txt:1: the file ends here, .*en.txt at line 2"),
    ("a\n", "b\nc\nd\n", "de.txt:3: the file ends here, .*en.txt at line 1"),
    ("a\n\nb\n", "c\nd\ne\n",
     "en.txt:2: empty line; expected the translation of that line of .*de.txt"),
    ("a\nb\n", "c\n \n", "de.txt:2: empty line; expected .*en.txt"),
    ("", "", "en.txt:1: the file is empty"),
    ("a\n", "b\n\n", "de.txt:2: the file ends here")])
def test_files_that_do_not_correspond_are_refused_with_file_and_line(tmp_path, en, de, says):
    for name, text in (("en", en), ("de", de)): (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(DataError, match=says):
        load_parallel([f"{tmp_path}/en.txt|{tmp_path}/de.txt"])


def test_pairs_are_distinct_and_differ(tmp_path):
    (tmp_path / "en.txt").write_text("a\nb\na\nsame\nno end")
    (tmp_path / "de.txt").write_text("c\nd\nc\nsame\nohne Ende")
    assert (load_parallel([f"{tmp_path}/en.txt|{tmp_path}/de.txt"] * 2)
            == [("a", "c"), ("b", "d"), ("no end", "ohne Ende")])


@pytest.mark.parametrize("load, name, file", [
    (load_text, "sib200", "en"), (load_parallel, "sib200", "en"), (load_text, "commonvoice", "ar")])
def test_text_that_only_a_mirror_has_says_so(monkeypatch, load, name, file):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(
            MissingData,
            match=f"text/{name}/{file}.txt .*its publisher offers this text in other files only. "
            "Set S2DM_MIRROR"):
        load([name])


def test_further_pairs_are_of_one_line_of_other_languages_and_follow_the_seed(monkeypatch):
    columns = [[f"{lang}{i}" for i in range(30)] for lang in ("en", "de", "fr", "zh")]
    monkeypatch.setattr(
        S, "_tables", lambda name: [columns] if name == "ntrex128" else [columns[:2]])
    plain = load_parallel(["ntrex128", "tatoeba"])
    more = load_parallel(["ntrex128", "tatoeba"], mixed=2, seed=1)
    assert plain == [(f"en{i}", f"{lang}{i}") for lang in ("de", "fr", "zh") for i in range(30)]
    assert more[:90] == plain
    assert 30 < len(more) - 90 <= 60
    assert all(a[2:] == b[2:] and "en" not in (a[:2], b[:2]) and a != b for a, b in more[90:])
    assert (more == load_parallel(["ntrex128", "tatoeba"], mixed=2, seed=1)
            != load_parallel(["ntrex128", "tatoeba"], mixed=2, seed=2))


@pytest.mark.slow
def test_registered_text(real, monkeypatch):
    # the rest takes long to parse
    monkeypatch.setattr(S, "load_sentences", lambda: treebanks.load_sentences(("partut-it",)))
    monkeypatch.setattr(S, "load_pairs", lambda: treebanks.load_pairs(("partut-it",)))
    text, pairs = load_text(S.REAL), load_parallel(S.PARALLEL)
    assert len(text) == len(set(text)) > 200_000
    assert all(s == s.strip() and s and "\r" not in s for s in text)
    assert len(pairs) == len(set(pairs)) > 100_000
    assert {s for pair in pairs for s in pair} <= set(text)
    english = {
        line for name in ("ntrex128/en.txt", "sib200/en.txt")
        for line in S._lines(fetch(f"text/{name}"))}
    ntrex, tatoeba = load_parallel(["ntrex128"]), load_parallel(["tatoeba"])
    assert len(load_text(["ntrex128"])) > 18 * 1900
    assert 17 * 1990 < len(ntrex) <= 17 * 1997
    assert all(a in english for a, _ in ntrex)
    ours = {
        line for path, source in REGISTRY.items()
        if source.corpus == "tatoeba" and path.endswith(".eng")
        for line in S._lines(fetch(path))}
    assert all(a in ours for a, _ in tatoeba) and len(tatoeba) > 14_000
    assert ([Counter(len(table) for table in S._tables(name)) for name in S.PARALLEL]
            == [{2: 1}, {18: 1}, {18: 1}, {2: 17}, {2: 1}, {2: 1}])


def test_questions_come_with_the_contexts_that_readers_are_trained_on_and_no_benchmark(real):
    from s2dm.finetune import FinetuneConfig, load_questions

    config = FinetuneConfig(model="real-s", variant="baseline")
    asked = [pair for name in S.QUESTIONS for pair in S._asked(name)]
    questions = load_questions(config.data)
    assert asked == [
        (c.strip(), q.strip()) for c, q in zip(questions["context"][:], questions["question"][:])]
    assert (not {f"{name}/{part}" for name, parts in S.QUESTIONS.items() for part in parts}
            & set(config.dev))
    assert not {"xquad", "tydiqa", "bipar"} & set(S.TEXTS)


def test_common_voice_is_text_without_translations(real):
    lines = load_text(["commonvoice"])
    assert len(lines) == len(set(lines)) > 100_000 and "后来信众捐资兴建宫庙落成。" in lines
    with pytest.raises(
            ParameterError,
            match="'commonvoice' is no parallel text; expected any of ud, ntrex128, sib200, "
            "tatoeba, squadshifts, qamr, synthetic, or two paths"):
        load_parallel(["commonvoice"])


# what is kept apart

@given(st.integers(1, 30), st.data())
def test_groups_are_the_connected_parts_and_no_pair_crosses(n, data):
    pairs = np.array(
        data.draw(st.lists(st.tuples(*[st.integers(0, n - 1)] * 2), max_size=40)),
        np.int64).reshape(-1, 2)
    graph = nx.Graph(pairs.tolist())
    graph.add_nodes_from(range(n))
    groups = S.translation_groups(n, pairs)
    assert ({frozenset(np.flatnonzero(groups == g).tolist()) for g in set(groups.tolist())}
            == {frozenset(c) for c in nx.connected_components(graph)})
    apart = S.held_out(groups, data.draw(st.floats(0, 1)), 0)
    assert apart.any() and (apart[pairs[:, 0]] == apart[pairs[:, 1]]).all()


def test_what_is_kept_apart_is_never_trained_on(tmp_path):
    config = ScratchConfig(**tiny(tmp_path, apart=.2))
    corpus = S.gather(config.texts, config.parallel, share=config.apart)
    _, data, evaluation, counts = S.prepare(corpus, config)
    trained = {i for e in data.examples for i in e}
    kept = {i for part in evaluation.values() for e in part.examples for i in e}
    assert not trained & kept
    assert trained | kept == set(range(len(corpus.sentences)))
    assert counts["kept_apart"] == len(kept) == corpus.apart.sum()
    assert sorted({len(e) for e in data.examples}) == [1, 2]
    assert {len(e) for e in evaluation["mlm"].examples} == {1}
    assert {len(e) for e in evaluation["tlm"].examples} == {2}


def test_too_little_text_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("one sentence\n")
    with pytest.raises(
            ParameterError,
            match="hold 1 sentences; expected two that do not translate each other"):
        S.gather([str(tmp_path / "a.txt")], [])


# subwords

TEXT = (["Das Haus, das rote Haus.", "Die Häuser und der Bär!", "猫看见狗。", "ผมเห็นแมวผม",
         "वह किताब पढ़ता है", "The house isn't red", "ヤマネコ", "고양이가 집을"]
        * 4)


@pytest.mark.parametrize("kind", S.TOKENIZERS)
def test_a_tokenizer_is_an_ordinary_one(kind, tmp_path):
    from transformers import AutoTokenizer

    made = train_tokenizer(TEXT, kind, 300, limit=20)
    made.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.is_fast and again.model_max_length == 20 and len(again) == len(made) <= 300
    assert again.convert_ids_to_tokens(range(5)) == list(S.SPECIAL) == [
        again.pad_token, again.unk_token, again.cls_token, again.sep_token, again.mask_token]
    for text in [*TEXT, "Unbekanntes 漢字 mit Zeichen ☃"]:
        assert made(text)["input_ids"] == again(text)["input_ids"]
        assert again(text)["input_ids"][0] == 2
        assert again(text)["input_ids"][-1] == 3
    pair = again("Das Haus", "The house")
    assert pair["token_type_ids"] == [0] * (pair["input_ids"].index(3) + 1) + [1] * (
        len(pair["input_ids"]) - pair["input_ids"].index(3) - 1)
    offsets = again(
        "Die  Häuser", return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    assert offsets[0][0] == 0 and offsets[-1][1] == 11
    assert len(again("[MASK] Haus", add_special_tokens=False)["input_ids"]) >= 2
    assert again("[MASK]", add_special_tokens=False)["input_ids"] == [4]


@pytest.mark.parametrize("kind", S.TOKENIZERS)
def test_words_have_the_subwords_they_have_in_text(kind):
    tokenizer = train_tokenizer(TEXT, kind, 300)
    split = WordTokenizer(tokenizer, 64)
    words = ["Das", "rote", "Haus", ",", "看见", "เห็น", "\u200b", "☃"]
    found = split([words])[0]
    # the lone zero-width space; the snowman is unknown
    assert found.bare == 1 and found.ids.tolist().count(1) >= 1
    assert found.ids.tolist() == tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    assert {*found.word.tolist()} - {-1} == {0, 1, 2, 3, 4, 5, 7}


@pytest.mark.parametrize("kind", S.TOKENIZERS)
def test_text_is_prepared_for_all_scripts(kind):
    tokenizer = train_tokenizer(TEXT, kind, 400)
    def words(text):
        return [
            text[a:b]
            for a, b in tokenizer(
                    text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]]
    assert words("猫看见狗。") == list("猫看见狗。")  # a Chinese character is a word
    assert tokenizer.tokenize("Bär") == tokenizer.tokenize("Ba\u0308r") != tokenizer.tokenize("Bar")
    assert tokenizer.tokenize("Das") != tokenizer.tokenize("das")
    for text in ("ผมเห็นแมว", "वह किताब पढ़ता है"):
        # no vowel is lost
        assert ("".join(t.removeprefix("##") for t in tokenizer.tokenize(text))
                == text.replace(" ", ""))
    long = "ผมเห็นแมว" * 60  # without a space, longer than what BERT's tokenizer takes for a word
    assert tokenizer.unk_token not in tokenizer.tokenize(long)


def test_an_unknown_character_takes_no_more_than_it_must():
    assert train_tokenizer(TEXT, "bpe", 300).tokenize("das☃Haus")[-1] != "[UNK]"
    assert train_tokenizer(TEXT, "wordpiece", 300).tokenize("Ha☃us") == ["[UNK]"]


def test_rare_characters_are_left_out_of_a_small_vocabulary():
    text = ["ab ab ab ba ba"] * 9 + [chr(0x4E00 + i) for i in range(50)]
    for kind in S.TOKENIZERS:
        vocab = train_tokenizer(text, kind, 65).get_vocab()
        assert len(vocab) <= 65
        assert sum(len(t) == 1 for t in vocab) == 15
        assert {"a", "b"} <= set(vocab)


# masks

@given(
    st.integers(0, 10**6), st.floats(.01, .9), st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_masks_take_their_share_and_leave_special_tokens_alone(seed, share, lengths):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 5, (len(lengths), 45), generator=g)
    for row, n in zip(ids, lengths):
        row[torch.randperm(45, generator=g)[:n]] = torch.randint(5, 60, (n,), generator=g)
    before = ids.clone()
    seen, chosen = hide(ids, share, 60, torch.Generator().manual_seed(seed))
    assert torch.equal(ids, before)
    assert not chosen[ids < 5].any()
    assert torch.equal(seen[~chosen], ids[~chosen])
    assert chosen.sum(1).tolist() == [
        min(n, max(1, int(torch.tensor(share * n, dtype=torch.float32).round()))) if n else 0
        for n in lengths]
    assert ((seen == 4) | (seen >= 5))[chosen].all()
    again = hide(ids, share, 60, torch.Generator().manual_seed(seed))
    assert torch.equal(again[0], seen) and torch.equal(again[1], chosen)


def test_masks_are_80_10_10_and_fall_everywhere():
    ids = torch.full((4000, 20), 7)
    seen, chosen = hide(ids, .15, 1000, torch.Generator().manual_seed(0))
    kinds = [
        (seen[chosen] == 4).float().mean(),
        ((seen[chosen] != 4) & (seen[chosen] != 7)).float().mean(),
        (seen[chosen] == 7).float().mean()]
    # four standard errors
    assert chosen.sum() == 12_000 and all(abs(k - e) < 0.012 for k, e in zip(kinds, (.8, .1, .1)))
    assert (chosen.float().mean(0) - .15).abs().max() < 0.025
    other = seen[chosen & (seen != 4) & (seen != 7)]
    assert other.min() >= 5 and other.max() < 1000 and len(other.unique()) > 600


# batches

def batches(n=200, pairs=80, **more):
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 90, rng.integers(1, 40)).astype(np.int32) for _ in range(n)]
    return ids, MaskedBatches(
        ids, [*((i,) for i in range(n)), *((i, n - 1 - i) for i in range(pairs))], 90,
        **dict(limit=30, budget=256) | more)


def test_an_epoch_has_every_example_once_within_the_budget():
    _, data = batches()
    plans = [data.plan(e) for e in range(3)]
    for plan in plans:
        assert sorted(i for b in plan for i in b) == list(range(280))
        for b in plan:
            assert data.lengths[b].max() * len(b) <= 256
            assert (data.load(b, torch.Generator())["input_ids"].shape
                    == (len(b), data.lengths[b].max()))
    assert plans[0] == batches()[1].plan(0) != plans[1] and plans[0] != batches(seed=1)[1].plan(0)
    # little padding
    assert sum(data.lengths[b].max() * len(b) for b in plans[0]) < 1.3 * data.lengths.sum()
    # longer than the budget: by itself
    assert MaskedBatches([np.arange(5, 50)], [(0,)], 90, budget=10).plan(0) == [[0]]


@pytest.mark.parametrize("positions, types", [(True, True), (False, True), (False, False)])
def test_a_batch_is_its_examples_and_a_function_of_the_generator(positions, types):
    ids, data = batches(positions=positions, types=types)
    def draw(seed): return data.load([3, 205, 7, 240], torch.Generator().manual_seed(seed))
    batch, again = draw(0), draw(0)
    keys = {"input_ids", "attention_mask", "masked", "targets"}
    if positions: keys |= {"position_ids"}
    if types: keys |= {"token_type_ids"}
    assert set(batch) == keys
    assert all(torch.equal(batch[k], again[k]) for k in batch)
    assert not torch.equal(batch["masked"], draw(1)["masked"])
    whole = batch["input_ids"].flatten()
    whole[batch["masked"]] = batch["targets"]
    orders = set()
    for row, mask, example, at in zip(
            whole.view_as(batch["input_ids"]), batch["attention_mask"], [3, 205, 7, 240], range(4)):
        sides = [
            ids[i][:28 if len(data.examples[example]) == 1 else 13].tolist()
            for i in data.examples[example]]
        found = row[mask.bool()].tolist()
        turned = [2, *(x for side in sides[::-1] for x in [*side, 3])]
        assert found in ([2, *(x for side in sides for x in [*side, 3])], turned)
        assert row[~mask.bool()].eq(0).all()
        assert len(found) <= 30
        if len(sides) == 2:
            first = found.index(3)
            orders.add(found == turned)
            if positions:
                assert (batch["position_ids"][at].tolist()[:len(found)]
                        == [*range(first + 1), *range(1, len(found) - first)])
            if types:
                assert (batch["token_type_ids"][at].tolist()[:len(found)]
                        == [0] * (first + 1) + [1] * (len(found) - first - 1))


def test_a_pair_is_masked_on_both_sides_and_comes_in_both_orders():
    ids = [np.arange(10, 30), np.arange(50, 70)]
    data, left, right, first = MaskedBatches(ids, [(0, 1)], 90, limit=64), 0, 0, set()
    for seed in range(40):
        batch = data.load([0], torch.Generator().manual_seed(seed))
        left = left + int((batch["targets"] < 40).sum())
        right = right + int((batch["targets"] >= 40).sum())
        first.add(bool(batch["targets"][batch["masked"] < 21].lt(40).all()))
    assert left + right == 40 * 6 and 80 < left < 160 and first == {True, False}


# the model

@pytest.mark.parametrize("name", S.ARCHITECTURES)
def test_the_loss_is_that_of_transformers(name):
    kind = S.ARCHITECTURES[name]
    model = new_model(name, 90, width=16, layers=2, heads=2, feed_forward=16, positions=32).eval()
    _, data = batches(positions=kind["positions"], types=kind["types"])
    for b in data.plan(0)[:3]:
        batch = data.load(b, torch.Generator().manual_seed(0))
        labels = torch.full_like(batch["input_ids"], -100).flatten()
        labels[batch["masked"]] = batch["targets"]
        inputs = {k: v for k, v in batch.items() if k not in ("masked", "targets")}
        assert torch.isclose(
            MaskedLM(model)(batch)["masked"].mean(),
            model(**inputs, labels=labels.view_as(batch["input_ids"])).loss, rtol=1e-5)


def test_new_weights_follow_the_seed_and_leave_torch_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (
        new_model("bert", 30, width=8, layers=1, heads=2, feed_forward=8, positions=16, seed=s)
        for s in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    def weight(m): return m.get_input_embeddings().weight
    assert torch.equal(weight(a), weight(b)) and not torch.equal(weight(a), weight(c))


@pytest.mark.parametrize("architecture", S.ARCHITECTURES)
def test_heads_that_start_alike(architecture):
    """Half of the heads: equal subwords attend to each other; the others and the size of the
    weights are as asked."""
    names = ("query_proj", "key_proj") if architecture == "deberta-v2" else ("query", "key")
    model = new_model(
        architecture, 30, width=64, layers=2, heads=4, feed_forward=8, positions=16, alike=.5,
        initializer_range=.1)
    pairs = [
        [getattr(block, name).weight for name in names]
        for block in model.modules()
        if hasattr(block, names[0])]
    assert len(pairs) == 2
    for query, key in pairs:
        assert torch.equal(query[:32], key[:32])
        assert not torch.isclose(query[32:], key[32:]).any(1).all()
        assert .09 < query.std() < .11


@pytest.mark.parametrize("architecture", S.ARCHITECTURES)
@pytest.mark.parametrize("embeddings", [True, False])
def test_what_is_held_does_not_move(architecture, embeddings):
    """Half of the heads and, if wanted, embeddings, which are also the output's; all other weights
    do."""
    kind = S.ARCHITECTURES[architecture]
    model = new_model(
        architecture, 30, width=16, layers=2, heads=4, feed_forward=16, positions=16, alike=.5,
        initializer_range=.1)
    S.hold_identity(model, 8, embeddings)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    batch = MaskedBatches(
        [np.array([10, 11]), np.array([20, 21, 22])], [(0,), (0, 1)], 30, 20,
        positions=kind["positions"],
        types=kind["types"]).load([0, 1], torch.Generator().manual_seed(0))
    MaskedLM(model)(batch)["masked"].sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1).step()
    after = model.state_dict()
    still = {name for name in before if torch.equal(after[name], before[name])}
    assert any("word_embeddings" in name for name in still) == embeddings
    assert not {
        name for name in still
        if re.search(r"query|key|value|intermediate", name) and name.endswith("weight")}
    for name in after:
        if re.search(r"(query|key)(_proj)?\.", name):
            assert torch.equal(after[name][:8], before[name][:8])


# a run

@pytest.mark.parametrize("params, says", [
    (dict(texts="ud,sib20"),
     "'sib20' is no file and no corpus; expected any of ud, ntrex128, sib200, tatoeba, "
     "squadshifts, qamr, commonvoice, synthetic, or the path of a text file"),
    (dict(parallel="en.txt|nowhere.txt"), "'en.txt' is no file"),
    (dict(parallel="en.txt"), "'en.txt' has 1 files instead of 2"),
    (dict(texts="a|b"), "has 2 files instead of 1"),
    (dict(texts="", parallel=""), "texts and parallel are both empty"),
    (dict(architecture="brt"), "did you mean 'bert'"),
    (dict(tokenizer="unigram"), "choose one of bpe, wordpiece"),
    (dict(architecture="bert", width=100, heads=3),
     "width=100 is not possible with heads=3 and bert; expected a multiple of 3"),
    (dict(architecture="roformer", width=30, heads=10), "a multiple of 20"),
    (dict(name="a/b"), "name is that of a folder"),
    (dict(name=".."), "name is that of a folder"),
    (dict(name=""), "name is that of a folder"),
    (dict(vocabulary=10), "vocabulary is an int from 50"),
    (dict(masked=0), "masked is a float from 0.01 to 0.9"),
    (dict(layer=2), "did you mean 'layers'"),
    (dict(learning_rate=-1), "learning_rate is a float from 0")])
def test_wrong_parameters(params, says):
    with pytest.raises(ParameterError) as error: ScratchConfig(**params)
    assert says in str(error.value)


@pytest.mark.parametrize("architecture", S.ARCHITECTURES)
def test_a_run_leaves_an_ordinary_folder_and_a_record(architecture, tmp_path):
    from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

    config = ScratchConfig(
        **tiny(tmp_path, architecture=architecture, name="mine", seed=3, max_steps=4))
    found = train_encoder(config)
    assert found.folder == runs_dir() / "encoder/mine/seed3/checkpoint"
    assert not [p for p in found.folder.parent.iterdir() if p.name.startswith(".")]
    tokenizer, (lm, info) = (
        AutoTokenizer.from_pretrained(found.folder),
        AutoModelForMaskedLM.from_pretrained(found.folder, output_loading_info=True))
    assert not any(info.values())
    assert lm.config.model_type == architecture
    assert len(tokenizer) == lm.config.vocab_size
    _, info = AutoModel.from_pretrained(found.folder, output_loading_info=True)
    assert all("pooler" in key for key in info["missing_keys"])
    batch = tokenizer(
        ["the dog sees a red house .", "das Haus ."], padding=True, return_tensors="pt")
    encoder = load_encoder(str(found.folder), device="cpu")
    states = lm.eval().base_model(**batch).last_hidden_state
    assert torch.allclose(
        encoder(encoder.split([["the", "dog", "sees", "a", "red", "house", "."]]))[0], states[0, 1],
        atol=1e-5)
    assert encoder.split.limit == 32
    record, metrics = (
        json.loads((found.folder.parent / f"{name}.json").read_text())
        for name in ("config", "metrics"))
    assert record["parameters"] == json.loads(json.dumps(config.as_dict()))
    assert metrics == found.metrics
    assert record["wall_time_s"] > 0
    assert ({"mlm_accuracy", "mlm_loss", "tlm_accuracy", "tlm_loss", "subwords_seen",
             "training_seconds", "parameters", "unknown_share"}
            <= set(metrics))
    card = (found.folder / "README.md").read_text()
    assert "| en.txt | as its owner says |" in card
    assert "| en.txt - de.txt |" in card
    assert f"| architecture | {architecture} |" in card
    assert "non-commercial" not in card


def test_training_raises_accuracy_and_the_count_of_subwords_is_right(tmp_path):
    config = ScratchConfig(**tiny(tmp_path, epochs=6, log_every=1))
    found = train_encoder(config)
    corpus = S.gather(config.texts, config.parallel, share=config.apart)
    _, data, evaluation, counts = S.prepare(corpus, config)
    assert found.metrics["subwords_seen"] == 6 * data.lengths.sum()
    assert found.metrics["steps"] == sum(len(data.plan(e)) for e in range(6))
    before = S.masked_accuracy(
        MaskedLM(new_model(
            "bert", counts["vocabulary"], width=16, layers=2, heads=2, feed_forward=16,
            positions=32)).eval(),
        evaluation["mlm"])
    assert found.metrics["mlm_accuracy"] > before[0] + .1
    assert found.metrics["mlm_loss"] < before[1] - 1
    assert (list(found.fit.evaluations["step"])
            == np.cumsum([len(data.plan(e)) for e in range(6)]).tolist())
    figure, numbers = S.plot_training(found.fit)
    assert set(numbers["part"]) == {"training", "MLM", "TLM"} and len(figure.axes) == 2


@pytest.mark.parametrize(
    "changes, tasks", [(dict(parallel=""), {"mlm"}), (dict(texts=""), {"tlm"})])
def test_sentences_alone_or_pairs_alone_will_do(changes, tasks, tmp_path):
    found = train_encoder(ScratchConfig(**tiny(tmp_path, max_steps=2) | changes))
    assert {k.split("_")[0] for k in found.metrics if k.endswith("accuracy")} == tasks
    assert S.plot_training(found.fit)


def test_a_refused_run_leaves_the_encoder_that_is_there(tmp_path):
    settings = tiny(tmp_path, max_steps=2)
    folder = train_encoder(ScratchConfig(**settings)).folder
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ParameterError, match="width was 16 and is 32"):
        train_encoder(ScratchConfig(**settings | dict(width=32)))
    (tmp_path / "en.txt").write_text((tmp_path / "en.txt").read_text().replace("dog", "god"))
    with pytest.raises(ParameterError, match="text was "): train_encoder(ScratchConfig(**settings))
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}
    train_encoder(ScratchConfig(**settings | dict(width=32, fresh=True)))
    assert load_encoder(str(folder), device="cpu").width == 32


def test_an_encoder_beside_the_record_of_another_run_is_refused(tmp_path):
    found = train_encoder(ScratchConfig(**tiny(tmp_path, max_steps=2)))
    config = json.loads((found.folder / "config.json").read_text())
    assert found.metrics["run"] == config["s2dm_run"]
    record = found.folder.parent / "metrics.json"
    record.write_text(json.dumps(found.metrics | dict(run="0" * 16)))
    for name in ("real-s", str(found.folder)):
        with pytest.raises(DataError, match=f"run {found.metrics['run']}.* record of run 0000"):
            load_encoder(name, device="cpu")


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
import test_scratch as T
load = T.MaskedBatches.load
def slow(*args):
    time.sleep(0.01)
    return load(*args)
T.MaskedBatches.load = slow
T.torch.set_num_threads(1)
T.train_encoder(T.ScratchConfig(**T.tiny(Path(sys.argv[1]), **T.KILLED)))
"""
KILLED = dict(
    tokenizer="wordpiece", dropout=.1, epochs=3, evaluate_every=10, checkpoint_seconds=0,
    log_every=5)


def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path, monkeypatch):
    """And as long as it has not ended, there is no encoder. The vocabulary, too, is made anew by
    each process, and must be the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = train_encoder(ScratchConfig(**tiny(tmp_path, **KILLED)))
    torch.set_num_threads(threads)
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "killed"))
    def start():
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)], cwd=ROOT,
            stderr=subprocess.DEVNULL)
    process = start()
    while (process.poll() is None
           and not (tmp_path / "killed/encoder/real-s/seed0/fit.safetensors").exists()):
        time.sleep(0.002)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(MissingData, match="has not been trained yet"): find_encoder("real-s")
    assert start().wait(240) == 0
    ended = find_encoder("real-s").folder
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (ended / name).read_bytes() == (whole.folder / name).read_bytes(), name
    measured = json.loads((ended.parent / "metrics.json").read_text())
    assert ({k: v for k, v in measured.items() if "second" not in k}
            == {k: v for k, v in whole.metrics.items() if "second" not in k})


def test_an_encoder_that_is_half_written_is_none(tmp_path):
    folder = tmp_path / "checkpoint"
    for stop in (KeyboardInterrupt, OSError):
        with pytest.raises(stop), atomic_folder(folder) as new:
            (new / "config.json").touch()
            raise stop
        assert not folder.exists()
    with atomic_folder(folder) as new: (new / "good").touch()
    with pytest.raises(OSError), atomic_folder(folder) as new:
        (new / "bad").touch()
        raise OSError
    assert [p.name for p in folder.iterdir()] == ["good"]
    with atomic_folder(folder) as new: (new / "better").touch()
    assert [p.name for p in folder.iterdir()] == ["better"]
    assert [p.name for p in tmp_path.iterdir() if "checkpoint" in p.name] == ["checkpoint"]


@pytest.mark.parametrize("architecture", S.ARCHITECTURES)
def test_frozen_embeddings_are_what_the_seed_drew(architecture, tmp_path):
    """After a training with `freeze_embeddings` every number that enters the first layer is as a
    new model of the same seed has it; without it, the subwords' have moved. The layers learn."""
    moved = {}
    for frozen in (True, False):
        given = tiny(tmp_path, architecture=architecture, epochs=1, hold="none", fresh=True)
        config = ScratchConfig(**given | dict(freeze_embeddings=frozen))
        trained = S.train_encoder(config)
        after = load_file(trained.folder / "model.safetensors")
        rows = max(w.shape[0] for k, w in after.items() if k.endswith("word_embeddings.weight"))
        before = S._net(config, rows).model.state_dict()
        moved[frozen] = {k for k, w in after.items() if not torch.equal(w, before[k])}
    assert not any(".embeddings." in name for name in moved[True])
    assert any("word_embeddings" in name for name in moved[False])
    assert any("intermediate" in name for name in moved[True])


def papermill(parameters, tmp_path):
    command = (f"papermill nbs/02_encoder.ipynb {shlex.quote(str(tmp_path / 'run.ipynb'))} "
               f"{parameters}")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        command, shell=True, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_the_run_on_text_files_makes_the_encoder_a_table_and_a_figure(tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps({
        k: v for k, v in tiny(tmp_path, epochs=2).items() if k not in ("apart", "evaluate_every")}))
    out = papermill(f"-f {tmp_path / 'run.yaml'}", tmp_path)
    assert out.returncode == 0, out.stderr[-3000:]
    assert load_encoder("real-s", device="cpu").width == 16
    assert ({p.name for p in (tmp_path / "figures").iterdir()}
            == {f"encoder_real-s.{kind}" for kind in ("csv", "md", "tex")}
                | {f"encoder_real-s_curves.{kind}" for kind in ("csv", "png")})


def test_the_embedded_encoder_says_what_it_is():
    """The shipped files are at most 8 MB and hold no pickle; card, record and the committed table
    tell of one and the same training."""
    folder = ROOT / "s2dm/embedded"
    assert {p.name for p in folder.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "run.json", "tokenizer.json",
        "tokenizer_config.json"}
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 8e6
    about = json.loads((folder / "run.json").read_text())
    card = (folder / "README.md").read_text(encoding="utf-8")
    table = {
        name: column.item()
        for name, column in pd.read_csv(ROOT / "figures/small/encoder_small.csv").items()}
    parameters = about["parameters"]
    now = ScratchConfig(name="small").as_dict()
    # parameters that came after the training
    later = {name: value for name, value in now.items() if name not in parameters}
    expected = S.model_card(ScratchConfig(**parameters), table).partition("## What it read")[2]
    for name, value in later.items(): expected = expected.replace(f"| {name} | {value} |\n", "")
    assert card.partition("## What it read")[2] == expected and "free_case" in card
    assert parameters | later == now | {k: parameters[k] for k in ("texts", "parallel", "fresh")}
    assert len(about["git_revision"]) == 40
    assert (table["parameters"]
            == sum(t.numel() for t in load_file(folder / "model.safetensors").values()))
    assert about["wall_time_s"] > table["training_seconds"]
