"""Vectors of text against the networks themselves, correlations against scipy, retrieval against
plain loops.
"""
import json
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from torch.testing import assert_close

from s2dm.core import DataError, ParameterError, write_json
from s2dm.encoder import Encoder, FeatureCache, load_encoder, mbert_tokenizer
from s2dm.subwords import Sentence
from s2dm.toy import random_words, toy_bert, toy_encoder, toy_s2dm, toy_tokenizer
from s2dm.treebanks import load_pairs
from s2dm.vectors import (
    KINDS, TextVectors, as_sentences, correlation, parallel_text, parallel_treebank, plot_retrieval,
    retrieval_accuracy, retrieval_table, similarity_table, sts_correlations)

SYMBOLS = dict(symbols="abcdefgh", words=["狗", "叫", "."])
TOKENIZER = toy_tokenizer(**SYMBOLS)
tiny_encoder = partial(toy_encoder, TOKENIZER, positions=40)
bert = partial(toy_bert, len(TOKENIZER), positions=40)


@pytest.fixture
def encoder(): return tiny_encoder()


def s2dm(**settings):
    return toy_s2dm(vocabulary=len(TOKENIZER), **dict(latent_width=6) | settings).eval()


def texts(n, seed=0, longest=10):
    rng = np.random.default_rng(seed)
    return [" ".join(random_words(rng, rng.integers(1, longest))) for _ in range(n)]


# ---------------------------------------------------------------- vectors of text

def test_vectors_are_those_of_the_model_on_the_encoders_states(encoder):
    "Text by text, without a batch, padding or a mask that masks anything."
    vectors, many = TextVectors(encoder, s2dm()), texts(40) + ["狗叫.", "狗", "ab  狗叫 cd."]
    found = vectors(many, budget=50)
    for i, text in enumerate(many):
        # white space, punctuation and Chinese: the tokenizer's own way
        pieces = encoder.split.tokenizer.tokenize(text)
        h = encoder(encoder.split([text]))
        assert len(h) == len(pieces)
        mask = torch.ones(1, len(h), dtype=torch.bool)
        alone = dict(
            mean=h.mean(0), y=vectors.model.semantic(h[None], mask)[0],
            z=vectors.model.syntactic(h[None], mask)[0])
        for kind in KINDS: assert_close(found[kind][i], alone[kind], rtol=1e-4, atol=1e-5)
    assert torch.equal(vectors.semantic(many), vectors(many)["y"])
    assert torch.equal(vectors.syntactic(many), vectors(many)["z"])
    assert torch.equal(vectors.mean(many), vectors(many)["mean"])


@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_company_order_and_cache_do_not_matter(budget, encoder, tmp_path):
    many, model = texts(30), s2dm()
    one = TextVectors(encoder, model)(many, budget=200)
    order = [*range(29, -1, -1), 3, 3]
    for cache in None, FeatureCache(encoder, "float32", tmp_path):
        other = TextVectors(encoder, model, cache)([many[i] for i in order], budget=budget)
        for kind in KINDS: assert_close(other[kind], one[kind][order], rtol=1e-4, atol=1e-5)
    words = TextVectors(encoder, model)([many[i].split() for i in order], budget=budget)
    for kind in KINDS: assert_close(words[kind], other[kind], rtol=1e-4, atol=1e-5)


def test_a_text_is_encoded_once(encoder, monkeypatch):
    seen, forward = [], Encoder.__call__
    monkeypatch.setattr(
        Encoder, "__call__", lambda self, batch: seen.extend(batch) or forward(self, batch))
    vectors = TextVectors(encoder, s2dm())
    vectors(["a b", "a b", "c", ["a", "b"]])
    assert len(seen) == 2


@pytest.mark.parametrize("cached", [False, True])
def test_texts_beyond_the_limit_are_cut_off_and_counted(cached, tmp_path):
    encoder = tiny_encoder(positions=12)
    vectors = TextVectors(
        encoder, s2dm(), FeatureCache(encoder, "float32", tmp_path) if cached else None)
    with pytest.warns(UserWarning, match="^2 texts reach the 12 subwords"):
        y = vectors.semantic(["a " * 50, "狗" * 300, "a b"])
    assert y.isfinite().all()
    assert_close(y[2:], vectors.semantic("a b"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors.semantic("a b c d e f g h a")


@pytest.mark.parametrize("wrong, says", [
    ("", "text 0 is empty"), ("  \n\t", "text 0 is empty"), (["a", " "], "text 1 is empty"),
    (None, "texts are None"), (3, "texts are 3"), ([], "no texts"), (["a", None], "text 1 is None"),
    ([b"a"], "text 0 is b'a'"), (["a", 2.5], "text 1 is 2.5"),
    ([["a", 1]], "expected a string, or a list of words"), ([[]], "text 0 is empty")])
def test_what_is_no_text_is_an_error(wrong, says, encoder):
    for call in TextVectors(encoder, s2dm()), TextVectors(encoder, s2dm()).semantic:
        with pytest.raises(ParameterError, match=says): call(wrong)


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1))
def test_any_text_stays_as_it_is(texts):
    assert as_sentences(texts, "de") == [Sentence(text, (), "de") for text in texts]
    words = [text.split() for text in texts]
    assert [s.text for s in as_sentences(words)] == [" ".join(w) for w in words]


def test_kinds_and_widths_that_are_not_there(encoder):
    with pytest.raises(ParameterError, match="kind='w' is not possible"):
        TextVectors(encoder, s2dm())("a", ["w"])
    with pytest.raises(ParameterError, match="choose one of mean"):
        TextVectors(encoder).semantic("a")
    assert TextVectors(encoder).mean("a b").shape == (1, 16)
    with pytest.raises(ParameterError, match="width 8, encoder 'toy' has 16"):
        TextVectors(encoder, s2dm(width=8))


# ---------------------------------------------------------------- saved and loaded

@pytest.fixture
def saved(tmp_path, encoder): # encoder/ and model/, as a run leaves them
    bert().save_pretrained(tmp_path / "encoder")
    TOKENIZER.save_pretrained(tmp_path / "encoder")
    s2dm().save_pretrained(tmp_path / "model")
    write_json(
        tmp_path / "model/encoder.json", load_encoder(str(tmp_path / "encoder"), "cpu").record)
    return tmp_path


def test_round_trip_also_after_the_encoder_has_moved(saved, encoder):
    there = TextVectors(encoder, s2dm())(texts(9))
    for kind, x in TextVectors.from_pretrained(saved / "model", device="cpu")(texts(9)).items():
        assert torch.equal(x, there[kind])
    (saved / "encoder").rename(saved / "moved")
    with pytest.raises(DataError, match="encoder.json: model=.*is not possible"):
        TextVectors.from_pretrained(saved / "model")
    for kind, x in TextVectors.from_pretrained(
            saved / "model", encoder=str(saved / "moved"), device="cpu")(texts(9)).items():
        assert torch.equal(x, there[kind])


def test_another_encoder_is_refused(saved, encoder):
    bert(seed=1).save_pretrained(saved / "encoder")
    with pytest.raises(DataError, match="revision sha256:.* but .* here has sha256:"):
        TextVectors.from_pretrained(saved / "model")
    bert().save_pretrained(saved / "encoder")
    pieces = TOKENIZER.convert_ids_to_tokens(range(5, len(TOKENIZER)))
    toy_tokenizer(pieces[::-1], symbols="").save_pretrained(saved / "encoder")
    with pytest.raises(DataError, match="with tokenizer"):
        TextVectors.from_pretrained(saved / "model")
    with pytest.raises(DataError, match="but 'toy' here has r1"):
        TextVectors.from_pretrained(saved / "model", encoder=encoder)


@pytest.mark.parametrize("text, says", [
    ("{", "is no JSON"),
    ("[]", "holds a list"),
    ('{"encoder": "x", "revision": "r"}', "lacks 'tokenizer_sha256'"),
    ("[" * 100_000, "is no JSON"),
    ('{"encoder": null, "revision": "r", "tokenizer_sha256": "t"}', "'encoder' is None; expected"),
    ('{"encoder": "x", "revision": 5, "tokenizer_sha256": "t"}', "'revision' is 5; expected str"),
    ('{"encoder": "x", "revision": "r", "tokenizer_sha256": "t", "layers": "2"}', "expected int"),
    ('{"encoder": "mbrt", "revision": "r", "tokenizer_sha256": "t"}', "did you mean 'mbert'"),
    ('{"encoder": "\\ud800", "revision": "r", "tokenizer_sha256": "t"}', "encoder.json"),
    (None, "is not there")])
def test_a_broken_encoder_json_is_named(text, says, saved):
    file = saved / "model/encoder.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(DataError, match=says) as error: TextVectors.from_pretrained(saved / "model")
    assert "encoder.json" in str(error.value)


def test_half_a_surrogate_pair_is_named(encoder):
    with pytest.raises(ParameterError, match="text 1 holds half a surrogate pair"):
        TextVectors(encoder).mean(["a", "b\ud83c"])
    with pytest.raises(ParameterError, match="text 0 holds half a surrogate pair"):
        TextVectors(encoder).mean([["a", "\udfff"]])


def test_a_text_without_subwords_is_named_by_its_number(encoder):
    vectors = TextVectors(encoder)
    with pytest.warns(UserWarning, match=r"text 1 has no subwords .*\(2 texts in all\)"):
        found = vectors.mean(["a b", "\u200b", "c", "\u200b"])
    assert torch.equal(found[[0, 2]], vectors.mean(["a b", "c"])) and not found[[1, 3]].any()


# ---------------------------------------------------------------- similarity

numbers = st.lists(
    st.tuples(st.integers(-5, 5), st.floats(-1, 1, width=32)), min_size=2, max_size=60)


@given(numbers)
def test_correlations_are_scipys(rows):
    x, y = map(np.array, zip(*rows))
    y = np.round(y, 2)  # ties
    assume(np.ptp(x) > 0 and np.ptp(y) > 0)  # the standard deviation of equal numbers need not be 0
    assert (correlation(x, y)
            == pytest.approx((stats.pearsonr(x, y)[0], stats.spearmanr(x, y)[0]), abs=1e-9))
    assert correlation(x, 1e-6 * y + 1e-3) == pytest.approx(correlation(x, y), abs=1e-6)


def test_constant_vectors_correlate_with_nothing():
    for constant in (0, .1, 1e9): assert correlation(np.full(7, constant), np.arange(7)) == (0, 0)


def test_sts_is_the_correlation_of_cosines(encoder):
    a, b = texts(30, 1), texts(30, 2)
    score = np.random.default_rng(0).integers(0, 6, 30).tolist()
    vectors = TextVectors(encoder, s2dm())
    found = sts_correlations(vectors, Dataset.from_dict(dict(text_a=a, text_b=b, score=score)))
    assert tuple(found) == KINDS
    for kind in KINDS:
        u, v = ([vectors(t, [kind])[kind][0].double() for t in side] for side in (a, b))
        cosine = [float(p @ q / p.norm() / q.norm()) for p, q in zip(u, v)]
        assert found[kind] == pytest.approx(
            (stats.pearsonr(cosine, score)[0], stats.spearmanr(cosine, score)[0]), abs=1e-4)


def test_the_table_of_all_tests(encoder):
    pairs = Dataset.from_dict(dict(text_a=texts(9, 1), text_b=texts(9, 2), score=[*range(9)]))
    table = similarity_table(TextVectors(encoder, s2dm()), load=lambda corpus, part: pairs)
    assert len(table) == 8
    assert table["part"].tolist()[:3] == ["test", "ar-ar", "ar-en"]
    assert (table["pairs"] == 9).all()
    assert (table["y"][0]
            == pytest.approx(100 * sts_correlations(TextVectors(encoder, s2dm()), pairs)["y"][0]))
    alone = similarity_table(TextVectors(encoder), [("zh_sts", "test")], lambda *_: pairs)
    assert [*alone.columns] == ["corpus", "part", "pairs", "mean", "mean_spearman"]


# ---------------------------------------------------------------- retrieval

def slow_accuracy(a, b):
    hits = 0
    for i, x in enumerate(a):
        cosines = [float(x @ y / (x.norm() * y.norm())) for y in b]
        best = [j for j, c in enumerate(cosines) if c >= max(cosines) - 1e-9]
        hits += (i in best) / len(best)
    return hits / len(a)


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("noise", [.1, 1., 3.])
def test_retrieval_is_what_loops_find(noise, block):
    torch.manual_seed(0)
    a = torch.randn(40, 6, dtype=torch.float64)
    b = (a + noise * torch.randn_like(a)) * torch.rand(40, 1)
    b[5], b[30], a[9] = b[4], b[4] * 3, a[10]  # ties
    assert (retrieval_accuracy(a, b, block)
            == pytest.approx((slow_accuracy(a, b), slow_accuracy(b, a)), abs=1e-12))
    assert retrieval_accuracy(b, a, block) == pytest.approx(retrieval_accuracy(a, b, block)[::-1])


def test_retrieval_of_what_says_nothing_is_chance():
    for n in 1, 5, 3000:
        assert (retrieval_accuracy(torch.ones(n, 4), torch.ones(n, 4))
                == pytest.approx((1 / n, 1 / n)))
    assert retrieval_accuracy(torch.zeros(5, 4), torch.randn(5, 4)) == pytest.approx((.2, .2))


def test_retrieval_needs_as_many_on_both_sides():
    for a, b in ((3, 4), (0, 0)):
        with pytest.raises(ParameterError, match="expected two of"):
            retrieval_accuracy(torch.ones(a, 2), torch.ones(b, 2))


def test_table_of_retrieval(encoder):
    versions = dict(de=texts(12, 1), en=texts(12, 2), fi=texts(12, 2), zh=texts(12, 3))
    vectors = TextVectors(encoder, s2dm())
    table = retrieval_table(vectors, versions).set_index("lang")
    assert [*table.index] == ["de", "fi", "zh"] and (table["sentences"] == 12).all()
    assert (table.loc["fi", ["mean", "y", "z"]] > 90).all()  # the same sentences
    one = retrieval_accuracy(vectors.semantic(versions["en"]), vectors.semantic(versions["zh"]))
    assert ((table.loc["zh", "y_from"], table.loc["zh", "y_to"], table.loc["zh", "y"])
            == pytest.approx((100 * one[0], 100 * one[1], 50 * sum(one))))
    assert [*retrieval_table(vectors, versions, pivot="zh")["lang"]] == ["de", "en", "fi"]
    with pytest.raises(ParameterError, match="11 texts in de, 12 in en"):
        retrieval_table(vectors, versions | dict(de=versions["de"][1:]))
    with pytest.raises(ParameterError, match="pivot='fr' is not possible"):
        retrieval_table(vectors, versions, "fr")
    assert [*plot_retrieval(table.reset_index())[1]["y"]] == sorted(table["y"], reverse=True)


# ---------------------------------------------------------------- real data

def test_a_treebank_side_by_side(real):
    versions = parallel_treebank("partut-it")
    pairs = {(p["text_s"], p["text_t"]) for p in load_pairs(("partut-it",))}
    assert set(versions) == {"en", "it"}
    assert {*zip(versions["en"], versions["it"])} == pairs
    assert len(versions["en"]) > 500


def test_a_parallel_corpus_side_by_side(real):
    versions = parallel_text("sib200", ["de", "en", "sw"])
    assert [*versions] == ["de", "en", "sw"]
    assert {len(v) for v in versions.values()} == {1004}
    assert all(t.strip() for v in versions.values() for t in v)
    with pytest.raises(ParameterError, match="languages='xx' is not possible"):
        parallel_text("sib200", ["xx"])


def test_real_scores(real):
    """An untrained encoder already sees shared words: similarity in one language, none between
    scripts."""
    encoder = toy_encoder(mbert_tokenizer(), positions=128)
    table = similarity_table(
        TextVectors(encoder),
        [("sts2017", "en-en"), ("sts2017", "es-es"), ("sts2017", "ar-en")]).set_index("part")
    assert table["pairs"].tolist() == [250] * 3
    assert (table.loc[["en-en", "es-es"], "mean"] > 30).all()
    assert abs(table.loc["ar-en", "mean"]) < 30
    json.dumps(table.to_dict("records"), allow_nan=False)
