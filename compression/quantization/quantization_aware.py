"""Quantisation-aware training: the rounding of weights and activations is in every forward pass of the training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...targets.data.records import Bounds, Records
from ...training.adversarial import objective_of
from ...training.loop import Training, train
from ..layers.edit import replace_layers
from .quantized_layer import (
    Activations,
    QuantizedLayer,
    dynamic_grid,
    input_grid,
    quantize_layer,
    round_to_grid,
    share_codes,
)
from .quantized_recurrent import QuantizedRecurrent, quantize_recurrent
from .weight_codes import SIXTEEN_BITS, WeightFormat, spread_scale, weight_codes


def train_quantized(
    module: nn.Module,
    layers: Sequence[nn.Module],
    formats: Sequence[WeightFormat],
    activations: Sequence[Activations],
    records: Records,
    bounds: Bounds,
    training: Training,
    *,
    seed: int,
) -> nn.Module:
    """Trains `module` with its `layers` rounded, and puts stand-ins with the trained codes in their place.

    Rounding is passed straight through (Jacob et al. 2018, arXiv:1712.05877); integer scales are learned with the
    weights (LSQ, Esser et al. 2020, arXiv:1902.08153), from those of quantisation after training on; those of fixed
    point stay what they are, binary and ternary ones follow from the weights at every step. Activation ranges stay
    those given. A weight that is exactly zero (pruned) stays zero, except in binary.

    Args:
        module: with its batch norms folded (see `fold_batch_norm`); it is used up.
        layers: of `module`, with a quantised stand-in each: those `can_quantize` accepts, LSTM and GRU.
        formats, activations: of each layer; layers that share a weight have one format, and go on sharing it.

    Returns:
        The trained module in evaluation mode, layers at the paths where `layers` were.
    """
    in_training: dict[nn.Module, nn.Module] = {}
    first: dict[int, _InTraining] = {}  # by the id of a weight, the first layer that holds it
    for layer, format, activation in zip(layers, formats, activations, strict=True):
        one = _InTraining(layer, format, activation)
        one.share(first.setdefault(id(getattr(layer, "weight", layer)), one))
        in_training[layer] = one
    prepared = replace_layers(module, in_training).requires_grad_(True)
    trained = train(prepared, records, training, seed=seed, objective=objective_of(training, bounds))
    finished: dict[nn.Module, nn.Module] = {}
    coded: dict[int, QuantizedLayer] = {}
    for layer in trained.modules():
        if isinstance(layer, _InTraining):
            shipped = finished[layer] = layer.finished()
            if isinstance(shipped, QuantizedLayer):
                share_codes(shipped, coded.setdefault(id(layer.layer.weight), shipped))
    return replace_layers(trained, finished).eval()


class _InTraining(nn.Module):
    """A layer that rounds its float weights, and its input, on every call.

    `log_scales`, of integers, are logarithms: a step of the optimiser is then relative, and a scale stays positive.
    """

    def __init__(self, layer: nn.Module, format: WeightFormat, activations: Activations) -> None:
        super().__init__()
        self.layer, self.format, self.activations = copy.deepcopy(layer), format, activations
        self.names = [name for name, _ in layer.named_parameters() if name.startswith("weight")]
        self.log_scales = nn.ParameterDict()
        for name in self.names:
            weight = layer.get_parameter(name).detach()
            if format.number == "integer":
                self.log_scales[name] = nn.Parameter(weight_codes(weight, format)[1].log())
            elif format.number == "fixed-point":
                self.register_buffer(f"scale_{name}", weight_codes(weight, format)[1])
            pruned = format.number != "binary" and bool((weight == 0).any())
            self.register_buffer(f"alive_{name}", weight != 0 if pruned else None)

    def share(self, first: _InTraining) -> None:
        """Trains the weight and the scales of `first`, a layer with the same weight (in the same format)."""
        if first is not self:
            self.layer.weight, self.log_scales = first.layer.weight, first.log_scales

    def weight(self, name: str) -> Tensor:
        """A float weight, float32; what was pruned is zero."""
        weight: Tensor = self.layer.get_parameter(name)
        alive = self._buffers[f"alive_{name}"]
        return weight if alive is None else weight * alive

    def scale(self, name: str) -> Tensor | None:
        """float32, see `WeightFormat.scale_shape`; None where it follows from the weight, or there is none."""
        if self.format.number == "integer":
            scale: Tensor = self.log_scales[name].exp()
            return scale
        return self.get_buffer(f"scale_{name}") if self.format.number == "fixed-point" else None

    def rounded_weight(self, name: str) -> Tensor:
        """What the weight will be in the file, with the gradients of straight-through rounding."""
        weight, format, scale = self.weight(name), self.format, self.scale(name)
        shape = tuple(weight.shape)
        if scale is not None:
            spread = spread_scale(scale, shape, format.group_size)
            steps = (weight / spread).clamp(-format.top, format.top)
            return (steps + (steps.round() - steps).detach()) * spread
        if format.number in SIXTEEN_BITS:
            value = weight.detach().to(SIXTEEN_BITS[format.number]).float()
        else:
            codes, scale = weight_codes(weight, format)
            value = codes * spread_scale(scale, shape, format.group_size)
        return weight + (value - weight).detach()

    def round_input(self, x: Tensor) -> Tensor:
        if self.activations is None:
            return x
        if self.activations == "dynamic":
            return round_to_grid(x, *dynamic_grid(x), True)
        step, zero_point = input_grid(*self.activations)
        grid = torch.tensor(step, device=x.device), torch.tensor(zero_point, dtype=torch.int32, device=x.device)
        return round_to_grid(x, *grid, True)

    def forward(self, x: Tensor, *states: Any) -> Any:
        """As the layer itself: a recurrent one takes initial states too, and gives its last."""
        weights = {name: self.rounded_weight(name) for name in self.names}
        return functional_call(self.layer, weights, (self.round_input(x), *states))

    @torch.no_grad()
    def finished(self) -> QuantizedLayer | QuantizedRecurrent:
        """The layer as it ships, with the codes that training ended on."""
        codes: dict[str, tuple[Tensor, Tensor]] = {}
        for name in self.names:
            weight, scale = self.weight(name), self.scale(name)
            if scale is not None:
                steps = weight / spread_scale(scale, tuple(weight.shape), self.format.group_size)
                top = self.format.top
                codes[name] = steps.clamp(-top, top).round().to(torch.int8), scale
            self.layer.get_parameter(name).copy_(weight)
        if not isinstance(self.layer, nn.LSTM | nn.GRU):
            return quantize_layer(self.layer, self.format, activations=self.activations, codes=codes.get("weight"))
        recurrent = quantize_recurrent(self.layer, self.format)
        for name, (chosen, scale) in codes.items():
            setattr(recurrent, f"{name}_codes", chosen)
            setattr(recurrent, f"{name}_scale", scale)
        return recurrent
