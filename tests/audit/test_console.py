"""The console script: streams that are closed, full or left, words that are none, and the exit codes of both."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from crushproof.audit import console
from crushproof.audit.console import check_words, open_streams, run
from crushproof.audit.exit_codes import LONGEST, errors_told
from crushproof.targets.errors import InputError

COMMAND = f"{sys.executable} -m crushproof"


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard output is a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    stream = io.TextIOWrapper(io.FileIO(writing, "w"), "ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", console._lasting(stream))
    yield
    stream.close()


@pytest.mark.usefixtures("left")
def test_what_nobody_reads_changes_no_exit_code() -> None:
    def failing(words: object) -> None:
        print("x" * 10**6, flush=True)
        print("the accents of café, and half a pair: \udcff")
        raise SystemExit(1)

    with pytest.raises(SystemExit) as end:
        run(failing, ["gate", "."])
    assert end.value.code == 1


@pytest.mark.parametrize("words", [["--show-completion"], ["audit"]])
def test_a_shell_that_is_not_known_is_no_failed_policy(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(words: object) -> None:
        raise SystemExit(1)

    monkeypatch.setenv("_CRUSHPROOF_COMPLETE", "complete_nosh")
    with pytest.raises(SystemExit) as end:
        run(unknown, words)
    assert end.value.code == 2
    monkeypatch.delenv("_CRUSHPROOF_COMPLETE")
    with pytest.raises(SystemExit) as end:
        run(unknown, words)
    assert end.value.code == (1 if words == ["audit"] else 2)


@pytest.mark.parametrize(
    ("redirected", "code"),
    [
        ("audit nowhere.yaml <&- >&- 2>&-", 2),
        ("audit nowhere.yaml 2>/dev/full", 2),
        ("--help >/dev/full", 3),
        ("--version <&- >&-", 0),
    ],
)
def test_streams_that_take_nothing(redirected: str, code: int, tmp_path: Path) -> None:
    done = subprocess.run(f"{COMMAND} {redirected}", shell=True, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (code, b"")
    assert b"Traceback" not in done.stderr
    assert [*tmp_path.iterdir()] == []


def test_closed_streams_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # to be put back
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stderr", None)
    open_streams()
    with sys.stdin, sys.stderr:
        assert (sys.stdin.read(), sys.stderr.write("lost")) == ("", 4)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["gate", "", "--json"], "is empty"),
        (["gate", "--policy", "a", ".", "--policy", "b"], "'--policy' is given twice"),
        (["gate", "--policy=a", "--policy", "b"], "twice"),
        (["gate", "--json", "--json"], "twice"),
    ],
)
def test_words_that_say_nothing_or_two_things(words: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_words(words)
    check_words(["gate", "--json", "--", "--json", "--json"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.EMFILE, "Too many open files"), 3),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 3),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 3),  # of another process: no pass
        (ImportError("libtorch.so: failed to map segment from shared object"), 3),
        (OSError(errno.EACCES, "Permission denied"), 2),
    ],
)
def test_what_a_machine_lacks_is_no_fault_of_the_program(error: Exception, code: int) -> None:
    with pytest.raises(typer.Exit) as end, errors_told():
        raise error
    assert end.value.exit_code == code


def test_a_message_is_no_longer_than_a_paragraph(capsys: pytest.CaptureFixture[Any]) -> None:
    with pytest.raises(typer.Exit), errors_told():
        raise InputError("x " * 10**6)
    assert len(capsys.readouterr().err) < LONGEST + 100
