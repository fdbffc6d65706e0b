"Write README.md from nbs/index.ipynb; `--check` only compares. Links and badges come from settings.ini, licences from the registry."
import csv
import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def settings() -> dict[str, str]:
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def badge(path: str, cfg: dict[str, str]) -> str:
    "A Colab badge for a notebook of this repository."
    url = f"https://colab.research.google.com/github/{cfg['user']}/{cfg['repo']}/blob/{cfg['branch']}/{path}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({url})"


def notebook_table(cfg: dict[str, str]) -> str:
    rows = ["| notebook | what it is for | |", "|---|---|---|"]
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        head = next("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        purpose = re.search(r"^> (.+)$", head, re.M).group(1)
        rows.append(f"| [{path.stem}](nbs/{path.name}) | {purpose} | {badge(f'nbs/{path.name}', cfg)} |")
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


def readme() -> str:
    cfg, parts = settings(), [f"<!-- Made from nbs/index.ipynb by docs/{Path(__file__).name}: edit the notebook, then `make export`. -->"]
    for cell in json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            source = "\n".join(line for line in source.split("\n") if not line.startswith("#|"))
            source = f"```python\n{source}\n```"
            text = "".join(t for o in cell["outputs"] if o["output_type"] == "stream" and o["name"] == "stdout" for t in o["text"])
            if text: source += f"\n\n    {text.rstrip().replace(chr(10), chr(10) + '    ')}"
        parts.append(source)
    return "\n\n".join(parts).replace("<!-- notebooks -->", notebook_table(cfg)).replace("<!-- data -->", data_table()) + "\n"


if __name__ == "__main__":
    target, text = ROOT / "README.md", readme()
    if "--check" in sys.argv[1:]:
        if target.read_text(encoding="utf-8") != text: sys.exit("README.md is not what nbs/index.ipynb makes it; run `make export`")
    else:
        target.write_text(text, encoding="utf-8")
