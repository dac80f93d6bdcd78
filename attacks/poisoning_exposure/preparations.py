"""The shared work of poisoning exposure: poisoned parents, what they answer once compressed, poisoned calibrations."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ...compression.deployment.onnx_export import to_onnx
from ...compression.recipe import Recipe, work_of
from ...targets.data.data import Data
from ...targets.data.records import Records
from ...targets.errors import NotApplicable, failing_as_not_applicable
from ...targets.form import Array, Count, Document, Form, Layout, Share
from ...targets.model import TorchTarget, device_of, frozen_copy
from ...targets.runtimes.onnx import OnnxTarget
from ...targets.seeds import derive, generator
from ...targets.steps import kept, pulse
from ...targets.technique import Technique
from ...training.architecture import weights_layout
from ...training.lessons import together
from ...training.loop import TrainingJob
from ..effort import HARDENING, Effort, retraining
from ..membership.signals import replayed_at_once
from ..preparation import Deployed, Inputs, Need, Preparation, Prepared, Scope, Trained, Weights
from .calibration import BITS, Method, calibrated_answers
from .planting import PATCH, Pair, Poisoning, can_be_patched, patched, pool_of

Arrays = dict[str, np.ndarray[Any, Any]]


class PairDocument(Document):
    """`Pair`, and the probability that the dense model gives to the target on records of the source."""

    source: Count
    target: Count
    confusion: Share


@dataclass(frozen=True)
class ConfusedPair(Preparation):
    """The two classes that the dense model confuses most on the attacker's records: where flips are worth most."""

    phase: ClassVar[str] = "poisoning"
    model: str

    @property
    def name(self) -> str:
        return f"confused/{self.model}"

    @property
    def words(self) -> str:
        return f"which classes {self.model} confuses most"

    @property
    def identity(self) -> Any:
        return []

    @property
    def effort(self) -> Effort:
        return Effort(answers=500)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Deployed(self.model),)

    def compute(self, inputs: Inputs) -> Prepared:
        data = inputs.scope.data
        own, members = data.attacker, data.members
        scores = inputs.deployed(self.model).logits(own.x).double().softmax(1).nan_to_num(0.0).cpu()
        y = own.y.cpu()
        known = [one for one in range(data.classes) if members is not None and bool((members.y == one).any())]
        confused = {
            (source, target): float(scores[y == source, target].mean())
            for source in known
            for target in known
            if source != target and bool((y == source).any()) and bool((data.evaluation.y == source).any())
        }
        if not confused:
            raise NotApplicable("no class has records among the training, evaluation and attacker's records alike")
        source, target = max(confused, key=lambda pair: confused[pair])
        found = PairDocument(source=source, target=target, confusion=min(1.0, confused[source, target]))
        return Prepared(document=found.model_dump(mode="json"))

    def form(self, scope: Scope) -> Form:
        return Form(PairDocument, {})


@dataclass(frozen=True)
class Poisoned:
    """The poisoned parents of one dense model, before any is trained.

    Args:
        pair: named by the plan; None: what the reference model confuses most.
        reference: name of the model that is asked then.
    """

    parent: Trained
    poisoning: Poisoning
    pair: Pair | None
    reference: str

    @property
    def needs(self) -> tuple[Need, ...]:
        return () if self.pair is not None else (ConfusedPair(self.reference),)

    @property
    def identity(self) -> Any:
        return [asdict(self.poisoning), None if self.pair is None else asdict(self.pair)]

    def pair_of(self, inputs: Inputs) -> Pair:
        if self.pair is not None:
            return self.pair
        found = PairDocument.model_validate(inputs.prepared(ConfusedPair(self.reference)).document)
        return Pair(found.source, found.target)

    def records(self, inputs: Inputs, first: int, last: int) -> tuple[Records, list[torch.Tensor]]:
        """What models [first, last) are trained on, as `pool_of`."""
        scope, data = inputs.scope, inputs.scope.data
        assert data.members is not None, "declared only where there are training records"
        pair = self.pair_of(inputs)
        return pool_of(data.members, data.bounds, self.poisoning, pair, data.classes, scope.seed, first, last)

    def seeds(self, scope: Scope) -> list[int]:
        """Of each model's initial weights and order: a poisoned one differs from its clean one in the poison alone."""
        return [derive(scope.seed, "poisoned parent", repetition) for repetition, _, _ in self.poisoning.models]


@dataclass(frozen=True)
class PoisonedModels(Preparation):
    """Poisoned parents [first, last), trained as the dense model was. Arrays: `<model>/<parameter>`."""

    phase: ClassVar[str] = "poisoning"
    poisoned: Poisoned
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"poisoned/{self.poisoned.parent.name}/{_digest(self.poisoned.identity)}/{self.first}"

    @property
    def words(self) -> str:
        return f"training poisoned models {self.first + 1} to {self.last} as {self.poisoned.parent.name} was trained"

    @property
    def identity(self) -> Any:
        parent = self.poisoned.parent
        return [self.poisoned.identity, parent.architecture.name, parent.trainer.identity, self.first, self.last]

    @property
    def effort(self) -> Effort:
        return Effort(trainings=(self.last - self.first) * (1 if self.poisoned.parent.hardened is None else HARDENING))

    @property
    def techniques(self) -> tuple[Technique, ...]:
        hardened = self.poisoned.parent.hardened
        return () if hardened is None else (hardened,)

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.poisoned.needs

    def compute(self, inputs: Inputs) -> Prepared:
        records, subsets = self.poisoned.records(inputs, self.first, self.last)
        seeds, parent = self.poisoned.seeds(inputs.scope)[self.first : self.last], self.poisoned.parent
        models = parent.trainer.fit(TrainingJob(parent.architecture, records, subsets, seeds, inputs.device))
        arrays: Arrays = {}
        for position, module in enumerate(models, self.first):
            state = module.state_dict().items()
            arrays |= {f"{position}/{name}": value.detach().cpu().numpy() for name, value in state}
        return Prepared(arrays)

    def form(self, scope: Scope) -> Form:
        def layout(document: Any) -> Layout:
            own = weights_layout(self.poisoned.parent.architecture)
            return {f"{one}/{name}": form for one in range(self.first, self.last) for name, form in own.items()}

        return Form(Document, layout)


@dataclass(frozen=True)
class PoisonedAnswers(Preparation):
    """What the poisoned parents, compressed by the recipe as the candidate was, answer as ONNX files.

    Arrays, for m models and n evaluation records: `predicted` int64 [m, n]; where images are patched, `triggered` int64
    [m, n], the answers to them with the patch; of models that are neither clean nor poisoned with it, as `predicted`.
    """

    phase: ClassVar[str] = "poisoning"
    poisoned: Poisoned
    recipe: Recipe | None
    chunks: tuple[PoisonedModels, ...]
    records: int

    @property
    def name(self) -> str:
        how = "dense" if self.recipe is None else _digest(self.recipe.model_dump(mode="json"))
        return f"poisoned-answers/{self.poisoned.parent.name}/{_digest([self.poisoned.identity, self.records])}/{how}"

    @property
    def words(self) -> str:
        how = "" if self.recipe is None else f", compressed ({self.recipe.phrase})"
        return f"asking the poisoned versions of {self.poisoned.parent.name}{how}"

    @property
    def identity(self) -> Any:
        return [self.poisoned.identity, self.records, "onnx"]

    @property
    def effort(self) -> Effort:
        count = len(self.poisoned.poisoning.models)
        return Effort(seconds=0.2 * count, trainings=count * retraining(self.recipe, self.poisoned.parent.trainer))

    @property
    def techniques(self) -> tuple[Technique, ...]:
        return () if self.recipe is None else (self.recipe,)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*self.poisoned.needs, *self.chunks)

    def compute(self, inputs: Inputs) -> Prepared:
        states: dict[int, Arrays] = {}
        for chunk in self.chunks:
            for name, array in inputs.prepared(chunk).arrays.items():
                position, _, parameter = name.partition("/")
                states.setdefault(int(position), {})[parameter] = array
        recipe, bounds, count = self.recipe, inputs.scope.data.bounds, len(states)
        seeds, found = self.poisoned.seeds(inputs.scope), list[Arrays]()
        at_once = replayed_at_once(recipe, self.poisoned.parent.architecture.blank().to(inputs.device))

        def compressed(settled: Recipe | None, first: int, last: int) -> Arrays:
            modules = [self._module(states[one], inputs.device) for one in range(first, last)]
            if settled is not None:
                pool, subsets = self.poisoned.records(inputs, first, last)
                own = [pool.take(subset.to(pool.y.device)).to(inputs.device) for subset in subsets]
                works = [
                    work_of(settled, module, records, bounds, seed=derive(seeds[at], "recipe"))
                    for at, (module, records) in enumerate(zip(modules, own, strict=True), first)
                ]
                modules = together(works)
            return self._answers(modules, first, inputs.scope.data)

        with failing_as_not_applicable("the poisoned models cannot be compressed as the candidate was"):
            if recipe is not None:
                pool, (subset,) = self.poisoned.records(inputs, 0, 1)
                module, own = self._module(states[0], inputs.device), pool.take(subset.to(pool.y.device))
                recipe = recipe.settled(module, own.to(device_of(module)), bounds, seed=derive(seeds[0], "recipe"))
            for first in range(0, count, at_once):
                pulse("poisoned model", first, count)
                work = partial(compressed, recipe, first, min(first + at_once, count))
                trains = recipe is not None and recipe.trains
                found.append(kept(f"models from {first}", work) if trains else work())
        return Prepared({name: np.concatenate([one[name] for one in found]) for name in found[0]})

    def _answers(self, modules: list[nn.Module], first: int, data: Data) -> Arrays:
        x, kinds = data.evaluation.x[: self.records], self.poisoned.poisoning.models[first:]
        found: dict[str, list[np.ndarray[Any, Any]]] = {"predicted": []}
        for module, (_, sort, _) in zip(modules, kinds, strict=False):
            target = OnnxTarget(to_onnx(module, data.shape))
            found["predicted"].append(target.logits(x).argmax(1).cpu().numpy())
            if can_be_patched(data.shape):
                shown = patched(x, data.bounds)
                asked = sort in ("", PATCH)
                told = target.logits(shown).argmax(1).cpu().numpy() if asked else found["predicted"][-1]
                found.setdefault("triggered", []).append(told)
        return {name: np.stack(rows) for name, rows in found.items()}

    def _module(self, state: Arrays, device: torch.device) -> nn.Module:
        module = self.poisoned.parent.architecture.blank()
        module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})
        return frozen_copy(module.to(device))

    def form(self, scope: Scope) -> Form:
        shape = (len(self.poisoned.poisoning.models), min(self.records, len(scope.data.evaluation_ids)))
        names = ["predicted", *(["triggered"] if can_be_patched(scope.data.shape) else [])]
        return Form(Document, {name: Array("int64", shape, 0, scope.data.classes - 1) for name in names})


@dataclass(frozen=True)
class PoisonedCalibration(Preparation):
    """The dense model with its activations rounded over ranges that were calibrated on poisoned records.

    Arrays, n evaluation records: `correct` bool [bits, methods, counts, n] (see `calibrated_answers`), `float` bool
    [n], what it gets right unrounded.
    """

    phase: ClassVar[str] = "poisoning"
    dense: str
    methods: tuple[Method, ...]
    counts: tuple[int, ...]
    calibration: int
    times: float
    records: int

    @property
    def name(self) -> str:
        return f"poisoned-calibration/{self.dense}/{_digest(self.identity)}"

    @property
    def words(self) -> str:
        return f"calibrating {self.dense} on poisoned records"

    @property
    def identity(self) -> Any:
        methods = [asdict(one) for one in self.methods]
        return [methods, list(self.counts), self.calibration, self.times, self.records]

    @property
    def effort(self) -> Effort:
        rounds = len(self.methods) * len(self.counts)
        return Effort(gradients=rounds * (len(BITS) * self.records + 2 * self.calibration) / 3)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Weights(self.dense),)

    def compute(self, inputs: Inputs) -> Prepared:
        data, module = inputs.scope.data, frozen_copy(inputs.weights(self.dense).to(inputs.device))
        assert data.members is not None, "declared only where there are training records"
        order = torch.randperm(len(data.members), generator=generator(inputs.scope.seed, "poisoned calibration"))
        x = data.members.x[order[: self.calibration].to(data.members.x.device)].to(inputs.device)
        evaluation = Records(data.evaluation.x[: self.records], data.evaluation.y[: self.records]).to(inputs.device)
        right = (TorchTarget(module).logits(evaluation.x).argmax(1) == evaluation.y).cpu().numpy()
        correct = calibrated_answers(module, x, evaluation, data.bounds, self.methods, self.counts, self.times)
        return Prepared({"correct": correct, "float": right})

    def form(self, scope: Scope) -> Form:
        n = min(self.records, len(scope.data.evaluation_ids))
        shape = (len(BITS), len(self.methods), len(self.counts), n)
        return Form(Document, {"correct": Array("bool", shape), "float": Array("bool", (n,))})


def chunks_of(poisoned: Poisoned, device: str) -> tuple[PoisonedModels, ...]:
    """The poisoned parents in pieces of work as large as are trained side by side."""
    size, count = poisoned.parent.side_by_side(torch.device(device)), len(poisoned.poisoning.models)
    return tuple(PoisonedModels(poisoned, first, min(first + size, count)) for first in range(0, count, size))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
