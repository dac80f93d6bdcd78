"""Convolutions, products, batch norms and pools; those with constant weights become torch's own trainable layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nodes import FLOAT, Function, Node, capped, indices, operator

_CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_LAYERS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


class Window(NamedTuple):
    """How a kernel slides over the spatial dimensions; `pads` as in ONNX: the begins, then the ends."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]

    @property
    def even(self) -> bool:
        return self.pads[: len(self.kernel)] == self.pads[len(self.kernel) :]

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        spatial = len(self.kernel)
        around = [self.pads[at + side * spatial] for at in reversed(range(spatial)) for side in (0, 1)]
        if any(around):
            capped([*x.shape[:2], *map(sum, zip(x.shape[2:], self.pads, self.pads[spatial:], strict=False))])
        return F.pad(x, around, value=value) if any(around) else x


def window(node: Node, kernel: Sequence[int], sizes: Sequence[int] | None) -> Window | None:
    """The node's window; None when it depends on the input's spatial sizes and these are not given."""
    spatial = len(kernel)
    strides = node.get("strides") or [1] * spatial
    dilations = node.get("dilations") or [1] * spatial
    automatic = node.get("auto_pad", "NOTSET")
    pads = node.get("pads") or [0] * (2 * spatial)
    if len(strides) != spatial or len(dilations) != spatial or len(pads) != 2 * spatial or min(pads) < 0:
        node.refuse("its strides, dilations and pads do not fit its kernel")
    if automatic == "VALID":
        pads = [0] * (2 * spatial)
    elif automatic.startswith("SAME"):
        reach = [step * (size - 1) for step, size in zip(dilations, kernel, strict=True)]
        if sizes is None and any(stride != 1 for stride in strides):
            return None
        totals = reach
        if sizes is not None:
            totals = [
                max((-(-size // stride) - 1) * stride + span + 1 - size, 0)
                for size, stride, span in zip(sizes, strides, reach, strict=True)
            ]
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = small + large if automatic == "SAME_UPPER" else large + small
    return Window(list(kernel), list(strides), list(dilations), list(pads))


def _window_at(node: Node, x: Tensor, kernel: Sequence[int]) -> Window:
    found = window(node, kernel, x.shape[2:])
    assert found is not None
    return found


def convolve(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Conv of any number of spatial dimensions up to three; the inputs' own precision."""
    view = _window_at(node, x, weight.shape[2:])
    padding: Any = view.pads[: len(view.kernel)]
    if not view.even:
        x, padding = view.pad(x), 0
    convolution: Callable[..., Tensor] = _CONVOLVE[weight.dim() - 3]
    return convolution(x, weight, bias, view.strides, padding, view.dilations, node.get("group", 1))


@operator("Conv")
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return convolve(node, x, weight, bias)


@operator("ConvTranspose")
def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    spatial = weight.dim() - 2
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or node.get("output_shape"):
        node.refuse("its padding follows from the output's shape")
    view = _window_at(node, x, weight.shape[2:])
    extra = node.get("output_padding") or [0] * spatial
    transposed: Callable[..., Tensor] = _TRANSPOSED[spatial - 1]
    full = transposed(x, weight, bias, view.strides, 0, extra, node.get("group", 1), view.dilations)
    for axis in range(spatial):
        begin, end = view.pads[axis], view.pads[axis + spatial]
        full = full.narrow(2 + axis, begin, full.shape[2 + axis] - begin - end)
    return full


@operator("Gemm")
def gemm(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return affine(node, x, weight, bias)


def affine(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x = x.T if node.get("transA", 0) else x
    product: Tensor = node.get("alpha", 1.0) * (x @ (weight.T if node.get("transB", 0) else weight))
    return product if bias is None else product + node.get("beta", 1.0) * bias


@operator("MatMul")
def matmul(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return x @ y


@operator("BatchNormalization")
def batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if node.get("training_mode", 0):
        node.refuse("it is in training mode")
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, node.get("epsilon", 1e-5))


@operator("MaxPool")
def max_pool(node: Node, x: Tensor) -> Tensor:
    if node.outputs > 1:
        node.refuse("its indices are used")
    view = _window_at(node, x, node.get("kernel_shape"))
    padding: Any = view.pads[: len(view.kernel)]
    if not view.even or any(2 * zeros > size for zeros, size in zip(padding, view.kernel, strict=True)):
        x, padding = view.pad(x, -torch.inf), 0
    pool: Callable[..., Tensor] = _MAX_POOLS[x.dim() - 3]
    return pool(x, view.kernel, view.strides, padding, view.dilations, bool(node.get("ceil_mode", 0)))


@operator("AveragePool")
def average_pool(node: Node, x: Tensor) -> Tensor:
    view = _window_at(node, x, node.get("kernel_shape"))
    if any(step != 1 for step in view.dilations):
        node.refuse("it is dilated")
    pool: Callable[..., Tensor] = _AVERAGE_POOLS[x.dim() - 3]
    half = view.pads[: len(view.kernel)]
    ceil, counted = bool(node.get("ceil_mode", 0)), bool(node.get("count_include_pad", 0))
    if view.even and all(2 * zeros <= size for zeros, size in zip(half, view.kernel, strict=True)):
        return pool(x, view.kernel, view.strides, half, ceil, counted)
    means = pool(view.pad(x), view.kernel, view.strides, 0, ceil)
    if counted:
        return means
    return means / pool(view.pad(torch.ones_like(x[:1, :1])), view.kernel, view.strides, 0, ceil)


@operator("GlobalAveragePool")
def global_average_pool(node: Node, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(node: Node, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.dim())), keepdim=True)


# Torch layers for nodes whose weights are constants. A maker answers None where the node must stay a function.

Constants = Sequence[Tensor | None]
Layer = tuple[nn.Module, Function]


def _apply(node: Node, module: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = module(x)
    return result


def _pad_and_apply(node: Node, module: nn.Module, x: Tensor) -> Tensor:
    return _apply(node, module, _window_at(node, x, module.kernel_size).pad(x))  # type: ignore[arg-type]  # of a Conv


def _filled(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    for name, value in tensors.items():
        if value is not None:
            target = getattr(module, name)
            target.data = value.detach().reshape(target.shape).to(target.dtype).clone()
    return module


def make_conv(node: Node, values: Constants, rank: int | None) -> Layer | None:
    weight, bias = values[1], values[2] if len(values) > 2 else None
    if weight is None or not 3 <= weight.dim() <= 5 or (node.has(2) and bias is None):
        return None
    view = window(node, weight.shape[2:], None)
    group, spatial = node.get("group", 1), weight.dim() - 2
    even = view is not None and view.even
    with torch.device("meta"):
        kind: Any = _CONVOLUTIONS[spatial - 1]  # torch asks for as many numbers as there are dimensions, of 1 to 3
        layer: nn.Module = kind(
            weight.shape[1] * group,
            weight.shape[0],
            tuple(weight.shape[2:]),
            tuple(node.get("strides") or [1] * spatial),
            tuple(view.pads[:spatial]) if view is not None and even else (0,) * spatial,
            tuple(node.get("dilations") or [1] * spatial),
            groups=group,
            bias=bias is not None,
        )
    return _placed(layer, weight=weight, bias=bias), _apply if even else _pad_and_apply


def make_conv_transpose(node: Node, values: Constants, rank: int | None) -> Layer | None:
    weight, bias = values[1], values[2] if len(values) > 2 else None
    if weight is None or not 3 <= weight.dim() <= 5 or (node.has(2) and bias is None):
        return None
    view = window(node, weight.shape[2:], None)
    if node.get("auto_pad", "NOTSET") != "NOTSET" or node.get("output_shape") or view is None or not view.even:
        return None
    group, spatial = node.get("group", 1), weight.dim() - 2
    with torch.device("meta"):
        kind: Any = _TRANSPOSED_LAYERS[spatial - 1]  # torch asks for as many numbers as there are dimensions, of 1 to 3
        layer: nn.Module = kind(
            weight.shape[0],
            weight.shape[1] * group,
            tuple(weight.shape[2:]),
            tuple(view.strides),
            tuple(view.pads[:spatial]),
            tuple(node.get("output_padding") or [0] * spatial),
            group,
            bias is not None,
            tuple(view.dilations),
        )
    return _placed(layer, weight=weight, bias=bias), _apply


def linear(weight: Tensor, bias: Tensor | None) -> Layer:
    """`weight` [out, in]."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return _placed(layer, weight=weight, bias=bias), _apply


def make_gemm(node: Node, values: Constants, rank: int | None) -> Layer | None:
    weight, bias = values[1], values[2] if len(values) > 2 else None
    if weight is None or weight.dim() != 2 or node.get("transA", 0) or (node.has(2) and bias is None):
        return None
    weight = weight if node.get("transB", 0) else weight.T
    if bias is not None and (bias.numel() != weight.shape[0] or bias.shape[-1:] != weight.shape[:1]):
        return None
    scaled = node.get("alpha", 1.0) * weight if node.get("alpha", 1.0) != 1 else weight
    return linear(scaled, None if bias is None else node.get("beta", 1.0) * bias)


def make_matmul(node: Node, values: Constants, rank: int | None) -> Layer | None:
    weight = values[1]
    return linear(weight.T, None) if weight is not None and weight.dim() == 2 else None


def make_batch_norm(node: Node, values: Constants, rank: int | None) -> Layer | None:
    scale, bias, mean, variance = values[1:5]
    if scale is None or bias is None or mean is None or variance is None or rank not in _BATCH_NORMS:
        return None
    if node.get("training_mode", 0):
        node.refuse("it is in training mode")
    layer: nn.Module = _BATCH_NORMS[rank](len(scale), node.get("epsilon", 1e-5), 1 - node.get("momentum", 0.9))
    return _filled(layer, weight=scale, bias=bias, running_mean=mean, running_var=variance), _apply


def make_layer_norm(node: Node, values: Constants, rank: int | None) -> Layer | None:
    scale, bias = values[1], values[2] if len(values) > 2 else None
    axis = node.get("axis", -1)
    behind = -axis if axis < 0 else None if rank is None else rank - axis
    if scale is None or scale.dim() != behind or (node.has(2) and bias is None) or node.outputs > 1:
        return None
    layer = nn.LayerNorm(list(scale.shape), node.get("epsilon", 1e-5), bias=bias is not None)
    return _filled(layer, weight=scale, bias=bias), _apply


def _look_up(node: Node, module: nn.Module, index: Tensor) -> Tensor:
    index = indices(index)
    count: Any = module.num_embeddings
    rows: Tensor = module(torch.where(index < 0, index + count, index))
    return rows


def make_embedding(node: Node, values: Constants, rank: int | None) -> Layer | None:
    table = values[0]
    if table is None or table.dim() != 2 or node.get("axis", 0) != 0 or node.types[0] != FLOAT:
        return None
    with torch.device("meta"):
        layer = nn.Embedding(*table.shape)
    return _placed(layer, weight=table), _look_up


def _placed(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """`layer`, made without memory or random numbers, with its parameters."""
    for name, value in tensors.items():
        if value is not None:
            setattr(layer, name, nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format)))
    return layer


Maker = Callable[[Node, Constants, int | None], Layer | None]

LAYERS: dict[str, tuple[Maker, tuple[int, ...]]] = {  # with the inputs that become parameters
    "Conv": (make_conv, (1, 2)),
    "ConvTranspose": (make_conv_transpose, (1, 2)),
    "Gemm": (make_gemm, (1, 2)),
    "MatMul": (make_matmul, (1,)),
    "BatchNormalization": (make_batch_norm, (1, 2, 3, 4)),
    "LayerNormalization": (make_layer_norm, (1, 2)),
    "Gather": (make_embedding, (0,)),
}
