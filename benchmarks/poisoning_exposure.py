"""What poisoned records do to digits, dense and compressed; what breaks each calibration; whether the intervals hold.

    python benchmarks/poisoning_exposure.py [--only audit] [--json FILE]

Three parts. An audit of a CNN on scikit-learn's digits with the attack `poisoning-exposure` alone, 3 -> 8, through the
command line: 26 trainings, int8, int4 and a pruned and fine-tuned candidate; CPU seconds are of all its
processes, the start of Python and the dense model included. Six further nets whose activations are calibrated with 2 of
200 records at 10 times their range. Intervals of shares over several trainings against simulated truth.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contract import Row, parser, publish

from crushproof.attacks.poisoning_exposure.calibration import Method, calibrated_answers
from crushproof.attacks.poisoning_exposure.measure import records_to_break
from crushproof.attacks.statistics.crossed import crossed_change, crossed_rate
from crushproof.targets.data.digits import load_digits
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, train_many
from crushproof.training.networks import digits_cnn

PLAN = {
    "name": "exposure",
    "data": {"kind": "digits"},
    "model": {"architecture": "crushproof.training.networks:digits_cnn", "training": {"epochs": 9}},
    "candidates": {"int8": "int8", "int4": "int4", "prune80": "prune80"},
    "attacks": [{"kind": "poisoning-exposure", "pair": ["3", "8"]}],
    "policy": {"changes": {"targeted_error_after_flips": 0.2}},
}
COUNTS = (0, 1, 2, 4, 8, 16)
METHODS = (Method("min-max"), Method("percentile"), Method("percentile", 99.9), Method("entropy"))
NETS = 6


def audited() -> tuple[list[Row], dict[str, Any]]:
    """The attack as a user runs it."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder, "plan.yaml")
        plan.write_text(json.dumps(PLAN))  # which is YAML
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "crushproof", "audit", str(plan), "--out", str(Path(folder, "out"))]
        subprocess.run(command, check=False, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads(Path(folder, "out", "audit.json").read_text())
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = [Row("audit with poisoning exposure", "digits CNN, 3 candidates", seconds, "CPU s", target=90)]
    table = {}
    for finding in found["findings"]:
        table[finding["id"]] = {name: finding[name] for name in ("estimate", "changes", "curves", "notes")}
        points = finding["curves"].get("targeted error", [])
        rises = all(one["estimate"] <= other["estimate"] for one, other in pairwise(points))
        if points:
            name = f"targeted 3 -> 8: {finding['candidate']}"
            rows.append(Row(f"{name} rises with the share", "", float(rises), "", target=1, better="higher"))
            rows += [Row(name, f"{one['x']:.0%} {_interval(one)}", one["estimate"], "of 3s") for one in points]
        for curve in ("accuracy", "patch success"):
            last = finding["curves"].get(curve, [])[1:]
            rows += [
                Row(f"{curve}: {finding['candidate']}", f"{one['x']:.0%} {_interval(one)}", one["estimate"], "share")
                for one in last
            ]
        rows += [
            Row(f"change against {one['baseline']}", f"{finding['id']} {_interval(one)}", one["difference"], "share")
            for one in finding["changes"]
        ]
    return rows, table


def _interval(one: dict[str, float]) -> str:
    return f"[{one['low']:.3f}, {one['high']:.3f}]"


def calibrations() -> list[Row]:
    """2 of 200 records at 10 times their range, on nets of other seeds."""
    data = load_digits()
    assert data.members is not None
    subsets = [torch.arange(len(data.members))] * NETS
    job = TrainingJob(Architecture("cnn", digits_cnn), data.members, subsets, list(range(NETS)), torch.device("cpu"))
    kept: dict[tuple[int, str], list[float]] = {}
    broken: dict[tuple[int, str], list[float]] = {}
    for seed, module in enumerate(train_many(job, Training(epochs=9))):
        order = torch.randperm(len(data.members), generator=torch.Generator().manual_seed(seed))
        x = data.members.x[order[:200]]
        correct = calibrated_answers(module, x, data.evaluation, data.bounds, METHODS, COUNTS, 10)
        for at, bits in enumerate((8, 4)):
            for position, method in enumerate(METHODS):
                needed = records_to_break(correct[at, position], COUNTS)
                broken.setdefault((bits, method.words), []).append(float(needed is not None and needed <= 2))
                kept.setdefault((bits, method.words), []).append(float(correct[at, position, 2].mean()))
    rows = []
    for (bits, words), found in broken.items():
        accuracy = kept[bits, words]
        setting = f"{bits}-bit; accuracy {min(accuracy):.3f} to {max(accuracy):.3f}"
        wanted: dict[tuple[int, str], Any] = {(4, "min-max"): (1.0, "higher"), (4, "percentile 99.9"): (0.0, "lower")}
        target, better = wanted.get((bits, words), (None, "lower"))
        name = f"2 of 200 calibration records break {words}"
        rows.append(Row(name, setting, float(np.mean(found)), "of nets", target=target, better=better))
    return rows


def intervals(repetitions: int = 2000) -> list[Row]:
    """How often the intervals over models and records hold the truth: both vary, by logits of random effects."""
    rows = []
    for models, records, of_models, of_records in ((3, 60, 1.0, 1.0), (3, 600, 0.3, 2.0), (5, 60, 2.0, 0.5)):
        inside = changed = 0
        rng = np.random.default_rng(models * records)
        many = rng.normal(size=(200_000, 2)) @ np.diag([of_models, of_records])
        truth, other = (float((1 / (1 + np.exp(-(many.sum(1) + shift)))).mean()) for shift in (-1.0, -0.5))
        for _ in range(repetitions):
            base = of_models * rng.normal(size=(models, 1)) + of_records * rng.normal(size=(1, records))
            u = rng.random((models, records))
            first, second = (u < 1 / (1 + np.exp(-(base + shift))) for shift in (-1.0, -0.5))
            found, change = crossed_rate(first), crossed_change(second, first)
            inside += found.low <= truth <= found.high
            changed += change.low <= other - truth <= change.high
        setting = f"{models} models (sd {of_models}), {records} records (sd {of_records})"
        rows.append(Row("interval of a share holds", setting, inside / repetitions, "", target=0.95, better="higher"))
        rows.append(Row("interval of a change holds", setting, changed / repetitions, "", target=0.95, better="higher"))
    return rows


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--only", default="", help="audit, calibrations or intervals")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    rows, table = audited() if chosen.only in "audit" else ([], {})
    rows += calibrations() if chosen.only in "calibrations" else []
    rows += intervals() if chosen.only in "intervals" else []
    publish(rows, chosen.json, {"findings": table})


if __name__ == "__main__":
    main()
