"""A model's file with another last layer: what a user ships who takes a compressed model to another task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...targets.errors import NotApplicable, UnsafeInput
from ...targets.onnx_graph.constants import Graph
from ...targets.onnx_graph.live import only_live
from ...targets.untrusted.model_file import CheckedOnnx, check_onnx

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, np.dtype[np.float32]]

# Products by a weight: what they take, in real numbers, is the first argument; or codes, whose scale and zero follow.
FLOATS = ("Gemm", "MatMul", "Conv", "MatMulNBits", "DynamicQuantizeMatMul")
CODES = ("QLinearConv", "QLinearMatMul", "QGemm")
MEASURED = ("MatMulInteger", "ConvInteger")  # codes of a range that is measured in each pass
OUTPUT = "transferred"
OPSET = 13  # from which on all of what is added means what is meant


def opened(shipped: bytes) -> CheckedOnnx:
    """Raises NotApplicable: no ONNX file."""
    if not shipped:
        raise NotApplicable("not applicable: the shipped bytes are not at hand")
    try:
        return check_onnx(shipped)
    except UnsafeInput:
        raise NotApplicable(
            "not applicable: the features of a model are taken from ONNX files, and this file is none"
        ) from None


def with_features(file: CheckedOnnx) -> bytes:
    """The file, answering with what enters its last product by a weight, as float32 [n, features].

    Raises:
        NotApplicable: it has no such product.
    """
    model, features = _cut(file)
    return _ending_in(model, features)


def with_head(file: CheckedOnnx, weight: Array, bias: Array, floats: bool = False) -> bytes:
    """The file with a dense layer in the place of its last product: float32 [n, classes] = features @ weight.T + bias.

    Args:
        weight: [classes, features]; bias: [classes].
        floats: whether weights that are stored as codes are written as the numbers they stand for. Such a file is for
            its twin: ONNX Runtime's optimiser rounds float weights whose input is rounded.

    Raises:
        NotApplicable: as `with_features`.
    """
    from onnx import helper, numpy_helper

    model, features = _cut(file)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(one, np.float32), f"{OUTPUT}/{name}")
        for name, one in (("weight", weight), ("bias", bias))
    )
    names = [features, f"{OUTPUT}/weight", f"{OUTPUT}/bias"]
    model.graph.node.append(helper.make_node("Gemm", names, [f"{OUTPUT}/logits"], transB=1))
    if floats:
        _in_floats(model)
    return _ending_in(model, f"{OUTPUT}/logits")


def _cut(file: CheckedOnnx) -> tuple[onnx.ModelProto, str]:
    """A copy of the graph, and the name of its features, which are added to it: float32 [n, features]."""
    from onnx import TensorProto, helper

    model = file.copy()
    graph = Graph(model)
    if graph.opsets[""] < OPSET:
        raise NotApplicable(
            f"not applicable: the file is of opset {graph.opsets['']}, and one from {OPSET} on is needed"
        )
    known = {*FLOATS, *CODES, *MEASURED}
    last = next((node for node in reversed(model.graph.node) if node.op_type in known and _weighted(node, graph)), None)
    if last is None:
        raise NotApplicable(
            "not applicable: the file holds no product by a weight, so that it has no features before it"
        )
    name, added = last.input[0], []
    if last.op_type in CODES:
        added.append(helper.make_node("DequantizeLinear", list(last.input[:3]), [f"{OUTPUT}/real"]))
        name = f"{OUTPUT}/real"
    elif last.op_type in MEASURED:
        name = graph.producers[name].input[0] if name in graph.producers else name
    added += [
        helper.make_node("Cast", [name], [f"{OUTPUT}/float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", [f"{OUTPUT}/float"], [f"{OUTPUT}/features"], axis=1),
    ]
    model.graph.node.extend(added)
    return model, f"{OUTPUT}/features"


def _weighted(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether its first argument follows from the input and the second from the file."""
    place = 3 if node.op_type in CODES else 1
    return len(node.input) > place and node.input[0] in graph.varying and node.input[place] not in graph.varying


def _in_floats(model: onnx.ModelProto) -> None:
    """Each weight that is made of codes as a tensor of floats, in place."""
    from onnx import numpy_helper

    graph = Graph(model)
    for node in list(model.graph.node):
        if node.op_type != "DequantizeLinear" or node.input[0] in graph.varying:
            continue
        found = graph.constant(node.output[0])
        if found is not None:
            model.graph.initializer.append(numpy_helper.from_array(found.values.astype(np.float32), node.output[0]))
            model.graph.node.remove(node)


def _ending_in(model: onnx.ModelProto, name: str) -> bytes:
    """The graph with that one output, without what it does not need."""
    from onnx import TensorProto, helper

    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "values"]))
    return bytes(only_live(model).SerializeToString())
