"""Findings from recorded evidence are what they were: whatever is moved or rewritten, a figure stays.

`recorded/` holds what the cells of a small audit gave, by cell name, and digests of the findings that were made of it;
both were written by the code as it was before attacks brought their own measurements.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crushproof.audit.engine.cells import Result
from crushproof.audit.findings.finding_rows import finding_row, measurements
from crushproof.audit.findings.results import AuditResults
from crushproof.audit.plan.plan import Plan
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.suite.suite import Suite

RECORDED = Path(__file__).parent / "recorded"
PLAN: dict[str, Any] = {
    "name": "recorded",
    "seed": 3,
    "data": {"kind": "npz", "path": "data.npz", "bounds": [0, 1]},
    "model": {"architecture": "crushproof.training.networks:digits_mlp", "training": {"epochs": 12}},
    "shadows": {"training_free": 6, "trained": 4},
    "candidates": {
        "int4": "int4",
        "pruned": {"kind": "prune", "sparsity": 0.9, "fine_tune": {"epochs": 1}},
        "draws": {
            "recipe": {"kind": "quantize", "weight_bits": 3},
            "defense": {"kind": "stochastic-rounding", "draws": 2},
        },
        "private": {"recipe": "int8", "defense": "dp-sgd"},
        "robust": {
            "recipe": {"kind": "quantize", "weight_bits": 8, "calibration_inputs": "noise"},
            "defense": {"kind": "adversarial-training", "training": {"epochs": 3}},
        },
        "control": {"recipe": "int2", "control": True},
    },
    "attacks": [
        {
            "kind": "evasion",
            "records": 60,
            "parts": [
                {"kind": "pgd", "steps": 5},
                {"kind": "pgd", "steps": 5, "gradients": "native", "label": "native"},
                {"kind": "transfer"},
                {"kind": "square", "queries": 20},
            ],
        },
        {
            "kind": "evasion",
            "norm": "l2",
            "epsilons": [1.0, 3.0],
            "records": 40,
            "parts": [{"kind": "pgd", "steps": 5}, "transfer"],
        },
        {"kind": "membership"},
        {
            "kind": "extraction",
            "budgets": [30, 60],
            "training": {"epochs": 2},
            "least_steps": 10,
            "transfer_records": 40,
        },
    ],
}
ANSWERS = ("evidence/correct", "evidence/predicted")
JUDGED = ("evidence", "evidence_digest", "verdict", "gated", "reason")  # the store's and the policy's, not the attack's


def of_all(answers: Any, ids: Any) -> Any:
    """Answers that were recorded of the evaluation records alone, repeated for the others, which are asked too now."""
    every = np.resize(answers, len(np.load(RECORDED / "data.npz")["y_test"]))
    every[ids] = answers
    return every


@pytest.fixture(scope="module")
def results() -> AuditResults:
    plan = Plan.model_validate(PLAN)
    suite = Suite(plan, resolve(plan, RECORDED))
    documents = json.loads((RECORDED / "documents.json").read_text())
    arrays: dict[str, dict[str, Any]] = {name: {} for name in documents}
    for name, array in np.load(RECORDED / "results.npz").items():
        cell, _, own = name.partition("|")
        arrays[cell][own] = array if own not in ANSWERS else of_all(array, suite.subject.data.evaluation_ids.numpy())

    def get(name: str) -> Result | None:
        document = documents.get(name)
        if document is None or "not_applicable" in document:
            return None
        return Result(arrays=arrays[name], document=document)

    def why(name: str) -> str:
        return str(documents.get(name, {}).get("not_applicable", "unknown"))

    return AuditResults(suite, get, why, lambda name: ("", ""), "crushproof audit")


def digest(finding: dict[str, Any]) -> str:
    """Of what an attack decides; figures to nine digits, because libraries of other versions round otherwise."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.9g}")
        if isinstance(value, dict):
            return {name: rounded(one) for name, one in value.items()}
        return [rounded(one) for one in value] if isinstance(value, list) else value

    own = {name: value for name, value in finding.items() if name not in JUDGED}
    return hashlib.sha256(json.dumps(rounded(own), sort_keys=True).encode()).hexdigest()


def test_recorded_evidence_gives_the_recorded_findings(results: AuditResults) -> None:
    rows = [
        finding_row(results, model, attack, label, one)
        for model in results.suite.models.values()
        for attack, label in results.suite.lineup.attacks
        for one in measurements(results, model, attack, label)
        if one.draw is None
    ]
    found = {row.id: digest(row.model_dump(mode="json")) for row in rows}
    known = json.loads((RECORDED / "findings.json").read_text())
    assert list(found) == list(known)
    assert [name for name in known if found[name] != known[name]] == []
