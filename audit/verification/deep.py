"""The deployed files are asked again about what the evidence says they answered. This imports the plan's own code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...attacks.case import Evidence
from ...targets.errors import CrushproofError, NotApplicable, user_error
from ...targets.serving.json_text import canonical_json
from ..plan.plan import Plan
from ..subject.audited import AuditedModel
from ..subject.finished_file import reading_of
from ..subject.resolve import Subject, resolve
from ..suite.attack_cells import Get, case_of
from ..suite.model_cells import task_evidence
from ..suite.suite import Reached, Suite
from .following import StoredRun, getter, made, stored_runs
from .rebuild import Rebuilt
from .record import Record, dense_of
from .stored import StoredCells

CLOSE = 1e-3  # of errors, absolute and relative: another processor adds up in another order


def loaded(record: Record, plan: Plan, folder: Path) -> Subject:
    """The plan's own model, data and files.

    Args:
        plan: as it was given; folder: where its paths and modules are looked up.

    Raises:
        CrushproofError: they cannot be loaded.
    """
    return resolve(plan, folder, lambda question: _readings(record))


def asked_again(rebuilt: Rebuilt, subject: Subject, cells: StoredCells) -> list[str]:
    """In what the answers differ from the evidence, a phrase each.

    Raises:
        CrushproofError: a model cannot be opened.
    """
    wrong: list[str] = []
    suite = Suite(rebuilt.suite.plan, subject, setup=rebuilt.suite.setup)
    for model in suite.models.values():
        if made(suite, cells, suite.model_cell(model.name)):
            wrong += [f"{model.name}: {one}" for one in _of_model(suite, model, cells)]
            wrong += _lineage(suite, model, cells)
    get = getter(suite, cells)
    for one in stored_runs(suite, rebuilt.reached, cells):
        wrong += one.held(get, partial(_of_run, suite, one, get))
    return wrong or _declined(suite, rebuilt.reached, cells)


def _readings(record: Record) -> Mapping[str, Any]:
    return {name: one.reading.model_dump(mode="json") for name, one in record.files.items()}


def others(record: Record, subject: Subject) -> list[str]:
    """In what the plan's own model, data and files are others than the record has, a phrase each."""
    wrong = []
    if subject.data.digest != record.data.digest:
        wrong.append("the data are others than those that were audited")
    if (subject.identity, dense_of(subject), subject.notes) != (record.identity, record.dense, record.notes):
        wrong.append("the model, its weights, its training or the code of one of them are others than were audited")
    wrong += [
        f"the file of {name} is another, or is read otherwise, than the one that was audited"
        for name, file in subject.files.items()
        if name not in record.files or reading_of(file) != record.files[name].reading
    ]
    return wrong


def _of_model(suite: Suite, model: AuditedModel, cells: StoredCells) -> list[str]:
    stored = getter(suite, cells)(suite.model_cell(model.name))
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


def _declined(suite: Suite, reached: Reached, cells: StoredCells) -> list[str]:
    """The work that has a reason for giving nothing, and gives something, or another error, when it is done."""
    wrong = []
    for cell in suite.cells_until(reached):
        if cells.has(cell.key) and not made(suite, cells, cell.name):
            try:
                suite.compute(cell, cells)
                found = "and it does"
            except NotApplicable:
                continue
            except CrushproofError:
                raise
            except Exception as error:  # stored results may hold anything
                found = f"and done again it fails ({user_error(error)[:200]})"
            wrong.append(f"{cell.name}: it says that it does not apply, {found}")
    return wrong


def _of_run(suite: Suite, one: StoredRun, get: Get, evidence: Evidence) -> list[str]:
    return one.attack.asked_again(evidence, case_of(suite, one.run, one.model, one.scope, get))


def _lineage(suite: Suite, model: AuditedModel, cells: StoredCells) -> list[str]:
    """Where a file comes from is found out anew: it takes a second."""
    name = suite.lineage_cell(model.name)
    if not suite.has(name) or not cells.has(suite.cell(name).key):
        return []
    again = suite.compute(suite.cell(name), cells).document
    same = canonical_json(again) == canonical_json(cells.get(suite.cell(name).key).document)
    return [] if same else [f"{model.name}: compared with its dense model again, its lineage is another"]
