"""Adaptive rounding errs less than the nearest code, and finds the best where all can be tried."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantization_cases import BOUNDS, TUNING, accuracy_of, quantized_layers, random_like
from torch import Tensor, nn

from crushproof.compression.quantization.adaptive_rounding import adaptive_codes, layer_calls
from crushproof.compression.quantization.quantize import prepare
from crushproof.compression.quantization.weight_codes import WeightFormat, spread_scale, weight_codes
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Records


def output_error(codes: Tensor, scale: Tensor, layer: nn.Module, group: int, x: Tensor, wanted: Tensor) -> float:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    weight = codes * spread_scale(scale, tuple(layer.weight.shape), group)
    with torch.no_grad():
        output = torch.func.functional_call(layer, {"weight": weight}, (x,))
    return float((output - wanted).square().mean())


@pytest.mark.parametrize("bits", [2, 4])
def test_adaptive_rounding_errs_less_on_inputs_it_has_not_seen(bits: Any, dense: nn.Module, members: Records) -> None:
    prepared, layers = prepare(dense, members, BOUNDS, 0)
    format = WeightFormat(bits=bits)
    better = 0
    for layer in layers:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        (seen,), (held_out,) = (layer_calls(prepared, layer, x) for x in (members.x[:100], members.x[100:200]))
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            targets = [layer(seen)]
            wanted = layer(held_out)
        codes, scale = adaptive_codes(layer, format, None, [seen], targets, steps=60, generator=draw)
        nearest, same = weight_codes(layer.weight, format)
        assert torch.equal(scale, same)
        steps = (layer.weight.detach().flatten(1) / scale[:, None]).view_as(codes)
        inside = steps.abs() <= format.top
        assert bool(((codes == steps.floor()) | (codes == steps.ceil()))[inside].all())
        assert int(codes.abs().max()) <= format.top
        errors = [output_error(each, scale, layer, 32, held_out, wanted) for each in (codes, nearest)]
        better += errors[0] < errors[1]
    assert better >= len(layers) - 1


def test_adaptive_rounding_finds_the_best_of_all_roundings() -> None:
    """Correlated inputs, few enough weights to try every combination of up and down."""
    format = WeightFormat(bits=3)
    ranks: list[tuple[int, int]] = []
    for seed in range(4):
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
    for fields in ({"rounding": "adaptive", "rounding_steps": 20}, {"fine_tune": {**TUNING, "epochs": 1}}):
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
    few = members.take(torch.arange(200))

    def accuracy_with(rounding: str) -> float:
        recipe = RECIPES.parse({"kind": "quantize", **fields, "rounding": rounding, "rounding_steps": 30})
        return accuracy_of(recipe.apply(dense, few, digits.bounds, seed=0), digits)

    assert accuracy_with("adaptive") > accuracy_with("nearest") + 0.02
