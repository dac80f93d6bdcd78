"""Some hundred hostile inputs, each with the exit code it must end in: one paragraph, nothing run, nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hostile_audits
import hostile_commands
import hostile_data
import hostile_files
import hostile_models
import hostile_plans
import hostile_signatures
import hostile_weights
import pytest
import yaml
from hostile_case import command, faults_of, no_cells
from hostile_child import forked

import crushproof
from crushproof.audit.schema.read import read_audit
from crushproof.targets.untrusted import model_file

SURFACES = {  # and how many there are, at least
    "files": (hostile_files.cases, 110),
    "plans": (hostile_plans.cases, 250),
    "commands": (hostile_commands.cases, 90),
    "audits": (hostile_audits.cases, 280),
    "data": (hostile_data.cases, 180),
    "weights": (hostile_weights.cases, 90),
    "models": (hostile_models.cases, 90),
    "signatures": (hostile_signatures.cases, 60),
}


@pytest.fixture(scope="module", autouse=True)
def _quick_sandbox() -> Iterator[None]:
    """One process reads all models, a fork for each, in place of one that starts anew for each."""
    with forked(Path(crushproof.__file__).parent) as run, pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_file, "run_limited", run)
        yield


@pytest.mark.parametrize("surface", SURFACES)
def test_every_input_ends_as_it_must(surface: str, tmp_path: Path) -> None:
    make, least = SURFACES[surface]
    found, number = [], 0
    with no_cells():
        for number, case in enumerate(make(), 1):
            folder = tmp_path / str(number)
            folder.mkdir()
            found += faults_of(case, folder)
    assert found == []
    assert number >= least


def test_what_was_changed_was_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else any reader would refuse anything that is made of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audit.json").write_text(json.dumps(hostile_audits.audit()))
    read_audit(tmp_path)
    with no_cells():
        code, said = command(hostile_plans.audit(tmp_path, yaml.safe_dump(hostile_plans.PLAN)))
    assert (code, "ReachedCellsError" in said) == (4, True)
    hostile_data.npz(hostile_data.archive(hostile_data.saved()))(tmp_path)()
    hostile_data.table(hostile_data.GOOD)(tmp_path)()
    hostile_weights.weights(hostile_weights.written(hostile_weights.good()[0]))(tmp_path)()
    for model in (hostile_models.good(), hostile_models.quantised()):
        hostile_models.finished(model.SerializeToString(), ".onnx")(tmp_path)()


def test_a_process_of_its_own_ends_alike(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: !!python/object/apply:os.mkdir [canary]\n")
    before = {*tmp_path.rglob("*")}
    program = [sys.executable, "-c", "import crushproof.audit.cli as cli; cli.main()", "audit", "p.yaml"]
    ended = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 5, ended.stderr
    assert "Traceback" not in ended.stderr
    assert {*tmp_path.rglob("*")} == before
