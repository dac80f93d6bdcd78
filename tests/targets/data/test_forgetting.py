"""Records that a model was to forget: taken out of the members, or refused with what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crushproof.audit.plan.plan import Plan
from crushproof.audit.subject.records import load_data
from crushproof.targets.data.data import Data
from crushproof.targets.data.npz import load_npz
from crushproof.targets.data.outline import data_of, outline
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, UnsafeInput

Refused = Callable[..., str]
RNG = np.random.default_rng(0)
X, Y = RNG.random((60, 4)).astype("float32"), np.arange(60) % 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "data.npz", x_train=X[:40], y_train=Y[:40], x_test=X[40:], y_test=Y[40:])
    header = "a,b,c,d,y\n"
    rows = [",".join(f"{v:.6f}" for v in x) + f",{y}\n" for x, y in zip(X, Y, strict=True)]
    (tmp_path / "train.csv").write_text(header + "".join(rows[:40]))
    (tmp_path / "test.csv").write_text(header + "".join(rows[40:]))
    np.save(tmp_path / "mask.npy", np.arange(40) < 12)
    (tmp_path / "forget.txt").write_text("\n".join(map(str, range(12))))
    return tmp_path


def loaded(folder: Path, forget: Any, **data: Any) -> Data:
    fields = data or {"kind": "npz", "path": "data.npz", "bounds": [0, 1]}
    raw = {"data": {**fields, "forget": forget}, "model": {"architecture": "a:b"}, "candidates": {"int8": "int8"}}
    return load_data(Plan.model_validate(raw), folder)


@pytest.mark.parametrize("forget", [list(range(12)), "mask.npy", "forget.txt"])
def test_what_is_to_be_forgotten_is_no_member(folder: Path, forget: Any) -> None:
    csv = loaded(folder, forget, kind="csv", train_path="train.csv", test_path="test.csv", label="y")
    for data in (loaded(folder, forget), csv):
        assert data.members is not None
        assert data.forgotten is not None
        assert np.allclose(data.forgotten.x.numpy(), X[:12], atol=1e-6)
        assert np.allclose(data.members.x.numpy(), X[12:40], atol=1e-6)
        again = data_of(*outline(data))
        assert again.forgotten is not None
        assert torch.equal(again.forgotten.y, data.forgotten.y)
    assert loaded(folder, forget).digest != loaded(folder, None).digest


def test_an_array_of_the_npz_says_it_too(folder: Path, refused: Refused) -> None:
    path = folder / "own.npz"
    np.savez(path, x_train=X[:40], y_train=Y[:40], x_test=X[40:], y_test=Y[40:], forget=np.arange(12))
    data = load_npz(path, bounds=Bounds.of(0, 1))
    assert data.forgotten is not None
    assert len(data.forgotten) == 12
    assert "said twice" in refused(lambda: load_npz(path, bounds=Bounds.of(0, 1), forget=[1]), InputError)


@pytest.mark.parametrize(
    ("forget", "told"),
    [
        ([*range(11), 40], "name record 40, and the training records (x_train) run from 0 to 39"),
        ([0] * 12, "name record 0 more than once"),
        ([1, 0] * 20, "save it as true and false"),
        ([1, 2], "are only 2. At least 10"),
        (list(range(35)), "next to nothing would have been kept"),
        ([True, False], "a mask of 2 for 40"),
        ("none.npy", "does not exist"),
        ("train.csv", "is no list of positions"),
    ],
)
def test_each_mistake_has_its_own_sentence(folder: Path, refused: Refused, forget: Any, told: str) -> None:
    assert told in refused(lambda: loaded(folder, forget), InputError)


def test_a_pickle_is_not_read(folder: Path, refused: Refused) -> None:
    np.save(folder / "bad.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "pickled" in refused(lambda: loaded(folder, "bad.npy"), UnsafeInput)


def test_the_evaluated_and_the_kept_cannot_be_forgotten(refused: Refused) -> None:
    def data(forgotten: Any, members: Any = slice(12, 40)) -> Data:
        members, tests, gone = (
            Records(torch.tensor(X[at]), torch.tensor(Y[at])) for at in (members, slice(40, 60), forgotten)
        )
        return Data("d", members, tests, Bounds.of(0, 1), ("0", "1", "2"), forgotten=gone)

    assert "no record that was forgotten" in refused(lambda: data(slice(45, 57)), InputError)
    assert "Name every copy" in refused(lambda: data(slice(20, 32)), InputError)
    found = data([*range(12), 59, 30])
    assert found.forgotten is not None
    assert len(found.forgotten) == 12
    assert sum("left out of what is asked about forgetting" in note for note in found.notes) == 2


def test_without_training_records_nothing_can_be_named(folder: Path, refused: Refused) -> None:
    np.savez(folder / "data.npz", x_test=X[40:], y_test=Y[40:])
    assert "there are no training records" in refused(lambda: loaded(folder, list(range(12))), InputError)
