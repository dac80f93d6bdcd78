"""The command line: fast, one paragraph for every error, and the exit codes the README lists."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer.testing
from typer.main import get_command
from typer.testing import CliRunner

import crushproof
from crushproof.attacks.evasion.risk import EVASION
from crushproof.attacks.membership.risk import MEMBERSHIP
from crushproof.audit import cli
from crushproof.audit.findings.assemble import known_metrics
from crushproof.audit.schema.data_rows import DataSummary
from crushproof.audit.schema.file_rows import Footprint
from crushproof.audit.schema.read import read_audit
from crushproof.audit.schema.rows import (
    SCHEMA,
    Audit,
    Candidate,
    Change,
    Environment,
    Estimate,
    Finding,
    NotMeasured,
    ThreatModel,
)
from crushproof.audit.verdict.judging import apply_policy
from crushproof.audit.verdict.policy import BUILT_IN
from crushproof.audit.writing import write_verdict
from crushproof.targets.errors import Incomplete, InputError, UnsafeInput

COMMAND = [sys.executable, "-c", "from crushproof.audit.cli import main; main()"]


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def a_rate(value: float) -> Estimate:
    return Estimate(estimate=value, low=value - 0.01, high=value + 0.01, n=600)


def a_change(difference: float) -> Change:
    return Change(
        baseline="dense",
        baseline_estimate=0.9,
        difference=difference,
        low=difference - 0.005,
        high=difference + 0.005,
        p_value=None,
    )


def an_audit(robust_change: float = 0.0) -> Audit:
    weights = Footprint(
        disk_bytes=100,
        payload_bytes=50,
        ratio=4,
        parameters=9,
        nonzero_parameters=9,
        macs=9,
        macs_by_width=[],
        entropy_bytes=9,
        energy_uj_modelled=0.1,
        energy_memory_share=0.5,
    )
    row = Candidate(
        name="int8",
        role="candidate",
        technique="quantize",
        recipe={"kind": "quantize"},
        recipe_words="8-bit weights",
        parent="dense",
        verdict="not-gated",
        accuracy=a_rate(0.95),
        quality_change=a_change(0.0),
        footprint=weights,
        certificate=None,
        digest="0" * 64,
    )
    findings = [
        Finding(
            id=f"int8/{risk}/{metric}",
            candidate="int8",
            risk=risk,
            attack="test",
            metric=metric,
            better=better,
            threat_model=ThreatModel(access="scores", knowledge="", budget=""),
            estimate=a_rate(0.5),
            changes=[a_change(change)],
            gateable=True,
            gated=True,
        )
        for risk, metric, better, change in (
            ("evasion", "robust_accuracy", "higher", robust_change),
            ("membership", "tpr_at_1_percent_fpr", "lower", 0.0),
            ("membership", "auc", "lower", 0.0),
        )
    ]
    judged = apply_policy([row], findings, BUILT_IN["release"], ["int8"], known_metrics(()))
    return Audit(
        schema=SCHEMA,
        name="test",
        verdict=judged.verdict,
        deciding=judged.deciding,
        plan={"name": "test", "policy": "release"},
        plan_digest="0" * 64,
        seed=0,
        data=DataSummary(
            name="digits",
            digest="0" * 64,
            shape=[1, 8, 8],
            classes=["0", "1"],
            members=898,
            non_members=899,
            evaluation=600,
            attacker=299,
        ),
        risks={risk.name: risk for risk in (EVASION, MEMBERSHIP)},
        metrics=known_metrics(()),
        candidates=judged.candidates,
        findings=judged.findings,
        policy=judged.gates,
        policy_name="release",
        policy_limits=BUILT_IN["release"].limits,
        release=["int8"],
        not_measured=[],
        power=[],
        limits=[],
        environment=Environment(),
    )


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with a passing audit.json."""
    (tmp_path / "audit.json").write_text(an_audit().model_dump_json(by_alias=True))
    return tmp_path


def test_help_is_fast() -> None:
    """Median of five under 0.4 s; CPU time, because the wall clock belongs to whoever else is at work."""
    seconds = []
    for _ in range(5):
        before = os.times()
        subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert statistics.median(seconds) < 0.4


@pytest.mark.parametrize("argument", ["--help", "audit --help", "gate --help"])
def test_help_imports_nothing_heavy(argument: str) -> None:
    code = (
        "import sys\nfrom crushproof.audit.cli import app\n"
        f"app({argument.split()!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'sklearn', 'rich', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_usage_errors_exit_2() -> None:
    for arguments in ([], ["adit"], ["audit", "--wrkers", "2"], ["audit", "--workers", "-1"], ["gate", "."]):
        assert call(*arguments).exit_code == 2, arguments


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("polcy: x", 2, "did you mean 'policy'"),
        ("a: !!python/object/apply:os.system ['touch pwned']", 5, "nothing was executed"),
        ("[" * 5000, 2, "nested"),
        ("a: &a [1]\nb: *a", 2, "anchors"),
        ("a: .nan", 2, "finite"),
        ("name: \x1b[31mred", 2, "U+001B"),
    ],
)
def test_bad_plans_give_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(text)
    result = call("audit", "plan.yaml")
    assert result.exit_code == code
    assert words in " ".join(result.stderr.split())
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert "\x1b" not in result.output
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_a_missing_plan(tmp_path: Path) -> None:
    result = call("audit", tmp_path / "gone.yaml")
    assert (result.exit_code, "does not exist" in " ".join(result.stderr.split())) == (2, True)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """`run_audit` replaced: the first item says what it gives or raises; calls are appended."""
    run = pytest.importorskip("crushproof.audit.run")
    said: list[Any] = [an_audit()]

    def run_audit(*arguments: Any, **named: Any) -> Audit:
        said.append((arguments, named))
        if isinstance(said[0], BaseException):
            raise said[0]
        assert isinstance(said[0], Audit)
        return said[0]

    monkeypatch.setattr(run, "run_audit", run_audit)
    monkeypatch.chdir(tmp_path)
    return said


def test_an_audit_prints_table_verdict_and_report(faked: list[Any]) -> None:
    result = call("audit", "--out", "here", "--workers", "0")
    assert result.exit_code == 0
    for words in ("int8", "95.0", "4.0x smaller", "PASS", "by policy release", "Report: here/report.html"):
        assert words in result.stdout
    arguments, named = faked[1]
    assert (arguments[2], named["workers"], named["only"]) == (Path("here"), 0, None)
    assert named["command"] == "crushproof audit"


def test_json_is_the_audit_and_nothing_else(faked: list[Any]) -> None:
    result = call("audit", "--json")
    assert Audit.model_validate_json(result.stdout) == faked[0]


def test_only_prints_findings(faked: list[Any]) -> None:
    result = call("audit", "--only", "int8/evasion")
    assert "int8/evasion/robust_accuracy: Robust accuracy 50.0" in result.stdout
    assert "Report" not in result.stdout


def test_only_of_what_was_not_measured_or_not_judged_is_incomplete(faked: list[Any]) -> None:
    whole = faked[0]
    gap = NotMeasured(candidate="int8", what="the candidate itself", reason="it has one layer only.")
    unmade = whole.model_copy(update={"candidates": [], "findings": [], "not_measured": [gap]})
    faked[0] = unmade
    result = call("audit", "--only", "int8/evasion")
    assert result.exit_code == 3
    assert "int8: the candidate itself is missing. It has one layer only." in result.stdout
    missing = {"estimate": None, "verdict": "not-measured", "reason": "it failed"}
    ungated = {"verdict": "not-gated", "gated": False}
    for change in ({**missing, "gated": True}, {**missing, "gated": False}, ungated):
        row = whole.findings[0].model_copy(update=change)
        faked[0] = whole.model_copy(update={"findings": [row]})
        assert call("audit", "--only", "int8/evasion").exit_code == 3  # what no policy judged did not pass


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("a wrong thing."), 2, "error: a wrong thing."),
        (Incomplete("another run."), 3, "error: another run."),
        (UnsafeInput("a pickle."), 5, "error: a pickle."),
        (KeyboardInterrupt(), 130, "Run the same command again"),
        (RuntimeError("a bug\nin two lines"), 4, "please report"),
        (MemoryError(), 3, "MemoryError"),
        (RuntimeError("can't start new thread"), 3, "ulimit"),
    ],
)
def test_errors_become_exit_codes(faked: list[Any], error: BaseException, code: int, words: str) -> None:
    faked[0] = error
    result = call("audit")
    assert result.exit_code == code
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("change", "code", "only_fail"), [(0.0, 0, 0), (-0.3, 1, 1), (-0.05, 3, 0)])
def test_verdicts_become_exit_codes(faked: list[Any], change: float, code: int, only_fail: int) -> None:
    faked[0] = an_audit(change)
    assert call("audit").exit_code == code
    assert call("audit", "--fail-on", "inconclusive").exit_code == code
    assert call("audit", "--fail-on", "fail").exit_code == only_fail
    faked[0] = Incomplete("2 of 9 cells failed.")
    assert call("audit", "--fail-on", "fail").exit_code == 3


def test_gate_judges_anew_and_changes_nothing(finished: Path) -> None:
    before = (finished / "audit.json").read_bytes()
    passing = call("gate", finished, "--policy", "release")
    assert (passing.exit_code, "NOT VERIFIED" in passing.stdout) == (3, True)  # there is no evidence
    (finished / "strict.yaml").write_text("absolutes: {robust_accuracy: 0.6}")
    result = call("gate", finished, "--policy", finished / "strict.yaml")
    assert result.exit_code == 1
    assert "by policy strict" in result.stdout
    assert "asks for at least 60.0" in result.stdout
    judged = Audit.model_validate_json(call("gate", finished, "--policy", finished / "strict.yaml", "--json").stdout)
    assert (judged.verdict, judged.policy_name) == ("fail", "strict")
    assert (finished / "audit.json").read_bytes() == before
    assert call("gate", finished, "--policy", "relaese").exit_code == 2


def test_gate_writes_its_verdict_beside_the_audit_and_never_over_one(finished: Path, tmp_path: Path) -> None:
    before = (finished / "audit.json").read_bytes()
    (tmp_path / "strict.yaml").write_text("absolutes: {robust_accuracy: 0.6}")
    out = tmp_path / "deep" / "judged"
    result = call("gate", finished, "--policy", tmp_path / "strict.yaml", "--out", out)
    assert result.exit_code == 1, result.output
    assert f"Report: {out / 'report.html'}" in result.stdout
    assert "judged anew" in (out / "report.html").read_text()
    judged = read_audit(out)
    assert (judged.verdict, judged.policy_name, judged.policy_from) == ("fail", "strict", "gate")
    assert call("gate", out).exit_code == 1  # it agrees with itself
    write_verdict(out, finished, "another verdict takes its place")
    assert call("gate", finished).exit_code == 3  # by the audit's own limits, but without evidence
    (finished / "evidence").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "audit.json").write_text("mine")
    for taken in (finished, tmp_path / "other"):
        refused = call("gate", finished, "--policy", tmp_path / "strict.yaml", "--out", taken)
        assert (refused.exit_code, "would be lost" in " ".join(refused.stderr.split())) == (2, True)
    assert (finished / "audit.json").read_bytes() == before
    assert (tmp_path / "other" / "audit.json").read_text() == "mine"


def deep(text: str) -> str:
    return text.replace('"plan":{"name":"test","policy":"release"}', '"plan":' + '{"a":' * 5000 + "1" + "}" * 5000)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-20], "not valid JSON"),
        (lambda text: text.replace('"seed":0', '"seed":NaN'), "NaN is no number"),
        (lambda text: text.replace('"seed":0', '"seed":1e999'), "not a finite number"),
        (lambda text: text.replace('"seed":0', '"seed":' + "9" * 5000), "5000 digits"),
        (lambda text: text.replace('"seed":0', '"seed":0,"seed":1'), "given twice"),
        (lambda text: text.replace('"seed":0', '"seed":"x"'), "seed: Input should be"),
        (lambda text: text.replace('"seed":0', '"seed":0,"more":1'), "more: Extra inputs"),
        (lambda text: re.sub('"ratio":[0-9.]+', '"ratio":-2.5', text, count=1), "ratio: Input should be greater"),
        (lambda text: text.replace("crushproof.audit/1", "crushproof.audit/9"), "schema"),
        (deep, "nested too deeply"),
        (lambda text: "[1]", "schema"),
        (lambda text: "\udcff", "not valid JSON"),
        (lambda text: "", "empty"),
    ],
)
def test_a_tampered_audit_is_one_clear_error(finished: Path, change: Any, words: str) -> None:
    path = finished / "audit.json"
    path.write_bytes(change(path.read_text()).encode("utf-8", "surrogateescape"))
    result = call("gate", finished, "--policy", "release")
    assert result.exit_code == (2 if words == "empty" else 5)
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_report_is_drawn_from_the_json_alone(finished: Path) -> None:
    pytest.importorskip("crushproof.audit.report.html")
    result = call("report", finished)
    assert result.exit_code == 0, result.output
    assert "int8" in (finished / "report.html").read_text()
    assert call("report", finished / "gone").exit_code == 2


def test_an_audit_is_named_by_its_folder_or_its_file(finished: Path) -> None:
    for command in ("report", "gate"):
        by_folder, by_file = (call(command, name) for name in (finished, finished / "audit.json"))
        assert (by_folder.exit_code, by_folder.output) == (by_file.exit_code, by_file.output)
    assert {path.name for path in finished.iterdir()} == {"audit.json", "report.html"}
    (finished / "copy.json").write_bytes((finished / "audit.json").read_bytes())
    for command in ("report", "gate"):  # nothing signs or proves a copy under another name
        assert call(command, finished / "copy.json").exit_code == 2


def test_init_writes_once(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert call("init", folder).exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["my_model.py", "plan.yaml"]
    (folder / "plan.yaml").write_text("mine")
    again = call("init", folder)
    assert (again.exit_code, (folder / "plan.yaml").read_text()) == (2, "mine")
    (tmp_path / "file").write_text("")
    assert call("init", tmp_path / "file").exit_code == 2


def test_the_catalogue_lists_every_technique_with_its_parameters() -> None:
    from crushproof.attacks.attack import ATTACKS
    from crushproof.compression.recipe import RECIPES
    from crushproof.defenses.defense import DEFENSES

    entries = json.loads(call("catalogue", "--json").stdout)
    listed = {(entry["sort"], entry["kind"]) for entry in entries}
    for sort, kinds in (("recipe", RECIPES.kinds()), ("attack", ATTACKS.kinds()), ("defense", DEFENSES.kinds())):
        for kind, technique in kinds.items():
            assert (sort, kind) in listed
            entry = next(entry for entry in entries if (entry["sort"], entry["kind"]) == (sort, kind))
            assert entry["summary"]
            assert {one["name"] for one in entry["parameters"]} == set(technique.model_fields) - {"kind"}
            schema = technique.model_json_schema()
            required = {one["name"] for one in entry["parameters"] if one["required"]}
            assert required == set(schema.get("required", [])) - {"kind"}
    text = call("catalogue").stdout
    assert "recipe prune: " in text
    assert "sparsity: number" in text


def test_the_catalogue_is_filtered_by_kind_and_by_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crushproof.targets.technique.plug_ins", list)  # other tests may have brought some

    def listed(*words: str) -> list[tuple[str, str]]:
        return [(one["sort"], one["kind"]) for one in json.loads(call("catalogue", *words, "--json").stdout)]

    assert listed("quantize") == [("recipe", "quantize")]
    assert listed("Dynamic_Sparsity") == [("recipe", "dynamic-sparsity")]
    assert {sort for sort, _ in listed("recipe")} == {"recipe"}
    assert ("evasion part", "pgd") in listed("evasion part")
    assert listed("plug-in") == []
    assert "No other package" in call("catalogue", "plug-in").stdout
    for word, near in (("qantize", "quantize"), ("recipes", "recipe")):
        result = call("catalogue", word)
        assert (result.exit_code, f"Did you mean '{near}'" in " ".join(result.stderr.split())) == (2, True)


def test_the_version_and_what_a_shell_completes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("--version").stdout == f"crushproof {crushproof.__version__}\n"
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    monkeypatch.setattr(typer.testing, "_get_command", get_command)  # anew: it is then that Typer asks the variable
    assert "_CRUSHPROOF_COMPLETE" in call("--show-completion", "bash").stdout
    assert {*crushproof.__all__} <= {*dir(crushproof)}


def test_doctor_finds_this_machine_fit() -> None:
    result = call("doctor")
    assert result.exit_code == 0, result.output
    assert "torch: 2." in result.stdout
    assert "ok  openvino: openvino 20" in result.stdout
    assert "note  tensorrt: no GPU" in result.stdout
    assert "ok  litert: ai-edge-litert" in result.stdout


def test_a_closed_pipe_is_no_error() -> None:
    code = "import crushproof.audit.cli as c; c.main()"
    process = subprocess.Popen([sys.executable, "-c", code, "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    started = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert b"Traceback" not in stderr
    assert time.monotonic() - started < 60
