"""examples/own_model: a model, a training function and data of one's own, through a plan and through Python."""

from __future__ import annotations

import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cheap_audits import undrawn, without_forests
from typer.testing import CliRunner

from crushproof.audit.cli import app
from crushproof.audit.schema.rows import Audit

EXAMPLE = Path(__file__).parent.parent / "examples" / "own_model"
# Fewer shadows, records, attacks and steps than the example takes.
SMALLER = {
    "plan.yaml": (
        ("training_free: 16, trained: 16", "training_free: 2, trained: 2"),
        ("epsilons: [0.02, 0.05], gate", "records: 15, parts: [pgd, transfer], epsilons: [0.02, 0.05], gate"),
        ("budgets: [20, 60]", "budgets: [20, 60], least_steps: 5, most_rounds: 1"),
    ),
    "audit_in_python.py": (
        ('"training_free": 16, "trained": 16', '"training_free": 2, "trained": 2'),
        ("epsilons=(0.02, 0.05), gate", 'records=15, parts=("pgd", "transfer"), epsilons=(0.02, 0.05), gate'),
        ("budgets=(20, 60)", "budgets=(20, 60), least_steps=5, most_rounds=1"),
    ),
}


@pytest.fixture(autouse=True, scope="module")
def _cheap() -> Iterator[None]:
    with undrawn(), without_forests():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its data."""
    copy = tmp_path_factory.mktemp("example") / "own_model"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("*.npz", "*.html", "__pycache__", "out"))
    runpy.run_path(str(copy / "make_data.py"), run_name="__main__")
    model = copy / "my_model.py"
    assert model.read_text().count("range(15)") == 1
    model.write_text(model.read_text().replace("range(15)", "range(8)"))
    return copy


def smaller(folder: Path, name: str) -> Path:
    """A copy beside the example's file that costs less."""
    text = (folder / name).read_text()
    for old, new in SMALLER[name]:
        assert text.count(old) == 1
        text = text.replace(old, new)
    made = folder / f"smaller_{name}"
    made.write_text(text)
    return made


def test_through_a_plan(folder: Path) -> None:
    plan, out = smaller(folder, "plan.yaml"), folder / "out"
    done = CliRunner().invoke(app, ["audit", str(plan), "--out", str(out), "--workers", "0"])
    assert done.exit_code in (0, 1, 3), done.stderr
    assert "Traceback" not in done.stderr
    audit = Audit.model_validate_json((out / "audit.json").read_text())
    assert {candidate.name for candidate in audit.candidates} == {"dense", "int8", "prune50"}
    assert all(finding.estimate is not None for finding in audit.findings)
    assert (out / "report.html").stat().st_size > 10_000


def test_through_python(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(folder))  # as Python does for a script's own folder
    runpy.run_path(str(smaller(folder, "audit_in_python.py")), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[0] in ("pass", "fail", "inconclusive")
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("change", "exit_code", "hint"),
    [
        (("my_model:build", "my_model:biuld"), 2, "biuld"),
        (("my_model:train", "your_model:train"), 2, "your_model"),
        (("path: data.npz", "path: dat.npz"), 2, "dat.npz"),
        (("bounds: [0, 1]", "bounds: [0, 0.5]"), 2, "bounds"),
        (("hidden: 32", "hiden: 32"), 2, "hiden"),
        (("prune50: {kind: prune", "prune50: {kind: prun"), 2, "prune"),
        (("sparsity: 0.5", "sparsity: 1.0"), 2, "sparsity"),
        (("gate_epsilon: 0.05", "gate_epsilon: 8"), 2, "gate_epsilon"),
        (("policy: release", "polcy: release"), 2, "policy"),
    ],
)
def test_a_mistake_in_the_plan_is_named_and_mended(
    folder: Path, tmp_path: Path, change: tuple[str, str], exit_code: int, hint: str
) -> None:
    plan = folder / "mistaken.yaml"
    text = (folder / "plan.yaml").read_text()
    assert change[0] in text
    plan.write_text(text.replace(*change))
    done = CliRunner().invoke(app, ["audit", str(plan), "--out", str(tmp_path / "out")])
    assert done.exit_code == exit_code, done.stderr
    assert re.match(r"(note: audit .*\n)?error: ", done.stderr)
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert "\n\n" not in done.stderr.strip()
