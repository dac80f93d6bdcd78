"""Records that give no gradient: they stop nobody else's attack, and are attacked by what is left."""

from __future__ import annotations

import pytest
import torch
from evasion_cases import case_of
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.attacks.access import Ledger
from crushproof.attacks.evasion.ascent.gradients import Gradients, usable
from crushproof.attacks.evasion.black_box.square import Square
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.apgd import Apgd
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.model import TorchTarget
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp

EPSILONS = (0.01, 0.03, 0.05, 0.1)
RECORDS = 200


class Clipped(nn.Module):
    """A two-class net whose logit is cut off at +-`cut`: the same answers, and no gradient for confident records."""

    def __init__(self, net: nn.Module, cut: float) -> None:
        super().__init__()
        self.net, self.cut = net, cut

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        gap = F.hardtanh((logits[:, 1] - logits[:, 0]) / self.cut) * self.cut
        return torch.stack([torch.zeros_like(gap), gap], 1)


@pytest.fixture(scope="module")
def halves(digits: Data) -> Data:
    """Digits below five against the others."""
    assert digits.members is not None
    return Data(
        "halves",
        Records(digits.members.x, (digits.members.y > 4).long()),
        Records(digits.non_members.x, (digits.non_members.y > 4).long()),
        Bounds.of(0, 1),
        ("low", "high"),
    )


@pytest.fixture(scope="module")
def net(halves: Data) -> nn.Module:
    assert halves.members is not None
    return train(Mlp(64, 2, (32, 32)), halves.members, Training(epochs=8), seed=0)


@pytest.fixture(scope="module")
def truth(halves: Data, net: nn.Module) -> float:
    """Robust accuracy at .1 by a plain PGD with five restarts on the net without the clip, written out here."""
    records = halves.evaluation.take(torch.arange(RECORDS))
    standing = net(records.x).argmax(1) == records.y
    stream = torch.Generator().manual_seed(0)
    for _ in range(5):
        x = records.x + 0.1 * (2 * torch.rand(records.x.shape, generator=stream) - 1)
        for _ in range(40):
            x = x.clamp(0, 1).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(net(x), records.y), x)
            x = torch.min(torch.max(x + 0.01 * gradient.sign(), records.x - 0.1), records.x + 0.1)
        standing &= net(x.clamp(0, 1)).argmax(1) == records.y
    return float(standing.double().mean())


@pytest.mark.parametrize("share", [0.0, 0.005, 0.05, 0.3])
def test_a_few_flat_records_stop_nobody(halves: Data, net: nn.Module, truth: float, share: float) -> None:
    logits = net(halves.evaluation.x[:RECORDS]).detach()
    gaps = (logits[:, 1] - logits[:, 0]).abs().sort().values
    clipped = Clipped(net, float(gaps[-max(1, int(share * RECORDS))]) if share else 1e3).eval()
    first = Gradients(clipped, "margin", Ledger())(halves.evaluation.x[:RECORDS], halves.evaluation.y[:RECORDS])
    assert abs(float(first.flat.double().mean()) - share) < 0.005
    attack = Evasion(epsilons=EPSILONS, records=RECORDS, parts=(Pgd(steps=20), Apgd(steps=20)))
    found = attack.run(case_of(halves, clipped), seed=0)
    robust = [float(1 - found.arrays[f"worst/{epsilon!r}"].mean()) for epsilon in EPSILONS]
    assert abs(robust[-1] - truth) <= 0.02
    assert robust == sorted(robust, reverse=True)
    assert len(set(robust)) == len(robust)  # no figure is copied to a larger epsilon
    assert "black-box-wins" not in found.summary["union_flags"]


def test_the_flag_says_how_many_never_gave_a_gradient(halves: Data, net: nn.Module) -> None:
    class Dead(nn.Module):
        """Constant, and right, for records whose first pixels are dark in a way no slope can undo."""

        def forward(self, x: Tensor) -> Tensor:
            sure = (x.flatten(1).sum(1) > bar).float()[:, None]
            return net(x) * (1 - sure) + sure * torch.tensor([5.0, 0.0])

    sums = halves.evaluation.x[:100].flatten(1).sum(1)
    bar = float(sums.sort().values[-10]) + 10  # out of reach at epsilon .05 for most
    found = Evasion(epsilons=(0.05,), gate_epsilon=0.05, records=100, parts=(Pgd(steps=5),)).run(
        case_of(halves, Dead().eval()), seed=0
    )
    assert found.summary["without_gradient"] == {} or found.summary["without_gradient"]["pgd"] <= 10

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0]).expand(len(x), 2)

    found = Evasion(epsilons=(0.05,), gate_epsilon=0.05, records=100, parts=(Pgd(steps=5), Apgd(steps=5))).run(
        case_of(halves, Constant().eval()), seed=0
    )
    right = int((halves.evaluation.y[:100] == 0).sum())
    assert found.summary["without_gradient"] == {"pgd": right, "apgd": right}
    assert found.summary["union_flags"] == ["no-gradient"]
    assert found.ledger.queries > 100  # the starts were asked all the same


def test_slopes_change_gradients_and_no_value(halves: Data, net: nn.Module) -> None:
    x, y = halves.evaluation.x[:50], halves.evaluation.y[:50]
    rounding = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Hardtanh(0, 1))

    class Rounding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            answers: Tensor = net(rounding((x * 15).round() / 15))
            return answers

    module = Rounding().eval()
    own = Gradients(module, "margin", Ledger(), past_clips=False)(x, y)
    past = Gradients(module, "margin", Ledger())(x, y)
    assert not usable(own.gradient).any()
    assert past.flat.all()
    assert usable(past.gradient).all()
    assert torch.equal(own.margin, past.margin)
    assert torch.equal(TorchTarget(module).logits(x), module(x))


def test_only_where_something_ran_is_there_a_figure(halves: Data, net: nn.Module) -> None:
    attack = Evasion(epsilons=EPSILONS, records=20, parts=(Square(queries=5),))
    found = attack.run(case_of(halves, net), seed=0)
    assert found.summary["epsilons"] == [0.1]
    assert [name for name in found.arrays if name.startswith("worst/")] == ["worst/0.1"]


def test_radii_that_differ_in_the_seventh_digit_are_two(halves: Data, net: nn.Module) -> None:
    attack = Evasion(epsilons=(0.1, 0.10000001), records=20, parts=(Pgd(steps=2),))
    found = attack.run(case_of(halves, net), seed=0)
    assert sorted(name for name in found.arrays if "fooled" in name) == ["fooled/pgd/0.1", "fooled/pgd/0.10000001"]
