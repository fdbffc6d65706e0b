"""How the notebooks' code is written, in numbers: length of cells, width of lines, examples.

    python tests/house.py            # a table, one line for each notebook
    python tests/house.py 02b 02c    # some notebooks alone

Formatted means: by ruff at 100 columns. A definition is followed by an example if one of the next
three cells of code is not exported.
"""
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WIDTH = 100 # characters of a line
LINES = 45 # of an exported cell, formatted
CHARACTERS = 1800 # of an exported cell


def code_cells(path):
    "Sources of a notebook's cells of code, but for the one that Colab needs."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and c["id"] != "colab"]


def is_exported(source): return source.startswith("#| export")


def is_definition(source): return is_exported(source) and ("def " in source or "class " in source)


def formatted(source):
    "The cell as ruff writes it."
    command = [Path(sys.executable).with_name("ruff"), "format", "--line-length", str(WIDTH), "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def wide_lines(source): return [line for line in source.splitlines() if len(line) > WIDTH]


def has_example(sources, i):
    "Does an example follow cell i?"
    return any(not is_exported(source) for source in sources[i + 1:i + 4])


def statistics_of(path):
    "One line of the table."
    sources = code_cells(path)
    exported = [s for s in sources if is_exported(s)]
    long = [s for s in exported if len(s) > CHARACTERS or len(formatted(s).splitlines()) > LINES]
    definitions = [i for i, s in enumerate(sources) if is_definition(s)]
    return dict(
        notebook=path.stem, exported=len(exported),
        characters=sum(map(len, sources)), cells=len(sources),
        wide=sum(len(wide_lines(s)) for s in sources), long=len(long),
        definitions=len(definitions), examples=sum(has_example(sources, i) for i in definitions),
        lines=[len(s.splitlines()) for s in exported])


def main(names):
    paths = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
    paths = [p for p in paths if not names or any(p.stem.startswith(name) for name in names)]
    rows = [statistics_of(path) for path in paths]
    print(f"{'notebook':20}{'cells':>7}{'chars/cell':>12}{'wide':>6}{'long':>6}{'examples':>12}")
    for row in rows:
        share = f"{row['examples']}/{row['definitions']}"
        print(f"{row['notebook']:20}{row['cells']:7}{row['characters'] / row['cells']:12.0f}"
              f"{row['wide']:6}{row['long']:6}{share:>12}")
    lines = sorted(n for row in rows for n in row["lines"])
    characters = sum(row["characters"] for row in rows) / sum(row["cells"] for row in rows)
    found = sum(row["examples"] for row in rows)
    print(f"\nlines of an exported cell: median {statistics.median(lines):.0f}, "
          f"p90 {lines[len(lines) * 9 // 10]}; characters of a cell: {characters:.0f}")
    print(f"lines over {WIDTH} characters: {sum(row['wide'] for row in rows)}; "
          f"exported cells over {LINES} lines or {CHARACTERS} characters when formatted: "
          f"{sum(row['long'] for row in rows)}")
    print(f"definitions followed by an example: {found} of {sum(r['definitions'] for r in rows)}")


if __name__ == "__main__": main(sys.argv[1:])
