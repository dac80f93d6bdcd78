"""A technique (recipe, attack, defense) is data plus one method; a registry finds them by their kind."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import InputError, nearest, nearest_hint, user_error


class Technique(BaseModel):
    """Frozen, documented, comparable: the same object is the YAML schema, the Python API and the cache key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
        self._complete = False
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
        known = self._folded.setdefault(kind.lower().replace("_", "-"), cls)
        if _place(known) != _place(cls) and not _same_source(known, cls):
            raise InputError(
                f"Two techniques are of the kind {kind!r} ({self.noun}): {_place(known)} and {_place(cls)}. One would "
                "silently take the other's place: rename the kind of one of them, or uninstall its package."
            )
        self._classes[kind] = self._folded[kind.lower().replace("_", "-")] = cls
        return cls

    def has(self, cls: type[Any]) -> bool:
        """Whether this very class (or the one that its reloaded module makes) is what its kind stands for."""
        known = self.kinds().get(cls.model_fields["kind"].default)
        return known is not None and (_place(known) == _place(cls) or _same_source(known, cls))

    def kinds(self) -> Mapping[str, type[T]]:
        """Every technique of this sort, by kind, in alphabetical order."""
        if not self._complete:
            package = importlib.import_module(self._package)
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                if not module.name.rpartition(".")[2].startswith("_"):  # scripts for a process of their own
                    importlib.import_module(module.name)
            for entry in entry_points(group=self.group):
                self.register(self.loaded(entry))
            self._complete = True
        return dict(sorted(self._classes.items()))

    def loaded(self, entry: EntryPoint) -> type[T]:
        """The class that another package brings.

        Raises:
            InputError: it cannot be imported, or is no class of this sort.
        """
        try:
            found = entry.load()
        except (Exception, SystemExit) as error:  # another package's code
            raise InputError(
                f"The {self.noun} {entry.value}, which the package {entry.dist and entry.dist.name} brings, cannot be "
                f"imported: {user_error(error)}. Mend or uninstall that package."
            ) from None
        if not (isinstance(found, type) and issubclass(found, self._base) and "kind" in found.model_fields):
            raise InputError(
                f"The entry point {entry.name} = {entry.value} of the package {entry.dist and entry.dist.name} stands "
                f"in the group {self.group} and is no class of that sort ({_place(self._base)}). Mend or uninstall "
                "that package."
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
            raise InputError(f"There is no {self.noun} of kind {kind!r}.{hint} Known: {', '.join(self.kinds())}.")
        try:
            return self.kinds()[kind].model_validate(fields)
        except ValidationError as error:
            raise InputError(explain(error, f"{self.noun} {kind!r}", self.kinds()[kind])) from None


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
    parts = [f"{'.'.join(map(str, steps)) or 'value'}: {message}" for steps, message in faults(error, model)]
    return f"In {where}: " + "; ".join(parts) + "."
