"""Audits whose plan asks for one shadow model, or for none: what is measured, compared and said; they verify."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cheap_audits import without_forests

from crushproof.audit.plan.plan import Plan
from crushproof.audit.run import run_audit
from crushproof.audit.schema.rows import Audit, Finding
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.suite.suite import Suite
from crushproof.audit.verification.checks import verify

NONE, ONE, NONE_TRAINED, ONE_TRAINED = (
    {"training_free": 0},
    {"training_free": 1},
    {"training_free": 4, "trained": 0},
    {"training_free": 4, "trained": 1},
)


def plan_with(shadows: dict[str, int]) -> Plan:
    plan: dict[str, Any] = {
        "name": "few shadows",
        "data": {"kind": "digits"},
        "model": {"architecture": "crushproof.training.networks:digits_mlp", "training": {"epochs": 2}},
        "candidates": {"tuned": {"kind": "prune", "sparsity": 0.8, "fine_tune": {"epochs": 1}}, "int8": "int8"},
        "attacks": ["membership", "exposure", "ownership", "release-set", "structure"],
        "shadows": shadows,
        "policy": {"changes": {"tpr_at_1_percent_fpr": 0.05, "auc": 0.05}},
    }
    return Plan.model_validate(plan)


Audits = Callable[..., tuple[Audit, Path]]


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> Audits:
    @cache
    def audited(*shadows: tuple[str, int]) -> tuple[Audit, Path]:
        out = tmp_path_factory.mktemp("few")
        with without_forests():
            return run_audit(plan_with(dict(shadows)), Path(), out, workers=0), out

    return audited


def found(audits: Audits, shadows: dict[str, int], name: str) -> Finding:
    audit, _ = audits(*shadows.items())
    return next(one for one in audit.findings if one.id == name)


@pytest.mark.parametrize(
    ("shadows", "model", "scores", "flag", "budget"),
    [
        (NONE, "int8", {"loss", "population", "quantile"}, "no-shadows", "no shadow model"),
        (NONE, "tuned", {"loss", "population", "quantile"}, "no-shadows", "no shadow model"),
        (ONE, "dense", {"loss", "rmia/own"}, "few-shadows", "1 shadow model"),
        (ONE, "int8", {"loss", "rmia/own", "rmia/dense"}, "few-shadows", "1 shadow model"),
        (NONE_TRAINED, "tuned", {"loss", "population", "quantile"}, "no-shadows", "no shadow model"),
    ],
)
def test_membership_is_measured_all_the_same(
    audits: Audits, shadows: dict[str, int], model: str, scores: set[str], flag: str, budget: str
) -> None:
    for name in (f"{model}/membership", f"{model}/membership/auc"):
        one = found(audits, shadows, name)
        assert one.estimate is not None
        assert {part.name for part in one.parts} == scores
        assert flag in one.flags
        assert one.threat_model.budget == budget
        assert one.attack.endswith("named beforehand"), "no shadow can be attacked in the model's place"
        assert any("a low figure says that much less of privacy" in note for note in one.notes), (
            "what it costs in power"
        )
        assert one.verdict != "pass"


@pytest.mark.parametrize(("shadows", "run"), [(NONE_TRAINED, "0-shadows"), (ONE_TRAINED, "1-shadows")])
def test_a_candidate_is_compared_with_its_parent_under_as_few(
    audits: Audits, shadows: dict[str, int], run: str
) -> None:
    """The dense model has four, and beside the candidate that trains no more than that has."""
    plan = plan_with(shadows)
    assert Suite(plan, resolve(plan, Path())).has(f"attack/membership/dense/{run}")
    change = found(audits, shadows, "tuned/membership/auc").changes[0]
    alone = found(audits, NONE if run == "0-shadows" else ONE, "dense/membership/auc").estimate
    assert alone is not None
    assert change.baseline == "dense"
    assert change.baseline_estimate == pytest.approx(alone.estimate)
    full = found(audits, shadows, "dense/membership/auc").estimate
    assert full is not None
    assert found(audits, shadows, "int8/membership/auc").changes[0].baseline_estimate == pytest.approx(full.estimate)


def test_nothing_is_trained_for_nobody_and_what_needs_more_says_so(audits: Audits) -> None:
    plan = plan_with(NONE)
    assert not Suite(plan, resolve(plan, Path())).shared_trainings()
    words = {
        "int8/exposure": "odds need 4 shadow models or more",
        "int8/ownership": "no control models",
        "int8/release-set": "4 shadow models or more",
        "tuned/structure": "fewer than 4 shadow models",
    }
    for name, said in words.items():
        one = found(audits, NONE, name)
        assert one.estimate is None
        assert said in (one.reason or "")


def test_models_without_shadows_take_none_from_the_others(audits: Audits) -> None:
    for shadows in (NONE_TRAINED, ONE_TRAINED):
        assert found(audits, shadows, "int8/exposure").estimate is not None
        assert "odds need 4" in (found(audits, shadows, "tuned/exposure").reason or "")


@pytest.mark.parametrize("shadows", [NONE, ONE, NONE_TRAINED, ONE_TRAINED])
def test_it_verifies_and_the_report_says_how_many_there_were(audits: Audits, shadows: dict[str, int]) -> None:
    audit, out = audits(*shadows.items())
    assert all(check.state != "bad" for check in verify(out))
    (told,) = [one for one in audit.power if one.startswith("Shadow models: ")]
    trained = shadows.get("trained", shadows["training_free"])
    assert f"{shadows['training_free']} for the dense model" in told
    assert f"{trained} for hardened models" in told
    assert any(one.startswith("An attacker with ") for one in audit.power)
