"""The twin's operators against ONNX Runtime's, on graphs of a few nodes; and what is refused."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from crushproof.targets.errors import InputError, NotApplicable, UnsafeInput
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.twin.twin import Twin, twin_of

Gradient = Callable[[nn.Module, Tensor], Tensor]


def graph(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Any],
    shape: list[Any],
    *,
    opset: int = 17,
    rank: int | None = None,
    out: int = TensorProto.FLOAT,
    kind: int = TensorProto.FLOAT,
) -> bytes:
    """A model from "input" [batch, *shape] to "logits"."""
    initializers = [
        item if isinstance(item, onnx.TensorProto) else numpy_helper.from_array(np.asarray(item), name)
        for name, item in constants.items()
    ]
    inputs = [helper.make_tensor_value_info("input", kind, ["batch", *shape])]
    axes = [f"axis{at}" for at in range(len(shape) + 1 if rank is None else rank)]
    outputs = [helper.make_tensor_value_info("logits", out, axes)]
    body = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(body, opset_imports=opsets, ir_version=10).SerializeToString())


def code_nodes(kind: str) -> list[onnx.NodeProto]:
    """Rounds to codes and back; or to codes that something else uses too."""
    grid = ["scale", "zero"]
    nodes = [helper.make_node("QuantizeLinear", ["input", *grid], ["codes"], "quantise")]
    if kind == "shared":
        nodes.append(helper.make_node("Cast", ["codes"], ["also"], "also", to=TensorProto.FLOAT))
        nodes.append(helper.make_node("DequantizeLinear", ["codes", *grid], ["back"], "back"))
        return [*nodes, helper.make_node("Add", ["back", "also"], ["logits"], "sum")]
    return [*nodes, helper.make_node("DequantizeLinear", ["codes", *grid], ["logits"], "back")]


@settings(max_examples=30)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4),
    st.sampled_from([0.1, 0.25, 1 / 127.5, 3.7]),
    st.integers(0, 255),
    st.sampled_from(["pair", "shared"]),
)
def test_rounding_is_half_to_even_and_saturates_as_in_onnx_runtime(
    values: list[float], scale: float, zero: int, kind: str
) -> None:
    constants = {"scale": np.float32(scale), "zero": np.uint8(zero)}
    model = graph(code_nodes(kind), constants, [4])
    halves = (torch.arange(-8, 8).reshape(4, 4) + 0.5) * scale  # ties
    x = torch.cat([torch.tensor([values]), halves]).requires_grad_()
    answer = twin_of(model)(x)
    assert torch.equal(answer, OnnxTarget(model).logits(x))
    (slope,) = torch.autograd.grad(answer.sum(), x)
    codes = (x / scale).round() + zero
    inside = ((codes >= 0) & (codes <= 255)).float()
    assert torch.allclose(slope, inside * (1 if kind == "pair" else 1 + 1 / np.float32(scale)))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("operator", ["QLinearConv", "ConvInteger"])
def test_sums_of_integers_beyond_24_bits_are_exact(operator: str, groups: int) -> None:
    """Against int64 arithmetic in numpy: 800 and 1,600 products of 255 x 127, where float32 loses the last bits."""
    generator = np.random.default_rng(0)
    codes = generator.integers(100, 128, (4, 1600 // groups, 1, 1), np.int8)
    bias = generator.integers(-(2**24), 2**24, 4, np.int32)
    x = generator.integers(200, 256, (3, 1600, 1, 1)).astype(np.float32)
    sums = np.concatenate(
        [
            x[:, part * 1600 // groups : (part + 1) * 1600 // groups, 0, 0].astype(np.int64)
            @ codes[part * 4 // groups : (part + 1) * 4 // groups, :, 0, 0].astype(np.int64).T
            for part in range(groups)
        ],
        1,
    )
    one, zero = np.float32(1), np.uint8(0)
    constants: dict[str, Any] = {"one": one, "zero": zero, "weight": codes, "bias": bias, "low": np.int8(0)}
    quantise = helper.make_node("QuantizeLinear", ["input", "one", "zero"], ["codes"], "quantise")
    if operator == "ConvInteger":
        nodes = [
            quantise,
            helper.make_node("ConvInteger", ["codes", "weight"], ["sums"], "convolve", group=groups),
            helper.make_node("Cast", ["sums"], ["logits"], "cast", to=TensorProto.FLOAT),
        ]
        expected = sums.astype(np.float32)
    else:
        step = np.float32(2**18)
        constants |= {"step": step, "nil": np.uint8(0)}
        inputs = ["codes", "one", "zero", "weight", "one", "low", "step", "nil", "bias"]
        nodes = [
            quantise,
            helper.make_node("QLinearConv", inputs, ["rounded"], "convolve", group=groups),
            helper.make_node("DequantizeLinear", ["rounded", "step", "nil"], ["logits"], "back"),
        ]
        expected = (np.clip(np.rint((sums + bias) / step), 0, 255) * step).astype(np.float32)
    answer = twin_of(graph(nodes, constants, [1600, 1, 1]))(torch.from_numpy(x))[:, :, 0, 0]
    assert np.array_equal(answer.detach().numpy(), expected)


def test_weights_in_blocks_of_4_bits_and_in_half_precision_are_read() -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(-8, 8, (8, 3))
    scales = generator.random((4, 3), np.float32)
    halves = (generator.integers(-64, 64, (3, 5)) / 16).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["first"], "unpack", axis=0, block_size=2),
        helper.make_node("MatMul", ["input", "first"], ["hidden"], "first product"),
        helper.make_node("Cast", ["second"], ["second32"], "widen", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["hidden", "second32"], ["logits"], "second product"),
    ]
    constants = {
        "codes": helper.make_tensor("codes", TensorProto.INT4, [8, 3], codes.flatten()),
        "scales": scales,
        "second": helper.make_tensor("second", TensorProto.BFLOAT16, [3, 5], halves.flatten()),
    }
    twin = twin_of(graph(nodes, constants, [8], opset=21))
    x = torch.randn(6, 8)
    weight = codes * np.repeat(scales, 2, 0)
    assert np.allclose(twin(x).detach().numpy(), x.numpy() @ weight @ halves, atol=1e-4)
    assert [type(layer) for layer in twin.children()] == [nn.Linear, nn.Linear]
    assert set(dict(twin.named_children())) == {"first_product", "second_product"}


def binarising(kind: str, x: str, y: str) -> list[onnx.NodeProto]:
    """x >= 0 as +1 and -1, in the ways that exporters write it."""
    if kind == "Sign":
        return [helper.make_node("Sign", [x], [y], y)]
    if kind == "Greater":
        return [
            helper.make_node("Greater", [x, "nil"], [f"{y}above"], f"{y}above"),
            helper.make_node("Where", [f"{y}above", "one", "minus"], [y], y),
        ]
    if kind == "Less":
        return [
            helper.make_node("Less", [x, "nil"], [f"{y}below"], f"{y}below"),
            helper.make_node("Not", [f"{y}below"], [f"{y}above"], f"{y}above"),
            helper.make_node("Where", [f"{y}above", "one", "minus"], [y], y),
        ]
    return [
        helper.make_node("GreaterOrEqual", [x, "nil"], [f"{y}above"], f"{y}above"),
        helper.make_node("Cast", [f"{y}above"], [f"{y}bit"], f"{y}bit", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{y}bit", "two"], [f"{y}twice"], f"{y}twice"),
        helper.make_node("Add", [f"{y}twice", "minus"], [y], y),
    ]


@pytest.mark.parametrize("kind", ["Sign", "Greater", "Less", "Cast"])
def test_binarised_networks_keep_their_labels_and_get_gradients(kind: str, gradient: Gradient) -> None:
    generator = np.random.default_rng(0)
    constants: dict[str, Any] = {"nil": np.float32(0), "one": np.float32(1), "minus": np.float32(-1)}
    constants |= {"two": np.float32(2), "quarter": np.float32(0.25)}
    sizes = {"w1": (12, 32), "w2": (32, 32), "w3": (32, 5)}
    constants |= {name: generator.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    nodes = [helper.make_node("Sign", [name], [f"{name}sign"], f"{name}sign") for name in ("w1", "w2")]
    nodes += [
        helper.make_node("MatMul", ["input", "w1sign"], ["a"], "a"),
        helper.make_node("Mul", ["a", "quarter"], ["a4"], "a4"),
        *binarising(kind, "a4", "b"),
        helper.make_node("MatMul", ["b", "w2sign"], ["c"], "c"),
        helper.make_node("Mul", ["c", "quarter"], ["c4"], "c4"),
        *binarising(kind, "c4", "d"),
        helper.make_node("MatMul", ["d", "w3"], ["logits"], "e"),
    ]
    model = graph(nodes, constants, [12])
    twin, x = twin_of(model), torch.randn(300, 12)
    deployed = OnnxTarget(model).logits(x)
    assert torch.equal(twin(x).argmax(1), deployed.argmax(1))
    assert torch.allclose(twin(x), deployed, atol=1e-4)
    assert twin.rounds
    slope = gradient(twin, x)
    assert slope.isfinite().all()
    assert (slope.abs().sum(1) > 0).float().mean() > 0.95
    hard = copy.deepcopy(twin)
    hard.straight_through = False
    assert not gradient(hard, x).any()  # those that its rounding really has
    best = deployed.argmax(1, keepdim=True)  # uphill for the twin is uphill for the file
    ends = [OnnxTarget(model).logits(x + step * slope.sign()) for step in (0.3, -0.3)]
    up, down = (logits.gather(1, best) - logits.mean(1, keepdim=True) for logits in ends)
    assert (up - down).mean() > 1


def test_a_comparison_that_chooses_between_branches_keeps_the_branches_gradient() -> None:
    nodes = [
        helper.make_node("Greater", ["input", "nil"], ["above"], "above"),
        helper.make_node("Mul", ["input", "tenth"], ["small"], "small"),
        helper.make_node("Where", ["above", "input", "small"], ["logits"], "choose"),
    ]
    twin = twin_of(graph(nodes, {"nil": np.float32(0), "tenth": np.float32(0.1)}, [3]))
    x = torch.tensor([[-0.5, 0.2, 3.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(twin(x).sum(), x)
    assert torch.allclose(slope, torch.tensor([[0.1, 1.0, 1.0]]))
    assert not twin.rounds


def test_a_fixed_batch_is_no_limit() -> None:
    """A file that flattens to [1, -1] mixes the records of a larger batch: it is then run record by record."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((12, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["input", "flat"], ["row"], "row"),
        helper.make_node("MatMul", ["row", "weight"], ["logits"], "product"),
    ]
    x = torch.randn(7, 3, 4)
    for flat in ([1, -1], [-1, 12]):
        content = onnx.load_model_from_string(
            graph(nodes, {"flat": np.array(flat, np.int64), "weight": weight}, [3, 4], rank=2)
        )
        content.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        twin = twin_of(content.SerializeToString())
        assert (twin.batch is None) == (flat[0] == -1)
        assert np.allclose(twin(x).detach().numpy(), x.numpy().reshape(7, 12) @ weight, atol=1e-5)


def test_files_that_take_and_answer_integers_are_read_as_onnx_runtime_reads_them(gradient: Gradient) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["input"], ["wide"], "widen", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["wide", "weight"], ["product"], "product"),
        helper.make_node("QuantizeLinear", ["product", "scale", "zero"], ["logits"], "answer"),
    ]
    constants = {"weight": weight, "scale": np.float32(2), "zero": np.uint8(128)}
    model = graph(nodes, constants, [4], kind=TensorProto.UINT8, out=TensorProto.UINT8)
    x = torch.tensor([[1.4, 300.0, -2.0, 7.0], [0.5, 1.5, 9.0, 250.2]])
    twin = twin_of(model)
    assert torch.equal(twin(x), OnnxTarget(model).logits(x))
    assert gradient(twin, x[1:]).any()


def test_what_the_twin_cannot_follow_is_named_with_its_node_and_opset() -> None:
    odd = helper.make_node("Det", ["input"], ["logits"], "the odd one")
    with pytest.raises(NotApplicable, match=r"Det \(node 'the odd one', opset 17\)"):
        twin_of(graph([odd], {}, [3, 3]))
    branch = helper.make_graph(
        [helper.make_node("Neg", ["input"], ["out"])], "branch", [], [helper.make_tensor_value_info("out", 1, None)]
    )
    choice = helper.make_node("If", ["yes"], ["logits"], "a choice", then_branch=branch, else_branch=branch)
    with pytest.raises(NotApplicable, match="'a choice'"):
        twin_of(graph([choice], {"yes": np.array(True)}, [3]))
    sizes = helper.make_node("MaxPool", ["input"], ["logits", "places"], "pool", kernel_shape=[2, 2])
    use = helper.make_node("Cast", ["places"], ["unused"], "use", to=1)
    twin_of(graph([sizes, use], {}, [1, 4, 4]))
    with pytest.raises(NotApplicable, match="opset 6"):
        twin_of(graph([helper.make_node("Relu", ["input"], ["logits"])], {}, [3], opset=6))
    with pytest.raises(InputError, match="records of shape"):
        twin_of(graph([helper.make_node("Relu", ["input"], ["logits"], "relu")], {}, [3]))(torch.zeros(2, 4))


BOMBS = {
    "expand": [helper.make_node("Expand", ["one", "huge"], ["big"], "big")],
    "fill": [helper.make_node("ConstantOfShape", ["huge"], ["big"], "big")],
    "tile": [helper.make_node("Tile", ["one", "huge"], ["big"], "big")],
    "range": [helper.make_node("Range", ["from", "to", "step"], ["big"], "big")],
    "pad": [helper.make_node("Pad", ["one", "wide"], ["big"], "big")],
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_file_that_asks_for_absurd_sizes_is_refused(kind: str) -> None:
    use = [
        helper.make_node("ReduceMax", ["big"], ["top"], "top", keepdims=0),
        helper.make_node("Cast", ["top"], ["float"], "float", to=1),
        helper.make_node("Add", ["input", "float"], ["logits"], "sum"),
    ]
    constants = {
        "one": np.ones((1, 1), np.float32),
        "huge": np.array([2**20, 2**20], np.int64),
        "wide": np.array([0, 0, 2**20, 2**20], np.int64),
        "from": np.int64(0),
        "to": np.int64(2**40),
        "step": np.int64(1),
    }
    with pytest.raises(UnsafeInput):
        twin_of(graph([*BOMBS[kind], *use], constants, [3]))


def test_a_file_cut_short_is_refused_and_a_deep_one_is_followed() -> None:
    names = ["input", *(f"v{at}" for at in range(3000)), "logits"]
    nodes = [helper.make_node("Neg", [before], [after], after) for before, after in itertools.pairwise(names)]
    model = graph(nodes, {}, [3])
    with pytest.raises(UnsafeInput):
        twin_of(model[: len(model) // 2])
    twin, x = twin_of(model), torch.randn(2, 3, requires_grad=True)
    assert isinstance(copy.deepcopy(twin), Twin)
    assert torch.equal(twin(x), -x)
