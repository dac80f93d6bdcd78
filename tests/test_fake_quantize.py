"""Quantised layers against integer arithmetic written out in numpy, and the folding of batch norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crushproof.compression.fake_quantize import (
    QuantizedLayer,
    can_quantize,
    fold_batch_norm,
    input_grid,
    native,
    quantize_codes,
    quantize_layer,
)
from crushproof.training.networks import digits_cnn


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_of(cls: type[nn.Module], *args: Any, **kwargs: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return cls(*args, **kwargs).eval()


def integer_conv2d(
    codes: np.ndarray, x: np.ndarray, stride: int, padding: int, dilation: int, groups: int
) -> np.ndarray:
    """int64 convolution by its definition; x [n, c, h, w] has its zero point subtracted."""
    out, per_group, kh, kw = codes.shape
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    rows = (x.shape[2] - dilation * (kh - 1) - 1) // stride + 1
    columns = (x.shape[3] - dilation * (kw - 1) - 1) // stride + 1
    result = np.zeros((len(x), out, rows, columns), dtype=np.int64)
    for o in range(out):
        first = o // (out // groups) * per_group
        for r in range(rows):
            for c in range(columns):
                window = x[
                    :,
                    first : first + per_group,
                    r * stride : r * stride + dilation * (kh - 1) + 1 : dilation,
                    c * stride : c * stride + dilation * (kw - 1) + 1 : dilation,
                ]
                result[:, o, r, c] = (window * codes[o]).sum((1, 2, 3))
    return result


def u8(x: Tensor, low: float, high: float) -> tuple[np.ndarray, float, int]:
    """ONNX's QuantizeLinear: divide, round half to even, add the zero point, saturate."""
    scale, zero_point = np.float32((high - low) / 255), round(-low / ((high - low) / 255))
    return np.clip(np.rint(x.numpy() / scale) + zero_point, 0, 255).astype(np.int64), float(scale), zero_point


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize(
    "geometry",
    [
        {"stride": 1, "padding": 1, "dilation": 1, "groups": 1},
        {"stride": 2, "padding": 0, "dilation": 1, "groups": 2},
        {"stride": 1, "padding": 2, "dilation": 2, "groups": 4},
    ],
)
def test_a_convolution_computes_what_integers_compute(bits: Any, geometry: dict[str, int]) -> None:
    layer = layer_of(nn.Conv2d, 4, 8, 3, **geometry)
    x = torch.randn(3, 4, 7, 7, generator=seeded())
    quantized = quantize_layer(layer, bits, input_range=(-1.5, 2.0))
    q, scale, zero_point = u8(x, -1.5, 2.0)
    assert quantized.bias_codes is not None
    sums = integer_conv2d(quantized.codes.numpy(), q - zero_point, **geometry)
    sums += quantized.bias_codes.numpy().astype(np.int64)[:, None, None]
    expected = sums * (scale * quantized.weight_scale.double().numpy())[:, None, None]
    np.testing.assert_allclose(quantized(x).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_linear_layer_computes_what_integers_compute() -> None:
    layer = layer_of(nn.Linear, 20, 6)
    x = torch.rand(5, 20, generator=seeded())
    quantized = quantize_layer(layer, 8, input_range=(0.0, 1.0))
    q, scale, zero_point = u8(x, 0.0, 1.0)
    assert zero_point == 0
    assert quantized.bias_codes is not None
    sums = q @ quantized.codes.numpy().astype(np.int64).T + quantized.bias_codes.numpy()
    expected = sums * (scale * quantized.weight_scale.double().numpy())
    np.testing.assert_allclose(quantized(x).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert float((quantized(x) - layer(x)).abs().max().detach()) < 0.02


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 16), (0, 255), (-1, 1), (-0.5, 0.5), (0, 2)])
@pytest.mark.parametrize("levels", [16, 255])
def test_pixels_are_rounded_as_onnx_rounds_them(low: float, high: float, levels: int) -> None:
    """Pixels lie on a lattice, so half-way cases (8/16 on a grid of 255 steps) are common and must go the same way."""
    x = torch.linspace(low, high, levels + 1)
    layer = quantize_layer(layer_of(nn.Linear, levels + 1, 2), 8, input_range=(low, high))
    q, scale, zero_point = u8(x, low, high)
    np.testing.assert_array_equal(
        layer.round_input(x).numpy(), ((q - zero_point) * np.float32(scale)).astype(np.float32)
    )


@settings(max_examples=60, deadline=None)
@given(low=st.floats(-100, 100, width=32), width=st.floats(0, 200, width=32))
def test_zero_is_always_a_grid_point(low: float, width: float) -> None:
    scale, zero_point = input_grid(low, low + width)
    assert 0 <= zero_point <= 255
    assert scale > 0
    assert (0 - zero_point) * scale <= min(low, 0) + 0.51 * scale
    assert (255 - zero_point) * scale >= max(low + width, 0) - 0.51 * scale


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([8, 4, 3, 2]),
    rounding=st.sampled_from(["nearest", "stochastic"]),
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_codes_stay_in_range_and_are_neighbours_of_the_weight(bits: Any, rounding: Any, seed: int, size: float) -> None:
    weight = torch.randn(5, 3, 2, generator=seeded(seed)) * size
    codes, scale = quantize_codes(weight, bits, rounding, seeded(seed))
    top = 2 ** (bits - 1) - 1
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) <= top
    steps = (weight / scale.view(-1, 1, 1)).clamp(-top, top)
    limit = 0.5 if rounding == "nearest" else 1.0
    assert float((codes - steps).abs().max()) <= limit + 1e-4


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_the_clipped_range_is_the_best_of_the_grid(bits: Any) -> None:
    weight = torch.randn(6, 40, generator=seeded())
    codes, scale = quantize_codes(weight, bits)
    top, rows = 2 ** (bits - 1) - 1, weight.double().numpy()
    least = np.full(6, np.inf)
    for ratio in np.arange(0.2, 1.001, 0.02):
        candidate = np.abs(rows).max(1, keepdims=True) * ratio / top
        error = (np.clip(np.rint(rows / candidate), -top, top) * candidate - rows) ** 2
        least = np.minimum(least, error.sum(1))
    ours = ((codes.double().numpy() * scale.double().numpy()[:, None] - rows) ** 2).sum(1)
    np.testing.assert_allclose(ours, least, rtol=1e-4)


def test_stochastic_rounding_is_right_on_average_and_follows_its_generator() -> None:
    weight = torch.rand(1, 2000, generator=seeded()) * 0.6 + 0.2
    weight[0, 0] = 1.0  # fixes the 8-bit scale
    codes, scale = quantize_codes(weight, 8)
    draws = torch.stack([quantize_codes(weight, 8, "stochastic", seeded(seed))[0] for seed in range(200)]).double()
    steps = (weight / scale[:, None]).double()
    assert torch.equal(draws[3], quantize_codes(weight, 8, "stochastic", seeded(3))[0].double())
    assert len(draws.unique(dim=0)) == 200
    # A fraction f has variance f (1 - f) per draw; over 2000 weights the largest z stays below 5.
    z = (draws.mean(0) - steps) / ((steps % 1) * (1 - steps % 1) / 200).sqrt().clamp_min(1e-2)
    assert float(z.abs().max()) < 5
    assert torch.equal(codes.double(), steps.round())


def test_gradients_pass_straight_through_inside_the_range_only() -> None:
    layer = layer_of(nn.Linear, 4, 1)
    quantized = quantize_layer(layer, 8, input_range=(0.0, 1.0))
    x = torch.tensor([[-0.5, 0.3, 0.9, 1.5]], requires_grad=True)
    quantized(x).sum().backward()
    weight = quantized.dequantized_weight()[0]
    assert x.grad is not None
    assert torch.equal(x.grad[0], weight * torch.tensor([0.0, 1, 1, 0]))


def test_native_gradients_of_hard_rounding_are_zero_and_values_the_same() -> None:
    quantized = nn.Sequential(quantize_layer(layer_of(nn.Linear, 4, 3), 8, input_range=(0.0, 1.0)))
    hard = native(quantized)
    x = torch.rand(5, 4, generator=seeded()).requires_grad_()
    logits = hard(x)
    logits.square().sum().backward()
    assert torch.equal(logits, quantized(x))
    assert x.grad is not None
    assert float(x.grad.abs().max()) == 0
    assert all(layer.straight_through for layer in quantized)


def test_a_large_bias_beside_tiny_weights_fits_into_int32() -> None:
    layer = layer_of(nn.Linear, 4, 3)
    layer.weight.data[1] *= 1e-12
    layer.weight.data[2] = 0
    layer.bias.data = torch.tensor([0.1, 50.0, 3.0])
    x = torch.rand(8, 4, generator=seeded())
    quantized = quantize_layer(layer, 8, input_range=(0.0, 1.0))
    assert quantized.bias_codes is not None
    assert float(quantized.bias_codes.double().abs().max()) <= 2**30
    torch.testing.assert_close(quantized(x), layer(x), rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layer_of(nn.Conv2d, 2, 4, 3, padding="same", dilation=2), (2, 2, 8, 8)),
        (layer_of(nn.Conv2d, 2, 4, (3, 1), padding="valid", stride=(2, 1), bias=False), (2, 2, 8, 8)),
        (layer_of(nn.Conv1d, 2, 4, 3, padding=1), (2, 2, 9)),
        (layer_of(nn.Linear, 5, 4), (2, 3, 5)),
    ],
)
@pytest.mark.parametrize("input_range", [None, (-3.0, 3.0)])
def test_layers_of_every_sort_stay_close_to_float_and_can_be_rebuilt(
    layer: nn.Module, shape: tuple[int, ...], input_range: tuple[float, float] | None
) -> None:
    assert can_quantize(layer)
    x = torch.randn(shape, generator=seeded()).clamp(-3, 3)
    quantized = quantize_layer(layer, 8, input_range=input_range)
    assert float((quantized(x) - layer(x)).abs().max().detach()) < 0.05
    names = ("operation", "shape", "bits", "has_bias", "quantized_input", "stride", "padding", "dilation", "groups")
    rebuilt = QuantizedLayer(**{name: getattr(quantized, name) for name in names})
    rebuilt.load_state_dict(quantized.state_dict())
    assert torch.equal(rebuilt(x), quantized(x))


def test_layers_whose_padding_cannot_be_kept_are_refused() -> None:
    assert not can_quantize(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"))
    assert not can_quantize(nn.Conv2d(1, 1, 2, padding="same"))
    assert not can_quantize(nn.ConvTranspose2d(1, 1, 3))
    assert not can_quantize(nn.MultiheadAttention(4, 1).out_proj)


def restless(module: nn.Module) -> nn.Module:
    """Batch norms with the statistics and gains of no particular training."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=seeded(1)))
            layer.running_var.copy_(torch.rand(layer.num_features, generator=seeded(2)) + 0.1)
            if layer.affine:
                layer.weight.data = torch.randn(layer.num_features, generator=seeded(3))
                layer.bias.data = torch.randn(layer.num_features, generator=seeded(4))
    return module.eval()


def norms(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in module.modules())


class UsedTwice(nn.Module):
    """The convolution's output enters the norm and, past it, the sum: folding would change the second use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (y + self.norm(y)).flatten(1)


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(torch.relu(self.norm(self.conv(x))))).flatten(1)


@pytest.mark.parametrize(
    ("module", "shape", "left"),
    [
        (digits_cnn(), (1, 8, 8), 0),
        (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)), (6,), 0),
        (nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5, affine=False)), (6,), 0),
        (nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3)), (1, 8, 8), 1),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)), (1, 8, 8), 1),
        (UsedTwice(), (1, 8, 8), 1),
        (CalledTwice(), (1, 8, 8), 1),
    ],
)
def test_folding_keeps_the_function_and_refuses_what_it_cannot_prove(
    module: nn.Module, shape: tuple[int, ...], left: int
) -> None:
    restless(module)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    folded = fold_batch_norm(module, torch.rand(2, *shape, generator=seeded(5)))
    x = torch.rand(16, *shape, generator=seeded(6))
    with torch.no_grad():
        torch.testing.assert_close(folded(x), module(x), rtol=1e-4, atol=1e-4)
    assert norms(folded) == left
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
