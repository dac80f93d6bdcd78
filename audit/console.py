"""How the console script starts and ends: standard streams that last, words that are none, the exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TextIO

import typer

from ..targets.errors import InputError, quoted
from .exit_codes import FAIL, PASS, errors_told, to_nowhere

COMPLETE = "_CRUSHPROOF_COMPLETE"  # the variable by which a shell asks for completions
COMPLETION = (["--install-completion"], ["--show-completion"])


def run(app: Callable[[Sequence[str]], Any], words: Sequence[str]) -> NoReturn:
    """Runs a command and ends this process.

    Args:
        app: takes the words of a command line and ends by SystemExit.
    """
    open_streams()
    code: object = PASS
    try:
        with errors_told():  # a disk may be too full for what Typer itself prints
            check_words(words)
            try:
                app(words)
            except SystemExit as end:
                code = end.code
            except KeyError:  # a variable by which a shell asks for completions, and another is missing
                if COMPLETE not in os.environ:
                    raise
                code = FAIL
            if code == FAIL and (COMPLETE in os.environ or list(words[:1]) in COMPLETION):  # a shell Typer knows not
                code = InputError.exit_code
            sys.stdout.flush()
    except typer.Exit as end:
        code = end.exit_code
    raise SystemExit(code)


def check_words(words: Sequence[str]) -> None:
    """Raises InputError for what no command takes, and Typer lets pass: an empty word, and an option twice."""
    if "" in words:
        raise InputError("One of the words of the command is empty. Is a variable of the shell not set?")
    before = words[: words.index("--")] if "--" in words else words
    options = [word.partition("=")[0] for word in before if word.startswith("--")]
    twice = next((word for place, word in enumerate(options) if word in options[:place]), None)
    if twice is not None:
        raise InputError(f"{quoted(twice)} is given twice. Keep one of the two.")


def open_streams() -> None:
    """Sets standard streams that are open and take any text, whatever their encoding. Where one is closed, the next
    file to be opened would take its place, and whoever warns would write into that.
    """
    for name in ("stdin", "stdout", "stderr"):  # the lowest free descriptor is that of the first that is closed
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nowhere, "r" if name == "stdin" else "w", closefd=False))
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        with suppress(io.UnsupportedOperation):  # one without a descriptor
            if isinstance(stream, io.TextIOWrapper) and stream.fileno() == descriptor:
                setattr(sys, name, _lasting(stream))


class _Lasting(io.FileIO):
    """A standard stream whose reader may go away (`| head`): what nobody reads is dropped, and the work and its exit
    code stay what they are. Standard error also where its disk is full.
    """

    def write(self, raw: Any, /) -> int:
        try:
            return super().write(raw)
        except OSError as error:
            if error.errno != errno.EPIPE and self.fileno() != 2:
                raise
            to_nowhere(self.fileno())
            return len(raw)


def _lasting(stream: io.TextIOWrapper) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False)),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
