"""Evaluation: prediction files that the official scripts read, the same numbers by a second
counting, what is missing, and whose results these are.
"""
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import KILLED_AT_A_FILE, ROOT
from datasets import Dataset
from test_finetune import config as finetune_config
from test_finetune import parts  # noqa: F401
from test_metrics import official, official_mlqa, official_squad
from test_reader import make

import s2dm.evaluation
from s2dm.core import DataError, MissingData, ParameterError
from s2dm.encoder import mbert_tokenizer
from s2dm.evaluation import (
    NO_ANSWER,
    DATASETS,
    EvaluateConfig,
    best_answers,
    evaluate,
    open_reader,
    mlqa_row,
    predict,
    read_answers,
    reader_sum,
    scores_row,
    wide,
    write_answers,
)
from s2dm.evaluation import tests as all_tests # a name that pytest does not collect
from s2dm.features import Answer
from s2dm.finetune import finetune
from s2dm.grammar import LANGUAGES
from s2dm.metrics import Scores, read_predictions, score
from s2dm.reader import ReaderConfig, S2DMReader
from s2dm.reading import READING, load_reading
from s2dm.toy import toy_reader

TEXT = {
    "en": "The bridge was built by Ada in 1843, and the boat by Grace.",
    "de": "Die Brücke wurde 1843 von Ada gebaut, das Boot von Grace.",
    "zh": "这座桥由艾达于1843年建造，船由格蕾丝建造。"}
GOLD = {"en": ["the bridge", "1843", "Grace"], "de": ["Die Brücke", "1843", "das Boot"], "zh": [
    "这座桥", "1843年", "格蕾丝"]}


def squad_file(context, question):
    qas = [
        dict(
            id=f"{i}", question=f"{question}? {i}",
            answers=[dict(text=gold, answer_start=TEXT[context].lower().index(gold.lower()))])
        for i, gold in enumerate(GOLD[context])]
    for qa in qas:
        qa["answers"][0]["text"] = TEXT[context][(at := qa["answers"][0]["answer_start"]):at + len(
            qa["answers"][0]["text"])]
    return dict(data=[dict(title="x", paragraphs=[dict(context=TEXT[context], qas=qas)])])


@pytest.fixture
def mlqa(tmp_path, monkeypatch):
    "A mirror with four of MLQA's 49 tests, and no network."
    for context, question in (("en", "en"), ("de", "de"), ("de", "zh"), ("zh", "zh")):
        file = (tmp_path
                / f"mirror/mlqa/MLQA_V1/test/test-context-{context}-question-{question}.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(squad_file(context, question)), encoding="utf-8")
    monkeypatch.setenv("S2DM_MIRROR", str(tmp_path / "mirror"))
    for name in ("http_proxy", "https_proxy"): monkeypatch.setenv(name, "http://127.0.0.1:9")
    return tmp_path / "mirror"


def same_by_hand(folder, row, questions, metric):
    """The prediction file, scored by the second counting of the official scripts, question by
    question."""
    label = row["context"] + ("" if row["question"] == row["context"] else f"-{row['question']}")
    file = folder / f"predictions.{row['dataset']}.{label}.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    assert read_answers(folder, f"{row['dataset']}.{label}", questions).keys() == found.keys()
    assert found == read_predictions(file)
    assert list(found) == questions["id"][:]
    assert all(isinstance(text, str) for text in found.values())
    normalise = (
        official_squad if metric == "squad" else lambda text: official_mlqa(text, row["context"]))
    scores = np.array(
        [official(found[q["id"]], q["answers"]["text"], normalise) for q in questions])
    assert row["questions"] == len(found)
    assert row["em"] == pytest.approx(scores[:, 0].mean())
    assert row["f1"] == pytest.approx(scores[:, 1].mean())
    for name in ("em", "f1"):
        assert 0 <= row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] <= 100
    for q in questions: assert found[q["id"]] in q["context"]


def without_articles(questions):
    "Right answers as a reader would give them that leaves out German articles."
    found = {}
    for q in questions:
        text, start = q["answers"]["text"][0], q["answers"]["answer_start"][0]
        cut = 4 * text.startswith(("Die ", "das "))
        found[q["id"]] = Answer(text[cut:], start + cut, start + len(text), 1.0)
    return found


# Which tests

def test_every_data_set_in_all_its_languages():
    found = all_tests(tuple(DATASETS))
    assert len(found) == len(set(found)) == 12 + 49 + 9 + 4 + len(LANGUAGES)
    assert set(DATASETS) <= {*READING, "synthetic"}
    assert ({(c, q) for name, c, q in found if name == "mlqa"}
            == {(c, q) for c in READING["mlqa"][0] for q in READING["mlqa"][0]})
    assert all(c == q for name, c, q in found if name in ("xquad", "tydiqa"))
    assert (all_tests(("tydiqa", "xquad"), ("sw", "de"))
            == [("tydiqa", "sw", "sw"), ("xquad", "de", "de")])
    assert EvaluateConfig(datasets="mlqa, bipar", languages="zh,de").languages == ("zh", "de")


@pytest.mark.parametrize("settings, says", [
    (dict(datasets="xqad"), "did you mean 'xquad'"),
    (dict(datasets="squad"), "choose one of xquad, mlqa, tydiqa, bipar"),
    (dict(datasets=""), "no data sets; choose some of"),
    (dict(languages="xx"), "language='xx' is not possible"),
    (dict(model="mbert", languages="xx"), "languages='xx' is not possible"),
    (dict(datasets="xquad,synthetic", languages="de"), "language='de' is not possible"),
    (dict(datasets="xquad,synthetic", languages="svo"),
     "chosen either of synthetic or of the other data sets"),
    (dict(datasets="bipar", languages="de"),
     "languages='de' is not possible; choose one of en, zh"),
    (dict(samples=1), "samples is an int from 100"),
    (dict(variant="s2dm"), "variant='s2dm'"),
    (dict(language="de"), "did you mean 'languages'")])
def test_impossible_settings(settings, says):
    with pytest.raises(ParameterError, match=says): EvaluateConfig(**settings)


# What a run leaves

def test_predictions_are_in_the_official_format_and_score_the_same(mlqa):
    config = EvaluateConfig(datasets="mlqa,tydiqa", languages="de,en,zh,fi", samples=200)
    result = evaluate(config, make())
    metrics = json.loads((result.folder / "metrics.json").read_text())
    rows = result.table.to_dict("records")
    assert metrics["results"] == result.results and [
        (r["dataset"], r["context"], r["question"]) for r in rows
    ] == [("mlqa", "en", "en"), ("mlqa", "de", "de"), ("mlqa", "de", "zh"), ("mlqa", "zh", "zh")]
    for row in rows:
        same_by_hand(
            result.folder, row,
            load_reading("mlqa", row["context"], question_language=row["question"]), "mlqa")
    assert [{k: v for k, v in r.items() if not k.endswith("_mlqa")} for r in result.results] == rows
    assert all((r["em_mlqa"], r["f1_mlqa"]) == (r["em"], r["f1"]) for r in result.results)
    assert ({p.name for p in result.folder.glob("predictions.*")}
            == {f"predictions.mlqa.{x}.json" for x in ("en", "de", "de-zh", "zh")})
    assert len(result.missing) == 17 + 2 == len(metrics["missing"])
    assert result.missing[0].startswith("mlqa.en-ar: cannot get ")
    assert result.missing[-1].startswith("tydiqa.fi: cannot get ")
    assert not any("\n" in m for m in result.missing)
    assert (json.loads((result.folder / "config.json").read_text())["parameters"]["datasets"]
            == ["mlqa", "tydiqa"])


def test_scores_are_those_of_a_reader_that_knows(mlqa, monkeypatch):
    """Right answers give 100, MLQA's articles do not count, and each language is scored by its own
    rules."""
    monkeypatch.setattr(
        s2dm.evaluation, "best_answers", lambda reader, questions: without_articles(questions)
    )
    result = evaluate(EvaluateConfig(datasets="mlqa", samples=100), make())
    assert set(result.table["em"]) == set(result.table["f1_low"]) == {100.}
    assert wide(result.table, "mlqa").loc[0].tolist() == ["100.0 / 100.0"] * 4


def test_what_is_missing_is_asked_for_once(mlqa, monkeypatch):
    asked, load = [], s2dm.evaluation.load_reading
    monkeypatch.setattr(
        s2dm.evaluation, "load_reading",
        lambda *args, **more: asked.append(args) or load(*args, **more))
    evaluate(EvaluateConfig(datasets="mlqa", samples=100), make())
    assert len(asked) == 4 + 1 # those that are there, and the archive


def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_all_missing_is_an_error_and_leaves_the_last_evaluation(mlqa):
    folder = evaluate(EvaluateConfig(datasets="mlqa", languages="de", samples=100), make()).folder
    before = contents(folder)
    assert before.keys() == {
        "config.json",
        "metrics.json",
        *(f"{kind}.mlqa.{x}.json" for kind in ("predictions", "spans") for x in ("de", "de-zh")),
    }
    with pytest.raises(MissingData, match="none of xquad, bipar can be had: xquad.ar: cannot get"):
        evaluate(EvaluateConfig(datasets="xquad,bipar", languages="ar,zh"), make())
    assert contents(folder) == before


def test_a_first_evaluation_that_fails_leaves_no_metrics(mlqa):
    config = EvaluateConfig(datasets="xquad", languages="ar")
    with pytest.raises(MissingData): evaluate(config, make())
    assert contents(config.folder("evaluate")).keys() == {"config.json"} # it began


def test_broken_data_leaves_the_last_evaluation(mlqa):
    config = EvaluateConfig(datasets="mlqa", languages="de", samples=100)
    folder = evaluate(config, make()).folder
    before = contents(folder)
    (mlqa / "mlqa/MLQA_V1/test/test-context-de-question-zh.json").write_text("{")
    with pytest.raises(DataError): evaluate(config, make(seed=1))
    after = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert after == before


class Killed(BaseException):
    "What stops a run from outside."


def stop_after(monkeypatch, tests):
    "Readers read so many tests, and are then stopped. Returns the list of what is read."
    read, whole = [], s2dm.evaluation.best_answers

    def stopped(reader, questions):
        if len(read) == tests: raise Killed
        read.append(questions["question"][0])
        return whole(reader, questions)

    monkeypatch.setattr(s2dm.evaluation, "best_answers", stopped)
    return read


def test_an_evaluation_that_was_stopped_goes_on(mlqa, monkeypatch):
    "The second call reads the rest only, and what is left equals an evaluation in one go."
    config = EvaluateConfig(datasets="mlqa", samples=100)
    whole = evaluate(config, make())
    expected = contents(whole.folder)
    shutil.rmtree(whole.folder)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Killed): evaluate(config, make())
    assert (
        not list(whole.folder.glob("predictions.*"))
        and not (whole.folder / "metrics.json").exists()
    )
    read = stop_after(monkeypatch, 2)
    again = evaluate(config, make())
    assert read == ["zh? 0", "zh? 0"] # de-zh and zh: en and de were there
    found = contents(again.folder)
    assert again.table.equals(whole.table) and again.results == whole.results
    assert found.keys() == expected.keys()
    for name in found.keys() - {"config.json"}: assert found[name] == expected[name], name
    assert json.loads(found["config.json"])["read_before"] == ["mlqa.en", "mlqa.de"]
    assert json.loads(expected["config.json"])["read_before"] == []


SCRIPT = KILLED_AT_A_FILE + """
import json
from s2dm.evaluation import EvaluateConfig, evaluate
evaluate(EvaluateConfig(**json.loads(sys.argv[2])))
"""


def test_an_evaluation_that_is_killed_ends_as_one_that_was_not(mlqa, tmp_path, monkeypatch):
    "Killed while it writes its fifth file, and again at the third of what was left."
    make().save_pretrained(tmp_path / "reader")
    config = EvaluateConfig(reader=str(tmp_path / "reader"), datasets="mlqa", samples=100)
    whole = evaluate(config)
    expected = contents(whole.folder)
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "killed"))
    for at in ("5", "3"):
        command = [sys.executable, "-c", SCRIPT, at, json.dumps(config.as_dict())]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        assert not (config.folder("evaluate") / "metrics.json").exists()
    again = evaluate(config)
    found = contents(again.folder)
    assert again.table.equals(whole.table) and found.keys() == expected.keys()
    for name in found.keys() - {"config.json"}: assert found[name] == expected[name], name


def test_a_stopped_evaluation_leaves_the_finished_one(mlqa, monkeypatch):
    config = EvaluateConfig(datasets="mlqa", samples=100)
    folder = evaluate(config, make()).folder
    before = contents(folder)
    stop_after(monkeypatch, 2)
    with pytest.raises(Killed): evaluate(config, make(seed=1))
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("change", ["weights", "settings", "questions", "lost"])
def test_another_reader_or_other_questions_are_read_anew(mlqa, monkeypatch, change):
    config = EvaluateConfig(datasets="mlqa", samples=100)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Killed): evaluate(config, make())
    reader = make(
        seed=int(change == "weights"), **dict(longest_characters=3) if change == "settings" else {})
    if change == "questions": # another one in German
        file = mlqa / "mlqa/MLQA_V1/test/test-context-de-question-de.json"
        file.write_text(
            file.read_text(encoding="utf-8").replace("de? 0", "wer? 0"), encoding="utf-8"
        )
    if change == "lost": # as by a kill while files were moved
        (config.folder("evaluate") / "progress/predictions.mlqa.de.json").unlink()
    read = stop_after(monkeypatch, 9)
    found = evaluate(config, reader)
    assert len(read) == (4 if change in ("weights", "settings") else 3)
    assert not (found.folder / "progress").exists()


def test_a_second_evaluation_leaves_nothing_of_the_first(mlqa):
    first = evaluate(EvaluateConfig(datasets="mlqa", samples=100), make())
    second = evaluate(EvaluateConfig(datasets="mlqa", languages="zh", samples=100), make(seed=1))
    assert first.folder == second.folder
    assert [p.name for p in first.folder.glob("predictions.*")] == ["predictions.mlqa.zh.json"]


def test_broken_data_stops_the_run(mlqa):
    (mlqa / "mlqa/MLQA_V1/test/test-context-de-question-zh.json").write_text("{")
    with pytest.raises(DataError, match="test-context-de-question-zh.json:1"):
        evaluate(EvaluateConfig(datasets="mlqa", languages="de"), make())


# Whose results these are

def test_the_reader_of_a_run_is_found_by_its_parameters(parts, mlqa, monkeypatch): # noqa: F811
    trained_as = finetune_config(parts, control="untrained", max_steps=2)
    done = finetune(trained_as)
    config = EvaluateConfig(
        **trained_as.system.as_dict() | dict(datasets="mlqa", samples=100))
    result = evaluate(config)
    assert result.folder.parts[-4:] == ("evaluate", *done.folder.parts[-3:])
    assert result.folder.parts[-2] == "s2dm_sp-refined-untrained"
    assert json.loads((result.folder / "metrics.json").read_text())["reader"] == done.reader.facts
    named = evaluate(
        EvaluateConfig(reader=str(done.folder / "checkpoint"), datasets="mlqa", samples=100))
    assert named.table.equals(result.table) and named.folder != result.folder
    for row in result.table.to_dict("records"):
        assert (result.folder / f"predictions.mlqa.{row['context']}.json").exists()
    asked = []
    monkeypatch.setattr(
        S2DMReader, "from_pretrained", lambda name: asked.append(name) or done.reader)
    found = evaluate(EvaluateConfig(reader="owner/reader", datasets="mlqa", samples=100))
    assert found.folder.parts[-2:] == ("evaluate", "owner--reader")
    assert asked == ["owner/reader"]


def test_the_run_decides_whether_the_reader_chooses_and_what_length_counts(tmp_path):
    from s2dm.spans import SpanChoice
    from s2dm.toy import toy_reader

    reader = toy_reader("baseline")
    reader.choice = SpanChoice(16)
    folder = str(tmp_path / "reader")
    reader.save_pretrained(folder)
    own = open_reader(EvaluateConfig(reader=folder))
    assert own.choice is not None and own.config.length_weight == 0
    other = open_reader(EvaluateConfig(reader=folder, choice="none", length_weight=.5))
    assert other.choice is None and other.config.length_weight == .5
    assert reader_sum(other) not in (reader_sum(own), reader_sum(reader))


def test_a_reader_that_is_not_there():
    with pytest.raises(
            MissingData,
            match="finetune/small/s2dm_pos-refined/seed2/checkpoint is not there: train the reader "
            "first, with nbs/04_finetune"):
        evaluate(EvaluateConfig(variant="s2dm_pos", seed=2))
    with pytest.raises(MissingData, match="is no folder and no hub id"):
        evaluate(EvaluateConfig(reader="nowhere"))


# Parts

def test_predict_answers_each_question_once():
    rows = [
        dict(id=f"q{i}", question="Wo?", context="Zürich liegt am See. " * (i + 1))
        for i in range(5)]
    reader = make()
    found = predict(reader, Dataset.from_list(rows))
    assert (list(found.items())
            == [(r["id"], reader.answer(r["question"], r["context"])[0].text) for r in rows])
    with pytest.raises(ParameterError, match="2 ids occur twice"):
        predict(reader, Dataset.from_list([*rows, *rows[:2]]))


def test_no_span_is_the_empty_answer():
    "A reader that is sure the answer is not there."
    reader = make(n_best=1)
    with torch.no_grad(): reader.head.weight.zero_()
    def at_the_beginning(h): return 2 * (torch.eye(1, h.shape[1]).expand(len(h), -1),)
    reader.span_scores = at_the_beginning
    questions = Dataset.from_list([dict(id="q", question="Wo?", context="Am See.", answers=dict(
        text=["See"], answer_start=[3]))])
    assert (
        best_answers(reader, questions) == {"q": NO_ANSWER}
        and predict(reader, questions) == {"q": ""}
        and score({"q": ""}, questions).em.tolist() == [0]
    )


def test_answers_keep_their_places(tmp_path):
    "Written, checked against context and text, and read again; without places the texts remain."
    rows = [
        dict(id=f"q{i}", question="Wo?", context="Zürich liegt am See. " * (i + 1))
        for i in range(5)
    ]
    questions = Dataset.from_list(rows)
    answers = best_answers(make(), questions) | dict(q4=NO_ANSWER)
    write_answers(tmp_path, "x.de", answers)
    spans, predictions = tmp_path / "spans.x.de.json", tmp_path / "predictions.x.de.json"
    assert read_answers(tmp_path, "x.de", questions) == answers
    places = json.loads(spans.read_text())
    assert places["q4"] is None and list(places) == list(answers)
    for row in rows[:4]:
        assert row["context"][slice(*places[row["id"]][:2])] == answers[row["id"]].text
    spans.write_text(json.dumps(places | dict(q2=[1, 4, 0.5])))
    with pytest.raises(DataError, match="spans.x.de.json, question q2: 'üri' stands at 1 to 4"):
        read_answers(tmp_path, "x.de", questions)
    spans.unlink()
    assert read_answers(tmp_path, "x.de", questions) == {i: a.text for i, a in answers.items()}
    predictions.unlink()
    with pytest.raises(MissingData, match="predictions.x.de.json is not there"):
        read_answers(tmp_path, "x.de", questions)


def test_both_ways_of_counting_where_mlqa_has_rules():
    questions = Dataset.from_list(
        [dict(id="q", context="Die Brücke", answers=dict(text=["Die Brücke"], answer_start=[0]))]
    )
    assert score({"q": "Brücke"}, questions).em[0] == 0
    assert mlqa_row({"q": "Brücke"}, questions, "de") == dict(em_mlqa=100, f1_mlqa=100)
    assert (
        mlqa_row({"q": "Brücke"}, questions, "fi")
        == mlqa_row({"q": "Brücke"}, questions, "")
        == dict(em_mlqa=None, f1_mlqa=None)
    )


def test_rows_and_tables():
    row = scores_row(
        Scores(["a", "b", "c"], np.array([0., 100, 100]), np.array([50., 100, 100])), samples=500)
    assert list(row) == ["questions", "em", "em_low", "em_high", "f1", "f1_low", "f1_high"]
    assert row["questions"] == 3
    assert row["em"] == pytest.approx(200 / 3)
    assert json.dumps(row)
    table = [
        dict(dataset=d, context=c, question=q, em=e, f1=f)
        for d, c, q, e, f in (("mlqa", "de", "de", 50., 60.), ("mlqa", "de", "zh", 0., 1.),
                              ("mlqa", "zh", "zh", 30., 50.), ("xquad", "zh", "zh", 1., 2.))]
    shown = wide(s2dm.evaluation.pd.DataFrame(table), "mlqa")
    assert shown.columns.tolist() == ["de", "zh", "average"]
    assert shown.loc[0].tolist() == ["50.0 / 60.0", "30.0 / 50.0", "40.0 / 55.0"]


# Real data

def test_real_data_sets_score_as_the_official_scripts_do(real, monkeypatch):
    """Some questions of several languages, with a tiny reader of random weights and mBERT's
    vocabulary."""
    tokenizer = mbert_tokenizer()
    sizes = dict(width=8, feed_forward=8, positions=512)
    reader = toy_reader(
        "baseline", 0, tokenizer, sizes, max_length=200, stride=64, query=ReaderConfig().query)
    def some(name, language, **more):
        return load_reading(name, language, **more).select(range(0, 100, 9))
    monkeypatch.setattr(s2dm.evaluation, "load_reading", some)
    result = evaluate(
        EvaluateConfig(datasets="xquad,tydiqa,bipar", languages="en,th,zh,te,fi", samples=200),
        reader)
    for row in result.results:
        assert (row["em_mlqa"] is None) == (row["context"] in ("th", "te", "fi"))
    rows = result.table.to_dict("records")
    assert ([(r["dataset"], r["context"], r["question"]) for r in rows]
            == [("xquad", x, x) for x in ("en", "th", "zh")]
                + [("tydiqa", x, x) for x in ("en", "fi", "te")]
                + [("bipar", c, q) for c in ("en", "zh") for q in ("en", "zh")])
    assert not result.missing and result.table["f1"].sum() > 0
    for row in rows:
        same_by_hand(
            result.folder, row,
            some(row["dataset"], row["context"], question_language=row["question"]), "squad")
