"""Codes that are read by another scale than they were written with, and products of integers that are scaled otherwise.

Quantisers are left out where two graphs are compared, so they have to give back what they took.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from ...targets.onnx_graph.constants import FRACTION_BITS, Array, attribute
from .forms import Form
from .limits import Stripped, followed
from .operators import ON_CODES, groups

if TYPE_CHECKING:
    import onnx

FAR = 1e3  # times larger or smaller than it need be: no honest file makes a tensor so
NEAR = 1.002  # a factor that was rounded to float16
FREE = ("", "")  # codes that come from outside


def misfits(form: Form) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Nodes whose scales are no fixed numbers of the file, or are others than those their codes were written with."""
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

    def fixed(names: Iterable[str]) -> bool:
        return all(not name or form.constant(name) is not None for name in names)

    def dynamic(node: onnx.NodeProto) -> bool:
        """Whether the scale and zero point are those of the DynamicQuantizeLinear that wrote these very codes."""
        before = written(node.input[0]) if node.op_type == "DequantizeLinear" else None
        maker = graph.producers.get(before[0]) if before else None
        return (
            maker is not None
            and maker.op_type == "DynamicQuantizeLinear"
            and before == (node.input[1], (*node.input, "")[2])
            and before == (maker.output[1], (*maker.output, "")[2])
        )

    for node in graph.nodes:
        if not form.fixed(node.output[0]):
            if not fixed(scales_of(node)) and not dynamic(node):
                yield node, "rounds by a scale or zero point that is computed while the model runs"
            elif node.op_type == "QuantizeLinear" and not followed(graph, node):
                yield node, "rounds to codes whose range is not followed: a scale per channel, or codes of floats"
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


def scales_of(node: onnx.NodeProto) -> list[str]:
    """The scales and zero points that a node rounds or reads codes by, its weight's own among them."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return list(node.input[1:3])
    if not node.op_type.startswith(("QLinear", "QGemm")):
        return []
    read, wrote = groups(node)
    places = [place for group in read for place in group[1:]] + list(wrote or ())
    return [node.input[place] for place in places if place < len(node.input)]


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
        gain, partial = np.ones(1), list[tuple[float, float, str]]()
        while name != end:
            users = form.graph.consumers.get(name, [])
            if len(users) != 1:
                break
            (node,) = users
            types = [form.seen.types.get(item, "") for item in (name, node.output[0])]
            if node.op_type == "Cast" and not (types[1] in FRACTION_BITS and types[0] in (*FRACTION_BITS, "int32")):
                yield node, "rounds what a product gives"
            trains = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
            if trains or (node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0)):
                yield node, "works as in training"
            if types[0] in FRACTION_BITS:
                gain = gain * _gain(form, node, name)
                partial.append((float(gain.min()), float(gain.max()), node.output[0]))
            name = node.output[0]
        low, high = float(gain.min()), float(gain.max())
        yield from _extreme(form, partial, min(low, 1.0), max(high, 1.0))


def _gain(form: Form, node: onnx.NodeProto, name: str) -> Array:
    """By how much a node multiplies each channel of a tensor, whatever the sign; 1 where that is nobody's number."""
    held = None
    if node.op_type in ("Mul", "Div"):
        held = form.constant(next((item for item in node.input if item != name), ""))
    values = np.ones(1) if held is None else np.abs(held.values.astype(np.float64)).ravel()
    values = values[values > 0]
    ends = np.array([values.min(), values.max()]) if values.size else np.ones(1)
    return 1 / ends[::-1] if node.op_type == "Div" else ends


def unfit_gains(ours: Form, left: Stripped, right: Stripped) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Factors that take values out of what their type can hold, and others that take them back.

    Args:
        left, right: a tensor of the file and the dense model's, whose own factors are no reason.
    """
    usual = [gain for gain, _ in right.partial] + [1.0, right.gain]
    yield from _extreme(ours, [(gain, gain, name) for gain, name in left.partial], min(usual), max(usual))


def _extreme(
    form: Form, partial: Iterable[tuple[float, float, str]], low: float, high: float
) -> Iterator[tuple[onnx.NodeProto, str]]:
    for least, most, name in partial:
        narrow = form.seen.types.get(name) == "float16"
        if least < low / FAR or most > (NEAR * min(high, FAR) if narrow else high * FAR):
            yield form.graph.producers[name], "holds values of a size at which they overflow or lose their digits"
            return
