"""What decides a result besides data and seed: code and values, as digests that are equal exactly when those are.

For a plan, the text of every file that its functions come from. For a call from Python, where code may have no file,
the compiled code that is in memory, with everything it refers to. No digest depends on an address in memory.
"""

from __future__ import annotations

import ast
import builtins
import dis
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..targets.errors import InputError
from ..targets.technique import Technique, techniques_in

OWN = __name__.partition(".")[0]
INSTALLED = ("site-packages", "dist-packages")  # folders whose code changes by installing, not by editing
NUMBERS = (bool, int, float, complex, str, bytes, range, type(None), type(...))
SIMPLE = (*NUMBERS, torch.dtype, torch.device, np.dtype, PurePath)


# -- source files -----------------------------------------------------------------------------------------------------


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
    return _sha(*(f"{label} {digest}" for label, digest in sorted(files.items())))


@functools.cache
def release(module: str) -> str:
    """The version of the package that brought a top-level module; empty where every key has it, or there is none."""
    if module in sys.stdlib_module_names or module in (OWN, "torch"):
        return ""
    try:
        return importlib.metadata.version(module)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        found = importlib.metadata.packages_distributions().get(module, [])
        return " ".join(importlib.metadata.version(name) for name in sorted(set(found)))


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


def _mentioned(raw: bytes) -> Iterator[tuple[str, bool]]:
    """Top-level names that a source file imports (True) or that stand in a string of it (False)."""
    try:
        tree = ast.parse(raw)
    except (SyntaxError, ValueError):  # a file that was never imported
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], True) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0], True
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.partition(".")[0]
            if name.isidentifier():
                yield name, False


# -- techniques -------------------------------------------------------------------------------------------------------


def technique_identity(technique: Technique | None) -> Any:
    """What decides a technique's work, as a JSON value: its settings, and the code of every class in it that is not
    crushproof's own (the version in every key stands for that)."""
    if technique is None:
        return None
    classes = {cls for one in techniques_in(technique) for cls in type(one).__mro__ if not _ours(cls)}
    return [technique.model_dump(mode="json"), *sorted(_class_identity(cls) for cls in classes)]


def _ours(cls: type) -> bool:
    top = cls.__module__.partition(".")[0]
    return top in (OWN, "pydantic") or (top in sys.stdlib_module_names and top != "__main__")


def _class_identity(cls: type) -> str:
    """The class by name, the version and the sources of the package it is from, and its methods as they are in memory:
    a file that was edited since it was imported is not what runs."""
    name, top = f"{cls.__module__}.{cls.__qualname__}", sys.modules.get(cls.__module__.partition(".")[0])
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if top is None or file is None or not Path(file).is_file():  # a notebook, or what exec made
        return f"{name} {code_digest(cls)}"
    where = Path(file).absolute()
    alone = not hasattr(top, "__path__") and not any(part in INSTALLED for part in where.parts)
    # A file for a folder: nothing lies in it, so that the package is found as Python finds it.
    sources = source_digest([where.stem], where.parent) if alone else source_digest([top.__name__], where)
    return _sha(name, release(top.__name__), sources, *map(_Describer().method, vars(cls).values()))


# -- code and values in memory ----------------------------------------------------------------------------------------


def state_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of a state dict's names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # NumPy has no bfloat16
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()


def code_digest(function: Callable[..., Any]) -> str:
    """sha256 (hex) of what a call of `function` does: its code, defaults and captured values, and all they refer to.

    Raises:
        InputError: a captured value has no stable identity (an open file, a lock).
    """
    return _digest(function)


def model_digest(module: nn.Module) -> str:
    """sha256 (hex) of a model: weights, settings of each layer, and the code of every class that is not torch's."""
    return _digest(module)


def name_of(function: Callable[..., Any]) -> str:
    """What a message calls a function; a partial by the function in it."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__qualname__)


def _digest(value: Any) -> str:
    try:
        return _sha(_Describer().describe(value))
    except RecursionError:
        raise InputError(
            "A value that the model or its training refers to is nested too deeply to be identified. Pass something "
            "simpler."
        ) from None


def _sha(*texts: str) -> str:
    return hashlib.sha256("\x1f".join(texts).encode(errors="surrogatepass")).hexdigest()


class _Describer:
    """Turns values into text. Values may refer to each other in circles, so it remembers where it is."""

    def __init__(self) -> None:
        self.open: dict[int, int] = {}  # the values being described now, by id: how deep each lies
        self.done: dict[int, tuple[str, Any]] = {}  # text by id; with the value, so that its address is not used again

    def describe(self, value: Any) -> str:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if isinstance(value, Enum):
            return f"{kind}.{value.name}"
        if isinstance(value, SIMPLE):
            return f"{kind}:{value!r}"
        if id(value) in self.done:
            return self.done[id(value)][0]
        if id(value) in self.open:
            return f"circle:{self.open[id(value)]}"
        self.open[id(value)] = len(self.open)
        try:
            text = f"{kind}:{_sha(self._inside(value))}"
        finally:
            del self.open[id(value)]
        self.done[id(value)] = text, value
        return text

    def method(self, value: Any) -> str:
        """A method's own code, without what it refers to; empty for another attribute of a class."""
        inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        return self._code(inner.__code__) if isinstance(inner, types.FunctionType) else ""

    def _inside(self, value: Any) -> str:
        if isinstance(value, Tensor):
            return f"{state_digest({'': value})} {value.requires_grad}"
        if isinstance(value, np.ndarray) and value.dtype != object:
            raw = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return f"{value.shape}{value.dtype.str}{raw}"
        if isinstance(value, torch.Generator):
            return self.describe(value.get_state())
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return self._all([value.__func__, value.__self__])
        if isinstance(value, functools.partial):
            return self._all([value.func, value.args, value.keywords])
        if isinstance(value, staticmethod | classmethod):
            return self.describe(value.__func__)
        if isinstance(value, property):
            return self._all([value.fget, value.fset, value.fdel])
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.ModuleType):
            return f"{value.__name__} {release(value.__name__.partition('.')[0]) if library(value.__name__) else ''}"
        if isinstance(value, types.BuiltinFunctionType) and (
            value.__self__ is None or isinstance(value.__self__, types.ModuleType)
        ):
            return f"{value.__module__}.{value.__qualname__}"
        if callable(value) and hasattr(value, "__wrapped__"):  # functools.cache
            return self.describe(value.__wrapped__)
        return self._container(value)

    def _container(self, value: Any) -> str:
        if type(value) in (list, tuple):
            return self._all(value)
        if type(value) in (set, frozenset):
            # Each alone, so that the order in which the set gives them (which is random for strings) does not matter.
            return " ".join(sorted(_Describer().describe(one) for one in value))
        if type(value) in (dict, types.MappingProxyType):
            return ",".join(sorted(f"{self.describe(key)}={self.describe(one)}" for key, one in value.items()))
        if type(value).__module__ in ("types", "builtins") and getattr(value, "__qualname__", None):
            return str(value.__qualname__)  # descriptors of builtin types: str.lower
        try:
            parts = value.__reduce_ex__(2)  # how copy and pickle take a value apart
        except Exception as error:
            raise InputError(
                f"A value of type {type(value).__name__} cannot be identified ({error}), so finished results could "
                "not be told from stale ones. Create it inside the function, or pass something simpler."
            ) from None
        if isinstance(parts, str):
            return f"{type(value).__module__}.{parts}"
        constructor, arguments, *rest = parts
        listed = [list(one) if hasattr(one, "__next__") else one for one in rest]
        return self._all([constructor, arguments, *listed])

    def _all(self, values: Iterable[Any]) -> str:
        return ",".join([self.describe(value) for value in values])

    def _lenient(self, value: Any) -> str:
        """Of what code merely refers to, such as a logger: its type where nothing more can be said."""
        try:
            return self.describe(value)
        except InputError:
            return f"{type(value).__module__}.{type(value).__qualname__}"

    def _function(self, function: types.FunctionType) -> str:
        if library(function.__module__) and not function.__code__.co_filename.startswith("<"):
            own = "" if function.__closure__ is None else self._cells(function)
            return f"{function.__module__}.{function.__qualname__} {_release(function)} {own}"
        parts = [self._code(function.__code__), self._all([function.__defaults__, function.__kwdefaults__])]
        parts.append(self._cells(function))
        known = sorted(_globals(function.__code__) & function.__globals__.keys())
        parts += [f"{name}={self._referred(function.__globals__[name], function.__code__)}" for name in known]
        if hasattr(function, "__wrapped__"):
            parts.append(self.describe(function.__wrapped__))
        return " ".join(parts)

    def _cells(self, function: types.FunctionType) -> str:
        described = []
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                described.append(f"{name}={self.describe(cell.cell_contents)}")
            except ValueError:  # not yet filled
                described.append(name)
            except InputError as error:
                raise InputError(f"{function.__qualname__} captures {name!r}. {error}") from None
        return ",".join(described)

    def _referred(self, value: Any, code: types.CodeType) -> str:
        """A global; of a module of the user's own, the attributes that the code names."""
        if not isinstance(value, types.ModuleType) or library(value.__name__):
            return self._lenient(value)
        named = sorted(name for name in _names(code) if name in vars(value))
        return f"{value.__name__}({','.join(f'{name}={self._referred(vars(value)[name], code)}' for name in named)})"

    def _code(self, code: types.CodeType) -> str:
        numbers = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        text = f"{numbers}{names}{code.co_code.hex()}{getattr(code, 'co_exceptiontable', b'').hex()}"
        return _sha(text, *(self._constant(constant) for constant in code.co_consts))

    def _constant(self, constant: Any) -> str:
        return self._code(constant) if isinstance(constant, types.CodeType) else _Describer().describe(constant)

    def _class(self, cls: type) -> str:
        name = f"{cls.__module__}.{cls.__qualname__}"
        nameless = cls.__module__ == "builtins" and getattr(builtins, cls.__name__, None) is not cls  # made by exec
        if library(cls.__module__) and not nameless:
            return f"{name} {_release(cls)}"
        parts = [name, *(self.describe(base) for base in cls.__bases__)]
        for attribute, value in sorted(vars(cls).items(), key=lambda item: item[0]):
            if not attribute.startswith("__") or isinstance(value, types.FunctionType):
                parts.append(f"{attribute}={self._lenient(value)}")
        return " ".join(parts)

    def _module(self, module: nn.Module) -> str:
        parts = []
        internal = set(vars(nn.Module()))
        hooks = [name for name in sorted(internal) if name.endswith("_hooks")]
        for path, layer in module.named_modules():
            parts.append(f"{path}:{self.describe(type(layer))}")
            parts += [
                f"{name}={self._lenient(value)}" for name, value in sorted(vars(layer).items()) if name not in internal
            ]
            for name in hooks:
                found = vars(layer).get(name)
                parts += [f"{name}={self._lenient(hook)}" for hook in (found.values() if found else ())]
            for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
                parts.append(f"{name} {tensor.requires_grad} {state_digest({'': tensor})}")
        return "\n".join(parts)


def _release(value: Any) -> str:
    return release((value.__module__ or "").partition(".")[0])


def library(module: str | None) -> bool:
    """Whether a module is Python's, crushproof's or an installed library's, so that its version stands for its code."""
    top = (module or "").partition(".")[0]
    if top == "__main__":
        return False
    if top in sys.stdlib_module_names or top in (OWN, "torch", "numpy"):
        return True
    loaded = sys.modules.get(top)
    file = getattr(loaded, "__file__", None) or next(iter(getattr(loaded, "__path__", [])), "")
    return any(part in INSTALLED for part in Path(file).parts)


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _globals(code: types.CodeType) -> set[str]:
    loads = ("LOAD_GLOBAL", "LOAD_NAME")
    return {one.argval for part in _nested(code) for one in dis.get_instructions(part) if one.opname in loads}


def _names(code: types.CodeType) -> set[str]:
    return {name for part in _nested(code) for name in part.co_names}
