"""All the work of an audit: the cells of its models, and of the attacks on them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...attacks.attack import Attack, Round
from ...attacks.effort import Costs
from ...attacks.preparation import Preparation, Ran
from ...attacks.statistics.sequential import level_at
from ..engine.cells import Cell
from ..plan.plan import Plan
from ..subject.audited import AuditedModel
from ..subject.finished_file import reading_of
from ..subject.resolve import Subject, resolve
from .attack_cells import adapted, add_attack, attack_cell
from .environment import Setup
from .model_suite import ModelSuite


class Suite(ModelSuite):
    """The work of one audit: its cells in topological order, and how each is computed."""

    def __init__(self, plan: Plan, subject: Subject, costs: Costs | None = None, setup: Setup | None = None) -> None:
        super().__init__(plan, subject, costs, setup)
        self._of_models = [cell.name for cell in self.cells()]
        self.rounds: dict[str, tuple[Round, ...]] = {}  # by the attack's label
        for attack, label in self.lineup.attacks:
            self.rounds[label] = attack.rounds(self.scope(label))
            for position, one in enumerate(self.rounds[label]):
                add_attack(self, one.attack, self.round_label(label, position))

    def round_label(self, label: str, position: int) -> str:
        """What an attack's cells of one of its rounds are called by."""
        rounds = self.rounds[label]
        return label if len(rounds) == 1 else f"{label}@{rounds[position].records}"

    def level(self, label: str, position: int) -> float:
        """Of the intervals of a round, such that those of all rounds hold together with 95 %."""
        return level_at(tuple(one.records for one in self.rounds[label]), position)

    def cells_until(self, reached: Reached) -> list[Cell]:
        """The cells of the models, and of each attack on each model up to the round it has reached, in order."""
        wanted = list(self._of_models)
        for label in self.rounds:
            for model in self.models.values():
                for position in range(reached.get((label, model.name), 0) + 1):
                    wanted += self.cells_of(label, position, model)
        return self.closure(wanted)

    def shared_trainings(self) -> list[str]:
        """Cells that train models for the attacker's sake, of which a plan may ask for fewer."""
        own = set(self._of_models)
        return [cell.name for cell in self.cells() if cell.name not in own and self.effort(cell.name).trainings]

    def later_rounds(self, label: str) -> list[str]:
        """Cells of an attack that are only done when its first round decides too little."""
        positions = range(len(self.rounds[label]))
        by_round = [
            {name for model in self.models.values() for name in self.cells_of(label, position, model)}
            for position in positions
        ]
        return sorted(set[str]().union(*by_round[1:]) - by_round[0])

    def further(self, reached: Reached, undecided: Collection[tuple[str, str]]) -> Reached | None:
        """The next round of each attack with an undecided finding, and of it on what those are compared with.

        Args:
            undecided: (attack's label, model) that more records would decide.

        Returns:
            None where there is no further round.
        """
        after = dict(reached)
        for label, name in undecided:
            position = reached.get((label, name), 0) + 1
            if position < len(self.rounds[label]):
                for one in (name, *self.models[name].baselines):
                    after[label, one] = max(position, after.get((label, one), 0))
        return after if after != dict(reached) else None

    def cells_of(self, label: str, position: int, model: AuditedModel) -> list[str]:
        """What the findings of one round of an attack on one model come from."""
        attack, own = self.rounds[label][position].attack, self.round_label(label, position)
        runs: list[str] = []
        if self.task in attack.tasks:
            told = adapted(attack, model).runs(model, self.scope(own))
            runs = [attack_cell(own, run.model or model.name, run.detail) for run in told]
            runs += [shared.name for shared in attack.beside(model, self.scope(own))]
        return [name for name in dict.fromkeys([*runs, *self.cells_read(attack, own, model)]) if self.has(name)]

    def cells_read(self, attack: Attack, label: str, model: AuditedModel) -> list[str]:
        """What the measurements of one attack on one model look at, its draws apart.

        Args:
            attack, label: of one round.
        """
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


Reached = Mapping[tuple[str, str], int]  # (attack's label, model) -> round, where it is not the first


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
