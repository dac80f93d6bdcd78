"""The only place that orders the work: which cells an audit has, what each needs, and how it runs.

A cell's key is the content hash of everything that decides its result, so two audits share what they have in common,
a changed plan recomputes only what the change touches, and running the same command again resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..attacks.attack import Attack, Case
from ..attacks.evasion.evasion import Evasion
from ..attacks.membership.membership import Membership
from ..attacks.membership.population import PopulationPlan, plan_population
from ..compression.recipe import Recipe
from ..targets.errors import NotApplicable
from ..targets.model import resolve_device
from ..targets.seeds import derive
from . import evasion_cells, steps
from .cells import Cell, Result, cell_key
from .environment import runtime_versions, versions
from .files import FinishedFile
from .identity import technique_identity
from .lineup import Contender, Dense, Lineup, assemble, numbered
from .plan import Plan
from .subject import Subject, resolve
from .work import Results

CHUNK = 16  # shadows per cell: one stack; small enough to resume from, and to share between two workers

# CPU seconds of a cell, by phase, as the built-in audit took them; ATTACK stands for every other phase.
WEIGHTS = {"training": 6.0, "shadows": 20.0, "signals": 8.0, "candidates": 0.5, "footprint": 0.02, "runtimes": 0.5}
ATTACK = 4.0

Compute = Callable[[Callable[[str], Result]], Result]


@dataclass(frozen=True)
class Job:
    cell: Cell
    compute: Compute


class Suite:
    """The work of one audit: its cells in topological order, and how each is computed."""

    def __init__(self, plan: Plan, subject: Subject) -> None:
        self.plan, self.subject = plan, subject
        self.device = resolve_device(plan.device)
        self.lineup: Lineup = assemble(plan, subject)
        self._jobs: dict[str, Job] = {}
        self._root = [
            subject.data.digest,
            subject.identity,
            plan.seed,
            self.device.type,
            versions(),
        ]
        for dense in self.lineup.dense:
            self._train(dense)
        if self.audits_membership:
            for dense in self.lineup.dense:
                self._shadows(dense)
        for contender in self.lineup.contenders:
            self._candidate(contender)
        if self.audits_membership:
            for contender in self.lineup.contenders:
                if contender.parent is not None:
                    self._signals(contender.parent, contender.recipe)
        for attack, label in self.attacks:
            for contender in self.lineup.contenders:
                self._attack(contender, attack, label)

    # -- what the suite is asked ------------------------------------------------------------------------------------

    def cells(self) -> list[Cell]:
        return [job.cell for job in self._jobs.values()]

    def compute(self, cell: Cell, store: Results) -> Result:
        """Computes one cell whose needs are in the store.

        Raises:
            NotApplicable: the technique cannot do its work here, or something it needs could not be made.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the findings must not depend on how many cores there are

        def get(name: str) -> Result:
            result = store.get(self._jobs[name].cell.key)
            if "not_applicable" in result.document:
                raise NotApplicable(result.document["not_applicable"])
            return result

        try:
            return self._jobs[cell.name].compute(get)
        finally:
            torch.set_num_threads(threads)

    def closure(self, names: list[str]) -> list[Cell]:
        """The cells with these names and all they need, in order."""
        wanted: set[str] = set()
        stack = list(names)
        while stack:
            name = stack.pop()
            if name not in wanted:
                wanted.add(name)
                stack.extend(self._jobs[name].cell.needs)
        return [cell for cell in self.cells() if cell.name in wanted]

    def cell(self, name: str) -> Cell:
        return self._jobs[name].cell

    def has(self, name: str) -> bool:
        return name in self._jobs

    @cached_property
    def attacks(self) -> list[tuple[Attack, str]]:
        """Each attack with the label its findings carry: its kind, numbered when a kind occurs twice."""
        labelled: list[tuple[Attack, str]] = []
        kinds = {attack.kind for attack in self.lineup.attacks}
        for attack in self.lineup.attacks:
            labelled.append((attack, numbered(attack.kind, [label for _, label in labelled], kinds)))
        return labelled

    @property
    def audits_membership(self) -> bool:
        wanted = any(isinstance(attack, Membership) for attack in self.lineup.attacks)
        return wanted and self.subject.data.members is not None and not self.subject.data.regression

    @cached_property
    def population(self) -> PopulationPlan:
        return plan_population(self.subject.data, self.plan.shadows.most, seed=self.plan.seed)

    def shadow_count(self, dense: Dense, recipe: Recipe | None) -> int:
        """Training-free replays on the plain model's shadows are cheap; everything that trains gets fewer."""
        shadows = self.plan.shadows
        costly = dense.defense is not None or (recipe is not None and recipe.trains)
        return shadows.trained if costly else shadows.training_free

    # -- the cells --------------------------------------------------------------------------------------------------

    def add(
        self, name: str, phase: str, spec: Any, needs: list[str], compute: Compute, weight: float | None = None
    ) -> None:
        """Adds a cell, once; `weight` is about the CPU seconds it takes (default: what its phase usually takes)."""
        if name in self._jobs:
            return
        sort = name.partition("/")[0]  # a plug-in may call its attack (and so its phase) what it likes
        key = cell_key(sort, phase, self._root, spec, [self._jobs[need].cell.key for need in needs])
        self._jobs[name] = Job(Cell(name, key, tuple(needs), phase, weight or WEIGHTS.get(phase, ATTACK)), compute)

    def _train(self, dense: Dense) -> None:
        model = self.subject.model
        assert model is not None  # there are dense models only where there is one
        self.add(
            f"train/{dense.name}",
            "training",
            [
                dense.name,
                dense.architecture.name,
                dense.trainer.identity,
                technique_identity(dense.defense),
            ],
            [],
            lambda get: steps.train_dense(dense, self.subject.data, model, self.plan.seed, self.device),
        )

    def dense_model(self, dense: Dense, get: Callable[[str], Result]) -> nn.Module:
        return steps.load_dense(dense, get(f"train/{dense.name}"), self.device)

    def _shadows(self, dense: Dense) -> None:
        """As many shadows of a parent as any of its candidates asks for."""
        recipes = [contender.recipe for contender in self.lineup.contenders if contender.parent is dense]
        count = max(self.shadow_count(dense, recipe) for recipe in recipes)
        for first in range(0, count, CHUNK):
            last = min(first + CHUNK, count)
            self.add(
                self._chunk(dense, first),
                "shadows",
                [dense.architecture.name, dense.trainer.identity, technique_identity(dense.defense), first, last],
                [],
                lambda get, first=first, last=last: steps.train_shadows(  # type: ignore[misc]  # defaults bind the loop
                    dense, self.population, first, last, self.device
                ),
            )

    def _chunk(self, dense: Dense, first: int) -> str:
        return f"shadows/{dense.name}/{first}"

    def _candidate(self, contender: Contender) -> None:
        shape = self.subject.data.shape
        if contender.file is not None:
            shape = contender.file.assumptions.record
            self._file(contender, contender.file)
        else:
            self._made(contender, contender.dense)
        self.add(
            f"memory/{contender.name}",
            "footprint",
            [],
            [self.candidate_cell(contender)],
            lambda get: steps.serve_memory(get(self.candidate_cell(contender)), shape),
        )
        for runtime in self.plan.runtimes:
            self.add(
                self.runtime_cell(contender, runtime),
                "runtimes",
                [runtime, *runtime_versions(runtime)],
                [self.candidate_cell(contender)],
                lambda get, runtime=runtime: steps.in_runtime(  # type: ignore[misc]  # defaults bind the loop
                    contender, runtime, get(self.candidate_cell(contender)), self.subject.data
                ),
            )

    def runtime_cell(self, contender: Contender, runtime: str) -> str:
        return f"runtime/{runtime}/{contender.name}"

    def _file(self, contender: Contender, file: FinishedFile) -> None:
        """A finished file, and where the dense model is known, whether it is a rounding of it."""
        own = self.candidate_cell(contender)
        self.add(
            own,
            "candidates",
            [contender.name, file.identity, *(runtime_versions("litert") if file.kind == "tflite" else [])],
            [],
            lambda get: steps.take_file(file, self.subject.data, self.plan.seed),
        )
        if contender.parent is None or contender.is_dense:
            return
        dense = self.candidate_cell(self.lineup.contender(contender.parent.name))
        self.add(
            self.lineage_cell(contender), "lineage", [], [dense, own], lambda get: steps.lineage(get(dense), get(own))
        )

    def lineage_cell(self, contender: Contender) -> str:
        return f"lineage/{contender.name}"

    def _made(self, contender: Contender, parent: Dense) -> None:
        for position, recipe in enumerate([contender.recipe, *contender.draws]):
            self.add(
                self.candidate_cell(contender, position),
                "candidates",
                [contender.name, technique_identity(recipe)],
                [f"train/{parent.name}"],
                lambda get, recipe=recipe: steps.make_candidate(  # type: ignore[misc]  # defaults bind the loop
                    contender, recipe, self.dense_model(parent, get), self.subject.data, self.plan.seed
                ),
            )

    def candidate_cell(self, contender: Contender, draw: int = 0) -> str:
        return f"candidate/{contender.name}" + (f"/draw-{draw}" if draw else "")

    def _signals(self, dense: Dense, recipe: Recipe | None) -> None:
        count = self.shadow_count(dense, recipe)
        chunks = [self._chunk(dense, first) for first in range(0, count, CHUNK)]

        def compute(get: Callable[[str], Result]) -> Result:
            shadows: dict[int, steps.Arrays] = {}
            for chunk in chunks:
                for name, array in get(chunk).arrays.items():
                    position, _, parameter = name.partition("/")
                    shadows.setdefault(int(position), {})[parameter] = array
            kept = [shadows[position] for position in range(count)]
            return steps.signals(dense, recipe, self.population, kept, self.subject.data, self.device)

        self.add(
            self.signals_cell(dense, recipe),
            "signals",
            [technique_identity(recipe), count],
            chunks,
            compute,
        )

    def signals_cell(self, dense: Dense, recipe: Recipe | None) -> str:
        return f"signals/{dense.name}/" + ("dense" if recipe is None else cell_key(recipe.model_dump(mode="json"))[:12])

    def _attack(self, contender: Contender, attack: Attack, label: str) -> None:
        if self.subject.data.regression:
            cell = self.attack_cell(label, contender.name)
            self.add(cell, attack.kind, [], [], lambda get: steps.refuse_regression())
            return
        hardened = contender.parent.defense if contender.parent is not None else None
        for defense in {id(one): one for one in (hardened, contender.defense) if one}.values():
            attack = defense.adapted(attack)
        if isinstance(attack, Membership):
            self._membership(contender, attack, label)
            return
        if isinstance(attack, Evasion):
            evasion_cells.add(self, contender, attack, label)
            return
        needs = [self.candidate_cell(contender), *self.parent_cell(contender)]
        self.add_attack(self.attack_cell(label, contender.name), attack, contender, needs, None)

    def case(self, contender: Contender, get: Callable[[str], Result]) -> Case:
        """What an attacker of this model has, without anything prepared."""
        parent = None if contender.parent is None else self.dense_model(contender.parent, get)
        return steps.make_case(contender, get(self.candidate_cell(contender)), parent, self.subject.data, self.device)

    def compared_with(self, baseline: Contender) -> list[str]:
        """Names of the models whose change is measured against this one."""
        return [other.name for other in self.lineup.contenders if baseline.name in other.baselines]

    def attack_cell(self, label: str, name: str, detail: str = "") -> str:
        """The cell of an attack on one contender, named apart from all other sorts of cells: `attack/pgd/int8`."""
        return f"attack/{label}/{name}" + (f"/{detail}" if detail else "")

    def parent_cell(self, contender: Contender) -> list[str]:
        """The cell of the dense model it came from, where one is known."""
        return [] if contender.parent is None else [f"train/{contender.parent.name}"]

    def add_attack(
        self,
        name: str,
        attack: Attack,
        contender: Contender,
        needs: list[str],
        transfer: str | None,
        *,
        draw: int = 0,
        without_draw: bool = False,
        gate_only: bool = False,
    ) -> None:
        def compute(get: Callable[[str], Result]) -> Result:
            others = range(1, len(contender.draws) + 1) if without_draw else ()
            case = steps.make_case(
                contender,
                get(self.candidate_cell(contender, draw)),
                None if contender.parent is None else self.dense_model(contender.parent, get),
                self.subject.data,
                self.device,
                transfer=None if transfer is None else get(transfer),
                other_draws=[
                    twin
                    for other in others
                    if (twin := self._twin(contender, get(self.candidate_cell(contender, other)))) is not None
                ],
            )
            ready = attack
            if isinstance(ready, Evasion):
                ready = evasion_cells.resolved(ready, get)
                ready = ready.at(ready.gate, (ready.gate,)) if gate_only else ready
            return steps.run_attack(ready, case, derive(self.plan.seed, attack.kind))

        self.add(name, attack.kind, [technique_identity(attack), gate_only], needs, compute)

    def _twin(self, contender: Contender, candidate: Result) -> nn.Module | None:
        return steps.twin_for(contender, candidate, self.subject.data, self.device)

    def _membership(self, contender: Contender, attack: Membership, label: str) -> None:
        if not self.audits_membership:
            return
        cell = self.attack_cell(label, contender.name)
        self._membership_cell(cell, contender, attack, None)
        for name in contender.baselines:
            baseline = self.lineup.contender(name)
            for count in set(self.shadow_counts(contender)):
                if count < self.shadow_count(baseline.dense, None):
                    self._membership_cell(self.membership_cell(label, name, count), baseline, attack, count)

    def membership_cell(self, label: str, baseline: str, shadows: int) -> str:
        """The cell of a dense model attacked with so many shadows: what a candidate's change is measured against.

        More shadows make a stronger attack, so a candidate attacked with 16 is compared with its parent under 16.
        """
        dense = self.lineup.contender(baseline).dense
        full = shadows >= self.shadow_count(dense, None)
        return self.attack_cell(label, baseline, "" if full else f"{shadows}-shadows")

    def shadow_counts(self, contender: Contender) -> tuple[int, int]:
        """How many shadows compressed as the candidate is, and how many uncompressed ones, its attacker has."""
        if contender.parent is None:
            return 0, 0
        dense = contender.parent
        return self.shadow_count(dense, contender.recipe), self.shadow_count(dense, None)

    def _membership_cell(self, name: str, contender: Contender, attack: Membership, shadows: int | None) -> None:
        dense, recipe = contender.parent, contender.recipe
        own = None if dense is None else self.signals_cell(dense, recipe)
        uncompressed = None if dense is None or recipe is None else self.signals_cell(dense, None)
        self.add("blind", attack.kind, [], [], lambda get: steps.blind(self.population, self.plan.seed))
        needs = [self.candidate_cell(contender), "blind", *(cell for cell in (own, uncompressed) if cell is not None)]

        def compute(get: Callable[[str], Result]) -> Result:
            signals = steps.membership_case(
                self.population,
                None if own is None else get(own),
                None if uncompressed is None else get(uncompressed),
                get("blind"),
                shadows,
            )
            case = steps.make_case(contender, get(needs[0]), None, self.subject.data, self.device, membership=signals)
            return steps.run_attack(attack, case, derive(self.plan.seed, attack.kind))

        self.add(name, attack.kind, [technique_identity(attack), shadows], needs, compute)


def suite_of(argument: str) -> Suite:
    """Builds the suite in a worker process, from the JSON that `spawn_argument` wrote."""
    raw = json.loads(argument)
    plan = Plan.model_validate(raw["plan"])
    return Suite(plan, resolve(plan, Path(raw["folder"])))


def spawn_argument(plan: Plan, folder: Path) -> str:
    return json.dumps({"plan": plan.model_dump(mode="json"), "folder": str(folder.resolve())})
