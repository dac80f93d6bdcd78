"""Temporary files are in a folder of our own, and what a killed process left goes with the next one."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from crushproof.targets import temporary
from crushproof.targets.errors import Incomplete, InputError
from crushproof.targets.temporary import all_in_own_folder, own_folder, scratch

LIVE = """
import os, signal, sys, tempfile
from pathlib import Path
from crushproof.targets.temporary import all_in_own_folder, scratch
with all_in_own_folder(), scratch() as folder:
    (folder / "model").touch()
    Path(tempfile.mkdtemp(), "of a library").touch()
    print("made", flush=True)
    sys.stdin.read()
"""


def live(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-c", LIVE], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "made\n"
    return process


def folders(place: Path) -> set[Path]:
    return set(place.glob("crushproof-*/*"))


def test_the_next_process_sweeps_what_a_killed_one_left_and_no_other(tmp_path: Path) -> None:
    killed = live(tmp_path)
    left = folders(tmp_path)
    assert len(left) == 1
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert folders(tmp_path) == left
    (next(iter(left)).parent / "details.txt").touch()
    first = live(tmp_path)
    kept = folders(tmp_path)
    assert len(kept) == 1
    assert not kept & left
    second = live(tmp_path)
    assert len(folders(tmp_path)) == 2
    for process in (first, second):
        process.communicate("")
        assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, in which this process has none of its own yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(temporary, "_own", None)
    return tmp_path


def raising(code: int) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", [errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_no_folder_can_be_locked_one_is_kept_and_none_is_swept(
    code: int, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anothers = temporary.shared_folder(fresh) / "another's"
    anothers.mkdir()
    monkeypatch.setattr(fcntl, "flock", raising(code))
    own = own_folder()
    assert set(own.parent.iterdir()) == {own, anothers}


def test_tries_to_make_a_folder_come_to_an_end(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", raising(errno.EWOULDBLOCK))
    with pytest.raises(Incomplete, match="removed"):
        own_folder()
    assert len(folders(fresh)) == temporary.TRIES


def test_a_temporary_folder_that_is_gone_or_refuses_is_a_sentence(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(fresh / "gone"))
    with pytest.raises(InputError, match="No such file"):
        own_folder()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", raising(errno.ENOENT))
    with pytest.raises(InputError, match="TMPDIR"), all_in_own_folder():
        pass
    monkeypatch.setattr(tempfile, "TemporaryFile", raising(errno.ENOSPC))
    with pytest.raises(Incomplete, match="full"):
        own_folder()
    monkeypatch.setattr(tempfile, "tempdir", str(fresh))
    monkeypatch.setattr(tempfile, "mkdtemp", raising(errno.EDQUOT))
    with pytest.raises(Incomplete, match="full"):
        own_folder()


def test_a_folder_that_was_cleaned_away_meanwhile_is_made_anew_for_everybody(fresh: Path) -> None:
    with all_in_own_folder():
        first = own_folder()
        shutil.rmtree(first.parent)
        with scratch() as folder:
            assert folder.parent.parent.parent == fresh
        assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(own_folder()) != str(first)
    assert tempfile.gettempdir() == str(fresh)


def test_a_folder_of_our_name_that_is_not_ours_is_left_alone(tmp_path: Path, fresh: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / f"crushproof-{os.getuid()}").symlink_to(tmp_path / "precious")
    with scratch() as folder:
        assert folder.is_dir()
        assert tmp_path / "precious" not in folder.resolve().parents
    assert (tmp_path / "precious" / "file").exists()


def test_a_link_among_what_was_left_leads_nowhere(tmp_path: Path, fresh: Path) -> None:
    (tmp_path / "precious").mkdir()
    ours = temporary.shared_folder(fresh)
    (ours / "link").symlink_to(tmp_path / "precious")
    assert own_folder().parent == ours
    assert not (ours / "link").is_symlink()
    assert (tmp_path / "precious").is_dir()


def test_everybody_uses_it_inside_the_block_and_nobody_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    before = tempfile.gettempdir()
    with suppress(KeyError), all_in_own_folder():
        assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(own_folder())
        assert os.environ["RAY_TMPDIR"] == "/elsewhere"  # a cluster that runs already is still found
        raise KeyError
    assert (tempfile.gettempdir(), os.environ["TMPDIR"]) == (before, "/elsewhere")
    assert "RAY_TMPDIR" not in os.environ


def test_a_reader_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import os, pathlib, time\n"
        f"def main(arguments):\n    pathlib.Path({str(tmp_path / 'reader')!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
    )
    code = (
        "from pathlib import Path\nfrom crushproof.targets.untrusted.sandbox import run_limited\n"
        f"run_limited(Path({str(script)!r}), [], what='it', seconds=30, memory=2**28)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)})
    reader = tmp_path / "reader"
    wait_until(lambda: reader.exists() and reader.read_text() != "")
    parent.kill()
    parent.wait()
    wait_until(lambda: gone(int(reader.read_text())))


def gone(process: int) -> bool:
    """Dead, whether or not somebody took note of it."""
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
