"""Mixed precision: sensitivities that are true, budgets that hold, and a choice near the best of all."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from crushproof.compression.quantization.mixed_precision import (
    WIDTHS,
    MixedPrecision,
    allocate,
    mac_counts,
    sensitivities,
    weight_counts,
)
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.quantization.quantized_layer import QuantizedLayer
from crushproof.compression.quantization.stand_ins import prepare
from crushproof.compression.quantization.weight_codes import WeightFormat, weight_codes
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.model import TorchTarget, accuracy

ENDS_FREE = Quantize(keep_ends_8bit=False)
BOUNDS = Bounds.of(0, 1)

COSTS = st.lists(
    st.tuples(*[st.floats(0, 10, allow_subnormal=False)] * 4).map(lambda costs: dict(zip((8, 4, 3, 2), costs))),  # noqa: B905  # four of each
    min_size=1,
    max_size=4,
)


def widths_of(module: nn.Module) -> list[int]:
    return [layer.bits for layer in module.modules() if isinstance(layer, QuantizedLayer)]


def spent(widths: Any, counts: list[int]) -> float:
    return sum(width * count for width, count in zip(widths, counts, strict=True)) / sum(counts)


@settings(deadline=None, max_examples=60)
@given(COSTS, st.lists(st.integers(1, 1000), min_size=4, max_size=4), st.floats(2, 8))
def test_the_choice_keeps_the_budget_and_beats_equal_widths(
    costs: list[dict[Any, float]], counts: list[int], average: float
) -> None:
    counts = counts[: len(costs)]
    chosen = allocate(costs, counts, average)
    assert chosen is not None
    assert spent(chosen, counts) <= average + 1e-9

    def total(widths: Any) -> float:
        return sum(options[width] for options, width in zip(costs, widths, strict=True))

    within = [widths for widths in product(WIDTHS, repeat=len(costs)) if spent(widths, counts) <= average]
    assert total(chosen) >= min(map(total, within)) - 1e-9
    equal = [[width] * len(costs) for width in WIDTHS if width <= average]
    assert total(chosen) <= min(map(total, equal)) + 1e-9


def test_the_choice_is_the_best_where_layers_are_alike() -> None:
    """Convex costs in equal layers: what the budget allows goes where it saves most, as trying everything confirms."""
    costs = [{8: 0.0, 4: 1.0 * k, 3: 3.0 * k, 2: 9.0 * k} for k in (5, 1, 0.2, 0.1)]
    for average in (2.0, 2.5, 3.0, 4.0, 5.0, 8.0):
        chosen = allocate(costs, [10] * 4, average)
        within = [w for w in product(WIDTHS, repeat=4) if spent(w, [10] * 4) <= average]
        best = min(within, key=lambda widths: sum(c[w] for c, w in zip(costs, widths, strict=True)))
        assert chosen is not None
        assert sum(c[w] for c, w in zip(costs, chosen, strict=True)) <= 1.25 * sum(
            c[w] for c, w in zip(costs, best, strict=True)
        )
    assert allocate(costs, [10] * 4, 8.0) == [8, 8, 8, 8]
    assert allocate(costs, [10] * 4, 2.0) == [2, 2, 2, 2]
    assert allocate([{8: 0.0}, {8: 0.0, 2: 1.0}], [10, 10], 4.0) is None


def test_sensitivity_is_the_divergence_of_the_predictions(dense: nn.Module, digits: Data) -> None:
    prepared, layers = prepare(dense, digits.non_members, BOUNDS, 0)
    x = digits.non_members.x[:100]
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    costs = sensitivities(prepared, layers, x, [WeightFormat(bits=bits) for bits in WIDTHS])
    assert all(torch.equal(before[name], value) for name, value in prepared.state_dict().items())
    plain = TorchTarget(prepared).logits(x)
    layer = layers[2]
    assert isinstance(layer, nn.Conv2d)
    weight = layer.weight.detach().clone()
    codes, scale = weight_codes(weight, WeightFormat(bits=3))
    layer.weight.data = codes * scale[:, None, None, None]
    rounded = TorchTarget(prepared).logits(x)
    layer.weight.data = weight
    expected = F.kl_div(rounded.log_softmax(1), plain.log_softmax(1), log_target=True, reduction="batchmean")
    assert costs[2][3] == pytest.approx(float(expected), rel=1e-3)
    assert all(cost[8] < cost[2] for cost in costs)


def test_predicted_values_are_compared_by_their_squared_change() -> None:
    """One output has no distribution: a divergence would call every layer insensitive."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    for layer in module:
        if isinstance(layer, nn.Linear):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
    records = Records(torch.rand(60, 6, generator=generator), torch.rand(60, 1, generator=generator))
    recipe = MixedPrecision(average_bits=8, quantize=ENDS_FREE)
    assert widths_of(recipe.apply(module, records, BOUNDS, seed=0)) == [8, 8, 8]


def test_operations_and_weights_are_counted(dense: nn.Module, digits: Data) -> None:
    prepared, layers = prepare(dense, digits.non_members, BOUNDS, 0)
    convolution = 9 * 16 * 16
    assert weight_counts(layers) == [9 * 16, *[convolution] * 4, 640]
    # Images of 8 x 8, pooled to 4 x 4 between the blocks.
    assert mac_counts(prepared, layers, digits.non_members.x[:1]) == [
        64 * 9 * 16,
        64 * convolution,
        64 * convolution,
        16 * convolution,
        16 * convolution,
        640,
    ]
    lstm = nn.LSTM(5, 7, batch_first=True)
    assert weight_counts([lstm]) == [4 * 7 * (5 + 7)]
    assert mac_counts(lstm, [lstm], torch.zeros(1, 3, 5)) == [3 * 4 * 7 * (5 + 7)]


@pytest.mark.parametrize("weighted_by", ["size", "macs"])
def test_measured_widths_beat_equal_ones(weighted_by: Any, dense: nn.Module, digits: Data) -> None:
    assert digits.members is not None
    recipe = MixedPrecision(average_bits=2.9, weighted_by=weighted_by, quantize=ENDS_FREE)
    few = digits.members.take(torch.arange(200))
    mixed = recipe.apply(dense, few, BOUNDS, seed=0)
    prepared, layers = prepare(dense, digits.members, BOUNDS, 0)
    counts = weight_counts(layers) if weighted_by == "size" else mac_counts(prepared, layers, digits.members.x[:1])
    assert spent(widths_of(mixed), counts) <= 2.9
    assert len(set(widths_of(mixed))) > 1
    equal = Quantize(weight_bits=2, keep_ends_8bit=False).apply(dense, few, BOUNDS, seed=0)

    def right(module: nn.Module) -> float:
        return accuracy(TorchTarget(module), digits.non_members.x, digits.non_members.y)

    assert right(mixed) > right(equal) + 0.1


def test_ends_rounding_and_training_are_the_inner_recipes(dense: nn.Module, digits: Data) -> None:
    assert digits.members is not None
    inner = {"fine_tune": {"epochs": 1}, "activations": "dynamic", "number": "fixed-point"}
    recipe = RECIPES.parse({"kind": "mixed-precision", "average_bits": 3.5, "quantize": inner})
    assert recipe.trains
    assert recipe.phrase == (
        "mixed-precision fixed-point weights (3.5 bits per weight on average), 8-bit activations (dynamic), "
        "trained quantised for 1 epochs"
    )
    mixed = recipe.apply(dense, digits.members.take(torch.arange(200)), BOUNDS, seed=0)
    layers = [layer for layer in mixed.modules() if isinstance(layer, QuantizedLayer)]
    assert layers[0].bits == layers[-1].bits == 8
    assert {layer.number for layer in layers} == {"fixed-point"}
    assert {layer.activations for layer in layers} == {"dynamic"}


def test_what_cannot_be_done_is_said(dense: nn.Module, digits: Data) -> None:
    assert digits.members is not None
    with pytest.raises(InputError, match="one width"):
        RECIPES.parse({"kind": "mixed-precision", "quantize": {"number": "binary"}})
    with pytest.raises(NotApplicable, match="raise average_bits"):
        MixedPrecision(average_bits=2).apply(dense, digits.members.take(torch.arange(40)), BOUNDS, seed=0)
    none = digits.members.take(torch.arange(0))
    with pytest.raises(NotApplicable, match="there are none"):
        MixedPrecision().apply(dense, none, BOUNDS, seed=0)
    noise = MixedPrecision(quantize=Quantize(calibration_inputs="noise", calibration_records=64))
    assert not noise.touches_records
    noise.apply(dense, none, BOUNDS, seed=0)
    with pytest.raises(NotApplicable, match="nothing to quantize"):
        MixedPrecision().apply(nn.Sequential(nn.Flatten(), nn.ReLU()), digits.members, BOUNDS, seed=0)
    with pytest.raises(InputError, match="last step"):
        RECIPES.parse({"kind": "chain", "steps": ["mixed-precision", "prune"]})
