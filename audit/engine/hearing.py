"""What a cell says of itself while it is computed, and the finished parts of it that are kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ...targets.steps import Arrays, Check
from .cells import Cell, DamagedError

OFTEN = 1.0  # seconds between two steps that are told; a step of the outermost loop may follow sooner:
SOONEST = 0.25
LONGEST = 40  # characters of a word


@dataclass(frozen=True)
class Step:
    """How far a cell is.

    Args:
        words: for people: "shadow 3 of 16, epoch 2 of 10".
        share: of the work under way that is done, in [0, 1].
        whole: whether that is all of the cell's work so far, and not the second loop or a later one.
    """

    words: str
    share: float
    whole: bool


STARTED = Step(
    "", 0.0, True
)  # told when a cell is begun with, which a worker that has to load its work first does late
Tell = Callable[[Step], None]


def nobody(step: Step) -> None:
    """Who is told where nobody listens."""


class Keeper(Protocol):
    """Where parts are kept."""

    def part(self, owner: str, name: str, check: Check) -> Arrays | None: ...

    def keep(self, owner: str, name: str, arrays: Arrays) -> None: ...


class Hearing:
    """The listener (`targets.steps`) of one attempt at a cell.

    Loops may be nested: one that is first heard of while another is not at its end is inside that one.

    Args:
        tell: gets a step about once a second.
        clock: in seconds.
    """

    def __init__(self, cell: Cell, keeper: Keeper, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self.notes: list[str] = []  # for the user
        self._cell, self._keeper, self._tell, self._clock = cell, keeper, tell, clock
        self._owner = cell.parts or cell.key
        self._loops: list[tuple[str, int, int]] = []  # what, done, total; the outermost first
        self._whole = True
        self._told, self._outermost = float("-inf"), -1

    def at(self, what: str, done: int, total: int) -> None:
        """See `targets.steps.Listener`."""
        self._place(what, done, total)
        pause = OFTEN if self._loops[0][1] == self._outermost else SOONEST
        if (now := self._clock()) - self._told < pause:
            return
        self._told, self._outermost = now, self._loops[0][1]
        words = ", ".join(f"{what[:LONGEST]} {done} of {total}" for what, done, total in self._loops[:2])
        self._tell(Step(words, self._share(), self._whole))

    def _place(self, what: str, done: int, total: int) -> None:
        """Finds the loop's place among those under way."""
        loops = self._loops
        for depth, (known, before, _) in enumerate(loops):
            if known == what:
                self._whole &= depth > 0 or done >= before  # the outermost has begun anew
                del loops[depth:]
                break
        else:
            while loops and loops[-1][1] >= loops[-1][2]:
                loops.pop()
                self._whole &= bool(loops)
        loops.append((what, done, total))

    def _share(self) -> float:
        share = 0.0
        for _, done, total in reversed(self._loops):
            share = min(1.0, (done + share) / max(1, total))
        return share

    def part(self, name: str, check: Check) -> Arrays | None:
        """See `targets.steps.Listener`; a damaged part is none, and noted."""
        try:
            return self._keeper.part(self._owner, name, check)
        except DamagedError:
            self.notes.append(f"the part {name!r} of {self._cell.name} was damaged; it is computed anew")
            return None

    def keep(self, name: str, arrays: Arrays) -> None:
        """See `targets.steps.Listener`."""
        self._keeper.keep(self._owner, name, arrays)
