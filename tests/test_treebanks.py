"""CoNLL-U and trees: a networkx oracle, the counts of the real treebanks, alignment traps,
malformed files.
"""
from collections import Counter
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from s2dm.core import DataError, MissingData, ParameterError
from s2dm.treebanks import (
    PAPER, UPOS, align, load_pairs, load_sentences, read_conllu, tree_depths, tree_distances)

SENTENCE = """# sent_id = s1
# text = Sie geht zum See.
1\tSie\tsie\tPRON\t_\t_\t2\tnsubj\t_\t_
2\tgeht\tgehen\tVERB\t_\t_\t0\troot\t_\t_
2.1\t_\t_\t_\t_\t_\t_\t_\t2:conj\t_
3-4\tzum\t_\t_\t_\t_\t_\t_\t_\t_
3\tzu\tzu\tADP\t_\t_\t5\tcase\t_\t_
4\tdem\tder\tDET\t_\t_\t5\tdet\t_\t_
5\tSee\tSee\tNOUN\t_\t_\t2\tobl\t_\tSpaceAfter=No
6\t.\t.\tPUNCT\t_\t_\t2\tpunct\t_\t_

"""


def oracle(heads):
    "Depths and distances by networkx, from breadth-first search."
    graph = nx.Graph()
    graph.add_nodes_from(range(len(heads)))
    graph.add_edges_from((i, h - 1) for i, h in enumerate(heads) if h)
    paths = dict(nx.all_pairs_shortest_path_length(graph))
    dist = np.array([[paths[i][j] for j in range(len(heads))] for i in range(len(heads))])
    return dist[heads.index(0)], dist


@st.composite
def trees(draw, most=60):
    n = draw(st.integers(1, most))
    order, heads = draw(st.permutations(range(n))), [0] * n
    for i in range(1, n): heads[order[i]] = order[draw(st.integers(0, i - 1))] + 1
    return heads


@settings(max_examples=150, deadline=None)
@given(trees())
def test_trees_agree_with_networkx(heads):
    depths, distances = oracle(heads)
    assert (tree_depths(heads) == depths).all() and (tree_distances(heads) == distances).all()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(-2, 9), max_size=8))
def test_only_trees_pass(heads):
    n = len(heads)
    graph = nx.DiGraph([(h, i + 1) for i, h in enumerate(heads)])
    is_tree = (n > 0 and all(0 <= h <= n for h in heads) and heads.count(0) == 1
               and nx.is_arborescence(graph))
    if is_tree: assert tree_distances(heads).shape == (n, n)
    else:
        with pytest.raises(DataError): tree_depths(heads)


def test_a_chain_of_500_words():
    heads = list(range(500))
    assert tree_depths(heads).tolist() == heads and tree_distances(heads)[0, 499] == 499


@pytest.mark.parametrize("heads", [[], [[0]], [0.0], ["0"], None, [True, False]])
def test_heads_must_be_a_list_of_integers(heads):
    with pytest.raises(DataError): tree_depths(heads)


def write(tmp_path, text):
    file = tmp_path / "file.conllu"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_words_keep_their_numbers(tmp_path):
    row = read_conllu(write(tmp_path, SENTENCE))[0]
    assert row == dict(
        sent_id="s1", source_id="s1", text="Sie geht zum See.",
        forms=["Sie", "geht", "zu", "dem", "See", "."],
        upos=["PRON", "VERB", "ADP", "DET", "NOUN", "PUNCT"], heads=[2, 0, 5, 5, 2, 2],
        deprels=["nsubj", "root", "case", "det", "obl", "punct"], depths=[1, 0, 2, 2, 1, 1])


def replaced(old, new):
    assert old in SENTENCE
    return SENTENCE.replace(old, new, 1)


@pytest.mark.parametrize(
    "text, says",
    [(SENTENCE[:-1], "file.conllu:11: the file ends without an empty line"),
     (SENTENCE[:120], "the file ends without an empty line"),
     (SENTENCE[:120] + "\n\n", "file.conllu:5: 7 columns; expected 10"),
     (replaced("5\tcase", "3\tcase"),
      "file.conllu:1: in the sentence that starts here, word 3 is in, or hangs on, a cycle"),
     (replaced("2\tnsubj", "0\tnsubj"), "2 roots (head 0); expected exactly one"),
     (replaced("0\troot", "1\troot"), "0 roots"),
     (replaced("\t5\tdet", "\t9\tdet"), "word 4 has head 9; expected 0 (root) to 6"),
     (replaced("\t5\tdet", "\t-1\tdet"), "file.conllu:8: head '-1'; expected an integer"),
     (replaced("\t5\tdet", "\t_\tdet"), "file.conllu:8: head '_'"),
     (replaced("\t5\tdet", "\t٥\tdet"), "head '٥'"),
     (replaced("\tNOUN\t", "\tnoun\t"), "file.conllu:9: UPOS 'noun'; expected one of ADJ"),
     (replaced("\tSee\tSee\t", "\tSee\t"), "file.conllu:9: 9 columns"),
     (replaced("\t_\t_\n2\t", "\t_\t_\t_\n2\t"), "file.conllu:3: 11 columns"),
     (replaced("5\tSee", "5\t"), "an empty column"),
     (replaced("5\tSee", "5\tBoden  See"), "two spaces in a row"),
     (replaced("4\tdem", "4.x\tdem"), "word id '4.x'; expected 4"),
     (replaced("# text = Sie geht zum See.\n", ""), "no text in this sentence"),
     (replaced("# sent_id = s1\n", ""), "no sent_id in this sentence"),
     (SENTENCE + SENTENCE, "file.conllu:12: sent_id s1 for the second time"),
     ("# sent_id = s1\n# text = x\n\n", "a sentence without words"),
     ("\ufeff" + SENTENCE, "file.conllu:1: byte-order mark"),
     (SENTENCE.replace("\n", "\r\n"), "file.conllu:1: carriage return"),
     (SENTENCE.replace("Sie geht", "Für").encode("latin-1"),
      "file.conllu:2: byte 0xfc is not UTF-8"),
     (SENTENCE.encode("utf-16"), "file.conllu:1: byte 0xff"),
     (replaced("zum\t_\t_\t_\t_\t_\t", "zum\t_\t_\t_\t_\t2\t"),
      "file.conllu:6: head '2' of 3-4, which is no word; expected _"),
     (replaced("\t5\tdet", f"\t{'9' * 5000}\tdet"), "file.conllu:8: head '99999"),
     (replaced("3-4", f"3-{'9' * 5000}"), "file.conllu:6: word id '3-99999"),
     (replaced("3-4", "03-4"), "file.conllu:1: in the sentence that starts here"),
     (b"", "the file ends without"),
     ("\n\n", "file.conllu:1: no sentences")],
    ids=lambda x: x if isinstance(x, str) and "\n" not in x and x else "file")
def test_malformed_files_are_named_with_line_and_expectation(tmp_path, text, says):
    with pytest.raises(DataError) as error: read_conllu(write(tmp_path, text))
    assert says in str(error.value), str(error.value)
    assert "expected" in str(error.value) or "second time" in str(error.value)


@st.composite
def damaged(draw):
    "The sample with a few edits at random places, in bytes."
    text = bytearray(SENTENCE.encode())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text) - 1))
        kind = draw(st.sampled_from(["byte", "cut", "drop", "double", "tab"]))
        if kind == "byte": text[at] = draw(st.integers(0, 255))
        elif kind == "cut": del text[max(at, 1):]
        elif kind == "drop": del text[at:at + draw(st.integers(1, 20))]
        elif kind == "double": text[at:at] = text[at:at + draw(st.integers(1, 60))]
        else: text[at:at] = b"\t"
        if not text: text = bytearray(b"\n")
    return bytes(text)


@settings(max_examples=400, deadline=None)
@given(st.one_of(damaged(), st.binary(max_size=200), st.text(max_size=200).map(lambda s: s.encode(
    "utf-8", "surrogatepass"))))
def test_fuzzed_files_are_read_or_refused_with_a_place(tmp_path_factory, raw):
    file = tmp_path_factory.getbasetemp() / "fuzz.conllu"
    file.write_bytes(raw)
    try: sentences = read_conllu(file)
    except DataError as error:
        assert str(error).startswith(f"{file}:")
        return
    for row in sentences:
        assert (len(row["forms"]) == len(row["upos"]) == len(row["heads"]) == len(row["deprels"])
                == len(row["depths"]) > 0)
        assert tree_depths(row["heads"]).tolist() == row["depths"] and set(row["upos"]) <= set(UPOS)


def test_alignment_is_by_group_not_by_order():
    rows = [dict(group=f"pud/{g}", lang=lang, text=f"{g} {lang}")
            for lang, order in (("en", "abc"), ("is", "acb"), ("pl", "cb")) for g in order]
    pairs = align(Dataset.from_list(rows))
    ids = ["pud/a/en-is", "pud/b/en-is", "pud/b/en-pl", "pud/c/en-is", "pud/c/en-pl"]
    assert sorted(pairs["pair_id"][:]) == ids
    for p in pairs: assert p["text_s"][0] == p["text_t"][0] == p["group"][-1]
    with pytest.raises(DataError, match="twice"): align(Dataset.from_list(rows + rows[:1]))


def test_unknown_names_are_refused():
    with pytest.raises(ParameterError, match="did you mean 'partut-it'"):
        load_pairs(("pud", "partut-ti"))
    with pytest.raises(ParameterError, match="is empty"): load_sentences(())


def test_some_languages_are_read_from_their_files_alone(tmp_path, monkeypatch):
    "A mirror that holds English and German; then one that lacks German."
    from dataclasses import replace

    from s2dm import sources, treebanks

    mirror = tmp_path / "mirror"
    for language in ("English", "German"):
        code = dict(English="en", German="de")[language]
        path = f"ud/r2.7/UD_{language}-PUD/{code}_pud-ud-test.conllu"
        file = mirror / path
        file.parent.mkdir(parents=True)
        file.write_text("".join(
            SENTENCE.replace("sent_id = s1", f"sent_id = n0100000{i}") for i in range(3)),
            encoding="utf-8", newline="\n")
        monkeypatch.setitem(
            sources.REGISTRY, path, replace(sources.REGISTRY[path], sha256="", md5=""))
    monkeypatch.setenv("S2DM_MIRROR", str(mirror))
    for name in ("http_proxy", "https_proxy"): monkeypatch.setenv(name, "http://127.0.0.1:9")
    asked = []
    real_fetch = treebanks.fetch
    monkeypatch.setattr(treebanks, "fetch", lambda path: asked.append(path) or real_fetch(path))
    pairs = load_pairs(("pud",), languages=["de"])
    assert len(pairs) == 3 and set(pairs["lang_t"][:]) == {"de"}
    assert {Path(path).name[:2] for path in asked} == {"de", "en"}
    assert len(load_sentences(("pud",), languages=["de"])) == 3
    with pytest.raises(ParameterError, match="language='en' is not possible"):
        load_pairs(("pud",), languages=["en"])
    file.unlink()
    with pytest.raises(MissingData, match="de_pud-ud-test.conllu"):
        load_pairs(("pud",), languages=["de"])


@pytest.mark.filterwarnings("ignore:.*stand-in")
def test_real_counts(real):
    sentences = load_sentences(("pud",))
    langs = np.array(sentences["lang"][:])
    assert len(sentences) == 20_000
    assert Counter(langs) == dict.fromkeys(set(langs), 1000)
    assert len(set(langs)) == 20
    pairs = load_pairs()
    collections = [g.split("/")[0] for g in pairs["group"][:]]
    assert ({c: collections.count(c) for c in set(collections)}
            == {"pud": 19_000, "lines": 4805, "partut": 2090})
    assert len(pairs) == 25_895
    assert len(load_pairs((*PAPER, "partut-fr"))) == 26_915
    assert len(set(pairs["pair_id"][:])) == len(pairs) and set(pairs["lang_s"][:]) == {"en"}
    assert set(load_pairs(languages=["de", "th"])["lang_t"][:]) == {"de", "th"}
    assert len(load_pairs(languages=["de", "th"])) == 2000
    with pytest.raises(ParameterError, match="language='xx'"): load_pairs(languages=["xx"])


@pytest.mark.filterwarnings("ignore:.*stand-in")
def test_real_alignment(real, mirror_folder):
    """Icelandic and Polish carry the English text or id, so that the alignment can be checked
    against something it was not made from."""
    import conllu

    pairs = {(p["group"], p["lang_t"]): p for p in load_pairs(("pud",), languages=["is", "pl"])}
    english, checked = {g: p["text_s"] for (g, _), p in pairs.items()}, 0
    with open(
            f"{mirror_folder}/ud/r2.7/UD_Icelandic-PUD/is_pud-ud-test.conllu",
            encoding="utf-8") as f:
        for sentence in conllu.parse_incr(f):
            if "text_en" not in sentence.metadata: continue
            pair = pairs[f"pud/{sentence.metadata['sent_id']}", "is"]
            assert pair["text_t"] == sentence.metadata["text"]
            def strip(text): return "".join(c for c in text if c.isalnum())
            checked += strip(pair["text_s"]) == strip(sentence.metadata["text_en"])
    assert checked > 950  # a few translations' English differs in punctuation or spelling
    def numbers(text): return sorted("".join(c if c.isdigit() else " " for c in text).split())
    polish = [(p["text_s"], p["text_t"]) for (_, lang), p in pairs.items() if lang == "pl"]
    polish = [(s, t) for s, t in polish if numbers(s)]
    assert np.mean([bool(set(numbers(s)) & set(numbers(t))) for s, t in polish]) > 0.8
    assert len(english) == 1000


@pytest.mark.filterwarnings("ignore:.*stand-in")
def test_real_trees_agree_with_networkx(real):
    sentences = load_sentences()
    for i in np.random.default_rng(0).choice(len(sentences), 200, replace=False):
        row = sentences[int(i)]
        depths, distances = oracle(row["heads"])
        assert (tree_depths(row["heads"]) == depths).all()
        assert (tree_distances(row["heads"]) == distances).all()
        assert row["depths"] == depths.tolist()


@pytest.mark.filterwarnings("ignore:.*stand-in")
def test_real_words_are_what_conllu_says(real, mirror_folder):
    "Forms, tags, heads and relations of a whole file, parsed once more with the library alone."
    import conllu

    ours = {r["sentence_id"]: r for r in load_sentences(("lines",), languages=["sv"])}
    with open(
            f"{mirror_folder}/ud/r2.7/UD_Swedish-LinES/sv_lines-ud-dev.conllu",
            encoding="utf-8") as f:
        theirs = list(conllu.parse_incr(f))
    for sentence in theirs:
        row = ours[f"lines/{sentence.metadata['sent_id'].rpartition('-')[2]}/sv"]
        words = [t for t in sentence if isinstance(t["id"], int)]
        assert ((row["forms"], row["upos"], row["heads"], row["deprels"])
                == tuple([t[k] for t in words] for k in ("form", "upos", "head", "deprel")))
    assert len(theirs) == 1032


@pytest.mark.filterwarnings("ignore:.*stand-in")
def test_real_cache_is_used(real, monkeypatch):
    load_pairs()
    monkeypatch.setattr("s2dm.treebanks.read_conllu", lambda path: pytest.fail("read again"))
    assert len(load_pairs()) == 25_895
