"""Models that draw lots: linear ones, of which it is known who can be fooled, whatever the lots."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.evasion.blocks import Sought, seek
from crushproof.attacks.evasion.call import attackable as call
from crushproof.attacks.evasion.engine import Perturber
from crushproof.attacks.evasion.gradient.eot import Eot, Majority
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.targets.data.records import Bounds, Records
from crushproof.training.ball import Ball

N, FEATURES, EPSILON = 60, 12, 0.1
LUCK = 0.2  # a margin under noise of 0.5 from which on fewer than one majority of 101 answers in 1,000 is wrong


class Lots(nn.Module):
    """A linear net whose gradients, or whose answers, are moved at random each time.

    Args:
        shattered: how far its gradients are moved, in multiples of the net's; its answers are not.
        noise: how far the difference of its two answers is moved.
    """

    passed = 0  # records, since somebody last looked

    def __init__(self, net: nn.Linear, *, shattered: float = 0.0, noise: float = 0.0) -> None:
        super().__init__()
        self.net, self.shattered, self.noise = net, shattered, noise

    def forward(self, x: Tensor) -> Tensor:
        Lots.passed += len(x)
        slopes = self.shattered * self.net.weight.detach().abs().mean() * torch.randn(len(x), FEATURES)
        moved = ((x - x.detach()) * slopes).sum(1) + self.noise * torch.randn(len(x))
        answers: Tensor = self.net(x) + torch.stack([moved, -moved], dim=1) / 2
        return answers


@pytest.fixture(scope="module")
def net() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    linear, x = nn.Linear(FEATURES, 2), torch.rand(N, FEATURES)
    return linear.requires_grad_(False), x, linear(x).argmax(1)


def tried(part: Perturber, module: nn.Module, x: Tensor, y: Tensor, ledger: Ledger | None = None) -> Tensor:
    """bool [n], counted as fooled."""
    case = replace(call.case_of(call.attackable(module, (FEATURES,)), Records(x, y)), bounds=Bounds.of(0, 1))
    everybody = torch.ones(len(x), dtype=torch.bool)
    ball = Ball("linf", EPSILON, x, case.bounds)
    Lots.passed = 0
    found: Sought = seek(
        part, case, case.evaluation, case.ids, ball,
        among=everybody, seed=0, ledger=ledger or Ledger(), batch=640,
    )  # fmt: skip
    assert ball.contains(found.best).all()
    return found.fooled


def least_margin(net: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    """Of any input near each record, on average: a linear margin is least in a corner."""
    ahead = net.weight[y] - net.weight[1 - y]
    corner = torch.where(ahead > 0, (x - EPSILON).clamp_min(0), (x + EPSILON).clamp_max(1))
    return (ahead * corner).sum(1) + net.bias[y] - net.bias[1 - y]


def exact(net: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    """Whether any input near each record is answered otherwise on average."""
    return least_margin(net, x, y) < 0


def test_gradients_that_are_mostly_noise(net: tuple[nn.Linear, Tensor, Tensor]) -> None:
    linear, x, y = net
    there, module = exact(linear, x, y), Lots(linear, shattered=8)
    assert 10 < there.sum() < N - 10
    torch.manual_seed(1)
    pgd, eot = tried(Pgd(steps=8), module, x, y), tried(Eot(steps=8, draws=100), module, x, y)
    assert not (eot & ~there).any()
    assert eot.sum() >= 0.95 * there.sum()
    assert pgd.sum() <= 0.85 * there.sum(), "what one pass says leads nowhere"


def test_a_lucky_answer_is_no_success(net: tuple[nn.Linear, Tensor, Tensor]) -> None:
    linear, x, y = net
    least, module = least_margin(linear, x, y), Lots(linear, noise=0.5)
    there = least < 0
    torch.manual_seed(1)
    eot, pgd = tried(Eot(steps=16, draws=50, answers=101), module, x, y), tried(Pgd(steps=20), module, x, y)
    assert (pgd & ~there).sum() > 5
    assert (pgd & (least > LUCK)).any()
    assert not (eot & (least > LUCK)).any(), "further off, no majority is a matter of luck"
    assert (there & ~eot).sum() <= 2


def test_it_counts_every_pass_and_repeats_itself(net: tuple[nn.Linear, Tensor, Tensor]) -> None:
    linear, x, y = net
    ledger, module, part = Ledger(), Lots(linear, noise=0.2), Eot(steps=3, draws=5, answers=7)
    x, y = x[:12], y[:12]
    first = tried(part, module, x, y, ledger)
    assert ledger.forwards + ledger.queries == Lots.passed
    assert ledger.forwards > ledger.backwards > 0
    assert torch.equal(first, tried(part, module, x, y))


def test_it_runs_only_where_answers_vary(net: tuple[nn.Linear, Tensor, Tensor]) -> None:
    linear, x, y = net
    cases = [
        call.case_of(call.attackable(module, (FEATURES,)), Records(x, y)) for module in (linear, Lots(linear, noise=1))
    ]
    assert "the same each time" in str(Eot().why_not(cases[0]))
    assert Eot().why_not(cases[1]) is None
    assert "no differentiable" in str(Eot().why_not(replace(cases[1], twin=None)))


class Rotating:
    """Answers with the next of its rows each time."""

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.queries = rows, 0

    def logits(self, x: Tensor) -> Tensor:
        self.queries += 1
        return self.rows[(self.queries - 1) % len(self.rows)].expand(len(x), -1)


def test_the_majority_decides() -> None:
    rows = torch.tensor([[5.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert Majority(Rotating(rows), 3).logits(torch.zeros(2, 1)).argmax(1).tolist() == [1, 1], "two of three answers"
    assert Majority(Rotating(rows[:2]), 2).logits(torch.zeros(1, 1)).argmax(1).item() == 0, "a tie goes to the surer"
