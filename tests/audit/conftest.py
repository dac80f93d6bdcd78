"""A small audit with its evidence, made once per worker process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from undrawn import undrawn as empty_charts

from crushproof.audit.plan.plan import load_plan
from crushproof.audit.run import run_audit

PLAN = """
name: small
data: {kind: digits}
model: {architecture: "crushproof.training.networks:digits_mlp", training: {epochs: 4}}
candidates:
  int8: int8
  crushed: {kind: prune, sparsity: 0.9}
attacks: [{kind: evasion, epsilon: auto, records: 60, parts: [{kind: pgd, steps: 10}]}, membership, churn]
shadows: {training_free: 2, trained: 2}
policy: limits.yaml
"""
LIMITS = "name: loose\nchanges: {accuracy: -0.2, robust_accuracy: -0.25}\n"


@pytest.fixture(scope="session")
def small_audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with plan.yaml, limits.yaml and the audit in `out`: int8 passes, crushed fails. Copy it to change it."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "plan.yaml").write_text(PLAN)
    (folder / "limits.yaml").write_text(LIMITS)
    with empty_charts():
        run_audit(load_plan(folder / "plan.yaml"), folder, folder / "out", workers=0)
    return folder


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """In this module's reports the charts are empty pictures."""
    with empty_charts():
        yield
