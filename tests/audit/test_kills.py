"""Audits that are killed lose and repeat nothing but the piece of work that they were at, and leave nothing behind.

Twenty kills of two workers in the midst of trainings are benchmarks/kills.py.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from findings_of import findings
from watched import Watched

from crushproof.audit.engine.driver import run
from crushproof.audit.engine.store import Store
from crushproof.audit.plan.plan import Plan, load_plan
from crushproof.audit.run import run_audit
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.suite.suite import Suite

MODEL = """
import time
from pathlib import Path
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def train(module, x, y, seed):
    with (Path(__file__).parent / "begun").open("a") as log:
        log.write(f"{seed}\\n")
    time.sleep(0.1)
    return module
"""
PLAN: dict[str, Any] = {
    "name": "killed",
    "data": {"kind": "digits"},
    "model": {"architecture": "killed_model:build", "training_function": "killed_model:train"},
    "candidates": {"int8": "int8"},
    "attacks": ["membership"],
    "shadows": {"training_free": 6, "trained": 2},
}
LAST = "signals/dense/dense"


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    (tmp_path / "killed_model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Suite(Plan.model_validate(PLAN), resolve(Plan.model_validate(PLAN), tmp_path))


def begun(folder: Path) -> list[str]:
    log = folder / "begun"
    return log.read_text().split() if log.exists() else []


def compute(suite: Suite, out: Path) -> None:
    with Store(out) as store:
        assert run(suite, store, cells=suite.closure([LAST])).failed == {}


def test_a_kill_repeats_at_most_one_training(suite: Suite, tmp_path: Path) -> None:
    torch.set_num_threads(1)  # a child of a fork has no threads but its own
    moments, kills, expected = random.Random(0), 0, 6
    while kills < 2:
        child = os.fork()
        if child == 0:
            try:
                compute(suite, tmp_path / "out")
            finally:
                os._exit(0)
        before, deadline = len(begun(tmp_path)), time.monotonic() + 30
        while len(begun(tmp_path)) < before + 1 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.2))
        os.kill(child, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    compute(suite, tmp_path / "out")
    counted = Counter(begun(tmp_path))
    assert len(counted) == expected
    assert counted.total() - expected <= kills


def test_shadows_that_are_trained_one_by_one_are_pieces_of_work_of_their_own(suite: Suite, tmp_path: Path) -> None:
    def shadows(suite: Suite) -> list[str]:
        return [cell.name for cell in suite.cells() if cell.name.startswith("shadows/")]

    assert shadows(suite) == [f"shadows/dense/{number}" for number in range(6)]
    built_in = Plan.model_validate({**PLAN, "model": {"architecture": "killed_model:build"}})
    assert shadows(Suite(built_in, resolve(built_in, tmp_path))) == ["shadows/dense/0"]


# Trained without an optimiser: torch takes two seconds to load in each process what its first one asks for.
LEAST_SQUARES = """
import os, time
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def train(module, x, y, seed):
    time.sleep(float(os.environ.get("A_TRAINING", "0")))
    x = torch.cat([x.flatten(1), torch.ones(len(x), 1)], 1).double()
    solved = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(65), x.T @ nn.functional.one_hot(y, 10).double())
    module[1].weight.data, module[1].bias.data = 8 * solved[:64].T.float().contiguous(), 8 * solved[64].float()
    return module
"""
WHOLE: dict[str, Any] = {
    "name": "killed",
    "data": {"kind": "digits"},
    "model": {"architecture": "least_squares:build", "training_function": "least_squares:train"},
    "candidates": {"int8": "int8"},
    "attacks": [
        {"kind": "evasion", "epsilons": [0.1], "records": 30, "parts": [{"kind": "pgd", "steps": 3}, "transfer"]},
        "membership",
    ],
    "shadows": {"training_free": 8, "trained": 2},
}


def start(plan: Path, out: Path, *words: str, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "crushproof", "audit", str(plan), "--out", str(out), *words]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, start_new_session=True, env=env, **pipes)


@pytest.mark.usefixtures("undrawn")
def test_kills_at_random_moments_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """And two processes find what one does."""
    plan, out, undisturbed = tmp_path / "plan.yaml", tmp_path / "out", tmp_path / "undisturbed"
    plan.write_text(yaml.safe_dump(WHOLE, sort_keys=False))
    (tmp_path / "least_squares.py").write_text(LEAST_SQUARES)
    run_audit(load_plan(plan), tmp_path, undisturbed, workers=0)
    watched = Watched(tmp_path / "watched", out)
    moments = random.Random(0)
    for workers, signum, code in ((1, signal.SIGKILL, -signal.SIGKILL), (2, signal.SIGTERM, 143)):
        before = len(journal(out))
        process = start(plan, out, "--workers", str(workers), env={**watched.env, "A_TRAINING": "0.2"})
        # Until each of its workers, which are other processes, has finished a cell.
        while process.poll() is None and len({line["pid"] for line in ended(out, before)} - {process.pid}) < workers:
            time.sleep(0.03)
        time.sleep(moments.uniform(0.0, 0.5))
        assert process.poll() is None, process.communicate()[0]
        os.kill(process.pid, signum)
        said = process.communicate(timeout=60)[0]
        if signum == signal.SIGTERM:
            assert "error: terminated. Run the same command again" in said
        assert process.returncode == code
        assert gone_soon(process.pid), "workers outlived their parent"
    watched.assert_silent()
    by_workers = len(ended(out, 0))
    run_audit(load_plan(plan), tmp_path, out, workers=0)
    finished_cells = Counter(line["key"] for line in ended(out, 0))
    assert by_workers < len(finished_cells)
    assert max(finished_cells.values()) == 1
    assert findings(out) == findings(undisturbed)
    assert {path.name for path in out.iterdir()} == {path.name for path in undisturbed.iterdir()}
    assert list((out / "evidence" / "temporary").iterdir()) == []


def journal(out: Path) -> list[str]:
    path = out / "evidence" / "journal.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""  # the last line may be half written
    return whole.splitlines()


def ended(out: Path, before: int) -> list[dict[str, Any]]:
    """The journal's lines of finished cells, but for the first `before` lines."""
    return [line for line in map(json.loads, journal(out)[before:]) if line["event"] == "finished"]


def gone_soon(session: int) -> bool:
    """Whether within ten seconds no process of the session is left; a dead one that nobody took note of is gone."""
    for _ in range(100):
        if not any(alive_in(session, process) for process in psutil.process_iter()):
            return True
        time.sleep(0.1)
    return False


def alive_in(session: int, process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
