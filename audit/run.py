"""An audit from start to end: cells run or are taken from the store, findings are judged, the report is written."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ..attacks.evasion.evasion import Evasion
from ..attacks.membership.membership import Membership
from ..compression.footprint import Timed
from ..targets.errors import Incomplete, InputError
from .assembly import findings_of, unread
from .candidates import candidate_row
from .cells import Result
from .driver import executor_for, run
from .environment import host, latencies
from .evasion_cells import replay_cell, room_cell
from .findings import SCHEMA, Audit, Candidate, DataSummary, Environment, Finding, NotMeasured
from .judging import apply_policy
from .lineup import PLAIN, Contender
from .plan import Plan
from .policy import load_policy
from .power import limits_of, power_of
from .progress import Progress
from .reader import Reader
from .schedule import Outcome
from .sections import LocalEngine
from .store import Store
from .subject import Subject, resolve
from .suite import Suite, spawn_argument
from .writing import write

UNMADE = "the candidate itself"


def run_audit(
    plan: Plan,
    folder: Path,
    out: Path,
    *,
    workers: int | None = None,
    only: str | None = None,
    progress: Progress | None = None,
    subject: Subject | None = None,
    command: str = "crushproof audit",
) -> Audit:
    """Runs (or resumes) the audit of `plan` and writes audit.json and report.html into `out`.

    Args:
        folder: where the plan lies; its paths and modules are looked up there.
        workers: processes of this machine, in place of the plan's engine; 0 works in this one.
        only: a finding's id; just the cells it needs are run, and nothing is written but cells.
        subject: given when model and data come from Python instead of the plan's names; then `workers` is 0.
        command: how this audit was started, for the findings' `reproduce` line.

    Raises:
        InputError, UnsafeInput: the plan or what it names is refused.
        Incomplete: another run holds `out`, or cells failed; what is computed is kept.
    """
    started = time.monotonic()
    spawn = None if subject is not None else ("crushproof.audit.suite:suite_of", spawn_argument(plan, folder))
    suite = Suite(plan, subject or resolve(plan, folder))
    policy = load_policy(plan.policy, folder)
    cells = suite.cells() if only is None else suite.closure(cells_of(suite, only))
    if only is None:
        check_folder(out, plan)
    with Store(out) as store:
        engine = plan.engine if workers is None else LocalEngine(workers=workers)
        executor = executor_for(engine, store, spawn, device=suite.device.type)
        outcome = run(suite, store, executor, cells=cells, progress=progress)
        audit = assemble(suite, store, outcome, policy, command, only)
        audit.environment = environment_of(suite, store, outcome, started)
        if only is None:
            from .report import render

            write(out / "audit.json", audit.model_dump_json(by_alias=True, indent=1))
            render(audit, out / "report.html")
    if outcome.failed:
        names = "; ".join(f"{name}: {why}" for name, why in sorted(outcome.failed.items()))
        raise Incomplete(
            f"{len(outcome.failed)} of {len(cells)} cells failed: {names}. Everything else is kept in {out} and in the "
            "report; mend the cause and run the same command again to compute what is missing."
        )
    return audit


def check_folder(out: Path, plan: Plan) -> None:
    """Refuses to overwrite the audit of another plan, or a file that is none of ours."""
    path = out / "audit.json"
    if not path.is_file():
        return
    try:
        known = json.loads(path.read_bytes())
        name = known["name"] if known["schema"] == SCHEMA else None
    except (ValueError, KeyError, TypeError, RecursionError):
        name = None
    if name != plan.name:
        whose = "is no audit of ours" if name is None else f"is the audit {name!r}"
        raise InputError(
            f"{path} {whose}, and this plan is {plan.name!r}: it would be lost. Choose another folder with --out."
        )


def cells_of(suite: Suite, finding: str) -> list[str]:
    """Names of the attack cells a finding rests on: the candidate's own and its baselines'."""
    known = []
    for contender in suite.lineup.contenders:
        for attack, label in suite.attacks:
            own = [f"{contender.name}/{label}"]
            own += [f"{own[0]}/auc"] if isinstance(attack, Membership) else []
            own += [f"{own[0]}/without-draw"] if isinstance(attack, Evasion) and contender.draws else []
            known += own
            if finding in own:
                names = [suite.attack_cell(label, contender.name, detail) for detail in ("", "without-draw")]
                names += [suite.lineage_cell(contender)]
                for name in contender.baselines:
                    shadows = suite.shadow_counts(contender)
                    names += [
                        suite.attack_cell(label, name),
                        *(suite.membership_cell(label, name, count) for count in shadows),
                    ]
                    names += [replay_cell(label, contender.name, name), room_cell(label, name)]
                names += [replay_cell(label, other, contender.name) for other in suite.compared_with(contender)]
                names += [suite.candidate_cell(contender)]
                return [name for name in names if suite.has(name)]
    raise InputError(f"There is no finding {finding!r} in this plan. Known: {', '.join(known)}.")


def assemble(suite: Suite, store: Store, outcome: Outcome, policy: Any, command: str, only: str | None = None) -> Audit:
    """The audit from what is in the store; what is missing becomes rows that say so."""
    reader = reader_of(suite, store, outcome, command)
    rows: list[Candidate] = []
    findings: list[Finding] = []
    missing: list[NotMeasured] = []
    for contender in suite.lineup.contenders:
        if only is not None and contender.name != only.partition("/")[0]:
            continue
        row = candidate_row(reader, contender)
        if row is None:
            why = reader.why(suite.candidate_cell(contender))
            missing.append(NotMeasured(candidate=contender.name, what=UNMADE, reason=why))
            continue
        found = [one for one in findings_of(reader, contender) if only is None or one.id == only]
        if only is not None and not found:
            missing.append(NotMeasured(candidate=contender.name, what=only, reason="its attack gave no such finding"))
        rows.append(row)
        findings += found
        missing += not_measured(contender, found)
        missing += missing_draws(reader, contender)
        missing += missing_runtimes(reader, contender)
    missing += [
        NotMeasured(candidate=None, what=label, reason="this version has no findings for the evidence of this attack")
        for label in unread(suite)
    ]
    made = {row.name for row in rows}
    release = [name for name in suite.plan.up_for_release if only is None or name in made]
    unmade = [f"{row.candidate}: {row.reason}" for row in missing if row.what == UNMADE and row.candidate in release]
    judged = apply_policy(rows, findings, policy, release)
    data = suite.subject.data
    return Audit(
        schema_=SCHEMA,
        name=suite.plan.name,
        verdict=judged.verdict,
        deciding=[*judged.deciding, *unmade],
        plan=suite.plan.model_dump(mode="json", exclude={"engine"}),
        plan_digest=suite.plan.digest,
        seed=suite.plan.seed,
        data=DataSummary(
            name=data.name,
            digest=data.digest,
            shape=list(data.shape),
            classes=list(data.class_names),
            members=None if data.members is None else len(data.members),
            non_members=len(data.non_members),
            evaluation=len(data.evaluation_ids),
            attacker=len(data.non_members) - len(data.evaluation_ids),
        ),
        candidates=judged.candidates,
        findings=judged.findings,
        policy=judged.gates,
        policy_name=policy.name,
        release=release,
        not_measured=missing,
        power=power_of(suite),
        limits=[*data.notes, *model_notes(reader), *limits_of(suite)],
        declared=dict(suite.plan.declared),
        environment=Environment(),
    )


def not_measured(contender: Contender, findings: list[Finding]) -> list[NotMeasured]:
    """A row for each finding that has no estimate and each part of an attack that did not run."""
    rows = []
    for finding in findings:
        if finding.estimate is None:
            rows.append(NotMeasured(candidate=contender.name, what=finding.id, reason=finding.reason or "unknown"))
        for part in finding.parts:
            if part.skipped:
                what = f"{finding.id}: {part.name}"
                rows.append(NotMeasured(candidate=contender.name, what=what, reason=part.skipped))
    return rows


def model_notes(reader: Reader) -> list[str]:
    """What the check of the dense model noticed and did not refuse."""
    trained = reader.get(f"train/{PLAIN}")
    return [] if trained is None else list(trained.document["notes"])


def missing_draws(reader: Reader, contender: Contender) -> list[NotMeasured]:
    """A row for each draw of a random recipe that could not be made."""
    cells = [reader.suite.candidate_cell(contender, draw) for draw in range(1, len(contender.draws) + 1)]
    return [
        NotMeasured(candidate=contender.name, what=cell, reason=reader.why(cell))
        for cell in cells
        if reader.get(cell) is None
    ]


def missing_runtimes(reader: Reader, contender: Contender) -> list[NotMeasured]:
    """A row for each runtime of the plan in which the file could not be run."""
    cells = {runtime: reader.suite.runtime_cell(contender, runtime) for runtime in reader.suite.plan.runtimes}
    return [
        NotMeasured(candidate=contender.name, what=f"in {runtime}", reason=reader.why(cell))
        for runtime, cell in cells.items()
        if reader.get(cell) is None
    ]


def reader_of(suite: Suite, store: Store, outcome: Outcome, command: str) -> Reader:
    def get(name: str) -> Result | None:
        if not suite.has(name) or not store.has(suite.cell(name).key):
            return None
        result = store.get(suite.cell(name).key)
        return None if "not_applicable" in result.document else result

    def why(name: str) -> str:
        if name in outcome.failed:
            return f"failed: {outcome.failed[name]}"
        if name in outcome.unavailable:
            return outcome.unavailable[name]
        if suite.has(name) and store.has(suite.cell(name).key):
            return str(store.get(suite.cell(name).key).document.get("not_applicable", "unknown"))
        return "something it needs failed"

    def evidence(name: str) -> tuple[str, str]:
        return store.evidence(suite.cell(name).key)

    return Reader(suite, get, why, evidence, command)


def environment_of(suite: Suite, store: Store, outcome: Outcome, started: float) -> Environment:
    environment = host(str(suite.device))
    models: dict[str, Timed] = {}
    memory = {}
    for contender in suite.lineup.contenders:
        candidate = suite.cell(suite.candidate_cell(contender)).key
        if store.has(candidate) and store.get(candidate).files:
            files = store.get(candidate).files
            models[contender.name] = files["model.onnx"] if contender.file is None else contender.file.deployed
        served = suite.cell(f"memory/{contender.name}").key
        if store.has(served) and "peak_bytes" in store.get(served).document:
            memory[contender.name] = store.get(served).document["peak_bytes"]
    environment.latency = latencies(models, suite.subject.data.shape)
    environment.candidate_peak_bytes = memory
    environment.candidate_seconds = {
        contender.name: sum(store.seconds([suite.cell(suite.candidate_cell(contender)).key]).values())
        for contender in suite.lineup.contenders
    }
    environment.seconds = dict(outcome.seconds)
    environment.peak_bytes = outcome.peak_bytes
    environment.wall_seconds = time.monotonic() - started
    return environment
