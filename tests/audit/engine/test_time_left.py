"""The time left: exact where expectations are, right within a factor of two soon where they are not."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crushproof.audit.engine.cells import Cell
from crushproof.audit.engine.hearing import STARTED, Step
from crushproof.audit.engine.progress import Lines, Standing
from crushproof.audit.engine.time_left import Underway, about, in_words, makespan, remaining, seconds_left

PHASES = ("training", "shadows", "evasion", "extraction")


def audit_of(seed: int, size: int) -> list[Cell]:
    """Cells as an audit has them: a training, then work of several phases, some of it in chains."""
    rng = random.Random(seed)
    cells = [Cell("train", "t", phase="training", weight=rng.uniform(2, 20))]
    for number in range(size):
        phase = rng.choice(PHASES[1:])
        needs = {"train", rng.choice(cells).name} if rng.random() < 0.3 else {"train"}
        cells.append(Cell(f"{phase}/{number}", f"{number}", tuple(sorted(needs)), phase, rng.lognormvariate(1, 0.7)))
    return cells


class Simulated:
    """An audit that runs as the engine runs it, with real times of its own; asked for the time left on the way."""

    def __init__(self, cells: Sequence[Cell], real: dict[str, float], workers: int) -> None:
        self.cells, self.real, self.workers = cells, real, workers
        self.begun: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        chain: dict[str, float] = {}
        for cell in reversed(cells):
            chain[cell.name] = cell.weight + max((chain[o.name] for o in cells if cell.name in o.needs), default=0)
        busy: list[tuple[float, str]] = []
        now = 0.0
        while len(self.ended) < len(cells):
            ready = [c for c in cells if c.name not in self.begun and all(need in self.ended for need in c.needs)]
            for cell in sorted(ready, key=lambda one: -chain[one.name])[: workers - len(busy)]:
                self.begun[cell.name] = now
                heapq.heappush(busy, (now + real[cell.name], cell.name))
            now, name = heapq.heappop(busy)
            self.ended[name] = now
        self.end = now

    def estimate(self, now: float, *, steps: bool = True) -> float:
        finished = {name: self.real[name] for name, end in self.ended.items() if end <= now}
        running = {}
        for name, begun in self.begun.items():
            if begun <= now < self.ended[name]:
                said = (now - begun) * 0.9  # a tenth of its time is it silent
                step = Step("", said / self.real[name], True) if steps else None
                running[name] = Underway(now - begun, step, said, now - begun - said)
        return seconds_left(self.cells, finished, running, self.workers)


def test_a_schedule_by_hand() -> None:
    seconds = {"a": 2.0, "b": 3.0, "c": 4.0, "d": 1.0}
    needs: dict[str, list[str]] = {"a": [], "b": ["a"], "c": [], "d": ["b", "c"]}
    assert makespan(seconds, needs, [], 1) == 10
    assert makespan(seconds, needs, [], 2) == 6  # a b d beside c
    assert makespan({**seconds, "c": 1.0}, needs, ["c"], 1) == 7
    assert makespan({}, {}, [], 3) == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 5))
def test_the_makespan_is_between_its_bounds(seed: int, size: int, workers: int) -> None:
    cells = audit_of(seed, size)
    seconds = {cell.name: cell.weight for cell in cells}
    needs = {cell.name: list(cell.needs) for cell in cells}
    chain: dict[str, float] = {}
    for cell in cells:
        chain[cell.name] = cell.weight + max((chain[need] for need in cell.needs), default=0)
    span, work, longest = makespan(seconds, needs, [], workers), sum(seconds.values()), max(chain.values())
    assert max(work / workers, longest) <= span * (1 + 1e-9)
    assert span <= (work / workers + longest) * (1 + 1e-9)  # Graham 1966
    assert makespan(seconds, needs, [], 1) == pytest.approx(work)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.floats(0, 1))
def test_good_expectations_give_the_very_time(seed: int, workers: int, moment: float) -> None:
    cells = audit_of(seed, 25)
    audit = Simulated(cells, {cell.name: cell.weight for cell in cells}, workers)
    assert audit.estimate(0.0) == pytest.approx(audit.end)
    now = moment * audit.end
    assert audit.estimate(now) == pytest.approx(audit.end - now, rel=1e-3, abs=2.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([0.2, 3.0, 10.0]))
def test_a_machine_that_is_slower_or_faster_than_thought_is_found_out(seed: int, workers: int, factor: float) -> None:
    cells = audit_of(seed, 25)
    audit = Simulated(cells, {cell.name: factor * cell.weight for cell in cells}, workers)
    now = 0.5 * audit.end
    assert 0.6 < (audit.estimate(now) + 1) / (audit.end - now + 1) < 1.7


@pytest.mark.parametrize("steps", [True, False])
def test_within_a_factor_of_two_when_every_phase_is_off_by_its_own(steps: bool) -> None:
    """Phases off by a factor of up to 2.5, cells by up to 1.5 more; asked after a tenth and after half of the time."""
    good, asked = 0, 0
    for seed in range(60):
        rng = random.Random(seed)
        cells = audit_of(seed, 40)
        off = {phase: 2.5 ** rng.uniform(-1, 1) for phase in PHASES}
        real = {cell.name: cell.weight * off[cell.phase] * 1.5 ** rng.uniform(-1, 1) for cell in cells}
        audit = Simulated(cells, real, 1 + seed % 2)
        for moment in (0.1, 0.5):
            now = moment * audit.end
            good += 0.5 <= audit.estimate(now, steps=steps) / (audit.end - now) <= 2
            asked += 1
    assert good >= 0.95 * asked


def test_a_cell_says_better_than_its_weight_how_long_it_takes() -> None:
    assert remaining(100.0, Underway(10.0, Step("", 0.5, True), 10.0)) == pytest.approx(10.0)
    assert remaining(100.0, Underway(14.0, Step("", 0.5, True), 10.0, 4.0)) == pytest.approx(6.0)
    assert remaining(100.0, Underway(50.0, Step("", 0.5, True), 10.0, 40.0)) == pytest.approx(1.0)  # late
    assert remaining(100.0, Underway(10.0)) == pytest.approx(90.0)
    assert remaining(5.0, Underway(50.0)) == pytest.approx(5.0)  # overdue
    # A second loop says how long itself takes, and nothing of what may follow it.
    assert remaining(100.0, Underway(40.0, Step("", 0.5, False), 10.0)) == pytest.approx(60.0)
    assert remaining(30.0, Underway(40.0, Step("", 0.5, False), 10.0)) == pytest.approx(10.0)


def test_the_standing_forgets_what_will_not_be_computed() -> None:
    now = [0.0]
    cells = [Cell("a", "a", weight=10), Cell("b", "b", ("a",), weight=10), Cell("c", "c", weight=10)]
    standing = Standing(cells, lambda: now[0])
    standing.begin(cells[0])
    standing.at(cells[0], Step("", 0.6, True))
    assert standing.share() == pytest.approx(0.2)
    now[0] = 10.0
    standing.end(cells[0], 10.0)
    assert standing.left(1) == pytest.approx(20.0)
    standing.drop([cells[1]])
    assert (standing.left(1), standing.total, standing.done) == (pytest.approx(10.0), 2, 1)


def test_lines_say_what_runs_and_how_long_it_takes() -> None:
    now, stream = [0.0], StringIO()
    lines = Lines(stream, lambda: now[0])
    a, b = Cell("a", "a", phase="x", weight=100), Cell("b", "b", ("a",), phase="x", weight=50)
    lines.start([a, b], 3)
    lines.begin(a)
    lines.at(a, STARTED)
    for second in range(1, 71):
        now[0] = second
        if second % 4 == 0:
            lines.at(a, Step(f"shadow {second // 4} of 20", second / 80, True))
        lines.tick(2)
    lines.end(a, 70.0)
    assert stream.getvalue().splitlines() == [
        "2 steps to compute, 3 kept from before; times are wall-clock",
        "... 4.0 s elapsed, about 2 min left; at a (4.0 s: shadow 1 of 20)",
        "... 33 s elapsed, about 90 s left; at a (33 s: shadow 8 of 20)",
        "... 62 s elapsed, about 60 s left; at a (62 s: shadow 15 of 20)",
        "[1/2] a (70 s)",
    ]


def test_times_in_words() -> None:
    assert [in_words(seconds) for seconds in (0.04, 9.9, 12.4, 200, 3900)] == [
        "0.0 s",
        "9.9 s",
        "12 s",
        "3 min 20 s",
        "1 h 5 min",
    ]
    assert [about(seconds) for seconds in (3, 44, 240, 9000)] == [
        "a few seconds left",
        "about 40 s left",
        "about 4 min left",
        "about 2.5 h left",
    ]
