"""What a plan's names resolve to: the data, how the dense model is built and trained, its given weights."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from ...compression.distillation.student import offer_factory
from ...targets.answers import answer_with_logits, answers_with_logits
from ...targets.data.data import Data
from ...targets.errors import CrushproofError, InputError, NotApplicable, nearest_hint, user_error
from ...targets.plain import plain
from ...training.architecture import Architecture
from ...training.loop import Training
from ...training.trainer import BuiltinTrainer, Trainer, UserTrainer
from ..plan.plan import DENSE, Plan
from ..plan.sections import ModelPlan
from .audited import DenseModel
from .claims import claim_of
from .finished_file import OpenedFile, Reading, open_all, paths_of, question_of
from .identity import name_of, state_digest
from .records import load_data
from .sources import source_digest

SHADOWS_DIFFER = (
    "The dense model came with its weights and the plan does not say how it was trained: shadow models use the "
    "built-in training, so what it gives away of its training records may be underestimated. Name model.training or "
    "model.training_function."
)


@dataclass(frozen=True)
class Subject:
    """The models and data under audit.

    Args:
        model: the dense model; None when only finished files are at hand.
        files: finished files by the name of their candidate, or of the dense model.
        identity: with the data's digest it decides cache keys: architecture, trainer, weights, the code of all three.
        notes: sentences the reader of the report must know.
        question: what decides the meaning of `files`, a JSON value; None: there are none.
        together: by dense model, the answer of `stacks`, where no module is at hand to tell.
    """

    data: Data
    model: DenseModel | None
    identity: str
    files: Mapping[str, OpenedFile] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    question: Any = None
    together: Mapping[str, tuple[int, int]] = field(default_factory=dict)


Recall = Callable[[Any], Mapping[str, Any] | None]  # from a question to the JSON of the readings that answer it


def resolve(plan: Plan, folder: Path, recall: Recall | None = None, *, checked: bool = False) -> Subject:
    """Loads what the plan names; paths and modules are looked up in `folder`, where the plan lies.

    Args:
        recall: gives what another process or run found out about the finished files, if one did.
        checked: it comes from the process that started this one, and that one read the files with suspicion.

    Raises:
        InputError, UnsafeInput: as the loaders of data, weights and files do, and for a `module:function` that is not
            there or fails.
    """
    data = load_data(plan, folder)
    question = question_of(plan, folder, data)
    known = None if recall is None or question is None else recall(question)
    try:
        readings = None if known is None else {name: Reading.model_validate(known[name]) for name in paths_of(plan)}
    except (KeyError, ValidationError):  # written by another version: found out anew
        readings = None
    files = open_all(plan, folder, data, readings, checked=checked)
    if plan.model is None:
        return Subject(data, None, "files", files, question=question)
    state: dict[str, Tensor] | None
    changed: tuple[str, ...] = ()
    if plan.model.file is not None:
        architecture, state, digests = _imported(files[DENSE], data)
    else:
        architecture, state, digests, changed = _built(plan, plan.model, folder, data)
    if plan.model.training_function is not None:
        path = plan.model.training_function
        function = checked_training(import_function(path, folder), path)
        trainer: Trainer = UserTrainer(function, f"{path}@{source_digest([path.partition(':')[0]], folder)}")
    else:
        trainer = BuiltinTrainer(Training.model_validate(plan.model.training))
    step = None
    if plan.claims is not None and (named := plan.claims.step) is not None:
        step = import_function(named, folder)
        digests.append(f"{named}@{source_digest([named.partition(':')[0]], folder)}")
    for path in student_factories(plan):
        offer_factory(path, import_function(path, folder))
        digests.append(f"{path}@{source_digest([path.partition(':')[0]], folder)}")
    differ = state is not None and plan.model.training_function is None and not plan.model.training
    return Subject(
        data,
        DenseModel(
            DENSE,
            architecture,
            trainer,
            state=state,
            shadows_differ=differ,
            notes=changed,
            file=files.get(DENSE),
            claim=claim_of(plan.claims, data, step),
        ),
        "|".join([*digests, trainer.identity]),
        files,
        (SHADOWS_DIFFER,) if differ else (),
        question,
    )


def student_factories(plan: Plan) -> list[str]:
    """Every `module:function` that a recipe of the plan names as its student."""
    found: dict[str, None] = {}
    todo: list[Any] = [candidate.recipe for candidate in plan.candidates.values()]
    while todo:
        one = todo.pop(0)
        if isinstance(one, Mapping):
            if one.get("kind") == "distill" and isinstance(one.get("student"), str):
                found[one["student"]] = None
            todo += one.values()
        elif isinstance(one, list | tuple):
            todo += one
    return list(found)


def _built(
    plan: Plan, model: ModelPlan, folder: Path, data: Data
) -> tuple[Architecture, dict[str, Tensor] | None, list[str], tuple[str, ...]]:
    """The architecture the plan names, its weights if it names any, what identifies both, and what was changed."""
    from ...targets.untrusted.weights import load_weights

    path = str(model.architecture)
    code = source_digest([path.partition(":")[0]], folder)
    build = import_function(path, folder)
    parameters = dict(model.parameters)
    own = Architecture(path, lambda: checked_module(build, parameters, path))  # as its weights were saved
    fresh = own.fresh(plan.seed)  # here, so that a mistake in the plan is met before anything is computed
    if model.weights is not None:
        load_weights(fresh, folder / model.weights)
    module, changed = plain(fresh, data.non_members.x[:2])
    logits_only = answers_with_logits(module)
    architecture = Architecture(f"{path}({parameters})", lambda: answer_with_logits(plain(own.build())[0], logits_only))
    digests = [architecture.name, code]
    if model.weights is None:
        return architecture, None, digests, tuple(changed)
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    return architecture, state, [*digests, state_digest(state)], tuple(changed)


def _imported(file: OpenedFile, data: Data) -> tuple[Architecture, dict[str, Tensor], list[str]]:
    """A dense model from an ONNX file: its twin is a torch module, which recipes compress and shadows are like."""
    try:
        module = file.differentiable(data)
    except NotApplicable as error:
        raise InputError(
            f"The dense model {file.name} cannot be turned into a torch module, which compression and white-box "
            f"attacks need: {error} Name it as architecture and weights instead, or leave it out."
        ) from None
    architecture = Architecture.like(module, f"file:{file.digest}")
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    return architecture, state, [architecture.name, file.identity]


def import_function(path: str, folder: Path) -> Callable[..., Any]:
    """The function a plan names as `module:function`: a file beside the plan, or an installed module.

    A plan is trusted like code (see README, "What is trusted").
    """
    module_name, _, function_name = path.partition(":")
    if not function_name:
        raise InputError(f"{path!r} must name a function as module:function, for example my_model:build.")
    try:
        module = import_module(module_name, folder)
    except CrushproofError:
        raise
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(
                f"{path!r}: importing {module_name} failed, because it needs a module that was not found: "
                f"{user_error(error)}. Put it beside the plan or install it."
            ) from None
        if module_name.endswith(".py"):
            raise InputError(f"{path!r} names a file: write the module, {module_name[:-3]}:{function_name}.") from None
        raise InputError(
            f"{path!r}: module {error.name!r} was found neither in {folder} nor among the installed packages. Put "
            f"{module_name.replace('.', '/')}.py beside the plan or install the package."
        ) from None
    except (Exception, SystemExit) as error:  # a plan's code may raise anything
        raise InputError(f"{path!r}: importing {module_name} failed: {user_error(error)}.") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        hint = nearest_hint(function_name, [name for name, one in vars(module).items() if callable(one)])
        raise InputError(f"{path!r}: module {module_name!r} has no function {function_name!r}.{hint}")
    return function  # type: ignore[no-any-return]  # callable() does not narrow Any


def import_module(name: str, folder: Path) -> ModuleType:
    folder = folder.absolute()
    file = folder / (name.replace(".", "/") + ".py")
    if not file.is_file():
        return importlib.import_module(name)
    # Loaded under a name of its own, so that a my_model.py beside the plan never collides with an installed package,
    # and a file that changed in the meantime is loaded anew.
    digest = hashlib.sha256(f"{file.resolve()}{source_digest([name], folder)}".encode()).hexdigest()
    unique = f"crushproof_plan_{digest[:12]}_{file.stem}"
    if unique not in sys.modules:
        spec = importlib.util.spec_from_file_location(unique, file)
        if spec is None or spec.loader is None:  # cannot be for a .py file; the type checker does not know
            raise ImportError(f"no loader for {file}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        forget_changed_neighbours(folder)
        before = set(sys.modules)
        sys.path.insert(0, str(folder))  # so that the file's own imports of its neighbours work
        keep, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # bytecode misses edits within one second
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[unique]
            raise
        finally:
            sys.dont_write_bytecode = keep
            sys.path.remove(str(folder))
            for neighbour in set(sys.modules) - before - {unique}:
                source = getattr(sys.modules[neighbour], "__file__", None)
                if source and source.endswith(".py") and Path(source).is_relative_to(folder):
                    NEIGHBOURS[neighbour] = Path(source), hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return sys.modules[unique]


NEIGHBOURS: dict[str, tuple[Path, str]] = {}  # modules that plans' files imported: their files and those digests


def forget_changed_neighbours(folder: Path) -> None:
    """Unloads what an earlier plan of this process brought in, if it lies elsewhere or was edited since."""
    for file, digest in NEIGHBOURS.values():
        unchanged = file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest
        if not unchanged or not file.is_relative_to(folder):
            for name in NEIGHBOURS:
                sys.modules.pop(name, None)
            NEIGHBOURS.clear()
            return


def checked_module(build: Callable[..., Any], parameters: dict[str, Any], path: str) -> nn.Module:
    """What `build` returns for the plan's parameters.

    Raises:
        InputError: it does not take them, fails, or returns no module.
    """
    if isinstance(build, nn.Module):
        raise InputError(
            f"{path!r} is a model, and a function is needed that builds it, untrained, again and again: def build(): "
            f"return {type(build).__name__}(...)."
        )
    if (problem := mismatch(build, **parameters)) is not None:
        raise InputError(
            f"{path!r} does not accept the plan's model.parameters: {problem}. They are its keyword arguments: "
            "parameters: {classes: 10}, for example."
        )
    try:
        module = build(**parameters)
    except CrushproofError:
        raise
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
        raise InputError(f"{path}({given}) raised {user_error(error)}.") from None
    if not isinstance(module, nn.Module):
        raise InputError(f"{path!r} must return a torch.nn.Module; it returned {_returned(module)}.")
    return module


def _returned(value: Any) -> str:
    """What a function returned in place of a module, in words."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself: make one of it, {value.__name__}(...)"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}: return one model, of a list of layers nn.Sequential(*layers)"
    return "nothing: a return is missing" if value is None else type(value).__name__


def checked_training(function: Callable[..., Any], path: str | None = None) -> Callable[..., Any]:
    """`function`, if it can be called as a training function is."""
    if (problem := mismatch(function, None, None, None, 0)) is not None:
        raise InputError(
            f"The training function {path or name_of(function)} cannot be called as function(module, x, y, seed): "
            f"{problem}."
        )
    return function


def mismatch(function: Callable[..., Any], *arguments: Any, **named: Any) -> str | None:
    """Why a function does not take these arguments; None when it does, or when it does not say."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some builtins
        return None
    try:
        signature.bind(*arguments, **named)
    except TypeError as error:
        return str(error)
    return None
