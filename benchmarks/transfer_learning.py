"""Transfer learning from compressed models: accuracy, robust accuracy and membership of the new task.

    python benchmarks/transfer_learning.py [--data DIR] [--json FILE] [--records N]

Digits: a CNN that knows 0 to 4 becomes one for 5 to 9. With `DIR/mnist.npz`: one that knows MNIST (4,000 records,
averaged to 8 x 8) becomes one for scikit-learn's digits. Each from the dense model, a copy of it (which must change
nothing), int8, int4 and 80 % pruned; by a linear probe, and trained on as a whole where weights are floats. Rows give
the figure with its 95 % interval, and the change against the dense model's.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np
import torch
from contract import Row, parser, publish
from torch import nn
from torch.nn import functional as F

from crushproof.attacks.transfer_learning.transfer import Task, Transferred, transferred
from crushproof.audit.findings.estimates import change, estimate
from crushproof.compression.pruning.prune import Prune
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Bounds, Records
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, train_many
from crushproof.training.networks import digits_cnn

BOUNDS = Bounds.of(0, 1)
RECIPES = {"int8": Quantize(), "int4": Quantize(weight_bits=4), "prune80": Prune(sparsity=0.8)}


def trained(records: Records, epochs: int) -> nn.Module:
    job = TrainingJob.of_one(Architecture("cnn", digits_cnn), records, 0, torch.device("cpu"))
    return train_many(job, Training(epochs=epochs))[0]


def halves(records: Records, first: bool) -> Records:
    """Of 0 to 4, or of 5 to 9 as 0 to 4."""
    kept = records.take(records.y < 5 if first else records.y >= 5)
    return Records(kept.x, kept.y - (0 if first else 5))


def digits(records: int) -> tuple[nn.Module, Records, Task]:
    data = load_digits()
    assert data.members is not None
    old = halves(data.members, first=True)
    new, rest = halves(data.members, first=False), halves(data.evaluation, first=False)
    return trained(old, 9), old, Task(new, rest, BOUNDS, attacked=records)


def mnist(folder: Path, records: int) -> tuple[nn.Module, Records, Task]:
    with np.load(folder / "mnist.npz", allow_pickle=False) as file:
        x = torch.from_numpy(file["x_train"][:4000, None] / np.float32(255))
        y = torch.from_numpy(file["y_train"][:4000].astype(np.int64))
    old, data = Records(F.adaptive_avg_pool2d(x, 8), y), load_digits()
    assert data.members is not None
    return trained(old, 4), old, Task(data.members, data.evaluation, BOUNDS, attacked=records)


def rows_of(name: str, dense: nn.Module, old: Records, task: Task) -> list[Row]:
    rows, models = list[Row](), {"dense": dense, "copy": copy.deepcopy(dense)}
    models |= {key: recipe.apply(dense, old, BOUNDS, seed=0) for key, recipe in RECIPES.items()}
    before = time.process_time()
    of_dense = transferred(dense, task, seed=0)
    for key, module in models.items():
        found = of_dense if key == "dense" else transferred(module, task, seed=0)
        for way, own in found.items():
            theirs = of_dense[way]
            if isinstance(own, str) or not isinstance(theirs, Transferred):
                rows.append(Row(f"{name}, {way}, {key}", str(own), None, ""))
                continue
            for risk, comparison in own.beside(theirs, "dense").items():
                told, moved = estimate(comparison.own), change(comparison, seed=0)
                where = f"{risk} [{told.low:.3f}, {told.high:.3f}]{' ' if own.flags else ''}{', '.join(own.flags)}"
                rows.append(
                    Row(f"{name}, {way}, {key}", where, told.estimate, "AUC" if risk == "membership" else "share")
                )
                if key != "dense":
                    target = 0.0 if key == "copy" else None
                    setting = f"{risk}, change [{moved.low:+.3f}, {moved.high:+.3f}]"
                    value = abs(moved.difference) if key == "copy" else moved.difference
                    rows.append(Row(f"{name}, {way}, {key}", setting, value, "", target=target))
    return [*rows, Row(name, f"{len(models)} models", time.process_time() - before, "CPU s")]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--records", type=int, default=200, help="that are attacked")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    rows = rows_of("0-4 -> 5-9", *digits(chosen.records))
    if chosen.data is not None:
        rows += rows_of("MNIST -> digits", *mnist(chosen.data, chosen.records))
    publish(rows, chosen.json)


if __name__ == "__main__":
    main()
