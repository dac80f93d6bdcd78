"""Where results live: one folder per cell, written whole or not at all. The files are the truth.

    OUT/evidence/cells/<ab>/<key>/   document.json, arrays.safetensors, files/*, manifest.json with a digest of each
    OUT/evidence/temporary/          half-written cells of a run that was killed; swept by the next run
    OUT/evidence/failures/           tracebacks of cells that failed
    OUT/evidence/journal.jsonl       who started and finished which cell, and when; never read for results
    OUT/evidence/index.sqlite        times by cell, for people and charts; rebuilt from files and journal when lost
    OUT/evidence/lock                held by the one run that may work here

Evidence tells what became of each training record, so its folder is readable by its owner only (mode 0700).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..targets.errors import Incomplete, InputError
from .cells import Cell, Result, canonical_json

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DOCUMENT, ARRAYS, FILES, MANIFEST = "document.json", "arrays.safetensors", "files", "manifest.json"


class Store:
    """The results in the output folder of an audit, by key.

    Any number of processes may read and write cells; the one that runs the audit enters the store (`with store:`),
    which holds its lock.

    Args:
        folder: the audit's output folder, made when it is not there; the store is its subfolder `evidence`.

    Raises:
        InputError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.private = folder, folder / "evidence"
        self.damaged: list[str] = []  # keys whose files did not match their digests; each was thrown away
        self._intact: set[str] = set()
        self._lock: int | None = None
        self._cells, self._temporary = self.private / "cells", self.private / "temporary"
        self._journal, self._index = self.private / "journal.jsonl", self.private / "index.sqlite"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for path in (self.private, self._cells, self._temporary):
                path.mkdir(mode=0o700, exist_ok=True)
            if stat.S_IMODE(self.private.stat().st_mode) != 0o700:
                self.private.chmod(0o700)

    # -- results ------------------------------------------------------------------------------------------------------

    def has(self, key: str) -> bool:
        """Whether an intact result is stored. A damaged one is thrown away and noted in `damaged`."""
        if key in self._intact:
            return True
        try:
            return self._read(key) is not None
        except _DamagedError:
            self.damaged.append(key)
            self._discard(key)
            return False

    def get(self, key: str) -> Result:
        """The stored result, checked against its digests.

        Raises:
            KeyError: nothing is stored under this key.
            Incomplete: the files were damaged since they were written.
        """
        try:
            parts = self._read(key)
        except _DamagedError as error:
            raise Incomplete(
                f"The stored result {self.path(key)} is damaged ({error}). Run the same command again: it is computed "
                "anew. If that happens often, check the disk."
            ) from None
        if parts is None:
            raise KeyError(key)
        from safetensors.numpy import load

        files = {name.removeprefix(f"{FILES}/"): raw for name, raw in parts.items() if name.startswith(f"{FILES}/")}
        return Result(load(parts[ARRAYS]), json.loads(parts[DOCUMENT]), files)

    def put(self, key: str, result: Result) -> None:
        """Stores a result: it is all there afterwards, even if the power fails, or nothing is.

        A result that is already there stays: equal keys mean equal results.

        Raises:
            InputError, Incomplete: the folder cannot be written, or the disk is full. What was stored stays.
        """
        parts = {DOCUMENT: canonical_json(result.document), ARRAYS: _arrays(result)}
        for name, raw in result.files.items():
            if name != Path(name).name or name in ("", ".", ".."):
                raise ValueError(f"{name!r} is no plain file name")
            parts[f"{FILES}/{name}"] = raw
        parts[MANIFEST] = canonical_json({name: hashlib.sha256(raw).hexdigest() for name, raw in parts.items()})
        final = self.path(key)
        temporary = self._temporary / f"{key[:16]}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        with writing(self.folder):
            try:
                temporary.mkdir(mode=0o700)
                if result.files:
                    (temporary / FILES).mkdir(mode=0o700)
                for name, raw in parts.items():
                    _write(temporary / name, raw)
                for path in (temporary / FILES, temporary) if result.files else (temporary,):
                    _sync(path)
                if not final.parent.exists():
                    final.parent.mkdir(mode=0o700, exist_ok=True)
                    _sync(self._cells)
                if not final.exists():
                    _rename(temporary, final)
                    _sync(final.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        self._intact.add(key)

    def path(self, key: str) -> Path:
        """The folder of a cell; the files in it are read-only to everybody but `put`."""
        return self._cells / key[:2] / key

    def evidence(self, key: str) -> tuple[str, str]:
        """Where a result lies, seen from the output folder, and the sha256 (hex) of its manifest, which covers it all.

        Raises:
            KeyError: nothing is stored under this key.
        """
        manifest = self.path(key) / MANIFEST
        if not manifest.is_file():
            raise KeyError(key)
        return self.path(key).relative_to(self.folder).as_posix(), hashlib.sha256(manifest.read_bytes()).hexdigest()

    def keep_failure(self, cell: Cell, trace: str) -> None:
        """Writes the traceback of a failed cell into the folder `failures`."""
        folder = self.private / "failures"
        with writing(self.folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            (folder / f"{re.sub(r'[^A-Za-z0-9.+-]', '_', cell.name)}.txt").write_text(trace)

    def _read(self, key: str) -> dict[str, bytes] | None:
        """The bytes of every part, verified; None when there is no such cell."""
        folder = self.path(key)
        if not folder.is_dir():
            return None
        try:
            digests = json.loads((folder / MANIFEST).read_bytes())
            if any(Path(name).name not in (name, name.removeprefix(f"{FILES}/")) for name in digests):
                raise _DamagedError(f"{MANIFEST} names files of elsewhere")
            parts = {name: (folder / name).read_bytes() for name in digests}
            wrong = [name for name, raw in parts.items() if hashlib.sha256(raw).hexdigest() != digests[name]]
            if wrong or DOCUMENT not in parts or ARRAYS not in parts:
                raise _DamagedError(f"{wrong[0] if wrong else MANIFEST} is not what was written")
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise _DamagedError(f"{type(error).__name__}: {error}") from None
        self._intact.add(key)
        return parts

    def _discard(self, key: str) -> None:
        self._intact.discard(key)
        with writing(self.folder):
            _rename(self.path(key), self._temporary / f"damaged.{key[:16]}.{uuid.uuid4().hex[:8]}")

    # -- one run at a time --------------------------------------------------------------------------------------------

    def __enter__(self) -> Store:
        """Holds the folder for this run; sweeps what a killed run left, and mends journal and index.

        Raises:
            Incomplete: another run holds it; the message says which.
        """
        with writing(self.folder):
            descriptor = os.open(self.private / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Incomplete(
                    f"Another run is at work in {self.folder}: {_holder(descriptor)}. Wait until it ends and run the "
                    "same command again (it takes over what is computed), or give this run a folder of its own with "
                    "--out."
                ) from None
            with writing(self.folder):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, canonical_json(_whoami()), 0)
                os.fsync(descriptor)
                self._sweep()
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)  # and the lock with it; the file stays, because removing it would race
            self._lock = None

    def _sweep(self) -> None:
        for left in (*self._temporary.iterdir(), self.private / "failures"):
            shutil.rmtree(left, ignore_errors=True)
        if self._journal.exists() and not self._journal.read_bytes().endswith(b"\n"):
            self._append(b"\n")  # a line was cut off; the next one must not be glued to it
        self._mend_index()

    # -- journal and times --------------------------------------------------------------------------------------------

    def log(self, event: str, cell: Cell, **facts: float | str) -> None:
        """Appends a line to the journal: `started`, `finished` (with `seconds`), `failed`."""
        line = {"event": event, "key": cell.key, "name": cell.name, "phase": cell.phase, **_whoami(), **facts}
        with writing(self.folder):
            self._append(canonical_json(line) + b"\n")

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line)  # one call: lines of several processes do not mix
        finally:
            os.close(descriptor)

    def journal(self) -> list[dict[str, Any]]:
        """The lines of the journal in their order, without any that was cut off."""
        lines = []
        for raw in self._journal.read_bytes().splitlines() if self._journal.exists() else ():
            try:
                line = json.loads(raw)
            except ValueError:
                continue
            if isinstance(line, dict):
                lines.append(line)
        return lines

    def record(self, cell: Cell, seconds: float) -> None:
        """Notes how long a cell took, in CPU seconds. Only the process that holds the lock calls this."""
        row = (cell.key, cell.name, cell.phase, seconds, datetime.now(UTC).isoformat(timespec="seconds"))
        with writing(self.folder), self._database() as database:
            database.execute("INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?)", row)

    def seconds(self, keys: Iterable[str]) -> dict[str, float]:
        """CPU seconds by phase that these cells took, in whichever run they were computed."""
        wanted, total = set(keys), dict[str, float]()
        with self._database() as database:
            for key, phase, seconds in database.execute("SELECT key, phase, seconds FROM cells ORDER BY key"):
                if key in wanted:
                    total[phase] = total.get(phase, 0.0) + seconds
        return total

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._index)) as database, database:
            database.execute("PRAGMA synchronous = OFF")  # it can be rebuilt
            database.execute(
                "CREATE TABLE IF NOT EXISTS cells (key TEXT PRIMARY KEY, name TEXT, phase TEXT, seconds REAL, at TEXT)"
            )
            yield database

    def _mend_index(self) -> None:
        """Brings the index in line with the cells that are there; makes it anew when it cannot be read."""
        try:
            self._fill_index()
        except sqlite3.DatabaseError:
            self._index.unlink(missing_ok=True)
            self._fill_index()

    def _fill_index(self) -> None:
        stored = {path.name for path in self._cells.glob("??/*") if path.is_dir()}
        with self._database() as database:
            known = {key for (key,) in database.execute("SELECT key FROM cells")}
            database.executemany("DELETE FROM cells WHERE key = ?", [(key,) for key in sorted(known - stored)])
            for line in self.journal() if stored - known else ():
                key = line.get("key")
                if line.get("event") == "finished" and key in stored - known:
                    row = (key, line.get("name"), line.get("phase"), line.get("seconds", 0.0), line.get("at"))
                    database.execute("INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?)", row)
        os.chmod(self._index, 0o600)


class _DamagedError(Exception):
    pass


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


def _arrays(result: Result) -> bytes:
    import numpy as np
    from safetensors.numpy import save

    return save({name: np.asarray(array, order="C") for name, array in sorted(result.arrays.items())})


def _write(path: Path, raw: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as stream:
        stream.write(raw)
        stream.flush()
        os.fsync(descriptor)


def _sync(folder: Path) -> None:
    """Makes the entries of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(source: Path, target: Path) -> None:
    """Moves a folder; when another process was first, or swept it, that is as good."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):
            raise


def _whoami() -> dict[str, Any]:
    at = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "at": at}


def _holder(descriptor: int) -> str:
    """Who wrote the lock file, as far as it can be read."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}, since {holder['at']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has not yet said who it is"
