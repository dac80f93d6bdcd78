"""What findings compare, and what they do when something is missing: planted cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cheap_audits import without_forests

import crushproof
from crushproof.audit.plan.plan import Plan
from crushproof.audit.run import run_audit
from crushproof.audit.schema.rows import Audit
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.suite.suite import Suite
from crushproof.audit.verdict.judging import check_verdicts
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records

pytestmark = pytest.mark.usefixtures("undrawn")
PLAN: dict[str, Any] = {
    "name": "few shadows",
    "data": {"kind": "digits"},
    "model": {"architecture": "crushproof.training.networks:digits_mlp", "training": {"epochs": 2}},
    "candidates": {"prune80": {"kind": "prune", "sparsity": 0.8, "fine_tune": {"epochs": 1}}, "int8": "int8"},
    "attacks": ["membership"],
    "shadows": {"training_free": 4, "trained": 2},
    "policy": {"changes": {"tpr_at_1_percent_fpr": 0.05, "auc": 0.05}},
}


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    with without_forests():
        return run_audit(Plan.model_validate(PLAN), Path(), tmp_path_factory.mktemp("few"), workers=0)


def finding(audit: Audit, name: str) -> Any:
    return next(one for one in audit.findings if one.id == name)


def test_a_candidate_under_few_shadows_is_compared_with_its_parent_under_as_few(audit: Audit) -> None:
    full = finding(audit, "dense/membership").estimate.estimate
    assert finding(audit, "int8/membership").changes[0].baseline_estimate == pytest.approx(full)
    suite = Suite(Plan.model_validate(PLAN), resolve(Plan.model_validate(PLAN), Path()))
    assert suite.has("attack/membership/dense/2-shadows")
    assert not suite.has("attack/membership/dense/4-shadows"), "4 are all there are"


def test_more_trained_shadows_than_training_free_ones_are_no_mistake(tmp_path: Path) -> None:
    plan = {**PLAN, "shadows": {"training_free": 2, "trained": 4}}
    with without_forests():
        audit = run_audit(Plan.model_validate(plan), Path(), tmp_path, workers=0, only="prune80/membership")
    assert finding(audit, "prune80/membership").threat_model.budget == "4 shadow models"


def rows(n: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = np.clip(0.5 + 0.12 * rng.standard_normal((n, 6)) + 0.2 * (y[:, None] - 0.5) + shift, 0, 1)
    return x.astype(np.float32), y


@pytest.mark.parametrize(("shift", "flagged"), [(0.0, False), (0.1, True)])
def test_a_shift_between_the_sets_is_not_called_membership(shift: float, flagged: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    train = rows(300, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.from_numpy(train[0])), torch.from_numpy(train[1])).backward()
        optimizer.step()
    result = crushproof.audit_model(
        model,
        train,
        rows(450, 2, shift),
        ["int8"],
        attacks=["membership"],
        shadows={"training_free": 4, "trained": 2},
        training=crushproof.Training(epochs=2),
    )
    found = finding(result.audit, "int8/membership")
    assert ("distribution-shift" in found.flags) == flagged
    assert any("Not attributable to membership" in note for note in found.notes) == flagged
    if flagged:
        assert found.verdict != "pass"


@pytest.mark.usefixtures("without_forests")
def test_shadows_that_do_not_train_are_noticed() -> None:
    """A training function that does nothing would find no leak in any model, and pass it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    train = rows(300, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.from_numpy(train[0])), torch.from_numpy(train[1])).backward()
        optimizer.step()

    def idle(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int) -> torch.nn.Module:
        return module

    result = crushproof.audit_model(
        model,
        train,
        rows(450, 2),
        {"int8": "int8", "labels": {"kind": "limit-answers", "recipe": "quantize"}},
        attacks=["membership"],
        training=idle,
        shadows={"training_free": 8, "trained": 4},
        policy={"changes": {"auc": 0.05, "tpr_at_1_percent_fpr": 0.05}},
    )
    assert "shadows-differ" in finding(result.audit, "int8/membership").flags
    limited = {
        name for name in ("int8", "labels") if "answers-limited" in finding(result.audit, f"{name}/membership").flags
    }
    assert limited == {"labels"}, "whoever holds that file reads the scores behind its layer"
    assert not result.passed


@pytest.mark.parametrize(("high", "what"), [(100.0, "refused"), (6.0, "noted"), (1.0, "nothing")])
def test_bounds_far_wider_than_the_values_are_noticed(high: float, what: str) -> None:
    x, y = rows(200, 5)

    def build() -> Data:
        records = Records(torch.from_numpy(x), torch.from_numpy(y))
        return Data("wide", None, records, Bounds.of(0, high), ("no", "yes"))

    if what == "refused":
        with pytest.raises(crushproof.InputError, match="bounds"):
            build()
    else:
        assert any("quarter" in note for note in build().notes) == (what == "noted")


def test_an_audit_is_not_overwritten_by_another_plan(audit: Audit, tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text(audit.model_dump_json(by_alias=True))
    with pytest.raises(crushproof.InputError, match="--out"):
        run_audit(Plan.model_validate({**PLAN, "name": "another"}), Path(), tmp_path, workers=0)
    (tmp_path / "audit.json").write_text('{"mine": 1}')
    with pytest.raises(crushproof.InputError, match="--out"):
        run_audit(Plan.model_validate(PLAN), Path(), tmp_path, workers=0)


def test_a_changed_verdict_is_noticed(audit: Audit, tmp_path: Path) -> None:
    check_verdicts(audit, tmp_path)
    for verdict in {"pass", "fail", "inconclusive"} - {audit.verdict}:
        with pytest.raises(crushproof.UnsafeInput, match="contradicts itself"):
            check_verdicts(audit.model_copy(update={"verdict": verdict}), tmp_path)


def test_a_test_set_alone_is_enough_and_says_what_is_missing() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    x, y = rows(300, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    recipes = {"prune": "prune30", "int8": "int8", "free": crushproof.Quantize(calibration_inputs="noise")}
    evasion = crushproof.Evasion(epsilons=(0.05,), gate_epsilon=0.05, records=40, parts=("pgd", "transfer"))
    audit = crushproof.audit_model(model, None, rows(200, 4), recipes, attacks=[evasion, "membership"]).audit
    assert {candidate.name for candidate in audit.candidates} == {"dense", "prune", "free"}
    reasons = {row.what: row.reason for row in audit.not_measured}
    assert "no training records" in reasons["prune/membership"]
    assert any("calibration_inputs: noise" in row.reason for row in audit.not_measured if row.candidate == "int8")
    assert finding(audit, "prune/evasion").estimate is not None


def test_the_first_evaluation_records_are_a_random_sample_of_a_sorted_file() -> None:
    y = torch.arange(600) // 60
    x = torch.rand(600, 3, generator=torch.Generator().manual_seed(0))
    names = tuple(str(label) for label in range(10))
    data = Data("sorted", None, Records(x, y), Bounds.of(0, 1), names)
    assert set(data.evaluation.y[:100].tolist()) == set(range(10))
    assert torch.equal(data.non_members.take(data.evaluation_ids).y, data.evaluation.y)
