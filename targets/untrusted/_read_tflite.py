"""Looks into a TFLite file that may come from a stranger, and tries it, in a process of its own (see sandbox.py).

Run by its path: it imports nothing of this package. As for ONNX (_check_onnx.py), what is computed must not depend on a
record's values: then a run on zeros shows what any run will take. The format: tensorflow/lite/schema/schema.fbs.
"""

from __future__ import annotations

import json
import math
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


OPERATORS = 100_000
TENSORS = 500_000
ELEMENTS = 2**29  # of one tensor
NAMES = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
TYPES = {number: name.lower() for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
# Operators that keep a state between records which cannot be set back (that of variable tensors can: litert.py).
STATEFUL = _names("VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE CALL_ONCE")
# Operators that run other graphs, draw random numbers, or are somebody's own.
REFUSED = STATEFUL | _names(
    "CUSTOM DELEGATE PLACEHOLDER_FOR_GREATER_OP_CODES CALL IF WHILE HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT "
    "HASHTABLE_SIZE HASHTABLE_LOOKUP LSH_PROJECTION SKIP_GRAM MULTINOMIAL RANDOM_UNIFORM RANDOM_STANDARD_NORMAL "
    "UNIQUE WHERE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5"
)
# The inputs of an operator whose values decide the shape of its output.
SIZING = {
    **dict.fromkeys(("CONV_3D_TRANSPOSE", "FILL", "SPLIT", "TRANSPOSE_CONV"), (0,)),
    **dict.fromkeys(("BROADCAST_TO", "EXPAND_DIMS", "MIRROR_PAD", "ONE_HOT", "PAD", "PADV2", "RESHAPE"), (1,)),
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SEGMENT_SUM", "SPARSE_TO_DENSE", "TILE"), (1,)),
    **dict.fromkeys(("ARG_MAX", "ARG_MIN", "MEAN", "SUM", "TOPK_V2", "TRANSPOSE", "UNSORTED_SEGMENT_SUM"), (1, 2)),
    **dict.fromkeys(("BATCH_TO_SPACE_ND", "SLICE", "SPACE_TO_BATCH_ND", "SPLIT_V", "SCATTER_ND"), (1, 2)),
    "RANGE": (0, 1, 2),
    "STRIDED_SLICE": (1, 2, 3),
}
KEPT, KEPT_BY_BYTE, TOGETHER = 2**25, 64, 16  # see _try_onnx.py
LIMITS = {"uint8": (0, 255), "int8": (-128, 127), "int16": (-32768, 32767)}
CONVERT_HINT = "Convert the model again, or fetch the file again and compare its size with the original's."


class Fault(Exception):
    """Why the model is refused: sentences for the user."""


def facts(data: bytes) -> dict[str, Any]:
    """What the file says about itself, as JSON: `model_file.Facts`. Raises Fault, or what flatbuffers do."""
    if data[4:8] != b"TFL3":
        raise Fault(
            f"This is not a TFLite model, or one that was cut off ({len(data):,} bytes). It was not run. {CONVERT_HINT}"
        )
    model = schema.Model.GetRootAs(data, 0)
    if model.SubgraphsLength() != 1:
        raise Fault(
            f"The TFLite model holds {model.SubgraphsLength()} graphs and was not run: one graph without branches and "
            "loops is. Convert it without control flow (an LSTM: as one fused operator)."
        )
    external = model.ExternalBufferGroupsLength() or model.ExternalBuffersLength()
    if external:
        raise Fault(
            "The TFLite model keeps weights in other files (external buffers), by names that it gives itself. Nothing "
            "was read from them. Save it as one file."
        )
    graph = model.Subgraphs(0)
    if graph.OperatorsLength() > OPERATORS or graph.TensorsLength() > TENSORS:
        raise Fault(f"The TFLite model declares {graph.OperatorsLength():,} operators and was not run. {CONVERT_HINT}")
    operators = _operators(model, graph)
    used = {*graph.InputsAsNumpy().tolist(), *graph.OutputsAsNumpy().tolist()} if graph.InputsLength() else set()
    for at in range(graph.TensorsLength()):
        used.add(at)
        _check_tensor(graph.Tensors(at))
    if not used or not operators or not graph.OutputsLength() or max(used) >= graph.TensorsLength() or min(used) < 0:
        raise Fault(f"The TFLite model is malformed: its graph names tensors that it does not hold. {CONVERT_HINT}")
    _check_sizes(graph, operators)
    inputs = [_port(graph.Tensors(at)) for at in graph.InputsAsNumpy().tolist()]
    for port, number in zip(inputs, graph.InputsAsNumpy().tolist(), strict=True):
        first = next((at for at, (name, given) in enumerate(operators) if name == "QUANTIZE" and number in given), None)
        made = number if first is None else int(graph.Operators(first).OutputsAsNumpy()[0])
        inner = _port(graph.Tensors(made)) if 0 <= made < graph.TensorsLength() else port
        if inner["grid"] is not None and inner["type"] in LIMITS:
            scale, zero_point = inner["grid"]
            port["covers"] = [(limit - zero_point) * scale for limit in LIMITS[inner["type"]]]
    outputs = [_port(graph.Tensors(at)) for at in graph.OutputsAsNumpy().tolist()]
    quantised = any(_word(graph.Tensors(at)) in ("int8", "uint8", "int16") for at in range(graph.TensorsLength()))
    layers = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL")
    integer = any(
        name in layers and inner and _word(graph.Tensors(inner[0])) in ("int8", "uint8", "int16")
        for name, inner in operators
    )
    passed = ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE", "CAST")
    for port, number in zip(outputs, graph.OutputsAsNumpy().tolist(), strict=True):
        port["operator"] = _maker(graph, operators, number, passed)
    return {
        "inputs": inputs,
        "outputs": outputs,
        "operators": dict(sorted(Counter(name for name, _ in operators).items())),
        "last_operator": outputs[0]["operator"],
        "quantisation": ["static, as integer operators"] if integer else ["weights only"] if quantised else [],
        "opset": model.Version(),
        "producer": "".join(filter(str.isprintable, _text(model.Description())))[:100],
    }


def _maker(graph: Any, operators: list[tuple[str, list[int]]], number: int, passed: tuple[str, ...]) -> str:
    """The operator that tensor `number` comes from, before those in `passed`."""
    for at in reversed(range(len(operators))):
        name, inputs = operators[at]
        if number in graph.Operators(at).OutputsAsNumpy().tolist():
            if name not in passed or not inputs:
                return name
            number = inputs[0]
    return ""


def _operators(model: Any, graph: Any) -> list[tuple[str, list[int]]]:
    """Name and inputs of each operator, in order."""
    words = []
    for at in range(min(model.OperatorCodesLength(), 10_000)):
        code = model.OperatorCodes(at)
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())  # files of before 2020 know the second only
        name = NAMES.get(number, f"number {number}")
        if name in REFUSED or name.startswith(("STABLEHLO", "number")):
            if name in STATEFUL:
                raise Fault(
                    f"The TFLite model was not run: its operator {name} keeps a state between records, so that answers "
                    "depend on what was asked before. Convert it without one (stateful=False; an LSTM as one fused "
                    "operator), or with the state as an input and an output."
                )
            own = f" {_text(code.CustomCode())[:60]!r}" if name == "CUSTOM" else ""
            raise Fault(
                f"The TFLite model uses the operator {name}{own}, which is not run: its code is not known, or what it "
                "computes may differ from record to record. Convert the model with TFLite's built-in operators only."
            )
        words.append(name)
    found = []
    for at in range(graph.OperatorsLength()):
        operator = graph.Operators(at)
        if operator.OpcodeIndex() >= len(words):
            raise Fault(f"The TFLite model is malformed: operator {at} is of no declared kind. {CONVERT_HINT}")
        inputs = operator.InputsAsNumpy().tolist() if operator.InputsLength() else []
        found.append((words[operator.OpcodeIndex()], inputs))
    return found


def _check_tensor(tensor: Any) -> None:
    shape = tensor.ShapeAsNumpy()[:17].tolist() if tensor.ShapeLength() else []
    name = _text(tensor.Name())
    if len(shape) > 16 or any(size < 0 for size in shape) or math.prod(shape) > ELEMENTS:
        raise Fault(
            f"The TFLite model was not run: the tensor {name[:80]!r} has the shape {shape[:8]}, which no network needs "
            f"(at most {ELEMENTS:,} values are held)."
        )
    if any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in name):
        raise Fault(
            f"The TFLite model was not run: the name {name[:80]!r} in it contains control characters. {CONVERT_HINT}"
        )


def _check_sizes(graph: Any, operators: list[tuple[str, list[int]]]) -> None:
    """No shape may follow from a record's values."""
    varying = set(graph.InputsAsNumpy().tolist()) if graph.InputsLength() else set()
    varying |= {at for at in range(graph.TensorsLength()) if graph.Tensors(at).IsVariable()}
    for at, (name, inputs) in enumerate(operators):
        sizing = (1,) if name.startswith("REDUCE") else SIZING.get(name, ())
        if any(inputs[place] in varying for place in sizing if place < len(inputs)):
            raise Fault(
                f"The TFLite model was not run: in its operator {name} (number {at}) a record's values decide how much "
                "is computed, which a crafted record can abuse."
            )
        if varying & set(inputs) and name not in ("SHAPE", "RANK"):
            varying.update(graph.Operators(at).OutputsAsNumpy().tolist())


def _port(tensor: Any) -> dict[str, Any]:
    """Sizes beyond the batch that the file leaves open are "?"; the batch is its own."""
    shape = tensor.ShapeAsNumpy().tolist() if tensor.ShapeLength() else []
    signature = tensor.ShapeSignatureAsNumpy().tolist() if tensor.ShapeSignatureLength() else shape
    if len(signature) == len(shape):
        open_sizes = ["?" if free < 0 else size for size, free in zip(shape[1:], signature[1:], strict=True)]
        shape = [*shape[:1], *open_sizes]
    grid, found = None, tensor.Quantization()
    if found is not None and found.ScaleLength() == 1 and _word(tensor) not in ("float32", "float16", "float64"):
        grid = [float(found.Scale(0)), float(found.ZeroPoint(0)) if found.ZeroPointLength() else 0.0]
    return {"name": _text(tensor.Name())[:1000], "type": _word(tensor), "shape": shape, "grid": grid}


def _word(tensor: Any) -> str:
    return str(TYPES.get(tensor.Type(), "unknown"))


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _orders(port: dict[str, Any], record: list[int]) -> list[list[int]]:
    """The shapes of an input to try: as the data have a record, in any layout; sizes that nothing tells are guessed,
    but for the batch, which is the file's own.
    """
    shape, signature = port["shape"].tolist(), port["shape_signature"].tolist()
    declared = signature if len(signature) == len(shape) else shape
    if all(size >= 0 for size in declared[1:]):
        return [shape]
    orders = [record, [*record[1:], *record[:1]], [math.prod(record)]] if record else []
    fitting = [
        [*shape[:1], *order]
        for order in orders
        if len(order) == len(declared) - 1
        and all(wanted in (-1, size) for wanted, size in zip(declared[1:], order, strict=True))
    ]
    return fitting or [
        [32 if at and size < 0 else own for at, (own, size) in enumerate(zip(shape, declared, strict=True))]
    ]


def _try(data: bytes, record: list[int]) -> float:
    """CPU seconds of one record, of those orders that the interpreter takes."""
    interpreter = _interpreter(data)
    ports = interpreter.get_input_details()
    known = [_orders(port, record if len(ports) == 1 else []) for port in ports]
    seconds = 0.0
    for order in known[0]:
        guess = [order, *(one[0] for one in known[1:])]
        try:
            for port, shape in zip(ports, guess, strict=True):
                if shape != port["shape"].tolist():
                    interpreter.resize_tensor_input(port["index"], shape)
            interpreter.allocate_tensors()
            for port in interpreter.get_input_details():
                interpreter.set_tensor(port["index"], np.zeros(port["shape"], port["dtype"]))
            started = time.thread_time()
            interpreter.invoke()
            seconds = max(seconds, (time.thread_time() - started) / max(1, order[0] if order else 1))
            interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
            _check_kept(interpreter.get_tensor_details(), len(data), order[0] if order else 1)
        except Exception as error:  # the interpreter raises RuntimeError, ValueError, ...
            if isinstance(error, Fault):
                raise
            if guess == [port["shape"].tolist() for port in ports]:
                raise _refused(error) from None
            if isinstance(_refused(error), MemoryError):
                raise MemoryError from None
    return seconds


def _check_kept(tensors: list[dict[str, Any]], size: int, batch: int) -> None:
    """As for ONNX (_try_onnx.py), with the same limits: the file's own weights are among the tensors."""
    kept = sum(math.prod(tensor["shape"].tolist()) * np.dtype(tensor["dtype"]).itemsize for tensor in tensors)
    most = (KEPT + KEPT_BY_BYTE * size) * min(max(batch, 1), TOGETHER)
    if kept > most:
        raise Fault(
            f"The TFLite model was refused: its tensors take {kept:,} bytes for {batch} record{'s' * (batch > 1)}, and "
            f"those of a file of {size:,} bytes may take {most:,}. {CONVERT_HINT}"
        )


def _interpreter(data: bytes) -> Any:
    try:
        return Interpreter(model_content=data, num_threads=1)
    except Exception as error:  # as above
        raise _refused(error) from None


def _refused(error: Exception) -> Exception:
    words = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or not words or ("alloc" in words and "memory" in words):
        return MemoryError()  # which the interpreter raises without a word
    return Fault(f"The LiteRT interpreter refuses the model ({words}), so it was refused here. {CONVERT_HINT}")


def main(arguments: list[str]) -> str:
    """Arguments: the file, two limits that a batch of its own leaves without use, the shape of a record as JSON ([]:
    not known). Returns JSON: {"facts", "seconds"} or {"fault"}.
    """
    path, _, _, record = arguments
    data = Path(path).read_bytes()
    try:
        known = facts(data)
        seconds = _try(data, json.loads(record))
    except Fault as fault:
        return json.dumps({"fault": str(fault)})
    except (struct.error, ValueError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        words = " ".join(str(error).split())[:200] or type(error).__name__
        return json.dumps({"fault": f"The TFLite model is damaged or crafted: {words}. It was not run. {CONVERT_HINT}"})
    return json.dumps({"facts": known, "seconds": seconds})
