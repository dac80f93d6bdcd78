"""A compressed module survives the way through JSON and plain arrays, without a pickle."""

import copy
import json

import pytest
import torch
from torch import nn

from crushproof.compression.deployment.structure import describe, load_module, rebuild, save_module
from crushproof.compression.layers.edit import replace_layers
from crushproof.compression.quantization.quantized_layer import QuantizedLayer, quantize_layer
from crushproof.compression.quantization.weight_codes import WeightFormat
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.seeds import generator, global_seed
from crushproof.training.networks import Mlp, ResidualCnn, digits_cnn


def randomise(module: nn.Module) -> nn.Module:
    """Every float value random, so that equality means something; batch norms as after training."""
    draw = generator(5, "test")
    for value in module.state_dict().values():
        if value.dtype.is_floating_point:
            value.copy_(torch.rand(value.shape, generator=draw) + 0.1)
    return module.eval()


def quantized() -> nn.Module:
    module = digits_cnn()
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return replace_layers(
        module, {layer: quantize_layer(layer, WeightFormat(bits=4), activations=(-1.0, 2.0)) for layer in layers}
    )


def factorised() -> nn.Module:
    module = digits_cnn()
    module.block1.conv1 = nn.Sequential(nn.Conv2d(16, 5, 3, padding=1, bias=False), nn.Conv2d(5, 16, 1, bias=True))
    module.head = nn.Sequential(nn.Linear(64, 3, bias=False), nn.Linear(3, 10))
    return module


def folded() -> nn.Module:
    module = digits_cnn()
    module.stem = nn.Conv2d(1, 16, 3, padding=1, bias=True)
    module.norm = nn.Identity()
    return module


CHANGED = {
    "same": digits_cnn,
    "thinner": lambda: ResidualCnn(channels=7),
    "factorised": factorised,
    "folded": folded,
    "quantised": quantized,
}


@pytest.mark.parametrize("name", CHANGED)
def test_round_trip_through_json(name: str) -> None:
    module = randomise(CHANGED[name]())
    description, arrays = save_module(module)
    again = load_module(digits_cnn(), json.loads(json.dumps(description, allow_nan=False)), arrays)
    assert {key: value.dtype for key, value in again.state_dict().items()} == {
        key: value.dtype for key, value in module.state_dict().items()
    }
    assert all(torch.equal(again.state_dict()[key], value) for key, value in module.state_dict().items())
    assert [type(layer) for layer in again.modules()] == [type(layer) for layer in module.modules()]
    x = torch.rand(4, 1, 8, 8, generator=generator(1, "x"))
    with torch.no_grad():
        assert torch.equal(again(x), module(x))


def test_layers_as_described_are_left_alone() -> None:
    fresh = digits_cnn()
    kept = fresh.block2.conv1
    rebuilt = rebuild(fresh, describe(factorised()))
    assert rebuilt is fresh
    assert rebuilt.block2.conv1 is kept
    assert isinstance(rebuilt.block1.conv1, nn.Sequential)


def test_inside_a_sequence_and_at_the_root() -> None:
    module = Mlp(6, 3, hidden=(4,))
    module.layers[1] = nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 4))
    again = load_module(Mlp(6, 3, hidden=(4,)), *save_module(module))
    x = torch.rand(5, 6, generator=generator(1, "x"))
    assert torch.equal(again(x), module(x))
    lone = quantize_layer(nn.Linear(6, 3), WeightFormat())
    assert torch.equal(load_module(nn.Linear(6, 3), *save_module(lone))(x), lone(x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2, groups=2, bias=False),
        nn.Conv2d(4, 8, (3, 1), padding="same", padding_mode="reflect"),
        nn.BatchNorm1d(3, eps=1e-3, momentum=None, affine=False),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.GroupNorm(2, 4, eps=1e-4),
        nn.LayerNorm((3, 4), bias=False),
        QuantizedLayer("conv2d", (8, 2, 3, 3), "integer", 4, "group", 7, True, "dynamic", (2, 1), (1, 0), (1, 2), 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_arguments_are_complete(layer: nn.Module) -> None:
    again = rebuild(nn.Linear(1, 1), json.loads(json.dumps(describe(layer))))
    assert repr(again) == repr(layer)
    assert describe(again) == describe(layer)
    assert {key: (value.shape, value.dtype) for key, value in again.state_dict().items()} == {
        key: (value.shape, value.dtype) for key, value in layer.state_dict().items()
    }


class Own(nn.Linear):
    """A subclass may do anything: it is not rebuilt as its parent."""


def test_unknown_layers() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 3), nn.PReLU(), Own(3, 2))

    module = build()
    assert load_module(build(), *save_module(module))(torch.ones(1, 3)).shape == (1, 2)  # the same in both: no matter
    changed = copy.deepcopy(module)
    changed[1] = nn.Softplus()
    with pytest.raises(NotApplicable, match="Softplus"):
        rebuild(build(), describe(changed))


def test_misfits_are_named() -> None:
    with pytest.raises(InputError, match="block1"):
        rebuild(nn.Sequential(nn.Linear(1, 1)), describe(digits_cnn()))
    with pytest.raises(InputError, match="malformed"):
        rebuild(nn.Linear(1, 1), [{"path": ""}])
    with pytest.raises(InputError, match="arguments"):
        rebuild(nn.Linear(1, 1), [{"path": "", "type": "Linear", "arguments": {"in_features": 1}}])
    description, arrays = save_module(nn.Linear(2, 2))
    with global_seed(0, "test"), pytest.raises(InputError, match="do not fit"):
        load_module(nn.Linear(2, 2), description, {"weight": arrays["weight"][:1], "bias": arrays["bias"]})
