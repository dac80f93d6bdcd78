"""Codes that are read by another scale than they were written with, and products of integers that are scaled otherwise.

Quantisers are left out where two graphs are compared, so they have to give back what they took.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ...targets.onnx_graph.constants import attribute
from .forms import Form
from .operators import ON_CODES, groups

if TYPE_CHECKING:
    import onnx

FREE = ("", "")  # codes that come from outside


def misfits(form: Form) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Nodes that read codes by another scale or zero point than these were written with."""
    graph = form.graph

    def written(name: str) -> tuple[str, str] | str | None:
        for _ in range(64):
            node = graph.producers.get(name)
            if node is None:
                return FREE
            if node.op_type == "QuantizeLinear":
                return node.input[1], (*node.input, "")[2]
            if node.op_type == "DynamicQuantizeLinear":
                return node.output[1], node.output[2]
            if node.op_type.startswith(("QLinear", "QGemm")):
                placed = groups(node)[1]
                return None if placed is None else (node.input[placed[0]], (*node.input, "", "")[placed[1]])
            if node.op_type not in ON_CODES:
                return None
            name = node.input[0]
        return None

    def alike(one: str, other: str, empty: float) -> bool:
        if one == other:
            return True
        held = [graph.constant(name) if name else None for name in (one, other)]
        arrays = [np.array(empty) if c is None else c.values for c in held]
        known = all(c is not None or not name for c, name in zip(held, (one, other), strict=True))
        return known and arrays[0].size == arrays[1].size and bool((arrays[0].ravel() == arrays[1].ravel()).all())

    for node in graph.nodes:
        readings: list[tuple[str, str, str]] = []
        if node.op_type == "DequantizeLinear" and not form.fixed(node.input[0]):
            readings.append((node.input[0], node.input[1], (*node.input, "")[2]))
        elif node.op_type.startswith(("QLinear", "QGemm")):
            placed = [group for group in groups(node)[0] if len(group) == 3 and not form.fixed(node.input[group[0]])]
            readings += [(node.input[a], node.input[b], (*node.input, "")[c]) for a, b, c in placed]
        for name, scale, zero in readings:
            before = written(name)
            if before == FREE:
                continue
            if before is not None and alike(before[0], scale, 1) and alike(before[1], zero, 0):
                continue
            maker = graph.producers.get(name)
            if before is None and maker is not None and maker.op_type in ("MatMulInteger", "ConvInteger"):
                continue
            yield node, "reads codes by another scale or zero point than they were written with"
        if node.op_type == "Concat" and any(name in form.coded for name in node.input):
            origins = [written(name) for name in node.input]
            first = origins[0]
            for other in origins[1:]:
                if (
                    first is None
                    or other is None
                    or not (alike(first[0], other[0], 1) and alike(first[1], other[1], 0))
                ):
                    yield node, "joins codes of several scales"
                    break


def unfit_factors(form: Form) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Integer products that are not multiplied by the very scale that their input was rounded with."""
    graph, seen = form.graph, set[int]()
    for end, found in form.ends.items():
        node = form.weights[found[0]].node
        if id(node) in seen:
            continue
        seen.add(id(node))
        scale, zero = {
            "MatMulInteger": ("", (*node.input, "", "")[2]),
            "ConvInteger": ("", (*node.input, "", "")[2]),
            "MatMulIntegerToFloat": ((*node.input, "", "")[2], (*node.input, "", "", "")[4]),
        }.get(node.op_type, (None, None))
        if scale is None:
            continue
        maker = graph.producers.get(node.input[0])
        for _ in range(64):  # a reshape between them
            if maker is None or maker.op_type not in ON_CODES:
                break
            maker = graph.producers.get(maker.input[0])
        if maker is None or maker.op_type not in ("DynamicQuantizeLinear", "QuantizeLinear"):
            yield node, "multiplies integers that no quantiser wrote"
            continue
        dynamic = maker.op_type == "DynamicQuantizeLinear"
        written = (maker.output[1], maker.output[2]) if dynamic else (maker.input[1], (*maker.input, "")[2])
        factors = [scale] if scale else list(_factors(form, node, end))
        right = (
            zero == written[1]
            and (written[0] in factors)
            and all(name == written[0] or form.fixed(name) for name in factors)
        )
        if not right:
            yield node, "is not multiplied by the scale that its input was rounded with"


def _factors(form: Form, product: onnx.NodeProto, end: str) -> Iterator[str]:
    """What an integer product is multiplied by, up to the end of what was compared with its weight."""
    graph, name = form.graph, product.output[0]
    for _ in range(64):
        if name == end:
            return
        users = graph.consumers.get(name, [])
        if len(users) != 1:
            return
        user = users[0]
        if user.op_type == "Mul":
            factor = user.input[1] if user.input[0] == name else user.input[0]
            maker = graph.producers.get(factor)
            many = maker is not None and maker.op_type == "Mul" and not form.fixed(factor)
            yield from (maker.input if many and maker is not None else [factor])
        name = user.output[0]


def unfit_steps(form: Form) -> Iterator[tuple[onnx.NodeProto, str]]:
    """What stands between a product and the end of what was compared with its weight, and does more than is said."""
    for end, found in form.ends.items():
        product = form.weights[found[0]].node
        name = product.output[0]
        while name != end:
            users = form.graph.consumers.get(name, [])
            if len(users) != 1:
                break
            (node,) = users
            types = [form.seen.types.get(item, "") for item in (name, node.output[0])]
            if node.op_type == "Cast" and not ("float" in types[1] and ("float" in types[0] or types[0] == "int32")):
                yield node, "rounds what a product gives"
            trains = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
            if trains or (node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0)):
                yield node, "works as in training"
            name = node.output[0]
