"""What a candidate weighs: counts by hand, bounds that hold, and finished files weighed as modules are."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import exported
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from torch import Tensor, nn

from crushproof.audit.schema.file_rows import Footprint
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.footprint.energy import energy
from crushproof.compression.footprint.footprint import entropy_bytes, footprint, footprint_of_file, layer_macs
from crushproof.compression.footprint.payload import encode
from crushproof.compression.footprint.timing import interleaved_latency, peak_resident_bytes
from crushproof.compression.layers.attention import unfold_attention
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.quantization.quantized_layer import QuantizedLayer
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import CrushproofError, InputError
from crushproof.targets.model import TorchTarget
from crushproof.targets.onnx_graph.operations import Operation
from crushproof.targets.seeds import generator
from crushproof.targets.untrusted.model_file import ModelFile

SHAPE = (1, 8, 8)
# 3x3 convolutions at 8x8 (1 -> 16, then two 16 -> 16), two at 4x4, and the head 64 -> 10.
MACS = 64 * 16 * 9 + 2 * 64 * 16 * 16 * 9 + 2 * 16 * 16 * 16 * 9 + 640
WEIGHTS = 16 * 9 + 4 * 16 * 16 * 9 + 640


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator(4, "noise"))


@pytest.fixture(scope="module")
def quantized(digits: Data, dense: nn.Module) -> Callable[..., nn.Module]:
    def quantize(bits: int, activations: str = "static") -> nn.Module:
        recipe = Quantize(weight_bits=bits, activations=activations)
        return recipe.apply(dense, digits.members, digits.bounds, seed=0)

    return quantize


def width(weight_bits: int, activation_bits: int, macs: int) -> list[dict[str, int]]:
    return [{"weight_bits": weight_bits, "activation_bits": activation_bits, "macs": macs}]


def test_counts_by_hand(dense: nn.Module, quantized: Callable[..., nn.Module]) -> None:
    model, payload = to_onnx(dense, SHAPE), encode(dense)
    weighed = footprint(dense, model, payload, SHAPE)
    assert weighed["macs"] == MACS
    assert weighed["macs_by_width"] == width(32, 32, MACS)
    assert weighed["parameters"] == WEIGHTS + 10 + 5 * 2 * 16  # with the head's bias and the batch norms'
    assert weighed["disk_bytes"] == len(model)
    assert weighed["payload_bytes"] == len(payload) <= 4 * (WEIGHTS + 10 + 5 * 4 * 16) + 100
    memory = len(payload) / 4 * 640 / 1e6
    assert weighed["energy_uj_modelled"] == pytest.approx(MACS * 4.6 / 1e6 + memory, abs=1e-6)
    assert weighed["energy_memory_share"] == pytest.approx(memory / (MACS * 4.6 / 1e6 + memory), abs=1e-5)

    integer = quantized(4)
    packed = encode(integer)
    small = footprint(integer, to_onnx(integer, SHAPE), packed, SHAPE)
    layers = [layer for layer in integer.modules() if isinstance(layer, QuantizedLayer)]
    ends = sum(macs for macs, bits, _ in layer_macs(integer, SHAPE) if bits == 8)  # where the recipe keeps 8 bits
    assert small["macs"] == MACS
    assert sum(row["macs"] for row in small["macs_by_width"]) == MACS
    assert {(row["weight_bits"], row["activation_bits"]) for row in small["macs_by_width"]} <= {(4, 8), (8, 8)}
    assert ends < MACS / 2
    assert small["parameters"] == WEIGHTS + 10 + 5 * 16  # batch norms are folded into biases
    zeros = sum(int((layer.codes == 0).sum()) for layer in layers)
    assert small["parameters"] - small["nonzero_parameters"] >= zeros > 0
    assert small["energy_uj_modelled"] == pytest.approx((MACS * 0.3 + len(packed) / 4 * 640) / 1e6, abs=1e-6)
    assert 5.5 < len(payload) / len(packed) < 9

    weights_only = layer_macs(quantized(8, "float"), SHAPE)
    assert {tuple(operation[1:]) for operation in weights_only} == {(8, 32)}


def test_layers_by_hand() -> None:
    grouped, transposed = nn.Conv2d(4, 6, 3, groups=2, stride=2), nn.ConvTranspose2d(4, 6, 2, stride=2)
    assert layer_macs(grouped, (4, 9, 9)) == [(6 * 4 * 4 * 2 * 9, 32, 32)]
    assert layer_macs(transposed, (4, 5, 5)) == [(4 * 5 * 5 * 6 * 4, 32, 32)]
    for kind, gates in ((nn.LSTM, 4), (nn.GRU, 3)):
        one = 7 * gates * 12 * (5 + 12)
        assert layer_macs(kind(5, 12, batch_first=True), (7, 5)) == [(one, 32, 32)]
        deep = kind(5, 12, num_layers=2, bidirectional=True, batch_first=True)
        assert layer_macs(deep, (7, 5))[0].macs == 2 * one + 2 * 7 * gates * 12 * (24 + 12)

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x.long()).mean(1))

    assert sum(operation.macs for operation in layer_macs(Words(), (6,))) == 8


def test_attention_counts_alike_however_it_is_built() -> None:
    """Four projections and two products, whether torch fuses them or Linear layers are called; the graph agrees."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x).mean(1))

    module = Encoder().eval()
    macs = 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 16 + 24
    assert sum(operation.macs for operation in layer_macs(module, (5, 8))) == macs
    opened = unfold_attention(copy.deepcopy(module))
    assert sum(operation.macs for operation in layer_macs(opened, (5, 8))) == macs
    assert footprint_of_file(exported(to_onnx(opened, (5, 8))), (5, 8))["macs"] == macs


def test_energy_follows_the_widest_factor() -> None:
    def of(weight: int, activation: int) -> float:
        return energy([Operation(10**6, weight, activation)], 0)[0]

    assert (of(32, 32), of(8, 8), of(4, 8), of(2, 8)) == (4.6, 0.3, 0.3, 0.3)
    assert of(8, 32) == of(16, 32) == 4.6  # weights alone in few bits compute in float32
    assert of(16, 16) == 1.5
    assert energy([], 400) == (0.064, 1.0)
    assert energy([], 0) == (0.0, 0.0)


def test_a_payload_of_other_values_is_refused(dense: nn.Module) -> None:
    other = copy.deepcopy(dense)
    other.head.bias.data += 1
    with pytest.raises(CrushproofError, match=r"head\.bias"):
        footprint(dense, b"", encode(other), SHAPE)


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.sampled_from(["float", "few", "sparse", "run", "blocks", "half", "bool"]), st.data())
def test_no_payload_beats_the_entropy(seed: int, kind: str, data: st.DataObject) -> None:
    random = np.random.default_rng(seed)
    n = data.draw(st.integers(0, 3000))
    arrays = {
        "float": lambda: random.normal(size=n).astype(np.float32),
        "few": lambda: random.geometric(0.4, size=n).astype(np.int8),
        "sparse": lambda: (random.normal(size=n) * (random.random(n) < 0.1)).astype(np.float32),
        "run": lambda: np.arange(n),  # distinct, and yet packed in few bits
        "blocks": lambda: np.repeat([0.0, 1.5], [n - n // 8, n // 8]).astype(np.float32),  # zeros in one run
        "half": lambda: random.choice([0.5, 0.25, -1.0, 0.0], size=n).astype(np.float16),
        "bool": lambda: random.random(n) < 0.2,
    }
    holder = nn.Module()
    holder.register_buffer("tensor", torch.from_numpy(arrays[kind]()))
    assert entropy_bytes(holder) <= len(encode(holder))


def test_the_entropy_of_a_known_source() -> None:
    """Four equally likely codes take two bits each."""
    holder = nn.Module()
    holder.register_buffer("tensor", torch.arange(1, 5, dtype=torch.int8).repeat(1000))
    assert entropy_bytes(holder) in (1000, 1001)
    assert entropy_bytes(holder) <= len(encode(holder)) < 1100


def test_entropy_of_candidates(dense: nn.Module, quantized: Callable[..., nn.Module]) -> None:
    for module in (dense, quantized(8), quantized(4), quantized(4, "float")):
        payload = len(encode(module))
        assert 0.9 * payload < entropy_bytes(module) <= payload


def test_a_file_is_weighed_as_its_module_is(dense: nn.Module, quantized: Callable[..., nn.Module]) -> None:
    for module, folded in ((dense, True), (quantized(8), False), (quantized(4), False), (quantized(8, "float"), False)):
        model = to_onnx(module, SHAPE)
        ours, file = footprint(module, model, encode(module), SHAPE), footprint_of_file(exported(model), SHAPE)
        assert set(file) == set(ours)
        assert file["macs"] == ours["macs"]
        assert file["disk_bytes"] == ours["disk_bytes"]
        assert file["macs_by_width"] == ours["macs_by_width"]
        norms = 5 * 16 if folded else 0  # the exporter folds a batch norm's two vectors into one bias
        assert file["parameters"] == ours["parameters"] - norms
        assert file["entropy_bytes"] <= file["payload_bytes"]
        assert file["payload_bytes"] == pytest.approx(ours["payload_bytes"], rel=0.15)


class Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = iter([{"input": noise(8, *SHAPE).numpy()}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def test_files_by_another_quantiser(tmp_path: Path, dense: nn.Module) -> None:
    plain = tmp_path / "dense.onnx"
    plain.write_bytes(to_onnx(dense, SHAPE))
    for form in (QuantFormat.QDQ, QuantFormat.QOperator):
        path = tmp_path / f"{form}.onnx"
        quantize_static(
            plain, path, Calibration(), quant_format=form, per_channel=True, activation_type=QuantType.QUInt8
        )
        weighed = footprint_of_file(exported(path.read_bytes()), SHAPE)
        assert weighed["macs_by_width"] == width(8, 8, MACS)
        assert weighed["parameters"] == WEIGHTS + 10 + 5 * 16
        assert weighed["payload_bytes"] < 1.25 * weighed["parameters"]
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(plain, path, weight_type=QuantType.QUInt8)
    weighed = footprint_of_file(exported(path.read_bytes()), SHAPE)
    assert weighed["macs_by_width"] == width(8, 8, MACS)
    assert weighed["parameters"] == WEIGHTS + 10 + 5 * 16


def test_recurrent_files() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(5, 12, batch_first=True), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    module = Reader().eval()
    weighed = footprint_of_file(exported(to_onnx(module, (7, 5))), (7, 5))
    assert weighed["macs"] == 7 * 48 * 17 + 36 == sum(operation.macs for operation in layer_macs(module, (7, 5)))
    assert weighed["parameters"] == sum(value.numel() for value in module.parameters())
    words = Records(noise(32, 7, 5), torch.zeros(32, dtype=torch.long))
    small = Quantize(activations="dynamic").apply(module, words, Bounds.of(0.0, 1.0), seed=0)
    ours = footprint(small, b"", encode(small), (7, 5))
    file = footprint_of_file(exported(to_onnx(small, (7, 5))), (7, 5))
    assert file["macs_by_width"] == ours["macs_by_width"]
    assert file["parameters"] == ours["parameters"] == weighed["parameters"]


def integers(batch: int | str) -> bytes:
    """uint8 [batch, 3] -> logits, with the batch fixed or free."""
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "weight")
    nodes = [
        helper.make_node("Cast", ["input"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["wide", "weight"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.UINT8, [batch, 3])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


@pytest.mark.parametrize("batch", ["n", 4])
def test_integer_inputs_and_fixed_batches(batch: int | str) -> None:
    model = integers(batch)
    weighed = footprint_of_file(exported(model), (3,))
    assert (weighed["macs"], weighed["parameters"], weighed["nonzero_parameters"]) == (6, 6, 6)
    assert peak_resident_bytes(model, (3,)) > 10e6
    assert len(interleaved_latency({"": model}, (3,), seconds=0.01)[""]) == 3
    with pytest.raises(InputError, match="shape"):
        footprint_of_file(exported(model), (4,))


def test_a_tflite_file_has_a_size() -> None:
    weighed = footprint_of_file(ModelFile("tflite", b"x" * 100, exported(integers("n")).facts), (3,))
    assert weighed["disk_bytes"] == weighed["payload_bytes"] == 100
    assert weighed["macs_by_width"] == []
    row = Footprint.model_validate({**weighed, "ratio": 1.0})
    assert row.parameters is row.nonzero_parameters is row.macs is row.entropy_bytes is None  # not 0: not counted
    assert row.energy_uj_modelled is row.energy_memory_share is None


def test_large_records_are_timed_in_smaller_batches() -> None:
    target = TorchTarget(nn.Sequential(nn.AvgPool2d(224), nn.Flatten()))
    rows = interleaved_latency({"": lambda: target}, (3, 224, 224), seconds=1e-3)[""]
    assert [row["batch"] for row in rows] == [1, 32]


def test_latency_and_memory(dense: nn.Module) -> None:
    model = to_onnx(dense, SHAPE)
    rows = interleaved_latency({"": model}, SHAPE, seconds=0.05)[""]
    assert [(row["batch"], row["threads"]) for row in rows] == [(1, 1), (32, 1), (256, 1)]
    assert all(0 < row["p50"] <= row["p95"] for row in rows)
    assert all(row["records_per_second"] == pytest.approx(1e3 * row["batch"] / row["p50"]) for row in rows)
    assert rows[0]["p50"] < rows[2]["p50"]
    resident = peak_resident_bytes(model, SHAPE)
    assert 15e6 < resident < 150e6  # numpy and the runtime; this process, with torch, is far beyond


def test_models_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Slow:
        def __init__(self, name: str, seconds: float) -> None:
            self.queries, self.name, self.seconds = 0, name, seconds

        def logits(self, x: Tensor) -> Tensor:
            order.append(self.name)
            time.sleep(self.seconds)
            return x

    rows = interleaved_latency(
        {"a": lambda: Slow("a", 0.001), "b": lambda: Slow("b", 0.004)}, (2,), batches=(1,), seconds=0
    )
    assert order[6:] == ["a", "b"] * 5  # after three calls each to warm up
    assert 1 <= rows["a"][0]["p50"] < rows["b"][0]["p50"]
    monkeypatch.setattr("crushproof.compression.footprint.timing.LONG", 0.03)
    order.clear()
    interleaved_latency({"a": lambda: Slow("a", 0.04), "b": lambda: Slow("b", 0.0)}, (2,), batches=(1,), seconds=0)
    assert order == [*"abbb", *"ab", *"bbbb"]  # one call each way is enough of the slow one
    monkeypatch.undo()
    module = nn.Linear(2, 2)
    both = interleaved_latency({"torch": lambda: TorchTarget(module), "file": to_onnx(module, (2,))}, (2,), seconds=0)
    assert [row["batch"] for row in both["torch"]] == [row["batch"] for row in both["file"]] == [1, 32, 256]


def test_constants_are_found_wherever_they_are(dense: nn.Module) -> None:
    """Initialisers or Constant nodes: the same parameters."""
    model = onnx.load_model_from_string(to_onnx(dense, SHAPE))
    expected = footprint_of_file(exported(model.SerializeToString()), SHAPE)
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    nodes += list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    found = footprint_of_file(exported(model.SerializeToString()), SHAPE)
    assert {**found, "disk_bytes": 0} == {**expected, "disk_bytes": 0}
