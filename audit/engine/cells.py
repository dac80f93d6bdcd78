"""The unit of work: what a cell is called, what decides its result, and what a result is made of."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...targets.serving.json_text import canonical_json

if TYPE_CHECKING:
    import numpy as np

    from ...targets.form import Form

ENGINE_VERSION = "14"  # raise it when the same cell would compute something else: stored results are then not reused
DOCUMENT, ARRAYS, FILES, MANIFEST = "document.json", "arrays.safetensors", "files", "manifest.json"
LARGEST = {MANIFEST: 2**20, DOCUMENT: 2**26, ARRAYS: 2**33}  # bytes of each part
LARGEST_FILE, MOST_FILES = 2**31, 32
PLAIN = re.compile(rf"{FILES}/[A-Za-z0-9_][A-Za-z0-9_.-]{{0,99}}")


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
        form: what its result must look like; one that is stored and does not is damaged.
        once: computed again it would give another result than the one that those of other cells rest on.
    """

    name: str
    key: str
    needs: tuple[str, ...] = ()
    phase: str = ""
    weight: float = 1.0
    parts: str = ""
    words: str = ""
    alone: bool = False
    once: bool = False
    form: Form | None = field(default=None, compare=False, repr=False)

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


def cell_key(*parts: Any) -> str:
    """sha256 (hex) of everything that decides a result: JSON values, and the version of this engine."""
    return hashlib.sha256(canonical_json([ENGINE_VERSION, *parts])).hexdigest()


class DamagedError(Exception):
    """Parts of a result are not what was written, or what could have been written; the message is fit to be shown."""

    def __init__(self, what: str) -> None:
        super().__init__("".join(one if one.isprintable() else "?" for one in what[:300]))


def pack(result: Result) -> dict[str, bytes]:
    """A result as named bytes, equal for equal results: a document, its arrays, its files, and a digest of each.

    Raises:
        ValueError: a file's name is no plain one, or a part is too large to be read back.
    """
    import numpy as np
    from safetensors.numpy import save

    arrays = save({name: np.asarray(array, order="C") for name, array in sorted(result.arrays.items())})
    parts = {DOCUMENT: canonical_json(result.document), ARRAYS: arrays}
    for name, raw in result.files.items():
        if not PLAIN.fullmatch(f"{FILES}/{name}"):
            raise ValueError(f"{name!r} is no plain file name")
        parts[f"{FILES}/{name}"] = raw
    large = [name for name, raw in parts.items() if len(raw) > LARGEST.get(name, LARGEST_FILE)]
    if large or len(result.files) > MOST_FILES:
        raise ValueError(f"{large[0] if large else FILES} is too large to be stored")
    parts[MANIFEST] = canonical_json({name: hashlib.sha256(raw).hexdigest() for name, raw in parts.items()})
    return parts


def digests_in(manifest: bytes) -> dict[str, str]:
    """What a manifest lists: the sha256 (hex) of each part, by its name.

    Raises:
        DamagedError: it is no manifest, or names files of elsewhere or too many.
    """
    digests = _json(MANIFEST, manifest)
    files = digests.keys() - {DOCUMENT, ARRAYS}
    if len(files) > MOST_FILES or not all(PLAIN.fullmatch(name) for name in files):
        raise DamagedError(f"{MANIFEST} names files of elsewhere, or too many")
    return digests


def _json(name: str, raw: bytes) -> dict[str, Any]:
    """A JSON object as `canonical_json` writes it: no key twice, no NaN, no text beyond Unicode, no spaces."""
    try:
        value = json.loads(raw)
        spelt = len(canonical_json(value))  # sorted by key, but for keys that were numbers
        if b"\\ud" in raw:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{name}: {type(error).__name__}: {str(error)[:200]}") from None
    if not isinstance(value, dict) or spelt != len(raw):
        raise DamagedError(f"{name} is no JSON object as this program writes it")
    return value


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
    """The result that `pack` gave these parts for; their digests were checked.

    Raises:
        DamagedError: `pack` writes no such parts.
    """
    import numpy as np
    from safetensors.numpy import load

    document = _json(DOCUMENT, parts[DOCUMENT])
    files = {name.removeprefix(f"{FILES}/"): raw for name, raw in parts.items() if name.startswith(f"{FILES}/")}
    try:
        arrays = load(parts[ARRAYS])
        odd = [one for one, a in arrays.items() if a.dtype == np.bool_ and a.size and a.view(np.uint8).max() > 1]
    except Exception as error:  # whatever that library makes of a header that lies
        raise DamagedError(f"{ARRAYS}: {type(error).__name__}: {str(error)[:200]}") from None
    if odd:
        raise DamagedError(f"{ARRAYS}: {odd[0][:80]!r} is no array of truth values")
    return Result(arrays, document, files)


def check_form(form: Form | None, parts: dict[str, bytes]) -> None:
    """Compares the parts of a result with its form.

    Raises:
        DamagedError: it is none that was computed.
    """
    from ...targets.form import MisfitError

    result = unpack(parts)
    if form is None:
        return
    try:
        form.check(parts[DOCUMENT], result.document, result.arrays, result.files)
    except MisfitError as error:
        raise DamagedError(str(error)) from error
