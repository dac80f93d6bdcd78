"""Cells on this machine: in this process, or in worker processes.

Workers are fresh interpreters (never forks: torch's threads do not survive one). Each is a pool of one process, so that
a worker's death breaks no pool but its own: the others go on, and the cell that is to blame is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, NoReturn

from ..writing import writing
from .cells import Cell
from .hearing import Step, Tell, nobody
from .store import Store
from .work import Attempt, Spawn, Work, attempt, attempt_in_worker
from .worker_process import WorkerProcess, environment

MESSAGE = 512  # bytes: what every system writes into a pipe whole or not at all


class InProcess:
    """Computes cells in this process, one at a time."""

    slots = 1

    def __init__(self, work: Work, store: Store) -> None:
        self.work, self.store = work, store
        self._ended: list[tuple[Cell, Attempt]] = []

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, cell: Cell, needs: Sequence[str], tell: Tell = nobody) -> None:
        self._ended.append((cell, attempt(self.work, cell, self.store, tell)))

    def wait(self, seconds: float | None = None) -> list[tuple[Cell, Attempt]]:
        ended, self._ended = self._ended, []
        return ended


class Processes:
    """Computes cells in processes of this machine, which end with this one, however it ends.

    Args:
        size: how many processes, at least 1; each is started when there is a cell for it.
        spawn: how a worker builds its own work.
    """

    def __init__(self, store: Store, size: int, spawn: Spawn) -> None:
        self.slots, self.log = size, store.private / "workers.log"
        # What workers say of the cells they are at comes through one pipe, each message whole: a worker that is killed
        # leaves nothing half said in it, and one that finds it full does not wait.
        self._steps, self._say = _Context().Pipe(duplex=False)
        os.set_blocking(self._steps.fileno(), False)
        os.set_blocking(self._say.fileno(), False)
        place = (os.getcwd(), str(store.folder.absolute()), str(self.log.absolute()))
        self._start = (*place, spawn, self._say)
        self._idle: list[_Worker] = []
        self._busy: dict[Future[Attempt], tuple[Cell, _Worker, Tell]] = {}

    def __enter__(self) -> Processes:
        with writing(self.log.parent):  # refused here it is a sentence, in a worker only a death
            os.close(os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        # The pools' semaphores are cleared away by a process of Python's, which would complain about each when we are
        # killed; it outlives us only for that.
        with environment({"PYTHONWARNINGS": "ignore"}):
            resource_tracker.ensure_running()
        return self

    def __exit__(self, *_: object) -> None:
        workers = [*self._idle, *(worker for _, worker, _ in self._busy.values())]
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.exit_code()
        self._steps.close()
        self._say.close()

    def submit(self, cell: Cell, needs: Sequence[str], tell: Tell = nobody) -> None:
        sent = replace(cell, form=None)  # which the worker's own work knows
        while self._idle:
            worker = self._idle.pop()
            try:
                self._busy[worker.pool.submit(_compute, sent)] = (cell, worker, tell)
            except BrokenProcessPool:  # it died while it had nothing to do
                continue
            return
        worker = _Worker(self._start)
        self._idle.append(worker)  # known to `__exit__` before its process starts
        future = worker.pool.submit(_compute, sent)
        self._idle.remove(worker)
        self._busy[future] = (cell, worker, tell)

    def wait(self, seconds: float | None = None) -> list[tuple[Cell, Attempt]]:
        done = wait(self._busy, seconds, return_when=FIRST_COMPLETED).done
        self._pass_on()
        return [self._heard(future) for future in [future for future in self._busy if future in done]]

    def _pass_on(self) -> None:
        """Tells what the workers said meanwhile, of each cell the last."""
        said: dict[str, Step] = {}
        with contextlib.suppress(BlockingIOError):
            while raw := os.read(self._steps.fileno(), 2**16 // MESSAGE * MESSAGE):
                for message in range(0, len(raw), MESSAGE):
                    key, *step = json.loads(raw[message : message + MESSAGE])
                    said[key] = Step(*step)
        for cell, _, tell in self._busy.values():
            if cell.key in said:
                tell(said[cell.key])

    def _heard(self, future: Future[Attempt]) -> tuple[Cell, Attempt]:
        cell, worker, _ = self._busy.pop(future)
        try:
            ended = future.result()
        except BrokenProcessPool:
            code = worker.exit_code()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            if code == -signal.SIGKILL:
                how += ", perhaps because the machine ran out of memory"
            fewer = "" if self.slots == 1 else ", or try --workers 1"
            return cell, Attempt("died", why=how, trace=f"see {self.log}{fewer}")
        self._idle.append(worker)
        return cell, ended


class _Worker:
    """One process, and the pool that it is alone in."""

    def __init__(self, start: tuple[Any, ...]) -> None:
        self.context = _Context()
        self.pool = ProcessPoolExecutor(1, mp_context=self.context, initializer=_begin, initargs=start)

    def kill(self) -> None:
        for process in self.context.started:
            if process.pid is not None:
                process.kill()

    def exit_code(self) -> int:
        """Waits for the process, which is dying; minus the signal that killed it, or its code."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        return next((process.exitcode or 0 for process in self.context.started), 0)


class _Context(SpawnContext):
    """Starts fresh interpreters with one thread each, and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[WorkerProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> WorkerProcess:  # type: ignore[override]  # noqa: N802  # its name there
        process = WorkerProcess(*args, **kwargs)
        self.started.append(process)
        return process


# -- a worker process, seen from inside --------------------------------------------------------------------------------

_job: tuple[Spawn, Store, Connection] | None = None


def _begin(folder: str, out: str, log: str, spawn: Spawn, say: Connection) -> None:
    """Makes a worker of this process: it dies with its parent, and what it prints goes into the log."""
    global _job
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of us; the parent decides
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
        (2, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(folder)
    _job = (spawn, Store(Path(out)), say)


def _compute(cell: Cell) -> Attempt:
    assert _job is not None, "a pool runs its initialiser first"
    spawn, store, say = _job

    def tell(step: Step) -> None:
        message = json.dumps([cell.key, step.words, step.share, step.whole]).encode().ljust(MESSAGE)
        if len(message) == MESSAGE:
            with contextlib.suppress(OSError):  # the pipe is full: the next second tells more
                os.write(say.fileno(), message)

    return attempt_in_worker(spawn, cell, store, tell)


def _end_with_parent() -> NoReturn:
    """Ends this process after its parent, when the interpreter gets its turn: what Linux does at once in any case."""
    process = parent_process()
    assert process is not None, "a worker has a parent"
    wait_for([process.sentinel])
    os._exit(1)
