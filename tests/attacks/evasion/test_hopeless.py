"""When a record leaves PGD because its margin is out of reach: not one that would fall, and most of those that stay."""

from __future__ import annotations

import pytest
import torch
from evasion_cases import case_of
from torch import Tensor, nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.evasion.ascent.gradients import Gradients, followed, round_size
from crushproof.attacks.evasion.ascent.losses import losses, margins
from crushproof.attacks.evasion.engine import Perturber, Search
from crushproof.attacks.evasion.gradient import apgd, diversified, pgd
from crushproof.attacks.evasion.gradient.apgd_targeted import ApgdTargeted
from crushproof.attacks.evasion.gradient.diversified import Diversified
from crushproof.attacks.evasion.gradient.pgd import Pgd, hopeless, settling
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.training.ball import Ball

BALL, CENTER = 0.1, 0.5


def spent(
    digits: Data, net: nn.Module, part: Perturber, x: Tensor, y: Tensor, epsilon: float, before: Tensor | None = None
) -> tuple[Tensor, int]:
    """Which records it fools, and how many gradients that took."""
    search = searched(digits, net, part, x, y, epsilon, before)
    return search.fooled, search.ledger.backwards


def searched(
    digits: Data, net: nn.Module, part: Perturber, x: Tensor, y: Tensor, epsilon: float, before: Tensor | None = None
) -> Search:
    search = Search(
        case_of(digits, net).deployed, Records(x, y), torch.arange(len(x)).numpy(),
        Ball("linf", epsilon, x, Bounds.of(0, 1)), among=net(x).argmax(1) == y, seed=0, ledger=Ledger(), before=before,
    )  # fmt: skip
    part.perturb(search, case_of(digits, net))
    search.close()
    return search


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


def test_further_starts_are_left_out_where_other_parts_and_the_first_agree(
    digits: Data, dense: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, x, y = Diversified(steps=10, restarts=10), digits.evaluation.x[:50], digits.evaluation.y[:50]
    before = searched(digits, dense, Pgd(steps=20), x, y, 0.1).margin
    quick, few = spent(digits, dense, part, x, y, 0.1, before)
    alone, most = spent(digits, dense, part, x, y, 0.1)
    monkeypatch.setattr(diversified, "far_from_all", lambda margin, before, reached: margin > torch.inf)
    whole, all_of_them = spent(digits, dense, part, x, y, 0.1, before)
    assert int((whole & ~quick).sum()) == 0
    assert few < 0.9 * all_of_them
    assert torch.equal(alone, whole)
    assert most == all_of_them, "without any other part nothing is judged"


def test_what_counts_as_far_from_all() -> None:
    """Agreement; not where they differ, come near, hardly fell, or no other part searched."""
    before = torch.tensor([2.0, 2.0, 0.3, 3.9, torch.inf])
    reached = torch.tensor([[2.1, 2.2], [3.5, 2.0], [0.31, 0.32], [3.9, 3.9], [2.0, 2.0]])
    found = diversified.far_from_all(torch.full((5,), 4.0), before, reached)
    assert found.tolist() == [True, False, False, False, False]


def test_passes_come_in_few_sizes_and_answer_as_they_would() -> None:
    """With convolutions, which are prepared anew for each size."""
    sizes = [round_size(n) for n in range(1, 513)]
    assert all(n <= size < n + max(8, n / 4) for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) <= 24
    torch.manual_seed(0)
    net, met = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)), []
    x, y = torch.rand(13, 1, 8, 8), torch.arange(13) % 3
    copied, ledger = followed(net, x), Ledger()
    model = Gradients(copied, "margin", ledger)
    model(x[:2], y[:2])
    copied.register_forward_hook(lambda module, inputs, output: met.append(len(inputs[0])))
    found = model(x, y)
    assert (met, ledger.backwards) == ([16], 15)
    inputs = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses(net(inputs), y, "margin").sum(), inputs)
    assert torch.allclose(found.gradient, gradient, atol=1e-6)
    assert torch.allclose(found.margin, margins(net(x), y), atol=1e-5)


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
