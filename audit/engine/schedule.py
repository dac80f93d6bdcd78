"""Which cells are to be done, which are ready, and what became of the others."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ...targets.errors import CrushproofError, Incomplete, InputError, NotApplicable, UnsafeInput
from .cells import Cell
from .progress import Progress
from .store import Store
from .work import Attempt, forms_of

TRIES = 2  # a cell whose worker died is tried once more, because the cause may have been a full machine
LOSSES = 5  # so often is a cell given up only when its machine went away each time

_ERRORS: dict[str, type[CrushproofError]] = {
    one.__name__: one for one in (InputError, NotApplicable, Incomplete, UnsafeInput)
}


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


class Schedule:
    """The cells of a run in the order in which they are to start. Cells of one key are one."""

    def __init__(self, cells: Sequence[Cell], store: Store, progress: Progress) -> None:
        self.cells, self.store, self.progress = expected(cells, store.usual_seconds()), store, progress
        self.by_key: dict[str, Cell] = {}
        self.key_of: dict[str, str] = {}
        self.needs: dict[str, list[str]] = {}  # keys by key, each once
        for cell in self.cells:
            unknown = [need for need in cell.needs if need not in self.key_of or self.by_key[self.key_of[need]].alone]
            if cell.name in self.key_of or unknown:
                raise ValueError(
                    f"cell {cell.name!r} is listed twice, or before what it needs, or needs what is computed last: "
                    f"{unknown}"
                )
            self.key_of[cell.name] = cell.key
            self.by_key.setdefault(cell.key, cell)
            self.needs.setdefault(cell.key, list(dict.fromkeys(self.key_of[need] for need in cell.needs)))
        store.expect(forms_of(self.cells))
        self.stored = [key for key in self.by_key if store.has(key)]
        for key in [key for key in self.by_key if key in store.damaged]:
            why = store.damaged.pop(key)
            progress.note(f"the stored result of {self.by_key[key].name} was damaged ({why}); it is computed anew")
        self.todo = [key for key in self.by_key if key not in set(self.stored)]
        if once := [key for key in self.todo if self.by_key[key].once]:
            self._check_first(once)
        self.failed: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.unavailable: dict[str, str] = {}
        self.computed: list[str] = []
        self._tries: Counter[tuple[str, str]] = Counter()
        self._missing = {key: set(self.needs[key]) - set(self.stored) for key in self.todo}
        self._after: dict[str, list[str]] = {}
        for key, missing in self._missing.items():
            for need in missing:
                self._after.setdefault(need, []).append(key)
        self._urgency = self._chains()
        self._position = {key: position for position, key in enumerate(self.todo)}
        self._ready: list[tuple[float, int, str]] = []
        self._alone: list[tuple[float, int, str]] = []  # ready too, and computed when nothing else is
        for key in self.todo:
            self._offer(key)

    def _check_first(self, keys: list[str]) -> None:
        """Raises Incomplete: one of these was computed here before, and is lost."""
        for line in self.store.journal():
            if line.get("event") == "finished" and line.get("key") in keys:
                cell = self.by_key[line["key"]]
                raise Incomplete(
                    f"The stored result of {cell.name} is gone or was damaged, and computed again it would be another: "
                    "its noise is kept nowhere. What else is stored rests on the one that is lost. Put back a copy of "
                    f"{self.store.path(cell.key)}, or begin anew in a folder of its own with --out."
                )

    def _chains(self) -> dict[str, float]:
        """By key, the effort of the longest chain of work that starts with it."""
        urgency: dict[str, float] = {}
        for key in reversed(self.todo):
            urgency[key] = self.by_key[key].weight + max((urgency[one] for one in self._after.get(key, ())), default=0)
        return urgency

    def _offer(self, key: str) -> None:
        if not self._missing[key]:
            ready = self._alone if self.by_key[key].alone else self._ready
            heapq.heappush(ready, (-self._urgency[key], self._position[key], key))

    def next(self, *, alone: bool = False) -> Cell | None:
        """A cell whose needs are met, the start of the longest chain first; None when there is none at the moment.

        Args:
            alone: of those that are computed while nothing else is.
        """
        ready = self._alone if alone else self._ready
        return self.by_key[heapq.heappop(ready)[2]] if ready else None

    def hear(self, cell: Cell, ended: Attempt) -> None:
        """Takes in how an attempt at a cell ended.

        Raises:
            CrushproofError: it ended with an error for the user.
        """
        for note in ended.notes:
            self.progress.note(note)
        match ended.event:
            case "finished":
                self._finish(cell, ended)
            case "failed":
                self._fail(cell, ended.why, ended.trace, ended.wall)
            case "unavailable":
                self._leave(cell, ended)
            case "stop":
                raise _ERRORS.get(ended.error, CrushproofError)(ended.why)
            case "died":
                if self._again(cell, ended, TRIES):
                    self.progress.note(f"the worker at {cell.name} {ended.why}; trying once more")
                else:
                    why = f"its worker {ended.why}, twice; {ended.trace}"
                    self._fail(cell, why, why)
            case "lost":
                if self._again(cell, ended, LOSSES):
                    self.progress.note(f"{cell.name} is computed again: {ended.why}")
                else:
                    why = f"given up after {LOSSES} attempts: {ended.why}"
                    self._fail(cell, why, why)

    def _again(self, cell: Cell, ended: Attempt, most: int) -> bool:
        """Whether the cell gets another try after this event; it is then ready at once."""
        self._tries[ended.event, cell.key] += 1
        if self._tries[ended.event, cell.key] >= most:
            return False
        self._offer(cell.key)
        return True

    def _finish(self, cell: Cell, ended: Attempt) -> None:
        self.computed.append(cell.name)
        self.store.record(cell, ended.seconds)
        self.progress.end(cell, ended.wall)
        for key in self._after.get(cell.key, ()):
            self._missing[key].discard(cell.key)
            self._offer(key)

    def _fail(self, cell: Cell, why: str, trace: str, wall: float = 0.0) -> None:
        """Gives the cell up, and all that need it."""
        self.failed[cell.key] = why
        self.store.log("failed", cell, why=why[:1000])
        self.store.keep_failure(cell, trace)
        self.progress.end(cell, wall)
        self.progress.note(f"{cell.name} failed: {why}")
        behind = self._behind(cell.key)
        self.progress.drop([self.by_key[key] for key in behind])
        for key in behind:
            self.skipped.setdefault(key, cell.name)

    def _leave(self, cell: Cell, ended: Attempt) -> None:
        """Leaves the cell to a later run, and all that need it: this machine lacks something now."""
        why = ended.why
        self.store.log("unavailable", cell, why=why[:1000])
        self.progress.end(cell, ended.wall)
        if why not in self.unavailable.values():
            self.progress.note(f"{cell.name} is left to a later run: {why}")
        behind = self._behind(cell.key)
        self.progress.drop([self.by_key[key] for key in behind])
        for key in (cell.key, *behind):
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


def expected(cells: Sequence[Cell], seconds: dict[str, float]) -> list[Cell]:
    """The cells with weights in seconds that were measured, where there are any.

    Args:
        seconds: CPU seconds that a cell of each phase took on average, in earlier runs. A phase keeps the proportions
            of its modelled weights; one that was never measured is scaled as the measured ones are together.
    """
    modelled: dict[str, list[float]] = {}
    for cell in cells:
        modelled.setdefault(cell.phase, []).append(cell.weight)
    mean = {phase: sum(weights) / len(weights) for phase, weights in modelled.items() if seconds.get(phase, 0.0) > 0}
    scale = {phase: seconds[phase] / mean[phase] for phase in mean}
    overall = sum(seconds[phase] for phase in mean) / sum(mean.values()) if mean else 1.0
    return [replace(cell, weight=cell.weight * scale.get(cell.phase, overall)) for cell in cells]
