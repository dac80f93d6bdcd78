"""What every section of a plan or policy is: frozen settings whose errors say what to write instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from ...targets.errors import nearest
from ...targets.technique import Technique, refuse_booleans, techniques_in


def fault(message: str, *at: str | int) -> PydanticCustomError:
    """A validation error in our own words; `at` leads from the model that raises it to the value that is wrong."""
    return PydanticCustomError("plan", "{message}", {"message": message, "at": at})


TIME = re.compile(r"(?!0+(\.0*)?\s*[a-z])\d{1,6}(\.\d+)?\s*(s|min|h)")


def time_or_none(value: Any) -> str | None:
    """A time by the clock, as a plan writes it."""
    if value is None or (isinstance(value, str) and TIME.fullmatch(value)):
        return value
    raise fault("must be a number and s, min or h, for example 15 min")


def seconds_of(time: str) -> float:
    number, unit = re.split(r"\s*(?=[a-z])", time, maxsplit=1)
    return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]


class Settings(BaseModel):
    """A frozen section of a plan or policy; a key it does not know is refused with the nearest one it does."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, raw: Any) -> Any:
        if isinstance(raw, str | int | float | list):
            raise fault(f"must be a mapping of keys and values; known: {', '.join(cls.model_fields)}")
        if isinstance(raw, Mapping):
            for key in raw:
                if key not in cls.model_fields:
                    raise fault(did_you_mean("is not a key", str(key), list(cls.model_fields)), str(key))
        refuse_booleans(cls, raw)
        return raw


def technique_like(value: Any, *at: str | int) -> Any:
    """Checks the outer shape of a recipe, attack, defense or runtime; the techniques themselves check the rest."""
    if isinstance(value, Technique):
        for one in techniques_in(value):
            cls, kind = type(one), getattr(one, "kind", None)
            if kind is not None and not _registered(cls):
                raise fault(
                    f"{cls.__module__}.{cls.__qualname__} is not what {kind!r} stands for in a plan, so another "
                    "technique would run: register the class, with a kind of its own",
                    *at,
                )
        return value.model_dump(mode="json")
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Mapping):
        if not isinstance(value.get("kind"), str):
            raise fault("needs a kind, for example kind: quantize", *at)
        return dict(value)
    raise fault("must be a word or a mapping with a kind", *at)


def _registered(cls: type[Technique]) -> bool:
    from ...attacks.attack import ATTACKS
    from ...compression.recipe import RECIPES
    from ...defenses.defense import DEFENSES
    from ...targets.runtimes.runtime import RUNTIMES

    parts = {attack.parts_known for attack in ATTACKS.kinds().values()} - {None}
    return any(registry.has(cls) for registry in (ATTACKS, RECIPES, DEFENSES, RUNTIMES, *parts) if registry is not None)


def did_you_mean(message: str, word: str, known: list[str]) -> str:
    """The message with the nearest known word, or with all of them when none is near."""
    near = nearest(word, known)
    return f"{message}; did you mean {near!r}?" if near else f"{message}; known: {', '.join(known)}"
