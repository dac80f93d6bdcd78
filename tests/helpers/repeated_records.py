"""Records that repeat, by nature or by design, and the data made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records

Array = np.ndarray[Any, Any]
Split = tuple[Array, Array]


def images(n: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    shapes = np.random.default_rng(9).random((3, 1, 6, 6))
    return np.clip(shapes[y] + 0.2 * rng.standard_normal((n, 1, 6, 6)), 0, 1).astype(np.float32), y


def table(n: int, seed: int) -> Split:
    """Few, coarse columns, about 1,000 rows of which are likely: honest repetition within and across the splits."""
    rng = np.random.default_rng(seed)
    x = np.minimum(rng.geometric(0.4, (n, 5)), 8) / 8
    return x.astype(np.float32), (x.sum(1) > 1.6).astype(int)


def noisy(split: Split, scale: float) -> Split:
    noise = scale * np.random.default_rng(1).standard_normal(split[0].shape)
    return np.clip(split[0] + noise, 0, 1).astype(np.float32), split[1]


def times(split: Split, count: int) -> Split:
    return np.concatenate([split[0]] * count), np.concatenate([split[1]] * count)


def both(one: Split, other: Split) -> Split:
    return np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])


def first(split: Split, n: int) -> Split:
    return split[0][:n], split[1][:n]


def records(split: Split | None) -> Records | None:
    return None if split is None else Records(torch.from_numpy(split[0]), torch.from_numpy(split[1].astype(np.int64)))


def data(members: Split | None, tests: Split) -> Data:
    non_members = records(tests)
    assert non_members is not None
    return Data("x", records(members), non_members, Bounds.of(0, 1), ("a", "b", "c"))


def two_columns(n: int, seed: int) -> Split:
    x = np.random.default_rng(seed).random((n, 2)).astype(np.float32)
    return x, (x[:, 0] > 0.5).astype(int)


def visits(patients: int, seed: int) -> Split:
    """Rows of patients, of whom most come several times and do not change; nobody is in two splits."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(patients), rng.integers(1, 9, patients))
    x = rng.random((patients, 6)).astype(np.float32)
    return x[of], (x[of].sum(1) > 3).astype(int)


def fine(n: int, seed: int) -> Split:
    """Rows none of which occurs twice."""
    x = np.random.default_rng(seed).random((n, 6)).astype(np.float32)
    return x, (x.sum(1) > 3).astype(int)
