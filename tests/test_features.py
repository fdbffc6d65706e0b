"""Windows, spans and answers: against the tokenizer's own pairs, the example's loops, properties of
any text, and the gold answers of real data.
"""
import csv
import json
import random
from dataclasses import dataclass
from functools import partial
from string import ascii_lowercase

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import BertTokenizer, PreTrainedTokenizerFast, XLMTokenizer

from conftest import ROOT
from s2dm.core import Config, DataError, ParameterError, contains
from s2dm.encoder import length_batches, mbert_tokenizer
from s2dm.features import (
    LONGEST, Answer, Spans, SpanTokenizer, TrainingBatches, Windows, best_spans, choose_answers,
    log_total, pad_windows, recovery)
from s2dm.fit import FitConfig, fit
from s2dm.reading import READING, load_reading
from s2dm.subwords import tighten
from s2dm.systems import System
from s2dm.toy import SYMBOLS, toy_bert, toy_tokenizer

TEXTS = [
    "Zürich liegt am See. Wo?", "ที่ประเทศไทย เป็นภาษา", "中国人民，银行在北京。", "हिन्दी में लिखा है।",
    "Tiê\u0301ng Viê\u0323t co\u0301 da\u0302\u0301u", "한국어의 조사는, 뒤에",
    'Er sagte: "Nein", und ging… (1.234,5) – so.', "\u200bnull\u00adbreit\u200b x",
    "  a \n\n b\u00a0c\u3000d  ", "ﬁne ½ Ⅷ ㎞", "‘don’t’ U.S. x.y. 3,000", "'\".,\".",
    "😀👍🏽 flag 🇩🇪", "x" * 150]


wordpiece = partial(toy_tokenizer, ["liegt", "am", "##ch", "ที่"])


def xlm(folder, **settings):
    "XLM's own slow tokenizer: every character of ours by itself, and a few merges."
    special = ["<s>", "</s>", "<pad>", "<unk>", *(f"<special{i}>" for i in range(10))]
    merges = ["u n", "d o", "a m</w>", "ท ี</w>", "ไ ท", "中 国"]
    pieces = dict.fromkeys(
        [*special, *SYMBOLS, *(c + "</w>" for c in SYMBOLS), *(m.replace(" ", "") for m in merges)])
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    (folder / "merges.txt").write_text("".join(f"{m} 1\n" for m in merges))
    return XLMTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), **settings)


def sentencepiece():
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.train_from_iterator(TEXTS * 3, trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False))
    from tokenizers.processors import TemplateProcessing
    inner.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>")


def bytelevel():
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")


KINDS = ("cased", "uncased", "xlm", "xlm-lower", "sentencepiece", "bytelevel")


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xlm")
    made = dict(cased=wordpiece(), uncased=wordpiece(lower=True))
    made["xlm"] = xlm(folder, do_lowercase_and_remove_accent=False)
    return made | {
        "sentencepiece": sentencepiece(), "bytelevel": bytelevel(), "xlm-lower": xlm(folder)}


@pytest.fixture(scope="session")
def splits(tokenizers): return {name: SpanTokenizer(t) for name, t in tokenizers.items()}


def texts_of(s, text): return [text[a:b] for a, b in zip(s.start, s.end)]


def check_spans(text, s):
    assert len(s.ids) == len(s.start) == len(s.end)
    assert s.ids.dtype == s.start.dtype == s.end.dtype == np.int32
    assert (np.diff(s.start) >= 0).all()
    assert (np.diff(s.end) >= 0).all()
    assert (s.start <= s.end).all()
    assert not len(s.ids) or (s.start[0] >= 0 and s.end[-1] <= len(text))
    assert all(t == t.strip() for t in texts_of(s, text))


# Subwords and their characters

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_every_visible_character_belongs_to_a_subword(splits, kind, text):
    s, = splits[kind]([text])
    check_spans(text, s)
    covered = np.zeros(len(text), bool)
    for a, b in zip(s.start, s.end): covered[a:b] = True
    lost = {c for c, there in zip(text, covered) if not there and not c.isspace()}
    assert lost <= set("\u200b\u00ad\u200d\ufe0f"), lost


def test_spans_of_words_in_every_script(splits):
    "What each kind of tokenizer makes of a word, in characters of the text."
    assert (texts_of(splits["xlm"](["ที่ไทย 中国人"])[0], "ที่ไทย 中国人")
            == ["ที", "่", "ไท", "ย", "中", "国", "人"])
    assert (texts_of(splits["cased"](["ที่ไทย 中国人"])[0], "ที่ไทย 中国人")
            == ["ที่", "ไ", "ท", "ย", "中", "国", "人"])
    assert texts_of(splits["uncased"](["में ê\u0301x"])[0], "में ê\u0301x") == ["में", "ê\u0301", "x"]
    assert (texts_of(splits["xlm-lower"](["me\u0301n É"])[0], "me\u0301n É")
            == ["m", "e\u0301", "n", "É"])
    assert texts_of(splits["xlm"](['(“so”).'])[0], '(“so”).') == ["(", "“", "s", "o", "”", ")", "."]
    # Moses swaps the last two
    assert texts_of(splits["xlm"](['"so",'])[0], '"so",') == ['"', "s", "o", '"', ","]
    assert texts_of(splits["xlm"](["x…y"])[0], "x…y") == ["x", "…", "…", "…", "y"]
    assert texts_of(splits["bytelevel"](["a é"])[0], "a é")[-2:] == ["é", "é"] # two bytes
    assert texts_of(splits["sentencepiece"](["a ½"])[0], "a ½")[-1] == "½"


def test_subwords_without_characters_stand_at_the_next_word():
    assert [x.tolist() for x in tighten("  ", [0, 1], [1, 2])] == [[2, 2], [2, 2]]
    # (0, 0) is how some tokenizers say nowhere
    assert [x.tolist() for x in tighten("a b", [0, 0, 2], [1, 0, 3])] == [[0, 0, 2], [1, 1, 3]]
    assert [x.tolist() for x in tighten("", [], [])] == [[], []]
    assert [x.tolist() for x in tighten("e\u0301\u0323 x", [0, 4], [1, 5])] == [[0, 4], [3, 5]]
    # the mark is a subword of its own
    assert [x.tolist() for x in tighten("e\u0301x", [0, 1, 2], [1, 2, 3])] == [[0, 1, 2], [1, 2, 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_tokenizer(tokenizers, splits, kind):
    """Word by word or at once: the same subwords. (Moses looks across words only where punctuation
    meets.)"""
    for text in (
            "Zürich liegt am See. Wo?", "ที่ประเทศไทย เป็นภาษา", "中国人民，银行在北京。",
            "한국어의 조사는 뒤에", "ﬁne ½", "undo am unam"):
        assert (splits[kind]([text])[0].ids.tolist()
                == tokenizers[kind].encode(text, add_special_tokens=False))


ANY = st.text(
    st.one_of(
        st.sampled_from(SYMBOLS + "    \n\u0301\u0e34\u093f\u200b"),
        st.characters(exclude_categories=["Cs"])),
    max_size=60)


@settings(max_examples=150)
@given(st.sampled_from(KINDS), ANY)
def test_any_text_has_orderly_spans(splits, kind, text): check_spans(text, splits[kind]([text])[0])


def test_special_tokens_and_types(tokenizers, splits):
    assert [x.tolist() for x in splits["cased"].specials] == [[2], [3], [3]]
    assert splits["cased"].types == [0, 0, 0, 1, 1]
    assert [x.tolist() for x in splits["xlm"].specials] == [[0], [1], [1]]
    assert splits["xlm"].types is None
    assert [x.tolist() for x in splits["sentencepiece"].specials] == [[0], [2, 2], [2]]
    assert [x.tolist() for x in splits["bytelevel"].specials] == [[], [], []]
    blind = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4})
    assert SpanTokenizer(blind).types == [0, 0, 0, 1, 1] # `a` is unknown, which does


def test_a_tokenizer_that_takes_no_pairs():
    inner = Tokenizer(models.WordLevel({"b": 0}, unk_token="b"))
    inner.normalizer = normalizers.Replace("a", "")
    with pytest.raises(ParameterError, match="does not encode a question and a context as a pair"):
        SpanTokenizer(PreTrainedTokenizerFast(tokenizer_object=inner))


# Windows

def corpus(n, seed=0, longest=60):
    rng = random.Random(seed)
    def text(words):
        return " ".join(
            "".join(rng.choice(SYMBOLS) for _ in range(rng.randint(1, 7))) for _ in range(words))
    contexts = [text(rng.randint(1, longest)) for _ in range(n // 2)]
    rows = dict(question=[], context=[], answers=[])
    for i in range(n):
        context = rng.choice(contexts)
        a = rng.randrange(len(context))
        b = min(len(context), a + rng.randint(1, 25))
        rows["question"].append(text(rng.randint(1, 6)))
        rows["context"].append(context)
        rows["answers"].append(
            dict(text=[context[a:b], "second"], answer_start=[a, 0])
            if i % 7
            else dict(text=[], answer_start=[]))
    return rows


@pytest.mark.parametrize("kind", ["cased", "uncased", "sentencepiece", "bytelevel"])
@pytest.mark.parametrize("sizes", [(384, 128), (40, 5), (64, 0)])
def test_windows_are_those_of_the_fast_tokenizers_own_pairs(tokenizers, splits, kind, sizes):
    "Oracle: one call of the tokenizer with truncation, stride and overflow."
    rows, tokenizer = corpus(40), tokenizers[kind]
    # the tokenizer does not cut questions
    keep = [i for i, q in enumerate(splits[kind](rows["question"])) if len(q.ids) <= 20]
    rows = {name: [column[i] for i in keep] for name, column in rows.items()}
    windows = Windows(splits[kind], rows, *sizes, query=20 if sizes[0] < 384 else 64)
    oracle = tokenizer(
        rows["question"], rows["context"], truncation="only_second", max_length=sizes[0],
        stride=sizes[1], return_overflowing_tokens=True, return_offsets_mapping=True)
    assert oracle["overflow_to_sample_mapping"] == windows.row.tolist()
    assert [len(x) for x in oracle["input_ids"]] == windows.lengths.tolist()
    batch = pad_windows(windows, range(len(windows)))
    for w, ids in enumerate(oracle["input_ids"]):
        n = len(ids)
        assert batch["input_ids"][w, :n].tolist() == ids
        assert (batch["input_ids"][w, n:] == windows.pad).all()
        assert batch["attention_mask"][w].sum() == n == batch["attention_mask"][w, :n].sum()
        assert batch["context_mask"][w, :n].tolist() == [s == 1 for s in oracle.sequence_ids(w)]
        assert not batch["context_mask"][w, n:].any()
        if "token_type_ids" in oracle:
            assert batch["token_type_ids"][w, :n].tolist() == oracle["token_type_ids"][w]
            assert not batch["token_type_ids"][w, n:].any()
        inside = np.flatnonzero(batch["context_mask"][w])
        first, last = windows.characters(np.full(len(inside), w), inside, inside)
        text = windows.context(windows.row[w])
        offsets = zip(oracle["offset_mapping"][w], oracle.sequence_ids(w))
        offsets = [offset for offset, sequence in offsets if sequence == 1]
        for (a, b), x, y in zip(offsets, first, last):
            assert (text[a:b].strip() == text[x:y]
                    or (text[x:y].startswith(text[a:b].strip()) and not any(
                            c.isalnum() for c in text[b:y])))
    assert ("token_type_ids" in batch) == (windows.types is not None)


@settings(max_examples=120)
@given(
    st.sampled_from(KINDS), st.lists(ANY, min_size=1, max_size=4),
    st.lists(
        ANY.filter(lambda t: any(c.isalnum() and c.isascii() for c in t)), min_size=1, max_size=4),
    st.integers(1, 9), st.integers(0, 12), st.integers(1, 30))
def test_windows_of_any_text(splits, kind, questions, contexts, query, stride, extra):
    """Every subword of the context is in a window, neighbours share exactly `stride`, none is
    longer than allowed, none is superfluous."""
    questions, contexts = zip(*[(q, c) for q in questions for c in contexts])
    split = splits[kind]
    most = query + stride + extra + sum(map(len, split.specials))
    windows = Windows(split, dict(question=questions, context=contexts), most, stride, query)
    assert windows.lengths.max() <= most and not windows.start.any() and not windows.end.any()
    for row, (q, c) in enumerate(zip(questions, contexts)):
        mine, (asked,), (there,) = np.flatnonzero(windows.row == row), split([q]), split([c])
        assert windows.first[mine[0]] == 0
        assert windows.last[mine[-1]] == len(there.ids)
        assert (windows.last[mine[:-1]] < len(there.ids)).all()
        assert (windows.last[mine[:-1]] - windows.first[mine[1:]] == stride).all()
        assert (windows.lengths[mine[:-1]] == windows.lengths[mine[0]]).all()
        for w in mine:
            got = windows.subwords(w)
            assert got[0].tolist() == asked.ids[:query].tolist()
            assert got[1].tolist() == there.ids[windows.first[w]:windows.last[w]].tolist()
            at = np.arange(windows.begin[w], windows.begin[w] + len(got[1]))
            assert (
                np.stack(windows.characters(np.full(len(at), w), at, at))
                == np.stack([there.start, there.end])[:, windows.first[w]:windows.last[w]]).all()


def example_labels(offsets, sequence, start, end):
    "The example's search for a label: from both ends of the context towards the answer."
    inside = [k for k, s in enumerate(sequence) if s]
    left, right = inside[0], inside[-1]
    if offsets[left][0] > start or offsets[right][1] < end: return 0, 0
    while left < len(offsets) and sequence[left] and offsets[left][0] <= start: left += 1
    while offsets[right][1] >= end: right -= 1
    return left - 1, right + 1


def test_labels_are_those_of_the_example(splits):
    "Wherever subwords are disjoint and the answer begins and ends with one of their characters."
    rows, checked, cut = corpus(200), 0, 0
    windows = Windows(splits["cased"], rows, 60, 20, 20)
    for w in range(len(windows)):
        answer = rows["answers"][windows.row[w]]
        if not answer["text"] or answer["text"][0] != answer["text"][0].strip():
            assert answer["text"] or not windows.start[w]
            continue
        at = np.arange(windows.begin[w], windows.begin[w] + windows.last[w] - windows.first[w])
        first, last = windows.characters(np.full(len(at), w), at, at)
        context = [*zip(first.tolist(), last.tolist())]
        offsets = [(0, 0)] * windows.begin[w] + context + [(0, 0)]
        inside = [windows.begin[w] <= k < len(offsets) - 1 for k in range(len(offsets))]
        start = answer["answer_start"][0]
        end = start + len(answer["text"][0])
        expected = example_labels(offsets, inside, start, end)
        assert (windows.start[w], windows.end[w]) == expected
        checked, cut = checked + 1, cut + (windows.start[w] == 0)
    assert cut > 100 and checked - cut > 100


@settings(max_examples=120)
@given(
    st.sampled_from(KINDS), ANY.filter(lambda t: any(c.isalnum() and c.isascii() for c in t)),
    st.data())
def test_a_label_is_the_smallest_span_that_covers_the_answer(splits, kind, context, data):
    a = data.draw(st.integers(0, len(context) - 1))
    b = data.draw(st.integers(a + 1, len(context)))
    s, = splits[kind]([context])
    windows = Windows(
        splits[kind],
        dict(
            question=["?"], context=[context],
            answers=[dict(text=[context[a:b]], answer_start=[a])]),
        384)
    touched = [k for k in range(len(s.ids)) if s.start[k] < b and s.end[k] > a]
    assert (windows.start[0], windows.end[0]) == (
        (windows.begin[0] + touched[0], windows.begin[0] + touched[-1]) if touched else (0, 0))
    assert recovery(windows)["questions"] == 1


def test_an_answer_up_to_the_stride_is_whole_in_some_window(splits):
    context = " ".join(random.Random(0).choice(ascii_lowercase) for _ in range(300))
    rows = [
        dict(text=[context[2 * i:2 * i + 2 * n - 1]], answer_start=[2 * i])
        for n in (1, 5, 12)
        for i in range(300 - n)]
    windows = Windows(
        splits["cased"],
        dict(question=["a"] * len(rows), context=[context] * len(rows), answers=rows), 40, 12, 4)
    assert recovery(windows) == dict(questions=len(rows), exact=1.0, covered=1.0)
    long = Windows(
        splits["cased"],
        dict(
            question=["a"], context=[context],
            answers=[dict(text=[context[:99]], answer_start=[0])]),
        40, 12, 4)
    assert recovery(long)["exact"] == 0 and not long.start.any()


def test_questions_are_cut_and_may_be_empty(splits):
    windows = Windows(
        splits["cased"], dict(question=["a b c d e f", " "], context=["x y", "x y"]), 20, 2,
        query=4)
    batch = pad_windows(windows, [0, 1])
    assert windows.lengths.tolist() == [1 + 4 + 1 + 2 + 1, 1 + 0 + 1 + 2 + 1]
    assert batch["context_mask"].sum(1).tolist() == [2, 2]


def test_a_text_is_kept_once(splits):
    rows = dict(question=["a b"] * 1000, context=["x y z"] * 999 + ["z"])
    windows = Windows(splits["cased"], rows)
    assert len(windows) == 1000
    assert len(windows._contexts.ids) == 4
    assert len(windows._questions.ids) == 2
    lean = [x for x in vars(windows).values() if isinstance(x, np.ndarray)]
    assert sum(x.nbytes for x in lean) < 60 * 1000
    assert all(
        x.dtype == np.int32
        for x in (
                windows.row, windows.first, windows.last, windows.start, windows.end, windows.gold))


@pytest.mark.parametrize("sizes, says", [
    (dict(max_length=64), "leave -3 subwords for the context"),
    (dict(stride=-1), "stride=-1"),
    (dict(query=0), "query=0"),
    (dict(max_length=100, stride=33), "leave 33 subwords"),
    (dict(query=400), "leave -19")])
def test_sizes_that_leave_no_room(splits, sizes, says):
    with pytest.raises(ParameterError, match=says):
        Windows(splits["cased"], dict(question=["a"], context=["b"]), **sizes)


def test_nothing_to_read(splits):
    with pytest.raises(DataError, match="no questions"):
        Windows(splits["cased"], dict(question=[], context=[]))
    says = r"context 0, '\\u200b \\n', has no subwords for BertTokenizer"
    with pytest.raises(DataError, match=says):
        Windows(splits["cased"], dict(question=["a", "b"], context=["\u200b \n"] * 2))


def test_a_context_without_subwords_has_no_windows_and_the_others_have_theirs(splits):
    contexts = ["am See liegt es"] * 2000
    whole = Windows(splits["cased"], dict(question=["wo"] * 2000, context=contexts))
    contexts[1234] = "\u200b"
    with pytest.warns(UserWarning, match="^context 1234, .* it gets no answer$"):
        some = Windows(splits["cased"], dict(question=["wo"] * 2000, context=contexts))
    assert some.row.tolist() == [row for row in whole.row if row != 1234]
    assert some.lengths.tolist() == whole.lengths.tolist()[:-1]
    scores = torch.zeros(len(some), int(some.lengths.max()))
    positions = np.arange(len(some))
    answers = choose_answers(some, positions, best_spans(scores, scores, some, positions))
    assert [i for i, best in enumerate(answers) if not best] == [1234]


def test_the_bar_counts_texts(splits, capsys, monkeypatch):
    import s2dm.subwords
    monkeypatch.setattr(
        s2dm.subwords, "tqdm",
        lambda real=s2dm.subwords.tqdm, **how: real(**(how | dict(delay=0, mininterval=0))))
    splits["cased"](["a"] * 1200, progress=True)
    assert "splitting: 100%" in capsys.readouterr().err
    assert len(splits["cased"](["a"] * 1200)) == 1200
    assert "splitting" not in capsys.readouterr().err


# Training batches

def test_batches_of_an_epoch_are_a_partition_that_depends_on_seed_and_epoch(splits):
    windows = Windows(splits["cased"], corpus(300))
    data = TrainingBatches(windows, size=8, seed=5, pool=4)
    plan = data.plan(0)
    assert sorted(i for b in plan for i in b) == list(range(len(windows)))
    assert sorted(map(len, plan))[1:] == [8] * (len(plan) - 1)
    assert plan == TrainingBatches(windows, size=8, seed=5, pool=4).plan(0)
    assert plan != data.plan(1)
    assert plan != TrainingBatches(windows, 8, 6, 4).plan(0)
    def waste(d):
        return np.mean(
            [1 - windows.lengths[b].mean() / windows.lengths[b].max() for b in d.plan(0)])
    assert waste(data) < .6 * waste(TrainingBatches(windows, 8, 5, pool=1))
    lengths = [windows.lengths[b].mean() for b in plan]
    assert abs(np.corrcoef(lengths, range(len(lengths)))[0, 1]) < .4 # no drift from long to short
    batch = data.load(plan[0], torch.Generator())
    assert batch["input_ids"].shape == (8, windows.lengths[plan[0]].max())
    assert batch["start_positions"].tolist() == windows.start[plan[0]].tolist()
    with pytest.raises(ParameterError, match="size=0"): TrainingBatches(windows, 0)


class Reader(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.encoder = toy_bert(size, feed_forward=32, positions=512)
        self.head = nn.Linear(16, 2)

    def scores(self, batch):
        return self.head(
            self.encoder(**{k: batch[k] for k in (
                "input_ids", "attention_mask", "token_type_ids")}).last_hidden_state).unbind(-1)

    def forward(self, batch):
        scores = [s.masked_fill(batch["attention_mask"] == 0, -1e4) for s in self.scores(batch)]
        return {
            side: nn.functional.cross_entropy(s, batch[f"{side}_positions"])
            for side, s in zip(("start", "end"), scores)}


def test_the_loop_trains_on_them(tmp_path, tokenizers, splits):
    "From texts to answers: a tiny reader learns that the answer is the word behind `z`."
    @dataclass(frozen=True, init=False)
    class TinyConfig(Config):
        system: System = contains(System)
        training: FitConfig = contains(FitConfig)
    rng, rows = random.Random(0), dict(question=[], context=[], answers=[])
    for _ in range(128):
        words = [rng.choice(ascii_lowercase[:20]) for _ in range(rng.randint(4, 9))]
        at = rng.randrange(len(words) - 1)
        words[at] = "z"
        for name, value in (("question", "wo?"), ("context", " ".join(words)), ("answers", dict(
                text=[words[at + 1]], answer_start=[2 * at + 2]))):
            rows[name].append(value)
    windows = Windows(splits["cased"], rows)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Reader(len(tokenizers["cased"]))
    fit(
        model, TrainingBatches(windows, 16),
        TinyConfig(epochs=40, learning_rate=1e-2, precision="float32"), tmp_path / "run")
    order = [i for b in length_batches(windows.lengths, 512) for i in b]
    model.eval()
    with torch.no_grad():
        parts = [
            best_spans(*model.scores(pad_windows(windows, b)), windows, b)
            for b in length_batches(windows.lengths, 512)]
    answers = choose_answers(windows, order, Spans(*map(np.concatenate, zip(*parts))))
    assert np.mean(
        [a[0].text == gold["text"][0] for a, gold in zip(answers, rows["answers"]) if a]) > .9
    assert all(answers)


# The choice of a span

def example_choice(windows, start, end, n_best=20, longest=500):
    "The example's loops, with its sort made stable: the best spans of every question."
    chosen = []
    for row in range(len(windows.gold)):
        candidates = []
        for w in np.flatnonzero(windows.row == row):
            n = windows.lengths[w]
            context = range(windows.begin[w], windows.begin[w] + windows.last[w] - windows.first[w])
            starts, ends = (
                [int(k) for k in np.argsort(x[w, :n], kind="stable")[-1:-n_best - 1:-1]]
                for x in (start, end))
            for i in starts:
                for j in ends:
                    if i not in context or j not in context: continue
                    if j < i: continue
                    first, last = windows.characters([w], np.array([i]), np.array([j]))
                    if last[0] - first[0] > longest: continue
                    candidates.append((float(start[w, i] + end[w, j]), int(first[0]), int(last[0])))
        chosen.append(sorted(candidates, key=lambda c: c[0], reverse=True)[:n_best])
    return chosen


def once(candidates): # the same span from two windows is one answer
    best = {}
    for s, a, b in candidates: best.setdefault((a, b), s)
    return [(a, b, s) for (a, b), s in best.items()]


def peaked(rng, shape):
    return np.where(rng.random(shape) < .02, 9, rng.normal(size=shape)).astype(np.float32)


SCORES = dict(
    continuous=lambda rng, shape: rng.normal(size=shape).astype(np.float32),
    ties=lambda rng, shape: rng.integers(-2, 3, shape).astype(np.float32),
    zeros=lambda rng, shape: (rng.integers(-1, 2, shape) * 0.0).astype(np.float32), # -0.0 and 0.0
    huge=lambda rng, shape: (rng.normal(size=shape) * 1e30).astype(np.float32),
    peaked=peaked)


@pytest.mark.parametrize("kind", ["cased", "bytelevel", "xlm"])
@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("n_best, longest", [(20, 60), (20, 12), (3, 4), (1, 1)])
def test_spans_are_those_of_the_examples_loops(splits, kind, scores, n_best, longest):
    windows = Windows(splits[kind], corpus(24, longest=40), 70, 20, 20)
    assert len(windows) > 30
    rng, batch = np.random.default_rng(1), pad_windows(windows, range(len(windows)))
    start, end = (SCORES[scores](rng, batch["input_ids"].shape) for _ in range(2))
    expected = example_choice(windows, start, end, n_best, longest)
    spans = best_spans(
        torch.from_numpy(start), torch.from_numpy(end), windows, range(len(windows)), n_best,
        longest)
    got = choose_answers(windows, range(len(windows)), spans, top_k=n_best)
    for row, (answers, candidates) in enumerate(zip(got, expected)):
        assert [(a.start, a.end, a.score) for a in answers] == once(candidates)
        assert all(a.text == windows.context(row)[a.start:a.end] for a in answers)
    top = choose_answers(windows, range(len(windows)), spans)
    assert [a[:1] for a in got] == top
    if (n_best, scores) == (20, "continuous"): assert all(got)
    # windows that say the answer is not in them
    if (n_best, scores) == (1, "continuous"): assert not all(got)


def test_batches_padding_order_and_precision_do_not_matter(splits):
    windows = Windows(splits["cased"], corpus(40), 70, 20, 20)
    whole, g = pad_windows(windows, range(len(windows))), torch.Generator().manual_seed(0)
    # bfloat16 can hold them
    start, end = (
        torch.randint(-40, 40, whole["input_ids"].shape, generator=g) / 8 for _ in range(2))
    straight = choose_answers(
        windows, range(len(windows)), best_spans(start, end, windows, range(len(windows))), top_k=5)
    order, parts = [], []
    for b in length_batches(windows.lengths, 300):
        batch = pad_windows(windows, b)
        width = batch["input_ids"].shape[1]
        parts.append(
            best_spans(start[b, :width].to(torch.bfloat16), end[b, :width].double(), windows, b))
        order += b
    assert (choose_answers(windows, order, Spans(*map(np.concatenate, zip(*parts))), top_k=5)
            == straight)


def test_scores_masked_by_the_reader_leave_the_context_alone(splits):
    "A reader that sets everything but the context to -inf always has an answer."
    windows = Windows(splits["cased"], corpus(30), 70, 20, 20)
    batch, g = pad_windows(windows, range(len(windows))), torch.Generator().manual_seed(0)
    start, end = (
        torch.randn(batch["input_ids"].shape, generator=g).masked_fill(
            ~batch["context_mask"], -torch.inf)
        for _ in range(2))
    assert all(choose_answers(windows, range(len(windows)), best_spans(start, end, windows, range(
        len(windows)))))


def test_a_question_without_any_span_has_no_answer(splits):
    windows = Windows(splits["cased"], dict(question=["a", "b"], context=["x y z", "x y"]))
    batch = pad_windows(windows, [0, 1])
    start = torch.zeros(batch["input_ids"].shape)
    start[0, 0] = 9
    answers = choose_answers(windows, [0, 1], best_spans(start, start, windows, [0, 1], n_best=1))
    assert answers == [[], []]
    spans = best_spans(start, start, windows, [0, 1], n_best=9)
    assert choose_answers(windows, [0, 1], spans, top_k=3)[1][0] == Answer("y", 2, 3, 0.0)


def test_short_windows_have_as_many_columns_as_long_ones(splits):
    # [CLS] a [SEP] x y [SEP]
    windows = Windows(splits["cased"], dict(question=["a"] * 2, context=["x y", "x"]))
    start = torch.tensor([[0., 0, 0, 1, 2, 0], [0, 0, 0, 0, 0, 9]])
    end = torch.tensor([[0., 0, 0, 5, 6, 0], [0, 0, 0, 1, 1, 9]])
    spans = best_spans(start, end, windows, [0, 1])
    assert spans.score.shape == (2, 20)
    assert spans.score[0, :4].tolist() == [8, 7, 6, -torch.inf]
    assert spans.score[1, :2].tolist() == [1, -torch.inf]


def test_what_cannot_be_chosen_from(splits):
    windows = Windows(splits["cased"], dict(question=["a"], context=["x y z"]))
    batch = pad_windows(windows, [0])
    scores = torch.zeros(batch["input_ids"].shape)
    with pytest.raises(DataError, match="not a number"):
        best_spans(scores, scores * torch.nan, windows, [0])
    for order in ([], [0, 0], [1]):
        with pytest.raises(ParameterError, match="1 windows; expected each window exactly once"):
            choose_answers(windows, order, best_spans(scores, scores, windows, [0]))


# Real data

TYDIQA = dict(en=.99, ar=.99, bn=.96, fi=.97, id=.99, ko=.86, ru=.99, sw=.98, te=.8)
FLOORS = {("xquad", language): .997 for language in READING["xquad"][0]}
FLOORS |= {("bipar", "en"): .99, ("bipar", "zh"): 1}
FLOORS |= {("tydiqa", language): floor for language, floor in TYDIQA.items()}


@pytest.mark.slow
def test_real_gold_answers_come_back_from_mberts_subwords(real):
    "Vietnamese and Thai as well as English; and the table in figures/ says the same."
    split = SpanTokenizer(mbert_tokenizer())
    with open(ROOT / "figures/features_recovery.csv", encoding="utf-8") as f:
        table = {(row["corpus"], row["language"]): row for row in csv.DictReader(f)}
    assert set(table) == set(FLOORS)
    for (corpus_name, language), floor in FLOORS.items():
        found = recovery(Windows(split, load_reading(corpus_name, language), progress=False))
        row = table[corpus_name, language]
        assert found["exact"] >= floor and found["covered"] >= .997, (corpus_name, language, found)
        assert row["questions"] == str(found["questions"])
        assert float(row["mBERT: exact (%)"]) == round(100 * found["exact"], 2)
        assert float(row["mBERT: covered (%)"]) == round(100 * found["covered"], 2)


@pytest.mark.parametrize("language", ["en", "th", "zh"])
def test_real_windows_are_those_of_mberts_own_pairs(real, language):
    tokenizer = mbert_tokenizer()
    questions = load_reading("xquad", language).select(range(0, 1190, 7))
    # the tokenizer does not cut questions
    questions = questions.filter(
        lambda q: len(tokenizer.tokenize(q)) <= 64, input_columns="question")
    windows = Windows(SpanTokenizer(tokenizer), questions)
    oracle = tokenizer(
        questions["question"][:], questions["context"][:], truncation="only_second", max_length=384,
        stride=128, return_overflowing_tokens=True, padding=True)
    batch = pad_windows(windows, range(len(windows)))
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert batch[name].tolist() == oracle[name], name


@pytest.mark.parametrize("language", ["vi", "th", "zh", "hi"])
def test_real_gold_answers_come_back_from_xlms_slow_tokenizer(real, tmp_path, language, segmenters):
    """With a vocabulary of single characters every answer is a span of subwords, unless Moses or
    the cutting of words goes wrong."""
    folder, questions = tmp_path, load_reading("xquad", language).select(range(0, 1190, 9))
    alphabet = sorted({c for text in questions["context"][:] for c in text if not c.isspace()})
    special = ["<s>", "</s>", "<pad>", "<unk>", *(f"<special{i}>" for i in range(10))]
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(
        [*special, *alphabet, *(c + "</w>" for c in alphabet)])}))
    (folder / "merges.txt").write_text("")
    for lower in (False, True):
        tokenizer = XLMTokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt"),
            do_lowercase_and_remove_accent=lower)
        found = recovery(
            Windows(SpanTokenizer(tokenizer), questions, max_length=2000, progress=False))
        assert found["exact"] >= .99 and found["covered"] == 1, found


@pytest.mark.parametrize("corpus", ["xquad", "tydiqa"])
def test_the_longest_answer_reaches_nearly_all_gold_answers_of_every_language(real, corpus):
    "All gold answers, and those of the first annotator alone."
    for language in READING[corpus][0]:
        answers = load_reading(corpus, language)["answers"][:]
        every = [len(text) for row in answers for text in row["text"]]
        first = [len(row["text"][0]) for row in answers]
        for lengths in (every, first):
            assert np.mean(np.array(lengths) <= LONGEST) >= .995, language


def test_an_answer_of_the_longest_size_is_found_and_a_longer_one_is_not(splits):
    "Thirty words are no limit, 500 characters are, wherever the context stands in its window."
    windows = Windows(
        splits["cased"], dict(question=["wo?"], context=["ab " * 400]), max_length=300, stride=50,
        query=8)
    for w in range(len(windows)):
        n, begin = windows.lengths[w], windows.begin[w]
        start = torch.full((1, n), -9.)
        end = start.clone()
        subwords = 2 * 167 # of 167 words, "ab ab ... ab": 3 * 167 - 1 = 500 characters
        if begin + subwords + 2 >= n: continue
        start[0, begin] = 9
        end[0, begin + subwords - 1] = 9
        end[0, begin + subwords + 1] = 10
        spans = best_spans(start, end, windows, [w])
        first, last = windows.characters([w], spans.start[0, :1], spans.end[0, :1])
        assert (last - first, spans.score[0, 0]) == (LONGEST, 18)


def test_probabilities_are_a_softmax_over_all_distinct_spans_and_no_answer(splits):
    """Against dictionaries, in any order of reading: a span that two windows see counts once, with
    its higher score, and of a question's windows the lowest score of no answer."""
    windows = Windows(splits["cased"], corpus(60), 40, 12, 10)
    g = torch.Generator().manual_seed(0)
    shape = pad_windows(windows, range(len(windows)))["input_ids"].shape
    start, end = (2 * torch.randn(shape, generator=g) for _ in range(2))
    order = np.random.default_rng(0).permutation(len(windows)).tolist()
    spans = best_spans(start[order], end[order], windows, order, n_best=8)
    none = (start + end)[order, 0].numpy()
    total = log_total(windows, order, spans, none, temperature=1.7)
    scores = [{} for _ in windows.gold]
    lowest = [np.inf] * len(windows.gold)
    shared = 0
    for k, window in enumerate(order):
        row = windows.row[window]
        lowest[row] = min(lowest[row], none[k])
        for i, j, score in zip(*(x[k] for x in spans)):
            if score == -np.inf: continue
            first, last = windows.characters(*np.array([[window], [i], [j]]))
            place = first.item(), last.item()
            shared += place in scores[row]
            scores[row][place] = max(score, scores[row].get(place, -np.inf))
    assert shared > 5 and max(np.bincount(windows.row)) > 1
    for row, known in enumerate(scores):
        mass = sum(np.exp(s / 1.7) for s in [*known.values(), lowest[row]])
        assert total[row] == pytest.approx(np.log(mass), abs=1e-5)
