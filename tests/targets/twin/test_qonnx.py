"""QONNX: runtime and twin against the definitions in plain numpy; weights as codes; what has no meaning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from model_files import exported
from onnx import TensorProto, helper, numpy_helper

from crushproof.compression.footprint.footprint import footprint_of_file
from crushproof.targets.errors import UnsafeInput
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.twin.twin import twin_of
from crushproof.targets.untrusted import _read_onnx
from crushproof.targets.untrusted.model_file import check_onnx

QONNX, BREVITAS, FINN = "qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general"
Node = onnx.NodeProto


def model(nodes: list[Node], constants: dict[str, Any], *, opset: int = 17, features: int = 4) -> bytes:
    """From "x" [batch, features] to "y"; the domains of QONNX are not imported, as in Brevitas' older files."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", features])]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])]
    graph = helper.make_graph(nodes, "graph", given, made, tensors)
    opsets = [helper.make_opsetid("", opset)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def node(kind: str, inputs: str, output: str = "y", domain: str = BREVITAS, **attributes: Any) -> Node:
    return helper.make_node(kind, inputs.split(), [output], name=f"{kind} {output}", domain=domain, **attributes)


# The definitions, step by step ----------------------------------------------------------------------------------------


def rounded(value: float, mode: str) -> float:
    sign, magnitude = np.sign(value), abs(value)
    if mode in ("ROUND", "HALF_EVEN"):
        return float(round(value))  # Python's own is half to even
    return {
        "CEIL": lambda: np.ceil(value),
        "FLOOR": lambda: np.floor(value),
        "UP": lambda: sign * np.ceil(magnitude),
        "DOWN": lambda: sign * np.floor(magnitude),
        "ROUND_TO_ZERO": lambda: sign * np.floor(magnitude),
        "HALF_UP": lambda: sign * np.floor(np.float32(magnitude) + np.float32(0.5)),  # as the reference adds: float32
        "HALF_DOWN": lambda: sign * np.ceil(np.float32(magnitude) - np.float32(0.5)),
    }[mode]()


def each(values: np.ndarray, mode: str) -> np.ndarray:
    return np.vectorize(lambda one: rounded(float(one), mode), otypes=[np.float32])(values)


def ends(signed: int, narrow: int, bits: int) -> tuple[float, float]:
    if signed:
        return -(2.0 ** (bits - 1)) + narrow, 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1 - narrow


def quant(x: np.ndarray, scale: Any, zero: Any, bits: int, signed: int, narrow: int, mode: str) -> np.ndarray:
    scale, zero = np.float32(scale), np.float32(zero)
    codes = x / scale + zero
    if signed and bits == 1:
        return (np.where(codes >= 0, np.float32(1), np.float32(-1)) - zero) * scale
    return (each(codes.clip(*ends(signed, narrow, bits)), mode) - zero) * scale


MODES = ("ROUND", "half_even", "CEIL", "floor", "UP", "DOWN", "ROUND_TO_ZERO", "HALF_UP", "HALF_DOWN")
GRIDS = [  # scale, zero point, bits
    (0.25, 0.0, 4),
    (0.1, 1.0, 2),
    ([0.5, 0.25, 0.125, 0.3], [0.0, 1.0, 3.0, 0.5], 3),
    (1.0, 0.0, 1),
    (3.0, 0.0, 32),
]
CASES = [(*grid, 1, 0, mode) for grid in GRIDS for mode in MODES]
CASES += [(*grid, *ends, "ROUND") for grid in GRIDS for ends in ((0, 0), (0, 1), (1, 1))]


def values() -> np.ndarray:
    """Halves of the grids, what lies next to them, both zeros, and numbers at random."""
    halves = (np.arange(-40, 40) / 2 * 0.25).astype(np.float32)
    random = np.random.default_rng(0).normal(size=160).astype(np.float32) * 3
    near = np.concatenate([halves, np.nextafter(halves, 9), np.nextafter(halves, -9), random, np.float32([0.0, -0.0])])
    return near[: len(near) // 4 * 4].reshape(-1, 4)


@pytest.mark.parametrize("opset", [9, 17])
def test_runtime_and_twin_round_to_the_bit_as_the_definition_says(opset: int) -> None:
    nodes, constants = [], {}
    for at, (scale, zero, bits, signed, narrow, mode) in enumerate(CASES):
        constants |= {f"s{at}": np.float32(scale), f"z{at}": np.float32(zero), f"b{at}": np.float32(bits)}
        kind, domain = ("Quant", FINN) if at % 2 else ("IntQuant", QONNX)
        more = {"signed": signed, "narrow": narrow, "rounding_mode": mode}
        nodes.append(node(kind, f"x s{at} z{at} b{at}", f"y{at}", domain, **more))
    nodes.append(helper.make_node("Concat", [f"y{at}" for at in range(len(CASES))], ["y"], axis=1))
    data, x = model(nodes, constants, opset=opset), values()
    expected = np.concatenate([quant(x, *case[:5], case[5].upper()) for case in CASES], axis=1)
    assert np.array_equal(OnnxTarget(data).logits(torch.from_numpy(x)).numpy(), expected)
    assert np.array_equal(twin_of(data)(torch.from_numpy(x)).numpy(), expected)


def test_a_bipolar_quantiser_takes_0_for_above_0() -> None:
    scale, x = np.float32([0.5, 1, 2, 3]), values()
    expected = np.where(x >= 0, scale, -scale)
    data = model([node("BipolarQuant", "x s")], {"s": scale})
    assert np.array_equal(OnnxTarget(data).logits(torch.from_numpy(x)).numpy(), expected)
    assert np.array_equal(twin_of(data)(torch.from_numpy(x)).numpy(), expected)


@pytest.mark.parametrize("mode", ["FLOOR", "ROUND"])
@pytest.mark.parametrize("opset", [9, 17])
def test_truncation_of_both_versions(opset: int, mode: str) -> None:
    scale, zero, wide = np.float32([0.25, 0.5, 0.125, 0.25]), np.float32(2), np.float32([1, 2, 0.5, 4])
    x = values() * 20
    codes = each(x / scale + zero, "ROUND")
    factor = wide / scale
    second = (each((codes / factor).clip(-8, 7), mode) - zero / factor) * wide
    first = (each(codes / np.float32(4), mode) - zero) * scale
    constants = {"s": scale, "z": zero, "i": np.int32(6), "w": wide, "o": np.int32(4)}
    for inputs, expected in (("x s z i w o", second), ("x s z i o", first)):
        data = model([node("Trunc", inputs, rounding_mode=mode)], constants, opset=opset)
        assert np.array_equal(OnnxTarget(data).logits(torch.from_numpy(x)).numpy(), expected.astype(np.float32))
        assert np.array_equal(twin_of(data)(torch.from_numpy(x)).numpy(), expected.astype(np.float32))


# Networks -------------------------------------------------------------------------------------------------------------


def network(opset: int = 17, domain: str = BREVITAS) -> bytes:
    """Weights of 3 bits, activations of 2 bits without sign, then signs; scales per channel as Brevitas writes them."""
    random = np.random.default_rng(0)
    constants = {
        "w": random.normal(size=(4, 6)).astype(np.float32),
        "ws": np.float32(random.uniform(0.2, 0.5, (1, 6))),
        "v": random.normal(size=(6, 3)).astype(np.float32),
        "vs": np.float32(0.5),
        "zero": np.float32(0),
        "three": np.float32(3),
        "two": np.float32(2),
        "as": np.float32(0.4),
    }
    nodes = [
        node("Quant", "w ws zero three", "qw", domain, narrow=1),
        helper.make_node("MatMul", ["x", "qw"], ["h"], "first"),
        node("Quant", "h as zero two", "a", domain, signed=0),
        node("BipolarQuant", "v vs", "qv", domain),
        helper.make_node("MatMul", ["a", "qv"], ["y"], "second"),
    ]
    return model(nodes, constants, opset=opset)


@pytest.mark.parametrize("opset", [9, 13])
def test_a_network_has_a_twin_and_says_how_it_runs(opset: int) -> None:
    data = network(opset)
    file = exported(data)
    twin, x = twin_of(data), torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    answers = OnnxTarget(data).logits(x)
    assert torch.allclose(twin(x), answers, atol=1e-5)
    assert len(answers.unique(dim=0)) > 10
    given = x.clone().requires_grad_()
    slope = torch.autograd.grad((twin(given) * torch.tensor([1.0, 2.0, 4.0])).sum(), given)[0]
    assert slope.abs().sum(1).all()  # straight through, and a little beyond both ends
    twin.straight_through = False
    assert not torch.autograd.grad(twin(given).sum(), given)[0].any()
    assert file.data is data
    assert file.facts.operators["Quant"] == 2
    assert file.facts.quantisation == ("by the quantisers of QONNX, around float operators",)
    assert "2 Quant" in file.notes[-1]
    assert "1 BipolarQuant" in file.notes[-1]
    assert {one.domain for one in file.checked.model.graph.node} == {""}


def test_the_slope_is_whole_within_the_range_and_small_beyond() -> None:
    constants = {"s": np.float32(0.5), "z": np.float32(0), "b": np.float32(3)}
    x = torch.tensor([[-2.3, -1.9, 0.0, 1.6]], requires_grad=True)
    for nodes, slope in (
        ([node("Quant", "x s z b")], [0.1, 1, 1, 0.1]),
        ([node("BipolarQuant", "x s")], [0.05, 0.05, 0.5, 0.05]),
    ):
        (found,) = torch.autograd.grad(twin_of(model(nodes, constants))(x).sum(), x)
        assert torch.allclose(found, torch.tensor([slope]))


def test_weights_count_in_the_bits_of_their_codes() -> None:
    file = exported(network())
    found = footprint_of_file(file, (4,))
    assert found["parameters"] == 4 * 6 + 6 * 3
    assert [(one["weight_bits"], one["macs"]) for one in found["macs_by_width"]] == [(2, 18), (3, 24)]
    assert found["disk_bytes"] == len(file.data)
    held = {tensor.name for tensor in file.checked.model.graph.initializer}
    assert not held & {"w", "v", "ws", "three"}  # which nothing reads any more


def test_an_old_file_lists_its_weights_as_inputs() -> None:
    listed = onnx.load_model_from_string(network(9))
    listed.ir_version = 3
    for tensor in listed.graph.initializer:
        listed.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    file = exported(listed.SerializeToString())
    assert [item.name for item in file.checked.model.graph.input] == ["x"]
    assert footprint_of_file(file, (4,))["macs"] == 42
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(OnnxTarget(file.checked).logits(x), OnnxTarget(network(9)).logits(x))


def test_an_input_quantiser_says_what_it_covers() -> None:
    constants = {"s": np.float32(0.5), "z": np.float32(1), "b": np.float32(4)}
    facts = check_onnx(model([node("Quant", "x s z b")], constants)).facts
    assert facts.inputs[0].covers == ((-8 - 1) * 0.5, (7 - 1) * 0.5)


# What has no meaning --------------------------------------------------------------------------------------------------

GOOD = {"s": np.float32(0.5), "z": np.float32(0), "b": np.float32(4), "i": np.int32(6), "w": np.float32(1)}


def faulty(nodes: list[Node] | None = None, opset: int = 17, /, **changes: Any) -> Callable[[], bytes]:
    return lambda: model(nodes or [node("Quant", "x s z b")], {**GOOD, **changes}, opset=opset)


def inside_a_branch() -> bytes:
    names = "ab"
    branches = [
        helper.make_graph(
            [node("Quant", "x s z b", name)], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        )
        for name in names
    ]
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    return faulty([choice], c=np.bool_(True))()


FAULTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "no bits": (faulty(b=np.float32(0)), "bit width of 0"),
    "1e9 bits": (faulty(b=np.float32(1e9)), "bit width of 1e+09"),
    "half a bit": (faulty(b=np.float32(2.5)), "bit width of 2.5"),
    "bits that are no number": (faulty(b=np.float32(np.nan)), "bit width of nan"),
    "bits of a channel": (faulty(b=np.float32([2, 2, 2, 2])), "one number"),
    "bits of a record": (faulty([node("Quant", "x s z x")]), "one number"),
    "a scale of 0": (faulty(s=np.float32(0)), "scale that holds 0"),
    "an endless scale": (faulty(s=np.float32(np.inf)), "scale that holds"),
    "no zero point": (faulty(z=np.float32(np.nan)), "zero point that holds"),
    "an unknown rounding": (faulty([node("Quant", "x s z b", rounding_mode="STOCHASTIC")]), "'STOCHASTIC'"),
    "a rounding by number": (faulty([node("Quant", "x s z b", rounding_mode=3)]), "'3'"),
    "signs of 7": (faulty([node("Quant", "x s z b", signed=7)]), "signed = '7'"),
    "an input less": (faulty([node("Quant", "x s z")]), "3 inputs"),
    "two outputs": (faulty([helper.make_node("Quant", ["x", "s", "z", "b"], ["y", "o"], domain=FINN)]), "2 outputs"),
    "a weight of another shape": (
        faulty(
            [node("Quant", "v t z b", "q"), helper.make_node("MatMul", ["x", "q"], ["y"])],
            v=np.ones((4, 3), np.float32),
            t=np.ones((4, 4), np.float32),
        ),
        "scale of shape [4, 4] for values of shape [4, 3]",
    ),
    "truncation by a record": (faulty([node("Trunc", "x s z i x b")]), "does not hold its scales"),
    "an opset of 8": (faulty(None, 8), "opset 9"),
    "inside a branch": (inside_a_branch, "inside a branch"),
    "another of FINN's": (faulty([node("MultiThreshold", "x s")]), "onnx.brevitas::MultiThreshold"),
    "a text for a scale": (faulty(s=np.array("0.5", dtype=object)), ""),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_quantiser_without_meaning_is_refused_in_one_sentence(name: str) -> None:
    make, words = FAULTS[name]
    with pytest.raises(UnsafeInput) as caught:
        OnnxTarget(make())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (5, 4), (2, 1, 4)])
def test_a_scale_that_does_not_fit_the_values_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(faulty(s=np.ones(shape, np.float32))())
    found = json.loads(_read_onnx.main([str(path), "8", "1000", "[4]"]))
    assert "fault" in found
    assert "\n" not in found["fault"]
