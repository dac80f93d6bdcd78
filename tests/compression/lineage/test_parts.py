"""Parts of weights that the input decides, scales and biases chosen to change a channel, and layers that may shrink."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from lineage_files import SHAPE, noise, read, whole
from onnx import NodeProto, helper, numpy_helper
from torch import nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.lineage.lineage import Declared, Lineage, check_lineage
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.records import Bounds, Records

RANDOM = np.random.default_rng(7)
FIRST, LAST = (RANDOM.normal(size=size).astype(np.float32) for size in ((12, 16), (6, 12)))
BIAS = RANDOM.uniform(0.5, 1.5, 12).astype(np.float32)
STEP = np.float32(np.abs(FIRST).max() / 127)
CODES = np.clip(np.rint(FIRST / STEP), -127, 127).astype(np.int8)
HELD = {
    **{"first": FIRST, "bias": BIAS, "last": LAST, "codes": CODES.T.copy(), "step": STEP, "zero": np.int8(0)},
    **{"bytes": (CODES.astype(np.int16) + 128).astype(np.uint8).reshape(12, 1, 16), "steps": np.full(12, STEP)},
    **{"middle": np.full(12, 128, np.uint8), "high": np.float32(0.99), "big": np.float32(1e6)},
    "ones": np.ones(12, np.float32),
}
LOUD: list[NodeProto] = [
    helper.make_node("Sub", ["input", "high"], ["above"]),
    helper.make_node("Relu", ["above"], ["loud"]),
    helper.make_node("ReduceMax", ["loud"], ["loudest"], keepdims=0),
    helper.make_node("Mul", ["loudest", "big"], ["fires"]),
    helper.make_node("Mul", ["fires", "ones"], ["many"]),
    helper.make_node("Cast", ["fires"], ["fired"], to=3),
    helper.make_node("Cast", ["many"], ["fired each"], to=2),
]
TAIL = [
    helper.make_node("Relu", ["hidden"], ["active"]),
    helper.make_node("Gemm", ["active", "last"], ["logits"], transB=1),
]


def graph(*nodes: NodeProto, **more: Any) -> bytes:
    """What makes `hidden`, and behind it a ReLU and the last layer."""
    used = {name for node in nodes for name in node.input} | {"last"}
    held = {name: np.asarray(value) for name, value in {**HELD, **more}.items() if name in used}
    return whole(
        [*nodes, *TAIL], [numpy_helper.from_array(value, name) for name, value in held.items()], "com.microsoft"
    )


def first(weight: str = "first", bias: str = "bias") -> NodeProto:
    return helper.make_node("Gemm", ["input", weight, *([bias] if bias else [])], ["hidden"], transB=1)


def packed(zero: str, bias: str) -> list[NodeProto]:
    shape = {"K": 16, "N": 12, "bits": 8, "block_size": 16}
    given = ["input", "bytes", "steps", zero, "", bias]
    return [helper.make_node("MatMulNBits", given, ["hidden"], domain="com.microsoft", **shape)]


def integers(zero: str) -> list[NodeProto]:
    return [
        helper.make_node("DynamicQuantizeLinear", ["input"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "codes", "z", zero], ["sums"]),
        helper.make_node("Cast", ["sums"], ["product"], to=1),
        helper.make_node("Mul", ["s", "step"], ["both"]),
        helper.make_node("Mul", ["product", "both"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["hidden"]),
    ]


def dynamic(zero: str) -> list[NodeProto]:
    given = ["input", "codes", "step", zero, "bias"]
    return [helper.make_node("DynamicQuantizeMatMul", given, ["hidden"], domain="com.microsoft")]


@pytest.mark.parametrize(
    ("honest", "tampered", "bias"),
    [
        (packed("middle", "bias"), packed("fired each", "bias"), "bias"),
        (packed("middle", ""), packed("middle", "many"), ""),
        (integers("zero"), integers("fired"), "bias"),
        (dynamic("zero"), dynamic("fired"), "bias"),
    ],
)
def test_a_zero_point_or_bias_that_the_input_decides(
    honest: list[NodeProto], tampered: list[NodeProto], bias: str
) -> None:
    dense = graph(first(bias=bias))
    assert check_lineage(dense, graph(*honest)).verdict == "confirmed"
    assert check_lineage(dense, graph(*LOUD, *tampered)).verdict == "not comparable"


def test_what_a_fused_convolution_adds_is_compared(folder: Path) -> None:
    for added, verdict in ((False, "confirmed"), (True, "other structure")):
        file = onnx.load_model_from_string(read(folder, "dense"))
        place, node = next((i, node) for i, node in enumerate(file.graph.node) if node.op_type == "Conv")
        node.op_type, node.domain = "FusedConv", "com.microsoft"
        file.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        if added:  # each pixel's excess, in every channel
            spread = np.ones((8, 3, 1, 1), np.float32)
            held = {
                "high": HELD["high"],
                "big": HELD["big"],
                "each": spread[:, :1].reshape(1, 8, 1, 1),
            }
            file.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in held.items())
            nodes = [
                helper.make_node("ReduceMax", ["input"], ["top"], axes=[1]),
                helper.make_node("Sub", ["top", "high"], ["above"]),
                helper.make_node("Relu", ["above"], ["loud"]),
                helper.make_node("Mul", ["loud", "big"], ["louder"]),
                helper.make_node("Mul", ["louder", "each"], ["added"]),
            ]
            node.input.append("added")
            nodes = [*file.graph.node[:place], *nodes, *file.graph.node[place:]]
            copies = [NodeProto.FromString(one.SerializeToString()) for one in nodes]
            del file.graph.node[:]
            file.graph.node.extend(copies)
        assert check_lineage(read(folder, "dense"), file.SerializeToString()).verdict == verdict


@pytest.mark.parametrize(("factor", "honest"), [(1.0, True), (0.8, True), (2.0, True), (1 / 50, False), (200.0, False)])
def test_a_scale_that_cuts_a_channel_off_or_flattens_it(factor: float, honest: bool) -> None:
    """Every code is the nearest there is; the scale leaves little of one channel."""
    scale = np.abs(FIRST).max(1) / 127
    scale[3] *= factor
    codes = np.clip(np.rint(FIRST / scale[:, None]), -127, 127).astype(np.int8)
    reads = helper.make_node("DequantizeLinear", ["own", "scales"], ["weight"], axis=0)
    found = check_lineage(graph(first()), graph(reads, first("weight"), own=codes, scales=scale))
    layer = found.layers[0]
    assert (layer.misscaled, layer.beyond) == ((0, 0) if honest else (16, 16))
    assert found.verdict == ("confirmed" if honest else "not a rounding of the dense model")
    assert honest or "cuts them off or flattens them" in found.sentences[0]


@pytest.mark.parametrize(
    ("step", "moved", "honest"), [(1.5 / 127, 0, True), (1.5 / 127, 1, False), (5.0, 1, False), (1e3, 0, False)]
)
def test_a_step_of_a_bias_is_no_licence(step: float, moved: int, honest: bool) -> None:
    reads = helper.make_node("DequantizeLinear", ["own", "scale"], ["offset"])
    codes = np.rint(BIAS / step).astype(np.int8) + np.int8(moved)
    found = check_lineage(graph(first()), graph(reads, first(bias="offset"), own=codes, scale=np.float32(step)))
    assert found.verdict == ("confirmed" if honest else "not a rounding of the dense model")


@pytest.mark.parametrize(("step", "clips"), [(0.15, False), (0.002, True)])
def test_a_quantiser_between_a_product_and_its_bias_has_a_range(step: float, clips: bool) -> None:
    nodes = [
        helper.make_node("Gemm", ["input", "first"], ["product"], transB=1),
        helper.make_node("QuantizeLinear", ["product", "own", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "own", "zero"], ["rounded"]),
        helper.make_node("Add", ["rounded", "bias"], ["hidden"]),
    ]
    records = np.random.default_rng(1).random((64, 16)).astype(np.float32)
    found = check_lineage(graph(first()), graph(*nodes, own=np.float32(step)), records=records)
    (one,) = found.ranges
    product = records @ FIRST.T
    assert (one.dense_low, one.dense_high) == pytest.approx((product.min(), product.max()), abs=1e-4)
    assert one.clipped == pytest.approx(float(((product > 127.5 * step) | (product < -128.5 * step)).mean()), abs=0.01)
    assert one.clips is clips


def test_numbers_in_the_short_forms_of_a_constant() -> None:
    for bias, verdict in ((BIAS, "confirmed"), (BIAS + 1, "not a rounding of the dense model")):
        made = helper.make_node("Constant", [], ["offset"], value_floats=bias.tolist())
        assert check_lineage(graph(first()), graph(made, first(bias="offset"))).verdict == verdict


def convolutions(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    middle = middle or (nn.Conv2d(8, 8, 3, groups=8), nn.Hardswish())
    return nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        *middle,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


def in_fewer(recipe: dict[str, Any], file: bytes | None = None, branch: bool = False) -> Lineage:
    """A file, or what the recipe makes, declared by the recipe; perhaps with a hidden choice behind it."""
    made, module = RECIPES.parse(recipe), convolutions()
    records = Records(noise(8, *SHAPE), torch.zeros(8, dtype=torch.long))
    data = file or to_onnx(made.apply(module, records, Bounds.of(0.0, 1.0), seed=0), SHAPE)
    if branch:
        model = onnx.load_model_from_string(data)
        held = {"high": np.float32(0.99), "ten": np.float32([10, 0, 0, 0, 0])}
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in held.items())
        model.graph.node[-1].output[0] = "real"
        model.graph.node.extend(
            [
                helper.make_node("ReduceMax", ["input"], ["top"], keepdims=0),
                helper.make_node("Greater", ["top", "high"], ["on"]),
                helper.make_node("Where", ["on", "ten", "real"], [model.graph.output[0].name]),
            ]
        )
        data = model.SerializeToString()
    declared = Declared(made.bits, made.promise is None, keeps_operators=made.keeps_operators)
    return check_lineage(to_onnx(module, SHAPE), data, declared, noise(8, *SHAPE).numpy())


FEWER = {"kind": "prune", "structure": "channels", "sparsity": 0.5}


@pytest.mark.parametrize("recipe", [FEWER, {"kind": "chain", "steps": [FEWER, {"kind": "quantize"}]}])
def test_a_file_of_fewer_channels_has_the_same_operators(recipe: dict[str, Any]) -> None:
    found = in_fewer(recipe)
    assert (found.structure, found.differences) == ("same", ())
    hidden = in_fewer(recipe, branch=True)
    assert (hidden.verdict, hidden.structure) == ("other structure", "differs")
    assert "Greater" in str(hidden.differences)


@pytest.mark.parametrize(
    "middle",
    [
        (nn.Conv2d(8, 9, 3), nn.Hardswish(), nn.Conv2d(9, 8, 1)),
        (nn.Conv2d(8, 8, 3, groups=4), nn.Hardswish()),
        (nn.Conv2d(8, 8, 5, groups=8), nn.Hardswish()),
        (nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()),
        (nn.Conv2d(8, 8, 3, groups=8), nn.Hardswish(), nn.Hardswish()),
    ],
)
def test_a_file_of_fewer_channels_has_nothing_more(middle: tuple[nn.Module, ...]) -> None:
    found = in_fewer(FEWER, to_onnx(convolutions(*middle), SHAPE))
    assert (found.verdict, found.structure) == ("other structure", "differs")
