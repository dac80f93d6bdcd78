"""Normalisations of each record by itself."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ...model import normalised, scaled
from ..nodes import Node, operator
from ..rounding import tracing


@operator("LayerNormalization")
def layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = node.get("axis", -1) % x.dim()
    normal = F.layer_norm(x, x.shape[axis:], eps=node.get("epsilon", 1e-5)) * scale
    return normal if bias is None else normal + bias


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axis = node.get("axis", -1) % x.dim()
    return F.rms_norm(x, x.shape[axis:], eps=node.get("epsilon", 1e-5)) * scale


@operator("InstanceNormalization")
def instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    epsilon = node.get("epsilon", 1e-5)
    if tracing() or x.is_contiguous():
        return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)
    if "plain" not in node.attributes:  # as a group norm is written, whose factors follow
        node.attributes["plain"] = node.constant[1:] == (True, True) and bool((scale == 1).all() and (bias == 0).all())
    normal = normalised(x, epsilon)
    return normal if node.attributes["plain"] else scaled(normal, scale, bias)


@operator("GroupNormalization")
def group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    if node.opset < 21:  # then one factor per group
        scale, bias = (item.repeat_interleave(x.shape[1] // groups) for item in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@operator("LRN")
def local_response_norm(node: Node, x: Tensor) -> Tensor:
    return F.local_response_norm(
        x, node.get("size"), node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    )


@operator("LpNormalization")
def unit_norm(node: Node, x: Tensor) -> Tensor:
    return F.normalize(x, node.get("p", 2), node.get("axis", -1))
