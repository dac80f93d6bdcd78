"""Sponge inputs on digits: what they add to the products that a file computes, and to its time.

    python benchmarks/availability.py [--json FILE]

A CNN and an MLP on scikit-learn's digits, three seeds each: dense, int8, int4 and dynamic sparsity that keeps 80 or
50 % of a record's activations. Rows are the mean over 32 records of the share of products computed, on records and on
the inputs found; milliseconds are the file's own in ONNX Runtime, 256 at a time, CPU time, median of 30: no runtime
skips zeros, so that they tell whether anything else in the file depends on the input.
"""

from __future__ import annotations

import statistics
import time
from typing import Literal

import torch
from contract import Row, arguments, publish

from crushproof.attacks.access import Ledger
from crushproof.attacks.availability.density import Meter
from crushproof.attacks.availability.sponge import search_sponges
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.pruning.dynamic_sparsity import DynamicSparsity
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.data import Data
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Records
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.untrusted.model_file import check_onnx
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, train_many
from crushproof.training.networks import digits_cnn, digits_mlp

RECIPES = {
    "dense": None,
    "int8": Quantize(),
    "int4": Quantize(weight_bits=4),
    "80 % kept": DynamicSparsity(keep=0.8),
    "50 % kept": DynamicSparsity(keep=0.5),
}
SEEDS, STEPS, RECORDS = 3, 100, 32


def main() -> None:
    chosen = arguments(__doc__ or "")
    torch.set_num_threads(1)
    data, rows = load_digits(), list[Row]()
    for build, epochs in ((digits_cnn, 6), (digits_mlp, 15)):
        for seed in range(SEEDS):
            job = TrainingJob.of_one(Architecture("net", build), _members(data), seed, torch.device("cpu"))
            dense = train_many(job, Training(epochs=epochs))[0]
            for name, recipe in RECIPES.items():
                module = dense if recipe is None else recipe.apply(dense, _members(data), data.bounds, seed=seed)
                rows += _rows(to_onnx(module, data.shape), data, f"{build.__name__} {seed}, {name}", seed)
    publish(rows, chosen.json)


def _members(data: Data) -> Records:
    assert data.members is not None
    return data.members


def _rows(content: bytes, data: Data, setting: str, seed: int) -> list[Row]:
    meter, ledger = Meter(check_onnx(content), None, data.shape), Ledger()
    x = data.evaluation.x[:RECORDS]
    before = time.process_time()
    worst, computed = search_sponges(meter, x, data.bounds, STEPS, seed, ledger)
    seconds = time.process_time() - before
    gain = float((computed[-1] - computed[0]).mean())
    better: Literal["lower", "higher"] = "higher" if meter.skips else "lower"
    target = (None if "50 %" in setting else 1e-3) if meter.skips else 0.0  # half may be full on records already
    clean, found = (_time(content, one.repeat(8, *[1] * (x.dim() - 1))) for one in (x, worst))
    return [
        Row("products computed, on records", setting, float(computed[0].mean()), "share"),
        Row("products computed, gained", setting, gain, "share", target=target, better=better),
        Row("time on inputs found / on records", setting, 1e3 * found, "ms", peer=1e3 * clean),
        Row("search", setting, seconds, "CPU s"),
    ]


def _time(content: bytes, x: torch.Tensor) -> float:
    target = OnnxTarget(content)
    times = []
    for _ in range(30):
        before = time.process_time()
        target.logits(x)
        times.append(time.process_time() - before)
    return statistics.median(times)


if __name__ == "__main__":
    main()
