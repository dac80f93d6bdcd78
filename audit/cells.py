"""The unit of work: what a cell is called, what decides its result, and what a result is made of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ENGINE_VERSION = "2"  # raise it when the same cell would compute something else: stored results are then not reused


@dataclass(frozen=True)
class Cell:
    """One piece of work.

    Args:
        name: for people, unique in one audit: `candidate/int8`.
        key: from `cell_key`; two cells of one key are the same work and are computed once.
        needs: names of the cells whose results it reads; they stand before it in the list of cells.
        phase: what its time is booked under: `shadows`, an attack's kind ...
        weight: expected effort, relative to other cells; orders the work and estimates the time left, nothing else.
    """

    name: str
    key: str
    needs: tuple[str, ...] = ()
    phase: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Result:
    """What a cell gives: named arrays (bool, integer or float), a JSON document, and files by plain file name."""

    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: NaN or infinity, which JSON cannot say.
        TypeError: something that is no JSON value.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def cell_key(*parts: Any) -> str:
    """sha256 (hex) of everything that decides a result: JSON values, and the version of this engine."""
    return hashlib.sha256(canonical_json([ENGINE_VERSION, *parts])).hexdigest()
