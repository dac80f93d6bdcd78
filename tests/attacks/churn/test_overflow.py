"""Overflow of 16 bits in default kernels: found where sums are planted, none where 7-bit weights leave room."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from crushproof.attacks.churn.overflow import Overflow, overflow_run
from crushproof.targets.data.records import Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.runtimes.exact_products import overflows
from crushproof.targets.runtimes.onnx import OnnxTarget

X = torch.from_numpy(np.random.default_rng(1).uniform(0.7, 1, (60, 64)).astype(np.float32))


def file(most: int) -> bytes:
    """64 values to 2 by weights of 0 .. most in signed bytes, the first class by the largest; 0: in floats."""
    codes = np.zeros((64, 2), np.int8)
    codes[:32, 0], codes[:, 1] = most, 15 * most // 32
    tensors: dict[str, Any] = {"codes": codes, "scale": np.float32(0.01), "step": np.float32(1 / 255)}
    tensors |= {"zero": np.uint8(0), "point": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "point"], ["w"]),
        helper.make_node("MatMul", ["values", "w"], ["y"]),
    ]
    if not most:
        nodes, tensors = [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((64, 2), np.float32)}
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2]),
    ]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "product", ports[:1], ports[1:], held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return bytes(made.SerializeToString())


def changed(shipped: bytes) -> np.ndarray:
    records = Records(X, torch.zeros(len(X), dtype=torch.long))
    case: Any = SimpleNamespace(
        deployed=OnnxTarget(shipped), shipped=shipped, assumptions=None, evaluation=records, ids=np.arange(len(X))
    )
    arrays = Overflow().run(case, seed=0).arrays
    return arrays["exact"] != arrays["default"]


def test_decisions_that_overflow_changes_are_counted() -> None:
    with pytest.raises(NotApplicable, match="no unsigned by signed"):
        changed(file(0))
    if not overflows():
        with pytest.raises(NotApplicable, match="VNNI"):
            changed(file(127))
        return
    assert changed(file(127)).mean() > 0.9
    assert not changed(file(63)).any()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    answer = onnxruntime.InferenceSession(file(127), options, providers=["CPUExecutionProvider"])
    cured = np.asarray(answer.run(None, {"x": X.numpy()})[0]).argmax(1)
    np.testing.assert_array_equal(cured, OnnxTarget(file(127)).logits(X).argmax(1).numpy())


def test_it_is_for_models_that_may_hold_bytes() -> None:
    scope: Any = SimpleNamespace(data=SimpleNamespace(evaluation_ids=range(10)))

    def runs(dense: bool, bits: int | None, *, declared: bool = True) -> int:
        recipe = SimpleNamespace(bits=bits) if declared else None
        model: Any = SimpleNamespace(is_dense=dense, recipe=recipe)
        return len(overflow_run(model, scope))

    assert [runs(False, bits) for bits in (8, 4, 16, None)] == [1, 1, 0, 0]
    assert runs(False, None, declared=False) == 1
    assert runs(True, None, declared=False) == 0
