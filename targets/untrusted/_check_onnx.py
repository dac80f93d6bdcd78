"""The static checks of an ONNX file that may come from a stranger, and what the file says about itself.

Made twice of a stranger's file: in a process of its own (_read_onnx.py), then in this one (model_file.py). It imports
nothing of this package.

What a network computes must take the same time and memory for every record of a shape: no size of a tensor, no count
of a loop and no branch may depend on a record's values. Then a run on zeros shows what any run will take.
"""

from __future__ import annotations

import math
import re
import runpy
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


NODES = 100_000
ELEMENTS = 2**29  # of any one tensor for one record; the largest embedding tables in use have half as many
STANDARD = ("", "ai.onnx", "ai.onnx.ml")
RUNTIME = "com.microsoft"
# Operators that ONNX Runtime implements itself, on the CPU, and that its own quantiser and optimiser write.
RUNTIME_OPERATORS = _names(
    "Attention BiasGelu BiasSoftmax DequantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul "
    "EmbedLayerNormalization FastGelu FusedConv FusedGemm FusedMatMul Gelu LayerNormalization MatMulInteger16 "
    "MatMulIntegerToFloat MatMulNBits MultiHeadAttention NhwcMaxPool QAttention QEmbedLayerNormalization QGemm "
    "QLinearAdd QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul "
    "QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeLinear QuickGelu "
    "SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization TransposeMatMul"
)
# The inputs of an operator whose values decide the shape of its output, or what is computed at all.
SIZING = {
    **dict.fromkeys(("ConstantOfShape", "If", "NonZero", "Unique"), (0,)),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"), (0, 1)),
    **dict.fromkeys(("Compress", "NonMaxSuppression"), (0, 1)),
    **dict.fromkeys(("AffineGrid", "CenterCropPad", "Expand", "OneHot", "Pad", "Reshape", "SequenceAt"), (1,)),
    **dict.fromkeys(("SequenceErase", "Split", "SplitToSequence", "Squeeze", "TopK", "Unsqueeze", "Upsample"), (1,)),
    **dict.fromkeys(("Col2Im", "DFT", "STFT", "Tile"), (1, 2, 3)),
    **dict.fromkeys(("MaxUnpool", "SequenceInsert"), (2,)),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
}
MOVES = _names("Cast Flatten Identity Reshape Squeeze Transpose Unsqueeze")  # operators that keep the values
LIMITS = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
MARKUP = re.compile(r"<(?!lambda>|locals>|module>|unknown>|unnamed )[/!?]?[A-Za-z]")  # tracers write the named ones
EXPORT_HINT = "Export the model again, or fetch the file again and compare its size with the original's."
# Its neighbour by path, because in the process of its own neither of them belongs to a package.
_USUAL = runpy.run_path(str(Path(__file__).with_name("_usual_onnx.py")))
_QONNX = runpy.run_path(str(Path(__file__).with_name("_qonnx.py")))
_WORDS = runpy.run_path(str(Path(__file__).with_name("_words.py")))
quoted, listed, first_line = (_WORDS[name] for name in ("quoted", "listed", "first_line"))


class Fault(Exception):
    """Why the model is refused: sentences for the user."""


class NoOnnx(Fault):
    """There is no graph of ONNX in the file."""


class TooNew(Fault):
    """An honest file of a version that is not known here yet."""


def parse(data: bytes) -> tuple[onnx.ModelProto, bytes, list[str], onnx.ModelProto]:
    """The model in `data` in its usual form (_usual_onnx.py), the bytes that a runtime is given (`data` itself where
    nothing had to be changed), the names of states that are now zeros, and `model` before QONNX's nodes became others.

    Raises Fault unless it is well formed and needs nothing but itself and known operators.
    """
    try:
        model = onnx.load_model_from_string(data)
        nodes = len(model.graph.node)
    except (DecodeError, ValueError):
        nodes = 0
    if not nodes:
        raise NoOnnx(
            f"This is not an ONNX model, or one that was cut off ({len(data):,} bytes). It was not run. {EXPORT_HINT}"
        )
    _check_messages(model)
    _check_versions(model)
    changed, zeroed = _USUAL["usual"](model)
    try:
        before = _QONNX["written_out"](model)
    except _QONNX["Malformed"] as error:
        raise Fault(str(error)) from None
    if changed or before is not None:
        data = model.SerializeToString()
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:  # ValueError: a name that is not UTF-8
        raise Fault(f"The ONNX model is malformed and was not run: {first_line(error)}") from None
    _check_graph(model.graph, {item.name for item in _inputs(model)})
    return model, data, zeroed, model if before is None else before


def _check_versions(model: onnx.ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    opset = max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)
    if model.ir_version > onnx.IR_VERSION or opset > newest:
        raise TooNew(
            f"The ONNX model is of version {model.ir_version} of the format with opset {opset}; the installed onnx "
            f"{onnx.__version__} knows up to {onnx.IR_VERSION} and {newest}. It was not run. {older_hint()}"
        )


def older_hint() -> str:
    return (
        f"Export it again at opset {_USUAL['OPSET']} or lower (torch.onnx.export(..., opset_version=18)), or convert "
        f"it: model = onnx.version_converter.convert_version(model, {_USUAL['OPSET']}); model.ir_version = "
        f"{_USUAL['IR']}; or install a newer onnx and onnxruntime."
    )


def _check_messages(model: onnx.ModelProto) -> None:
    """Walks every message: data outside the file, foreign operators, oversized tensors, names that are no names."""
    foreign: set[str] = set()  # by their use: ONNX Runtime's optimiser declares domains of its own that nothing uses
    nodes = 0
    for message in _messages(model):
        kind = message.DESCRIPTOR.name
        if getattr(message, "ref_attr_name", "") or (kind == "TensorProto" and message.HasField("segment")):
            raise Fault(f"The ONNX model was not run: its {kind} {quoted(message.name)} is part of something absent.")
        if kind == "TensorProto":
            if message.data_location == message.EXTERNAL or message.external_data:
                raise Fault(
                    "The ONNX model keeps weights in other files (external data), by paths that it names itself. "
                    "Nothing was read from them. Save it as one file: torch.onnx.export(..., external_data=False), or "
                    "onnx.save(model, path, save_as_external_data=False)."
                )
            check_size(message.dims, "tensor", message.name)
        elif kind == "SparseTensorProto":
            check_size(message.dims, "sparse tensor", message.values.name)
        elif kind == "NodeProto":
            nodes += 1
            ours = message.domain == RUNTIME and message.op_type in RUNTIME_OPERATORS
            if message.domain not in STANDARD and not ours and not _QONNX["known"](message):
                foreign.add(f"{message.domain}::{message.op_type}")
    if foreign:
        raise Fault(
            f"The ONNX model uses operators outside the standard ({listed(foreign)}), whose code is not known. It was "
            "not run. Export it with standard operators only."
        )
    if model.functions:
        raise Fault(
            "The ONNX model defines functions of its own, which can unfold without end. It was not run. Write them out "
            "where they are used: onnx.inliner.inline_local_functions(model)."
        )
    if nodes > NODES:
        raise Fault(f"The ONNX model has {nodes:,} nodes; at most {NODES:,} are run. Export a smaller graph.")


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for item in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from _messages(item)
        elif descriptor.type == descriptor.TYPE_STRING:
            for item in [value] if isinstance(value, str | bytes) else value:
                _check_text(item, descriptor.name)


def check_size(dims: Iterable[int], what: str, name: str) -> None:
    sizes = list(dims)
    if any(size < 0 for size in sizes) or math.prod(sizes) > ELEMENTS:
        raise Fault(
            f"The ONNX model was not run: the {what} {quoted(name)} has the shape {sizes[:8]}, which no network needs "
            f"(at most {ELEMENTS:,} values are held). If the model is yours, {EXPORT_HINT[0].lower()}{EXPORT_HINT[1:]}"
        )


def _check_text(name: str | bytes, field: str) -> None:
    """Names are shown in reports and written by tools: control characters, ways out of a folder and markup are none.

    Protobuf hands over as bytes what is no UTF-8. Doc strings and metadata may hold anything else; nothing shows them.
    """
    if isinstance(name, bytes):
        raise Fault("The ONNX model is malformed: a name in it is not text (UTF-8). It was not run.")
    if field not in ("name", "input", "output", "op_type", "domain", "dim_param", "producer_name", "producer_version"):
        return
    fault = None
    if CONTROL.search(name):
        fault = "contains control characters"
    elif ".." in name and ".." in re.split(r"[/\\]", name):
        fault = "is a path that leads out of a folder"
    elif MARKUP.search(name):
        fault = "contains markup"
    if fault:
        raise Fault(
            f"The ONNX model was not run: the name {quoted(name)} in it {fault}. Rename it, or refuse the file."
        )


def _check_graph(graph: onnx.GraphProto, varying: set[str]) -> bool:
    """No shape and no branch may follow from a record's values, and nothing may repeat without a visible end.

    Args:
        varying: names of values that differ between records of one shape, those of this graph's inputs among them.

    Returns:
        Whether any output varies.
    """
    varying = set(varying)
    for node in graph.node:
        if node.op_type == "Loop":
            raise Fault(
                f"The ONNX model was not run: its operator Loop (node {quoted(node.name)}) may repeat without end. "
                "Export it unrolled, with a fixed number of steps."
            )
        inputs = [name in varying for name in node.input]
        sizing = (1,) if node.op_type.startswith("Reduce") else SIZING.get(node.op_type, ())
        if any(inputs[at] for at in sizing if at < len(inputs)):
            raise Fault(
                f"The ONNX model was not run: in its operator {node.op_type} (node {quoted(node.name)}) a record's "
                "values decide how much is computed, which a crafted record can abuse. Only networks that compute the "
                "same for every record are run."
            )
        varies = any(inputs) or "Random" in node.op_type or node.op_type in ("Bernoulli", "Dropout", "Multinomial")
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                varies |= _check_graph(inner, varying | {item.name for item in inner.input})
        if varies and node.op_type not in ("Shape", "Size"):
            varying.update(node.output)
    return any(item.name in varying for item in graph.output)


# Facts ----------------------------------------------------------------------------------------------------------------


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Those the caller gives: old files list their weights as well."""
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return [item for item in model.graph.input if item.name not in weights]


def facts(model: onnx.ModelProto, zeroed: Iterable[str] = ()) -> dict[str, Any]:
    """What the file says about itself, as JSON: the fields of model_file.Facts. `zeroed`: see `parse`."""
    nodes = model.graph.node
    operators = Counter(node.op_type for node in nodes)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {output: node for node in nodes for output in node.output}
    used: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            used.setdefault(name, []).append(node)
    inputs, outputs = [_port(item) for item in _inputs(model)], [_port(item) for item in model.graph.output]
    for port in inputs:
        readers = used.get(port["name"], [])
        if len(readers) == 1 and readers[0].op_type == "DequantizeLinear":
            port["grid"] = _grid(readers[0], constants)
        port["covers"] = _covered(port, used, constants)
    for port in outputs:
        last = made.get(port["name"], onnx.NodeProto())
        if key := {"QuantizeLinear": "grid", "DequantizeLinear": "steps"}.get(last.op_type):
            port[key] = _grid(last, constants)
        port["operator"] = _maker(port["name"], made)
    return {
        "inputs": inputs,
        "outputs": outputs,
        "operators": dict(sorted(operators.items())),
        "last_operator": outputs[0]["operator"] if outputs else "",
        "quantisation": _quantisation(operators),
        "opset": max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=None),
        "producer": f"{model.producer_name} {model.producer_version}".strip()[:100],
        "zeroed": list(zeroed),
    }


def _maker(name: str, made: dict[str, onnx.NodeProto]) -> str:
    """The operator that a value comes from, before reshapes and quantisers."""
    passed = {"Identity", "Flatten", "Reshape", "Squeeze", "Cast", "QuantizeLinear", "DequantizeLinear", "ZipMap"}
    passed.update(_QONNX["OPERATORS"])
    last = made.get(name)
    while last is not None and last.op_type in passed and last.input:
        last = made.get(last.input[0])
    return last.op_type if last is not None else ""


def _port(item: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = item.type.tensor_type
    try:
        word = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    except ValueError:
        raise Fault(f"The ONNX model is malformed: {quoted(item.name)} is of no known type. {EXPORT_HINT}") from None
    shape = [size.dim_value if size.HasField("dim_value") else size.dim_param or "?" for size in tensor.shape.dim]
    if item.type.sequence_type.elem_type.HasField("map_type"):  # one map from class to score for each record
        word = "maps"
    return {
        "name": item.name,
        "type": {"float": "float32", "double": "float64"}.get(word, word),
        "shape": shape,
        "grid": None,
    }


def _grid(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> list[float] | None:
    """Scale and zero point of a (de)quantiser with one grid for all values."""
    values = [onnx.numpy_helper.to_array(constants[name]) for name in node.input[1:] if name in constants]
    if not values or any(value.size != 1 for value in values):
        return None
    return [float(values[0].item()), float(values[1].item()) if len(values) > 1 else 0.0]


def _covered(
    port: dict[str, Any], used: dict[str, list[onnx.NodeProto]], constants: dict[str, onnx.TensorProto]
) -> list[float] | None:
    """The range of the quantiser that an input is, or goes into first; None where there is none of one grid."""
    grid, word = port["grid"], port["type"]
    if word not in LIMITS:
        readers = used.get(port["name"], [])
        while len(readers) == 1 and readers[0].op_type in MOVES and readers[0].output:
            readers = used.get(readers[0].output[0], [])
        if (quantiser := next(filter(_QONNX["known"], readers), None)) is not None:
            return _QONNX["covered"](quantiser, constants)  # type: ignore[no-any-return]  # loaded by its path
        node = next((node for node in readers if node.op_type == "QuantizeLinear" and len(node.input) > 2), None)
        grid = None if node is None else _grid(node, constants)
        zero = None if node is None else constants.get(node.input[2])
        word = "" if zero is None else onnx.TensorProto.DataType.Name(zero.data_type).lower()
    if grid is None or word not in LIMITS:
        return None
    return [(limit - grid[1]) * grid[0] for limit in LIMITS[word]]


def _quantisation(operators: Counter[str]) -> list[str]:
    words = []
    if "DynamicQuantizeLinear" in operators or any(name.startswith("DynamicQuantize") for name in operators):
        words.append("dynamic: activations are quantised anew for each batch")
    if any(name.startswith(("QLinear", "QGemm", "QAttention")) for name in operators):
        words.append("static, as integer operators (QOperator)")
    elif "QuantizeLinear" in operators:
        words.append("static, as QuantizeLinear and DequantizeLinear around float operators (QDQ)")
    elif "DequantizeLinear" in operators or "MatMulNBits" in operators:
        words.append("weights only")
    if _QONNX["OPERATORS"].keys() & operators.keys():
        words.append("by the quantisers of QONNX, around float operators")
    return words
