"""DIVA against a linear program on linear nets, and what a dense model makes of inputs that fool its candidates."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from scipy.optimize import linprog
from torch import Tensor, nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.case import Case
from crushproof.attacks.evasion.ascent.losses import Goal, losses
from crushproof.attacks.evasion.black_box.square import Square
from crushproof.attacks.evasion.blocks import Sought, seek
from crushproof.attacks.evasion.call import attackable as call
from crushproof.attacks.evasion.engine import Perturber
from crushproof.attacks.evasion.evade import evade
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.diva import Diva
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.attacks.evasion.preparations.evade_only import EvadeOnly
from crushproof.attacks.preparation import Prepared
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.training.ball import Ball

N, FEATURES, EPSILON = 60, 12, 0.12


@pytest.fixture(scope="module")
def nets() -> tuple[nn.Linear, nn.Linear]:
    """A linear net of two classes, and one like it."""
    torch.manual_seed(0)
    dense = nn.Linear(FEATURES, 2)
    near = copy.deepcopy(dense)
    near.weight.data += 0.08 * torch.randn(2, FEATURES)
    return dense.requires_grad_(False), near.requires_grad_(False)


@pytest.fixture(scope="module")
def case(nets: tuple[nn.Linear, nn.Linear]) -> Case:
    dense, near = nets
    x = torch.rand(N, FEATURES)
    y = dense(x).argmax(1)
    both = near(x).argmax(1) == y
    made = call.case_of(call.attackable(near, (FEATURES,)), Records(x[both], y[both]))
    return replace(made, parent=dense, bounds=Bounds.of(0, 1))


def tried(part: Perturber, case: Case, batch: int = 64, goal: Goal = "untargeted") -> Sought:
    y = case.evaluation.y if goal == "untargeted" else 1 - case.evaluation.y
    records = Records(case.evaluation.x, y)
    region = Ball("linf", EPSILON, records.x, case.bounds)
    everybody = torch.ones(len(records), dtype=torch.bool)
    return seek(part, case, records, case.ids, region, among=everybody, seed=0, ledger=Ledger(), batch=batch, goal=goal)


def exact(nets: tuple[nn.Linear, nn.Linear], case: Case) -> Tensor:
    """Whether any input near each record is right for the first net and wrong for the second, by linear programming."""
    found = []
    for x, label in zip(case.evaluation.x.double(), case.evaluation.y.tolist(), strict=True):
        (right, ahead), (wrong, behind) = (
            ((net.weight[label] - net.weight[1 - label]).tolist(), float(net.bias[label] - net.bias[1 - label]))
            for net in nets
        )
        low = (x - EPSILON).clamp_min(0)
        high = (x + EPSILON).clamp_max(1)
        solved = linprog(
            [*np.zeros(FEATURES), -1],  # the most by which both can be so
            A_ub=[[*(-one for one in right), 1], [*wrong, 1]],
            b_ub=[ahead, -behind],
            bounds=[*zip(low.tolist(), high.tolist(), strict=True), (None, None)],
        )
        found.append(-solved.fun > 1e-5)
    return torch.tensor(found)


def alone(nets: tuple[nn.Linear, nn.Linear], case: Case, found: Sought) -> Tensor:
    """bool [n], asked anew: the candidate errs within epsilon, the dense net does not."""
    dense, near = nets
    x, y = found.best, case.evaluation.y
    inside = Ball("linf", EPSILON, case.evaluation.x, case.bounds).contains(x)
    return inside & (near(x).argmax(1) != y) & (dense(x).argmax(1) == y)


def test_it_finds_what_there_is_and_nothing_else(nets: tuple[nn.Linear, nn.Linear], case: Case) -> None:
    there = exact(nets, case)
    assert 5 < there.sum() < len(there) - 5
    found, pgd = (alone(nets, case, tried(part, case)) for part in (Diva(), Pgd(steps=20)))
    assert not (found & ~there).any()
    assert found.sum() >= 0.9 * there.sum()
    assert found.sum() > pgd.sum()
    target = tried(Diva(), case, goal="targeted")
    assert not (alone(nets, case, target) & ~there).any()
    assert alone(nets, case, target).sum() >= 0.9 * there.sum()


@pytest.mark.parametrize("batch", [1, 7])
def test_a_record_does_not_depend_on_its_company(case: Case, batch: int) -> None:
    case = replace(case, evaluation=case.evaluation.take(torch.arange(15)), ids=case.ids[:15])
    together, few = tried(Diva(steps=8, restarts=2), case), tried(Diva(steps=8, restarts=2), case, batch)
    assert torch.equal(together.fooled, few.fooled)
    torch.testing.assert_close(together.best, few.best, atol=1e-6, rtol=0)


def test_what_fools_both_counts_where_nothing_fools_one_alone(nets: tuple[nn.Linear, nn.Linear], case: Case) -> None:
    _, near = nets
    same = replace(case, parent=copy.deepcopy(near))
    found, pgd = tried(Diva(weight=3), same), tried(Pgd(steps=20), same)
    assert torch.equal(found.fooled, pgd.fooled)
    assert 0 < found.fooled.sum() < len(found.fooled)
    assert not alone((near, near), same, found).any()


def test_the_call_takes_the_dense_model(nets: tuple[nn.Linear, nn.Linear], case: Case) -> None:
    dense, near = nets
    records = case.evaluation
    found = evade(near, records.x, records.y, epsilon=EPSILON, parts=[Diva()], parent=dense)
    there = exact(nets, case)
    evades = found.success & (dense(found.adversarial).argmax(1) == records.y)
    assert not (evades & ~there).any()
    assert evades.sum() >= 0.9 * there.sum()
    with pytest.raises(NotApplicable, match="no dense model"):
        evade(near, records.x, records.y, epsilon=EPSILON, parts=[Diva()])


def test_it_says_why_it_cannot_run(case: Case) -> None:
    assert Diva().why_not(case) is None
    assert "no dense model" in str(Diva().why_not(replace(case, parent=None)))
    assert "its own parent" in str(Diva().why_not(replace(case, parent=case.twin)))
    assert "no differentiable" in str(Diva().why_not(replace(case, twin=None)))


@pytest.mark.parametrize("goal", ["untargeted", "targeted"])
def test_the_probability_by_hand(goal: Goal) -> None:
    logits, y = torch.tensor([[1.0, 0.0, 2.0], [30.0, -10.0, 0.0]]), torch.tensor([0, 0])
    sign = -1 if goal == "untargeted" else 1
    found = losses(logits, y, "probability", goal)
    assert found[0].item() == pytest.approx(sign * float(logits[0].double().softmax(0)[0]))
    scaled = torch.tensor([10.0, -10 / 3, 0.0], dtype=torch.float64)  # a gap of 30 is brought back to 10
    assert found[1].item() == pytest.approx(sign * float(scaled.softmax(0)[0]))


def coarse(module: nn.Module, levels: int) -> nn.Module:
    """A copy whose weights are rounded to so many levels on each side of zero."""
    copied = copy.deepcopy(module)
    for weights in copied.parameters():
        if weights.dim() > 1:
            step = weights.data.abs().max() / levels
            weights.data = torch.round(weights.data / step) * step
    return copied.eval()


def prepared_of(
    digits: Data, dense: nn.Module, candidate: nn.Module, n: int = 60, **changes: Any
) -> tuple[Prepared, Any]:
    """What the dense model is found to answer, and the evidence that it was asked about."""
    cases = {
        "candidate": case_of(digits, candidate, parent=dense, **changes),
        "dense": case_of(digits, dense, parent=dense),
    }
    attack = Evasion(epsilons=(0.1,), records=n, parts=(Pgd(steps=6), Square(queries=2)))
    evidence = attack.run(cases["candidate"], seed=0)
    scope = SimpleNamespace(seed=0, data=digits)
    inputs: Any = SimpleNamespace(
        scope=scope, case=cases.get, deployed=lambda name: cases[name].deployed, evidence=lambda ran: evidence
    )
    asked = EvadeOnly("evasion", "candidate", "dense", "linf", n, Diva())
    found = asked.compute(inputs)
    document = json.dumps(found.document).encode()
    asked.form(inputs.scope).check(document, found.document, found.arrays, {})
    return found, evidence


def test_a_coarse_copy_is_fooled_alone(digits: Data, dense: nn.Module) -> None:
    found, evidence = prepared_of(digits, dense, coarse(dense, 7))
    adversarial, y = torch.from_numpy(evidence.arrays["adversarial"]), digits.evaluation.y[:60]
    right = (dense(adversarial).argmax(1) == y).numpy()
    assert (found.arrays["worst"] == (evidence.arrays["worst/0.1"] & right)).all()
    worst, diva = found.arrays["worst"], found.arrays["diva"]
    assert (worst | diva).mean() > worst.mean() + 0.1 > 0.1


def test_a_model_is_never_fooled_alone_of_two_that_are_the_same(digits: Data, dense: nn.Module) -> None:
    found, evidence = prepared_of(digits, dense, copy.deepcopy(dense))
    assert evidence.arrays["worst/0.1"].any()
    assert not found.arrays["worst"].any()
    assert not found.arrays["diva"].any()


def test_without_a_twin_only_the_worst_case_is_asked_about(digits: Data, dense: nn.Module) -> None:
    found, _ = prepared_of(digits, dense, coarse(dense, 3), 20, twin=None, native=None)
    assert found.arrays.keys() == {"worst"}
    assert "no differentiable module" in found.document["without_diva"]
