"""The weights of an ONNX graph: what every convolution, product, embedding and recurrence multiplies its input with.

Weights are read as the file writes them: float values, or integer codes with the scale and zero point that each code
goes by, whichever form the quantiser chose (QuantizeLinear/DequantizeLinear, QLinearConv and its kin, ConvInteger,
MatMulInteger, MatMulNBits). What follows a weight's product up to the next nonlinearity (a bias, a scale, a batch norm)
is read too, since an exporter or an optimiser may have folded it into the weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..packed_bits import unpack
from .constants import LONGEST_CHAIN, Array, Constant, Graph, attribute, coded

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Stage:
    """A weight's product followed up to some node: gain * (weight * x) + shift, per output channel."""

    gain: Array | None  # float64 [out]; None: 1
    shift: Array  # float64 [out]
    step: Array  # float64 [out]: what the codes of `shift` count in; 0 where it is held in float
    biased: bool = False  # whether the file adds anything
    end: str = ""  # the tensor that holds it


@dataclass(frozen=True)
class Weight:
    """A weight, its output channels first ([out, in] or [out, in / groups, *kernel]; [directions, out, in])."""

    name: str
    node: onnx.NodeProto
    constant: Constant
    stages: tuple[Stage, ...]  # the weight as it is, then with ever more of what follows it


@dataclass(frozen=True)
class _Slot:
    """Where a node keeps a weight: positions of its inputs."""

    weight: int
    scale: int | None = None
    zero: int | None = None
    bias: int | None = None
    input_scale: int | None = None
    product: bool = False  # [in, out] in the file, unless transB says otherwise


_RECURRENT = (_Slot(1, bias=3), _Slot(2))
SLOTS: dict[str, tuple[_Slot, ...]] = {
    "Conv": (_Slot(1, bias=2),),
    "ConvTranspose": (_Slot(1, bias=2),),
    "ConvInteger": (_Slot(1, zero=3),),
    "QLinearConv": (_Slot(3, 4, 5, 8, 1),),
    "Gemm": (_Slot(1, bias=2, product=True),),
    "MatMul": (_Slot(1, product=True), _Slot(0)),
    "MatMulInteger": (_Slot(1, zero=3, product=True),),
    "QLinearMatMul": (_Slot(3, 4, 5, product=True),),
    "QGemm": (_Slot(3, 4, 5, 6, 1, product=True),),
    "DynamicQuantizeMatMul": (_Slot(1, 2, 3, 4, product=True),),
    "MatMulIntegerToFloat": (_Slot(1, 3, 5, 6, product=True),),
    "FusedConv": (_Slot(1, bias=2),),
    "FusedGemm": (_Slot(1, bias=2, product=True),),
    "FusedMatMul": (_Slot(1, product=True),),
    "TransposeMatMul": (_Slot(1, product=True),),
    "Gather": (_Slot(0),),
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "RNN": _RECURRENT,
    "DynamicQuantizeLSTM": (_Slot(1, 8, 9, 3, product=True), _Slot(2, 10, 11, product=True)),
}
CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv")
RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
WEIGHTED = ("Gemm", "FusedGemm", "QGemm", *CONVOLUTIONS, *RECURRENT)  # a matrix product may be of two activations
# Products whose weights are compared, and whose work is not counted.
OTHER_PRODUCTS: dict[str, tuple[_Slot, ...]] = {
    "Einsum": (_Slot(0), _Slot(1), _Slot(2)),
    "DeformConv": (_Slot(1),),
    "EmbedLayerNormalization": (_Slot(2), _Slot(3), _Slot(4)),
    "Attention": (_Slot(1, bias=2, product=True),),
    "QAttention": (_Slot(1, 4, 7, 2, product=True),),
}
UNFOLLOWED = ("Gather", "FusedConv", "FusedGemm", *RECURRENT, *OTHER_PRODUCTS)  # nothing behind them folds into them
STANDARD_TOO = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "BiasAdd", "Pad")  # of other domains
PASSING = ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Dropout")


def weights(graph: Graph) -> Iterator[Weight]:
    """Every weight of the graph, in the order of its nodes; a weight that cannot be read has no codes and no values."""
    for node in graph.nodes:
        if node.op_type == "MatMulNBits":
            yield _packed(node, graph)
        slots = SLOTS.get(node.op_type) or OTHER_PRODUCTS.get(node.op_type)
        for slot in _slots_of_unknown(node) if slots is None else slots:
            if slot.weight >= len(node.input) or not node.input[slot.weight]:
                continue
            constant = graph.constant(node.input[slot.weight])
            if node.op_type == "Gather" and not _embeds(node, graph):
                continue
            made = node.op_type in WEIGHTED or node.input[slot.weight] not in graph.varying
            if constant is None and made:
                yield _unread(node, Constant(node.input[slot.weight], "float32", None))
                continue
            if constant is None or len(constant.shape) < 2:
                continue
            if slots is None:
                yield _unread(node, constant)
                continue
            try:
                yield _read(node, slot, constant, graph)
            except (ValueError, IndexError, TypeError):
                yield _unread(node, constant)
            if node.op_type == "MatMul":
                break  # one of its two operands


def places(node: onnx.NodeProto) -> set[int]:
    """The inputs from which the weights of a node are read, with their scales, zero points and biases."""
    if node.op_type == "MatMulNBits":
        return set(range(1, 6))
    slots = SLOTS.get(node.op_type) or OTHER_PRODUCTS.get(node.op_type) or ()
    parts = {place for slot in slots for place in (slot.weight, slot.scale, slot.zero, slot.bias)}
    return {place for place in parts if place is not None}


def _slots_of_unknown(node: onnx.NodeProto) -> tuple[_Slot, ...]:
    """Every input of an operator that is none of the standard's and none that is known here: any may be a weight."""
    known = node.op_type in STANDARD_TOO or node.op_type.startswith("QLinear") or node.op_type == "MatMulNBits"
    return () if node.domain in ("", "ai.onnx") or known else tuple(_Slot(place) for place in range(len(node.input)))


def _unread(node: onnx.NodeProto, constant: Constant) -> Weight:
    """A weight that is there, made in a way that is not followed."""
    return Weight(_name(node, constant), node, replace(constant, plain=None, codes=None), ())


def _read(node: onnx.NodeProto, slot: _Slot, constant: Constant, graph: Graph) -> Weight:
    def at(position: int | None) -> Constant | None:
        """The constant there; None: nothing is given there."""
        if position is None or position >= len(node.input) or not node.input[position]:
            return None
        held = graph.constant(node.input[position])
        if held is None:  # a bias or zero point that the input decides
            raise ValueError("a part of a weight that cannot be read")
        return held

    swap = slot.product and not attribute(node, "transB", 0)
    transposed = node.op_type == "ConvTranspose" and attribute(node, "group", 1) == 1
    start = node.output[0]
    if constant.codes is None and constant.plain is not None and constant.plain.dtype.kind in "iu":
        out = -1 if swap else -2 if slot.product else 0
        scale, zero = at(slot.scale), at(slot.zero)
        if slot.scale is None:
            scale, start, later = _integer_product(node, graph)
            zero = zero or later
        if scale is None:
            raise ValueError("integers without a scale")
        per_channel = scale.values.size in (1, constant.plain.shape[out])
        factors = scale.values.ravel() if per_channel else scale.values
        offset = None if zero is None else zero.values
        if node.op_type in RECURRENT and scale.values.size > 1:  # one per direction, or per direction and output
            factors = scale.values.reshape(constant.plain.shape[0], 1, -1)
            offset = None if offset is None or offset.size == 1 else offset.reshape(factors.shape)
        codes = coded(constant.plain, factors, offset, out)
        constant = replace(constant, plain=None, codes=codes)
    if swap:
        constant = constant.moved(lambda array: np.swapaxes(array, -1, -2))
    if transposed:
        constant = constant.moved(lambda array: np.swapaxes(array, 0, 1))
    outputs = constant.shape[0] if node.op_type not in RECURRENT else 0
    alpha = float(attribute(node, "alpha", 1.0)) if slot.product else 1.0
    bias: Array = np.zeros(outputs)
    step: Array = np.zeros(outputs)
    biased = False
    held = at(slot.bias)
    if held is not None:
        biased = True
        bias = held.values.astype(np.float64).ravel() * float(attribute(node, "beta", 1.0))
        step = np.zeros(bias.shape)
        if held.codes is not None:
            step = np.abs(held.codes.scale.astype(np.float64)).ravel()
        elif held.stored == "int32" and constant.codes is not None and (entering := at(slot.input_scale)) is not None:
            scales = constant.codes.scale.reshape(outputs, -1)[:, 0].astype(np.float64)
            step = float(entering.values.ravel()[0]) * scales * alpha
            bias = bias * step
    first = Stage(None if alpha == 1 else np.full(outputs, alpha), bias, np.broadcast_to(step, bias.shape), biased)
    spatial = len(constant.shape) - 2 if node.op_type in CONVOLUTIONS else 0
    stages = (
        (replace(first, end=start),) if node.op_type in UNFOLLOWED else tuple(_followed(start, spatial, first, graph))
    )
    return Weight(_name(node, constant), node, constant, stages)


def _packed(node: onnx.NodeProto, graph: Graph) -> Weight:
    """ONNX Runtime's MatMulNBits: [out, blocks, bytes], the lowest bits first, a scale per block of inputs."""
    held = [graph.constant(name) if name else None for name in (*node.input, *[""] * 6)][:6]
    _, raw, scales, zeros, order, bias = held
    bits, block = int(attribute(node, "bits", 4)), int(attribute(node, "block_size", 32))
    inputs, outputs = int(attribute(node, "K", 0)), int(attribute(node, "N", 0))
    name = raw.name if raw is not None else node.name
    unreadable = Weight(name, node, Constant(name, "uint8", None), ())
    given = [bool(name) for name in (*node.input, *[""] * 6)][:6]
    if any(there and found is None for there, found in zip(given[1:], held[1:], strict=True)):
        return unreadable  # the input decides a scale, a zero point, the order or the bias
    if raw is None or scales is None or raw.plain is None or bits not in (2, 4, 8) or block < 1 or order is not None:
        return unreadable

    def unpacked(array: Array, length: int) -> Array:
        rows: Array = unpack(torch.from_numpy(array.astype(np.int32)).reshape(outputs, -1), bits).numpy()
        return rows[:, :length]

    try:
        blocks = -(-inputs // block)
        codes = unpacked(raw.plain, inputs)
        scale = scales.values.reshape(outputs, blocks)
        zero = np.full((outputs, blocks), 2 ** (bits - 1))
        if zeros is not None and zeros.plain is not None:
            floating = zeros.plain.dtype.kind == "f"
            zero = zeros.plain.reshape(outputs, blocks) if floating else unpacked(zeros.plain, blocks)
        constant = Constant(name, f"uint{bits}", None, coded(codes, scale, zero, 1, block))
        shift = np.zeros(outputs) if bias is None else bias.values.astype(np.float64).reshape(outputs)
        first = Stage(None, shift, np.zeros(outputs), bias is not None)
        return Weight(name, node, constant, tuple(_followed(node.output[0], 0, first, graph)))
    except (ValueError, IndexError, TypeError):
        return unreadable


def _followed(start: str, spatial: int, stage: Stage, graph: Graph) -> Iterator[Stage]:
    """`stage`, then one more for each affine node that follows tensor `start` as its only use.

    Args:
        spatial: dimensions behind the channels' own.
    """
    yield replace(stage, end=start)
    name, outputs = start, len(stage.shift)

    def channels(found: Constant | None) -> tuple[Array, Array] | None:
        """Values and steps per output channel; None unless there is one for each, or one for all."""
        if found is None:
            return None
        per_channel = found.values.size == outputs and found.shape[-1 - spatial :][:1] == (outputs,)
        if not per_channel and found.values.size != 1:
            return None
        values = found.values.astype(np.float64).ravel()
        step = np.zeros(1) if found.codes is None else np.abs(found.codes.scale.astype(np.float64)).ravel()
        return np.broadcast_to(values, (outputs,)), np.broadcast_to(step, (outputs,))

    for _ in range(LONGEST_CHAIN):
        users = graph.consumers.get(name, [])
        if len(users) != 1 or name in graph.outputs:
            return
        user = users[0]
        kind, name = user.op_type.removeprefix("QLinear"), user.output[0]
        if kind in PASSING:
            continue
        gain, shift, step = stage.gain, stage.shift, stage.step
        if kind == "BatchNormalization" and len(user.input) >= 5:
            parts = [channels_of_norm(graph.constant(item), outputs) for item in user.input[1:5]]
            if any(part is None for part in parts):
                return
            gamma, beta, mean, variance = (part for part in parts if part is not None)
            factor = gamma / np.sqrt(variance + float(attribute(user, "epsilon", 1e-5)))
            gain = factor if gain is None else gain * factor
            shift, step = (shift - mean) * factor + beta, step * np.abs(factor)
        elif kind in ("Mul", "Div", "Add", "Sub"):
            second = 3 if kind != user.op_type else 1
            found = _operand(user, second, graph) or (_operand(user, 0, graph) if kind in ("Mul", "Add") else None)
            part = channels(found)
            if part is None:
                return
            values, steps = part
            if kind in ("Add", "Sub"):
                shift, step = shift + (values if kind == "Add" else -values), step + steps
            else:
                factor = 1 / values if kind == "Div" else values
                gain = factor if gain is None else gain * factor
                shift, step = shift * factor, step * np.abs(factor)
        else:
            return
        stage = Stage(gain, shift, step, True, name)
        yield stage


def channels_of_norm(found: Constant | None, outputs: int) -> Array | None:
    """A batch norm's parameter, float64 [outputs]."""
    return None if found is None or found.values.size != outputs else found.values.astype(np.float64).ravel()


def _operand(node: onnx.NodeProto, position: int, graph: Graph) -> Constant | None:
    """A constant operand; of QLinearAdd and QLinearMul, with the scale and zero point that stand behind it."""
    found = graph.constant(node.input[position]) if position < len(node.input) else None
    if found is None or found.plain is None or not node.op_type.startswith("QLinear"):
        return found
    scale, zero = (graph.constant(node.input[position + offset]) for offset in (1, 2))
    if scale is None:
        return None
    codes = coded(found.plain, scale.values, None if zero is None else zero.values, 0)
    return replace(found, plain=None, codes=codes)


def _integer_product(node: onnx.NodeProto, graph: Graph) -> tuple[Constant, str, Constant | None]:
    """The scale of a weight in ConvInteger, MatMulInteger or Gather of integers, the tensor where it is applied, and
    the zero point that is taken off there.

    Its products are cast and multiplied by input scale x weight scale: in one multiplication or in two.
    """
    name = node.output[0]
    for _ in range(LONGEST_CHAIN):
        users = graph.consumers.get(name, [])
        if len(users) != 1:
            break
        user = users[0]
        if user.op_type == "DequantizeLinear" and (found := graph.constant(user.input[1])) is not None:
            return found, user.output[0], graph.constant(user.input[2]) if len(user.input) > 2 else None
        if user.op_type.startswith("QLinear"):  # which reads codes with a scale and a zero point behind them
            place = list(user.input).index(name)
            scale, zero = (graph.constant(item) for item in (*user.input, "")[place + 1 : place + 3])
            if scale is not None:
                return scale, name, zero
        if user.op_type == "Mul":
            other = user.input[1] if user.input[0] == name else user.input[0]
            maker = graph.producers.get(other)
            factors = [other] if maker is None or maker.op_type != "Mul" else [other, *maker.input]
            scale = next((found for item in factors if (found := graph.constant(item)) is not None), None)
            if scale is not None:
                return scale, user.output[0], None
        elif user.op_type not in ("Cast", "Identity", "Reshape"):
            break
        name = user.output[0]
    raise ValueError("integers without a scale")


def _embeds(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether a Gather looks rows up by its input (an embedding), not a constant's element by a constant."""
    return attribute(node, "axis", 0) == 0 and graph.constant(node.input[1]) is None


def _name(node: onnx.NodeProto, constant: Constant) -> str:
    """The parameter's name; exporters number the ones they changed, and then the node says more."""
    name = constant.name.removesuffix("_quantized")
    return node.name.removesuffix("_quant") if node.name and (not name or name.startswith("onnx::")) else name
