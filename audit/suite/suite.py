"""All the work of an audit: the cells of its models, and of the attacks on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...attacks.attack import Attack
from ...attacks.preparation import Preparation, Ran
from ..plan.plan import Plan
from ..subject.audited import AuditedModel
from ..subject.finished_file import reading_of
from ..subject.resolve import Subject, resolve
from .attack_cells import add_attack, attack_cell
from .model_suite import ModelSuite


class Suite(ModelSuite):
    """The work of one audit: its cells in topological order, and how each is computed."""

    def __init__(self, plan: Plan, subject: Subject) -> None:
        super().__init__(plan, subject)
        for attack, label in self.lineup.attacks:
            add_attack(self, attack, label)

    def cells_read(self, attack: Attack, label: str, model: AuditedModel) -> list[str]:
        """What the measurements of one attack on one model look at, its draws apart."""
        found = [self.model_cell(model.name)]
        for need in attack.reads(model, self.scope(label)):
            match need:
                case Ran(name, detail):
                    cell = attack_cell(label, name, detail)
                    if cell in self.runs and self.runs[cell].draw is not None:
                        continue
                    found.append(cell)
                case Preparation():
                    found.append(need.name)
        if self.task not in attack.tasks:
            found.append(attack_cell(label, model.name))
        return [name for name in found if self.has(name)]


def suite_of(argument: str) -> Suite:
    """Builds the suite in a worker process, from the JSON that `spawn_argument` wrote."""
    raw = json.loads(argument)
    plan = Plan.model_validate(raw["plan"])

    def recall(question: Any) -> Mapping[str, Any] | None:
        readings: Mapping[str, Any] | None = raw["readings"] if question == raw["question"] else None
        return readings

    return Suite(plan, resolve(plan, Path(raw["folder"]), recall, checked=True))


def spawn_argument(plan: Plan, folder: Path, subject: Subject) -> str:
    """What a worker needs to build the same suite: the plan, and what its finished files were found to mean."""
    return json.dumps(
        {
            "plan": plan.model_dump(mode="json"),
            "folder": str(folder.resolve()),
            "question": subject.question,
            "readings": readings_of(subject),
        }
    )


def readings_of(subject: Subject) -> dict[str, Any]:
    """What the finished files were found to mean, as JSON, by the name of their model."""
    return {name: reading_of(file).model_dump(mode="json") for name, file in subject.files.items()}
