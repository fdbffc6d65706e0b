"""Constituents: the rule of matching, dependency subtrees against their definition, and a CoreNLP
server that misbehaves in every way.
"""
import json
import random
import runpy
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from s2dm.boundaries import (
    ChoiceLists, _spans_of, choice_row, edge_states, fit_choice, labelled_spans)
from s2dm.constituents import (
    RULES, Constituents, GoldParser, Parse, TreebankParser, Trees, boundary_row, constituent_rows,
    deficit_row, dependency_parse, overlap_row, places, read_brackets, restricted, rule_rows, share,
    trim, violation_row)
from s2dm.core import DataError, MissingData, ParameterError
from s2dm.features import Answer
from s2dm.grammar import LANGUAGES, Clause, Entity, Grammar, brackets
from s2dm.meanings import Draw, draw_clause
from s2dm.parsers import CoreNLP, Stanza
from s2dm.parsers import corenlp as kept_corenlp
from s2dm.reading import load_reading
from s2dm.spans import SpanChoice, SpanInputs
from s2dm.synthetic import Synthetic, SyntheticConfig, read_constituents
from s2dm.treebanks import MARKERS, phrases_of, subtree_runs

ROOT = Path(__file__).resolve().parent.parent


# the rule

@given(st.text("ab.,(«。 \n$", min_size=1, max_size=12), st.data())
def test_trimming_is_idempotent_and_keeps_what_is_no_punctuation(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    a, b = trim(text, start, end)
    assert start <= a < b <= end and trim(text, a, b) == (a, b)
    kept = [c for c in text[start:end] if c not in ".,(«。 \n"]
    assert [c for c in text[a:b] if c not in ".,(«。 \n"] == kept


@pytest.mark.parametrize("text, span, trimmed", [
    ("«Rome», he said", (0, 6), "Rome"), ("约翰。", (0, 3), "约翰"),
    ("$5 (five)", (0, 9), "$5 (five"), ("...", (0, 3), "..."), ("U.S. army", (0, 4), "U.S"),
    (" \u00a0a", (0, 3), "a"), ("¿Quién?", (0, 7), "Quién")])
def test_punctuation_is_what_unicode_says(text, span, trimmed):
    a, b = trim(text, *span)
    assert text[a:b] == trimmed


def test_symbols_and_inner_punctuation_count():
    text = "about 5% of it, or less"
    there = Constituents(text, Parse([(0, 5), (6, 7), (7, 8)], [(6, 8, "QP"), (0, 14, "NP")]))
    assert (6, 8) in there and (0, 15) in there and (0, 18) not in there
    assert (6, 7) in there and (6, 7) not in Constituents(text, Parse([], [(6, 8, "QP")]))


# trees

def subtree(heads, word): # the definition: the word and all below it
    below = {word}
    while more := {i for i, h in enumerate(heads, 1) if h in below} - below: below |= more
    return below


def by_definition(heads): # unions of complete subtrees of siblings, without gaps
    found, n = set(), len(heads)
    for parent in range(n + 1):
        children = [i for i, h in enumerate(heads, 1) if h == parent]
        for start in range(len(children)):
            for end in range(start + 1, len(children) + 1):
                for chosen in ([children[start]], children[start:end]):
                    words = sorted(set().union(*(subtree(heads, c) for c in chosen)))
                    if words[-1] - words[0] == len(words) - 1: found.add((words[0] - 1, words[-1]))
    return found


def random_tree(n, seed):
    rng = random.Random(seed)
    order = rng.sample(range(1, n + 1), n)
    heads = [0] * n
    for at, word in enumerate(order[1:], 1): heads[word - 1] = rng.choice(order[:at])
    return heads


@pytest.mark.parametrize("seed", range(60))
def test_subtree_runs_are_what_the_definition_says(seed):
    heads = random_tree(1 + seed % 9, seed)
    assert set(subtree_runs(heads)) == by_definition(heads)
    assert subtree_runs(heads) == sorted(set(subtree_runs(heads)))


def test_what_is_no_tree_is_refused():
    for heads in ([2, 1], [0, 0], [0, 3], []):
        with pytest.raises(DataError): subtree_runs(heads)


def test_generated_phrases_are_dependency_subtrees():
    """Two independent descriptions of the same sentences. A noun phrase is no subtree if an
    adposition or a second name hangs on its noun; all other phrases are."""
    for language in ("svo", "sov_case", "v2_bracket", "free_case"):
        grammar = Grammar(LANGUAGES[language])
        draw = Draw("test", "constituents")
        phrases = 0
        missed = 0
        for _ in range(60):
            s = grammar(draw_clause(draw))
            runs = set(subtree_runs(s.heads))
            spans = [(a, b) for a, b, *_ in s.spans]
            lost = [(a, b, label) for a, b, label, _ in s.spans if (a, b) not in runs]
            for a, b, label in lost: # something outside hangs on a word inside
                assert label == "NP"
                assert ({w.deprel
                         for w, h in zip(s.words[:a] + s.words[b:], s.heads[:a] + s.heads[b:])
                         if a < h <= b}
                        & {"case", "conj", "cc"})
            phrases, missed = phrases + len(spans), missed + len(lost)
            words, found = read_brackets(brackets(s.root))
            assert words == [w.form for w in s.words]
            assert {(a, b) for a, b, _ in found} == set(spans)
        # case suffixes are no words
        assert missed / phrases < (.05 if language == "free_case" else .3)


def test_a_flat_phrase_of_two_names():
    s = Grammar(LANGUAGES["svo"])(Clause(
        "visit", Entity("Anna", "name", other=Entity("Boris", "name")), Entity("baker", "person")))
    assert (0, 3) in subtree_runs(s.heads) and (0, 1) not in subtree_runs(s.heads)


@pytest.mark.parametrize("tree, words, phrases", [
    ("(ROOT (NP (NN dog)))", ["dog"], [(0, 1, "NP")]),
    # Penn's label-less top; a phrase of a trace is none
    ("( (S (NP-SBJ (-NONE- *)) (VP (VB go))) )", ["go"], [(0, 1, "S"), (0, 1, "VP")]),
    ("(S (NP (-LRB- -LRB-) (NN a) (-RRB- -RRB-)) (. .))", ["-LRB-", "a", "-RRB-", "."],
     [(0, 3, "NP"), (0, 4, "S")]),
    ("(S\n  (NP (NN a))\n\t(VP (VB b)))", ["a", "b"], [(0, 1, "NP"), (0, 2, "S"), (1, 2, "VP")])])
def test_brackets(tree, words, phrases):
    assert read_brackets(tree) == (words, phrases)


@given(st.text("()ab \n", max_size=30))
def test_broken_brackets_are_refused_or_sound(text):
    try: words, phrases = read_brackets(text)
    except DataError: return
    assert words and all(0 <= a < b <= len(words) for a, b, _ in phrases)


def test_a_treebank_parses_its_own_sentences():
    corpus = Synthetic(SyntheticConfig(languages=("svo", "sov_case"), sentences=20))
    rows = corpus.sentences("dev", ["sov_case"])
    parser, text = TreebankParser(rows), rows["text"][0]
    parse = parser([text])[0]
    assert (0, len(text), "subtree") in parse.phrases and len(parse.words) == len(rows["forms"][0])
    with pytest.raises(MissingData, match="the treebank lacks"): parser(["Who?"])


# CoreNLP

def said(text, sentences): # what a server answers: sentences as lists of words, each with its tree
    at, out, units = 0, [], lambda i: len(text[:i].encode("utf-16-le")) // 2 # Java's
    for words, tree in sentences:
        tokens = []
        for w in words:
            at = text.index(w, at)
            tokens.append(dict(
                word=w, originalText=w, characterOffsetBegin=units(at),
                characterOffsetEnd=units(at + len(w))))
            at += len(w)
        out.append(dict(parse=tree, tokens=tokens))
    return dict(sentences=out)


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.asked.append(
            (text, json.loads(parse_qs(urlparse(self.path).query)["properties"][0])))
        answer = (self.server.answers.popleft()
                  if len(self.server.answers) > 1
                  else self.server.answers[0])
        if answer == "hang": self.server.hold.wait(5)
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        body = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args): pass


@pytest.fixture
def corenlp():
    """A function that starts a server with these answers, one after the other, the last again and
    again."""
    servers = []

    def start(*answers):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
        server.answers, server.asked, server.hold = deque(answers), [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.hold.set()
        server.shutdown()
        server.server_close()


TEXT = "Anna slept (in Rome). She woke."
TREES = [
    (["Anna", "slept", "(", "in", "Rome", ")", "."],
     "(ROOT\n (S (NP (NNP Anna)) (VP (VBD slept) (PRN (-LRB- -LRB-) (PP (IN in) (NP (NNP Rome))) "
     "(-RRB- -RRB-))) (. .)))"),
    (["She", "woke", "."], "(ROOT (S (NP (PRP She)) (VP (VBD woke)) (. .)))")]


def test_corenlp_parses(corenlp):
    server = corenlp(said(TEXT, TREES))
    parse = CoreNLP(server.url, "zh")([TEXT])[0]
    there = Constituents(TEXT, parse, words=False)
    assert {TEXT[a:b] for a, b in there.spans} == {
        "Anna", "Anna slept (in Rome", "slept (in Rome", "in Rome", "Rome", "She woke", "She",
        "woke"}
    assert len(parse.words) == 10 and (0, len(TEXT)) not in there # two sentences
    (text, properties), = server.asked
    assert text == TEXT
    assert properties == dict(
        annotators="tokenize,ssplit,pos,parse", outputFormat="json", pipelineLanguage="zh")


def test_offsets_are_utf16(corenlp):
    text = "😀 𠮷野家 opened."
    server = corenlp(said(text, [(
        ["😀", "𠮷野家", "opened", "."],
        "(ROOT (S (NP (SYM x) (NNP 𠮷野家)) (VP (VBD opened)) (. .)))")]))
    assert ([text[a:b] for a, b in CoreNLP(server.url)([text])[0].words]
            == ["😀", "𠮷野家", "opened", "."])


def test_a_busy_server_is_asked_again(corenlp):
    busy = (500, "CoreNLP request timed out. Your document may be too long.")
    server = corenlp(busy, (503, "busy"), said(TEXT, TREES))
    assert CoreNLP(server.url)([TEXT]) and len(server.asked) == 3
    server = corenlp(busy)
    with pytest.raises(DataError, match="timed out.*longer timeout"):
        CoreNLP(server.url, attempts=2)([TEXT])
    assert len(server.asked) == 2


def test_a_server_that_hangs(corenlp):
    server = corenlp("hang", said(TEXT, TREES))
    assert CoreNLP(server.url, timeout=.3)([TEXT])
    server = corenlp("hang")
    with pytest.raises(DataError, match="no answer within 0.2 s"):
        CoreNLP(server.url, timeout=.2, attempts=2)([TEXT])
    assert len(server.asked) == 2


def test_a_broken_request_is_not_repeated(corenlp):
    server = corenlp((500, "java.lang.RuntimeException: no model"))
    with pytest.raises(DataError, match="status 500, 'java.lang.RuntimeException"):
        CoreNLP(server.url)([TEXT])
    assert len(server.asked) == 1


def _shifted(): # a token at another place
    answer = said(TEXT, TREES)
    answer["sentences"][0]["tokens"][1]["characterOffsetBegin"] += 1
    return answer


def _beyond():
    answer = said(TEXT, TREES)
    answer["sentences"][1]["tokens"][2]["characterOffsetEnd"] += 9
    return answer


def _fewer(): # a token that the tree does not have
    answer = said(TEXT, TREES)
    del answer["sentences"][0]["tokens"][2]
    return answer


@pytest.mark.parametrize("answer, message", [
    ("<html>Welcome</html>", "expected JSON"),
    ('{"sentences": [', "expected JSON"),
    ({}, "lacks 'sentences'"),
    ([], "lacks"),
    (dict(sentences=[{}]), "lacks 'parse'"),
    (dict(sentences=[dict(parse="(S", tokens=[])]), "does not end"),
    (_shifted(), "token 'slept' is not in the text at 6; 'lept' is"),
    (_beyond(), "lacks"),
    (_fewer(), "the tree has 7 words, the sentence 6"),
    (dict(sentences=[dict(parse="(S (NN a))", tokens=[
         dict(characterOffsetBegin=3, characterOffsetEnd=1)])]),
     "a word at characters 3 to 1")])
def test_nonsense_is_refused(corenlp, answer, message):
    with pytest.raises(DataError, match="CoreNLP|tree") as error:
        CoreNLP(corenlp(answer).url)([TEXT])
    assert message in str(error.value)


def test_no_server_says_how_to_start_one():
    with pytest.raises(MissingData, match="StanfordCoreNLPServer"):
        CoreNLP("http://127.0.0.1:9", timeout=2)([TEXT])
    with pytest.raises(ParameterError): CoreNLP(timeout=0)


# stanza

def stanza_document(tree, heads, starts=((0, 4, 1), (5, 10, 1), (10, 11, 1))):
    tokens = [SimpleNamespace(start_char=a, end_char=b, words=[None] * n) for a, b, n in starts]
    return SimpleNamespace(sentences=[SimpleNamespace(tokens=tokens, constituency=tree, words=[
        SimpleNamespace(head=h) for h in heads])])


def test_stanza_documents():
    text, tree = "Anna slept.", "(ROOT (S (NP (NNP Anna)) (VP (VBD slept)) (. .)))"
    found = Stanza(lambda _: stanza_document(tree, [2, 0, 2]))([text])[0]
    assert found.phrases == [(0, 4, "NP"), (0, 11, "S"), (5, 10, "VP")]
    assert (Stanza(lambda _: stanza_document(None, [2, 0, 2]), "depparse")([text])[0]
            == dependency_parse([(0, 4), (5, 10), (10, 11)], [2, 0, 2]))
    for document, trees, message in (
            (stanza_document(None, []), "constituency", "processor 'constituency'"),
            (stanza_document(None, [None]), "depparse", "processor 'depparse'"),
            (stanza_document(None, [0]), "depparse", "1 heads for 3 words"),
            (stanza_document("(S (NN a))", []), "constituency", "1 words, the sentence 3")):
        with pytest.raises(DataError, match=message): Stanza(lambda _, d=document: d, trees)([text])
    with pytest.raises(ParameterError): Stanza(None, "amr")


# answers

def asked(*rows): # context, answer, start
    return Dataset.from_list(
        [dict(id=f"q{i}", context=c, question="?", answers=dict(text=[t], answer_start=[a]))
         for i, (c, t, a) in enumerate(rows)])


CONTEXT = "The old king saw the old king of France."
PHRASES = [
    (0, 12, "NP"), (17, 29, "NP"), (33, 39, "NP"), (30, 39, "PP"), (17, 39, "NP"), (0, 40, "S")]


def test_a_prediction_counts_in_any_of_its_places():
    questions = asked((CONTEXT, "The old king", 0), (CONTEXT, "the old king of France", 17))
    trees = Trees(questions, GoldParser({CONTEXT: PHRASES}))
    rows = constituent_rows(questions, trees, {"q0": "old king of France", "q1": ""})
    assert [r["spans_constituent"] for r in rows] == [100, 0]
    assert [r["of"] for r in rows] == ["gold", "predicted"]
    assert (constituent_rows(questions, trees, {"q0": "king", "q1": "saw"})[1]["spans_constituent"]
            == 100)
    assert constituent_rows(questions, trees, {"q0": "king", "q1": "saw"})[1]["spans_phrase"] == 0
    assert len(constituent_rows(questions, trees)) == 1


def test_errors_are_told_apart():
    questions = asked(*[(CONTEXT, "the old king of France", 17)] * 4)
    row = boundary_row(
        questions, {"q0": "the old king of France.", "q1": "old king", "q2": "saw", "q3": ""})
    assert row["errors"] == 75
    assert row["boundary_errors"] == 25
    assert row["wrong_place"] == 50
    assert row["questions"] == 4


def test_places_decide_not_texts():
    "The same text stands twice: a search finds it near the right answer, the place does not."
    context = "the king saw the king of France"
    questions = asked((context, "the king of France", 13))
    first, second = (dict(q0=Answer("the king", a, a + 8, 1.0)) for a in (0, 13))
    found = [boundary_row(questions, said) for said in (dict(q0="the king"), first, second)]
    assert [(r["boundary_errors"], r["wrong_place"], r["placed"]) for r in found] == [
        (100, 0, "text"),
        (0, 100, "spans"),
        (100, 0, "spans"),
    ]
    trees = Trees(
        questions,
        GoldParser({context: [(0, 8, "NP"), (13, 31, "NP"), (22, 31, "PP"), (0, 31, "S")]}),
    )
    rows = [
        constituent_rows(questions, trees, said)[1] for said in (dict(q0="the king"), first, second)
    ]
    assert [(r["spans_constituent"], r["placed"]) for r in rows] == [
        (100, "text"),
        (100, "spans"),
        (0, "spans"),
    ]
    assert constituent_rows(questions, trees)[0]["placed"] == "spans" # gold answers have places
    right = dict(q0="the king of France")
    rows = [
        violation_row(questions, trees, said, right)
        for said in (dict(q0="the king"), first, second)
    ]
    assert [(r["violating"], r["placed"], r["reference_placed"]) for r in rows] == [
        (0, "text", "text"),
        (0, "spans", "text"),
        (1, "spans", "text"),
    ]


def test_an_empty_answer_has_no_place():
    questions = asked((CONTEXT, "the old king", 17))
    nothing = Answer("", 0, 0, 0.0)
    trees = Trees(questions, GoldParser({CONTEXT: PHRASES}))
    for said in (dict(q0=""), dict(q0=nothing)):
        assert boundary_row(questions, said)["wrong_place"] == 100
        assert constituent_rows(questions, trees, said)[1]["spans_constituent"] == 0
    with pytest.raises(ParameterError, match="expected one kind"):
        boundary_row(asked(*[(CONTEXT, "saw", 13)] * 2), dict(q0=nothing, q1="saw"))


RIGHT = "the old king of France" # a constituent of CONTEXT
# what the transferred reader says, the reference -> questions, violating, violating_near
VIOLATIONS = {
    "right everywhere": ([RIGHT, RIGHT], [RIGHT, RIGHT], (2, 0, 0)),
    "wrong and no constituent": (["old king of", RIGHT], [RIGHT, RIGHT], (2, 1, 1)),
    "wrong, no constituent, another place": (["king saw", RIGHT], [RIGHT, RIGHT], (2, 1, 0)),
    "wrong but a constituent": (["France", "the old king"], [RIGHT, RIGHT], (2, 0, 0)),
    "the reference is wrong": (["old king of", "old king of"], ["saw", RIGHT], (1, 1, 1)),
    "no answer": (["", RIGHT], [RIGHT, RIGHT], (2, 1, 0)),
    "the reference is wrong everywhere": (["x", "x"], ["saw", ""], None),
}


@pytest.mark.parametrize("said, reference, counts", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_violations_are_the_papers_quantity(said, reference, counts):
    questions = asked(*[(CONTEXT, RIGHT, 17)] * 2)
    trees = Trees(questions, GoldParser({CONTEXT: PHRASES}))
    row = violation_row(
        questions, trees, dict(q0=said[0], q1=said[1]), dict(q0=reference[0], q1=reference[1])
    )
    if counts is None: assert row is None
    else:
        assert (row["questions"], row["violating"], row["violating_near"]) == counts
        assert (
            row["violations"] == 100 * counts[1] / counts[0]
            and row["low"] <= row["violations"] <= row["high"]
        )


def test_a_right_answer_that_is_no_constituent_does_not_count():
    "Neither below the line, if the reference gives it, nor above it, if the other one does."
    rows = [
        dict(
            id=i,
            context=CONTEXT,
            question="?",
            answers=dict(text=["old king of", RIGHT], answer_start=[21, 17]),
        )
        for i in ("q0", "q1")
    ]
    questions = Dataset.from_list(rows)
    trees = Trees(questions, GoldParser({CONTEXT: PHRASES}))
    broken = dict(q0="saw the", q1="saw the")
    row = violation_row(questions, trees, broken, dict(q0="old king of", q1=RIGHT))
    assert (row["questions"], row["violating"]) == (1, 1)
    assert violation_row(questions, trees, broken, dict(q0="old king of", q1="old king of")) is None
    row = violation_row(
        questions, trees, dict(q0="old king of", q1="old king of"), dict(q0=RIGHT, q1=RIGHT)
    )
    assert (row["questions"], row["violating"], row["violations"]) == (2, 0, 0)


def test_violations_of_phrases_leave_single_words_out():
    questions = asked((CONTEXT, "saw", 13), (CONTEXT, RIGHT, 17))
    trees = Trees(questions, GoldParser({CONTEXT: PHRASES}))
    row = violation_row(questions, trees, dict(q0="king saw", q1="king"), dict(q0="saw", q1=RIGHT))
    assert (row["questions"], row["violating"]) == (2, 1)  # "king" is a word, and so a constituent
    assert (row["phrase_questions"], row["phrase_violating"], row["phrase_violations"]) == (
        1,
        1,
        100,
    )
    row = violation_row(questions, trees, dict(q0="king saw", q1="king"), dict(q0="saw", q1="x"))
    assert (row["questions"], row["phrase_questions"], row["phrase_violations"]) == (1, 0, None)


def test_right_is_what_the_data_set_calls_right():
    context = "Er sah die Brücke."
    questions = asked((context, "Brücke", 11))
    trees = Trees(questions, GoldParser({context: [(7, 17, "NP")]}))
    said, reference = dict(q0="sah die"), dict(q0="die Brücke")
    assert (
        violation_row(questions, trees, said, reference) is None
    )  # by SQuAD's rules the article counts
    row = violation_row(questions, trees, said, reference, "mlqa", "de")
    assert (row["questions"], row["violating"]) == (1, 1)


@given(st.lists(st.tuples(st.integers(0, 39), st.integers(1, 12)), max_size=6))
def test_restricting_takes_the_first_constituent(spans):
    there = Constituents(CONTEXT, Parse([], PHRASES))
    answers = [
        Answer(CONTEXT[a:a + n], a, min(a + n, 40), -float(i)) for i, (a, n) in enumerate(spans)]
    fit = [a for a in answers if (a.start, a.end) in there]
    assert restricted(answers, there) == (fit or answers or [Answer("", 0, 0, 0)])[0].text


def test_shares_have_intervals():
    flags = np.arange(100) < 93
    mean, low, high = share(flags)
    assert mean == 93 and 86 < low < 93 < high < 99
    with pytest.raises(ParameterError): share([])
    assert places("aaa", "aa") == [(0, 2), (1, 3)] and places("a", "") == []


def test_gold_answers_of_the_generated_corpus_are_phrases():
    corpus = Synthetic(SyntheticConfig(languages=("svo", "free_case"), questions=1, held_out=30))
    for language in corpus.languages:
        questions = corpus.reading(language)
        trees = Trees(
            questions,
            GoldParser(read_constituents(corpus.path("reading", "test", f"{language}.json"))))
        assert constituent_rows(questions, trees)[0]["spans_phrase"] == 100


# rules

# what an independent count found, percent of the gold answers: strict, brackets
COUNTED = {
    ("xquad", "en"): (70.3, 86.6),
    ("xquad", "zh"): (77.0, 85.2),
    ("tydiqa", "en"): (66.6, 78.9),
    ("bipar", "en"): (65.9, 80.3),
    ("bipar", "zh"): (72.3, 83.1),
    ("xquad", "de"): (None, 87.3),
    ("xquad", "es"): (None, 84.6),
    ("xquad", "ar"): (None, 80.7),
}


@pytest.mark.parametrize("dataset, language", COUNTED)
def test_table1_is_what_another_count_found(real, dataset, language):
    rows = rule_rows(load_reading(dataset, language), kept_corenlp(language), samples=100)
    shares = {row["rule"]: row["share"] for row in rows}
    for rule, share_found in zip(("strict", "brackets"), COUNTED[dataset, language]):
        assert share_found is None or shares[rule] == pytest.approx(share_found, abs=.051)
    assert shares["any"] >= max(shares.values())


def penn(*leaves): # a text and its parse: leaves as (word, tag), phrases by numbers of words
    text, words = " ".join(word for word, _ in leaves), []
    for word, _ in leaves:
        start = words[-1][1] + 1 if words else 0
        words.append((start, start + len(word)))
    return text, words, [tag for _, tag in leaves]


TEXT_OF_RULES, WORDS_OF_RULES, TAGS_OF_RULES = penn(
    ("of", "IN"), ("the", "DT"), ("old", "JJ"), ("king", "NN"), (",", ","), ("Karl", "NNP"),
    ("died", "VBD"), (".", "."), ("She", "PRP"), ("ruled", "VBD"),
)
NODES_OF_RULES = [(0, 5), (1, 4), (5, 6), (0, 8), (8, 10)]


def ruled(first, last, rule, cut=0): # is the run of words a constituent?
    phrases = [(WORDS_OF_RULES[i][0], WORDS_OF_RULES[j - 1][1], "X") for i, j in NODES_OF_RULES]
    sentences = [(0, WORDS_OF_RULES[7][1]), (WORDS_OF_RULES[8][0], len(TEXT_OF_RULES))]
    parse = Parse(WORDS_OF_RULES, phrases, TAGS_OF_RULES, sentences)
    there = Constituents(TEXT_OF_RULES, parse, rule=rule)
    return (WORDS_OF_RULES[first][0] + cut, WORDS_OF_RULES[last - 1][1]) in there


@pytest.mark.parametrize("first, last, rules", [
    (1, 4, "characters strict edges leading brackets string"),  # the old king
    (2, 4, "leading brackets"),  # old king: the article may be left out
    (0, 4, "characters edges leading brackets string"),  # of the old king, without the comma
    (4, 5, "characters strict edges leading brackets string"),  # a comma is a word
    (5, 7, "brackets"),  # Karl died: siblings
    (6, 9, ""),  # over two sentences
    (3, 6, ""),  # king , Karl
])
def test_each_rule_on_one_tree(first, last, rules):
    assert {rule for rule in RULES if ruled(first, last, rule)} == set(rules.split())


def test_an_answer_that_cuts_a_token_touches_it():
    assert ruled(1, 4, "strict", cut=1) and ruled(1, 4, "brackets", cut=1)
    assert not ruled(1, 4, "characters", cut=1) and not ruled(1, 4, "string", cut=1)


def test_rules_are_checked():
    with pytest.raises(ParameterError, match="rule='brakets'"):
        Constituents("a", Parse([(0, 1)], []), rule="brakets")
    with pytest.raises(DataError, match="no tags"):
        Constituents("a", Parse([(0, 1)], []), rule="leading")


@pytest.mark.parametrize("rule", ["strict", "brackets"])
def test_overlapping_errors_are_divided_without_rest(rule):
    said = ["old king", "The old king of", "saw the", "France", "the old king", ""]
    asked_of = asked(*[(CONTEXT, "the old king of France", 17)] * 5, (CONTEXT, "king saw", 8))
    predictions = {f"q{i}": answer for i, answer in enumerate(said)}
    trees = Trees(asked_of, GoldParser({CONTEXT: PHRASES}), rule)
    row = overlap_row(asked_of, trees, predictions)
    parts = ("breaks", "both_keep", "both_break", "only_predicted_keeps")
    assert sum(row[part] for part in parts) == row["wrong_overlapping"]
    assert row["neither"] == row["both_break"] + row["only_predicted_keeps"]


def test_overlapping_errors_by_hand():
    golds = [(CONTEXT, "the old king of France", 17)] * 3 + [(CONTEXT, "king saw", 8)] * 2
    places_said = [(21, 29), (17, 29), (0, 12), (8, 24), (0, 12)]
    predictions = {}
    for i, (a, b) in enumerate(places_said): predictions[f"q{i}"] = Answer(CONTEXT[a:b], a, b, 0.)
    questions = asked(*golds)
    trees = Trees(questions, GoldParser({CONTEXT: PHRASES}), "strict")
    row = overlap_row(questions, trees, predictions)
    assert row["wrong_overlapping"] == 4 and row["placed"] == "spans"  # q2 is elsewhere
    assert (row["breaks"], row["both_keep"]) == (1, 1)
    assert (row["both_break"], row["only_predicted_keeps"]) == (1, 1)
    found = deficit_row(questions, trees, predictions, samples=200)
    assert (found["gold"], found["predicted"], found["deficit"]) == (60, 60, 0)
    assert found["low"] < 0 < found["high"]


# phrases and near misses, and a choice between overlapping spans

def spans_of(seed):
    from s2dm.toy import random_sentences

    sentences = random_sentences(seed=seed)
    return sentences, labelled_spans(sentences, seed=seed)


@pytest.mark.parametrize("seed", range(5))
def test_half_of_the_spans_are_phrases_and_the_others_miss_one_by_at_most_three_words(seed):
    sentences, spans = spans_of(seed)
    assert spans.phrase.tolist() == [True, False] * (len(spans.phrase) // 2)
    for phrase, miss in zip(range(0, len(spans.phrase), 2), range(1, len(spans.phrase), 2)):
        number = int(spans.sentence[phrase])
        assert number == spans.sentence[miss]
        row = sentences[number]
        starts = np.cumsum([0, *(len(form) + 1 for form in row["forms"])])
        def words(i, starts=starts):
            ends = (spans.start[i], spans.end[i] + 1)
            return tuple(int(np.flatnonzero(starts == end)[0]) for end in ends)

        phrases = phrases_of(row["heads"], row["upos"])
        assert words(phrase) in phrases and words(miss) not in phrases
        moved = np.abs(np.subtract(words(phrase), words(miss)))
        assert sorted(moved > 0) == [False, True] and moved.max() <= 3
        for i, j in (words(phrase), words(miss)):
            assert "PUNCT" not in (row["upos"][i], row["upos"][j - 1])


def phrase_texts(sentence, heads, tags, markers=MARKERS):
    words = sentence.split()
    return {" ".join(words[i:j]) for i, j in phrases_of(heads, tags.split(), markers)}


@pytest.mark.parametrize("sentence, heads, tags, phrases", [
    # what an English answer looks like, with and without its preposition
    ("She lives in Great Britain", [2, 0, 5, 5, 2], "PRON VERB ADP ADJ PROPN",
     {"She", "Great", "in Great Britain", "Great Britain"}),
    # two markers in front; the head of the sentence is in no phrase
    ("He left and with her", [2, 0, 5, 5, 2], "PRON VERB CCONJ ADP PRON",
     {"He", "and with her", "with her", "her"}),
    # a postposition, and a clause without what introduces it
    ("ghar mein vah hai ki thik hai", [4, 1, 4, 0, 6, 4, 6], "NOUN ADP PRON VERB SCONJ ADJ AUX",
     {"ghar mein", "ghar", "vah", "ki thik hai", "thik hai"}),
    # punctuation at the edges belongs to nothing, within it is no gap
    ("It was the ( old , red ) house .", [9, 9, 9, 5, 9, 7, 5, 5, 0, 9],
     "PRON AUX DET PUNCT ADJ PUNCT ADJ PUNCT NOUN PUNCT", {"It", "old , red", "red"}),
    # a subtree in pieces is no phrase
    ("A man came in black", [2, 3, 0, 5, 2], "DET NOUN VERB ADP NOUN", {"in black", "black"})])
def test_phrases_are_what_an_answer_may_be(sentence, heads, tags, phrases):
    assert phrase_texts(sentence, heads, tags) == phrases


def test_the_head_of_a_phrase_is_the_word_that_hangs_on_another():
    "She saw [the old house]: NOUN."
    heads = [2, 0, 5, 5, 2]
    tags = ["PRON", "VERB", "DET", "ADJ", "NOUN"]
    assert phrases_of(heads, tags) == {(0, 1): 0, (3, 4): 3, (2, 5): 4}
    assert phrases_of(heads, tags, ["DET"]) == {(0, 1): 0, (3, 4): 3, (2, 5): 4, (3, 5): 4}
    with pytest.raises(DataError): phrases_of([2, 1], ["NOUN", "NOUN"])


def test_no_miss_could_pass_for_a_phrase():
    "[Great Britain] was a miss of [Great], and [in Great] a phrase."
    tags = ["PRON", "VERB", "ADP", "ADJ", "PROPN"]
    text = "She lives in Great Britain"
    drawn = [_spans_of(text.split(), text, tags, [2, 0, 5, 5, 2], 8, np.random.default_rng(seed))
             for seed in range(40)]
    spans = [(text[start:end], is_phrase) for row in drawn for start, end, is_phrase, _ in row]
    assert {words for words, is_phrase in spans if is_phrase} == {
        "She", "Great", "in Great Britain", "Great Britain"}
    misses = {words for words, is_phrase in spans if not is_phrase}
    assert {"in Great", "lives in Great Britain", "Britain"} <= misses
    assert "Great Britain" not in misses


def test_edges_are_read_at_the_words_of_the_sentence():
    "As if each sentence were read alone, and its subwords counted by hand."
    from s2dm.toy import toy_reader

    sentences, spans = spans_of(0)
    reader = toy_reader("baseline")
    seen, kept = edge_states(reader, sentences, spans, ["who?", "where?"])
    assert kept.tolist() == list(range(len(spans.start)))
    for i in range(0, len(kept), 7):
        number = int(spans.sentence[i])
        text = sentences[number]["text"]
        question = ["who?", "where?"][number % 2]
        before = 1 + len(question) + 1 # a subword is a character here; [CLS], [SEP]
        def subword(character, text=text, before=before):
            return before + len(text[:character].replace(" ", ""))

        windows = reader.windows(dict(question=[question], context=[text]))
        (_, h, _), = reader.read_states(windows)
        first, last = subword(spans.start[i]), subword(spans.end[i]) - 1
        gold = h[0, [first - 1, first, last, last + 1]].flatten()
        assert seen[i].tolist() == pytest.approx(gold.tolist(), abs=2e-3)


@pytest.mark.parametrize("length", [10, 150]) # one window, several
@pytest.mark.parametrize("seed", range(3))
def test_a_choice_takes_the_worthiest_of_what_overlaps_the_best(length, seed):
    from s2dm.toy import random_words, toy_reader

    reader = toy_reader("baseline", seed=seed)
    rng = np.random.default_rng(seed)
    texts = [" ".join(random_words(rng, length)) for _ in range(4)]
    windows = reader.windows(dict(question=["who?"] * 4, context=texts))
    assert (len(windows) > 4) == (length > 100)
    plain = reader.read(windows, top_k=20)
    reader.choice = SpanChoice(16)
    assert reader.read(windows, top_k=20) == plain # it has learned nothing yet
    torch.nn.init.normal_(reader.choice.phrases.outer.weight, std=5)
    with torch.no_grad(): reader.choice.weights.copy_(torch.tensor([0., 1.]))
    said = reader._read(windows)
    worth = {} # as written down window by window
    for place, window in enumerate(said.order):
        row = int(windows.row[window])
        pairs = zip(*windows.characters(np.full(20, window), *(x[place] for x in said.spans[:2])))
        for rank, span in enumerate(pairs):
            score = said.spans.score[place, rank]
            if score == -np.inf: continue
            known = (-score, window, said.worth[place, rank])
            worth[(row, *span)] = min(worth.get((row, *span), known), known)
    changed = 0
    for row, (chosen, before) in enumerate(zip(reader.read(windows, top_k=20), plain)):
        best = before[0]
        near = [a for a in before if a.start < best.end and best.start < a.end]
        wanted = max(near, key=lambda a: worth[row, a.start, a.end][2])
        assert chosen[0] == wanted
        assert chosen[1:] == [a for a in before if a != wanted]
        changed += wanted != best
    assert changed


@pytest.mark.parametrize("weight", [5, -5])
def test_a_reader_that_wants_short_answers_and_one_that_wants_long_ones(weight):
    from s2dm.reader import ReaderConfig
    from s2dm.toy import random_words, toy_reader

    reader = toy_reader("baseline")
    rng = np.random.default_rng(0)
    texts = [" ".join(random_words(rng, 150)) for _ in range(4)] # several windows each
    windows = reader.windows(dict(question=["who?"] * 4, context=texts))
    plain = reader.read(windows, top_k=20)
    reader.config = ReaderConfig(**reader.config.as_dict() | dict(length_weight=weight))
    for chosen, before in zip(reader.read(windows, top_k=20), plain):
        best = before[0]
        near = [a for a in before if a.start < best.end and best.start < a.end]
        assert chosen[0] == max(near, key=lambda a: a.score - weight * np.log(a.end - a.start))
    lengths = [[len(found[0].text) for found in answers]
               for answers in (reader.read(windows), plain)]
    assert np.sign(np.mean(lengths[0]) - np.mean(lengths[1])) == -np.sign(weight)


def test_what_is_learned_from_lists_is_right_on_others_and_the_reader_is_kept_by_it():
    "A choice that has no reason to change anything changes next to nothing."
    drawn = torch.Generator().manual_seed(0)
    def lists(count):
        score = 3 * torch.randn(count, 6, generator=drawn)
        sizes = ((6,), (6, 17), (6, 8), (8,))
        noise = [torch.randn(count, *size, generator=drawn) for size in sizes]
        right = torch.nn.functional.one_hot(score.argmax(-1), 6).bool()
        return ChoiceLists(SpanInputs(score, noise[0], noise[1].softmax(-1), *noise[2:]),
                           torch.ones(count, 6, dtype=torch.bool), right)

    known = fit_choice(SpanChoice(8), lists(2000))
    row = choice_row(known, lists(500))
    assert row["by_score"] == 100 and row["by_worth"] > 90


# the script that measures what keeping to constituents gains

def test_a_test_that_was_decoded_with_a_reader_is_not_read_again(
        with_e5, mirror_folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("S2DM_MIRROR", mirror_folder)
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    measure = runpy.run_path(str(ROOT / "experiments/decoding.py"))["measure"]
    monkeypatch.setitem(measure.__globals__, "CELLS", [("xquad", "en"), ("xquad", "zh")])
    monkeypatch.setitem(
        measure.__globals__, "load_reading", lambda *test: load_reading(*test).select(range(10)))
    file = tmp_path / "decoding.csv"
    table = measure("e5", file, samples=100)
    capsys.readouterr()
    assert len(table) == 2 * len(RULES) and set(table["questions"]) == {10}
    whole = table[table["rule"] == "brackets"] # the best answer, where it crosses nothing
    assert whole["em"].max() > 0
    gain = whole["em_constituents"] - whole["em"]
    assert gain.tolist() == pytest.approx(whole["gain"].tolist())
    written = file.read_bytes()
    lines = written.decode().splitlines(keepends=True)
    file.write_text("".join(lines[:1 + len(RULES)])) # stopped after the first test
    monkeypatch.setitem(measure.__globals__, "CELLS", [("xquad", "zh")])
    measure("e5", file, samples=100)
    assert file.read_bytes() == written and "en" not in capsys.readouterr().out
    sum = lines[1].rstrip().rpartition(",")[2]
    old = [line.replace(sum, "another") for line in lines[1:3]] # of one that had the same name
    other = [line.replace("e5,", "mine,", 1) for line in lines[1:3]]
    file.write_text("".join([lines[0], *old, *other]))
    table = measure("e5", file, samples=100)
    assert len(table) == len(RULES) and "another" not in file.read_text()
    assert file.read_text().startswith("".join([lines[0], *other])) # another reader's lines stay
