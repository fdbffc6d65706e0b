"""What a language's own syntax can mend: the arms of docs/experiment-boundaries.md.

    S2DM_MIRROR=... python experiments/boundaries.py train [--arms fold0,fold1] [--seeds 0]
    S2DM_MIRROR=... python experiments/boundaries.py choose
    S2DM_MIRROR=... python experiments/boundaries.py read [--arms baseline] [--seeds 0,1]
    S2DM_MIRROR=... python experiments/boundaries.py tables --out figures/e5
    S2DM_MIRROR=... python experiments/boundaries.py give --reader FOLDER --to NEW_FOLDER
    python experiments/boundaries.py keep

`choose` lets a choice learn from the lists of the five folds; `read` reads every test once with
each reader, and keeps what it says with and without the choice, a baseline with the choice's
controls as well. Both train the readers that are not there; `train` does it before, in two
processes, say. `tables` compares, and refuses until all have been read with and `make e5` is
finished. `give` puts the choice into a reader on the same encoder, of any system: a new reader,
which has a phrase model of its own. Everything else is written below runs/boundaries/, and what is
there is not done again; a reader of `make e5` that is on this machine is taken as it is. `keep`
puts choices and answers, without readers, into figures/e5/boundaries.tar.xz; `python
workflow/records.py restore` takes them out again."""
import argparse
import os
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import recipe
import torch
from datasets import Dataset
from primary import OUTCOMES, SYSTEMS, targets
from recipe import check_primary, check_there, precision_for, s2dm_of, write_table
from safetensors.torch import load_file
from scipy.stats import pearsonr, rankdata

from s2dm.boundaries import (
    LabelledSpans, choice_lists, choice_row, edge_states, fit_choice,
    fit_phrases, join_lists, labelled_spans, phrase_table)
from s2dm.comparison import comparison_table, difference, passage_scores, passages_of
from s2dm.constituents import Constituents, near_flags
from s2dm.core import (
    DataError, file_hash, plain_errors, project_root, read_json, runs_dir, save_tensors,
    write_json)
from s2dm.evaluation import NO_ANSWER, read_answers, write_answers
from s2dm.features import Spans, best_spans, choose_answers
from s2dm.finetune import LEARNED_SHARE, FinetuneConfig, evenly, finetune, load_questions
from s2dm.metrics import score, squad_scores
from s2dm.parsers import corenlp
from s2dm.reader import S2DMReader
from s2dm.reading import load_reading
from s2dm.results import pack
from s2dm.spans import SpanChoice
from s2dm.treebanks import load_sentences, split_groups

FOLDS = 5
SEEDS = range(5) # of readers; the readers of folds have seed 0
FOLD_ARMS = [f"fold{number}" for number in range(FOLDS)]
ARMS = ("baseline", "S2DM_SP", "phrases", "no articles")
RECIPE = "recipe" # of recipe.py, as soon as there is one; it has fewer seeds
ROOT = runs_dir() / "boundaries"
SENTENCES = 250 # of each language
QUESTION_TEXTS = 500 # that are asked while sentences are read
LEARNED_OTHERWISE = {"phrases": dict(phrases=.25), "no articles": dict(articles="drop")}
FITS = [dict(epochs=epochs, decay=decay) for epochs in (2, 5) for decay in (.1, 1.)]
FAMILIES = (("ar",), ("cs", "pl", "ru"), ("de", "en", "is", "sv"), ("es", "fr", "it", "pt", "ro"),
            ("fi",), ("hi", "bn"), ("id",), ("ja",), ("ko",), ("th",), ("tr",), ("zh",))
CHOICE = "choice" # whose phrase models have learned from all trees
LEARNING = (CHOICE, "english trees", "shuffled trees") # choices that are learned
CONTROLS = (*LEARNING[1:], "family left out")
PARSED = ("en", "zh", "de", "es", "ar") # languages of CoreNLP's trees
PENALTIES = (.5, 1, 2, 4) # of a span that crosses a bracket; XQuAD's English says which
LENGTHS = (-2, -1, -.5, 0, .5, 1, 2) # weights of a span's log length; `DEV` says which
TESTS = [(dataset, language) for dataset in OUTCOMES for language in ("en", *targets(dataset))]
TRIED = dict(length=[f"length {weight}" for weight in LENGTHS],
             trees=[f"trees {penalty}" for penalty in PENALTIES])
DEV = ("reddit", "en") # development questions
WITH = " with "
CHOSEN = [(f"{RECIPE} with choice", RECIPE)] # on top of the recipe
PAIRS = [
    ("baseline with choice", "baseline"), ("phrases", "baseline"), ("no articles", "baseline"),
    ("phrases with choice", "baseline"), ("S2DM_SP with choice", "S2DM_SP")]
CONTROLLED = [pair for how in CONTROLS for pair in (
    (f"baseline with {how}", "baseline"), ("baseline with choice", f"baseline with {how}"))]


def below(*names): # from now on runs are written there
    os.environ["S2DM_RUNS"] = str(ROOT.joinpath(*names))


@cache
def every_sentence(): return load_sentences()


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


def questions_of(dataset, language): # of a test, or the development questions
    if (dataset, language) != DEV: return load_reading(dataset, language)
    config = FinetuneConfig(model="e5", variant="baseline")
    return evenly(load_questions(config.dev), config.dev_sample)


def folds_of(questions): # [N] number of the fold; all questions about a context are in one
    order = {context: i for i, context in enumerate(dict.fromkeys(questions["context"][:]))}
    drawn = np.random.default_rng(0).permutation(len(order)) % FOLDS
    return np.array([drawn[order[context]] for context in questions["context"][:]])


def write_files():
    "The questions of each fold."
    questions = english()
    fold = folds_of(questions)
    for number in range(FOLDS):
        write_squad(ROOT / f"fold{number}.json", questions.select(np.flatnonzero(fold == number)))


# readers

def folder_of(arm, seed): # of its run; that of `make e5` if its reader is here
    system = SYSTEMS.get(arm, SYSTEMS["baseline"])
    config = FinetuneConfig(model="e5", seed=seed, **system)
    os.environ["S2DM_RUNS"] = str(ROOT.parent)
    if arm in SYSTEMS and reader_in(config.folder("finetune")).is_file():
        return config.folder("finetune")
    below(arm.replace(" ", "_"))
    return config.folder("finetune")


def reader_in(folder): return folder / "checkpoint/reader.json" # which is written last


def all_arms(): # arm -> its seeds
    known = recipe.JOINED_FILE.exists() and recipe.best_arm()
    return {arm: SEEDS for arm in ARMS} | ({RECIPE: recipe.SEEDS} if known else {})


def reader_of(arm, seed): # it reads in the precision that it was trained in
    precision = precision_for(seed, ROOT)
    if arm == RECIPE: folder = recipe.reader_of(recipe.best_arm(), seed)
    else: folder = folder_of(arm, seed) / "checkpoint"
    reader = S2DMReader.from_pretrained(folder)
    reader.precision = precision
    return reader


def parameters(arm, seed): # of 04_finetune
    given = dict(model="e5", seed=seed, precision=precision_for(seed, ROOT))
    given |= SYSTEMS.get(arm, SYSTEMS["baseline"])
    if arm == "S2DM_SP": given |= dict(s2dm=s2dm_of(seed, ROOT))
    if arm in FOLD_ARMS:
        others = [other for other in FOLD_ARMS if other != arm]
        given |= dict(data=[str(ROOT / f"{other}.json") for other in others])
    return given | LEARNED_OTHERWISE.get(arm, {})


def train(arm, seed):
    if arm == RECIPE: return recipe.train(recipe.best_arm(), seed, again=True)
    if reader_in(folder_of(arm, seed)).is_file(): return
    if not (ROOT / f"fold{FOLDS - 1}.json").exists(): write_files()
    given = parameters(arm, seed)
    below(arm.replace(" ", "_"))
    finetune(FinetuneConfig(**given))


# phrases

def is_learned(sentences): # [N] bool; of the other groups nobody learns anything
    names = np.array(sentences["group"][:])
    groups = np.unique(every_sentence()["group"][:])
    return np.isin(names, groups[split_groups(groups, LEARNED_SHARE)])


def evenly_spaced(rows, most): # some of an array
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]


def treebank(): # evenly spaced sentences of each language
    sentences = every_sentence()
    language = np.array(sentences["lang"][:])
    each = [evenly_spaced(np.flatnonzero(language == name), SENTENCES)
            for name in sorted(set(language))]
    return sentences.select(np.concatenate(each))


def in_english(count): # as many sentences in English alone
    sentences = every_sentence()
    rows = np.flatnonzero(np.array(sentences["lang"][:]) == "en")
    return sentences.select(evenly_spaced(rows, count))


def shuffled(sentences): # each has the tree of another of its language with as many words
    rows = sentences.to_list()
    alike = {}
    for i, row in enumerate(rows): alike.setdefault((row["lang"], len(row["forms"])), []).append(i)
    new = []
    for places in alike.values():
        if len(places) == 1: continue
        for i, other in zip(places, [*places[1:], places[0]]):
            new.append(rows[i] | dict(heads=rows[other]["heads"], upos=rows[other]["upos"]))
    return Dataset.from_list(new)


class Trees:
    "What a reader sees of spans of sentences."

    def __init__(self, reader, sentences):
        spans = labelled_spans(sentences)
        asked = english()["question"][:QUESTION_TEXTS]
        self.seen, kept = edge_states(reader, sentences, spans, asked)
        self.spans = LabelledSpans(*(x[kept] for x in spans))
        self.language = np.array(sentences["lang"][:])[self.spans.sentence]
        self.train = is_learned(sentences)[self.spans.sentence]

    def model(self, but=()): # but: languages that are left out
        kept = np.flatnonzero(~np.isin(self.language, but))
        spans = LabelledSpans(*(x[kept] for x in self.spans))
        return fit_phrases(self.seen[torch.from_numpy(kept)], spans, self.train[kept])

    def table(self, model): # on sentences that it was not trained on
        kept = np.flatnonzero(~self.train)
        spans = LabelledSpans(*(x[kept] for x in self.spans))
        seen = self.seen[torch.from_numpy(kept)]
        return phrase_table(model, seen, spans, self.language[kept])


def trees_for(how, sentences): # that a choice's phrase model learns from
    if how == "english trees": return in_english(len(sentences))
    return shuffled(sentences) if how == "shuffled trees" else sentences


# the choice

def learned_file(how): return ROOT / f"{how.replace(' ', '_')}.safetensors"


def new_choice(reader, phrases, how=None): # how: with what this choice has learned
    choice = SpanChoice(reader.encoder.config.hidden_size)
    if how: choice.load_state_dict(load_file(learned_file(how)), strict=False)
    choice.phrases = phrases
    return choice.eval().requires_grad_(False)


def lists_of(arm, how, questions): # of a reader that was not trained on the questions
    reader = reader_of(arm, 0)
    phrases = Trees(reader, trees_for(how, treebank())).model()
    choice = new_choice(reader, phrases)
    return choice, choice_lists(reader, choice, questions)


def choose(how):
    "Learn a choice from the folds; how long, English development questions say."
    if learned_file(how).exists(): return
    for arm in (*FOLD_ARMS, "baseline"): train(arm, 0)
    lists = []
    for arm in FOLD_ARMS:
        lists.append(lists_of(arm, how, load_questions((str(ROOT / f"{arm}.json"),)))[1])
        print(f"{how}, {arm}: {len(lists[-1].right)} questions with a choice", flush=True)
    choice, dev = lists_of("baseline", how, questions_of(*DEV))
    rows, fitted = [], []
    for settings in FITS:
        fitted.append(fit_choice(choice, join_lists(lists), **settings))
        rows.append(settings | choice_row(fitted[-1], dev))
    table = pd.DataFrame(rows)
    best = fitted[int(table["by_worth"].idxmax())]
    learned = {name: w for name, w in best.state_dict().items() if not name.startswith("phrases.")}
    file = learned_file(how)
    write_table(table.round(2), file.with_suffix(".csv"))
    save_tensors(file, learned, dict(format="pt"))
    print(table.to_string(index=False), flush=True)


def give(place, new): # folders
    "A reader that chooses, from one that does not."
    reader = S2DMReader.from_pretrained(place)
    trees = Trees(reader, treebank())
    model = trees.model()
    reader.choice = new_choice(reader, model, CHOICE)
    known = trees.table(model)["right"].mean()
    reader.facts |= dict(choice="between overlapping spans, learned from English questions; what a "
                                f"phrase is, from treebanks ({known:.0f}% of new spans right)")
    reader.save_pretrained(new)
    print(f"{new}: {reader.facts['choice']}")


# reading

def family_of(language): # the treebank's languages that are related to it, itself among them
    return next((family for family in FAMILIES if language in family), ())


class Choices:
    "The choices that a reader's answers are read with."

    def __init__(self, reader, controlled): # controlled: with the choice's controls, too
        self.reader = reader
        self.controlled = controlled
        sentences = treebank()
        self.trees = Trees(reader, sentences)
        self.alike = {CHOICE: self.trees.model()} # in all languages
        for how in LEARNING[1:] if controlled else ():
            self.alike[how] = Trees(reader, trees_for(how, sentences)).model()
        self.without = {} # family -> model

    def table(self): return self.trees.table(self.alike[CHOICE])

    def of(self, language): # name -> choice, for a test's language
        found = {how: new_choice(self.reader, model, how) for how, model in self.alike.items()}
        if not self.controlled: return found
        family = family_of(language)
        if family not in self.without: self.without[family] = self.trees.model(but=family)
        return found | {"family left out": new_choice(self.reader, self.without[family], CHOICE)}


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
            worth[name].append(choice.worth(h, best, windows.asked(positions)))
    spans = Spans(*map(np.concatenate, zip(*spans)))
    answers = {name: choose_answers(windows, order, spans, 1, np.concatenate(of))
               for name, of in worth.items()}
    return choose_answers(windows, order, spans, c.n_best), answers


def answers_of(name, seed): return ROOT / "answers" / name.replace(" ", "_") / f"seed{seed}"


def check_same(folder, given): # raises DataError; what is read with now, and what was before
    file = folder / "given.json"
    if not file.exists(): write_json(file, given)
    if read_json(file) == given: return
    raise DataError(f"{folder} was read with another reader or choice: expected that of {file}; "
                    "remove the folder to read again")


def best_of(ids, answers): return {id: of[0] if of else NO_ANSWER for id, of in zip(ids, answers)}


def read(arm, seed):
    "Read every test once."
    folder = answers_of(arm, seed)
    if (folder / "metrics.json").exists(): return
    train(arm, seed)
    reader = reader_of(arm, seed)
    check_same(folder, dict(run=reader.facts["run"]) | {
        how: file_hash(learned_file(how)) for how in LEARNING})
    choices = Choices(reader, controlled=arm == "baseline")
    for dataset, language in (DEV, *TESTS):
        label = f"{dataset}.{language}"
        if (folder / f"nbest.{label}.json").exists(): continue
        questions = questions_of(dataset, language)
        ids = questions["id"][:]
        best, by_choice = read_once(reader, choices.of(language), questions)
        for how, answers in by_choice.items():
            write_answers(answers_of(f"{arm}{WITH}{how}", seed), label, best_of(ids, answers))
        write_answers(folder, label, best_of(ids, best))
        spans = {id: [[a.start, a.end, a.score] for a in of] for id, of in zip(ids, best)}
        write_json(folder / f"nbest.{label}.json", spans)
    if arm == "baseline": write_table(bounds(seed), folder / "bounds.csv")
    write_json(folder / "metrics.json", dict(phrases=choices.table().to_dict("records")))


def keep(path):
    "What was learned and read; the n best, which are large, have told `bounds`."
    files = [file for how in LEARNING for file in ROOT.glob(f"{learned_file(how).stem}.*")]
    done = [file.parent for file in ROOT.glob("answers/*/seed*/metrics.json")]
    for folder in done: # and those with a choice beside it
        files += (ROOT / "answers").glob(f"{folder.parent.name}*/{folder.name}/[!.]*.*")
    files = sorted({file for file in files if not file.name.startswith("nbest.")})
    pack(files, ROOT.parent, path)
    print(f"{len(files)} files are in {path}")


# what trees and the right answer would give, from the n best

def near_best(contexts, nbest): # id -> texts, scores and places of those that overlap the best
    overlapping = {}
    for id, spans in nbest.items():
        best = (spans or [(0, 0, 0.)])[0]
        near = [best, *(span for span in spans[1:] if span[0] < best[1] and best[0] < span[1])]
        overlapping[id] = [(contexts[id][a:b], score, (a, b)) for a, b, score in near]
    return overlapping


def exact(questions, near, choose): # EM if a function chooses among the spans of each question
    texts = {id: choose(id, spans)[0] for id, spans in near.items()}
    return float(score(texts, questions).em.mean())


def oracle(questions, near): # the right one is chosen wherever it is there
    golds = {row["id"]: row["answers"]["text"] for row in questions}
    def choose(id, spans):
        return max(spans, key=lambda span: squad_scores(span[0], golds[id])[0])

    return exact(questions, near, choose)


def with_penalty(questions, near, loss, penalties): # EM with each; loss: id -> of each span
    def choose(penalty, id, spans):
        worth = [score - penalty * lost for (_, score, _), lost in zip(spans, loss[id])]
        return spans[int(np.argmax(worth))]

    return [exact(questions, near, partial(choose, penalty)) for penalty in penalties]


def by_trees(questions, near): # a span that crosses a bracket loses some of its score
    contexts = list(dict.fromkeys(questions["context"][:]))
    parses = corenlp(questions["lang_context"][0])(contexts)
    trees = {text: Constituents(text, parse, rule="brackets")
             for text, parse in zip(contexts, parses)}
    context = dict(zip(questions["id"][:], questions["context"][:]))
    crosses = {id: [span[2] not in trees[context[id]] for span in spans]
               for id, spans in near.items()}
    return with_penalty(questions, near, crosses, PENALTIES)


def by_length(questions, near): # a longer span loses some of its score, or wins some
    # a ratio of two lengths means the same in scripts of few characters and of many
    lengths = {id: [np.log(max(b - a, 1)) for _, _, (a, b) in spans] for id, spans in near.items()}
    return with_penalty(questions, near, lengths, LENGTHS)


def bounds(seed):
    "EM of a baseline, with the oracle, a prior on length, and CoreNLP's trees where there are any."
    rows = []
    for dataset, language in (DEV, *TESTS):
        questions = questions_of(dataset, language)
        contexts = dict(zip(questions["id"][:], questions["context"][:]))
        nbest = read_json(answers_of("baseline", seed) / f"nbest.{dataset}.{language}.json")
        near = near_best(contexts, nbest)
        plain = exact(questions, near, lambda id, spans: spans[0])
        row = dict(dataset=dataset, language=language, seed=seed, plain=plain)
        row |= dict(oracle=oracle(questions, near))
        row |= dict(zip(TRIED["length"], by_length(questions, near)))
        if dataset == "xquad" and language in PARSED:
            row |= dict(zip(TRIED["trees"], by_trees(questions, near)))
        rows.append(row)
    return pd.DataFrame(rows)


# tables

EM, BREAKS = "EM", "wrong boundaries at the right place"


def scores_of(names, dataset, languages=(), seeds=None): # measure -> name -> PassageScores
    languages = languages or targets(dataset)
    questions = {language: load_reading(dataset, language) for language in languages}
    passages = {language: passages_of(asked, dataset == "xquad", language)
                for language, asked in questions.items()}
    by_measure = {EM: {}, BREAKS: {}}
    for name in names:
        right, broken, reached = [], [], []
        for seed in seeds or SEEDS:
            folder = answers_of(name, seed)
            answers = {language: read_answers(folder, f"{dataset}.{language}", asked)
                       for language, asked in questions.items()}
            em = {language: score({id: a.text for id, a in of.items()}, questions[language]).em
                  for language, of in answers.items()}
            near = {language: near_flags(questions[language], of) | (em[language] > 0)
                    for language, of in answers.items()}
            right.append(em)
            reached.append(near)
            broken.append({lang: 100. * (near[lang] & (em[lang] == 0)) for lang in languages})
        by_measure[EM][name] = passage_scores(right, passages)
        by_measure[BREAKS][name] = passage_scores(broken, passages, counted=reached)
    return by_measure


def same_readers(pairs): # those that are compared reader by reader
    return [pair for pair in pairs if len({name.partition(WITH)[0] for name in pair}) == 1]


def names_of(pairs): return list(dict.fromkeys(name for pair in pairs for name in pair))


def comparisons(pairs, samples, seeds=None):
    rows = []
    for dataset in OUTCOMES:
        for measure, scores in scores_of(names_of(pairs), dataset, seeds=seeds).items():
            table = comparison_table(scores, pairs, samples, same_readers(pairs))
            rows.append(table.assign(dataset=dataset, measure=measure))
    return pd.concat(rows, ignore_index=True)


def single_languages(pairs, samples, seeds=None):
    "The same in each language alone: intervals and no tests."
    rows = []
    for dataset, language in TESTS:
        for measure, scores in scores_of(names_of(pairs), dataset, [language], seeds).items():
            for pair in pairs:
                one, two = (scores[name] for name in pair)
                row = dict(dataset=dataset, language=language, measure=measure)
                row |= dict(system=pair[0], other=pair[1])
                row |= dict(mean=one.means().mean(), mean_other=two.means().mean())
                drawn = difference(one, two, samples, paired=pair in same_readers(pairs))
                rows.append(row | {end: drawn[end] for end in ("difference", "low", "high")})
    return pd.DataFrame(rows)


def bounds_table(): # means over seeds; of the penalties those that are best
    every = pd.concat([pd.read_csv(answers_of("baseline", seed) / "bounds.csv") for seed in SEEDS])
    means = every.groupby(["dataset", "language"], sort=False).mean().drop(columns="seed")
    # there are no trees of the development questions, so what trees give is an upper bound
    deciding = dict(length=means.loc[DEV], trees=means.loc[("xquad", "en")])
    best = {kind: deciding[kind][names].idxmax() for kind, names in TRIED.items()}
    table = means[["plain", "oracle"]].assign(**{kind: means[name] for kind, name in best.items()})
    weights = {kind: float(name.split()[1]) for kind, name in best.items()}
    named = dict(length_weight=weights["length"], tree_penalty=weights["trees"])
    return table.assign(**named).reset_index()


def far_from_english(): # language -> percent of translations that the fourth layer does not find
    retrieved = pd.read_csv(project_root() / "figures/e5/layers.csv").set_index("lang")["4"]
    return (100 - retrieved).to_dict()


def by_distance(single): # single: as from `single_languages`
    "Is more gained in languages that are further from English? Spearman's correlation."
    rows = single[(single["language"] != "en") & (single["measure"] == EM)]
    rows = rows.assign(distance=rows["language"].map(far_from_english())).dropna()
    table = []
    for (dataset, system, other), part in rows.groupby(["dataset", "system", "other"], sort=False):
        if len(part) < 3: continue
        found = pearsonr(rankdata(part["difference"]), rankdata(part["distance"]))
        row = dict(dataset=dataset, system=system, other=other, languages=len(part))
        ends = found.confidence_interval() # Fisher's
        numbers = dict(correlation=found.statistic, low=ends.low, high=ends.high)
        table.append(row | {name: 100 * value for name, value in numbers.items()})
    columns = ["dataset", "system", "other", "languages", "correlation", "low", "high"]
    return pd.DataFrame(table, columns=columns)


def write_tables(samples, out):
    records = [answers_of(arm, seed) / "metrics.json"
               for arm, seeds in all_arms().items() for seed in seeds]
    check_there(records, "have not been read with")
    check_primary(ROOT)
    tables = {
        "choice": comparisons(PAIRS, samples),
        "choice_controls": comparisons(CONTROLLED, samples),
        "choice_languages": single_languages(PAIRS + CONTROLLED, samples),
        "choice_bounds": bounds_table()}
    if RECIPE in all_arms():
        tables["choice_recipe"] = comparisons(CHOSEN, samples, recipe.SEEDS)
        alone = single_languages(CHOSEN, samples, recipe.SEEDS)
        tables["choice_languages"] = pd.concat([tables["choice_languages"], alone])
    tables["choice_distance"] = by_distance(tables["choice_languages"])
    for name, table in tables.items():
        write_table(table.round(4), out / f"{name}.csv")
        print(table.round(3).to_string(index=False), end="\n\n")


@plain_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("train", "choose", "read", "tables", "give", "keep"))
    parser.add_argument("--arms", default="", help="with commas between; none given: all")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="with commas between")
    parser.add_argument("--out", type=Path, default=Path("figures/e5"))
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--reader", type=Path, help="folder (give)")
    parser.add_argument("--to", type=Path, help="folder of the new reader (give)")
    given = parser.parse_args()
    if given.command == "give" and not (given.reader and given.to):
        parser.error("give needs --reader and --to")
    seeds_of = dict.fromkeys(FOLD_ARMS if given.command == "train" else (), [0]) | all_arms()
    known = [*seeds_of]
    arms = given.arms.split(",") if given.arms else known
    unknown = sorted({*arms} - {*known})
    if unknown: parser.error(f"{unknown[0]!r} is no arm; choose from {', '.join(known)}")
    seeds = [int(seed) for seed in given.seeds.split(",")]
    given.out.mkdir(parents=True, exist_ok=True)
    if given.command == "train":
        for arm in arms:
            for seed in seeds_of[arm]:
                if seed in seeds or arm in FOLD_ARMS: train(arm, seed)
    if given.command == "choose":
        for how in LEARNING: choose(how)
    if given.command == "read":
        check_there([*map(learned_file, LEARNING)], "choices are not there yet (choose)")
        for arm in arms:
            for seed in seeds_of[arm]:
                if seed in seeds: read(arm, seed)
    if given.command == "tables": write_tables(given.samples, given.out)
    if given.command == "give":
        check_there([learned_file(CHOICE)], "choices are not there yet (choose)")
        give(given.reader, given.to)
    if given.command == "keep": keep(given.out / "boundaries.tar.xz")


if __name__ == "__main__": main()
