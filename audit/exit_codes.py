"""The exit codes of the command line, and how an error ends in one of them with a single paragraph."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import typer

from ..targets.errors import CrushproofError, InputError, UnsafeInput

PASS, FAIL, INCOMPLETE, INTERNAL, INTERRUPTED = 0, 1, 3, 4, 130
EXIT_CODES = {
    PASS: "pass",
    FAIL: "policy failed",
    InputError.exit_code: "wrong plan, data or usage",
    INCOMPLETE: "incomplete or inconclusive",
    INTERNAL: "a fault of crushproof",
    UnsafeInput.exit_code: "unsafe input refused",
    INTERRUPTED: "interrupted",
}
CODE_OF_VERDICT = {"pass": PASS, "fail": FAIL, "inconclusive": INCOMPLETE}


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
    """Turns errors into one paragraph on standard error and the exit code the README lists."""
    try:
        yield
    except typer.Exit:
        raise
    except CrushproofError as error:
        complain(str(error))
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        complain("interrupted. Run the same command again to go on from here.")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:  # `crushproof catalogue | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PASS) from None
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="crushproof-", suffix=".txt", delete=False) as file:
            file.write(traceback.format_exc())
        complain(
            f"something went wrong inside crushproof ({type(error).__name__}: {str(error)[:300]}). This is a fault of "
            f"the program, not of your plan. The details are in {file.name}; please report them."
        )
        raise typer.Exit(INTERNAL) from None


def complain(message: str) -> None:
    """Prints `error: ...` to standard error, wrapped, without control characters."""
    text = "".join(c if c.isprintable() else " " for c in f"error: {message}")
    width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 120))
    typer.echo(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False), err=True)
