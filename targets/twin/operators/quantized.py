"""Quantised operators: of the standard, and those ONNX Runtime's own quantiser writes.

Integer products are summed exactly: in float32 where no sum can reach 2^24, with float64 where it could.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dynamic import dynamic_codes
from ..nodes import FLOAT, INT32, INTEGERS, MICROSOFT, UINT8, Node, like, operator
from ..rounding import along, quantized
from .layers import average_pool, convolve

EXACT = 2**24  # float32 holds every integer up to it


def limits(node: Node, kind: int | None) -> tuple[float, float]:
    if kind is not None and kind not in INTEGERS:
        node.refuse(f"it quantises to the element type {kind}")
    return INTEGERS[UINT8 if kind is None else kind]


def code_type(node: Node) -> int | None:
    """Of a QuantizeLinear: that of its zero point, else the one it names, else u8."""
    if node.has(2):
        return node.types[2]
    return node.get("output_dtype", 0) or UINT8


@operator("QuantizeLinear", result=code_type, rounds=True)
def quantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis = node.get("axis", 1)
    scale, zero = (_blocks(node, item, x, axis) for item in (scale, zero))
    return quantized(like(x), scale, zero, limits(node, code_type(node)), node.straight_through, axis=axis)


@operator("DequantizeLinear", result=lambda node: node.types[1] or FLOAT)
def dequantize(node: Node, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis = node.get("axis", 1)
    values = like(codes)
    if zero is not None and bool(zero.numel()):
        values = values - along(_blocks(node, like(zero), codes, axis), codes, axis)
    return values * along(_blocks(node, scale, codes, axis), codes, axis)


def _blocks(node: Node, values: Any, x: Tensor, axis: int) -> Any:
    """Scales of blocks along an axis (opset 21), one for each element; others as they are."""
    size = node.get("block_size", 0)
    if values is None or not size or values.dim() != x.dim():
        return values
    length = x.shape[axis]  # the file may say that blocks are longer than the whole axis
    return values.repeat_interleave(min(size, length), axis).narrow(axis, 0, length)


def round_trip(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """QuantizeLinear and the DequantizeLinear behind it, at once."""
    axis = node.get("axis", 1)
    return quantized(x, scale, zero, limits(node, code_type(node)), node.straight_through, axis=axis, back=True)


def softmax_round_trip(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """`round_trip` behind a softmax of quantised values, which ONNX Runtime replaces by its QLinearSoftmax."""
    steps = (1 / scale).floor()
    codes = quantized(x, 1 / steps, zero, limits(node, code_type(node)), node.straight_through)
    return (codes if zero is None else codes - zero) * scale


@operator("DynamicQuantizeLinear", result=UINT8, rounds=True)
def dynamic_quantize(node: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return dynamic_codes(node, x)


def _centred(codes: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    return codes if zero is None else codes - along(zero, codes, axis)


def _exact(
    node: Node,
    at: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    product: Callable[[Tensor, Tensor], Tensor],
    axes: tuple[int, int] = (-1, -2),
) -> Tensor:
    """`product` of integers (zero points already taken off) plus `bias`, without a rounding.

    Args:
        at: the number of the weight among the inputs.
        axes: those that are summed over, of x and of the weight; (1, 1) is a convolution.
    """
    parts = _parts(node, at, weight, bias, axes[1])
    if parts is None:
        total = product(x.double(), weight.double())
    elif len(parts) == 1:
        total = product(x, weight)
    else:
        pieces = zip(x.split(parts, axes[0]), weight.split(parts, axes[1]), strict=True)
        total = sum((product(*piece).double() for piece in pieces), torch.zeros((), dtype=torch.float64))
    if bias is None:
        return total
    return total + along(bias.to(total.dtype), total, 1 if axes == (1, 1) else -1)


def _parts(node: Node, at: int, weight: Tensor, bias: Tensor | None, axis: int) -> list[int] | None:
    """Sizes of the parts of the summed axis in which float32 is exact; None where the sum needs float64.

    A sum in float32 is exact while the magnitudes of a channel's weights, times 255, stay below 2^24. Longer ones are
    cut into parts that are, which costs no more than the whole, and float64 adds the few parts up.
    """
    if weight.device.type == "cuda":
        return None  # a GPU may round the factors of float32 products (TF32) and transform convolutions
    if not node.constant[at]:
        return [weight.shape[axis]] if weight.shape[axis] * 255 * 255 < EXACT and axis != 1 else None
    if "parts" not in node.attributes:
        sizes = weight.detach().abs().double()
        of_inputs = sizes.flatten(2).sum(2) if axis == 1 else sizes.reshape(-1, *sizes.shape[-2:]).amax(0).T
        node.attributes["parts"] = _split(of_inputs, bias, axis != 1 or node.get("group", 1) == 1)
    known: list[int] | None = node.attributes["parts"]
    return known


def _split(magnitudes: Tensor, bias: Tensor | None, may: bool) -> list[int] | None:
    """`magnitudes` float64 [out, in]: the fewest parts of the second axis (a power of two) in which sums are exact."""
    count, total = magnitudes.shape[1], magnitudes.cumsum(1)
    extra = 0.0 if bias is None else float(bias.abs().amax())
    number = 1
    while number <= count and (may or number == 1):
        ends = [count * part // number for part in range(1, number + 1)]
        sums = torch.diff(total[:, [end - 1 for end in ends]], prepend=torch.zeros_like(total[:, :1]))
        if float(sums.amax()) * 255 + (extra if number == 1 else 0) < EXACT:
            return [end - start for start, end in zip([0, *ends], ends, strict=False)]
        number *= 2
    return None


@operator("ConvInteger", result=INT32)
def conv_integer(
    node: Node, x: Tensor, weight: Tensor, x_zero: Tensor | None = None, weight_zero: Tensor | None = None
) -> Tensor:
    return _convolved(node, 1, _centred(x, x_zero, 1), _centred(weight, weight_zero, 0), None)


def _convolved(node: Node, at: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _exact(node, at, x, weight, bias, lambda part, kernel: convolve(node, part, kernel, None), (1, 1))


@operator("MatMulInteger", result=INT32)
def matmul_integer(
    node: Node, x: Tensor, y: Tensor, x_zero: Tensor | None = None, y_zero: Tensor | None = None
) -> Tensor:
    return _product(node, 1, x, y, x_zero, y_zero)


def _product(node: Node, at: int, x: Tensor, y: Tensor, x_zero: Tensor | None, y_zero: Tensor | None) -> Tensor:
    return _exact(node, at, _centred(x, x_zero, -2), _centred(y, y_zero, -1), None, torch.matmul)


def _requantized(node: Node, value: Tensor, scale: Tensor, zero: Tensor | None, kind: int | None) -> Tensor:
    return quantized(value, scale, zero, limits(node, kind), node.straight_through)


@operator("QLinearConv", result=lambda node: node.types[7], rounds=True)
def qlinear_conv(
    node: Node,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    total = _convolved(node, 3, _centred(x, x_zero, 1), _centred(weight, weight_zero, 0), bias)
    factor = along(x_scale.reshape(()) * weight_scale, total, 1)
    return _requantized(node, total.float() * factor, y_scale, y_zero, node.types[7])


@operator("QLinearMatMul", result=lambda node: node.types[7], rounds=True)
def qlinear_matmul(
    node: Node,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    total = _product(node, 3, x, weight, x_zero, weight_zero)
    factor = along(x_scale.reshape(()) * weight_scale, total, -1)
    return _requantized(node, total.float() * factor, y_scale, y_zero, node.types[7])


@operator("QGemm", result=lambda node: node.types[8] if node.has(8) else FLOAT, rounds=True, domain=MICROSOFT)
def qgemm(
    node: Node,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor,
    bias: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
) -> Tensor:
    x = x.T if node.get("transA", 0) else x
    weight = _centred(weight, weight_zero, 0 if node.get("transB", 0) else 1)
    weight = weight.T if node.get("transB", 0) else weight
    total = _exact(node, 3, _centred(x, x_zero, 1), weight, bias, torch.matmul)
    result = total.float() * (node.get("alpha", 1.0) * x_scale.reshape(()) * weight_scale)
    return result if y_scale is None else _requantized(node, result, y_scale, y_zero, node.types[8])


@operator("MatMulIntegerToFloat", result=FLOAT, domain=MICROSOFT)
def matmul_integer_to_float(
    node: Node,
    x: Tensor,
    y: Tensor,
    x_scale: Tensor,
    y_scale: Tensor,
    x_zero: Tensor | None = None,
    y_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    total = _product(node, 1, x, y, x_zero, y_zero)
    result = total.float() * (along(x_scale, total, -1) * along(y_scale, total, -1))
    return result if bias is None else result + bias


@operator("DynamicQuantizeMatMul", result=FLOAT, rounds=True, domain=MICROSOFT)
def dynamic_quantize_matmul(
    node: Node, x: Tensor, y: Tensor, y_scale: Tensor, y_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    codes, scale, zero = dynamic_codes(node, x)
    return matmul_integer_to_float(node, codes, y, scale, y_scale, zero, y_zero, bias)  # type: ignore[return-value]  # one output


# ONNX Runtime's quantiser writes these where the standard has none: dequantise, compute in float32, quantise again.


def _pair(node: Node, operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def call(x: Tensor, xs: Tensor, xz: Tensor, y: Tensor, ys: Tensor, yz: Tensor, s: Tensor, z: Tensor) -> Tensor:
        result = operation(_centred(x, xz, 1) * xs, _centred(y, yz, 1) * ys)
        return _requantized(node, result, s, z, node.types[0])

    return call


@operator("QLinearAdd", rounds=True, domain=MICROSOFT)
def qlinear_add(node: Node, *inputs: Tensor) -> Tensor:
    return _pair(node, torch.add)(*inputs)


@operator("QLinearMul", rounds=True, domain=MICROSOFT)
def qlinear_multiply(node: Node, *inputs: Tensor) -> Tensor:
    return _pair(node, torch.mul)(*inputs)


def _single(
    node: Node, function: Callable[[Tensor], Tensor], x: Tensor, xs: Tensor, xz: Any, ys: Tensor, yz: Any
) -> Tensor:
    return _requantized(node, function(_centred(x, xz, 1) * xs), ys, yz, node.types[0])


@operator("QLinearSigmoid", rounds=True, domain=MICROSOFT)
def qlinear_sigmoid(node: Node, *inputs: Tensor) -> Tensor:
    return _single(node, torch.sigmoid, *inputs)


@operator("QLinearLeakyRelu", rounds=True, domain=MICROSOFT)
def qlinear_leaky_relu(node: Node, *inputs: Tensor) -> Tensor:
    return _single(node, lambda x: F.leaky_relu(x, node.get("alpha", 0.01)), *inputs)


@operator("QLinearSoftmax", rounds=True, domain=MICROSOFT)
def qlinear_softmax(node: Node, x: Tensor, x_scale: Tensor, x_zero: Any, y_scale: Tensor, y_zero: Any) -> Tensor:
    """The runtime counts in whole steps: 1/255 as float32 leaves 254 of them, as measured in its kernel."""
    steps = (1 / y_scale).floor()
    return _single(node, lambda part: part.softmax(node.get("axis", -1)), x, x_scale, x_zero, 1 / steps, y_zero)


@operator("QLinearGlobalAveragePool", rounds=True, domain=MICROSOFT)
def qlinear_global_average_pool(node: Node, *inputs: Tensor) -> Tensor:
    last = node.get("channels_last", 0)
    return _single(node, lambda x: x.mean([at + 2 - last for at in range(x.dim() - 2)], True), *inputs)


@operator("QLinearAveragePool", rounds=True, domain=MICROSOFT)
def qlinear_average_pool(node: Node, *inputs: Tensor) -> Tensor:
    if node.get("channels_last", 0):
        node.refuse("its channels are last")
    return _single(node, lambda x: average_pool(node, x), *inputs)  # type: ignore[arg-type,return-value]  # one output


@operator("QLinearReduceMean", rounds=True, domain=MICROSOFT)
def qlinear_reduce_mean(node: Node, *inputs: Tensor) -> Tensor:
    axes = node.get("axes") or list(range(1, inputs[0].dim()))
    return _single(node, lambda x: x.mean(axes, bool(node.get("keepdims", 1))), *inputs)


@operator("QLinearConcat", result=lambda node: node.types[1], rounds=True, domain=MICROSOFT)
def qlinear_concat(node: Node, scale: Tensor, zero: Tensor, *parts: Tensor) -> Tensor:
    groups = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    values = [_centred(codes, part_zero, 1) * part_scale for codes, part_scale, part_zero in groups]
    return _requantized(node, torch.cat(values, node.get("axis", 1)), scale, zero, node.types[1])


@operator("QLinearWhere", result=lambda node: node.types[1], rounds=True, domain=MICROSOFT)
def qlinear_where(
    node: Node, condition: Tensor, x: Tensor, xs: Tensor, xz: Tensor, y: Tensor, ys: Tensor, yz: Tensor, *grid: Tensor
) -> Tensor:
    chosen = torch.where(condition.bool(), _centred(x, xz, 1) * xs, _centred(y, yz, 1) * ys)
    return _requantized(node, chosen, grid[0], grid[1], node.types[1])


operator("QuantizeLinear", result=code_type, rounds=True, domain=MICROSOFT)(quantize)
operator("DequantizeLinear", result=lambda node: node.types[1] or FLOAT, domain=MICROSOFT)(dequantize)
