"""The checks every model passes before it is audited.

Each fault has its own sentence: what is wrong, where, and how to mend it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .data.checks import shown_range
from .data.records import Bounds, Records
from .errors import InputError
from .model import Target

CHANCE_P = 0.01  # a model whose agreement with the labels is this likely by luck is at chance
PROBED = 2_000  # records a model is checked on


def check_model(target: Target, records: Records, bounds: Bounds, outputs: int) -> list[str]:
    """Notes about a model that does answer as an audit assumes.

    Args:
        target: answers x float32 [n, *shape] with logits.
        records: non-members; at most 2,000 of them, evenly spread, are asked about.
        bounds: of the inputs.
        outputs: how many numbers it must answer for a record: one per class, or the values it predicts.

    Raises:
        InputError: it cannot take the records, answers with another shape, with NaN, with probabilities instead of
            logits, or agrees with the labels no better than chance (with values: no better than their mean).
    """
    step = -(-len(records) // PROBED)
    x, y = records.x[::step], records.y[::step]
    try:
        logits = target.logits(x)
    except Exception as error:  # the user's own forward can raise anything
        raise InputError(
            f"The model cannot take records of shape {list(x.shape[1:])}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}. Give it float32 inputs [n, {', '.join(map(str, x.shape[1:]))}] and "
            "let it return one tensor."
        ) from error
    if y.is_floating_point():
        return _check_predictions(y, logits)
    classes = outputs
    if logits.shape != (len(x), classes):
        hint = " Give a two-class model two outputs." if classes == 2 and logits.shape[1:] in ((), (1,)) else ""
        taken = torch.unique(y)
        if logits.dim() == 2 and len(taken) == logits.shape[1]:
            hint = (
                f" The labels take {len(taken)} values, from {int(taken[0])} to {int(taken[-1])}: number them 0 to "
                f"{len(taken) - 1}, in the order of the model's outputs."
            )
        raise InputError(
            f"The model answers {len(x)} records with shape {list(logits.shape)}, and [{len(x)}, {classes}] is "
            f"expected: one logit per class.{hint} The data has {classes} classes by its class names or its largest "
            f"label ({classes - 1}). Check the output layer, the labels and the class names."
        )
    if not bool(torch.isfinite(logits).all()):
        broken = int((~torch.isfinite(logits)).any(1).sum())
        raise InputError(
            f"The model answers {broken} of {len(x)} records with NaN or infinite logits. Its weights are broken, or "
            "the inputs are in other units than it was trained on."
        )
    in_unit = bool((logits >= 0).all() and (logits <= 1).all())
    if in_unit and bool(((logits.sum(1) - 1).abs() < 1e-3).all()):
        raise InputError(
            "The model answers with probabilities (each row lies in [0, 1] and sums to 1), and logits are expected: "
            "gradients through a softmax vanish and would hide weaknesses. Remove the softmax, or return its logarithm."
        )
    notes = ["All outputs lie in [0, 1]; if they come from a sigmoid, return the values before it."] if in_unit else []
    return notes + _check_accuracy(target, x, y, logits, bounds, classes)


def _check_predictions(y: Tensor, predicted: Tensor) -> list[str]:
    """A model of values must do better than their mean; with a margin of one point of their variance."""
    if predicted.shape != y.shape:
        raise InputError(
            f"The model answers {len(y)} records with shape {list(predicted.shape)}, and {list(y.shape)} is expected: "
            "one number per value to predict."
        )
    if not bool(torch.isfinite(predicted).all()):
        raise InputError("The model answers some records with NaN or infinity. Its weights are broken.")
    share = float((predicted - y).double().square().mean() / y.double().var(0, correction=0).mean())
    if share >= 0.99:
        raise InputError(
            f"The model's squared error is {share:.2f} times the variance of the values: predicting their mean does as "
            "well. Check that inputs and values are scaled as in training, and that the right weights were loaded."
        )
    return [f"The model explains little: its squared error is {share:.2f} of the variance."] if share > 0.8 else []


def _check_accuracy(target: Target, x: Tensor, y: Tensor, logits: Tensor, bounds: Bounds, classes: int) -> list[str]:
    """Cohen's kappa above zero, by a one-sided binomial test against the agreement of unrelated predictions."""
    from scipy.stats import binomtest

    predicted = logits.argmax(1)
    right, n = int((predicted == y).sum()), len(y)
    shares = [torch.bincount(labels, minlength=classes).double() / n for labels in (predicted, y)]
    chance = float((shares[0] * shares[1]).sum())
    if chance < 1 and binomtest(right, n, chance, alternative="greater").pvalue < CHANCE_P:
        kappa = (right / n - chance) / (1 - chance)
        return [f"The model agrees with the labels only weakly (Cohen's kappa {kappa:.2f})."] if kappa < 0.2 else []
    raise InputError(
        f"The model gets {right} of {n} non-members right, which is chance ({chance:.0%}), and a model at chance is "
        f"neither private nor robust. {_suspicion(target, x, y, predicted, bounds, classes)}Check that the inputs "
        f"are scaled and normalised as in training (the data's bounds are {shown_range(bounds)}), that labels and "
        "class names are in the order of the model's outputs, and that the right weights were loaded into the right "
        "architecture."
    )


def _suspicion(target: Target, x: Tensor, y: Tensor, predicted: Tensor, bounds: Bounds, classes: int) -> str:
    """Which assumption is broken, where trying the usual ones tells: other class order, other units.

    Judged by the mean over classes of the share that is right: of a class that makes up nearly all records any constant
    answer, renamed, would be right on nearly all.
    """
    from scipy.optimize import linear_sum_assignment

    if classes <= 1_000:
        confusion = torch.bincount(y * classes + predicted, minlength=classes**2).reshape(classes, classes).numpy()
        rows, columns = linear_sum_assignment(-confusion)
        renamed = torch.empty(classes, dtype=torch.int64)
        renamed[torch.from_numpy(columns)] = torch.from_numpy(rows)
        if _balanced(renamed[predicted], y) > 0.7:
            return "Its predictions fit once classes are renamed, so the order of the classes is the likely cause. "
    unit = (x - bounds.low) / bounds.scale
    for words, other in (("[0, 1]", unit), ("[0, 255]", unit * 255), ("[-1, 1]", unit * 2 - 1)):
        try:
            answered = target.logits(other)
        except (IndexError, RuntimeError, InputError):  # ids outside a vocabulary: units that it cannot take
            continue
        if _balanced(answered.argmax(1), y) > 0.7:
            return f"It is right on most when the inputs are scaled to {words}, so their units are the likely cause. "
    if bool((predicted == predicted[0]).all()):
        return f"It gives class number {int(predicted[0])} to every record. "
    return ""


def _balanced(predicted: Tensor, y: Tensor) -> float:
    """The share that is right, in the mean over the classes that occur."""
    return float(torch.stack([(predicted[y == label] == label).double().mean() for label in torch.unique(y)]).mean())
