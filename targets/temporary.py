"""Temporary files: each process has a folder of its own among crushproof's, and what a killed one left is swept.

<temporary folder>/crushproof-<user id>/<any name>/   locked by its process for as long as that lives
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_own: tuple[int, Path] | None = None  # the process that made it, and its folder


def own_folder() -> Path:
    """The temporary folder of this process, which goes away with it. Made, and others' remains swept, at first use."""
    global _own
    if _own is None or _own[0] != os.getpid() or not _own[1].is_dir():
        _own = (os.getpid(), _make())
        atexit.register(_leave, *_own)
    return _own[1]


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder for the block."""
    with tempfile.TemporaryDirectory(dir=own_folder()) as folder:
        yield Path(folder)


@contextmanager
def all_in_own_folder() -> Iterator[None]:
    """Inside the block this process's own folder is everybody's temporary folder: other libraries', the plan's code's,
    and that of processes started meanwhile.
    """
    before, known = os.environ.get("TMPDIR"), tempfile.tempdir
    clusters = os.environ.get("RAY_TMPDIR")
    os.environ.setdefault("RAY_TMPDIR", before or "/tmp")  # where a Ray cluster that runs already is found
    os.environ["TMPDIR"] = tempfile.tempdir = str(own_folder())
    try:
        yield
    finally:
        tempfile.tempdir = known
        for name, value in (("TMPDIR", before), ("RAY_TMPDIR", clusters)):
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def shared_folder() -> Path:
    """The folder of all our processes, private to the user; made when it is not there.

    Raises:
        OSError: it is not ours, or cannot be made.
    """
    folder = Path(tempfile.gettempdir(), _name())
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


def sweep() -> None:
    """Removes what processes left that are no more."""
    with contextlib.suppress(OSError):
        for left in shared_folder().iterdir():
            if not left.is_dir() or left.is_symlink():
                left.unlink(missing_ok=True)
            elif (held := _lock(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(held)


def _name() -> str:
    return f"crushproof-{os.getuid()}"


def _make() -> Path:
    sweep()
    while True:
        try:
            folder = Path(tempfile.mkdtemp(dir=shared_folder()))
        except FileNotFoundError:  # the last process of the others just left, and took it along
            continue
        except PermissionError:  # somebody else made a folder of our name: one that is not swept must do
            return Path(tempfile.mkdtemp(prefix="crushproof-"))
        held = _lock(folder)  # never closed: the system does that when this process ends, however it ends
        if held is not None and folder.is_dir():
            return folder
        # A process that sweeps was quicker than our lock.


def _lock(folder: Path) -> int | None:
    """The descriptor that holds the folder; None: another process holds it, or it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _leave(process: int, folder: Path) -> None:
    if process == os.getpid():  # a fork leaves what is its parent's
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.name == _name():
            with contextlib.suppress(OSError):
                folder.parent.rmdir()  # when it was the last
