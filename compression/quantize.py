"""Post-training quantisation: integer weights, and 8-bit activations with calibrated ranges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..targets.data import Bounds, Records
from ..targets.errors import NotApplicable
from ..targets.model import BATCH, device_of
from ..targets.seeds import derive, generator
from .fake_quantize import Bits, Rounding, can_quantize, fold_batch_norm, quantize_layer
from .layers import called_layers, noise, replace_layers
from .recipe import RECIPES, Recipe


@RECIPES.register
class Quantize(Recipe):
    """Integer weights per output channel and u8 activations per tensor (Jacob et al. 2018, arXiv:1712.05877).

    Batch norms are folded first. Plain Linear, Conv1d and Conv2d layers are quantised, each input by the range
    calibration finds; layers of other types stay in float. The first layer's input range is that of the bounds.
    """

    kind: Literal["quantize"] = "quantize"
    weight_bits: Bits = Field(8, description="bits of a weight")
    activation_bits: Literal[8] | None = Field(8, description="bits of each layer's input; None: weights only")
    rounding: Rounding = Field("nearest", description="of weights; stochastic is right on average and random per draw")
    rounding_seed: int | None = Field(
        None, ge=0, description="fixes the draw of stochastic rounding; None: it follows from the seed of the recipe"
    )
    calibration: Literal["records", "range-free"] = Field(
        "records",
        description="what activation ranges are measured on: training records, or noise within the bounds, which no "
        "record decided (keeps a differentially private model's epsilon)",
    )
    calibration_records: int = Field(256, ge=1, description="records (or noise inputs) that ranges are measured on")
    keep_ends_8bit: bool = Field(
        True, description="first and last layer keep 8-bit weights when the others have fewer, as is standard practice"
    )

    @property
    def touches_records(self) -> bool:
        return self.activation_bits is not None and self.calibration == "records"

    @property
    def trains(self) -> bool:
        return False

    @property
    def words(self) -> str:
        rounding = ", stochastic rounding" if self.rounding == "stochastic" else ""
        activations = "float activations" if self.activation_bits is None else f"{self.activation_bits}-bit activations"
        return f"{self.weight_bits}-bit weights{rounding}, {activations}"

    def apply(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> nn.Module:
        example = noise(module, records, bounds, 2, seed)
        quantized = fold_batch_norm(module, example)
        layers = [layer for layer in called_layers(quantized, example) if can_quantize(layer)]
        if not layers:
            raise NotApplicable(
                "The model calls no plain Linear, Conv1d or Conv2d layer, so there is nothing to quantize."
            )
        if self.weight_bits < 8 and self.keep_ends_8bit and len(layers) <= 2:
            raise NotApplicable(
                f"The model has {len(layers)} layers to quantize, first and last, and these keep 8 bits: nothing would "
                f"get {self.weight_bits}. Set keep_ends_8bit: false to quantize them too."
            )
        ranges: Sequence[tuple[float, float] | None] = [None] * len(layers)
        if self.activation_bits is not None:
            ranges = input_ranges(quantized, layers, self._calibration_inputs(module, records, bounds, seed), bounds)
        drawn = seed if self.rounding_seed is None else self.rounding_seed
        stand_ins: dict[nn.Module, nn.Module] = {}
        for position, (layer, input_range) in enumerate(zip(layers, ranges, strict=True)):
            end = self.keep_ends_8bit and position in (0, len(layers) - 1)
            stand_ins[layer] = quantize_layer(
                layer,
                8 if end else self.weight_bits,
                rounding=self.rounding,
                generator=generator(drawn, "rounding", position),
                input_range=input_range,
            )
        return replace_layers(quantized, stand_ins).eval()

    def _calibration_inputs(self, module: nn.Module, records: Records, bounds: Bounds, seed: int) -> Tensor:
        if self.calibration == "range-free":
            return noise(module, records, bounds, self.calibration_records, derive(seed, "calibration"))
        order = torch.randperm(len(records), generator=generator(seed, "calibration"))
        return records.x[order[: self.calibration_records].to(records.x.device)].to(device_of(module))


@torch.no_grad()
def input_ranges(
    module: nn.Module, layers: Sequence[nn.Module], x: Tensor, bounds: Bounds
) -> list[tuple[float, float]]:
    """The smallest and largest value that enters each layer while `module` runs on `x` float32 [n, *shape].

    The first layer's range is also measured on the inputs that are all low and all high, so that it covers whatever
    the bounds allow: an attacker's input is never clamped by the input quantiser.
    """
    low = [float("inf")] * len(layers)
    high = [float("-inf")] * len(layers)

    def watch(position: int) -> torch.utils.hooks.RemovableHandle:
        def widen(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            least, most = torch.aminmax(inputs[0])
            low[position], high[position] = min(low[position], float(least)), max(high[position], float(most))

        return layers[position].register_forward_pre_hook(widen)

    handles = [watch(position) for position in range(len(layers))]
    try:
        for batch in torch.split(x, BATCH):
            module(batch)
        for handle in handles[1:]:
            handle.remove()
        inside = bounds.to(x.device)
        module(torch.stack([inside.low.expand(x.shape[1:]), inside.high.expand(x.shape[1:])]))
    finally:
        for handle in handles:
            handle.remove()
    return list(zip(low, high, strict=True))
