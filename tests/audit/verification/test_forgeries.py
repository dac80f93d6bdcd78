"""Forged audits: each is caught by the check that is there for it, and none gets an unqualified PASS."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from crushproof.attacks.membership.case import MembershipCase
from crushproof.attacks.membership.membership import Membership
from crushproof.audit import cli
from crushproof.audit.engine.cells import Result, pack, unpack
from crushproof.audit.engine.on_disk import read_folder
from crushproof.audit.engine.store import Store, cell_folder
from crushproof.audit.plan.plan import load_plan
from crushproof.audit.run import run_audit
from crushproof.audit.schema.read import read_audit
from crushproof.audit.schema.rows import Audit
from crushproof.audit.suite.attack_cells import basis_of, evidence_of
from crushproof.audit.verdict.judging import rejudge
from crushproof.audit.verdict.policy import Policy
from crushproof.audit.verification import checks
from crushproof.audit.verification.checks import verify
from crushproof.audit.verification.differences import differences
from crushproof.audit.verification.following import getter, stored_runs
from crushproof.audit.verification.rebuild import Ended, Rebuilt, rebuild
from crushproof.audit.verification.record import FILE, Record, key_of
from crushproof.audit.verification.stored import StoredCells
from crushproof.targets.data.digits import load_digits
from crushproof.targets.errors import CrushproofError, UnsafeInput

Values = dict[str, Any]


def link(source: str, target: str) -> None:
    """Cells are links to the one audit's files: whoever forges one puts another file in its place."""
    (os.link if "/cells/" in source else shutil.copy)(source, target)


@pytest.fixture
def forged(small_audit: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_audit, tmp_path / "audit", copy_function=link)
    return tmp_path / "audit" / "out"


def caught(out: Path, *, deep: bool = False) -> dict[str, str]:
    plan = out.parent / "plan.yaml" if deep else None
    return {check.what: check.words for check in verify(out, plan, deep=deep) if check.state == "bad"}


def asked(out: Path, command: str) -> Any:
    """What `gate` or `report` says of it, which is no PASS without a word on its evidence."""
    said = CliRunner().invoke(cli.app, [command, str(out)])
    assert said.exception is None or isinstance(said.exception, SystemExit), said.output
    assert "\nPASS by policy" not in said.output or "(evidence unsigned)" in said.output
    return said


def rewrite(out: Path, change: Callable[[Values], None]) -> None:
    path = out / "audit.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def of(rows: list[Values], name: str) -> Values:
    return next(row for row in rows if name in (row.get("id"), row.get("name"), row.get("candidate")))


def finding(name: str, **changed: Any) -> Callable[[Values], None]:
    return lambda values: of(values["findings"], name).update(changed)


def candidate(name: str, **changed: Any) -> Callable[[Values], None]:
    return lambda values: of(values["candidates"], name).update(changed)


def top(**changed: Any) -> Callable[[Values], None]:
    return lambda values: values.update(changed)


BETTER = {"estimate": 0.98, "low": 0.9, "high": 0.99, "n": 60}
CHANGE = {"difference": 0.4, "low": 0.3, "high": 0.5}
EDITS: dict[str, Callable[[Values], None]] = {
    "an estimate": finding("crushed/evasion", estimate=BETTER),
    "an interval": finding("int8/evasion", estimate={"estimate": 0.45, "low": 0.44, "high": 0.46, "n": 60}),
    "the number of records": finding("int8/evasion", available=900),
    "a change": lambda v: of(v["findings"], "crushed/evasion")["changes"][0].update(CHANGE),
    "a baseline": lambda v: of(v["findings"], "int8/evasion")["changes"][0].update(baseline_estimate=0.2),
    "flags taken away": finding("int8/membership", flags=[]),
    "a part": lambda v: of(v["findings"], "int8/evasion")["parts"][0].update(estimate=0.5),
    "a curve": lambda v: next(iter(of(v["findings"], "int8/evasion")["curves"].values()))[0].update(estimate=0.9),
    "the attacker": lambda v: of(v["findings"], "int8/evasion")["threat_model"].update(knowledge="everything"),
    "a finding that is judged no more": finding("crushed/evasion", gateable=False, gated=False),
    "a finding taken away": lambda v: v["findings"].remove(of(v["findings"], "crushed/membership")),
    "the digest of evidence": finding("int8/evasion", evidence_digest="0" * 64),
    "the queries": finding("int8/evasion", queries=1),
    "a note": finding("int8/evasion", notes=["All is well."]),
    "who fell first": finding("int8/evasion", fragile=None),
    "a class that got worse": finding("int8/churn/negative-flips", worse=["3"]),
    "accuracy": candidate("crushed", accuracy=BETTER),
    "the change of accuracy": lambda v: of(v["candidates"], "crushed")["quality_change"].update(CHANGE),
    "the role of a candidate": candidate("crushed", role="control"),
    "the digest of a candidate": candidate("int8", digest="0" * 64),
    "a size": lambda v: of(v["candidates"], "int8")["footprint"].update(payload_bytes=10),
    "the certificate": lambda v: of(v["candidates"], "int8")["certificate"].update(label_agreement=0.5),
    "the sentence on a candidate": candidate("crushed", deciding="crushed is as good as its parent."),
    "the digest of the data": lambda v: v["data"].update(digest="0" * 64),
    "the records of the data": lambda v: v["data"].update(non_members=v["data"]["non_members"] * 10),
    "the plan": lambda v: v["plan"].update(seed=7),
    "the digest of the plan": top(plan_digest="0" * 64),
    "the release": top(release=["int8"]),
    "what a metric means": lambda v: v["metrics"]["robust_accuracy"].update(meaning="All is well."),
    "what the method does not prove": top(limits=[]),
    "the power": top(power=["Nothing would go unseen."]),
    "what decides": top(deciding=["All may ship."]),
    "the verdict": top(verdict="pass"),
    "the verdict on a candidate": candidate("crushed", verdict="pass"),
    "a gate": lambda v: v["policy"][-1].update(verdict="pass"),
    "how fast it is": lambda v: v["environment"]["latency"]["int8"][0].update(p50=1e-6, p95=1e-6),
    "what it takes of memory": lambda v: v["environment"]["candidate_peak_bytes"].update(int8=1),
    "the date": lambda v: v["environment"].update(date="2020-01-01 00:00 UTC"),
    "the machine": lambda v: v["environment"]["machine"].update(processor="another"),
    "the versions": lambda v: v["environment"]["versions"].update(torch="0"),
    "the time it took": lambda v: v["environment"].update(wall_seconds=1e9),
    "a limit": lambda v: v["policy_limits"][0].update(limit=-1.0),
}


@pytest.fixture(scope="module")
def made(small_audit: Path) -> Rebuilt:
    return rebuild(read_audit(small_audit / "out"), StoredCells(small_audit / "out"))


@pytest.mark.parametrize("what", EDITS)
def test_audit_json_that_was_edited(small_audit: Path, made: Rebuilt, tmp_path: Path, what: str) -> None:
    shutil.copy(small_audit / "out" / "audit.json", tmp_path)
    rewrite(tmp_path, EDITS[what])
    assert differences(read_audit(tmp_path), made.audit)


def test_a_difference_late_in_a_text_is_shown(made: Rebuilt, small_audit: Path, tmp_path: Path) -> None:
    shutil.copy(small_audit / "out" / "audit.json", tmp_path)
    rewrite(tmp_path, lambda v: v["metrics"]["auc"].update(meaning=v["metrics"]["auc"]["meaning"] + " Not so."))
    (said,) = differences(read_audit(tmp_path), made.audit)
    assert "Not so." in said


def test_audit_json_that_was_not_edited(small_audit: Path, made: Rebuilt) -> None:
    assert not differences(read_audit(small_audit / "out"), made.audit)


IMPOSSIBLE: dict[str, Callable[[Values], None]] = {
    "a share above 1": finding("int8/evasion", estimate={"estimate": 1.2, "low": 1.1, "high": 1.3, "n": 60}),
    "a figure outside its interval": finding(
        "int8/evasion", estimate={"estimate": 0.9, "low": 0.1, "high": 0.2, "n": 60}
    ),
    "no records": finding("int8/evasion", estimate={**BETTER, "n": 0}),
    "an accuracy below 0": candidate("int8", accuracy={"estimate": -0.1, "low": -0.2, "high": 0.0, "n": 60}),
    "a word for a number": candidate("int8", accuracy={**BETTER, "n": "many"}),
    "a candidate taken away": lambda v: v["candidates"].remove(of(v["candidates"], "crushed")),
    "no such verdict": top(verdict="PASS"),
    "an unknown key": top(approved=True),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_audit_json_that_cannot_be(small_audit: Path, tmp_path: Path, what: str) -> None:
    shutil.copy(small_audit / "out" / "audit.json", tmp_path)
    rewrite(tmp_path, IMPOSSIBLE[what])
    with pytest.raises(CrushproofError, match=r"does not follow the schema|contradicts itself"):
        read_audit(tmp_path)


OF_TIME = {
    "the time of the plan": lambda v: v["environment"]["record"].update(fixed="2020-01-01 00:00:00 UTC"),
    "the digest of the record": lambda v: v["environment"]["record"].update(digest="0" * 64),
}
JUDGED = ["a finding that is judged no more", "the verdict", *OF_TIME]


@pytest.mark.parametrize("what", JUDGED)
def test_no_pass_is_printed_of_an_edited_one(forged: Path, what: str) -> None:
    rewrite(forged, {**EDITS, **OF_TIME}[what])
    assert set(caught(forged)) & {"figures", "evidence"}
    said = asked(forged, "gate")
    assert said.exit_code == 5, said.output
    assert "does not verify" in " ".join(said.output.split()) or "contradicts itself" in said.output


def test_no_report_is_drawn_of_an_edited_one(forged: Path) -> None:
    before = (forged / "report.html").read_bytes()
    rewrite(forged, EDITS["accuracy"])
    assert asked(forged, "report").exit_code == 5
    assert (forged / "report.html").read_bytes() == before


def passing(read: Audit) -> Audit:
    """Figures that pass everything, and all that follows from them."""
    values = json.loads(read.model_dump_json(by_alias=True))
    for row in values["candidates"]:
        if row["quality_change"]:
            row["accuracy"], row["quality_change"] = {**BETTER, "n": 899}, {**row["quality_change"], **CHANGE}
    for row in values["findings"]:
        if row["gateable"] and row["metric"] == "robust_accuracy":
            row["estimate"] = BETTER
            row["changes"] = [{**one, **CHANGE, "floor": None} for one in row["changes"]]
    made = Audit.model_validate(values)
    return rejudge(made, Policy(name="loose", changes={"accuracy": -0.2, "robust_accuracy": -0.25}))


def test_figures_forged_with_all_that_follows_from_them(forged: Path) -> None:
    whole = passing(read_audit(forged))
    assert whole.verdict == "pass"
    (forged / "audit.json").write_text(whole.model_dump_json(by_alias=True))
    assert "figures" in caught(forged)
    assert asked(forged, "gate").exit_code == 5


@pytest.mark.parametrize("without", ["the evidence", "the record", "its mention", "what gate wrote"])
def test_without_its_evidence_nothing_passes(forged: Path, without: str) -> None:
    whole = passing(read_audit(forged))
    at = whole.environment.record
    assert at is not None
    if without == "its mention":
        whole.environment.record = None
    if without == "what gate wrote":
        whole = whole.model_copy(update={"policy_from": "gate"})
    (forged / "audit.json").write_text(whole.model_dump_json(by_alias=True))
    rewrite(forged, top(deciding=["All may ship."]))
    if without == "the evidence":
        shutil.rmtree(forged / "evidence")
    if without == "the record":
        shutil.rmtree(cell_folder(forged, at.key))
    assert "evidence" in caught(forged)
    gate = asked(forged, "gate")
    assert gate.exit_code == 3, gate.output
    assert "NOT VERIFIED" in gate.output
    assert "All may ship" not in gate.output
    if without != "the evidence":
        return
    assert asked(forged, "report").exit_code == 0
    page = (forged / "report.html").read_text()
    assert "<title>NOT VERIFIED" in page
    assert 'class="verdict pass"' not in page


# -- cells ------------------------------------------------------------------------------------------------------------


def rewritten(out: Path, made: Rebuilt, cell: str, change: Callable[[Result], Result]) -> None:
    """A cell as its forger would leave it: with a manifest that fits."""
    key = made.suite.cell(cell).key
    parts = read_folder(cell_folder(out, key))
    assert parts is not None
    packed = pack(change(unpack(parts)))
    shutil.rmtree(cell_folder(out, key))
    for name, raw in packed.items():
        path = cell_folder(out, key) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)


def made_to_fit(out: Path) -> None:
    """audit.json as the forged evidence has it."""
    read = read_audit(out)
    again = rebuild(read, StoredCells(out)).audit
    (out / "audit.json").write_text(again.model_dump_json(by_alias=True))


def unfooled(result: Result) -> Result:
    """As if nothing had fooled the model that it classifies right."""
    worst = {name: ~result.arrays["clean_correct"] for name in result.arrays if name.startswith(("worst/", "fooled/"))}
    return Result({**result.arrays, **worst}, result.document, result.files)


def all_right(result: Result) -> Result:
    arrays = dict(result.arrays)
    arrays["evidence/correct"] = np.ones_like(arrays["evidence/correct"])
    arrays["evidence/predicted"] = load_digits(0).non_members.y.numpy()
    return Result(arrays, result.document, result.files)


def changed(change: Callable[[Values, Values], None]) -> Callable[[Result], Result]:
    """Of arrays and document."""

    def forge(result: Result) -> Result:
        arrays, document = (
            {name: array.copy() for name, array in result.arrays.items()},
            json.loads(json.dumps(result.document)),
        )
        change(arrays, document)
        return Result(arrays, document, result.files)

    return forge


def less_sure(out: Path, rebuilt: Rebuilt) -> Callable[[Result], Result]:
    """Margins nearer to 0, and all that follows from them."""
    cells = StoredCells(out)
    one = next(run for run in stored_runs(rebuilt.suite, {}, cells) if run.name == "attack/membership/int8")
    get = getter(rebuilt.suite, cells)
    case = basis_of(rebuilt.suite, one.run, one.model, one.scope, get).prepared()
    assert isinstance(one.attack, Membership)
    assert isinstance(case, MembershipCase)
    known = evidence_of(get(one.name))
    made = one.attack._evidence(known.arrays["phi"] * np.float32(0.9), {}, known.arrays["blind"], case, known.ledger)
    told = {"summary": made.summary, "flags": made.flags}
    return lambda result: Result(dict(made.arrays), {**result.document, **told}, result.files)


@pytest.mark.parametrize("name", ["attack/evasion/crushed", "attack/membership/int8"])
def test_evidence_that_was_changed(forged: Path, made: Rebuilt, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rewritten(forged, made, name, unfooled if "evasion" in name else less_sure(forged, made))
    assert "figures" in caught(forged)
    assert asked(forged, "gate").exit_code == 5
    made_to_fit(forged)
    assert set(caught(forged, deep=True)) == {"asked again"}  # all else fits
    if "evasion" not in name:
        return
    monkeypatch.setattr(checks, "processor", lambda: "another one")  # whose other answers are told and prove nothing
    (check,) = (one for one in verify(forged, forged.parent / "plan.yaml", deep=True) if one.what == "asked again")
    assert check.state == "left"
    assert "do not fool it" in check.words
    assert "this is another one" in check.words


UNFOUNDED: dict[str, tuple[str, Callable[[Result], Result], str]] = {
    "answers": ("candidate/crushed", all_right, "classifies right are others"),
    "scores": (
        "attack/membership/int8",
        changed(lambda a, _: a.update({"score/rmia/own": a["score/rmia/own"][::-1].copy()})),
        "score/rmia/own",
    ),
    "margins": (
        "attack/membership/int8",
        changed(lambda a, _: a.update({"phi": -a["phi"], "score/loss": -a["score/loss"]})),
        "its margins",
    ),
    "flags": ("attack/membership/int8", changed(lambda _, d: d.update(flags={})), "trust flags"),
    "a headline": ("attack/membership/int8", changed(lambda _, d: d["summary"].update(headline="loss")), "summary"),
    "shadow models": ("signals/dense/dense", changed(lambda a, _: a.update(phi=a["phi"][:, ::-1].copy())), "margins"),
    "blind scores": ("blind", changed(lambda a, _: a.update(scores=-a["scores"])), "blind"),
    "flags of evasion": (
        "attack/evasion/dense",
        changed(lambda _, d: d.update(flags={one: ["black-box-wins"] for one in d["summary"]["parts"]})),
        "black-box-wins",
    ),
    "its worst case": (
        "attack/evasion/dense",
        changed(lambda _, d: d["summary"].update(union_flags=["unfinished-optimisation"])),
        "worst case",
    ),
}


@pytest.mark.parametrize("what", UNFOUNDED)
def test_evidence_that_does_not_follow_from_itself(forged: Path, made: Rebuilt, what: str) -> None:
    """No model is asked, and no audit.json could be made to fit."""
    name, change, words = UNFOUNDED[what]
    rewritten(forged, made, name, change)
    with pytest.raises(UnsafeInput, match=r"does not follow from itself|makes no sense") as found:
        rebuild(read_audit(forged), StoredCells(forged))
    assert words in str(found.value)


def test_a_deployed_file_that_was_exchanged(forged: Path, made: Rebuilt) -> None:
    """By the dense model's, with all digests made to fit."""
    other = unpack(read_folder(cell_folder(forged, made.suite.cell("candidate/dense").key)) or {}).files
    rewritten(forged, made, "candidate/crushed", lambda found: Result(found.arrays, found.document, other))
    assert "evidence" in caught(forged)  # its digest and footprint are another file's


@pytest.mark.parametrize("lost", ["missing", "damaged"])
def test_evidence_that_is_gone(forged: Path, made: Rebuilt, lost: str) -> None:
    """Also such as no figure is read from."""
    folder = cell_folder(forged, made.suite.cell("shadows/dense/0").key)
    if lost == "missing":
        shutil.rmtree(folder)
    else:
        (folder / "document.json").unlink()
        (folder / "document.json").write_text("[]")
    assert lost in caught(forged)["evidence"]


# -- the record -------------------------------------------------------------------------------------------------------


def record_changed(out: Path, change: Callable[[Values], None]) -> None:
    """A record forged with its key, and what audit.json says of it."""
    read = read_audit(out)
    assert read.environment.record is not None
    stored = unpack(read_folder(cell_folder(out, read.environment.record.key)) or {})
    values = json.loads(stored.files[FILE])
    change(values)
    record = Record.model_validate(values)
    key = key_of(record)
    ended = Ended.model_validate(unpack(read_folder(cell_folder(out, read.environment.record.ended)) or {}).document)
    with Store(out) as store:
        store.put(key, Result(stored.arrays, files={FILE: record.model_dump_json().encode()}))
        store.put(ended.key_for(key), Result(document=ended.model_dump(mode="json")))
        digest = store.evidence(key)[1]
    told = {"key": key, "digest": digest, "ended": ended.key_for(key), "fixed": record.fixed}
    at = read.environment.record.model_copy(update=told)
    read.environment.record = at
    (out / "audit.json").write_text(read.model_dump_json(by_alias=True))


def both(values: Values, **changed: Any) -> None:
    values["plan"].update(changed)
    values["asked"].update(changed)


def test_a_record_with_another_release(forged: Path) -> None:
    record_changed(forged, lambda values: both(values, release=["int8"]))
    made_to_fit(forged)
    assert read_audit(forged).verdict == "pass"
    assert set(caught(forged)) == {"plan", "settings"}  # the resolved plan lies there too
    assert "evidence unsigned" in asked(forged, "gate").output


def test_a_record_with_other_limits(forged: Path) -> None:
    record_changed(forged, lambda values: values["policy"].update(changes={"accuracy": -0.7}))
    made_to_fit(forged)
    assert read_audit(forged).verdict == "pass"
    assert set(caught(forged)) == {"plan"}


def test_a_record_with_fewer_records_than_were_asked_for(forged: Path) -> None:
    """The plan that was run is to be the one that was asked for; the cells of another are not there anyway."""
    record_changed(forged, lambda values: values["plan"]["attacks"][0].update(records=10))
    made_to_fit(forged)
    assert {"settings", "evidence"} <= set(caught(forged))


SENSELESS: dict[str, Callable[[Values], None]] = {
    "no plan": lambda values: values.update(plan={}),
    "no plan that was asked for": lambda values: values.update(asked={}),
    "more files than its plan": lambda values: values["asked"]["candidates"].update(int4={"file": "x.onnx"}),
    "records without end": lambda values: values["data"].update(shape=[2**40, 2**40]),
    "a group too few": lambda values: values["data"].update(groups=["a"]),
    "no such device": lambda values: values.update(device="nonsense"),
    "no such trainer": lambda values: values["dense"].update(trainer="builtin:{"),
    "another version": lambda values: values["versions"].update(crushproof="0.0.1"),
    "another engine": lambda values: values.update(engine="0"),
}


@pytest.mark.parametrize("what", SENSELESS)
def test_a_record_that_makes_no_sense(forged: Path, what: str) -> None:
    record_changed(forged, SENSELESS[what])
    assert "evidence" in caught(forged)
    assert asked(forged, "gate").exit_code == 1  # it fails by its own figures


def test_a_plan_that_was_fixed_once_the_results_were_known(forged: Path) -> None:
    """The policy of a failed audit is loosened, and the audit run again: nothing is computed, and that is told."""
    (forged.parent / "limits.yaml").write_text("name: looser\nchanges: {accuracy: -0.7, robust_accuracy: -0.6}\n")
    run_audit(load_plan(forged.parent / "plan.yaml"), forged.parent, forged, workers=0)
    said = CliRunner().invoke(cli.app, ["verify", str(forged)])
    assert said.exit_code == 0, said.output
    assert "results of attacks were there from an earlier plan or policy" in said.output


def test_a_strangers_code_runs_only_if_its_plan_is_named(forged: Path) -> None:
    (check,) = (one for one in verify(forged, deep=True) if one.what == "asked again")
    assert check.state == "left"
    assert "--plan" in check.words


def test_an_untouched_one_verifies(forged: Path) -> None:
    assert not caught(forged, deep=True)
    said = CliRunner().invoke(cli.app, ["verify", str(forged)])
    assert said.exit_code == 0, said.output
    assert "VERIFIED" in said.output
