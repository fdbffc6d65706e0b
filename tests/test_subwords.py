"Subwords and words: any tokenizer, words in their text, languages and their packages."
import json
import sys
from functools import cache

import numpy as np
import pytest
from test_features import wordpiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, XLMTokenizer

from s2dm.core import DataError, MissingData, ParameterError
from s2dm.encoder import WordTokenizer
from s2dm.features import SpanTokenizer, Windows
from s2dm.sources import fetch
from s2dm.subwords import (
    NOWHERE, Subwords, TextSplitter, align_words, alignment_table, as_sentence, first_subwords,
    tighten, word_spans, words_of_all, words_of_subwords)
from s2dm.treebanks import COLLECTIONS, load_sentences, read_conllu


# words in their text

@pytest.mark.parametrize("text, forms, parts", [
    ("Il va au marché.", ["Il", "va", "à", "le", "marché", "."],
     ["Il", "va", "au", "au", "marché", "."]),
    ("Dámelo ya", ["da", "me", "lo", "ya"], ["Dámelo", "Dámelo", "Dámelo", "ya"]),
    ("去了北京。", ["去", "了", "北京", "。"], ["去", "了", "北京", "。"]),
    ("Vado nel", ["Vado", "in", "il"], ["Vado", "nel", "nel"]),
    ("a a", ["a", "a"], ["a", "a"]),
    ("x  y", ["x", "y"], ["x", "y"])])
def test_words_find_their_characters(text, forms, parts):
    assert [text[a:b] for a, b in align_words(text, forms)] == parts


def test_words_of_another_text_are_refused():
    for text, forms in (
            ("one two", ["one", "three", "two"]), ("one two", ["one"]), ("one", ["one", "two"]),
            ("", ["a"]), ("a", [])):
        with pytest.raises(DataError, match="text: "): align_words(text, forms)


@pytest.mark.parametrize("text, forms, says", [
    ("Le caf\u00e9 noir", ["Le", "cafe\u0301", "noir"], r"word 2, 'cafe\\u0301', is written with"),
    ("cafe\u0301 noir", ["caf\u00e9", "noir"], r"word 1, 'caf\\xe9', is written with"),
    ("Un mot cou\u00adpe\u0301", ["Un", "mot", "coup\u00e9"], r"word 3, 'coup\\xe9', is written"),
    ("Ein Bahn hof", ["Ein", "Bahn\u00ad", "hof"], r"word 2, 'Bahn\\xad', is written with"),
    ("Caf\u00e9 is open", ["Cafe", "is", "open"], "word 1, 'Cafe', does not follow"),
    ("one four two", ["one", "three", "two"], "word 2, 'three', does not follow"),
    ("Il va au bar", ["Il", "va", "\u00e0", "le", "parc"], "word 3"),
    ("one two", ["one"], "something follows the last word")])
def test_the_first_word_that_differs_is_named(text, forms, says):
    with pytest.raises(DataError, match=f"here: {says}"): align_words(text, forms, "here")


@pytest.mark.parametrize("language", ["French", "Arabic", "Chinese", "Spanish"])
def test_sentences_of_the_parallel_treebanks_are_aligned(real, language):
    code = dict(French="fr", Arabic="ar", Chinese="zh", Spanish="es")[language]
    rows = read_conllu(fetch(f"ud/r2.7/UD_{language}-PUD/{code}_pud-ud-test.conllu"))
    for text, forms in zip(rows["text"][:], rows["forms"][:]):
        spans = align_words(text, forms)
        assert len(spans) == len(forms) and all(a <= c for (a, _), (c, _) in zip(spans, spans[1:]))
        assert not text[spans[-1][1]:].strip()
        assert all(text[a:b].strip() == text[a:b] != "" for a, b in spans)


@pytest.mark.slow
def test_two_sentences_of_the_parallel_treebanks_cannot_be_aligned(real):
    "Their text is another than their words."
    table = alignment_table(load_sentences(tuple(COLLECTIONS)))
    print(table.to_string(index=False))
    lost = table.query("unaligned_words > 0")
    assert lost["lang"].tolist() == ["fr", "is"] and lost["unaligned_sentences"].tolist() == [1, 1]


# the words of subwords

@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=12), st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(1, 3)), max_size=8))
def test_the_first_subword_is_the_first_that_begins_in_the_word(steps, words):
    "Oracle: the sentence of the definition, in loops."
    start, end, at = [], [], 0
    for gap, size in steps:
        start.append(at + gap)
        at = at + gap + size
        end.append(at)
    spans, at = [], 0
    for gap, size, times in words:
        spans += [(at + gap, at + gap + size)] * times
        at += gap + size
    word = words_of_subwords(
        Subwords(np.arange(len(start)), np.array(start, int), np.array(end, int)), spans)
    first, there = first_subwords(word, len(spans))
    for w, (a, b) in enumerate(spans):
        begin = [k for k in range(len(start)) if a <= start[k] < b and start[k] < end[k]]
        if (a, b) in spans[:w]: begin = []
        assert (first[w] if there[w] else None) == (begin[0] if begin else None)


ANY = st.text(
    st.one_of(
        st.sampled_from("ab \n\u0301\u0e34\u093f\u200b"), st.characters(exclude_categories=["Cs"])),
    max_size=12)


@given(
    st.lists(ANY, min_size=1, max_size=6), st.sampled_from(["bytes", "metaspace", "wordpiece"]),
    st.data())
def test_texts_are_split_together_as_they_are_alone(texts, kind, data):
    split = TextSplitter(marking(kind) if kind != "wordpiece" else wordpiece(lower=True))
    together = split(texts)
    for text, s in zip(texts, together):
        alone, = split([text])
        reported = split.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        expected = tighten(text, *np.array(reported, int).reshape(-1, 2).T)
        for part, (mine, his) in zip((s.start, s.end), zip((alone.start, alone.end), expected)):
            assert part.tolist() == mine.tolist() == his.tolist() and part.dtype == np.int32
        assert s.ids.tolist() == alone.ids.tolist()
    spans = [
        data.draw(st.sampled_from([[], [NOWHERE], [(0, len(t))] * 2, [(0, 1), (1, 2)]]))
        for t in texts]
    for word, s, own in zip(words_of_all(together, spans), together, spans):
        assert word.tolist() == words_of_subwords(s, own).tolist()


def test_words_that_are_nowhere():
    s = Subwords(np.array([1]), np.array([0]), np.array([1]))
    assert words_of_subwords(s, word_spans("one two", ["another"])).tolist() == [-1]
    assert words_of_subwords(s, ()).tolist() == [-1]
    assert first_subwords([], 2)[1].tolist() == [False, False]
    assert word_spans("a", []) == ()


# tokenizers that mark the space before a word

@cache
def marking(kind):
    """Byte-level BPE as GPT-2's, and Gemma's way: a normalizer that writes the space as a letter,
    before words only."""
    if kind == "bytes":
        t = Tokenizer(models.BPE(unk_token="<unk>"))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        t = Tokenizer(models.BPE(unk_token="<unk>"))
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        alphabet = []
    how = dict(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=["<unk>", "<pad>"],
        show_progress=False)
    t.train_from_iterator(["the man read a book in rome"] * 20, trainers.BpeTrainer(**how))
    return PreTrainedTokenizerFast(tokenizer_object=t, unk_token="<unk>", pad_token="<pad>")


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
def test_words_have_the_space_before_them(kind):
    tokenizer = marking(kind)
    words = ["the", "man", "read", "a", "book"]
    found, = WordTokenizer(tokenizer)([words])
    assert found.ids.tolist() == tokenizer.encode("the man read a book")
    assert found.word.tolist() == [0, 1, 2, 3, 4]
    alone = [i for w in words for i in tokenizer.encode(w)]
    assert alone != found.ids.tolist() and len(alone) > 5


# languages

def xlm(folder, **how):
    letters = "abcdefghijklmnopqrstuvwxyz中国人民银行ภาษไทย."
    pieces = ["<s>", "</s>", "<pad>", "<unk>", *(f"<special{i}>" for i in range(10))]
    pieces += [
        *letters, *(c + "</w>" for c in letters), "中国</w>", "人民</w>", "国人</w>", "ภา", "ไท",
        "ไทย</w>"]
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    (folder / "merges.txt").write_text("中 国</w> 4\n人 民</w> 3\nภ า 2\nไ ท 2\nไท ย</w> 1\n")
    return XLMTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"),
        do_lowercase_and_remove_accent=False, **how)


def texts_of(text, s): return [text[a:b] for a, b in zip(s.start, s.end)]


def test_a_text_is_cut_in_its_language(tmp_path, segmenters):
    split = TextSplitter(xlm(tmp_path))
    text = "中国人民银行"
    plain, chinese = split([text, text], [None, "zh"])
    assert texts_of(text, plain) == [*text]
    assert texts_of(text, chinese) == ["中国", "人民", "银", "行"]
    thai = "ภาษาไทย"
    assert texts_of(thai, split([thai], ["th"])[0])[-1] == "ไทย"
    assert (split([text], ["en"])[0].ids.tolist() == plain.ids.tolist()
            == split([text], ["ja"])[0].ids.tolist())
    assert split.by_language
    assert (split.language("zh"), split.language("ja"), split.language(None)) == ("zh", "en", "en")


def test_a_language_that_the_tokenizer_does_not_know_is_read_as_english(tmp_path):
    known = xlm(tmp_path, lang2id={"en": 0, "de": 1}, id2lang={0: "en", 1: "de"})
    assert ([TextSplitter(known).language(lang) for lang in ("de", "zh", "svo_post")]
            == ["de", "en", "en"])


@pytest.mark.parametrize("lang, package", [("zh", "rjieba"), ("th", "pythainlp")])
def test_a_missing_package_is_named_with_the_line_that_installs_it(
        tmp_path, monkeypatch, lang, package):
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, f"{package}.tokenize", None)
    monkeypatch.setitem(sys.modules, package, None)
    split = TextSplitter(xlm(tmp_path))
    with pytest.raises(MissingData, match="pip install rjieba pythainlp"):
        split(["中国 ไทย"], [lang])
    assert len(split(["中国 ไทย"], ["de"])[0].ids)


def test_other_tokenizers_do_not_ask(monkeypatch):
    split = TextSplitter(marking("bytes"))
    assert not split.by_language and split.language("zh") is None
    assert split(["the man"], ["zh"])[0].ids.tolist() == split(["the man"])[0].ids.tolist()
    with pytest.raises(ParameterError, match="1 languages for 2 texts"): split(["a", "b"], ["en"])


def test_windows_and_sentences_are_split_in_their_languages(tmp_path, segmenters):
    "The context is Chinese in one row and, so it says, German in the other."
    tokenizer = xlm(tmp_path)
    text = "中国人民银行"
    rows = dict(
        question=["wo"] * 2, context=[text] * 2, lang_context=["zh", "de"],
        lang_question=["en", "en"])
    windows = Windows(SpanTokenizer(tokenizer), rows)
    assert [len(windows.subwords(w)[1]) for w in (0, 1)] == [4, 6]
    assert [windows.context(row) for row in (0, 1)] == [text] * 2
    del rows["lang_context"]
    assert ([len(windows.subwords(w)[1])
             for windows in [Windows(SpanTokenizer(tokenizer), rows)]
             for w in (0, 1)]
            == [6, 6])
    zh, none = WordTokenizer(tokenizer)([as_sentence(text, "zh"), text])
    assert (len(zh.ids), len(none.ids)) == (4, 6)
