"""Write what is decided elsewhere: README.md from nbs/index.ipynb; the first cell of each notebook,
which installs the package in Colab; in docs/*.md the list of notebooks with badges, the data with
their licences, the estimated GPU hours and what an experiment found (`<!-- result small -->`), each
between `<!-- name -->` and `<!-- end -->`; and the tables in the prose of notebooks and docs, from
what a run has written:

    <!-- table figures/real/pretrain_s2dm_sp_sts.csv part mean y z -->
    <!-- end -->
    <!-- table figures/real/languages.md -->
    <!-- end -->

(a csv, then the columns to show, none: all; or a page, as it is). A table in an archive of records
is `figures/real/records.tar.xz:pretrain_s2dm_sp_sts.csv`. With `--check` nothing is
written; what differs is named, and the exit status is 1."""
import csv
import json
import re
import sys
import tarfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


# The torch that is there is asked for by its version: pip leaves it alone, or says that it cannot.
COLAB = """#| hide
import sys

if "google.colab" in sys.modules:
    from importlib.metadata import version
    from subprocess import run

    pip = run([sys.executable, "-m", "pip", "install", "--quiet", f"torch=={{version('torch')}}",
               "{package}"],
              capture_output=True, text=True)
    if pip.returncode:
        raise RuntimeError("{name} could not be installed beside this torch:\\n" + pip.stderr)"""


RESULT = 5 # sentences of a report's summary in the README


def settings() -> dict[str, str]:
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def badge(path: str, cfg: dict[str, str]) -> str:
    "A Colab badge for a notebook of this repository."
    colab = "https://colab.research.google.com"
    url = f"{colab}/github/{cfg['user']}/{cfg['repo']}/blob/{cfg['branch']}/{path}"
    return f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({url})"


def notebook_table(cfg: dict[str, str]) -> str:
    rows = ["| notebook | what it is for | |", "|---|---|---|"]
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        head = next("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        purpose = re.search(r"^> (.+)$", head, re.M).group(1)
        rows.append(
            f"| [{path.stem}](../nbs/{path.name}) | {purpose} "
            f"| {badge(f'nbs/{path.name}', cfg)} |")
    return "\n".join(rows)


def data_table() -> str:
    def rows(name):
        with open(ROOT / "s2dm" / name, encoding="utf-8", newline="") as f:
            return list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
    sources, lines = rows("sources.tsv"), ["| corpus | licence | reference |", "|---|---|---|"]
    for corpus in rows("corpora.tsv"):
        licences = sorted({s["licence"] for s in sources if s["corpus"] == corpus["corpus"]})
        lines.append(f"| {corpus['title']} | {', '.join(licences)} | {corpus['citation']} |")
    return "\n".join(lines)


def result(profile: str) -> str:
    "What an experiment found: the first sentences of its report's summary."
    summary = (ROOT / "figures" / profile / "summary.md").read_text(encoding="utf-8")
    return "\n".join(f"> {line}" for line in summary.splitlines()[:RESULT])


def with_results(source: str) -> str:
    "A page with what experiments found, between `<!-- result profile -->` and `<!-- end -->`."
    return re.sub(
        r"(<!-- result (\w+) -->\n)(?:.*?\n)??<!-- end -->",
        lambda match: f"{match[1]}{result(match[2])}\n<!-- end -->", source, flags=re.S)


def gpu_hours() -> str:
    "What the profile `paper` costs, by benchmarks/gpu.py --estimate."
    with open(ROOT / "figures/gpu_hours.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    def total(target, column):
        return round(sum(float(row[column]) for row in rows if row["target"] == target))
    cost = {
        target: f"`{target}` {total(target, 'hours_A100')} hours of an A100, "
            f"{total(target, 'hours_H100')} of an H100, {total(target, 'disk_GB'):,} GB of disk"
        for target in ("reproduce", "full")}
    return "; ".join(cost.values())


def readme() -> str:
    parts = [
        f"<!-- Made from nbs/index.ipynb by docs/{Path(__file__).name}: edit the notebook, then "
        "`make export`. -->"]
    for cell in json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            source = "\n".join(line for line in source.split("\n") if not line.startswith("#|"))
            source = f"```python\n{source}\n```"
            printed = [o for o in cell["outputs"] if o.get("name") == "stdout"]
            text = "".join(t for o in printed for t in o["text"])
            if text: source += f"\n\n    {text.rstrip().replace(chr(10), chr(10) + '    ')}"
        parts.append(source)
    # links as seen from the root
    parts = [
        re.sub(r"\]\((?!https?:|\.\./)(\S+\.ipynb)\)", r"](nbs/\1)", part).replace("](../", "](")
        for part in parts]
    text = "\n\n".join(parts) + "\n"
    return re.sub(r"<!-- result (\w+) -->", lambda match: result(match[1]), text)


def shown(text: str, column: str) -> str: # a number, as a table shows it
    decimals = 3 if column in ("p", "p_holm") else 1
    try: whole = float(text).is_integer() and "." not in text
    except ValueError: return text
    return text if whole else f"{round(float(text), decimals) + 0:.{decimals}f}" # no -0.0


def text_of(file: str) -> str: # of a file, or of one in an archive (archive:file)
    archive, _, inside = file.partition(":")
    if not inside: return (ROOT / file).read_text(encoding="utf-8")
    with tarfile.open(ROOT / archive) as opened:
        return opened.extractfile(inside).read().decode("utf-8")


def table(match: re.Match) -> str:
    "A table between its two comments, from its file."
    file, *columns = match[1].split()
    if file.endswith(".md"):
        return f"<!-- table {file} -->\n{text_of(file).strip()}\n<!-- end -->"
    rows = list(csv.DictReader(text_of(file).splitlines()))
    columns = columns or list(rows[0])
    cells = [[shown(row[column], column) for column in columns] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(
        [f"<!-- table {match[1]} -->", *(f"| {' | '.join(line)} |" for line in lines),
         "<!-- end -->"])


def with_lists(source: str) -> str:
    "A page of docs/ whose lists are up to date."
    made = dict(
        notebooks=notebook_table(settings()), data=data_table(), gpu_hours=gpu_hours())
    for name, text in made.items():
        mark = f"<!-- {name.replace('_', ' ')} -->"
        before, found, rest = source.partition(f"{mark}\n")
        after = rest.partition("<!-- end -->")[2]
        if found: source = f"{before}{mark}\n{text}\n<!-- end -->{after}"
    return source


def with_tables(source: str) -> str:
    "Markdown whose tables are up to date."
    return re.sub(r"<!-- table (.+?) -->\n(?:.*?\n)??<!-- end -->", table, source, flags=re.S)


def with_colab_cell(text: str, cfg: dict[str, str]) -> str:
    "A notebook with its Colab cell, right after the title, and its tables."
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = with_tables("".join(cell["source"])).splitlines(keepends=True)
    cells = [c for c in notebook["cells"] if c["id"] != "colab"]
    package = (f"{cfg['lib_name']}[report,demo,e5] @ "
               f"git+https://github.com/{cfg['user']}/{cfg['repo']}@{cfg['branch']}")
    source = COLAB.format(package=package, name=cfg["lib_name"]).splitlines(keepends=True)
    title = next(i for i, c in enumerate(cells) if c["cell_type"] == "markdown")
    cells.insert(
        title + 1,
        {"cell_type": "code", "execution_count": None, "id": "colab", "metadata": {}, "outputs": [],
         "source": source})
    return (json.dumps(notebook | {"cells": cells}, indent=1, ensure_ascii=False, sort_keys=True)
            + "\n")


def main(check: bool):
    made = {
        path: with_colab_cell(path.read_text(encoding="utf-8"), settings())
        for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))}
    made |= ({path: with_lists(with_tables(with_results(path.read_text(encoding="utf-8"))))
              for path in sorted((ROOT / "docs").glob("*.md"))}
             | {ROOT / "README.md": readme()})
    stale = [path for path, text in made.items() if path.read_text(encoding="utf-8") != text]
    if check and stale:
        sys.exit(
            "not what settings.ini, nbs/index.ipynb and figures/ make of it: "
            f"{', '.join(p.name for p in stale)}; run `make export`")
    for path in stale: path.write_text(made[path], encoding="utf-8")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
