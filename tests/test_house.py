"""How the house is built: small rooms, small modules, no circle of imports, and an audit that names no attack."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

import crushproof

ROOT = Path(crushproof.__file__).parent
PARTS = ("audit", "attacks", "defenses", "compression", "training", "targets", "report_templates")
MODULES = sorted(file for part in PARTS for file in (ROOT / part).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
ROOMS = [file for file in MODULES if file.name == "__init__.py"]
# Sets of attacks and limits are data that a plan or a policy may name; nothing else in the audit knows one attack.
MAY_NAME_ATTACKS = {"plan/presets.py"}


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


CALLS = ("attacks/membership/__init__.py",)  # rooms from which a notebook imports calls, which stand there too


@pytest.mark.parametrize("room", [name(file.parent) for file in ROOMS])
def test_a_room_holds_at_most_16_modules(room: str) -> None:
    modules = [file.name for file in (ROOT / room).glob("*.py") if file.name != "__init__.py"]
    assert len(modules) <= 16, sorted(modules)


@pytest.mark.parametrize("file", [name(file) for file in ROOMS])
def test_a_room_is_one_sentence(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    sentence = ast.get_docstring(ast.parse(text)) or ""
    assert text == f'"""{sentence}"""\n' or file in CALLS
    assert len(re.findall(r"[.!?](?=\s|$)", sentence)) == 1, sentence
    assert sentence[-1] in ".?"


@pytest.mark.parametrize(("files", "most"), [(MODULES, 350), (TESTS, 500)], ids=["package", "tests"])
def test_no_file_is_long(files: list[Path], most: int) -> None:
    lengths = {name(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {file: lines for file, lines in lengths.items() if lines > most} == {}


def test_no_module_is_imported_in_a_circle() -> None:
    """Imports inside functions and for types only count as well."""
    graph = grimp.build_graph("crushproof", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_what_a_checker_is_told_to_ignore_has_a_reason() -> None:
    silent = []
    mark = re.compile(r"#\s*(?:type:\s*ignore(?:\[[\w, -]+\])?|noqa(?::\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*)?)[\s#:(—-]*(.*)")
    texts = {file: file.read_text(encoding="utf-8") for file in [*MODULES, *TESTS]}
    for file, text in texts.items():
        if not re.search(r"#\s*(type:\s*ignore|noqa)", text):
            continue
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            found = mark.match(token.string) if token.type == tokenize.COMMENT else None
            if found and len(found.group(1)) < 4:
                silent.append(f"{name(file)}:{token.start[0]}: {token.string}")
    assert silent == []


def test_the_audit_names_no_attack() -> None:
    """A new attack brings its own rows, words and limits, so no line here may speak of a particular one."""
    known = re.compile(r"evasion|membership|extraction", re.IGNORECASE)
    audit = ROOT / "audit"
    naming = [
        f"{name(file)}:{number}: {line.strip()}"
        for file in sorted(audit.rglob("*.py"))
        if file.relative_to(audit).as_posix() not in MAY_NAME_ATTACKS
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if known.search(line)
    ]
    assert naming == []


def test_benchmarks_take_from_each_other_what_is_there() -> None:
    """They are scripts that no test runs, and mypy does not see them: a name that moved would be found by a user."""
    trees = {file.stem: ast.parse(file.read_text()) for file in (ROOT / "benchmarks").glob("*.py")}
    missing = []
    for script, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in trees:
                known = trees[node.module].body
                there = {one.name for one in known if isinstance(one, ast.FunctionDef | ast.ClassDef)}
                there |= {
                    n.id
                    for one in known
                    if isinstance(one, ast.Assign | ast.AnnAssign)
                    for n in ast.walk(one)
                    if isinstance(n, ast.Name)
                }
                missing += [f"{script}: {node.module}.{one.name}" for one in node.names if one.name not in there]
    assert missing == []
