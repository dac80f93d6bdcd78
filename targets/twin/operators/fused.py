"""Operators that ONNX Runtime's optimiser and its weight-only quantiser write, in floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from ...packed_bits import unpack
from ..nodes import FLOAT, MICROSOFT, UINT8, Node, operator
from .layers import affine, convolve
from .normalisations import layer_norm

_FUSED: dict[str, Callable[[Tensor, Sequence[float]], Tensor]] = {
    "": lambda x, _: x,
    "Relu": lambda x, _: x.relu(),
    "Sigmoid": lambda x, _: x.sigmoid(),
    "Tanh": lambda x, _: x.tanh(),
    "LeakyRelu": lambda x, values: F.leaky_relu(x, values[0]),
    "Clip": lambda x, values: x.clamp(values[0], values[1]),
    "HardSigmoid": lambda x, values: (values[0] * x + values[1]).clamp(0, 1),
}


@operator("FusedConv", domain=MICROSOFT)
def fused_conv(
    node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None, addend: Tensor | None = None
) -> Tensor:
    """What ONNX Runtime's optimiser makes of Conv, Add and an activation."""
    if node.get("activation", "") not in _FUSED:
        node.refuse(f"its activation is {node.get('activation')}")
    total = convolve(node, x, weight, bias)
    total = total if addend is None else total + addend
    return _FUSED[node.get("activation", "")](total, node.get("activation_params", ()))


@operator("FusedGemm", domain=MICROSOFT)
def fused_gemm(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    parameters = [node.get("activation_alpha", 0.01), node.get("activation_beta", 0.0)]
    if node.get("activation", "") not in _FUSED:
        node.refuse(f"its activation is {node.get('activation')}")
    return _FUSED[node.get("activation", "")](affine(node, x, weight, bias), parameters)


@operator("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(node: Node, x: Tensor, y: Tensor) -> Tensor:
    x = x.mT if node.get("transA", 0) else x
    product: Tensor = node.get("alpha", 1.0) * (x @ (y.mT if node.get("transB", 0) else y))
    return product


@operator("LayerNormalization", domain=MICROSOFT)
def runtime_layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    return layer_norm(node, x, scale, bias)  # type: ignore[return-value]  # one output


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(
    node: Node, x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    normal = F.layer_norm(total, x.shape[-1:], scale, shift, node.get("epsilon", 1e-12))
    return normal, None, None, total


@operator("MatMulNBits", result=FLOAT, domain=MICROSOFT)
def matmul_bits(
    node: Node,
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    groups: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Weights of 4 or 8 bits, [out, blocks, bytes of a block], the lower half of a byte first; x in floats."""
    size, bits, inner, outer = (node.get(name) for name in ("block_size", "bits", "K", "N"))
    if bits not in (4, 8) or groups is not None:
        node.refuse("its weights have neither 4 nor 8 bits, or their groups are listed")
    blocks = -(-inner // size)
    codes = unpack(packed, bits).reshape(outer, blocks, size)
    if zeros is None:
        middle: Tensor | float = 2.0 ** (bits - 1)
    elif node.types[3] == UINT8:
        middle = unpack(zeros.reshape(outer, -1), bits)[:, :blocks, None]
    else:
        middle = zeros.reshape(outer, blocks, 1)
    weight = ((codes - middle) * scales.reshape(outer, blocks, 1)).reshape(outer, -1)[:, :inner]
    return F.linear(x, weight, bias)
