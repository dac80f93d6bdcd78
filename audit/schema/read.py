"""Reads an audit.json that may come from anywhere: every fault of it is one clear sentence."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from ...targets.errors import InputError, UnsafeInput, quoted
from ...targets.serving.json_text import strict_json
from ...targets.untrusted.files import ordinary_file
from .consistent import contradiction
from .rows import SCHEMA, Audit

FILE = "audit.json"
SIZE_CAP = 128 * 2**20  # bytes; an audit of 15 candidates has about 1 MB
FAULTS_SHOWN = 3


def folder_of(path: Path) -> Path:
    """The folder of an audit, which is named by its folder or by the audit.json in it."""
    return path.parent if path.name == FILE and not os.path.isdir(path) else path


def read_audit(folder: Path) -> Audit:
    """The audit in `folder`/audit.json, validated against the schema: types and ranges as the models of the rows say
    (nothing is converted: a text is no number), names that exist, shares that are shares.

    Args:
        folder: or the audit.json in it.

    Raises:
        InputError: there is none.
        UnsafeInput: it is no valid audit; the message says what is wrong with it.
    """
    if folder.name != FILE and os.path.isfile(folder):
        raise InputError(f"{quoted(folder, 200)} is no folder. Name an audit by its folder, or by the {FILE} in it.")
    path = folder_of(folder) / FILE
    with ordinary_file(path, "the audit", SIZE_CAP).open("rb") as stream:
        raw = stream.read(SIZE_CAP)
    cure = "Run the audit again, or fetch the file again if somebody sent it."
    try:
        values = strict_json(raw)
    except RecursionError:
        raise UnsafeInput(f"{path} is nested too deeply to be an audit. {cure}") from None
    except ValueError as error:  # also what json and the hooks below raise
        raise UnsafeInput(f"{path} is not valid JSON: {error}. {cure}") from None
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        found = values.get("schema") if isinstance(values, dict) else None
        raise UnsafeInput(f"{path} does not follow the schema {SCHEMA} (it says {found!r:.60}). {cure}")
    try:
        audit = Audit.model_validate_json(raw, strict=True)
    except ValidationError as error:
        faults = [
            "".join(c if c.isprintable() else "?" for c in f"{'.'.join(map(str, item['loc']))[:120]}: {item['msg']}")
            for item in error.errors(include_url=False, include_input=False)[:FAULTS_SHOWN]
        ]
        more = error.error_count() - len(faults)
        rest = f" and {more} more" if more > 0 else ""
        raise UnsafeInput(f"{path} does not follow the schema {SCHEMA}: {'; '.join(faults)}{rest}. {cure}") from None
    if (fault := contradiction(audit)) is not None:
        raise UnsafeInput(f"{path} contradicts itself: {fault}. {cure}")
    return audit
