"""An attack of another package: what it must say of itself, and what becomes of it when it says less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from synthetic_audit import synthetic_audit

from crushproof.attacks.attack import Attack
from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.evasion.risk import EVASION, ROBUST_ACCURACY
from crushproof.attacks.measurement import Comparison, Found, Mean, Measurement, Rate
from crushproof.attacks.preparation import Need, Ran, Results, Scope
from crushproof.attacks.risk import ACCURACY, PROMISES, QUALITIES, Chart, Metric, Risk
from crushproof.audit.findings.assemble import known_metrics
from crushproof.audit.findings.estimates import change, curves, estimate
from crushproof.audit.findings.finding_rows import measurements
from crushproof.audit.findings.results import AuditResults
from crushproof.audit.plan.plan import Plan
from crushproof.audit.report import risk_views, views
from crushproof.audit.schema import wording
from crushproof.audit.schema.rows import Estimate
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.suite.attack_cells import add_attack
from crushproof.audit.suite.suite import Suite
from crushproof.audit.verdict.gate_sentences import gate_sentence
from crushproof.targets.errors import InputError

DRIFT = Metric(name="drift", title="Drift", subject="the drift", unit="number", better="higher", meaning="m")
RISK = Risk(name="drift", title="D", question="", wants="", harm="", advice=(), reading="", chart=Chart(x="", curve=""))


class Drift(Attack):
    kind: Literal["drift"] = "drift"
    risk: ClassVar[Risk] = RISK
    metrics: ClassVar[tuple[Metric, ...]] = (DRIFT,)
    said: ClassVar[tuple[Measurement, ...]] = ()

    def run(self, case: Case, *, seed: int) -> Evidence:
        return Evidence({}, {})

    def measure(self, results: Results) -> list[Measurement]:
        return list(self.said)


@pytest.fixture(scope="module")
def suite() -> Suite:
    plan = Plan.model_validate(
        {
            "data": {"kind": "digits"},
            "model": {"architecture": "crushproof.training.networks:digits_mlp", "training": {"epochs": 1}},
            "candidates": {"a": "int8"},
            "attacks": ["extraction"],
        }
    )
    return Suite(plan, resolve(plan, Path()))


def said(suite: Suite, monkeypatch: pytest.MonkeyPatch, *measured: Measurement) -> list[Measurement]:
    monkeypatch.setattr(Drift, "said", measured)
    monkeypatch.setitem(vars(suite), "lineup", suite.lineup.__class__((), (), ((Drift(), "drift"),), ()))
    results = AuditResults(suite, lambda name: None, lambda name: f"no {name}", lambda name: ("", ""), "")
    return measurements(results, suite.models["a"], Drift(), "drift")


def test_an_attack_that_says_nothing_is_a_row(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = said(suite, monkeypatch)
    assert (row.metric, row.outcome, row.reason) == (DRIFT, None, "no attack/drift/a")


def test_figures_that_cannot_be_told_apart_or_are_not_declared_are_refused(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Measurement(DRIFT, "drift", Mean(np.arange(3.0)))
    for wrong in ((one, one), (replace(one, detail="unannounced"),)):
        with pytest.raises(InputError, match=r"each is to be one of those it announces \(''\), and none twice"):
            said(suite, monkeypatch, *wrong)
    with pytest.raises(InputError, match="'accuracy', which is not among its `metrics`"):
        said(suite, monkeypatch, Measurement(ACCURACY, "drift", Rate(np.ones(3, dtype=bool))))


@pytest.mark.parametrize("name", ["accuracy", "robust_accuracy"])
def test_no_name_of_a_figure_or_a_risk_hides_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    evasion: Any = Drift.model_construct()
    monkeypatch.setattr(Drift, "metrics", (DRIFT.model_copy(update={"name": name}),))
    with pytest.raises(InputError, match=f"figure {name!r}"):
        known_metrics([(_Other(), "other"), (evasion, "drift")])
    monkeypatch.setattr(Drift, "metrics", (DRIFT,))
    monkeypatch.setattr(Drift, "risk", RISK.model_copy(update={"name": "evasion"}))
    with pytest.raises(InputError, match="risk 'evasion'"):
        known_metrics([(_Other(), "other"), (evasion, "drift")])


class _Other(Drift):
    risk: ClassVar[Risk] = EVASION
    metrics: ClassVar[tuple[Metric, ...]] = (ROBUST_ACCURACY,)


def test_an_attack_that_is_not_planned_hides_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Other, "metrics", (DRIFT.model_copy(update={"name": "accuracy"}),))
    monkeypatch.setattr("crushproof.attacks.attack.ATTACKS.kinds", lambda: {"other": _Other})
    assert known_metrics(()) == {metric.name: metric for metric in (*QUALITIES, *PROMISES)}


def test_a_run_that_comes_later_cannot_be_needed(suite: Suite) -> None:
    class Early(Drift):
        def runs(self, model: Any, scope: Scope) -> Any:
            (run,) = super().runs(model, scope)
            needs: tuple[Need, ...] = (Ran("a"),)
            return (run.__class__(needs=needs),)

    with pytest.raises(InputError, match=r"attack/early/a.*dense ones first"):
        add_attack(suite, Early(), "early")


def test_radii_that_differ_in_the_seventh_digit_are_two_works() -> None:
    attacks = [
        {"kind": "evasion", "records": 100, "epsilons": [epsilon], "parts": ["transfer", "pgd"]}
        for epsilon in (0.1, 0.1000001)
    ]
    plan = Plan.model_validate(
        {
            "data": {"kind": "digits"},
            "model": {"architecture": "crushproof.training.networks:digits_mlp", "training": {"epochs": 1}},
            "candidates": {"a": "int8"},
            "attacks": attacks,
        }
    )
    cells = Suite(plan, resolve(plan, Path())).cells()
    assert sum(cell.name.startswith("transfer/") for cell in cells) == 2


def test_a_curve_and_a_bar_of_any_number() -> None:
    line = Measurement(DRIFT, "drift", None, curves={"main": [(1.0, Mean(np.array([-52.0, -50.0, -48.0])))]})
    assert curves(line)["main"][0].estimate == -50
    ix = views.index(synthetic_audit())
    column = views.columns(ix.audit)[0]
    for (low, high), ends in {
        (-52.0, -48.0): (-100.0, 0.0),
        (20.0, 37.0): (0.0, 50.0),
        (-3.0, 3.0): (-5.0, 5.0),
    }.items():
        one = Estimate(estimate=(low + high) / 2, low=low, high=high, n=9)
        rows = {name: row.model_copy(update={"estimate": one}) for name, row in column.findings.items()}
        scale = risk_views.estimate_scale(views.Column("drift", "drift", DRIFT, "Drift", "", rows))
        assert (scale.low, scale.high) == ends


def test_what_a_search_found_has_no_interval_and_says_what_it_missed() -> None:
    found = estimate(Found(0, 898, "encrypted ones"))
    assert (found.estimate, found.low, found.high, found.n, found.unsearched) == (0, 0, 0, 898, "encrypted ones")
    assert wording.estimate(found, DRIFT) == "0 found"
    assert gate_sentence("a: the drift", DRIFT, found, None, "absolute", 0).startswith(
        "a: the drift is 0 found by this"
    )
    column = views.columns(synthetic_audit())[0]
    one = next(iter(column.findings.values())).model_copy(update={"estimate": found})
    assert wording.finding_words(one, DRIFT).startswith("Drift 0 found by this search; what it would not have found: ")
    with pytest.raises(ValueError, match="what a search found is exact"):
        Estimate(estimate=0, low=0, high=3, n=9, unsearched="u")
    with pytest.raises(ValueError, match="says what it did not search"):
        estimate(Found(0, 5, ""))
    with pytest.raises(TypeError, match="no paired difference"):
        change(Comparison("dense", Found(0, 5, "u"), Found(1, 5, "u")), seed=0)
