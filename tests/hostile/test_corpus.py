"""Some hundred hostile inputs, each with the exit code it must end in: one paragraph, nothing run, nothing written.

What reads plans, words of the command line and data; models and audits stand in test_corpus_models.py. Both try a
share of their lists; `make fuzz` tries all.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hostile_commands
import hostile_data
import hostile_files
import hostile_plans
import pytest
import yaml
from hostile_case import command, faults_of_all, no_cells, thinned

SURFACES = {  # how many of them are tried, and how many that is, at least
    "files": (hostile_files.cases, 0.4, 45),
    "plans": (hostile_plans.cases, 0.2, 130),
    "commands": (hostile_commands.cases, 0.3, 70),
    "data": (hostile_data.cases, 0.3, 60),
}


@pytest.mark.parametrize("surface", SURFACES)
def test_every_input_ends_as_it_must(surface: str, tmp_path: Path) -> None:
    make, share, least = SURFACES[surface]
    cases = thinned(make(), share)
    assert faults_of_all(cases, tmp_path) == []
    assert len(cases) >= least


def test_what_was_changed_was_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else any reader would refuse anything that is made of it."""
    monkeypatch.chdir(tmp_path)
    for text in (yaml.safe_dump(hostile_plans.PLAN), hostile_commands.PLAN):
        with no_cells():
            code, said = command(hostile_plans.audit(tmp_path, text))
        assert (code, "ReachedCellsError" in said) == (4, True)
    hostile_data.npz(hostile_data.archive(hostile_data.saved()))(tmp_path)()
    hostile_data.table(hostile_data.GOOD)(tmp_path)()


def test_a_process_of_its_own_ends_alike(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: !!python/object/apply:os.mkdir [canary]\n")
    before = {*tmp_path.rglob("*")}
    program = [sys.executable, "-c", "import crushproof.audit.cli as cli; cli.main()", "audit", "p.yaml"]
    ended = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 5, ended.stderr
    assert "Traceback" not in ended.stderr
    assert {*tmp_path.rglob("*")} == before
