"""Does target syntax matter to what readers get wrong? What docs/experiment-e5.md fixed beforehand
on constituents, from the predictions of `make e5` and the kept parses of Stanford CoreNLP.

    python experiments/mechanism.py --out runs/figures/e5

- `deficit.csv`: by how much fewer predicted answers than gold ones cross no bracket, by language;
- `mechanism.csv`: that deficit in four target languages less the deficit in English, for each
  system, and the same four comparisons as in experiments/primary.py;
- `overlap.csv`: of the wrong answers that overlap the right one, how many break a constituent that
  the right one keeps, keep one as the right one does, or neither;
- `shares.csv`: answers that are constituents, gold and predicted, on XQuAD and BiPaR;
- `violations_bipar.csv`: answers that break a constituent where a reader trained on Chinese gives
  a right one that keeps it. That reader's answers are those that BiPaR's authors published.

Intervals know of seeds and passages. Until every reader has been read with, the script refuses."""
import argparse
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from primary import PAIRS, SYSTEMS, check_alike, check_finished, folders

from s2dm.comparison import comparison_table, interval, passage_scores, passages_of
from s2dm.constituents import (
    Trees, answer_texts, constituent_flags, near_flags, overlap_row)
from s2dm.core import figures_dir, plain_errors
from s2dm.evaluation import read_answers
from s2dm.metrics import read_predictions, score
from s2dm.parsers import corenlp
from s2dm.reading import load_reading
from s2dm.results import experiment
from s2dm.sources import fetch

TARGETS = ("zh", "de", "es", "ar") # with kept parses
PLACES = [*(("xquad", lang) for lang in ("en", *TARGETS)), ("bipar", "zh"), ("bipar", "en")]
REFERENCE = "bipar/predictions/multilingual_predictions_test.json"


@cache
def questions_of(dataset, lang): return load_reading(dataset, lang)


@cache
def trees_of(dataset, lang, rule="brackets"):
    if rule != "brackets": return trees_of(dataset, lang).by(rule)
    return Trees(questions_of(dataset, lang), corenlp(lang), rule)


def said_of(folder, dataset, lang):
    return read_answers(folder, f"{dataset}.{lang}", questions_of(dataset, lang))


def by_passage(flags, dataset, weights=None): # flags: of each seed, language -> [questions]
    passages = {lang: passages_of(questions_of(dataset, lang), dataset == "xquad", lang)
                for lang in flags[0]}
    percent = [{lang: 100. * of for lang, of in one.items()} for one in flags]
    return passage_scores(percent, passages, weights)


def less_constituents(folder, dataset, lang): # gold less predicted, [questions]
    questions, trees = questions_of(dataset, lang), trees_of(dataset, lang)
    answers = said_of(folder, dataset, lang)
    gold = constituent_flags(questions, trees).astype(float)
    return gold - constituent_flags(questions, trees, answers)


def deficits(readers, samples): # readers: system -> a folder for each seed
    "Two tables: by language, and target languages less English."
    rows, contrasts = [], {}
    against_english = dict.fromkeys(TARGETS, 1 / len(TARGETS)) | dict(en=-1)
    for system, places in readers.items():
        found = [{lang: less_constituents(folder, "xquad", lang) for lang in ("en", *TARGETS)}
                 for folder in places]
        contrasts[system] = by_passage(found, "xquad", against_english)
        for lang in found[0]:
            gold = constituent_flags(questions_of("xquad", lang), trees_of("xquad", lang)).mean()
            alone = by_passage([{lang: one[lang]} for one in found], "xquad")
            key = dict(dataset="xquad", lang=lang, system=system, gold=100 * gold)
            deficit = interval(alone, samples)
            deficit["deficit"] = deficit.pop("mean")
            rows.append(key | dict(predicted=key["gold"] - deficit["deficit"]) | deficit)
    alone = pd.DataFrame([dict(system=name) | interval(of, samples)
                          for name, of in contrasts.items()])
    pairs = [pair for pair in PAIRS if set(pair) <= set(contrasts)]
    compared = comparison_table(contrasts, pairs, samples) if pairs else pd.DataFrame()
    return pd.DataFrame(rows), pd.concat([alone, compared], ignore_index=True)


def overlaps(readers):
    "Counts, added up over seeds."
    rows = []
    for system, places in readers.items():
        for dataset, lang in PLACES:
            questions, trees = questions_of(dataset, lang), trees_of(dataset, lang)
            counts = pd.DataFrame([
                overlap_row(questions, trees, said_of(folder, dataset, lang))
                for folder in places]).drop(columns=["rule", "placed"]).sum()
            names = dict(dataset=dataset, lang=lang, system=system, seeds=len(places))
            rows.append(names | counts.to_dict())
    table = pd.DataFrame(rows)
    for part in ("breaks", "both_keep", "neither"):
        table[f"{part}_percent"] = 100 * table[part] / table["wrong_overlapping"]
    return table


def shares(readers, samples):
    "Answers that are constituents, by the paper's word (any rule: two of them here)."
    rows = []
    for dataset, lang in PLACES:
        for rule in ("characters", "brackets"):
            questions, trees = questions_of(dataset, lang), trees_of(dataset, lang, rule)
            names = dict(dataset=dataset, lang=lang, rule=rule)
            gold = by_passage([{lang: constituent_flags(questions, trees)}], dataset)
            rows.append(names | dict(of="gold") | interval(gold, samples))
            for system, places in readers.items():
                flags = [{lang: constituent_flags(questions, trees, said_of(f, dataset, lang))}
                         for f in places]
                scores = by_passage(flags, dataset)
                rows.append(names | dict(of=system) | interval(scores, samples))
    return pd.DataFrame(rows)


def violations(readers, samples):
    "The paper's quantity on BiPaR zh, with its two counts, and the part in the right place."
    questions = questions_of("bipar", "zh")
    published = read_predictions(fetch(REFERENCE))
    reference = {id: published[id] for id in questions["id"][:]}
    right = score(reference, questions).em > 0
    passages = passages_of(questions, False, "zh")
    rows = []
    for rule in ("characters", "brackets"):
        trees = trees_of("bipar", "zh", rule)
        asked = right & constituent_flags(questions, trees, reference)
        asked_passages = {"zh": [passage for passage, one in zip(passages, asked) if one]}
        for system, places in readers.items():
            all_violating, near = [], []
            for folder in places:
                answers = said_of(folder, "bipar", "zh")
                wrong = score(answer_texts(answers), questions).em == 0
                violating = asked & wrong & ~constituent_flags(questions, trees, answers)
                all_violating.append({"zh": 100. * violating[asked]})
                close = violating & near_flags(questions, answers)
                near.append({"zh": 100. * close[asked]})
            row = dict(dataset="bipar", lang="zh", rule=rule, system=system, seeds=len(places))
            row |= dict(questions=int(asked.sum()))
            row |= dict(violating=np.mean([one["zh"].sum() / 100 for one in all_violating]))
            row |= interval(passage_scores(all_violating, asked_passages), samples)
            near = interval(passage_scores(near, asked_passages), samples)
            rows.append(row | {f"near_{name}": value for name, value in near.items()})
    return pd.DataFrame(rows)


@plain_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", default="e5")
    parser.add_argument("--out", type=Path, help="folder (default: that of the profile)")
    parser.add_argument("--samples", type=int, default=10_000)
    given = parser.parse_args()
    given.out = given.out or figures_dir() / given.profile
    profile = experiment(given.profile)
    places = folders(profile["models"][0], profile.get("layer", 0), profile["reproduce"]["seeds"])
    readers = {name: [folder for (of, _), folder in places.items() if of == name]
               for name in SYSTEMS}
    check_finished(places)
    check_alike(places)
    deficit, mechanism = deficits(readers, given.samples)
    tables = dict(
        deficit=deficit, mechanism=mechanism, overlap=overlaps(readers),
        shares=shares(readers, given.samples),
        violations_bipar=violations(readers, given.samples))
    given.out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.round(4).to_csv(given.out / f"{name}.csv", index=False, lineterminator="\n")
        print(name, table.round(2).to_string(index=False), sep="\n")


if __name__ == "__main__": main()
