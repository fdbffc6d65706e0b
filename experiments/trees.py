"""An example per language, as in the paper's Figure 1: a tree, the gold answer, one that breaks it.

    python experiments/trees.py --out figures/e5

English and Chinese: BiPaR, with an answer that its authors' multilingual BERT predicted (published
with the corpus). German, Spanish and Arabic: XQuAD, with an answer of the experiment's first
baseline. As long as that experiment is not finished nobody looks at its answers: until then the
gold answer is moved by one word to the right, and the picture says so. The example is the shortest
sentence whose gold answer is a node of at least two words, and whose other answer crosses one. The
picture is SVG with text, so that the viewer's fonts draw Chinese and Arabic."""
import argparse
import json
import re
import warnings
from pathlib import Path
from unicodedata import east_asian_width

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from primary import check_finished, folders

from s2dm.constituents import Constituents, answer_places, how_cut
from s2dm.core import DataError, atomic_write, plain_errors
from s2dm.metrics import read_predictions
from s2dm.parsers import corenlp, text_key
from s2dm.reading import load_reading
from s2dm.sources import fetch

NAMES = dict(en="English", zh="Chinese", de="German", es="Spanish", ar="Arabic")
PREDICTED = "bipar/predictions/multilingual_predictions_test.json"
SHORTEST, LONGEST = 5, 16 # words of a sentence
GOLD, OTHER = "#0173b2", "#d55e00"


def nested(tree): # (label, children); a word is a text
    stack = [("", [])]
    for part in re.finditer(r"\(([^() \n]*) *([^()]*)|\)", tree):
        if part.group() == ")": stack.pop()
        else:
            label, word = part.groups()
            stack[-1][1].append((label, [word.strip(" \n")] if word.strip(" \n") else []))
            stack.append(stack[-1][1][-1])
    return stack[0][1][0]


def draw(ax, node, middles, heights): # middles: x of each word
    "Draw a node over its words; returns x and height of its label."
    label, children = node
    if isinstance(children[0], str):
        x, y = middles[len(heights)], 1
        heights.append(x)
        ax.text(x, 0, children[0], ha="center", va="center", fontsize=9)
        ax.plot([x, x], [.25, .75], color=".6", lw=.7)
    else:
        points = [draw(ax, child, middles, heights) for child in children]
        x = (points[0][0] + points[-1][0]) / 2
        y = 1 + max(height for _, height in points)
        for left, height in points:
            ax.plot([x, left], [y - .25, height + .25], color=".6", lw=.7)
    ax.text(x, y, label, ha="center", va="center", fontsize=7, color=".25")
    return x, y


def columns(example): # [words,2] where each begins and ends, in the order they are written
    parts = re.findall(r"\(\S+ ([^()]+)\)", example["tree"])
    # a Chinese character is about as wide as two letters
    letters = [sum(1 + (east_asian_width(c) == "W") for c in part) for part in parts]
    ends = np.cumsum([max(1.4, .5 + .17 * count) for count in letters])
    edges = np.stack([ends - np.diff(ends, prepend=0), ends], 1)
    # Arabic is read from right to left
    return ends[-1] - edges[:, ::-1] if example["lang"] == "ar" else edges


def underline(ax, where, y, colour, name): # where: [words,2], columns
    left, right = where.min() + .2, where.max() - .2
    ax.plot([left, right], [y, y], color=colour, lw=3, solid_capstyle="butt")
    ax.text(left, y - .2, name, ha="left", va="top", fontsize=7, color=colour)


def draw_example(ax, example):
    where = columns(example)
    _, top = draw(ax, nested(example["tree"]), where.mean(1), [])
    underline(ax, where[example["gold_words"]], -.6, GOLD, "gold answer")
    underline(ax, where[example["other_words"]], -1.5, OTHER, example["other_is"])
    ax.set(ylim=(-2.2, top + .5))
    ax.set_title(f"{NAMES[example['lang']]}: {example['question']}", loc="left", fontsize=9)
    ax.axis("off")


def picture(examples): # one below the other, on one scale
    widest = max(columns(example).max() for example in examples)
    fig, axes = plt.subplots(
        len(examples), figsize=(.5 * widest, 3.6 * len(examples)), layout="constrained")
    for ax, example in zip(axes, examples):
        draw_example(ax, example)
        ax.set_xlim(0, widest)
    return fig


def numbers_of(words, start, end): # of the words that a span touches
    return [i for i, (a, b) in enumerate(words) if a < end and start < b]


def predicted(language): # answers of a reader, and what it is; None: none that may be looked at
    if language in ("en", "zh"):
        return read_predictions(fetch(PREDICTED)), "predicted by multilingual BERT"
    readers = folders("e5", 0, 5)
    try: check_finished(readers)
    except DataError: return None
    file = readers["baseline", 0] / f"predictions.xquad.{language}.json"
    return read_predictions(file), "predicted by a baseline on e5"


def other_places(questions, language, parses): # what is shown beside the gold answer, and its name
    if found := predicted(language):
        said, name = found
        places = answer_places({id: said[id] for id in questions["id"][:]}, questions)
        return [p[0] if len(p) == 1 else None for p in places], name
    found = []
    for context, answers in zip(questions["context"][:], questions["answers"][:]):
        start, words = answers["answer_start"][0], parses[context].words
        inside = numbers_of(words, start, start + len(answers["text"][0]))
        last = inside[-1] + 1 if inside else len(words)
        moved = last < len(words) and len(inside) > 1
        found.append((words[inside[1]][0], words[last][1]) if moved else None)
    return found, "the gold answer, moved by one word"


def candidates(language):
    "Examples in one language, those of the shortest sentences first."
    dataset = "bipar" if language in ("en", "zh") else "xquad"
    questions, parser = load_reading(dataset, language), corenlp(language)
    contexts = questions["context"][:]
    parses = dict(zip(contexts, parser(contexts)))
    others, name = other_places(questions, language, parses)
    for row, other in zip(questions, others):
        if other is None: continue
        parse, context = parses[row["context"]], row["context"]
        start = row["answers"]["answer_start"][0]
        gold = start, start + len(row["answers"]["text"][0])
        strict = Constituents(context, parse, words=False, rule="strict")
        brackets = Constituents(context, parse, rule="brackets")
        overlap = gold[0] < other[1] and other[0] < gold[1]
        cut = any(how_cut(strict, *gold)) or any(how_cut(strict, *other))
        if cut or not overlap or gold not in strict or other in brackets: continue
        sentences = json.loads(parser.lines[text_key(context)])["sentences"]
        sentence = next(s for s, (a, b) in zip(sentences, parse.sentences) if a <= gold[0] < b)
        words = [(a, b) for _, _, a, b, _ in sentence["tokens"]]
        mine, theirs = numbers_of(words, *gold), numbers_of(words, *other)
        punctuated = not (context[gold[1] - 1].isalnum() and context[other[1] - 1].isalnum())
        if punctuated or len(mine) < 2 or not SHORTEST <= len(words) <= LONGEST: continue
        yield dict(lang=language, dataset=dataset, id=row["id"], question=row["question"],
                   gold=context[slice(*gold)], other=context[slice(*other)], other_is=name,
                   words=words, gold_words=mine, other_words=theirs, tree=sentence["parse"])


@plain_errors()
def main():
    plain = argparse.RawTextHelpFormatter
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    asked.add_argument("--out", type=Path, default=Path("figures/e5"))
    out = asked.parse_args().out
    examples = []
    for language in NAMES:
        choices = list(candidates(language))
        example = min(choices, key=lambda row: (len(row["words"]), row["id"]))
        examples.append(example | dict(candidates=len(choices)))
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "s2dm"}):
        with warnings.catch_warnings(): # the viewer has the glyphs that are missing here
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            fig = picture(examples)
            with atomic_write(out / "trees.svg") as tmp:
                fig.savefig(tmp, format="svg", bbox_inches="tight", metadata={"Date": None})
            plt.close(fig)
    shown = ("lang", "dataset", "id", "question", "gold", "other", "other_is", "tree", "candidates")
    with atomic_write(out / "trees.csv") as tmp:
        table = pd.DataFrame(examples)[[*shown]]
        table.to_csv(tmp, index=False, lineterminator="\n")


if __name__ == "__main__": main()
