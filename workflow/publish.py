"""Put a report that a run has made into figures/, where README, notebooks and docs show it.

    python workflow/publish.py runs/figures/full/small figures/small
    python workflow/publish.py runs/figures/full/small figures/small --fewer-seeds

A report that rests on fewer seeds of a system than the one that is there is refused, unless
--fewer-seeds says that this is meant. The page, the summary, pictures, the outcomes that a design
fixed beforehand, and the archive of records are put there, and of the rest what is there already;
all of it can be made again from the records. The tables of the paper and those to which docs/ links
are put together in tables.md. Diagrams, which have no numbers, are on the page. The page's links to
files that are not put there go. Files that the report does not have stay.
"""
import argparse
import re
import shutil
import sys
from pathlib import Path

from s2dm.core import atomic_write, plain_errors
from s2dm.results import open_records

KEPT = (".png", ".svg", ".html", ".xz")
#: csv files of outcomes that a design fixed beforehand
OUTCOMES = ("primary.csv", "mechanism.csv", "recipe.csv", "choice.csv", "choice_recipe.csv")
#: tables in tables.md
TOLD = ("table2", "table3", "table4", "table5",
        "recipe_costs", "recipe_languages",
        "deficit", "overlap", "shares", "violations_bipar",
        "choice_controls", "choice_languages", "choice_bounds", "choice_distance",
        "losses", "probes", "errors", "systems", "boundaries")


def seeds(folder): # of each system that was read with: name -> seeds
    archive = folder / "records.tar.xz"
    if not archive.is_file(): return {}
    found = {}
    with open_records(archive) as root:
        for file in root.glob("evaluate/*/*/seed*/metrics.json"):
            model, system, seed = file.parts[-4:-1]
            found.setdefault(f"{model}, {system}", set()).add(seed)
    return {name: len(numbers) for name, numbers in found.items()}


def fewer(new, old): # one line for each system that would lose seeds
    return [f"{name}: {new.get(name, 0)} seeds instead of {count}"
            for name, count in sorted(old.items()) if new.get(name, 0) < count]


def is_diagram(file): # Figures 1, 2 and 4
    return file.name.startswith("figure") and not file.with_suffix(".csv").is_file()


def is_shown(file):
    if file.suffix == ".csv": return file.name in OUTCOMES
    return file.name == "summary.md" or file.suffix in KEPT and not is_diagram(file)


def without_dead_links(page, folder): # page: HTML
    def link(match): return match[0] if (folder / match[1]).is_file() else ""
    return re.sub(r' ?<a href="([\w.=-]+)">\w+</a>', link, page)


def heading(name): # "table2" -> "Table 2", "violations_bipar" -> "Violations bipar"
    return re.sub(r"(\d)", r" \1", name.replace("_", " ")).capitalize()


def told(source): # Markdown: the tables of `TOLD`, each with a heading; "" if there are none
    files = [source / f"{name}.md" for name in TOLD]
    parts = [f"## {heading(file.stem)}\n\n{file.read_text(encoding='utf-8').strip()}"
             for file in files if file.is_file()]
    return "\n\n".join(["# Tables of the report", *parts]) + "\n" if parts else ""


def publish(source, target):
    "Copy what is shown; returns the names."
    names = []
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        place = target / file.name
        if not file.is_file() or not (is_shown(file) or place.exists()): continue
        shutil.copyfile(file, place)
        names.append(file.name)
    if tables := told(source):
        with atomic_write(target / "tables.md") as new: new.write_text(tables, encoding="utf-8")
        names.append("tables.md")
    page = target / "report.html"
    text = without_dead_links(page.read_text(encoding="utf-8"), target)
    with atomic_write(page) as new: new.write_text(text, encoding="utf-8")
    return names


@plain_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="folder with report.html")
    parser.add_argument("target", type=Path, help="folder below figures/")
    parser.add_argument("--fewer-seeds", action="store_true", help="replace more seeds by fewer")
    given = parser.parse_args()
    if not (given.source / "report.html").is_file():
        sys.exit(f"{given.source} has no report.html; make the report first")
    lost = fewer(seeds(given.source), seeds(given.target))
    if lost and not given.fewer_seeds:
        sys.exit("\n".join([f"{given.target} rests on more seeds:", *lost,
                            "Nothing was changed. Say --fewer-seeds if that is meant."]))
    names = publish(given.source, given.target)
    print(f"{len(names)} files are now in {given.target}")


if __name__ == "__main__": main()
