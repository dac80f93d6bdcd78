"""Where results live: one folder per cell, written whole or not at all. The files are the truth.

    OUT/evidence/cells/<ab>/<key>/   document.json, arrays.safetensors, files/*, manifest.json with a digest of each
    OUT/evidence/parts/<key>/*/      the same of finished parts of cells that are not finished (targets/steps.py)
    OUT/evidence/temporary/          half-written cells and reports of a run that was killed; swept by the next run
    OUT/evidence/failures/           tracebacks of cells that failed
    OUT/evidence/journal.jsonl       and index.sqlite: see ledger.py; never read for results
    OUT/evidence/lock                held by the one run that may work here

Evidence tells what became of each training record, so its folder is readable by its owner only (mode 0700).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ...targets.errors import Incomplete
from ...targets.form import Form, MisfitError
from ...targets.recent import Recent
from ...targets.serving.json_text import canonical_json
from ...targets.steps import Arrays, Check, unchecked
from ..writing import claim, make_folder, writing
from .cells import MANIFEST, Cell, DamagedError, Result, check, check_form, pack, unpack
from .ledger import Ledger, whoami
from .on_disk import discard, only_a_file, read_folder, remove, write_folder

REMEMBERED = 128 * 2**20  # bytes of results that a process keeps at hand: what many cells read is read and checked once


class Store(Ledger):
    """The results in the output folder of an audit, by key, and the ledger of who computed them.

    Any number of processes may read and write cells; the one that runs the audit enters the store (`with store:`),
    which holds its lock.

    Args:
        folder: the audit's output folder, made when it is not there; the store is its subfolder `evidence`.

    Raises:
        InputError: the folder cannot be made or written, or its subfolder is not ours.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, folder / "evidence")
        self.damaged: dict[str, str] = {}  # by key, what is wrong with a result; each was thrown away
        self._intact: set[str] = set()
        self._forms: dict[str, Form] = {}
        self._lock: int | None = None
        self._recent: Recent[dict[str, bytes]] = Recent(REMEMBERED)
        self._cells, self.half = self.private / "cells", self.private / "temporary"
        self._parts = self.private / "parts"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            claim(self.private)
            for path in (self._cells, self._parts, self.half):
                make_folder(path)

    # -- results ------------------------------------------------------------------------------------------------------

    def expect(self, forms: Mapping[str, Form]) -> None:
        """What the results under these keys look like, from now on: any other is damaged."""
        for key in forms.keys() - self._forms.keys():
            self._forms[key] = forms[key]
            self._intact.discard(key)
            self._recent.drop(key)

    def has(self, key: str) -> bool:
        """Whether an intact result is stored. A damaged one is thrown away and noted in `damaged`."""
        if key in self._intact:
            return True
        try:
            return self._read(key) is not None
        except DamagedError as error:
            self.damaged[key] = str(error)
            self._discard(key)
            return False

    def get(self, key: str) -> Result:
        """The stored result, checked against its digests and its form.

        Raises:
            KeyError: nothing is stored under this key.
            Incomplete: the files were damaged since they were written.
        """
        return unpack(self.parts(key))

    def put(self, key: str, result: Result) -> None:
        """Stores a result: it is all there afterwards, even if the power fails, or nothing is.

        A result that is already there stays: equal keys mean equal results.

        Raises:
            InputError, Incomplete: the folder cannot be written, or the disk is full. What was stored stays.
            DamagedError: it is not of the form expected.
        """
        parts = pack(result)
        check_form(self._forms.get(key), parts)
        self._put(key, parts)

    def parts(self, key: str) -> dict[str, bytes]:
        """The stored result as `pack` made it, to be sent to another machine. Raises as `get`."""
        try:
            parts = self._read(key)
        except DamagedError as error:
            raise Incomplete(
                f"The stored result {self.path(key)} is damaged ({error}). Run the same command again: it is computed "
                "anew. If that happens often, check the disk."
            ) from None
        if parts is None:
            raise KeyError(key)
        return parts

    def receive(self, key: str, parts: dict[str, bytes]) -> None:
        """Stores what another machine packed.

        Raises:
            DamagedError: it is not what was packed there; nothing is stored.
            InputError, Incomplete: as `put`.
        """
        check(parts)
        check_form(self._forms.get(key), parts)
        self._put(key, parts)

    def _put(self, key: str, parts: dict[str, bytes]) -> None:
        if self.has(key) and self.path(key).is_dir():  # it stays, if it is intact
            return
        with writing(self.folder):
            write_folder(self.path(key), parts, self.half)
        self._remember(key, parts)

    def _remember(self, key: str, parts: dict[str, bytes]) -> None:
        self._intact.add(key)
        self._recent.put(key, parts, sum(map(len, parts.values())))

    def path(self, key: str) -> Path:
        """The folder of a cell; the files in it are read-only to everybody but `put`."""
        return cell_folder(self.folder, key)

    def replace(self, key: str, result: Result) -> None:
        """As `put`, in place of what is stored under this key. For what no finding rests on."""
        self.drop(key)
        self.put(key, result)

    def drop(self, key: str) -> None:
        """Forgets what is stored under this key, if anything is."""
        self._discard(key)

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
            (folder / f"{re.sub(r'[^A-Za-z0-9.+-]', '_', cell.name)}.txt").write_text(
                trace, "utf-8", "backslashreplace"
            )

    def _read(self, key: str) -> dict[str, bytes] | None:
        """The bytes of every part, verified; None when there is no such cell."""
        parts = self._recent.get(key)
        if parts is None and (parts := read_folder(self.path(key))) is not None:
            if key not in self._intact:
                check_form(self._forms.get(key), parts)
            self._remember(key, parts)
        return parts

    def _discard(self, key: str) -> None:
        self._intact.discard(key)
        self._recent.drop(key)
        with writing(self.folder):
            discard(self.path(key), self.half)

    # -- parts of cells that are not finished -------------------------------------------------------------------------

    def part(self, owner: str, name: str, check: Check = unchecked) -> Arrays | None:
        """The part of this name that was kept under the key `owner`; None when there is none.

        Args:
            check: raises MisfitError where it is another one.

        Raises:
            DamagedError: it is not what was kept, and was thrown away.
        """
        folder = self._part(owner, name)
        try:
            parts = read_folder(folder)
            found = None if parts is None else unpack(parts)
            if found is None:
                return None
            if found.document != {"part": name} or found.files:
                raise DamagedError("it is another part")
            check(found.arrays)
        except (DamagedError, MisfitError) as error:
            with writing(self.folder):
                discard(folder, self.half)
            raise DamagedError(str(error)) from error
        return found.arrays

    def keep(self, owner: str, name: str, arrays: Arrays) -> None:
        """Stores a part; it is there after a kill. Raises as `put`."""
        with writing(self.folder):
            write_folder(self._part(owner, name), pack(Result(arrays, {"part": name})), self.half)

    def drop_parts(self, owner: str | None = None) -> None:
        """Forgets the parts kept under one key, or all: when what they were parts of is stored as a whole."""
        for folder in self._parts.iterdir() if owner is None else [self._parts / owner]:
            remove(folder)

    def _part(self, owner: str, name: str) -> Path:
        return self._parts / owner / hashlib.sha256(name.encode()).hexdigest()

    # -- one run at a time --------------------------------------------------------------------------------------------

    def __enter__(self) -> Store:
        """Holds the folder for this run; sweeps what a killed run left, and mends journal and index.

        Raises:
            Incomplete: another run holds it; the message says which.
        """
        only_a_file(self.private / "lock")
        with writing(self.folder):
            descriptor = os.open(self.private / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
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
                os.pwrite(descriptor, canonical_json(whoami()), 0)
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
        for left in (*self.half.iterdir(), self.private / "failures"):
            remove(left)
        only_a_file(self.private / "workers.log")
        self.mend({path.name for path in self._cells.glob("??/*") if path.is_dir()})


def cell_folder(folder: Path, key: str) -> Path:
    """Where a cell of the audit in `folder` lies."""
    return folder / "evidence" / "cells" / key[:2] / key


def _holder(descriptor: int) -> str:
    """Who wrote the lock file, as far as it can be read."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        said = f"process {holder['pid']} on {holder['host']}, since {holder['at']}"
        return said if said.isprintable() and len(said) < 200 else "a process that says nonsense"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "a process that has not yet said who it is"
