"""The audit end to end on real records: complete, the same every time, resumable whatever happens to it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cheap_audits import undrawn, without_forests
from typer.testing import CliRunner

from crushproof.audit.cli import app
from crushproof.audit.plan.plan import Plan
from crushproof.audit.report.html import to_html
from crushproof.audit.run import run_audit
from crushproof.audit.schema.json_schema import json_schema
from crushproof.audit.schema.rows import Audit
from crushproof.targets.errors import InputError

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"kind": "digits"},
    "model": {"architecture": "crushproof.training.networks:digits_mlp", "training": {"epochs": 5}},
    "candidates": {
        "int8": "int8",
        "prune80": {"kind": "prune", "sparsity": 0.8, "fine_tune": {"epochs": 1, "learning_rate": 4e-3}},
        "int4-stochastic": {"recipe": "int4", "defense": {"kind": "stochastic-rounding", "draws": 2}},
        "impossible": {"kind": "factorize", "energy": 1.0},
    },
    "attacks": [
        {"kind": "evasion", "epsilons": [0.05, 0.1], "records": 40, "parts": [{"kind": "pgd", "steps": 3}, "transfer"]},
        "membership",
        {"kind": "extraction", "budgets": [30], "least_steps": 5, "most_rounds": 1, "transfer_records": 20},
    ],
    "shadows": {"training_free": 2, "trained": 2},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Audit]:
    out = tmp_path_factory.mktemp("audit")
    with undrawn(), without_forests():
        return out, run_audit(Plan.model_validate(SMALL), Path(), out, workers=0)


def test_nothing_is_silently_missing(finished: tuple[Path, Audit]) -> None:
    _, audit = finished
    for candidate in audit.candidates:
        risks = {finding.risk for finding in audit.findings if finding.candidate == candidate.name}
        assert risks == {"evasion", "membership", "extraction"}, candidate.name
    unmeasured = {row.what for row in audit.not_measured}
    for finding in audit.findings:
        assert (finding.estimate is not None) or finding.id in unmeasured


def test_audit_json_follows_the_exported_schema(finished: tuple[Path, Audit]) -> None:
    values = json.loads((finished[0] / "audit.json").read_text())
    jsonschema.validate(values, json_schema())
    assert len(values["candidates"][3]["draws"]) > 1
    assert values["findings"][0]["who_is_hit"]
    del values["candidates"][3]["draws"][0]["figures"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, json_schema())


def test_a_candidate_that_cannot_be_made_is_a_row_with_its_reason(finished: tuple[Path, Audit]) -> None:
    _, audit = finished
    (row,) = [row for row in audit.not_measured if row.candidate == "impossible"]
    assert len(row.reason) > 20
    assert audit.verdict != "pass"


def test_every_figure_has_interval_n_and_access(finished: tuple[Path, Audit]) -> None:
    _, audit = finished
    for finding in audit.findings:
        if finding.estimate is not None:
            assert finding.estimate.low <= finding.estimate.estimate <= finding.estimate.high
            assert finding.estimate.n > 0
            assert finding.threat_model.access
            assert (
                finding.candidate.startswith("dense")
                or finding.changes
                or finding.metric == "evade_only"
                or "without-draw" in finding.id
            )


def test_the_report_and_the_evidence_are_written(finished: tuple[Path, Audit]) -> None:
    out, audit = finished
    assert Audit.model_validate_json((out / "audit.json").read_text()).findings == audit.findings
    assert "int4-stochastic" in (out / "report.html").read_text()
    for finding in audit.findings:
        if finding.estimate is not None:
            assert finding.evidence is not None
            assert (out / finding.evidence / "arrays.safetensors").is_file()
    assert (out / "evidence").stat().st_mode & 0o077 == 0


def test_only_computes_what_one_finding_needs(finished: tuple[Path, Audit], tmp_path: Path) -> None:
    _, whole = finished
    audit = run_audit(Plan.model_validate(SMALL), Path(), tmp_path, workers=0, only="int8/evasion")
    assert [finding.id for finding in audit.findings] == ["int8/evasion"]
    (same,) = [finding for finding in whole.findings if finding.id == "int8/evasion"]
    assert audit.findings[0].estimate == same.estimate
    assert not (tmp_path / "audit.json").exists()


def test_another_seed_gives_other_findings(finished: tuple[Path, Audit], tmp_path: Path) -> None:
    plan = Plan.model_validate({**SMALL, "seed": 1})
    other = run_audit(plan, Path(), tmp_path, workers=0, only="dense/evasion")
    (before,) = [finding for finding in finished[1].findings if finding.id == "dense/evasion"]
    assert other.findings[0].estimate != before.estimate


def test_only_of_a_candidate_that_cannot_be_made_says_why(finished: tuple[Path, Audit], tmp_path: Path) -> None:
    out, whole = finished
    (reason,) = [row.reason for row in whole.not_measured if row.candidate == "impossible"]
    before = (out / "audit.json").read_bytes()
    audit = run_audit(Plan.model_validate(SMALL), Path(), out, workers=0, only="impossible/membership/auc")
    assert (audit.findings, audit.candidates) == ([], [])
    assert [(row.candidate, row.reason) for row in audit.not_measured] == [("impossible", reason)]
    assert (out / "audit.json").read_bytes() == before


def test_records_are_shown_where_the_plan_says_so_and_in_the_report_alone(
    finished: tuple[Path, Audit], tmp_path: Path
) -> None:
    whole, out = finished[1], tmp_path / "shown"
    shutil.copytree(finished[0], out)
    before = (out / "report.html").read_text()
    assert "image/png" not in before
    assert 'class="records"' not in before
    with undrawn():
        again = run_audit(Plan.model_validate({**SMALL, "show_records": True}), Path(), out, workers=0)
        bare = to_html(again)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") % 3 == 0
    assert page.count("data:image/png") >= 3
    assert "image/png" not in (out / "audit.json").read_text()
    assert again.findings == whole.findings
    assert "image/png" not in bare
    assert "holds no record" in bare


@pytest.mark.usefixtures("undrawn")
def test_hard_rounding_never_passes_by_hiding_its_gradients(tmp_path: Path) -> None:
    """A quantised candidate's own gradients are zero: alone they flag it; the straight-through twin sees through it."""
    pgd = {"kind": "pgd", "steps": 10}
    evasion = {"kind": "evasion", "epsilons": [0.08], "records": 100, "parts": [pgd, "transfer"]}
    native = {**evasion, "parts": [{**pgd, "gradients": "native"}]}
    limits = {"changes": {"robust_accuracy": -0.1}}  # wide enough for 100 records, and less than the parent has
    model = {**SMALL["model"], "training": {"epochs": 10}}
    plan = {**SMALL, "model": model, "candidates": {"int8": "int8"}, "attacks": [evasion, native], "policy": limits}
    found = {one.id: one for one in run_audit(Plan.model_validate(plan), Path(), tmp_path, workers=0).findings}
    for attack in ("evasion", "evasion-2"):
        dense, int8 = (found[f"{name}/{attack}"] for name in ("dense", "int8"))
        assert dense.estimate is not None
        assert int8.estimate is not None
        assert dense.flags == []
        if attack == "evasion-2":
            assert "no-gradient" in int8.flags
            assert int8.estimate.estimate > dense.estimate.estimate + 0.3  # it looks robust ...
            assert int8.verdict == "inconclusive"  # ... and does not pass
        else:
            assert int8.flags == []
            assert int8.estimate.estimate <= dense.estimate.estimate + 0.03
            assert int8.verdict == "pass"


@pytest.mark.parametrize("name", ["int8/evasion/nothing", "int8/extraction/auc", "int8/evasion/without-draw", "int8"])
def test_only_refuses_a_finding_that_is_not_there_and_leaves_no_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int8/membership/auc"):
        run_audit(Plan.model_validate(SMALL), Path(), tmp_path / "out", workers=0, only=name)
    assert not (tmp_path / "out").exists()


HOLD = """
import sys
from pathlib import Path
from crushproof.audit.engine.store import Store
with Store(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_on_the_folder_says_who_holds_it(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text(yaml.safe_dump(SMALL, sort_keys=False))
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True, stdin=subprocess.PIPE
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        second = CliRunner().invoke(app, ["audit", str(plan), "--out", str(out)])
        assert second.exit_code == 3, second.output
        assert str(first.pid) in second.output
        assert "Traceback" not in second.output
    finally:
        first.kill()
        first.communicate()
