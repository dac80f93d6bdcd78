"""The arithmetic that assumptions stand for, before and behind a network: for the deployed model and its twin alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError, quoted
from ..twin.rounding import tracing
from .assumptions import Assumptions, Grid


class Preprocessing(nn.Module):
    """x float32 [n, *shape] in the data's bounds -> float32 [n, *record], what the network takes.

    For an integer input these are whole numbers within its type; gradients pass the rounding straight through, and the
    limits of the type only where they do not bind.
    """

    low: Tensor
    high: Tensor
    mean: Tensor | None
    std: Tensor | None

    def __init__(self, assumptions: Assumptions) -> None:
        super().__init__()
        self.assumptions = assumptions
        self.straight_through = True  # False: rounding has the zero gradients that it really has
        for name in ("low", "high", "mean", "std"):
            values = getattr(assumptions, name)
            self.register_buffer(name, None if values is None else torch.tensor(values, dtype=torch.float32))

    def reset_parameters(self) -> None:
        """Nothing here is learnt: a model started from scratch keeps it."""

    def forward(self, x: Tensor) -> Tensor:
        """Raises InputError when the records cannot take the network's shape."""
        assumed = self.assumptions
        shape = x.shape[1:]
        if not tracing():  # an export has been preceded by a pass that checked
            self._check(shape)
        if assumed.units != "as given":
            low, high = self._spread(self.low, shape), self._spread(self.high, shape)
            if assumed.low != (0.0,) or assumed.high != (1.0,):  # else they are in 0..1 already, to the bit
                x = (x - low) / (high - low)
            if assumed.units != "0..1":
                x = x * 255 if assumed.units == "0..255" else x * 2 - 1
        if assumed.channels == "bgr":
            x = torch.cat(x.split(1, dim=1)[::-1], dim=1)
        if self.mean is not None and self.std is not None:
            x = (x - self._spread(self.mean, shape)) / self._spread(self.std, shape)
        if assumed.layout == "channels-last" and len(shape) > 1:
            x = x.movedim(1, -1)
        x = x.reshape(x.shape[0], *assumed.record)
        return x if assumed.grid is None else _on_grid(x, assumed.grid, self.straight_through)

    def _spread(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """One value for all, one per channel (first axis), or one per feature, broadcastable to a record."""
        if values.numel() == 1:
            return values.reshape(())
        if values.numel() == math.prod(self.assumptions.record):
            return values.reshape(tuple(shape))
        return values.reshape(-1, *[1] * (len(shape) - 1))

    def _check(self, shape: Sequence[int]) -> None:
        size, record = math.prod(shape), self.assumptions.record
        if size != math.prod(record):
            raise InputError(
                f"A record of the data has the shape {list(shape)} and the model takes {list(record)}: {size:,} values "
                f"for {math.prod(record):,}. Bring the data into the model's size."
            )
        for values in (self.low, self.high, self.mean, self.std):
            if values is not None and values.numel() not in (1, size, shape[0]):
                raise InputError(
                    f"{values.numel()} values of mean, std or bounds were given for records of shape {list(shape)}. "
                    "Give one value, or one per channel."
                )


def _on_grid(x: Tensor, grid: Grid, straight_through: bool) -> Tensor:
    value = x / grid.scale + grid.zero_point if grid.scale != 1 else x + grid.zero_point
    value = value.clamp(*grid.limits)
    if not straight_through or not value.requires_grad:
        return value.round()
    return value + (value.round() - value).detach()


def class_logits(answer: Tensor, assumptions: Assumptions) -> Tensor:
    """float32 [n, classes], finite, in the order of the data's classes, from the network's output [n, outputs].

    One output of a two-class network is the second class's: its logit against 0, or its probability.
    """
    answer = answer.flatten(1)
    if answer.shape[1] == 1:
        rest = torch.zeros_like(answer)
        if assumptions.outputs == "probabilities":
            rest = 1 - answer
        elif assumptions.outputs == "log-probabilities":
            rest = torch.log1p(-answer.exp().clamp(max=1 - assumptions.smallest))
        answer = torch.cat([rest, answer], dim=1)
    if assumptions.outputs == "probabilities":
        answer = answer.clamp(min=assumptions.smallest).log()
    elif assumptions.outputs == "log-probabilities":
        answer = answer.clamp(min=math.log(assumptions.smallest))
    if assumptions.labels is not None:
        if max(assumptions.labels) >= answer.shape[1]:
            raise InputError(
                f"The labels name output {max(assumptions.labels)}, and the model has {answer.shape[1]} outputs, "
                f"numbered from 0. Check --labels {quoted(','.join(map(str, assumptions.labels)))}."
            )
        answer = answer[:, list(assumptions.labels)]
    return answer
