"Kept parses: lines that were cut off, registered files, a replayed server, and a real one."
import gzip
import json
import os
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from conftest import ROOT

from s2dm.analysis import AnalyseConfig, parser_for
from s2dm.constituents import GoldParser, Parse, Trees, read_brackets
from s2dm.core import DataError, MissingData, ParameterError
from s2dm.parsers import (
    CoreNLP,
    Kept,
    Stanza,
    corenlp,
    corenlp_server,
    fill,
    kept,
    parses_file,
    plain_answer,
    read_answer,
    registered_parses,
    text_key,
)
from s2dm.reading import load_reading
from s2dm.sources import REGISTRY, fetch

CORENLP = os.environ.get("S2DM_CORENLP", "")
TEXT = "Anna slept. She woke."
TREES = ["(ROOT (S (NP (NNP Anna)) (VP (VBD slept)) (. .)))"]
TREES += ["(ROOT (S (NP (PRP She)) (VP (VBD woke)) (. .)))"]
WORDS = [[(0, 4), (5, 10), (10, 11)], [(12, 15), (16, 20), (20, 21)]]


def answered(text=TEXT, trees=TREES, words=WORDS):
    "What a server says of a text, its offsets as they are given."
    def token(a, b):
        form = text[a:b]
        return dict(word=form, originalText=form, characterOffsetBegin=a, characterOffsetEnd=b)
    sentences = [dict(parse=t, tokens=[token(*w) for w in ws]) for t, ws in zip(trees, words)]
    return dict(sentences=sentences)


class Replay(BaseHTTPRequestHandler):
    """Answers a text by the bytes that the server holds for it, and others with status 500. It is
    ready when it was asked `loads` times, and breaks `breaks` connections."""

    def do_GET(self):
        self.server.loads -= 1
        ready = self.path == "/ready" and self.server.loads < 0
        self.send_response(200 if ready else 503)
        self.end_headers()
        self.wfile.write(b"ready" if ready else b"")

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with self.server.lock:
            self.server.asked.append(text)
            self.server.breaks -= 1
            if self.server.breaks >= 0: return
        body = self.server.answers.get(text)
        self.send_response(200 if body else 500)
        self.send_header("Content-Length", str(len(body or b"broken")))
        self.end_headers()
        self.wfile.write(body or b"broken")

    def log_message(self, *args): pass


@pytest.fixture
def replay():
    "A function that starts a server with these answers: text -> bytes."
    servers = []

    def start(answers, loads=0, breaks=0):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Replay)
        server.answers = answers
        server.loads = loads
        server.breaks = breaks
        server.asked = []
        server.lock = threading.Lock()
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_parsing_stopped_goes_on(tmp_path, replay):
    file = tmp_path / "p" / "parses.jsonl"
    server = replay({TEXT: json.dumps(answered()).encode()})
    with pytest.raises(DataError): Kept(CoreNLP(server.url), file)([TEXT, "Another."])
    with open(file, "a", encoding="utf-8") as f:
        f.write('{"sha256": "cut o')  # as a kill may leave it
    silent = SimpleNamespace(name="silent")  # cannot be called
    again = Kept(silent, file)
    assert again([TEXT, TEXT]) == CoreNLP(server.url)([TEXT]) * 2
    Kept(GoldParser({"x": []}), file)(["x"])
    assert Kept(silent, file)(["x", TEXT])[0] == Parse([(0, 1)], [])


def test_a_text_that_fails_does_not_stop_the_others(tmp_path, replay):
    server = replay({TEXT: json.dumps(answered()).encode()})
    parser = Kept(CoreNLP(server.url), tmp_path / "p.jsonl")
    problems = fill(parser, ["Another.", TEXT])
    assert len(problems) == 1 and "'Another.'" in problems[0] and "500" in problems[0]
    assert parser.missing(["Another.", TEXT]) == ["Another."]
    server.shutdown()
    server.server_close()
    with pytest.raises(MissingData, match="no CoreNLP server"): fill(parser, ["Another."])


def test_a_connection_that_breaks_once_costs_nothing(replay):
    server = replay({TEXT: json.dumps(answered()).encode()}, breaks=2)
    assert len(CoreNLP(server.url, pause=0)([TEXT])[0].words) == 6 and len(server.asked) == 3
    server.breaks = 2
    with pytest.raises(MissingData, match="no CoreNLP server"):
        CoreNLP(server.url, pause=0, attempts=2)([TEXT])


@pytest.fixture
def make_corenlp(monkeypatch, tmp_path):
    "workflow/corenlp.py, with two contexts: options -> exit status."
    monkeypatch.setenv("S2DM_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(ROOT / "workflow")
    monkeypatch.delitem(sys.modules, "corenlp", raising=False)
    import corenlp as script
    monkeypatch.setattr(script, "contexts", lambda datasets, language: [TEXT, "Another."])
    monkeypatch.setattr(CoreNLP.__init__, "__defaults__", ("", "en", 9, 1, "4.5.7", 0))
    usual = dict(language="en", datasets="xquad", memory="1g", limit=None, wait=5, address="")
    return lambda **given: script.main(SimpleNamespace(**usual | given))


def test_make_corenlp_waits_for_a_server_that_loads_or_is_restarted(make_corenlp, replay, capsys):
    answers = {TEXT: json.dumps(answered()).encode()}
    answers["Another."] = json.dumps(dict(sentences=[])).encode()
    server = replay(answers, loads=3, breaks=1)
    assert not make_corenlp(address=server.url)
    assert "attempt 2 of 3" in capsys.readouterr().out and server.loads < -1
    assert server.asked == [TEXT, TEXT, "Another."]
    assert not corenlp("en").missing([TEXT, "Another."])
    assert not make_corenlp(address="http://127.0.0.1:1") # all is kept: nobody is asked
    assert "0 to parse" in capsys.readouterr().out


def test_make_corenlp_names_what_could_not_be_parsed_and_goes_on_there(
        make_corenlp, replay, capsys):
    server = replay({"Another.": json.dumps(dict(sentences=[])).encode()})
    assert make_corenlp(address=server.url)
    said = capsys.readouterr()
    assert "'Anna slept. She woke.': status 500" in said.err and "parsed 1 of 2" in said.out
    server.answers[TEXT] = json.dumps(answered()).encode()
    assert not make_corenlp(address=server.url)
    assert server.asked == [TEXT, "Another.", TEXT] # what is kept is not asked again


def test_make_corenlp_gives_up_on_a_server_that_is_not_there(make_corenlp, replay, monkeypatch):
    with pytest.raises(MissingData, match="no CoreNLP server is ready at .* within 0.3 s; start"):
        make_corenlp(address="http://127.0.0.1:1", wait=.3)
    server = replay({}, breaks=99)
    with pytest.raises(MissingData, match="no CoreNLP server"): make_corenlp(address=server.url)
    assert server.asked == [TEXT] * 3
    monkeypatch.delenv("S2DM_CORENLP", raising=False)
    with pytest.raises(MissingData, match="S2DM_CORENLP is not set"): make_corenlp()


def test_an_answer_that_cannot_be_read_is_not_kept(tmp_path, replay):
    server = replay({TEXT: json.dumps(answered(trees=["(S (N a))"] * 2)).encode()})
    parser = Kept(CoreNLP(server.url), tmp_path / "p.jsonl")
    with pytest.raises(DataError, match="the tree has 1 words, the sentence 3"): parser([TEXT])
    assert not parser.file.exists()


def test_other_files_are_read_and_stay(tmp_path, replay):
    other = tmp_path / "other.jsonl"
    line = json.dumps(dict(sha256=text_key(TEXT)) | plain_answer(TEXT, answered())) + "\n"
    other.write_text(line, encoding="utf-8")
    parser = Kept(None, tmp_path / "p.jsonl", [other], "corenlp")
    assert len(parser([TEXT])[0].words) == 6 and not parser.file.exists()
    with pytest.raises(MissingData, match=r"2 of 3 texts .* \('b', 'a'\): give a parser"):
        parser(["b", TEXT, "a"])
    with pytest.raises(MissingData, match=r"7 of 8 texts .* \('b', 'c', 'd', 'e', 'f', and 2 more"):
        parser([*"bcdefgh", TEXT])


def test_files_are_named_by_parser_version_and_language():
    server = CoreNLP(language="zh", version="4.5.8")
    assert kept(server, "zh").file == parses_file("corenlp", "4.5.8", "zh")
    assert parses_file("corenlp", "4.5.8", "zh").name == "corenlp-4.5.8.zh.jsonl"
    assert kept(GoldParser({}), "svo").file.name == "gold.svo.jsonl"


@pytest.mark.parametrize("parser", ["localhost:9000", "CoreNLP"])
def test_what_is_no_parser_is_refused(parser):
    with pytest.raises(ParameterError, match="expected corenlp, or"): corenlp("en", parser)


# forms of answers


def test_a_word_may_hold_spaces():
    tree = "(NP (N Tên gọi) (CD 2\u00a01/2))"
    assert read_brackets(tree) == (["Tên gọi", "2\u00a01/2"], [(0, 2, "NP")])
    text = "2 1/2 h"
    answer = answered(text, ["(ROOT (NP (CD 2\u00a01/2) (NN h)))"], [[(0, 5), (6, 7)]])
    answer["sentences"][0]["tokens"][0]["originalText"] = "2\u00a01/2"
    parse = read_answer(text, plain_answer(text, answer))
    assert parse.words == [(0, 5), (6, 7)] and parse.phrases == [(0, 7, "NP")]


@pytest.mark.parametrize("tree, words", [
    ("(PRN (-LRB- () (NP (NN a)) (-RRB- )))", ["(", "a", ")"]),
    ("(S (PU )) (PU ())", [")", "("]),
    ("(S (PU -RRB-))", ["-RRB-"]),
])
def test_brackets_that_an_old_server_leaves_as_they_are(tree, words):
    assert read_brackets(tree)[0] == words


def test_a_sentence_that_was_given_up_is_counted():
    unparsed = "SENTENCE_SKIPPED_OR_UNPARSABLE"
    parse = read_answer(TEXT, plain_answer(TEXT, answered(trees=[TREES[0], unparsed])))
    assert len(parse.words) == 6 and parse.unparsed == 1
    assert {label for a, _, label in parse.phrases if a >= 12} == set()
    assert parse.sentences == ((0, 11), (12, 21))


def test_tokens_without_offsets_are_looked_for_in_order():
    text = "a b a"
    answer = answered(text, ["(S (X a) (X b) (X a))"], [[(0, 1), (2, 3), (4, 5)]])
    for token in answer["sentences"][0]["tokens"]:
        del token["characterOffsetBegin"], token["characterOffsetEnd"]
    parse = read_answer(text, plain_answer(text, answer))
    assert parse.words == [(0, 1), (2, 3), (4, 5)]
    answer["sentences"][0]["tokens"][2]["originalText"] = "c"
    with pytest.raises(DataError, match="characterOffsetBegin"): plain_answer(text, answer)


def test_the_words_of_a_contraction_have_one_place():
    text = "zum Haus"
    tree = "(ROOT (PP (ADP zu) (NP (DET dem) (NOUN Haus))))"
    answer = answered(text, [tree], [[(0, 3), (0, 3), (4, 8)]])
    for token, form in zip(answer["sentences"][0]["tokens"], ("zu", "dem")):
        token.update(word=form, originalText=form)
    parse = read_answer(text, plain_answer(text, answer))
    assert parse.words == [(0, 3), (4, 8)] and list(parse.tags) == ["ADP", "NOUN"]
    assert set(parse.phrases) == {(0, 8, "PP"), (0, 8, "NP")}
    answer["sentences"][0]["tokens"][2]["originalText"] = "Hof"
    with pytest.raises(DataError, match="'Hof' is not in the text"): plain_answer(text, answer)


def test_offsets_count_utf16_units():
    text = "😀 Haus"
    answer = answered(text, ["(S (SYM x) (NN Haus))"], [[(0, 1), (2, 6)]])
    for token, (a, b) in zip(answer["sentences"][0]["tokens"], [(0, 2), (3, 7)]):
        token.update(characterOffsetBegin=a, characterOffsetEnd=b)
    assert read_answer(text, plain_answer(text, answer)).words == [(0, 1), (2, 6)]


def test_a_tree_of_stanza_has_words_with_spaces():
    "Vietnamese: a word is written in several syllables."
    text = "Tên gọi phổ thông."
    tree = "(ROOT (S (NP (N Tên gọi)) (AP (A phổ thông)) (. .)))" # as stanza 1.10 prints it
    places = ((0, 7), (8, 17), (17, 18))
    tokens = [SimpleNamespace(start_char=a, end_char=b, words=[None]) for a, b in places]
    sentence = SimpleNamespace(tokens=tokens, constituency=tree, words=[])
    parse = Stanza(lambda _: SimpleNamespace(sentences=[sentence]))([text])[0]
    assert parse.words == list(places)
    assert sorted(parse.phrases) == [(0, 7, "NP"), (0, 18, "S"), (8, 17, "AP")]


@pytest.mark.parametrize("body", [
    b"[" * 100_000, b'{"sentences": ' + b"9" * 5000 + b"}", b'{"sentences": [5]}', b"\xff", b"null",
    b'{"sentences": [{"parse": "(S (N a))", "tokens": ["a"]}]}',
    b'{"sentences": [{"parse": 5, "tokens": []}]}',
    b'{"sentences": [{"parse": "(S (N a))", "tokens": [{"word": 5, "characterOffsetBegin": 0, '
    b'"characterOffsetEnd": 1}]}]}'])
def test_an_answer_of_wrong_types_is_an_error_that_names_the_text(replay, body):
    server = replay({"a": body})
    with pytest.raises(DataError, match="CoreNLP at http"): CoreNLP(server.url)(["a"])


@pytest.mark.parametrize("change", [
    dict(sentences=5), dict(sentences=[5]), dict(sentences=[dict(parse="(S (N a))")]),
    dict(sentences=[dict(parse=None, tokens=[])]), dict(words=[5]), dict(words=None),
    dict(sentences=[dict(parse="(S (N a))", tokens=[["a", "a", "0", "1", "N"]])]),
    dict(sentences=[dict(parse="(S (N a))", tokens=[["a", "a", 0]])])])
def test_a_kept_line_that_was_damaged_is_named(tmp_path, change):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(dict(sha256=text_key("a")) | change) + "\n")
    with pytest.raises(DataError, match="corenlp, text 'a'"): Kept(None, file, (), "corenlp")(["a"])


def test_a_kept_line_may_be_cut_within_a_letter(tmp_path):
    file = tmp_path / "p.jsonl"
    line = json.dumps(dict(sha256=text_key(TEXT)) | plain_answer(TEXT, answered())) + "\n"
    file.write_bytes(line.encode() + '{"sha256": "中'.encode()[:-1])
    assert len(Kept(None, file, (), "corenlp")([TEXT])[0].words) == 6


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"x" + raw, lambda raw: (
    raw[:20] + bytes(b ^ 255 for b in raw[20:40]) + raw[40:])])
def test_a_damaged_archive_of_parses_is_named(tmp_path, damage):
    file = tmp_path / "p.jsonl.gz"
    file.write_bytes(damage(gzip.compress(b'{"sha256": "a"}\n' * 100)))
    with pytest.raises(DataError, match="p.jsonl.gz cannot be read"):
        Kept(None, tmp_path / "q.jsonl", [file], "corenlp")


# the registered parses


def questions(dataset, language):
    return load_reading(dataset, language)


CELLS = [("xquad", language) for language in ("en", "zh", "de", "es", "ar")]
CELLS += [("tydiqa", "en"), ("bipar", "en"), ("bipar", "zh")]


@pytest.mark.parametrize("dataset, language", CELLS)
def test_every_context_is_parsed_without_a_server(real, dataset, language):
    config = AnalyseConfig(model="e5", variant="baseline", parser="corenlp")
    asked = questions(dataset, language).select(range(30))
    trees = Trees(asked, parser_for(config, dataset, language))
    assert trees.parser == "corenlp"
    for parse in trees.parses.values():
        assert parse.phrases and parse.sentences and not parse.unparsed
        assert len(parse.tags) == len(parse.words)
    contexts = questions(dataset, language)["context"][:]
    assert not corenlp(language).missing(contexts)


def test_what_is_missing_is_counted_and_named(real):
    with pytest.raises(MissingData) as error: corenlp("en")(["Nobody parsed this."])
    for part in ("1 of 1 texts", "('Nobody parsed this.')", "make corenlp", "docs/parsers.md"):
        assert part in str(error.value)


def test_without_a_mirror_nothing_is_registered_and_nothing_breaks():
    assert registered_parses("en") == []
    assert corenlp("en").missing(["a"]) == ["a"]


@pytest.mark.parametrize("language", ["en", "zh", "de", "es", "ar"])
def test_whole_answers_replayed_give_the_registered_parses(real, replay, language):
    "Byte for byte: an answer is a slice of the file."
    raw = fetch(f"parses/raw/{language}.json").read_text(encoding="utf-8")
    answers, place = {}, 0
    for row in json.loads(raw):
        start = raw.index('"answer":', raw.index('"text":', place)) + len('"answer":')
        answer, place = json.JSONDecoder().raw_decode(raw, start)
        assert answer == row["answer"]
        answers[row["text"]] = raw[start:place].encode()
    server = replay(answers)
    stored = corenlp(language)
    for text in answers:
        found = CoreNLP(server.url, language).answer(text)
        line = json.loads(stored.lines[text_key(text)])
        assert found["sentences"] == line["sentences"]
    assert len(server.asked) == len(answers) == 3


def test_all_files_of_parses_are_registered_with_checksums(mirror_folder):
    with open(os.path.join(mirror_folder, "SOURCES.tsv"), encoding="utf-8") as f:
        rows = [line.split("\t") for line in f if line.startswith("parses/")]
    assert rows and all(REGISTRY[row[0]].sha256 == row[2] for row in rows)


# a real server

no_server = pytest.mark.skipif(
    not (CORENLP and shutil.which("java")),
    reason="no server: S2DM_CORENLP is not set" if not CORENLP else "no server: there is no java",
)


@no_server
@pytest.mark.timeout(600)
def test_a_real_server_says_what_is_registered(real):
    asked = list(dict.fromkeys(questions("xquad", "en")["context"][:]))
    texts = [asked[i * len(asked) // 20] for i in range(20)]
    stored = corenlp("en")
    with corenlp_server(CORENLP, memory="2g") as url:
        for text in texts:
            line = json.loads(stored.lines[text_key(text)])
            assert CoreNLP(url).answer(text)["sentences"] == line["sentences"]
    with pytest.raises(MissingData, match="no CoreNLP server"): CoreNLP(url, timeout=5)(["Gone."])


@no_server
def test_a_server_that_cannot_start_says_why():
    with pytest.raises(MissingData, match="ended within"):
        with corenlp_server(CORENLP, memory="1k"): pass


def test_a_server_needs_its_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("S2DM_CORENLP", raising=False)
    with pytest.raises(MissingData, match="S2DM_CORENLP is not set"):
        with corenlp_server(): pass
    with pytest.raises(MissingData, match="no stanford-corenlp|no java"):
        with corenlp_server(tmp_path): pass
