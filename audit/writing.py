"""Writing to the disk: whole or not at all, and refusals turned into errors that say what to do."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..targets.errors import Incomplete, InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write(path: Path, text: str) -> None:
    """Writes a text file whole or not at all: under another name first, flushed to the disk, then renamed.

    Raises:
        OSError: the folder cannot be written.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_new(path: Path, raw: bytes) -> None:
    """Writes a private file (mode 0600) that is not there yet, flushed to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as stream:
        stream.write(raw)
        stream.flush()
        os.fsync(descriptor)


def sync(folder: Path) -> None:
    """Makes the entries of a folder durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_verdict(out: Path, audited: Path, text: str) -> None:
    """Writes `text` as audit.json into the folder `out`: a verdict of `crushproof gate` on what `audited` holds.

    Raises:
        InputError: it is that folder or another audit's, or holds a file that is no such verdict, which would be lost.
        OSError: it cannot be written.
    """
    own, path = audited.parent if audited.is_file() else audited, out / "audit.json"
    if (out / "evidence").exists() or (out.exists() and out.samefile(own)):
        raise InputError(f"--out {out} is the folder of an audit, whose audit.json would be lost. Name another one.")
    if path.exists():
        known = path.read_bytes()
        if known != text.encode() and b'"policy_from": "gate"' not in known:
            raise InputError(f"{path} is no verdict of crushproof gate and would be lost. Name another folder.")
    out.mkdir(parents=True, exist_ok=True)
    write(path, text)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write below `folder` into errors that say what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise Incomplete(f"{folder} cannot be written: {error}. What is computed is kept.") from None
    except OSError as error:
        if error.errno in FULL:
            free = shutil.disk_usage(existing(folder)).free // 1_000_000
            raise Incomplete(
                f"The disk that holds {folder} is full ({free} MB free). Make room and run the same command again: "
                "what is computed is kept, and the rest follows."
            ) from None
        raise InputError(
            f"{error.filename or folder} cannot be written: {error.strerror}. Name a folder that you may write to with "
            "--out."
        ) from None


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return folder if folder.exists() or folder == folder.parent else existing(folder.parent)
