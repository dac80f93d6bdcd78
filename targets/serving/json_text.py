"""JSON in one spelling when it is written, and read strictly when it comes from anywhere."""

from __future__ import annotations

import json
import math
from typing import Any

DIGITS_CAP = 19  # a seed may have as many


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: NaN or infinity, which JSON cannot say.
        TypeError: something that is no JSON value.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def strict_json(raw: bytes) -> Any:
    """A JSON value from UTF-8: no key twice, no number that is not finite, no integer of more than 18 digits.

    Raises:
        ValueError: it is something else.
        RecursionError: it is nested too deeply.
    """
    return json.loads(
        raw.decode("utf-8"),
        parse_constant=_no_constant,
        parse_int=_integer,
        parse_float=_finite,
        object_pairs_hook=_unique,
    )


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number JSON knows")


def _integer(text: str) -> int:
    if len(text) > DIGITS_CAP:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r:.60} is given twice")
    return values
