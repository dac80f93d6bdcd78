"""How an audit shows where it is: live on a terminal; lines otherwise, one per cell and one now and then.

All times that are shown are wall-clock.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TextIO

from .cells import Cell
from .hearing import Step
from .time_left import Underway, about, in_words, seconds_left

QUIET = 30.0  # seconds at most between two lines about what is under way
FIRST = 5.0  # seconds at most to the first of them
SHOWN = 4  # cells under way that are named


class Progress(Protocol):
    """Told by the engine what happens; `tick` comes from a thread of its own."""

    def start(self, todo: list[Cell], stored: int) -> None:
        """`todo` is about to be computed, in topological order; `stored` other cells are there from before."""

    def begin(self, cell: Cell) -> None: ...

    def at(self, cell: Cell, step: Step) -> None:
        """A cell under way says how far it is."""

    def end(self, cell: Cell, seconds: float) -> None:
        """An attempt is over that is the last; it took so many seconds on the clock."""

    def drop(self, cells: Sequence[Cell]) -> None:
        """These are not computed in this run, because something they need was not."""

    def note(self, text: str) -> None:
        """A sentence the user should see: a damaged result, a worker that was started again."""

    def tick(self, workers: int) -> None:
        """About once a second while cells are computed, `workers` at once."""

    def stop(self) -> None:
        """Nothing more follows; also called after an error."""


class Silent:
    """Shows nothing."""

    def start(self, todo: list[Cell], stored: int) -> None: ...

    def begin(self, cell: Cell) -> None: ...

    def at(self, cell: Cell, step: Step) -> None: ...

    def end(self, cell: Cell, seconds: float) -> None: ...

    def drop(self, cells: Sequence[Cell]) -> None: ...

    def note(self, text: str) -> None: ...

    def tick(self, workers: int) -> None: ...

    def stop(self) -> None: ...


@dataclass
class _Begun:
    """A cell under way: when it began, when the work that its share counts began, and what it said last, and when."""

    at: float
    loop: float
    step: Step | None = None
    said: float = 0.0


class Standing:
    """What is done, under way and left.

    Args:
        clock: in seconds.
    """

    def __init__(self, todo: Sequence[Cell], clock: Callable[[], float]) -> None:
        self._clock, self._began = clock, clock()
        self.todo = {cell.name: cell for cell in todo}
        self.total, self.done = len(todo), 0
        self._finished: dict[str, float] = {}
        self._running: dict[str, _Begun] = {}

    def begin(self, cell: Cell) -> None:
        self._running[cell.name] = _Begun(self._clock(), self._clock())

    def at(self, cell: Cell, step: Step) -> None:
        begun = self._running.get(cell.name)
        if begun is None:
            return
        if begun.step is None:
            begun.at = begun.loop = self._clock()
        if not step.whole and (begun.step is None or begun.step.whole or step.share < begun.step.share):
            begun.loop = self._clock()
        begun.step, begun.said = step, self._clock()

    def end(self, cell: Cell, seconds: float) -> None:
        self._running.pop(cell.name, None)
        self.done += 1
        self._finished[cell.name] = seconds

    def drop(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            self.total -= self.todo.pop(cell.name, None) is not None

    def elapsed(self) -> float:
        return self._clock() - self._began

    def left(self, workers: int) -> float:
        now = self._clock()
        running = {
            name: Underway(now - begun.at, begun.step, begun.said - begun.loop, now - begun.said)
            if begun.step is not None
            else Underway(0.0)  # its worker is starting, which says nothing of the cell
            for name, begun in self._running.items()
        }
        return seconds_left(list(self.todo.values()), self._finished, running, workers)

    def share(self) -> float:
        """Of the expected effort, what is done, in [0, 1]."""
        done = sum(cell.weight for name, cell in self.todo.items() if name in self._finished)
        for name, begun in self._running.items():
            if begun.step is not None and begun.step.whole:
                done += self.todo[name].weight * begun.step.share
        return done / max(sum(cell.weight for cell in self.todo.values()), 1e-9)

    def under_way(self) -> str:
        """`training shadow model 3 (12 s), pgd on int8 (41 s: epsilon 2 of 4)`."""
        now, parts = self._clock(), []
        for name, begun in list(self._running.items())[:SHOWN]:
            said = "starting" if begun.step is None else begun.step.words
            title = self.todo[name].title if name in self.todo else name
            parts.append(f"{title} ({in_words(now - begun.at)}{said and ': '}{said})")
        more = len(self._running) - SHOWN
        return ", ".join(parts) + (f" and {more} more" if more > 0 else "")


class _Shown:
    """Keeps the standing, under a lock; what is shown of it is the subclass's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.lock = clock, threading.RLock()
        self.standing = Standing([], clock)

    def start(self, todo: list[Cell], stored: int) -> None:
        self.standing = Standing(todo, self.clock)

    def begin(self, cell: Cell) -> None:
        with self.lock:
            self.standing.begin(cell)

    def at(self, cell: Cell, step: Step) -> None:
        with self.lock:
            self.standing.at(cell, step)

    def drop(self, cells: Sequence[Cell]) -> None:
        with self.lock:
            self.standing.drop(cells)


class Lines(_Shown):
    """For logs and pipes: a line per finished cell, and every 30 seconds one about what is under way and left."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self.stream, self._told = stream, 0.0

    def start(self, todo: list[Cell], stored: int) -> None:
        super().start(todo, stored)
        kept = f", {stored} kept from before" if stored else ""
        self._print(f"{len(todo)} step{'s'[: len(todo) != 1]} to compute{kept}; times are wall-clock")
        self._told = self.clock() - (QUIET - FIRST)

    def end(self, cell: Cell, seconds: float) -> None:
        with self.lock:
            self.standing.end(cell, seconds)
            done, total = self.standing.done, self.standing.total
            self._print(f"[{done:>{len(str(total))}}/{total}] {cell.title} ({in_words(seconds)})")

    def note(self, text: str) -> None:
        with self.lock:
            self._print(f"note: {text}")

    def tick(self, workers: int) -> None:
        with self.lock:
            if self.clock() - self._told >= QUIET - 1:  # the next tick may be a second late
                self._told = self.clock()
                standing, left = self.standing, about(self.standing.left(workers))
                self._print(
                    f"... {in_words(standing.elapsed())} elapsed, {left}; at {standing.under_way() or 'nothing'}"
                )

    def stop(self) -> None: ...

    def _print(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class Bar(_Shown):
    """A rich progress bar, with the time left and what is under way."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        super().__init__()
        self._bar = RichProgress(
            BarColumn(30),
            TextColumn("{task.fields[cells]}"),
            TimeElapsedColumn(),
            TextColumn("elapsed{task.fields[left]}"),
            TextColumn("{task.fields[now]}", markup=False),
            console=Console(file=stream),
            transient=True,
        )

    def start(self, todo: list[Cell], stored: int) -> None:
        super().start(todo, stored)
        for task in self._bar.task_ids:  # of the round before
            self._bar.remove_task(task)
        self._task = self._bar.add_task("", total=1.0, cells=f"0/{len(todo)}", now="", left="")
        if stored:
            self.note(f"{stored} results kept from before")
        self._bar.start()

    def begin(self, cell: Cell) -> None:
        super().begin(cell)
        self._show()

    def end(self, cell: Cell, seconds: float) -> None:
        with self.lock:
            self.standing.end(cell, seconds)
            self._show()

    def note(self, text: str) -> None:
        self._bar.console.print(f"note: {text}", markup=False, highlight=False)

    def tick(self, workers: int) -> None:
        with self.lock:
            self._show()
            self._bar.update(self._task, left=f", {about(self.standing.left(workers))}")

    def stop(self) -> None:
        self._bar.stop()

    def _show(self) -> None:
        with self.lock:
            standing = self.standing
            cells, now = f"{standing.done}/{standing.total}", standing.under_way()
            self._bar.update(self._task, completed=standing.share(), cells=cells, now=now)


def progress_on(stream: TextIO | None = None) -> Progress:
    """A bar when `stream` (default: standard error) is a terminal, else plain lines."""
    stream = sys.stderr if stream is None else stream
    return Bar(stream) if stream.isatty() else Lines(stream)
