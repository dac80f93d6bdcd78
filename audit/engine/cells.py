"""The unit of work: what a cell is called, what decides its result, and what a result is made of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

ENGINE_VERSION = "4"  # raise it when the same cell would compute something else: stored results are then not reused
DOCUMENT, ARRAYS, FILES, MANIFEST = "document.json", "arrays.safetensors", "files", "manifest.json"


@dataclass(frozen=True)
class Cell:
    """One piece of work.

    Args:
        name: for people, unique in one audit: `candidate/int8`.
        key: from `cell_key`; two cells of one key are the same work and are computed once.
        needs: names of the cells whose results it reads; they stand before it in the list of cells.
        phase: what its time is booked under: `shadows`, an attack's kind ...
        parts: under which key its finished parts are kept (`targets.steps.kept`), in place of its own: cells that do
            more and less of the same work share them.
        words: what it is for, for people who do not know its name; empty: the name says it.
        weight: expected effort, above 0: about the CPU seconds it takes, as modelled by whoever adds the cell. It
            orders the work and estimates the time left, nothing else.
        alone: it measures times or memory of this machine: computed by the process that runs the audit, last, while
            nothing else is. No other cell needs it.
    """

    name: str
    key: str
    needs: tuple[str, ...] = ()
    phase: str = ""
    weight: float = 1.0
    parts: str = ""
    words: str = ""
    alone: bool = False

    @property
    def title(self) -> str:
        """What it is for, or else its name."""
        return self.words or self.name


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


class DamagedError(Exception):
    """Parts of a result are not what was written."""


def pack(result: Result) -> dict[str, bytes]:
    """A result as named bytes, equal for equal results: a document, its arrays, its files, and a digest of each.

    Raises:
        ValueError: a file's name is no plain one.
    """
    import numpy as np
    from safetensors.numpy import save

    arrays = save({name: np.asarray(array, order="C") for name, array in sorted(result.arrays.items())})
    parts = {DOCUMENT: canonical_json(result.document), ARRAYS: arrays}
    for name, raw in result.files.items():
        if name != Path(name).name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is no plain file name")
        parts[f"{FILES}/{name}"] = raw
    parts[MANIFEST] = canonical_json({name: hashlib.sha256(raw).hexdigest() for name, raw in parts.items()})
    return parts


def digests_in(manifest: bytes) -> dict[str, str]:
    """What a manifest lists: the sha256 (hex) of each part, by its name.

    Raises:
        DamagedError: it is no manifest, or names files of elsewhere.
    """
    try:
        digests = json.loads(manifest)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{type(error).__name__}: {error}") from None
    if not isinstance(digests, dict):
        raise DamagedError(f"{MANIFEST} is no mapping")
    bases = {name: Path(name).name for name in digests}
    if any(base in ("", "..") or name not in (base, f"{FILES}/{base}") for name, base in bases.items()):
        raise DamagedError(f"{MANIFEST} names files of elsewhere")
    return digests


def check(parts: dict[str, bytes]) -> None:
    """Compares parts with the digests in their manifest.

    Raises:
        DamagedError: something is missing, too much, or not what was written.
    """
    digests = digests_in(parts.get(MANIFEST, b""))
    wrong = [name for name in digests if hashlib.sha256(parts.get(name, b"")).hexdigest() != digests[name]]
    if wrong or not {DOCUMENT, ARRAYS} <= parts.keys() or parts.keys() != {*digests, MANIFEST}:
        raise DamagedError(f"{wrong[0] if wrong else MANIFEST} is not what was written")


def unpack(parts: dict[str, bytes]) -> Result:
    """The result that `pack` gave these parts for; they are known to be intact."""
    from safetensors.numpy import load

    files = {name.removeprefix(f"{FILES}/"): raw for name, raw in parts.items() if name.startswith(f"{FILES}/")}
    return Result(load(parts[ARRAYS]), json.loads(parts[DOCUMENT]), files)
