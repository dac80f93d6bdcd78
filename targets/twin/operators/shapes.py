"""Operators that move, choose, repeat and reduce elements, and the arithmetic of shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..nodes import INT64, INTEGERS, Function, Node, capped, indices, like, operator
from ..rounding import rounded, tracing


@operator("Shape", result=INT64)
def shape(node: Node, x: Tensor) -> Tensor:
    """On the CPU, where the arithmetic of shapes stays."""
    sizes: Tensor = torch._shape_as_tensor(x)  # unlike x.shape, an export can follow it
    return sizes[node.get("start", 0) : node.get("end", x.dim())]


@operator("Size", result=INT64)
def size(node: Node, x: Tensor) -> Tensor:
    sizes: Tensor = torch._shape_as_tensor(x)
    return sizes.prod()


@operator("Constant")
def constant(node: Node) -> Tensor:
    value: Tensor = node.get("value")
    return value


@operator("Reshape", structural=(1,))
def reshape(node: Node, x: Tensor, target: list[Any]) -> Tensor:
    if not node.get("allowzero", 0):
        target = [x.shape[at] if size == 0 and at < x.dim() else size for at, size in enumerate(target)]
    return x.reshape(target)


@operator("Flatten")
def flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis += x.dim() if axis < 0 else 0
    if axis == 1:
        return x.flatten(1) if x.dim() > 1 else x[:, None]
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Squeeze", structural=(1,))
def squeeze(node: Node, x: Tensor, axes: list[Any] | None = None) -> Tensor:
    chosen = node.get("axes") if axes is None else axes
    if chosen is None:
        return x.squeeze()
    for axis in sorted((int(at) % x.dim() for at in chosen), reverse=True):
        x = x.select(axis, 0)  # an export of squeeze asks for the size, by a branch
    return x


@operator("Unsqueeze", structural=(1,))
def unsqueeze(node: Node, x: Tensor, axes: list[Any] | None = None) -> Tensor:
    chosen: list[Any] = node.get("axes") if axes is None else axes
    rank = x.dim() + len(chosen)
    for axis in sorted(int(at) % rank for at in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm", list(range(x.dim()))[::-1]))


@operator("Concat")
def concat(node: Node, *values: Tensor) -> Tensor:
    mixed = len({value.dtype for value in values}) > 1
    return torch.cat([like(value) if mixed else value for value in values], node.get("axis", 1))


@operator("Split", structural=(1,))
def split(node: Node, x: Tensor, sizes: list[Any] | None = None) -> tuple[Tensor, ...]:
    axis = node.get("axis", 0)
    chosen = node.get("split") if sizes is None else sizes
    if chosen is None:
        chosen = -(-x.shape[axis] // node.get("num_outputs", node.outputs))
    return tuple(x.split(chosen, axis))


@operator("Slice", structural=(1, 2, 3, 4))
def slices(
    node: Node,
    x: Tensor,
    starts: list[Any] | None = None,
    ends: list[Any] | None = None,
    axes: list[Any] | None = None,
    steps: list[Any] | None = None,
) -> Tensor:
    starts = node.get("starts") if starts is None else starts
    ends = node.get("ends") if ends is None else ends
    axes = node.get("axes", list(range(len(starts or [])))) if axes is None else axes
    for at, (axis, start, end) in enumerate(zip(axes, starts or [], ends or [], strict=True)):
        step = int(steps[at]) if steps else 1
        axis = int(axis) % x.dim()
        if step > 0:
            x = x[(slice(None),) * axis + (slice(start, end, step),)]
        else:
            x = x.index_select(
                axis, torch.arange(x.shape[axis], device=x.device)[_backwards(start, end, step, x, axis)]
            )
    return x


def _backwards(start: Any, end: Any, step: int, x: Tensor, axis: int) -> Tensor:
    chosen = range(x.shape[axis])[int(start) : (None if int(end) < -x.shape[axis] else int(end)) : step]
    return torch.tensor(list(chosen), dtype=torch.int64, device=x.device)


@operator("Gather")
def gather(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.dim()
    index = indices(index)
    if index.dim() == 0 and index.device.type == "cpu" and not tracing():
        return x.select(axis, int(index))
    wrapped = torch.where(index < 0, index + x.shape[axis], index)
    if axis == 0 and x.dim() == 2 and x.is_floating_point():
        return F.embedding(wrapped, x)
    chosen = x.index_select(axis, wrapped.reshape(-1))
    return chosen.reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


@operator("GatherElements")
def gather_elements(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    index = indices(index)
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


@operator("GatherND")
def gather_nd(node: Node, x: Tensor, index: Tensor) -> Tensor:
    if node.get("batch_dims", 0):
        node.refuse("batch_dims is not 0")
    return x[indices(index).unbind(-1)]


@operator("ScatterElements", "Scatter")
def scatter_elements(node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    axis, reduction = node.get("axis", 0), node.get("reduction", "none")
    index = indices(index)
    index = torch.where(index < 0, index + x.shape[axis], index)
    updates = updates.to(x.dtype)
    if reduction == "none":
        return x.scatter(axis, index, updates)
    words = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return x.scatter_reduce(axis, index, updates, words[reduction])


@operator("ScatterND")
def scatter_nd(node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    if node.get("reduction", "none") not in ("none", "add"):
        node.refuse(f"its reduction is {node.get('reduction')}")
    return x.index_put(indices(index).unbind(-1), updates.to(x.dtype), accumulate=node.get("reduction") == "add")


@operator("Expand", structural=(1,))
def expand(node: Node, x: Tensor, target: list[Any]) -> Tensor:
    rank = max(x.dim(), len(target))
    own = [1] * (rank - x.dim()) + list(x.shape)
    asked = [1] * (rank - len(target)) + list(target)
    sizes = [mine if int(asks) == 1 else asks for mine, asks in zip(own, asked, strict=True)]
    return x.expand(capped(sizes))


@operator("ConstantOfShape", structural=(0,), result=lambda node: node.get("value_type", 1))
def constant_of_shape(node: Node, sizes: list[Any]) -> Tensor:
    value = node.get("value")
    filled = torch.zeros(1) if value is None else value
    return filled.reshape(()).expand(capped(sizes)).clone()


@operator("Range")
def numbers(node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    if tracing():
        traced: Tensor = torch.arange(start, limit, delta)  # type: ignore[call-overload]  # a trace takes tensors
        return traced
    first, last, step = start.item(), limit.item(), delta.item()
    capped([abs(last - first) // max(abs(step), 1e-9) + 1])
    return torch.arange(first, last, step, dtype=start.dtype, device=start.device)


@operator("Tile", structural=(1,))
def tile(node: Node, x: Tensor, repeats: list[Any]) -> Tensor:
    capped([old * int(times) for old, times in zip(x.shape, repeats, strict=True)])
    return x.repeat(repeats)


@operator("Pad", structural=(1, 3))
def pad(
    node: Node, x: Tensor, pads: list[Any] | None = None, value: Tensor | None = None, axes: list[Any] | None = None
) -> Tensor:
    if pads is None:
        pads = node.get("pads") or node.get("paddings")
    chosen = list(range(x.dim())) if axes is None else [int(axis) % x.dim() for axis in axes]
    around = [0] * (2 * x.dim())
    for at, axis in enumerate(chosen):
        around[2 * (x.dim() - 1 - axis)] = int(pads[at])
        around[2 * (x.dim() - 1 - axis) + 1] = int(pads[at + len(chosen)])
    capped([old + around[-2 * at - 2] + around[-2 * at - 1] for at, old in enumerate(x.shape)])
    mode = node.get("mode", "constant")
    if mode == "constant":
        filling = node.get("value", 0.0) if value is None else float(value)
        return F.pad(x, around, value=filling)
    while len(around) > 2 and around[-2:] == [0, 0]:  # torch pads the last dimensions only, in the other modes
        around = around[:-2]
    return F.pad(x, around, mode={"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode])


@operator("OneHot", structural=(1,), result=lambda node: node.types[2])
def one_hot(node: Node, x: Tensor, depth: list[Any], values: Tensor) -> Tensor:
    capped([x.numel(), depth[0]])
    hot = F.one_hot(indices(x) % int(depth[0]), int(depth[0])).bool()
    axis = node.get("axis", -1)
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


@operator("TopK", structural=(1,))
def top_k(node: Node, x: Tensor, count: list[Any] | None = None) -> tuple[Tensor, Tensor]:
    k = node.get("k") if count is None else count[0]
    values, places = x.topk(k, node.get("axis", -1), bool(node.get("largest", 1)), bool(node.get("sorted", 1)))
    return values, places


@operator("ArgMax", "ArgMin", result=INT64)
def extremum(node: Node, x: Tensor) -> Tensor:
    function = torch.argmax if node.operator == "ArgMax" else torch.argmin
    return function(x, node.get("axis", 0), bool(node.get("keepdims", 1)))


@operator("NonZero", result=INT64)
def non_zero(node: Node, x: Tensor) -> Tensor:
    return x.nonzero().T


@operator("Trilu")
def triangle(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if node.get("upper", 1) else x.tril(diagonal)


@operator("DepthToSpace")
def depth_to_space(node: Node, x: Tensor) -> Tensor:
    block = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    grid = x.view(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return grid.reshape(n, c // block**2, h * block, w * block)


@operator("SpaceToDepth")
def space_to_depth(node: Node, x: Tensor) -> Tensor:
    block = node.get("blocksize")
    n, c, h, w = x.shape
    grid = x.view(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return grid.reshape(n, c * block**2, h // block, w // block)


@operator("Einsum")
def einsum(node: Node, *values: Tensor) -> Tensor:
    equation = node.get("equation")
    return torch.einsum(equation.decode() if isinstance(equation, bytes) else equation, *values)


@operator("Resize", "Upsample", structural=(3,))
def resize(node: Node, x: Tensor, *inputs: Any) -> Tensor:
    """Of the last two dimensions, in the ways torch has: nearest (floor), linear and cubic."""
    scales = inputs[0] if node.operator == "Upsample" or node.opset < 11 else inputs[1] if len(inputs) > 1 else None
    sizes = inputs[2] if len(inputs) > 2 else None
    mode = node.get("mode", "nearest")
    transform = node.get("coordinate_transformation_mode", "half_pixel" if node.opset >= 11 else "asymmetric")
    spatial = x.dim() - 2
    known = {
        "nearest": transform == "asymmetric" and node.get("nearest_mode", "round_prefer_floor") in ("floor", "simple"),
        "linear": transform in ("half_pixel", "pytorch_half_pixel", "align_corners"),
        "cubic": transform in ("half_pixel", "pytorch_half_pixel", "align_corners")
        and node.get("cubic_coeff_a", -0.75) == -0.75,
    }
    known["nearest"] |= mode == "nearest" and node.opset < 11
    if scales is not None and scales.numel():
        factors = [float(item) for item in scales.reshape(-1)]
        whole = all(factor == int(factor) and factor >= 1 for factor in factors)
        known["nearest"] |= whole and transform in ("asymmetric", "half_pixel")  # no centre falls between two pixels
        target = [int(old * factor) for old, factor in zip(x.shape, factors, strict=True)]
    else:
        target = [int(item) for item in sizes or []]
        known["nearest"] |= all(new % old == 0 for new, old in zip(target, x.shape, strict=False))
    if len(target) != x.dim() or target[1] != x.shape[1] or not known.get(mode, False) or node.get("axes"):
        node.refuse(f"its mode {mode}, {transform} is none of torch's")
    capped(target)
    words = {"nearest": "nearest", "linear": ("linear", "bilinear", "trilinear")[spatial - 1], "cubic": "bicubic"}
    corners = {} if mode == "nearest" else {"align_corners": transform == "align_corners"}
    resized = F.interpolate(x, target[2:], mode=words[mode], **corners)
    if mode == "nearest" or node.types[0] not in INTEGERS:
        return resized
    return rounded(resized, resized.detach().trunc(), node.straight_through)


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Function:
    def call(node: Node, x: Tensor, axes: list[Any] | None = None) -> Tensor:
        chosen = node.get("axes") if axes is None else axes
        if not chosen:
            if node.get("noop_with_empty_axes", 0):
                return x
            chosen = list(range(x.dim()))
        return function(x, [int(axis) for axis in chosen], bool(node.get("keepdims", 1)))

    return call


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((at % x.dim() for at in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "Mean": lambda x, axes, keep: x.mean(axes, keep),
    "Sum": lambda x, axes, keep: x.sum(axes, keep),
    "Max": lambda x, axes, keep: x.amax(axes, keep),
    "Min": lambda x, axes, keep: x.amin(axes, keep),
    "Prod": _product,
    "L1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "L2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "SumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
    "LogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "LogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
}
for _name, _function in _REDUCTIONS.items():
    operator(f"Reduce{_name}", structural=(1,))(_reduction(_function))
