"""How fast models answer is a piece of work: done once for a machine, after all else, and in no finding's way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crushproof.audit.engine.driver import run
from crushproof.audit.engine.store import Store
from crushproof.audit.plan.plan import Plan
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.suite import model_suite
from crushproof.audit.suite.suite import Suite
from crushproof.targets.untrusted import model_file

PLAN: dict[str, Any] = {
    "name": "timed",
    "data": {"kind": "digits"},
    "model": {"architecture": "crushproof.training.networks:digits_mlp", "training": {"epochs": 3}},
    "candidates": {"int8": "int8", "impossible": {"kind": "factorize", "energy": 1.0}},
    "attacks": [{"kind": "extraction", "budgets": [30]}],
}


def suite() -> Suite:
    plan = Plan.model_validate(PLAN)
    return Suite(plan, resolve(plan, Path()))


def test_models_are_timed_once_for_a_machine_and_parsed_once_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crushproof.targets.untrusted import _check_onnx

    parsed: list[bytes] = []
    parse = _check_onnx.parse
    monkeypatch.setattr(_check_onnx, "parse", lambda data: parsed.append(data) or parse(data))
    monkeypatch.setattr(model_file, "_checked", type(model_file._checked)(2**24))
    work = suite()
    cells = work.closure([model_suite.LATENCY, "memory/dense", "memory/int8"])
    with Store(tmp_path) as store:
        outcome = run(work, store, cells=cells)
        assert (outcome.failed, outcome.computed[-1]) == ({}, model_suite.LATENCY)
        times = store.get(work.cell(model_suite.LATENCY).key).document["latency"]
        assert times.keys() == {"dense", "int8"}  # the third cannot be made
        assert [row["batch"] for row in times["int8"]] == [1, 32, 256]
        assert len(parsed) == len(set(parsed)) == 2
        assert run(suite(), store, cells=cells).computed == []
    monkeypatch.setattr("crushproof.audit.suite.environment.processor", lambda: "another one")
    other = suite()
    changed = [name for name in (cell.name for cell in cells) if other.cell(name).key != work.cell(name).key]
    assert changed == [model_suite.LATENCY]


def test_no_finding_waits_for_times() -> None:
    work = suite()
    findings = work.closure([name for name in (cell.name for cell in work.cells()) if name.startswith("attack/")])
    assert model_suite.LATENCY not in {cell.name for cell in findings}
    assert [cell.name for cell in work.cells() if cell.alone] == [model_suite.LATENCY]
