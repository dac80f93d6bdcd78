"""What a few records at many times their range do to the activation ranges that each calibration method finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...compression.layers.edit import called_layers
from ...compression.quantization.calibration import Calibration, Range, input_ranges
from ...targets.data.records import Bounds, Records
from ...targets.errors import NotApplicable
from ...targets.model import TorchTarget
from ..access import Ledger
from ..evasion.ascent.gradients import Gradients

BITS = (8, 4)  # of an activation
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Method:
    """A way to find the range of a layer's input.

    Args:
        percentile: of "percentile" alone: the share of the values, in %, that it keeps.
    """

    kind: Calibration
    percentile: float = 99.99

    @property
    def words(self) -> str:
        return f"{self.kind} {self.percentile:g}" if self.kind == "percentile" else self.kind


def calibrated_answers(
    module: nn.Module,
    calibration: Tensor,
    evaluation: Records,
    bounds: Bounds,
    methods: Sequence[Method],
    counts: Sequence[int],
    times: float,
) -> Bools:
    """bool [bits, methods, counts, n]: what is right when every layer's input is rounded over its calibrated range.

    Weights stay as they are. Ranges are those of `input_ranges`, of every layer alike, the model's own input too, as
    calibrators outside of this package have it.

    Args:
        calibration: float32 [m, *shape], of which so many (`counts`), those furthest from the lower bounds first, are
            poisoned: as far from them as before, `times` over, but for what the model looks up, as codes of categories.

    Raises:
        NotApplicable: the model has no layer whose input a quantiser would round, or looks all of its inputs up.
    """
    layers = called_layers(module, calibration[:2])
    if not layers:
        raise NotApplicable("the model has no linear or convolutional layer, whose input would be rounded")
    labels = TorchTarget(module).logits(calibration).argmax(1)
    numbers = (Gradients(module, "margin", Ledger())(calibration, labels).gradient != 0).any(0)
    if not numbers.any():
        raise NotApplicable("the model looks its inputs up, as token ids are, and none at many times its range is one")
    low, found = bounds.low.to(calibration.device), []
    calibration = calibration[(calibration - low).flatten(1).sum(1).argsort(descending=True, stable=True)]
    for count in counts:
        x = calibration.clone()
        x[:count] = torch.where(numbers, low + times * (x[:count] - low), x[:count])
        for method in methods:
            ranges = _ranges(module, layers, x, bounds, method)
            for bits in BITS:
                with _rounded(layers, ranges, bits):
                    found.append((TorchTarget(module).logits(evaluation.x).argmax(1) == evaluation.y).cpu().numpy())
    shape = (len(counts), len(methods), len(BITS), len(evaluation))
    return np.ascontiguousarray(np.stack(found).reshape(shape).transpose(2, 1, 0, 3))


class _Copied(nn.Module):
    """Its input anew, so that the model's own first layer is calibrated as all others are."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def _ranges(module: nn.Module, layers: Sequence[nn.Module], x: Tensor, bounds: Bounds, method: Method) -> list[Range]:
    copied = _Copied()
    whole = nn.Sequential(copied, module).eval()
    return input_ranges(whole, [copied, *layers], x, bounds, method.kind, method.percentile)[1:]


@contextmanager
def _rounded(layers: Sequence[nn.Module], ranges: Sequence[Range], bits: int) -> Iterator[None]:
    """Inside the block each layer's input lies on a grid over its range, widened to hold 0."""

    def hook(low: float, high: float) -> Any:
        least, most = min(low, 0.0), max(high, 0.0)
        step = max((most - least) / (2**bits - 1), 1e-12)
        zero = round(-least / step)

        def entering(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            codes = (inputs[0] / step).round().add(zero).clamp(0, 2**bits - 1)
            return ((codes - zero) * step, *inputs[1:])

        return entering

    handles = [layer.register_forward_pre_hook(hook(*one)) for layer, one in zip(layers, ranges, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
