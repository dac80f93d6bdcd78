"""One hostile input: what is made of it, who reads it, and the exit code that must come of it."""

from __future__ import annotations

import io
import math
import os
import random
import resource
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from crushproof.audit.cli import app
from crushproof.audit.console import run
from crushproof.audit.engine.store import Store
from crushproof.audit.exit_codes import exit_codes

USAGE, UNSAFE = 2, 5
SECONDS, MEMORY = 10, 1.5 * 2**20  # of processor time, and KiB, for one input


@dataclass(frozen=True)
class Case:
    """`call` gets an empty folder, writes into it what it needs, and gives the words of a command or a reader to call.

    Args:
        code: the exit code it must end with; a set: any of these (the library that reads it decides).
        says: a word that must stand in the one paragraph.
        dear: takes long, for what it imports or for its size: only `make fuzz` tries it.
    """

    name: str
    call: Callable[[Path], list[str] | Callable[[], object]]
    code: int | frozenset[int]
    says: str = ""
    dear: bool = False


def thinned(cases: Iterable[Case], share: float) -> list[Case]:
    """A share of the cases, the same in every run: some of each field or format (what stands before the colon of a
    name), a different choice for each, so that every kind of value meets many fields. None that are dear.
    """
    fields: dict[str, list[Case]] = {}
    for case in cases:
        if not case.dear:
            fields.setdefault(case.name.partition(": ")[0], []).append(case)
    rng = random.Random(0)
    return [case for those in fields.values() for case in rng.sample(those, math.ceil(share * len(those)))]


def faults_of_all(cases: Iterable[Case], folder: Path) -> list[str]:
    """The faults of each, met in a folder of its own."""
    found = []
    with no_cells():
        for number, case in enumerate(cases):
            inner = folder / str(number)
            inner.mkdir()
            found += faults_of(case, inner)
    return found


class ReachedCellsError(Exception):
    """An input that was to be refused came as far as the first cell."""


@contextmanager
def no_cells() -> Iterator[None]:
    """What gets past every check does not start an audit here: it ends in a fault, which no case may."""

    def opened(folder: Path) -> None:
        Store(folder)
        raise ReachedCellsError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crushproof.audit.run.Store", opened)
        yield


def faults_of(case: Case, folder: Path) -> list[str]:
    """What is wrong with how the input was met: wrong exit code, traceback, a file made, time or memory taken."""
    inner = folder / "temporary"
    inner.mkdir()
    work = folder / "work"
    work.mkdir()
    called = case.call(work)
    before, peak, start = _tree(folder), _peak(), time.process_time()
    kept, tempfile.tempdir = tempfile.tempdir, str(inner)
    try:
        with chdir(work):
            code, said = command(called) if isinstance(called, list) else reader(called)
    finally:
        tempfile.tempdir = kept
    allowed = case.code if isinstance(case.code, frozenset) else {case.code}
    found = [] if code in allowed else [f"exit {code}, not {sorted(allowed)}: {said[:300]!r}"]
    if "Traceback" in said or not said.strip() or "\x1b" in said or "\0" in said:
        found.append(f"said {said[-400:]!r}")
    if case.says not in " ".join(said.split()):
        found.append(f"does not say {case.says!r}: {said[:300]!r}")
    if made := _tree(folder) ^ before:
        found.append(f"made or took away {sorted(made)[:3]}")
    if time.process_time() - start > SECONDS or _peak() - peak > MEMORY:
        found.append(f"took {time.process_time() - start:.1f} s, {(_peak() - peak) // 1024} MiB")
    return [f"{case.name}: {fault}" for fault in found]


def command(words: list[str]) -> tuple[int, str]:
    """Exit code and all output of `crushproof WORDS`, in this process."""
    said, code = io.StringIO(), 0
    with redirect_stdout(said), redirect_stderr(said):
        try:
            run(lambda words: _commands().main(args=words, prog_name="crushproof"), words)
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception:  # what a user would see as a traceback
            code = 99
            traceback.print_exc()
    return code, said.getvalue()


@cache
def _commands() -> Any:
    """As typer's own runner makes them, which does so for every call."""
    return get_command(app)


def reader(call: Callable[[], object]) -> tuple[int, str]:
    """The same of one reader, as the command line would end."""
    words: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crushproof.audit.exit_codes.complain", words.append)
        try:
            with exit_codes():
                call()
        except typer.Exit as end:
            return end.exit_code, " ".join(words)
    return 0, "it was taken"


def _tree(folder: Path) -> set[str]:
    """All that is in a folder, but for the empty ones that the package keeps there until its process ends."""
    own = os.path.join(folder, "temporary")
    found = {os.path.join(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files)}
    return {name for name in found if not (name.startswith(own) and os.path.isdir(name))}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
