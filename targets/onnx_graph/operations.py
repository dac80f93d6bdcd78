"""What an ONNX graph computes for one record, and what it holds: multiply-accumulates by operand width, parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..runtimes.batches import reason
from .constants import Array, Graph, code_range
from .observed import unfused
from .weights import CONVOLUTIONS, RECURRENT, SLOTS, Weight, weights

if TYPE_CHECKING:
    import onnx

# Inputs by which an operator takes parameters, beside the weights and biases of `SLOTS`: of any size, or not a scalar.
_PARAMETERS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "PRelu": (1,),
    "MatMulNBits": (5,),
    "QLinearAdd": (0, 3),
    "QLinearMul": (0, 3),
    **dict.fromkeys(("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice"), (0,)),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), (0,)),
    **{
        kind: tuple(place for slot in slots for place in (slot.weight, slot.bias) if place is not None)
        for kind, slots in SLOTS.items()
    },
}
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Concat")


class Operation(NamedTuple):
    """The multiply-accumulates of one record in one call of a layer, and the bits of their factors (32: float32)."""

    macs: int
    weight_bits: int
    activation_bits: int


def tensors(graph: Graph) -> dict[str, Tensor]:
    """The numbers that the file holds (initialisers and constants, without text), by name, as torch can hold them.

    Fewer than 8 bits come as int8; types that torch lacks as integers of the same bits.
    """
    from onnx import numpy_helper

    found = {}
    for name, held in graph.held.items():
        array = numpy_helper.to_array(held)
        if array.dtype.kind in "OSUc":
            continue
        if "int4" in array.dtype.name or "int2" in array.dtype.name:
            array = array.astype(np.int8)
        elif array.dtype.kind not in "if" or array.dtype.name not in ("float16", "float32", "float64"):
            array = np.ascontiguousarray(array).view(f"{'u' if array.itemsize == 1 else ''}int{8 * array.itemsize}")
        found[name] = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape).copy())
    return found


def parameters(graph: Graph) -> tuple[int, int]:
    """(weights and biases, those that are not zero): not scales, zero points, shapes, a batch norm's statistics.

    A code counts as zero where it stands for zero.
    """
    held = tensors(graph)
    sizes = {name: value.numel() for name, value in held.items()}
    counted: dict[str, int] = {}
    for node in graph.nodes:
        scales = any(
            (maker := graph.producers.get(name)) is not None and maker.op_type == "DynamicQuantizeLinear"
            for name in node.input
        )
        scales |= any(_of_codes(graph.producers.get(name), held) for name in node.input)
        for position, name in enumerate(node.input):
            if name not in held or held[name].dtype in (torch.int64, torch.bool):
                continue
            elementwise = node.op_type in _ELEMENTWISE and held[name].numel() > 1 and not scales
            if elementwise or position in _PARAMETERS.get(node.op_type, ()):
                counted[name] = int(torch.count_nonzero(held[name]))
    for weight in weights(graph):
        codes, name = weight.constant.codes, weight.constant.name
        if codes is not None and (weight.node.op_type == "MatMulNBits" or codes.codes.size == sizes.get(name)):
            sizes[name], counted[name] = codes.codes.size, int(np.count_nonzero(codes.codes != codes.zero))
    return sum(sizes[name] for name in counted), sum(counted.values())


def _of_codes(maker: onnx.NodeProto | None, held: dict[str, Tensor]) -> bool:
    """Whether a node casts integers that the file holds: what they are multiplied by is their scale."""
    codes = None if maker is None or maker.op_type != "Cast" else held.get(maker.input[0])
    return codes is not None and not codes.dtype.is_floating_point


def operations(model: onnx.ModelProto, shape: tuple[int, ...]) -> list[Operation]:
    """The products of one record, in the order of the graph: convolutions, matrix products, recurrences.

    Shapes come from running one record of zeros (ONNX's own shape inference stops at ONNX Runtime's operators). Nodes
    inside If and Loop are not counted, nor is Einsum.

    Args:
        model: checked by `targets.model_file.check_onnx`.
        shape: of one record.
    """
    graph = Graph(model)
    by_node: dict[int, list[Weight]] = {}
    for weight in weights(graph):
        if weight.stages:  # else its shape is not known either
            by_node.setdefault(id(weight.node), []).append(weight)
    outer = {output for node in model.graph.node for output in node.output}
    outer |= {item.name for item in model.graph.input}
    nodes = [
        node
        for node in graph.nodes
        if node.op_type in (*SLOTS, "MatMulNBits") and node.op_type != "Gather" and node.output[0] in outer
    ]
    shapes, batch = _shapes(model, [name for node in nodes for name in _asked(node) if name in outer], shape)
    found = []
    for node in nodes:
        macs = _macs(node, by_node.get(id(node), []), shapes)
        if macs:
            found.append(
                Operation(macs // batch, _weight_bits(node, by_node, shapes), _input_bits(node, graph, shapes))
            )
    return found


def _asked(node: onnx.NodeProto) -> list[str]:
    """The tensors that an operator's count depends on: its output, its inputs."""
    places = [0, 1] if node.op_type == "MatMul" else [0, 3] if node.op_type == "QLinearMatMul" else [0]
    return [
        name
        for name in (node.output[0] or next(filter(None, node.output), ""), *(node.input[i] for i in places))
        if name
    ]


def _macs(node: onnx.NodeProto, held: Sequence[Weight], shapes: dict[str, tuple[tuple[int, ...], str]]) -> int:
    def size(name: str) -> int:
        return int(np.prod(shapes[name][0], dtype=np.int64)) if name in shapes else 0

    if node.op_type in RECURRENT:  # [steps, batch, in]; every weight once a step
        steps, records = shapes.get(node.input[0], ((0, 0, 0), ""))[0][:2]
        return steps * records * sum(int(np.prod(weight.constant.shape)) for weight in held)
    if node.op_type in CONVOLUTIONS:
        per_channel = sum(int(np.prod(weight.constant.shape[1:])) for weight in held)
        if node.op_type == "ConvTranspose":
            whole = sum(int(np.prod(weight.constant.shape)) for weight in held)
            channels = shapes.get(node.input[0], ((1, 1), ""))[0][1]
            return size(node.input[0]) * whole // max(channels, 1)
        return size(node.output[0]) * per_channel
    if held:
        return size(node.output[0]) * held[0].constant.shape[-1]
    return size(node.output[0]) * shapes.get(node.input[0], ((0,), ""))[0][-1]  # of two tensors: attention


def _weight_bits(
    node: onnx.NodeProto, by_node: dict[int, list[Weight]], shapes: dict[str, tuple[tuple[int, ...], str]]
) -> int:
    held = by_node.get(id(node), [])
    if not held:
        second = node.input[3] if node.op_type == "QLinearMatMul" else node.input[1]
        return _width(shapes.get(second, ((), "float32"))[1])
    constant = held[0].constant
    if constant.codes is None:
        return _width(constant.stored)
    return code_range(constant.stored, constant.codes)[2]


def _input_bits(node: onnx.NodeProto, graph: Graph, shapes: dict[str, tuple[tuple[int, ...], str]]) -> int:
    """Of the first factor: what a DequantizeLinear before it holds, else the type it has."""
    if node.op_type.startswith("DynamicQuantize"):
        return 8
    maker = graph.producers.get(node.input[0])
    for _ in range(8):  # a Flatten or Transpose between them changes no value
        if maker is None or maker.op_type not in ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool"):
            break
        maker = graph.producers.get(maker.input[0])
    if maker is not None and maker.op_type == "DequantizeLinear":
        zero = graph.constant(maker.input[2]) if len(maker.input) > 2 else None
        return _width(zero.stored) if zero is not None else 8
    return _width(shapes.get(node.input[0], ((), "float32"))[1])


def _width(stored: str) -> int:
    digits = "".join(character for character in stored if character.isdigit())
    return int(digits) if digits else 32


def _shapes(
    model: onnx.ModelProto, names: Sequence[str], shape: tuple[int, ...]
) -> tuple[dict[str, tuple[tuple[int, ...], str]], int]:
    """Shape and type of the named tensors when the graph answers one batch of zeros; and the records of that batch."""
    try:
        session = unfused(model, names)
        entry = session.get_inputs()[0]
        batch = entry.shape[0] if entry.shape and isinstance(entry.shape[0], int) else 1
        records = np.zeros((batch, *shape), onnx_type(entry.type))
        answers: list[Array] = session.run(None, {entry.name: records})
    except Exception as error:  # the runtime's exception types have no common base
        raise InputError(f"The ONNX model does not answer records of shape {list(shape)}: {reason(error)}") from None
    found: dict[str, tuple[tuple[int, ...], str]] = {entry.name: (records.shape, records.dtype.name)}
    for output, answer in zip(session.get_outputs(), answers, strict=True):
        if isinstance(answer, np.ndarray):
            found[output.name] = answer.shape, answer.dtype.name
    return found, batch


def onnx_type(word: str) -> Any:
    """numpy's type for ONNX Runtime's "tensor(float)" and its kin."""
    names = {"float": "float32", "double": "float64"}
    inner = word.removeprefix("tensor(").removesuffix(")")
    return np.dtype(names.get(inner, inner))
