"""Quantised layers against integer arithmetic written out in numpy, and the folding of batch norms."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.compression.layers.edit import REBUILDABLE
from crushproof.compression.layers.fold_batch_norm import fold_batch_norm
from crushproof.compression.quantization.quantized_layer import (
    Activations,
    QuantizedLayer,
    can_quantize,
    dynamic_grid,
    input_grid,
    quantize_layer,
    true_gradients,
)
from crushproof.compression.quantization.weight_codes import WeightFormat
from crushproof.targets.errors import NotApplicable
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
    quantized = quantize_layer(layer, WeightFormat(bits=bits), activations=(-1.5, 2.0))
    q, scale, zero_point = u8(x, -1.5, 2.0)
    assert quantized.bias_codes is not None
    sums = integer_conv2d(quantized.codes.numpy(), q - zero_point, **geometry)
    sums += quantized.bias_codes.numpy().astype(np.int64)[:, None, None]
    expected = sums * (scale * quantized.weight_scale.double().numpy())[:, None, None]
    np.testing.assert_allclose(quantized(x).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_linear_layer_computes_what_integers_compute() -> None:
    layer = layer_of(nn.Linear, 20, 6)
    x = torch.rand(5, 20, generator=seeded())
    quantized = quantize_layer(layer, WeightFormat(), activations=(0.0, 1.0))
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
    layer = quantize_layer(layer_of(nn.Linear, levels + 1, 2), WeightFormat(), activations=(low, high))
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


def test_gradients_pass_straight_through_inside_the_range_only() -> None:
    layer = layer_of(nn.Linear, 4, 1)
    quantized = quantize_layer(layer, WeightFormat(), activations=(0.0, 1.0))
    x = torch.tensor([[-0.5, 0.3, 0.9, 1.5]], requires_grad=True)
    quantized(x).sum().backward()
    weight = quantized.dequantized_weight()[0]
    assert x.grad is not None
    assert torch.equal(x.grad[0], weight * torch.tensor([0.0, 1, 1, 0]))


def test_native_gradients_of_hard_rounding_are_zero_and_values_the_same() -> None:
    quantized = nn.Sequential(quantize_layer(layer_of(nn.Linear, 4, 3), WeightFormat(), activations=(0.0, 1.0)))
    hard = true_gradients(quantized)
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
    quantized = quantize_layer(layer, WeightFormat(), activations=(0.0, 1.0))
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
@pytest.mark.parametrize("activations", [None, (-3.0, 3.0), "dynamic"])
def test_layers_of_every_sort_stay_close_to_float_and_can_be_rebuilt(
    layer: nn.Module, shape: tuple[int, ...], activations: Activations
) -> None:
    assert can_quantize(layer)
    x = torch.randn(shape, generator=seeded()).clamp(-3, 3)
    quantized = quantize_layer(layer, WeightFormat(), activations=activations)
    assert float((quantized(x) - layer(x)).abs().max().detach()) < 0.05
    rebuilt = QuantizedLayer(**{name: getattr(quantized, name) for name in REBUILDABLE[QuantizedLayer]})
    rebuilt.load_state_dict(quantized.state_dict())
    assert torch.equal(rebuilt(x), quantized(x))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=9))
def test_the_grid_of_a_call_is_that_of_onnx(values: list[float]) -> None:
    """The definition of DynamicQuantizeLinear in the ONNX standard, in numpy's float32."""
    x = np.array(values, dtype=np.float32)
    low, high = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
    scale = (high - low) / np.float32(255) or np.float32(1)
    ours, zero_point = dynamic_grid(torch.from_numpy(x)[None])
    assert ours.item() == scale
    assert zero_point.item() == np.clip(np.rint(-low / scale), 0, 255)


def test_an_answer_does_not_depend_on_who_else_asks() -> None:
    linear, x = layer_of(nn.Linear, 4, 3), torch.rand(2, 4, generator=seeded())
    x[1] *= 100
    for activations in ((0.0, 1.0), "dynamic"):
        layer = quantize_layer(linear, WeightFormat(), activations=activations)
        assert torch.allclose(layer(x)[0], layer(x[:1])[0], atol=1e-6)


def test_a_dynamic_layer_computes_what_integers_compute() -> None:
    linear, x = layer_of(nn.Linear, 20, 6), torch.randn(5, 20, generator=seeded())
    layer = quantize_layer(linear, WeightFormat(), activations="dynamic")
    assert layer.weight_scale is not None
    for record, answer in zip(x, layer(x).detach().numpy(), strict=True):
        q, scale, zero_point = u8(record, float(record.min()), float(record.max()))
        sums = (q - zero_point) @ layer.codes.numpy().astype(np.int64).T
        expected = sums * (scale * layer.weight_scale.double().numpy()) + linear.bias.detach().numpy()
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)


def test_an_embedding_is_quantised_by_its_rows() -> None:
    embedding, words = layer_of(nn.Embedding, 30, 8), torch.tensor([[3, 3, 29], [0, 1, 2]])
    layer = quantize_layer(embedding, WeightFormat())
    assert float((layer(words) - embedding(words)).detach().abs().max()) < 0.02
    assert torch.equal(layer(words), F.embedding(words, layer.dequantized_weight()))
    assert layer.operations((words,), layer(words)) == (0, 8, 32)
    assert not can_quantize(nn.Embedding(4, 2, max_norm=1.0))
    with pytest.raises(NotApplicable, match="embedding"):
        quantize_layer(embedding, WeightFormat(), activations="dynamic")


def test_operations_are_counted_by_the_width_of_their_operands() -> None:
    conv, x = layer_of(nn.Conv2d, 4, 6, 3, groups=2, stride=2), torch.rand(5, 4, 9, 9, generator=seeded())
    for format, activations, widths in (
        (WeightFormat(bits=4), (0.0, 1.0), (4, 8)),
        (WeightFormat("ternary"), "dynamic", (2, 8)),
        (WeightFormat("binary"), None, (1, 32)),
        (WeightFormat("bfloat16"), None, (16, 32)),
    ):
        layer = quantize_layer(conv, format, activations=activations)
        assert layer.operations((x,), layer(x)) == (6 * 4 * 4 * 2 * 9, *widths)


def test_codes_chosen_elsewhere_are_taken_as_they_are() -> None:
    linear, codes, scale = layer_of(nn.Linear, 4, 3), torch.full((3, 4), 5, dtype=torch.int8), torch.full((3,), 0.5)
    layer = quantize_layer(linear, WeightFormat(), activations=(0.0, 1.0), codes=(codes, scale))
    assert torch.equal(layer.codes, codes)
    assert torch.equal(layer.dequantized_weight(), torch.full((3, 4), 2.5))


def test_sixteen_bit_weights_keep_float_activations() -> None:
    with pytest.raises(NotApplicable, match="float16"):
        quantize_layer(nn.Linear(4, 3), WeightFormat("float16"), activations=(0.0, 1.0))


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
    folded = fold_batch_norm(copy.deepcopy(module), torch.rand(2, *shape, generator=seeded(5)))
    x = torch.rand(16, *shape, generator=seeded(6))
    with torch.no_grad():
        torch.testing.assert_close(folded(x), module(x), rtol=1e-4, atol=1e-4)
    assert norms(folded) == left
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
