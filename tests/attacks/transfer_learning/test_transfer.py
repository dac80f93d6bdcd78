"""Transfer learning: a file with another head answers as it should, copies change nothing, each mistake is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from torch import nn

from crushproof.attacks.case import Case
from crushproof.attacks.preparation import Basis
from crushproof.attacks.transfer_learning.head_file import opened, with_features, with_head
from crushproof.attacks.transfer_learning.transfer_learning import TransferLearning
from crushproof.audit.plan.plan import Plan
from crushproof.audit.subject.records import load_data
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.data import Data
from crushproof.targets.data.further.task import NewTask
from crushproof.targets.data.outline import data_of, outline
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.twin.twin import twin_of
from crushproof.training.networks import Mlp

Refused = Callable[..., str]
BOUNDS = Bounds.of(0, 1)
TASK = TransferLearning(records=10, shadows=4)


def records(n: int, seed: int) -> Records:
    x = torch.rand((n, 6), generator=torch.Generator().manual_seed(seed))
    return Records(x, (x[:, 0] > x[:, 1]).long())


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(1)
    return Mlp(6, 3, (12,)).eval()


@pytest.fixture(scope="module")
def data() -> Data:
    return Data("three", records(60, 0), records(60, 1), BOUNDS, ("a", "b", "c"))


@pytest.mark.parametrize("recipe", [None, Quantize(), Quantize(activations="dynamic")], ids=str)
def test_the_head_stands_on_what_enters_the_last_layer(net: nn.Module, data: Data, recipe: Any) -> None:
    assert data.members is not None
    module = net if recipe is None else recipe.apply(net, data.members, BOUNDS, seed=0)
    file, x = opened(to_onnx(module, (6,))), data.members.x
    given = OnnxTarget(with_features(file)).logits(x)
    layers = net.get_submodule("layers")
    assert isinstance(layers, nn.Sequential)
    assert torch.allclose(given, layers[:3](x), atol=1e-5 if recipe is None else 0.05)
    weight, bias = np.ones((2, 12), np.float32), np.array([0, 1], np.float32)
    wanted = given @ torch.from_numpy(weight).T + torch.from_numpy(bias)
    assert torch.allclose(OnnxTarget(with_head(file, weight, bias)).logits(x), wanted, atol=1e-4)
    assert torch.allclose(twin_of(with_head(file, weight, bias, floats=True))(x), wanted, atol=1e-4)
    with pytest.raises(NotApplicable, match="no product by a weight"):
        with_features(opened(to_onnx(nn.Flatten(), (6,))))


@pytest.fixture(scope="module")
def case(net: nn.Module, data: Data) -> Case:
    task = NewTask("other", records(80, 2), records(100, 3), ("no", "yes"))
    return replace(case_of(data.beside(task), net), shipped=to_onnx(net, (6,)), prepared=task)


def test_a_copy_of_the_dense_model_changes_nothing_and_evidence_is_asked_again(net: nn.Module, case: Case) -> None:
    found, same = TASK.run(case, seed=0), TASK.model_copy(update={"fine_tuned": False}).run(case, seed=0)
    assert {"weight", "probe/correct", "probe/scores", "probe/crafted"} < same.arrays.keys() < found.arrays.keys()
    assert all(np.array_equal(found.arrays[name], array) for name, array in same.arrays.items())
    for way in found.summary["ways"]:
        assert found.arrays[f"{way}/correct"].mean() > 0.8
        assert found.arrays[f"{way}/robust"].mean() <= found.arrays[f"{way}/correct"][:10].mean()
    assert found.summary["ways"] == ["probe", "fine-tuned"]
    basis = Basis(lambda: case.prepared, twin_agrees=True)
    assert TASK.asked_again(found, case) == TASK.follows(found, basis) == []
    found.arrays["probe/correct"] = ~found.arrays["probe/correct"]
    found.arrays["fine-tuned/scores"] = -found.arrays["fine-tuned/scores"]
    found.arrays["fine-tuned/crafted"] = found.arrays["fine-tuned/crafted"] + 0.5
    again = " ".join(TASK.asked_again(found, case))
    assert "probe: it classifies other records right" in again
    assert "fine-tuned: an input lies further" in again
    assert "fine-tuned: its scores are not" in " ".join(TASK.follows(found, basis))


def test_what_is_no_onnx_file_or_no_task_is_a_reason(case: Case) -> None:
    with pytest.raises(NotApplicable, match="taken from ONNX files"):
        TASK.run(replace(case, shipped=b"TFL3"), seed=0)
    with pytest.raises(NotApplicable, match="name its records under"):
        TASK.run(replace(case, prepared=None), seed=0)


X, Y = np.random.default_rng(0).random((60, 4)).astype("float32"), np.arange(60) % 3
GOOD = {"x_train": X[:40], "y_train": Y[:40] + 5, "x_test": X[40:], "y_test": Y[40:] + 5}


def loaded(folder: Path, transfer: Any = "other.npz") -> Data:
    np.savez(folder / "data.npz", x_train=X[:40], y_train=Y[:40], x_test=X[40:], y_test=Y[40:])
    own = {"kind": "npz", "path": "data.npz", "bounds": [0, 1], "transfer": {"path": transfer}}
    return load_data(
        Plan.model_validate({"data": own, "model": {"architecture": "a:b"}, "candidates": {"int8": "int8"}}), folder
    )


def test_classes_of_the_other_task_are_numbered_anew(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", **GOOD)
    data = loaded(tmp_path)
    assert data.transfer is not None
    assert data.transfer.class_names == ("5", "6", "7")
    assert np.array_equal(data.transfer.members.y.numpy(), Y[:40])
    again = data_of(*outline(data))
    assert again.transfer is not None
    assert torch.equal(again.transfer.evaluation.y, data.transfer.evaluation.y)
    np.savez(tmp_path / "second.npz", **(GOOD | {"x_train": 1 - X[:40]}))
    assert loaded(tmp_path, "second.npz").digest != data.digest


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"x_train": X[:40, :3], "x_test": X[40:, :3]}, "have shape [3], and the model takes records of shape [4]"),
        ({"y_train": np.arange(40) % 2 + 5}, "test records of class '7', of which no training record is"),
        ({"y_train": np.full(40, 5)}, "a single-class split"),
        ({"x_train": 16 * X[:40]}, "have values outside the bounds"),
        ({"forget": np.arange(12)}, "Leave it out: nothing of another task"),
        ({"x_train": None, "y_train": None}, "has no training records"),
    ],
)
def test_each_mistake_has_its_own_sentence(tmp_path: Path, refused: Refused, changed: Any, told: str) -> None:
    np.savez(tmp_path / "other.npz", **{k: v for k, v in (GOOD | changed).items() if v is not None})
    said = refused(lambda: loaded(tmp_path), InputError)
    assert told in said
    assert "data.transfer, 'other.npz'" in said or "other task other" in said
