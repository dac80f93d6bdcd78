"""Host facts and times: what two identical runs may differ in. Nothing here decides a finding."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..compression.footprint import Timed, interleaved_latency
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


def latencies(models: Mapping[str, Timed], shape: tuple[int, ...]) -> dict[str, list[Latency]]:
    """Times by model, taken in turns: a slow minute of the machine hits all alike."""
    rows = interleaved_latency(models, shape)
    return {name: [Latency.model_validate(row) for row in timed] for name, timed in rows.items()}


def today() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def host(device: str) -> Environment:
    return Environment(date=today(), versions=versions(), machine=machine(device))
