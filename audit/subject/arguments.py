"""The arguments of the Python call, refused where they are of another sort than meant, by the name they were given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ...targets.errors import InputError, quoted
from ...training.loop import Training

TASKS = ("classification", "regression")


def refuse_misfits(
    *, model: Any, training: Any, build: Any, bounds: Any, policy: Any, shadows: Any, class_names: Any, task: Any
) -> None:
    """Refuses what is not of the sort that `crushproof.audit_model` asks for; it says how to write it.

    Raises:
        InputError: the first that does not fit.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a trained torch.nn.Module; it is {_word(model)}.{_mend(model)}")
    if not (training is None or isinstance(training, Training) or _function(training)):
        raise InputError(
            f"training must be a function (module, x, y, seed) -> module, or the settings of the built-in training, "
            f"crushproof.Training(epochs=10); it is {_word(training)}."
        )
    if not (build is None or _function(build) or isinstance(build, nn.Module)):
        raise InputError(f"build must be a function that returns the untrained model; it is {_word(build)}.")
    if not (bounds is None or _two_numbers(bounds)):
        raise InputError(
            f"bounds must be the smallest and the largest value of an input, such as (0, 1); it is {quoted(bounds)}."
        )
    if not isinstance(policy, str | Mapping | None):
        raise InputError(
            "policy must be the name of a policy ('release'), the path of a policy file, or limits such as "
            f"{{'changes': {{'accuracy': -0.02}}}}; it is {_word(policy)}."
        )
    if not (shadows is None or isinstance(shadows, Mapping)):
        raise InputError(
            f"shadows must say how many of each sort, {{'training_free': 64, 'trained': 16}}; it is {_word(shadows)}."
        )
    if isinstance(class_names, str) or not (class_names is None or isinstance(class_names, Iterable)):
        raise InputError(
            f"class_names must be a list with a name for each output of the model; it is {_word(class_names)}."
        )
    if task not in TASKS:
        raise InputError(f"task must be {' or '.join(TASKS)}; it is {quoted(task)}.")


def _function(value: Any) -> bool:
    return callable(value) and not isinstance(value, nn.Module)


def _two_numbers(bounds: Any) -> bool:
    try:
        return len([float(one) for one in bounds]) == 2 and not isinstance(bounds, str)
    except (TypeError, ValueError):
        return False


def _word(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _mend(model: Any) -> str:
    if isinstance(model, type):
        return f" Make one of it and load its weights: model = {model.__name__}(...)."
    if isinstance(model, Mapping):
        return " If it is a state dict, load it into its network first: net.load_state_dict(...)."
    if isinstance(model, list | tuple) and any(isinstance(one, nn.Module) for one in model):
        return " Hand over one model a call."
    if isinstance(model, str):
        return " Load it first; a finished .onnx or .tflite file is audited by crushproof audit --artifact FILE."
    return ""
