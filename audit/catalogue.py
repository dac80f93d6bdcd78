"""Every recipe, attack, defense and runtime with its parameters, from the schemas themselves."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, JsonValue
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

PLUG_IN = "plug-in"  # the sort of what other packages bring


@dataclass(frozen=True)
class Parameter:
    """One field of a technique; `default` is None and `required` true when it must be given."""

    name: str
    type: str
    bounds: str
    default: Any
    required: bool
    description: str


@dataclass(frozen=True)
class Figure:
    """What an attack measures and a policy may limit."""

    name: str
    unit: str
    better: str
    meaning: str


@dataclass(frozen=True)
class Entry:
    sort: str  # recipe, attack, part of an attack, defense, runtime, or plug-in (of another package, faulty or not)
    kind: str
    summary: str
    parameters: list[Parameter]
    figures: list[Figure]  # of an attack


def catalogue(word: str | None = None) -> list[Entry]:
    """Recipes, attacks, parts of attacks, defenses, runtimes: each sort by kind, other packages' included.

    Then what other packages bring, by entry point: as which kind, or why it is left out.

    Args:
        word: a kind, or one of the sorts; None: everything.

    Raises:
        InputError: nothing is called by that word; the message names the nearest one.
    """
    from ..attacks.attack import ATTACKS
    from ..compression.recipe import RECIPES
    from ..defenses.defense import DEFENSES
    from ..targets.errors import InputError, nearest_hint
    from ..targets.runtimes.runtime import RUNTIMES
    from ..targets.technique import plug_ins

    entries = [
        _entry(sort, kind, technique)
        for sort, kinds in (
            ("recipe", RECIPES.kinds()),
            ("attack", ATTACKS.kinds()),
            *(
                (f"{kind} part", attack.parts_known.kinds())
                for kind, attack in ATTACKS.kinds().items()
                if attack.parts_known is not None
            ),
            ("defense", DEFENSES.kinds()),
            ("runtime", RUNTIMES.kinds()),
        )
        for kind, technique in kinds.items()
    ]
    for one in plug_ins():
        told = one.wrong or f"{one.value} of the package {one.package}, a technique of the sort {one.noun}."
        entries.append(Entry(PLUG_IN, one.kind or one.name, told, [], []))
    if word is None:
        return entries
    asked = word.lower().replace("_", "-")
    sorts = list(dict.fromkeys([*(one.sort for one in entries), PLUG_IN]))
    chosen = [one for one in entries if asked in (one.sort, one.kind.lower().replace("_", "-"))]
    if not chosen and asked not in sorts:
        hint = nearest_hint(asked, [*sorts, *(one.kind for one in entries)])
        raise InputError(f"The catalogue has no kind and no sort {word[:80]!r}.{hint} Sorts: {', '.join(sorts)}.")
    return chosen


def _entry(sort: str, kind: str, technique: type[Any]) -> Entry:
    try:
        return Entry(sort, kind, summary_of(technique), parameters_of(technique), figures_of(technique))
    except Exception as error:  # another package's code: a default that is computed and fails
        return Entry(sort, kind, f"Its parameters cannot be listed: {type(error).__name__}: {error}"[:300], [], [])


def summary_of(technique: type[Any]) -> str:
    """The first line of its docstring."""
    return (inspect.getdoc(technique) or "").partition("\n")[0]


def figures_of(technique: type[Any]) -> list[Figure]:
    """An attack's metrics, the headline first; nothing for other techniques."""
    return [Figure(one.name, one.unit, one.better, one.meaning) for one in getattr(technique, "metrics", ())]


def parameters_of(model: type[BaseModel]) -> list[Parameter]:
    """The fields of a model but for `kind`, in their order."""
    return [_parameter(name, field) for name, field in model.model_fields.items() if name != "kind"]


def _parameter(name: str, field: FieldInfo) -> Parameter:
    default: Any = None if field.default is PydanticUndefined else field.default
    if field.default_factory is not None:
        default = field.get_default(call_default_factory=True, validated_data={})
    return Parameter(
        name=name,
        type=type_words(field.annotation),
        bounds=bounds_of(field.metadata),
        default=_plain(default),
        required=field.is_required(),
        description=field.description or "",
    )


def type_words(annotation: Any) -> str:
    """`integer`, `number`, `linf | l2`, `list of number` ...: a type as a plan's author writes it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(type_words(one) for one in arguments))
    if origin in (list, tuple, set, frozenset):
        inner = dict.fromkeys(type_words(one) for one in arguments if one is not Ellipsis)
        return f"list of {' or '.join(inner)}" if inner else "list"
    if origin is dict:
        inside = type_words(arguments[1])
        return "mapping" if inside == "any" else f"mapping to {inside}"
    if hasattr(annotation, "__metadata__"):
        given = [one for field in annotation.__metadata__ for one in getattr(field, "metadata", [field])]
        return " ".join(filter(None, [type_words(arguments[0]), bounds_of(given)]))
    if annotation is Any or annotation is JsonValue:
        return "any"
    names: dict[Any, str] = {int: "integer", float: "number", str: "text", bool: "true | false", type(None): "none"}
    if annotation in names:
        return names[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " | ".join(str(member.value) for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        named = kind is not None and isinstance(kind.default, str)  # a base class leaves its kind open
        return f"{kind.default} {{...}}" if kind is not None and named else f"{annotation.__name__.lower()} {{...}}"
    return getattr(annotation, "__name__", str(annotation))


def bounds_of(metadata: Iterable[Any]) -> str:
    """`> 0, <= 1`, from the constraints of a type or a field."""
    words = []
    for one in metadata:
        for kind, sign, attribute in ((Gt, ">", "gt"), (Ge, ">=", "ge"), (Lt, "<", "lt"), (Le, "<=", "le")):
            if isinstance(one, kind):
                words.append(f"{sign} {getattr(one, attribute):g}")
    return ", ".join(words)


def _plain(value: Any) -> Any:
    """A default as JSON can say it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Enum):
        return value.value
    return value if value is None or isinstance(value, str | int | float | bool | dict) else str(value)
