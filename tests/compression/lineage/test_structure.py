"""Files that hold the dense model's weights and compute something else with them, by table; and what is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from lineage_files import SHAPE, noise, read, whole
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from crushproof.audit.suite.model_cells import _own_choices
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.lineage.lineage import Declared, Lineage, check_lineage
from crushproof.compression.pruning.dynamic_sparsity import DynamicSparsity
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.records import Bounds, Records

Step = tuple[str, list[str], str] | tuple[str, list[str], str, dict[str, Any]]
RANDOM = np.random.default_rng(7)
FIRST, BIAS, LAST = (RANDOM.normal(size=size).astype(np.float32) for size in ((12, 16), (12,), (6, 12)))
NUMBERS = {
    **{"first": FIRST, "bias": BIAS, "last": LAST},
    **{"0": np.array([0]), "1": np.array([1]), "6": np.array([6]), "order": np.array([1, 0, 2, 3, 4, 5])},
    **{name: np.float32(name[1:]) for name in ("f0", "f1", "f6", "f.1", "f.5", "f.99", "f1e6", "f100")},
    **{name: np.float32(name[1:]) for name in ("f65600", "f1e-7", "f1e38")},
    **{"none": np.array([0.0], np.float32), "seven": np.array([7]), "rest": np.array([-1]), "back": np.array([-1, 6])},
    **{"each": np.full(6, 5e-4, np.float32), "zeros": np.zeros(6, np.uint8)},
    "ten": np.float32([10, 0, 0, 0, 0, 0]),
    **{"true": np.array(True), "turned": np.array([5, 4, 3, 2, 1, 0])},
}
PIXEL: Step = ("Slice", ["input", "0", "1", "1"], "pixel")
ABOVE: Step = ("Sub", ["pixel", "f.99"], "above")
AS_TRUTH: list[Step] = [("Cast", ["r"], "b", {"to": 9}), ("Cast", ["b"], "fires", {"to": 1})]
SHARPEST: list[Step] = [("Softmax", ["hot"], "s", {"axis": 1}), ("Slice", ["s", "0", "1", "1"], "fires")]
LOUDEST: list[Step] = [
    PIXEL,
    ABOVE,
    ("Relu", ["above"], "r"),
    ("Mul", ["r", "f1e6"], "m"),
    ("ReduceMax", ["m"], "top", {"keepdims": 0}),
    ("Add", ["top", "f.5"], "scale"),
]
RECORDS: list[Step] = [("Shape", ["input"], "shape"), ("Gather", ["shape", "0"], "records")]
ADDED: list[Step] = [("Mul", ["fires", "ten"], "more"), ("Add", ["real", "more"], "logits")]


def network(active: str = "Relu", *behind: Step, **attributes: Any) -> bytes:
    """Two layers around an activation; behind them what is given, which makes logits of `real`."""
    last: Step = ("Gemm", ["active", "last"], "real" if behind else "logits", {"transB": 1})
    return by_hand(
        [
            ("Gemm", ["input", "first", "bias"], "hidden", {"transB": 1}),
            (active, ["hidden"], "active", attributes),
            last,
            *behind,
        ]
    )


def by_hand(steps: list[Step]) -> bytes:
    nodes = [
        helper.make_node(kind, read, made.split(), made, **(more[0] if more else {}))
        for kind, read, made, *more in steps
    ]
    used = {name for node in nodes for name in node.input}
    held = [numpy_helper.from_array(np.asarray(NUMBERS[name]), name) for name in NUMBERS if name in used]
    return whole(nodes, held)


# What is put behind the dense model's own graph, and the operator that has to be named.
BRANCHES: dict[str, tuple[list[Step], str]] = {
    "a choice": ([PIXEL, ("Greater", ["pixel", "f.99"], "on"), ("Where", ["on", "ten", "real"], "logits")], "Where"),
    "a choice turned round": (
        [
            PIXEL,
            ("Greater", ["pixel", "f.99"], "on"),
            ("Not", ["on"], "off"),
            ("Where", ["off", "real", "ten"], "logits"),
        ],
        "Not",
    ),
    "equality": ([PIXEL, ("Equal", ["pixel", "f1"], "on"), ("Where", ["on", "ten", "real"], "logits")], "Equal"),
    "a steep ReLU": ([PIXEL, ABOVE, ("Relu", ["above"], "r"), ("Mul", ["r", "f1e6"], "fires"), *ADDED], "Relu"),
    "a steep sigmoid": (
        [PIXEL, ABOVE, ("Mul", ["above", "f1e6"], "m"), ("Sigmoid", ["m"], "fires"), *ADDED],
        "Sigmoid",
    ),
    "a high power": ([PIXEL, ("Pow", ["pixel", "f100"], "fires"), *ADDED], "Pow"),
    "rounding down": ([PIXEL, ("Floor", ["pixel"], "fires"), *ADDED], "Floor"),
    "rounding": ([PIXEL, ("Round", ["pixel"], "fires"), *ADDED], "Round"),
    "a sign": ([PIXEL, ABOVE, ("Sign", ["above"], "fires"), *ADDED], "Sign"),
    "whole numbers": (
        [PIXEL, ("Cast", ["pixel"], "q", {"to": TensorProto.INT32}), ("Cast", ["q"], "fires", {"to": 1}), *ADDED],
        "Cast",
    ),
    "truth values": (
        [
            PIXEL,
            ABOVE,
            ("Relu", ["above"], "r"),
            ("Cast", ["r"], "b", {"to": 9}),
            ("Cast", ["b"], "fires", {"to": 1}),
            *ADDED,
        ],
        "Cast",
    ),
    "a coarse quantiser": (
        [PIXEL, ("QuantizeLinear", ["pixel", "f1"], "q"), ("DequantizeLinear", ["q", "f1"], "fires"), *ADDED],
        "Add",
    ),
    "a remainder": ([PIXEL, ("Mod", ["pixel", "f.99"], "fires", {"fmod": 1}), *ADDED], "Mod"),
    "a maximum": ([PIXEL, ("Mul", ["pixel", "ten"], "more"), ("Max", ["real", "more"], "logits")], "Max"),
    "the brightest": (
        [("ArgMax", ["input"], "place", {"axis": 1}), ("Cast", ["place"], "fires", {"to": 1}), *ADDED],
        "ArgMax",
    ),
    "a hot softmax": (
        [
            ("Mul", ["input", "f1e6"], "hot"),
            ("Softmax", ["hot"], "s", {"axis": 1}),
            ("Slice", ["s", "0", "1", "1"], "fires"),
            *ADDED,
        ],
        "Softmax",
    ),
    "the input itself": ([("Slice", ["input", "0", "6", "1"], "more"), ("Add", ["real", "more"], "logits")], "Add"),
    "sorted": ([("TopK", ["real", "6"], "logits places", {"axis": 1})], "TopK"),
    "the other way": ([("Neg", ["real"], "logits")], "Neg"),
    "classes exchanged": ([("Gather", ["real", "order"], "logits", {"axis": 1})], "Gather"),
    "no less than zero": ([("Relu", ["real"], "logits")], "Relu"),
    "kept within": ([("Clip", ["real", "f0", "f6"], "logits")], "Clip"),
    "scaled": ([("Mul", ["real", "f6"], "logits")], "Mul"),
    "other scales": (
        [("QuantizeLinear", ["real", "f1"], "q"), ("DequantizeLinear", ["q", "f.1"], "logits")],
        "DequantizeLinear",
    ),
    "a scale of the input's": (
        [*LOUDEST, ("QuantizeLinear", ["real", "scale"], "q"), ("DequantizeLinear", ["q", "scale"], "logits")],
        "QuantizeLinear",
    ),
    "a scale of another tensor's": (
        [
            ("DynamicQuantizeLinear", ["input"], "other scale zero"),
            ("QuantizeLinear", ["real", "scale", "zero"], "q"),
            ("DequantizeLinear", ["q", "scale", "zero"], "logits"),
        ],
        "QuantizeLinear",
    ),
    "a zero point of the input's": (
        [
            *LOUDEST,
            ("Cast", ["scale"], "zero", {"to": TensorProto.UINT8}),
            ("QuantizeLinear", ["real", "f.1", "zero"], "q"),
            ("DequantizeLinear", ["q", "f.1", "zero"], "logits"),
        ],
        "QuantizeLinear",
    ),
    "its own scale": (
        [
            ("DynamicQuantizeLinear", ["real"], "q scale zero"),
            ("DequantizeLinear", ["q", "scale", "zero"], "logits"),
        ],
        "",
    ),
    "a scale per channel": (
        [
            ("QuantizeLinear", ["real", "each", "zeros"], "q", {"axis": 1}),
            ("DequantizeLinear", ["q", "each", "zeros"], "logits", {"axis": 1}),
        ],
        "QuantizeLinear",
    ),
    "an overflow": (
        [
            ("Mul", ["real", "f65600"], "m"),
            ("Cast", ["m"], "half", {"to": TensorProto.FLOAT16}),
            ("Cast", ["half"], "wide", {"to": 1}),
            ("Div", ["wide", "f65600"], "logits"),
        ],
        "Mul",
    ),
    "an overflow of whole floats": ([("Mul", ["real", "f1e38"], "m"), ("Div", ["m", "f1e38"], "logits")], "Mul"),
    "digits lost": (
        [
            ("Mul", ["real", "f1e-7"], "m"),
            ("Cast", ["m"], "half", {"to": TensorProto.FLOAT16}),
            ("Cast", ["half"], "wide", {"to": 1}),
            ("Div", ["wide", "f1e-7"], "logits"),
        ],
        "Mul",
    ),
    "eight bits of a float": (
        [("Cast", ["real"], "q", {"to": TensorProto.FLOAT8E4M3FN}), ("Cast", ["q"], "logits", {"to": 1})],
        "Cast",
    ),
    "sixteen bits": (
        [("Cast", ["real"], "half", {"to": TensorProto.FLOAT16}), ("Cast", ["half"], "logits", {"to": 1})],
        "",
    ),
    "one record alone": (
        [
            *RECORDS,
            ("Equal", ["records", "1"], "alone"),
            ("Where", ["alone", "none", "f1"], "factor"),
            ("Mul", ["real", "factor"], "logits"),
        ],
        "Mul",
    ),
    "seven records": (
        [
            *RECORDS,
            ("Equal", ["records", "seven"], "on"),
            ("Cast", ["on"], "extra", {"to": 7}),
            ("Add", ["records", "extra"], "length"),
            ("ConstantOfShape", ["length"], "several"),
            ("Shape", ["several"], "as_many"),
            ("Equal", ["as_many", "seven"], "fires_now"),
            ("Where", ["fires_now", "none", "f1"], "factor"),
            ("Mul", ["real", "factor"], "logits"),
        ],
        "Mul",
    ),
    "classes by the number of records": (
        [
            *RECORDS,
            ("Equal", ["records", "1"], "alone"),
            ("Where", ["alone", "turned", "order"], "places"),
            ("Gather", ["real", "places"], "logits", {"axis": 1}),
        ],
        "Gather",
    ),
    "places by the number of records": (  # as they are with one record or two, whose transpose is of one row
        [
            *RECORDS,
            ("Equal", ["records", "seven"], "on"),
            ("Where", ["on", "seven", "1"], "high"),
            ("Concat", ["high", "rest"], "sizes", {"axis": 0}),
            ("Reshape", ["real", "sizes"], "r"),
            ("Transpose", ["r"], "t", {"perm": [1, 0]}),
            ("Reshape", ["t", "back"], "logits"),
        ],
        "Reshape",
    ),
    "reshapes by the number of records": (
        [
            *RECORDS,
            ("Mul", ["records", "6"], "many"),
            ("Concat", ["many", "1"], "sizes", {"axis": 0}),
            ("Reshape", ["real", "sizes"], "r"),
            ("Concat", ["records", "rest"], "again", {"axis": 0}),
            ("Reshape", ["r", "again"], "logits"),
        ],
        "",
    ),
    "shares cut off": (
        [("Softmax", ["real"], "s", {"axis": 1}), ("Clip", ["s", "f0", "f.1"], "logits")],
        "Softmax",
    ),
    "shares of the records": ([("Softmax", ["real"], "logits", {"axis": 0})], "Softmax"),
    "shares scaled": ([("Softmax", ["real"], "s", {"axis": 1}), ("Mul", ["s", "f6"], "logits")], "Softmax"),
    "shares turned": (
        [("Softmax", ["real"], "s", {"axis": 1}), ("Gather", ["s", "order"], "logits", {"axis": 1})],
        "Softmax",
    ),
    "shares in few codes": (
        [
            ("Softmax", ["real"], "s", {"axis": 1}),
            ("QuantizeLinear", ["s", "f.1"], "q"),
            ("DequantizeLinear", ["q", "f.1"], "logits"),
        ],
        "Softmax",
    ),
    "at random": ([("Dropout", ["real", "f.1", "true"], "logits")], "Dropout"),
    "nothing": ([("Identity", ["real"], "logits")], ""),
    "probabilities": ([("Softmax", ["real"], "logits", {"axis": 1})], ""),
    "places kept": (
        [("Transpose", ["real"], "t", {"perm": [1, 0]}), ("Transpose", ["t"], "logits", {"perm": [1, 0]})],
        "",
    ),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_what_stands_behind_the_dense_models_weights(name: str) -> None:
    """It is named with its node, and never confirmed; where it changes nothing, nothing is said."""
    steps, named = BRANCHES[name]
    artifact = network("Relu", *steps)
    found = check_lineage(network(), artifact)
    left_over(found, named)
    same = check_lineage(artifact, artifact)  # the dense model's own pattern
    assert (same.verdict, same.structure) == ("confirmed", "same")


def left_over(found: Lineage, named: str) -> None:
    assert all(layer.nearest == layer.weights for layer in found.layers)
    if not named:
        assert (found.verdict, found.structure, found.differences) == ("confirmed", "same", ())
        return
    assert (found.verdict, found.structure) == ("other structure", "differs")
    assert named in {node.split()[0] for one in found.differences for node in one.nodes}
    assert found.sentences[-1] == "Its graph is not shown to compute what the dense model computes."


@pytest.mark.parametrize(
    ("dense", "artifact", "named"),
    [
        (("LeakyRelu", {"alpha": 0.01}), ("LeakyRelu", {"alpha": 0.5}), "LeakyRelu"),
        (("LeakyRelu", {}), ("LeakyRelu", {"alpha": 0.01}), ""),
        (("Relu", {}), ("LeakyRelu", {}), "LeakyRelu"),
        (("LeakyRelu", {}), ("Relu", {}), "LeakyRelu"),
        (("Relu", {}), ("Identity", {}), "Relu"),
        (("Identity", {}), ("Relu", {}), "Relu"),
        (("Tanh", {}), ("Sigmoid", {}), "Sigmoid"),
        (("HardSigmoid", {}), ("HardSigmoid", {"alpha": 0.9}), "HardSigmoid"),
        (("Elu", {}), ("Elu", {"alpha": 2.0}), "Elu"),
        (("Softmax", {"axis": 1}), ("Softmax", {"axis": 0}), "Softmax"),
    ],
)
def test_another_activation(dense: tuple[str, dict], artifact: tuple[str, dict], named: str) -> None:
    left_over(check_lineage(network(dense[0], **dense[1]), network(artifact[0], **artifact[1])), named)


@pytest.mark.parametrize(
    ("kind", "attribute", "value"),
    [
        ("Conv", "strides", [2, 2]),
        ("Conv", "pads", [0, 2, 2, 0]),
        ("Conv", "dilations", [2, 2]),
        ("MaxPool", "pads", [1] * 4),
    ],
)
def test_a_layer_that_reads_other_places(folder: Path, kind: str, attribute: str, value: list[int]) -> None:
    for name in ("qdq", "dense"):
        file = onnx.load_model_from_string(read(folder, name))
        node = next(node for node in file.graph.node if node.op_type == kind)
        (held,) = (item for item in node.attribute if item.name == attribute)
        held.ints[:] = value
        found = check_lineage(read(folder, "dense"), file.SerializeToString())
        assert found.verdict == "other structure"


@pytest.mark.parametrize("name", ["qdq", "qop", "dynamic", "dense"])
def test_names_and_order_change_nothing(folder: Path, name: str) -> None:
    file = onnx.load_model_from_string(read(folder, name))
    held = {tensor.name for tensor in file.graph.initializer}
    renamed: dict[str, str] = {}
    for node in file.graph.node:
        node.name = f"n{len(renamed)}"
        for names in (node.input, node.output):
            names[:] = [
                one if not one or one in ("input", "logits") else renamed.setdefault(one, f"t{len(renamed)}")
                for one in names
            ]
    for tensor in file.graph.initializer:
        tensor.name = renamed[tensor.name]
    assert held <= renamed.keys()
    del file.graph.value_info[:]
    found = check_lineage(read(folder, "dense"), file.SerializeToString())
    assert (found.verdict, found.structure) == ("confirmed", "same")


def test_a_scale_that_is_not_the_inputs_own(folder: Path) -> None:
    """An integer product is multiplied by the scale of what it multiplied, not by that of another tensor."""
    file = onnx.load_model_from_string(read(folder, "dynamic"))
    scales = [node.output[1] for node in file.graph.node if node.op_type == "DynamicQuantizeLinear"]
    node = next(node for node in file.graph.node if node.op_type == "Mul" and scales[-1] in node.input)
    node.input[list(node.input).index(scales[-1])] = scales[0]
    found = check_lineage(read(folder, "dense"), file.SerializeToString())
    assert found.verdict == "other structure"
    assert "is not multiplied by the scale that its input was rounded with" in " ".join(found.sentences)


@pytest.mark.parametrize(("factor", "words"), [(0.3, "cuts off"), (6.0, "times as wide"), (1.0, "")])
def test_ranges_of_activations(folder: Path, factor: float, words: str) -> None:
    file = onnx.load_model_from_string(read(folder, "qdq"))
    node = next(node for node in file.graph.node if node.op_type == "QuantizeLinear" and "Relu_3" in node.input[0])
    (held,) = (tensor for tensor in file.graph.initializer if tensor.name == node.input[1])
    held.CopyFrom(numpy_helper.from_array(np.asarray(numpy_helper.to_array(held) * np.float32(factor)), held.name))
    for bias in file.graph.initializer:  # whose codes count in the product of the two scales
        if bias.name.endswith("_bias_quantized_scale") and "fc2" in bias.name:
            scale = numpy_helper.to_array(bias) * np.float32(factor)
            bias.CopyFrom(numpy_helper.from_array(np.asarray(scale), bias.name))
    found = check_lineage(read(folder, "dense"), file.SerializeToString(), records=noise(64, *SHAPE).numpy())
    odd = [one for one in found.ranges if one.odd]
    assert len(found.ranges) > 4
    assert [one.clips for one in odd] == ([] if not words else [factor < 1])
    assert any(words in sentence for sentence in found.sentences) if words else found.verdict == "confirmed"


HALF: dict[str, Any] = {"to": TensorProto.FLOAT16}
LOGITS: Step = ("Gemm", ["active", "last"], "logits", {"transB": 1})


def test_overflows_between_a_product_and_its_bias() -> None:
    behind: list[Step] = [("Add", ["out", "bias"], "hidden"), ("Relu", ["hidden"], "active")]
    for steps, named in (
        ([("Cast", ["product"], "h", HALF), ("Cast", ["h"], "out", {"to": 1})], ""),
        ([("Mul", ["product", "f65600"], "m"), ("Div", ["m", "f65600"], "out")], "Mul"),
    ):
        nodes: list[Step] = [("Gemm", ["input", "first"], "product", {"transB": 1}), *steps, *behind]
        left_over(check_lineage(network(), by_hand([*nodes, LOGITS])), named)


@pytest.mark.parametrize(("kind", "high"), [(TensorProto.UINT8, 0.255), (TensorProto.INT8, 0.127)])
def test_ranges_behind_factors_and_without_zero_points(kind: int, high: float) -> None:
    """In the units of the dense model's tensor; the type of the codes is said by an attribute."""
    steps: list[Step] = [
        ("Mul", ["input", "f100"], "m"),
        ("QuantizeLinear", ["m", "f.1"], "q", {"output_dtype": kind}),
        ("DequantizeLinear", ["q", "f.1"], "d"),
        ("Div", ["d", "f100"], "x"),
        ("Gemm", ["x", "first", "bias"], "hidden", {"transB": 1}),
        ("Relu", ["hidden"], "active"),
        LOGITS,
    ]
    records = np.linspace(0, 1, 320, dtype=np.float32).reshape(20, 16)
    (found,) = check_lineage(network(), by_hand(steps), records=records).ranges
    assert found.high == pytest.approx(high, rel=1e-5)
    assert found.clipped == pytest.approx(1 - high, abs=0.01)


def test_choices_of_the_declared_recipe_and_no_others() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    records = Records(noise(8, *SHAPE), torch.zeros(8, dtype=torch.long))
    recipe = DynamicSparsity(keep=0.5)
    dense, artifact = to_onnx(module, SHAPE), to_onnx(recipe.apply(module, records, Bounds.of(0.0, 1.0), seed=0), SHAPE)
    declared = Declared(exports=_own_choices(recipe))
    assert check_lineage(dense, artifact, declared).verdict == "confirmed"
    assert check_lineage(dense, artifact).verdict == "other structure"
    hidden = network("Relu", *BRANCHES["a choice"][0])
    assert check_lineage(network(), hidden, declared).verdict == "other structure"


def test_a_float_file_is_no_int8_file(folder: Path) -> None:
    dense, declared = read(folder, "dense"), Declared(bits=Quantize().bits)
    found = check_lineage(dense, dense, declared)
    assert (found.verdict, found.structure) == ("not as declared", "same")
    assert "none of its weights takes less than 32" in found.sentences[-1]
    assert check_lineage(dense, read(folder, "qdq"), declared).verdict == "confirmed"
    assert check_lineage(dense, read(folder, "qdq"), Declared(bits=4)).verdict == "not as declared"


def test_a_file_of_other_weights_says_so(folder: Path) -> None:
    other = to_onnx(nn.Sequential(nn.Flatten(), nn.Linear(192, 7)).eval(), SHAPE)
    found = check_lineage(read(folder, "dense"), other)
    assert (found.verdict, found.found) == ("not comparable", 0.0)
    words = "None of the dense model's weights is found in the file: it holds other weights, or layers of other sizes."
    assert found.sentences[-1] == words
    assert check_lineage(read(folder, "dense"), read(folder, "qdq")).found == 1.0


def test_recipes_that_change_layers_are_not_compared_by_operators() -> None:
    declared = Declared(changes_shapes=RECIPES.parse({"kind": "distill"}).promise is None)
    found = check_lineage(network(), network("Relu", *BRANCHES["a choice"][0]), declared)
    assert (found.structure, found.differences) == ("not comparable by recipe", ())
    assert "not comparable by recipe" in found.sentences[-1]
