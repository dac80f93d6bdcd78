"""An audit from start to end: cells run or are taken from the store, findings are judged, the report is written."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from ..targets.errors import Incomplete, InputError
from ..targets.recent import give_back
from ..targets.technique import plug_ins
from ..targets.untrusted.files import ordinary_file
from .engine.cells import Result, cell_key
from .engine.driver import Held, executor_for, workers_of
from .engine.progress import Progress, Silent
from .engine.schedule import Outcome
from .engine.store import Store
from .findings.assemble import known_metrics
from .findings.finding_rows import cells_of
from .plan.plan import Plan
from .plan.sections import LocalEngine
from .resolved import FILE, resolve_plan
from .rounds import run_rounds
from .schema.read import SIZE_CAP
from .schema.rows import SCHEMA, Audit, Environment
from .subject.finished_file import READINGS
from .subject.resolve import Subject, resolve
from .suite.environment import today, versions
from .suite.suite import Suite, readings_of, spawn_argument
from .verdict.fitting import policy_for
from .verdict.policy import load_policy
from .verification.rebuild import Ended
from .verification.record import fixed_in, form_of_record, record_of, recorded_at
from .writing import check_ours, write_together, writing


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
    progress = progress or Silent()
    in_memory = subject is not None
    if isinstance(plan.policy, str):
        load_policy(plan.policy, folder, None)  # before data and model, which take longer
    subject = subject or resolve(plan, folder, lambda question: recalled(out, question))
    suite = Suite(plan, subject)
    planned = [(attack, suite.scope(label)) for attack, label in suite.lineup.attacks]
    policy, notes = policy_for(plan.policy, folder, known_metrics(suite.lineup.attacks), planned)
    for note in (*(one.wrong for one in plug_ins() if one.wrong), *notes):
        progress.note(note)
    if only is not None:
        cells_of(suite, only, {})  # that there is such a finding
    if only is None:
        check_folder(out, plan)
    with Store(out) as store:
        if subject.files:
            store.expect({readings_key(subject.question): READINGS})
            store.put(readings_key(subject.question), Result(document=readings_of(subject)))
        engine = plan.engine if workers is None else LocalEngine(workers=workers)
        slots = 1 if in_memory else workers_of(engine)
        suite = resolve_plan(suite, store, workers=slots, started=started, progress=progress)
        spawn = None
        if not in_memory:
            spawn = ("crushproof.audit.suite.suite:suite_of", spawn_argument(suite.plan, folder, subject))
        home = None if in_memory else os.path.relpath(folder, out)
        source = None if plan.file is None else os.path.relpath(folder / plan.file, out)
        key, record = record_of(suite, plan, policy, command, home, source, fixed_in(store, suite, plan, policy))
        store.expect({key: form_of_record(key, record)})
        store.put(key, record)
        give_back()  # before other processes need it
        executor = executor_for(engine, store, spawn, device=suite.device.type)
        with contextlib.closing(Held(executor)) if executor is not None else contextlib.nullcontext() as held:
            audit, outcome, pictures = run_rounds(suite, store, held, policy, command, only, progress)
        audit.environment = environment_of(suite, store, outcome, started, audit.environment)
        ended = Ended.of(audit.environment, outcome)
        audit.environment.record = recorded_at(key, ended.key_for(key), store)
        if only is None:
            store.put(ended.key_for(key), Result(document=ended.model_dump(mode="json")))
            from .report.html import to_html

            texts = {
                "audit.json": audit.model_dump_json(by_alias=True, indent=1),
                "report.html": to_html(audit, pictures=pictures),
            }
            with writing(out):
                write_together({out / name: text for name, text in texts.items()}, store.half)
            if not outcome.failed and not outcome.unavailable:
                store.drop_parts()
    if outcome.failed:
        names = "; ".join(f"{name}: {why}" for name, why in sorted(outcome.failed.items()))
        raise Incomplete(
            f"{len(outcome.failed)} cells failed: {names}. Everything else is kept in {out} and in the "
            f"report, and the tracebacks in {store.private / 'failures'}; mend the cause and run the same command "
            "again to compute what is missing."
        )
    return audit


def readings_key(question: Any) -> str:
    """Under which the store keeps what finished files were found to mean."""
    return cell_key("readings", versions(), question)


def recalled(out: Path, question: Any) -> dict[str, Any] | None:
    """What an earlier run into this folder found finished files to mean."""
    if not (out / "evidence").is_dir():
        return None
    store, key = Store(out), readings_key(question)
    store.expect({key: READINGS})
    return store.get(key).document if store.has(key) else None


def check_folder(out: Path, plan: Plan) -> None:
    """Refuses to overwrite the audit of another plan, or a file that is none of ours."""
    for own in (out / "report.html", out / FILE):
        check_ours(own)
    path, name = out / "audit.json", None
    if not os.path.lexists(path):
        return
    try:
        known = json.loads(ordinary_file(path, "the audit", SIZE_CAP).read_bytes())
        name = known["name"] if known["schema"] == SCHEMA else None
    except (InputError, OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    if name != plan.name:
        whose = "is no audit of ours" if name is None else f"is the audit {name!r}"
        raise InputError(
            f"{path} {whose}, and this plan is {plan.name!r}: it would be lost. Choose another folder with --out."
        )


def environment_of(suite: Suite, store: Store, outcome: Outcome, started: float, measured: Environment) -> Environment:
    """What was `measured` of machine and models, with the date and what this run took."""
    making = {}
    for name, model in suite.models.items():
        trained = [] if model.parent is None else [suite.training_cell(model.parent.name)]
        cells = [one for one in (*trained, suite.model_cell(name)) if suite.has(one)]
        making[name] = store.seconds([suite.cell(one).key for one in cells])
    return measured.model_copy(
        update={
            "date": today(),
            "candidate_seconds": {name: sum(seconds.values()) for name, seconds in making.items()},
            "seconds": dict(outcome.seconds),
            "peak_bytes": outcome.peak_bytes,
            "wall_seconds": time.monotonic() - started,
        }
    )
