"""Layers with few-bit weights and 8-bit activations, as they ship, simulated in float32 so that they have gradients.

A quantised candidate is an ordinary torch module whose Linear, Conv1d, Conv2d and Embedding layers are
`QuantizedLayer`s: they hold the integers that go into the file and compute what an integer kernel computes, up to the
rounding of float sums. Weights as in `weight_codes`; activations asymmetric unsigned 8 bit per tensor, biases int32
multiples of input scale x weight scale (Jacob et al. 2018, arXiv:1712.05877).
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...targets.errors import NotApplicable
from ...targets.twin.rounding import quantized
from ..layers.edit import PLAIN_LAYERS, REBUILDABLE, rebuildable
from .weight_codes import (
    SIXTEEN_BITS,
    Bits,
    Granularity,
    Number,
    Rounding,
    WeightFormat,
    half_bits,
    spread_scale,
    weight_codes,
)

Operation = Literal["linear", "conv1d", "conv2d", "embedding"]
Activations = tuple[float, float] | Literal["dynamic"] | None
"""Of a layer's input: its calibrated (low, high); the range of each record; None, left in float."""

_OPERATIONS: dict[type[nn.Module], Operation] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Embedding: "embedding",
}
_BIAS_LIMIT = 2.0**30  # bias codes stay below it, so that an int32 accumulator has room for the products


def round_to_grid(x: Tensor, scale: Tensor, zero_point: Tensor, straight_through: bool) -> Tensor:
    """x float32 rounded to the u8 grid of scale float32 and zero point int32 (0..255), as ONNX rounds.

    Gradients pass inside the grid's range under `straight_through`; they are zero otherwise.

    Args:
        scale, zero_point: [], or one per record, [n, 1, ...].
    """
    return quantized(x, scale, zero_point.to(x.dtype), (0, 255), straight_through, back=True)


@rebuildable(
    "operation",
    "shape",
    "number",
    "bits",
    "granularity",
    "group_size",
    "has_bias",
    "activations",
    "stride",
    "padding",
    "dilation",
    "groups",
)
class QuantizedLayer(nn.Module):
    """A Linear, Conv1d, Conv2d or Embedding with a weight in few bits, and its input perhaps in 8.

    The first arguments are a `WeightFormat`'s. The arguments are plain JSON values, kept as attributes of the same
    names: a description of them and a state dict are enough to rebuild the layer.

    Buffers: `codes` int8 [out, in / groups, *kernel], and `weight_scale` float32 [1], [out] or [out, groups of
    weights]; for float16 and bfloat16 `codes` int16, their bit patterns, and no scale. `bias` float32 [out] or None.
    Static activations: `input_scale` float32 [] and `input_zero_point` int32 [] (u8, 0..255), and unless weights have
    group scales `bias_codes` int32 [out], and then bias = bias_codes * (input_scale * weight_scale).

    Args:
        operation: what it computes; an embedding takes integers, and its rows are the channels.
        shape: of the weight.
        activations: "static": inputs are rounded to the calibrated grid. "dynamic": each record to a grid over its own
            smallest and largest value, 0 included, as ONNX's DynamicQuantizeLinear does with a record that comes alone.
            "float": not rounded.
        padding: zeros on both sides of each spatial dimension.
    """

    codes: Tensor
    weight_scale: Tensor | None
    bias: Tensor | None
    bias_codes: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None

    def __init__(
        self,
        operation: Operation,
        shape: tuple[int, ...],
        number: Number,
        bits: Bits,
        granularity: Granularity,
        group_size: int,
        has_bias: bool,
        activations: Literal["static", "dynamic", "float"],
        stride: tuple[int, ...] = (),
        padding: tuple[int, ...] = (),
        dilation: tuple[int, ...] = (),
        groups: int = 1,
    ) -> None:
        super().__init__()
        spatial = len(shape) - 2
        self.operation, self.shape = operation, tuple(shape)
        self.number, self.bits, self.granularity, self.group_size = number, bits, granularity, group_size
        self.has_bias, self.activations, self.groups = has_bias, activations, groups
        self.stride = tuple(stride) or (1,) * spatial
        self.padding = tuple(padding) or (0,) * spatial
        self.dilation = tuple(dilation) or (1,) * spatial
        self.straight_through = True  # False: the zero gradients that hard rounding really has
        out, static, half = shape[0], activations == "static", number in SIXTEEN_BITS
        self.register_buffer("codes", torch.zeros(self.shape, dtype=torch.int16 if half else torch.int8))
        self.register_buffer("weight_scale", None if half else torch.ones(self.format.scale_shape(self.shape)))
        self.register_buffer("bias", torch.zeros(out) if has_bias else None)
        integer_bias = has_bias and static and granularity != "group"
        self.register_buffer("bias_codes", torch.zeros(out, dtype=torch.int32) if integer_bias else None)
        self.register_buffer("input_scale", torch.tensor(1.0) if static else None)
        self.register_buffer("input_zero_point", torch.tensor(0, dtype=torch.int32) if static else None)

    @property
    def format(self) -> WeightFormat:
        return WeightFormat(self.number, self.bits, self.granularity, self.group_size)

    def dequantized_weight(self) -> Tensor:
        """float32, the shape of the codes."""
        if self.weight_scale is None:
            return self.codes.view(SIXTEEN_BITS[self.number]).float()
        return self.codes * spread_scale(self.weight_scale, self.shape, self.group_size)

    def round_input(self, x: Tensor) -> Tensor:
        """x float32 rounded to the layer's 8-bit grid; as it is where activations are left in float."""
        if self.input_scale is not None and self.input_zero_point is not None:
            return round_to_grid(x, self.input_scale, self.input_zero_point, self.straight_through)
        if self.activations == "dynamic":
            return round_to_grid(x, *dynamic_grid(x), self.straight_through)
        return x

    def forward(self, x: Tensor) -> Tensor:
        weight = self.dequantized_weight()
        if self.operation == "embedding":
            return F.embedding(x, weight)
        x = self.round_input(x)
        if self.operation == "linear":
            return F.linear(x, weight, self.bias)
        convolve = F.conv1d if self.operation == "conv1d" else F.conv2d
        return convolve(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def true_gradients(self) -> None:
        self.straight_through = False

    def operations(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[int, int, int]:
        """(multiply-accumulates of one record, bits of a weight, bits of an activation) of a call."""
        per_output = 0 if self.operation == "embedding" else self.codes[0].numel()
        macs = output.numel() // len(inputs[0]) * per_output
        return macs, self.format.width, 32 if self.activations == "float" else 8

    def extra_repr(self) -> str:
        return f"{self.operation}, shape={self.shape}, {self.number}, bits={self.format.width}, {self.activations}"


def input_grid(low: float, high: float) -> tuple[float, int]:
    """(scale, zero point) of the u8 grid over [low, high] widened to hold 0, so that 0 is a grid point exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, 1e-12)
    return scale, round(-low / scale)


def dynamic_grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, zero point int32) of the u8 grid that ONNX's DynamicQuantizeLinear puts over one record.

    Args:
        x: [n, ...]; each of the n has its own grid, [n, 1, ...], as if it came alone: then an answer does not depend on
            who else asks, and `onnx.OnnxTarget` asks a dynamic file in the same way.
    """
    axes = tuple(range(1, x.dim()))
    low, high = x.detach().amin(axes, keepdim=True), x.detach().amax(axes, keepdim=True)
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, (-low / scale).round().clamp(0, 255).to(torch.int32)


def can_quantize(layer: nn.Module) -> bool:
    """Whether `quantize_layer` can stand in for it.

    A plain Linear, a Conv1d or Conv2d with symmetric zero padding, an Embedding that does not renormalise its rows.
    """
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return type(layer) in PLAIN_LAYERS and layer.padding_mode == "zeros" and _padding(layer) is not None
    if isinstance(layer, nn.Embedding):
        return type(layer) is nn.Embedding and layer.max_norm is None
    return type(layer) is nn.Linear


def quantize_layer(
    layer: nn.Module,
    format: WeightFormat,
    *,
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
    activations: Activations = None,
    codes: tuple[Tensor, Tensor] | None = None,
) -> QuantizedLayer:
    """The quantised stand-in of a float layer (see `can_quantize`), on its device.

    Args:
        rounding, generator: see `weight_codes`.
        activations: of the layer's input; see `Activations`.
        codes: (codes, scale) as `weight_codes` returns them, chosen elsewhere; None: `weight_codes` chooses.

    Raises:
        NotApplicable: 8-bit activations beside 16-bit weights or into an embedding, which has none.
    """
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding)
    half = format.number in SIXTEEN_BITS
    if activations is not None and half:
        raise NotApplicable(
            f"{format.number} weights are computed in float32, so their layers' inputs stay in float: ask for float "
            "activations, or for integer weights."
        )
    if activations is not None and isinstance(layer, nn.Embedding):
        raise NotApplicable("An embedding looks its input up, so there are no activations to quantize before it.")
    geometry: dict[str, Any] = {}
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        geometry = {
            "stride": layer.stride,
            "padding": _padding(layer),
            "dilation": layer.dilation,
            "groups": layer.groups,
        }
    bias = None if isinstance(layer, nn.Embedding) else layer.bias
    quantized = QuantizedLayer(
        _OPERATIONS[type(layer)],
        tuple(layer.weight.shape),
        format.number,
        format.bits,
        format.granularity,
        format.group_size,
        bias is not None,
        "float" if activations is None else activations if activations == "dynamic" else "static",
        **geometry,
    ).to(layer.weight.device)
    if bias is not None:
        quantized.bias = bias.detach().clone()
    if half:
        quantized.codes = half_bits(layer.weight, format.number)
        return quantized.train(layer.training)
    quantized.codes, quantized.weight_scale = codes or weight_codes(layer.weight, format, rounding, generator)
    if isinstance(activations, tuple):
        step, zero_point = input_grid(*activations)
        quantized.input_scale = torch.tensor(step, dtype=torch.float32, device=layer.weight.device)
        quantized.input_zero_point = torch.tensor(zero_point, dtype=torch.int32, device=layer.weight.device)
        if bias is not None and quantized.bias_codes is not None:
            _integer_bias(quantized, layer.weight.detach(), bias.detach())
    return quantized.train(layer.training)


def share_codes(layer: QuantizedLayer, first: QuantizedLayer) -> None:
    """Makes equal codes of a weight that layers share one tensor, so that it counts once."""
    own, other = layer.weight_scale, first.weight_scale
    same = own is other or (own is not None and other is not None and torch.equal(own, other))
    if same and torch.equal(layer.codes, first.codes):
        layer.codes, layer.weight_scale = first.codes, first.weight_scale


def _integer_bias(quantized: QuantizedLayer, weight: Tensor, bias: Tensor) -> None:
    """Writes the bias in multiples of input scale x weight scale; where those are too many for int32, widens the scale.

    That happens to tiny weights beside a large bias: the weights vanish beside it, so a coarser scale costs nothing.
    """
    scale, format = quantized.weight_scale, quantized.format
    assert scale is not None
    assert quantized.input_scale is not None
    excess = (bias / (quantized.input_scale * scale)).abs() / _BIAS_LIMIT
    if len(scale) == 1:
        excess = excess.amax().view(1)
    wide = excess > 1
    if wide.any():
        factor = 2 ** torch.ceil(torch.log2(excess * 2))  # a power of two keeps fixed point what it is
        scale = torch.where(wide, scale * factor, scale)
        if format.number != "binary":  # which has signs alone
            nearest = (weight / spread_scale(scale, quantized.shape, 1)).round().clamp(-format.top, format.top)
            rows = spread_scale(wide, quantized.shape, 1)
            quantized.codes = torch.where(rows, nearest.to(torch.int8), quantized.codes)
    unit = quantized.input_scale * scale
    quantized.weight_scale = scale
    quantized.bias_codes = (bias / unit).round().to(torch.int32)
    quantized.bias = quantized.bias_codes * unit


def _padding(layer: nn.Conv1d | nn.Conv2d) -> tuple[int, ...] | None:
    """The layer's zeros on both sides of each dimension; None where "same" padding would be lopsided."""
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    if isinstance(layer.padding, str):
        total = [step * (size - 1) for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        return tuple(zeros // 2 for zeros in total) if all(zeros % 2 == 0 for zeros in total) else None
    return tuple(layer.padding)


def true_gradients(module: nn.Module) -> nn.Module:
    """A copy with the gradients that hard rounding really has (zero), as an attacker without a twin meets them."""
    hard = copy.deepcopy(module)
    for layer in hard.modules():
        switch = getattr(layer, "true_gradients", None)
        if type(layer) in REBUILDABLE and switch is not None:
            switch()
    return hard
