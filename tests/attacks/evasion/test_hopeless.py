"""When a record leaves PGD because its margin is out of reach: not one that would fall, and most of those that stay."""

from __future__ import annotations

import pytest
import torch
from evasion_cases import case_of
from torch import Tensor, nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.evasion.engine import Perturber, Search
from crushproof.attacks.evasion.gradient import apgd, diversified, pgd
from crushproof.attacks.evasion.gradient.apgd_targeted import ApgdTargeted
from crushproof.attacks.evasion.gradient.diversified import Diversified
from crushproof.attacks.evasion.gradient.pgd import Pgd, hopeless, settling
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.training.ball import Ball

BALL, CENTER = 0.1, 0.5


def spent(digits: Data, net: nn.Module, part: Perturber, x: Tensor, y: Tensor, epsilon: float) -> tuple[Tensor, int]:
    """Which records it fools, and how many gradients that took."""
    ledger = Ledger()
    search = Search(
        case_of(digits, net).deployed, Records(x, y), torch.arange(len(x)).numpy(),
        Ball("linf", epsilon, x, Bounds.of(0, 1)), among=net(x).argmax(1) == y, seed=0, ledger=ledger,
    )  # fmt: skip
    part.perturb(search, case_of(digits, net))
    search.close()
    return search.fooled, ledger.backwards


@pytest.mark.parametrize(("epsilon", "restarts"), [(0.05, 1), (0.1, 2)])
def test_it_costs_no_success_and_saves_gradients(
    digits: Data, dense: nn.Module, monkeypatch: pytest.MonkeyPatch, epsilon: float, restarts: int
) -> None:
    part, x, y = Pgd(steps=20, restarts=restarts), digits.evaluation.x[:50], digits.evaluation.y[:50]
    quick, few = spent(digits, dense, part, x, y, epsilon)
    monkeypatch.setattr(pgd, "judged", lambda step, steps: False)
    whole, all_of_them = spent(digits, dense, part, x, y, epsilon)
    assert int((whole & ~quick).sum()) <= 1
    assert few < 0.9 * all_of_them


@pytest.mark.parametrize(
    ("part", "most"), [(ApgdTargeted(steps=20, classes=3), 0.7), (Diversified(steps=10, restarts=10), 0.95)]
)
def test_nor_does_it_in_the_parts_with_many_runs(
    digits: Data, dense: nn.Module, monkeypatch: pytest.MonkeyPatch, part: Perturber, most: float
) -> None:
    x, y = digits.evaluation.x[:50], digits.evaluation.y[:50]
    quick, few = spent(digits, dense, part, x, y, 0.1)
    for module in (apgd, diversified):
        monkeypatch.setattr(module, "EARLY", 2.0)  # no record is judged
    whole, all_of_them = spent(digits, dense, part, x, y, 0.1)
    assert int((whole & ~quick).sum()) <= 1
    assert few < most * all_of_them


@pytest.mark.parametrize("distance", [0.08, 0.099])
def test_a_linear_boundary_within_the_ball_is_reached(digits: Data, distance: float) -> None:
    """One far beyond it is given up at the first look."""
    net = nn.Linear(40, 2)
    with torch.no_grad():
        net.weight[0], net.weight[1] = 1.0, -1.0
        net.bias[0], net.bias[1] = -40 * (CENTER - distance), 40 * (CENTER - distance)
    x, y = torch.full((5, 40), CENTER), torch.zeros(5, dtype=torch.int64)
    fooled, _ = spent(digits, net, Pgd(steps=20), x, y, BALL)
    assert fooled.all()
    fooled, gradients = spent(digits, net, Pgd(steps=20), x, y, 0.3 * distance)
    assert not fooled.any()
    assert gradients <= 5 * (pgd.EARLIEST + 1)


def test_what_the_steps_still_allow() -> None:
    """The nearer the end, the less; and where the margin hardly fell, or rose, no prediction is made."""
    start, margins = torch.full((4,), 2.0), torch.tensor([1.0, 0.3, 1.95, 2.5])
    assert hopeless(start, margins, 0.3).tolist() == [True, False, False, False]
    assert hopeless(start, margins, 0.9).tolist() == [True, True, False, False]
    near = torch.tensor([2.0]), torch.tensor([2 * 0.1 / 1.1])  # a margin of a tenth of its fall
    assert settling(0.9) * pgd.HOPE < 0.1 < pgd.AGAIN
    assert hopeless(*near, 0.9)
    assert not hopeless(*near, 0.9, last=False)


@pytest.mark.parametrize("part", [Pgd(steps=20, step_size=0.01), Pgd(steps=20, loss="dlr")])
def test_searches_whose_margins_it_cannot_predict_go_on(
    digits: Data, dense: nn.Module, monkeypatch: pytest.MonkeyPatch, part: Pgd
) -> None:
    monkeypatch.setattr(pgd, "hopeless", None)  # never called
    x, y = digits.evaluation.x[:10], digits.evaluation.y[:10]
    fooled, gradients = spent(digits, dense, part, x, y, 0.01)
    assert gradients >= 20 * int((~fooled).sum() - (dense(x).argmax(1) != y).sum())
