"""Mixed precision: every layer gets the bits that it needs, by measurement, within a budget of bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from ...targets.data.records import Bounds, Records
from ...targets.errors import NotApplicable
from ...targets.model import records_at_once
from ...targets.steps import pulse
from ..layers.edit import replace_layers
from ..recipe import RECIPES, Promise, Recipe
from .quantize import Quantize
from .stand_ins import prepare, stand_in
from .weight_codes import Bits, WeightFormat

WIDTHS: tuple[Bits, ...] = (8, 4, 3, 2)


@RECIPES.register
class MixedPrecision(Recipe):
    """Integer weights of 8, 4, 3 or 2 bits, chosen layer by layer by measured sensitivity.

    The sensitivity of a layer at b bits is the mean Kullback-Leibler divergence of the model's predictions when that
    layer's weights alone are rounded to b bits (ZeroQ, Cai et al. 2020, arXiv:2001.00281); of predicted values, it is
    their mean squared change. From 8 bits everywhere, bits are taken where a saved bit costs least, until the budget is
    met. No timing decides anything.
    """

    is_last: ClassVar[bool] = True
    keeps_activations: ClassVar[bool] = True
    kind: Literal["mixed-precision"] = "mixed-precision"
    average_bits: float = Field(
        4.0, ge=2, le=8, description="budget: bits per weight at most, on the weighted average over the layers"
    )
    weighted_by: Literal["size", "macs"] = Field(
        "size",
        description="a layer's weight in that average: size, its number of weights (4 bits: half the payload of 8-bit "
        "weights); macs, its multiply-accumulates per record, for hardware whose time grows with the width",
    )
    quantize: Quantize = Field(
        Quantize(),
        description="everything but the bits: calibration, rounding, activations, training; its weight_bits is unused, "
        "its number is integer; keep_ends_8bit fixes first and last layer at 8 bits, which count in the budget",
    )

    @field_validator("quantize")
    @classmethod
    def _integers(cls, quantize: Quantize) -> Quantize:
        if quantize.number not in ("integer", "fixed-point"):
            raise ValueError(f"{quantize.number} weights have one width: mixed precision needs integer or fixed-point")
        return quantize

    @property
    def touches_records(self) -> bool:
        return self.quantize.calibration_inputs == "records" or self.quantize.touches_records

    @property
    def trains(self) -> bool:
        return self.quantize.trains

    @property
    def promise(self) -> Promise:
        return self.quantize.promise

    @property
    def bits(self) -> int:
        return 8

    @property
    def phrase(self) -> str:
        budget = f"{self.average_bits:g} bits per weight on average"
        if self.weighted_by == "macs":
            budget = f"{self.average_bits:g} bits per multiply-accumulate on average"
        number = "mixed-precision fixed-point" if self.quantize.number == "fixed-point" else "mixed-precision"
        return ", ".join([f"{number} weights ({budget})", *self.quantize.other_phrases])

    def apply(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> nn.Module:
        if not len(records) and self.touches_records:
            raise NotApplicable(
                "Mixed precision measures its layers on records, and there are none: in its quantize, set "
                "calibration_inputs: noise and no fine_tune."
            )
        prepared, layers = prepare(module, records, bounds, seed)
        x = self.quantize.calibration_set(prepared, records, bounds, seed)
        formats = [self._format(bits) for bits in WIDTHS]
        costs = sensitivities(prepared, layers, x, formats, values=records.y.is_floating_point())
        for end in (0, -1) if self.quantize.keep_ends_8bit else ():
            costs[end] = {8: costs[end][8]}
        counts = weight_counts(layers) if self.weighted_by == "size" else mac_counts(prepared, layers, x[:1])
        widths = allocate(costs, counts, self.average_bits)
        if widths is None:
            raise NotApplicable(
                f"With 2 bits for every layer but the first and the last, the average is still above "
                f"{self.average_bits:g}: raise average_bits, or set keep_ends_8bit: false in its quantize."
            )
        formats = [self._format(bits) for bits in widths]
        return self.quantize.with_formats(prepared, layers, formats, records, bounds, seed)

    def _format(self, bits: Bits) -> WeightFormat:
        return WeightFormat(self.quantize.number, bits, self.quantize.granularity, self.quantize.group_size)


def sensitivities(
    module: nn.Module, layers: Sequence[nn.Module], x: Tensor, formats: Sequence[WeightFormat], *, values: bool = False
) -> list[dict[Bits, float]]:
    """Per layer and width: what rounding its weights alone does to the model's predictions, >= 0.

    That is the mean Kullback-Leibler divergence in nats, or, where the model predicts `values` instead of classes, the
    mean squared change.

    Args:
        module: in float; left as it is.
        x: float32 [n, *shape], what predictions are compared on.
        formats: one per width.
    """
    root = nn.ModuleList([module])  # so that a lone layer can be exchanged as well
    size = records_at_once(x, module)

    @torch.no_grad()
    def predictions() -> Tensor:
        outputs = torch.cat([root[0](batch).double() for batch in x.split(size)])
        return outputs if values else outputs.log_softmax(1)

    plain = predictions()
    costs: list[dict[Bits, float]] = []
    for position, layer in enumerate(layers):
        pulse("layer", position, len(layers))
        costs.append({})
        for format in formats:
            rounded = stand_in(layer, format)
            replace_layers(root, {layer: rounded})
            change = plain - predictions()
            cost = change.square().mean() if values else (plain.exp() * change).sum(1).mean()
            replace_layers(root, {rounded: layer})
            costs[-1][format.bits] = max(float(cost), 0.0)
    return costs


def allocate(costs: Sequence[Mapping[Bits, float]], counts: Sequence[int], average_bits: float) -> list[Bits] | None:
    """The width of each layer that costs little in sum, with sum(width * count) <= average_bits * sum(count).

    Every layer starts at its largest width. Along the lower convex hull of a layer's costs, a step down has a price per
    saved bit; steps are taken in the order of their prices (the solution of the Lagrangian relaxation), and what the
    last of them left over is given back where it saves most. The widest equal width within the budget is taken instead
    where it costs less.

    Args:
        costs: per layer, of each width it may have.
        counts: per layer, of its weights, or of the operations that use them.

    Returns:
        None when the budget cannot be met.
    """
    budget = average_bits * sum(counts)
    hulls = [_hull(options) for options in costs]
    steps = []  # (price, layer, the width after the step)
    for layer, hull in enumerate(hulls):
        for wide, narrow in pairwise(hull):
            price = (costs[layer][narrow] - costs[layer][wide]) / ((wide - narrow) * max(counts[layer], 1))
            steps.append((price, layer, narrow))
    widths = [hull[0] for hull in hulls]

    def used(chosen: Sequence[Bits]) -> int:
        return sum(width * count for width, count in zip(chosen, counts, strict=True))

    def total(chosen: Sequence[Bits]) -> float:
        return sum(options[width] for options, width in zip(costs, chosen, strict=True))

    for _, layer, narrow in sorted(steps, key=lambda step: (step[0], step[1], -step[2])):
        if used(widths) <= budget:
            break
        widths[layer] = narrow
    if used(widths) > budget:
        return None
    while True:
        wider = [
            [*widths[:layer], width, *widths[layer + 1 :]]
            for layer, options in enumerate(costs)
            for width in options
            if options[width] < options[widths[layer]]
        ]
        fitting = [chosen for chosen in wider if used(chosen) <= budget]
        if not fitting:
            break
        widths = min(fitting, key=total)
    equal: list[list[Bits]] = [[width] * len(costs) for width in WIDTHS if all(width in options for options in costs)]
    return min([widths, *(chosen for chosen in equal if used(chosen) <= budget)], key=total)


def _hull(options: Mapping[Bits, float]) -> list[Bits]:
    """The widths on the lower convex hull of (width, cost) from the cheapest down, widest first.

    A wider one that costs as much or more is never worth its bits.
    """
    hull: list[Bits] = []
    for width in sorted(options):  # narrow to wide
        if hull and options[width] >= options[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(options, hull[-2], hull[-1]) >= _slope(options, hull[-2], width):
            hull.pop()
        hull.append(width)
    return hull[::-1]


def _slope(options: Mapping[Bits, float], narrow: Bits, wide: Bits) -> float:
    return (options[wide] - options[narrow]) / (wide - narrow)


def weight_counts(layers: Sequence[nn.Module]) -> list[int]:
    """Weights (not biases) of each layer."""
    return [sum(values.numel() for name, values in layer.named_parameters() if "weight" in name) for layer in layers]


@torch.no_grad()
def mac_counts(module: nn.Module, layers: Sequence[nn.Module], record: Tensor) -> list[int]:
    """Multiply-accumulates of each layer, over all its calls, for one record float32 [1, *shape]."""
    counts = [0] * len(layers)

    def watch(position: int) -> torch.utils.hooks.RemovableHandle:
        counter = stand_in(layers[position], WeightFormat())

        def count(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            counts[position] += counter.operations(inputs, output)[0]

        return layers[position].register_forward_hook(count)

    handles = [watch(position) for position in range(len(layers))]
    try:
        module(record)
    finally:
        for handle in handles:
            handle.remove()
    return counts
