"""Lists the graph of a TFLite file for its twin, in a process of its own (see sandbox.py).

Run by its path: it imports nothing of this package. `_read_tflite.py` has let the file pass before, which LiteRT ran;
still every table is bounded here, because several tables may share the bytes of one. Weights are not copied: what is
said of them is where in the file they are.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema

OPERATORS, TENSORS = 10_000, 50_000
NUMBERS = 2**22  # of all lists together
RANK = 8
DAMAGED = (struct.error, ValueError, TypeError, IndexError, AttributeError, OverflowError)  # of flatbuffers
NAMES = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
TYPES = {number: name.lower() for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
_WINDOW = ("Padding", "StrideH", "StrideW", "FusedActivationFunction")
_DILATED = (*_WINDOW, "DilationHFactor", "DilationWFactor")
_POOL = (*_WINDOW, "FilterHeight", "FilterWidth")
_FUSED = ("FusedActivationFunction",)
# What is read of the options of an operator: its table in schema.fbs, and the fields of it.
OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "CONV_2D": ("Conv2DOptions", _DILATED),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", _DILATED),
    "FULLY_CONNECTED": ("FullyConnectedOptions", (*_FUSED, "WeightsFormat", "KeepNumDims")),
    "AVERAGE_POOL_2D": ("Pool2DOptions", _POOL),
    "MAX_POOL_2D": ("Pool2DOptions", _POOL),
    "ADD": ("AddOptions", _FUSED),
    "SUB": ("SubOptions", _FUSED),
    "MUL": ("MulOptions", _FUSED),
    "MEAN": ("ReducerOptions", ("KeepDims",)),
    "SOFTMAX": ("SoftmaxOptions", ("Beta",)),
    "CONCATENATION": ("ConcatenationOptions", ("Axis", *_FUSED)),
    "LEAKY_RELU": ("LeakyReluOptions", ("Alpha",)),
}


class Fault(Exception):
    """Why the graph is not listed: the end of a sentence for the user."""


class Budget:
    """Counts the numbers that are listed: tables may share their bytes, so a small file can ask for very many."""

    def __init__(self) -> None:
        self.left = NUMBERS

    def take(self, count: int, most: int = NUMBERS) -> int:
        self.left -= count
        if count > most or self.left < 0:
            raise Fault(f"one of its tables holds {count:,} numbers, or all together more than {NUMBERS:,}")
        return count


def graph(data: bytes) -> dict[str, Any]:
    """`tflite_graph.Graph` as JSON. Raises Fault, or what flatbuffers do."""
    model, budget = schema.Model.GetRootAs(data, 0), Budget()
    found = model.Subgraphs(0)
    if found.OperatorsLength() > OPERATORS or found.TensorsLength() > TENSORS:
        raise Fault(f"it has {found.OperatorsLength():,} operators and {found.TensorsLength():,} tensors")
    return {
        "tensors": [_tensor(model, found.Tensors(at), data, budget) for at in range(found.TensorsLength())],
        "operators": [_operator(model, found.Operators(at), budget) for at in range(found.OperatorsLength())],
        "inputs": _numbers(found, "Inputs", budget),
        "outputs": _numbers(found, "Outputs", budget),
    }


def _numbers(table: Any, field: str, budget: Budget, most: int = NUMBERS) -> list[Any]:
    count = budget.take(getattr(table, f"{field}Length")(), most)
    return list(getattr(table, f"{field}AsNumpy")().tolist()) if count else []


def _tensor(model: Any, tensor: Any, data: bytes, budget: Budget) -> dict[str, Any]:
    scale, zero, axis = [], [], 0
    grid = tensor.Quantization()
    if grid is not None:
        scale, zero = _numbers(grid, "Scale", budget), _numbers(grid, "ZeroPoint", budget)
        axis = grid.QuantizedDimension()
    return {
        "type": TYPES.get(tensor.Type(), "unknown"),
        "shape": _numbers(tensor, "Shape", budget, RANK),
        "signature": _numbers(tensor, "ShapeSignature", budget, RANK),
        "place": _place(model, tensor.Buffer(), data),
        "scale": scale,
        "zero": zero,
        "axis": axis,
        "plain": tensor.Sparsity() is None and not tensor.IsVariable(),
    }


def _place(model: Any, number: int, data: bytes) -> tuple[int, int] | None:
    """First byte and count of bytes of a buffer in the file; None where the tensor is no constant."""
    if number >= model.BuffersLength():
        raise Fault("a tensor names a buffer that the file does not hold")
    buffer = model.Buffers(number)
    if buffer.Offset() > 1:  # behind the tables, as large files have it; 0 and 1 are said of a buffer that is inside
        start, count = buffer.Offset(), buffer.Size()
    elif not (count := buffer.DataLength()):
        return None
    else:
        start = buffer._tab.Vector(buffer._tab.Offset(4))
    if start + count > len(data):
        raise Fault("a buffer ends beyond the file")
    return start, count


def _operator(model: Any, operator: Any, budget: Budget) -> dict[str, Any]:
    code = model.OperatorCodes(operator.OpcodeIndex())
    kind = NAMES.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "unknown")
    options: dict[str, Any] = {}
    if kind in OPTIONS:
        name, fields = OPTIONS[kind]
        table, given = getattr(schema, name)(), operator.BuiltinOptions()
        declared = operator.BuiltinOptionsType()
        if given is not None and declared == getattr(schema.BuiltinOptions, name):
            table.Init(given.Bytes, given.Pos)
            options = {field: getattr(table, field)() for field in fields}
    return {
        "kind": kind,
        "inputs": _numbers(operator, "Inputs", budget),
        "outputs": _numbers(operator, "Outputs", budget),
        "options": options,
    }


def main(arguments: list[str]) -> str:
    """Argument: the file. Returns JSON: {"graph"} or {"fault"}."""
    try:
        return json.dumps({"graph": graph(Path(arguments[0]).read_bytes())})
    except Fault as fault:
        return json.dumps({"fault": str(fault)})
    except DAMAGED as error:
        return json.dumps({"fault": f"its tables contradict each other ({' '.join(str(error).split())[:200]})"})
