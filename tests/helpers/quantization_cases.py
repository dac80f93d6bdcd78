"""What is measured of quantised models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crushproof.compression.quantization.quantized_layer import QuantizedLayer
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds
from crushproof.targets.model import TorchTarget, accuracy

BOUNDS = Bounds.of(0, 1)
TUNING = {"epochs": 3, "learning_rate": 4e-3}


def accuracy_of(module: nn.Module, digits: Data) -> float:
    return accuracy(TorchTarget(module), digits.non_members.x, digits.non_members.y)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def quantized_layers(module: nn.Module) -> list[QuantizedLayer]:
    return [layer for layer in module.modules() if isinstance(layer, QuantizedLayer)]


def random_like(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
