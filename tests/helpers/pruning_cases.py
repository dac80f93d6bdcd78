"""Models that are pruned, and what is measured of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from crushproof.targets.data.records import Bounds
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training

UNIT = Bounds.of(0, 1)
BRIEF = Training(epochs=1, learning_rate=2e-3, batch_size=64)


class Encoder(nn.Module):
    """Two layers of torch's own Transformer encoder over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.embed(x.squeeze(1))).mean(1))
        return logits


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.middle = nn.Linear(16, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.middle(self.lstm(x.squeeze(1))[0][:, -1])))
        return logits


class Knotted(nn.Module):
    """Channels that hang together in every way: group norm, depthwise, grouped, concatenated."""

    def __init__(self, flatten: bool = False) -> None:
        super().__init__()
        self.flatten = flatten
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.depthwise, self.point = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 24, 1)
        self.grouped, self.side = nn.Conv2d(24, 24, 3, padding=1, groups=2), nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(28 * (16 if flatten else 1), 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.depthwise(torch.relu(self.norm(self.stem(x)))))
        y = torch.cat([torch.relu(self.grouped(self.point(y))), self.side(x)], 1)
        y = nn.functional.max_pool2d(y, 2).flatten(1) if self.flatten else y.mean((2, 3))
        logits: Tensor = self.head(y)
        return logits


def fresh(build: Any) -> nn.Module:
    return Architecture("test", build).fresh(0).eval()


def kernels(module: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def flops(module: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        module(x)
    return counter.get_total_flops()


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[name].shape == b[name].shape and torch.equal(a[name], b[name]) for name in a)
