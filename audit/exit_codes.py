"""The exit codes of the command line, and how an error ends in one of them with a single paragraph."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import TextIO

import typer

from ..targets.errors import CrushproofError, InputError, UnsafeInput
from ..targets.temporary import FULL, all_in_own_folder, kept_until_the_next_run

PASS, FAIL, INCOMPLETE, INTERNAL, INTERRUPTED, TERMINATED = 0, 1, 3, 4, 130, 143
EXIT_CODES = {
    PASS: "pass",
    FAIL: "policy failed",
    InputError.exit_code: "wrong plan, data or usage",
    INCOMPLETE: "incomplete or inconclusive",
    INTERNAL: "a fault of crushproof",
    UnsafeInput.exit_code: "unsafe input refused, or does not verify",
    INTERRUPTED: "interrupted",
    TERMINATED: "terminated",
}
CODE_OF_VERDICT = {"pass": PASS, "fail": FAIL, "inconclusive": INCOMPLETE}
LONGEST = 3000  # characters of a paragraph: a message may quote what somebody made long
# The machine, or a limit set for this process, does not give what is asked for.
SCARCE = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EPIPE}
SCARCE_WORDS = re.compile(
    r"allocate memory|not enough memory|bad_alloc|out of memory|map segment|start new thread|too many open files",
    re.IGNORECASE,
)


class FailOn(StrEnum):
    """Which verdicts are to stop whoever called; cells that failed always do."""

    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


def code_of(verdict: str, fail_on: FailOn) -> int:
    """The exit code of a verdict, of a finding's too: one that no policy judges has none, which is no pass."""
    if verdict != "fail" and fail_on is FailOn.FAIL:
        return PASS
    return CODE_OF_VERDICT.get(verdict, INCOMPLETE)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns errors into one paragraph on standard error and the exit code the README lists. Inside the block SIGTERM is
    such an error, and temporary files lie in a folder of this process's own.
    """
    with errors_told(), _termination_raised(), all_in_own_folder():
        yield


@contextmanager
def errors_told() -> Iterator[None]:
    """The first half of `exit_codes`."""
    try:
        yield
    except typer.Exit:
        raise
    except CrushproofError as error:
        complain(str(error))
        raise typer.Exit(error.exit_code) from None
    except Terminated:
        complain("terminated. Run the same command again to go on from here.")
        raise typer.Exit(TERMINATED) from None
    except KeyboardInterrupt:
        complain("interrupted. Run the same command again to go on from here.")
        raise typer.Exit(INTERRUPTED) from None
    except SystemExit as error:  # somebody's module; code 0 would be a pass
        complain(
            f"sys.exit({error.code!r}) was called while the audit ran, by the model's or a plug-in's code. Take it "
            "out: such code returns or raises."
        )
        raise typer.Exit(InputError.exit_code) from None
    except OSError as error:
        if error.errno in FULL:
            where = error.filename or "the disk, or on what standard output goes to"
            _silence(sys.stdout)  # Python writes the rest at exit, and would fail with a code of its own
            complain(f"there is no room left on {where}. Make room and run the same command again.")
            raise typer.Exit(INCOMPLETE) from None
        if error.errno in SCARCE:
            raise _scarce(error) from None
        complain(
            f"{error.filename or 'the system'}: {error.strerror or type(error).__name__}. Check the names and the "
            "folders that were given, and what this user may do there."
        )
        raise typer.Exit(InputError.exit_code) from None
    except Exception as error:
        if isinstance(error, MemoryError) or SCARCE_WORDS.search(str(error)):
            raise _scarce(error) from None
        complain(
            f"something went wrong inside crushproof ({type(error).__name__}: {str(error)[:300]}). This is a fault of "
            f"the program, not of your plan. {_details(traceback.format_exc())}"
        )
        raise typer.Exit(INTERNAL) from None


def _scarce(error: Exception) -> typer.Exit:
    """Told that the machine has too little of something."""
    why = " ".join(str(error).split())[-200:]
    complain(
        f"this machine, or a limit set for this process (ulimit), gives too little memory, files or processes "
        f"({type(error).__name__}{why and ': '}{why}). Close what else runs or raise the limit, take fewer --workers, "
        "and run the same command again."
    )
    return typer.Exit(INCOMPLETE)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends what is under way as Ctrl-C does."""


@contextmanager
def _termination_raised() -> Iterator[None]:
    """Inside the block SIGTERM raises `Terminated`; only the main thread can be told of signals."""

    def terminate(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _silence(stream: TextIO) -> None:
    with suppress(OSError, ValueError):  # one without a descriptor
        to_nowhere(stream.fileno())


def to_nowhere(descriptor: int) -> None:
    """What is written there from now on is dropped."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _details(trace: str) -> str:
    try:
        path = kept_until_the_next_run(trace)
    except (OSError, CrushproofError):
        return "Please report it."
    return f"The details are in {path} until the next run; please report them."


def complain(message: str) -> None:
    """Prints `error: ...` to standard error, wrapped, without control characters."""
    message = message if len(message) <= LONGEST else f"{message[:LONGEST]} ..."
    text = "".join(c if c.isprintable() else " " for c in f"error: {message}")
    width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 120))
    typer.echo(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False), err=True)
