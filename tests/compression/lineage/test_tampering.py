"""A file that is not what its dense model rounds to is named: codes, biases, scales, layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from lineage_files import OTHER, SHAPE, WEIGHT, Small, gemm, noise, our_own, read, whole
from model_files import exported
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.footprint.footprint import footprint_of_file
from crushproof.compression.lineage.lineage import check_lineage
from crushproof.compression.pruning.prune import Prune
from crushproof.targets.data.records import Bounds, Records


def planted(data: bytes, size: int, plant: Callable[[np.ndarray], np.ndarray]) -> tuple[bytes, str]:
    """The file with the one integer initialiser of `size` elements exchanged; and its name."""
    file = onnx.load_model_from_string(data)
    (held,) = (
        tensor
        for tensor in file.graph.initializer
        if tensor.data_type in (TensorProto.INT8, TensorProto.UINT8) and np.prod(tensor.dims) == size
    )
    array = plant(numpy_helper.to_array(held).copy())
    held.CopyFrom(numpy_helper.from_array(array, held.name))
    return file.SerializeToString(), held.name.removesuffix("_quantized")


def weight_of(data: bytes, size: int) -> np.ndarray:
    """The float weight of `size` elements."""
    (held,) = (
        numpy_helper.to_array(tensor)
        for tensor in onnx.load_model_from_string(data).graph.initializer
        if np.prod(tensor.dims) == size
    )
    return held


def moved(codes: np.ndarray, weight: np.ndarray, share: float) -> np.ndarray:
    """A share of the codes at their other neighbour, by the arithmetic of symmetric quantisation per channel."""
    scale = np.abs(weight).reshape(len(weight), -1).max(1) / 127
    steps = weight.reshape(len(weight), -1) / scale[:, None]
    flat, steps = codes.ravel(), steps.ravel()
    places = np.random.default_rng(0).permutation(np.flatnonzero(np.abs(steps) < 126))[: round(share * codes.size)]
    flat[places] = np.where(steps[places] > flat[places], flat[places] + 1, flat[places] - 1)
    return flat.reshape(codes.shape)


FC1 = 128 * 24


@pytest.mark.parametrize("name", ["qdq", "qop"])
@pytest.mark.parametrize("share", [0.05, 1 / FC1])
def test_codes_moved_to_the_other_neighbour_are_named(folder: Path, name: str, share: float) -> None:
    weight = weight_of(read(folder, "dense"), FC1)
    artifact, layer = planted(read(folder, name), FC1, lambda codes: moved(codes, weight, share))
    found = check_lineage(read(folder, "unfolded"), artifact)
    assert found.verdict == "not nearest"
    (wrong,) = (row for row in found.layers if row.other_neighbour)
    assert wrong.name == layer
    assert wrong.other_neighbour == round(share * FC1)
    assert wrong.beyond == 0
    (sentence,) = found.sentences
    words = "5.0 %" if share == 0.05 else "1 (0.03 %)"
    assert sentence.startswith(f"{layer}: {words} of 3,072 codes are the other neighbour (not nearest).")
    assert "seed" in sentence
    assert "digest of its calibration data" in sentence


@pytest.mark.parametrize("name", ["qdq", "dynamic"])
def test_codes_two_steps_away_are_named(folder: Path, name: str) -> None:
    def plant(codes: np.ndarray) -> np.ndarray:
        flat = codes.ravel()
        middle = 128 if codes.dtype == np.uint8 else 0
        places = np.flatnonzero(np.abs(flat.astype(int) - middle) < 100)[:93]
        flat[places] += 2
        return flat.reshape(codes.shape)

    artifact, layer = planted(read(folder, name), FC1, plant)
    found = check_lineage(read(folder, "dense"), artifact)
    assert found.verdict == "not a rounding of the dense model"
    (wrong,) = (row for row in found.layers if row.beyond)
    assert (wrong.name, wrong.beyond, wrong.other_neighbour) == (layer, 93, 0)
    assert 1.5 <= wrong.worst_steps <= 2.5
    assert found.sentences[0].startswith(f"{layer}: 3.0 % of 3,072 codes are neither neighbour")


def test_adaptive_rounding_is_asked_for_its_seed(folder: Path) -> None:
    """Floor plus a perturbed, learned-looking choice: each code stays one of its two neighbours."""
    weight = weight_of(read(folder, "dense"), FC1)

    def plant(codes: np.ndarray) -> np.ndarray:
        scale = np.abs(weight).max(1, keepdims=True) / 127
        steps = weight / scale
        chosen = steps - np.floor(steps) + np.random.default_rng(1).normal(0, 0.15, steps.shape) > 0.5
        return np.clip(np.floor(steps) + chosen, -127, 127).astype(np.int8)

    artifact, layer = planted(read(folder, "qdq"), FC1, plant)
    found = check_lineage(read(folder, "dense"), artifact)
    assert found.verdict == "not nearest"
    (wrong,) = (row for row in found.layers if row.other_neighbour)
    assert wrong.name == layer
    assert 0.05 < wrong.other_neighbour / FC1 < 0.25
    assert "ask for its seed and the digest of its calibration data" in found.sentences[0]


def test_other_models_are_no_roundings(folder: Path, model: nn.Module) -> None:
    for bits in (8, 4):
        other = check_lineage(to_onnx(Small(2).eval(), SHAPE), our_own(model, weight_bits=bits))
        assert other.verdict == "not a rounding of the dense model"
        assert all(layer.beyond > 0.1 * layer.weights for layer in other.layers)
    assert check_lineage(to_onnx(Small(2).eval(), SHAPE), read(folder, "qdq")).verdict == other.verdict
    narrow = check_lineage(to_onnx(nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), SHAPE), read(folder, "qdq"))
    assert narrow.verdict == "not comparable"
    assert "other shapes" in narrow.sentences[0]


def test_pruned_and_retrained_models_are_named(folder: Path, model: nn.Module) -> None:
    records = Records(noise(32, *SHAPE), torch.zeros(32, dtype=torch.long))
    pruned = Prune(sparsity=0.6).apply(model, records, Bounds.of(0.0, 1.0), seed=0)
    for artifact in (to_onnx(pruned, SHAPE), our_own(pruned, weight_bits=8)):
        found = check_lineage(read(folder, "dense"), artifact)
        assert found.verdict == "not a rounding of the dense model"
        assert any("zero, as after pruning" in sentence for sentence in found.sentences)
    retrained = Small(1).eval()
    retrained.fc1.weight.data += 0.05 * (noise(24, 128) - 0.5)
    found = check_lineage(read(folder, "dense"), our_own(retrained, weight_bits=8))
    assert found.verdict == "not a rounding of the dense model"
    assert [layer.weights for layer in found.layers if layer.beyond] == [FC1]


@pytest.mark.parametrize("name", ["qdq", "qop", "dynamic"])
def test_tampered_biases_are_named(folder: Path, name: str) -> None:
    file = onnx.load_model_from_string(read(folder, name))
    kind = TensorProto.FLOAT if name == "dynamic" else TensorProto.INT32
    held = next(t for t in file.graph.initializer if t.data_type == kind and list(t.dims) == [24] and "bias" in t.name)
    if "zero_point" in held.name or "scale" in held.name:
        pytest.fail("that is no bias")
    array = numpy_helper.to_array(held).copy()
    array[[1, 5]] += np.array(0.01 if name == "dynamic" else 3, array.dtype)
    held.CopyFrom(numpy_helper.from_array(array, held.name))
    found = check_lineage(read(folder, "unfolded"), file.SerializeToString())
    assert found.verdict == "not a rounding of the dense model"
    (wrong,) = (row for row in found.layers if row.bias_off)
    assert (wrong.weights, wrong.bias_off, wrong.biases) == (FC1, 2, 24)
    assert f"{wrong.name}: 2 of 24 biases are not the dense model's" in found.sentences[0]


def test_a_tampered_scale_is_named(folder: Path) -> None:
    file = onnx.load_model_from_string(read(folder, "qdq"))
    held = next(t for t in file.graph.initializer if t.name.endswith("weight_scale") and list(t.dims) == [24])
    scale = numpy_helper.to_array(held).copy()
    scale[3] *= 1.5
    held.CopyFrom(numpy_helper.from_array(scale, held.name))
    found = check_lineage(read(folder, "dense"), file.SerializeToString())
    assert found.verdict == "not a rounding of the dense model"
    assert [layer.weights for layer in found.layers if layer.beyond] == [FC1]


def test_layers_added_or_removed_are_named(folder: Path, model: nn.Module) -> None:
    class More(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.extra = model, nn.Linear(10, 10)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.model(x)
            return logits + self.extra(logits)

    more = to_onnx(More().eval(), SHAPE)
    found = check_lineage(read(folder, "dense"), more)
    assert found.verdict == "not a rounding of the dense model"
    assert found.unmatched_artifact == ("extra.weight",)
    assert found.sentences == ("The dense model has no counterpart of extra.weight: not a rounding of this model.",)
    assert check_lineage(more, read(folder, "dense")).unmatched_dense == ("extra.weight",)


def with_dead(data: bytes, kind: str) -> bytes:
    """The file with something that no output depends on, of more weights than it has itself."""
    file = onnx.load_model_from_string(data)
    graph, entry = file.graph, file.graph.input[0].name
    random = np.random.default_rng(5)
    graph.initializer.append(numpy_helper.from_array(random.normal(size=(192, 400)).astype(np.float32), "idle"))
    nodes = [helper.make_node("Flatten", [entry], ["flat"])]
    if kind == "unread":
        nodes.append(helper.make_node("Floor", ["idle"], ["floored"]))
    if kind == "branch":
        inner = [helper.make_node("MatMul", ["flat", "idle"], ["deep"]), helper.make_node("Relu", ["flat"], ["kept"])]
        output = [helper.make_tensor_value_info("kept", TensorProto.FLOAT, None)]
        branch = helper.make_graph(inner, "inner", [], output)
        graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        nodes.append(helper.make_node("If", ["yes"], ["gone"], then_branch=branch, else_branch=branch))
        nodes.append(helper.make_node("ReduceSum", ["gone"], ["sum"], keepdims=0))
        nodes.append(helper.make_node("Mul", ["sum", "nothing"], ["zero"]))
        nodes.append(helper.make_node("Add", ["zero", "before"], [graph.output[0].name]))
        graph.initializer.append(numpy_helper.from_array(np.float32(0), "nothing"))
        last = next(node for node in graph.node if graph.output[0].name in node.output)
        last.output[0] = "before"
    elif kind != "initialiser":
        held = "floored" if kind == "unread" else "idle"
        nodes.append(helper.make_node("MatMul", ["flat", held], ["dead"]))
        nodes.append(helper.make_node("Relu", ["dead"], ["deader"]))
    graph.node.extend(nodes)
    onnx.checker.check_model(file)
    return file.SerializeToString()


def test_a_branch_that_adds_nothing_is_left_over(folder: Path) -> None:
    """Its weights are dead and change nothing; that it stands between the dense model and the output is said."""
    dense, artifact = read(folder, "dense"), read(folder, "qdq")
    plain, found = check_lineage(dense, artifact), check_lineage(dense, with_dead(artifact, "branch"))
    assert (found.layers, found.unmatched_artifact) == (plain.layers, ())
    assert (plain.verdict, found.verdict, found.structure) == ("confirmed", "other structure", "differs")
    assert "has no counterpart in the dense model" in " ".join(found.sentences)
    assert {"Add", "If"} <= {node.split()[0] for one in found.differences for node in one.nodes}


@pytest.mark.parametrize("kind", ["product", "unread", "initialiser"])
def test_what_reaches_no_output_changes_nothing(folder: Path, kind: str) -> None:
    tampered, _ = planted(read(folder, "qdq"), FC1, lambda codes: np.where(codes > 50, codes - 9, codes))
    dense = read(folder, "dense")
    for artifact, verdict in ((read(folder, "qdq"), "confirmed"), (tampered, "not a rounding of the dense model")):
        plain = check_lineage(dense, artifact)
        assert plain.verdict == verdict
        assert check_lineage(dense, with_dead(artifact, kind)) == plain
        assert check_lineage(with_dead(dense, kind), artifact) == plain
    counts = [
        footprint_of_file(exported(data), SHAPE)
        for data in (read(folder, "qdq"), with_dead(read(folder, "qdq"), "product"))
    ]
    assert counts[0]["macs"] == counts[1]["macs"]
    assert counts[0]["parameters"] == counts[1]["parameters"]
    assert counts[0]["payload_bytes"] < counts[1]["payload_bytes"]  # it ships, though nothing uses it


def test_more_weights_than_the_dense_model_has_hide_no_tampering() -> None:
    dense = whole([gemm("dense")], [numpy_helper.from_array(WEIGHT, "dense")])
    wide = np.random.default_rng(2).normal(size=(500, 16)).astype(np.float32)
    held = [numpy_helper.from_array(OTHER, "dense"), numpy_helper.from_array(wide, "wide")]
    held.append(numpy_helper.from_array(wide[:, :6], "narrow"))
    nodes = [
        gemm("dense", "real"),
        gemm("wide", "hidden"),
        helper.make_node("MatMul", ["hidden", "narrow"], ["more"]),
        helper.make_node("Add", ["real", "more"], ["logits"]),
    ]
    found = check_lineage(dense, whole(nodes, held))
    assert found.verdict == "not a rounding of the dense model"
    assert found.layers[0].beyond > 50
