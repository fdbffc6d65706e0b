"""Reading comprehension and similarity readers: counts and offsets of the real corpora, malformed
files, fuzzing.
"""
import copy
import itertools
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2dm.core import DataError, MissingData, ParameterError
from s2dm.dictionaries import _is_word, core_spans
from s2dm.geometry import parallel_xnli
from s2dm.reading import (
    READING, features, load_reading, read_qamr, read_squad, without_articles)
from s2dm.similarity import TRACKS, load_similarity, read_sts2017, read_zh_sts
from s2dm.spans import _phrase_question, phrase_questions
from s2dm.toy import random_sentences
from s2dm.treebanks import read_conllu
from s2dm.views import switch_text

SQUAD = {
    "version": "1.1",
    "data": [{"title": "Zürich",
              "paragraphs": [{"context": "Zu\u0308rich 🏔 liegt am See.", "qas": [
                  {"id": "german--223-1", "question": "Wo?", "answers": [
                      {"text": "am See", "answer_start": 16}, {"text": "See", "answer_start": 19}]},
                  {"id": "2", "question": "Was?",
                   "answers": [{"text": "Zu\u0308rich", "answer_start": 0}]}]}]},
             {"paragraphs": []}]}


def write(folder, text, name="file.json"):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return file


def test_offsets_are_code_points_and_contexts_stay_as_they_are(tmp_path):
    rows = read_squad(write(tmp_path, json.dumps(SQUAD)), "de", "en")
    row = rows[0]
    assert (row["context"] == SQUAD["data"][0]["paragraphs"][0]["context"]
            != unicodedata.normalize("NFC", row["context"]))
    assert ([row["context"][s:s + len(t)]
             for t, s in zip(row["answers"]["text"], row["answers"]["answer_start"])]
            == row["answers"]["text"] == ["am See", "See"])
    assert len(rows) == 2
    assert rows["id"][:] == ["german--223-1", "2"]
    assert row["title"] == "Zürich"
    assert row["lang_context"] == "de"
    assert row["lang_question"] == "en"


def edited(**at):
    "SQUAD with one value of its first question, paragraph or article replaced; ... deletes it."
    squad = copy.deepcopy(SQUAD)
    article = squad["data"][0]
    paragraph = article["paragraphs"][0]
    places = dict(
        file=squad, article=article, paragraph=paragraph, qa=paragraph["qas"][0],
        answer=paragraph["qas"][0]["answers"][0])
    for name, (key, value) in at.items():
        if value is ...: del places[name][key]
        else: places[name][key] = value
    return json.dumps(squad)


QUESTION = "data[0].paragraphs[0], question german--223-1"


@pytest.mark.parametrize(
    "text, says",
    [(json.dumps(SQUAD)[:100], ["file.json:1:", "at column", "expected JSON (cut off?)"]),
     ("[]", ["no questions"]),
     ("7", ["found int", "'data' of type list"]),
     ("", ["file.json:1:"]),
     ("{}", ["found nothing"]),
     ('{"data": []}', ["no questions"]),
     (edited(file=("data", {})), ["found dict"]),
     (edited(article=("paragraphs", ...)), ["data[0]: found nothing", "'paragraphs' of type list"]),
     (edited(paragraph=("context", 3)),
      ["data[0].paragraphs[0]: found int", "'context' of type str"]),
     (edited(qa=("id", 7.5)), ["'id' of type str"]),
     (edited(qa=("id", True)), ["'id' of type str"]),
     (edited(qa=("id", 2)), ["question 2: the same id for the second time"]),
     (edited(qa=("is_impossible", True)), [QUESTION, "SQuAD 2.0", "leave such questions out"]),
     (edited(qa=("answers", dict(text=["am See"], answer_start=[]))),
      [QUESTION, "1 texts and 0 answer_start"]),
     ('{"id": "1"}\n{"id": "2"}\n', ["data[0]: found nothing; expected an object with 'paragr"]),
     ('{"id": "1"}\n{"id": "2}\n', ["file.json:2: Unterminated string"]),
     (edited(qa=("id", "2")), ["question 2: the same id for the second time"]),
     (edited(qa=("question", None)), [QUESTION, "found NoneType"]),
     (edited(qa=("answers", [])), [QUESTION, "no answer; expected at least one"]),
     (edited(answer=("answer_start", 15)),
      [QUESTION, "'am See' is not in the context at 15", "' am Se' is"]),
     (edited(answer=("answer_start", -7)), [QUESTION, "at -7"]),
     (edited(answer=("answer_start", "16")), [QUESTION, "at '16'"]),
     (edited(answer=("answer_start", True)), [QUESTION, "at True"]),
     (edited(answer=("answer_start", 10**30)), [QUESTION]),
     (edited(answer=("answer_start", ...)), [QUESTION, "at None"]),
     (edited(answer=("text", "")), [QUESTION, "not empty"]),
     (edited(answer=("text", "AM SEE")),
      [QUESTION, "'AM SEE' is not in the context at 16; 'am See' is"]),
     (edited(paragraph=("context", "\ud800 am See")), ["surrogate"]),
     ("\ufeff" + json.dumps(SQUAD), ["file.json:1: byte-order mark"]),
     (json.dumps(SQUAD, indent=1).replace("\n", "\r\n"), ["file.json:1: carriage return"]),
     (json.dumps(SQUAD, ensure_ascii=False).encode("utf-16"), ["is not UTF-8"]),
     (json.dumps(SQUAD, ensure_ascii=False).replace("\u0308", "").encode("utf-8").replace(
          "ü".encode(), b"\xfc"),
      ["file.json:1: byte 0xfc"]),
     ("[" * 100_000, ["file.json", "expected JSON"]),
     ('{"data": ' + "9" * 5000 + "}", ["file.json", "expected JSON"])],
    ids=lambda x: str(x)[:40] if isinstance(x, list) else "")
def test_malformed_squad_files_are_named(tmp_path, text, says):
    with pytest.raises(DataError) as error: read_squad(write(tmp_path, text))
    for words in ["file.json", *says]: assert words in str(error.value), str(error.value)


def test_numbers_as_ids_are_read(tmp_path):
    assert read_squad(write(tmp_path, edited(qa=("id", 7))))["id"][:2] == ["7", "2"]


def _flat_rows(): # as the library `datasets` has them
    rows = []
    for article in SQUAD["data"][:1]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                columns = {k: [a[k] for a in qa["answers"]] for k in ("text", "answer_start")}
                rows.append(qa | dict(title=article["title"], context=paragraph["context"],
                                      answers=columns))
    return rows


@pytest.mark.parametrize("form", ["list", "data", "lines", "no end", "one line", "listed answers"])
def test_flat_rows_and_json_lines_are_read(tmp_path, form):
    rows = _flat_rows()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    listed = [row | dict(answers=qa["answers"]) for row, qa in zip(
        rows, SQUAD["data"][0]["paragraphs"][0]["qas"])]
    text = {"list": json.dumps(rows, indent=1), "data": json.dumps(dict(data=rows)),
            "lines": lines, "no end": lines.rstrip(), "one line": json.dumps(rows[0]),
            "listed answers": json.dumps(listed)}[form]
    expected = read_squad(write(tmp_path, json.dumps(SQUAD), "nested.json"))[:]
    found = read_squad(write(tmp_path, text))[:]
    n = 1 if form == "one line" else 2
    assert found == {name: column[:n] for name, column in expected.items()}


_json = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 30), st.floats(),
        st.sampled_from(["am See", "See", "x", "", "\ud800"]), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(
            st.sampled_from(
                ["data", "paragraphs", "context", "qas", "id", "question", "answers", "text",
                 "answer_start"]),
            inner, max_size=4)),
    max_leaves=20)


@st.composite
def damaged_squad(draw):
    squad = copy.deepcopy(SQUAD)
    for _ in range(draw(st.integers(1, 3))):
        here = squad
        while True:  # walk to a random place and replace, or delete, what is there
            keys = list(here) if isinstance(here, dict) else range(len(here))
            if not len(keys): break
            key = draw(st.sampled_from(list(keys)))
            if isinstance(here[key], (dict, list)) and draw(st.booleans()):
                here = here[key]
                continue
            if draw(st.booleans()): here[key] = draw(_json)
            else: del here[key]
            break
    text = json.dumps(squad)
    return text[:draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


@settings(max_examples=500, deadline=None)
@given(st.one_of(damaged_squad(), _json.map(json.dumps), st.text(max_size=80)))
def test_fuzzed_squad_files_are_read_or_refused_with_a_place(tmp_path_factory, text):
    file = write(tmp_path_factory.getbasetemp(), text, "fuzz.json")
    try: rows = read_squad(file)
    except DataError as error:
        assert str(error).startswith(str(file))
        return
    for row in rows:
        assert row["answers"]["text"]
        for t, s in zip(row["answers"]["text"], row["answers"]["answer_start"]):
            assert t and row["context"][s:s + len(t)] == t


def test_qamr_tokens_become_spans_and_gaps_are_counted(tmp_path):
    sentences = write(tmp_path, "S\tThe pale -LRB- 24 -RRB- tirthankara sat .\n", "sentences.tsv")
    rows = [
        "S\t2\t7\t0\t3\tWho ?\t4 3\t1:5\t2:0 7", "S\t2\t7\t1\t3\tWhat ?\t0 7\t1:1 3\t2:0 2",
        "S\t2\t7\t2\t0\tHow ?\t0 1 2 3 4 5 6 7\t1:0\t2:7"]
    data = read_qamr(write(tmp_path, "\n".join(rows) + "\n", "dev.tsv"), sentences)
    assert data["id"][:] == ["S/2/7/0", "S/2/7/2"]
    assert data.info.description.startswith("1 of 3 questions are left out")
    assert data[0]["answers"] == {"text": ["24 -RRB-", "tirthankara"], "answer_start": [15, 24]}
    assert data[1]["answers"]["text"][0] == data[1]["context"]
    for bad, says in [
            ("S\t2\t7", "dev.tsv:1: 3 columns; expected 9"),
            (rows[0].replace("S\t", "T\t"), "sentence 'T' is not in"),
            (rows[0].replace("4 3", "4 x"), "answer '4 x'"),
            (rows[0].replace("4 3", "4 9"), "token 9; the sentence has 8"),
            (rows[0].replace("4 3", "-1 0"), "dev.tsv:1: token 0"),
            (rows[0].replace("4 3", ""), "answer ''")]:
        with pytest.raises(DataError) as error:
            read_qamr(write(tmp_path, bad + "\n", "dev.tsv"), sentences)
        assert says in str(error.value), str(error.value)
    with pytest.raises(DataError, match="sentences.tsv:1: no tab"):
        read_qamr(tmp_path / "dev.tsv", write(tmp_path, "S The\n", "sentences.tsv"))


# characters that Python's splitlines takes for ends of lines
NO_ENDS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"


@pytest.mark.parametrize("c", NO_ENDS, ids=ascii)
def test_only_a_line_feed_ends_a_line(tmp_path, c):
    sentences = write(tmp_path, f"S\tThe man{c} sat down .\n", "s.tsv")
    questions = write(tmp_path, f"S\t2\t7\t0\t3\tWho{c} ?\t1\t1:1\t2:0 1\n", "dev.tsv")
    row, = read_qamr(questions, sentences)
    assert (row["context"], row["question"]) == (f"The man{c} sat down .", f"Who{c} ?")
    assert row["answers"]["text"] == [f"man{c}", f"man{c}", f"The man{c}"]
    pairs = write(tmp_path, f"text_a\ttext_b\tscore\na{c}a\tb\t1\n", "zh.csv")
    assert read_zh_sts(pairs)["text_a"][:] == [f"a{c}a"]
    inputs = write(tmp_path, f"a{c}a\tb\n", "input.txt")
    assert read_sts2017(inputs, write(tmp_path, "1\n", "gs.txt"), "en", "en")["text_a"][:] == [
        f"a{c}a"]
    parallel = write(tmp_path, f"en\tde\na{c}a\tb{c}b\n", "xnli.tsv")
    assert parallel_xnli(parallel) == dict(en=[f"a{c}a"], de=[f"b{c}b"])
    tree = f"# sent_id = n1\n# text = a{c}a\n1\ta{c}a\ta\tX\t_\t_\t0\troot\t_\t_\n\n"
    sentence, = read_conllu(write(tmp_path, tree, "a.conllu"))
    assert (sentence["text"], sentence["forms"]) == (f"a{c}a", [f"a{c}a"])


def test_mlqa_has_49_pairs(tmp_path, monkeypatch):
    "All question x context pairs, from files at the places where the archive's members go."
    languages, _ = READING["mlqa"]
    for c, q in itertools.product(languages, languages):
        file = tmp_path / f"mirror/mlqa/MLQA_V1/test/test-context-{c}-question-{q}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"data": [
            {"paragraphs": [{"context": c, "qas": [{
                 "id": "1", "question": q, "answers": [{"text": c, "answer_start": 0}]}]}]}]}))
    monkeypatch.setenv("S2DM_MIRROR", str(tmp_path / "mirror"))
    for c, q in itertools.product(languages, languages):
        row = load_reading("mlqa", c, question_language=q)[0]
        assert row["context"] == c
        assert row["question"] == q
        assert row["lang_context"] == c
        assert row["lang_question"] == q


@pytest.mark.parametrize("args, says", [
    (("xqad",), "did you mean 'xquad'"),
    (("xquad", "fr"), "choose one of en, ar"),
    (("xquad", "bg"), "xquad language='bg'"),
    (("squad", "en", "test"), "choose one of train, dev"),
    (("tydiqa", "en", None, "ar"), "only mlqa and bipar"),
    (("mlqa", "en", None, "ro"), "mlqa question_language='ro'")])
def test_what_does_not_exist_is_refused(args, says):
    with pytest.raises(ParameterError) as error: load_reading(*args)
    assert says in str(error.value)


@pytest.mark.parametrize("name, count", [
    ("xquad", dict.fromkeys("en ar de el es hi ro ru th tr vi zh".split(), 1190)),
    ("tydiqa", dict(ar=921, bn=113, en=440, fi=782, id=565, ko=276, ru=812, sw=499, te=669))])
def test_real_counts_and_offsets(real, name, count):
    assert set(READING[name][0]) == set(count)
    for language, n in count.items():
        rows = load_reading(name, language)
        assert len(rows) == n == len(set(rows["id"][:]))
        assert set(rows["lang_context"][:]) == {language}
        for row in rows:
            for t, s in zip(row["answers"]["text"], row["answers"]["answer_start"]):
                assert row["context"][s:s + len(t)] == t != ""


def test_real_bengali_is_bn(real):
    assert load_reading("tydiqa", "bg")["id"][:] == load_reading("tydiqa", "bn")["id"][:]
    assert set(load_reading("tydiqa", "bg")["lang_context"][:]) == {"bn"}
    assert sum(len(load_reading("tydiqa", lang)) for lang in READING["tydiqa"][0]) == 5077
    ids = [i for lang in READING["tydiqa"][0] for i in load_reading("tydiqa", lang)["id"][:]]
    assert any(i.split("-", 1)[1].startswith("-") for i in ids)  # negative numbers


def test_real_bipar_within_and_across_languages(real):
    def chinese(text): return any("\u4e00" <= c <= "\u9fff" for c in text)
    for part, c, q in itertools.product(("test", "valid"), ("en", "zh"), ("en", "zh")):
        rows = load_reading("bipar", c, part, q)
        assert len(rows) == 1500
        assert sum(chinese(r["context"]) == (c == "zh") for r in rows) > 1490
        assert sum(chinese(r["question"]) == (q == "zh") for r in rows) > 1490


def test_real_stand_ins_for_training(real):
    assert len(load_reading("qamr", part="dev")) == 18_908 - 45
    assert len(load_reading("qamr", part="test")) == 18_770 - 50
    assert "45 of 18908" in load_reading("qamr", part="dev").info.description
    assert len(load_reading("squadshifts", part="new_wiki")) == 7938
    assert len(load_reading("squadshifts", part="reddit")) == 9803
    for part in ("dev", "test"):
        for row in load_reading("qamr", part=part):
            for t, s in zip(row["answers"]["text"], row["answers"]["answer_start"]):
                assert row["context"][s:s + len(t)] == t


def test_real_mlqa_sample_has_the_format(mirror_folder):
    for language in READING["mlqa"][0]:
        assert len(read_squad(
            Path(mirror_folder) / f"mlqa/xtreme_mock/test-{language}.json", language,
            language)) >= 1


def test_real_missing_training_data_is_said(real, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(MissingData) as error: load_reading("squad")
    for words in ("squad/train-v1.1.json", "30.3 MB", "https://rajpurkar.github.io", "S2DM_MIRROR"):
        assert words in str(error.value)


def test_real_similarity(real):
    for track in TRACKS:
        rows = load_similarity("sts2017", track)
        assert len(rows) == 250 and 0 <= min(rows["score"][:]) < max(rows["score"][:]) <= 5
        for side in "ab":
            language = rows[0][f"lang_{side}"]
            arabic = [
                any("\u0600" <= c <= "\u06ff" for c in text) for text in rows[f"text_{side}"][:]]
            assert all(arabic) if language == "ar" else not any(arabic)
            marks = sum(
                c in text.lower()
                for text in rows[f"text_{side}"][:]
                for c in {"es": "ñáéíóú", "tr": "şğıçöü"}.get(language, "ñşğı"))
            assert (marks > 50) == (language in ("es", "tr")), (track, side, marks)
    assert ([len(load_similarity("zh_sts", part)) for part in ("train", "dev", "test")]
            == [7649, 2549, 2549])
    assert ({s for part in ("dev", "test") for s in load_similarity("zh_sts", part)["score"][:]}
            <= {i / 100 for i in range(101)})


# Other questions to learn from

def test_leading_articles_go_and_answers_stay_in_their_places(tmp_path):
    kept = {"the old house": "old house", "An owl": "owl", "The": "The", "theory": "theory"}
    paragraphs = []
    for number, answer in enumerate(kept):
        given = dict(text=answer, answer_start=7)
        asked = dict(id=str(number), question="What?", answers=[given, given])
        paragraphs.append(dict(context=f"It was {answer}.", qas=[asked]))
    file = write(tmp_path, json.dumps(dict(data=[dict(title="", paragraphs=paragraphs)])))
    questions = read_squad(file, "en", "en")
    found = without_articles(questions)
    assert found.features == questions.features == features()
    for row, answer in zip(found, kept.values()):
        assert row["answers"]["text"] == [answer, answer]
        for start in row["answers"]["answer_start"]:
            assert row["context"][start:].startswith(answer)


def test_the_word_in_the_place_of_a_question_begins_or_ends_the_answer():
    sentences = random_sentences(groups=150) # few random trees have a phrase of several words
    rows = phrase_questions(sentences, 30)
    assert rows.features == features() and len(set(rows["id"][:])) == len(rows) == 30
    of = [sentences[int(row["id"].removeprefix("phrase"))] for row in rows]
    assert [row["lang"] for row in of] == rows["lang_context"][:] == rows["lang_question"][:]
    assert sorted(map(rows["lang_context"][:].count, set(rows["lang_context"][:]))) == [10, 10, 10]
    for row in rows:
        text, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
        assert row["context"][start:start + len(text)] == text and " " in text
        word = row["question"].strip("… ")
        if row["question"].endswith("…"): assert text.startswith(word + " ")
        else: assert text.endswith(" " + word)


def test_a_word_that_does_not_stand_in_the_text_is_not_asked_for():
    "German *vom* is *von dem*: who is asked for *dem ...* finds no such word."
    row = dict(forms="Sie kam von dem alten Haus".split(), text="Sie kam vom alten Haus",
               lang="de", upos=["PRON", "VERB", "ADP", "DET", "ADJ", "NOUN"],
               heads=[2, 0, 6, 6, 6, 2])
    rng = np.random.default_rng(0)
    drawn = [_phrase_question(0, row, rng) for _ in range(60)]
    asked = {(q["question"], q["answers"]["text"][0]) for q in drawn if q}
    assert asked == {("… Haus", "vom alten Haus")}


@pytest.mark.parametrize("text, words", [
    ("भारत की राजधानी दिल्ली है।", ["भारत", "की", "राजधानी", "दिल्ली", "है"]),
    ("ঢাকা বাংলাদেশের রাজধানী।", ["ঢাকা", "বাংলাদেশের", "রাজধানী"]),
    ("«తెలుగు భాష»,", ["తెలుగు", "భాష"]),
    ("a 'b-c' ($5.50) --", ["a", "b-c", "5.50"])])
def test_words_are_whole_in_scripts_with_vowel_signs(text, words):
    assert [text[i:j] for i, j in core_spans(text)] == words


def test_a_switched_text_has_as_many_words_in_the_same_order():
    dictionary = dict(house=["घर"], old=["पुराना"])
    text = "The (old) house, an old house."
    switched, start = switch_text(text, dictionary, 1., np.random.default_rng(0), (20, 23))
    assert switched == "The (पुराना) घर, an old घर."
    assert switched[start:start + 3] == "old" # what is kept
    assert len(core_spans(switched)) == len(core_spans(text))


def test_no_translation_has_a_space_or_is_punctuation():
    words = ("10 000", "10\u00a0000", "...", "10.000", "घर")
    assert [word for word in words if _is_word(word)] == ["10.000", "घर"]


@pytest.mark.parametrize("text, says", [
    ("text_a,text_b,score\n", "sts.csv:1: 'text_a,text_b,score'; expected the header"),
    ("text_a\ttext_b\tscore\na\tb\n", "sts.csv:2: 2 columns; expected 3"),
    ("text_a\ttext_b\tscore\na\tb\t1\n\tb\t1\n", "sts.csv:3: an empty column"),
    ("text_a\ttext_b\tscore\na\tb\tgood\n", "score 'good'; expected a number from 0 to 1"),
    ("text_a\ttext_b\tscore\na\tb\tnan\n", "score 'nan'"),
    ("text_a\ttext_b\tscore\na\tb\t1.5\n", "score '1.5'"),
    ("text_a\ttext_b\tscore\r\n", "carriage return"),
    ("text_a\ttext_b\tscore\n", "no pairs"),
    ("", "expected the header")])
def test_malformed_zh_sts(tmp_path, text, says):
    with pytest.raises(DataError) as error: read_zh_sts(write(tmp_path, text, "sts.csv"))
    assert says in str(error.value)


def test_malformed_sts2017(tmp_path):
    inputs = write(tmp_path, "a\tb\nc\td\n", "in.txt")
    for gold, says in [
            ("1\n", "2 pairs"), ("1\n2\n3\n", "3 scores"), ("1\n6\n", "gs.txt:2: score '6'"),
            ("1\n\n2\n", "3 scores")]:
        with pytest.raises(DataError) as error:
            read_sts2017(inputs, write(tmp_path, gold, "gs.txt"), "en", "en")
        assert says in str(error.value), str(error.value)
    with pytest.raises(DataError, match="in.txt:2: 1 columns"):
        read_sts2017(
            write(tmp_path, "a\tb\nc\n", "in.txt"), write(tmp_path, "1\n2\n", "gs.txt"), "en", "en")
    with pytest.raises(ParameterError, match="choose one of ar-ar"):
        load_similarity("sts2017", "de-en")
