"""How long an audit will take: the work that is left, at the price that was measured of a pass and a training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .engine.cells import Cell
from .engine.time_left import makespan
from .suite.suite import Suite


@dataclass(frozen=True)
class Forecast:
    """Seconds by the clock.

    Args:
        likely: when about half of the gates are decided in the first round of their attack.
        most: when every attack goes through all its rounds.
        trainings: how many whole trainings that is.
        each: CPU seconds of one.
    """

    likely: float
    most: float
    trainings: float
    each: float

    def sentence(self, workers: int) -> str:
        """`about 6 min on 2 cores (at most 9 min), 112 trainings of 22 s included`."""
        cores = "1 core" if workers == 1 else f"{workers} cores"
        told = f"about {duration(self.likely)} on {cores}"
        if self.most > 1.2 * self.likely:
            told += f" (at most {duration(self.most)}, if every attack needs all its records)"
        if self.trainings >= 1:
            told += f", {self.trainings:.0f} trainings of {duration(self.each)} included"
        return told


def forecast(suite: Suite, stored: Iterable[str], workers: int) -> Forecast:
    """Of all the cells whose keys are not among `stored`."""
    done = set(stored)
    first = [cell for cell in suite.cells_until({}) if cell.key not in done]
    every = [cell for cell in suite.cells() if cell.key not in done]
    low, high = clock(first, workers), clock(every, workers)
    trainings = sum(suite.effort(cell.name).trainings for cell in first)
    return Forecast((low + min(high, 2 * low)) / 2, high, trainings, suite.costs.training)


def clock(cells: list[Cell], workers: int) -> float:
    """Seconds by the clock of these cells on so many workers, as the schedule hands them out."""
    seconds = {cell.key: cell.weight for cell in cells if not cell.alone}
    key_of = {cell.name: cell.key for cell in cells}
    needs = {cell.key: [key_of[need] for need in cell.needs if need in key_of] for cell in cells}
    alone = sum({cell.key: cell.weight for cell in cells if cell.alone}.values())
    return makespan(seconds, needs, (), max(workers, 1)) + alone


def duration(seconds: float) -> str:
    """`45 s`, `6 min`, `2.5 h`: as exact as a forecast is."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
