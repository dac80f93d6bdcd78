"""Every class counts alike in balanced accuracy: its interval covers, a policy may limit it, the report shows it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from synthetic_audit import synthetic_audit

from crushproof.attacks.risk import QUALITIES
from crushproof.attacks.statistics.balanced import balanced_change, balanced_rate
from crushproof.attacks.statistics.rates import clopper_pearson, paired_change
from crushproof.audit.findings.data_summary import classes_row, data_summary
from crushproof.audit.report.html import to_html
from crushproof.audit.report.terminal import print_audit
from crushproof.audit.schema.rows import Audit
from crushproof.audit.verdict.judging import rejudge
from crushproof.audit.verdict.policy import Policy
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.data.structure import Encoded, Structure


def test_it_is_the_mean_of_the_recalls() -> None:
    stream = np.random.default_rng(0)
    y = np.repeat([0, 1, 3], [200, 30, 12])  # nobody has class 2
    predicted = np.where(stream.random(len(y)) < 0.8, y, 3 - y // 3 * 3)
    found = balanced_rate(predicted == y, y)
    assert found.estimate == pytest.approx(balanced_accuracy_score(y, predicted))
    assert found.low < found.estimate < found.high
    other = np.where(stream.random(len(y)) < 0.7, y, 0)
    change = balanced_change(predicted == y, other == y, y)
    expected = balanced_accuracy_score(y, predicted) - balanced_accuracy_score(y, other)
    assert change.estimate == pytest.approx(expected)
    one = np.zeros(len(y), dtype=int)  # of a single class it is the rate, and its change
    exact, tango = clopper_pearson(int((predicted == y).sum()), len(y)), paired_change(predicted == y, other == y)
    alone, moved = balanced_rate(predicted == y, one), balanced_change(predicted == y, other == y, one)
    assert (alone.low <= exact.low, alone.high >= exact.high) == (True, True)
    assert (moved.low, moved.high) == pytest.approx((tango.low, tango.high))


@pytest.mark.parametrize(
    ("sizes", "rates"),
    [((450, 50), (0.95, 0.6)), ((490, 10), (0.97, 0.5)), ((290, 10), (0.9, 0.98)), ((3,) * 40, (0.75,) * 40)],
)
def test_the_interval_covers_planted_rates(sizes: tuple[int, ...], rates: tuple[float, ...]) -> None:
    """At most 5 % of 200 repetitions miss, up to the luck of 200: 18 and more happen once in 100."""
    stream = np.random.default_rng(1)
    y = np.repeat(np.arange(len(sizes)), sizes)
    missed = 0
    for _ in range(200):
        found = balanced_rate(stream.random(len(y)) < np.asarray(rates)[y], y)
        missed += not found.low <= np.mean(rates) <= found.high
    assert missed < 18


def test_the_change_covers_a_planted_one() -> None:
    """The rare class loses 10 points, the common one none: 5 points of balanced accuracy, 1 of accuracy."""
    stream = np.random.default_rng(2)
    y = np.repeat([0, 1], [270, 30])
    missed = below = 0
    for _ in range(150):
        before = stream.random(len(y)) < np.array([0.95, 0.8])[y]
        lost = before & (stream.random(len(y)) < np.array([0.0, 0.125])[y])
        found = balanced_change(before & ~lost, before, y)
        missed += not found.low <= -0.05 <= found.high
        below += found.estimate < 0
    assert missed < 15
    assert below > 100


def uneven_audit() -> Audit:
    """The synthetic audit on data of two classes, 450 and 50 records; candidates lose on the rare one alone."""
    audit = synthetic_audit()
    n = 750
    x = torch.rand(n, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1:] = torch.eye(2)[torch.arange(n) % 2]
    names = ("rate", "sex=f", "sex=m")
    structure = Structure(names, (1, 2), ((1, 2),), encoded=(Encoded("sex", ("f", "m")),))
    y = (torch.arange(n) % 10 == 0).long()
    data = Data("people", None, Records(x, y), Bounds.of(0, 1), ("common", "rare"), structure=structure)
    labels = data.non_members.y.numpy()
    parents = np.ones(len(labels), dtype=bool)
    kept = ~((labels == 1) & (np.cumsum(labels) % 3 == 0))  # a third of the rare class is lost
    rows = [
        one.model_copy(
            update={
                "classes": classes_row(data, parents if one.parent is None else kept, one.parent, parents),
                "quality_change": one.quality_change
                and one.quality_change.model_copy(
                    update={"baseline_estimate": 1.0, "difference": -0.033, "low": -0.046, "high": -0.02}
                ),
            }
        )
        for one in audit.candidates
    ]
    metrics = {**audit.metrics, **{metric.name: metric for metric in QUALITIES}}
    return audit.model_copy(update={"candidates": rows, "data": data_summary(data), "metrics": metrics})


def test_a_policy_may_limit_it_where_accuracy_hides_the_loss() -> None:
    audit = uneven_audit()
    change = rejudge(audit, Policy(name="mine", changes={"balanced_accuracy": -0.05}))
    assert change.verdict == "fail"
    assert all("balanced accuracy is" in gate.sentence for gate in change.policy)
    assert {gate.rule for gate in change.policy} == {"balanced_accuracy"}
    floor = rejudge(audit, Policy(name="mine", absolutes={"balanced_accuracy": 0.6}))
    assert {gate.verdict for gate in floor.policy} == {"pass"}
    unknown = audit.model_copy(
        update={"candidates": [one.model_copy(update={"classes": None}) for one in audit.candidates]}
    )
    assert rejudge(unknown, Policy(name="mine", absolutes={"balanced_accuracy": 0.5})).verdict == "inconclusive"
    assert rejudge(audit, Policy(name="plain", changes={"accuracy": -0.08})).verdict == "pass"


def test_it_is_shown_where_classes_are_uneven(capsys: pytest.CaptureFixture[str]) -> None:
    audit = uneven_audit()
    page = to_html(audit.model_copy(update={"findings": []}))
    assert "accuracy hides" in page
    assert "Recall of rare" in page
    assert "0/1 features in this order: f, m" in page
    print_audit(audit)
    assert "balanced" in capsys.readouterr().out
    even = audit.candidates[0].classes
    assert even is not None
    level = [one.model_copy(update={"classes": even.model_copy(update={"uneven": False})}) for one in audit.candidates]
    print_audit(audit.model_copy(update={"candidates": level}))
    assert "balanced" not in capsys.readouterr().out
    assert Audit.model_validate_json(audit.model_dump_json(by_alias=True)) == audit
