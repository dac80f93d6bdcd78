"""A technique (recipe, attack, defense) is data plus one method; a registry finds them by their kind."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from .errors import InputError, nearest, nearest_hint, user_error


class Technique(BaseModel):
    """Frozen, documented, comparable: the same object is the YAML schema, the Python API and the cache key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_booleans(cls, raw: Any) -> Any:
        refuse_booleans(cls, raw)
        return raw

    @classmethod
    def defect(cls) -> str | None:
        """What is wrong with a class of another package, as the end of a sentence about it; None: nothing is seen."""
        return None


def refuse_booleans(model: type[BaseModel], raw: Any) -> None:
    """Raises PydanticCustomError where true or false stands for a number, which pydantic would take for 1 or 0."""
    for name in sorted(_numbers(model) & raw.keys()) if isinstance(raw, Mapping) else ():
        if isinstance(raw[name], bool) and get_origin(model.model_fields[name].annotation) in (list, tuple):
            continue  # a boolean for a list is told that it is no list
        if (at := _boolean(raw[name])) is not None:
            told = {"message": "must be a number; true and false are none", "at": (name, *at)}
            raise PydanticCustomError("plan", "{message}", told)


@cache
def _numbers(model: type[BaseModel]) -> frozenset[str]:
    """The fields that hold numbers, be it in lists or mappings, and neither booleans nor other models."""
    kinds = {name: set(_kinds(field.annotation)) for name, field in model.model_fields.items()}
    return frozenset(name for name, found in kinds.items() if found & {int, float} and not found & {bool, object})


def _kinds(annotation: Any) -> Iterator[type]:
    """Of the values that an annotation allows; object: any, or another model."""
    if get_origin(annotation) is Literal:
        yield from map(type, get_args(annotation))
    elif get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])  # what follows only limits it
    elif parts := get_args(annotation):
        for part in parts:
            yield from _kinds(part)
    elif annotation is not Ellipsis:
        plain = isinstance(annotation, type) and annotation is not Any and not issubclass(annotation, BaseModel)
        yield annotation if plain else object


def _boolean(value: Any) -> tuple[int | str, ...] | None:
    """Where the first true or false stands in a value; None: there is none."""
    if isinstance(value, bool):
        return ()
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, one in parts:
        if (at := _boolean(one)) is not None:
            return (key if isinstance(key, int) else str(key), *at)
    return None


def techniques_in(value: Any) -> Iterator[Technique]:
    """A technique and all that its fields hold, however deep: the recipes of a chain, the parts of an attack."""
    if isinstance(value, Technique):
        yield value
    if isinstance(value, BaseModel):
        value = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        value = list(value.values())
    for one in value if isinstance(value, list | tuple | set | frozenset) else ():
        yield from techniques_in(one)


T = TypeVar("T", bound=Technique)

KIND = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")  # it becomes a part of findings' ids, and of file names and links


REGISTRIES: dict[str, Registry[Any]] = {}  # those there are, by group of entry points


@dataclass(frozen=True)
class PlugIn:
    """An entry point by which another package brings a technique.

    Args:
        noun: of the sort: recipe, attack ...
        name, value: of the entry point: `name = value`.
        kind: None: the class is not known.
        wrong: why it is left out, in a sentence; None: it is there.
    """

    group: str
    noun: str
    name: str
    value: str
    package: str
    kind: str | None
    wrong: str | None


def plug_ins() -> list[PlugIn]:
    """What other packages bring to the registries there are, by package, then those whose group nobody reads."""
    read = [one for registry in list(REGISTRIES.values()) for one in registry.brought()]
    found = {(e.group, e.name, e.value): e for d in distributions() for e in d.entry_points}
    strays = [
        PlugIn(
            entry.group,
            "plug-in",
            entry.name,
            entry.value,
            _package(entry),
            None,
            f"The entry point {entry.name} = {entry.value} of the package {_package(entry)} is not used: nobody reads "
            f"the group {entry.group}.{nearest_hint(entry.group, REGISTRIES)}",
        )
        for _, entry in sorted(found.items())
        if entry.group.startswith("crushproof.") and entry.group not in REGISTRIES
    ]
    return [*sorted(read, key=lambda one: one.package), *strays]


class Registry(Generic[T]):
    """The techniques of one sort, by kind: those in our own folder, and those other packages bring by entry point.

    Nothing is imported before the first look-up. A class joins by the decorator `@registry.register`.

    Args:
        noun: what one of them is called.
        package: whose modules hold our own.
        group: of entry points, by which other packages bring theirs.
        base: the class they derive from.
    """

    def __init__(self, noun: str, package: str, group: str, base: type[Technique]) -> None:
        self.noun, self.group, self._package, self._base = noun, group, package, base
        self._classes: dict[str, type[T]] = {}
        self._folded: dict[str, type[T]] = {}  # by kind without case, `_` as `-`: what people would mix up
        self._brought: list[PlugIn] = []
        self._imported = self._complete = False  # our own, and with other packages'
        REGISTRIES[group] = self

    def register(self, cls: type[T]) -> type[T]:
        """Takes a class in under its kind. The same class again, as a reloaded module makes it, takes its place.

        Raises:
            InputError: another class has this kind or one that looks like it, or the kind is no plain word.
        """
        kind = cls.model_fields["kind"].default
        if not isinstance(kind, str) or not KIND.fullmatch(kind):
            raise InputError(
                f"{_place(cls)} has the kind {kind!r}: the kind of a technique is made of letters, digits and . _ - "
                "and starts with a letter. Rename it there."
            )
        known = self._folded.setdefault(_folded(kind), cls)
        if _place(known) != _place(cls) and not _same_source(known, cls):
            raise InputError(self._two(kind, _place(known), _place(cls)))
        self._classes[kind] = self._folded[_folded(kind)] = cls
        return cls

    def has(self, cls: type[Any]) -> bool:
        """Whether this very class (or the one that its reloaded module makes) is what its kind stands for."""
        known = self.kinds().get(cls.model_fields["kind"].default)
        return known is not None and (_place(known) == _place(cls) or _same_source(known, cls))

    def kinds(self) -> Mapping[str, type[T]]:
        """Every technique of this sort, by kind, in alphabetical order.

        What another package brings and is no such technique, or is of a kind that is taken, is left out: see `brought`.
        """
        if not self._imported:
            for module in pkgutil.walk_packages(importlib.import_module(self._package).__path__, self._package + "."):
                if not module.name.rpartition(".")[2].startswith("_"):  # scripts for a process of their own
                    importlib.import_module(module.name)
            self._imported = True
        if not self._complete:
            self._brought, self._complete = self._taken_in(list(entry_points(group=self.group))), True
        return dict(sorted(self._classes.items()))

    def brought(self) -> list[PlugIn]:
        """What other packages bring, the faulty ones included."""
        self.kinds()
        return list(self._brought)

    def left_out(self, kind: str) -> str:
        """Why another package's technique that was probably meant by an unknown `kind` is left out, or nothing."""
        faulty = [one for one in self.brought() if one.wrong]
        same = [one for one in faulty if _folded(kind) in {_folded(one.kind or ""), _folded(one.name)}]
        if not same and nearest(kind, list(self.kinds())):
            return ""  # a slip of the pen
        return "".join(f" {one.wrong}" for one in (same or faulty)[:1])

    def _taken_in(self, entries: Sequence[EntryPoint]) -> list[PlugIn]:
        """Registers what is sound. Of several packages' techniques of one kind none is: which was meant is unknown."""
        found: dict[EntryPoint, type[T] | InputError] = {}
        for entry in entries:
            try:
                found[entry] = self.loaded(entry)
            except InputError as error:
                found[entry] = error
        places: dict[str, set[str]] = {}
        for cls in found.values():
            if isinstance(cls, type):
                places.setdefault(_folded(_kind(cls)), set()).add(_place(cls))
        brought = []
        for entry, cls in found.items():
            wrong, kind = None, None
            try:
                if isinstance(cls, InputError):
                    raise cls
                kind = _kind(cls)
                others = sorted(places[_folded(kind)] - {_place(cls)})
                if others and _folded(kind) not in self._folded:
                    raise InputError(self._two(kind, _place(cls), others[0]))
                self.register(cls)
            except InputError as error:
                wrong = str(error)
            brought.append(PlugIn(self.group, self.noun, entry.name, entry.value, _package(entry), kind, wrong))
        return sorted(brought, key=lambda one: (one.package, one.name, one.value))

    def _two(self, kind: str, one: str, other: str) -> str:
        return (
            f"Two techniques are of the kind {kind!r} ({self.noun}): {one} and {other}. One would silently take the "
            "other's place: rename the kind of one of them, or uninstall its package."
        )

    def loaded(self, entry: EntryPoint) -> type[T]:
        """The class that another package brings.

        Raises:
            InputError: it cannot be imported, is no class of this sort, or lacks something that every one has.
        """
        try:
            found = entry.load()
        except (Exception, SystemExit) as error:  # another package's code
            raise InputError(
                f"The {self.noun} {entry.value}, which the package {_package(entry)} brings, cannot be imported: "
                f"{user_error(error)}. Mend or uninstall that package."
            ) from None
        if not (isinstance(found, type) and issubclass(found, self._base) and "kind" in found.model_fields):
            raise InputError(
                f"The entry point {entry.name} = {entry.value} of the package {_package(entry)} stands in the group "
                f"{self.group} and is no class of that sort ({_place(self._base)}). Mend or uninstall that package."
            )
        unset = sorted(name for name in found.__class_vars__ if not hasattr(found, name))
        missing = [*sorted(getattr(found, "__abstractmethods__", ())), *unset]
        defect = f"does not define {', '.join(missing)}" if missing else found.defect()
        if defect is not None:
            raise InputError(
                f"The {self.noun} {entry.value}, which the package {_package(entry)} brings, {defect}. Mend or "
                "uninstall that package."
            )
        return found  # type: ignore[return-value]  # T is what `base` was given for, which types cannot say

    def parse(self, raw: Any) -> T:
        """A technique from a mapping with `kind` and its fields, from a bare kind (all defaults), or as it is.

        Raises:
            InputError: unknown kind (with the nearest known one) or a field the technique refuses.
        """
        if isinstance(raw, Technique):
            return raw  # type: ignore[return-value]  # a Registry[T] is only ever handed its own sort
        fields = {"kind": raw} if isinstance(raw, str) else dict(raw) if isinstance(raw, Mapping) else {}
        kind = fields.get("kind")
        if not isinstance(kind, str) or kind not in self.kinds():
            hint = nearest_hint(str(kind), self.kinds())
            why = self.left_out(str(kind))
            raise InputError(
                f"There is no {self.noun} of kind {kind!r}.{why or hint} Known: {', '.join(self.kinds())}."
            )
        try:
            return self.kinds()[kind].model_validate(fields)
        except ValidationError as error:
            raise InputError(explain(error, f"{self.noun} {kind!r}", self.kinds()[kind])) from None


def _folded(kind: str) -> str:
    return kind.lower().replace("_", "-")


def _kind(cls: type[BaseModel]) -> str:
    return str(cls.model_fields["kind"].default)


def _package(entry: EntryPoint) -> str:
    return "(unknown)" if entry.dist is None else str(entry.dist.name)


def _place(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _same_source(one: type[Any], other: type[Any]) -> bool:
    """Whether two classes are one class of one file that was loaded under two names."""
    files = [getattr(sys.modules.get(cls.__module__), "__file__", None) for cls in (one, other)]
    return one.__qualname__ == other.__qualname__ and files[0] is not None and files[0] == files[1]


def faults(error: ValidationError, model: type[BaseModel] | None = None) -> Iterator[tuple[tuple[int | str, ...], str]]:
    """What a pydantic error says: where each wrong value stands, and what is wrong with it, in our own words."""
    for item in error.errors(include_url=False):
        steps, message = item["loc"], item["msg"].removeprefix("Value error, ") + _percent(item)
        if item["type"] == "missing":
            message = "is missing"
        elif item["type"] in ("model_type", "model_attributes_type", "dict_type"):
            message = "must be a mapping of keys and values"
        elif item["type"] in ("tuple_type", "list_type"):
            message = "must be a list in brackets, for example [0, 1]"
        elif item["type"] == "extra_forbidden":
            known = list(model.model_fields) if model is not None and len(steps) == 1 else []
            near = nearest(str(steps[-1]), known)
            hint = f" (did you mean {near!r}?)" if near else f" (known: {', '.join(known)})" if known else ""
            message = f"is not a key{hint}"
        elif item["type"].startswith("union_tag"):
            steps, message = (*steps, "kind"), "must be one of the known kinds"
        yield (*steps, *item.get("ctx", {}).get("at", ())), message


def _percent(item: Mapping[str, Any]) -> str:
    """What to write where a share in [0, 1] was given as a percentage; nothing elsewhere."""
    value, most = item["input"], item.get("ctx", {}).get("le", item.get("ctx", {}).get("lt"))
    if isinstance(value, str) and (share := re.fullmatch(r"\s*(\d{1,3}(?:\.\d*)?)\s*%\s*", value)):
        return f": write {float(share[1]) / 100:g} for {value.strip()}"
    if isinstance(value, int | float) and most == 1 and 1 < value <= 100:
        return f": it is a share, so {value:g} % is written {value / 100:g}"
    return ""


def explain(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> str:
    """One paragraph for a pydantic error: the field, what is wrong with it and, for an unknown key, the nearest one."""
    parts = [": ".join(filter(None, (".".join(map(str, steps)), message))) for steps, message in faults(error, model)]
    return f"In {where}: {'; '.join(parts)}.".replace("?.", "?")
