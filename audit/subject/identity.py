"""What decides a result besides data and seed: code and values, as digests that are equal exactly when those are.

For a plan, the text of every file that its functions come from. For a call from Python, where code may have no file,
the compiled code that is in memory, with everything it refers to. No digest depends on an address in memory.
"""

from __future__ import annotations

import builtins
import dis
import functools
import hashlib
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...targets.errors import InputError
from ...targets.technique import Technique, techniques_in
from .sources import INSTALLED, OWN, release, sha, source_digest

NUMBERS = (bool, int, float, complex, str, bytes, range, type(None), type(...))
SIMPLE = (*NUMBERS, torch.dtype, torch.device, np.dtype, PurePath)


# -- techniques -------------------------------------------------------------------------------------------------------


def technique_identity(technique: Technique | None) -> Any:
    """What decides a technique's work, as a JSON value: its settings, and the code of every class in it.

    Crushproof's own classes are left out: its version is in every key.
    """
    if technique is None:
        return None
    classes = [type(one) for one in techniques_in(technique)]
    return [technique.model_dump(mode="json"), *class_identity(*classes)]


def class_identity(*classes: type) -> list[str]:
    """What decides the work of some classes, their bases included; crushproof's own are left out."""
    foreign = {cls for one in classes for cls in one.__mro__ if not _ours(cls)}
    return sorted(_class_identity(cls) for cls in foreign)


def _ours(cls: type) -> bool:
    top = cls.__module__.partition(".")[0]
    return top in (OWN, "pydantic") or (top in sys.stdlib_module_names and top != "__main__")


def _class_identity(cls: type) -> str:
    """The version and the sources of the package a class is from, and its methods as they are in memory.

    The latter because a file that was edited since it was imported is not what runs.
    """
    module, top = sys.modules.get(cls.__module__), sys.modules.get(cls.__module__.partition(".")[0])
    file = getattr(module, "__file__", None)
    if top is None or file is None or not Path(file).is_file():  # a notebook, or what exec made
        return code_digest(cls)
    where, name = Path(file).absolute(), top.__name__
    folder = where  # a file for a folder: nothing lies in it, so that the package is found as Python finds it
    if not hasattr(top, "__path__") and not any(part in INSTALLED for part in where.parts):
        name, folder = where.stem, where.parent  # a single file, whatever it was loaded as, and its neighbours
    sources = source_digest([name], folder)
    return sha(cls.__qualname__, release(name), sources, *map(_Describer().method, vars(cls).values()))


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
        return sha(_Describer().describe(value))
    except RecursionError:
        raise InputError(
            "A value that the model or its training refers to is nested too deeply to be identified. Pass something "
            "simpler."
        ) from None


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
            text = f"{kind}:{sha(self._inside(value))}"
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
        return sha(text, *(self._constant(constant) for constant in code.co_consts))

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
