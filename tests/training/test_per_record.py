"""Gradients of each record, clipped and summed: one record at a time and opacus are the oracles."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.defenses.dp_sgd import DpSgd
from crushproof.targets.data.records import Records
from crushproof.targets.seeds import generator
from crushproof.training import per_record
from crushproof.training.networks import Mlp, ResidualCnn
from crushproof.training.per_record import clipped_sum, stacked_clipping


def group_norm_net() -> nn.Module:
    return DpSgd().adapt(ResidualCnn(classes=3, channels=4))


def odd_net() -> nn.Module:
    """Strides, dilation, groups and padding; layer norm of maps and of features; in-place activations."""
    return nn.Sequential(
        nn.Conv2d(1, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.LayerNorm([4, 4, 6]),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 16, 3, groups=2, bias=False),
        nn.Flatten(2),
        nn.Conv1d(16, 4, 2, stride=2, groups=4),
        nn.Flatten(),
        nn.LayerNorm(16),
        nn.Linear(16, 3, bias=False),
    )


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.again(self.first(self.first(x)).flatten(1))
        return logits


class Mixing(nn.Module):
    """What is between its layers looks at all channels that there are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 3), nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        logits: Tensor = self.last((y / (1 + y.abs().amax(1, keepdim=True))).flatten(1))
        return logits


def records_of(count: int) -> Records:
    stream = generator(0, "records")
    return Records(torch.rand(count, 1, 8, 8, generator=stream), torch.randint(3, (count,), generator=stream))


def one_at_a_time(module: nn.Module, records: Records, max_norm: float) -> dict[str, Tensor]:
    """By ordinary back-propagation."""
    total = {name: torch.zeros_like(parameter) for name, parameter in module.named_parameters()}
    for x, y in zip(records.x, records.y, strict=True):
        loss = F.cross_entropy(module(x[None]), y[None])
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        length = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        for place, gradient in zip(total.values(), gradients, strict=True):
            place += gradient * min(1.0, max_norm / length)
    return total


def stacked(modules: list[nn.Module]) -> dict[str, Tensor]:
    names = [name for name, _ in modules[0].named_parameters()]
    return {name: torch.stack([module.get_parameter(name).detach() for module in modules]) for name in names}


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("build", [group_norm_net, odd_net, lambda: Mlp(64, 3, (8,)), Mixing])
def test_a_stack_clips_each_model_on_its_own_records(build, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    modules, records = [build() for _ in range(3)], records_of(9)
    if at_once:  # as on a GPU, where convolutions too are those of all models
        monkeypatch.setattr(per_record, "_one_by_one", lambda *_: None)
    clipping = stacked_clipping(modules[0], stacked(modules), records.x)
    assert (clipping is None) == (build is Mixing and at_once)
    if clipping is None:
        return
    index = torch.stack([torch.arange(5), torch.arange(4, 9), torch.arange(2, 7)])
    counts = torch.ones(3, 5, dtype=torch.bool)
    counts[1, 3:] = False
    monkeypatch.setattr(per_record, "CHUNK", 2)
    for max_norm in (0.5, 1e6):
        sums = clipping(records.x[index], records.y[index], counts, max_norm)
        for at, module in enumerate(modules):
            expected = one_at_a_time(module, records.take(index[at][counts[at]]), max_norm)
            for name, value in expected.items():
                torch.testing.assert_close(sums[name][at], value, rtol=1e-4, atol=1e-5)


def test_a_model_that_does_not_fit_is_left_to_the_general_way() -> None:
    torch.manual_seed(0)
    modules, records = [Twice() for _ in range(2)], records_of(6)
    assert stacked_clipping(modules[0], stacked(modules), records.x) is None
    ours, expected = clipped_sum(modules[0], records, 0.5), one_at_a_time(modules[0], records, 0.5)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)
    nothing = clipped_sum(modules[0], records.take(torch.zeros(6, dtype=torch.bool)), 0.5)
    assert all(not gradient.any() for gradient in nothing.values())


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_clipping_equals_that_of_opacus() -> None:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    torch.manual_seed(0)
    modules, records = [group_norm_net() for _ in range(2)], records_of(9)
    clipping = stacked_clipping(modules[0], stacked(modules), records.x)
    assert clipping is not None
    both = torch.stack([torch.arange(9), torch.arange(9).flip(0)])
    sums = clipping(records.x[both], records.y[both], torch.ones(2, 9, dtype=torch.bool), 0.7)
    for at, module in enumerate(modules):
        wrapped = GradSampleModule(copy.deepcopy(module))
        inner = torch.optim.SGD(wrapped.parameters(), lr=1.0)
        optimizer = DPOptimizer(
            inner, noise_multiplier=0.0, max_grad_norm=0.7, expected_batch_size=1, loss_reduction="sum"
        )
        F.cross_entropy(wrapped(records.x), records.y, reduction="sum").backward()
        optimizer.step()
        general = clipped_sum(module, records, 0.7)
        for (name, before), after in zip(module.named_parameters(), wrapped.parameters(), strict=True):
            torch.testing.assert_close((before - after).detach(), sums[name][at], rtol=1e-3, atol=1e-5)
            torch.testing.assert_close((before - after).detach(), general[name], rtol=1e-3, atol=1e-5)


def test_one_record_moves_the_sum_by_at_most_the_clipping_norm() -> None:
    torch.manual_seed(0)
    module, records = group_norm_net(), records_of(9)
    records.x[0] *= 1e4  # an outlier
    clipping = stacked_clipping(module, stacked([module]), records.x[1:])
    assert clipping is not None
    counts = torch.ones(1, 9, dtype=torch.bool)
    with_it = clipping(records.x[None], records.y[None], counts, 0.7)
    counts[0, 0] = False
    without = clipping(records.x[None], records.y[None], counts, 0.7)
    moved = math.sqrt(sum(float((with_it[name] - without[name]).square().sum()) for name in with_it))
    assert moved == pytest.approx(0.7, rel=1e-3)
