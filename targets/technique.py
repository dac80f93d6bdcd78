"""A technique (recipe, attack, defense) is data plus one method; a registry finds them by their kind."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import InputError


class Technique(BaseModel):
    """Frozen, documented, comparable: the same object is the YAML schema, the Python API and the cache key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    summary: ClassVar[str] = ""  # one sentence for the catalogue; the class docstring's first line when empty


T = TypeVar("T", bound=Technique)


class Registry(Generic[T]):
    """The techniques of one sort, by kind: those in our own folder, and those other packages bring by entry point.

    Nothing is imported before the first look-up. A class joins by the decorator `@registry.register`.
    """

    def __init__(self, noun: str, package: str, group: str) -> None:
        self.noun, self._package, self._group = noun, package, group
        self._classes: dict[str, type[T]] = {}
        self._complete = False

    def register(self, cls: type[T]) -> type[T]:
        kind = cls.model_fields["kind"].default
        if self._classes.get(kind, cls).__qualname__ != cls.__qualname__:
            raise ValueError(f"two techniques of kind {kind!r}: {self._classes[kind]} and {cls}")
        self._classes[kind] = cls
        return cls

    def kinds(self) -> Mapping[str, type[T]]:
        """Every technique of this sort, by kind, in alphabetical order."""
        if not self._complete:
            package = importlib.import_module(self._package)
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                importlib.import_module(module.name)
            for entry in entry_points(group=self._group):
                self.register(entry.load())
            self._complete = True
        return dict(sorted(self._classes.items()))

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
            near = difflib.get_close_matches(str(kind), self.kinds(), 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"There is no {self.noun} of kind {kind!r}.{hint} Known: {', '.join(self.kinds())}.")
        try:
            return self.kinds()[kind].model_validate(fields)
        except ValidationError as error:
            raise InputError(explain(error, f"{self.noun} {kind!r}", self.kinds()[kind])) from None


def explain(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> str:
    """One paragraph for a pydantic error: the field, what is wrong with it and, for an unknown key, the nearest one."""
    parts = []
    for item in error.errors(include_url=False, include_input=False):
        path = ".".join(str(step) for step in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = list(model.model_fields) if model is not None and len(item["loc"]) == 1 else []
            near = difflib.get_close_matches(path, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(known)})" if known else ""
            message = f"is not a key{hint}"
        parts.append(f"{path or 'value'}: {message}")
    return f"In {where}: " + "; ".join(parts) + "."
