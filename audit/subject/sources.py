"""Which source files decide what code does, as digests of their text; an installed library counts by its version."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

OWN = __name__.partition(".")[0]
INSTALLED = ("site-packages", "dist-packages")  # folders whose code changes by installing, not by editing


def source_digest(modules: Iterable[str], folder: Path) -> str:
    """sha256 (hex) of the files of `modules` and of what they import; of an installed library, its version.

    Files are looked up in `folder`, then where Python finds modules. Of a package every file counts, and so does a
    neighbour that is named in a string only (`importlib.import_module("nets")`). It follows from the files alone, so
    that every process finds the same digest, whatever else it has loaded.
    """
    folder, files = folder.absolute(), dict[str, str]()
    todo, seen = [(name.partition(".")[0], True, True) for name in modules], set[tuple[str, bool, bool]]()
    while todo:
        step = todo.pop()
        if step in seen:
            continue
        seen.add(step)
        name, imported, asked = step
        if imported and not _beside(name, folder):
            files[name] = release(name)
        for label, file in _files_of(name, folder, imported=imported, asked=asked):
            if label not in files:
                raw = file.read_bytes()
                files[label] = hashlib.sha256(raw).hexdigest()
                if not _installed(file, folder):
                    todo += [(other, imports, False) for other, imports in _mentioned(raw)]
    return sha(*(f"{label} {digest}" for label, digest in sorted(files.items())))


@functools.cache
def release(module: str) -> str:
    """The version of the package that brought a top-level module; empty where every key has it, or there is none."""
    if module in sys.stdlib_module_names or module in ("", OWN, "torch"):
        return ""
    try:
        return importlib.metadata.version(module)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return " ".join(importlib.metadata.version(name) for name in sorted(set(_brought().get(module, []))))


@functools.cache
def _brought() -> Mapping[str, list[str]]:
    """Packages by the top-level modules they brought; a second's work where many are installed."""
    return importlib.metadata.packages_distributions()


def _beside(name: str, folder: Path) -> bool:
    return (folder / name).is_dir() or (folder / f"{name}.py").is_file()


def _files_of(name: str, folder: Path, *, imported: bool, asked: bool) -> list[tuple[str, Path]]:
    """The files of a top-level module or package, each with its path below the folder where the module was found.

    Args:
        imported: there is an import of it; else the name occurred in a string, and only a neighbour is meant by it.
        asked: the plan names it; then it counts even if it is installed.
    """
    package, module = folder / name, folder / f"{name}.py"
    found = [module] if module.is_file() else []
    if package.is_dir() and (imported or (package / "__init__.py").is_file()):
        found += _sources(package)
    if found:
        return [(file.relative_to(folder).as_posix(), file) for file in found]
    if not imported or name in sys.stdlib_module_names or name in (OWN, "torch"):  # torch's version is in every key
        return []
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # such as __main__, which has none
        return []
    places = [] if spec is None else spec.submodule_search_locations or [str(spec.origin)]
    labelled = []
    for path in map(Path, places):
        if path.exists() and (asked or not _installed(path, folder)):
            sources = _sources(path) if path.is_dir() else [path]
            labelled += [(f"{name}: {file.relative_to(path.parent).as_posix()}", file) for file in sources]
    return labelled


def _sources(package: Path) -> list[Path]:
    return [file for file in sorted(package.rglob("*.py")) if not _installed(file, package)]


def _installed(file: Path, folder: Path) -> bool:
    """Whether a library's folder lies on the way; one above the plan's own folder does not count."""
    parts = file.relative_to(folder).parts if file.is_relative_to(folder) else file.parts
    return any(part in INSTALLED for part in parts)


@functools.lru_cache(maxsize=512)
def _mentioned(raw: bytes) -> frozenset[tuple[str, bool]]:
    """Top-level names that a source file imports (True) or that stand in a string of it (False)."""
    try:
        return frozenset(_names_in(ast.parse(raw)))
    except (SyntaxError, ValueError):  # a file that was never imported
        return frozenset()


def _names_in(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], True) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0], True
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.partition(".")[0]
            if name.isidentifier():
                yield name, False


def sha(*texts: str) -> str:
    """sha256 (hex) of several texts."""
    return hashlib.sha256("\x1f".join(texts).encode(errors="surrogatepass")).hexdigest()
