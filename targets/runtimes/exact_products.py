"""Products of 8-bit integers that are exact on every processor.

ONNX Runtime multiplies unsigned activations by signed weights. A processor without dot products of 8-bit integers
(VNNI) adds two of their products in 16 bits, which overflow: an MLP on digits in 8 bits answers 5 % of records
otherwise there than on processors that have them. Unsigned weights are multiplied exactly everywhere.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..untrusted.model_file import CheckedOnnx

# Operators that multiply codes: where weights, their zero point and their scale stand among the inputs.
PRODUCTS: dict[str, tuple[tuple[int, int, int | None], ...]] = {
    "QLinearConv": ((3, 5, 4),),
    "QLinearMatMul": ((3, 5, 4),),
    "QGemm": ((3, 5, 4),),
    "ConvInteger": ((1, 3, None),),
    "MatMulInteger": ((1, 3, None),),
    "MatMulIntegerToFloat": ((1, 5, 3),),
    "DynamicQuantizeMatMul": ((1, 3, 2),),
    "DynamicQuantizeLSTM": ((1, 9, 8), (2, 11, 10)),
    "QAttention": ((1, 7, 4),),
}
ACTIVATIONS = {"QLinearConv": 2, "QLinearMatMul": 2, "QGemm": 2}  # where the zero point of what is multiplied stands
FLOATS = ("Conv", "Gemm", "MatMul")  # of which the runtime makes such an operator, between dequantised inputs


def exact(checked: CheckedOnnx) -> bytes:
    """The model's bytes for ONNX Runtime; where this processor's products overflow, with unsigned weights."""
    signed = any(one.data_type == TensorProto.INT8 for one in checked.model.graph.initializer)
    if not signed or not overflows():
        return checked.usable
    model = checked.copy()
    return model.SerializeToString() if unsigned_weights(model) else checked.usable


@cache
def overflows() -> bool:
    """Whether ONNX Runtime's products of unsigned by signed bytes overflow on this processor, as it is asked."""
    import onnxruntime

    a, b = np.full((1, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])],
        [numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return bool((session.run(None, {"a": a})[0] != 255 * 127 * 64).any())


def unsigned_weights(model: onnx.ModelProto) -> bool:
    """Writes signed weights of such products as unsigned ones, 128 more as their zero points are, in place.

    The function stays the same. Returns whether there were any.
    """
    graph = model.graph
    weights = {one.name: one for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    added: dict[str, TensorProto] = {}

    def signed(name: str) -> bool:
        return name in weights and weights[name].data_type == TensorProto.INT8

    def lifted(name: str, like: str | None) -> str:
        """The name of the tensor plus 128; of no zero point, 128 for each scale in `like`, or once."""
        new = f"{name or like or ''}/unsigned"
        while new in weights or new in makers:
            new += "/unsigned"
        if new not in added:
            zeros = np.zeros(() if like is None else tuple(weights[like].dims), np.int8)
            codes = numpy_helper.to_array(weights[name]) if name else zeros
            added[new] = numpy_helper.from_array((codes.astype(np.int16) + 128).astype(np.uint8), new)
        return new

    def change(node: onnx.NodeProto, codes: int, zero: int, scale: str | None) -> None:
        while len(node.input) <= zero:
            node.input.append("")
        point = node.input[zero]
        if (point and not signed(point)) or (not point and scale is not None and scale not in weights):
            return
        node.input[codes] = lifted(node.input[codes], None)
        node.input[zero] = lifted(point, scale)

    for node in graph.node:
        if node.op_type in PRODUCTS:
            at = ACTIVATIONS.get(node.op_type)
            if at is not None and signed(node.input[at]):
                continue  # signed by signed: exact everywhere, and by unsigned ones the runtime cannot multiply them
            for codes, zero, scale in PRODUCTS[node.op_type]:
                if len(node.input) > codes and signed(node.input[codes]):
                    change(node, codes, zero, None if scale is None else node.input[scale])
        elif node.op_type in FLOATS and len(node.input) > 1:
            activations, own = makers.get(node.input[0]), makers.get(node.input[1])
            while own is not None and own.op_type == "Transpose":
                own = makers.get(own.input[0])
            if activations is None or own is None or {activations.op_type, own.op_type} != {"DequantizeLinear"}:
                continue
            point = activations.input[2] if len(activations.input) > 2 else ""
            measured = point in makers and makers[point].op_type == "DynamicQuantizeLinear"
            unsigned = measured or (point in weights and weights[point].data_type == TensorProto.UINT8)
            if unsigned and signed(own.input[0]):
                change(own, 0, 2, own.input[1])
    graph.initializer.extend(added.values())
    return bool(added)
