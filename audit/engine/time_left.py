"""How long an audit still takes: its cells' expected effort, corrected by how long those took that ran.

Nothing here decides anything; it is for the person who waits.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .cells import Cell
from .hearing import Step

GRACE = 1.0  # seconds: so little time proves nothing, of a cell's pace or of how far off the expectations are
TOLD = 0.02  # share of a cell from which on what it says of itself is believed


@dataclass(frozen=True)
class Underway:
    """A cell that is being computed.

    Args:
        seconds: since it began.
        step: how far it said it was, last; None: it said nothing.
        said: seconds from when the work began that the step's share counts to when it was said.
        since: seconds from when it was said until now.
    """

    seconds: float
    step: Step | None = None
    said: float = 0.0
    since: float = 0.0

    @property
    def share(self) -> float | None:
        """Of the work under way that was done when the step was said, in (0, 1], where that can be believed."""
        return self.step.share if self.step is not None and self.step.share >= TOLD and self.said >= GRACE else None


def seconds_left(
    cells: Sequence[Cell], finished: Mapping[str, float], running: Mapping[str, Underway], workers: int
) -> float:
    """Wall-clock seconds until all cells are computed.

    Args:
        cells: all that were to be computed in this run and are or still can be, what a cell needs before it.
        finished: wall-clock seconds of those that are computed, by name.
        running: those under way, by name.
        workers: how many are computed at once, at least 1.
    """
    ratio = ratios(cells, finished, running)
    left: dict[str, float] = {}
    for cell in cells:
        if cell.name in running:
            left[cell.name] = remaining(cell.weight * ratio(cell.phase), running[cell.name])
        elif cell.name not in finished:
            left[cell.name] = cell.weight * ratio(cell.phase)
    alone = sum(left.pop(cell.name) for cell in cells if cell.alone and cell.name in left)
    needs = {cell.name: [need for need in cell.needs if need in left] for cell in cells if cell.name in left}
    return makespan(left, needs, [name for name in running if name in left], workers) + alone


def ratios(
    cells: Sequence[Cell], finished: Mapping[str, float], running: Mapping[str, Underway]
) -> Callable[[str], float]:
    """By phase, how many wall-clock seconds a second of expected effort takes.

    A phase that was not seen yet is expected to be off as the others were together, but only by a power of it below 1:
    the fewer phases were seen, the less do they prove of another one.
    """
    real: dict[str, float] = {}
    weight: dict[str, float] = {}
    usual: dict[str, list[float]] = {}
    for cell in cells:
        usual.setdefault(cell.phase, []).append(cell.weight)
        seconds, done = 0.0, 0.0
        if cell.name in finished:
            seconds, done = finished[cell.name], cell.weight
        elif cell.name in running:
            now = running[cell.name]
            if now.step is not None and now.step.whole and now.share is not None:
                seconds, done = now.said, cell.weight * now.share
            elif now.seconds > max(cell.weight, GRACE):  # overdue: at least so slow
                seconds, done = now.seconds, cell.weight
        if done:
            real[cell.phase] = real.get(cell.phase, 0.0) + seconds
            weight[cell.phase] = weight.get(cell.phase, 0.0) + done
    overall = (sum(real.values()) + GRACE) / (sum(weight.values()) + GRACE)
    prior = math.pow(overall, len(real) / (len(real) + 1))

    def of(phase: str) -> float:
        if phase not in real:
            return prior
        belief = min(GRACE, sum(usual[phase]) / len(usual[phase]) / 4)
        return (real[phase] + belief * prior) / (weight[phase] + belief)

    return of


def remaining(expected: float, now: Underway) -> float:
    """Seconds that a cell under way still takes, above 0, from what it says and from what it was expected to take."""
    by_weight = max(expected - now.seconds, 0.1 * max(expected, now.seconds))  # overdue: it never says when it ends
    if now.step is None or now.share is None:
        return by_weight
    to_go = now.said * (1 - now.share) / now.share
    by_step = max(to_go - now.since, 0.1 * to_go, 1e-3)
    return by_step if now.step.whole else max(by_step, by_weight)


def makespan(
    seconds: Mapping[str, float], needs: Mapping[str, Sequence[str]], running: Sequence[str], workers: int
) -> float:
    """How long so many workers take when each, as it gets free, takes the start of the longest chain that is ready.

    Args:
        seconds: of each piece of work, those under way included; what it needs stands before it.
        needs: of each, which others must end before.
        running: those that workers are at.
    """
    after: dict[str, list[str]] = {}
    for name in seconds:
        for need in needs[name]:
            after.setdefault(need, []).append(name)
    chain: dict[str, float] = {}
    for name in reversed(list(seconds)):
        chain[name] = seconds[name] + max((chain[one] for one in after.get(name, ())), default=0.0)
    missing = {name: len(needs[name]) for name in seconds}
    ready = [(-chain[name], name) for name in seconds if not missing[name] and name not in running]
    heapq.heapify(ready)
    busy = [(seconds[name], name) for name in running]
    heapq.heapify(busy)
    now = 0.0
    while busy or ready:
        while ready and len(busy) < workers:
            _, name = heapq.heappop(ready)
            heapq.heappush(busy, (now + seconds[name], name))
        now, ended = heapq.heappop(busy)
        for name in after.get(ended, ()):
            missing[name] -= 1
            if not missing[name]:
                heapq.heappush(ready, (-chain[name], name))
    return now


def in_words(seconds: float) -> str:
    """`12 s`, `3 min 20 s`, `1 h 5 min`: of a time that was measured."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def about(seconds: float) -> str:
    """`about 4 min left`: of a time that was guessed, as exact as a guess is."""
    if seconds < 10:
        return "a few seconds left"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s left"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min left"
    return f"about {seconds / 3600:.1f} h left"
