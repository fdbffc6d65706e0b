"""The rules of the house: two kinds of notebook, clean, in step with s2dm/ and README.md; one
setting for every link.
"""
import ast
import configparser
import csv
import importlib.metadata
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import house
import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

from s2dm.core import parameters_of
from s2dm.systems import ENCODERS

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
RUNS = [p for p in NOTEBOOKS if re.match(r"\d\d_", p.name)]
LIBRARY = [p for p in NOTEBOOKS if re.match(r"\d\d[a-z]_", p.name)]
def name(path): return path.stem


def cells(path, kind="code"):
    return [
        c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def settings():
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def test_there_are_two_kinds_of_notebook_and_a_front_page():
    assert {p.stem for p in NOTEBOOKS} - {p.stem for p in RUNS + LIBRARY} == {"index"}
    assert len(RUNS) >= 2
    assert len(LIBRARY) >= 8


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_run_has_parameters_validates_them_first_and_defines_nothing(path):
    code = [c for c in cells(path) if c["id"] != "colab"]
    assert code[0]["metadata"].get("tags") == ["parameters"]
    assert sum("tags" in c["metadata"] for c in code) == 1
    assert any("skip_exec: true" in "".join(c["source"]) for c in cells(path, "raw"))
    assert not any(c["outputs"] for c in code)
    sources = ["".join(c["source"]) for c in code]
    assert not any(s.startswith("#| export") or "default_exp" in s for s in sources)
    first = ast.parse(sources[1]).body
    assert isinstance(first[0], ast.ImportFrom)
    assert "from_notebook(globals())" in ast.unparse(first[1])
    assert len(ast.parse(sources[0]).body) >= 1
    assert all(isinstance(statement, ast.Assign) for statement in ast.parse(sources[0]).body)
    assert not any(
        isinstance(n, (ast.FunctionDef, ast.ClassDef))
        for s in sources
        for n in ast.walk(ast.parse(s)))


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_second_run_in_the_same_kernel_reads_its_parameters_cell_alone(path):
    "Whatever the first run left in the variables of the other cells."
    code = ["".join(c["source"]) for c in cells(path) if c["cell_type"] == "code"]
    code = [source for source in code if "google.colab" not in source]
    space = {}
    for source in code[:2]: exec(source, space)
    first = space["config"]
    bound = {n.id for source in code[2:] for n in ast.walk(ast.parse(source))
             if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    own = {n.id for n in ast.walk(ast.parse(code[0])) if isinstance(n, ast.Name)}
    assert not bound & set(parameters_of(first)) - own, "a result has the name of a parameter"
    space |= dict.fromkeys(bound, "of the first run")
    space["In"] = [*code, *code[:2]]
    for source in code[:2]: exec(source, space)
    assert space["config"] == first


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_a_library_notebook_makes_one_module(path):
    sources = ["".join(c["source"]) for c in cells(path)]
    modules = re.findall(r"^#\| default_exp (\w+)$", "\n".join(sources), re.M)
    assert len(modules) == 1 and (ROOT / "s2dm" / f"{modules[0]}.py").is_file()
    assert not any("parameters" in c["metadata"].get("tags", []) for c in cells(path))
    assert path.stat().st_size < 400_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_notebook_opens_well_and_reads_well(path):
    head = "".join(cells(path, "markdown")[0]["source"])
    assert re.match(r"# \S.*\n\n> \S", head), head[:80]
    lengths = [len("".join(c["source"]).splitlines()) for c in cells(path)]
    assert max(lengths) <= 45 and sorted(lengths)[len(lengths) // 2] <= 15
    ids = [c["id"] for kind in ("code", "markdown", "raw") for c in cells(path, kind)]
    assert len(set(ids)) == len(ids)


# those of Wu et al. 2022 that have a number with a point
SUBSECTIONS = {"3.1", "3.2", "3.3", "4.1", "4.2", "4.3", "4.4", "5.1", "5.2", "5.3"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_a_notebook_cites_sections_that_the_paper_has(path):
    text = "\n".join("".join(c["source"]) for kind in ("markdown", "code")
                     for c in cells(path, kind))
    listed = re.findall(r"\b[Ss]ections?\s+([\d.,\s]*(?:and\s+\d[\d.]*)?)", text)
    cited = {number for numbers in listed for number in re.findall(r"\d\.\d", numbers)}
    assert cited <= SUBSECTIONS, cited - SUBSECTIONS


def is_private(node):
    "A private name, or a method that is patched into a private class."
    if node.name.startswith("_"): return True
    first = node.args.args[:1] if isinstance(node, ast.FunctionDef) else []
    return bool(first and first[0].annotation and ast.unparse(first[0].annotation).startswith("_"))


def test_every_exported_name_says_what_it_is():
    """Public functions and classes have a docstring, and every parameter of a public function a
    comment."""
    for module in (ROOT / "s2dm").glob("[a-z]*.py"):
        text = module.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or is_private(node): continue
            assert ast.get_docstring(node), f"{module.name}: {node.name} has no docstring"
            if isinstance(node, ast.FunctionDef):
                for arg in node.args.args + node.args.kwonlyargs:
                    if arg.arg in ("self", "cls"): continue # a method that is patched in
                    says = f"{module.name}: {node.name}: parameter {arg.arg} has no comment"
                    assert "#" in lines[arg.lineno - 1], says


#: module -> private names that it still takes from others; this list only shrinks
PRIVATE = {}


def test_no_module_imports_a_private_name():
    for module in (ROOT / "s2dm").glob("[a-z]*.py"):
        taken = set()
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom): continue
            if node.level == 0 and not (node.module or "").startswith("s2dm"): continue
            taken |= {alias.name for alias in node.names}
        private = {name for name in taken if name.startswith("_") and not name.startswith("__")}
        assert private <= PRIVATE.get(module.stem, set()), f"{module.name} imports {private}"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of what nbdev reads and writes, exported and cleaned."
    folder = tmp_path_factory.mktemp("copy") / "s2dm"
    folder.mkdir()
    for part in ("nbs", "s2dm", "docs", "figures", "data/paper"):
        shutil.copytree(
            ROOT / part, folder / part,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for part in ("settings.ini", "setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, folder)
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run(
            [Path(sys.executable).with_name(command)], cwd=folder, check=True, timeout=200)
    return folder


def test_modules_are_what_the_notebooks_export(copy):
    made = {p.name: p.read_text(encoding="utf-8") for p in (copy / "s2dm").glob("*.py")}
    assert made == {
        p.name: p.read_text(encoding="utf-8")
        for p in (ROOT / "s2dm").glob("*.py")}, "run `make export`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebooks_are_clean(copy, path):
    assert ((copy / "nbs" / path.name).read_text(encoding="utf-8")
            == path.read_text(encoding="utf-8")), "run `make export`"


def test_readme_and_colab_cells_are_made_from_index_and_settings():
    subprocess.run([sys.executable, ROOT / "docs/update_pages.py", "--check"], check=True)


@pytest.mark.parametrize("code", [0, 1])
def test_in_colab_the_package_is_installed_beside_the_torch_that_is_there(code, monkeypatch):
    "Or the notebook stops, with what pip says; the variables of a run do not change."
    asked = []

    def run(command, **options):
        asked.append(command)
        return subprocess.CompletedProcess(command, code, "", "no such thing\n")

    monkeypatch.setitem(sys.modules, "google.colab", json)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(importlib.metadata, "version", {"torch": "2.9.0+cu126"}.get)
    sources = {"".join(c["source"]) for path in RUNS + LIBRARY for c in cells(path)
               if c["id"] == "colab"}
    assert len(sources) == 1
    space = {}
    if code:
        says = "s2dm could not be installed beside this torch:\nno such thing"
        with pytest.raises(RuntimeError, match=says): exec(sources.pop(), space)
    else: exec(sources.pop(), space)
    assert code or not [name for name, value in space.items()
                        if isinstance(value, (str, list, int)) and not name.startswith("_")]
    ((*pip, torch, package),) = asked
    assert pip == [sys.executable, "-m", "pip", "install", "--quiet"]
    cfg = settings()
    assert torch == "torch==2.9.0+cu126" and package.endswith(
        f" @ git+https://github.com/{cfg['user']}/{cfg['repo']}@{cfg['branch']}")
    asks = Requirement(package)
    assert asks.name == cfg["lib_name"] and asks.extras <= {key.removesuffix("_requirements")
                                                            for key in cfg}


def test_tables_in_prose_come_from_figures(copy):
    """A changed number in a csv makes the notebook that shows it stale, and another run of the
    script mends it."""
    notebook = copy / "nbs/01_data.ipynb"
    before = notebook.read_text(encoding="utf-8")
    text = json.loads(notebook.read_text(encoding="utf-8"))
    text["cells"][1]["source"] += ["\n", "<!-- table figures/t.csv b a -->\n", "<!-- end -->"]
    notebook.write_text(json.dumps(text), encoding="utf-8")
    (copy / "figures").mkdir(exist_ok=True)
    for value, shown in (("0.26", "| 12 | 0.3 |"), ("x", "| 12 | x |")):
        (copy / "figures/t.csv").write_text(f"a,b,c\n{value},12,3\n")
        assert subprocess.run(
            [sys.executable, copy / "docs/update_pages.py", "--check"],
            capture_output=True).returncode == 1
        subprocess.run([sys.executable, copy / "docs/update_pages.py"], check=True)
        assert (f"| b | a |\n| --- | --- |\n{shown}\n<!-- end -->"
                in "".join(cells(notebook, "markdown")[0]["source"]))
    notebook.write_text(before, encoding="utf-8")


def test_links_come_from_one_setting(copy):
    """Another user name in settings.ini moves every badge and every Colab cell; no notebook or
    module has a link of its own."""
    cfg = settings()
    page = (ROOT / "docs/notebooks.md").read_text(encoding="utf-8")
    badges = re.findall(
        r"https://colab\.research\.google\.com/github/(\S+?)/blob/(\S+?)/(nbs/\w+\.ipynb)\)",
        page)
    assert {b[2] for b in badges} == {f"nbs/{p.name}" for p in RUNS + LIBRARY}
    assert {b[:2] for b in badges} == {(f"{cfg['user']}/{cfg['repo']}", cfg["branch"])}
    text = (copy / "settings.ini").read_text(encoding="utf-8").replace(
        f"user = {cfg['user']}", "user = somebody")
    (copy / "settings.ini").write_text(text, encoding="utf-8")
    assert subprocess.run(
        [sys.executable, copy / "docs/update_pages.py", "--check"],
        capture_output=True).returncode == 1
    subprocess.run([sys.executable, copy / "docs/update_pages.py"], check=True)
    for path in [
            copy / "docs/notebooks.md", *(copy / "nbs").glob("*.ipynb"),
            *(copy / "s2dm").glob("[a-z]*.py")]:
        assert cfg["user"] not in path.read_text(encoding="utf-8"), path
    assert all(
        "github.com/somebody/" in p.read_text(encoding="utf-8")
        for p in (copy / "nbs").glob("[0-9]*.ipynb"))


def test_citation_and_settings_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    cfg = settings()
    assert citation["version"] == cfg["version"]
    assert citation["repository-code"] == f"https://github.com/{cfg['user']}/{cfg['repo']}"
    assert citation["preferred-citation"]["doi"] == "10.18653/v1/2022.acl-long.70"
    assert len(citation["preferred-citation"]["authors"]) == 7


def test_lock_holds_what_settings_ask_for():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    cfg = settings()
    kinds = [k for k in cfg if k.endswith("requirements") and k != "xlm_requirements"]
    assert len(kinds) == 9
    for requirement in " ".join(cfg[k] for k in kinds).split():
        package = re.match(r"[\w-]+", requirement).group()
        assert re.search(
            rf"^{re.escape(package)}==", lock,
            re.M | re.I), f"{package} is not in requirements.lock; run `make lock`"
    assert re.search(r"^torch==2\.13\.0$", lock, re.M)
    assert not re.search(r"^(nvidia|cuda|triton)", lock, re.M)


def test_only_ci_knows_where_the_mirror_is():
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
        capture_output=True, text=True, check=True).stdout.split()
    place = "shared" + "/data"
    assert ({f for f in files if place in (ROOT / f).read_text(encoding="utf-8", errors="ignore")}
            == {".ci/run"})
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert ".ci/run" in (ROOT / ".github/workflows/test.yml").read_text()


def test_paper_tables_are_there():
    rows = {
        p.name: list(csv.DictReader(p.open(encoding="utf-8")))
        for p in (ROOT / "data/paper").glob("*.csv")}
    assert {k: len(v) for k, v in rows.items()} == {
        "in_text.csv": 14, "table1.csv": 7, "table2.csv": 18, "table3.csv": 129, "table4.csv": 60,
        "table5.csv": 12}


# --- how it is written

@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_cells_are_short_and_lines_narrow(path):
    "tests/house.py prints the numbers of all notebooks."
    found = house.statistics_of(path)
    assert found["wide"] == 0 and found["long"] == 0
    assert found["examples"] >= .9 * found["definitions"] - 1


def test_most_cells_are_short_and_most_definitions_have_examples():
    found = [house.statistics_of(path) for path in LIBRARY]
    characters = sum(row["characters"] for row in found) / sum(row["cells"] for row in found)
    examples = sum(row["examples"] for row in found) / sum(row["definitions"] for row in found)
    assert characters <= 450 and examples >= .95


def imported(module):
    "Modules of s2dm that a module needs."
    text = (ROOT / f"s2dm/{module}.py").read_text(encoding="utf-8")
    return set(re.findall(r"^ *from (?:s2dm)?\.(\w+) import", text, re.M))


def test_a_chapter_needs_only_earlier_ones():
    "But for the toy box: examples open it, and it needs what they explain."
    chapters = {}
    for path in LIBRARY:
        sources = "\n".join("".join(c["source"]) for c in cells(path))
        chapters[re.search(r"^#\| default_exp (\w+)$", sources, re.M)[1]] = path.stem
    later = [
        (stem, chapters[other]) for module, stem in chapters.items() if module != "toy"
        for other in imported(module) & set(chapters) if chapters[other] > stem]
    assert later == []


def test_links_lead_somewhere():
    pages = [*NOTEBOOKS, *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("figures/*/*.md")]
    dead = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        if page.suffix == ".ipynb":
            text = "\n".join("".join(c["source"]) for c in cells(page, "markdown"))
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            if re.match(r"\w+:", link): continue
            if not (page.parent / link).exists(): dead.append((page.name, link))
    assert dead == []


def test_the_repository_holds_few_files():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert len(listed) <= 300
    assert not [file for file in listed if file.startswith("figures/") and file.endswith(".tex")]
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120


def test_no_output_names_the_machine_that_made_it():
    assert [p.name for p in NOTEBOOKS if "/site-packages/" in p.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("number, stage", [
    ("02", "encoder"), ("03", "pretrain"), ("04", "finetune"), ("05", "evaluate"),
    ("06", "analyse")])
def test_a_run_leaves_to_the_encoder_what_is_its_own(number, stage):
    "What some encoder has a preset for is None among the parameters of the run, else it would win."
    preset = {name for encoder in ENCODERS.values() for name in getattr(encoder, stage) or ()}
    notebook = json.loads((ROOT / f"nbs/{number}_{stage}.ipynb").read_text(encoding="utf-8"))
    (cell,) = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", ())]
    for line in ast.parse("".join(cell["source"])).body:
        if line.targets[0].id in preset: assert line.value.value is None, line.targets[0].id


# --- the site

@pytest.fixture(scope="module")
def make_site():
    "docs/make_site.py."
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        yield importlib.import_module("make_site")


def test_troubleshooting_has_every_error_message_of_the_code(make_site):
    "As many as there are places in the text of the modules where an error is made."
    made = r"(?<!class )\b(?:_?[A-Z]\w*Error|MissingData|Diverged|_Refused|Timeout)\((?!\))"
    modules = [p for p in (ROOT / "s2dm").glob("*.py") if p.stem != "_modidx"]
    in_code = sum(len(re.findall(made, p.read_text(encoding="utf-8"))) for p in modules)
    found = make_site.messages(make_site.trees())
    source = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    page = make_site.troubleshooting(source, {})
    assert len(re.findall(r"^: Raised by ", page, re.M)) == len(found) == in_code > 250
    listed = re.findall(r"^## ([A-Z]\w*|\w+\.\w+)$", source, re.M)
    assert sorted(listed) == sorted({message.error for message in found})


def test_a_message_is_listed_with_its_condition_and_who_comes_to_it(make_site):
    tree = ast.parse(
        'def _checked(n):\n'
        '    "Raises `DataError` if nothing is there."\n'
        '    wrong = f"{n} is too small"\n'
        '    if n < 1: raise DataError(f"{wrong}; expected {\', \'.join(names)}")\n'
        'def count(n):\n'
        '    "Count."\n'
        '    return _checked(n)\n')
    classes = ast.parse("class DataError(ValueError): pass")
    message, = make_site.messages({"new": tree, "core": classes})
    assert message.text == "‹wrong›; expected ‹names›"
    assert (message.error, message.function, message.when) == ("DataError", "_checked", "if n < 1")
    assert message.fillings == [("wrong", ["‹n› is too small"])]
    shown = make_site.error_list([message], make_site.functions(tree), {"new.count": "place"})
    assert ": Raised by [`new.count`](#place), `if n < 1`: if nothing is there." in shown


@pytest.mark.parametrize("path", RUNS + LIBRARY, ids=name)
def test_the_site_shows_a_notebook_without_what_only_nbdev_needs(make_site, path):
    shown = json.loads(make_site.notebook_page(PurePosixPath("nbs", path.name), {}, []))["cells"]
    sources = ["".join(cell["source"]) for cell in shown if cell["cell_type"] == "code"]
    assert all(sources) and not re.search(r"^#\||google\.colab", "\n".join(sources), re.M)
    kept = [c for c in cells(path) if not re.match(r"#\| (hide|default_exp)", "".join(c["source"]))]
    assert len(sources) == len(kept)
    pictures = sum("image/png" in str(c["outputs"]) for c in kept)
    assert sum("image/png" in str(c.get("outputs")) for c in shown) == pictures


def test_the_reference_has_every_public_name_with_its_parameters(make_site):
    from s2dm import similarity
    labels = make_site.labels_of({"similarity": similarity})
    page = make_site.module_page("similarity", similarity, labels, {}, {})
    assert all(f"(s2dm.similarity.{n})=".lower() in page for n in similarity.__all__)
    rows = re.findall(r"^\| `(\w+)` \| .* \|$", page, re.M)
    functions = [f for f in vars(similarity).values() if inspect.isfunction(f)]
    public = [f for f in functions if f.__name__ in similarity.__all__]
    assert public and all({*inspect.signature(f).parameters} <= {*rows} for f in public)


def test_every_page_of_docs_is_in_the_navigation_of_the_site(make_site):
    listed = re.findall(r"[\w/-]+(?=>?$)", "\n".join(sum(make_site.NAVIGATION.values(), [])), re.M)
    pages = {p.stem for p in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages | {"self", "reference/index", "CONTRIBUTING", "CHANGELOG"} == {*listed}


@pytest.mark.parametrize("text, shown", [
    ("of `a_b` and a_b, [N,T]", r"of `a_b` and a\_b, \[N,T\]"),
    ("what $y$ means", "what $y$ means"),
    ("5 $ or <none>", r"5 \$ or \<none\>"), ("    as_it = stands", "    as_it = stands")])
def test_a_docstring_means_itself_on_the_site(make_site, text, shown):
    assert make_site.prose(text) == shown


def test_dead_links_of_the_site_are_found(make_site, tmp_path):
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">1</a><a href="#top" id="top">2</a><a href="https://x.org">3</a>'
        '<a href="b.html#there">4</a><a href="c.html">5</a><img src="d.png">')
    found = [line.partition(": ")[2] for line in make_site.dead_links(tmp_path)]
    assert found == ["b.html#there", "c.html", "d.png"]


@pytest.mark.parametrize("script", sorted(
    file.stem for file in (ROOT / "experiments").glob("*.py")))
def test_what_a_script_lacks_is_said_in_a_line(script):
    "Whatever it reads, each script ends with the message of an error that people can mend."
    text = (ROOT / f"experiments/{script}.py").read_text(encoding="utf-8")
    assert "\n@plain_errors()\ndef main():" in text


def test_without_parses_table1_says_what_would_help(tmp_path):
    nowhere = "http://127.0.0.1:9" # no network
    env = {"S2DM_DATA": str(tmp_path), "PYTHONPATH": str(ROOT), "https_proxy": nowhere}
    done = subprocess.run(
        [sys.executable, ROOT / "experiments/table1.py", "--out", tmp_path], cwd=ROOT, env=env,
        capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "S2DM_MIRROR" in done.stderr
