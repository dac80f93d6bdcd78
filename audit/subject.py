"""What a plan's names resolve to: the data, how the dense model is built and trained, its given weights."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ..targets.data import Bounds, Data, load_digits
from ..targets.errors import InputError
from ..training.architecture import Architecture
from ..training.loop import Training
from ..training.trainer import BuiltinTrainer, Trainer, UserTrainer
from .plan import Plan


@dataclass(frozen=True)
class Subject:
    """The model and data under audit.

    Args:
        state: given weights of the dense model; None when the audit trains it.
        identity: decides cache keys together with the data's digest: architecture, trainer, given weights.
    """

    data: Data
    architecture: Architecture
    trainer: Trainer
    state: dict[str, Tensor] | None
    identity: str


def resolve(plan: Plan, folder: Path) -> Subject:
    """Loads what the plan names; paths and modules are looked up in `folder`, where the plan lies.

    Raises:
        InputError, UnsafeInput: as the loaders of data and weights do, and for a `module:function` that is not there.
    """
    from ..targets.weights import load_weights

    data = load_data(plan, folder)
    build = import_function(plan.model.architecture, folder)
    parameters = dict(plan.model.parameters)
    architecture = Architecture(
        f"{plan.model.architecture}({parameters})", lambda: checked_module(build, parameters, plan.model.architecture)
    )
    fresh = architecture.fresh(plan.seed)  # here, so that a mistake in the plan is met before anything is computed
    digests = [architecture.name, source_digest(build)]
    if plan.model.training_function is not None:
        function = import_function(plan.model.training_function, folder)
        trainer: Trainer = UserTrainer(function, f"{plan.model.training_function}@{source_digest(function)}")
    else:
        trainer = BuiltinTrainer(Training.model_validate(plan.model.training))
    state = None
    if plan.model.weights is not None:
        load_weights(fresh, folder / plan.model.weights)
        state = {name: tensor.detach().clone() for name, tensor in fresh.state_dict().items()}
        digests.append(state_digest(state))
    return Subject(data, architecture, trainer, state, "|".join([*digests, trainer.identity]))


def load_data(plan: Plan, folder: Path) -> Data:
    from ..targets.loading import load_csv, load_npz

    source = plan.data
    if source.kind == "digits":
        return load_digits(plan.seed)
    if source.kind == "memory":
        raise InputError("data.kind memory is for crushproof.audit_model only: save the records as .npz and name it.")
    bounds = None if source.bounds is None else Bounds.of(*source.bounds)
    names = None if source.class_names is None else tuple(source.class_names)
    if source.kind == "npz":
        return load_npz(folder / source.path, bounds=bounds, class_names=names, seed=plan.seed, name=source.name)
    train = None if source.train_path is None else folder / source.train_path
    return load_csv(
        train,
        folder / source.test_path,
        label=source.label,
        bounds=bounds,
        class_names=names,
        seed=plan.seed,
        name=source.name,
    )


def import_function(path: str, folder: Path) -> Callable[..., Any]:
    """The function a plan names as `module:function`: a file beside the plan, or an installed module.

    A plan is trusted like code (see README, "What is trusted").
    """
    module_name, _, function_name = path.partition(":")
    if not function_name:
        raise InputError(f"{path!r} must name a function as module:function, for example my_model:build.")
    try:
        module = import_module(module_name, folder)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path!r}: module {error.name!r} was found neither in {folder} nor among the installed packages. Put "
            f"{module_name.replace('.', '/')}.py beside the plan or install the package."
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"{path!r}: module {module_name!r} has no function {function_name!r}.")
    return function  # type: ignore[no-any-return]  # callable() does not narrow Any


def import_module(name: str, folder: Path) -> ModuleType:
    file = folder / (name.replace(".", "/") + ".py")
    if not file.is_file():
        return importlib.import_module(name)
    # Loaded under a name of its own, so that a my_model.py beside the plan never collides with an installed package.
    unique = f"crushproof_plan_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}_{file.stem}"
    if unique not in sys.modules:
        spec = importlib.util.spec_from_file_location(unique, file)
        if spec is None or spec.loader is None:  # cannot be for a .py file; the type checker does not know
            raise ImportError(f"no loader for {file}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        sys.path.insert(0, str(folder))  # so that the file's own imports of its neighbours work
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[unique]
            raise
        finally:
            sys.path.remove(str(folder))
    return sys.modules[unique]


def checked_module(build: Callable[..., Any], parameters: dict[str, Any], path: str) -> nn.Module:
    try:
        module = build(**parameters)
    except TypeError as error:
        raise InputError(f"{path!r} does not accept the plan's model.parameters: {error}.") from None
    if not isinstance(module, nn.Module):
        raise InputError(f"{path!r} must return a torch.nn.Module; it returned {type(module).__name__}.")
    return module


def source_digest(function: Callable[..., Any]) -> str:
    """Of the file the function lives in: a changed line there is another model."""
    file = inspect.getsourcefile(function)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else repr(function)


def state_digest(state: dict[str, Tensor]) -> str:
    """sha256 (hex) of a state dict's names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
