"""The parameters of an ONNX file as the bits that are stored: what each is for, what a flip makes of it, and the file
with some bits flipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...targets.errors import UnsafeInput
from ...targets.onnx_graph.constants import SHORT, Graph
from ...targets.onnx_graph.weights import OTHER_PRODUCTS, SLOTS
from ...targets.untrusted.model_file import CheckedOnnx, check_onnx

if TYPE_CHECKING:
    import onnx

Bits = np.ndarray[Any, np.dtype[np.uint64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

CODES, WEIGHTS, SCALES, ZEROS, BIASES = "codes", "float weights", "scales", "zero points", "biases"
BOOK, INDICES, NORMS = "code book", "indices", "norms"
ROLES = (CODES, WEIGHTS, SCALES, ZEROS, BIASES, BOOK, INDICES, NORMS)
SCATTERS = ("ScatterElements", "ScatterND")  # what a sparse weight's values are put into zeros with
MOVES = ("Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Concat", *SCATTERS)
DEEP = 8  # moves between a stored tensor and the node that uses it
# Of TensorProto.DataType: bits of an element, and how they are read.
_FORMATS = {
    1: (32, "float32"),
    2: (8, "uint"),
    3: (8, "int"),
    4: (16, "uint"),
    5: (16, "int"),
    6: (32, "int"),
    7: (64, "int"),
    10: (16, "float16"),
    11: (64, "float64"),
    16: (16, "bfloat16"),
    21: (4, "uint"),
    22: (4, "int"),
    25: (2, "uint"),
    26: (2, "int"),
}
_MANTISSA = {"float32": 23, "float16": 10, "bfloat16": 7, "float64": 52}


class Flip(NamedTuple):
    """One bit: of which tensor (its number among those that are attacked), of which element, the lowest counts 0."""

    tensor: int
    element: int
    bit: int


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of parameters, as it is stored.

    Args:
        role: what it is for, one of `ROLES`.
        layer: name of the node that computes with it.
        width: bits of an element; kind: "int", "uint", "float32", "float16", "bfloat16" or "float64".
        raw: uint64 [n], the bits of each element.
        packed: elements of `width` bits lie in bytes of a tensor of bytes (MatMulNBits).
    """

    name: str
    role: str
    layer: str
    width: int
    kind: str
    raw: Bits
    packed: bool = False

    @cached_property
    def values(self) -> Floats:
        return decoded(self.raw, self.width, self.kind)

    @property
    def tried(self) -> range:
        """The bits worth a look: of integers all; of floats the sign, the exponent, and the mantissa's upper two."""
        return range(max(0, _MANTISSA.get(self.kind, 0) - 2), self.width)

    def exponent(self, bit: int) -> bool:
        return self.kind in _MANTISSA and _MANTISSA[self.kind] <= bit < self.width - 1


def decoded(raw: Bits, width: int, kind: str) -> Floats:
    """The numbers that bits stand for, float64 [n]; NaN and infinity are themselves."""
    if kind == "uint":
        return raw.astype(np.float64)
    if kind == "int":
        shift = np.uint64(64 - width)
        return ((raw << shift).view(np.int64) >> shift.astype(np.int64)).astype(np.float64)
    with np.errstate(invalid="ignore"):  # signalling NaN
        if kind == "bfloat16":
            return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
        return raw.astype(f"uint{width}").view(kind).astype(np.float64)


def parameters(checked: CheckedOnnx) -> list[Stored]:
    """The tensors that the file's own graph computes with, in the order in which it holds them; sizes and shapes are
    none of them. Only what reaches an output by way of known operators is found.
    """
    graph = Graph(checked.source)
    top = {tensor.name for tensor in checked.source.graph.initializer}
    top |= {node.output[0] for node in checked.source.graph.node if node.op_type == "Constant"}
    found = []
    for name, tensor in graph.held.items():
        use = _use(name, graph, DEEP) if name in top else None
        if use is None or tensor.data_type not in _FORMATS:
            continue
        role, node, packed = use
        width, kind = _FORMATS[tensor.data_type]
        if packed:
            width, kind = packed, "uint"
        elif role in (CODES, INDICES, ZEROS) and kind not in ("int", "uint"):
            role = WEIGHTS if role == CODES else role
        elif role == WEIGHTS and kind in ("int", "uint"):
            role = CODES
        raw = unpacked(_bytes_of(tensor), width)[: _count(tensor, width, bool(packed))]
        if len(raw):
            found.append(Stored(name, role, node.name or node.output[0], width, kind, raw, bool(packed)))
    return found


def flipped(checked: CheckedOnnx, tensors: list[Stored], flips: Iterable[Flip]) -> CheckedOnnx:
    """The file with these bits flipped, each once: nothing else in it changes but how its tensors are written down.

    It is not checked again where it ran as it came: only what its parameters say is other.
    """
    import onnx

    model = onnx.load_model_from_string(checked.data)
    held, places = Graph(model).held, dict[int, list[int]]()
    for flip in flips:
        places.setdefault(flip.tensor, []).append(flip.element * tensors[flip.tensor].width + flip.bit)
    for number, some in places.items():
        tensor = held[tensors[number].name]
        content = bytearray(_bytes_of(tensor))
        for place in some:
            content[place // 8] ^= 1 << place % 8
        for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(name)
        tensor.raw_data = bytes(content)
        _hold(model, tensors[number].name, tensor)
    written: bytes = model.SerializeToString(deterministic=True)
    if checked.usable is not checked.data:
        return check_onnx(written)
    return replace(checked, data=written, usable=written, model=model, source=model)


def _hold(model: onnx.ModelProto, name: str, tensor: onnx.TensorProto) -> None:
    """A constant that is written as a list of numbers holds the tensor instead; others are changed in place."""
    from onnx import helper

    for node in model.graph.node:
        if name in node.output and node.op_type == "Constant" and node.attribute[0].name in SHORT:
            node.attribute[0].CopyFrom(helper.make_attribute("value", tensor))


def attacked_bits(tensors: Iterable[Stored]) -> int:
    return sum(len(one.raw) * one.width for one in tensors)


# -- bytes and elements ------------------------------------------------------------------------------------------------


def unpacked(content: bytes, width: int) -> Bits:
    """uint64 [n]: elements of so many bits, which lie one after the other, the lowest first."""
    octets = np.frombuffer(content, np.uint8)
    if width < 8:
        shifts = np.arange(0, 8, width, dtype=np.uint8)
        return ((octets[:, None] >> shifts) & np.uint8(2**width - 1)).ravel().astype(np.uint64)
    size = width // 8
    return np.frombuffer(content[: len(content) // size * size], f"<u{size}").astype(np.uint64)


def _bytes_of(tensor: onnx.TensorProto) -> bytes:
    """As raw data, however it is written."""
    from onnx import numpy_helper

    if tensor.HasField("raw_data"):
        return tensor.raw_data
    return numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data


def _count(tensor: onnx.TensorProto, width: int, packed: bool) -> int:
    count = int(np.prod(tensor.dims, dtype=np.int64))
    return count * (8 // width) if packed else count


# -- what a tensor is for ----------------------------------------------------------------------------------------------


def _use(name: str, graph: Graph, depth: int) -> tuple[str, onnx.NodeProto, int] | None:
    """Role, the node that computes with it, and the bits of an element where they are packed in bytes (else 0)."""
    for node in graph.consumers.get(name, ()):
        for place, given in enumerate(node.input):
            if given != name:
                continue
            role = _role(node, place, graph, name)
            if role is not None:
                packed = _packed(node, place)
                return role, _computing(node, graph), packed
            moved = place == 0 or node.op_type == "Concat" or (node.op_type in SCATTERS and place == 2)
            if node.op_type in MOVES and moved and depth:
                further = _use(node.output[0], graph, depth - 1)
                if further is not None:
                    return further
    return None


def _packed(node: onnx.NodeProto, place: int) -> int:
    if node.op_type != "MatMulNBits" or place not in (1, 3):
        return 0
    return next((int(one.i) for one in node.attribute if one.name == "bits"), 4)


def _role(node: onnx.NodeProto, place: int, graph: Graph, name: str) -> str | None:
    kind = node.op_type
    if kind in ("QuantizeLinear", "DequantizeLinear"):
        if place:
            return SCALES if place == 1 else ZEROS
        shape = _shape(name, graph)
        return BIASES if shape is not None and len(shape) < 2 else WEIGHTS
    if kind == "MatMulNBits":
        return {1: CODES, 2: SCALES, 3: ZEROS, 5: BIASES}.get(place)
    if kind == "Gather":
        book = graph.constant(node.input[0])
        if place == 1:
            return INDICES if book is not None and book.plain is not None and book.plain.dtype.kind == "f" else None
        return BOOK if graph.constant(node.input[1]) is not None else WEIGHTS
    for slot in (*SLOTS.get(kind, ()), *OTHER_PRODUCTS.get(kind, ())):
        roles = {slot.weight: WEIGHTS, slot.scale: SCALES, slot.zero: ZEROS, slot.bias: BIASES}
        if place in roles:
            return roles[place]
    if kind in ("BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization"):
        return NORMS if place in range(1, 5) else None
    return _of_types(node, place, graph, name)


def _of_types(node: onnx.NodeProto, place: int, graph: Graph, name: str) -> str | None:
    """By its type alone: grids of integer kernels, and what is added to or multiplied with a product."""
    kind, held = node.op_type, graph.constant(name)
    if held is None or held.plain is None:
        return None
    floating = held.plain.dtype.kind == "f" or held.stored == "bfloat16"
    if kind.startswith(("QLinear", "QGemm", "DynamicQuantize", "MatMulInteger")):
        return SCALES if floating else ZEROS
    if kind in ("Add", "Sub") and floating:
        return BIASES
    return SCALES if kind in ("Mul", "Div") and floating else None


def _shape(name: str, graph: Graph) -> tuple[int, ...] | None:
    return tuple(graph.held[name].dims) if name in graph.held else None


def _computing(node: onnx.NodeProto, graph: Graph) -> onnx.NodeProto:
    """The product behind a quantiser and what only moves values: what a reader knows as the layer."""
    for _ in range(DEEP):
        if node.op_type not in (*MOVES, "QuantizeLinear", "DequantizeLinear", "Gather"):
            return node
        users = graph.consumers.get(node.output[0], ())
        if len(users) != 1:
            return node
        node = users[0]
    return node


def by_role(tensors: Iterable[Stored]) -> Iterator[str]:
    """The roles that there are, in the order of `ROLES`."""
    there = {one.role for one in tensors}
    return (role for role in ROLES if role in there)


def require_parameters(tensors: list[Stored]) -> None:
    """Raises UnsafeInput where the file holds no parameter that is known as one."""
    if not tensors:
        raise UnsafeInput("The file holds no parameters that an operator known here computes with.")
