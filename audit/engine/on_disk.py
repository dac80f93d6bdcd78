"""Packed results as folders: written whole or not at all, and read back only when they are what was written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import uuid
from pathlib import Path

from ..writing import sync, write_new
from .cells import ARRAYS, FILES, LARGEST, LARGEST_FILE, MANIFEST, DamagedError, check, digests_in

LARGE = 2**24  # bytes of arrays, from which their header is looked at before they are read


def write_folder(final: Path, parts: dict[str, bytes], temporary: Path) -> None:
    """Writes what `pack` gave: it is all there afterwards, even if the power fails, or nothing is.

    A folder that is already there stays: equal names mean equal results.

    Args:
        final: missing folders above it, up to two, are made, readable by their owner only.
        temporary: a folder on the same disk, for what is half written.

    Raises:
        OSError: the disk says no.
    """
    half = temporary / f"{final.name[:16]}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    files = any(name.startswith(f"{FILES}/") for name in parts)
    try:
        half.mkdir(mode=0o700)
        if files:
            (half / FILES).mkdir(mode=0o700)
        for name, raw in parts.items():
            write_new(half / name, raw)
        for path in (half / FILES, half) if files else (half,):
            sync(path)
        for above in (final.parent.parent, final.parent):
            if not above.exists():
                above.mkdir(mode=0o700, exist_ok=True)
                sync(above.parent)
        if not final.exists():
            move(half, final)
            sync(final.parent)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def read_folder(folder: Path) -> dict[str, bytes] | None:
    """The bytes of every part, verified; None when there is no such folder.

    Raises:
        DamagedError: something is missing or not what was written, or lies elsewhere.
    """
    if _not_ours(folder) is not None:
        raise DamagedError(f"{folder.name[:16]} is no folder")
    if not folder.exists():
        return None
    try:
        manifest = _read(folder / MANIFEST, LARGEST[MANIFEST])
        names = digests_in(manifest)
        if (folder / FILES).is_symlink():
            raise DamagedError(f"{FILES} is a link")
        parts = {name: _read(folder / name, LARGEST.get(name, LARGEST_FILE)) for name in names}
    except OSError as error:
        raise DamagedError(f"{type(error).__name__}: {error}") from None
    parts[MANIFEST] = manifest
    check(parts)
    return parts


def _read(path: Path, most: int) -> bytes:
    """The content of an ordinary file of at most so many bytes; a link is not followed and nobody is waited for."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > most:
            raise DamagedError(f"{path.name} is no file, or too large")
        if path.name == ARRAYS and found.st_size > LARGE:
            _check_length(stream.read(8 + LARGE), found.st_size)
            stream.seek(0)
        return stream.read(most)


def _check_length(start: bytes, size: int) -> None:
    """Whether the header of large arrays tells of just so many bytes: a hole on the disk costs nobody anything."""
    length = int.from_bytes(start[:8], "little")
    try:
        header = json.loads(start[8 : 8 + length])
        end = max(one["data_offsets"][1] for name, one in header.items() if name != "__metadata__")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise DamagedError(f"{ARRAYS} has no header") from None
    if end != size - 8 - length:
        raise DamagedError(f"{ARRAYS} is longer or shorter than its arrays")


def _not_ours(folder: Path) -> Path | None:
    """The folder, or the one above it, if something else stands in its place: a link, a file."""
    return next(
        (one for one in (folder.parent, folder) if one.is_symlink() or (one.exists() and not one.is_dir())), None
    )


def discard(folder: Path, temporary: Path) -> None:
    """Takes a folder away, or what stands in its place, into `temporary`. Raises OSError."""
    move(_not_ours(folder) or folder, temporary / f"damaged.{folder.name[:16]}.{uuid.uuid4().hex[:8]}")


def remove(path: Path) -> None:
    """Takes away whatever is there, of a link only the link; what cannot be removed stays."""
    try:
        path.unlink()
    except OSError:
        shutil.rmtree(path, ignore_errors=True)


def only_a_file(path: Path, most: int = 2**40) -> None:
    """Takes away a link, a pipe or a file that is larger; a folder, which is not ours, is for writing to refuse."""
    ours = path.is_dir() or (path.is_file() and path.stat().st_size <= most)
    if path.is_symlink() or (path.exists() and not ours):
        path.unlink()


def move(source: Path, target: Path) -> None:
    """Moves a folder; when another process was first, or swept it, that is as good."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):
            raise
