"""Temporary files: each process has a folder of its own among crushproof's, and what a killed one left is swept.

<temporary folder>/crushproof-<user id>/<any name>/   locked by its process for as long as that lives
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CrushproofError, Incomplete, InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TRIES = 100  # of making a folder before another process sweeps it

_own: tuple[int, Path] | None = None  # the process that made it, and its folder
_base: Path | None = None  # where everybody's temporary files are; `tempfile` says another while ours is everybody's


def own_folder() -> Path:
    """The temporary folder of this process, which goes away with it. Made, and others' remains swept, at first use.

    Raises:
        InputError: there is no folder for temporary files that can be written.
        Incomplete: its disk is full.
    """
    global _own
    if _own is None or _own[0] != os.getpid() or not _own[1].is_dir():
        _own = (os.getpid(), _make(_base_folder()))
        atexit.register(_leave, *_own)
        if _base is not None:
            os.environ["TMPDIR"] = tempfile.tempdir = str(_own[1])
    return _own[1]


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder for the block."""
    with tempfile.TemporaryDirectory(dir=own_folder()) as folder:
        yield Path(folder)


@contextmanager
def all_in_own_folder() -> Iterator[None]:
    """Inside the block this process's own folder is everybody's temporary folder: other libraries', the plan's code's,
    and that of processes started meanwhile. Raises as `own_folder`.
    """
    global _base
    outer, folder = _base, own_folder()
    before, known = os.environ.get("TMPDIR"), tempfile.tempdir
    clusters = os.environ.get("RAY_TMPDIR")
    os.environ.setdefault("RAY_TMPDIR", before or "/tmp")  # where a Ray cluster that runs already is found
    _base = _base_folder()
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        _base = outer
        tempfile.tempdir = known
        for name, value in (("TMPDIR", before), ("RAY_TMPDIR", clusters)):
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def shared_folder(base: Path) -> Path:
    """The folder of all our processes in `base`, private to the user; made when it is not there.

    Raises:
        OSError: it is not ours, or cannot be made.
    """
    folder = base / _name()
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not ours")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
    return folder


def kept_until_the_next_run(text: str) -> str:
    """Writes a file beside the folders of our processes, whose next sweep takes it; its path."""
    handle, path = tempfile.mkstemp(dir=own_folder().parent, prefix="crushproof-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)
    return path


def sweep(base: Path) -> None:
    """Removes what processes left in `base` that are no more; nothing of a folder that cannot be locked."""
    with contextlib.suppress(OSError):
        for left in shared_folder(base).iterdir():
            with contextlib.suppress(OSError):
                if not left.is_dir() or left.is_symlink():
                    left.unlink()
                else:
                    held = _lock(left)
                    shutil.rmtree(left, ignore_errors=True)
                    os.close(held)


def _name() -> str:
    return f"crushproof-{os.getuid()}"


def _base_folder() -> Path:
    """Where everybody's temporary files are."""
    if _base is not None:
        return _base
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:  # in none of the usual places a file can be written
        raise _refused(Path(os.environ.get("TMPDIR") or "/tmp"), error) from None


def _make(base: Path) -> Path:
    sweep(base)
    try:
        for _ in range(TRIES):
            try:
                folder = Path(tempfile.mkdtemp(dir=shared_folder(base)))
            except FileNotFoundError:  # the last process of the others just left, and took it along
                if base.is_dir():
                    continue
                raise
            except (PermissionError, FileExistsError):  # another's has our name: a folder that is not swept must do
                return Path(tempfile.mkdtemp(prefix="crushproof-", dir=base))
            try:
                _lock(folder)  # never closed: the system does that when this process ends, however it ends
            except (BlockingIOError, FileNotFoundError):  # a process that sweeps was quicker
                continue
            except OSError:  # no folder can be locked here (NFS, Lustre): then none of ours is swept either
                pass
            if folder.is_dir():
                return folder
    except OSError as error:
        raise _refused(base, error) from None
    raise Incomplete(f"Other processes removed every temporary folder made in {base}. Run the same command again.")


def _refused(base: Path, error: OSError) -> CrushproofError:
    if error.errno in FULL or _is_full(base):
        return Incomplete(f"The disk that holds the temporary folder {base} is full. Make room, or set TMPDIR.")
    why = error.strerror or type(error).__name__
    return InputError(f"No temporary folder can be made in {base} ({why}). Set TMPDIR to a folder you may write to.")


def _is_full(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b" ")
    except OSError as error:
        return error.errno in FULL
    return False


def _lock(folder: Path) -> int:
    """The descriptor that holds the folder until it is closed.

    Raises:
        BlockingIOError: another process holds it.
        FileNotFoundError: it is gone.
        OSError: it cannot be locked: not every file system can lock folders.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _leave(process: int, folder: Path) -> None:
    if process == os.getpid():  # a fork leaves what is its parent's
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.name == _name():
            with contextlib.suppress(OSError):
                folder.parent.rmdir()  # when it was the last
