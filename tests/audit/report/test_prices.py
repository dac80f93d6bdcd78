"""What a point of risk costs, the Pareto front, and the cheapest of several mends; cases worked out by hand."""

from __future__ import annotations

import math

import pytest
from synthetic_audit import synthetic_audit

from crushproof.audit.report import price_views, views
from crushproof.audit.report.price_views import ratio
from crushproof.audit.schema.rows import Audit, Candidate, Change


@pytest.fixture(scope="module")
def audit() -> Audit:
    return synthetic_audit()


def fieller(top: float, top_error: float, bottom: float, bottom_error: float) -> tuple[float, float]:
    """The classical interval of a ratio of two independent normal means (Fieller 1954), of half widths."""
    g = (bottom_error / bottom) ** 2
    middle = top / bottom / (1 - g)
    spread = math.sqrt(top_error**2 + (top / bottom) ** 2 * bottom_error**2 - g * top_error**2) / abs(bottom) / (1 - g)
    return middle - spread, middle + spread


@pytest.mark.parametrize(("top", "top_error"), [(-2.0, 0.5), (-2.0, 3.0), (1.0, 4.0), (3.0, 1.0), (0.0, 1.0)])
def test_a_ratio_of_symmetric_intervals_is_fiellers(top: float, top_error: float) -> None:
    middle, low, high = ratio((top, top - top_error, top + top_error), (10.0, 6.0, 14.0))
    assert middle == pytest.approx(top / 10)
    assert (low, high) == pytest.approx(fieller(top, top_error, 10.0, 4.0))


def test_a_ratio_by_hand() -> None:
    # without error above, only what is below moves it: 2 / 8 and 2 / 4
    assert ratio((2.0, 2.0, 2.0), (5.0, 4.0, 8.0)) == pytest.approx((0.4, 0.25, 0.5))
    assert ratio((-2.0, -2.0, -2.0), (5.0, 4.0, 8.0)) == pytest.approx((-0.4, -0.5, -0.25))
    # without error below it is a plain division, and without both there is none
    assert ratio((1.0, -1.0, 4.0), (2.0, 2.0, 2.0)) == pytest.approx((0.5, -0.5, 2.0))
    assert ratio((0.0, 0.0, 0.0), (5.0, 4.0, 8.0)) == pytest.approx((0.0, 0.0, 0.0))
    # an interval below that reaches more than twice its estimate: still above 0
    _, low, high = ratio((3.0, 2.0, 4.0), (5.0, 4.0, 12.0))
    assert 0 < low < 3 / 5 < high
    for nothing in (0.0, 1e-17):  # as a computed 0 may be
        with pytest.raises(ValueError, match="no interval"):
            ratio((1.0, 0.0, 2.0), (1.0, nothing, 2.0))


def test_a_price_is_the_cost_over_the_paired_gain(audit: Audit) -> None:
    gain = Change(baseline="dense", baseline_estimate=0.4, difference=0.3, low=0.2, high=0.4)
    lost = Change(baseline="dense", baseline_estimate=0.98, difference=-0.02, low=-0.03, high=-0.01)
    finding = next(one for one in audit.findings if one.id == "int8-advtrain/evasion")
    changed = finding.model_copy(update={"changes": [*finding.changes, gain]})
    findings = [changed if one is finding else one for one in audit.findings]
    rows = [
        c.model_copy(update={"quality_change_dense": lost}) if c.name == "int8-advtrain" else c
        for c in audit.candidates
    ]
    ix = views.index(audit.model_copy(update={"findings": findings, "candidates": rows}))
    found = price_views.prices(ix, views.columns(ix.audit))
    price = next(
        p
        for p in found
        if (p.candidate.name, p.against.name, p.column.metric.name) == ("int8-advtrain", "dense", "robust_accuracy")
    )
    assert price.paired
    assert price.gain == pytest.approx((30, 20, 40))
    assert price.quality == pytest.approx((-2 / 30, *fieller(-2, 1, 30, 10)))
    saved = 100 * (price.candidate.footprint.payload_bytes / price.against.footprint.payload_bytes - 1)
    assert price.payload == pytest.approx((saved / 30, saved / 20, saved / 40))
    assert all(p.gain[1] > 0 and p.n > 0 for p in found), "no price where nothing is surely gained"
    assert {p.against.name for p in found if p.candidate.name == "int8-advtrain"} == {"dense", "int8"}


def test_what_learns_under_attack_is_a_defense_too(audit: Audit) -> None:
    """Beside the same recipe without; its longer lessons do not make it another recipe."""
    plain = next(c for c in audit.candidates if c.name == "prune80")
    lesson = {"kind": "prune", "sparsity": 0.8, "importance": "magnitude"}
    own = {**lesson, "fine_tune": {"epochs": 3, "adversarial": None}}
    taught = {**lesson, "importance": "adversarial-scores", "fine_tune": {"epochs": 9, "adversarial": {"epsilon": 0.1}}}
    plain = plain.model_copy(update={"recipe": own})
    robust = plain.model_copy(update={"name": "robust", "recipe": taught})
    ix = views.index(audit.model_copy(update={"candidates": [plain, robust]}))
    assert (price_views.is_hardened(plain), price_views.is_hardened(robust)) == (False, True)
    assert views.counterpart(ix, robust) is plain
    other = plain.model_copy(update={"recipe": {**own, "sparsity": 0.5}})
    assert views.counterpart(views.index(audit.model_copy(update={"candidates": [other, robust]})), robust) is None


def made(audit: Audit, name: str, accuracy: float, payload: int, kept: float) -> tuple[Candidate, object, object]:
    """A candidate of these figures whose worst risk keeps so far within its limit of 0.5."""
    row = next(one for one in audit.candidates if one.name == "int8")
    finding = next(one for one in audit.findings if one.candidate == "int8" and one.metric == "robust_accuracy")
    gate = next(one for one in audit.policy if one.finding == finding.id)
    quality = row.quality.model_copy(update={"estimate": accuracy, "low": accuracy, "high": accuracy})
    size = row.footprint.model_copy(update={"payload_bytes": payload})
    own = {"candidate": name, "finding": f"{name}/evasion", "low": 0.5 + kept, "high": 1.0, "limit": 0.5}
    return (
        row.model_copy(
            update={"name": name, "accuracy": quality, "footprint": size, "worst_risk": f"{name}/evasion"},
        ),
        finding.model_copy(update={"candidate": name, "id": f"{name}/evasion"}),
        gate.model_copy(update=own),
    )


def test_the_front_by_hand(audit: Audit) -> None:
    rows = [
        made(audit, "accurate", 0.99, 400, 0.01),
        made(audit, "small", 0.95, 100, 0.01),
        made(audit, "safe", 0.95, 400, 0.20),
        made(audit, "twin", 0.95, 100, 0.01),  # the same as `small`: neither beats the other
        made(audit, "beaten", 0.94, 400, 0.01),
        made(audit, "beyond", 0.95, 100, -0.05),
    ]
    candidates, findings, gates = zip(*rows, strict=True)
    update = {"candidates": [*candidates], "findings": [*findings], "policy": [*gates]}
    found = price_views.choices(views.index(audit.model_copy(update=update)))
    assert [one.candidate.name for one in found] == ["small", "twin", "accurate", "safe", "beyond", "beaten"]
    assert [one.beaten_by for one in found] == [
        (),
        (),
        (),
        (),
        ("small", "twin"),
        ("accurate", "small", "safe", "twin"),
    ]
    assert price_views.beaten_words(found[-1]) == "beaten by accurate and 3 more"
    assert found[-2].margin == pytest.approx(-0.05)


def test_of_two_mends_the_cheaper_is_named_first(audit: Audit) -> None:
    plain = next(c for c in audit.candidates if c.name == "student")
    mend = next(c for c in audit.candidates if c.name == "student-advtrain")
    finding = next(f for f in audit.findings if f.id == "student-advtrain/evasion")
    passed = finding.model_copy(update={"verdict": "pass"})
    lost = mend.quality.estimate - 0.03
    quality = mend.quality.model_copy(update={"estimate": lost, "low": lost - 0.02, "high": lost + 0.02})
    dear = mend.model_copy(update={"name": "dear", "accuracy": quality})
    theirs = passed.model_copy(update={"id": "dear/evasion", "candidate": "dear"})
    ix = views.index(
        audit.model_copy(
            update={
                "candidates": [dear, *audit.candidates],
                "findings": [theirs, *(passed if f.id == passed.id else f for f in audit.findings)],
            }
        )
    )
    said = price_views.cheapest_fix(ix, plain)
    assert "measured as student-advtrain, itself inconclusive on another count (accuracy " in said
    assert f"n = {plain.quality.n}" in said
    assert "Dearer: dear (accuracy " in said
