"""What computes cells, and one attempt at a cell: the same in this process, in another one and on another machine."""

from __future__ import annotations

import importlib
import os
import resource
import socket
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Protocol

from ...targets.errors import CrushproofError, InputError, NotApplicable, Unavailable
from ...targets.form import DECLINED, Form
from ...targets.recent import give_back
from ...targets.steps import heard_by
from .cells import Cell, Result
from .hearing import STARTED, Hearing, Keeper, Tell, nobody


class CellResults(Keeper, Protocol):
    """Where a cell finds the results it needs and leaves its own, and its parts until then."""

    def expect(self, forms: Mapping[str, Form]) -> None: ...

    def get(self, key: str) -> Result: ...

    def put(self, key: str, result: Result) -> None: ...

    def drop_parts(self, owner: str) -> None: ...

    def log(self, event: str, cell: Cell, **facts: float | str) -> None: ...


class Work(Protocol):
    """Cells and how to compute them."""

    def cells(self) -> list[Cell]:
        """In topological order: what a cell needs stands before it."""

    def compute(self, cell: Cell, store: CellResults) -> Result:
        """The result of a cell from those it needs, and no others; a function of the cell's key alone.

        Raises:
            NotApplicable: stored as the result `{"not_applicable": message}`, and so never tried again.
            Unavailable: nothing is stored; what needs the cell does not run either, and the next run tries again.
            CrushproofError: stops the run.
            Exception: fails this cell; what does not need it still runs.
        """


Spawn = tuple[str, str]  # (`module:function`, argument): how a worker builds its own work


@dataclass(frozen=True)
class Attempt:
    """What became of one attempt at a cell.

    Args:
        event: stop: an error for the user ends the run; died: its worker ended while it was at the cell; lost: the
            cell cannot be blamed (its machine went away).
        seconds: of CPU time, when it is finished.
        wall: seconds on the clock that it took, however it ended, without those for loading the work.
        why: of any other event, for people; of died: how, as in "its worker [was killed by signal 9]".
        trace: the traceback of a failed cell; of died: what the user may do.
        error: of stop: the class of the error.
        notes: sentences for the user.
        worker: machine and process; "" is this one.
        peak_bytes: the largest resident size of the worker so far.
    """

    event: Literal["finished", "failed", "unavailable", "stop", "died", "lost"]
    seconds: float = 0.0
    wall: float = 0.0
    why: str = ""
    trace: str = ""
    error: str = ""
    notes: tuple[str, ...] = ()
    worker: str = ""
    peak_bytes: int = 0


def attempt(work: Work, cell: Cell, results: CellResults, tell: Tell = nobody) -> Attempt:
    """Computes one cell into `results`; `tell` hears how far it is.

    Raises:
        CrushproofError: as the cell raised it; this ends the run.
    """
    hearing, began = Hearing(cell, results, tell), time.monotonic()
    tell(STARTED)

    def over(ended: Attempt) -> Attempt:
        return replace(ended, wall=time.monotonic() - began, notes=tuple(hearing.notes))

    try:
        results.log("started", cell)
        started = time.process_time()
        try:
            with heard_by(hearing):
                result = work.compute(cell, results)
        except Unavailable:
            raise
        except NotApplicable as error:
            result = Result(document={DECLINED: str(error)})
        results.put(cell.key, result)
        seconds = time.process_time() - started
        results.log("finished", cell, seconds=seconds)
        if not cell.parts:  # nobody shares them
            results.drop_parts(cell.key)
    except Unavailable as error:
        return over(Attempt("unavailable", why=str(error)))
    except CrushproofError:
        raise
    except (Exception, SystemExit) as error:  # one broken cell must not cost the others
        return over(Attempt("failed", why=in_words(error), trace=traceback.format_exc()))
    finally:
        give_back()
    return over(Attempt("finished", seconds=seconds))


def attempt_in_worker(spawn: Spawn, cell: Cell, results: CellResults, tell: Tell = nobody) -> Attempt:
    """`attempt` in a worker, which builds the work at its first cell and keeps it; raises nothing."""
    try:
        work = _built(*spawn)
        if cell.key not in {one.key for one in work.cells() if one.name == cell.name}:
            raise InputError(
                f"The plan means another {cell.name} on {socket.gethostname()} than where the audit was started: a "
                "package has another version there, or the plan's files changed meanwhile. Make them equal and run the "
                "same command again."
            )
        results.expect(forms_of(work.cells()))
        ended = attempt(work, cell, results, tell)
    except (Exception, SystemExit) as error:
        traceback.print_exc()  # into the worker's log
        why = str(error) if isinstance(error, CrushproofError) else in_words(error)
        ended = Attempt("stop", why=why, error=type(error).__name__)
    return replace(ended, worker=f"{socket.gethostname()}:{os.getpid()}", peak_bytes=peak_bytes())


def forms_of(cells: Iterable[Cell]) -> dict[str, Form]:
    """What the results of these cells look like, by key."""
    return {cell.key: cell.form for cell in cells if cell.form is not None}


@lru_cache(maxsize=1)
def _built(function: str, argument: str) -> Work:
    module, _, name = function.partition(":")
    work: Work = getattr(importlib.import_module(module), name)(argument)
    return work


def in_words(error: BaseException) -> str:
    """One line for an error nobody foresaw."""
    return f"{type(error).__name__}: {error}".strip().replace("\n", " ")[:500]


def peak_bytes() -> int:
    """The largest resident size this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
