"""What lies between an audit's records and a finished network: the assumptions, and the arithmetic they stand for.

A finished file rarely says what its input means. The assumptions write it down, as data; `Preprocessing` and
`class_logits` are the same arithmetic before and behind the deployed model and its differentiable twin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from .errors import InputError
from .files import shown
from .twin_rounding import tracing

Layout = Literal["channels-first", "channels-last", "flat"]
Units = Literal["as given", "0..1", "0..255", "-1..1"]
Channels = Literal["rgb", "bgr"]
Outputs = Literal["logits", "probabilities", "log-probabilities"]

SMALLEST = 1e-30  # a probability's floor; its logarithm, -69, is finite and far below any that matters


class Grid(BaseModel):
    """An integer input: the value v is handed over as round(v / scale) + zero_point, kept within the type."""

    model_config = ConfigDict(frozen=True)

    type: Literal["uint8", "int8", "uint16", "int16"]
    scale: float = 1.0
    zero_point: float = 0.0

    @property
    def limits(self) -> tuple[int, int]:
        return {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 2**16 - 1), "int16": (-(2**15), 2**15 - 1)}[
            self.type
        ]


class Assumptions(BaseModel):
    """How a record becomes the network's input, and its output becomes logits in the order of the data's classes.

    A record's values are first put into `units`, seen from the data's bounds (`low`, `high`: one value, or one per
    channel or feature); then their three channels turned round, where `channels` is "bgr"; then, if `mean` and `std`
    are given (units "0..1"), normalised per channel, in the network's order of channels; then moved into the
    network's `layout` and the shape `record`; then put onto `grid`, where the input takes integers.
    `labels[k]` is the network's output for the data's class k; None: they are the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    layout: Layout = "channels-first"
    record: tuple[int, ...]  # of the network's input, without the batch
    units: Units = "as given"
    low: tuple[float, ...] = (0.0,)
    high: tuple[float, ...] = (1.0,)
    channels: Channels = "rgb"  # "bgr": turned round; the data's are in the usual order
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    grid: Grid | None = None
    outputs: Outputs = "logits"
    smallest: float = SMALLEST  # a probability below it counts as it: half a step of a quantised output
    labels: tuple[int, ...] | None = None
    output: str | None = None  # the name of the file's output that is read; None: its first

    @model_validator(mode="after")
    def _together(self) -> Assumptions:
        if (self.mean is None) != (self.std is None) or (self.mean is not None and self.units != "0..1"):
            raise ValueError("mean and std come together, for units 0..1")
        return self


def alike(one: Assumptions, other: Assumptions) -> bool:
    """Whether two files see a record in the same way. Integer steps and shapes may differ, as between a model and its
    int8 form; so may the layout where the shapes ask for it.
    """
    if any(getattr(one, name) != getattr(other, name) for name in ("units", "channels", "mean", "std")):
        return False
    return one.layout == other.layout or one.record != other.record


class Overrides(BaseModel):
    """What the user knows about the file; None is left to `assume`.

    `mean` and `std` are per channel, in units of [0, 1]; one without the other is completed by 0 or 1. `labels` names
    the model's output for each class of the data, or the output of the first class, the others following.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    layout: Layout | None = None
    channels: Channels | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    units: Units | None = None
    outputs: Outputs | None = None
    labels: tuple[int, ...] | int | None = None
    output: str | None = None


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
                f"numbered from 0. Check --labels {shown(','.join(map(str, assumptions.labels)))}."
            )
        answer = answer[:, list(assumptions.labels)]
    return answer
