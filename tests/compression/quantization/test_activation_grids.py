"""Additions and averages of activations on 8-bit grids: in torch, in the file, and in the integer kernels that run."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.deployment.structure import load_module, save_module
from crushproof.compression.footprint.payload import decode, encode
from crushproof.compression.layers.edit import called_layers, replace_layers
from crushproof.compression.layers.fold_batch_norm import fold_batch_norm
from crushproof.compression.quantization.activation_grids import RoundedActivations, quantize_additions
from crushproof.compression.quantization.quantized_layer import quantize_layer, true_gradients
from crushproof.compression.quantization.weight_codes import WeightFormat
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds
from crushproof.targets.runtimes.onnx import OnnxTarget, executed_operators
from crushproof.training.networks import digits_cnn

BOUNDS = Bounds(torch.tensor(0.0), torch.tensor(1.0))


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


def quantized(module: nn.Module, x: Tensor) -> nn.Module:
    """Every layer static, with the range that its input has on x."""
    folded = fold_batch_norm(copy.deepcopy(module.eval()), x[:2])
    ranges: dict[nn.Module, tuple[float, float]] = {}
    layers = called_layers(folded, x[:2])
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda layer, inputs: ranges.__setitem__(layer, (float(inputs[0].min()), float(inputs[0].max())))
        )
    with torch.no_grad():
        folded(x)
    stand_ins = {layer: quantize_layer(layer, WeightFormat(), activations=ranges[layer]) for layer in layers}
    return replace_layers(folded, stand_ins).eval()


@pytest.fixture(scope="module")
def rounded(digits: Data, dense: nn.Module) -> RoundedActivations:
    assert digits.members is not None
    x = digits.members.x[:256]
    wrapper = quantize_additions(quantized(dense, x), x, BOUNDS)
    assert isinstance(wrapper, RoundedActivations)
    return wrapper


class Block(nn.Module):
    """x + conv(x), written in the way of the subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 1), nn.Linear(18, 4)

    def answer(self, total: Tensor) -> Tensor:
        logits: Tensor = self.head(total.flatten(1))
        return logits

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x)
        return self.answer(left + right)


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x)
        right += left
        return self.answer(right)


class Function(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.answer(torch.add(*self.both(x)))


def grid(x: np.ndarray, low: float, high: float) -> np.ndarray:
    scale = np.float32((high - low) / 255)
    zero_point = np.rint(-low / scale)
    return (np.clip(np.rint(x / scale) + zero_point, 0, 255) - zero_point) * scale


@pytest.mark.parametrize("block", [Block, InPlace, Function])
def test_operands_are_rounded_however_the_sum_is_written(block: type[Block]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = quantized(block(), noise(20, 2, 3, 3))
    x = noise(20, 2, 3, 3) * 0.9
    wrapper = quantize_additions(module, x, Bounds(torch.tensor(-1.0), torch.tensor(1.0)))
    assert isinstance(wrapper, RoundedActivations)
    kept, entering = x.clone(), []
    module.head.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    with torch.no_grad():
        wrapper(x)
        right = module.conv(x).numpy()
    assert torch.equal(x, kept)
    low, high = min(right.min(), 0.0), max(right.max(), 0.0)
    # The layer's grid, whose input the left operand is.
    scale, zero_point = module.conv.input_scale.numpy(), module.conv.input_zero_point.numpy()
    left = (np.clip(np.rint(x.numpy() / scale) + zero_point, 0, 255) - zero_point) * scale
    difference = np.abs(entering[0].reshape(x.shape).numpy() - left - grid(right, low, high))
    assert np.mean(difference > 1e-6) < 0.01  # half-way cases: torch multiplies by 1 / scale
    assert difference.max() < max(high - low, 255 * scale) / 254  # one step


def test_the_whole_network_runs_in_integers(rounded: RoundedActivations, digits: Data) -> None:
    before = executed_operators(to_onnx(rounded.inner, (1, 8, 8)))
    after = executed_operators(to_onnx(rounded, (1, 8, 8)))
    assert before["FusedConv"] == 3  # those that feed an addition or read one
    assert {"QLinearConv": 5, "QLinearAdd": 2, "QLinearAveragePool": 1, "QGemm": 1}.items() <= after.items()
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "DequantizeLinear"} & set(after)
    assert after["QuantizeLinear"] == 1  # the input


def test_the_file_computes_what_the_module_computes(rounded: RoundedActivations, digits: Data) -> None:
    x = digits.non_members.x
    data = to_onnx(rounded, (1, 8, 8))
    assert to_onnx(copy.deepcopy(rounded), (1, 8, 8)) == data
    answered = OnnxTarget(data).logits(x)
    with torch.no_grad():
        expected, plain = rounded(x), rounded.inner(x)
    assert float((answered.argmax(1) == expected.argmax(1)).float().mean()) >= 0.998
    assert float((answered - expected).abs().max()) < 0.05 * float(expected.std())
    assert float((plain - expected).abs().max()) < 0.2 * float(expected.std())
    accuracy = [float((logits.argmax(1) == digits.non_members.y).float().mean()) for logits in (plain, expected)]
    assert abs(accuracy[0] - accuracy[1]) < 0.005


def test_it_survives_without_a_pickle(rounded: RoundedActivations) -> None:
    description, arrays = save_module(rounded)
    again = load_module(digits_cnn(), json.loads(json.dumps(description)), arrays)
    x = noise(30, 1, 8, 8)
    assert torch.equal(again(x), rounded(x))
    assert torch.equal(copy.deepcopy(rounded)(x), rounded(x))
    decoded = decode(encode(rounded), rounded)
    assert all(torch.equal(decoded[name], value) for name, value in rounded.state_dict().items())


def test_gradients_pass_straight_through_unless_native(rounded: RoundedActivations) -> None:
    x = noise(4, 1, 8, 8).requires_grad_()
    (through,) = torch.autograd.grad(rounded(x).square().sum(), x)
    assert float(through.abs().max()) > 0
    hard = true_gradients(rounded)
    assert torch.equal(hard(x), rounded(x))
    assert isinstance(hard, RoundedActivations)
    assert not hard.straight_through
    assert rounded.straight_through
    (zero,) = torch.autograd.grad(hard(x).square().sum(), x)
    assert float(zero.abs().max()) == 0


class Moody(Block):
    """Adds once more for a single record."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + super().forward(x) if len(x) == 1 else y


class ReadElsewhere(Block):
    """The sum in place also changes what is returned beside it."""

    def forward(self, x: Tensor) -> Tensor:
        right = self.conv(x)
        kept = right.view(right.shape)
        right += x
        return self.answer(kept + 0.0)


class Broadcast(Block):
    """Adds a mean per channel, and a parameter: neither is a sum of two activations of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(1, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.answer(y + y.mean((2, 3), keepdim=True) + self.shift)


class FloatOnly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x + x, 3).flatten(1)


@pytest.mark.parametrize(
    "module", [nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten()), Moody(), ReadElsewhere(), Broadcast()]
)
def test_what_cannot_be_rounded_stays_as_it_is(module: nn.Module) -> None:
    module = quantized(module, noise(8, 2, 3, 3))
    assert quantize_additions(module, noise(8, 2, 3, 3), BOUNDS) is module
    float_only = FloatOnly()
    assert quantize_additions(float_only, noise(8, 2, 3, 3), BOUNDS) is float_only


class Scaled(Block):
    """A weighted sum beside a plain one; the former is left alone."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x)
        return self.answer(torch.add(left, right, alpha=0.5) + right)


def test_weighted_sums_are_left_alone() -> None:
    wrapper = quantize_additions(quantized(Scaled(), noise(8, 2, 3, 3)), noise(8, 2, 3, 3), BOUNDS)
    assert isinstance(wrapper, RoundedActivations)
    assert wrapper.operands == (0, 1)


class LayerNormed(Block):
    """As in a Transformer: a sum goes to a layer norm, and only then to a quantised layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(F.layer_norm(x + self.conv(x), (3,)))


def test_a_sum_that_stays_in_float_is_not_rounded() -> None:
    module = quantized(LayerNormed(), noise(8, 2, 3, 3))
    assert quantize_additions(module, noise(8, 2, 3, 3), BOUNDS) is module


def test_an_average_is_rounded_behind_integers_only() -> None:
    x = noise(16, 1, 8, 8)
    behind = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    wrapper = quantize_additions(quantized(behind, x), x, BOUNDS)
    assert isinstance(wrapper, RoundedActivations)
    assert executed_operators(to_onnx(wrapper, (1, 8, 8)))["QLinearConv"] == 1
    ahead = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 4, 3), nn.Flatten())
    module = quantized(ahead, x)
    assert quantize_additions(module, x, BOUNDS) is module
