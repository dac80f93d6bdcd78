"""The loop that runs an audit's cells: the schedule says which are ready, an executor computes them somewhere.

Nothing here decides a result: order, place, number of workers and restarts change times only.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol

from ..plan.sections import EnginePlan, RayEngine
from .cells import Cell
from .hearing import Tell
from .local import InProcess, Processes
from .progress import Progress, Silent
from .schedule import Outcome, Schedule
from .store import Store
from .work import Attempt, Spawn, Work, peak_bytes

TICK = 1.0  # seconds


class Executor(Protocol):
    """Where cells are computed. Leaving it ends whatever is still at work."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def slots(self) -> int:
        """How many cells it works at, at once."""

    def submit(self, cell: Cell, needs: Sequence[str], tell: Tell) -> None:
        """Takes a cell; `needs` are keys of the results it reads, all in the store.

        Args:
            tell: hears how far the cell is, inside `submit` and `wait`, where the executor learns of it.
        """

    def wait(self, seconds: float) -> list[tuple[Cell, Attempt]]:
        """The cells that ended, perhaps none, as soon as there is one and after so many seconds at the latest; the
        results of those that finished are in the store.
        """


def run(
    work: Work,
    store: Store,
    executor: Executor | None = None,
    *,
    cells: Sequence[Cell] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Computes every cell that is not in the store. The caller holds the store's lock.

    Args:
        executor: entered only when there is something to compute; default: this process.
        cells: those to run, with all they need, in topological order; default: all.

    Raises:
        CrushproofError: as a cell raised it; the other results are kept.
        KeyboardInterrupt: results so far are kept.
    """
    progress = progress or Silent()
    schedule = Schedule(work.cells() if cells is None else cells, store, progress)
    executor = executor or InProcess(work, store)
    peak = 0
    progress.start([schedule.by_key[key] for key in schedule.todo], len(schedule.stored))
    try:
        if not all(schedule.by_key[key].alone for key in schedule.todo):
            with executor:
                peak = _drive(schedule, executor)
        _drive(schedule, InProcess(work, store), alone=True)
    finally:
        progress.stop()
    return schedule.outcome(peak_bytes() + peak)


def _drive(schedule: Schedule, executor: Executor, *, alone: bool = False) -> int:
    """Until nothing more can be done; the largest resident bytes of its workers together."""
    busy, most = 0, 0
    peaks: dict[str, int] = {}
    with _ticking(schedule.progress, executor.slots):
        while True:
            while busy < executor.slots and (cell := schedule.next(alone=alone)) is not None:
                schedule.progress.begin(cell)
                executor.submit(cell, schedule.needs[cell.key], partial(schedule.progress.at, cell))
                busy += 1
            if busy == 0:
                return sum(sorted(peaks.values(), reverse=True)[:most])
            most = max(most, busy)
            for cell, ended in executor.wait(TICK):
                busy -= 1
                if ended.worker:
                    peaks[ended.worker] = ended.peak_bytes
                schedule.hear(cell, ended)


@contextlib.contextmanager
def _ticking(progress: Progress, workers: int) -> Iterator[None]:
    """Inside the block `progress` ticks, also while this thread is at a cell."""
    over = threading.Event()

    def tick() -> None:
        while not over.wait(TICK):
            with contextlib.suppress(OSError, ValueError):  # nobody can be told: the next line of ours says so
                progress.tick(workers)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Held:
    """An executor that several runs share (`with closing(Held(...)) as executor:`): it starts with the first that has
    something to compute, and ends when it is closed or a run is cut short.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor, self._started = executor, False

    def __enter__(self) -> Held:
        if not self._started:
            self._executor.__enter__()
            self._started = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.close()

    def close(self) -> None:
        if self._started:
            self._executor.__exit__(None, None, None)
            self._started = False

    @property
    def slots(self) -> int:
        return self._executor.slots

    def submit(self, cell: Cell, needs: Sequence[str], tell: Tell) -> None:
        self._executor.submit(cell, needs, tell)

    def wait(self, seconds: float) -> list[tuple[Cell, Attempt]]:
        return self._executor.wait(seconds)


def executor_for(engine: EnginePlan, store: Store, spawn: Spawn | None, *, device: str) -> Executor | None:
    """What a plan's `engine` asks for.

    Args:
        spawn: how a worker builds the work; None when only this process can.
        device: `cpu` or `cuda`, what the cells compute on.

    Returns:
        None for this process.
    """
    if isinstance(engine, RayEngine) and spawn is not None:
        from .ray import RayCluster

        return RayCluster(store, spawn, address=engine.address, gpus=int(device == "cuda"))
    if isinstance(engine, RayEngine) or engine.workers == 0 or spawn is None:
        return None
    return Processes(store, cores() if engine.workers == "auto" else engine.workers, spawn)


def workers_of(engine: EnginePlan) -> int:
    """How many cells are computed at once, as far as this machine knows."""
    if isinstance(engine, RayEngine) or engine.workers == "auto":
        return cores()
    return max(1, engine.workers)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
