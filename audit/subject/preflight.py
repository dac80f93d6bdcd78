"""What is found out before anything long is computed: whether the model takes the records, trains and compresses.

A mistake in a model, its data or its training function is said here, within seconds, and what work costs is measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...attacks.effort import Costs
from ...compression.deployment.onnx_export import to_onnx
from ...compression.deployment.structure import load_module, save_module
from ...compression.deployment.tflite_export import to_tflite
from ...compression.recipe import RECIPES, Recipe
from ...compression.words import spelled
from ...defenses.chain import parse_defenses, steps_of
from ...defenses.defense import TrainingDefense
from ...targets.data.data import Data
from ...targets.data.records import Records
from ...targets.errors import InputError, NotApplicable, failing_as_not_applicable
from ...targets.forward_faults import answer_of
from ...targets.model import TorchTarget, frozen_copy, reproducible
from ...targets.model_checks import PROBED, check_answers, check_model
from ...targets.runtimes.onnx import OnnxTarget
from ...targets.seeds import derive
from ...targets.steps import pulse
from ...targets.technique import Technique
from ...targets.untrusted.model_file import Kind, need_litert
from ...training.loop import Training
from ..plan.plan import Plan
from .audited import DenseModel
from .prices import answering, differentiating, training_of
from .resolve import Subject

FEW = 64  # records of a trial, of all classes where so many have them
RECIPES_FOR = 4.0  # seconds in which recipes are tried; one that waits longer meets its faults in its own turn
CHECKED_FOR = 3.0  # seconds that a given model is asked for whether it knows the data at all
PASS = 0.5  # seconds of a pass over the records of a trial, at most


@dataclass(frozen=True)
class Preflight:
    """What was found out.

    Args:
        costs: measured on this machine, now: CPU seconds on one core, or seconds where there is a GPU.
        notes: sentences for whoever started the audit; what they tell of is no error, its rows say the same.
    """

    costs: Costs
    notes: tuple[str, ...] = ()


def preflight(plan: Plan, subject: Subject, device: torch.device) -> Preflight:
    """Tries everything once on a few records. Nothing that it computes is used but for the times.

    Args:
        device: where models are trained and compressed.

    Raises:
        InputError: the model does not take the records or answers with something else than logits, it cannot be
            trained or deployed, its training function fails, or no candidate can be made of it.
    """
    with reproducible():  # as the cells are computed
        return _files_alone(subject) if subject.model is None else _tried(plan, subject, subject.model, device)


def seen_by(recipe: Recipe, data: Data) -> Records:
    """The records a recipe is given: the members; none when there are none and the recipe looks at none.

    Raises:
        NotApplicable: there are none, and it needs some.
    """
    if data.members is None and recipe.touches_records:
        raise NotApplicable(
            "the recipe calibrates or trains on training records (x_train, y_train), and the data has none; "
            "quantize can do without: calibration_inputs: noise"
        )
    return data.members if data.members is not None else data.attacker.take(torch.arange(0))


def _files_alone(subject: Subject) -> Preflight:
    file = next(iter(subject.files.values()), None)
    if file is None:
        return Preflight(Costs())
    answer = answering(file.deployed(), subject.data.non_members.x)
    try:
        gradient = differentiating(file.differentiable(subject.data), subject.data)
    except NotApplicable:  # it has no twin, which its row says
        gradient = 3 * answer
    return Preflight(Costs(answer=answer, gradient=gradient))


def _tried(plan: Plan, subject: Subject, dense: DenseModel, device: torch.device) -> Preflight:
    data = subject.data
    if dense.state is None and data.members is None:
        raise InputError(
            "The dense model is to be trained, and the data has no training records (x_train, y_train). Add them, or "
            "give the trained model its weights (model.weights)."
        )
    if dense.state is None:
        module = dense.architecture.fresh(derive(plan.seed, dense.name))
    else:
        module = dense.architecture.blank()
        module.load_state_dict(dense.state)
    module.to(device).eval()
    _check_forward(module, data, trained=dense.state is not None)
    gradient = differentiating(module, data)
    notes, costs = list[str](), Costs(gradient=gradient)
    if dense.state is not None and gradient * min(PROBED, len(data.evaluation)) < CHECKED_FOR:
        notes += check_model(TorchTarget(module), data.evaluation, data.bounds, data.outputs)
    few = few_of(data, max(8, min(FEW, int(PASS / gradient))))
    if data.members is not None:
        try:
            costs = replace(costs, training=training_of(dense, data.members, few, plan.seed, device))
        except NotApplicable as error:  # a layer that cannot start anew; attacks that train say so in their rows
            notes.append(f"No model can be trained in the dense one's likeness: {error}")
    try:
        target = OnnxTarget(to_onnx(module, data.shape)) if dense.file is None else dense.file.deployed()
    except NotApplicable as error:
        raise InputError(
            f"The dense model cannot be deployed, and an audit judges what is deployed: {str(error).rstrip('.')}. "
            "Write that part of its forward with other operations."
        ) from None
    tried = _recipes(plan, subject, dense, frozen_copy(module), few)
    notes += [f"{name} cannot be made, and its rows will say so: {one.why_not}" for name, one in tried if one.why_not]
    twins = {name: one.gradient for name, one in tried if not one.why_not}
    return Preflight(replace(costs, answer=answering(target, data.non_members.x), twins=twins), tuple(notes))


def _check_forward(module: nn.Module, data: Data, *, trained: bool) -> None:
    """One pass over a few records; a model that is not trained yet may well answer with NaN at the first."""
    x = few_of(data, 8).x if data.members is not None else data.non_members.x[:8]
    x = torch.cat([x, _extreme(data)])
    device = next((tensor.device for tensor in module.parameters()), x.device)
    answer = answer_of(module, x.to(device))
    if isinstance(answer, str):
        raise InputError(f"{answer} {data.structure.layout_words()}".rstrip())
    labels = [split.y for split in (data.members, data.non_members) if split is not None]
    check_answers(answer, data.outputs, torch.cat(labels))


def _extreme(data: Data) -> Tensor:
    """The records with the smallest and the largest value: ids outside a vocabulary are among them."""
    x = data.non_members.x if data.members is None else torch.cat([data.members.x, data.non_members.x])
    flat = x.flatten(1)
    return x[torch.stack([flat.amin(1).argmin(), flat.amax(1).argmax()])]


def few_of(data: Data, count: int) -> Records:
    """About so many training records (test records where there are none), of every class where that is possible."""
    records = data.non_members if data.members is None else data.members
    if data.regression:
        return records.take(torch.arange(min(count, len(records))))
    order = torch.argsort(records.y, stable=True)
    sizes = torch.bincount(records.y)
    place = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[records.y[order]]  # the how-manieth of its class
    chosen = order[torch.argsort(place, stable=True)[:count]]
    return records.take(chosen.sort().values)


@dataclass(frozen=True)
class Tried:
    """What came of a recipe: why no candidate can be made, or CPU seconds of one gradient of what was made."""

    why_not: str = ""
    gradient: float = 0.0


def _recipes(
    plan: Plan, subject: Subject, dense: DenseModel, module: nn.Module, few: Records
) -> list[tuple[str, Tried]]:
    """Applies and exports each recipe once, as long as there is time: what came of it, by the name of the candidate.

    Raises:
        InputError: no candidate can be made.
    """
    started, found, tried = time.monotonic(), list[tuple[str, Tried]](), dict[str, Tried]()
    candidates = {name: one for name, one in plan.candidates.items() if one.file is None}
    for position, (name, candidate) in enumerate(candidates.items()):
        pulse("recipe", position, len(candidates))
        if candidate.deploy == "tflite":
            _check_litert(f"{plan.where('candidates', name, 'deploy')}: candidates.{name}.deploy")
        recipe = RECIPES.parse(spelled(candidate.recipe))
        hardened = () if candidate.defense is None else steps_of(parse_defenses(candidate.defense))
        other = [
            one for one in hardened if isinstance(one, TrainingDefense) and type(one).adapt is not TrainingDefense.adapt
        ]
        words = [one.model_dump(mode="json") for one in (recipe, *other)]
        key = json.dumps([candidate.deploy, *words], sort_keys=True)
        if key not in tried and time.monotonic() - started < RECIPES_FOR:
            tried[key] = _try(recipe, other, candidate.deploy, subject.data, dense, module, few, plan.seed)
        if key in tried:
            found.append((name, tried[key]))
    if found and {name for name, one in found if one.why_not} == plan.candidates.keys():
        listed = " ".join(f"{name}: {one.why_not.rstrip('.')}." for name, one in found)
        raise InputError(f"No candidate can be made of this model, so there is nothing to audit. {listed}")
    return found


def _check_litert(where: str) -> None:
    try:
        need_litert()
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _try(
    recipe: Recipe,
    hardened: Sequence[TrainingDefense],
    kind: Kind,
    data: Data,
    dense: DenseModel,
    module: nn.Module,
    few: Records,
    seed: int,
) -> Tried:
    """Args: hardened: the defenses that compress another architecture than the dense model's."""
    try:
        blank = dense.architecture.blank()
        for one in hardened:
            module, blank = one.adapt(frozen_copy(module)), one.adapt(blank)
        with failing_as_not_applicable(f"the recipe {recipe.kind} cannot be applied to this model"):
            records = few if len(seen_by(recipe, data)) else few.take(torch.arange(0))
            made = shortened(recipe).apply(module, records, data.bounds, seed=derive(seed, "preflight"))
        with failing_as_not_applicable("it cannot be deployed"):
            model = to_onnx(made, data.shape)
            if kind == "tflite":
                to_tflite(model)
            description, arrays = save_module(made)
            load_module(blank, description, arrays)
    except NotApplicable as error:
        return Tried(why_not=str(error))
    return Tried(gradient=differentiating(made.eval(), data))


def shortened(technique: Any) -> Any:
    """A recipe that trains and searches as briefly as it can, at any depth."""
    if isinstance(technique, tuple):
        return tuple(shortened(one) for one in technique)
    if not isinstance(technique, Technique):
        return technique
    update = {name: shortened(getattr(technique, name)) for name in type(technique).model_fields}
    if isinstance(technique, Training):
        update["epochs"] = 1
    if "rounding_steps" in update:
        update["rounding_steps"] = 1
    return technique.model_copy(update=update)
