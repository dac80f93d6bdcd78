"""Whether a file is its dense model, rounded: honest files of two quantisers are confirmed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lineage_files import SHAPE, noise, our_own, read, whole
from model_files import exported
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.footprint.footprint import footprint_of_file
from crushproof.compression.lineage.lineage import Lineage, check_lineage, compare, not_read
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.records import Bounds, Records


def confirmed(found: Lineage, codes: int, layers: int) -> None:
    assert found.verdict == "confirmed", found.sentences
    assert found.sentences[0] == (
        f"All {codes:,} codes of {layers} layers are the nearest rounding of the dense model's weights: confirmed."
    )
    assert sum(layer.nearest for layer in found.layers) == found.weights
    assert not found.unmatched_artifact
    assert not found.unmatched_dense


CODES = 8 * 27 + 8 * 9 + 64 + 128 * 24 + 240


@pytest.mark.parametrize("dense", ["dense", "unfolded"])
@pytest.mark.parametrize("name", ["qdq", "qop", "unsigned", "dynamic"])
def test_onnx_runtimes_honest_files_are_confirmed(folder: Path, name: str, dense: str) -> None:
    found = check_lineage(read(folder, dense), read(folder, name))
    confirmed(found, CODES, 5)
    assert all(layer.biases and not layer.bias_off for layer in found.layers)
    per_channel = name in ("qdq", "qop")
    assert {layer.scale_kind for layer in found.layers} == {"per channel" if per_channel else "per tensor"}
    assert all("largest magnitude / 127" in layer.scale_words for layer in found.layers) == per_channel


def test_recurrent_layers(folder: Path) -> None:
    found = check_lineage(read(folder, "sequence"), read(folder, "sequence_dynamic"))
    confirmed(found, 48 * 8 + 48 * 12 + 144 + 60, 4)


def test_transformers_whose_attention_was_opened(encoder: nn.Module) -> None:
    """torch packs query, key and value into one matrix; a recipe holds them apart."""
    records = Records(noise(32, 1, 8, 8), torch.zeros(32, dtype=torch.long))
    dense = to_onnx(encoder, (1, 8, 8))
    count = sum(parameter.numel() for parameter in encoder.parameters() if parameter.dim() == 2)
    for activations in ("dynamic", "static", "float"):
        recipe = Quantize.model_validate({"activations": activations})
        artifact = recipe.apply(encoder, records, Bounds.of(0.0, 1.0), seed=0)
        confirmed(check_lineage(dense, to_onnx(artifact, (1, 8, 8))), count, 9)
    encoder.encoder.layers[0].self_attn.in_proj_weight.data[40] += 0.3
    moved = check_lineage(dense, to_onnx(encoder, (1, 8, 8)))
    encoder.encoder.layers[0].self_attn.in_proj_weight.data[40] -= 0.3
    assert moved.verdict == "not a rounding of the dense model"
    assert [layer.beyond for layer in moved.layers if layer.beyond] == [32]


@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_of_four_bits_by_onnx_runtime(symmetric: bool) -> None:
    module = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 10)).eval()
    dense = to_onnx(module, (3, 40))
    quantizer = MatMulNBitsQuantizer(onnx.load_model_from_string(dense), bits=4, block_size=16, is_symmetric=symmetric)
    quantizer.process()
    model = quantizer.model.model
    found = check_lineage(dense, model.SerializeToString())
    confirmed(found, 1200, 2)
    assert {layer.scale_kind for layer in found.layers} == {"blocked"}
    held = next(tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.UINT8)
    packed = numpy_helper.to_array(held).copy()
    packed.ravel()[3] ^= 0x40  # a bit of one code: four steps
    held.CopyFrom(numpy_helper.from_array(packed, held.name))
    assert sum(layer.beyond for layer in check_lineage(dense, model.SerializeToString()).layers) == 1


@settings(max_examples=16)
@given(st.sampled_from(["qdq", "qop", "dynamic", "unsigned"]), st.data())
def test_a_garbled_graph_ends_in_a_verdict(folder: Path, name: str, data: st.DataObject) -> None:
    """Inputs exchanged, dropped or reshaped: whatever the checker of ONNX would let pass, and more."""
    model = onnx.load_model_from_string(read(folder, name))
    for _ in range(data.draw(st.integers(1, 4))):
        node = data.draw(st.sampled_from([node for node in model.graph.node if node.input]))
        held = data.draw(st.sampled_from(list(model.graph.initializer)))
        place = data.draw(st.integers(0, len(node.input) - 1))
        action = data.draw(st.sampled_from(["exchange", "drop", "flatten", "attribute"]))
        if action == "exchange":
            node.input[place] = held.name
        elif action == "drop":
            del node.input[place]
        elif action == "flatten":
            array = numpy_helper.to_array(held).ravel()
            held.CopyFrom(numpy_helper.from_array(array[: data.draw(st.integers(0, 3)) or None], held.name))
        elif node.attribute and node.attribute[0].ints:
            node.attribute[0].ints[0] = data.draw(st.integers(-9, 99))
    found = compare(onnx.load_model_from_string(read(folder, "dense")), model)
    assert found.sentences


@pytest.mark.parametrize("dense", ["dense", "unfolded"])
@pytest.mark.parametrize(
    "options",
    [
        {"weight_bits": 8},
        {"weight_bits": 8, "activations": "dynamic"},
        {"weight_bits": 4},
        {"weight_bits": 4, "activations": "float", "granularity": "group", "group_size": 16},
        {"weight_bits": 3, "activations": "float", "granularity": "tensor"},
        {"number": "fixed-point", "weight_bits": 8},
        {"number": "ternary", "activations": "float"},
        {"number": "binary", "activations": "float"},
        {"number": "float16", "activations": "float"},
        {"number": "bfloat16", "activations": "float"},
    ],
    ids=str,
)
def test_our_own_honest_files_are_confirmed(
    folder: Path, model: nn.Module, options: dict[str, object], dense: str
) -> None:
    found = check_lineage(read(folder, dense), our_own(model, **options))
    confirmed(found, CODES, 5)
    if options.get("granularity") == "group":
        assert any(layer.scale_kind == "blocked" for layer in found.layers)


def test_unrounded_files_are_equal(folder: Path) -> None:
    """Only the fold of the batch norms differs."""
    for dense, artifact in (("dense", "unfolded"), ("unfolded", "dense"), ("dense", "dense")):
        found = check_lineage(read(folder, dense), read(folder, artifact))
        assert found.verdict == "confirmed"
        assert found.sentences == ("5 layers left in float32: equal to the dense model's.",)


def two_layers(middle: int, hide: str | None = None, last: np.ndarray | None = None) -> bytes:
    """16 -> middle -> 6 without biases; the weight of the first product can be made by an operator not followed."""
    first = np.random.default_rng(3).normal(size=(16, 20)).astype(np.float32)[:, :middle]
    second = np.random.default_rng(4).normal(size=(20, 6)).astype(np.float32)[:middle]
    nodes = [] if hide is None else [helper.make_node(hide, ["first"], ["hidden"])]
    nodes += [
        helper.make_node("MatMul", ["input", "first" if hide is None else "hidden"], ["inner"]),
        helper.make_node("Relu", ["inner"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["logits"]),
    ]
    arrays = {"first": first, "second": second if last is None else last}
    return whole(nodes, [numpy_helper.from_array(array, name) for name, array in arrays.items()])


def test_what_cannot_be_compared_says_why() -> None:
    dense = two_layers(19)
    wider = check_lineage(dense, two_layers(20))
    assert (wider.verdict, wider.layers) == ("not comparable", ())
    assert wider.reason is not None
    assert "first [20, 16], second [6, 20] where the dense model has first [19, 16], second [6, 19]" in wider.reason
    for hide in ("Neg", "Floor"):
        hidden = check_lineage(dense, two_layers(19, hide))
        assert (hidden.verdict, hidden.unmatched_artifact) == ("not comparable", ("hidden",))
        assert hidden.reason is not None
        assert "hidden of what it holds is not followed" in hidden.reason
    tampered = check_lineage(dense, two_layers(19, "Floor", np.ones((19, 6), np.float32)))
    assert (tampered.verdict, tampered.reason) == ("not a rounding of the dense model", None)
    computed = check_lineage(two_layers(19, "Floor"), dense)  # of the dense model's own making
    assert (computed.verdict, computed.unmatched_artifact) == ("not comparable", ("first",))
    assert computed.reason is not None
    assert "the dense model makes hidden" in computed.reason
    assert check_lineage(dense, dense).reason is None
    assert not_read("tflite").verdict == "not comparable"


@settings(max_examples=30)
@given(
    st.integers(0, 2**31),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from(["tensor", "channel", "block"]),
    st.booleans(),
    st.integers(0, 5),
)
def test_against_a_naive_count(seed: int, bits: int, granularity: str, transposed: bool, moves: int) -> None:
    """Planted moves are counted one for one, whatever shares a scale and however the weight is turned."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(6, 16)).astype(np.float32)
    top = 2 ** (bits - 1) - 1
    blocks = np.abs(weight).reshape(6, 2, 8).max(2)
    scale = {
        "tensor": np.abs(weight).max(),
        "channel": np.abs(weight).max(1),
        "block": blocks,
    }[granularity].astype(np.float32) / np.float32(top)
    spread = np.repeat(scale, 8, 1) if granularity == "block" else np.broadcast_to(scale.reshape(-1, 1), (6, 16))
    steps = weight / spread
    codes = np.rint(steps).astype(np.int8)
    free = np.flatnonzero((np.abs(steps) < top - 1).ravel() & (np.abs(steps - codes).ravel() < 0.49))
    places = random.permutation(free)[:moves]
    codes.ravel()[places] += np.where(steps.ravel()[places] > codes.ravel()[places], 1, -1).astype(np.int8)
    attributes = {"block_size": 8} if granularity == "block" else {}
    axis = 1 if granularity == "block" else 0
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["wide"], axis=axis, **attributes),
        helper.make_node("Transpose", ["wide"], ["weight"], perm=[1, 0]),
        helper.make_node("MatMul", ["input", "weight"], ["logits"]),
    ]
    dense = [helper.make_node("Gemm", ["input", "weight"], ["logits"], transB=int(not transposed))]
    held = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scale, "scale")]
    plain = [numpy_helper.from_array(np.ascontiguousarray(weight.T) if transposed else weight, "weight")]
    found = check_lineage(whole(dense, plain), whole(nodes, held))
    (layer,) = found.layers
    assert (layer.other_neighbour, layer.beyond) == (len(places), 0)
    assert found.verdict == ("not nearest" if len(places) else "confirmed")
    words = {"tensor": "per tensor", "channel": "per channel", "block": "blocked"}
    assert layer.scale_kind == words[granularity]


def test_what_onnx_runtimes_optimiser_fuses_and_looks_up_is_read(
    folder: Path, encoder: nn.Module, tmp_path: Path
) -> None:
    for dense, shape in ((read(folder, "dense"), SHAPE), (to_onnx(encoder, (1, 8, 8)), (1, 8, 8))):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(dense, options, providers=["CPUExecutionProvider"])
        optimised = Path(options.optimized_model_filepath).read_bytes()
        assert check_lineage(dense, optimised).verdict == "confirmed"
        macs = [footprint_of_file(exported(model), shape)["macs"] for model in (dense, optimised)]
        assert macs[0] == macs[1] > 0
