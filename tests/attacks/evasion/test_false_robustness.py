"""Models that only look robust: each is broken as the plain net is, or flagged; honest nets are not flagged."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.attacks.evasion.black_box.square import Square
from crushproof.attacks.evasion.evade import Evaded, evade
from crushproof.attacks.evasion.gradient.apgd import Apgd
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.targets.data.data import Data

N, EPSILON = 40, 0.1
Net = Callable[[Tensor], Tensor]
Planted = Callable[[nn.Sequential, Tensor], Tensor]
COSINES = torch.tensor(
    [[math.cos(math.pi * (2 * j + 1) * i / 16) * (8**-0.5 if i == 0 else 0.5) for j in range(8)] for i in range(8)]
)


class Module(nn.Module):
    def __init__(self, net: nn.Sequential, answer: Planted) -> None:
        super().__init__()
        self.net, self.answer = net, answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.net, x)


@pytest.fixture(scope="module")
def net(digits: Data) -> nn.Sequential:
    assert digits.members is not None
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    for _ in range(400):  # torch's optimisers take longer to import than this takes
        loss = F.cross_entropy(module(digits.members.x.flatten(1)), digits.members.y)
        slopes = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for weight, slope in zip(module.parameters(), slopes, strict=True):
                weight -= slope
    return module.eval()


def attacked(net: nn.Sequential, digits: Data, answer: Planted) -> Evaded:
    x, y = digits.evaluation.x[:N].flatten(1), digits.evaluation.y[:N]
    parts = (Pgd(steps=8, loss="margin"), Apgd(steps=8), Square(queries=100))
    return evade(Module(net, answer), x, y, epsilon=EPSILON, parts=parts)


def k_winners(net: nn.Sequential, x: Tensor) -> Tensor:
    hidden = net[1](net[0](x))
    least = hidden.topk(8, dim=1).values[:, -1:]
    answers: Tensor = net[2](torch.where(hidden >= least, hidden, 0.0))
    return answers


def jpeg(net: nn.Sequential, x: Tensor) -> Tensor:
    waves = torch.round(COSINES @ x.view(-1, 8, 8) @ COSINES.T * 4) / 4
    answers: Tensor = net((COSINES.T @ waves @ COSINES).flatten(1))
    return answers


def resized(net: nn.Sequential, x: Tensor) -> Tensor:
    size = int(torch.randint(6, 9, ()))
    small = F.interpolate(x.view(-1, 1, 8, 8), size=(size, size), mode="bilinear")
    answers: Tensor = net(F.interpolate(small, size=(8, 8), mode="bilinear").flatten(1))
    return answers


def rough(x: Tensor) -> Tensor:
    """bool [n]: what the detector takes for no digit."""
    image = x.view(-1, 8, 8)
    steps = image.diff(dim=1).abs().mean((1, 2)) + image.diff(dim=2).abs().mean((1, 2))
    return steps > 0.55


def memorised(digits: Data) -> Planted:
    known, labels = digits.evaluation.x[:N].flatten(1), digits.evaluation.y[:N]

    def answer(net: nn.Sequential, x: Tensor) -> Tensor:
        distance, nearest = (x[:, None] - known).abs().amax(2).min(1)
        return net(x) + 1e3 * (distance < 0.2)[:, None] * F.one_hot(labels[nearest], 10)

    return answer


BROKEN: dict[str, Planted] = {
    "logits x 1e4": lambda net, x: 1e4 * net(x),
    "softmax output": lambda net, x: torch.softmax(1e4 * net(x), 1),
    "logarithm of a softmax": lambda net, x: (torch.softmax(1e3 * net(x), 1) + 1e-30).log(),
    "rounded probabilities": lambda net, x: torch.round(torch.softmax(net(x), 1) * 100) / 100,
    "input rounded to 8 levels": lambda net, x: net(torch.round(x * 7) / 7),
    "hidden values rounded": lambda net, x: net[2](torch.floor(net[1](net[0](x)) * 2) / 2),
    "k winners": k_winners,
    "JPEG-like": jpeg,
    "shattered answers": lambda net, x: net(x) + 1e-3 * torch.sin(1e6 * x.sum(1, keepdim=True)),
    "a class for what it refuses": lambda net, x: (
        F.pad(net(x), (0, 1), value=-100.0) + 200 * rough(x)[:, None] * F.one_hot(torch.tensor(10), 11)
    ),
    "zeros for what it refuses": lambda net, x: net(x) * ~rough(x)[:, None],
    "NaN for what it refuses": lambda net, x: torch.where(rough(x)[:, None], torch.nan, net(x)),
}


@pytest.fixture(scope="module")
def plain(net: nn.Sequential, digits: Data) -> float:
    """The share of records that the net itself is fooled on."""
    found = attacked(net, digits, lambda net, x: net(x))
    assert found.flags == {}
    assert 0.3 < found.success.float().mean() < 0.95
    return float(found.success.float().mean())


@pytest.mark.parametrize("name", BROKEN)
def test_is_broken(net: nn.Sequential, digits: Data, plain: float, name: str) -> None:
    """At most one record better than the same net without it."""
    assert attacked(net, digits, BROKEN[name]).success.float().mean() >= plain - 1.5 / N


FLAGGED: dict[str, tuple[str, Planted]] = {
    "shattered input": ("black-box-wins", lambda net, x: net(x + 0.01 * torch.sin(1e5 * x))),
    "no gradient at all": ("no-gradient", lambda net, x: net(x.detach())),
    "the class alone": ("no-gradient", lambda net, x: F.one_hot(net(x).argmax(1), 10).float()),
    "random resize": ("answers-vary", resized),
    "random noise": ("answers-vary", lambda net, x: net(x + 0.1 * torch.randn_like(x))),
}


@pytest.mark.parametrize("name", FLAGGED)
def test_is_flagged(net: nn.Sequential, digits: Data, name: str) -> None:
    flag, answer = FLAGGED[name]
    assert flag in {one for raised in attacked(net, digits, answer).flags.values() for one in raised}


def test_memorised_neighbourhoods_are_flagged(net: nn.Sequential, digits: Data) -> None:
    found = attacked(net, digits, memorised(digits))
    assert not found.success.any(), "it is robust, there"
    assert found.flags["all"] == ["margin-cliff"]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.last(self.layer(x)[0][:, -1])
        return answers


@pytest.mark.parametrize("kind", ["recurrent", "table", "quantised"])
def test_honest_nets_are_not_flagged(kind: str) -> None:
    """What they answer is what is right; half a table's columns are 0 or 1."""
    torch.manual_seed(0)
    made = {"recurrent": Recurrent, "table": lambda: nn.Linear(20, 3), "quantised": lambda: nn.Linear(20, 3)}
    module = made[kind]()
    x = torch.rand(N, 6, 8) if kind == "recurrent" else torch.rand(N, 20)
    if kind == "table":
        x[:, 10:] = x[:, 10:].round()
    if kind == "quantised":
        step = module.weight.detach().abs().max() / 3
        module.weight.data = (module.weight.detach() / step).round() * step
    found = evade(module, x, module(x).argmax(1), epsilon=0.05, parts=(Pgd(steps=20, loss="margin"), Apgd(steps=10)))
    assert found.flags == {}
    assert 0 < found.success.float().mean() < 1


def test_two_steps_are_flagged(net: nn.Sequential, digits: Data) -> None:
    x, y = digits.evaluation.x[:N].flatten(1), digits.evaluation.y[:N]
    short = evade(net, x, y, epsilon=EPSILON, parts=(Pgd(steps=2),))
    assert short.flags["all"] == ["weak-attack"]
