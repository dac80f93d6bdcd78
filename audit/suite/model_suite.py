"""The cells of an audit's models: training, making, serving; and what the cells of attacks are added to.

A cell's key is the content hash of everything that decides its result, so two audits share what they have in common,
a changed plan recomputes only what the change touches, and running the same command again resumes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from ...attacks.attack import Run, Task
from ...attacks.effort import FORWARD, HARDENING, Costs, Effort, retraining
from ...attacks.preparation import Scope
from ...compression.footprint.timing import Timed, interleaved_latency
from ...compression.smoothed import voted_under_noise
from ...targets.data.data import Data
from ...targets.errors import InputError, NotApplicable
from ...targets.form import DECLINED, Form
from ...targets.model import reproducible
from ...targets.runtimes.litert import PACKAGES as LITERT
from ..engine.cells import Cell, Result, cell_key
from ..plan.plan import Plan
from ..subject.audited import AuditedModel, Candidate, DenseModel, FinishedFile, Opened
from ..subject.identity import technique_identity
from ..subject.resolve import Subject
from . import forms, model_cells
from .environment import Setup, setup_here
from .lineup import Lineup, assemble

# What a model's cells cost, by phase; an attack's cells say their own.
EFFORT = {"training": Effort(trainings=1.0), "footprint": Effort(seconds=0.02), "lineage": Effort(seconds=0.5)}
LATENCY = "latency"  # the cell of all models' times

Compute = Callable[[Callable[[str], Result]], Result]


class Readable(Protocol):
    """Where the results are that a cell needs."""

    def get(self, key: str) -> Result: ...


@dataclass(frozen=True)
class Job:
    cell: Cell
    compute: Compute
    effort: Effort


class ModelSuite:
    """The cells that an audit's models need whatever the attacks, in topological order, and how each is computed."""

    def __init__(self, plan: Plan, subject: Subject, costs: Costs | None = None, setup: Setup | None = None) -> None:
        self.plan, self.subject, self.costs = plan, subject, costs or Costs()
        self.setup = setup or setup_here(plan.device)
        self.device = self.setup.device
        self.lineup: Lineup = assemble(plan, subject)
        self.models: dict[str, AuditedModel] = self.lineup.models
        self.task = Task.REGRESSION if subject.data.regression else Task.CLASSIFICATION
        self.runs: dict[str, Run] = {}  # of attacks, by cell
        self._jobs: dict[str, Job] = {}
        self._shared: dict[str, float] = {}  # effort by key of parts
        self._root = [
            subject.data.digest,
            subject.identity,
            plan.seed,
            self.device.type,
            dict(self.setup.versions),
        ]
        for dense in self.lineup.dense:
            self._train(dense)
        for model in self.models.values():
            self._model(model)
        self._latency()

    # -- what the suite is asked ------------------------------------------------------------------------------------

    def cells(self) -> list[Cell]:
        return [job.cell for job in self._jobs.values()]

    def compute(self, cell: Cell, store: Readable) -> Result:
        """Computes one cell whose needs are in the store.

        Raises:
            NotApplicable: the technique cannot do its work here, or something it needs could not be made.
        """

        def get(name: str) -> Result:
            result = store.get(self._jobs[name].cell.key)
            if DECLINED in result.document:
                raise NotApplicable(result.document[DECLINED])
            return result

        with reproducible():
            return self._jobs[cell.name].compute(get)

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

    def effort(self, name: str) -> Effort:
        return self._jobs[name].effort

    def has(self, name: str) -> bool:
        return name in self._jobs

    def scope(self, label: str) -> Scope:
        """What the attack with this label may know of the audit."""
        model, shadows = self.subject.model, self.plan.shadows
        return Scope(
            label=label,
            data=self.subject.data,
            seed=self.plan.seed,
            training_free=shadows.training_free,
            trained=shadows.trained,
            models=self.models,
            shadow_notes=self.subject.notes,
            shadows_differ=model is not None and model.shadows_differ,
            device=self.device.type,
            runtimes=self.lineup.runtime_phrases,
            released=self.plan.up_for_release,
        )

    # -- the cells --------------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        phase: str,
        spec: Any,
        needs: list[str],
        compute: Compute,
        *,
        effort: Effort | None = None,
        sharing: Any = None,
        words: str = "",
        alone: bool = False,
        once: bool = False,
        form: Form,
    ) -> None:
        """Adds a cell, once.

        Args:
            spec: what decides its result, besides data, seed, models and needs.
            effort: about what it costs; default: what its phase usually does.
            sharing: the spec of all cells whose finished parts it takes over; None: its own.
            words: what it is for, for people.
            form: what its result looks like; alone, once: see `Cell`.

        Raises:
            InputError: other work has this name already.
        """
        sort = name.partition("/")[0]  # a plug-in may call its attack (and so its phase) what it likes
        known = [self._jobs[need].cell for need in needs]
        key = cell_key(sort, phase, self._root, spec, [cell.key for cell in known])
        parts = ""
        if sharing is not None and sharing != spec:
            parts = cell_key("parts", sort, phase, self._root, sharing, [cell.parts or cell.key for cell in known])
        if name in self._jobs:
            if self._jobs[name].cell.key != key:
                raise InputError(
                    f"Two pieces of work of this audit are called {name!r}: an attack gives two runs on one model the "
                    "same `detail`, or shared work the name of other work. Give one of them a name of its own."
                )
            return
        effort = EFFORT[phase] if effort is None else effort
        weight = effort.at(self.costs)
        if parts:  # what an earlier cell has done of the same work is taken over
            done, self._shared[parts] = self._shared.get(parts, 0.0), weight
            weight = max(weight - done, 1e-3)
        cell = Cell(name, key, tuple(needs), phase, weight, parts, words, alone, once, form)
        self._jobs[name] = Job(cell, compute, effort)

    def _train(self, dense: DenseModel) -> None:
        self.add(
            self.training_cell(dense.name),
            "training",
            [dense.name, dense.architecture.name, dense.trainer.identity, technique_identity(dense.hardened)],
            [],
            lambda get: model_cells.train_dense(dense, self.subject.data, self.plan.seed, self.device),
            effort=training_effort(dense, self.subject.data),
            words=f"training {dense.name}" if dense.state is None else f"taking the weights of {dense.name}",
            once=dense.state is None and not dense.trainer.of_shipped.repeatable,
            form=forms.trained(dense),
        )

    def training_cell(self, dense: str) -> str:
        return f"train/{dense}"

    def trained(self, dense: str, get: Callable[[str], Result]) -> nn.Module:
        model = next(one for one in self.lineup.dense if one.name == dense)
        return model_cells.load_dense(model, get(self.training_cell(dense)), self.device)

    def _model(self, model: AuditedModel) -> None:
        """How it is made or taken, and what is measured on the result whatever the attacks."""
        own, shape = self.model_cell(model.name), self.subject.data.shape
        if model.file is not None:
            shape = model.file.assumptions.record
            self._file(model)
        elif isinstance(model, Candidate):
            self._candidate(model)
        elif isinstance(model, DenseModel):
            self.add(
                own,
                "candidates",
                [model.name, None],
                [self.training_cell(model.name)],
                lambda get: model_cells.deploy(self.trained(model.name, get), model, self.subject.data, self.plan.seed),
                effort=deploying(model.name, self.subject.data),
                words=f"exporting {model.name} as it would ship",
                form=forms.made(model, self.subject.data),
            )
        self.add(
            f"memory/{model.name}",
            "footprint",
            [],
            [own],
            lambda get: model_cells.serve_memory(self._opened(model, get).checked, shape),
            words=f"memory of a process that serves {model.name}",
            form=forms.MEMORY,
        )
        for runtime, label in self.lineup.runtimes:
            self.add(
                self.runtime_cell(model.name, label),
                "runtimes",
                [technique_identity(runtime), *self.setup.runtime_versions(runtime.packages)],
                [own],
                lambda get, runtime=runtime: model_cells.in_runtime(  # type: ignore[misc]  # defaults bind the loop
                    model, runtime, get(own), self.subject.data
                ),
                effort=Effort(answers=2.0 * len(self.subject.data.evaluation_ids), seconds=0.5),
                words=f"{model.name} in {label}",
                form=forms.in_runtime(self.subject.data),
            )

    def _latency(self) -> None:
        """How fast the models answer on this machine: taken in turns, of all at once, while nothing else is done."""

        def compute(get: Callable[[str], Result]) -> Result:
            models: dict[str, Timed] = {}
            for name, model in self.models.items():
                with contextlib.suppress(NotApplicable):  # it could not be made
                    stored = get(self.model_cell(name))
                    models[name] = _timed(model, stored, self.subject.data)
            return Result(document={"latency": interleaved_latency(models, self.subject.data.shape)})

        needs = [self.model_cell(name) for name in self.models]
        facts = self.setup.machine.model_dump()
        effort = Effort(seconds=0.4 * len(needs), answers=700.0 * len(needs))  # of slow models two calls by 256
        words, form = "timing every model", forms.timed(self.models)
        self.add(LATENCY, "footprint", facts, needs, compute, effort=effort, words=words, alone=True, form=form)

    def runtime_cell(self, model: str, label: str) -> str:
        return f"runtime/{label}/{model}"

    def _file(self, model: DenseModel | FinishedFile | Candidate) -> None:
        """A finished file, and where the dense model is known, whether it is a rounding of it."""
        own, file = self.model_cell(model.name), model.file
        assert file is not None
        self.add(
            own,
            "candidates",
            [model.name, file.identity, *([] if file.kind == "onnx" else self._litert)],
            [],
            lambda get: model_cells.take_file(file, self.subject.data, self.plan.seed),
            effort=deploying(model.name, self.subject.data),
            words=f"opening {model.name}",
            form=forms.taken(file, self.subject.data),
        )
        if model.parent is None or model.is_dense:
            return
        parent = model.parent
        dense = self.model_cell(parent.name)
        self.add(
            self.lineage_cell(model.name),
            "lineage",
            [] if model.recipe is None else [technique_identity(model.recipe)],
            [dense, own],
            lambda get: model_cells.lineage(
                parent, self._opened(parent, get), model, self._opened(model, get), self.subject.data
            ),
            words=f"comparing weights and graph of {model.name} with those of {parent.name}",
            form=forms.LINEAGE,
        )

    def _opened(self, model: AuditedModel, get: Callable[[str], Result]) -> Opened:
        return model.opened(get(self.model_cell(model.name)), self.subject.data)

    def lineage_cell(self, model: str) -> str:
        return f"lineage/{model}"

    def _candidate(self, model: Candidate) -> None:
        parent = model.parent
        for position, recipe in enumerate([model.recipe, *model.draws]):
            self.add(
                self.model_cell(model.name, position),
                "candidates",
                [model.name, technique_identity(recipe), *([] if model.kind == "onnx" else self._litert)],
                [self.training_cell(parent.name)],
                lambda get, recipe=recipe: model_cells.make_candidate(  # type: ignore[misc]  # defaults bind the loop
                    model, recipe, self.trained(parent.name, get), self.subject.data, self.plan.seed
                ),
                effort=deploying(model.name, self.subject.data, retraining(recipe, parent.trainer)),
                words=f"making {model.name}" + (f", draw {position}" if position else ""),
                form=forms.made(model, self.subject.data),
            )

    @property
    def _litert(self) -> list[str]:
        """What decides the answers of a TFLite file, besides its bytes."""
        return self.setup.runtime_versions(LITERT)

    def model_cell(self, model: str, draw: int = 0) -> str:
        """Where a model is made, or taken as it is."""
        return f"candidate/{model}" + (f"/draw-{draw}" if draw else "")


def _timed(model: AuditedModel, stored: Result, data: Data) -> Timed:
    if model.file is not None:
        return model.file.deployed
    bare = model.kind == "onnx" and not voted_under_noise(model.recipe)
    return stored.files["model.onnx"] if bare else lambda: model.opened(stored, data).target


def training_effort(dense: DenseModel, data: Data) -> Effort:
    """Of its one training; where its weights are given, of a look at whether it knows the data."""
    if dense.state is not None or dense.file is not None:
        return Effort(gradients=FORWARD * len(data.evaluation_ids), seconds=0.1)
    return Effort(trainings=1.0 if dense.hardened is None else HARDENING)


def deploying(model: str, data: Data, trainings: float = 0.0) -> Effort:
    """Of what is asked of a model that was made: all non-members, as many random inputs, the twin as well."""
    asked = 2.0 * len(data.non_members)
    return Effort(answers=asked + 150, gradients=FORWARD * asked, trainings=trainings, seconds=1.0, through=model)
