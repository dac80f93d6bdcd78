"""The twin of an ONNX file against ONNX Runtime, on graphs written here."""

from __future__ import annotations

import copy
import io
import itertools
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.twin.twin import Twin, twin_of
from crushproof.training.networks import SequenceTransformer

Gradient = Callable[[nn.Module, Tensor], Tensor]
FORMS = ("QDQ", "QOperator", "dynamic")


def native(twin: Twin) -> Twin:
    """A copy with the gradients that its rounding really has."""
    hard = copy.deepcopy(twin)
    hard.straight_through = False
    return hard


def exported(module: nn.Module, shape: tuple[int, ...], opset: int = 17, batch: bool = True) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2 if batch else 1, *shape),),
            file,  # type: ignore[arg-type]  # its stub forgets files
            dynamo=False,
            opset_version=opset,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}} if batch else None,
        )
    return file.getvalue()


def quantized(model: bytes, x: Tensor, form: str) -> bytes:
    """ONNX Runtime's own int8 file: u8 activations, s8 weights, per channel."""
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]  # the runtime ships no types
        def __init__(self) -> None:
            self.parts: Iterator[Tensor] = iter(x.split(64))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self.parts, None)
            return None if part is None else {"input": part.numpy()}

    silent = mock.patch.object(logging, "warning")  # it prints advice on the root logger
    with silent, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        given_model = onnx.load_model_from_string(model)
        if form == "dynamic":
            q.quantize_dynamic(given_model, path, weight_type=q.QuantType.QInt8)
        else:
            q.quantize_static(
                given_model,
                path,
                Reader(),
                quant_format=q.QuantFormat[form],
                per_channel=True,
                activation_type=q.QuantType.QUInt8,
                weight_type=q.QuantType.QInt8,
            )
        return path.read_bytes()


# 32 graphs: random networks, briefly trained --------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block, with or without a depthwise convolution."""

    def __init__(self, channels: int, depthwise: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, groups=channels if depthwise else 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "leaky": nn.LeakyReLU, "tanh": nn.Tanh}
POOLS = {"max": nn.MaxPool2d(2), "average": nn.AvgPool2d(2), "stride": None}


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """An untrained network for records of shape [2, 8, 8] or [24] with 5 classes."""
    torch.manual_seed(draw(st.integers(0, 2**20)))
    activation = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]
    if draw(st.integers(0, 3)) == 0:
        widths = [24, *draw(st.lists(st.sampled_from([16, 24, 40]), min_size=1, max_size=3))]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), activation()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], 5)), (24,)
    channels = draw(st.sampled_from([8, 12]))
    pool = POOLS[draw(st.sampled_from(sorted(POOLS)))]
    kernel = draw(st.sampled_from([3, 5]))
    layers = [nn.Conv2d(2, channels, kernel, 1 if pool else 2, kernel // 2), nn.BatchNorm2d(channels), activation()]
    layers += [pool] if pool else []
    layers += [Block(channels, draw(st.booleans())) for _ in range(draw(st.integers(1, 2)))]
    head: list[nn.Module] = [nn.Flatten(), nn.Linear(channels * 16, 5)]
    if draw(st.booleans()):
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]
    return nn.Sequential(*layers, *head), (2, 8, 8)


def trained(module: nn.Module, shape: tuple[int, ...], steps: int = 40) -> Tensor:
    """Trains on five noisy prototypes and returns 400 records of them."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn((5, *shape), generator=generator)
    labels = torch.randint(5, (400,), generator=generator)
    x = prototypes[labels] + torch.randn((400, *shape), generator=generator)
    optimizer = torch.optim.Adam(module.parameters(), 5e-3)
    module.train()
    for step in range(steps):
        chosen = slice(step * 64 % 320, step * 64 % 320 + 64)
        optimizer.zero_grad()
        F.cross_entropy(module(x[chosen]), labels[chosen]).backward()
        optimizer.step()
    module.eval().requires_grad_(False)
    return x


@settings(max_examples=8, phases=[Phase.generate])  # shrinking would take minutes
@given(networks())
def test_twins_of_a_float_file_and_its_three_int8_forms_answer_as_onnx_runtime(
    gradient: Gradient, drawn: tuple[nn.Module, tuple[int, ...]]
) -> None:
    module, shape = drawn
    x = trained(module, shape)[:200]
    model = exported(module, shape)
    dense = twin_of(model)
    assert not dense.rounds
    assert torch.allclose(dense(x), OnnxTarget(model).logits(x), atol=1e-4)
    slope = gradient(module, x)
    assert torch.allclose(gradient(dense, x), slope, atol=1e-4)
    for form in FORMS:
        file = quantized(model, x[:128], form)
        twin = twin_of(file)
        assert twin.rounds
        deployed, answer = OnnxTarget(file).logits(x), twin(x)
        assert (deployed.argmax(1) == answer.argmax(1)).float().mean() >= 0.995
        through = gradient(twin, x)
        assert through.isfinite().all()
        cosines = F.cosine_similarity(through.flatten(1), slope.flatten(1))
        assert cosines.median() >= 0.98, form  # the mean is lower: a record near a kink of ReLU has two slopes
        hard = native(twin)
        assert torch.equal(hard(x), answer)
        assert not gradient(hard, x).any()


# Sequence models ------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, layer: nn.RNNBase, ends: bool) -> None:
        super().__init__()
        self.layer, self.ends = layer, ends
        self.head = nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 4)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.full((1, x.shape[0], self.layer.hidden_size), 0.3) if self.ends else None
        outputs, _ = self.layer(x, state)
        return self.head(outputs[:, -1])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.entry, self.place = nn.Linear(5, 16), nn.Parameter(torch.randn(1, 9, 16) / 10)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.entry(x) + self.place).mean(1))


SEQUENCES = {
    "lstm": lambda: Recurrent(nn.LSTM(5, 7, 2, batch_first=True, bidirectional=True), False),
    "gru": lambda: Recurrent(nn.GRU(5, 7, batch_first=True), True),
    "rnn": lambda: Recurrent(nn.RNN(5, 7, batch_first=True, bidirectional=True), False),
    "transformer": Encoder,
}


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("opset", [15, 20])
def test_twins_of_sequence_models_answer_as_onnx_runtime(kind: str, opset: int, gradient: Gradient) -> None:
    torch.manual_seed(0)
    module = SEQUENCES[kind]()
    model = exported(module, (9, 5), opset)
    twin, x = twin_of(model), torch.randn(50, 9, 5)
    assert not twin.rounds
    assert torch.allclose(twin(x), OnnxTarget(model).logits(x), atol=1e-4)
    assert torch.allclose(gradient(twin, x), gradient(module, x), atol=1e-4)
    assert twin(x[:1]).shape == (1, 4)  # the batch stays free
    for form in FORMS if kind == "transformer" and opset == 20 else ("dynamic",):
        file = quantized(model, x, form)
        twin, deployed = twin_of(file), OnnxTarget(file).logits(x)
        assert torch.equal(twin(x).argmax(1), deployed.argmax(1)), form
        assert torch.allclose(twin(x), deployed, atol=0.05), form  # a sum in another order, a rounding one step apart
        answer = torch.cat([twin(record) for record in x[:12].split(1)]) if form == "dynamic" else twin(x)
        close = (answer - deployed[: len(answer)]).abs() < 1e-3
        assert close.float().mean() > 0.95, form  # the rest: a tie
        assert gradient(twin, x).abs().sum() > 0


# The twin as a module -------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.conv, self.block = nn.BatchNorm2d(2), nn.Conv2d(2, 8, 3, padding=1), Block(8, True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(F.hardtanh(self.conv(self.before(x))))
        return self.head(self.norm(x.flatten(2).transpose(1, 2))).mean(1)


def test_the_twin_of_a_float_file_can_be_copied_trained_and_exported_again() -> None:
    torch.manual_seed(0)
    model = exported(Small(), (2, 8, 8))
    twin, x = twin_of(model), torch.randn(40, 2, 8, 8)
    kinds = [type(layer) for layer in twin.children()]
    assert kinds == [nn.BatchNorm2d, nn.Conv2d, nn.Conv2d, nn.Conv2d, nn.LayerNorm, nn.Linear]
    again = exported(twin, (2, 8, 8))
    assert torch.allclose(OnnxTarget(again).logits(x), twin(x), atol=1e-5)
    other = copy.deepcopy(twin)
    labels = torch.randint(5, (40,))
    optimizer = torch.optim.Adam(other.parameters(), 1e-2)
    before = F.cross_entropy(other(x), labels)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(other.train()(x), labels).backward()
        optimizer.step()
    assert F.cross_entropy(other.eval()(x), labels) < before - 0.1
    assert torch.allclose(twin(x), OnnxTarget(model).logits(x), atol=1e-4)  # the original did not move
    other.load_state_dict(twin.state_dict())
    assert torch.equal(other(x), twin(x))
    assert list(twin_of(model).state_dict()) == list(twin.state_dict())


class StepsFirst(nn.Module):
    """Reads rows as steps, and the steps come before the records; 8 rows as there may be 8 records."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.lstm, self.head = nn.Linear(8, 12), nn.LSTM(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(torch.relu(self.widen(x.squeeze(1).transpose(0, 1))))
        logits: Tensor = self.head(outputs[-1])
        return logits


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("network", [StepsFirst, SequenceTransformer])
def test_dynamic_ranges_are_those_of_each_record_wherever_the_records_are(
    network: Callable[[], nn.Module], batch: int | None, tmp_path: Path
) -> None:
    """As deployed: alone, or, where the file fixes a batch, among copies of itself; for 8 records of 8 steps too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = onnx.load_model_from_string(exported(network().eval(), (1, 8, 8)))
    for port in (model.graph.input[0], model.graph.output[0]):
        if batch is not None:
            port.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx", weight_type=QuantType.QUInt8)
    data = (tmp_path / "int8.onnx").read_bytes()
    twin, runtime = twin_of(data), OnnxTarget(data)
    random = torch.Generator().manual_seed(1)
    x = torch.rand(9, 1, 8, 8, generator=random) * torch.linspace(0.05, 1, 9)[:, None, None, None]
    x = x * torch.linspace(0.1, 1, 8)[:, None]
    for count in (1, 4, 8, 9):
        with torch.no_grad():
            torch.testing.assert_close(twin(x[:count]), runtime.logits(x[:count]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(runtime.logits(x[:1]), runtime.logits(x)[:1])


def of_many_layers(count: int, channels: int) -> bytes:
    """So many convolutions in QDQ form, each with weights of its own."""
    random, nodes, constants = np.random.default_rng(0), [], {"step": np.float32(0.01), "middle": np.uint8(128)}
    name = "input"
    for layer in range(count):
        constants[f"codes{layer}"] = random.integers(-90, 90, (channels, channels, 1, 1), dtype=np.int8)
        nodes += [
            helper.make_node("QuantizeLinear", [name, "step", "middle"], [f"rounded{layer}"]),
            helper.make_node("DequantizeLinear", [f"rounded{layer}", "step", "middle"], [f"x{layer}"]),
            helper.make_node("DequantizeLinear", [f"codes{layer}", "step"], [f"weight{layer}"]),
            helper.make_node("Conv", [f"x{layer}", f"weight{layer}"], [f"sums{layer}"]),
            helper.make_node("Relu", [f"sums{layer}"], [f"relu{layer}"]),
        ]
        name = f"relu{layer}"
    nodes.append(helper.make_node("Flatten", [name], ["logits"]))
    ports = [
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *shape])]
        for name, shape in (("input", (channels, 2, 2)), ("logits", (4 * channels,)))
    ]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "deep", *ports, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def test_a_deep_graph_is_followed() -> None:
    """120 convolutions with quantisation around each; how long an import takes, benchmarks/compression.py says."""
    model = of_many_layers(120, 8)
    assert len(onnx.load_model_from_string(model).graph.node) > 400
    x = torch.rand(6, 8, 2, 2)
    assert torch.allclose(twin_of(model)(x).flatten(1), OnnxTarget(model).logits(x), atol=1e-3)
