"""The house itself: what a wheel holds, what an import costs, which way the layers run."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import crushproof

ROOT = Path(crushproof.__file__).parent
PARTS = ("audit", "attacks", "defenses", "compression", "training", "targets", "report_templates")


def sources() -> set[str]:
    files = [
        ROOT / "__init__.py",
        ROOT / "__main__.py",
        *(file for part in PARTS for file in (ROOT / part).rglob("*.py")),
    ]
    return {f"crushproof/{file.relative_to(ROOT)}" for file in files if "__pycache__" not in file.parts}


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel built from a copy of the sources (a build writes into its folder)."""
    import shutil

    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "another-name"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "*.egg-info", "build", "crushproof-audit", "tests"))
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"  # as pip does
    done = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_wheel_holds_every_module_and_template(wheel_files: set[str]) -> None:
    templates = {
        f"crushproof/report_templates/{file.name}"
        for pattern in ("*.j2", "*.css")
        for file in (ROOT / "report_templates").glob(pattern)
    }
    assert templates
    starter = {f"crushproof/{file.relative_to(ROOT)}" for file in (ROOT / "audit").rglob("starter_files/*.*")}
    assert len(starter) == 2
    missing = (sources() | templates | starter | {"crushproof/py.typed"}) - wheel_files
    assert not missing


def test_wheel_holds_nothing_else(wheel_files: set[str]) -> None:
    strangers = [
        name
        for name in wheel_files
        if name.split("/")[0] == "crushproof" and name.split("/")[1] in ("tests", "benchmarks", "docs")
    ]
    assert not strangers


@pytest.mark.parametrize("module", ["crushproof", "crushproof.audit.cli", "crushproof.audit.plan.plan"])
def test_import_brings_no_heavy_library(module: str) -> None:
    heavy = ["torch", "art", "opacus", "matplotlib", "sklearn", "onnxruntime"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve() -> None:
    for name in crushproof.__all__:
        assert getattr(crushproof, name) is not None
    with pytest.raises(AttributeError):
        _ = crushproof.nothing_of_the_kind
