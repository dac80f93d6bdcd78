"""Convolutional models side by side as one wide network: what each answers and learns is its own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from crushproof.training.networks import Mlp, ResidualCnn
from crushproof.training.stacked import Stack
from crushproof.training.wide import wide


class Branches(nn.Module):
    """Two convolutions of the same input, side by side as channels: in a wide network their order would be another."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.left(x), self.right(x)], 1)
        logits: torch.Tensor = self.head(joined.amax((2, 3)))
        return logits


class Averaged(nn.Module):
    """The mean over channels mixes those of all models."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.conv(x).mean(1).flatten(1))
        return logits


class Read(nn.Module):
    """A weight that is read by who is not its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(72, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.conv(x).flatten(1)) * self.conv.weight.mean()
        return logits


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 1, groups=2),
        nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.Tanh(),
        nn.Linear(5, 3, bias=False),
    )  # fmt: skip


def series() -> nn.Module:
    return nn.Sequential(nn.Conv1d(8, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))


WIDE = {"plain": plain, "residual": lambda: ResidualCnn(3, 4), "series": series}
NARROW = {
    "branches": Branches,
    "averaged": Averaged,
    "read": Read,
    "no convolution": lambda: Mlp(64, 3, (8,)),
    "mirrored": lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding_mode="reflect"), nn.Flatten(), nn.Linear(36, 3)),
    "layer norm": lambda: nn.Sequential(nn.Conv2d(1, 1, 3), nn.LayerNorm((6, 6)), nn.Flatten(), nn.Linear(36, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", [*WIDE, *NARROW])
def test_every_model_answers_and_learns_as_by_itself(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        modules = [{**WIDE, **NARROW}[name]() for _ in range(3)]
        x = torch.rand(3, 6, *((8, 8) if name == "series" else (1, 8, 8)))
    alone = copy.deepcopy(modules)
    stack = Stack(modules)
    together = stack(x)
    together.square().sum().backward()
    stack.write_back()
    gradients = {key: value.grad for key, value in stack._parameters.items()}
    for at, (module, written) in enumerate(zip(alone, modules, strict=True)):
        logits = module.train()(x[at])
        logits.square().sum().backward()
        assert torch.allclose(together[at], logits, atol=1e-4)
        for key, parameter in module.named_parameters():
            found, own = gradients[key], parameter.grad
            assert found is not None
            assert own is not None
            assert torch.allclose(found[at], own, rtol=1e-3, atol=1e-4 * float(own.abs().max()) + 1e-4)
        for key, buffer in module.named_buffers():
            assert torch.allclose(written.get_buffer(key), buffer, atol=1e-4), "one batch has been seen, and no more"


def test_only_those_are_one_that_answer_as_one() -> None:
    for name, build in {**WIDE, **NARROW}.items():
        stack = Stack([build() for _ in range(2)])
        x = torch.rand(2, 4, *((8, 8) if name == "series" else (1, 8, 8)))
        assert (wide(stack.modules[0], stack._parameters, stack._buffers, x) is not None) == (name in WIDE), name
    assert wide(plain(), stack._parameters, stack._buffers, x) is None, "weights of another"
