"""Inputs with what a model should answer, and the values an input may take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Bounds:
    """The values an input may take: `low` and `high`, float32, broadcastable to one record (scalar, [c, 1, 1], [f]).

    Args:
        held: bool [*shape], values of a record that an attacker leaves as they are; None: it may change all.
        whole: bool [*shape], values that are whole numbers; None: fractions are allowed everywhere.
    """

    low: Tensor
    high: Tensor
    held: Tensor | None = None
    whole: Tensor | None = None

    def __post_init__(self) -> None:
        if not (torch.isfinite(self.low).all() and torch.isfinite(self.high).all() and (self.low < self.high).all()):
            raise InputError(
                "The bounds of the data must be finite with low < high in every channel. Give the smallest and largest "
                "value an input can take, for example [0, 1] or [0, 255]."
            )

    @classmethod
    def of(cls, low: float, high: float) -> Bounds:
        """The same bounds for every channel."""
        return cls(torch.tensor(float(low)), torch.tensor(float(high)))

    @property
    def scale(self) -> Tensor:
        """`high - low`: an epsilon in units of [0, 1] pixels times this is the epsilon in units of the data."""
        return self.high - self.low

    def to(self, device: str | torch.device) -> Bounds:
        held, whole = (None if mask is None else mask.to(device) for mask in (self.held, self.whole))
        return Bounds(self.low.to(device), self.high.to(device), held, whole)

    def clamp(self, x: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(x, self.high), self.low)


@dataclass(frozen=True, eq=False)
class Records:
    """Inputs with what a model should answer: `x` float32 [n, *shape], `y` int64 [n] classes or float32 [n, outputs]
    values (regression).
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> Records:
        """The records at `index` (int64 or bool [n]), in that order."""
        return Records(self.x[index], self.y[index])

    def to(self, device: str | torch.device) -> Records:
        return Records(self.x.to(device), self.y.to(device))
