"""Hardening: which ways are tried, in which order, what ends it, and what it says when nothing passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_audit import synthetic_audit

from crushproof.audit.engine.cells import Cell
from crushproof.audit.engine.progress import Progress
from crushproof.audit.hardening.harden import Hardening, Trial, against_dense, fields, harden
from crushproof.audit.hardening.time_limit import TimeUp, Until
from crushproof.audit.plan.plan import Plan, parse_plan
from crushproof.audit.plan.sections import CandidatePlan
from crushproof.audit.schema.rows import Audit, Change
from crushproof.compression.answers import LimitAnswers
from crushproof.compression.chain import Chain
from crushproof.compression.pruning.prune import Prune
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.recipe import RECIPES, Recipe
from crushproof.defenses.adversarial_training import AdversarialTraining
from crushproof.defenses.chain import parse_defenses, steps_of
from crushproof.defenses.defense import DEFENSES, TrainingDefense
from crushproof.defenses.dp_sgd import DpSgd
from crushproof.targets.errors import InputError
from crushproof.training.loop import Training

LINF = {"norm": "linf", "epsilon": 0.1}
PLAN = Plan.model_validate(
    {
        "name": "mine",
        "data": {"kind": "digits"},
        "model": {"architecture": "crushproof.training.networks:digits_mlp"},
        "candidates": {
            "prune80": {"recipe": {"kind": "prune", "sparsity": 0.8, "fine_tune": {"epochs": 3}}, "deploy": "tflite"},
            "int8": "quantize",
            "int2": {"recipe": "quantize", "control": True},
        },
    }
)
Passes = Callable[[CandidatePlan], bool]


def stand_in(passes: Passes) -> Callable[..., Audit]:
    """An audit of invented figures, in which a candidate fails robust accuracy unless its plan `passes`."""
    template = synthetic_audit()
    row = next(one for one in template.candidates if one.name == "prune80")
    finding = next(one for one in template.findings if one.candidate == "prune80" and one.metric == "robust_accuracy")
    gate = next(one for one in template.policy if one.finding == finding.id)

    def run_audit(plan: Plan, folder: Path, out: Path, **_: object) -> Audit:
        rows, gates, findings = [], [], []
        for name, candidate in plan.candidates.items():
            verdict = "pass" if passes(candidate) else "fail"
            recipe = RECIPES.parse(candidate.recipe).model_dump(mode="json")
            defense = None if candidate.defense is None else DEFENSES.parse(candidate.defense).kind
            rows.append(row.model_copy(update={"name": name, "recipe": recipe, "defense": defense, "verdict": verdict}))
            own = f"{name}/evasion"
            findings.append(finding.model_copy(update={"candidate": name, "id": own, "setting": LINF}))
            told = {"candidate": name, "finding": own, "verdict": verdict, "sentence": f"{name}: it is {verdict}."}
            gates.append(gate.model_copy(update=told))
        return template.model_copy(update={"candidates": rows, "policy": gates, "findings": findings})

    return run_audit


def hardened(
    monkeypatch: pytest.MonkeyPatch, passes: Passes, minutes: float = 10, names: tuple[str, ...] = ()
) -> tuple[Hardening, list[str]]:
    monkeypatch.setattr("crushproof.audit.hardening.harden.run_audit", stand_in(passes))
    told: list[str] = []
    return harden(PLAN, Path(), Path("out"), names=names, minutes=minutes, tell=told.append), told


def robust(candidate: CandidatePlan) -> bool:
    """int8 as it is; a pruned model if its parent was trained against attacks and its scores learnt under them."""
    recipe = RECIPES.parse(candidate.recipe)
    trained = candidate.defense is not None and DEFENSES.parse(candidate.defense).kind == "adversarial-training"
    return not isinstance(recipe, Prune) or (trained and recipe.importance == "adversarial-scores")


def test_the_first_way_that_passes_ends_it_and_becomes_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    done, told = hardened(monkeypatch, robust)
    trial = done.found["prune80"]
    assert isinstance(trial.recipe, Prune)
    assert trial.recipe.importance == "adversarial-scores"
    assert isinstance(trial.defense, AdversarialTraining)
    assert trial.defense.method == "pgd", "the cheaper of the two"
    tried = [line.split(": ", 1)[1] for line in told if line.startswith("trying")]
    assert len(tried) == len(set(tried)) == 5, "two ways, a defense, a pair that fails and one that passes"
    assert "then" not in tried[0], "the dense model is trained anew only when its recipe alone does not do"
    plan = parse_plan(done.text, "hardened.yaml")
    assert list(plan.candidates) == [trial.name, "int8"]
    assert plan.candidates[trial.name].deploy == "tflite", "what is no part of the cure stays as it was"
    assert (RECIPES.parse(plan.candidates[trial.name].recipe), DEFENSES.parse(plan.candidates[trial.name].defense)) == (
        trial.recipe,
        trial.defense,
    )


def test_what_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    done, _ = hardened(monkeypatch, lambda candidate: candidate.recipe == "quantize")
    assert (done.found, done.text) == ({}, "")
    assert "prune80: no trial of 8 passes. The best robust accuracy came by " in done.missed["prune80"]
    done, _ = hardened(monkeypatch, lambda candidate: False, minutes=0.0, names=("prune80",))
    assert "The time ended with 8 ways not tried" in done.missed["prune80"]


def test_the_first_audit_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not begun where it cannot fit, given up where it takes longer than was forecast; with the time it takes named."""
    left = [Cell("training", "a", weight=400.0), Cell("attack", "b", ("training",), weight=320.0)]

    def run_audit(*_: object, progress: Progress, **named: object) -> Audit:
        progress.start(left, 0)
        raise AssertionError("it was begun")

    monkeypatch.setattr("crushproof.audit.hardening.harden.run_audit", run_audit)
    wanted = r"takes about 12 min more on 2 cores, and of --minutes 3 about 3 min are left: allow --minutes 13 or more"
    with pytest.raises(TimeUp, match=wanted):
        harden(PLAN, Path(), Path("out"), minutes=3, workers=2)
    until = Until(14, 2)
    until.start(left, 0)
    until.begin(left[0])
    until.ends = 0.0
    with pytest.raises(TimeUp, match="did not end within --minutes 14, longer than was forecast"):
        until.begin(left[1])


def test_a_trial_that_the_time_cuts_short_counts_as_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    audits = stand_in(lambda candidate: False)

    def run_audit(plan: Plan, *rest: Any, **named: Any) -> Audit:
        if "prune80-hardened-2" in plan.candidates:
            raise TimeUp("The time is up.")
        return audits(plan, *rest, **named)

    monkeypatch.setattr("crushproof.audit.hardening.harden.run_audit", run_audit)
    done = harden(PLAN, Path(), Path("out"), names=("prune80",))
    assert "no trial of 1 passes" in done.missed["prune80"]
    assert "The time ended with 7 ways not tried" in done.missed["prune80"]


def test_nothing_to_do_and_nothing_to_do_it_with(monkeypatch: pytest.MonkeyPatch) -> None:
    done, told = hardened(monkeypatch, lambda candidate: True)
    assert (done.found, done.missed, told) == ({}, {}, [])
    assert list(parse_plan(done.text, "x").candidates) == ["prune80", "int8"]
    with pytest.raises(InputError, match="no candidate 'prune'; it has prune80, int8, int2"):
        hardened(monkeypatch, robust, names=("prune",))


def test_what_neither_fails_nor_passes_is_named_and_no_plan_is_written_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """So of a finished file that fails, and of a candidate that could not be made."""
    audits = stand_in(lambda candidate: candidate.recipe == "quantize")

    def run_audit(plan: Plan, *rest: Any, **named: Any) -> Audit:
        audit = audits(plan, *rest, **named)
        rows = [row.model_copy(update={"verdict": "inconclusive"}) for row in audit.candidates if row.name == "int8"]
        return audit.model_copy(update={"candidates": rows, "deciding": ["prune80: The net has no such layer."]})

    monkeypatch.setattr("crushproof.audit.hardening.harden.run_audit", run_audit)
    done = harden(PLAN, Path(), Path("out"))
    assert (done.missed, done.text) == ({}, "")
    assert done.open["prune80"] == "prune80: The net has no such layer."
    assert done.open["int8"].startswith("int8: inconclusive, neither failing nor passing.")
    monkeypatch.setattr("crushproof.audit.hardening.harden.run_audit", stand_in(lambda candidate: False))
    finished = CandidatePlan.model_validate({"file": "finished.onnx", "recipe": "quantize"})
    given = PLAN.model_copy(update={"candidates": {"int8": finished}})
    assert "int8: it is a finished file, which is not made anew." in harden(given, Path(), Path("out")).missed["int8"]


def test_no_defense_passes_by_making_its_own_parent_worse() -> None:
    audit = synthetic_audit()
    row = next(one for one in audit.candidates if one.name == "int8-advtrain")
    assert against_dense(audit, row.model_copy(update={"quality_change_dense": None})) == []
    lost = Change(baseline="dense", baseline_estimate=0.98, difference=-0.06, low=-0.08, high=-0.04)
    (sentence,) = against_dense(audit, row.model_copy(update={"quality_change_dense": lost}))
    assert "accuracy changes by -6.0 points [-8.0, -4.0], beyond the policy's -2.0" in sentence
    perhaps = lost.model_copy(update={"high": -0.01})
    hardened_row = row.model_copy(update={"quality_change_dense": perhaps})
    assert against_dense(audit, hardened_row) == []
    (sentence,) = against_dense(audit, hardened_row, "inconclusive")
    assert "which may be beyond the policy's -2.0" in sentence, "and is said"


def test_a_defense_of_its_answers_stays_behind_the_trained_one() -> None:
    of = CandidatePlan.model_validate({"recipe": "quantize", "defense": "limited-answers", "deploy": "tflite"})
    trial = Trial("mended", of, Quantize(), AdversarialTraining())
    again = CandidatePlan.model_validate(fields(trial))
    assert [one.kind for one in steps_of(parse_defenses(again.defense))] == ["adversarial-training", "limited-answers"]
    assert (RECIPES.parse(again.recipe), again.deploy) == (Quantize(), "tflite")


def test_techniques_answer_what_they_can_answer() -> None:
    tuned = Prune(sparsity=0.8, fine_tune=Training(epochs=2))
    ways = tuned.hardened("robust_accuracy", LINF)
    assert [way.importance for way in ways if isinstance(way, Prune)] == ["magnitude", "adversarial-scores"]
    for way in ways:
        assert isinstance(way, Prune)
        assert way.fine_tune is not None
        assert way.fine_tune.adversarial is not None
        assert (way.fine_tune.epochs, way.fine_tune.adversarial.epsilon) == (6, 0.1)
        assert type(way).model_validate(way.model_dump(mode="json")) == way, "a form that a plan could have"
    nothing: list[tuple[Recipe, str, dict[str, object]]] = [
        (tuned, "auc", LINF),
        (tuned, "robust_accuracy", {"changed": 2}),
        (Quantize(), "robust_accuracy", LINF),
    ]
    for recipe, metric, setting in nothing:
        assert recipe.hardened(metric, setting) == []
    chain = Chain(steps=(tuned, Quantize()))
    assert [len(way.steps) for way in chain.hardened("robust_accuracy", LINF) if isinstance(way, Chain)] == [2, 2]
    shown = LimitAnswers(recipe=tuned)
    assert [way.recipe for way in shown.hardened("robust_accuracy", LINF) if isinstance(way, LimitAnswers)] == ways
    kinds: list[type[TrainingDefense]] = [AdversarialTraining, DpSgd]
    assert [len(kind.proposed("robust_accuracy", LINF)) for kind in kinds] == [2, 0]
    assert [len(kind.proposed("auc", {})) for kind in kinds] == [0, 1]
