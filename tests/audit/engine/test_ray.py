"""Cells on a Ray cluster of two nodes: the same bytes as in this process, whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crushproof.audit.engine.cells import DamagedError
from crushproof.audit.engine.driver import run
from crushproof.audit.engine.progress import Silent
from crushproof.audit.engine.ray import RayCluster
from crushproof.audit.engine.store import Store
from crushproof.targets.errors import InputError

TOY = Path(__file__).parents[2] / "helpers" / "toy_work.py"
SMALL_MEMORY = 100 * 2**20  # bytes of a node's object store
SYSTEM = {
    "health_check_initial_delay_ms": 0,  # a lost node is noticed fast
    "health_check_period_ms": 100,
    "health_check_failure_threshold": 5,
    "worker_niceness": 0,  # of Ray's usual 15 a worker waits for every other test on this machine
    "prestart_worker_first_driver": False,  # ours are started with variables of their own
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core; started once, because that takes ten seconds."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    patch.setenv("PYTHONPATH", str(TOY.parent))
    patch.syspath_prepend(str(TOY.parent))
    import ray
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": SMALL_MEMORY, "include_log_monitor": False}
    head = {**node, "include_dashboard": False, "_system_config": SYSTEM, "no_monitor": True}
    started = Cluster(initialize_head=True, head_node_args=head)
    try:
        started.second = started.add_node(**node, num_gpus=1)  # for Ray a GPU is a number; none is looked for
        ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
        yield started
    finally:
        ray.shutdown()
        started.shutdown()
        patch.undo()


@pytest.fixture(scope="module")
def undisturbed(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    run_toy(out, {}, 0)
    return evidence(out)


def run_toy(out: Path, settings: dict[str, Any], workers: int | str, progress: Any = None) -> Any:
    import toy_work

    return toy_work.run_toy(out, settings, workers, progress)


def evidence(out: Path) -> dict[str, bytes]:
    cells = out / "evidence" / "cells"
    return {str(path.relative_to(cells)): path.read_bytes() for path in sorted(cells.rglob("*")) if path.is_file()}


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_a_cluster_gives_the_same_bytes(tmp_path: Path, cluster: Any, undisturbed: dict[str, bytes]) -> None:
    outcome = run_toy(tmp_path, {}, cluster.address)
    assert evidence(tmp_path) == undisturbed
    assert (len(outcome.computed), outcome.stored, outcome.failed, outcome.skipped) == (11, [], {}, {})
    workers = {line["worker"] for line in Store(tmp_path).journal() if line["event"] == "finished"}
    assert str(os.getpid()) not in {worker.partition(":")[2] for worker in workers}
    assert run_toy(tmp_path, {}, cluster.address).computed == []


def test_what_goes_wrong_costs_only_what_needs_it(tmp_path: Path, cluster: Any) -> None:
    wrong = {"chain-0/1": "die once", "chain-1/1": "error", "chain-2/1": "unavailable"}
    notes = Notes()
    settings = {"inject": wrong, "log": str(tmp_path / "log")}
    outcome = run_toy(tmp_path / "out", settings, cluster.address, notes)
    assert sorted(outcome.computed) == ["chain-0/0", "chain-0/1", "chain-0/2", "chain-1/0", "chain-2/0", "root"]
    assert outcome.failed == {"chain-1/1": "RuntimeError: a planted error"}
    assert outcome.skipped.keys() == {"chain-1/2", "last"}
    assert outcome.unavailable["chain-2/1"] == "a planted lack"
    assert [note for note in notes.said if note.endswith("trying once more")] == [
        "the worker at chain-0/1 ended early (WorkerCrashedError: The worker died unexpectedly while executing this "
        "task); trying once more"
    ]


def test_an_error_for_the_user_names_the_node(tmp_path: Path, cluster: Any) -> None:
    with pytest.raises(InputError, match=r"On [^ ]+:\d+: a planted input error"):
        run_toy(tmp_path, {"inject": {"chain-0/0": "input"}}, cluster.address)


def test_gpus_are_asked_for_as_resources(tmp_path: Path, cluster: Any, undisturbed: dict[str, bytes]) -> None:
    import toy_work

    with Store(tmp_path) as store:
        executor = RayCluster(store, ("toy_work:toy", "{}"), address=cluster.address, gpus=1)
        run(toy_work.toy("{}"), store, executor)
        assert executor.slots == 1
        assert evidence(tmp_path) == undisturbed
        greedy = RayCluster(store, ("toy_work:toy", "{}"), address=cluster.address, gpus=2)
        with pytest.raises(InputError, match="Write device: cpu"):
            run(toy_work.toy('{"seed": 1}'), store, greedy)


def test_a_killed_driver_leaves_no_worker_and_resumes(
    tmp_path: Path, cluster: Any, undisturbed: dict[str, bytes]
) -> None:
    command = [sys.executable, str(TOY), str(tmp_path), json.dumps({"seconds": 0.3}), cluster.address]
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    finished: list[dict[str, Any]] = []
    while time.monotonic() < deadline and len(finished) < 3:
        finished = [line for line in Store(tmp_path).journal() if line["event"] == "finished"]
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    assert finished, "the driver got nowhere"
    workers = {int(line["worker"].partition(":")[2]) for line in finished}
    while time.monotonic() < deadline and any(map(alive, workers)):
        time.sleep(0.02)
    assert not any(map(alive, workers)), "workers outlived their driver"
    outcome = run_toy(tmp_path, {}, 0)
    assert set(outcome.stored) >= {line["name"] for line in finished}
    assert evidence(tmp_path) == undisturbed


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_node_killed_half_way_changes_nothing(tmp_path: Path, cluster: Any, undisturbed: dict[str, bytes]) -> None:
    log, hold = tmp_path / "log", tmp_path / "go on"
    log.touch()

    def kill() -> None:
        """Once a cell is at work on each node."""
        deadline = time.monotonic() + 60
        while len(log.read_text().split()) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        cluster.remove_node(cluster.second, allow_graceful=False)
        hold.touch()

    notes = Notes()
    killer = threading.Thread(target=kill)
    killer.start()
    outcome = run_toy(tmp_path / "out", {"log": str(log), "hold": str(hold)}, cluster.address, notes)
    killer.join()
    assert (len(outcome.computed), outcome.failed) == (11, {})
    assert evidence(tmp_path / "out") == undisturbed
    assert sum("is computed again: NodeDiedError" in note for note in notes.said) == 1, notes.said


@pytest.mark.parametrize(
    ("address", "why"), [("127.0.0.1:1", ""), ("127.0.0.1:99999", "no port 99999"), ("nobody.invalid:6379", "")]
)
def test_a_cluster_that_is_not_there(tmp_path: Path, address: str, why: str, cluster: Any) -> None:
    import ray

    ray.shutdown()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InputError, match=f"There is no Ray cluster at .*{why}"):
        run_toy(tmp_path, {}, address)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_what_arrives_damaged_is_not_stored(tmp_path: Path) -> None:
    import numpy as np

    from crushproof.audit.engine.cells import MANIFEST, Result, pack

    parts = pack(Result({"a": np.arange(3)}, {"b": 1}, {"c.bin": b"c"}))
    outside = json.dumps({"../d": "0" * 64}).encode()
    for change in (
        {"document.json": b"{}"},
        {"files/more": b""},
        {MANIFEST: b"[]"},
        {MANIFEST: b"{"},
        {MANIFEST: outside, "../d": b""},
    ):
        with pytest.raises(DamagedError):
            Store(tmp_path).receive("k" * 64, {**parts, **change})
    with pytest.raises(DamagedError):
        Store(tmp_path).receive("k" * 64, {name: raw for name, raw in parts.items() if name != "document.json"})
    assert evidence(tmp_path) == {}
    Store(tmp_path).receive("k" * 64, parts)
    assert Store(tmp_path).parts("k" * 64) == parts
