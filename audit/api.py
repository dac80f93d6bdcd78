"""The audit as a Python call, for a model and data that are already in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..compression.distillation.student import offered
from ..compression.recipe import RECIPES, Recipe
from ..compression.words import RECIPE_WORDS
from ..targets.answers import answer_with_logits, answers_with_logits
from ..targets.data.data import Data
from ..targets.data.declared import Declared
from ..targets.data.further.forgetting import set_aside
from ..targets.data.labels import class_numbers, predicted_values, sorted_labels
from ..targets.data.npz import read_structure
from ..targets.data.records import Bounds, Records
from ..targets.errors import InputError, nearest_hint, quoted
from ..targets.plain import plain, scripted
from ..targets.temporary import scratch
from ..training.architecture import Architecture
from ..training.loop import Training
from ..training.trainer import BuiltinTrainer, Trainer, UserTrainer
from .engine.progress import Progress
from .plan.plan import DENSE, Plan, check_techniques, validated
from .plan.sections import DeclaredData
from .plan.yaml_text import Source
from .result import AuditResult
from .run import run_audit
from .subject.arguments import refuse_misfits
from .subject.audited import DenseModel
from .subject.identity import code_digest, model_digest, name_of
from .subject.resolve import SHADOWS_DIFFER, Subject, checked_module, checked_training, student_factories
from .subject.scripted import without_script

SHADOWS_DIFFER_HERE = SHADOWS_DIFFER.replace("the plan does not", "the call does not").replace(
    "Name model.training or model.training_function.", "Name training=."
)

Arraylike = np.ndarray[Any, Any] | Tensor


def audit_model(
    model: nn.Module,
    train: tuple[Arraylike, Arraylike] | None,
    test: tuple[Arraylike, Arraylike],
    recipes: str | Recipe | Sequence[str | Recipe | Mapping[str, Any]] | Mapping[str, Any],
    *,
    policy: str | Mapping[str, Any] | None = None,
    attacks: str | Sequence[Any] = "standard",
    training: Training | Callable[[nn.Module, Tensor, Tensor, int], nn.Module] | None = None,
    build: Callable[[], nn.Module] | None = None,
    shadows: Mapping[str, Any] | None = None,
    bounds: tuple[float, float] | Mapping[int | str, tuple[float, float]] | None = None,
    structure: Mapping[str, Any] | None = None,
    forget: Sequence[int] | Arraylike | None = None,
    class_names: Sequence[str] | None = None,
    task: Literal["classification", "regression"] = "classification",
    name: str = "model",
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> AuditResult:
    """Audits compressed versions of a trained model, in this process.

    Args:
        model: the trained dense model; it is copied, never changed. It may be wrapped, parametrised, in other floats or
            TorchScript (see docs/inputs.md, "Models").
        train: x float [n, *shape] and y int [n] that it was trained on; without it no attack on
            them is run. Labels may be texts: the classes are then the distinct ones, sorted, or as `class_names` orders
            them.
        test: the same for records it has never seen.
        recipes: short words ("int8"), kinds, recipes or mappings as in a plan ({"kind": "prune", "sparsity": 0.8}); a
            mapping of names gives each candidate its own: {"small": {"kind": "prune", "sparsity": 0.8}}.
        policy: a built-in one by name, a file, or limits; left out: release as far as these inputs can decide it.
        training: how the model was trained, for shadow models: hyper-parameters of the built-in loop, or a function
            `(module, x, y, seed) -> module`. Left out, shadow models use the built-in training as it is, and the
            report says so.
        build: returns the untrained model, for shadow models; needed where a layer cannot initialise itself anew (it
            holds an nn.Parameter and has no reset_parameters).
        shadows: how many shadow models, `{"training_free": 64, "trained": 16}`; 0: none, an attacker has records of its
            own to compare with; 1: one reference. Or the leak to be seen, `{"leak": 0.08, "within": "20 min"}`.
        task: regression: y are values to predict, float [n] or [n, outputs]; the error is audited, and no attack.
        bounds: smallest and largest value of an input, of a table also by column; epsilon counts in units of their
            distance. Left out: the range of the grid that the values lie on ([0, 1], [0, 255], [0, 16] ...); where that
            is a guess a flag says so.
        structure: what the values are where they are no plain numbers: `immutable`, `categorical`, `one_hot`,
            `integer`, `tokens`, as in the `data` of a plan. Columns are named by position, or as a DataFrame names
            them.
        forget: which of the records in `train` the model was to forget, positions from 0 or a mask: whether it did,
            and whether compression brings them back, is then asked of every candidate.
        out: a folder that keeps evidence and finished cells, so that the next call resumes; default: none is kept.

    Raises:
        InputError: data, model or a recipe is wrong; the message says how to mend it.
        Incomplete: a cell failed.
    """
    refuse_misfits(
        model=model,
        training=training,
        build=build,
        bounds=bounds,
        policy=policy,
        shadows=shadows,
        class_names=class_names,
        task=task,
    )
    declared = validated(DeclaredData, {} if structure is None else structure, Source("structure=")).declared
    data = _data(train, test, bounds, declared, class_names, name, seed, forget, regression=task == "regression")
    module, changed = _plain(model, data)
    architecture = _architecture(module, build, type(model).__name__)
    state = {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}
    trainer: Trainer
    if training is None or isinstance(training, Training):
        trainer = BuiltinTrainer(training or Training())
    else:
        trainer = UserTrainer(checked_training(training), f"{name_of(training)}@{code_digest(training)}")
    identity = f"{architecture.name}|{model_digest(module)}|{trainer.identity}"
    plan = validated(
        Plan,
        {
            "name": name,
            "seed": seed,
            "data": {"kind": "memory", "name": name},
            "model": {"architecture": "memory:model"},
            "candidates": _candidates(recipes),
            "attacks": attacks if isinstance(attacks, str) else _listed(attacks),
            "policy": dict(policy) if isinstance(policy, Mapping) else policy,
            "shadows": dict(shadows or {}),
            "engine": {"kind": "local", "workers": 0},
        },
        Source("the call of audit_model"),
    )
    check_techniques(plan)
    for path in student_factories(plan):
        build_student = offered(path)
        identity += f"|{path}" if build_student is None else f"|{path}@{code_digest(build_student)}"
    notes = (SHADOWS_DIFFER_HERE,) if training is None else ()
    dense = DenseModel(DENSE, architecture, trainer, state=state, shadows_differ=training is None, notes=tuple(changed))
    subject = Subject(data, dense, identity, notes=notes)
    with scratch() as temporary:
        folder = temporary if out is None else Path(out)
        return AuditResult(run_audit(plan, Path(), folder, subject=subject, progress=progress, command=""))


def _listed(attacks: Any) -> list[Any]:
    return list(attacks) if isinstance(attacks, Sequence) else [attacks]


def _plain(model: nn.Module, data: Data) -> tuple[nn.Module, list[str]]:
    """The model as layers that can be compressed, and what had to be changed for it."""
    example = data.non_members.x[:2]
    if not scripted(model):
        return plain(model, example)
    read, sentence = without_script(model, example)
    module, notes = plain(read)
    return module, [sentence, *notes]


def _architecture(module: nn.Module, build: Callable[[], nn.Module] | None, label: str) -> Architecture:
    """How models of this structure are made.

    Args:
        module: plain (see `targets.plain`); `label` is what the report calls its type.

    Raises:
        InputError: `build` fails, or builds something else.
    """
    like = Architecture.like(module, label)
    if build is None:
        return like
    name, given = name_of(build), build
    architecture = Architecture(
        f"{like.name}|{name}@{code_digest(build)}",
        lambda: answer_with_logits(plain(checked_module(given, {}, name))[0], answers_with_logits(module)),
        like.pattern,
    )
    wanted, built = (
        {key: tuple(value.shape) for key, value in one.state_dict().items()} for one in (module, architecture.fresh(0))
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
    bounds: tuple[float, float] | Mapping[int | str, tuple[float, float]] | None,
    declared: Declared,
    class_names: Sequence[str] | None,
    name: str,
    seed: int,
    forget: Any,
    *,
    regression: bool,
) -> Data:
    splits = {"test": test} | ({} if train is None else {"train": train})
    raw, x, y = {}, {}, {}
    for split, pair in splits.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(
                f"{split} must be a pair (x, y) of arrays; it is {type(pair).__name__}. Stack the records of a data "
                "set or loader into two arrays first."
            )
        inputs = _array(pair[0], f"x of {split}")
        if inputs.dtype.kind not in "fiub":
            raise InputError(f"x of {split} holds {inputs.dtype} values. Give numbers, such as float32.")
        raw[split] = inputs  # in their own type, which tells something of their bounds
        x[split] = torch.from_numpy(np.array(inputs, dtype=np.float32))
        y[split] = _array(pair[1], f"y of {split}")
    notes: tuple[str, ...] = ()
    if regression:
        answers = {split: torch.from_numpy(predicted_values(own, f"y of {split}")) for split, own in y.items()}
        class_names = []
    else:
        texts = {split: _texts(own) for split, own in y.items()}
        written = [own for own in texts.values() if own is not None]
        if written and len(written) < len(y):
            raise InputError("The labels of one split are texts and those of the other are not. Write both alike.")
        if written and class_names is None:
            class_names = sorted_labels(written)
            notes = (
                f"The labels are texts, taken as the model's outputs in this order: {', '.join(class_names[:20])}"
                f"{', ...' if len(class_names) > 20 else ''}.",
            )
        names = list(class_names or ())
        answers = {
            split: torch.from_numpy(_numbered(own, texts[split], names, f"y of {split}")) for split, own in y.items()
        }
        if class_names is None:
            most = max((int(own.max()) for own in answers.values() if len(own)), default=0)
            class_names = [str(label) for label in range(most + 1)]
    records = {split: Records(x[split], answers[split]) for split in splits}
    columns = [str(column) for column in getattr(test[0], "columns", ())]  # of a DataFrame
    limits = Bounds.of(*bounds) if isinstance(bounds, tuple | list) else bounds
    structure, limits, told, doubt = read_structure(list(raw.values()), declared, limits, columns, "the arrays")
    members, forgotten = records.get("train"), None
    if forget is not None:
        asked = _array(forget, "forget")
        members, forgotten, _ = set_aside(members, asked, "forget=")
    return Data(
        name,
        members,
        records["test"],
        limits,
        tuple(class_names),
        seed=seed,
        notes=(*notes, *told),
        bounds_doubt=doubt,
        structure=structure,
        forgotten=forgotten,
    )


def _array(values: Any, where: str) -> np.ndarray[Any, Any]:
    """What a user calls an array: of NumPy, torch or pandas, or nested lists."""
    try:
        if isinstance(values, list | tuple) and values and all(isinstance(one, Tensor) for one in values):
            values = torch.stack(list(values))
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, sparse tensors
        why = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(f"{where} is no array of equal records: {why}. Stack records of one shape.") from None


def _texts(y: np.ndarray[Any, Any]) -> list[str] | None:
    """The labels where they are texts; None where they are not."""
    flat = y.reshape(-1).tolist() if y.ndim == 1 or y.shape[1:] == (1,) else []
    return flat if flat and all(isinstance(label, str) for label in flat) else None


def _numbered(
    y: np.ndarray[Any, Any], texts: list[str] | None, names: list[str], where: str
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Class numbers: the positions of texts among `names`; whole numbers of any type as they are."""
    if texts is None:
        whole = y.dtype.kind == "O" and all(isinstance(label, int | np.integer) for label in y.reshape(-1))
        whole |= y.dtype.kind == "f" and y.ndim == 1 and bool((y == np.round(y)).all())
        return class_numbers(y.astype(np.int64) if whole else y, where)
    position = {text: number for number, text in enumerate(names)}
    unknown = sorted(set(texts) - set(position))
    if unknown:
        raise InputError(
            f"Label {quoted(unknown[0])} in {where} is not among the class names. Name every class, as it is written "
            "in the labels, in the order of the model's outputs."
        )
    return np.array([position[text] for text in texts], dtype=np.int64)


def _with_functions(recipe: Any) -> Any:
    """A mapping that holds a function (a student's) as the recipe it is, which offers the function by its name."""
    if isinstance(recipe, Mapping) and any(callable(value) for value in recipe.values()):
        return RECIPES.parse(recipe)
    return recipe


def _candidates(recipes: Any) -> dict[str, Any]:
    """Candidates by name: as given, or by what their recipe is called, numbered from the second on."""
    if isinstance(recipes, Mapping) and recipes.get("kind") not in RECIPES.kinds():
        return {name: _with_functions(one) for name, one in recipes.items()}
    if isinstance(recipes, str | Recipe | Mapping):
        recipes = [recipes]
    if not isinstance(recipes, Sequence):
        raise InputError(f"recipes must be a list or a mapping of names to recipes; it is {type(recipes).__name__}.")
    named: dict[str, Any] = {}
    for position, recipe in enumerate(recipes):
        if not isinstance(recipe, str | Recipe | Mapping):
            raise InputError(
                f"recipes[{position}] is {type(recipe).__name__}. Give a short word ('int8'), a kind, a mapping with a "
                "kind, or a recipe."
            )
        if isinstance(recipe, Mapping) and "kind" not in recipe:
            raise InputError(f"recipes[{position}] has no kind. Known: {', '.join(RECIPES.kinds())}.")
        if isinstance(recipe, str) and recipe not in {*RECIPE_WORDS, *RECIPES.kinds()}:
            known = [*RECIPE_WORDS, *RECIPES.kinds()]
            raise InputError(
                f"There is no recipe {quoted(recipe)}.{RECIPES.left_out(recipe) or nearest_hint(recipe, known)} "
                f"Known: {', '.join(known)}."
            )
        one = recipe if isinstance(recipe, str) and recipe in RECIPE_WORDS else RECIPES.parse(recipe)
        name = one if isinstance(one, str) else one.kind
        base, number = name, 2
        while name in named:
            name, number = f"{base}-{number}", number + 1
        named[name] = one
    if not named:
        raise InputError("recipes is empty: name at least one, for example recipes=['int8'].")
    return named
