"""Every recipe by name, and what one of them makes of a model: the table of `compression.py`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from compression_nets import SEED, Task
from torch import Tensor, nn

from crushproof.attacks.case import Case
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.footprint.footprint import footprint
from crushproof.compression.footprint.payload import encode
from crushproof.compression.footprint.timing import interleaved_latency
from crushproof.compression.recipe import RECIPES
from crushproof.targets.certificate import Certificate, certify
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.model import Target, TorchTarget
from crushproof.targets.runtimes.onnx import OnnxTarget, integer_kernels
from crushproof.targets.seeds import generator
from crushproof.targets.twin.twin import twin_of
from crushproof.training.loop import Training

DENSE = "dense"
INT8 = "int8"
EPSILON = 0.1  # of adversarial inputs, L-infinity, in [0, 1] pixels
CERTIFIED = {"clean": 500, "random": 200, "adversarial": 100}  # records at most

Row = dict[str, Any]


def catalogue(tune: Training, school: Training) -> dict[str, dict[str, Any]]:
    """Recipes by name, as a plan writes them; those that train do so by `tune`, students by `school`."""

    def prune(sparsity: float, **fields: Any) -> dict[str, Any]:
        return {"kind": "prune", "sparsity": sparsity, **fields}

    def weights(bits: int = 8, **fields: Any) -> dict[str, Any]:
        return {"kind": "quantize", "weight_bits": bits, "activations": "float", **fields}

    def number(name: str, **fields: Any) -> dict[str, Any]:
        return {"kind": "quantize", "number": name, "activations": "float", **fields}

    def chain(*steps: dict[str, Any]) -> dict[str, Any]:
        return {"kind": "chain", "steps": list(steps)}

    tuned, int8 = {"fine_tune": tune}, {"kind": "quantize"}
    channels = prune(0.5, structure="channels", round_to=8, **tuned)
    student = {"kind": "distill", "training": school}
    return {
        "prune 80 %": prune(0.8, **tuned),
        "prune 80 % per layer": prune(0.8, scope="layer", **tuned),
        "prune 50 %, not tuned": prune(0.5),
        "prune 2:4": prune(0.5, structure="n:m", group_size=4, **tuned),
        "prune 50 % of channels": channels,
        "prune channels, Taylor": channels | {"importance": "taylor"},
        "prune channels at random": channels | {"importance": "random"},
        "prune heads": prune(0.5, structure="heads"),
        "prune 90 % in 3 steps": prune(0.9, steps=3, **tuned),
        "prune 50 % at random": prune(0.5, importance="random", **tuned),
        INT8: int8,
        "int8, percentile": int8 | {"calibration": "percentile"},
        "int8, entropy": int8 | {"calibration": "entropy"},
        "int8, calibrated on noise": int8 | {"calibration_inputs": "noise"},
        "int8, one scale per layer": int8 | {"granularity": "tensor"},
        "int8, dynamic": int8 | {"activations": "dynamic"},
        "int8 weights": weights(),
        "int4 weights": weights(4),
        "int3 weights": weights(3),
        "int2 weights": weights(2),
        "int4 weights, groups of 32": weights(4, granularity="group"),
        "int4": int8 | {"weight_bits": 4},
        "int4, adaptive rounding": int8 | {"weight_bits": 4, "rounding": "adaptive", "rounding_steps": 100},
        "int4, stochastic rounding": int8 | {"weight_bits": 4, "rounding": "stochastic"},
        "int4, trained quantised": int8 | {"weight_bits": 4, **tuned},
        "int2, trained quantised": int8 | {"weight_bits": 2, **tuned},
        "binary weights": number("binary"),
        "binary, trained quantised": number("binary", **tuned),
        "ternary weights": number("ternary"),
        "ternary, trained quantised": number("ternary", **tuned),
        "float16": number("float16"),
        "bfloat16": number("bfloat16"),
        "8-bit fixed point": {"kind": "quantize", "number": "fixed-point"},
        "mixed precision, 4 bits": {"kind": "mixed-precision"},
        "mixed precision by MACs": {"kind": "mixed-precision", "weighted_by": "macs"},
        "Tucker, 90 % energy": {"kind": "factorize"} | tuned,
        "spatial SVD, 90 % energy": {"kind": "factorize", "convolution": "spatial", **tuned},
        "channel SVD, 90 % energy": {"kind": "factorize", "convolution": "channel", **tuned},
        "Tucker, half the weights": {"kind": "factorize", "rank_choice": "budget", **tuned},
        "Tucker, cross-validated": {"kind": "factorize", "rank_choice": "cross-validation"},
        "16 shared values": {"kind": "share"},
        "16 shared, all layers": {"kind": "share", "scope": "global"},
        "16 shared values, tuned": {"kind": "share", **tuned},
        "student of half the width": student,
        "student of half the depth": student | {"width": 1.0, "depth": 0.5},
        "student with hints": student | {"hint_weight": 1.0},
        "largest half of activations": {"kind": "dynamic-sparsity", **tuned},
        "largest half per position": {"kind": "dynamic-sparsity", "per": "position", **tuned},
        "prune 90 %, share 16 tuned": chain(prune(0.9, **tuned), {"kind": "share", **tuned}),
        "half the channels, int8": chain(channels, int8),
        "half-width student, int8": chain(student, int8),
        "Tucker, int8": chain({"kind": "factorize", **tuned}, int8),
    }


def measure_all(task: Task) -> list[Row]:
    """A row per recipe, the dense model first; latencies of all of them in turns."""
    rows: list[Row] = []
    files: dict[str, bytes] = {}
    recipes: Mapping[str, dict[str, Any] | None] = {DENSE: None, **catalogue(task.tune, task.school)}
    for name, recipe in recipes.items():
        row: Row = {"name": name, "recipe": _plain(recipe), "refused": None}
        rows.append(row)
        try:
            before = time.process_time()
            module = task.dense
            if recipe is not None:
                module = RECIPES.parse(recipe).apply(module, task.train, task.bounds, seed=SEED)
            row["apply_cpu_seconds"] = time.process_time() - before
            file = to_onnx(module, task.shape)
        except NotApplicable as error:
            row["refused"] = str(error)
            continue
        files[name] = file
        row |= _measure(task, module, file)
    latencies = interleaved_latency(files, task.shape, (1, 256))
    dense = rows[0]
    for row in rows:
        if row["refused"] is not None:
            continue
        timed = {entry["batch"]: entry["p50"] for entry in latencies[row["name"]]}
        row["latency_ms"] = timed
        row["speed_ratio"] = {entry["batch"]: entry["p50"] / timed[entry["batch"]] for entry in latencies[DENSE]}
        row["loss_points"] = 100 * (dense["accuracy"] - row["accuracy"])
        for size in ("payload_bytes", "disk_bytes"):
            row[f"{size}_ratio"] = dense[size] / row[size]
    return rows


def _plain(recipe: Any) -> Any:
    return None if recipe is None else RECIPES.parse(recipe).model_dump(mode="json")


def _measure(task: Task, module: nn.Module, file: bytes) -> Row:
    """Everything but timings. `footprint` checks that the payload decodes to the module's own values."""
    deployed = OnnxTarget(file)
    weight = footprint(module, file, encode(module), task.shape)
    row: Row = {
        "accuracy": float((deployed.logits(task.test.x).argmax(1) == task.test.y).double().mean()),
        **{key: weight[key] for key in ("payload_bytes", "disk_bytes", "parameters", "macs")},
        "kernels": integer_kernels(file),
        "no_twin": None,
        "certificate": None,
    }
    try:
        twin = twin_of(file)
    except NotApplicable as error:
        row["no_twin"] = str(error)
        return row
    found = certificate(deployed, twin, task.test, task.bounds)
    agreement = {
        "n": found.overall.n,
        "label_agreement": found.overall.label_agreement,
        "max_logit_difference": found.overall.max_logit_difference,
        "label_agreement_by_inputs": {kind: part.label_agreement for kind, part in found.kinds.items()},
    }
    return row | {"certificate": agreement}


def certificate(deployed: Target, twin: nn.Module, test: Records, bounds: Bounds) -> Certificate:
    """Agreement on test records, on uniform noise and on what PGD through the twin finds (10 steps)."""
    few = {kind: test.take(torch.arange(min(count, len(test)))) for kind, count in CERTIFIED.items()}
    noise = torch.rand(few["random"].x.shape, generator=generator(SEED, "random inputs"))
    attack = Evasion(epsilons=(EPSILON,), records=CERTIFIED["adversarial"], parts=(Pgd(steps=10),))
    adversarial = attack.run(case(deployed, twin, few["adversarial"], bounds), seed=SEED).arrays["adversarial"]
    inputs: dict[str, Tensor] = {
        "clean": few["clean"].x,
        "random": bounds.low + noise * bounds.scale,
        "adversarial": torch.from_numpy(adversarial),
    }
    return certify(deployed, TorchTarget(twin), inputs)


def case(deployed: Target, twin: nn.Module, records: Records, bounds: Bounds) -> Case:
    """What a white-box attacker of a finished file has."""
    index = torch.arange(len(records))
    nobody = records.take(index[:0])
    return Case(deployed, twin, None, None, records, index.numpy(), nobody, bounds, int(records.y.max()) + 1)


def lines(rows: list[Row]) -> list[tuple[str, ...]]:
    """The table, its header first; what a recipe refused stands under it."""
    header = ("recipe", "acc %", "loss", "payload kB", "x", "file kB", "x", "ms @1", "x", "ms @256", "x")
    table: list[tuple[str, ...]] = [(*header, "twin agrees %", "max diff", "integer", "float")]
    for row in rows:
        if row["refused"] is not None:
            table.append((row["name"], *["-"] * (len(table[0]) - 1)))
            continue
        cells = [f"{100 * row['accuracy']:.2f}", f"{row['loss_points']:.2f}"]
        for size in ("payload_bytes", "disk_bytes"):
            cells += [f"{row[size] / 1e3:.1f}", f"{row[f'{size}_ratio']:.1f}"]
        for batch in (1, 256):
            cells += [f"{row['latency_ms'][batch]:.3g}", f"{row['speed_ratio'][batch]:.2f}"]
        agreed = row["certificate"]
        if agreed is None:
            cells += ["no twin", ""]
        else:
            cells += [f"{100 * agreed['label_agreement']:.2f}", f"{agreed['max_logit_difference']:.2g}"]
        cells += [str(sum(row["kernels"][kind].values())) for kind in ("integer", "float")]
        table.append((row["name"], *cells))
    return table


def remarks(rows: list[Row]) -> list[str]:
    """What a recipe refused, and why a file has no twin."""
    return [f"{row['name']}: {reason}" for row in rows if (reason := row["refused"] or row.get("no_twin"))]
