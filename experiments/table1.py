"""Table 1 with the paper's own parser: how many gold answers are constituents, by each rule.

    python experiments/table1.py --out figures/e5

The trees are Stanford CoreNLP's that are kept or that the mirror has; no server is asked.
`table1.csv` has one line for each corpus, language and rule, with the counts. `table1.md` has them
side by side, and says which rule comes nearest to the paper."""
import argparse
from pathlib import Path

import pandas as pd

from s2dm.constituents import RULES, parse_counts, rule_rows
from s2dm.core import atomic_write, plain_errors, project_root
from s2dm.parsers import VERSION, corenlp
from s2dm.reading import load_reading

CELLS = [
    ("xquad", "en"),
    ("xquad", "zh"),
    ("tydiqa", "en"),
    ("bipar", "en"),
    ("bipar", "zh"),
    ("xquad", "de"),
    ("xquad", "es"),
    ("xquad", "ar"),
]
COUNTS = ["contexts", "sentences", "unparsed", "answers", "cut_token", "cross_sentence"]


def paper_shares():
    "(corpus, language) -> percent, as the paper prints it."
    table = pd.read_csv(project_root() / "data/paper/table1.csv")
    return dict(zip(zip(table["dataset"], table["lang"]), table["percent_constituent"]))


def measured(samples):
    "One row for each corpus, language and rule."
    paper, rows = paper_shares(), []
    for dataset, language in CELLS:
        questions, parser = load_reading(dataset, language), corenlp(language)
        key = dict(dataset=dataset, lang=language, paper=paper.get((dataset, language)))
        counts = parse_counts(questions, parser)
        for row in rule_rows(questions, parser, samples):
            less = row["share"] - key["paper"] if key["paper"] else None
            rows.append(key | row | dict(less_paper=less) | counts)
        print(dataset, language, counts, flush=True)
    return pd.DataFrame(rows)


def said(row): return f"{row['share']:.2f} ({row['low']:.1f} to {row['high']:.1f})"


def shares_page(table):
    "The shares, a row for each corpus and language, and a column for each rule."
    lines = []
    for (dataset, language), part in table.groupby(["dataset", "lang"], sort=False):
        paper = part["paper"].iloc[0]
        line = {"": f"{dataset} {language}", "paper": f"{paper:.2f}" if pd.notna(paper) else "–"}
        lines.append(line | {row["rule"]: said(row) for _, row in part.iterrows()})
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def nearest_page(table):
    "For each number of the paper: the rule that comes nearest, and the highest share of all."
    lines = []
    table = table[table["paper"].notna()]
    for (dataset, language), part in table.groupby(["dataset", "lang"], sort=False):
        single = part[part["rule"] != "any"]
        near = single.loc[single["less_paper"].abs().idxmin()]
        union = part[part["rule"] == "any"].iloc[0]
        reached = "within reach" if union["high"] >= union["paper"] else "out of reach"
        line = {"": f"{dataset} {language}", "paper": f"{near['paper']:.2f}"}
        line |= {"nearest rule": near["rule"], "its share": f"{near['share']:.2f}"}
        line |= {"less the paper's": f"{near['less_paper']:+.2f}", "by some rule": said(union)}
        lines.append(line | {"the paper's number is": reached})
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def counts_page(table):
    "What the shares stand on."
    once = table.drop_duplicates(["dataset", "lang"])
    once = once.assign(**{"": once["dataset"] + " " + once["lang"]})
    return once[["", *COUNTS]].to_markdown(index=False)


def page(table):
    "table1.md"
    rules = ["An answer is a constituent, by the rule"]
    rules += [f"- **{name}**, if {text}." for name, text in RULES.items()]
    rules.append("- **any**, if it is one by at least one of these rules.")
    parts = [
        "**Table 1.** Gold answers that are syntactic constituents in the trees of Stanford "
        f"CoreNLP {VERSION}, percent, with 95 % intervals over questions, by each rule that is "
        "sensible. The "
        "paper does not give its rule.",
        shares_page(table), rules[0] + "\n\n" + "\n".join(rules[1:]),
        "Which rule comes nearest to the paper. A number is out of reach if it lies above the "
        "interval of *any*.",
        nearest_page(table),
        "Counts. `unparsed`: sentences without a tree; `cut_token`: answers that begin or end "
        "inside a token; `cross_sentence`: answers over two sentences.",
        counts_page(table)]
    return "\n\n".join(parts) + "\n"


@plain_errors()
def main():
    plain = argparse.RawTextHelpFormatter
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    asked.add_argument("--out", type=Path, default=Path("figures/e5"))
    asked.add_argument("--samples", type=int, default=2000, help="of the bootstrap")
    chosen = asked.parse_args()
    table = measured(chosen.samples)
    with atomic_write(chosen.out / "table1.csv") as tmp:
        table.to_csv(tmp, index=False, lineterminator="\n", float_format="%.6f")
    with atomic_write(chosen.out / "table1.md") as tmp:
        tmp.write_text(page(table), encoding="utf-8")


if __name__ == "__main__": main()
