"""The files that a signature covers: where they lie, their digests, and whether they belong to one audit."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...targets.errors import Incomplete, InputError, UnsafeInput, quoted
from ...targets.serving.statement import SignedModel
from ...targets.untrusted.files import ordinary_file
from ...targets.untrusted.other_formats import unpacked
from ..engine.cells import FILES, MANIFEST, DamagedError, digests_in
from ..schema.rows import Audit

AUDIT, REPORT, RESOLVED, CELLS = "audit.json", "report.html", "resolved-plan.yaml", "evidence/cells"
SUFFIX = ".sig"  # of a model file's own signature
FILE_BYTES = 2 * 2**30  # of a model, at most
LARGEST = 16 * 2**30  # bytes of a file
AGAIN = "Run the audit again (what is intact is kept), and sign then."


@dataclass(frozen=True)
class Results:
    """What lies in the evidence, intact.

    Args:
        manifests: by name, seen from the audit's folder: sha256 (hex).
        models: by sha256 (hex): the name of a stored model file.
    """

    manifests: dict[str, str]
    models: dict[str, str]


@dataclass(frozen=True)
class Located:
    """An audited model.

    Args:
        path: the file that may be shipped: the finished one, or else the stored one.
        absent: the plan's name of a finished file that is not there.
    """

    name: str
    model: SignedModel
    path: Path
    absent: str | None


@contextlib.contextmanager
def nobody_at_work(folder: Path) -> Iterator[None]:
    """Holds the lock of the audit's evidence. Raises Incomplete when a run holds it, OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # nobody is waited for, if it is a pipe
    with os.fdopen(os.open(folder / "evidence" / "lock", flags, 0o600), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Incomplete(f"An audit is running in {folder}. Wait until it ends, and sign then.") from None
        yield


def digests(paths: Iterable[Path]) -> dict[Path, str | None]:
    """sha256 (hex) of each file, read piece by piece on all cores; None: it cannot be read."""
    unique = list(dict.fromkeys(paths))
    with ThreadPoolExecutor() as pool:
        return dict(zip(unique, pool.map(_digest, unique), strict=True))


def digests_of(paths: Mapping[str, Path]) -> dict[str, str]:
    """The digests of files by their names as subjects. Raises InputError: one cannot be read."""
    found = {name: _digest(path) for name, path in paths.items()}
    for name, digest in found.items():
        if digest is None:
            raise InputError(f"{paths[name]} is missing or cannot be read. `crushproof report` draws a report anew.")
    return {name: digest for name, digest in found.items() if digest is not None}


def of_the_folder(folder: Path) -> dict[str, str]:
    """The digests of audit.json, the report and the resolved plan. Raises InputError: one cannot be read."""
    names = [AUDIT, REPORT, *([RESOLVED] if (folder / RESOLVED).is_file() else [])]
    return digests_of({name: folder / name for name in names})


def results_in(folder: Path) -> Results:
    """The results in the evidence.

    Raises:
        UnsafeInput: one of them is not what its manifest says.
    """
    manifests: dict[str, str] = {}
    parts: dict[str, str] = {}
    for path in sorted((folder / CELLS).glob(f"??/*/{MANIFEST}")):
        name = path.relative_to(folder).as_posix()
        read = _manifest(path)
        if read is None:
            raise UnsafeInput(f"{name} is damaged. {AGAIN}")
        manifests[name] = read[0]
        parts |= _beside(name, read[1])
    found = digests(folder / name for name in parts)
    for name, digest in parts.items():
        if found[folder / name] != digest:
            raise UnsafeInput(f"{name} is not what its manifest says: it was changed or is damaged. {AGAIN}")
    where = {name: PurePosixPath(name) for name in sorted(parts)}
    models = {parts[name]: name for name, at in where.items() if at.parent.name == FILES and at.stem == "model"}
    return Results(manifests, models)


def parts_of_results(folder: Path, subjects: Mapping[str, str]) -> dict[str, str]:
    """What the manifests among the subjects list, those manifests alone that have the digest they should have."""
    parts: dict[str, str] = {}
    for name, digest in subjects.items():
        if is_manifest(name) and (read := _manifest(folder / name)) is not None and read[0] == digest:
            parts |= _beside(name, read[1])
    return parts


def is_manifest(name: str) -> bool:
    return name.startswith(f"{CELLS}/") and name.endswith(f"/{MANIFEST}")


def audited_models(
    audit: Audit, folder: Path, stored: Mapping[str, str], planned: Mapping[str, str], home: Path
) -> list[Located]:
    """The audited models.

    Args:
        stored: `Results.models`.
        planned: finished files as the plan names them, by candidate; home: that their paths start from.

    Raises:
        InputError: a finished file is not the one that was audited.
        UnsafeInput: the evidence does not hold a model.
    """
    found = []
    for row in audit.candidates:
        if row.digest not in stored:
            raise UnsafeInput(f"The evidence holds no model with the digest that audit.json gives {row.name}. {AGAIN}")
        kept, file, path = stored[row.digest], planned.get(row.name), None
        if file is not None and os.path.lexists(home / file):
            path = home / file
            if _unpacked_digest(path) != row.digest:
                raise InputError(f"{quoted(path, 200)} is not the file that was audited as {row.name}. {AGAIN}")
            file = f"{row.name}/{path.name}" if Path(file).is_absolute() else file  # which would name users
        name = kept if path is None or file is None else file
        model = SignedModel(
            verdict=row.verdict,
            sha256=row.digest,
            stored=kept,
            file=None if path is None else file,
            seen_from_here=None if path is None else _seen_from(folder, path),
            signature=name + SUFFIX if row.name in audit.release else None,
        )
        found.append(Located(row.name, model, path or folder / kept, absent=file if path is None else None))
    return found


def located(model: SignedModel, folder: Path, home: Path | None) -> list[Path]:
    """A finished file wherever it is: where it lay, seen from the audit's folder, and as the plan names it.

    Args:
        home: the folder of the plan; None: not known, and tried from here where it lies nowhere else.
    """
    lay = [] if model.seen_from_here is None else [os.path.normpath(folder.resolve() / model.seen_from_here)]
    named = [os.path.join(home or "", model.file or "")]
    seen = [name for name in lay if os.path.lexists(name)]
    seen += [name for name in (named if home is not None or not seen else []) if os.path.lexists(name)]
    return list({os.path.realpath(name): Path(name) for name in seen}.values())


def _seen_from(folder: Path, path: Path) -> str | None:
    """A path relative to the audit's folder, where they have more in common than a disk: it would name users else."""
    here, there = folder.resolve(), path.parent.resolve() / path.name
    if len(Path(os.path.commonpath([here, there])).parts) < 2:
        return None
    return Path(os.path.relpath(there, here)).as_posix()


def _digest(path: Path) -> str | None:
    try:
        with ordinary_file(path, "the file", LARGEST).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (InputError, OSError):
        return None


def _unpacked_digest(path: Path) -> str | None:
    """As `_digest`, of what a gzip file holds."""
    with ordinary_file(path, "the model", FILE_BYTES).open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return hashlib.sha256(unpacked(path.read_bytes(), path.name, FILE_BYTES)).hexdigest() if packed else _digest(path)


def _manifest(path: Path) -> tuple[str, dict[str, str]] | None:
    """The digest of a manifest, and what it lists; None: it is none."""
    try:
        raw = ordinary_file(path, "the manifest", 2**20).read_bytes()
        return hashlib.sha256(raw).hexdigest(), digests_in(raw)
    except (InputError, OSError, DamagedError):
        return None


def _beside(manifest: str, listed: Mapping[str, str]) -> dict[str, str]:
    return {manifest.removesuffix(MANIFEST) + name: digest for name, digest in listed.items()}
