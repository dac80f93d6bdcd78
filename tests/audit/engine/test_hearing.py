"""What cells say while they are computed, and what is kept of them: heard everywhere, once a second, after kills."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from crushproof.audit.engine.cells import Cell, Result
from crushproof.audit.engine.driver import Held, run
from crushproof.audit.engine.hearing import STARTED, Hearing, Step, nobody
from crushproof.audit.engine.local import Processes
from crushproof.audit.engine.progress import Lines, Silent
from crushproof.audit.engine.store import Store
from crushproof.audit.engine.work import CellResults, attempt
from crushproof.targets.recent import Recent
from crushproof.targets.steps import heard_by, kept, pulse

TOY = Path(__file__).parents[2] / "helpers" / "toy_work.py"
ONE = Cell("one", "1" * 64)


@pytest.fixture(autouse=True)
def toy_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(TOY.parent))
    return


class Said(Silent):
    def __init__(self) -> None:
        self.steps: dict[str, list[Step]] = {}
        self.notes: list[str] = []

    def at(self, cell: Cell, step: Step) -> None:
        self.steps.setdefault(cell.name, []).append(step)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_of_cells_reach_the_one_who_waits(tmp_path: Path, workers: int) -> None:
    import toy_work

    said = Said()
    toy_work.run_toy(tmp_path, {"width": 2, "length": 1, "pulses": 2, "seconds": 0.4}, workers, said)
    assert said.steps.keys() == {"root", "chain-0/0", "chain-1/0", "last"}
    for steps in said.steps.values():
        assert (steps[0] == STARTED) or workers
        assert steps[-1].words.startswith("nap ")
        assert [step.share for step in steps] == sorted(step.share for step in steps)


def test_a_chatty_cell_costs_little_and_is_heard_once_a_second(tmp_path: Path) -> None:
    now, steps = [0.0], []
    hearing = Hearing(ONE, Store(tmp_path), steps.append, lambda: now[0])
    with heard_by(hearing):
        for number in range(10_000):  # 10 s
            now[0] += 1e-3
            pulse("step", number, 10_000)
        started = time.process_time()
        for number in range(10_000):
            pulse("step", number, 10_000)
        assert time.process_time() - started < 0.2  # 20 microseconds each, on a slow machine
    assert 38 <= len(steps) <= 42


def test_a_loop_in_a_loop_is_a_share_of_one_step_of_it(tmp_path: Path) -> None:
    now, steps = [0.0], []
    hearing = Hearing(ONE, Store(tmp_path), steps.append, lambda: now[0])

    def at(what: str, done: int, total: int) -> Step:
        now[0] += 2
        hearing.at(what, done, total)
        return steps[-1]

    assert at("shadow", 0, 4) == Step("shadow 0 of 4", 0.0, True)
    assert at("epoch", 0, 2).words == "shadow 0 of 4, epoch 0 of 2"
    assert at("epoch", 1, 2).share == pytest.approx(1 / 8)
    assert at("batch", 5, 10).share == pytest.approx((0 + 1.5 / 2) / 4)
    assert at("shadow", 1, 4) == Step("shadow 1 of 4", 0.25, True)
    assert at("epoch", 1, 2).share == pytest.approx(3 / 8)
    assert at("shadow", 4, 4) == Step("shadow 4 of 4", 1.0, True)
    assert at("query", 1, 4) == Step("query 1 of 4", 0.25, False)  # what came before is over: other work of the cell
    assert at("query", 0, 4) == Step("query 0 of 4", 0.0, False)


def test_only_what_counts_as_outermost_may_begin_anew(tmp_path: Path) -> None:
    now, steps = [0.0], []
    hearing = Hearing(ONE, Store(tmp_path), steps.append, lambda: now[0])
    for what, done in [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("b", 0), ("a", 0)]:
        now[0] += 2
        hearing.at(what, done, 2)
    assert [step.whole for step in steps] == [True] * 5 + [False]


class Counted:
    """A cell of four parts; `stop` after so many computed ones."""

    def __init__(self, cells: list[Cell], stop: int = 99) -> None:
        self.list, self.stop, self.computed = cells, stop, 0

    def cells(self) -> list[Cell]:
        return self.list

    def compute(self, cell: Cell, store: CellResults) -> Result:
        def part() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
            if self.computed == self.stop:
                raise RuntimeError("stopped")
            self.computed += 1
            return {"value": np.arange(3.0) + self.computed}

        return Result(arrays={f"{number}": kept(f"part {number}", part)["value"] for number in range(4)})


def test_finished_parts_survive_the_cell_that_did_not_finish(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        assert run(Counted([ONE], stop=3), store).failed
    mode = {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (tmp_path / "evidence" / "parts").rglob("*")}
    assert mode == {0}
    work, said = Counted([ONE]), Said()
    with Store(tmp_path) as store:
        assert run(work, store, progress=said).failed == {}
        assert (work.computed, said.notes) == (1, [])
        arrays = store.get(ONE.key).arrays
        assert [arrays[str(number)][0] for number in range(4)] == [1.0, 2.0, 3.0, 1.0]
        assert list((tmp_path / "evidence" / "parts").iterdir()) == []  # nobody else shares them


def test_a_damaged_part_is_computed_anew_and_said_so(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        run(Counted([ONE], stop=3), store)
    victim = sorted((tmp_path / "evidence" / "parts").rglob("arrays.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-1])
    work, said = Counted([ONE]), Said()
    with Store(tmp_path) as store:
        run(work, store, progress=said)
    assert work.computed == 2
    [note] = said.notes
    assert note.startswith("the part 'part ")
    assert note.endswith("of one was damaged; it is computed anew")


def test_cells_that_share_parts_leave_them_until_the_audit_is_whole(tmp_path: Path) -> None:
    less, more = Cell("less", "2" * 64, parts="shared"), Cell("more", "3" * 64, parts="shared")
    with Store(tmp_path) as store:
        run(Counted([less]), store)
        work = Counted([more])
        run(work, store)
        assert work.computed == 0
        assert len(list((tmp_path / "evidence" / "parts" / "shared").iterdir())) == 4
        store.drop_parts()
        assert list((tmp_path / "evidence" / "parts").iterdir()) == []


def test_parts_are_there_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; import numpy as np\n"
        "from crushproof.audit.engine.store import Store\n"
        "store = Store(Path(sys.argv[1])); store.keep('owner', 'a', {'x': np.arange(4)})\n"
        "print('kept', flush=True); import time; time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"kept\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    with Store(tmp_path) as store:
        found = store.part("owner", "a")
        assert found is not None
        np.testing.assert_array_equal(found["x"], np.arange(4))
        assert store.part("owner", "b") is None


def test_work_in_memory_keeps_no_parts() -> None:
    """As on a node of a cluster."""
    from crushproof.audit.engine.ray import _InMemory

    results, work = _InMemory({}), Counted([ONE])
    assert attempt(work, ONE, results, nobody).event == "finished"
    assert (work.computed, list(results.parts)) == (4, [ONE.key])


def test_some_cells_are_computed_last_and_by_the_process_that_runs_the_audit(tmp_path: Path) -> None:
    import toy_work

    outcome = toy_work.run_toy(tmp_path, {"alone": True, "width": 1}, 1)
    lines = [line for line in Store(tmp_path).journal() if line["event"] == "started"]
    assert [(line["name"], line["pid"] == os.getpid()) for line in lines][-1] == ("alone", True)
    assert {line["pid"] for line in lines[:-1]}.isdisjoint({os.getpid()})
    assert outcome.computed[-1] == "alone"


def test_runs_may_share_their_workers(tmp_path: Path) -> None:
    import toy_work

    settings = {"width": 1, "length": 2}
    work = toy_work.toy(json.dumps(settings))
    with Store(tmp_path) as store:
        with closing(Held(Processes(store, 1, ("toy_work:toy", json.dumps(settings))))) as executor:
            run(work, store, executor, cells=[])
            assert run(work, store, executor, cells=work.cells()[:2]).computed == ["root", "chain-0/0"]
            assert run(work, store, executor).computed == ["chain-0/1", "last"]
        [pid] = {line["pid"] for line in store.journal()}
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()


def test_what_was_used_last_stays_at_hand_within_bytes() -> None:
    recent: Recent[str] = Recent(10)
    for key, size in [("a", 4), ("b", 4), ("c", 11)]:
        recent.put(key, key.upper(), size)
    assert (recent.get("c"), recent.get("a")) == (None, "A")
    recent.put("d", "D", 4)  # "b" was not used for longest
    assert [recent.get(key) for key in "abd"] == ["A", None, "D"]
    assert recent.find(str.isupper) == "A"
    assert recent.find(str.islower) is None
    recent.put("a", "AA", 10)
    assert (recent.get("a"), recent.get("d"), recent.size) == ("AA", None, 10)


def test_lines_come_while_one_long_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crushproof.audit.engine.driver.TICK", 0.05)
    monkeypatch.setattr("crushproof.audit.engine.progress.QUIET", 1.1)
    monkeypatch.setattr("crushproof.audit.engine.progress.FIRST", 0.2)
    import toy_work

    with (tmp_path / "log").open("w") as stream:
        toy_work.run_toy(tmp_path / "out", {"width": 0, "pulses": 4, "seconds": 0.6}, 0, Lines(stream))
    first, *lines = (tmp_path / "log").read_text().splitlines()
    assert first == "2 steps to compute; times are wall-clock"
    assert any(line.startswith("... 0.") and " left; at root (0." in line and ": nap " in line for line in lines)
    assert [line[:12] for line in lines if line[0] == "["] == ["[1/2] root (", "[2/2] last ("]
