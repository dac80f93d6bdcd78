"""Whether a file is its dense model, rounded: honest files of two quantisers are confirmed, planted ones are named."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, nn

from crushproof.compression.export import to_onnx
from crushproof.compression.footprint import footprint_of_file
from crushproof.compression.lineage import Lineage, check_lineage, compare, not_read
from crushproof.compression.prune import Prune
from crushproof.compression.quantize import Quantize
from crushproof.targets.model_file import ModelFile, check_onnx
from crushproof.targets.records import Bounds, Records
from crushproof.targets.seeds import generator
from crushproof.targets.twin import twin_of
from crushproof.training.networks import SequenceTransformer

SHAPE = (3, 8, 8)


def exported(model: bytes) -> ModelFile:
    """As `read_model_file` gives it, without the process of its own."""
    return ModelFile("onnx", model, check_onnx(model).facts)


class Small(nn.Module):
    """Convolutions with batch norms (one of them depthwise) and a residual, and two linear layers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.third = nn.Conv2d(8, 8, 1)
        self.fc1, self.fc2 = nn.Linear(8 * 16, 24), nn.Linear(24, 10)
        random = generator(seed, "small")
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random) * 0.3
        for norm in (self.norm1, self.norm2):
            norm.weight.data = 0.5 + torch.rand(8, generator=random)
            norm.weight.data[2] *= -1
            norm.running_mean = torch.randn(8, generator=random) * 0.1
            norm.running_var = 0.5 + torch.rand(8, generator=random)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.first(x)))
        x = torch.relu(self.third(x + torch.relu(self.norm2(self.second(x)))))
        return self.fc2(torch.relu(self.fc1(torch.max_pool2d(x, 2).flatten(1))))


class Sequence(nn.Module):
    """A recurrent layer, and a product over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.mix, self.head = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.mix(self.recurrent(x[:, 0])[0]))[:, -1])


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator(6, "noise"))


def unfolded(module: nn.Module) -> bytes:
    """An export that keeps batch norms."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (noise(2, *SHAPE),),
            file,
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )
    return file.getvalue()


class Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = iter([{"input": part.numpy()} for part in noise(16, *SHAPE).split(8)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Small(1).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: nn.Module) -> Path:
    """dense.onnx, unfolded.onnx, and files by ONNX Runtime's quantiser: qdq, qop, dynamic, unsigned."""
    path = tmp_path_factory.mktemp("lineage")
    (path / "dense.onnx").write_bytes(to_onnx(model, SHAPE))
    (path / "unfolded.onnx").write_bytes(unfolded(model))
    (path / "sequence.onnx").write_bytes(to_onnx(Sequence().eval(), (1, 6, 8)))
    quant_pre_process(path / "unfolded.onnx", path / "prepared.onnx")
    quant_pre_process(path / "sequence.onnx", path / "sequence_prepared.onnx")
    for name, form, weight, channels in (
        ("qdq", QuantFormat.QDQ, QuantType.QInt8, True),
        ("qop", QuantFormat.QOperator, QuantType.QInt8, True),
        ("unsigned", QuantFormat.QDQ, QuantType.QUInt8, False),
    ):
        quantize_static(
            path / "prepared.onnx",
            path / f"{name}.onnx",
            Calibration(),
            quant_format=form,
            per_channel=channels,
            activation_type=QuantType.QUInt8,
            weight_type=weight,
        )
    quantize_dynamic(path / "prepared.onnx", path / "dynamic.onnx", weight_type=QuantType.QUInt8)
    quantize_dynamic(path / "sequence_prepared.onnx", path / "sequence_dynamic.onnx", weight_type=QuantType.QInt8)
    return path


def read(folder: Path, name: str) -> bytes:
    return (folder / f"{name}.onnx").read_bytes()


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


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    """Layers of their own weights: equal ones would share an initialiser."""
    module = SequenceTransformer().eval()
    random = generator(3, "encoder")
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random) * 0.2
    return module


@pytest.mark.parametrize("activations", ["dynamic", "static", "float"])
def test_transformers_whose_attention_was_opened(encoder: nn.Module, activations: str) -> None:
    """torch packs query, key and value into one matrix; a recipe holds them apart."""
    records = Records(noise(32, 1, 8, 8), torch.zeros(32, dtype=torch.long))
    artifact = Quantize(activations=activations).apply(encoder, records, Bounds.of(0.0, 1.0), seed=0)
    dense = to_onnx(encoder, (1, 8, 8))
    found = check_lineage(dense, to_onnx(artifact, (1, 8, 8)))
    count = sum(parameter.numel() for parameter in encoder.parameters() if parameter.dim() == 2)
    confirmed(found, count, 15)
    encoder.encoder.layers[1].self_attn.in_proj_weight.data[40] += 0.3
    moved = check_lineage(dense, to_onnx(encoder, (1, 8, 8)))
    encoder.encoder.layers[1].self_attn.in_proj_weight.data[40] -= 0.3
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


@settings(max_examples=40)
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


def our_own(model: nn.Module, **options: object) -> bytes:
    records = Records(noise(32, *SHAPE), torch.zeros(32, dtype=torch.long))
    recipe = Quantize(**options)
    return to_onnx(recipe.apply(model, records, Bounds.of(0.0, 1.0), seed=0), SHAPE)


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


@pytest.mark.parametrize("kind", ["product", "unread", "branch", "initialiser"])
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


@settings(max_examples=40)
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


def whole(nodes: list[onnx.NodeProto], held: list[onnx.TensorProto]) -> bytes:
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 16])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 6])]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


WEIGHT = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)
OTHER = np.random.default_rng(1).normal(size=(6, 16)).astype(np.float32)


def gemm(weight: str, output: str = "logits") -> onnx.NodeProto:
    return helper.make_node("Gemm", ["input", weight], [output], output, transB=1)


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
    scores = [helper.make_node("Gemm", ["input", "dense"], ["real"], transB=1)]
    mask = np.triu(np.full((6, 6), -1e9, np.float32), 1)
    other = np.where(np.eye(6) > 0, np.float32(-1e9), np.float32(0))
    dense = whole(
        [*scores, helper.make_node("Identity", ["real"], ["logits"])], [numpy_helper.from_array(WEIGHT, "dense")]
    )
    for table, verdict in ((mask, "confirmed"), (mask.T.copy(), "confirmed"), (other, "not comparable")):
        nodes = [*scores, helper.make_node("Add", ["real", "mask"], ["logits"])]
        held = [numpy_helper.from_array(WEIGHT, "dense"), numpy_helper.from_array(table, "mask")]
        assert check_lineage(dense, whole(nodes, held)).verdict == verdict
