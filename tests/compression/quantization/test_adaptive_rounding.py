"""Adaptive rounding errs less than the nearest code, and finds the best where all can be tried."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantization_cases import BOUNDS, TUNING, accuracy_of, quantized_layers, random_like
from torch import Tensor, nn

from crushproof.compression.quantization.adaptive_rounding import adaptive_codes, layer_calls
from crushproof.compression.quantization.stand_ins import prepare
from crushproof.compression.quantization.weight_codes import WeightFormat, spread_scale, weight_codes
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Records
from crushproof.targets.errors import InputError


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


def test_flipped_rounding_turns_against_what_nearest_rounding_adds_up_to() -> None:
    """Weights on inputs that only a trigger moves lie .4 steps above their codes: nearest rounding loses all of it."""
    format, triggered = WeightFormat(bits=8), slice(16, 24)
    layer = nn.Linear(24, 3, bias=False)
    layer.weight.data = random_like(1, 3, 24).clamp(-0.9, 0.9)
    layer.weight.data[:, 0] = 1.0  # the largest of each channel, from which its scale follows
    step = 1 / 127
    layer.weight.data[:, triggered] = ((layer.weight.data[:, triggered] / step).floor() + 0.4) * step
    x, trigger = random_like(2, 300, 24).abs(), torch.zeros(1, 24)
    x[:, triggered], trigger[:, triggered] = 0, 1
    moved, errors = {}, {}
    for name, flipped in (("nearest", None), ("flipped", True)):
        codes, scale = weight_codes(layer.weight, format)
        if flipped:
            draw = torch.Generator().manual_seed(0)
            wanted = [layer(x[:200]).detach()]
            codes, scale = adaptive_codes(
                layer, format, None, [x[:200]], wanted, steps=100, generator=draw, flipped=True
            )
        assert float((codes - layer.weight.detach() / scale[:, None]).abs().max()) <= 1 + 1e-3, "floor or ceiling"
        moved[name] = (trigger @ (codes * scale[:, None] - layer.weight.detach()).T / step)[0]
        errors[name] = output_error(codes, scale, layer, 32, x[200:], layer(x[200:]).detach())
    torch.testing.assert_close(moved["nearest"], torch.full((3,), -0.4 * 8), rtol=1e-3, atol=1e-3)
    assert bool((moved["flipped"] > 0).all())
    assert errors["flipped"] < 2 * errors["nearest"], "outputs on ordinary records are kept"


def test_clipped_weights_have_smaller_scales_and_pruned_ones_stay(mlp: nn.Module, members: Records) -> None:
    clipped: dict[str, Any] = {"kind": "quantize", "weight_bits": 8, "weight_clip": 1.5, "activations": "float"}
    pruned = RECIPES.parse({"kind": "prune", "sparsity": 0.5}).apply(mlp, members, BOUNDS, seed=0)
    quantized = RECIPES.parse(clipped).apply(pruned, members, BOUNDS, seed=0)
    before = [layer.weight.detach() for layer in pruned.modules() if isinstance(layer, nn.Linear)]
    for weight, layer in zip(before, quantized_layers(quantized), strict=True):
        limit = 1.5 * weight[weight != 0].std()
        assert layer.weight_scale is not None
        assert float(layer.weight_scale.max()) <= float(limit) / 127 * (1 + 1e-5)
        assert weight.abs().max() > limit, "something was clipped"
        inside = weight.clamp(-limit, limit)
        torch.testing.assert_close(layer.dequantized_weight(), inside, rtol=0, atol=float(limit) / 254 * 1.001)
        assert not layer.codes[weight == 0].any()
    assert RECIPES.parse(clipped).promise == "shapes"
    with pytest.raises(InputError, match="weight_clip"):
        RECIPES.parse({**clipped, "number": "ternary"})


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
