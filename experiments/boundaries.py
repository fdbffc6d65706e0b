"""What a language's own syntax can mend: the arms of docs/experiment-boundaries.md.

    S2DM_MIRROR=... python experiments/boundaries.py train [--arms baseline,fold0] [--seeds 0,1]
    S2DM_MIRROR=... python experiments/boundaries.py choose
    S2DM_MIRROR=... python experiments/boundaries.py read [--arms baseline] [--seeds 0,1]
    S2DM_MIRROR=... python experiments/boundaries.py tables --out figures/e5

`train` makes the readers, those of the five folds among them; `choose` lets a choice learn from the
lists of the folds; `read` reads every test once with each reader, and keeps what it says with and
without the choice and with its controls; `tables` compares, and refuses until all have been read
with. Everything is written below runs/boundaries/, and what is there is not done again."""
import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from primary import OUTCOMES, SYSTEMS, scores_of, targets
from recipe import check_there
from safetensors.torch import load_file

from s2dm.boundaries import (
    LabelledSpans, SpanChoice, characters_of, choice_lists, choice_row, edge_states, fit_choice,
    fit_phrases, join_lists, labelled_spans, phrase_table, phrases_of)
from s2dm.comparison import comparison_table, difference
from s2dm.constituents import Constituents
from s2dm.core import DataError, read_json, runs_dir, save_tensors, write_json
from s2dm.features import Spans, best_spans, choose_answers
from s2dm.finetune import FinetuneConfig, evenly, finetune, load_questions
from s2dm.metrics import score, squad_scores
from s2dm.parsers import corenlp
from s2dm.pretrain import PretrainConfig, checkpoint_for, pretrain
from s2dm.probes import split_groups
from s2dm.reader import S2DMReader
from s2dm.reading import load_reading
from s2dm.subwords import word_spans
from s2dm.treebanks import load_sentences

FOLDS = 5
SEEDS = range(5) # of readers; the readers of folds have seed 0
FOLD_ARMS = [f"fold{number}" for number in range(FOLDS)]
ARMS = ("baseline", "S2DM_SP", "phrases", "bare")
ROOT = runs_dir() / "boundaries"
SENTENCES = 250 # of each language
QUESTION_TEXTS = 500 # that are asked while sentences are read
PHRASES = 3 # questions of English for each about a phrase
ARTICLES = ("a ", "an ", "the ")
FITS = [dict(epochs=epochs, decay=decay) for epochs in (2, 5) for decay in (.1, 1.)]
FAMILIES = (("ar",), ("cs", "pl", "ru"), ("de", "en", "is", "sv"), ("es", "fr", "it", "pt", "ro"),
            ("fi",), ("hi", "bn"), ("id",), ("ja",), ("ko",), ("th",), ("tr",), ("zh",))
CHOICE = "choice" # that has learned from all trees
PARSED = ("en", "zh", "de", "es", "ar") # languages of CoreNLP's trees
PENALTIES = (.5, 1, 2, 4) # of a span that crosses a bracket; English says which
TESTS = [(dataset, language) for dataset in OUTCOMES for language in ("en", *targets(dataset))]
PAIRS = [
    ("baseline with choice", "baseline"), ("phrases", "baseline"), ("bare", "baseline"),
    ("phrases with choice", "baseline"), ("S2DM_SP with choice", "S2DM_SP")]
CONTROLS = [(f"baseline with {how}", "baseline")
            for how in ("english trees", "family left out", "shuffled trees")]


def below(*names): # from now on runs are written there
    os.environ["S2DM_RUNS"] = str(ROOT.joinpath(*names))


# questions as files

def write_squad(file, rows): # rows: id, question, context, answers
    paragraphs = {}
    for row in rows:
        answers = [dict(text=text, answer_start=start)
                   for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"])]
        asked = dict(id=row["id"], question=row["question"], answers=answers)
        paragraphs.setdefault(row["context"], []).append(asked)
    paragraphs = [dict(context=context, qas=asked) for context, asked in paragraphs.items()]
    write_json(file, dict(data=[dict(title="", paragraphs=paragraphs)]))


def english(): # the questions that all readers are trained on
    return load_questions(FinetuneConfig(model="e5", variant="baseline").data)


def folds_of(questions): # [N] number of the fold; all questions about a context are in one
    order = {context: i for i, context in enumerate(dict.fromkeys(questions["context"][:]))}
    drawn = np.random.default_rng(0).permutation(len(order)) % FOLDS
    return np.array([drawn[order[context]] for context in questions["context"][:]])


def without_article(row): # a row whose answer does not begin with one
    text, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
    for article in ARTICLES:
        if text.lower().startswith(article) and len(text) > len(article):
            answers = dict(text=[text[len(article):]], answer_start=[start + len(article)])
            return row | dict(answers=answers)
    return row


def phrase_questions(sentences, most):
    """Questions in the place of which a word stands, and whose answer is the longest phrase that
    begins, or ends, with it: at most `most`, as many of each language as there can be."""
    rng = np.random.default_rng(0)
    rows = []
    for number, row in enumerate(sentences):
        words = word_spans(row["text"], row["forms"])
        longest = {}
        for i, j in phrases_of(row["heads"]):
            if j - i < 2 or "PUNCT" in (row["upos"][i], row["upos"][j - 1]): continue
            for key in (("begins", i), ("ends", j - 1)):
                longest[key] = max(longest.get(key, (0, 0)), (i, j), key=lambda x: x[1] - x[0])
        once = [key for key in longest if row["forms"].count(row["forms"][key[1]]) == 1]
        if not once: continue
        side, word = once[rng.integers(len(once))]
        place = characters_of(words, longest[side, word])
        if place is None: continue
        start, end = place
        form = row["forms"][word]
        rows.append(dict(
            id=f"phrase{number}", question=f"{form} …" if side == "begins" else f"… {form}",
            context=row["text"],
            answers=dict(text=[row["text"][start:end]], answer_start=[start])))
    return [rows[i] for i in np.sort(rng.permutation(len(rows))[:most])]


def write_files():
    "The questions of each fold, phrases, and answers without articles."
    questions = english()
    fold = folds_of(questions)
    for number in range(FOLDS):
        write_squad(ROOT / f"fold{number}.json", questions.select(np.flatnonzero(fold == number)))
    write_squad(ROOT / "bare.json", map(without_article, questions))
    write_squad(ROOT / "phrases.json",
                phrase_questions(load_sentences(), len(questions) // PHRASES))


# readers

def s2dm_of(seed): # folder of the S2DM of the experiment with e5, trained again if it is not there
    below("s2dm")
    config = PretrainConfig(model="e5", variant="s2dm_sp", seed=seed)
    if not checkpoint_for(config).is_dir(): pretrain(config)
    return str(checkpoint_for(config).resolve())


def parameters(arm, seed): # of 04_finetune
    given = dict(model="e5", seed=seed) | SYSTEMS.get(arm, SYSTEMS["baseline"])
    if arm == "S2DM_SP": given |= dict(s2dm=s2dm_of(seed))
    if arm in FOLD_ARMS:
        others = [other for other in FOLD_ARMS if other != arm]
        given |= dict(data=[str(ROOT / f"{other}.json") for other in others])
    if arm == "bare": given |= dict(data=[str(ROOT / "bare.json")])
    if arm == "phrases": # as many steps as without
        plain = FinetuneConfig(model="e5", variant="baseline")
        below("baseline")
        steps = finetune(FinetuneConfig(model="e5", variant="baseline", seed=seed)).fit.steps
        given |= dict(data=[*plain.data, str(ROOT / "phrases.json")], max_steps=steps)
    return given


def reader_of(arm, seed): # where it is
    below(arm)
    system = SYSTEMS.get(arm, SYSTEMS["baseline"])
    return FinetuneConfig(model="e5", seed=seed, **system).folder("finetune") / "checkpoint"


def train(arm, seed):
    if reader_of(arm, seed).is_dir(): return
    given = parameters(arm, seed)
    below(arm)
    finetune(FinetuneConfig(**given))


# phrases

def treebank(): # evenly spaced sentences of each language
    sentences = load_sentences()
    language = np.array(sentences["lang"][:])
    chosen = [np.flatnonzero(language == name) for name in sorted(set(language))]
    each = [rows[np.linspace(0, len(rows) - 1, min(SENTENCES, len(rows))).round().astype(int)]
            for rows in chosen]
    return sentences.select(np.concatenate(each))


def shuffled(sentences): # each has the tree of another of its language with as many words
    rng = np.random.default_rng(0)
    rows = sentences.to_list()
    alike = {}
    for i, row in enumerate(rows): alike.setdefault((row["lang"], len(row["forms"])), []).append(i)
    for places in alike.values():
        others = [rows[i] for i in rng.permutation(places)]
        trees = [dict(heads=other["heads"], upos=other["upos"]) for other in others]
        for i, tree in zip(places, trees): rows[i] = rows[i] | tree
    return Dataset.from_list(rows)


def some_of(seen, spans, kept): # [M] bool
    return seen[torch.from_numpy(kept)], LabelledSpans(*(x[kept] for x in spans))


class Phrases:
    "Phrase models on a reader's states, from all trees or some."

    def __init__(self, reader):
        sentences = treebank()
        asked = english()["question"][:QUESTION_TEXTS]
        self.seen, self.spans, self.language, self.train = {}, {}, {}, {}
        for name, trees in (("trees", sentences), ("shuffled trees", shuffled(sentences))):
            spans = labelled_spans(trees)
            self.seen[name], kept = edge_states(reader, trees, spans, asked)
            self.spans[name] = LabelledSpans(*(x[kept] for x in spans))
            of = self.spans[name].sentence
            self.language[name] = np.array(trees["lang"][:])[of]
            self.train[name] = split_groups(trees["group"][:], .8)[of]

    def model(self, name="trees", languages=None): # languages: those that are learned from
        kept = np.ones(len(self.train[name]), bool)
        if languages is not None: kept = np.isin(self.language[name], languages)
        seen, spans = some_of(self.seen[name], self.spans[name], kept)
        return fit_phrases(seen, spans, self.train[name][kept])

    def table(self, model): # on sentences that it was not trained on
        unseen = ~self.train["trees"]
        seen, spans = some_of(self.seen["trees"], self.spans["trees"], unseen)
        return phrase_table(model, seen, spans, self.language["trees"][unseen])

    def languages(self): return sorted(set(self.language["trees"]))


# the choice

LEARNED = ROOT / "choice.safetensors"


def new_choice(reader, phrases): # with what was learned, if there is anything
    choice = SpanChoice(reader.encoder.config.hidden_size)
    if LEARNED.exists(): choice.load_state_dict(load_file(LEARNED), strict=False)
    choice.phrases = phrases
    return choice.eval().requires_grad_(False)


def choose():
    "Learn the choice from the folds; how long, English development questions say."
    lists = []
    for number, arm in enumerate(FOLD_ARMS):
        reader = S2DMReader.from_pretrained(reader_of(arm, 0))
        choice = new_choice(reader, Phrases(reader).model())
        lists.append(choice_lists(reader, choice, load_questions((str(ROOT / f"{arm}.json"),))))
        print(f"fold {number}: {len(lists[-1].right)} questions with a choice")
    lists = join_lists(lists)
    reader = S2DMReader.from_pretrained(reader_of("baseline", 0))
    choice = new_choice(reader, Phrases(reader).model())
    config = FinetuneConfig(model="e5", variant="baseline")
    dev = choice_lists(reader, choice, evenly(load_questions(config.dev), config.dev_sample))
    rows, fitted = [], []
    for settings in FITS:
        fitted.append(fit_choice(choice, lists, **settings))
        rows.append(settings | choice_row(fitted[-1], dev))
    table = pd.DataFrame(rows)
    best = fitted[int(table["by_worth"].idxmax())]
    learned = {name: w for name, w in best.state_dict().items() if not name.startswith("phrases.")}
    table.round(2).to_csv(ROOT / "choice.csv", index=False, lineterminator="\n")
    save_tensors(LEARNED, learned, dict(format="pt"))
    return table


# reading

def family_of(language): # the treebank's languages that are related to it, itself among them
    return next((family for family in FAMILIES if language in family), ())


class Choices:
    "The choices that a reader's answers are read with, by the trees that they have learned from."

    def __init__(self, reader):
        self.reader = reader
        self.phrases = Phrases(reader)
        self.alike = { # in all languages
            CHOICE: self.phrases.model(),
            "english trees": self.phrases.model(languages=["en"]),
            "shuffled trees": self.phrases.model("shuffled trees")}
        self.without = {} # family -> model

    def table(self): return self.phrases.table(self.alike[CHOICE])

    def of(self, language): # name -> choice, for a test's language
        family = family_of(language)
        if family not in self.without:
            others = [other for other in self.phrases.languages() if other not in family]
            self.without[family] = self.phrases.model(languages=others)
        models = self.alike | {"family left out": self.without[family]}
        return {name: new_choice(self.reader, model) for name, model in models.items()}


def read_once(reader, choices, questions): # n best of each question; name -> answers
    windows = reader.windows(questions)
    states = reader.lower_states(windows)
    c = reader.config
    order, spans, worth = [], [], {name: [] for name in choices}
    for positions, h, (start, end) in reader.read_states(windows, states=states):
        best = best_spans(start, end, windows, positions, c.n_best, c.longest_characters)
        order += positions
        spans.append(best)
        for name, choice in choices.items():
            worth[name].append(choice.worth(h, best, windows, positions))
    spans = Spans(*map(np.concatenate, zip(*spans)))
    said = {name: choose_answers(windows, order, spans, 1, np.concatenate(of))
            for name, of in worth.items()}
    return choose_answers(windows, order, spans, c.n_best), said


def named(arm, how): return f"{arm} with {how}"


def answers_of(name, seed): return ROOT / "answers" / name.replace(" ", "_") / f"seed{seed}"


def write_texts(folder, label, ids, answers): # the best of each
    texts = {id: of[0].text if of else "" for id, of in zip(ids, answers)}
    write_json(folder / f"predictions.{label}.json", texts)


def read(arm, seed):
    "Read every test once."
    folder = answers_of(arm, seed)
    if (folder / "metrics.json").exists(): return
    reader = S2DMReader.from_pretrained(reader_of(arm, seed))
    choices = Choices(reader)
    for dataset, language in TESTS:
        label = f"{dataset}.{language}"
        if (folder / f"nbest.{label}.json").exists(): continue
        questions = load_reading(dataset, language)
        ids = questions["id"][:]
        best, said = read_once(reader, choices.of(language), questions)
        for how, answers in said.items():
            write_texts(answers_of(named(arm, how), seed), label, ids, answers)
        write_texts(folder, label, ids, best)
        spans = {id: [[a.start, a.end, a.score] for a in of] for id, of in zip(ids, best)}
        write_json(folder / f"nbest.{label}.json", spans)
    write_json(folder / "metrics.json", dict(phrases=choices.table().to_dict("records")))


# what trees and the right answer would give, from the n best

def near_best(contexts, nbest): # id -> texts, scores and places of those that overlap the best
    found = {}
    for id, spans in nbest.items():
        near = [(a, b, score) for a, b, score in spans if a < spans[0][1] and spans[0][0] < b]
        found[id] = [(contexts[id][a:b], score, (a, b)) for a, b, score in near]
        if not near: found[id] = [("", 0., (0, 0))]
    return found


def exact(questions, near, choose): # EM if a function chooses among the spans of each question
    texts = {id: choose(id, spans)[0] for id, spans in near.items()}
    return float(score(texts, questions).em.mean())


def oracle(questions, near): # the right one is chosen wherever it is there
    golds = {row["id"]: row["answers"]["text"] for row in questions}
    def choose(id, spans):
        return max(spans, key=lambda span: squad_scores(span[0], golds[id])[0])

    return exact(questions, near, choose)


def by_trees(questions, near, penalty): # a span that crosses a bracket loses some of its score
    contexts = list(dict.fromkeys(questions["context"][:]))
    parses = corenlp(questions["lang_context"][0])(contexts)
    trees = {text: Constituents(text, parse, rule="brackets")
             for text, parse in zip(contexts, parses)}
    context = dict(zip(questions["id"][:], questions["context"][:]))
    def choose(id, spans):
        tree = trees[context[id]]
        return max(spans, key=lambda span: span[1] - penalty * (span[2] not in tree))

    return exact(questions, near, choose)


def bounds(seed):
    "EM of a baseline, with the oracle, and with CoreNLP's trees where there are any."
    rows = []
    for dataset, language in TESTS:
        questions = load_reading(dataset, language)
        contexts = dict(zip(questions["id"][:], questions["context"][:]))
        nbest = read_json(answers_of("baseline", seed) / f"nbest.{dataset}.{language}.json")
        near = near_best(contexts, nbest)
        plain = exact(questions, near, lambda id, spans: spans[0])
        row = dict(dataset=dataset, language=language, seed=seed, plain=plain)
        row |= dict(oracle=oracle(questions, near))
        if dataset == "xquad" and language in PARSED:
            row |= {f"trees {penalty}": by_trees(questions, near, penalty) for penalty in PENALTIES}
        rows.append(row)
    return pd.DataFrame(rows)


# tables

def places_of(pairs): # (name, seed) -> folder
    names = dict.fromkeys(name for pair in pairs for name in pair)
    return {(name, seed): answers_of(name, seed) for name in names for seed in SEEDS}


def comparisons(pairs, samples):
    rows = []
    for dataset in OUTCOMES:
        found = scores_of(places_of(pairs), dataset, len(SEEDS))
        rows.append(comparison_table(found, pairs, samples).assign(dataset=dataset))
    return pd.concat(rows, ignore_index=True)


def single_languages(pairs, samples):
    "The same in each language alone: intervals and no tests."
    rows = []
    for dataset, language in TESTS:
        found = scores_of(places_of(pairs), dataset, len(SEEDS), [language])
        for name, other in pairs:
            about = dict(dataset=dataset, language=language, system=name, other=other)
            about |= dict(mean=found[name].means().mean(), mean_other=found[other].means().mean())
            drawn = difference(found[name], found[other], samples)
            rows.append(about | {end: drawn[end] for end in ("difference", "low", "high")})
    return pd.DataFrame(rows)


def write_tables(samples, out):
    there = [answers_of(arm, seed) / "metrics.json" for arm in ARMS for seed in SEEDS]
    check_there(there, "have not been read with")
    tables = dict(boundaries=comparisons(PAIRS, samples))
    tables["boundaries-controls"] = comparisons(CONTROLS, samples)
    tables["boundaries-languages"] = single_languages(PAIRS + CONTROLS, samples)
    every = pd.concat([bounds(seed) for seed in SEEDS])
    tables["boundaries-bounds"] = every.groupby(["dataset", "language"], sort=False).mean()
    tables["boundaries-bounds"] = tables["boundaries-bounds"].drop(columns="seed").reset_index()
    for name, table in tables.items():
        table.round(4).to_csv(out / f"{name}.csv", index=False, lineterminator="\n")
        print(table.round(3).to_string(index=False), end="\n\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("train", "choose", "read", "tables"))
    parser.add_argument("--arms", default="", help="with commas between; none given: all")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="with commas between")
    parser.add_argument("--out", type=Path, default=Path("figures/e5"))
    parser.add_argument("--samples", type=int, default=10_000)
    given = parser.parse_args()
    known = [*FOLD_ARMS, *ARMS] if given.command == "train" else [*ARMS]
    arms = given.arms.split(",") if given.arms else known
    unknown = sorted({*arms} - {*known})
    if unknown: parser.error(f"{unknown[0]!r} is no arm; choose from {', '.join(known)}")
    seeds = [int(seed) for seed in given.seeds.split(",")]
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        if given.command == "train":
            if not (ROOT / "phrases.json").exists(): write_files()
            for arm in arms:
                for seed in seeds if arm in ARMS else (0,): train(arm, seed)
        if given.command == "choose":
            places = [reader_of(arm, 0) for arm in (*FOLD_ARMS, "baseline")]
            check_there(places, "readers are not trained yet")
            print(choose().to_string(index=False))
        if given.command == "read":
            places = [LEARNED, *(reader_of(arm, seed) for arm in ARMS for seed in SEEDS)]
            check_there(places, "are not there yet (train, choose)")
            for arm in arms:
                for seed in seeds: read(arm, seed)
        if given.command == "tables": write_tables(given.samples, given.out)
    except DataError as error: sys.exit(str(error))


if __name__ == "__main__": main()
