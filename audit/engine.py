"""Where cells run: in this process, or in worker processes that take them as their needs are met.

Workers are fresh interpreters (never forks: torch's threads do not survive one), build the work themselves from a
name and a JSON argument, and write results into the store; this process only says who does what. Nothing here decides
a result: order, number of workers and restarts change times only.
"""

from __future__ import annotations

import ctypes
import heapq
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NoReturn, Protocol

from ..targets.errors import CrushproofError, Incomplete, InputError, NotApplicable, Unavailable, UnsafeInput
from .cells import Cell, Result
from .progress import Progress, Silent
from .store import Store

ATTEMPTS = 2  # a cell whose worker dies is tried once more, in a fresh worker
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
PR_SET_PDEATHSIG = 1
SERVE = "import sys; sys.path[:] = sys.argv[4:]; from crushproof.audit.engine import serve; serve()"


class Work(Protocol):
    """Cells and how to compute them."""

    def cells(self) -> list[Cell]:
        """In topological order: what a cell needs stands before it."""

    def compute(self, cell: Cell, store: Store) -> Result:
        """The result of a cell whose needs are in the store; a function of the cell's key alone.

        Raises:
            NotApplicable: stored as the result `{"not_applicable": message}`, and so never tried again.
            Unavailable: nothing is stored; what needs the cell does not run either, and the next run tries again.
            CrushproofError: stops the run.
            Exception: fails this cell; what does not need it still runs.
        """


@dataclass
class Outcome:
    """What a run did. Names are those of cells.

    Args:
        failed: what went wrong, by cell; a traceback lies in the store's folder `failures`.
        skipped: cells that need a failed one, each with that one's name.
        unavailable: what this machine lacks, by each cell that could not run for want of it.
        seconds: CPU seconds by phase of all the cells, whenever they were computed.
        peak_bytes: largest resident memory of this process and its workers together (an upper bound).
    """

    computed: list[str] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0


def run(
    work: Work,
    store: Store,
    *,
    cells: Sequence[Cell] | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    spawn: tuple[str, str] | None = None,
) -> Outcome:
    """Computes every cell that is not in the store. The caller holds the store's lock.

    Args:
        cells: those to run, with all they need, in topological order; default: all.
        workers: processes; 0 works in this one.
        spawn: (`module:function`, argument): how a worker builds its own `work`; needed when `workers` is not 0.

    Raises:
        CrushproofError: as a cell raised it; the other results are kept.
        KeyboardInterrupt: results so far are kept.
    """
    progress = progress or Silent()
    agenda = Agenda(list(work.cells() if cells is None else cells), store, progress)
    peak = 0
    progress.start([agenda.by_key[key] for key in agenda.todo], len(agenda.stored))
    try:
        if workers > 0 and agenda.todo:
            if spawn is None:
                raise ValueError("worker processes need to know how to build the work: give `spawn`")
            peak = _Crew(agenda, store, min(workers, len(agenda.todo)), spawn).run()
        else:
            _run_here(agenda, work, store)
    finally:
        progress.stop()
    return agenda.outcome(peak + _peak_bytes())


class Agenda:
    """Which cells are to be done, which are ready, and what became of the others. Cells of one key are one."""

    def __init__(self, cells: list[Cell], store: Store, progress: Progress) -> None:
        self.cells, self.store, self.progress = cells, store, progress
        self.by_key: dict[str, Cell] = {}
        self.key_of: dict[str, str] = {}
        self.needs: dict[str, set[str]] = {}
        for cell in cells:
            unknown = [need for need in cell.needs if need not in self.key_of]
            if cell.name in self.key_of or unknown:
                raise ValueError(f"cell {cell.name!r} is listed twice, or before what it needs: {unknown}")
            self.key_of[cell.name] = cell.key
            self.by_key.setdefault(cell.key, cell)
            self.needs.setdefault(cell.key, {self.key_of[need] for need in cell.needs})
        self.stored = [key for key in self.by_key if store.has(key)]
        for key in dict.fromkeys(store.damaged):
            if key in self.by_key:
                progress.note(f"the stored result of {self.by_key[key].name} was damaged; it is computed anew")
        self.todo = [key for key in self.by_key if key not in set(self.stored)]
        self.failed: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.unavailable: dict[str, str] = {}
        self.computed: list[str] = []
        self._missing = {key: self.needs[key] - set(self.stored) for key in self.todo}
        self._after: dict[str, list[str]] = {}
        for key, missing in self._missing.items():
            for need in missing:
                self._after.setdefault(need, []).append(key)
        self._urgency = self._chains()
        self._position = {key: position for position, key in enumerate(self.todo)}
        self._ready: list[tuple[float, int, str]] = []
        for key in self.todo:
            self._offer(key)

    def _chains(self) -> dict[str, float]:
        """By key, the effort of the longest chain of work that starts with it."""
        urgency: dict[str, float] = {}
        for key in reversed(self.todo):
            urgency[key] = self.by_key[key].weight + max((urgency[one] for one in self._after.get(key, ())), default=0)
        return urgency

    def _offer(self, key: str) -> None:
        if not self._missing[key]:
            heapq.heappush(self._ready, (-self._urgency[key], self._position[key], key))

    def next(self) -> Cell | None:
        """A cell whose needs are met, the start of the longest chain first; None when there is none at the moment."""
        return self.by_key[heapq.heappop(self._ready)[2]] if self._ready else None

    def again(self, cell: Cell) -> None:
        self._offer(cell.key)

    def finish(self, cell: Cell, seconds: float) -> None:
        self.computed.append(cell.name)
        self.store.record(cell, seconds)
        self.progress.end(cell, seconds)
        for key in self._after.get(cell.key, ()):
            self._missing[key].discard(cell.key)
            self._offer(key)

    def fail(self, cell: Cell, why: str, trace: str) -> None:
        """Gives the cell up, and all that need it."""
        self.failed[cell.key] = why
        self.store.log("failed", cell, why=why[:1000])
        self.store.keep_failure(cell, trace)
        self.progress.end(cell, 0.0)
        self.progress.note(f"{cell.name} failed: {why}")
        for key in self._behind(cell.key):
            self.skipped.setdefault(key, cell.name)

    def lacks(self, cell: Cell, why: str) -> None:
        """Leaves the cell to a later run, and all that need it: this machine lacks something now."""
        self.store.log("unavailable", cell, why=why[:1000])
        self.progress.end(cell, 0.0)
        for key in (cell.key, *self._behind(cell.key)):
            self.unavailable.setdefault(key, why)

    def _behind(self, key: str) -> list[str]:
        """All that cannot run without this one."""
        found: dict[str, None] = {}
        stack = [key]
        while stack:
            new = [after for after in self._after.get(stack.pop(), ()) if after not in found]
            found |= dict.fromkeys(new)
            stack += new
        return list(found)

    def outcome(self, peak_bytes: int) -> Outcome:
        names = {key: [cell.name for cell in self.cells if cell.key == key] for key in self.by_key}
        return Outcome(
            computed=self.computed,
            stored=[name for key in self.stored for name in names[key]],
            failed={name: why for key, why in self.failed.items() for name in names[key]},
            skipped={name: why for key, why in self.skipped.items() for name in names[key]},
            unavailable={name: why for key, why in self.unavailable.items() for name in names[key]},
            seconds=self.store.seconds(self.by_key),
            peak_bytes=peak_bytes,
        )


def compute(work: Work, cell: Cell, store: Store) -> float:
    """Computes one cell into the store; CPU seconds spent. Raises Unavailable, with nothing stored."""
    store.log("started", cell)
    started = time.process_time()
    try:
        result = work.compute(cell, store)
    except Unavailable:
        raise
    except NotApplicable as error:
        result = Result(document={"not_applicable": str(error)})
    store.put(cell.key, result)
    seconds = time.process_time() - started
    store.log("finished", cell, seconds=seconds)
    return seconds


def _run_here(agenda: Agenda, work: Work, store: Store) -> None:
    while (cell := agenda.next()) is not None:
        agenda.progress.begin(cell)
        try:
            seconds = compute(work, cell, store)
        except Unavailable as error:
            agenda.lacks(cell, str(error))
        except CrushproofError:
            raise
        except Exception as error:  # one broken cell must not cost the others
            agenda.fail(cell, _words(error), traceback.format_exc())
        else:
            agenda.finish(cell, seconds)


# -- worker processes, seen from this one ------------------------------------------------------------------------------


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    cell: Cell | None = None


class _Crew:
    """Worker processes and what each is at. They end with this process, however it ends."""

    def __init__(self, agenda: Agenda, store: Store, size: int, spawn: tuple[str, str]) -> None:
        self.agenda, self.store, self.size, self.spawn = agenda, store, size, spawn
        self.workers: list[_Worker] = []
        self.deaths: dict[str, int] = {}
        self.peaks: dict[int, int] = {}
        self.watched, self.alive = os.pipe()  # workers wait on `watched`; it ends when nobody holds `alive` any more

    def run(self) -> int:
        """Until nothing more can be done; the workers' largest resident bytes together."""
        try:
            while self._assign():
                busy = {worker.connection: worker for worker in self.workers if worker.cell is not None}
                for connection in wait(list(busy)):
                    self._hear(busy[connection])  # type: ignore[index]  # wait gives back what it was given
        finally:
            for worker in self.workers:
                worker.process.kill()
            for worker in self.workers:
                worker.process.wait()
                worker.connection.close()
            os.close(self.watched)
            os.close(self.alive)
        return sum(sorted(self.peaks.values(), reverse=True)[: self.size])

    def _assign(self) -> bool:
        """Gives ready cells to idle workers; whether anybody is at work."""
        while sum(worker.cell is not None for worker in self.workers) < self.size:
            cell = self.agenda.next()
            if cell is None:
                break
            worker = next((one for one in self.workers if one.cell is None), None) or self._hire()
            worker.cell = cell
            self.agenda.progress.begin(cell)
            try:
                _send(worker.connection, {"cell": cell.name})
            except OSError:
                self._bury(worker)
        return any(worker.cell is not None for worker in self.workers)

    def _hire(self) -> _Worker:
        ours, theirs = Pipe()
        arguments = [str(number) for number in (theirs.fileno(), self.watched, os.getpid())]
        with (self.store.private / "workers.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", SERVE, *arguments, *sys.path],
                pass_fds=(theirs.fileno(), self.watched),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **ONE_THREAD},
            )
        theirs.close()
        worker = _Worker(process, ours)
        self.workers.append(worker)
        _send(ours, {"spawn": self.spawn, "store": str(self.store.folder.absolute())})
        return worker

    def _hear(self, worker: _Worker) -> None:
        try:
            message = _receive(worker.connection)
        except (EOFError, OSError):
            self._bury(worker)
            return
        cell, worker.cell = worker.cell, None
        assert cell is not None, "only busy workers are listened to"
        self.peaks[worker.process.pid] = message.get("peak_bytes", 0)
        match message["event"]:
            case "finished":
                self.agenda.finish(cell, message["seconds"])
            case "failed":
                self.agenda.fail(cell, message["why"], message["trace"])
            case "unavailable":
                self.agenda.lacks(cell, message["why"])
            case "stop":
                raise _ERRORS.get(message["error"], CrushproofError)(message["why"])

    def _bury(self, worker: _Worker) -> None:
        """A worker died at work: its cell is tried once more, because the cause may have been a full machine."""
        self.workers.remove(worker)
        worker.connection.close()
        code = worker.process.wait()
        cell = worker.cell
        assert cell is not None, "idle workers are not listened to"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if code == -signal.SIGKILL:
            how += ", perhaps because the machine ran out of memory"
        self.deaths[cell.key] = self.deaths.get(cell.key, 0) + 1
        if self.deaths[cell.key] < ATTEMPTS:
            self.agenda.progress.note(f"the worker at {cell.name} {how}; trying once more")
            self.agenda.again(cell)
        else:
            log = self.store.private / "workers.log"
            why = f"its worker {how}, twice; see {log}, or try --workers 1"
            self.agenda.fail(cell, why, why)


_ERRORS: dict[str, type[CrushproofError]] = {
    one.__name__: one for one in (InputError, NotApplicable, Incomplete, UnsafeInput)
}


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _receive(connection: Connection) -> Any:
    return json.loads(connection.recv_bytes())


# -- a worker process, seen from inside --------------------------------------------------------------------------------


def serve() -> None:
    """The main function of a worker: computes the cells it is told, until the connection ends."""
    descriptor, watched, parent = (int(argument) for argument in sys.argv[1:4])
    _die_with(parent, watched)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of us; the parent decides
    connection = Connection(descriptor)
    job = _receive(connection)
    store = Store(Path(job["store"]))
    try:
        work = _build(*job["spawn"])
        cells = {cell.name: cell for cell in work.cells()}
    except Exception as error:
        connection.recv_bytes()
        _send(connection, _stop(error))
        return
    while True:
        try:
            cell = cells[_receive(connection)["cell"]]
        except EOFError:
            return
        try:
            message: dict[str, Any] = {"event": "finished", "seconds": compute(work, cell, store)}
        except Unavailable as error:
            message = {"event": "unavailable", "why": str(error)}
        except CrushproofError as error:
            message = _stop(error)
        except Exception as error:  # one broken cell must not cost the others
            message = {"event": "failed", "why": _words(error), "trace": traceback.format_exc()}
        _send(connection, {**message, "peak_bytes": _peak_bytes()})


def _stop(error: Exception) -> dict[str, Any]:
    traceback.print_exc()  # into workers.log
    known = isinstance(error, CrushproofError)
    return {"event": "stop", "error": type(error).__name__, "why": str(error) if known else _words(error)}


def _build(function: str, argument: str) -> Work:
    module, _, name = function.partition(":")
    work: Work = getattr(importlib.import_module(module), name)(argument)
    return work


def _die_with(parent: int, watched: int) -> None:
    """Ends this process as soon as its parent does, even when the parent is killed.

    The kernel's signal is at once and only Linux has it; the pipe works everywhere, when the interpreter gets its turn.
    """

    def watch() -> NoReturn:
        os.read(watched, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _words(error: BaseException) -> str:
    """One line for an error nobody foresaw."""
    return f"{type(error).__name__}: {error}".strip().replace("\n", " ")[:500]


def _peak_bytes() -> int:
    """The largest resident size this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
