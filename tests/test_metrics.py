"""EM and F1 against a second, literal reading of the official scripts; quirks by language;
malformed predictions; bootstrap against scipy and theory.
"""
import json
import random
import re
import string
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from s2dm.core import DataError, MissingData, ParameterError
from s2dm.metrics import (
    MLQA_LANGUAGES,
    Scores,
    bootstrap,
    mlqa_scores,
    read_predictions,
    read_spans,
    score,
    squad2_report,
    squad_scores,
)
from s2dm.reading import features, load_reading

MLQA = ("en", "ar", "de", "es", "hi", "vi", "zh")

# A literal reading of the official scripts: character by character, word by word


def drop_words(text, words): # a word ends where letters, digits, marks that \w knows, or _ end
    out, word = "", ""
    for c in text + "\0":
        if re.match(r"\w", c): word += c
        else:
            out += (" " if word in words else word) + c
            word = ""
    return out[:-1]


def official_squad(text):
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return drop_words(text, ("a", "an", "the")).split()


PUNCT = ({chr(i) for i in range(sys.maxunicode) if unicodedata.category(chr(i)).startswith("P")}
         | set(string.punctuation))
ARTICLES = dict(
    en="a an the", es="un una unos unas el la los las", vi="của là cái chiếc những",
    de="ein eine einen einem eines einer der die das den dem des")


def official_mlqa(text, language):
    text = "".join(c for c in text.lower() if c not in PUNCT)
    if language in ARTICLES: text = drop_words(text, ARTICLES[language].split())
    if language == "ar":
        while "ال" in text: text = text.replace("ال", " ", 1)
    if language != "zh": return text.split()
    words, rest = [], ""
    for c in text + "\u4e00": # the last is taken away again
        if "\u4e00" <= c <= "\u9fa5":
            words += [*rest.split(), c]
            rest = ""
        else: rest += c
    return words[:-1]


def official(prediction, golds, normalise):
    said, em, f1 = normalise(prediction), [], []
    for gold in map(normalise, golds):
        em.append(100.0 * (" ".join(said) == " ".join(gold)))
        left, shared = list(gold), 0
        for word in said:
            if word in left:
                left.remove(word)
                shared += 1
        precision, recall = (shared / max(len(words), 1) for words in (said, gold))
        f1.append(100.0 * ((2 * precision * recall) / (precision + recall)) if shared else 0.0)
    return max(em), max(f1)


WORDS = [
    "the", "The", "a", "an", "der", "des", "la", "los", "của", "là", "ال", "المدينة", "خالد",
    "中国", "㐀", "黑豹队", "हिन्दी", "x-ray", "U.S.", "3,000", "$5", "“so”", "।", "，", "¿qué?",
    "İ", "ß", "_a_", "a_b", "naïve", "e\u0301", "\u200b", "ﬁ", "ที่", "\u3000", "\n", "", "'", "é",
    "x"]
TEXT = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=6).flatmap(
        lambda w: st.sampled_from([" ", "", "\t"]).map(lambda s: s.join(w))),
    st.text(max_size=12))


@settings(max_examples=600)
@given(TEXT, st.lists(TEXT, min_size=1, max_size=3))
def test_squad_as_the_official_script(prediction, golds):
    assert squad_scores(prediction, golds) == official(prediction, golds, official_squad)


@pytest.mark.parametrize("language", MLQA)
@settings(max_examples=300)
@given(prediction=TEXT, golds=st.lists(TEXT, min_size=1, max_size=3))
def test_mlqa_as_the_official_script(language, prediction, golds):
    assert (mlqa_scores(prediction, golds, language)
            == official(prediction, golds, lambda text: official_mlqa(text, language)))


@settings(max_examples=200)
@given(TEXT, TEXT, st.sampled_from(MLQA))
def test_symmetric_bounded_and_best_of_all(a, b, language):
    for scores in (squad_scores, lambda p, g: mlqa_scores(p, g, language)):
        em, f1 = scores(a, [b])
        assert em in (0, 100) and 0 <= f1 <= 100 and scores(b, [a]) == pytest.approx((em, f1))
        # equal texts share everything, or there is nothing to share
        assert f1 == 100 or em == 0 or f1 == 0
        assert scores(a, [b, a]) >= (em, f1) and scores(a, [a])[0] == 100


@pytest.mark.parametrize("prediction, gold, em, f1", [
    ("The Denver Broncos", "Denver Broncos", 100, 100),
    ("Denver, Broncos!", "denver broncos", 100, 100), ("a the an", "The", 100, 0),
    ("", "?!", 100, 0), ("", "x", 0, 0), ("theater", "ater", 0, 0),
    ("the-ater", "theater", 100, 100), ("the theater a", "theater", 100, 100),
    ("b b a", "b", 0, 200 / 3), ("b b c", "b b d", 0, 200 / 3), ("“so”", "so", 0, 0),
    ("a\u00a0b", "b", 100, 100), ("à la", "la", 0, 200 / 3), ("the_end", "end", 0, 0),
    ("A.", "a", 100, 0), ("I. the", "i", 100, 100), ("黑豹", "黑豹队", 0, 0)])
def test_quirks_of_squad(prediction, gold, em, f1):
    assert squad_scores(prediction, [gold]) == (em, pytest.approx(f1))


@pytest.mark.parametrize("language, prediction, gold, em, f1", [
    ("en", "“The so”", "so", 100, 100),
    ("en", "the", "a", 100, 0),
    ("en", "der so", "so", 0, 200 / 3),
    ("en", "x‑y", "xy", 100, 100),
    ("de", "der Hund", "Hund", 100, 100),
    ("de", "im Haus", "Haus", 0, 200 / 3),
    ("de", "derHund", "Hund", 0, 0),
    ("de", "die", "das", 100, 0),
    ("es", "¿las casas?", "casas", 100, 100),
    ("es", "lo bueno", "bueno", 0, 200 / 3),
    ("es", "al sur", "sur", 0, 200 / 3),
    ("es", "él", "el", 0, 0),
    ("vi", "của những", "", 100, 0),
    ("vi", "là người", "người", 100, 100),
    ("vi", "cu\u0309a", "của", 0, 0), # decomposed: not the same letters
    ("ar", "المدينة", "مدينة", 100, 100),
    ("ar", "خالد", "خ د", 100, 100),
    ("ar", "ال", "", 100, 0),
    ("ar", "؟مدينة،", "مدينة", 100, 100),
    ("hi", "में।", "में", 100, 100),
    ("hi", "एक घर", "घर", 0, 200 / 3),
    ("zh", "中国，", "中国", 100, 100),
    ("zh", "2016年", "2016 年", 100, 100),
    ("zh", "中国人", "中国", 0, 80),
    ("zh", "abc中", "abc 中", 100, 100),
    ("zh", "㐀㐁", "㐀", 0, 0),
    ("zh", "the 中", "中", 0, 200 / 3),
    ("zh", "。", "，", 100, 0)])
def test_quirks_of_mlqa(language, prediction, gold, em, f1):
    assert mlqa_scores(prediction, [gold], language) == (em, pytest.approx(f1))


@pytest.mark.parametrize("prediction, golds", [
    (None, ["a"]), (3, ["a"]), ("a", "a"), ("a", []), ("a", [None]), ("a", None)])
def test_what_is_no_text(prediction, golds):
    with pytest.raises(ParameterError, match="expected a text and a list"):
        squad_scores(prediction, golds)
    with pytest.raises(ParameterError, match="expected a text and a list"):
        mlqa_scores(prediction, golds, "en")


def test_languages_that_mlqa_does_not_have():
    for language in ("fr", "th", "EN", None):
        with pytest.raises(ParameterError, match="choose one of en, es"):
            mlqa_scores("a", ["a"], language)


# Data sets and files of predictions

def questions(n=4, language="en", context="a b c d e f g"):
    rows = [
        dict(
            id=f"q{i}", title="", context=context, question="?",
            answers=dict(text=[context[2 * i], context[2 * i:2 * i + 3]], answer_start=[2 * i] * 2),
            lang_context=language, lang_question="en")
        for i in range(n)]
    return Dataset.from_list(rows, features=features())


def test_scores_follow_the_data_set_not_the_predictions(tmp_path):
    data = questions()
    said = dict(q3="d e", q1="x", q0="c b", q2="c")
    found = score(said, data)
    assert found.ids == ["q0", "q1", "q2", "q3"]
    assert found.em.tolist() == [0, 0, 100, 100]
    assert found.f1.tolist() == pytest.approx([200 / 3, 0, 100, 100])
    file = tmp_path / "p.json"
    file.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
    squad = tmp_path / "data.json"
    documents = []
    for q in data:
        answers = [dict(text=t, answer_start=s) for t, s in zip(*q["answers"].values())]
        qas = [dict(id=q["id"], question="?", answers=answers)]
        documents.append(dict(paragraphs=[dict(context=q["context"], qas=qas)]))
    squad.write_text(json.dumps(dict(data=documents)))
    for a, b in ((str(file), data), (file, squad), (said, str(squad))):
        again = score(a, b)
        assert again.ids == found.ids
        assert again.em.tolist() == found.em.tolist()
        assert again.f1.tolist() == found.f1.tolist()


def test_mlqa_takes_the_language_of_the_context():
    data = questions(1, "zh", "中国人")
    assert score(dict(q0="国"), data, "mlqa").em.tolist() == [0]
    assert score(dict(q0="中。"), data, "mlqa").em.tolist() == [100]
    assert score(dict(q0="中。"), data).em.tolist() == [0]
    assert (score(dict(q0="中国"), data, "mlqa").f1[0] == 80
            > score(dict(q0="中国"), data, "mlqa", language="en").f1[0] == 0)
    with pytest.raises(ParameterError, match="choose one of"):
        score(dict(q0="中"), questions(1, "th"), "mlqa")
    with pytest.raises(ParameterError, match="metric='mqla'.*did you mean 'mlqa'"):
        score({}, data, "mqla")


@pytest.mark.parametrize("said, says", [
    (dict(q0="a", q1="b"), "no prediction for q2, q3. Expected one text for each of the 4"),
    (dict(q0="a", q1="b", q2="c", q3="d", q9="x", extra="y"), "no such question: extra, q9"),
    (dict(q0="a", q1=None, q2=3, q3=["d"]), "not a text: q1, q2, q3"),
    ({}, "no prediction for q0, q1, q2, q3"),
    (dict(q0="a", q1="b", q2=1.5, qq="x"),
     "no prediction for q3; no such question: qq; not a text: q2"),
    ({0: "a", "q0": "a", "q1": "a", "q2": "a", "q3": "a"}, "no such question: 0")])
def test_predictions_that_do_not_fit_are_named(said, says):
    with pytest.raises(DataError, match=says): score(said, questions())


def test_many_wrong_ids_are_counted():
    with pytest.raises(
            DataError, match=r"no such question: x0, x1, x10, x100, x101, \.\.\. \(300 in all\)"):
        score({f"x{i}": "a" for i in range(300)} | {f"q{i}": "a" for i in range(4)}, questions())


@pytest.mark.parametrize("content, says", [
    (b'{"q0": "a", "q1": "b", "q0": "c"}', "these ids stand there twice: q0"),
    (b'["a"]', "found a list"),
    (b'"a"', "found a str"),
    (b'{"q0": "a"', "expected a JSON object"),
    (b"", "expected a JSON object"),
    (b"\xff\xfe{", "p.json"),
    (b"[" * 100_000, "expected a JSON object"),
    (b"null", "found a NoneType")])
def test_files_that_hold_no_predictions(tmp_path, content, says):
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(DataError, match=says) as error: read_predictions(tmp_path / "p.json")
    assert "p.json" in str(error.value)


def test_a_file_of_predictions_that_is_not_there(tmp_path):
    with pytest.raises((DataError, MissingData, FileNotFoundError), match="nowhere.json"):
        score(tmp_path / "nowhere.json", questions())


def test_ids_may_be_anything(tmp_path):
    (tmp_path / "p.json").write_text('{"": "a", "-1": "b", "\\u4e2d": "c"}')
    assert read_predictions(tmp_path / "p.json") == {"": "a", "-1": "b", "中": "c"}


# Places

CONTEXT = "Ada saw 𠮷野家, and Ada slept." # the second sign lies beyond 16 bits


def ask(*ids): return Dataset.from_list([dict(id=i, context=CONTEXT) for i in ids])


def test_places_count_code_points(tmp_path):
    start = CONTEXT.rindex("Ada")
    (tmp_path / "s.json").write_text(
        json.dumps(dict(b=[8, 11, 1], a=[start, start + 3, -2.5], c=None))
    )
    said = dict(a="Ada", b="𠮷野家", c="")
    expected = dict(a=(17, 20, -2.5), b=(8, 11, 1), c=None)
    assert read_spans(tmp_path / "s.json", said, ask("a", "b", "c")) == expected


@pytest.mark.parametrize(
    "content, says",
    [
        (
            '{"q": [0, 4, 1.0]}',
            "question q: 'Ada ' stands at 0 to 4; expected the prediction 'Ada'",
        ),
        ('{"q": [4, 7, 1.0]}', "question q: 'saw' stands at 4"),
        ('{"q": [-3, 3, 1.0]}', "question q: 'Ada' stands at -3"),
        ('{"q": [3, 0, 1.0]}', "question q: ''"),
        ('{"q": null}', "question q: null; expected the place of the prediction 'Ada'"),
        ('{"q": [0, 3]}', r"question q: \[0, 3\]; expected \[start, end, score\]"),
        ('{"q": [0, 3.0, 1]}', "question q"),
        ('{"q": [true, 3, 1]}', "question q"),
        ('{"q": [0, 3, "1"]}', "question q"),
        ('{"q": [0, 3, NaN]}', "question q"),
        ('{"q": "Ada"}', "question q: 'Ada'; expected"),
        ('{"q": [0, 3, 1], "x": null}', "no place for none; no such question: x"),
        ("{}", "no place for q; no such question: none. Expected the 1 ids"),
        ("[]", "found a list"),
        ('{"q": [0, 3, 1], "q": [0, 3, 1]}', "these ids stand there twice: q"),
        ('{"q": [0, 3', "expected a JSON object"),
    ],
)
def test_places_that_do_not_fit_are_named(tmp_path, content, says):
    (tmp_path / "spans.json").write_text(content)
    with pytest.raises(DataError, match=f"spans.json.*{says}"):
        read_spans(tmp_path / "spans.json", dict(q="Ada"), ask("q"))


def test_both_ways_of_counting():
    for answer, gold, language in (
        ("die Brücke", "Brücke", "de"),
        ("la casa", "casa", "es"),
        ("中国，", "中国", "zh"),
    ):
        assert (
            squad_scores(answer, [gold])[0] == 0 and mlqa_scores(answer, [gold], language)[0] == 100
        )
    assert set(MLQA_LANGUAGES) == set(MLQA)


# Intervals and tests

def some(n, seed=0, p=.4):
    rng = np.random.default_rng(seed)
    em = 100.0 * (rng.random(n) < p)
    return Scores(
        [str(i) for i in range(n)], em, np.maximum(em, 100 * rng.random(n) * (rng.random(n) < .5)))


def test_intervals_are_scipys():
    scores = some(400)
    ours = bootstrap(scores, samples=20_000)
    for name in ("em", "f1"):
        values = getattr(scores, name)
        theirs = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=20_000, method="percentile", batch=1000,
            rng=np.random.default_rng(1)).confidence_interval
        assert ours["mean"][name] == pytest.approx(values.mean())
        assert np.allclose(ours.loc[name, ["low", "high"]].to_list(), theirs, atol=.3)


def test_draws_are_seeded_and_do_not_depend_on_how_many_fit_into_memory():
    scores = some(300)
    one = bootstrap(scores, 2000, seed=3)
    two = bootstrap(scores, 2000, seed=3)
    other = bootstrap(scores, 2000, seed=4)
    assert one.equals(two) and not one.equals(other)
    assert np.allclose(one, other, atol=1)
    wide, narrow = bootstrap(scores, 2000, confidence=.99), bootstrap(scores, 2000, confidence=.5)
    assert (wide["low"] < narrow["low"]).all() and (narrow["high"] < wide["high"]).all()


def test_intervals_cover_the_truth_as_often_as_they_say():
    intervals = [bootstrap(some(300, seed), 500, seed=seed) for seed in range(200)]
    hits = sum(t["low"]["em"] <= 40 <= t["high"]["em"] for t in intervals)
    assert 180 <= hits <= 199


def test_what_has_no_interval():
    a = some(10)
    with pytest.raises(ParameterError, match="0 scores"):
        bootstrap(Scores([], np.zeros(0), np.zeros(0)))
    with pytest.raises(ParameterError, match="all of them numbers"):
        bootstrap(Scores(["a"], np.array([np.nan]), np.zeros(1)))
    for how in (dict(samples=0), dict(confidence=1.), dict(confidence=95)):
        with pytest.raises(ParameterError, match=next(iter(how))): bootstrap(a, **how)


# Real data

def test_real_answers_score_full_marks(real):
    for name, language in (("xquad", "zh"), ("tydiqa", "ar"), ("bipar", "en")):
        data = load_reading(name, language)
        found = score(
            {i: answers["text"][-1] for i, answers in zip(data["id"][:], data["answers"][:])}, data)
        assert found.em.mean() == 100 and (found.f1 == 100).mean() > .999


@pytest.mark.parametrize("language", ["en", "de", "zh", "ar", "vi"])
def test_real_answers_half_right_score_as_the_official_scripts_do(real, language):
    """Predictions: stretches of the context around the gold answer, some of them too long, too
    short or elsewhere."""
    data, rng = load_reading("xquad", language), np.random.default_rng(0)
    said = {}
    for q in data:
        start, text = q["answers"]["answer_start"][0], q["answers"]["text"][0]
        a, b = rng.integers(-12, 12, 2) * (rng.random() < .8)
        said[q["id"]] = q["context"][max(0, start + a):max(0, start + len(text) + b)]
    for metric, normalise in (
            ("squad", official_squad), ("mlqa", lambda text: official_mlqa(text, language))):
        found = score(said, data, metric)
        assert (list(zip(found.em, found.f1))
                == [official(said[q["id"]], q["answers"]["text"], normalise) for q in data])
        assert 15 < found.em.mean() < 60 and found.em.mean() < found.f1.mean() < 95


# SQuAD 2.0

def official_v2(predictions, golds, none, threshold):
    "The report of evaluate-v2.0.py, written anew from its rules, question by question."
    def tokens(text): # lower case, punctuation, articles, white space
        text = "".join(c for c in text.lower() if c not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    def pair(gold, said):
        gold, said = tokens(gold), tokens(said)
        exact = int(" ".join(gold) == " ".join(said))
        if not gold or not said: return exact, int(gold == said)
        same = sum((Counter(gold) & Counter(said)).values())
        if not same: return exact, 0
        precision, recall = same / len(said), same / len(gold)
        return exact, 2 * precision * recall / (precision + recall)
    raw = {}
    for i, texts in golds.items():
        counted = [t for t in texts if tokens(t)] or [""]
        raw[i] = [max(values) for values in zip(*(pair(t, predictions[i]) for t in counted))]
    report = {}
    for k, name in enumerate(("exact", "f1")):
        kept = {i: float(not golds[i]) if none[i] > threshold else raw[i][k] for i in golds}
        for prefix, which in (("", golds), ("HasAns_", [i for i in golds if golds[i]]),
                              ("NoAns_", [i for i in golds if not golds[i]])):
            if not which: continue
            report[f"{prefix}{name}"] = 100 * sum(kept[i] for i in which) / len(which)
            report[f"{prefix}total"] = len(which)
        now = best = sum(not texts for texts in golds.values())
        best_at = 0.
        for i in sorted(none, key=none.get):
            if golds[i]: now += raw[i][k]
            else: now += -1 if predictions[i] else 0
            if now > best: best, best_at = now, none[i]
        report |= {f"best_{name}": 100 * best / len(golds), f"best_{name}_thresh": best_at}
    return report


def test_squad2_is_counted_as_the_official_script_counts():
    rng = random.Random(0)
    words = ["the", "cat", "sat", "a", "Mat.", "", "an", "!", "dog"]
    def text(n): return " ".join(rng.choice(words) for _ in range(n))
    for _ in range(300):
        ids = [f"q{i}" for i in range(rng.randint(1, 8))]
        golds = {i: [text(rng.randint(1, 3)) for _ in range(rng.randint(0, 2))] for i in ids}
        said = {i: rng.choice(["", *golds[i], text(2), text(1)]) for i in ids}
        none = {i: rng.choice([0., .2, .5, rng.random(), 1.]) for i in ids}
        at = rng.choice([0., .2, .5, 1.])
        columns = dict(id=ids, answers=[dict(text=golds[i]) for i in ids])
        found = squad2_report(said, columns, none, at)
        expected = official_v2(said, golds, none, at)
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected)


def test_squad2_says_what_is_missing():
    columns = dict(id=["a", "b"], answers=[dict(text=[]), dict(text=["x"])])
    with pytest.raises(DataError, match="no prediction for b"): squad2_report(dict(a=""), columns)
    assert "best_exact" not in squad2_report(dict(a="", b="x"), columns)
