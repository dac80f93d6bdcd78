"""Packed results as folders: written whole or not at all, and read back only when they are what was written."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from pathlib import Path

from ..writing import sync, write_new
from .cells import FILES, MANIFEST, DamagedError, check, digests_in


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
        DamagedError: something is missing or not what was written.
    """
    if not folder.is_dir():
        return None
    try:
        manifest = (folder / MANIFEST).read_bytes()
        parts = {name: (folder / name).read_bytes() for name in digests_in(manifest)}
    except OSError as error:
        raise DamagedError(f"{type(error).__name__}: {error}") from None
    parts[MANIFEST] = manifest
    check(parts)
    return parts


def discard(folder: Path, temporary: Path) -> None:
    """Takes a folder away, into `temporary`. Raises OSError."""
    move(folder, temporary / f"damaged.{folder.name[:16]}.{uuid.uuid4().hex[:8]}")


def move(source: Path, target: Path) -> None:
    """Moves a folder; when another process was first, or swept it, that is as good."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):
            raise
