"""The engine: every cell once, in an order that respects needs, whatever dies on the way."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from crushproof.audit.engine.cells import Cell, Result
from crushproof.audit.engine.driver import run
from crushproof.audit.engine.hearing import Tell
from crushproof.audit.engine.local import Processes
from crushproof.audit.engine.progress import Lines, Silent
from crushproof.audit.engine.schedule import Schedule, expected
from crushproof.audit.engine.store import Store
from crushproof.audit.engine.work import Attempt, CellResults
from crushproof.audit.engine.worker_process import WorkerProcess
from crushproof.targets.errors import Incomplete, InputError

TOY = Path(__file__).parents[2] / "helpers" / "toy_work.py"


@pytest.fixture(autouse=True)
def toy_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(TOY.parent))
    return


def run_toy(out: Path, settings: dict[str, Any], workers: int = 0) -> Any:
    import toy_work

    return toy_work.run_toy(out, settings, workers)


def evidence(out: Path) -> dict[str, bytes]:
    cells = out / "evidence" / "cells"
    return {str(path.relative_to(cells)): path.read_bytes() for path in sorted(cells.rglob("*")) if path.is_file()}


def events(out: Path) -> list[tuple[str, str]]:
    return [(line["event"], line["key"]) for line in Store(out).journal()]


def assert_nothing_finished_was_computed_again(out: Path) -> None:
    finished: set[str] = set()
    for event, key in events(out):
        assert not (event == "started" and key in finished), f"{key} was computed after it had finished"
        if event == "finished":
            finished.add(key)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    sys.path.insert(0, str(TOY.parent))
    try:
        run_toy(out, {})
    finally:
        sys.path.remove(str(TOY.parent))
    return evidence(out)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_give_the_same_bytes(tmp_path: Path, undisturbed: dict[str, bytes], workers: int) -> None:
    outcome = run_toy(tmp_path, {}, workers)
    assert evidence(tmp_path) == undisturbed
    assert sorted(outcome.computed)[-2:] == ["last", "root"]
    assert (len(outcome.computed), outcome.stored, outcome.failed, outcome.skipped) == (11, [], {}, {})
    assert set(outcome.seconds) == {"toy"}
    pids = {line["pid"] for line in Store(tmp_path).journal()}
    assert os.getpid() not in pids
    assert len(pids) <= workers


def test_a_second_run_computes_nothing(tmp_path: Path) -> None:
    run_toy(tmp_path, {})
    again = run_toy(tmp_path, {}, 2)
    assert (again.computed, len(again.stored)) == ([], 11)
    assert len(events(tmp_path)) == 22


def test_another_seed_is_other_work(tmp_path: Path) -> None:
    run_toy(tmp_path, {})
    assert len(run_toy(tmp_path, {"seed": 1}).computed) == 11


def test_some_cells_only(tmp_path: Path) -> None:
    import toy_work

    work = toy_work.toy("{}")
    with Store(tmp_path) as store:
        outcome = run(work, store, cells=[cell for cell in work.cells() if cell.name in ("root", "chain-1/0")])
    assert outcome.computed == ["root", "chain-1/0"]


def test_a_damaged_result_is_computed_anew_and_said_so(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    import toy_work

    run_toy(tmp_path, {})
    work = toy_work.toy("{}")
    victim = work.cells()[2]
    (Store(tmp_path).path(victim.key) / "document.json").write_text("{}")
    with (tmp_path / "log").open("w") as stream, Store(tmp_path) as store:
        outcome = run(work, store, progress=Lines(stream))
    assert outcome.computed == [victim.name]
    assert f"note: the stored result of {victim.name} was damaged" in (tmp_path / "log").read_text()
    assert evidence(tmp_path) == undisturbed


def test_a_failed_cell_costs_only_what_needs_it(tmp_path: Path) -> None:
    outcome = run_toy(tmp_path, {"inject": {"chain-1/1": "error"}})
    assert outcome.failed == {"chain-1/1": "RuntimeError: a planted error"}
    assert outcome.skipped == {"chain-1/2": "chain-1/1", "last": "chain-1/1"}
    assert len(outcome.computed) == 8
    traces = list((tmp_path / "evidence" / "failures").iterdir())
    assert [path.name for path in traces] == ["chain-1_1.txt"]
    assert "a planted error" in traces[0].read_text()
    mended = run_toy(tmp_path, {}, 0)
    assert mended.failed == {}
    assert len(mended.computed) == 3


def test_what_went_wrong_in_workers_is_told_the_same(tmp_path: Path) -> None:
    import toy_work

    settings = {"inject": {"chain-0/2": "not applicable", "chain-1/1": "error", "chain-2/1": "unavailable"}}
    outcome = run_toy(tmp_path, settings, 2)
    assert outcome.failed == {"chain-1/1": "RuntimeError: a planted error"}
    assert outcome.skipped["chain-1/2"] == "chain-1/1"
    assert {outcome.unavailable[name] for name in ("chain-2/1", "chain-2/2")} == {"a planted lack"}
    assert len(outcome.computed) == 6
    trace = (tmp_path / "evidence" / "failures" / "chain-1_1.txt").read_text()
    assert "a planted error" in trace
    keys = {cell.name: cell.key for cell in toy_work.toy(json.dumps(settings)).cells()}
    assert Store(tmp_path).get(keys["chain-0/2"]).document == {"not_applicable": "a planted reason"}


def test_not_applicable_is_a_result(tmp_path: Path) -> None:
    settings = {"inject": {"last": "not applicable"}}
    outcome = run_toy(tmp_path, settings)
    assert "last" in outcome.computed
    import toy_work

    key = toy_work.toy(json.dumps(settings)).cells()[-1].key
    assert Store(tmp_path).get(key).document == {"not_applicable": "a planted reason"}
    assert run_toy(tmp_path, settings).computed == []


def test_what_this_machine_lacks_now_is_never_a_result(tmp_path: Path) -> None:
    outcome = run_toy(tmp_path, {"inject": {"chain-1/1": "unavailable"}})
    assert outcome.unavailable == dict.fromkeys(("chain-1/1", "chain-1/2", "last"), "a planted lack")
    assert (outcome.failed, outcome.skipped, len(outcome.computed)) == ({}, {}, 8)
    later = run_toy(tmp_path, {})
    assert sorted(later.computed) == ["chain-1/1", "chain-1/2", "last"]
    assert later.unavailable == {}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_for_the_user_stops_the_run(tmp_path: Path, workers: int) -> None:
    with pytest.raises(InputError, match="a planted input error"):
        run_toy(tmp_path, {"inject": {"chain-0/0": "input"}}, workers)
    assert len(run_toy(tmp_path, {}).computed) <= 10  # the root at least was kept


def test_work_that_cannot_be_built_in_a_worker(tmp_path: Path) -> None:
    import toy_work

    with Store(tmp_path) as store, pytest.raises(InputError, match="cannot be built"):
        run(toy_work.toy("{}"), store, Processes(store, 1, ("toy_work:toy", '{"explode": 1}')))


def test_a_dead_worker_gets_one_more_try(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    settings = {"inject": {"chain-0/1": "die once"}, "log": str(tmp_path / "log")}
    outcome = run_toy(tmp_path / "out", settings, 2)
    assert outcome.failed == {}
    assert evidence(tmp_path / "out") == undisturbed
    computed = Counter((tmp_path / "log").read_text().splitlines())
    assert computed.pop("chain-0/1") == 2
    assert set(computed.values()) == {1}, "the other worker's cells were disturbed"


def test_a_cell_that_kills_its_worker_twice_fails(tmp_path: Path) -> None:
    outcome = run_toy(tmp_path, {"inject": {"chain-0/1": "die"}}, 2)
    assert "signal 9" in outcome.failed["chain-0/1"]
    assert sorted(outcome.skipped) == ["chain-0/2", "last"]
    assert len(outcome.computed) == 8


def test_a_worker_that_dies_between_two_cells_is_nobodys_fault(tmp_path: Path) -> None:
    import toy_work

    root, other = toy_work.toy("{}").cells()[:2]
    with Store(tmp_path) as store, Processes(store, 1, ("toy_work:toy", "{}")) as processes:
        processes.submit(root, [])
        [(_, report)] = processes.wait()
        victim = int(report.worker.partition(":")[2])
        os.kill(victim, signal.SIGKILL)
        assert die_soon([victim])
        processes.submit(other, [root.key])
        assert [(cell.name, report.event) for cell, report in processes.wait()] in (
            [(other.name, "finished")],
            [(other.name, "died")],  # the pool had not noticed yet; the schedule tries once more
        )


class Told:
    """An executor that computes nothing: it says of each cell what it was told to say, in that order."""

    slots = 2

    def __init__(self, store: Store, told: dict[str, list[Attempt]]) -> None:
        self.store, self.told = store, told
        self.taken: list[tuple[str, list[str]]] = []
        self.waiting: list[Cell] = []

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def submit(self, cell: Cell, needs: Sequence[str], tell: Tell) -> None:
        self.taken.append((cell.name, list(needs)))
        self.waiting.append(cell)
        assert len(self.waiting) <= self.slots

    def wait(self, seconds: float) -> list[tuple[Cell, Attempt]]:
        cell = self.waiting.pop()
        return [(cell, self.told[cell.name].pop(0))]


def run_told(folder: Path, **told: list[Attempt]) -> tuple[Any, Told]:
    class Two:
        def cells(self) -> list[Cell]:
            return [Cell("one", "1" * 64), Cell("two", "2" * 64, ("one",)), Cell("three", "3" * 64)]

        def compute(self, cell: Cell, store: CellResults) -> Result:
            raise AssertionError("only the executor computes")

    with Store(folder) as store:
        executor = Told(store, {"one": [Attempt("finished")], "two": [Attempt("finished")], **told})
        return run(Two(), store, executor), executor


def test_a_cell_pays_for_its_own_deaths_and_not_for_lost_machines(tmp_path: Path) -> None:
    lost, died = Attempt("lost", why="a node went"), Attempt("died", why="was killed", trace="see there")
    outcome, executor = run_told(tmp_path / "a", three=[lost, died, lost, lost, lost, Attempt("finished")])
    assert (outcome.failed, sorted(outcome.computed)) == ({}, ["one", "three", "two"])
    assert [needs for name, needs in executor.taken if name == "two"] == [["1" * 64]]
    outcome, _ = run_told(tmp_path / "b", three=[died, lost, died])
    assert outcome.failed == {"three": "its worker was killed, twice; see there"}
    outcome, _ = run_told(tmp_path / "c", three=[lost] * 5)
    assert outcome.failed == {"three": "given up after 5 attempts: a node went"}
    assert sorted(outcome.computed) == ["one", "two"]


def test_memory_is_this_process_and_the_largest_workers_at_once(tmp_path: Path) -> None:
    def of(worker: str, peak: int) -> list[Attempt]:
        return [Attempt("finished", worker=worker, peak_bytes=peak)]

    base, _ = run_told(tmp_path / "a", three=[Attempt("finished")])
    size = 10**12  # far above what this process may grow meanwhile
    outcome, _ = run_told(tmp_path / "b", one=of("a", size), two=of("b", 4 * size), three=of("c", 2 * size))
    assert 6 * size <= outcome.peak_bytes - base.peak_bytes < 6.1 * size


def test_a_worker_that_means_another_cell_is_noticed(tmp_path: Path) -> None:
    import toy_work

    with Store(tmp_path) as store, pytest.raises(InputError, match="the plan's files changed meanwhile"):
        run(toy_work.toy("{}"), store, Processes(store, 1, ("toy_work:toy", '{"seed": 1}')))
    assert evidence(tmp_path) == {}


def test_what_a_worker_finds_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    outcome = run_toy(tmp_path / "out", {"inject": {"root": "look around"}}, 1)
    assert outcome.failed["root"] == f"RuntimeError: 1 thread, in {tmp_path}, input ''"
    assert (tmp_path / "out" / "evidence" / "workers.log").read_text() == "said by a worker\n"
    assert (os.environ["OMP_NUM_THREADS"], "MKL_NUM_THREADS" in os.environ) == ("7", False)


def test_workers_run_nothing_of_a_script_without_a_guard(tmp_path: Path) -> None:
    import toy_work

    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(toy_work.__file__).parent)!r})\n"
        "import toy_work; from pathlib import Path\n"
        "from crushproof.audit.engine import driver, local, store\n"
        f"with store.Store(Path({str(tmp_path / 'out')!r})) as here:\n"
        "    ours = local.Processes(here, 1, ('toy_work:toy', '{}'))\n"
        "    print(driver.run(toy_work.toy('{}'), here, ours).failed)\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.returncode) == ("{}\n", 0), ran.stderr


def test_a_log_that_cannot_be_written_is_refused_before_a_worker_dies_of_it(tmp_path: Path) -> None:
    Store(tmp_path)
    (tmp_path / "evidence" / "workers.log").mkdir()
    with pytest.raises(InputError, match=r"workers\.log cannot be written"):
        run_toy(tmp_path, {}, 1)


def test_equal_keys_are_computed_once(tmp_path: Path) -> None:
    class Twins:
        calls = 0

        def cells(self) -> list[Cell]:
            return [Cell("one", "k" * 64), Cell("two", "k" * 64), Cell("after", "a" * 64, ("one", "two"))]

        def compute(self, cell: Cell, store: CellResults) -> Result:
            self.calls += 1
            return Result(document={"name": "same"})

    work = Twins()
    with Store(tmp_path) as store:
        outcome = run(work, store)
        assert work.calls == 2
        assert outcome.failed == {}
        assert run(work, store).stored == ["one", "two", "after"]


def test_long_chains_start_first(tmp_path: Path) -> None:
    order: list[str] = []

    class Chains:
        def cells(self) -> list[Cell]:
            short = [Cell(f"short-{number}", f"{number}" * 64) for number in range(3)]
            heavy = Cell("heavy", "h" * 64, weight=2.5)
            chain = [Cell(f"long-{step}", f"{step}a" * 32, (f"long-{step - 1}",) if step else ()) for step in range(3)]
            return [*short, heavy, *chain]

        def compute(self, cell: Cell, store: CellResults) -> Result:
            order.append(cell.name)
            return Result()

    with Store(tmp_path) as store:
        run(Chains(), store)
    assert order == ["long-0", "heavy", "long-1", "short-0", "short-1", "short-2", "long-2"]


def test_weights_are_what_a_phase_was_measured_to_take() -> None:
    cells = [
        Cell("a", "1", phase="long", weight=1),
        Cell("b", "2", phase="long", weight=3),
        Cell("c", "3", phase="short", weight=2),
        Cell("d", "4", phase="new", weight=5),
    ]
    assert expected(cells, {}) == cells
    # A cell of "long" takes 8 s, 4 times its mean weight of 2; "new" takes as the measured ones together: 9 / 4.
    weights = [cell.weight for cell in expected(cells, {"long": 8.0, "short": 1.0, "gone": 7.0})]
    assert weights == pytest.approx([4.0, 12.0, 1.0, 5 * 9 / 4])


def test_a_second_run_orders_by_what_the_first_one_measured(tmp_path: Path) -> None:
    quick, slow = Cell("quick", "q" * 64, phase="quick", weight=2.0), Cell("slow", "s" * 64, phase="slow")
    with Store(tmp_path) as store:
        assert [cell.name for cell in order_of(store, quick, slow)] == ["quick", "slow"]
        for number, (phase, seconds) in enumerate([("quick", 0.5), ("slow", 3.0), ("slow", 5.0)]):
            store.record(Cell(str(number), str(number) * 64, phase=phase), seconds)
        assert store.usual_seconds() == {"quick": 0.5, "slow": 4.0}
        assert [(cell.name, cell.weight) for cell in order_of(store, quick, slow)] == [("slow", 4.0), ("quick", 0.5)]


def order_of(store: Store, *cells: Cell) -> Iterator[Cell]:
    schedule = Schedule(cells, store, Silent())
    while (cell := schedule.next()) is not None:
        yield cell


@pytest.mark.parametrize("cells", [[Cell("a", "1", ("b",)), Cell("b", "2")], [Cell("a", "1"), Cell("a", "2")]])
def test_cells_out_of_order_are_a_mistake(tmp_path: Path, cells: list[Cell]) -> None:
    class Wrong:
        def cells(self) -> list[Cell]:
            return cells

        def compute(self, cell: Cell, store: CellResults) -> Result:
            return Result()

    with Store(tmp_path) as store, pytest.raises(ValueError, match="listed twice, or before"):
        run(Wrong(), store)


def start(out: Path, settings: dict[str, Any], workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(TOY), str(out), json.dumps(settings), str(workers)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def workers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that its new parent has not yet buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def die_soon(processes: list[int]) -> bool:
    """Whether they all end within ten seconds: a signal to a process takes effect a moment after its parent's end."""
    deadline = time.monotonic() + 10
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(alive, processes))


class Noticed:
    """Notes when it is unpickled."""

    def __init__(self, notes: list[Any]) -> None:
        self.notes = notes

    def __reduce__(self) -> tuple[Any, ...]:
        return note, ("state",)


NOTES: list[Any] = []


def note(what: Any) -> None:
    NOTES.append(what)


def test_a_worker_dies_with_its_parent_before_it_imports_what_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    process = WorkerProcess(target=Noticed(NOTES))
    process._config = {}  # its key is pickled for a worker only
    monkeypatch.setattr("crushproof.audit.engine.worker_process.die_with", note)
    pickle.loads(pickle.dumps(process))
    assert [os.getpid(), "state"] == NOTES


def test_kill_at_random_moments_then_resume(tmp_path: Path) -> None:
    """Five kills; whatever was finished is never computed again, and the bytes are those of a quiet run."""
    size = {"width": 4, "length": 6}
    run_toy(tmp_path / "quiet", size)
    out, moments, kills = tmp_path / "out", random.Random(1), 0
    while kills < 5:
        process = start(out, {**size, "seconds": 0.15}, kills % 3)
        try:
            process.wait(timeout=moments.uniform(0.1, 0.8))
        except subprocess.TimeoutExpired:
            children = workers_of(process.pid)
            process.kill()
            process.wait()
            kills += 1
            assert die_soon(children), "workers outlived their parent"
        else:
            assert process.returncode == 0
            break
    assert kills >= 3
    run_toy(out, size)
    assert evidence(out) == evidence(tmp_path / "quiet")
    assert_nothing_finished_was_computed_again(out)
    assert list((out / "evidence" / "temporary").iterdir()) == []


def test_interrupt_keeps_what_is_done(tmp_path: Path) -> None:
    process = start(tmp_path, {"seconds": 0.2}, 2)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and "finished" not in [event for event, _ in events(tmp_path)]:
        time.sleep(0.02)
    children = workers_of(process.pid)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert b"KeyboardInterrupt" in stderr
    assert die_soon(children), "workers outlived their parent"
    assert run_toy(tmp_path, {}).stored != []
    assert_nothing_finished_was_computed_again(tmp_path)


def test_a_second_run_is_refused_and_harms_nothing(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    first = start(tmp_path, {"seconds": 0.1}, 0)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not events(tmp_path):
        time.sleep(0.02)
    with pytest.raises(Incomplete, match=f"process {first.pid} "):
        run_toy(tmp_path, {})
    assert first.wait(timeout=30) == 0
    assert evidence(tmp_path) == undisturbed
    assert_nothing_finished_was_computed_again(tmp_path)
