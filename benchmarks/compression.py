"""Compression: what every recipe makes of a model, as shipped, and whether twins tell the truth.

Tables of accuracy, size, speed and twin agreement of every recipe, on a residual CNN for digits and, with --data, on a
CNN for MNIST; then rows against the targets, the twins' among them. With --data, DIR holds mnist.npz and vnncomp/
(shared/data/README.md); what needs it is otherwise not measured. One thread; latencies are wall times of ONNX Runtime,
median, all models in turns.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from compression_catalogue import DENSE, INT8, lines, measure_all, remarks
from compression_nets import SEED, Task, digits_task, lenet_300_100, mnist, mnist_task, parameters, trained
from compression_twins import forward_rows, pgd_rows, resnet_rows, vnncomp_rows
from contract import Row, arguments, print_table, publish

from crushproof.compression.chain import Chain
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.footprint.payload import decode, encode
from crushproof.compression.footprint.timing import interleaved_latency
from crushproof.compression.pruning.prune import Prune
from crushproof.compression.recipe import RECIPES
from crushproof.compression.share import Share
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training

WITHOUT_DATA = "not measured: no --data"
FASTER, SMALLER, POINTS, DEEP = 1.8, 3.5, 0.5, 30.0  # the targets


def int8_rows(task: Task, table: list[dict[str, Any]]) -> Iterator[Row]:
    """The int8 file of a CNN of at least 100,000 parameters, on a processor with VNNI."""
    by_name = {row["name"]: row for row in table}
    int8, name = by_name[INT8], f"int8, {task.name}"
    recipe = RECIPES.parse(int8["recipe"])
    compressed = recipe.apply(task.dense, task.train, task.bounds, seed=SEED)
    files = {DENSE: to_onnx(task.dense, task.shape), INT8: to_onnx(compressed, task.shape)}
    timed = interleaved_latency(files, task.shape, (256,), seconds=2.0)
    faster = timed[DENSE][0]["p50"] / timed[INT8][0]["p50"]
    size = f"{parameters(task.dense)} parameters"
    yield Row(name, f"faster than float32, batch 256, {size}", faster, "x", None, FASTER, "higher")
    yield Row(name, f"smaller file, {size}", int8["disk_bytes_ratio"], "x", None, SMALLER, "higher")
    yield Row(name, f"accuracy lost, {len(task.test)} records", int8["loss_points"], "points", None, POINTS)


def deep_compression_rows(folder: Path) -> Iterator[Row]:
    """Deep Compression (arXiv:1510.00149) of LeNet-300-100, which its paper makes 40 times smaller."""
    train, test, bounds = mnist(folder)
    schedule = Training(epochs=8, batch_size=128, learning_rate=2e-3)
    dense = trained(Architecture("lenet_300_100", lenet_300_100), train, schedule)
    tune = Training(epochs=2, batch_size=128, learning_rate=4e-3)
    recipe = Chain(steps=(Prune(sparsity=0.94, steps=4, fine_tune=tune), Share(clusters=32)))
    compressed = recipe.apply(dense, train, bounds, seed=SEED)
    payload = encode(compressed)
    decoded = copy.deepcopy(compressed)
    for value in decoded.state_dict().values():
        value.zero_()
    decoded.load_state_dict(decode(payload, compressed))
    different = sum(int((value != decoded.state_dict()[name]).sum()) for name, value in compressed.state_dict().items())
    lost = accuracy(TorchTarget(dense), test.x, test.y) - accuracy(TorchTarget(decoded), test.x, test.y)
    name = "Deep Compression of LeNet-300-100"
    ratio = 4 * parameters(dense) / len(payload)
    setting = f"float32 weights / payload ({len(payload)} bytes)"
    yield Row(name, setting, ratio, "x", None, DEEP, "higher")
    yield Row(name, f"accuracy lost, decoded, {len(test)} records", 100 * lost, "points", None, POINTS)
    yield Row(name, "values that differ after decoding", float(different), "values", None, 0.0)


def show(task: Task, table: list[dict[str, Any]]) -> None:
    print(f"\n{task.name}: {parameters(task.dense)} parameters, {len(task.test)} test records; x: against dense")
    print_table(lines(table))
    for remark in remarks(table):
        print(f"  {remark}")


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    tables = {}
    rows: list[Row] = []
    digits = digits_task()
    tables[digits.name] = measure_all(digits)
    show(digits, tables[digits.name])
    if options.data is None:
        names = ("MNIST CNN", "Deep Compression of LeNet-300-100", "twins of VNN-COMP", "PGD on ONNX Runtime's files")
        rows += [Row(name, WITHOUT_DATA, None, "") for name in names]
    else:
        task = mnist_task(options.data)
        tables[task.name] = measure_all(task)
        show(task, tables[task.name])
        rows += int8_rows(task, tables[task.name])
        rows += deep_compression_rows(options.data)
        rows += vnncomp_rows(options.data)
        rows += pgd_rows(task)
    rows += resnet_rows()
    rows += forward_rows()
    print()
    publish(rows, options.json, tables)


if __name__ == "__main__":
    main()
