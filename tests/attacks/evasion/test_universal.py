"""A universal perturbation: of a linear net the best one is known, and every record gets the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from evasion_cases import case_of
from torch import nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.case import Case
from crushproof.attacks.evasion.ball import Box, Region
from crushproof.attacks.evasion.black_box.square import Square
from crushproof.attacks.evasion.blocks import Sought, seek
from crushproof.attacks.evasion.call import attackable as call
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.universal import Universal
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.training.ball import Ball, Norm

N, FEATURES, EPSILON = 40, 12, 0.1


@pytest.fixture(scope="module")
def case() -> Case:
    """Records of one class of a linear net, half of them the attacker's, far from the bounds."""
    torch.manual_seed(0)
    net, x = nn.Linear(FEATURES, 2).requires_grad_(False), 0.2 + 0.6 * torch.rand(16 * N, FEATURES)
    x = x[net(x).argmax(1) == 0][: 2 * N]
    assert len(x) == 2 * N
    y = torch.zeros(N, dtype=torch.int64)
    made = call.case_of(call.attackable(net, (FEATURES,)), Records(x[:N], y))
    return replace(made, attacker=Records(x[N:], y), bounds=Bounds.of(0, 1))


def tried(case: Case, region: Region, batch: int = 64) -> Sought:
    everybody = torch.ones(N, dtype=torch.bool)
    return seek(
        Universal(), case, case.evaluation, case.ids, region,
        among=everybody, seed=0, ledger=Ledger(), batch=batch,
    )  # fmt: skip


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.03), ("l2", 0.08)])
def test_one_change_is_as_good_as_any_where_one_class_stands(case: Case, norm: Norm, epsilon: float) -> None:
    assert isinstance(case.twin, nn.Linear)
    x, ahead = case.evaluation.x, case.twin.weight[0] - case.twin.weight[1]
    margin = x @ ahead + case.twin.bias[0] - case.twin.bias[1]
    most = epsilon * (ahead.abs().sum() if norm == "linf" else ahead.norm())
    ball = Ball(norm, epsilon, x, case.bounds)
    found = tried(case, ball)
    sure = (margin - most).abs() > 0.04 * most  # the last percents are left open
    assert torch.equal(found.fooled[sure], (margin < most)[sure])
    assert 5 < found.fooled.sum() < N - 5
    change = (found.best - x)[found.fooled]
    torch.testing.assert_close(change, change[:1].expand_as(change), atol=1e-6, rtol=0)
    assert ball.contains(found.best).all()
    few = tried(case, ball, batch=7)
    assert torch.equal(few.fooled, found.fooled)
    assert torch.equal(few.best, found.best)


def test_it_says_why_it_cannot_run(case: Case) -> None:
    nobody = Records(case.attacker.x[:0], case.attacker.y[:0])
    assert "no records of its own" in str(Universal().why_not(replace(case, attacker=nobody)))
    assert "no differentiable" in str(Universal().why_not(replace(case, twin=None)))
    x = case.evaluation.x
    with pytest.raises(NotApplicable, match="one radius"):
        tried(case, Box(x - 0.1, x + 0.1, x))


def test_that_others_find_more_says_nothing_of_its_gradients(digits: Data, dense: nn.Module) -> None:
    attack = Evasion(epsilons=(0.2,), records=60, parts=(Universal(steps=4, records=50), Square(queries=60)))
    found = attack.run(case_of(digits, dense), seed=0)
    universal, square = (found.arrays[f"fooled/{part}/0.2"] for part in ("universal", "square"))
    assert universal.sum() + 8 < square.sum()
    assert (universal & found.arrays["clean_correct"]).any()
    assert "universal" not in found.flags
