"""Churn: against itself nothing changes, a group that alone got worse is named, and equal flips raise no alarm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from torch import Tensor, nn

from crushproof.attacks.case import Evidence
from crushproof.attacks.churn.churn import Churn
from crushproof.attacks.churn.measure import IDENTIFIED_RECORDS, LOW_MARGIN, NEGATIVE, WORST
from crushproof.attacks.churn.risk import WORST_GROUP
from crushproof.attacks.measurement import Measurement, Rate
from crushproof.attacks.statistics.rates import tango
from crushproof.audit.findings.estimates import change
from crushproof.audit.verdict.judging import judge
from crushproof.audit.verdict.policy import Policy, load_policy
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.form import check_arrays


@dataclass
class Known:
    """Stands for `preparation.Results`: the evidence on models by name, one of which is looked at."""

    scope: Any
    model: Any
    found: dict[str, Evidence]
    level: float = 0.95

    def evidence(self, ran: Any) -> Evidence | None:
        return self.found.get(ran.model)

    def why(self, ran: Any) -> str:
        return f"{ran.model} failed"

    def flags(self, model: str) -> set[str]:
        return set()


def measured(data: Any, found: dict[str, Evidence], name: str, *baselines: str) -> dict[str, Measurement]:
    models = {one: SimpleNamespace(is_dense=one == "dense", baselines=("dense",) * (one != "dense")) for one in found}
    model = SimpleNamespace(name=name, baselines=baselines, is_dense=name == "dense")
    results: Any = Known(SimpleNamespace(data=data, models=models), model, found)
    return {one.detail: one for one in Churn().measure(results)}


def share(one: Measurement) -> float:
    assert isinstance(one.outcome, Rate)
    return float(one.outcome.successes.mean())


N = 400
LABELS = np.arange(N) % 4


@pytest.fixture(scope="module")
def grouped() -> Data:
    x = torch.rand((N, 3), generator=torch.Generator().manual_seed(0))
    groups = tuple("old" if row % 5 == 0 else "young" for row in range(N))
    return Data("grouped", None, Records(x, torch.from_numpy(LABELS)), Bounds.of(0, 1), tuple("abcd"), groups)


def answers(wrong: list[int], margin: np.ndarray | None = None) -> Evidence:
    """Of a model that takes these records for the next class, and all others for what they are."""
    predicted = LABELS.copy()
    predicted[wrong] = (predicted[wrong] + 1) % 4
    margins = np.arange(N, dtype=np.float32) if margin is None else margin
    arrays = {"ids": np.arange(N), "predicted": predicted, "correct": predicted == LABELS, "margin": margins}
    return Evidence(arrays, {})


OLD = list(range(0, N, 5))


def test_a_candidate_that_fails_one_group_alone_is_named(grouped: Data) -> None:
    """20 old people, 5 of each class: too few in a class to tell, and beyond chance together."""
    found = {"dense": answers([]), "small": answers(OLD[:20])}
    told = measured(grouped, found, "small", "dense")
    assert told[NEGATIVE].worse == ("group old",)
    assert "group old (20 lost, 0 gained of 80, p = 1.1e-05)" in " ".join(told[NEGATIVE].notes)
    assert share(told[""]) == share(told[NEGATIVE]) == 20 / N
    assert share(told[LOW_MARGIN]) == 8 / 40, "of the 40 records with the smallest margins"
    hit: Any = told[NEGATIVE].groups
    groups = {name: float(one.successes.mean()) for name, one in hit.items()}
    assert groups == {"a": 0.05, "b": 0.05, "c": 0.05, "d": 0.05, "group old": 0.25, "group young": 0.0}
    curve: Any = told[""].curves["changed decisions"]
    assert [at for at, _ in curve] == list(range(1, 11))
    assert sum(int(one.successes.sum()) for _, one in curve) == 20


def test_the_worst_group_is_gated_with_an_interval_over_all_of_them(grouped: Data, tmp_path: Any) -> None:
    """The whole of it lies beyond a limit that one group alone breaks, and no class does."""
    metrics = {metric.name: metric for metric in Churn.metrics}
    policy = load_policy({"changes": {"worst_group_change": -0.1}}, tmp_path, metrics)
    assert isinstance(policy, Policy)
    told = measured(grouped, {"dense": answers([]), "small": answers(OLD[:20])}, "small", "dense")[WORST]
    found = change(told.comparisons[0], seed=0)
    alone = tango(0, 20, 80, 1 - 0.05 / 6)
    assert told.attack.startswith("group old")
    assert (found.difference, found.high) == pytest.approx((-0.25, alone.high)), "6 classes and groups, Bonferroni"
    assert found.low == pytest.approx(alone.low)
    assert found.p_value == pytest.approx(6 * 2 * 0.5**20)
    assert judge(found.low, found.high, -0.1, WORST_GROUP.better) == "fail"
    spread = measured(grouped, {"dense": answers([]), "small": answers(list(range(20)))}, "small", "dense")[WORST]
    even = change(spread.comparisons[0], seed=0)
    assert even.low < -0.1 < even.high, "as many lost, of everybody: what 80 old people cannot rule out stays open"
    assert judge(even.low, even.high, -0.1, WORST_GROUP.better) == "inconclusive"


def test_what_most_compressed_models_change_is_listed_by_id(grouped: Data) -> None:
    found = {"dense": answers([]), "a": answers([7, 8, 9]), "b": answers([8, 9, 30]), "c": answers([9, 31])}
    told = measured(grouped, found, "dense")[IDENTIFIED_RECORDS]
    assert share(told) == 2 / N
    assert told.notes == ("Records by id, those that most models change first: 9, 8.",)
    assert not told.gateable
    two = measured(grouped, {name: found[name] for name in ("dense", "a", "b")}, "dense")[IDENTIFIED_RECORDS]
    assert two.outcome is None
    assert "2 compressed models" in (two.reason or "")
    flips = measured(grouped, found, "a", "dense")[NEGATIVE].notes
    assert flips[-1] == "Records by id, those that dense was surest of first: 9, 8, 7."


def test_as_many_gained_as_lost_raise_no_alarm(grouped: Data) -> None:
    found = {"dense": answers(OLD[:20]), "small": answers(OLD[20:40])}
    told = measured(grouped, found, "small", "dense")
    assert share(told[""]) == 40 / N, "they are churn"
    assert share(told[NEGATIVE]) == 20 / N
    assert told[NEGATIVE].worse == ()
    assert "No class or group got significantly worse" in " ".join(told[NEGATIVE].notes)
    assert measured(grouped, {"dense": found["small"], "small": answers([])}, "small", "dense")[NEGATIVE].worse == ()


def test_dense_against_itself_changes_nothing(digits: Data, dense: nn.Module) -> None:
    attack, case = Churn(), case_of(digits, dense)
    evidence = attack.run(case, seed=0)
    told = measured(digits, {"dense": evidence, "copy": evidence}, "copy", "dense")
    assert [share(told[one]) for one in ("", NEGATIVE, LOW_MARGIN)] == [0, 0, 0]
    assert told[WORST].comparisons[0].own is not told[WORST].comparisons[0].theirs
    assert change(told[WORST].comparisons[0], seed=0).difference == 0
    assert told[NEGATIVE].worse == ()
    assert case.deployed.queries == evidence.ledger.queries == len(digits.evaluation), "one pass"
    best = dense(digits.evaluation.x).detach().sort(1).values
    assert evidence.arrays["margin"] == pytest.approx((best[:, -1] - best[:, -2]).numpy(), abs=1e-4)
    scope: Any = SimpleNamespace(data=digits)
    model: Any = None  # it looks at none
    form = attack.form(model, scope)
    assert form.holds is not None
    assert not callable(form.arrays)
    check_arrays(evidence.arrays, form.arrays or {})
    form.holds(None, evidence.arrays, {})
    other = Evidence({**evidence.arrays, "predicted": (evidence.arrays["predicted"] + 1) % 10}, {})
    with pytest.raises(ValueError, match="does not follow"):
        form.holds(None, other.arrays, {})
    assert attack.asked_again(evidence, case) == []
    assert attack.asked_again(other, case) == ["600 of 600 decisions are others"]


def test_what_cannot_be_compared_is_said(digits: Data, grouped: Data) -> None:
    alone = measured(grouped, {"file": answers([])}, "file")
    assert [(one.outcome, one.reason) for one in alone.values()] == [(None, "the model that it came from is not known")]
    own = measured(grouped, {"dense": answers([])}, "dense")
    assert [one.outcome for one in own.values()] == [None, None], "compared with itself it says nothing"
    missing = measured(grouped, {"small": answers([])}, "small", "dense")
    assert [one.reason for one in missing.values()] == ["dense failed"]

    class Undecided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 10), float("nan"))

    with pytest.raises(NotApplicable, match="NaN"):
        Churn().run(case_of(digits, Undecided()), seed=0)
    sure = replace(case_of(digits, nn.Flatten()), deployed=_Sure())  # the logarithm of a probability of 0
    assert np.isfinite(Churn().run(sure, seed=0).arrays["margin"]).all()


class _Sure:
    queries = 0

    def logits(self, x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10).float().log()
