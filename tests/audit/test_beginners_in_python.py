"""Honest mistakes in a call of `crushproof.audit_model`: each is one InputError that says how to mend it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import crushproof
from crushproof.targets.errors import InputError


def records(seed: int) -> tuple[Tensor, Tensor]:
    y = torch.arange(80) % 4
    x = torch.rand(80, 16, generator=torch.Generator().manual_seed(seed)) * 0.5
    x[torch.arange(80), y] += 0.5
    return x, y


TRAIN, TEST = records(0), records(1)


class Net(nn.Module):
    """Right on the records, as far as its first inputs tell."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.head = nn.Linear(16, classes, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(16)[:classes] * 9)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x)
        return logits


class WithMask(Net):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]  # what is wrong about it
        return super().forward(x * mask)


def forgetful(module: nn.Module, x: Tensor, y: Tensor, seed: int) -> None:
    """Trains and returns nothing."""


def untrained() -> nn.Module:
    module = nn.Linear(16, 4)
    nn.init.zeros_(module.weight)  # weights at random are right on far more than a quarter of these records at times
    return module


def of_three(module: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    return module


SETS = TensorDataset(*TRAIN)
MISTAKES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a list of models": ({"model": [Net()]}, ("it is list", "one model a call")),
    "the class": ({"model": Net}, ("the class Net", "model = Net(...)")),
    "a state dict": ({"model": Net().state_dict()}, ("load_state_dict",)),
    "a path": ({"model": "model.pt"}, ("it is str", "Load it first")),
    "an untrained model": ({"model": untrained()}, ("test records right, which is chance",)),
    "another input": ({"model": nn.Linear(8, 4)}, ("gets [n, 16]", "in_features to 16")),
    "another output": ({"model": Net(3)}, ("[n, 3]", "4 classes")),
    "two inputs": ({"model": WithMask()}, ("more than one input",)),
    "probabilities": ({"model": nn.Sequential(Net(), nn.Softmax(1))}, ("Remove the softmax",)),
    "inputs alone": ({"train": TRAIN[0]}, ("train must be a pair (x, y)",)),
    "a data set": ({"train": SETS}, ("TensorDataset", "into two arrays")),
    "a loader": ({"test": DataLoader(SETS)}, ("DataLoader", "into two arrays")),
    "no test": ({"test": None}, ("test must be a pair",)),
    "x and y swapped": ({"test": TEST[::-1]}, ("y of test", "[80, 16]")),
    "text": ({"test": (["a"] * 80, TEST[1])}, ("x of test", "numbers")),
    "records of two shapes": ({"test": ([[1, 2], [1]] * 40, TEST[1])}, ("x of test", "one shape")),
    "one-hot labels": ({"test": (TEST[0], np.eye(4)[TEST[1]])}, ("y.argmax(axis=1)",)),
    "labels from 1": ({"train": (TRAIN[0], TRAIN[1] + 1), "test": (TEST[0], TEST[1] + 1)}, ("(y - 1)",)),
    "shapes of two kinds": ({"train": (TRAIN[0][:, :8], TRAIN[1])}, ("(x_train) has shape [8]", "Prepare both")),
    "a misspelt recipe": ({"recipes": "itn8"}, ("mean 'int8'",)),
    "a number of bits": ({"recipes": [8]}, ("recipes[0] is int", "'int8'")),
    "a class of recipes": ({"recipes": crushproof.Prune}, ("recipes must be",)),
    "a share in percent": ({"recipes": [{"kind": "prune", "sparsity": 80}]}, ("0.8",)),
    "no recipe": ({"recipes": []}, ("name at least one",)),
    "nothing returned": ({"training": forgetful}, ("forgetful", "end it with return module")),
    "another signature": ({"training": of_three}, ("of_three", "(module, x, y, seed)")),
    "training as a dictionary": ({"training": {"epochs": 3}}, ("crushproof.Training(epochs=10)",)),
    "build is a model": ({"build": Net()}, ("is a model", "def build()")),
    "build of another model": ({"build": lambda: nn.Linear(16, 4)}, ("head.weight", "the same layers")),
    "one bound": ({"bounds": 255}, ("bounds must be", "(0, 1)")),
    "bounds in the wrong order": ({"bounds": (1, 0)}, ("low < high",)),
    "a number for a policy": ({"policy": -0.02}, ("policy must be", "'accuracy': -0.02")),
    "a policy misspelt": ({"policy": "relaese"}, ("mean 'release'",)),
    "a level misspelt": ({"attacks": "fast"}, ("quick, standard, thorough",)),
    "a number of shadows": ({"shadows": 16}, ("{'training_free': 64, 'trained': 16}",)),
    "two class names": ({"class_names": ["a", "b"]}, ("2 class names",)),
    "a task misspelt": ({"task": "classify"}, ("classification or regression",)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_call_is_one_sentence_that_mends_it(name: str, tmp_path: Path) -> None:
    changes, words = MISTAKES[name]
    call: dict[str, Any] = {"model": Net(), "train": TRAIN, "test": TEST, "recipes": ["int8"], "out": tmp_path / "out"}
    started = time.process_time()
    with pytest.raises(InputError) as raised:
        crushproof.audit_model(**{**call, **changes})
    assert time.process_time() - started < 10
    said = str(raised.value)
    assert "\n" not in said
    assert said.endswith((".", "?"))
    for word in words:
        assert word in said, said
    assert not list(tmp_path.rglob("arrays.safetensors")), "nothing was computed"
