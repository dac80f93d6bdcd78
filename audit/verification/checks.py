"""All that `crushproof verify` looks at, in order, and what each says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...targets.data.outline import outline
from ...targets.errors import CrushproofError, InputError, UnsafeInput
from ...targets.model import resolve_device
from ...targets.untrusted.files import ordinary_file
from ...targets.untrusted.model_file import FILE_BYTES
from ...targets.untrusted.other_formats import unpacked
from ..plan.builtin import builtin_plan
from ..plan.plan import Plan, check_techniques, load_plan
from ..plan.sections import MemoryData
from ..plan.yaml_text import SIZE_CAP, read_text
from ..resolved import FILE as RESOLVED
from ..resolved import departures, resolved_text
from ..schema import wording
from ..schema.read import folder_of, read_audit
from ..schema.rows import Audit
from ..subject.finished_file import paths_of
from ..subject.records import load_data
from ..subject.resolve import student_factories
from ..suite.environment import processor
from ..suite.suite import Suite
from ..verdict.judging import check_verdicts
from ..verdict.policy import load_policy
from .deep import asked_again, loaded, others
from .differences import differences
from .rebuild import NoEvidenceError, Rebuilt, damage, not_computed, rebuild
from .stored import StoredCells


@dataclass(frozen=True)
class Check:
    """Args:
    state: "left": it could not be looked at, which is no contradiction.
    """

    what: str
    state: Literal["ok", "bad", "left"]
    words: str


def verify(folder: Path, plan_file: Path | None = None, *, deep: bool = False) -> list[Check]:
    """Holds an audit.json against its evidence, and both against plan and files.

    Args:
        folder: an audit's output folder.
        plan_file: the plan it was made from; default: where it lay then.
        deep: load model and data too, and ask the deployed files again. This runs the plan's code.

    Raises:
        InputError: there is no audit.json; the plan cannot be read.
        UnsafeInput: audit.json is none.
    """
    read = read_audit(folder)
    folder = folder_of(folder)
    cells = StoredCells(folder)
    home = None if plan_file is None else plan_file.parent
    try:
        check_verdicts(read, folder)
        rebuilt = rebuild(read, cells)
    except (NoEvidenceError, UnsafeInput) as error:
        return [Check("evidence", "bad", str(error))]
    found = [
        _check("figures", differences(read, rebuilt.audit), f"{_counted(read)} made again from the evidence: the same"),
        _check("evidence", damage(rebuilt, cells), "nothing missing, nothing damaged"),
        *_without_result(rebuilt),
        _check("settings", [*_settings(rebuilt, cells), *_resolved(rebuilt, folder)], _fixed(rebuilt)),
        _check("candidates", _digests(rebuilt, cells), "the digests are those of the stored files"),
    ]
    asked = Plan.model_validate(rebuilt.record.asked)
    home = home or _home(rebuilt, folder)
    found.append(_plan(rebuilt, plan_file, folder, asked))
    found += _files(rebuilt, asked, home)
    if deep and any(check.state == "bad" for check in found):
        found.append(Check("asked again", "left", "nothing was, because the rest does not hold"))
    elif deep:
        found.append(_deep(rebuilt, asked, plan_file, cells))
    return found


def _without_result(rebuilt: Rebuilt) -> list[Check]:
    names = not_computed(rebuilt)
    told = f"{wording.plural(len(names), 'result')} could not be computed ({', '.join(names[:3])}); why is not evidence"
    return [Check("not computed", "left", told)] if names else []


def _fixed(rebuilt: Rebuilt) -> str:
    """What is said of settings that hold."""
    record, when = rebuilt.record, "before the first attack"
    if record.known:
        when = f"when {record.known} results of attacks were there from an earlier plan or policy"
    return f"the plan's, with what its own probes decided; plan and policy were fixed {record.fixed}, {when}"


def _resolved(rebuilt: Rebuilt, folder: Path) -> list[str]:
    """The resolved plan that lies beside audit.json, which is signed with it."""
    path = folder / RESOLVED
    if not path.is_file():
        return []
    with suppress(InputError):  # it is no text, or too much
        if read_text(path, "resolved plan", SIZE_CAP) == resolved_text(rebuilt.suite.plan):
            return []
    return [f"{RESOLVED} is not the plan that was run"]


def _counted(read: Audit) -> str:
    return f"{len(read.findings)} findings on {len(read.candidates)} models and the verdict"


def _check(what: str, wrong: Iterable[str], well: str) -> Check:
    wrong = list(wrong)
    return Check(what, "bad", "; ".join(wrong)) if wrong else Check(what, "ok", well)


def _settings(rebuilt: Rebuilt, cells: StoredCells) -> list[str]:
    """In what the plan that was run is not the one that was asked for."""
    suite = rebuilt.suite
    asked = Suite(Plan.model_validate(rebuilt.record.asked), suite.subject, setup=suite.setup)
    return [f"{one} is not what the plan asks for" for one in departures(asked, suite.plan, cells)]


def _digests(rebuilt: Rebuilt, cells: StoredCells) -> list[str]:
    wrong = []
    for row in rebuilt.audit.candidates:
        model = rebuilt.suite.models[row.name]
        stored = cells.get(rebuilt.suite.cell(rebuilt.suite.model_cell(row.name)).key)
        if model.file is not None:  # whose bytes are not at hand where all is made from a record
            own = model.file.digest
        else:
            own = hashlib.sha256(stored.files[f"model.{model.kind}"]).hexdigest()
        if row.digest != own:
            wrong.append(f"{row.name} is another file than its digest says")
    return wrong


def _home(rebuilt: Rebuilt, folder: Path) -> Path | None:
    home = rebuilt.record.home
    return None if home is None else Path(os.path.normpath(folder / home))


def _plan(rebuilt: Rebuilt, plan_file: Path | None, folder: Path, asked: Plan) -> Check:
    """The plan on the disk beside the one that was audited, and its policy."""
    source = rebuilt.record.source
    path = plan_file if plan_file is not None or source is None else Path(os.path.normpath(folder / source))
    if path is None and asked.digest == builtin_plan().digest:
        return Check("plan", "ok", "the built-in one")
    if path is None:
        return Check("plan", "left", "it was a call from Python or of the command line, and is in no file")
    if plan_file is not None:
        ordinary_file(plan_file, "the plan", SIZE_CAP)  # what is not there contradicts nothing
    elif not path.is_file():
        return Check("plan", "left", "its file is not where it was: name it with --plan")
    try:
        plan = load_plan(path)
        check_techniques(plan)
        policy = None if plan.policy is None else load_policy(plan.policy, path.parent, rebuilt.audit.metrics)
    except CrushproofError as error:
        return Check("plan", "bad", str(error))
    if plan.digest != asked.digest:
        return Check("plan", "bad", f"{path} is another plan than the one that was audited")
    judged_by = rebuilt.record.policy
    if policy is not None and (policy.changes, policy.absolutes) != (judged_by.changes, judged_by.absolutes):
        return Check("plan", "bad", f"the limits of its policy {policy.name} are others than the audit was judged by")
    return Check("plan", "ok", f"{path} asks for what was audited, and for the policy it was judged by")


def _files(rebuilt: Rebuilt, asked: Plan, home: Path | None) -> list[Check]:
    """Data and finished files on the disk beside what was audited."""
    paths = paths_of(asked)
    if isinstance(asked.data, MemoryData):
        return [Check("data", "left", "they were given in memory")]
    if asked.data.kind != "digits" and home is None:
        return [Check("data", "left", "where they lie is not known: name the plan with --plan")]
    home = home or Path()
    found = [_left("data", _data, asked, home, rebuilt)]
    for name, path in paths.items():
        found.append(_left(name, _file, home / path, rebuilt.record.files[name].reading.digest))
    return found


def _left(what: str, look: Callable[..., bool], *arguments: Any) -> Check:
    """What `look` says; where it cannot, that is no contradiction."""
    try:
        same = look(*arguments)
    except CrushproofError as error:
        return Check(what, "left", f"not compared: {error}")
    return Check(what, "ok", "what was audited") if same else Check(what, "bad", "another than was audited")


def _data(asked: Plan, home: Path, rebuilt: Rebuilt) -> bool:
    told, arrays = outline(load_data(asked, home))
    known = rebuilt.record_arrays
    same = arrays.keys() == known.keys() and all(np.array_equal(arrays[name], known[name]) for name in arrays)
    return told == rebuilt.record.data and same


def _file(path: Path, digest: str) -> bool:
    stored = ordinary_file(path, "the model", FILE_BYTES).read_bytes()
    return hashlib.sha256(unpacked(stored, path.name, FILE_BYTES)).hexdigest() == digest


def _deep(rebuilt: Rebuilt, asked: Plan, plan_file: Path | None, cells: StoredCells) -> Check:
    if isinstance(asked.data, MemoryData):
        return Check("asked again", "left", "model and data were given in memory")
    home = None if plan_file is None else plan_file.parent
    if home is None and paths_of(asked) and not _code_in(asked):
        home = _home(rebuilt, cells.folder)  # files alone, which run nothing of a stranger's
    if home is None and asked.digest != builtin_plan().digest:
        return Check("asked again", "left", "name the plan, whose code will run, with --plan")
    try:
        resolve_device(rebuilt.record.device)
    except InputError as error:
        return Check("asked again", "left", f"not on this machine: {error}")
    record = rebuilt.record
    try:
        subject = loaded(record, asked, home or Path())
        if wrong := others(record, subject):
            return _check("asked again", wrong, "")
        wrong = asked_again(rebuilt, subject, cells)
    except CrushproofError as error:
        return Check("asked again", "bad", str(error))
    here, there = processor(), record.machine.processor
    if wrong and here != there:  # which may round other near ties to the other side
        why = f"the audit ran on {there}, and this is {here}, which may decide near ties otherwise: ask on one like it"
        return Check("asked again", "left", "; ".join([*wrong, why]))
    return _check("asked again", wrong, "model, data and files are those audited, and answer as the evidence has it")


def _code_in(plan: Plan) -> bool:
    """Whether a plan names functions of its own."""
    return (plan.model is not None and plan.model.file is None) or bool(student_factories(plan))
