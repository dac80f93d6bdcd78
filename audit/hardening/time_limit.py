"""An end to the time that audits may take: not begun where the forecast is beyond it, given up where it has come."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ...targets.errors import Incomplete
from ..engine.cells import Cell
from ..engine.hearing import Step
from ..engine.progress import Progress, Silent
from ..forecast import clock, duration

ERRS = 0.85  # of what is forecast must fit: it may take less


class TimeUp(Incomplete):
    """The time is up, or would be; what is computed is kept."""


class Until:
    """A `Progress` that hands on what it hears, and ends the run when the time is up.

    A cell that is under way then comes to its end, unless other processes work.

    Args:
        minutes: by the clock, from now on.
        workers: how many cells are computed at once.
    """

    def __init__(self, minutes: float, workers: int, progress: Progress | None = None) -> None:
        self.minutes, self.workers, self.progress = minutes, max(workers, 1), progress or Silent()
        self.ends = time.monotonic() + 60 * minutes

    def start(self, todo: list[Cell], stored: int) -> None:
        """Raises TimeUp: these take longer than is left."""
        takes, left = clock(todo, self.workers), self.ends - time.monotonic()
        if ERRS * takes > left:
            spent = 60 * self.minutes - left
            cores = "1 core" if self.workers == 1 else f"{self.workers} cores"
            raise TimeUp(
                f"The audit takes about {duration(takes)} more on {cores}, and of --minutes {self.minutes:g} "
                f"{f'about {duration(left)} are' if left > 0 else 'nothing is'} left: allow --minutes "
                f"{(spent + takes) / 60 + 1:.0f} or more, or name one candidate with --candidate. What is computed is "
                "kept, and the same command goes on from it."
            )
        self.progress.start(todo, stored)

    def begin(self, cell: Cell) -> None:
        """Raises TimeUp: no more are begun."""
        if time.monotonic() > self.ends:
            raise TimeUp(
                f"The time is up: the audit did not end within --minutes {self.minutes:g}, longer than was forecast. "
                "What is computed is kept, and the same command with more --minutes goes on from it."
            )
        self.progress.begin(cell)

    def at(self, cell: Cell, step: Step) -> None:
        self.progress.at(cell, step)

    def end(self, cell: Cell, seconds: float) -> None:
        self.progress.end(cell, seconds)

    def drop(self, cells: Sequence[Cell]) -> None:
        self.progress.drop(cells)

    def note(self, text: str) -> None:
        self.progress.note(text)

    def tick(self, workers: int) -> None:
        self.progress.tick(workers)

    def stop(self) -> None:
        self.progress.stop()
