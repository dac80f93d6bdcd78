"""The built-in data: scikit-learn's digits."""

from __future__ import annotations

import numpy as np
import torch

from ..seeds import generator
from .data import Data
from .records import Bounds, Records


def load_digits(seed: int = 0) -> Data:
    """scikit-learn's digits (1,797 real 8x8 images) in halves by `seed`: 898 members, 899 non-members, in [0, 1]."""
    from sklearn.datasets import load_digits as sklearn_digits

    x, y = sklearn_digits(return_X_y=True)
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
