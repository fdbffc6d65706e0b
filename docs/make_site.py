"""Make the site in `_docs/site/`: pages of docs/, notebooks as they are committed, a reference from
the code's docments, every error message of the code, search and equations without a network.

    python docs/make_site.py              # a warning or a dead link fails
    python docs/make_site.py --external   # asks the addresses of other sites, too

`_docs/source/` holds what Sphinx reads: the repository's layout, but docs/ is its root."""
import argparse
import ast
import builtins
import dataclasses
import importlib
import inspect
import json
import os
import re
import shutil
import sys
import warnings
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from update_pages import ROOT, settings

SOURCE, SITE = ROOT / "_docs/source", ROOT / "_docs/site"
CFG = settings()
REPOSITORY = f"https://github.com/{CFG['user']}/{CFG['repo']}"

#: caption -> pages, some with the title that the sidebar shows
NAVIGATION = {
    "": ["Start <self>"],
    "Read": ["Tutorial <notebooks>"],
    "How to": [
        "My language <language>", "My encoder <encoders>", "My data <data>", "My cluster <working>",
        "My GPU <gpu>", "My parser <parsers>", "Runs <runs>", "The whole job <workflow>"],
    "Look up": ["reference/index", "troubleshooting", "glossary"],
    "What was found": [
        "Results <results>", "Design: a real encoder <experiment-e5>",
        "Design: five small encoders <experiment-small>",
        "Design: what training alone can give <experiment-recipe>",
        "Design: boundaries <experiment-boundaries>", "On real text <real-s>",
        "Discrepancies <discrepancies>", "Changes of numbers <changes>"],
    "The project": ["Contributing <CONTRIBUTING>", "Changelog <CHANGELOG>"],
}
CONFIG = dict(
    project=CFG["title"], author=CFG["author"], copyright=CFG["copyright"], release=CFG["version"],
    extensions=["myst_nb", "sphinx-mathjax-offline"], language="en", smartquotes=False,
    nb_execution_mode="off", nb_merge_streams=True, nb_ipywidgets_js={},
    myst_enable_extensions=["dollarmath", "amsmath", "deflist"], myst_heading_anchors=4,
    myst_dmath_allow_digits=False, myst_dmath_allow_space=False,
    html_theme="furo", html_title=f"{CFG['title']} {CFG['version']}", html_static_path=["_static"],
    html_css_files=["site.css"], html_show_sourcelink=False, html_copy_source=False)

STYLE = """
.cell_output { overflow-x: auto }
article dl.myst dt { font-weight: 700 !important; overflow-wrap: anywhere }
article dl dd { margin-bottom: 1.2em }
article dd code { white-space: normal; overflow-wrap: anywhere }
article td:first-child code { white-space: nowrap }
article table.docutils { margin-left: 0 }
article h2 { font-size: 1.6em }
article h3 { font-size: 1.25em }
article :is(h1, h2, h3) code.literal { background: none; border: none; padding: 0 }
@media (max-width: 40em) {
  table.parameters, table.parameters :is(tbody, tr) { display: block }
  table.parameters thead { display: none }
  table.parameters tr { border-bottom: 1px solid var(--color-table-border); padding: .4em 0 }
  table.parameters td { border: none; display: block; padding: .1em .5em }
  table.parameters td:not(:first-child, :last-child) { display: inline-block }
}
"""


# --- pages and links

def site_path(path: PurePosixPath) -> PurePosixPath:
    "Where a file of the repository stands in the source of the site."
    if str(path) in ("README.md", "nbs/index.ipynb"): return PurePosixPath("index.md")
    return path.relative_to("docs") if path.parts[0] == "docs" else path


def resolved(link: str, page: PurePosixPath) -> PurePosixPath:
    "The file of the repository to which a page's relative link leads."
    return PurePosixPath(os.path.normpath(page.parent / unquote(link)))


def with_links(text: str, page: PurePosixPath, wanted: list) -> str:
    """Markdown with links as they are in the site; files that it links to are added to `wanted`. A
    folder is shown by the repository's host."""
    def moved(match):
        link, _, anchor = match[1].partition("#")
        if re.match(r"\w+:", link): return match[0]
        anchor = f"#{anchor.lower()}" if anchor else ""
        if not link: return f"]({anchor})"
        path = resolved(link, page)
        if (ROOT / path).is_dir(): return f"]({REPOSITORY}/tree/{CFG['branch']}/{path})"
        wanted.append(path)
        start = site_path(page).parent
        return f"]({os.path.relpath(site_path(path), start)}{anchor})"
    text = re.sub(r"\[!\[Open in Colab\]\(\S+?\)\]\((\S+?)\)", r"[Colab](\1)", text)
    return re.sub(r"\]\(([^)\s]+)\)", moved, text)


def with_names(text: str, names: dict[str, str]) -> str:
    """Markdown in which public names between backticks lead to the reference: those that are no
    plain word."""
    def found(match):
        return f"[{match[0]}](#{names[match[1]]})" if match[1] in names else match[0]
    blocks = re.split(r"(^```.*?^```|^    .*?$)", text, flags=re.M | re.S)
    blocks[::2] = [re.sub(r"(?<![`\[\w])`(\w+)`(?!`|\])", found, block) for block in blocks[::2]]
    return "".join(blocks)


def toctree(pages: list[str], caption: str = "") -> str:
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["```{toctree}", *options, "", *pages, "```", ""])


def is_chapter(path: Path) -> bool: return bool(re.match(r"\d\d[a-z]_", path.name))


def notebooks() -> list[Path]: return sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))


def contents(chapters: bool) -> str:
    "The notebooks that explain, or the runs."
    return toctree([f"nbs/{p.stem}" for p in notebooks() if is_chapter(p) == chapters])


def markdown_page(path: PurePosixPath, wanted: list) -> str:
    "A page of the repository as the site has it."
    text = with_links((ROOT / path).read_text(encoding="utf-8"), path, wanted)
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S) # a card's data for the hub
    if not re.search(r"^# ", text, re.M): text = f"# {path.stem}\n\n{text}"
    if site_path(path) == PurePosixPath("index.md"):
        text += "\n" + "\n".join(toctree(pages, name) for name, pages in NAVIGATION.items())
    if path.stem in ("notebooks", "runs"): text += "\n" + contents(path.stem == "notebooks")
    listed = re.findall(r"[\w/-]+(?=>?$)", "\n".join(sum(NAVIGATION.values(), ["index"])), re.M)
    if str(site_path(path).with_suffix("")) in listed: return text
    return f"---\norphan: true\n---\n\n{text}"


def notebook_page(path: PurePosixPath, names: dict[str, str], wanted: list) -> str:
    "A notebook without what is only for nbdev and Colab, with its outputs."
    notebook = json.loads((ROOT / path).read_text(encoding="utf-8"))
    colab = "https://colab.research.google.com/github"
    links = [f"[open in Colab]({colab}/{CFG['user']}/{CFG['repo']}/blob/{CFG['branch']}/{path})"]
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        module = re.match(r"#\| default_exp (\w+)", source)
        if module: links.insert(0, f"[`s2dm.{module[1]}`](#s2dm.{module[1]})")
        if cell["cell_type"] == "raw" or re.match(r"#\| (hide|default_exp)", source): continue
        if cell["cell_type"] == "markdown":
            cell["source"] = with_names(with_links(source, path, wanted), names)
        else:
            cell["source"] = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")
            widget = "application/vnd.jupyter.widget-view+json" # a bar that is gone
            cell["outputs"] = [o for o in cell["outputs"] if widget not in o.get("data", {})]
        cells.append(cell)
    number = path.name.partition("_")[0]
    cells[0]["source"] = re.sub(r"^# ", f"# {number} ", cells[0]["source"])
    cells.insert(1, dict(cell_type="markdown", id="links", metadata={}, source=" · ".join(links)))
    return json.dumps(notebook | {"cells": cells}, ensure_ascii=False)


# --- errors

class Message(NamedTuple):
    "An error that the code raises."
    error: str # its class, a public one
    module: str
    function: str # with its class; "" in the module itself
    line: int
    text: str # ‹name› stands for what is filled in
    when: str # the condition, as the code has it; "" if there is none
    fillings: list[tuple[str, list[str]]] # name -> the texts that it may be


def trees() -> dict[str, ast.Module]:
    "The modules of the package, parsed."
    paths = [p for p in sorted((ROOT / "s2dm").glob("*.py")) if p.stem != "_modidx"]
    return {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def error_classes(modules: dict[str, ast.Module]) -> dict[str, str]:
    "Each class of errors -> the public class under which users know it."
    known = {n: n for n, c in vars(builtins).items()
             if isinstance(c, type) and issubclass(c, Exception)}
    for tree in modules.values():
        for node in tree.body:
            if not isinstance(node, ast.ClassDef): continue
            bases = [known[b] for b in map(ast.unparse, node.bases) if b in known]
            if bases: known[node.name] = bases[0] if node.name.startswith("_") else node.name
    raised = {ast.unparse(n.exc.func) for tree in modules.values() for n in ast.walk(tree)
              if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)}
    return known | {name: name for name in raised if "." in name} # of other packages


def filled_in(node: ast.expr) -> str:
    "A short name for what a message is filled with."
    shown = ast.unparse(node)
    if shown.endswith(".__name__"): return "‹type›"
    if isinstance(node, (ast.Name, ast.Attribute)): return f"‹{shown}›"
    called = {id(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}
    names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and id(n) not in called]
    names = [name for name in names if len(name) > 2 and name not in vars(builtins)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        names.append(node.func.id.strip("_"))
    return f"‹{names[0]}›" if names else "‹…›"


def message_text(node: ast.expr) -> str:
    "The text of an expression that makes a message."
    if isinstance(node, ast.Constant): return str(node.value)
    if isinstance(node, ast.JoinedStr): return "".join(map(message_text, node.values))
    if isinstance(node, ast.FormattedValue): return filled_in(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return message_text(node.left) + message_text(node.right)
    return filled_in(node)


def qualified_name(node: ast.FunctionDef, outer: str) -> str:
    "With the class, that of a patched method too."
    first = node.args.args[:1]
    patched = any(ast.unparse(d).startswith("patch") for d in node.decorator_list)
    if patched and first: outer = ast.unparse(first[0].annotation)
    return f"{outer}.{node.name}" if outer else node.name


def is_text(node: ast.expr) -> bool:
    "Is it a piece of a message: words, and what is filled in?"
    return isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)) and " " in message_text(node)


def handed_over(name: str, function: ast.FunctionDef, tree: ast.Module) -> list[ast.expr]:
    "What the calls in a module give for a parameter."
    names = [a.arg for a in function.args.args]
    if name not in names: return []
    calls = [n for n in ast.walk(tree)
             if isinstance(n, ast.Call) and ast.unparse(n.func) == function.name]
    place = names.index(name)
    return [call.args[place] for call in calls if len(call.args) > place]


def values_of(name: str, inside: ast.AST, tree: ast.Module) -> list[ast.expr]:
    "Expressions that a name may stand for."
    known = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    makes = [n for n in [*ast.walk(inside), *tree.body]
             if isinstance(n, (ast.Assign, ast.NamedExpr))]
    values = [n.value for n in makes
              if name in map(ast.unparse, getattr(n, "targets", None) or [n.target])]
    called = [known[ast.unparse(v.func)] for v in values
              if isinstance(v, ast.Call) and ast.unparse(v.func) in known]
    values += [n.value for f in called for n in ast.walk(f) if isinstance(n, ast.Return)]
    if isinstance(inside, ast.FunctionDef): values += handed_over(name, inside, tree)
    return values


def fillings(text: str, inside: ast.AST, tree: ast.Module) -> list[tuple[str, list[str]]]:
    "Texts that stand for the names in a message: those that the module makes for it."
    found = []
    for name in re.findall(r"‹(\w+)›", text):
        parts = []
        for value in values_of(name, inside, tree):
            if isinstance(value, ast.IfExp): parts += [value.body, value.orelse]
            elif isinstance(value, ast.Dict): parts += value.values
            else: parts.append(value)
        texts = [" ".join(message_text(part).split()) for part in parts if is_text(part)]
        if texts: found.append((name, list(dict.fromkeys(texts))))
    return found


def messages(modules: dict[str, ast.Module]) -> list[Message]:
    "Every error with a message that is made in the code."
    known, found = error_classes(modules), []
    def walk(node, module, function, when, inside):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in known and node.args:
            text = " ".join(message_text(node.args[0]).split())
            found.append(Message(
                known[ast.unparse(node.func)], module, function, node.lineno, text, when,
                fillings(text, inside, modules[module])))
        if isinstance(node, ast.ClassDef): function = f"{function}.{node.name}".strip(".")
        if isinstance(node, ast.FunctionDef):
            function, inside, when = qualified_name(node, function), node, ""
        if isinstance(node, ast.ExceptHandler) and node.type:
            when = f"except {ast.unparse(node.type)}"
        for name, child in ast.iter_fields(node):
            if isinstance(node, ast.If) and name != "test":
                test = ast.unparse(node.test)
                when = f"if {test}" if name == "body" else f"if not ({test})"
            for part in child if isinstance(child, list) else [child]:
                if isinstance(part, ast.AST): walk(part, module, function, when, inside)
    for module, tree in modules.items(): walk(tree, module, "", "", tree)
    return found


class Function(NamedTuple):
    docstring: str
    calls: set[str] # last parts of names


def functions(tree: ast.Module) -> dict[str, Function]:
    "Functions and methods of a module."
    found = {}
    for outer in tree.body:
        nodes = [("", outer)]
        if isinstance(outer, ast.ClassDef): nodes = [(outer.name, n) for n in outer.body]
        for name, node in nodes:
            if not isinstance(node, ast.FunctionDef): continue
            calls = {re.sub(r".*\.", "", ast.unparse(n.func)) for n in ast.walk(node)
                     if isinstance(n, ast.Call)}
            names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} # handed on
            doc = ast.get_docstring(node) or ""
            found[qualified_name(node, name)] = Function(doc, calls | names)
    return found


def is_private(function: str) -> bool:
    return any(re.match(r"_(?!_(call|init)__)", part) for part in function.split("."))


def public_callers(function: str, known: dict[str, Function]) -> list[str]:
    "The public functions of a module that come to a private one."
    reached, waiting = {function}, [function]
    while waiting:
        name = waiting.pop().split(".")[-1]
        new = {f for f, about in known.items() if name in about.calls and f not in reached}
        reached |= new
        waiting += [f for f in new if is_private(f)]
    return sorted(f for f in reached if not is_private(f))


def reason(docstring: str, error: str) -> str:
    "What a docstring says of when it raises an error; \"\" if nothing."
    sentences = re.split(r"(?<=\.) (?=[A-Z`])", " ".join(docstring.split()))
    for sentence in sentences:
        if not re.match(rf"Raises .*`{error}`", sentence): continue
        said = sentence.split(f"`{error}`")[1]
        clause = re.split(r",? (?:and |or )?`[A-Z]\w+(?:Error|Data)`", said)[0].strip(" .")
        if re.match("(if|where|when|unless|for|at) ", clause): return clause
    return ""


def error_list(rows: list[Message], known: dict[str, Function], labels: dict[str, str]) -> str:
    "The messages of one class and module."
    lines = []
    for m in sorted(rows, key=lambda m: m.line):
        callers = [m.function] if not is_private(m.function) else public_callers(m.function, known)
        names = [named(f"{m.module}.{re.sub(r'.__(post_)?init__$', '', f)}", labels)
                 for f in callers if f]
        says = f"Raised by {', '.join(names[:4]) or f'the module `{m.module}`'}"
        if len(names) > 4: says += " and others"
        if m.when: says += f", {code(m.when)}"
        sentence = reason(known[m.function].docstring, m.error) if m.function in known else ""
        if sentence: says += f": {prose(sentence)}"
        lines += [escaped(m.text), f": {says}.", ""]
        for name, texts in m.fillings:
            listed = "; or: ".join(map(escaped, texts))
            lines[-1:] = ["", f"  ‹{name}› is: {listed}.", ""]
    return "\n".join(lines)


def troubleshooting(page: str, labels: dict[str, str]) -> str:
    "The page with the list of messages at the end of each class's section."
    modules = trees()
    known = {name: functions(tree) for name, tree in modules.items()}
    groups = defaultdict(lambda: defaultdict(list))
    for m in messages(modules): groups[m.error][m.module].append(m)
    for error, by_module in groups.items():
        head = f"## {error}\n"
        if head not in page: raise SystemExit(f"docs/troubleshooting.md lacks the section {head}")
        before, _, rest = page.partition(head)
        text, mark, after = re.match(r"(.*?)(^## |\Z)(.*)", rest, re.S | re.M).groups()
        lists = [
            f"### {error} from {module}\n\n{error_list(rows, known[module], labels)}"
            for module, rows in by_module.items()]
        page = "\n".join([f"{before}{head}{text.rstrip()}", "", *lists, f"{mark}{after}"])
    return page


# --- reference

def escaped(text: str) -> str:
    "Text that means itself in Markdown."
    return re.sub(r"([\\`*_\[\]<>$|{}#~])", r"\\\1", text)


def code(text: str, most: int = 120) -> str:
    "Code on one line of Markdown, in a table too."
    text = " ".join(text.split())
    if len(text) > most: text = text[:most - 1] + "…"
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}".replace("|", "\\|") if text else ""


def prose(text: str) -> str:
    "A docstring or comment as Markdown: code and equations stay, all else means itself."
    lines = []
    for line in text.split("\n"):
        parts = re.split(r"(`[^`\n]+`|\$\\?[A-Za-z][^$\n]{0,40}\$)", line)
        parts[::2] = [escaped(part) for part in parts[::2]]
        lines.append(line if line.startswith("    ") else "".join(parts))
    return "\n".join(lines)


def named(name: str, labels: dict[str, str]) -> str:
    "A name of a module, as a link where it has a place."
    shown = f"`{name}`"
    return f"[{shown}](#{labels[name]})" if name in labels else shown


def modules_of_package() -> dict[str, object]:
    paths = sorted((ROOT / "s2dm").glob("[a-z]*.py"))
    return {p.stem: importlib.import_module(f"s2dm.{p.stem}") for p in paths}


def methods_of(cls: type) -> dict[str, object]:
    "Public methods and properties, those of private bases too."
    found = {}
    for base in reversed(cls.__mro__):
        is_ours = base.__module__.startswith("s2dm.")
        if base is not cls and not (is_ours and base.__name__.startswith("_")): continue
        for name, member in vars(base).items():
            if name.startswith("_") and name != "__call__": continue
            if isinstance(member, property): function = member.fget
            else: function = getattr(member, "__func__", member)
            if not inspect.isfunction(function) or not function.__doc__: continue
            if function.__module__.startswith("s2dm."): found[name] = member
    return found


def labels_of(modules: dict[str, object]) -> dict[str, str]:
    "module.name -> its place in the reference."
    names = [f"{m}.{n}" for m, module in modules.items() for n in getattr(module, "__all__", ())]
    labels = {}
    for name in names:
        twice = sum(other.lower() == name.lower() for other in names) > 1
        kind = ".class" if twice and name.split(".")[1][0].isupper() else ""
        labels[name] = f"s2dm.{name.lower()}{kind}"
        module, _, short = name.partition(".")
        value = getattr(modules[module], short)
        if not inspect.isclass(value): continue
        for method in methods_of(value): labels[f"{name}.{method}"] = f"{labels[name]}.{method}"
    return labels


def type_name(annotation) -> str:
    if annotation is inspect.Parameter.empty: return ""
    shown = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", shown) # without modules


def table(rows: list[tuple]) -> str:
    "Name, type, default, meaning; columns that hold nothing are left out."
    names = ("", "type", "default", "meaning")
    kept = [i for i in range(4) if i == 0 or any(row[i] for row in rows)]
    lines = [names, ["---"] * 4, *rows]
    rows = "\n".join("| " + " | ".join(line[i] for i in kept) + " |" for line in lines)
    return f"```{{table}}\n:class: parameters\n\n{rows}\n```\n"


def default_of(value) -> str:
    if value is inspect.Parameter.empty or value is dataclasses.MISSING: return ""
    return code(getattr(value, "__name__", None) or repr(value), 60)


def parameter_table(function) -> str:
    from fastcore.docments import docments
    rows = []
    for name, about in docments(function, full=True).items():
        if name in ("self", "cls"): continue
        meaning = prose(" ".join((about.docment or "").split()))
        shown = "returns" if name == "return" else code(name)
        row = (shown, code(type_name(about.anno)), default_of(about.default), meaning)
        if name != "return" or any(row[1:]): rows.append(row)
    return table(rows) if rows else ""


def field_table(cls: type) -> str:
    "Of a dataclass; of a configuration, with the parts that it contains."
    from s2dm.core import Config, parameters_of
    if not issubclass(cls, Config): return parameter_table(cls)
    return table([
        (code(f.name), code(type_name(f.type)), default_of(f.default), prose(f.metadata["help"]))
        for f in parameters_of(cls).values()])


def signature(name: str, function) -> str:
    "The call, one parameter a line if it is long."
    try: parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError): return ""
    kept = [p.replace(annotation=p.empty) for p in parameters if p.name not in ("self", "cls")]
    shown = [part.strip() for part in re.split(r",(?= )", str(inspect.Signature(kept))[1:-1])]
    line = f"{name}({', '.join(shown)})"
    if len(line) > 80: line = f"{name}(\n    " + ",\n    ".join(shown) + ")"
    return f"```python\n{line}\n```\n"


def docstring(value) -> str:
    text = inspect.cleandoc(value.__doc__ or "")
    return prose(re.split(r"\n*^(?:Parameters:\n|Returns: )", text, flags=re.M)[0]) + "\n"


def errors_of(name: str, raised: dict[str, list[Message]]) -> str:
    "The messages that a function makes itself."
    lines = [f"- `{m.error}`: {escaped(m.text)}" for m in raised.get(name, ())]
    head = "Errors ([what to do](../troubleshooting.md)):"
    return "\n".join([head, "", *lines, ""]) if lines else ""


def function_entry(name: str, function, level: int, labels: dict, raised: dict) -> str:
    short = name.partition(".")[2]
    plain = function.fget if isinstance(function, property) else function
    plain = getattr(plain, "__func__", plain)
    call = "" if isinstance(function, property) else signature(short, inspect.unwrap(plain))
    kind = ", a property" if isinstance(function, property) else ""
    return "\n".join([
        f"({labels[name]})=", f"{'#' * level} `{short}`{kind}", "", call, docstring(plain),
        parameter_table(inspect.unwrap(plain)), errors_of(name, raised)])


def full_name(cls: type) -> str:
    "module.Class in the package; elsewhere the shortest name by which it can be imported."
    if cls.__module__.startswith("s2dm."): return f"{cls.__module__[5:]}.{cls.__name__}"
    parts = cls.__module__.split(".")
    modules = (".".join(parts[:i]) for i in range(1, len(parts) + 1))
    short = next(m for m in modules if getattr(sys.modules[m], cls.__name__, None) is cls)
    return f"{short}.{cls.__name__}".removeprefix("builtins.")


def class_entry(name: str, cls: type, labels: dict, raised: dict) -> str:
    short, bases = name.partition(".")[2], [b for b in cls.__bases__ if b is not object]
    above = [named(full_name(base), labels) for base in bases if not base.__name__.startswith("_")]
    parts = [f"({labels[name]})=", f"## `{short}`, a class", ""]
    if above: parts += [f"Based on {', '.join(above)}.", ""]
    parts.append(docstring(cls))
    is_error = issubclass(cls, Exception)
    if dataclasses.is_dataclass(cls): parts.append(field_table(cls))
    elif "__init__" in vars(cls) and not is_error: parts.append(parameter_table(cls.__init__))
    parts.append(errors_of(f"{name}.__init__", raised))
    for method, member in methods_of(cls).items():
        parts.append(function_entry(f"{name}.{method}", member, 3, labels, raised))
    return "\n".join(parts)


def constant_entry(name: str, source: str, tree: ast.Module, labels: dict) -> str:
    "A value, as the code makes it."
    short = name.partition(".")[2]
    lines = source.splitlines()
    def is_it(node):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        return any(isinstance(t, ast.Name) and t.id == short for t in targets)
    node = next(n for n in tree.body if is_it(n))
    shown = lines[node.lineno - 1:node.end_lineno]
    if len(shown) > 12: shown = [*shown[:10], "..."]
    above = lines[node.lineno - 2].strip()
    says = prose(above.removeprefix("#:").strip()) + "\n" if above.startswith("#:") else ""
    return "\n".join([
        f"({labels[name]})=", f"## `{short}`, a value", "", says, "```python", *shown, "```", ""])


def module_page(name: str, module, labels: dict, raised: dict, chapters: dict[str, str]) -> str:
    source = (ROOT / f"s2dm/{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    parts = [f"(s2dm.{name})=", f"# `s2dm.{name}`", "", docstring(module)]
    if name in chapters:
        stem = chapters[name]
        parts += [f"Explained, with examples, in [](../nbs/{stem}.ipynb).", ""]
    for short in getattr(module, "__all__", ()):
        value, full = getattr(module, short), f"{name}.{short}"
        if inspect.isclass(value) and value.__module__ == module.__name__:
            parts.append(class_entry(full, value, labels, raised))
        elif inspect.isfunction(inspect.unwrap(value)) if callable(value) else False:
            parts.append(function_entry(full, value, 2, labels, raised))
        else: parts.append(constant_entry(full, source, tree, labels))
    return "\n".join(parts)


def chapters() -> dict[str, str]:
    "module -> the notebook that makes it."
    found = {}
    for path in notebooks():
        module = re.search(r'"#\| default_exp (\w+)', path.read_text(encoding="utf-8"))
        if module: found[module[1]] = path.stem
    return found


def write_reference(modules: dict[str, object], labels: dict[str, str]):
    "A page for each module, and their list."
    raised = defaultdict(list)
    for m in messages(trees()): raised[f"{m.module}.{m.function}"].append(m)
    place, stems = SOURCE / "reference", chapters()
    modules = {n: m for n, m in modules.items() if getattr(m, "__all__", ())}
    order = sorted(modules, key=lambda name: stems[name])
    lines = [
        "(reference)=", "# Reference", "", "Every public name, from the comments in the code. "
        "Modules in the order of their chapters:", "", "| module | what it is for |", "|---|---|"]
    for name in order:
        purpose = " ".join(inspect.cleandoc(modules[name].__doc__ or "").split())
        lines.append(f"| [`s2dm.{name}`]({name}.md) | {prose(purpose)} |")
    write(place / "index.md", "\n".join([*lines, "", toctree(order)]))
    for name in order:
        write(place / f"{name}.md", module_page(name, modules[name], labels, raised, stems))


# --- all of it

def write(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_source():
    "What Sphinx reads."
    shutil.rmtree(SOURCE, ignore_errors=True)
    modules = modules_of_package()
    labels = labels_of(modules)
    short = defaultdict(set)
    for name, label in labels.items(): short[name.partition(".")[2]].add(label)
    names = {name: min(found) for name, found in short.items()
             if len(found) == 1 and re.search(r"[a-z]_[a-z]|^[A-Z]\w*[a-z]", name)}
    wanted = [PurePosixPath(p.relative_to(ROOT).as_posix()) for p in [
        *(ROOT / "docs").glob("*.md"), *notebooks(), ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md"]]
    seen = {PurePosixPath("README.md"), PurePosixPath("nbs/index.ipynb")} # the front page is ours
    while wanted:
        path = wanted.pop()
        if path in seen: continue
        seen.add(path)
        place = SOURCE / site_path(path)
        if path.suffix == ".md":
            text = markdown_page(path, wanted)
            if path.stem == "troubleshooting": text = troubleshooting(text, labels)
            write(place, text)
        elif path.suffix == ".ipynb": write(place, notebook_page(path, names, wanted))
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, place)
    write_reference(modules, labels)
    write(SOURCE / "_static/site.css", STYLE)


def built(builder: str, out: Path) -> int:
    "Sphinx's exit status: 1 if it warns."
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils
    with docutils_namespace(), patch_docutils():
        app = Sphinx(
            SOURCE, None, out, ROOT / "_docs/doctrees", builder, CONFIG, freshenv=True,
            warningiserror=True, keep_going=True)
        app.build(force_all=True)
    print(f"{app._warncount} warnings")
    return app.statuscode


class Page(HTMLParser):
    "Places in a page, and where its links lead."
    def __init__(self, path: Path):
        super().__init__()
        self.places, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id" or (tag == "a" and name == "name"): self.places.add(value)
            if name in ("href", "src") and value: self.links.append(value)


def dead_links(site: Path) -> list[str]:
    "Links within the site to a page, place or file that is not there."
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    dead, inside, outside = [], 0, 0
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                outside += 1
                continue
            inside += 1
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            place = unquote(url.fragment)
            lost = place and target in pages and place not in pages[target].places
            if not target.is_file() or lost: dead.append(f"{path.relative_to(site)}: {link}")
    print(f"{len(pages)} pages; {inside} links within the site, {len(dead)} of them dead; "
          f"{outside} to other sites")
    return dead


def main():
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--external", action="store_true", help="ask other sites' addresses, too")
    given = ask.parse_args()
    sys.path.insert(0, str(ROOT))
    warnings.simplefilter("ignore")
    shutil.rmtree(SITE, ignore_errors=True)
    write_source()
    status = built("html", SITE)
    dead = dead_links(SITE)
    print(*dead, sep="\n")
    if given.external: status |= built("linkcheck", ROOT / "_docs/external")
    print(f"The site: {SITE.relative_to(ROOT)}/index.html")
    sys.exit(status or bool(dead))


if __name__ == "__main__": main()
