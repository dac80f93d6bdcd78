"""The files that a signature covers: where they lie, their digests, and whether they belong to one audit."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...targets.errors import Incomplete, InputError, UnsafeInput, quoted
from ...targets.untrusted.files import ordinary_file
from ..engine.cells import FILES, MANIFEST, DamagedError, digests_in
from ..plan.plan import DENSE
from ..schema.rows import Audit
from .in_toto import SignedModel

AUDIT, REPORT, RESOLVED, CELLS = "audit.json", "report.html", "resolved-plan.yaml", "evidence/cells"
SUFFIX = ".sig"  # of a model file's own signature
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


def folder_of(path: Path) -> Path:
    """The folder of an audit, which may be named by its audit.json."""
    return path.parent if path.is_file() else path


@contextlib.contextmanager
def nobody_at_work(folder: Path) -> Iterator[None]:
    """Holds the lock of the audit's evidence. Raises Incomplete when a run holds it, OSError."""
    with (folder / "evidence" / "lock").open("ab") as lock:
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


def of_the_folder(folder: Path) -> dict[str, str]:
    """The digests of audit.json, the report, the resolved plan, and what lies beside the results in the evidence.

    Raises:
        InputError: one of them cannot be read.
    """
    names = [AUDIT, REPORT, *([RESOLVED] if (folder / RESOLVED).is_file() else [])]
    names += sorted(path.relative_to(folder).as_posix() for path in (folder / "evidence").glob("*.json"))
    found = {name: _digest(folder / name) for name in names}
    for name, digest in found.items():
        if digest is None:
            raise InputError(f"{folder / name} is missing or cannot be read. `crushproof report` draws a report anew.")
    return {name: digest for name, digest in found.items() if digest is not None}


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


def check_findings(audit: Audit, manifests: Mapping[str, str]) -> None:
    """That the evidence is what audit.json names. Raises UnsafeInput."""
    for one in audit.findings:
        if one.evidence is not None and manifests.get(f"{one.evidence}/{MANIFEST}") != one.evidence_digest:
            raise UnsafeInput(
                f"The evidence of {one.id} is not what audit.json names: one of the two was changed. {AGAIN}"
            )


def audited_models(
    audit: Audit, folder: Path, stored: Mapping[str, str]
) -> tuple[dict[str, SignedModel], dict[str, Path]]:
    """The audited models by candidate, and where finished files are, by the name that the plan gives them.

    Args:
        stored: `Results.models`.

    Raises:
        InputError: a finished file is not the one that was audited.
        UnsafeInput: the evidence does not hold a model.
    """
    planned, models, outside = _planned_files(audit.plan), {}, {}
    at = plan_folder(audit)
    for row in audit.candidates:
        if row.digest not in stored:
            raise UnsafeInput(f"The evidence holds no model with the digest that audit.json gives {row.name}. {AGAIN}")
        file, seen = planned.get(row.name), None
        places = [] if file is None else [Path(at, file), folder.resolve().parent / at / file]
        if file is not None and (path := next(filter(os.path.lexists, places), None)) is not None:
            if _digest(path) != row.digest:
                raise InputError(f"{quoted(path, 200)} is not the file that was audited as {row.name}. {AGAIN}")
            outside[file] = path
            seen = _seen_from(folder, path)
        shipped = None if row.name not in audit.release else file if file in outside else stored[row.digest]
        models[row.name] = SignedModel(
            verdict=row.verdict,
            sha256=row.digest,
            stored=stored[row.digest],
            file=file,
            seen_from_here=seen,
            signature=None if shipped is None else shipped + SUFFIX,
        )
    return models, outside


def plan_folder(audit: Audit) -> str:
    """The folder of the plan, seen from where the audit was started, as the findings' commands tell it."""
    for one in audit.findings:
        try:
            words = shlex.split(one.reproduce)
        except ValueError:
            continue
        if words[:2] == ["crushproof", "audit"] and len(words) > 2 and not words[2].startswith("-"):
            above = PurePosixPath(words[2]).parent
            return "." if above.is_absolute() else above.as_posix()
    return "."


def located(model: SignedModel, folder: Path, plan: str) -> list[Path]:
    """A finished file wherever it is: seen from the audit's folder, and from here.

    Args:
        plan: the plan's folder, seen from where the audit was started.
    """
    names = [os.path.normpath(folder / model.seen_from_here)] if model.seen_from_here else []
    names.append(os.path.join(plan, model.file or ""))
    return list({os.path.realpath(name): Path(name) for name in names if os.path.lexists(name)}.values())


def _seen_from(folder: Path, path: Path) -> str | None:
    """A path relative to the audit's folder, where they have more in common than a disk: it would name users else."""
    here, there = folder.resolve(), path.absolute()
    if len(Path(os.path.commonpath([here, there])).parts) < 2:
        return None
    return Path(os.path.relpath(there, here)).as_posix()


def _planned_files(plan: Mapping[str, Any]) -> dict[str, str]:
    """Finished files as the plan names them, by their candidate."""
    listed = plan.get("candidates")
    rows = {DENSE: plan.get("model"), **(listed if isinstance(listed, dict) else {})}
    files = {name: row.get("file") for name, row in rows.items() if isinstance(row, dict)}
    return {name: file for name, file in files.items() if isinstance(file, str) and file}


def _digest(path: Path) -> str | None:
    try:
        with ordinary_file(path, "the file", LARGEST).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (InputError, OSError):
        return None


def _manifest(path: Path) -> tuple[str, dict[str, str]] | None:
    """The digest of a manifest, and what it lists; None: it is none."""
    try:
        raw = ordinary_file(path, "the manifest", 2**20).read_bytes()
        return hashlib.sha256(raw).hexdigest(), digests_in(raw)
    except (InputError, OSError, DamagedError):
        return None


def _beside(manifest: str, listed: Mapping[str, str]) -> dict[str, str]:
    return {manifest.removesuffix(MANIFEST) + name: digest for name, digest in listed.items()}
