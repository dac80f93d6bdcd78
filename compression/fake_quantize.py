"""Layers with integer weights and 8-bit activations, as they ship, simulated in float32 so that they have gradients.

A quantised candidate is an ordinary torch module whose Conv1d, Conv2d and Linear layers are `QuantizedLayer`s: they
hold the integers that go into the file and compute what an integer kernel computes, up to the rounding of float sums.
Quantisation follows Jacob et al. 2018 (arXiv:1712.05877): weights symmetric per output channel, activations asymmetric
unsigned 8 bit per tensor, biases int32 multiples of input scale x weight scale.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import PLAIN, rebuildable, replace_layers

Bits = Literal[2, 3, 4, 8]
Rounding = Literal["nearest", "stochastic"]
Operation = Literal["linear", "conv1d", "conv2d"]

_OPERATIONS: dict[type[nn.Module], Operation] = {nn.Linear: "linear", nn.Conv1d: "conv1d", nn.Conv2d: "conv2d"}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_CLIP_RATIOS = [ratio / 50 for ratio in range(50, 9, -1)]  # 1.00, .98, ... .20 of a channel's largest magnitude
_BIAS_LIMIT = 2.0**30  # bias codes stay below it, so that an int32 accumulator has room for the products


class _HardRound(torch.autograd.Function):
    """The value of fake quantisation with the true derivative of rounding: zero wherever there is one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return torch.zeros_like(gradients[0]), None, None


@rebuildable("operation", "shape", "bits", "has_bias", "quantized_input", "stride", "padding", "dilation", "groups")
class QuantizedLayer(nn.Module):
    """A Linear, Conv1d or Conv2d with integer weights; weight = codes * weight_scale.

    The arguments are plain JSON values, kept as attributes of the same names: a description of them and a state dict
    are enough to rebuild the layer.

    Buffers: `codes` int8 [out, in / groups, *kernel]; `weight_scale` float32 [out]; `bias` float32 [out] or None;
    `input_scale` float32 [] and `input_zero_point` int32 [] (u8, 0..255) or None for weight-only quantisation;
    `bias_codes` int32 [out] when there are both, and then bias = bias_codes * (input_scale * weight_scale).

    Args:
        shape: of the weight.
        bits: of the weight; codes lie in -(2^(bits-1) - 1) .. 2^(bits-1) - 1.
        quantized_input: whether the input is rounded to 8 bits.
        padding: zeros on both sides of each spatial dimension.
    """

    codes: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    bias_codes: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None

    def __init__(
        self,
        operation: Operation,
        shape: tuple[int, ...],
        bits: Bits,
        has_bias: bool,
        quantized_input: bool,
        stride: tuple[int, ...] = (),
        padding: tuple[int, ...] = (),
        dilation: tuple[int, ...] = (),
        groups: int = 1,
    ) -> None:
        super().__init__()
        spatial = len(shape) - 2
        self.operation, self.shape, self.bits = operation, tuple(shape), bits
        self.has_bias, self.quantized_input, self.groups = has_bias, quantized_input, groups
        self.stride = tuple(stride) or (1,) * spatial
        self.padding = tuple(padding) or (0,) * spatial
        self.dilation = tuple(dilation) or (1,) * spatial
        self.straight_through = True  # False: the zero gradients that hard rounding really has
        out = shape[0]
        self.register_buffer("codes", torch.zeros(self.shape, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out))
        self.register_buffer("bias", torch.zeros(out) if has_bias else None)
        both = has_bias and quantized_input
        self.register_buffer("bias_codes", torch.zeros(out, dtype=torch.int32) if both else None)
        self.register_buffer("input_scale", torch.tensor(1.0) if quantized_input else None)
        self.register_buffer("input_zero_point", torch.tensor(0, dtype=torch.int32) if quantized_input else None)

    def dequantized_weight(self) -> Tensor:
        """float32, the shape of the codes."""
        return self.codes * self.weight_scale.view(-1, *[1] * (self.codes.dim() - 1))

    def round_input(self, x: Tensor) -> Tensor:
        """x float32 rounded to the layer's 8-bit grid; as it is under weight-only quantisation."""
        if self.input_scale is None or self.input_zero_point is None:
            return x
        if self.straight_through:  # the fused operator passes gradients inside the clamp range
            return torch.fake_quantize_per_tensor_affine(x, self.input_scale, self.input_zero_point, 0, 255)
        rounded: Tensor = _HardRound.apply(x, self.input_scale, self.input_zero_point)  # type: ignore[no-untyped-call]  # torch's own stub
        return rounded

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.round_input(x), self.dequantized_weight()
        if self.operation == "linear":
            return F.linear(x, weight, self.bias)
        convolve = F.conv1d if self.operation == "conv1d" else F.conv2d
        return convolve(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return f"{self.operation}, shape={self.shape}, bits={self.bits}"


def quantize_codes(
    weight: Tensor, bits: Bits, rounding: Rounding = "nearest", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Symmetric integer codes of a weight, each output channel with its own scale.

    At 8 bits the scale covers the channel's largest magnitude. Below, it is the one of 41 clipped ranges with the
    smallest (expected) squared error of the rounding. A channel of zeros gets the smallest scale of the others (its
    bias is stored in multiples of it).

    Args:
        weight: float32 [out, ...].
        rounding: "stochastic" rounds up with probability equal to the fraction, so that codes are right on average.
        generator: a CPU generator; needed for stochastic rounding only.

    Returns:
        codes int8 like `weight`, in -(2^(bits-1) - 1) .. 2^(bits-1) - 1, and scale float32 [out] > 0.
    """
    top = 2 ** (bits - 1) - 1
    rows = weight.detach().flatten(1)
    largest = rows.abs().amax(1)
    tiny = torch.finfo(torch.float32).tiny
    best_scale = (largest / top).clamp_min(tiny)
    if bits < 8:
        least = torch.full_like(largest, torch.inf)
        for ratio in _CLIP_RATIOS:
            scale = (largest * ratio / top).clamp_min(tiny)
            steps = rows / scale[:, None]
            inside = steps.clamp(-top, top)
            fraction = inside - inside.floor()
            rounded = fraction * (1 - fraction) if rounding == "stochastic" else (inside - inside.round()).square()
            error = ((steps - inside).square() + rounded).sum(1) * scale.square()
            better = error < least
            least = torch.where(better, error, least)
            best_scale = torch.where(better, scale, best_scale)
    alive = largest > 0
    best_scale = torch.where(alive, best_scale, best_scale[alive].min() if alive.any() else torch.ones_like(largest))
    steps = rows / best_scale[:, None]
    if rounding == "stochastic":
        noise = torch.rand(steps.shape, generator=generator).to(steps.device)
        steps = (steps + noise).floor()
    codes = steps.round().clamp(-top, top).to(torch.int8)
    return codes.view(weight.shape), best_scale


def input_grid(low: float, high: float) -> tuple[float, int]:
    """(scale, zero point) of the u8 grid over [low, high] widened to hold 0, so that 0 is a grid point exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, 1e-12)
    return scale, round(-low / scale)


def can_quantize(layer: nn.Module) -> bool:
    """Whether `quantize_layer` can stand in for it: a plain Linear, Conv1d or Conv2d with symmetric zero padding."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return type(layer) in PLAIN and layer.padding_mode == "zeros" and _padding(layer) is not None
    return type(layer) is nn.Linear


def quantize_layer(
    layer: nn.Module,
    bits: Bits,
    *,
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
    input_range: tuple[float, float] | None = None,
) -> QuantizedLayer:
    """The quantised stand-in of a float layer (see `can_quantize`), on its device.

    Args:
        input_range: (low, high) of the layer's input; None leaves activations in float (weight-only).
    """
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    geometry: dict[str, Any] = {}
    if not isinstance(layer, nn.Linear):
        geometry = {
            "stride": layer.stride,
            "padding": _padding(layer),
            "dilation": layer.dilation,
            "groups": layer.groups,
        }
    shape = tuple(layer.weight.shape)
    quantized = QuantizedLayer(
        _OPERATIONS[type(layer)], shape, bits, layer.bias is not None, input_range is not None, **geometry
    ).to(layer.weight.device)
    codes, scale = quantize_codes(layer.weight, bits, rounding, generator)
    if layer.bias is not None:
        quantized.bias = layer.bias.detach().clone()
    if input_range is not None:
        step, zero_point = input_grid(*input_range)
        quantized.input_scale = torch.tensor(step, dtype=torch.float32, device=codes.device)
        quantized.input_zero_point = torch.tensor(zero_point, dtype=torch.int32, device=codes.device)
        if layer.bias is not None:
            unit = quantized.input_scale * scale
            bias_codes = (layer.bias.detach() / unit).round()
            # A channel of tiny weights and a large bias: its weights vanish beside the bias, which must fit into int32.
            wide = bias_codes.abs() > _BIAS_LIMIT
            if wide.any():
                scale = torch.where(wide, scale * bias_codes.abs() / _BIAS_LIMIT * 2, scale)
                top = 2 ** (bits - 1) - 1
                nearest = (layer.weight.detach().flatten(1) / scale[:, None]).round().clamp(-top, top)
                codes = torch.where(wide[:, None], nearest.to(torch.int8), codes.flatten(1)).view(shape)
                unit = quantized.input_scale * scale
                bias_codes = (layer.bias.detach() / unit).round()
            quantized.bias_codes = bias_codes.to(torch.int32)
            quantized.bias = quantized.bias_codes * unit
    quantized.codes, quantized.weight_scale = codes, scale
    return quantized.train(layer.training)


def _padding(layer: nn.Conv1d | nn.Conv2d) -> tuple[int, ...] | None:
    """The layer's zeros on both sides of each dimension; None where "same" padding would be lopsided."""
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    if isinstance(layer.padding, str):
        total = [step * (size - 1) for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        return tuple(zeros // 2 for zeros in total) if all(zeros % 2 == 0 for zeros in total) else None
    return tuple(layer.padding)


def native(module: nn.Module) -> nn.Module:
    """A copy with the gradients that hard rounding really has (zero), as an attacker without a twin meets them."""
    hard = copy.deepcopy(module)
    for layer in hard.modules():
        if isinstance(layer, QuantizedLayer):
            layer.straight_through = False
    return hard


def fold_batch_norm(module: nn.Module, example: Tensor) -> nn.Module:
    """A copy in evaluation mode in which each batch norm that directly follows a Conv or Linear is folded into it.

    A pair is found by running `example` and seeing the very output of a layer enter a batch norm, both called once.
    That nothing else uses that output is checked by the fold itself: the logits on `example` must stay what they were,
    else the pair is left as it is. A folded batch norm becomes nn.Identity.

    Args:
        example: float32 [n, *shape] on the module's device; two records of noise within the bounds will do.
    """
    folded = copy.deepcopy(module).eval()
    before = _output(folded, example)
    for layer, norm in _pairs(folded, example):
        weight, bias = layer.weight, layer.bias  # restored below if the fold turns out wrong
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            gain = gain * norm.weight.detach()
        shift = -norm.running_mean if bias is None else bias.detach() - norm.running_mean
        offset = torch.zeros_like(gain) if norm.bias is None else norm.bias.detach()
        layer.weight = nn.Parameter(weight.detach() * gain.view(-1, *[1] * (weight.dim() - 1)))
        layer.bias = nn.Parameter(shift * gain + offset)
        identity = nn.Identity().eval()
        replace_layers(folded, {norm: identity})
        if not torch.allclose(_output(folded, example), before, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
            replace_layers(folded, {identity: norm})
            layer.weight, layer.bias = weight, bias
    return folded


@torch.no_grad()
def _output(module: nn.Module, x: Tensor) -> Tensor:
    output: Tensor = module(x)
    return output


def _pairs(module: nn.Module, example: Tensor) -> list[tuple[Any, Any]]:
    """(layer, batch norm) whose output and input are one tensor; each called exactly once; in the order they ran."""
    outputs: dict[int, list[nn.Module]] = {}
    calls: dict[nn.Module, int] = {}
    norms: list[tuple[nn.Module, Tensor]] = []
    kept: list[Tensor] = []  # alive until the end of the pass, so that no two tensors share an id

    def after_layer(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        calls[layer] = calls.get(layer, 0) + 1
        outputs.setdefault(id(output), []).append(layer)
        kept.append(output)

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] = calls.get(norm, 0) + 1
        norms.append((norm, inputs[0]))

    handles = []
    for layer in module.modules():
        if type(layer) in PLAIN:
            handles.append(layer.register_forward_hook(after_layer))
        elif isinstance(layer, _BATCH_NORMS) and layer.running_mean is not None:
            handles.append(layer.register_forward_pre_hook(before_norm))
    try:
        _output(module, example)
    finally:
        for handle in handles:
            handle.remove()
    pairs = []
    for norm, entering in norms:
        before = outputs.get(id(entering), [])
        if len(before) == 1 and calls[before[0]] == calls[norm] == 1:
            layer = before[0]
            channels_last = isinstance(layer, nn.Linear) and entering.dim() != 2
            if not channels_last:
                pairs.append((layer, norm))
    return pairs
