"""QONNX's quantisers in an ONNX file, written out in operators of the standard that compute the same.

`Quant` (newer files: `IntQuant`), `BipolarQuant` and `Trunc`, as Brevitas, FINN and QKeras' converter write them, round
in floats, and no runtime knows them. They are defined in docs/qonnx-custom-ops of github.com/fastmachinelearning/qonnx
and, where that says nothing, by its reference (a signed `Quant` of one bit is +-1); Pappalardo et al. 2022,
arXiv:2206.07527. Each step becomes one operator in float32, in the order of the definition, so that both round alike. A
weight that the file holds becomes its codes, cast and scaled, so that whoever reads weights sees how few bits it has.

Loaded by _check_onnx.py, also in the process of its own that looks at a stranger's file: it imports nothing of this
package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
OPERATORS = {"Quant": (4,), "IntQuant": (4,), "BipolarQuant": (2,), "Trunc": (5, 6)}  # with the number of their inputs
WIDEST = 64  # bits: more than any accumulator has
OLDEST, ROUNDS_SINCE, CLIPS_SINCE = 9, 11, 11  # opsets: of Sign and Where, of Round, of Clip with inputs
HINT = "Export it again with the tool that wrote it, or refuse the file."


def _away(round_size: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Rounds magnitudes."""
    return lambda x: np.sign(x) * round_size(np.abs(x))


HALF = np.float32(0.5)
MODES: dict[str, Callable[[Array], Array]] = {
    "ROUND": np.round,
    "HALF_EVEN": np.round,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": _away(np.ceil),
    "DOWN": np.trunc,
    "ROUND_TO_ZERO": np.trunc,
    "HALF_UP": _away(lambda x: np.floor(x + HALF)),
    "HALF_DOWN": _away(lambda x: np.ceil(x - HALF)),
}


class Malformed(Exception):
    """A node of QONNX has no meaning: sentences for the user."""


def known(node: onnx.NodeProto) -> bool:
    return node.domain in DOMAINS and node.op_type in OPERATORS


def limits(signed: bool, narrow: bool, bits: int) -> tuple[float, float]:
    """The lowest and the highest code."""
    top = 2.0 ** (bits - signed) - 1
    return (-top - (not narrow) if signed else 0.0), top - (narrow and not signed)


def bipolar(signed: bool, bits: int) -> bool:
    """Whether a Quant is +1 and -1: two's complement of one bit would be -1 and 0."""
    return signed and bits == 1


def written_out(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Edits the model; answers with a copy of what it was, or None where it has no such node.

    Raises:
        Malformed: a node does not fit its definition, or is inside a branch.
    """
    graph = model.graph
    everywhere = list(_nodes(graph))
    if not any(map(known, everywhere)):
        return None
    before = onnx.ModelProto()
    before.CopyFrom(model)
    writer = _Writer(before, {name for node in everywhere for name in (*node.input, *node.output)})
    for node in before.graph.node:
        writer.write(node)
    if any(known(node) for top in before.graph.node for node in _inner(top)):
        raise Malformed(f"The ONNX model was not run: it has quantisers of QONNX inside a branch. {HINT}")
    del graph.node[:]
    graph.node.extend(writer.nodes)
    read = {name for node in _nodes(graph) for name in node.input} | {item.name for item in graph.output}
    idle = {tensor.name for tensor in graph.initializer if tensor.name in writer.given} - read
    for held in (graph.initializer, graph.input):  # a format of before 2019 lists weights as inputs too
        for at in reversed(range(len(held))):
            if held[at].name in idle:
                del held[at]
    graph.initializer.extend(writer.tensors)
    opsets = [one for one in before.opset_import if one.domain not in DOMAINS]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    model.ir_version = max(model.ir_version, 4)  # since when a tensor need not be an input
    return before


def covered(node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]) -> list[float] | None:
    """The range of a Quant with one grid for all values, which the file holds."""
    held = [numpy_helper.to_array(tensors[name]) for name in node.input[1:] if name in tensors]
    if node.op_type not in ("Quant", "IntQuant") or len(held) != 3 or any(one.size != 1 for one in held):
        return None
    scale, zero, bits = (float(one.item()) for one in held)
    ends = limits(bool(_attribute(node, "signed", 1)), bool(_attribute(node, "narrow", 0)), int(bits))
    return [(end - zero) * scale for end in ends]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        yield from _inner(node)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
            yield from _nodes(graph)


def _held(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The tensors that the outermost graph holds, by name."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for one in node.attribute if node.op_type == "Constant" and node.output else ():
            if one.name == "value":
                found[node.output[0]] = one.t
            elif one.name in ("value_float", "value_floats", "value_int", "value_ints"):
                found[node.output[0]] = numpy_helper.from_array(np.asarray(helper.get_attribute_value(one)))
    return found


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    found = next((one for one in node.attribute if one.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


class _Writer:
    """The nodes of a graph, those of QONNX written out.

    Attributes:
        nodes, tensors: the new graph's nodes, and the tensors that it needs besides.
        given: names of what the quantisers read.
    """

    def __init__(self, model: onnx.ModelProto, names: set[str]) -> None:
        versions = [one.version for one in model.opset_import if one.domain in ("", "ai.onnx")]
        self.opset = max(versions, default=0)
        self.held = _held(model.graph)
        taken = names | set(self.held) | {item.name for item in (*model.graph.input, *model.graph.output)}
        self.prefix = "qonnx"
        while any(name.startswith(self.prefix) for name in taken):
            self.prefix += "_"
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.numbers: dict[tuple[bytes, tuple[int, ...]], str] = {}
        self.given: set[str] = set()

    def write(self, node: onnx.NodeProto) -> None:
        if not known(node):
            self.nodes.append(node)
            return
        if self.opset < OLDEST:
            _refuse(node, f"needs opset {OLDEST} of the standard operators at least, and the file has {self.opset}")
        counts = OPERATORS[node.op_type]
        if len(node.input) not in counts or not all(node.input) or len(node.output) != 1 or not node.output[0]:
            has = f"has {len(node.input)} inputs and {len(node.output)} outputs"
            _refuse(node, f"{has}: it takes {counts[0]} and gives 1")
        start = len(self.nodes)
        self.given.update(node.input)
        try:
            {"BipolarQuant": self._bipolar, "Trunc": self._trunc}.get(node.op_type, self._quant)(node)
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError):
            _refuse(node, "has a tensor or an attribute that is malformed")
        for at, made in enumerate(self.nodes[start:]):
            made.name = f"{node.name or node.op_type}/{at}" if made is not self.nodes[-1] else node.name
        self.nodes[-1].output[0] = node.output[0]

    # Nodes and numbers ------------------------------------------------------------------------------------------------

    def emit(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node; the name of its output."""
        name = f"{self.prefix}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def number(self, value: Any) -> str:
        """The name of a tensor that holds it as float32, made once."""
        array = np.asarray(value, np.float32)
        key = array.tobytes(), array.shape
        if key not in self.numbers:
            self.numbers[key] = f"{self.prefix}_number_{len(self.numbers)}"
            self.tensors.append(numpy_helper.from_array(array, self.numbers[key]))
        return self.numbers[key]

    def constant(self, name: str) -> Array | None:
        """float32; None where the file does not hold it."""
        array = numpy_helper.to_array(self.held[name]) if name in self.held else np.empty(0, object)
        return array.astype(np.float32, copy=False) if array.dtype.kind in "fiub" else None

    def bits(self, node: onnx.NodeProto, at: int) -> int:
        value = self.constant(node.input[at])
        if value is None or value.size != 1:
            _refuse(node, "takes its bit width from elsewhere than from one number that the file holds")
        width = float(value.item())
        if not (1 <= width <= WIDEST and width == int(width)):
            _refuse(node, f"has a bit width of {width:g}; whole numbers from 1 to {WIDEST} are")
        return int(width)

    def grid(self, node: onnx.NodeProto, at: int, x: Array | None, *, scale: bool) -> Array | None:
        """A scale or a zero point; None where it is computed."""
        word, value = "scale" if scale else "zero point", self.constant(node.input[at])
        if value is None:
            return None
        if not np.isfinite(value).all() or (scale and not value.all()):
            _refuse(node, f"has a {word} that holds {'0, ' if scale else ''}infinity or no number")
        if x is not None:
            try:
                fits = np.broadcast_shapes(x.shape, value.shape) == x.shape
            except ValueError:
                fits = False
            if not fits:
                _refuse(node, f"has a {word} of shape {list(value.shape)} for values of shape {list(x.shape)}")
        return value

    def flag(self, node: onnx.NodeProto, name: str, default: int) -> bool:
        value = _attribute(node, name, default)
        if value not in (0, 1):
            _refuse(node, f"has {name} = {str(value)[:40]!r}; it is 0 or 1")
        return bool(value)

    def mode(self, node: onnx.NodeProto, default: str) -> str:
        value = _attribute(node, "rounding_mode", default)
        word = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        if word.upper() not in MODES:
            _refuse(node, f"has the rounding mode {word[:40]!r}, which is none of {', '.join(MODES)}")
        return word.upper()

    # The operators ----------------------------------------------------------------------------------------------------

    def _quant(self, node: onnx.NodeProto) -> None:
        x = self.constant(node.input[0])
        scale, zero = self.grid(node, 1, x, scale=True), self.grid(node, 2, x, scale=False)
        signed, narrow = self.flag(node, "signed", 1), self.flag(node, "narrow", 0)
        mode, bits = self.mode(node, "ROUND"), self.bits(node, 3)
        low, high = limits(signed, narrow, bits)
        if x is not None and scale is not None and zero is not None and bits <= 24:
            codes = x / scale + zero
            rounded = MODES[mode](np.clip(codes, np.float32(low), np.float32(high)))
            codes = np.where(codes >= 0, np.float32(1), np.float32(-1)) if bipolar(signed, bits) else rounded
            if self._codes(node, codes, scale, zero):
                return
        y = self._placed(node, scale, zero)
        y = self._sign(y) if bipolar(signed, bits) else self._rounded(self._clipped(y, low, high), mode)
        if zero is None or zero.any():
            y = self.emit("Sub", y, self._given(node, 2, zero))
        self.emit("Mul", y, self._given(node, 1, scale))

    def _bipolar(self, node: onnx.NodeProto) -> None:
        x = self.constant(node.input[0])
        scale = self.grid(node, 1, x, scale=True)
        if x is not None and scale is not None:
            signs = np.where(x >= 0, np.float32(1), np.float32(-1))
            if self._codes(node, signs, scale, np.zeros((), np.float32)):
                return
        self.emit("Mul", self._sign(node.input[0]), self._given(node, 1, scale))

    def _trunc(self, node: onnx.NodeProto) -> None:
        """Of version 1, five inputs; of version 2, six: it gives the scale of what comes out, and cuts off."""
        x, second = self.constant(node.input[0]), len(node.input) == 6
        scale, zero = self.grid(node, 1, x, scale=True), self.grid(node, 2, x, scale=False)
        mode, before, after = self.mode(node, "FLOOR"), self.bits(node, 3), self.bits(node, len(node.input) - 1)
        y = self._rounded(self._placed(node, scale, zero), "ROUND")
        if not second:
            y = self._rounded(self.emit("Div", y, self.number(2.0 ** (before - after))), mode)
            if zero is None or zero.any():
                y = self.emit("Sub", y, self._given(node, 2, zero))
            self.emit("Mul", y, self._given(node, 1, scale))
            return
        wide = self.grid(node, 4, x, scale=True)
        if scale is None or wide is None or zero is None or (scale <= 0).any() or (wide <= 0).any():
            _refuse(node, "does not hold its scales, above 0, and its zero point as numbers")
        factor = np.exp2(np.round(np.log2(wide / scale)))  # a power of two, as the definition makes sure
        low, high = limits(self.flag(node, "signed", 1), self.flag(node, "narrow", 0), after)
        y = self._clipped(self.emit("Div", y, self.number(factor)), low, high)
        y = self._rounded(y, mode)
        if zero.any():
            y = self.emit("Sub", y, self.number(zero / factor))
        self.emit("Mul", y, self.number(wide))

    def _codes(self, node: onnx.NodeProto, codes: Array, scale: Array, zero: Array) -> bool:
        """Writes a weight as integers, unless they are none."""
        if not np.isfinite(codes).all():
            return False
        kinds = (np.uint8, np.uint16, np.int32) if codes.min(initial=0) >= 0 else (np.int8, np.int16, np.int32)
        kind = next(one for one in kinds if codes.max(initial=0) <= np.iinfo(one).max >= -codes.min(initial=0) - 1)
        self.tensors.append(numpy_helper.from_array(codes.astype(kind), f"{self.prefix}_codes_{len(self.nodes)}"))
        y = self.emit("Cast", self.tensors[-1].name, to=onnx.TensorProto.FLOAT)
        if zero.any():
            y = self.emit("Sub", y, self.number(zero))
        self.emit("Mul", y, self.number(scale))
        return True

    def _given(self, node: onnx.NodeProto, at: int, value: Array | None) -> str:
        return node.input[at] if value is None else self.number(value)  # which may be held in another type

    def _placed(self, node: onnx.NodeProto, scale: Array | None, zero: Array | None) -> str:
        y = self.emit("Div", node.input[0], self._given(node, 1, scale))
        return y if zero is not None and not zero.any() else self.emit("Add", y, self._given(node, 2, zero))

    def _clipped(self, y: str, low: float, high: float) -> str:
        if self.opset < CLIPS_SINCE:
            return self.emit("Clip", y, min=low, max=high)
        return self.emit("Clip", y, self.number(low), self.number(high))

    def _sign(self, y: str) -> str:  # +1 from 0 on, -1 below
        return self.emit("Where", self.emit("Less", y, self.number(0)), self.number(-1), self.number(1))

    def _rounded(self, y: str, mode: str) -> str:
        if mode in ("CEIL", "FLOOR"):
            return self.emit(mode.capitalize(), y)
        if mode in ("ROUND", "HALF_EVEN"):
            return self.emit("Round", y) if self.opset >= ROUNDS_SINCE else self._half_even(y)
        size = self.emit("Abs", y)
        if mode.startswith("HALF"):
            size = self.emit("Add", size, self.number(0.5 if mode == "HALF_UP" else -0.5))
        size = self.emit("Ceil" if mode in ("UP", "HALF_DOWN") else "Floor", size)
        return self.emit("Mul", self.emit("Sign", y), size)

    def _half_even(self, y: str) -> str:
        """Before opset 11 there is no Round: one more than the floor where the rest is above a half, or is a half and
        the floor is odd. The least that float32 adds to a half (2^-24) tells the two apart; nothing else is rounded.
        """
        floor = self.emit("Floor", y)
        rest = self.emit("Sub", y, floor)
        halved = self.emit("Mul", floor, self.number(0.5))
        odd = self.emit("Sub", halved, self.emit("Floor", halved))  # a half, or 0
        rest = self.emit("Add", rest, self.emit("Mul", odd, self.number(2.0**-23)))
        up = self.emit("Cast", self.emit("Greater", rest, self.number(0.5)), to=onnx.TensorProto.FLOAT)
        return self.emit("Add", floor, up)


def _refuse(node: onnx.NodeProto, what: str) -> NoReturn:
    name = node.name or (node.output[0] if node.output else "")
    shown = repr(name if len(name) <= 80 else name[:80] + "...")
    raise Malformed(f"The ONNX model was not run: its quantiser {node.op_type} of QONNX (node {shown}) {what}. {HINT}")
