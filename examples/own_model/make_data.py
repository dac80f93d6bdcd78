"""Writes data.npz: scikit-learn's breast cancer records (569 x 30 features), scaled to [0, 1], in two halves.

The first half is what the model is trained on (members), the second it never sees.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer


def write(path: Path) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.min(axis=0)) / (x.max(axis=0) - x.min(axis=0))
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order].astype(np.float32), y[order].astype(np.int64)
    np.savez(path, x_train=x[:284], y_train=y[:284], x_test=x[284:], y_test=y[284:])


if __name__ == "__main__":
    write(Path(__file__).with_name("data.npz"))
