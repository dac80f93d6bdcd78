"""Host facts and times: what two identical runs may differ in. Nothing here decides a finding."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from ...targets.runtimes.runtime import release_of
from ..schema.rows import Environment, Machine

ABSENT = "not installed"
GPU_BUILDS = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")}
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
    from ... import __version__

    found = {"crushproof": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        found[package] = (
            release_of(package, *GPU_BUILDS.get(package, ())) or ABSENT
        )  # an audit does not need every package
    return found


def runtime_versions(packages: Iterable[str]) -> list[str]:
    """What is installed of an optional runtime, in versions: it decides the results of cells that use the runtime."""
    return [f"{package} {release_of(package) or ABSENT}" for package in packages]


def machine(device: str) -> Machine:
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=processor(),
        cores=str(os.cpu_count()),
        device=device,
    )


def processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def today() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def host(device: str) -> Environment:
    return Environment(date=today(), versions=versions(), machine=machine(device))
