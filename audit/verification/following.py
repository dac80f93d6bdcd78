"""Whether stored evidence follows from itself: scores from margins, flags from outcomes, one model's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from ...attacks.attack import Attack, Run
from ...attacks.case import Evidence
from ...attacks.preparation import Scope
from ...targets.errors import CrushproofError, NotApplicable, user_error
from ..engine.cells import Result
from ..subject.audited import AuditedModel
from ..suite.attack_cells import Get, adapted, attack_cell, basis_of, evidence_of
from ..suite.suite import Reached, Suite
from .stored import StoredCells


@dataclass(frozen=True)
class StoredRun:
    """Args:
    name: of its cell; model: that was attacked.
    """

    name: str
    attack: Attack
    run: Run
    model: AuditedModel
    scope: Scope

    def held(self, get: Get, look: Callable[[Evidence], list[str]]) -> list[str]:
        """What `look` finds wrong with its evidence, each with its name."""
        try:
            found = look(evidence_of(get(self.name)))
        except NotApplicable as error:
            found = [str(error)]
        except CrushproofError:
            raise
        except Exception as error:  # stored results may hold anything
            found = [f"the evidence makes no sense ({user_error(error)[:200]})"]
        return [f"{self.name}: {one}" for one in found]


def getter(suite: Suite, cells: StoredCells) -> Get:
    """Gives stored results by the names of their cells; NotApplicable for what says why there is none."""

    def get(name: str) -> Result:
        result = cells.get(suite.cell(name).key)
        if "not_applicable" in result.document:
            raise NotApplicable(str(result.document["not_applicable"]))
        return result

    return get


def made(suite: Suite, cells: StoredCells, name: str) -> bool:
    """Whether a cell has a result that is one."""
    key = suite.cell(name).key
    return cells.has(key) and "not_applicable" not in cells.get(key).document


def stored_runs(suite: Suite, reached: Reached, cells: StoredCells) -> Iterator[StoredRun]:
    """The runs of the last round of each attack on each model that gave evidence, each once."""
    seen: set[str] = set()
    for model in suite.models.values():
        for attack, label in suite.lineup.attacks:
            if suite.task not in attack.tasks or not made(suite, cells, suite.model_cell(model.name)):
                continue
            position = reached.get((label, model.name), 0)
            own, variant = suite.round_label(label, position), suite.rounds[label][position].attack
            scope = suite.scope(own)
            knowing = adapted(variant, model)
            for run in knowing.runs(model, scope):
                target = suite.models[run.model or model.name]
                name = attack_cell(own, target.name, run.detail)
                if name not in seen and made(suite, cells, name):
                    seen.add(name)
                    yield StoredRun(name, run.attack or knowing, run, target, scope)


def unfounded(suite: Suite, reached: Reached, cells: StoredCells) -> list[str]:
    """What of the evidence does not follow from the rest of it, a phrase each; no model is asked."""
    get = getter(suite, cells)

    def follows(one: StoredRun, evidence: Evidence) -> list[str]:
        return one.attack.follows(evidence, basis_of(suite, one.run, one.model, one.scope, get))

    return [wrong for one in stored_runs(suite, reached, cells) for wrong in one.held(get, partial(follows, one))]
