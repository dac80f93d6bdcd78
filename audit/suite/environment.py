"""Host facts and times: what two identical runs may differ in. Nothing here decides a finding."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from ...targets.model import resolve_device
from ...targets.runtimes.runtime import release_of
from ..schema.rows import Machine

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


@cache
def versions() -> Mapping[str, str]:
    from ... import __version__

    found = {"crushproof": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        found[package] = (
            release_of(package, *GPU_BUILDS.get(package, ())) or ABSENT
        )  # an audit does not need every package
    return found


@dataclass(frozen=True)
class Setup:
    """What decides the results of an audit beside its plan and what that names: it is in the keys of cells.

    Args:
        device: that models are trained and attacked on.
        versions: of the packages that every audit needs.
        machine: whose times are taken.
        releases: of what only some need, by package; what is not in it is looked up.
    """

    device: torch.device
    versions: Mapping[str, str]
    machine: Machine
    releases: Mapping[str, str] = field(default_factory=dict)

    def runtime_versions(self, packages: Iterable[str]) -> list[str]:
        """What is installed of an optional runtime: it decides the results of the cells that use it."""
        return [f"{package} {self.releases.get(package) or release(package)}" for package in packages]


def setup_here(device: str) -> Setup:
    """Of this process."""
    found = resolve_device(device)
    return Setup(found, versions(), machine(str(found)))


def release(package: str) -> str:
    return release_of(package) or ABSENT


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
