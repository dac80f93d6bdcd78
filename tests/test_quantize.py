"""The quantize recipe: calibration, adaptive rounding and training, each against an oracle that is not its own code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crushproof.compression.adaptive_rounding import adaptive_codes, layer_calls
from crushproof.compression.calibration import BINS, entropy_threshold, input_ranges, percentile_range
from crushproof.compression.onnx_export import to_onnx
from crushproof.compression.quantization_aware import _InTraining
from crushproof.compression.quantize import Quantize, prepare
from crushproof.compression.quantized_layer import QuantizedLayer
from crushproof.compression.quantized_recurrent import QuantizedRecurrent
from crushproof.compression.recipe import RECIPES
from crushproof.compression.structure import load_module, save_module
from crushproof.compression.weight_codes import WeightFormat, spread_scale, weight_codes
from crushproof.targets.certificate import certify
from crushproof.targets.data import Data
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.targets.onnx import OnnxTarget
from crushproof.targets.records import Bounds, Records
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp, digits_lstm, digits_transformer

BOUNDS = Bounds.of(0, 1)
TUNING = {"epochs": 3, "learning_rate": 4e-3}


@pytest.fixture(scope="module")
def members(digits: Data) -> Records:
    assert digits.members is not None
    return digits.members


@pytest.fixture(scope="module")
def mlp(members: Records) -> nn.Module:
    fresh = Architecture("mlp", lambda: Mlp(64, 10, (32, 24))).fresh(0)
    return train(fresh, members, Training(epochs=5), seed=0).requires_grad_(False)


def accuracy_of(module: nn.Module, digits: Data) -> float:
    return accuracy(TorchTarget(module), digits.non_members.x, digits.non_members.y)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def quantized_layers(module: nn.Module) -> list[QuantizedLayer]:
    return [layer for layer in module.modules() if isinstance(layer, QuantizedLayer)]


def random_like(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("calibration", ["min-max", "percentile", "entropy"])
def test_the_input_range_follows_from_the_bounds(calibration: str, dense: nn.Module, members: Records) -> None:
    """An attacker's input is never clamped by the input quantiser, however outliers are treated behind it."""
    dark = Records(members.x * 0.1, members.y)
    quantized = Quantize(calibration=calibration).apply(dense, dark, Bounds.of(-1, 2), seed=0)
    first = quantized_layers(quantized)[0]
    assert first.input_scale is not None
    assert float(first.input_scale) == pytest.approx(3 / 255)
    assert first.input_zero_point is not None
    assert int(first.input_zero_point) == 85


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
def test_eight_bits_cost_no_accuracy(fields: dict[str, Any], dense: nn.Module, members: Records, digits: Data) -> None:
    quantized = RECIPES.parse({"kind": "quantize", **fields}).apply(dense, members, digits.bounds, seed=0)
    assert abs(accuracy_of(quantized, digits) - accuracy_of(dense, digits)) <= 0.012


def test_a_stored_rounding_seed_fixes_the_draw(dense: nn.Module, members: Records, digits: Data) -> None:
    fields = {"kind": "quantize", "weight_bits": 4, "activations": "float", "rounding": "stochastic"}
    fixed = RECIPES.parse({**fields, "rounding_seed": 5})
    free = RECIPES.parse(fields)
    one, two = (fixed.apply(dense, members, digits.bounds, seed=seed) for seed in (1, 2))
    assert same_state(one, two)
    one, two = (free.apply(dense, members, digits.bounds, seed=seed) for seed in (1, 2))
    assert not same_state(one, two)


# -- calibration ------------------------------------------------------------------------------------------------------


def naive_threshold(counts: np.ndarray, levels: int) -> float:
    """Migacz 2017, slides 38 and 39, bin by bin."""
    counts = [int(counts[1]), *(int(count) for count in counts[1:])]
    best, threshold = math.inf, 1.0
    for size in range(levels, len(counts) + 1):
        p = [float(count) for count in counts[:size]]
        p[-1] += sum(counts[size:])
        parts: list[list[int]] = [[] for _ in range(levels)]
        for place in range(size):
            parts[place * levels // size].append(place)
        q = [0.0] * size
        for part in parts:
            alive = [place for place in part if counts[place] > 0]
            for place in alive:
                q[place] = sum(counts[place] for place in part) / len(alive)
        divergence = 0.0
        for a, b in zip(p, q, strict=True):
            if a > 0:
                divergence += math.inf if b == 0 else a / sum(p) * math.log((a / sum(p)) / (b / sum(q)))
        if divergence < best:
            best, threshold = divergence, size / len(counts)
    return threshold


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 60), min_size=20, max_size=40), st.sampled_from([4, 8, 16]))
def test_the_entropy_threshold_is_migaczs(counts: list[int], levels: int) -> None:
    counts[0] += 500  # the zeros of a ReLU
    counts[1] += 1
    assert entropy_threshold(np.array(counts), levels) == naive_threshold(np.array(counts), levels)


class Copy(nn.Module):
    """The same values as another tensor: the second layer does not read what the first one reads."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def test_entropy_calibration_finds_what_onnx_runtime_finds() -> None:
    from onnxruntime.quantization.calibrate import HistogramCollector

    values = random_like(0, 100_000)
    values[:20] *= 3  # a few outliers
    collector = HistogramCollector("entropy", False, BINS + 1, 256, None, "same")
    collector.collect({"x": [values.numpy()]})
    low, high, *_ = collector.compute_collection_result()["x"]
    layers = [Copy(), Copy()]
    (_, ours) = input_ranges(nn.Sequential(*layers), layers, values[:, None], BOUNDS, "entropy")
    assert -ours[0] == pytest.approx(ours[1], rel=0.01)
    assert float(values.abs().max()) > 1.25 * ours[1]
    assert ours[1] == pytest.approx(float(high), rel=0.15)
    assert -ours[0] == pytest.approx(-float(low), rel=0.15)


@pytest.mark.parametrize("skew", [0.0, 3.0])
def test_percentile_calibration_is_the_percentile(skew: float) -> None:
    values = random_like(1, 200_000) + skew * random_like(2, 200_000).abs()
    layers = [Copy(), Copy()]
    module = nn.Sequential(*layers)
    (_, (low, high)) = input_ranges(module, layers, values[:, None], BOUNDS, "percentile", 99.0)
    width = float(values.max() - values.min()) / BINS
    assert low == pytest.approx(float(np.percentile(values.numpy(), 0.5)), abs=1.01 * width)
    assert high == pytest.approx(float(np.percentile(values.numpy(), 99.5)), abs=1.01 * width)
    (_, everything) = input_ranges(module, layers, values[:, None], BOUNDS, "percentile", 100.0)
    assert everything == pytest.approx((float(values.min()), float(values.max())))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=30), st.floats(50.5, 100))
def test_a_percentile_range_drops_no_more_than_it_may(counts: list[int], percentile: float) -> None:
    counts[0] += 1
    counts[-1] += 1
    low, high = percentile_range(np.array(counts), 0.0, float(len(counts)), percentile)
    below, above = round(low), round(high)
    allowed = sum(counts) * (100 - percentile) / 200
    assert sum(counts[:below]) <= allowed + 1e-9 < sum(counts[: below + 1]) + 1e-6
    assert sum(counts[above:]) <= allowed + 1e-9 < sum(counts[above - 1 :]) + 1e-6


def test_ranges_do_not_depend_on_the_batches(dense: nn.Module, members: Records) -> None:
    prepared, layers = prepare(dense, members, BOUNDS, 0)
    x = members.x[:300]
    once = input_ranges(prepared, layers, x, BOUNDS, "entropy")
    assert once == input_ranges(prepared, layers, x.flip(0), BOUNDS, "entropy")
    wide = input_ranges(prepared, layers, x, BOUNDS)
    assert all(a[0] <= b[0] and b[1] <= a[1] for a, b in zip(wide, once, strict=True))


# -- adaptive rounding ------------------------------------------------------------------------------------------------


def output_error(codes: Tensor, scale: Tensor, layer: nn.Module, group: int, x: Tensor, wanted: Tensor) -> float:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    weight = codes * spread_scale(scale, tuple(layer.weight.shape), group)
    with torch.no_grad():
        output = torch.func.functional_call(layer, {"weight": weight}, (x,))
    return float((output - wanted).square().mean())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_adaptive_rounding_errs_less_on_inputs_it_has_not_seen(bits: Any, dense: nn.Module, members: Records) -> None:
    prepared, layers = prepare(dense, members, BOUNDS, 0)
    format = WeightFormat(bits=bits)
    better = 0
    for layer in layers:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        (seen,), (held_out,) = (layer_calls(prepared, layer, x) for x in (members.x[:200], members.x[200:400]))
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            targets = [layer(seen)]
            wanted = layer(held_out)
        codes, scale = adaptive_codes(layer, format, None, [seen], targets, steps=100, generator=draw)
        nearest, same = weight_codes(layer.weight, format)
        assert torch.equal(scale, same)
        steps = (layer.weight.detach().flatten(1) / scale[:, None]).view_as(codes)
        inside = steps.abs() <= format.top
        assert bool(((codes == steps.floor()) | (codes == steps.ceil()))[inside].all())
        assert int(codes.abs().max()) <= format.top
        errors = [output_error(each, scale, layer, 32, held_out, wanted) for each in (codes, nearest)]
        better += errors[0] < errors[1]
    assert better >= len(layers) - 1


@pytest.mark.parametrize("calibration", ["min-max", "percentile", "entropy"])
def test_every_layer_that_reads_the_input_covers_the_bounds(calibration: Any) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.relu(self.left(x)) + self.right(x.flatten(1)))
            return logits

    model, dim = Branches(), torch.rand(64, 8) * 0.3
    layers = [model.left, model.right, model.head]
    ranges = input_ranges(model, layers, dim, Bounds.of(0.0, 1.0), calibration, 90.0)
    assert ranges[:2] == [(0.0, 1.0)] * 2


def test_what_enters_a_layer_is_kept_though_the_model_changes_it_afterwards() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.first(x)
            y += self.second(y)
            return y

    model, x = InPlace(), torch.rand(5, 4)
    (entered,) = layer_calls(model, model.second, x)
    assert torch.equal(entered, model.first(x))


def test_adaptive_rounding_finds_the_best_of_all_roundings() -> None:
    """Correlated inputs, few enough weights to try every combination of up and down."""
    format = WeightFormat(bits=3)
    ranks: list[tuple[int, int]] = []
    for seed in range(8):
        layer = nn.Linear(6, 1, bias=False)
        layer.weight.data = random_like(seed + 100, 1, 6)
        x = random_like(seed + 200, 400, 1) + 0.3 * random_like(seed + 300, 400, 6)
        wanted = layer(x).detach()
        draw = torch.Generator().manual_seed(0)
        codes, scale = adaptive_codes(layer, format, None, [x], [wanted], steps=200, generator=draw)
        down = (layer.weight.detach() / scale[:, None]).floor()
        ups = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
        every = [(down + up).clamp(-3, 3) for up in ups]
        errors = torch.tensor([output_error(each, scale, layer, 32, x, wanted) for each in every])
        nearest, _ = weight_codes(layer.weight, format)
        learned, rounded = (output_error(each, scale, layer, 32, x, wanted) for each in (codes, nearest))
        # Roundings that clipping makes equal share a place, and the last digits of an error are nobody's.
        places = [int((errors.unique() < error * (1 - 1e-5)).sum()) for error in (learned, rounded)]
        ranks.append((places[0], places[1]))
    assert max(learned for learned, _ in ranks) <= 1
    assert sum(learned for learned, _ in ranks) < sum(nearest for _, nearest in ranks)


def test_pruned_weights_stay_zero_whatever_rounds_them(mlp: nn.Module, members: Records) -> None:
    for fields in ({"rounding": "adaptive", "rounding_steps": 30}, {"fine_tune": TUNING}):
        quantize = {"kind": "quantize", "weight_bits": 3, "keep_ends_8bit": False, **fields}
        pruned = RECIPES.parse({"kind": "prune", "sparsity": 0.5}).apply(mlp, members, BOUNDS, seed=0)
        quantized = RECIPES.parse(quantize).apply(pruned, members, BOUNDS, seed=0)
        before = [layer.weight for layer in pruned.modules() if isinstance(layer, nn.Linear)]
        for weight, layer in zip(before, quantized_layers(quantized), strict=True):
            assert not layer.codes[weight == 0].any()


@pytest.mark.parametrize("fields", [{"weight_bits": 2}, {"weight_bits": 3, "number": "fixed-point"}])
def test_adaptive_rounding_saves_accuracy(
    fields: dict[str, Any], dense: nn.Module, members: Records, digits: Data
) -> None:
    def accuracy_with(rounding: str) -> float:
        recipe = RECIPES.parse({"kind": "quantize", **fields, "rounding": rounding, "rounding_steps": 100})
        return accuracy_of(recipe.apply(dense, members, digits.bounds, seed=0), digits)

    assert accuracy_with("adaptive") > accuracy_with("nearest") + 0.02


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


@pytest.mark.parametrize("network", [digits_lstm, digits_transformer])
@pytest.mark.parametrize("fields", [{}, {"weight_bits": 4, "rounding": "adaptive", "rounding_steps": 20}])
def test_sequence_models_go_through(
    network: Callable[[], nn.Module], fields: dict[str, Any], members: Records, digits: Data
) -> None:
    module = train(Architecture("sequence", network).fresh(0), members, Training(epochs=2), seed=0)
    recipe = RECIPES.parse({"kind": "quantize", "activations": "dynamic", "keep_ends_8bit": False, **fields})
    quantized = recipe.apply(module, members, digits.bounds, seed=0)
    if network is digits_lstm:
        assert any(isinstance(layer, QuantizedRecurrent) for layer in quantized.modules())
        assert len(quantized_layers(quantized)) == 1
    else:
        assert len(quantized_layers(quantized)) == 3 + 2 * (
            4 + 2
        )  # in, positions, out; per block four projections and two
    x = digits.non_members.x[:300]
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
