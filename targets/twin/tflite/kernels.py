"""Kernels of TFLite that round in a way of their own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..nodes import INT8, INTEGERS, UINT8, Node, operator
from ..operators.layers import window
from ..rounding import quantized, rounded
from .translation import DOMAIN


@operator("AveragePool", rounds=True, domain=DOMAIN)
def average_pool(node: Node, codes: Tensor) -> Tensor:
    """The mean of the codes under the window (of those inside, at the border), halves rounded away from zero."""
    view = window(node, node.get("kernel_shape"), codes.shape[2:])
    assert view is not None
    sums = F.avg_pool2d(view.pad(codes), view.kernel, view.strides, divisor_override=1)
    ones = view.pad(torch.ones_like(codes[:1, :1]))
    counts = F.avg_pool2d(ones, view.kernel, view.strides, divisor_override=1)
    whole = sums.detach()  # exact, as every step below it is: integers under 2^24
    value = ((whole.abs() + (counts / 2).floor()) / counts).floor() * whole.sign()
    return rounded(sums / counts, value, node.straight_through)


@operator("Mean", result=lambda node: node.types[3], rounds=True, domain=DOMAIN)
def mean(node: Node, codes: Tensor, ratio: Tensor, zero: Tensor, new_zero: Tensor) -> Tensor:
    """The mean over `axes` on another grid, whose steps are 1 / `ratio` of the old ones: halves go to the even code."""
    value = (codes - zero).mean(node.get("axes"), bool(node.get("keepdims"))) * ratio + new_zero
    return _within(node, value, value.detach().round())


@operator("Requantize", result=lambda node: node.types[3], rounds=True, domain=DOMAIN)
def requantize(
    node: Node, codes: Tensor, ratio: Tensor, zero: Tensor, new_zero: Tensor, below: Tensor | None = None
) -> Tensor:
    """Codes of another grid, whose steps are 1 / `ratio` of the old ones; 1 / `below` for values under 0.

    The factors count in 256ths (XNNPACK), and halves are rounded up.
    """
    whole = codes - zero
    factor = ratio if below is None else torch.where(whole.detach() < 0, below, ratio)
    value = whole * ((256 * factor).round() / 256) + new_zero
    return _within(node, value, (value.detach() + 0.5).floor())


@operator("Rescale", result=lambda node: node.types[3], rounds=True, domain=DOMAIN)
def rescale(node: Node, codes: Tensor, ratio: Tensor, zero: Tensor, new_zero: Tensor) -> Tensor:
    """The same as gemmlowp rounds. The ratio is a fraction from .5 to 1 times a power of two: the product with the
    fraction is rounded first (halves up), and where the power is below 1 once more (halves away from zero).
    """
    whole, (fraction, power) = codes - zero, torch.frexp(ratio)
    product = (whole.detach() * torch.ldexp(fraction, power.clamp(min=0)) + 0.5).floor()
    scaled = torch.ldexp(product, power.clamp(max=0))
    return _within(node, whole * ratio + new_zero, scaled.sign() * (scaled.abs() + 0.5).floor() + new_zero)


@operator("DynamicRange", rounds=True, domain=DOMAIN)
def dynamic_range(node: Node, x: Tensor) -> Tensor:
    """Floats in front of 8-bit weights: rounded to 255 steps over the range of each record, 0 included."""
    axes = list(range(1, x.dim()))
    low, high = x.detach().amin(axes, keepdim=True).clamp(max=0), x.detach().amax(axes, keepdim=True).clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return quantized(x, scale, (-128 - low / scale).round(), INTEGERS[INT8], node.straight_through, back=True)


def _within(node: Node, value: Tensor, codes: Tensor) -> Tensor:
    """`codes` within their type; the gradient of `value` passes where they are."""
    kept = codes.clamp(*INTEGERS[node.types[3] or UINT8])
    return rounded(value, kept, node.straight_through, (kept == codes).to(value.dtype))
