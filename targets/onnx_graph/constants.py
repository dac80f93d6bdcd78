"""The tensors of an ONNX graph that follow from the file alone, as its nodes make them from what it holds.

A constant keeps its integers, and what each goes by, through what only moves them: Transpose, Reshape, Slice and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .live import reached

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

LONGEST_CHAIN = 64  # nodes between a constant and its use; a real file has a handful
FRACTION_BITS = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
SHORT = {"value_float": "f4", "value_floats": "f4", "value_int": "i8", "value_ints": "i8"}  # Constant's short forms
LARGEST_FOLD = 2**28  # elements of a constant that is computed from others


@dataclass(frozen=True)
class Codes:
    """Integers, and what each goes by: value = (code - zero) * scale. All arrays have one shape (often as views)."""

    codes: Array  # int32
    scale: Array  # float32
    zero: Array  # int32
    unit: Array  # int32: which scale it is, 0 ..; codes of one tensor, channel or block share a unit


@dataclass(frozen=True)
class Constant:
    """A tensor that follows from the file alone."""

    name: str  # of the initialiser that holds its numbers
    stored: str  # their type there: float32, float16, bfloat16, int8, uint8, int4 ...
    plain: Array | None  # values, where they are not codes
    codes: Codes | None = None

    @property
    def values(self) -> Array:
        """The real values, floating point."""
        if self.codes is None:
            assert self.plain is not None
            return self.plain
        return (self.codes.codes - self.codes.zero).astype(np.float64) * self.codes.scale

    @property
    def shape(self) -> tuple[int, ...]:
        held = self.codes.codes if self.codes is not None else self.plain
        return () if held is None else held.shape

    def moved(self, move: Callable[[Array], Array]) -> Constant:
        """Reshaped, transposed, sliced: `move` applies to every array alike."""
        if self.codes is None:
            assert self.plain is not None
            return replace(self, plain=move(self.plain))
        parts = self.codes
        return replace(self, codes=Codes(*(move(part) for part in (parts.codes, parts.scale, parts.zero, parts.unit))))


class Graph:
    """The nodes of a model, subgraphs included, and its constants. Names are unique across subgraphs (the standard)."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.held: dict[str, onnx.TensorProto] = {}
        self.opsets = {item.domain: item.version for item in model.opset_import}
        self.opsets[""] = self.opsets.get("", self.opsets.get("ai.onnx", 0))
        self.outputs = {output.name for output in model.graph.output}
        self._collect(model.graph)
        self.producers = {output: node for node in self.nodes for output in node.output}
        self.varying = {item.name for item in model.graph.input} - set(self.held)  # what depends on the model's input
        self._spread()
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in set(node.input):
                self.consumers.setdefault(name, []).append(node)
        self._known: dict[str, Constant | None] = {}

    def _collect(self, graph: onnx.GraphProto) -> None:
        import onnx

        self.held.update({tensor.name: tensor for tensor in graph.initializer})
        for node in graph.node:
            self.nodes.append(node)
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self.held[node.output[0]] = attribute.t
                elif node.op_type == "Constant" and attribute.name in SHORT:
                    values = np.asarray(onnx.helper.get_attribute_value(attribute), SHORT[attribute.name])
                    self.held[node.output[0]] = onnx.numpy_helper.from_array(values)
                for inner in (attribute.g, *attribute.graphs):
                    self._collect(inner)

    def _spread(self) -> None:
        """Adds the outputs of every node that depends on the input, by way of an inner graph too, in any order."""
        users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            used = set(node.input)
            for inner in (graph for item in node.attribute for graph in (item.g, *item.graphs)):
                self.varying.update(item.name for item in inner.input)
                used.update(name for part in inner.node for name in (*part.input, *part.output))
            for name in used:
                users.setdefault(name, []).append(node)
        self.varying |= set(
            reached(self.varying, lambda name: [to for node in users.get(name, ()) for to in node.output])
        )

    def constant(self, name: str, depth: int = 0) -> Constant | None:
        """The tensor of that name; None where it depends on the input, or on an operator that is not followed."""
        if name not in self._known:
            try:
                self._known[name] = self._resolve(name, depth)
            except (ValueError, IndexError, TypeError, OverflowError):  # shapes that do not fit: the file is wrong
                self._known[name] = None
        return self._known[name]

    def _resolve(self, name: str, depth: int) -> Constant | None:
        from onnx import numpy_helper

        if depth > LONGEST_CHAIN or not name:
            return None
        if name in self.held:
            array = numpy_helper.to_array(self.held[name])
            if array.dtype.kind in "OSU":
                return None
            stored = array.dtype.name
            return Constant(name, stored, array.astype(np.int32) if "int4" in stored or "int2" in stored else array)
        node = self.producers.get(name)
        if node is None or not node.input:
            return None
        if node.op_type not in _FOLDS and node.op_type not in _MOVES:
            return None
        inputs = [self.constant(item, depth + 1) if item else None for item in node.input]
        first = inputs[0]
        if first is None or any(found is None and item for found, item in zip(inputs, node.input, strict=True)):
            return None
        if node.op_type in _MOVES:
            return _move(node, inputs, self.opsets)
        return _FOLDS[node.op_type](node, inputs)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The attribute's value (a number, or a list of them)."""
    import onnx

    return next((onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def coded(raw: Array, scale: Array, zero: Array | None, axis: int, block: int = 0) -> Codes:
    """Codes with their scales spread: one for all, one per index of `axis`, or one per `block` indices of it."""
    axis = axis % raw.ndim if raw.ndim else 0

    def spread(values: Array) -> Array:
        if values.size == 1:
            return np.broadcast_to(values.reshape(()), raw.shape)
        if values.ndim == raw.ndim and block:
            repeated = np.repeat(values, min(block, raw.shape[axis]), axis=axis)  # blocks may outgrow the axis
            return repeated[tuple(slice(0, length) for length in raw.shape)]
        shape = values.shape if values.ndim > 1 else [-1 if i == axis else 1 for i in range(raw.ndim)]
        return np.broadcast_to(values.reshape(shape), raw.shape)

    units = np.arange(scale.size, dtype=np.int32).reshape(scale.shape)
    zeros = np.zeros(1, np.int32) if zero is None else zero.astype(np.int32)
    return Codes(raw.astype(np.int32), spread(scale.astype(np.float32)), spread(zeros), spread(units))


def code_range(stored: str, codes: Codes) -> tuple[int, int, int]:
    """(lowest code, highest code, bits): of the stored type, or of the fewest bits that hold the layer's codes.

    Fewer than 8 bits are often stored as int8. A symmetric range leaves the lowest code of two's complement out.
    """
    least, most = int(codes.codes.min(initial=0)), int(codes.codes.max(initial=0))
    width = int("".join(digit for digit in stored if digit.isdigit()) or 8)
    if stored.startswith("u"):
        bits = min(width, max(1, most.bit_length(), int(codes.zero.max(initial=0)).bit_length()))
        return 0, 2**bits - 1, bits
    bits = next((b for b in range(2, width) if most < 2 ** (b - 1) and least >= -(2 ** (b - 1))), width)
    top = 2 ** (bits - 1) - 1
    return (-top if least >= -top and not codes.zero.any() else -top - 1), top, bits


def _dequantize(node: onnx.NodeProto, inputs: list[Constant | None]) -> Constant | None:
    raw, scale = inputs[0], inputs[1]
    zero = inputs[2] if len(inputs) > 2 else None
    if raw is None or scale is None or raw.plain is None or raw.plain.dtype.kind not in "iu":
        return None
    axis, block = int(attribute(node, "axis", 1)), int(attribute(node, "block_size", 0))
    codes = coded(raw.plain, scale.values, None if zero is None else zero.values, axis, block)
    return replace(raw, plain=None, codes=codes)


def _quantize(node: onnx.NodeProto, inputs: list[Constant | None]) -> Constant | None:
    """A float weight that the runtime rounds: its codes are what the operator's definition says."""
    import onnx

    raw, scale, zero = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    if raw is None or scale is None:
        return None
    wanted = int(attribute(node, "output_dtype", 0))
    kind = "uint8" if not wanted else onnx.helper.tensor_dtype_to_np_dtype(wanted).name
    kind = kind if zero is None else zero.stored
    if not kind.lstrip("u").startswith("int"):
        return None
    width = int(kind.lstrip("uint"))
    low, high = (0, 2**width - 1) if kind.startswith("u") else (-(2 ** (width - 1)), 2 ** (width - 1) - 1)
    grid = coded(
        np.zeros(raw.shape, np.int32),
        scale.values,
        None if zero is None else zero.values,
        int(attribute(node, "axis", 1)),
        int(attribute(node, "block_size", 0)),
    )
    rounded = np.rint(raw.values / grid.scale) + grid.zero
    return Constant(raw.name, kind, np.clip(rounded, low, high).astype(np.int32))


def _concat(node: onnx.NodeProto, inputs: list[Constant | None]) -> Constant | None:
    parts = [part for part in inputs if part is not None]
    axis = int(attribute(node, "axis", 0))
    if all(part.codes is None for part in parts):
        return replace(parts[0], plain=np.concatenate([part.values for part in parts], axis))
    coded_parts, units = [], 0
    for part in parts:
        if part.codes is None:
            return None
        coded_parts.append(replace(part.codes, unit=part.codes.unit + units))
        units += int(part.codes.unit.max(initial=-1)) + 1
    joined = [
        np.concatenate([getattr(part, field) for part in coded_parts], axis)
        for field in ("codes", "scale", "zero", "unit")
    ]
    return replace(parts[0], codes=Codes(*joined))


def _move(node: onnx.NodeProto, inputs: list[Constant | None], opsets: dict[str, int]) -> Constant | None:
    """Of an operator that only moves values: as ONNX's own reference does, codes and what they go by alike."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    first, *others = inputs
    if first is None:
        return None
    if node.op_type == "Gather":
        places = others[0] if others else None
        if places is None or places.values.size * int(np.prod(first.shape)) > LARGEST_FOLD:
            return None
    numbered = onnx.NodeProto()
    numbered.CopyFrom(node)
    numbered.domain = "" if node.domain == "ai.onnx" else node.domain
    numbered.input[:] = [str(place) if name else "" for place, name in enumerate(node.input)]
    feeds = {str(place): other.values for place, other in enumerate(others, 1) if other is not None}
    try:
        evaluator = ReferenceEvaluator(numbered, opsets=opsets)
        run: Callable[..., Any] = evaluator.run
        return first.moved(lambda array: np.asarray(run(None, {"0": array, **feeds})[0]))
    except Exception:  # its exceptions have no common base; a node that does not fit is not followed
        return None


def _identity(node: onnx.NodeProto, inputs: list[Constant | None]) -> Constant | None:
    return inputs[0]


def _cast(node: onnx.NodeProto, inputs: list[Constant | None]) -> Constant | None:
    """As the runtime casts. Integers that become floats stay integers until a multiplication says what they count in.

    Floats of fewer bits are stored in as many, whatever holds them in the file; values of codes are not cast further.
    """
    import onnx

    tensor = inputs[0]
    if tensor is None or tensor.plain is None:
        return tensor
    wanted = onnx.helper.tensor_dtype_to_np_dtype(int(attribute(node, "to", 0)))
    floating = tensor.plain.dtype.kind not in "iub"
    if wanted.name in FRACTION_BITS:
        if not floating:
            return tensor
        narrower = FRACTION_BITS[wanted.name] < FRACTION_BITS.get(tensor.stored, 0)
        with np.errstate(over="ignore"):
            return replace(tensor, plain=tensor.plain.astype(wanted), stored=wanted.name if narrower else tensor.stored)
    if wanted.kind not in "iu":
        return tensor if wanted.name in ("int4", "uint4", "int2", "uint2") and not floating else None
    with np.errstate(invalid="ignore"):  # a float beyond the integers: what it becomes is the runtime's affair
        return replace(tensor, plain=tensor.plain.astype(wanted))


def _multiply(node: onnx.NodeProto, inputs: list[Constant | None]) -> Constant | None:
    left, right = inputs
    if left is None or right is None:
        return None
    if right.plain is not None and right.plain.dtype.kind in "iu":
        left, right = right, left
    if int(np.prod(np.broadcast_shapes(left.shape, right.shape))) > LARGEST_FOLD:
        return None
    if left.plain is None or right.plain is None or left.plain.dtype.kind not in "iu" or right.plain.dtype.kind in "iu":
        return replace(left, plain=left.values * right.values, codes=None)
    scale = right.plain.astype(np.float32)  # integers times a scale: codes
    units = np.arange(scale.size).reshape(scale.shape)
    if scale.size == left.plain.size:  # written out for every code
        units = np.unique(scale, return_inverse=True)[1].reshape(scale.shape)
    arrays = (scale, np.zeros((), np.int32), units.astype(np.int32))
    spread = [np.broadcast_to(array, left.shape) for array in arrays]
    return replace(left, plain=None, codes=Codes(left.plain.astype(np.int32), *spread))


def _arithmetic(operation: Callable[[Array, Array], Array]) -> Fold:
    def fold(node: onnx.NodeProto, inputs: list[Constant | None]) -> Constant | None:
        left, right = inputs
        if left is None or right is None or np.prod(np.broadcast_shapes(left.shape, right.shape)) > LARGEST_FOLD:
            return None
        exact = np.int64 if left.values.dtype.kind == right.values.dtype.kind == "i" else np.float64
        return replace(left, plain=operation(left.values.astype(exact), right.values.astype(exact)), codes=None)

    return fold


Fold = Callable[["onnx.NodeProto", list[Constant | None]], Constant | None]
_MOVES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather")
_FOLDS: dict[str, Fold] = {
    "Identity": _identity,
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
    "Concat": _concat,
    "Mul": _multiply,
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Div": _arithmetic(np.divide),
}
