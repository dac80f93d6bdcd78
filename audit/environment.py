"""Host facts and times: what two identical runs may differ in. Nothing here decides a finding."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..compression.footprint import latency
from .findings import Environment, Latency

PACKAGES = (
    "torch",
    "onnxruntime",
    "onnx",
    "numpy",
    "scipy",
    "scikit-learn",
    "opacus",
    "adversarial-robustness-toolbox",
    "torch-pruning",
    "matplotlib",
)


def versions() -> dict[str, str]:
    from .. import __version__

    found = {"crushproof": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an audit does not need every package
            found[package] = "not installed"
    return found


def machine(device: str) -> dict[str, str]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "device": device,
    }


def processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def latencies(models: Mapping[str, bytes], shape: tuple[int, ...], rounds: int = 3) -> dict[str, list[Latency]]:
    """Milliseconds per call by model. Models take turns, so that a slow minute of the machine hits all alike.

    Of the rounds, each model's is the one with the lowest median: the one least disturbed.
    """
    best: dict[tuple[str, int], Latency] = {}
    for _ in range(rounds):
        for name, model in models.items():
            for row in latency(model, shape):
                measured = Latency.model_validate(row)
                known = best.get((name, measured.batch))
                if known is None or measured.p50 < known.p50:
                    best[name, measured.batch] = measured
    table: dict[str, list[Latency]] = {name: [] for name in models}
    for (name, _), measured in best.items():
        table[name].append(measured)
    return table


def today() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def host(device: str) -> Environment:
    return Environment(date=today(), versions=versions(), machine=machine(device))
