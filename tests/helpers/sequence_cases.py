"""Recurrent networks and Transformers, and what is measured of them."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from crushproof.compression.deployment.structure import save_module
from crushproof.targets.seeds import generator, global_seed
from crushproof.training.loop import Training
from crushproof.training.networks import digits_lstm, digits_transformer

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
BUILD = {"lstm": digits_lstm, "transformer": digits_transformer}
TRAINING = {
    "lstm": Training(epochs=12, learning_rate=3e-2, batch_size=64),
    "transformer": Training(epochs=10, learning_rate=8e-3),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "test"))


def made(build: Any, seed: int = 0) -> nn.Module:
    """A module with random values everywhere, biases and norms too."""
    with global_seed(seed, "test"):
        module: nn.Module = build()
        for parameter in module.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return module.eval()


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def through_json(module: nn.Module) -> tuple[Any, Any]:
    description, arrays = save_module(module)
    return json.loads(json.dumps(description, allow_nan=False)), arrays
