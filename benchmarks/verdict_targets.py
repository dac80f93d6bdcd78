"""Models of one's own to audit, as a user would hand them over: a folder with plan.yaml, my_model.py, data, weights."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

MODELS = Path(__file__).parent / "verdict_models"
Arrays = dict[str, np.ndarray[Any, Any]]
FINE_TUNE = {"epochs": 1, "learning_rate": 2e-3, "batch_size": 64}


@dataclass(frozen=True)
class Target:
    """What is audited.

    Args:
        arrays: of data.npz, from the folder with the public data sets.
        plan: of the plan's sections those that are the target's own; `data` without its path, `model` without weights.
        model: its file in verdict_models/; "": named as the target is.
        limit: seconds by the clock it may take; its plan names no budget then.
    """

    name: str
    setting: str
    arrays: Callable[[Path], Arrays]
    plan: Callable[[Arrays], dict[str, Any]]
    model: str = ""
    limit: float | None = None


def write(target: Target, public: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """Writes the target into the folder, its weights trained here by its own function; the plan's path."""
    arrays = target.arrays(public)
    np.savez(folder / "data.npz", **{name: array for name, array in arrays.items() if not name.startswith("_")})
    shutil.copy(MODELS / f"{target.model or target.name}.py", folder / "my_model.py")
    plan = {"name": target.name, "seed": 0, **target.plan(arrays)}
    plan["data"] = {"kind": "npz", "path": "data.npz", **plan["data"]}
    parameters = plan.get("model", {}).get("parameters", {})
    plan["model"] = {
        "architecture": "my_model:build",
        "parameters": parameters,
        "weights": "model.safetensors",
        "training_function": "my_model:train",
    }
    save_weights(folder, arrays, parameters)
    path = folder / "plan.yaml"
    whole = json.loads(json.dumps({**plan, "attacks": "standard", **changes}))  # plans take no YAML aliases
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    return path


def save_weights(folder: Path, arrays: Arrays, parameters: dict[str, Any]) -> None:
    """Trains the folder's model on its members, as its owner did before the audit."""
    from safetensors.torch import save_file

    spec = importlib.util.spec_from_file_location("my_model", folder / "my_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x = torch.from_numpy(arrays["x_train"]).float()
    if x.dim() == 3:
        x = x.unsqueeze(1)  # as the audit reads images without channels
    torch.manual_seed(0)
    model = module.train(module.build(**parameters).train(), x, torch.from_numpy(arrays["y_train"]).long(), 0)
    save_file(model.state_dict(), folder / "model.safetensors")


def mnist(public: Path) -> Arrays:
    with np.load(public / "mnist.npz") as data:
        chosen = np.random.default_rng(0).permutation(60_000)[:20_000]
        return {
            "x_train": (data["x_train"][chosen] / 255).astype(np.float32),
            "y_train": data["y_train"][chosen].astype(np.int64),
            "x_test": (data["x_test"] / 255).astype(np.float32),
            "y_test": data["y_test"].astype(np.int64),
        }


def adult(public: Path) -> Arrays:
    """Numbers scaled to [0, 1] by the training file's range, then a one-hot block per categorical column.

    `_blocks`: first and last column of each block, in the order of `_names`.
    """
    with np.load(public / "adult.npz") as data:
        numbers, codes, train = data["num"].astype(np.float64), data["cat"], int(data["n_train"])
        y, names = data["y"].astype(np.int64), data["cat_names"]
    low, high = numbers[:train].min(0), numbers[:train].max(0)
    columns = [np.clip((numbers - low) / (high - low), 0, 1)]
    blocks, first = [], numbers.shape[1]
    for column in codes.T:
        width = int(column.max()) + 1
        columns.append(np.eye(width)[column])
        blocks.append((first, first + width - 1))
        first += width
    x = np.concatenate(columns, 1).astype(np.float32)
    return {
        "x_train": x[:train],
        "y_train": y[:train],
        "x_test": x[train:],
        "y_test": y[train:],
        "_blocks": np.array(blocks),
        "_names": names,
    }


def tokens(public: Path) -> Arrays:
    """Sequences of 20 of 24 tokens from four noisy Markov chains; one label in twelve is wrong, which can only be
    learnt by heart."""
    del public
    rng = np.random.default_rng(0)
    vocabulary, classes, length, each = 24, 4, 20, 4000
    shared = rng.dirichlet(np.full(vocabulary, 0.3), size=vocabulary)
    own = rng.dirichlet(np.full(vocabulary, 0.3), size=(classes, vocabulary))
    steps = np.cumsum(0.2 * shared + 0.8 * own, axis=2)
    y = rng.integers(0, classes, 2 * each)
    x = np.empty((2 * each, length), np.int64)
    x[:, 0] = rng.integers(0, vocabulary, 2 * each)
    for place in range(1, length):
        x[:, place] = (steps[y, x[:, place - 1]] < rng.random((2 * each, 1))).sum(1).clip(max=vocabulary - 1)
    wrong = rng.random(2 * each) < 1 / 12
    y = np.where(wrong, rng.integers(0, classes, 2 * each), y)
    return {"x_train": x[:each], "y_train": y[:each], "x_test": x[each:], "y_test": y[each:]}


def cifar(public: Path) -> Arrays:
    with np.load(public / "cifar10_test_761.npz") as data:
        x = (data["x_test"].transpose(0, 3, 1, 2) / 255).astype(np.float32)
        y = data["y_test"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order], y[order]
    return {"x_train": x[:380], "y_train": y[:380], "x_test": x[380:], "y_test": y[380:]}


def candidates(*words: str) -> dict[str, Any]:
    known: dict[str, Any] = {"prune80": {"kind": "prune", "sparsity": 0.8, "fine_tune": FINE_TUNE}}
    return {word: known.get(word, word) for word in words}


def _images(arrays: Arrays) -> dict[str, Any]:
    del arrays
    return {"data": {"bounds": [0, 1]}, "candidates": candidates("int8", "int4", "prune80", "share16")}


def _shadows(arrays: Arrays) -> dict[str, Any]:
    """Eight candidates, four of which train, each with 16 shadow models of its own kind."""
    further = {
        "svd": {"kind": "factorize", "energy": 0.9},
        "channels50": {"kind": "prune", "structure": "channels", "sparsity": 0.5, "fine_tune": FINE_TUNE},
        "student": {"kind": "distill", "width": 0.5, "training": {"epochs": 3}},
        "prune-int4": {
            "kind": "chain",
            "steps": [
                {"kind": "prune", "sparsity": 0.7, "fine_tune": FINE_TUNE},
                {"kind": "quantize", "weight_bits": 4},
            ],
        },
    }
    plan = _images(arrays)
    return {**plan, "candidates": plan["candidates"] | further, "shadows": {"training_free": 16, "trained": 16}}


def _table(arrays: Arrays) -> dict[str, Any]:
    """What an attacker may change: everything but sex and race, and a category only to another one."""
    blocks = {name: f"{first}-{last}" for name, (first, last) in zip(arrays["_names"], arrays["_blocks"], strict=True)}
    return {
        "data": {
            "bounds": [0, 1],
            "one_hot": [[block] for block in blocks.values()],
            "immutable": [blocks["sex"], blocks["race"]],
        },
        "model": {"parameters": {"columns": int(arrays["x_train"].shape[1])}},
        "candidates": candidates("int8", "int4", "prune80", "share16"),
    }


def _sequences(arrays: Arrays) -> dict[str, Any]:
    del arrays
    return {"data": {"tokens": True}, "candidates": candidates("int8", "int4", "prune80")}


TARGETS = (
    Target("mnist", "CNN of 188k parameters, 20,000 members, own training", mnist, _images),
    Target("mnist-16", "the same, 8 candidates, 16 shadow models", mnist, _shadows, model="mnist", limit=3600.0),
    Target("adult", "MLP on 113 one-hot columns, 32,561 members, own training", adult, _table),
    Target("tokens", "GRU on 4,000 generated sequences of token ids, own training", tokens, _sequences),
    Target("cifar", "CNN on 380 of 761 CIFAR-10 records, own training", cifar, _images),
)
