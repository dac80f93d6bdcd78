"""Products of bytes: unsigned weights leave the function as it is, and the runtime's answers are exact here."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from crushproof.targets.runtimes.exact_products import unsigned_weights
from crushproof.targets.runtimes.onnx import OnnxTarget

CODES = np.random.default_rng(0).integers(-128, 128, (64, 5)).astype(np.int8)
SCALES = np.linspace(0.001, 0.003, 5, dtype=np.float32)


def model(form: str) -> onnx.ModelProto:
    """64 values to 5, in 8 bits."""
    tensors = {"codes": CODES, "scales": SCALES, "step": np.float32(1 / 255), "zero": np.uint8(3)}
    if form == "measured":
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("MatMulInteger", ["q", "codes", "z"], ["sums"]),
            helper.make_node("Cast", ["sums"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["scales", "s"], ["both"]),
            helper.make_node("Mul", ["wide", "both"], ["y"]),
        ]
    else:
        tensors |= {"points": np.zeros(5, np.int8)} if form == "points" else {}
        tensors |= {"codes": np.ascontiguousarray(CODES.T)} if form == "turned" else {}
        weights = ["codes", "scales", *(["points"] if form == "points" else [])]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["values"]),
            helper.make_node("DequantizeLinear", weights, ["w"], axis=0 if form == "turned" else 1),
            *([helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0])] if form == "turned" else []),
            helper.make_node("MatMul", ["values", "turned" if form == "turned" else "w"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.parametrize("form", ["points", "no points", "turned", "measured"])
def test_unsigned_weights_compute_the_same_and_the_runtime_computes_it_exactly(form: str) -> None:
    made, x = model(form), np.random.default_rng(1).uniform(0.7, 1, (20, 64)).astype(np.float32)
    (expected,) = ReferenceEvaluator(made).run(None, {"x": x[:1]})
    changed = onnx.ModelProto()
    changed.CopyFrom(made)
    assert unsigned_weights(changed)
    onnx.checker.check_model(changed)
    np.testing.assert_allclose(ReferenceEvaluator(changed).run(None, {"x": x[:1]})[0], expected, rtol=1e-5)
    answered = OnnxTarget(made.SerializeToString()).logits(torch.from_numpy(x)).numpy()[:1]
    np.testing.assert_allclose(answered, expected, rtol=1e-4, atol=1e-4)  # inputs near 1: sums that overflow 16 bits


def test_what_multiplies_no_unsigned_bytes_is_left() -> None:
    made = model("points")
    made.graph.initializer[3].CopyFrom(numpy_helper.from_array(np.int8(3), "zero"))
    assert not unsigned_weights(made)


def test_signed_by_signed_codes_are_left_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime's `quantize_static` writes them by default: no kernel multiplies signed by unsigned codes."""
    monkeypatch.setattr("crushproof.targets.runtimes.exact_products.overflows", lambda: True)
    scale, zero = np.float32(1 / 127), np.int8(0)
    tensors = {"x_scale": scale, "x_zero": zero, "codes": CODES, "scale": np.float32(0.01), "zero": zero}
    tensors |= {"y_scale": np.float32(0.5), "y_zero": zero}
    product = ["q", "x_scale", "x_zero", "codes", "scale", "zero", "y_scale", "y_zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["q"]),
        helper.make_node("QLinearMatMul", product, ["sums"]),
        helper.make_node("DequantizeLinear", ["sums", "y_scale", "y_zero"], ["y"]),
    ]
    made = model("points")
    del made.graph.node[:], made.graph.initializer[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(one), name) for name, one in tensors.items())
    x = np.random.default_rng(1).uniform(0.7, 1, (20, 64)).astype(np.float32)
    (expected,) = ReferenceEvaluator(made).run(None, {"x": x})
    assert not unsigned_weights(made)
    answered = OnnxTarget(made.SerializeToString()).logits(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(answered, expected, atol=0.51)  # a step of the output where a sum lies between two
