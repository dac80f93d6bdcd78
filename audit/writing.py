"""Writing to the disk: whole or not at all, and refusals turned into errors that say what to do."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..targets.errors import Incomplete, InputError
from ..targets.temporary import FULL

MARKER = "made-by-crushproof"  # the first file in a folder of ours: without it nothing there is written or deleted
# In the head of a report and of a resolved plan: what may be written anew.
GENERATOR, WRITTEN = b'<meta name="generator" content="crushproof">', b"# Written by crushproof "


def write(path: Path, text: str) -> None:
    """Writes a text file whole or not at all: under another name first, flushed to the disk, then renamed.

    Raises:
        OSError: the folder cannot be written.
    """
    write_together({path: text}, path.parent)


def write_together(texts: Mapping[Path, str], half: Path) -> None:
    """`write` for several files: none takes its place before all are on the disk.

    Args:
        half: the folder, on the same disk, for what is half written; a kill may leave files there.

    Raises:
        OSError: a folder cannot be written. The files are as they were.
    """
    ready: dict[Path, str] = {}
    try:
        for path, text in texts.items():
            handle, ready[path] = tempfile.mkstemp(dir=half, prefix=f".{path.name}.")
            with os.fdopen(handle, "wb") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
            os.chmod(ready[path], 0o644)
        for path, temporary in ready.items():
            os.replace(temporary, path)
    except BaseException:
        for temporary in ready.values():
            Path(temporary).unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> None:
    """A folder for its owner alone, where there is none. Raises InputError for a link, which leads out of ours."""
    if folder.is_symlink():
        raise InputError(f"{folder} is a link to another place. Remove the link, or name another folder with --out.")
    folder.mkdir(mode=0o700, exist_ok=True)


def claim(folder: Path) -> None:
    """Makes a folder for what we write and delete; one that is there must be ours (hold `MARKER`), or be empty.

    Raises:
        InputError: it is another's, or a link.
        OSError: it cannot be made or read.
    """
    make_folder(folder)
    entries = {entry.name: entry for entry in os.scandir(folder)}
    if not entries:
        with suppress(FileExistsError):  # another process of ours was quicker
            write_new(folder / MARKER, b"")
    elif MARKER not in entries or not entries[MARKER].is_file(follow_symlinks=False):
        raise InputError(
            f"{folder} was not made by crushproof, which would write and delete in it. Name another folder with --out."
        )
    if stat.S_IMODE(folder.stat().st_mode) != 0o700:
        folder.chmod(0o700)


def check_ours(path: Path) -> None:
    """Refuses, by InputError, to overwrite what is no report or resolved plan of ours."""
    if not os.path.lexists(path):
        return
    with suppress(OSError), open(path, "rb", opener=_at_once) as file:
        head = file.read(4096) or b""  # of a pipe that says nothing yet: None
        if GENERATOR in head or head.startswith(WRITTEN):
            return
    raise InputError(f"{path} was not written by crushproof and would be lost. Name another folder.")


def _at_once(path: str, flags: int) -> int:
    """Opens a file without waiting for whoever would write into it, if it is a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


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
        InputError: it is that folder or another audit's, or holds an audit.json and no `MARKER`: another's, which would
            be lost.
        OSError: it cannot be written.
    """
    check_ours(out / "report.html")
    path = out / "audit.json"
    if (out / "evidence").exists() or (out.exists() and out.samefile(audited)):
        raise InputError(f"--out {out} is the folder of an audit, whose audit.json would be lost. Name another one.")
    marked = os.path.lexists(marker := out / MARKER)
    if os.path.lexists(path) and not (marked and stat.S_ISREG(marker.lstat().st_mode)):
        raise InputError(f"{path} is no verdict of crushproof gate and would be lost. Name another folder.")
    out.mkdir(parents=True, exist_ok=True)
    if not marked:
        write_new(marker, b"")
    write(path, text)


@contextmanager
def writing(folder: Path, another: str = "Name a folder that you may write to with --out.") -> Iterator[None]:
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
        raise InputError(f"{error.filename or folder} cannot be written: {error.strerror}. {another}") from None


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return folder if folder.exists() or folder == folder.parent else existing(folder.parent)
