"""Transfer learning from compressed models: accuracy, robust accuracy and membership of the new task.

    python benchmarks/transfer_learning.py [--data DIR] [--json FILE] [--records N] [--seeds N] [--only NAME]

Digits: a CNN that knows 0 to 4 becomes one for 5 to 9. With `DIR/mnist.npz`: one that knows MNIST (4,000 records,
averaged to 8 x 8) becomes one for scikit-learn's digits. Each from the dense model's file, a copy of it (which must
change nothing), int8, int4 and 80 % pruned: by a linear probe in the file, and trained on as a whole. Figures are of
deployed ONNX files, with their 95 % interval, and the change against the dense model's. For fine-tuned models the
membership score is printed beside its margins alone.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contract import Row, parser, publish
from torch import nn
from torch.nn import functional as F

from crushproof.attacks.measurement import Auc, Comparison, Rate
from crushproof.attacks.transfer_learning.head_file import opened, with_head
from crushproof.attacks.transfer_learning.transfer import WAYS, Beginning, judged, probed, scores_of, tuned
from crushproof.audit.findings.estimates import change, estimate
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.pruning.prune import Prune
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.further.task import NewTask
from crushproof.targets.data.records import Bounds, Records
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, train_many
from crushproof.training.networks import digits_cnn

BOUNDS, EPSILON, SHADOWS = Bounds.of(0, 1), 0.1, 16
RECIPES = {"int8": Quantize(), "int4": Quantize(weight_bits=4), "prune80": Prune(sparsity=0.8)}


def trained(records: Records, epochs: int, seed: int) -> nn.Module:
    job = TrainingJob.of_one(Architecture("cnn", digits_cnn), records, seed, torch.device("cpu"))
    return train_many(job, Training(epochs=epochs))[0]


def halves(records: Records, first: bool) -> Records:
    """Of 0 to 4, or of 5 to 9 as 0 to 4."""
    kept = records.take(records.y < 5 if first else records.y >= 5)
    return Records(kept.x, kept.y - (0 if first else 5))


def digits(seed: int) -> tuple[nn.Module, Records, NewTask]:
    data = load_digits()
    assert data.members is not None
    old = halves(data.members, first=True)
    new, rest = halves(data.members, first=False), halves(data.evaluation, first=False)
    return trained(old, 9, seed), old, NewTask("5 to 9", new, rest, tuple("56789"))


def mnist(folder: Path, seed: int) -> tuple[nn.Module, Records, NewTask]:
    with np.load(folder / "mnist.npz", allow_pickle=False) as file:
        x = torch.from_numpy(file["x_train"][:4000, None] / np.float32(255))
        y = torch.from_numpy(file["y_train"][:4000].astype(np.int64))
    old, data = Records(F.adaptive_avg_pool2d(x, 8), y), load_digits()
    assert data.members is not None
    return trained(old, 4, seed), old, NewTask("digits", data.members, data.evaluation, data.class_names)


def transferred(module: nn.Module, task: NewTask, records: int, seed: int) -> dict[str, dict[str, Any]]:
    """By way, the outcome of each risk."""
    shape = tuple(task.members.x.shape[1:])
    start = Beginning(opened(to_onnx(module, shape)), None, shape)
    head, signals = probed(start, task, SHADOWS, seed)
    found = {}
    for way in WAYS:
        made = with_head(start.file, head.weight, head.bias) if way == "probe" else tuned(start, head, task, seed)
        own, flags = judged(start.tuned(made), task, BOUNDS, EPSILON, records, seed, attacks=True)
        member = np.arange(len(own["phi"])) < len(own["phi"]) // 2
        found[way] = {
            "accuracy": Rate(own["correct"]),
            "robust accuracy": Rate(own["robust"]),
            "membership": Auc(scores_of(way, own["phi"], signals), member),
            "membership by margins alone": Auc(own["phi"].astype(np.float64), member),
        }
        if flags:
            print(way, "flags:", *flags)
    return found


def rows_of(name: str, dense: nn.Module, old: Records, task: NewTask, records: int, seed: int) -> list[Row]:
    rows, models = list[Row](), {"dense": dense, "copy": dense}
    models |= {key: recipe.apply(dense, old, BOUNDS, seed=seed) for key, recipe in RECIPES.items()}
    before = time.process_time()
    of_dense: dict[str, dict[str, Any]] = {}
    for key, module in models.items():
        found = transferred(module, task, records, seed)
        of_dense = of_dense or found
        for way, risks in found.items():
            for risk, own in risks.items():
                told = estimate(own)
                where = f"{risk} [{told.low:.3f}, {told.high:.3f}], n = {told.n}"
                unit = "AUC" if risk.startswith("membership") else "share"
                rows.append(Row(f"{name}, {way}, {key}", where, told.estimate, unit))
                if key != "dense":
                    moved = change(Comparison("dense", own, of_dense[way][risk]), seed=0)
                    target = 0.0 if key == "copy" else None
                    setting = f"{risk}, change [{moved.low:+.3f}, {moved.high:+.3f}]"
                    value = abs(moved.difference) if key == "copy" else moved.difference
                    rows.append(Row(f"{name}, {way}, {key}", setting, value, "", target=target))
    return [*rows, Row(name, f"{len(models)} models", time.process_time() - before, "CPU s")]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--records", type=int, default=200, help="that are attacked")
    options.add_argument("--seeds", type=int, default=1, help="networks of each task")
    options.add_argument("--only", default="", help="digits or mnist")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    rows = list[Row]()
    for seed in range(chosen.seeds):
        if chosen.only in "digits":
            rows += rows_of(f"0-4 -> 5-9, seed {seed}", *digits(seed), chosen.records, seed)
        if chosen.data is not None and chosen.only in "mnist":
            rows += rows_of(f"MNIST -> digits, seed {seed}", *mnist(chosen.data, seed), chosen.records, seed)
    publish(rows, chosen.json)


if __name__ == "__main__":
    main()
