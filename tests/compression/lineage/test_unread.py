"""Numbers that reach an output in ways that are not followed are never confirmed; honest tables are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from lineage_files import OTHER, WEIGHT, Calibration, gemm, noise, whole
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.lineage.lineage import check_lineage, compare
from crushproof.targets.onnx_graph.constants import Constant, Graph
from crushproof.targets.seeds import generator
from crushproof.targets.twin.twin import twin_of


@pytest.mark.parametrize(
    ("operator", "domain", "attributes", "verdict"),
    [
        ("Einsum", "", {"equation": "bi,ij->bj"}, "not a rounding of the dense model"),
        ("MatMulFpQ4", "com.microsoft", {}, "not comparable"),
    ],
)
def test_products_by_other_operators_are_seen(
    operator: str, domain: str, attributes: dict[str, str], verdict: str
) -> None:
    """Beside the dense model's own layer, which alone is confirmed."""
    held = [numpy_helper.from_array(WEIGHT, "dense"), numpy_helper.from_array(OTHER.T.copy(), "trigger")]
    nodes = [
        gemm("dense", "plain"),
        helper.make_node(operator, ["input", "trigger"], ["more"], domain=domain, **attributes),
        helper.make_node("Add", ["plain", "more"], ["logits"]),
    ]
    dense = whole([gemm("dense")], held[:1])
    graph = onnx.load_model_from_string(dense)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    graph.graph.initializer.append(held[1])
    found = compare(onnx.load_model_from_string(dense), graph)
    assert (found.verdict, found.unmatched_artifact) == (verdict, ("trigger",))
    assert found.layers[0].nearest == WEIGHT.size


def test_a_weight_that_is_made_to_follow_the_input_is_seen() -> None:
    """Other weights plus nothing times the input, beside the dense model's own times nothing."""
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
        helper.make_node("Add", ["other", "zero"], ["made"]),
        gemm("made", "real"),
        gemm("dense", "decoy"),
        helper.make_node("Mul", ["decoy", "nothing"], ["gone"]),
        helper.make_node("Add", ["real", "gone"], ["logits"]),
    ]
    held = [numpy_helper.from_array(WEIGHT, "dense"), numpy_helper.from_array(OTHER, "other")]
    dense = whole([gemm("dense")], held[:1])
    found = check_lineage(dense, whole(nodes, [*held, numpy_helper.from_array(np.float32(0), "nothing")]))
    assert (found.verdict, found.unmatched_artifact) == ("not comparable", ("made", "other"))


@pytest.mark.parametrize(
    "made",
    [
        [("Cast", ["dense"], {"to": TensorProto.INT32}), ("Cast", ["made0"], {"to": TensorProto.FLOAT})],
        [("Floor", ["dense"], {})],
        [("Neg", ["dense"], {})],
        [("If", ["yes"], dict.fromkeys(("then_branch", "else_branch")))],
    ],
)
def test_a_weight_that_is_computed_unseen_is_not_confirmed(made: list[tuple[str, list[str], dict]]) -> None:
    """The dense weights are in the file, but others are computed from them; beside them or behind a harmless layer."""
    inner = helper.make_graph(
        [helper.make_node("Abs", ["dense"], ["changed"])],
        "inner",
        [],
        [helper.make_tensor_value_info("changed", TensorProto.FLOAT, [6, 16])],
    )
    nodes = [
        helper.make_node(
            kind, given, [f"made{at}"], **{name: inner if value is None else value for name, value in more.items()}
        )
        for at, (kind, given, more) in enumerate(made)
    ]
    last = f"made{len(made) - 1}"
    held = [numpy_helper.from_array(WEIGHT, "dense"), numpy_helper.from_array(np.array(True), "yes")]
    dense = whole([gemm("dense")], held[:1])
    decoy = [
        gemm("dense", "plain"),
        helper.make_node("Mul", ["plain", "nothing"], ["gone"]),
        gemm(last, "real"),
        helper.make_node("Add", ["gone", "real"], ["logits"]),
    ]
    nothing = numpy_helper.from_array(np.float32(0), "nothing")
    for found in (
        check_lineage(dense, whole([*nodes, gemm(last)], held)),
        check_lineage(dense, whole([*nodes, *decoy], [*held, nothing])),
    ):
        assert found.verdict in ("not comparable", "not a rounding of the dense model")
        assert len(found.unmatched_artifact) == 1
        assert any("not followed here" in sentence for sentence in found.sentences)
    assert check_lineage(dense, dense).verdict == "confirmed"


def test_a_weight_that_is_cast_is_what_the_runtime_makes_of_it() -> None:
    cast = helper.make_node("Cast", ["dense"], ["half"], to=TensorProto.FLOAT16)
    back = helper.make_node("Cast", ["half"], ["wide"], to=TensorProto.FLOAT)
    dense = whole([gemm("dense")], [numpy_helper.from_array(WEIGHT, "dense")])
    found = check_lineage(dense, whole([cast, back, gemm("wide")], [numpy_helper.from_array(WEIGHT, "dense")]))
    assert (found.verdict, found.layers[0].levels, found.layers[0].bits) == ("confirmed", "float16", 16)
    scale = np.float32(np.abs(WEIGHT).max() / 127)
    held = [numpy_helper.from_array(np.rint(WEIGHT / scale), "codes"), numpy_helper.from_array(scale, "scale")]
    whole_codes = helper.make_node("Cast", ["codes"], ["integers"], to=TensorProto.INT8)
    floats = helper.make_node("Cast", ["integers"], ["floats"], to=TensorProto.FLOAT)
    found = check_lineage(
        dense, whole([whole_codes, floats, helper.make_node("Mul", ["floats", "scale"], ["wide"]), gemm("wide")], held)
    )
    assert (found.verdict, found.layers[0].bits) == ("confirmed", 8)


def test_only_the_standards_operators_are_taken_for_what_they_are_called() -> None:
    """A weight that another package's Transpose makes is anything; the standard's has the dense model's values."""

    def made(domain: str) -> Constant | None:
        node = helper.make_node("Transpose", ["dense"], ["made"], domain=domain, perm=[1, 0])
        model = onnx.load_model_from_string(whole([gemm("dense")], [numpy_helper.from_array(WEIGHT, "dense")]))
        model.graph.node.append(node)
        model.opset_import.append(helper.make_opsetid("theirs", 1))
        return Graph(model).constant("made")

    assert made("theirs") is None
    for domain in ("", "ai.onnx"):
        constant = made(domain)
        assert constant is not None
        np.testing.assert_array_equal(constant.values, WEIGHT.T)


def test_blocks_longer_than_the_axis_take_no_memory() -> None:
    scale = np.abs(WEIGHT).max(1, keepdims=True) / np.float32(127)
    held = [numpy_helper.from_array(np.rint(WEIGHT / scale).astype(np.int8), "codes")]
    held.append(numpy_helper.from_array(scale, "scale"))
    node = helper.make_node("DequantizeLinear", ["codes", "scale"], ["wide"], axis=1, block_size=2**40)
    dense = whole([gemm("dense")], [numpy_helper.from_array(WEIGHT, "dense")])
    assert check_lineage(dense, whole([node, gemm("wide")], held)).verdict == "confirmed"
    twin = twin_of(whole([node, gemm("wide")], held))
    np.testing.assert_allclose(
        twin(torch.eye(16)).detach().numpy(), (np.rint(WEIGHT / scale) * scale).T, rtol=1e-6, atol=1e-6
    )


SMUGGLED = {  # how other numbers than the dense model's reach a product as if the input had made them
    "Add": [("Add", ["decoy", "zero"], "made", {})],
    "Where": [("Where", ["bright", "decoy", "nothing"], "made", {})],
    "Concat and Slice": [
        ("Expand", ["zero", "shape"], "zeros", {}),
        ("Concat", ["decoy", "zeros"], "both", {"axis": 0}),
        ("Slice", ["both", "first", "last"], "made", {}),
    ],
    "in one row": [("Add", ["flat", "zero"], "moved", {}), ("Reshape", ["moved", "shape"], "made", {})],
    "in pieces": [
        *((("Add", [f"row{i}", "zero"], f"moved{i}", {})) for i in range(16)),
        ("Concat", [f"moved{i}" for i in range(16)], "made", {"axis": 0}),
    ],
    "not followed": [("Tanh", ["decoy"], "bent", {}), ("Add", ["bent", "zero"], "made", {})],
}


@pytest.mark.parametrize("way", SMUGGLED)
def test_other_numbers_that_meet_the_input_are_not_confirmed(way: str) -> None:
    """Beside the dense model's own layer; where the numbers are the dense model's too, nothing is wrong with them."""
    decoy = OTHER.T.copy()
    arrays = {
        "dense": WEIGHT,
        "decoy": decoy,
        "flat": decoy.ravel(),
        "nothing": np.float32(0),
        "shape": np.array([16, 6]),
        "first": np.array([0, 0]),
        "last": decoy.shape,
        **{f"row{i}": row[None] for i, row in enumerate(decoy)},
    }
    before = [
        helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
        helper.make_node("GreaterOrEqual", ["zero", "nothing"], ["bright"]),
        gemm("dense", "real"),
    ]
    after = [
        helper.make_node("MatMul", ["input", "made"], ["hidden"]),
        helper.make_node("Add", ["real", "hidden"], ["logits"]),
    ]
    made = [helper.make_node(kind, inputs, [output], **more) for kind, inputs, output, more in SMUGGLED[way]]
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    dense = whole([gemm("dense")], held[:1])
    tampered = whole([*before, *made, *after], held)
    found = check_lineage(dense, tampered)
    assert found.verdict == "not comparable"
    assert found.reason is not None
    assert "is not followed here" in found.reason
    assert found.layers[0].nearest == WEIGHT.size
    assert check_lineage(tampered, tampered).verdict == "confirmed"
    held[0] = numpy_helper.from_array(WEIGHT + 1, "dense")
    assert check_lineage(dense, whole([*before, *made, *after], held)).verdict == "not a rounding of the dense model"


class Positions(nn.Module):
    """Attention with a token of its own, a table of positions, and a table of distances in its scores."""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.query, self.norm, self.head = (
            nn.Linear(8, 12),
            nn.Linear(12, 12),
            nn.LayerNorm(12),
            nn.Linear(12, 5),
        )
        random = generator(8, "positions")
        for name, shape in (("token", (1, 1, 12)), ("table", (1, 9, 12)), ("distances", (9, 9))):
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=random)))
        self.norm.weight.data = torch.rand(12, generator=random)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x[:, 0])
        x = self.norm(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.table)
        scores = self.query(x) @ x.transpose(1, 2) + self.distances
        return self.head((scores.softmax(-1) @ x).mean(1))


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator, None], ids=str)
def test_honest_tables_stay_confirmed(form: QuantFormat | None, tmp_path: Path) -> None:
    """Rounded to eight bits or to float16, as tables that are added are too."""
    dense, other = tmp_path / "dense.onnx", tmp_path / "other.onnx"
    dense.write_bytes(to_onnx(Positions().eval(), (1, 8, 8)))
    if form is None:
        file = convert_float_to_float16(onnx.load(dense), keep_io_types=True)
        other.write_bytes(file.SerializeToString())
    else:
        reader = Calibration()
        reader.left = iter([{"input": noise(8, 1, 8, 8).numpy()}])
        quantize_static(dense, other, reader, quant_format=form, weight_type=QuantType.QInt8)
    found = check_lineage(dense.read_bytes(), other.read_bytes())
    assert (found.verdict, len(found.layers)) == ("confirmed", 3), found.sentences
    file = onnx.load(other)
    changed = [tensor for tensor in file.graph.initializer if list(tensor.dims) == [9, 9]]
    for tensor in changed:
        array = numpy_helper.to_array(tensor).copy()
        array[2, 3] += 3
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    assert len(changed) == 1
    assert check_lineage(dense.read_bytes(), file.SerializeToString()).verdict == "not comparable"


def test_a_mask_that_was_folded_is_no_table() -> None:
    """A triangle of two values that the dense model computes; a mask of another pattern is one."""
    scores = helper.make_node("Gemm", ["input", "dense"], ["real"], transB=1)
    added = helper.make_node("Add", ["real", "mask"], ["logits"])
    made = helper.make_node("Trilu", ["far"], ["mask"], upper=1)
    weight = numpy_helper.from_array(WEIGHT, "dense")
    far, one = np.full((6, 6), -1e9, np.float32), numpy_helper.from_array(np.int64(1), "one")
    made.input.append("one")
    dense = whole([scores, made, added], [weight, numpy_helper.from_array(far, "far"), one])
    other = np.where(np.eye(6) > 0, np.float32(-1e9), np.float32(0))
    for table, verdict in (
        (np.triu(far, 1), "confirmed"),
        (np.triu(far, 1) * 2, "confirmed"),
        (np.tril(far, -1), "other structure"),
        (other, "not comparable"),
    ):
        held = [weight, numpy_helper.from_array(np.asarray(table, np.float32), "mask")]
        assert check_lineage(dense, whole([scores, added], held)).verdict == verdict
