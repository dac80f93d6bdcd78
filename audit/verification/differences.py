"""Where two audits differ, in words a person can look up in audit.json."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..schema import wording
from ..schema.rows import Audit

NAMED_BY = ("id", "name", "metric", "candidate", "what")  # how the rows of a list are told apart
SHOWN = 5
EQUAL = 1e-9  # of numbers, relative: other processors add up in another order
MISSING = object()


def differences(read: Audit, made: Audit) -> list[str]:
    """A phrase for each of the first places where `read` says something else than `made`, what it should be."""
    theirs, ours = (one.model_dump(mode="json", by_alias=True) for one in (read, made))
    found: list[str] = []
    for where, says, should in _differing(theirs, ours, ""):
        if len(found) == SHOWN:
            return [*found, "more"]
        at = _apart(says, should)
        found.append(f"{where} ({_short(says, at)} instead of {_short(should, at)})")
    return found


def _differing(says: Any, should: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(says, Mapping) and isinstance(should, Mapping):
        for key in dict.fromkeys([*should, *says]):
            inner = f"{where}.{key}" if where else str(key)
            yield from _differing(says.get(key, MISSING), should.get(key, MISSING), inner)
    elif isinstance(says, list) and isinstance(should, list):
        yield from _differing_rows(says, should, where)
    elif not _same(says, should):
        yield where, says, should


def _differing_rows(says: list[Any], should: list[Any], where: str) -> Iterator[tuple[str, Any, Any]]:
    for position in range(max(len(says), len(should))):
        ours = should[position] if position < len(should) else MISSING
        theirs = says[position] if position < len(says) else MISSING
        row = ours if isinstance(ours, Mapping) else theirs
        name = next((row[key] for key in NAMED_BY if row.get(key)), position) if isinstance(row, Mapping) else position
        yield from _differing(theirs, ours, f"{where}[{wording.label(str(name), 80)}]")


def _same(says: Any, should: Any) -> bool:
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (says, should))
    if numbers:
        return math.isclose(says, should, rel_tol=EQUAL, abs_tol=EQUAL)
    return type(says) is type(should) and bool(says == should)


def _apart(says: Any, should: Any) -> int:
    """Where two texts that begin alike for long are cut, so that their difference is among what is shown."""
    if not (isinstance(says, str) and isinstance(should, str)):
        return 0
    alike = next(
        (at for at, (one, other) in enumerate(zip(says, should, strict=False)) if one != other),
        min(len(says), len(should)),
    )
    return alike - 20 if alike > 40 else 0


def _short(value: Any, at: int = 0) -> str:
    if value is MISSING:
        return "nothing"
    return wording.label(("…" if at else "") + value[at:] if isinstance(value, str) else repr(value), 60)
