"""The built-in data: scikit-learn's digits."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ..seeds import generator
from .data import Data
from .records import Bounds, Records


@cache  # its records are looked through for copies each time they are made
def load_digits(seed: int = 0) -> Data:
    """scikit-learn's digits (1,797 real 8x8 images) in halves by `seed`: 898 members, 899 non-members, in [0, 1]."""
    installed = find_spec("sklearn")  # to import it would take every process more than a second
    assert installed is not None
    assert installed.origin is not None
    table = np.loadtxt(Path(installed.origin).parent / "datasets" / "data" / "digits.csv.gz", np.float32, delimiter=",")
    images = torch.from_numpy(table[:, :-1] / 16).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
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
