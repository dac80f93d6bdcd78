"""HopSkipJump: against exact distances of linear nets, against gradients that are hidden, and in other company."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.attacks.access import Access, Ledger
from crushproof.attacks.case import Case
from crushproof.attacks.evasion.black_box import hop_skip_jump
from crushproof.attacks.evasion.black_box.hop_skip_jump import HopSkipJump
from crushproof.attacks.evasion.black_box.square import Square
from crushproof.attacks.evasion.engine import Perturber, Search
from crushproof.attacks.evasion.evade import evade
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.model import TorchTarget
from crushproof.training.ball import Ball, Norm

N, FEATURES = 30, 16


class LabelsOnly(nn.Module):
    """Answers with 1 for the class and 0 for all others: neither a gradient nor a score says anything."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(self.net(x).argmax(1), 10).float()


def linear_case() -> tuple[nn.Linear, Case]:
    torch.manual_seed(0)
    net, x = nn.Linear(FEATURES, 2), 0.3 + 0.4 * torch.rand(N, FEATURES)
    net.bias.data = -net(x).detach().mean(0) + net.bias.detach()  # half of the records on either side
    records = Records(x, net(x).argmax(1))
    own = torch.rand(60, FEATURES).round()
    others = Records(own, net(own).argmax(1))
    case = Case(TorchTarget(net), None, None, None, records, np.arange(N), others, Bounds.of(0, 1), 2)
    return net, case


def search_of(case: Case, norm: Norm, epsilon: float, bounds: Bounds | None = None, seed: int = 0) -> Search:
    x = case.evaluation.x
    return Search(
        case.deployed, case.evaluation, case.ids, Ball(norm, epsilon, x, bounds or case.bounds),
        among=torch.ones(len(x), dtype=torch.bool), seed=seed, ledger=Ledger(),
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_a_linear_net_it_finds_nearly_the_nearest_input(norm: Norm) -> None:
    net, case = linear_case()
    weights = (net.weight[0] - net.weight[1]).detach()
    margin = (case.evaluation.x @ weights + (net.bias[0] - net.bias[1]).detach()).abs()
    exact = margin / (weights.abs().sum() if norm == "linf" else weights.norm())
    part, epsilon = HopSkipJump(iterations=4), float(exact.median())
    found, distance = part.walk(search_of(case, norm, epsilon), case, until=0.0)
    change = found - case.evaluation.x
    moved = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert torch.allclose(moved, epsilon * distance, rtol=1e-4)
    assert (net(found).argmax(1) != case.evaluation.y).all()
    assert ((found >= 0) & (found <= 1)).all()
    assert (moved >= exact * (1 - 1e-5)).all()
    assert (moved / exact).median() < 1.1
    before, search = case.deployed.queries, search_of(case, norm, epsilon)
    part.perturb(search, case)
    assert search.ledger.queries == case.deployed.queries - before
    sure, hopeless = exact < epsilon / 1.3, exact > epsilon
    assert search.fooled[sure].all()
    assert not search.fooled[hopeless].any()
    assert search.ball.contains(search.best[search.active]).all()


@pytest.fixture(scope="module")
def net(digits: Data) -> nn.Module:
    assert digits.members is not None
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    for _ in range(200):
        loss = F.cross_entropy(module(digits.members.x), digits.members.y)
        slopes = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for weight, slope in zip(module.parameters(), slopes, strict=True):
                weight -= slope
    return module.eval()


def left(case: Case, part: Perturber) -> int:
    """How many of 40 records it leaves standing at an epsilon of .1."""
    arrays = Evasion(epsilons=(0.1,), records=40, parts=(part,)).run(case, seed=0).arrays
    return int((~arrays["worst/0.1"]).sum())


def test_labels_alone_are_enough(digits: Data, net: nn.Module) -> None:
    """Where nothing else can be seen, it comes near to what gradients would find, and Square does not."""
    assert HopSkipJump().access is Access.LABELS
    hidden = case_of(digits, LabelsOnly(net), twin=None, native=None, parent=None)
    seen = left(case_of(digits, net), Pgd(steps=20))
    alone = left(hidden, HopSkipJump(iterations=6))
    blind = left(hidden, Square(queries=200))
    assert alone <= seen + 4
    assert alone < blind - 4


def test_steps_of_a_quantised_net_do_not_hide_the_boundary(
    digits: Data, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the steps of its input it answers alike, so that narrow probes say nothing."""

    class Stepped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            answers: Tensor = net(torch.round(x * 25) / 25)
            return answers

    case = case_of(digits, Stepped(), twin=None, native=None)
    wide = left(case, HopSkipJump(iterations=6))
    assert wide <= left(case, Square(queries=300)) + 4
    for name, value in (("STEP", 0.0), ("WIDTH", 1e-3), ("WIDEST", 1.0)):
        monkeypatch.setattr(hop_skip_jump, name, value)
    assert wide < left(case, HopSkipJump(iterations=6)) - 4


def test_a_record_does_not_depend_on_its_company(digits: Data, net: nn.Module) -> None:
    case = case_of(digits, net)
    attack = Evasion(epsilons=(0.1,), records=24, parts=(HopSkipJump(iterations=2, probes=16),))
    together = attack.run(case, seed=3)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))[:9]
    few = replace(case, evaluation=case.evaluation.take(order), ids=case.ids[order.numpy()])
    alone = attack.run(few, seed=3).arrays
    assert (alone["worst/0.1"] == together.arrays["worst/0.1"][order.numpy()]).all()
    assert np.allclose(alone["adversarial"], together.arrays["adversarial"][order.numpy()], atol=1e-5)
    assert together.ledger.forwards == together.ledger.backwards == 0
    assert together.summary["part_access"] == {"hop-skip-jump": "labels"}


def test_what_is_held_stays_and_whole_numbers_stay_whole() -> None:
    net, case = linear_case()
    held, whole = torch.arange(FEATURES) < 4, torch.arange(FEATURES) >= 12
    bounds = Bounds(torch.tensor(0.0), torch.tensor(9.0), held, whole)
    x = torch.where(whole, (9 * case.evaluation.x).round(), 9 * case.evaluation.x)

    class Ninth(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            answers: Tensor = net(x / 9)
            return answers

    target = TorchTarget(Ninth())
    case = replace(case, deployed=target, evaluation=Records(x, target.logits(x).argmax(1)), bounds=bounds)
    search = search_of(case, "linf", 0.15)
    HopSkipJump(iterations=4).perturb(search, case)
    assert search.fooled.any()
    inside = search_of(case, "linf", 0.15).ball.contains(search.best)
    assert inside.all()
    assert torch.equal(search.best[:, held], x[:, held])


def test_a_call_keeps_its_limits_to_the_bit() -> None:
    net, case = linear_case()
    x, y = case.evaluation.x, case.evaluation.y
    part = HopSkipJump(iterations=2)
    found = evade(net, x, y, epsilon=0.03, lower=-1, upper=2, parts=(part,))
    assert found.success.any()
    assert ((found.adversarial - x).abs() <= 0.03 + 1e-7).all()
    wanted = evade(net, x, y, epsilon=0.03, lower=-1, upper=2, parts=(part,), target_class=1 - y)
    assert torch.equal(wanted.success, found.success), "of two classes the other one is the target"
