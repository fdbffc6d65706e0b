"""The generated corpus: same bytes, valid trees, nested constituents, one answer per question, no
leaks, and typologies that hold.
"""
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations

import pytest
from conftest import ROOT
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from s2dm import reading, synthetic
from s2dm.core import ParameterError
from s2dm.grammar import (
    ADJECTIVES, LANGUAGES, QUESTION_WORDS, ROLES, STEMS, Clause, Entity, Grammar, Language,
    Question, brackets, parse_language, vocabulary)
from s2dm.meanings import (
    Draw, answers, cores, covers, draw_clause, draw_passage, draw_question, draw_similar, facts,
    part_of, propositions, similarity)
from s2dm.reading import read_squad
from s2dm.scratch import load_parallel, load_text
from s2dm.similarity import FEATURES, read_sts2017
from s2dm.synthetic import (
    KINDS, Synthetic, SyntheticConfig, corpus_folder, generate, moved_boundaries, read_constituents)
from s2dm.treebanks import UPOS, read_conllu

SMALL = dict(documents=30, sentences=40, questions=60, held_out=30, similar=18)
GRAMMARS = {name: Grammar(language) for name, language in LANGUAGES.items()}
each_language = pytest.mark.parametrize("name", LANGUAGES)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A small corpus in all languages: its folder and its checksums."
    folder = tmp_path_factory.mktemp("synthetic")
    return folder, generate(SyntheticConfig(**SMALL), folder)


def clauses(part="train", n=150, name="test"):
    draw = Draw(part, 0, name)
    return [draw_clause(draw) for _ in range(n)]


def passages(part="test", n=60):
    draw = Draw(part, 0, "passages")
    return [draw_passage(draw, 4) for _ in range(n)]


def ask(role, word, clause): return Question(clause, role, word)


@st.composite
def languages(draw):
    "Any language that is possible."
    choices = {
        f: Language.__dataclass_fields__[f].metadata["choices"]
        for f in ("order", "phrase", "adposition", "article", "case", "agreement", "relative",
                  "question")}
    settings = ({f: draw(st.sampled_from(values)) for f, values in choices.items()}
                | {f: draw(st.booleans()) for f in ("verb_second", "auxiliary")})
    try: return Language(name="any", accent=draw(st.sampled_from(("", "ol", "esk"))), **settings)
    except ParameterError:
        assume(False)


# the same bytes

def digest(sums): return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def test_the_bytes_are_pinned(small):
    "A change of what is generated is a decision, not an accident: encoders were trained on it."
    assert ({kind: digest({p: s for p, s in small[1].items() if p.startswith(kind)})[:16]
             for kind in KINDS}
            == PINNED)


def test_neither_hash_seed_nor_locale_nor_numpy_matters(small, tmp_path):
    code = f"""
import random, numpy
random.seed(5); numpy.random.seed(5)
from s2dm.synthetic import SyntheticConfig, generate
generate(SyntheticConfig(**{SMALL!r}), {str(tmp_path)!r}, ["reading", "treebank"])
"""
    env = {**os.environ, "PYTHONHASHSEED": "77", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120)
    for kind in ("reading", "treebank"):
        for file in sorted((tmp_path / kind).rglob("*.*")):
            assert file.read_bytes() == (small[0] / file.relative_to(tmp_path)).read_bytes(), file


def test_a_file_does_not_depend_on_the_other_languages_or_sizes(small, tmp_path):
    config = SyntheticConfig(**SMALL | dict(
        languages="svo,mine order=VOSX question=place accent=ol,sov_case", sentences=80,
        questions=70, documents=60))
    sums = generate(config, tmp_path)
    same = [p for p in sums if p in small[1] and not re.search("train|text|treebank", p)]
    assert len(same) >= 12 and all(sums[p] == small[1][p] for p in same)
    long, short = (
        (folder / "text/train/sov_case.txt").read_text() for folder in (tmp_path, small[0]))
    assert long.startswith(short[:-1])
    assert (tmp_path / "treebank/train/sov_case.txt").read_text().startswith(
        (small[0] / "treebank/train/sov_case.txt").read_text())


def test_another_seed_is_another_corpus(small, tmp_path):
    sums = generate(SyntheticConfig(**SMALL, seed=1), tmp_path)
    assert not {s for p, s in sums.items()} & set(small[1].values())


def test_the_encoder_reads_the_text(small):
    """A text for each language, and lines that correspond: translations, and passages with their
    questions."""
    texts = [str(small[0] / f"text/train/{name}.txt") for name in ("svo", "sov_case")]
    assert len(load_text(texts)) > 220
    assert len(load_parallel(["|".join(
        str(small[0] / f"treebank/train/{name}.txt") for name in ("svo", "sov_case"))])) == 40
    assert len(load_parallel(["|".join(
        str(small[0] / f"text/train/svo.{what}.txt") for what in ("passages", "questions"))])) == 30


def test_what_is_recorded_is_what_is_there(small):
    folder, sums = small
    assert ({str(p.relative_to(folder)) for p in folder.rglob("*.*")}
            == set(sums) | {f"{kind}/files.json" for kind in KINDS})
    for path, found in sums.items():
        raw = (folder / path).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == found
        assert raw.endswith(b"\n")
        assert b"\r" not in raw
        assert raw.isascii()
    about = json.loads((folder / "reading/files.json").read_text())
    assert about["parameters"]["held_out"] == 30
    assert [Language(**x) for x in about["languages"]] == list(LANGUAGES.values())


def test_choices_are_even():
    draw = Draw("train", 1, "even")
    found = Counter(draw.below(7) for _ in range(7000))
    assert set(found) == set(range(7)) and all(850 < n < 1150 for n in found.values())
    assert 250 < sum(draw.chance(30) for _ in range(1000)) < 350
    assert not any(draw.chance(0) for _ in range(200))
    assert all(draw.chance(100) for _ in range(200))


# trees

def check_tree(sentence):
    heads, n = sentence.heads, len(sentence.words)
    assert heads.count(0) == 1 and all(w.upos in UPOS for w in sentence.words)
    arcs = [(min(i, h), max(i, h)) for i, h in enumerate(heads, 1) if h]
    assert not any(a < c < b < d for a, b in arcs for c, d in arcs), sentence.text  # projective
    spans = {(start, end) for start, end, *_ in sentence.spans}
    assert all(
        b <= c or d <= a or (a <= c and d <= b) or (c <= a and b <= d)
        for (a, b), (c, d) in combinations(spans, 2))
    # a phrase is a piece of the tree: one word in it has a head outside
    for start, end, _, _ in sentence.spans:
        assert start < end and sum(not start < h <= end for h in heads[start:end]) == 1
    for (start, end, label), (first, last, *_) in zip(
            sentence.constituents, sentence.spans, strict=True):
        words = " ".join(w.form for w in sentence.words[first:last])
        assert label in ("S", "NP", "PP", "SBAR")
        assert sentence.text[start:end] == re.sub(" (?=[.?]$)", "", words)
    assert sentence.constituents[-1] == (0, len(sentence.text), "S")
    return n


@settings(max_examples=120)
@given(languages(), st.integers(0, 10**6))
def test_every_language_makes_projective_trees_and_nested_constituents(language, seed):
    grammar, draw = Grammar(language), Draw("train", seed, "trees")
    clause = draw_clause(draw)
    check_tree(grammar(clause))
    if found := draw_question(draw, [clause]): check_tree(grammar(found[1]))


@each_language
def test_the_treebank_reader_reads_the_trees(name, small):
    "Heads, tags, forms and text come back as they were generated, and texts and forms agree."
    draw, grammar = SyntheticConfig(**SMALL).draw("train", "treebank"), GRAMMARS[name]
    rows = read_conllu(small[0] / f"treebank/train/{name}.conllu")
    lines = (small[0] / f"treebank/train/{name}.txt").read_text().splitlines()
    assert len(rows) == len(lines) == 40 and rows["text"][:] == lines
    seen = 0
    for row in rows:
        assert re.findall(r"\w+|[.?]", row["text"]) == row["forms"]
        if row["forms"][-1] == "?": continue
        seen += 1
    assert seen > 20 and draw.part == "train" and check_tree(grammar(draw_clause(draw))) > 2


@each_language
def test_brackets_hold_the_same_words_and_spans(name):
    for clause in clauses(n=40):
        sentence, stack, position, spans = GRAMMARS[name](clause), [], 0, []
        for token in re.findall(r"\(|\)|[^\s()]+", brackets(sentence.root)):
            if token == "(": stack.append([None, position, False])
            elif token == ")":
                label, start, leaf = stack.pop()
                if not leaf: spans.append((start, position, label))
            elif stack[-1][0] is None: stack[-1][0] = token
            else:
                assert token == sentence.words[position].form
                stack[-1][2], position = True, position + 1
        assert position == len(sentence.words) and spans == [s[:3] for s in sentence.spans]


def content_tree(sentence):
    "The tree without function words: (lemma, relation, lemma of the head)."
    words, heads = sentence.words, sentence.heads
    return Counter(
        (w.lemma, w.deprel, words[h - 1].lemma if h else "")
        for w, h in zip(words, heads)
        if w.upos not in ("ADP", "DET", "AUX", "SCONJ", "PRON", "CCONJ", "PUNCT")
            or w.lemma in QUESTION_WORDS)


@settings(max_examples=100)
@given(languages(), st.integers(0, 10**6))
def test_content_words_form_the_same_tree_in_every_language(language, seed):
    clause = draw_clause(Draw("train", seed, "same"))
    assert content_tree(Grammar(language)(clause)) == content_tree(GRAMMARS["svo"](clause))


def test_languages_share_stems_and_each_form_shows_its_stem(small):
    lemmas = {}
    for name in LANGUAGES:
        found = defaultdict(set)
        for clause in clauses(n=300):
            for w in GRAMMARS[name](clause).words:
                if w.upos in ("NOUN", "PROPN", "ADJ", "VERB", "NUM", "ADV"):
                    found[w.lemma].add(w.upos)
                    assert w.form.startswith(w.lemma)
        lemmas[name] = dict(found)
    assert all(found == lemmas["svo"] for found in lemmas.values()) and len(lemmas["svo"]) > 200
    # a stem does not give its part of speech away
    assert any(len(tags) > 1 for tags in lemmas["svo"].values())


def test_accents_share_no_function_word():
    forms = {
        name: set(vocabulary(language.accent).values()) for name, language in LANGUAGES.items()}
    stems = {w for table in (STEMS, ADJECTIVES) for words in table.values() for w in words}
    for a, b in combinations(forms.values(), 2): assert not a & b
    for found in forms.values():
        assert len(found) == len(vocabulary("")) and not found & (stems | set(QUESTION_WORDS))


def test_no_word_is_deleted_by_the_exact_match_of_squad(small):
    for file in (small[0] / "reading").rglob("*.json"):
        if file.name != "files.json":
            assert not {"a", "an", "the"} & set(
                re.findall(r"\w+", file.read_text().split('"data"')[1].replace("answers", "")))


# typologies

def slots(sentence):
    "Letters of a main clause in the order of their heads: S, V, O, X."
    letters = {"nsubj": "S", "obj": "O", "obl": "X", "advmod": "X", "root": "V"}
    root = sentence.heads.index(0) + 1
    found = [
        letters[w.deprel]
        for w, h in zip(sentence.words, sentence.heads)
        if w.deprel in letters and (h == root or h == 0)]
    return re.sub("X+", "X", "".join(found))


@settings(max_examples=150)
@given(languages(), st.integers(0, 10**6))
def test_clauses_are_in_the_order_that_the_language_has(language, seed):
    clause = draw_clause(Draw("train", seed, "order"))
    sentence = Grammar(language)(clause)
    words = sentence.words
    if language.verb_second:
        finite = [
            i for i, (w, h) in enumerate(zip(words, sentence.heads))
            if h in (0, sentence.heads.index(0) + 1) and w.upos in ("AUX", "VERB")][0]
        first = [end for start, end, _, role in sentence.spans if start == 0 and role]
        assert max(first) == finite  # one phrase, and then the finite verb
    elif language.order != "free":
        assert slots(sentence) == "".join(s for s in language.order if s in slots(sentence))
    assert ("AUX" in {w.upos for w in words}) == language.auxiliary


@settings(max_examples=150)
@given(languages(), st.integers(0, 10**6))
def test_noun_phrases_are_in_the_order_that_the_language_has(language, seed):
    sentence = Grammar(language)(draw_clause(Draw("train", seed, "phrase")))
    letters = {"det": "D", "nummod": "D", "amod": "A", "nmod": "G", "acl:relcl": "R"}
    for i, noun in enumerate(sentence.words, 1):
        if noun.upos not in ("NOUN", "PROPN"): continue
        found = "".join(
            "N" if j == i else letters[w.deprel]
            for j, (w, h) in enumerate(zip(sentence.words, sentence.heads), 1)
            if j == i or (h == i and w.deprel in letters))
        assert re.sub("A+", "A", found) == "".join(s for s in language.phrase if s in found)
        adpositions = [
            j for j, (w, h) in enumerate(zip(sentence.words, sentence.heads), 1)
            if h == i and w.upos == "ADP"]
        assert all((j < i) == (language.adposition == "before") for j in adpositions)
        assert not (adpositions and language.adposition == "suffix")
        articles = [
            w for w, h in zip(sentence.words, sentence.heads) if h == i and w.lemma == "this"]
        assert not articles or language.article == "word"
        assert ("Definite=Def" in noun.feats) <= (language.article == "suffix")


def test_case_and_agreement():
    clause = Clause(
        "visit", Entity("boy", "person", number="two", adjectives=("old",)), Entity("Anna", "name"),
        place=Entity("Rome", "city", "in"))
    def gloss(text): return Grammar(parse_language(text))(clause).gloss
    assert gloss("x case=accusative") == "two old boy-PL visit-PAST Anna-ACC in Rome."
    assert gloss("x case=ergative") == "two old boy-PL-ERG visit-PAST Anna in Rome."
    assert (gloss("x agreement=both case=ergative")
            == "two old-PL-ERG boy-PL-ERG visit-PAST-PL Anna in Rome.")
    assert (gloss("x adposition=suffix auxiliary=true agreement=verb")
            == "two old boy-PL has-PL visit-PAST Anna Rome-in.")
    assert (gloss("x order=SOVX auxiliary=true case=accusative")
            == "two old boy-PL Anna-ACC visit-PAST has in Rome.")
    assert "ERG" not in Grammar(parse_language("x case=ergative"))(
        clause._replace(verb="rest", object=None)).gloss


def test_obliques_and_adjectives_mirror_around_their_head():
    def with_(stem, kind, relation): return Entity(stem, kind, relation)
    clause = Clause(
        "offer", Entity("Anna", "name"), Entity("box", "thing", adjectives=("big", "red")),
        with_("Boris", "name", "to"), with_("Carla", "name", "with"), with_("Rome", "city", "in"),
        with_("Monday", "day", "on"), "slowly")
    def gloss(text): return Grammar(parse_language(text))(clause).gloss
    assert (gloss("svo")
            == "Anna offer-PAST this big red box slowly to Boris with Carla in Rome on Monday.")
    assert (gloss("svo_nadj")
            == "Anna offer-PAST this box red big slowly to Boris with Carla in Rome on Monday.")
    assert (gloss("sov_case")
            == "Anna Monday on Rome in Carla with Boris to slowly big red box-ACC offer-PAST.")
    assert (gloss("x order=XSVO phrase=NDAGR")
            == "on Monday in Rome with Carla to Boris slowly Anna offer-PAST box this red big.")


def test_relative_clauses_stand_and_are_marked_as_the_language_says():
    host = Entity("box", "thing", relative=Clause("mend", agent=Entity("Anna", "name")))
    clause = Clause("open", Entity("Boris", "name"), host)
    def gloss(text): return Grammar(parse_language(text))(clause).gloss
    assert gloss("svo") == "Boris open-PAST this box that Anna mend-PAST."
    assert (gloss("x relative=particle phrase=RGDAN")
            == "Boris open-PAST Anna mend-PAST that this box.")
    assert (gloss("x relative=suffix phrase=RGDAN")
            == "Boris open-PAST Anna mend-PAST-that this box.")
    assert gloss("x case=accusative") == "Boris open-PAST this box-ACC that-ACC Anna mend-PAST."
    assert (gloss("x order=SXOV relative=suffix auxiliary=true question=place")
            == "Boris this box Anna mend-PAST-that has open-PAST has.")


def test_presets_are_what_their_names_say():
    last = {
        name: Counter(GRAMMARS[name](c).words[-2].upos for c in clauses()) for name in LANGUAGES}
    first = {
        name: Counter(GRAMMARS[name](c).words[0].upos for c in clauses()) for name in LANGUAGES}
    assert set(last["sov_case"]) == {"VERB"}
    assert set(last["v2_bracket"]) <= {"VERB", "AUX"}
    assert set(first["vso_case"]) == {"VERB"}
    assert last["svo"]["VERB"] < 10
    assert (
        len({slots(GRAMMARS["free_case"](c._replace(order=i))) for i in range(24) for c in clauses(
            n=5)})
        > 15)
    others = {
        name: {k: v for k, v in language.as_dict().items() if k not in ("name", "accent")}
        for name, language in LANGUAGES.items()}
    for name in ("svo_nadj", "svo_ndet", "svo_post", "svo_suffix", "svo_prenominal"):
        assert sum(others[name][k] != others["svo"][k] for k in others["svo"]) == 1  # one parameter


@settings(max_examples=200)
@given(languages(), st.integers(0, 23), st.integers(0, 23))
def test_no_language_leaves_open_who_did_it(language, order, other):
    """Asking for the subject is never the same sentence as asking for the object, nor is a
    statement with both exchanged."""
    grammar, anna, boris = Grammar(language), Entity("Anna", "name"), Entity("Boris", "name")
    subject, object = (
        ask(
            role, "who",
            Clause("visit", **{role: boris, ("agent", "object")[role == "agent"]: anna}, order=o))
        for role, o in (("agent", order), ("object", other)))
    assert grammar(subject).text != grammar(object).text
    assert (grammar(Clause("visit", anna, boris, order=order)).text
            != grammar(Clause("visit", boris, anna, order=other)).text)


# questions

@each_language
def test_answers_are_exact_and_are_constituents(name, small):
    for part in ("dev", "test"):
        file = small[0] / f"reading/{part}/{name}.json"
        rows, constituents = read_squad(file, name, name), read_constituents(file)
        assert len(rows) == 30
        for row in rows:
            (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
            assert row["context"][start:start + len(text)] == text and text == text.strip(" .?")
            spans = {(a, b): label for a, b, label in constituents[row["context"]]}
            where = bool({"where", "when"} & set(row["question"][:-1].split()))
            assert (start, start + len(text)) in spans
            assert {"NP", "PP", "S"} >= set(spans.values()) - {"SBAR"}
            end = start + len(text)
            labels = [x for a, b, x in constituents[row["context"]] if (a, b) == (start, end)]
            assert not where or "PP" in labels
            assert row["question"].endswith("?") and row["lang_context"] == name


def oracle(question, clauses):
    """Which propositions hold all the facts that the question gives, by sets of facts instead of by
    comparing entities."""
    given = facts(question.clause._replace(**{question.role: None}))
    asked, found = getattr(question.clause, question.role), []
    for i, clause in enumerate(clauses):
        for p in propositions(clause):
            for version in ((p, p._replace(agent=p.object, object=p.agent))
                            if p is not clause and p.agent and p.object
                            else (p,)):
                there = getattr(version, question.role)
                spread = [version] + [version._replace(agent=version.agent.other)] * bool(
                    version.agent and version.agent.other)
                if (there is None
                    or not any(
                            given <= facts(r._replace(**{question.role: None})) for r in spread)):
                    continue
                pairs = [
                    (getattr(question.clause, r), getattr(version, r))
                    for r in ROLES
                    if r != question.role and getattr(question.clause, r)]
                if any(m.number not in (e.number, "" if e.other else e.number) for m, e in pairs):
                    continue # "this boy" is not "two boys"
                if (question.word == "which"
                    and (there.stem, there.relation, bool(there.number))
                        != (asked.stem, asked.relation, bool(asked.number))):
                    continue
                if (question.word == "what" and there.kind != "thing"
                    or question.word == "who" and there.kind not in ("name", "person")):
                    continue
                found.append(i)
    return found


@pytest.mark.parametrize("overlap", [0, 30, 80])
def test_every_question_has_one_answer(overlap):
    """The same verb, names and nouns recur in a passage, and yet one proposition of it, relative
    clauses included, fits the question."""
    draw, seen = Draw("dev", overlap, "unique", overlap=overlap), Counter()
    for _ in range(80):
        found, asked = draw_passage(draw, 3)
        assert len(found) == 3 and asked
        for at, question in asked:
            assert [i for i, _ in answers(question, found)] == [at] == oracle(question, found)
            (_, entity), = answers(question, found)
            assert entity == getattr(found[at], question.role)
            seen[question.word] += 1
            seen["same verb"] += sum(c.verb == question.clause.verb for c in found) > 1
    assert all(seen[w] > 5 for w in QUESTION_WORDS) and (seen["same verb"] > 60) == (overlap > 0)


def test_a_mention_covers_what_it_may_mean():
    anna, boris = Entity("Anna", "name"), Entity("Boris", "name", "of")
    box = Entity("box", "thing", adjectives=("old", "red"), owner=boris)
    yes = [
        Entity("box", "thing"), Entity("box", "thing", adjectives=("red",)),
        Entity("box", "thing", owner=boris), box]
    no = [
        Entity("box", "thing", adjectives=("new",)), Entity("box", "thing", number="two"),
        Entity("key", "thing"), Entity("box", "thing", "in"),
        Entity("box", "thing", owner=anna._replace(relation="of"))]
    assert all(covers(mention, box) for mention in yes)
    assert not any(covers(mention, box) for mention in no)
    assert not covers(box, Entity("box", "thing"))
    assert covers(anna, anna._replace(other=boris))
    assert not covers(anna._replace(other=boris), anna)


def test_ambiguous_questions_are_seen_through():
    anna, boris, baker = Entity("Anna", "name"), Entity("Boris", "name"), Entity("baker", "person")
    who = ask("agent", "who", Clause("visit", agent=anna, object=baker))
    assert len(answers(who, [Clause("visit", anna, baker), Clause(
        "visit", boris, baker._replace(adjectives=("old",)))])) == 2
    assert len(answers(who, [Clause("visit", anna, baker), Clause(
        "visit", boris, Entity("doctor", "person"))])) == 1
    inside = Clause(
        "open", anna, Entity("box", "thing"), companion=boris._replace(relation="with"),
        place=Entity("garden", "place", "in"))
    inside = inside._replace(
        agent=Entity("doctor", "person", relative=Clause("visit", object=baker)))
    assert len(answers(who, [Clause("visit", anna, baker), inside])) == 2  # the doctor did, too
    turned = inside._replace(
        agent=baker._replace(relative=Clause("visit", object=Entity("doctor", "person"))))
    # without case the doctor may have done it
    assert len(answers(who, [Clause("visit", anna, baker), turned])) == 2
    assert len(answers(who, [Clause("visit", anna._replace(other=boris), baker)])) == 1
    which = ask("place", "which", Clause("rest", agent=anna, place=Entity("garden", "place", "in")))
    near = Clause("rest", anna, place=Entity("garden", "place", "near"))
    assert (len(answers(which, [Clause("rest", anna, place=Entity("garden", "place", "in")), near]))
            == 1)


def test_question_words_stand_in_for_the_answer():
    """Putting the answer in the place of the question word, in a language that asks in place, gives
    the sentence."""
    grammar = Grammar(parse_language("x question=place"))
    for found, asked in passages(n=30):
        for at, question in asked:
            if question.word == "which": continue
            full = question._replace(clause=question.clause._replace(**{question.role: getattr(
                found[at], question.role)}))
            statement = grammar(full.clause)
            start, end = statement.characters(*statement.answer(full))
            text = grammar(full).text[:-1].split(" ")
            assert text.count(question.word) == 1
            answered = " ".join(
                statement.text[start:end] if w == question.word else w for w in text) + "."
            assert answered == statement.text


def test_which_gives_the_noun_away_and_nothing_else():
    words = {w for words in ADJECTIVES.values() for w in words}
    for found, asked in passages(n=60):
        for at, question in asked:
            if question.word != "which": continue
            sentence = GRAMMARS["svo"](question)
            place = next(i for i, w in enumerate(sentence.words) if w.form == "which")
            assert sentence.words[place + 1].lemma == getattr(found[at], question.role).stem
            assert sentence.words[place + 1].form not in words
            assert (place + 1 == len(sentence.words) - 1
                    or sentence.words[place + 2].lemma not in ("of", "that"))


def test_reading_is_parallel(small):
    rows = {name: read_squad(small[0] / f"reading/test/{name}.json") for name in LANGUAGES}
    assert len({tuple(r["id"][:]) for r in rows.values()}) == 1
    assert len(set(rows["svo"]["id"][:])) == 30
    for name in LANGUAGES:
        for a, b in zip(rows["svo"], rows[name]):
            words = [set(re.findall(r"\w+", r["question"])) & {*QUESTION_WORDS} for r in (a, b)]
            same = {w.replace("whom", "who") for w in words[0]} == words[1]
            marked = re.findall(r"\w+", b["question"]) # a question word may have an ending
            assert same or any(w.startswith(tuple(words[0])) for w in marked)


def test_boundaries_move_in_all_targets_and_not_in_a_dialect():
    table = moved_boundaries(SyntheticConfig(), 150).set_index("language")
    assert table.loc["svo", "moved"] == 0
    assert (table["moved"].drop(["svo", "v2_bracket"]) > 0.1).all()
    assert ((table["elsewhere"] <= table["moved"]) & (table["missing"] <= table["moved"]) & (
        table["moved"] <= table["elsewhere"] + table["missing"])).all()
    assert table.loc["svo_suffix", "elsewhere"] == 0 and table.loc["svo_post", "missing"] == 0
    dialect = moved_boundaries(
        SyntheticConfig(
            languages="svo,other accent=ol,v2 order=SVOX verb_second=true case=accusative"),
        60).set_index("language")
    assert (dialect["moved"] == 0).all()


# splits

def cores_of_tree(row):
    "(verb, agent, object) of every verb, from the tree alone."
    heads, lemmas = row["heads"], row["lemmas"]
    def nouns(i):
        return [i] + [
            j for j, (h, d) in enumerate(zip(heads, row["deprels"]), 1) if h == i and d == "conj"]
    for i, (upos, deprel) in enumerate(zip(row["upos"], row["deprels"]), 1):
        if upos != "VERB": continue
        roles = {"nsubj": [], "obj": []}
        for j, (h, d, u) in enumerate(zip(heads, row["deprels"], row["upos"]), 1):
            if h == i and d in roles and u in ("NOUN", "PROPN"):
                roles[d] += [lemmas[k - 1] for k in nouns(j)]
        if deprel == "acl:relcl":
            roles["obj" if roles["nsubj"] else "nsubj"].append(lemmas[heads[i - 1] - 1])
        yield from ((lemmas[i - 1], a, o) for a in roles["nsubj"] for o in roles["obj"] or [""])


@pytest.mark.parametrize("part", ["train", "dev", "test"])
def test_no_tree_of_a_part_says_what_belongs_to_another(part, small):
    "Cores are read from the CoNLL-U files; questions, which leave a role open, are skipped."
    seen = 0
    for name in LANGUAGES:
        path = small[0] / f"treebank/{part}/{name}.conllu"
        lemmas = [
            [line.split("\t")[2] for line in block.splitlines() if line[0] != "#"]
            for block in path.read_text().split("\n\n")[:-1]]
        for row, lemma in zip(read_conllu(path), lemmas):
            if row["forms"][-1] == "?": continue
            for core in cores_of_tree(row | dict(lemmas=lemma)):
                assert part_of(*core) == part, (name, row["text"], core)
                seen += 1
    assert seen > (300 if part == "train" else 25)


@pytest.mark.parametrize("part", ["train", "dev", "test"])
def test_no_content_is_drawn_for_two_parts(part):
    draw = Draw(part, 3, "leak", overlap=60)
    meanings = ([c for _ in range(60) for c in draw_passage(draw)[0]]
                + [c for i in range(60) for c in draw_similar(draw, i % 6)])
    found = set().union(*map(cores, meanings))
    assert {part_of(*core) for core in found} == {part} and len(found) > 200
    assert any(c.agent.other for c in meanings)
    assert any(e.relative for c in meanings for e in c[1:7] if e)


def test_no_entity_occurs_twice_in_a_clause():
    for clause in clauses(n=600):
        stems = [w.lemma for w in GRAMMARS["svo"](clause).words if w.upos in ("NOUN", "PROPN")]
        assert len(set(stems)) == len(stems)


def test_cores_and_tree_agree():
    for clause in clauses(n=200):
        sentence = GRAMMARS["sov_case"](clause)
        row = dict(
            heads=sentence.heads, lemmas=[w.lemma for w in sentence.words],
            upos=[w.upos for w in sentence.words], deprels=[w.deprel for w in sentence.words])
        assert set(cores_of_tree(row)) == cores(clause)


def test_the_split_is_8_1_1_and_every_word_occurs_in_all_parts():
    share = Counter(
        part_of(v, a, o)
        for v in STEMS["meet"]
        for a in STEMS["name"] + STEMS["person"]
        for o in STEMS["name"])
    total = sum(share.values())
    assert 0.78 < share["train"] / total < 0.82
    assert 0.09 < share["dev"] / total < 0.11
    assert 0.09 < share["test"] / total < 0.11
    for part in ("train", "dev", "test"):
        draw = Draw(part, 0, "words")
        found = {w.lemma for _ in range(900) for w in GRAMMARS["svo"](draw_clause(draw)).words}
        assert {w for words in STEMS.values() for w in words} <= found


def test_no_held_out_sentence_is_in_the_training_part(small):
    folder = small[0]
    for name in LANGUAGES:
        train = {
            line
            for path in (folder / f"text/train/{name}.txt", folder / f"treebank/train/{name}.txt")
            for line in path.read_text().splitlines()}
        held = {
            line for path in (folder / f"treebank/test/{name}.txt", folder / f"text/dev/{name}.txt")
            for line in path.read_text().splitlines()}
        held |= {
            s for row in read_squad(folder / f"reading/test/{name}.json")
            for s in re.findall(r"[^.]+\.", row["context"])}
        assert not {s for s in train & held if s and s.endswith(".")}


def test_monolingual_text_is_not_parallel_and_holds_no_answers(small):
    texts = {name: (small[0] / f"text/train/{name}.txt").read_text() for name in LANGUAGES}
    for name, text in texts.items():
        documents = [d.splitlines() for d in text.split("\n\n")]
        assert len(documents) == 30
        assert all([line[-1] for line in d] == [".", ".", ".", "?"] for d in documents)
        passages, questions = (
            (small[0] / f"text/train/{name}.{what}.txt").read_text().splitlines()
            for what in ("passages", "questions"))
        assert documents == [
            [*re.findall(r"\S[^.]+\.", p), q] for p, q in zip(passages, questions, strict=True)]
    stems = [
        Counter(w for w in re.findall("[A-Z][a-z]+", text.split("\n\n")[0]))
        for text in texts.values()]
    assert len({tuple(sorted(s)) for s in stems}) > 5


# similarity

def test_similarity_is_monotone_in_what_is_shared():
    """Undoing one edit never lowers the score, and each pair's score falls with the number of roles
    that differ."""
    draw, by_edits = Draw("train", 0, "similar"), defaultdict(list)
    for i in range(240):
        a, b = draw_similar(draw, i % 6)
        score = similarity(a, b)
        by_edits[i % 6].append(score)
        assert 0 <= score <= 500
        assert score == similarity(b, a)
        assert similarity(a, a) == similarity(b, b) == 500
        shared = len(facts(a) & facts(b))
        for role in (*ROLES, "verb"):
            nearer = b._replace(**{role: getattr(a, role)})
            assert similarity(a, nearer) >= score and len(facts(a) & facts(nearer)) >= shared
    means = [sum(x) / len(x) for _, x in sorted(by_edits.items())]
    assert means[0] == 500 and all(a > b + 20 for a, b in zip(means, means[1:])) and means[5] < 150


def test_roles_count_as_content():
    anna, boris = Entity("Anna", "name"), Entity("Boris", "name")
    assert similarity(Clause("visit", anna, boris), Clause("visit", boris, anna)) == 167
    assert (similarity(Clause("visit", anna, boris, order=1), Clause("visit", anna, boris, order=9))
            == 500)
    old = anna._replace(adjectives=("old",))
    assert 0 < similarity(Clause("visit", anna), Clause("visit", old)) < 500
    assert (facts(Clause("visit", anna, boris._replace(relative=Clause("help", object=old))))
            >= facts(Clause("visit", anna)))


def test_similarity_files_are_parallel_and_graded(small):
    for part in ("dev", "test"):
        tracks = sorted(
            {f.name.rsplit(".", 2)[0] for f in (small[0] / "similarity" / part).iterdir()})
        assert tracks == sorted(
            [f"{n}-{n}" for n in LANGUAGES] + [f"svo-{n}" for n in LANGUAGES if n != "svo"])
        for track in tracks:
            a, b = track.split("-")
            rows = read_sts2017(
                *(small[0] / f"similarity/{part}/{track}.{end}.txt" for end in ("input", "gs")), a,
                b)
            assert len(set(rows["score"][:])) > 5
            assert min(rows["score"][:]) < 1
            assert (a == b or max(rows["score"][:]) == 5)
            assert all(x != y for x, y in zip(rows["text_a"][:], rows["text_b"][:]))
            assert (a == b or len(rows) == 18)


# readers

def test_columns_are_those_of_the_real_corpora(monkeypatch, tmp_path):
    monkeypatch.setenv("S2DM_DATA", str(tmp_path))
    corpus = Synthetic(SyntheticConfig(**SMALL, languages="svo,svo_post,free_case"))
    pairs = corpus.pairs()
    columns = (
        "sentence_id", "lang", "treebank", "release", "text", "forms", "upos", "heads", "deprels",
        "depths")
    assert (pairs.column_names
            == ["pair_id", "group", *(f"{c}_{side}" for side in "st" for c in columns)])
    assert len(pairs) == 80
    assert set(pairs["lang_s"][:]) == {"svo"}
    assert Counter(pairs["lang_t"][:]) == {"svo_post": 40, "free_case": 40}
    assert pairs[0]["pair_id"] == "synthetic/train-00000/svo-svo_post"
    assert len(set(pairs["pair_id"][:])) == 80
    for pair in pairs:
        assert (pair["group"] == pair["sentence_id_s"].rpartition("/")[0]
                == pair["sentence_id_t"].rpartition("/")[0])
        verbs = [
            [f for f, u in zip(pair[f"forms_{s}"], pair[f"upos_{s}"]) if u == "VERB"] for s in "st"]
        assert sorted(v[:3] for v in verbs[0]) == sorted(v[:3] for v in verbs[1])
    assert set(corpus.pairs(languages=["free_case"])["lang_t"][:]) == {"free_case"}
    assert len(corpus.pairs("test")) == 8
    assert len(corpus.sentences("dev", ["svo"])) == 4 and len(corpus.reading("svo", "train")) == 60
    assert corpus.reading("svo_post").features == reading.features()
    assert corpus.similarity("svo", "free_case").features == FEATURES
    assert len(corpus.text("free_case")) == 30
    assert len(corpus.text("svo", "dev")) == 1
    assert corpus.targets == ["svo_post", "free_case"]


def test_a_corpus_is_generated_once_and_by_parts(monkeypatch, tmp_path):
    monkeypatch.setenv("S2DM_DATA", str(tmp_path))
    config, made = SyntheticConfig(**SMALL, languages="svo,svo_post"), []
    real = synthetic.generate
    monkeypatch.setattr(
        synthetic, "generate",
        lambda config, folder, kinds: (made.append(kinds), real(config, folder, kinds)))
    folder = corpus_folder(config, "reading")
    assert Synthetic(config).reading("svo")
    assert corpus_folder(config, "reading") == folder
    assert made == [["reading"]]
    assert [p.name for p in sorted(folder.parent.iterdir()) if p.is_dir()] == ["reading"]
    # another language, another corpus
    assert (corpus_folder(SyntheticConfig(**SMALL, languages="svo,svo_post accent="), "reading")
            != folder)
    assert Synthetic(config).text("svo") and made[-1] == ["text"]


def test_an_interrupted_generation_leaves_no_corpus(monkeypatch, tmp_path):
    monkeypatch.setenv("S2DM_DATA", str(tmp_path))
    config, real = SyntheticConfig(**SMALL, languages="svo,svo_post"), synthetic.write_json
    def cut(*args): raise KeyboardInterrupt
    monkeypatch.setattr(synthetic, "write_json", cut)
    with pytest.raises(KeyboardInterrupt): corpus_folder(config, "similarity")
    monkeypatch.setattr(synthetic, "write_json", real)
    folder = corpus_folder(config, "similarity")
    assert (folder / "files.json").exists() and not list(folder.parent.glob("*.partial"))


# malformed input

@pytest.mark.parametrize("text, message", [
    ("", "language='' is not possible"),
    ("svo_pots", "did you mean 'svo_post'"),
    ("mine VOSX", "'VOSX' is no setting"),
    ("mine order=SVO", "order='SVO' is not possible"),
    ("mine ordr=SVOX", "did you mean 'order'"),
    ("Mine order=SVOX", "A name is made of"),
    ("mine phrase=DANG", "phrase='DANG'"),
    ("mine accent=1", "An accent is a vowel"),
    ("mine accent=ol2", "An accent is"),
    ("mine accent=o", "makes the word 'to'"),
    ("mine verb_second=perhaps", "verb_second='perhaps'"),
    ("mine order=free", "choose case=accusative or case=ergative"),
    ("mine verb_second=true", "would not tell"),
    *((f"mine order={order}", "or question=place") for order in ("VSOX", "OSVX", "SXOV", "VOXS"))])
def test_wrong_languages_are_named(text, message):
    with pytest.raises(ParameterError, match=re.escape(message)): parse_language(text)


@pytest.mark.parametrize("settings, message", [
    (dict(languages="svo"), "A source and at least one other language"),
    (dict(languages="svo,svo"), "two languages named 'svo'"),
    (dict(languages="svo,sov_case,svo accent=ol"), "two languages named 'svo'"),
    (dict(languages="svo,klingon"), "language='klingon'"),
    (dict(documents=3), "documents=3 is not possible"),
    (dict(overlap=95), "from 0 to 80"),
    (dict(seed=-1), "seed=-1"),
    (dict(sentenses=5), "did you mean 'sentences'"),
    (dict(function_words="english"), "choose one of own, shared"),
    (dict(similar="many"), "similar='many'")])
def test_wrong_corpora_are_named(settings, message):
    with pytest.raises(ParameterError, match=re.escape(message)): SyntheticConfig(**settings)


def test_what_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("S2DM_DATA", str(tmp_path))
    corpus = Synthetic(SyntheticConfig(**SMALL, languages="svo,svo_post"))
    for call, message in (
            (lambda: corpus.reading("svo_post", "train"), "choose one of svo.json"),
            (lambda: corpus.reading("de"), "file='de.json'"),
            (lambda: corpus.text("svo", "test"),
             "part='test' is not possible; choose one of dev, train"),
            (lambda: corpus.similarity("svo_post", "svo"), "did you mean"),
            (lambda: Draw("valid"), "part='valid'"),
            (lambda: generate(corpus.config, tmp_path, ["texts"]), "did you mean 'text'"),
            (lambda: corpus.pairs("best"), "part='best'")):
        with pytest.raises(ParameterError, match=re.escape(message)): call()


PINNED = {
    "text": "32b232bad12656fe", "treebank": "b7bc5fbcc6f9a751", "reading": "e6f3105077e96775",
    "similarity": "919eea66104bf526"}
