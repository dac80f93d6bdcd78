"""Public records: what is read of them, what is left out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crushproof.targets.data.npz import load_npz
from crushproof.targets.data.outline import data_of, outline
from crushproof.targets.errors import InputError

RNG = np.random.default_rng(0)
N = 40
BASE: dict[str, Any] = {
    "x_train": RNG.random((N, 4, 4)),
    "y_train": np.arange(N) % 3,
    "x_test": RNG.random((N, 4, 4)),
    "y_test": np.arange(N) % 3,
}
PUBLIC = RNG.random((30, 4, 4))


def saved(folder: Path, **further: Any) -> Path:
    np.savez(folder / "data.npz", **BASE, **further)
    return folder / "data.npz"


def test_public_records_are_read_and_decide_the_digest(tmp_path: Path) -> None:
    without = load_npz(saved(tmp_path)).digest
    data = load_npz(saved(tmp_path, x_population=PUBLIC))
    assert data.public is not None
    assert np.array_equal(data.public[:, 0].numpy(), PUBLIC.astype(np.float32))
    assert len({without, data.digest, load_npz(saved(tmp_path, x_population=PUBLIC[::-1])).digest}) == 3
    told, arrays = outline(data)
    again = data_of(told, arrays)
    assert again.public is not None
    assert (again.public.shape, again.digest) == (data.public.shape, data.digest)


def test_a_member_or_a_test_record_among_them_is_left_out(tmp_path: Path) -> None:
    mixed = np.concatenate([BASE["x_train"][:3], PUBLIC, BASE["x_test"][:2]])
    data = load_npz(saved(tmp_path, x_population=mixed))
    assert data.public is not None
    assert np.array_equal(data.public[:, 0].numpy(), PUBLIC.astype(np.float32))
    told = " ".join(data.notes)
    assert "3 of the 35 public records (x_population) equal one of the training records" in told
    assert "2 of the 35 public records (x_population) equal one of the test records" in told


@pytest.mark.parametrize(
    ("further", "told"),
    [
        ({"x_population": np.concatenate([BASE["x_train"], PUBLIC])}, "equal one of the training records"),
        ({"x_population": PUBLIC[:, :3]}, "Prepare both in the same way"),
        ({"x_population": PUBLIC[:5]}, "only 5 public records (x_population)"),
        ({"x_population": np.where(PUBLIC > 0.9, np.nan, PUBLIC)}, "NaN"),
        ({"x_population": PUBLIC.astype(str)}, "Save numbers"),
        ({"x_population": PUBLIC, "y_population": np.zeros(30)}, "used without labels"),
    ],
)
def test_what_cannot_be_public_records_is_refused(further: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x_population|y_population") as refused:
        load_npz(saved(tmp_path, **further))
    assert told in str(refused.value)
