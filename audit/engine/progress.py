"""How an audit shows where it is: a bar with the time left on a terminal, one plain line per cell otherwise."""

from __future__ import annotations

import sys
from typing import Protocol, TextIO

from .cells import Cell


class Progress(Protocol):
    """Told by the engine what happens."""

    def start(self, todo: list[Cell], stored: int) -> None:
        """`todo` is about to be computed; `stored` other cells are there from before."""

    def begin(self, cell: Cell) -> None: ...

    def end(self, cell: Cell, seconds: float) -> None:
        """`seconds` of CPU time were spent on it."""

    def note(self, text: str) -> None:
        """A sentence the user should see: a damaged result, a worker that was started again."""

    def stop(self) -> None:
        """Nothing more follows; also called after an error."""


class Silent:
    """Shows nothing."""

    def start(self, todo: list[Cell], stored: int) -> None: ...

    def begin(self, cell: Cell) -> None: ...

    def end(self, cell: Cell, seconds: float) -> None: ...

    def note(self, text: str) -> None: ...

    def stop(self) -> None: ...


class Lines:
    """One line per finished cell, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.done, self.total = stream, 0, 0

    def start(self, todo: list[Cell], stored: int) -> None:
        self.total = len(todo)
        kept = f", {stored} kept from before" if stored else ""
        self._print(f"{len(todo)} cells to compute{kept}")

    def begin(self, cell: Cell) -> None: ...

    def end(self, cell: Cell, seconds: float) -> None:
        self.done += 1
        self._print(f"[{self.done:>{len(str(self.total))}}/{self.total}] {cell.name} ({seconds:.1f} s)")

    def note(self, text: str) -> None:
        self._print(f"note: {text}")

    def stop(self) -> None: ...

    def _print(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class Bar:
    """A rich progress bar; its time left weighs cells by their expected effort."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            BarColumn(30),
            TextColumn("{task.fields[cells]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[now]}", markup=False),
            console=Console(file=stream),
            speed_estimate_period=120,
            transient=True,
        )
        self._running: list[str] = []
        self._done, self._total = 0, 0

    def start(self, todo: list[Cell], stored: int) -> None:
        self._total = len(todo)
        self._task = self._bar.add_task("", total=sum(cell.weight for cell in todo), cells=f"0/{len(todo)}", now="")
        if stored:
            self.note(f"{stored} results kept from before")
        self._bar.start()

    def begin(self, cell: Cell) -> None:
        self._running.append(cell.name)
        self._show(0)

    def end(self, cell: Cell, seconds: float) -> None:
        if cell.name in self._running:
            self._running.remove(cell.name)
        self._done += 1
        self._show(cell.weight)

    def note(self, text: str) -> None:
        self._bar.console.print(f"note: {text}", markup=False, highlight=False)

    def stop(self) -> None:
        self._bar.stop()

    def _show(self, weight: float) -> None:
        now = ", ".join(self._running)
        self._bar.update(self._task, advance=weight, cells=f"{self._done}/{self._total}", now=now)


def progress_on(stream: TextIO | None = None) -> Progress:
    """A bar when `stream` (default: standard error) is a terminal, else plain lines."""
    stream = sys.stderr if stream is None else stream
    return Bar(stream) if stream.isatty() else Lines(stream)
