"""The quantize recipe: calibration, adaptive rounding and training, each against an oracle that is not its own code."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from quantization_cases import BOUNDS, TUNING, accuracy_of, quantized_layers, random_like, same_state
from torch import Tensor, nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.deployment.structure import load_module, save_module
from crushproof.compression.quantization.quantization_aware import _InTraining
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.quantization.quantized_layer import QuantizedLayer
from crushproof.compression.quantization.quantized_recurrent import QuantizedRecurrent
from crushproof.compression.quantization.weight_codes import WeightFormat
from crushproof.compression.recipe import RECIPES
from crushproof.targets.certificate import certify
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.model import TorchTarget
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, train
from crushproof.training.networks import digits_lstm, digits_transformer

# -- after training ---------------------------------------------------------------------------------------------------


def test_int8_of_a_perceptron_equals_numpy(mlp: nn.Module, members: Records, digits: Data) -> None:
    """The whole of post-training quantisation, written again in numpy: ranges, codes, biases, integer sums."""
    few = members.take(torch.arange(100))
    recipe = RECIPES.parse({"kind": "quantize", "calibration_records": 100})
    quantized = recipe.apply(mlp, few, digits.bounds, seed=0)
    layers = [layer for layer in mlp.modules() if isinstance(layer, nn.Linear)]
    calibration = few.x.flatten(1).numpy()
    x = digits.non_members.x.flatten(1).numpy()
    for position, layer in enumerate(layers):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        scale = np.abs(weight).max(1) / np.float32(127)
        codes = np.rint(weight / scale[:, None]).astype(np.int64)
        high = np.float32(1.0 if position == 0 else calibration.max())
        step = np.float32(high / 255)
        bias_codes = np.rint(bias / (step * scale)).astype(np.int64)
        q = np.clip(np.rint(x / step), 0, 255).astype(np.int64)
        x = ((q @ codes.T + bias_codes) * (step * scale)).astype(np.float32)
        calibration = calibration @ weight.T + bias
        if position < len(layers) - 1:
            x, calibration = np.maximum(x, 0), np.maximum(calibration, 0)
    logits = TorchTarget(quantized).logits(digits.non_members.x).numpy()
    off = np.abs(logits - x).max(1)
    # A float sum that ends within rounding of a tie may move one activation by one code; that is rare.
    assert (off < 1e-3).mean() > 0.97
    assert off.max() < 0.2


def test_ends_keep_eight_bits_and_norms_are_folded(dense: nn.Module, members: Records, digits: Data) -> None:
    quantized = Quantize(weight_bits=4).apply(dense, members, digits.bounds, seed=0)
    assert [layer.bits for layer in quantized_layers(quantized)] == [8, 4, 4, 4, 4, 8]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in quantized.modules())
    assert len(list(quantized.parameters())) == 0
    bare = Quantize(weight_bits=2, keep_ends_8bit=False).apply(dense, members, digits.bounds, seed=0)
    assert all(layer.bits == 2 and int(layer.codes.abs().max()) == 1 for layer in quantized_layers(bare))
    ternary = Quantize(number="ternary").apply(dense, members, digits.bounds, seed=0)
    numbers = [(layer.number, layer.bits) for layer in quantized_layers(ternary)]
    assert numbers[0] == numbers[-1] == ("integer", 8)
    assert {number for number, _ in numbers[1:-1]} == {"ternary"}
    fixed = Quantize(number="fixed-point", weight_bits=4).apply(dense, members, digits.bounds, seed=0)
    assert {layer.number for layer in quantized_layers(fixed)} == {"fixed-point"}


@pytest.fixture(scope="module")
def few(members: Records) -> Records:
    return members.take(torch.arange(200))


@pytest.fixture(scope="module")
def right(dense: nn.Module, digits: Data) -> float:
    """The accuracy before."""
    return accuracy_of(dense, digits)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"calibration_inputs": "noise"},
        {"calibration": "percentile"},
        {"calibration": "entropy"},
        {"activations": "dynamic"},
        {"activations": "float"},
        {"number": "float16", "activations": "float"},
        {"number": "bfloat16", "activations": "float"},
        {"number": "fixed-point"},
        {"granularity": "tensor"},
        {"granularity": "group"},
        {"fine_tune": {"epochs": 1, "learning_rate": 1e-3}},
    ],
    ids=lambda fields: "-".join(str(value) for value in fields.values()) or "plain",
)
def test_eight_bits_cost_no_accuracy(
    fields: dict[str, Any], dense: nn.Module, right: float, few: Records, digits: Data
) -> None:
    quantized = RECIPES.parse({"kind": "quantize", **fields}).apply(dense, few, digits.bounds, seed=0)
    assert abs(accuracy_of(quantized, digits) - right) <= 0.012


def test_a_stored_rounding_seed_fixes_the_draw(dense: nn.Module, members: Records, digits: Data) -> None:
    fields = {"kind": "quantize", "weight_bits": 4, "activations": "float", "rounding": "stochastic"}
    fixed = RECIPES.parse({**fields, "rounding_seed": 5})
    free = RECIPES.parse(fields)
    one, two = (fixed.apply(dense, members, digits.bounds, seed=seed) for seed in (1, 2))
    assert same_state(one, two)
    one, two = (free.apply(dense, members, digits.bounds, seed=seed) for seed in (1, 2))
    assert not same_state(one, two)


# -- with quantisation in the loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{"weight_bits": 2}, {"number": "binary"}, {"number": "ternary"}], ids=["2-bit", "binary", "ternary"]
)
def test_training_beats_quantising_afterwards(
    fields: dict[str, Any], dense: nn.Module, members: Records, digits: Data
) -> None:
    after = RECIPES.parse({"kind": "quantize", **fields}).apply(dense, members, digits.bounds, seed=0)
    recipe = RECIPES.parse({"kind": "quantize", **fields, "fine_tune": TUNING})
    aware = recipe.apply(dense, members, digits.bounds, seed=0)
    assert accuracy_of(aware, digits) > max(accuracy_of(after, digits) + 0.04, 0.95)


@pytest.mark.parametrize(
    "format",
    [
        WeightFormat(bits=3),
        WeightFormat(bits=4, granularity="group", group_size=8),
        WeightFormat("fixed-point", 4, "tensor"),
        WeightFormat("ternary"),
        WeightFormat("bfloat16"),
    ],
    ids=lambda format: f"{format.number}-{format.granularity}",
)
def test_what_was_trained_is_what_ships(format: WeightFormat) -> None:
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    layer.weight.data[1, 0] = 0  # pruned
    activations = None if format.number == "bfloat16" else (-0.5, 1.5)
    training = _InTraining(layer, format, activations)
    optimizer = torch.optim.Adam(training.parameters(), lr=1e-2)
    for step in range(5):
        optimizer.zero_grad()
        training(random_like(step, 8, 4, 6, 6)).square().sum().backward()
        optimizer.step()
    assert bool(((training.layer.weight - layer.weight).abs() > 1e-6).any())
    finished = training.finished()
    torch.testing.assert_close(finished.dequantized_weight(), training.rounded_weight("weight").detach())
    assert not finished.codes[1, 0].any()
    x = random_like(9, 8, 4, 6, 6)
    torch.testing.assert_close(finished(x), training(x).detach(), rtol=1e-4, atol=1e-2)


def test_recurrent_layers_are_trained_quantised() -> None:
    layer = nn.GRU(4, 5, batch_first=True, bidirectional=True)
    x = random_like(0, 30, 6, 4)
    training = _InTraining(layer, WeightFormat(bits=2), None)
    optimizer = torch.optim.Adam(training.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (training(x)[0].sum(2) - x.sum(2)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    finished = training.finished()
    assert isinstance(finished, QuantizedRecurrent)
    assert int(finished.get_buffer("weight_hh_l0_reverse_codes").abs().max()) == 1
    with torch.no_grad():
        for ours, theirs in zip(finished(x), training(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_learned_scales_have_the_gradient_of_lsq() -> None:
    """Esser et al. 2020, equation 3, on a weight below, inside and above the range of 3-bit codes."""
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[-9.0, 0.3, 1.6, 7.0]])
    training = _InTraining(layer, WeightFormat(bits=3), None)
    log_scale = training.log_scales["weight"]
    log_scale.data.zero_()  # a scale of 1
    training(torch.ones(1, 4)).sum().backward()
    expected = -3 + (0 - 0.3) + (2 - 1.6) + 3
    assert log_scale.grad is not None
    assert float(log_scale.grad) == pytest.approx(expected, abs=1e-5)
    assert layer.weight.grad is None
    gradient = training.layer.weight.grad
    assert isinstance(gradient, Tensor)
    assert gradient.tolist() == [[0, 1, 1, 0]]


# -- sequences, and other layers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brief(members: Records) -> dict[Callable[[], nn.Module], nn.Module]:
    """Networks that read sequences, after two epochs."""
    return {
        network: train(Architecture("sequence", network).fresh(0), members, Training(epochs=2), seed=0)
        for network in (digits_lstm, digits_transformer)
    }


@pytest.mark.parametrize("network", [digits_lstm, digits_transformer])
@pytest.mark.parametrize("fields", [{}, {"weight_bits": 4, "rounding": "adaptive", "rounding_steps": 10}])
def test_sequence_models_go_through(
    network: Callable[[], nn.Module],
    fields: dict[str, Any],
    brief: dict[Callable[[], nn.Module], nn.Module],
    few: Records,
    digits: Data,
) -> None:
    module = brief[network]
    recipe = RECIPES.parse({"kind": "quantize", "activations": "dynamic", "keep_ends_8bit": False, **fields})
    quantized = recipe.apply(module, few, digits.bounds, seed=0)
    if network is digits_lstm:
        assert any(isinstance(layer, QuantizedRecurrent) for layer in quantized.modules())
        assert len(quantized_layers(quantized)) == 1
    else:
        per_block = 4 + 2  # projections, and two layers
        assert len(quantized_layers(quantized)) == 3 + 2 * per_block  # in, positions, out
    x = digits.non_members.x[:200]
    certificate = certify(OnnxTarget(to_onnx(quantized, (1, 8, 8))), TorchTarget(quantized), {"all": x}).overall
    assert certificate.label_agreement >= 0.995
    assert certificate.max_logit_difference < 0.2
    agree = TorchTarget(quantized).logits(x).argmax(1) == TorchTarget(module).logits(x).argmax(1)
    assert float(agree.float().mean()) > (0.85 if fields else 0.97)
    description, arrays = save_module(quantized)
    loaded = load_module(Architecture("sequence", network).fresh(1), json.loads(json.dumps(description)), arrays)
    assert torch.equal(TorchTarget(loaded).logits(x), TorchTarget(quantized).logits(x))


class Words(nn.Module):
    """Token ids in, by way of an embedding, a GRU, a strided and a depthwise convolution over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.depthwise = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv1d(8, 16, 1, stride=2)
        self.projecting = nn.LSTM(16, 12, proj_size=6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens, _ = self.gru(self.embedding(x.long()))
        mixed = self.pointwise(torch.relu(self.depthwise(tokens.transpose(1, 2)))).transpose(1, 2)
        logits: Tensor = self.head(self.projecting(mixed)[0][:, -1])
        return logits


@pytest.mark.parametrize("activations", ["static", "dynamic", "float"])
@pytest.mark.parametrize("tuned", [False, True])
def test_every_kind_of_layer_is_quantised_or_left(activations: str, tuned: bool) -> None:
    module = Architecture("words", Words).fresh(0).eval()
    x = torch.randint(12, (80, 10), generator=torch.Generator().manual_seed(0)).float()
    records = Records(x, torch.arange(80) % 3)
    fine_tune = {"epochs": 1, "learning_rate": 1e-4} if tuned else None
    recipe = RECIPES.parse({"kind": "quantize", "activations": activations, "fine_tune": fine_tune})
    quantized = recipe.apply(module, records, Bounds.of(0, 11), seed=0)
    kinds = {path: type(layer).__name__ for path, layer in quantized.named_modules() if not list(layer.children())}
    assert set(kinds) == {"embedding", "gru", "depthwise", "pointwise", "projecting", "head"}
    assert kinds.pop("gru") == "QuantizedRecurrent"
    assert kinds.pop("projecting") == "LSTM"
    assert set(kinds.values()) == {"QuantizedLayer"}
    ways = {layer.operation: layer.activations for layer in quantized_layers(quantized)}
    assert ways == {"embedding": "float", "conv1d": activations, "linear": activations}
    difference = (TorchTarget(quantized).logits(x) - TorchTarget(module).logits(x)).abs().max()
    assert float(difference) < 0.1


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(self.first(input=x))
        return logits


def test_a_layer_called_by_keyword_stays_in_float() -> None:
    records = Records(torch.rand(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 6)
    quantized: Any = Quantize().apply(ByKeyword().eval(), records, BOUNDS, seed=0)
    assert isinstance(quantized.first, nn.Linear)
    assert isinstance(quantized.second, QuantizedLayer)


def test_a_lone_layer_is_a_model_too(members: Records) -> None:
    flat = Records(members.x.flatten(1), members.y)
    for fields in ({}, {"weight_bits": 4, "rounding": "adaptive", "rounding_steps": 5}, {"fine_tune": TUNING}):
        recipe = RECIPES.parse({"kind": "quantize", "keep_ends_8bit": False, **fields})
        assert isinstance(recipe.apply(nn.Linear(64, 10), flat, BOUNDS, seed=0), QuantizedLayer)


# -- what it refuses, and what it says --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"number": "float16"}, "activations: float"),
        ({"number": "float16", "activations": "float", "rounding": "adaptive"}, "neighbours on a grid"),
        ({"number": "binary", "rounding": "stochastic"}, "neighbours on a grid"),
        ({"number": "fixed-point", "granularity": "group"}, "granularity: channel"),
        ({"rounding": "adaptive", "fine_tune": TUNING}, "leave out adaptive rounding"),
        ({"weight_bits": 5}, "weight_bits"),
        ({"percentile": 40}, "percentile"),
    ],
)
def test_contradictions_are_refused_in_a_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RECIPES.parse({"kind": "quantize", **fields})


def test_what_cannot_be_done_is_said(dense: nn.Module, members: Records, digits: Data) -> None:
    none = members.take(torch.arange(0))
    for fields in ({}, {"activations": "float", "rounding": "adaptive"}, {"activations": "float", "fine_tune": TUNING}):
        with pytest.raises(NotApplicable, match="there are none"):
            RECIPES.parse({"kind": "quantize", **fields}).apply(dense, none, digits.bounds, seed=0)
    for fields in ({"activations": "dynamic"}, {"calibration_inputs": "noise"}):
        RECIPES.parse({"kind": "quantize", **fields}).apply(dense, none, digits.bounds, seed=0)
    short = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)).eval()
    with pytest.raises(NotApplicable, match="nothing would become binary"):
        Quantize(number="binary").apply(short, members, digits.bounds, seed=0)
    with pytest.raises(NotApplicable, match="nothing to quantize"):
        Quantize().apply(nn.Sequential(nn.Flatten(), nn.ReLU()), members, digits.bounds, seed=0)


def test_words_name_every_choice() -> None:
    said = Quantize(
        weight_bits=4, granularity="group", rounding="adaptive", calibration="entropy", calibration_inputs="noise"
    ).phrase
    assert said == "4-bit weights in groups of 32, adaptive rounding, 8-bit activations (entropy), calibrated on noise"
    assert Quantize().phrase == "8-bit weights, 8-bit activations"
    assert Quantize(number="float16", activations="float").phrase == "float16 weights, float activations"
    aware = Quantize(number="ternary", granularity="tensor", activations="dynamic", fine_tune=Training(epochs=3))
    assert aware.phrase == (
        "ternary weights with one scale per layer, 8-bit activations (dynamic), trained quantised for 3 epochs"
    )
