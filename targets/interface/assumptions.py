"""What lies between an audit's records and a finished network, as data: a file rarely says what its input means."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

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
