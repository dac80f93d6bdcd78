"""The built-in data: scikit-learn's digits."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..seeds import generator
from .data import Data
from .records import Bounds, Records


def load_digits(seed: int = 0) -> Data:
    """scikit-learn's digits (1,797 real 8x8 images) in halves by `seed`: 898 members, 899 non-members, in [0, 1]."""
    x, y = _digits()
    images = torch.from_numpy(np.asarray(x, dtype=np.float32) / 16).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(np.asarray(y, dtype=np.int64))
    order = torch.randperm(len(labels), generator=generator(seed, "digits", "halves"))
    records = Records(images[order], labels[order])
    half = len(labels) // 2
    return Data(
        name="digits",
        members=Records(records.x[:half], records.y[:half]),
        non_members=Records(records.x[half:], records.y[half:]),
        bounds=Bounds.of(0, 1),
        class_names=tuple(str(digit) for digit in range(10)),
        seed=seed,
    )


def _digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """As `sklearn.datasets.load_digits(return_X_y=True)`: from its file, because importing it takes two seconds."""
    found = find_spec("sklearn")
    path = Path(found.origin if found is not None and found.origin else "").parent / "datasets/data/digits.csv.gz"
    if path.is_file():
        table = np.loadtxt(path, delimiter=",")
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits as elsewhere

    x, y = elsewhere(return_X_y=True)
    return x, y
