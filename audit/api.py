"""The audit as a Python call, for a model and data that are already in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..compression.recipe import RECIPES, Recipe
from ..compression.student import offered
from ..targets.data import Bounds, Data, Records
from ..targets.errors import InputError
from ..targets.loading import inferred_bounds
from ..training.architecture import Architecture
from ..training.loop import Training
from ..training.trainer import BuiltinTrainer, Trainer, UserTrainer
from .findings import Audit
from .identity import code_digest, model_digest, name_of
from .plan import Plan, check_techniques, validated
from .presets import RECIPE_WORDS
from .progress import Progress
from .run import run_audit
from .subject import SHADOWS_DIFFER, DenseModel, Subject, checked_module, checked_training, student_factories
from .yaml_plan import Source

SHADOWS_DIFFER_HERE = SHADOWS_DIFFER.replace("the plan does not", "the call does not").replace(
    "Name model.training or model.training_function.", "Name training=."
)

Arraylike = np.ndarray[Any, Any] | Tensor


@dataclass(frozen=True)
class AuditResult:
    """A finished audit. `audit` is the whole of audit.json as typed rows."""

    audit: Audit

    @property
    def passed(self) -> bool:
        """Whether the policy passed for every candidate up for release; inconclusive is not passed."""
        return self.audit.verdict == "pass"

    @property
    def verdict(self) -> str:
        return self.audit.verdict

    def to_html(self, path: str | Path) -> Path:
        """Writes the report; returns its path."""
        from .report import render

        render(self.audit, Path(path))
        return Path(path)

    def to_json(self, path: str | Path) -> Path:
        """Writes audit.json; returns its path."""
        from .report import write

        write(Path(path), self.audit.model_dump_json(by_alias=True, indent=1))
        return Path(path)


def audit_model(
    model: nn.Module,
    train: tuple[Arraylike, Arraylike] | None,
    test: tuple[Arraylike, Arraylike],
    recipes: Sequence[str | Recipe] | Mapping[str, str | Recipe],
    *,
    policy: str | Mapping[str, Any] = "release",
    attacks: str | Sequence[Any] = "standard",
    training: Training | Callable[[nn.Module, Tensor, Tensor, int], nn.Module] | None = None,
    build: Callable[[], nn.Module] | None = None,
    shadows: Mapping[str, int] | None = None,
    bounds: tuple[float, float] | None = None,
    class_names: Sequence[str] | None = None,
    task: Literal["classification", "regression"] = "classification",
    name: str = "model",
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> AuditResult:
    """Audits compressed versions of a trained model, in this process.

    Args:
        model: the trained dense model; it is copied, never changed.
        train: x float [n, *shape] and y int [n] that it was trained on; None leaves out membership.
        test: the same for records it has never seen.
        recipes: short words ("int8"), kinds or recipes; a mapping gives each candidate its name.
        training: how the model was trained, for shadow models: hyper-parameters of the built-in loop, or a function
            `(module, x, y, seed) -> module`. Left out, shadow models use the built-in training as it is, and the
            report says so.
        build: returns the untrained model, for shadow models; needed where a layer cannot initialise itself anew (it
            holds an nn.Parameter and has no reset_parameters).
        shadows: `{"training_free": 64, "trained": 16}`.
        task: regression: y are values to predict, float [n] or [n, outputs]; the error is audited, and no attack.
        bounds: smallest and largest value of an input; epsilon counts in units of their distance. Left out: the range
            of the grid that the values lie on ([0, 1], [0, 255], [0, 16] ...); where that is a guess a flag says so.
        out: a folder that keeps evidence and finished cells, so that the next call resumes; default: none is kept.

    Raises:
        InputError: data, model or a recipe is wrong; the message says how to mend it.
        Incomplete: a cell failed.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a trained torch.nn.Module; it is {type(model).__name__}.")
    data = _data(train, test, bounds, class_names, name, seed, regression=task == "regression")
    architecture = _architecture(model, build)
    state = {key: tensor.detach().cpu().clone() for key, tensor in model.state_dict().items()}
    trainer: Trainer
    if training is None or isinstance(training, Training):
        trainer = BuiltinTrainer(training or Training())
    else:
        trainer = UserTrainer(checked_training(training), f"{name_of(training)}@{code_digest(training)}")
    identity = f"{architecture.name}|{model_digest(model)}|{trainer.identity}"
    plan = validated(
        Plan,
        {
            "name": name,
            "seed": seed,
            "data": {"kind": "memory", "name": name},
            "model": {"architecture": "memory:model"},
            "candidates": _candidates(recipes),
            "attacks": attacks if isinstance(attacks, str) else list(attacks),
            "policy": policy if isinstance(policy, str) else dict(policy),
            "shadows": dict(shadows or {}),
            "workers": 0,
        },
        Source("the call of audit_model"),
    )
    check_techniques(plan)
    for path in student_factories(plan):
        build_student = offered(path)
        identity += f"|{path}" if build_student is None else f"|{path}@{code_digest(build_student)}"
    notes = (SHADOWS_DIFFER_HERE,) if training is None else ()
    subject = Subject(data, DenseModel(architecture, trainer, state, training is None), identity, notes=notes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if out is None else Path(out)
        return AuditResult(run_audit(plan, Path(), folder, subject=subject, progress=progress, command=""))


def _architecture(model: nn.Module, build: Callable[[], nn.Module] | None) -> Architecture:
    """How models of this structure are made.

    Raises:
        InputError: `build` fails, or builds something else.
    """
    like = Architecture.like(model, type(model).__name__)
    if build is None:
        return like
    name, given = name_of(build), build
    architecture = Architecture(
        f"{like.name}|{name}@{code_digest(build)}", lambda: checked_module(given, {}, name).cpu(), like.pattern
    )
    wanted, built = (
        {key: tuple(value.shape) for key, value in one.state_dict().items()} for one in (model, architecture.fresh(0))
    )
    if wanted != built:
        odd = sorted(key for key in wanted.keys() | built.keys() if wanted.get(key) != built.get(key))
        raise InputError(
            f"build={name} returns another model than the one to be audited: they differ in {', '.join(odd[:5])}. "
            "It must build the same layers, untrained."
        )
    return architecture


def _data(
    train: tuple[Arraylike, Arraylike] | None,
    test: tuple[Arraylike, Arraylike],
    bounds: tuple[float, float] | None,
    class_names: Sequence[str] | None,
    name: str,
    seed: int,
    *,
    regression: bool,
) -> Data:
    members = None if train is None else _records(*train, regression=regression)
    non_members = _records(*test, regression=regression)
    if regression:
        class_names = []
    elif class_names is None:
        labels = [records.y for records in (members, non_members) if records is not None and len(records)]
        most = max((int(y.max()) for y in labels), default=0)
        class_names = [str(label) for label in range(most + 1)]
    if bounds is not None:
        return Data(name, members, non_members, Bounds.of(*bounds), tuple(class_names), seed=seed)
    inputs = [_values(x) for x, _ in filter(None, (train, test))]
    found, notes, doubt = inferred_bounds(inputs, "the arrays")
    return Data(name, members, non_members, found, tuple(class_names), seed=seed, notes=notes, bounds_doubt=doubt)


def _values(x: Arraylike) -> np.ndarray[Any, Any]:
    """In their own type, which tells something of their bounds."""
    values = torch.as_tensor(x).detach().cpu()
    return values.float().numpy() if values.dtype in (torch.bfloat16, torch.float16) else values.numpy()


def _records(x: Arraylike, y: Arraylike, *, regression: bool) -> Records:
    wanted = torch.as_tensor(y).detach().cpu()
    wanted = wanted.float().reshape(len(wanted), -1) if regression else wanted.long()
    return Records(torch.as_tensor(x).detach().cpu().float(), wanted)


def _candidates(recipes: Sequence[str | Recipe] | Mapping[str, str | Recipe]) -> dict[str, Any]:
    if isinstance(recipes, Mapping):
        return dict(recipes)
    if isinstance(recipes, str | Recipe):
        recipes = [recipes]
    named: dict[str, Any] = {}
    for recipe in recipes:
        name = recipe if isinstance(recipe, str) else recipe.kind
        if isinstance(recipe, str) and recipe not in RECIPE_WORDS:
            recipe = RECIPES.parse(recipe)
        base, number = name, 2
        while name in named:
            name, number = f"{base}-{number}", number + 1
        named[name] = recipe
    if not named:
        raise InputError("recipes is empty: name at least one, for example recipes=['int8'].")
    return named
