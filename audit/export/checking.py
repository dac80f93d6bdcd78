"""The check of a signed audit, for whoever has the signer's key or trusts a certificate: what is not as it was signed.

Light, so that it answers at once: nothing here needs torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ...targets.errors import quoted
from ...targets.serving.envelope import UnsignedError, signed_statement
from ...targets.serving.statement import ENVELOPE, Statement
from ..schema.read import folder_of
from .subjects import SUFFIX, digests, located, parts_of_results


@dataclass(frozen=True)
class Checked:
    """What a check of a signature found.

    Args:
        differs: sentences, one for everything that is not as it was signed; empty: the signature holds.
        absent: finished files that are not where the plan names them, seen from here; their stored copies were checked.
        statement: what was signed; None: no trusted signature was found.
    """

    differs: list[str]
    absent: list[str] = field(default_factory=list)
    statement: Statement | None = None


def signed(folder: Path) -> bool:
    """Whether the audit in `folder` claims to be signed; only `check_signature` tells whether it is."""
    return os.path.lexists(folder_of(folder) / ENVELOPE)


def check_signature(
    folder: Path, *, key: Path | None = None, certificate: Path | None = None, home: Path | None = None
) -> Checked:
    """Whether the audit in `folder` and its models are what somebody signed whom the verifier trusts.

    Args:
        key: the signer's public key, PEM; or
        certificate: the signer's certificate or an issuer's, PEM.
        home: the folder of the plan, if it is known: finished files are looked up there too.

    Raises:
        InputError: not one of the two is given, or it is not what it should be.
    """
    folder = folder_of(folder)
    try:
        statement = signed_statement(folder / ENVELOPE, key=key, certificate=certificate)
    except UnsignedError as error:
        return Checked([str(error)])
    return _compare(folder, statement, home)


def _compare(folder: Path, statement: Statement, home: Path | None) -> Checked:
    """The files with what a trusted statement says of them."""
    said = statement.predicate
    places: dict[str, list[Path]] = {}
    for one in said.models.values():
        if one.file is not None:
            places[one.file] = located(one, folder, home)
            if one.signature == one.file + SUFFIX:
                places[one.signature] = [path.with_name(path.name + SUFFIX) for path in places[one.file]]
    outside = set(places)
    subjects = {row.name: row.digest.sha256 for row in statement.subject}
    subjects = parts_of_results(folder, subjects) | subjects
    places |= {name: [folder / name] for name in subjects if name not in outside}
    found = digests(path for paths in places.values() for path in paths)
    differs = [
        f"{quoted(path if name in outside else name, 200)} "
        + ("was changed after it was signed." if os.path.lexists(path) else "is missing.")
        for name, digest in sorted(subjects.items())
        for path in places[name]
        if found[path] != digest
    ]
    return Checked(differs, [name for name in sorted(outside) if not places[name]], statement)
