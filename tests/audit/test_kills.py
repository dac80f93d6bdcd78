"""Shadow training with a training function of one's own, killed: at most one training is repeated each time."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from crushproof.audit.engine.driver import run
from crushproof.audit.engine.store import Store
from crushproof.audit.plan.plan import Plan
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
