"""The deployed files are asked again about what the evidence says they answered. This imports the plan's own code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...attacks.attack import Attack
from ...targets.errors import CrushproofError, NotApplicable, user_error
from ..engine.cells import Result, canonical_json
from ..plan.plan import Plan
from ..subject.audited import AuditedModel
from ..subject.finished_file import reading_of
from ..subject.resolve import Subject, resolve
from ..suite.attack_cells import adapted, attack_cell, case_of, evidence_of
from ..suite.model_cells import task_evidence
from ..suite.suite import Suite
from .rebuild import Rebuilt
from .record import Record
from .stored import StoredCells

CLOSE = 1e-3  # of errors, absolute and relative: another processor adds up in another order


def asked_again(rebuilt: Rebuilt, plan: Plan, folder: Path, cells: StoredCells) -> list[str]:
    """In what the plan's own model, data and files differ from the record and from the evidence, a phrase each.

    Args:
        plan: as it was given; folder: where its paths and modules are looked up.

    Raises:
        CrushproofError: they cannot be loaded.
    """
    record = rebuilt.record
    subject = resolve(plan, folder, lambda question: _readings(record))
    wrong = _others(record, subject)
    if wrong:
        return wrong
    suite = Suite(rebuilt.suite.plan, subject, setup=rebuilt.suite.setup)
    for model in suite.models.values():
        key = suite.cell(suite.model_cell(model.name)).key
        if cells.has(key) and "not_applicable" not in cells.get(key).document:
            wrong += [f"{model.name}: {one}" for one in _of_model(suite, model, cells)]
            wrong += _lineage(suite, model, cells)
            for attack, label in suite.lineup.attacks:
                position = rebuilt.reached.get((label, model.name), 0)
                own = suite.round_label(label, position)
                if suite.task in attack.tasks:
                    wrong += _of_attack(suite, suite.rounds[label][position].attack, own, model, cells)
    return wrong


def _readings(record: Record) -> Mapping[str, Any]:
    return {name: one.reading.model_dump(mode="json") for name, one in record.files.items()}


def _others(record: Record, subject: Subject) -> list[str]:
    wrong = []
    if subject.data.digest != record.data.digest:
        wrong.append("the data are others than those that were audited")
    if subject.identity != record.identity:
        wrong.append("the model, its weights, its training or the code of one of them are others than were audited")
    wrong += [
        f"the file of {name} is another, or is read otherwise, than the one that was audited"
        for name, file in subject.files.items()
        if name not in record.files or reading_of(file) != record.files[name].reading
    ]
    return wrong


def _of_model(suite: Suite, model: AuditedModel, cells: StoredCells) -> list[str]:
    stored = _get(suite, cells)(suite.model_cell(model.name))
    opened = model.opened(stored, suite.subject.data)
    answers = opened.target.logits(suite.subject.data.non_members.x)
    for name, again in task_evidence(answers, suite.subject.data).items():
        known = stored.arrays.get(name)
        if known is None or known.shape != again.shape:
            return [f"{name} is missing"]
        off = int((~np.isclose(known, again, rtol=CLOSE, atol=CLOSE)).sum())
        if off:
            return [f"asked again, it answers {off} of {len(again)} records otherwise"]
    return []


def _lineage(suite: Suite, model: AuditedModel, cells: StoredCells) -> list[str]:
    """Where a file comes from is found out anew: it takes a second."""
    name = suite.lineage_cell(model.name)
    if not suite.has(name) or not cells.has(suite.cell(name).key):
        return []
    again = suite.compute(suite.cell(name), cells).document
    same = canonical_json(again) == canonical_json(cells.get(suite.cell(name).key).document)
    return [] if same else [f"{model.name}: compared with its dense model again, its lineage is another"]


def _of_attack(suite: Suite, attack: Attack, label: str, model: AuditedModel, cells: StoredCells) -> list[str]:
    scope, get = suite.scope(label), _get(suite, cells)
    wrong = []
    for run in adapted(attack, model).runs(model, scope):
        target = suite.models[run.model or model.name]
        name = attack_cell(label, target.name, run.detail)
        if not cells.has(suite.cell(name).key) or "not_applicable" in cells.get(suite.cell(name).key).document:
            continue
        try:
            found = (run.attack or attack).asked_again(evidence_of(get(name)), case_of(suite, run, target, scope, get))
        except NotApplicable as error:
            found = [str(error)]
        except CrushproofError:
            raise
        except Exception as error:  # stored results may hold anything
            found = [f"the evidence makes no sense ({user_error(error)[:200]})"]
        wrong += [f"{name}: {one}" for one in found]
    return wrong


def _get(suite: Suite, cells: StoredCells) -> Any:
    def get(name: str) -> Result:
        result = cells.get(suite.cell(name).key)
        if "not_applicable" in result.document:
            raise NotApplicable(str(result.document["not_applicable"]))
        return result

    return get
