"""The checks every model passes before it is audited.

Each fault has its own sentence: what is wrong, where, and how to mend it.
"""

from __future__ import annotations

import scipy  # scipy.special alone: scipy.stats takes half a second of every process that imports it
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .data.checks import shown_range
from .data.records import Bounds, Records
from .errors import InputError, user_error
from .forward_faults import answer_of
from .model import Target, TorchTarget, device_of

CHANCE_P = 0.01  # a model whose agreement with the labels is this likely by luck is at chance
PROBED = 2_000  # records a model is checked on
BATCHES = 50  # after which running averages have forgotten where they started
OFF, SEEN = 1.5, 64  # of `off_statistics`, on so many records: honest ones lie below .7, pixels times 255 beyond 9


def check_model(target: Target, records: Records, bounds: Bounds, outputs: int) -> list[str]:
    """Notes about a model that does answer as an audit assumes.

    Args:
        target: answers x float32 [n, *shape] with logits.
        records: test records; at most 2,000 of them, evenly spread, are asked about.
        bounds: of the inputs.
        outputs: how many numbers it must answer for a record: one per class, or the values it predicts.

    Raises:
        InputError: it cannot take the records, answers with another shape, with NaN, with probabilities instead of
            logits, or agrees with the labels no better than chance (with values: no better than their mean).
    """
    step = -(-len(records) // PROBED)
    x, y = records.x[::step], records.y[::step]
    try:
        answers = target.logits(x)
    except Exception as error:  # the user's own forward can raise anything
        raise InputError(_refusal(target, x, error)) from error
    check_answers(answers, outputs, records.y)
    if y.is_floating_point():
        return _check_predictions(y, answers)
    notes = []
    net = target.module if isinstance(target, TorchTarget) else None
    if net is not None and (off_statistics(net, x[:SEEN].to(device_of(net)), BATCHES) or 0) > OFF:
        notes = [
            "What reaches the model's first batch normalisation is far from what it saw in training: check that the "
            f"inputs are in the same units and normalised alike (the data's bounds are {shown_range(bounds)})."
        ]
    if bool((answers >= 0).all() and (answers <= 1).all()):
        notes += ["All outputs lie in [0, 1]; if they come from a sigmoid, return the values before it."]
    return notes + _check_accuracy(target, x, y, answers, bounds, outputs)


def check_answers(answers: Tensor, outputs: int, labels: Tensor) -> None:
    """Refuses answers of the wrong form, of a model that need not be trained yet.

    Args:
        answers: float32, of any records.
        outputs: how many numbers it must answer for a record: one per class, or the values it predicts.
        labels: all that the data has, for the message.

    Raises:
        InputError: another shape, NaN, probabilities instead of logits.
    """
    n = len(answers) if answers.dim() else 1
    if answers.shape != (n, outputs) or not answers.is_floating_point():
        raise InputError(_wrong_shape(answers, outputs, labels))
    if not bool(torch.isfinite(answers).all()):
        broken = int((~torch.isfinite(answers)).any(1).sum())
        raise InputError(
            f"The model answers {broken} of {n} records with NaN or infinity. Its weights are broken, it divides by "
            "zero or takes the logarithm of it, or the inputs are in other units than it was trained on."
        )
    probable = bool((answers >= 0).all() and ((answers.sum(1) - 1).abs() < 1e-3).all())
    if probable and not labels.is_floating_point():
        raise InputError(
            "The model answers with probabilities (each row lies in [0, 1] and sums to 1), and logits are expected: "
            "gradients through a softmax vanish and would hide weaknesses. Remove the softmax, or return its logarithm."
        )


def off_statistics(module: nn.Module, x: Tensor, batches: int = 0) -> float | None:
    """How far the input of the first batch normalisation is from what it was trained on: shift in standard deviations
    plus logarithm of the ratio of variances, of the middle channel each; None where there is none that counted so many
    batches.
    """
    norm = next((one for one in module.modules() if isinstance(one, _BatchNorm)), None)
    if norm is None or norm.running_mean is None or norm.running_var is None:
        return None
    if batches and (norm.num_batches_tracked is None or int(norm.num_batches_tracked) < batches):
        return None
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    try:
        with torch.no_grad():
            module(x)
    finally:  # the module is its owner's
        hook.remove()
    if not seen:
        return None
    values = seen[0].movedim(1, 0).flatten(1).double()
    mean, variance = norm.running_mean.double(), norm.running_var.double() + norm.eps
    shift = (values.mean(1) - mean).abs() / variance.sqrt()
    ratio = ((values.var(1) + norm.eps) / variance).log().abs()
    return float(shift.median() + ratio.median())


def _wrong_shape(answers: Tensor, outputs: int, labels: Tensor) -> str:
    shape = f"{['n', *answers.shape[1:]]}".replace("'n'", "n") if answers.dim() else "[] (a single number)"
    if labels.is_floating_point():
        return (
            f"The model answers with shape {shape}, and [n, {outputs}] is expected: one number per value to predict "
            "(y_test)."
        )
    classes, hint = outputs, ""
    taken = torch.unique(labels)
    if answers.dim() == 2 and int(taken[-1]) < answers.shape[1] < classes:
        hint = (
            f" The test labels (y_test) run from {int(taken[0])} to {int(taken[-1])}, which fits it: either more class "
            "names are given than the model has outputs, or training labels go further."
        )
    elif answers.dim() == 2 and len(taken) == answers.shape[1]:
        hint = (
            f" The labels (y_test) take {len(taken)} values, from {int(taken[0])} to {int(taken[-1])}: number them 0 "
            f"to {len(taken) - 1}, in the order of the model's outputs"
            + (" (y - 1)." if int(taken[0]) == 1 and int(taken[-1]) == len(taken) else ".")
        )
    elif classes == 2 and answers.shape[1:] in ((), (1,)):
        hint = (
            " Give a two-class model two outputs: of its logit z of class 1, return "
            "torch.cat([torch.zeros_like(z), z], dim=1), which decides alike."
        )
    elif answers.dim() > 2:
        hint = " It answers for every step or pixel of a record: let it answer once for each record."
    return (
        f"The model answers with shape {shape}, and [n, {classes}] is expected: one logit per class.{hint} The data "
        f"has {classes} classes by its class names or its largest label ({classes - 1}). Check the output layer, the "
        "labels and the class names."
    )


def _refusal(target: Target, x: Tensor, error: Exception) -> str:
    """Why it does not take the records: of a module by its layers, of another target by its own error."""
    if isinstance(target, TorchTarget):
        why = answer_of(target.module, x[:2].to(device_of(target.module)))
        if isinstance(why, str):
            return why
    return (
        f"The model cannot take records of shape {list(x.shape[1:])}: {user_error(error)}. Give it float32 inputs [n, "
        f"{', '.join(map(str, x.shape[1:]))}] and let it return one tensor."
    )


def _check_predictions(y: Tensor, predicted: Tensor) -> list[str]:
    """A model of values must do better than their mean; with a margin of one point of their variance."""
    share = float((predicted - y).double().square().mean() / y.double().var(0, correction=0).mean())
    if share >= 0.99:
        raise InputError(
            f"The model's squared error is {share:.2f} times the variance of the values: predicting their mean does as "
            "well. Check that inputs and values are scaled as in training, and that the right weights were loaded."
        )
    return [f"The model explains little: its squared error is {share:.2f} of the variance."] if share > 0.8 else []


def _check_accuracy(target: Target, x: Tensor, y: Tensor, logits: Tensor, bounds: Bounds, classes: int) -> list[str]:
    """Cohen's kappa above zero, by a one-sided binomial test against the agreement of unrelated predictions."""
    predicted = logits.argmax(1)
    right, n = int((predicted == y).sum()), len(y)
    shares = [torch.bincount(labels, minlength=classes).double() / n for labels in (predicted, y)]
    chance = float((shares[0] * shares[1]).sum())
    if chance < 1 and at_least(right, n, chance) < CHANCE_P:
        kappa = (right / n - chance) / (1 - chance)
        return [f"The model agrees with the labels only weakly (Cohen's kappa {kappa:.2f})."] if kappa < 0.2 else []
    raise InputError(
        f"The model gets {right} of {n} test records right, which is chance ({chance:.0%}), and a model at chance is "
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


def at_least(count: int, n: int, chance: float) -> float:
    """The probability that `count` or more of `n` come by chance (each in [0, 1]): the one-sided p-value."""
    return float(scipy.special.betainc(count, n - count + 1, chance)) if count > 0 else 1.0


def as_uneven(one: int, other: int) -> float:
    """The probability that fair coins split `one + other` at least as unevenly: McNemar's exact two-sided p-value."""
    return min(1.0, 2 * at_least(max(one, other), one + other, 0.5))


def exact_interval(count: int, n: int) -> tuple[float, float]:
    """95 % interval of a rate (Clopper and Pearson 1934)."""
    low = float(scipy.special.betaincinv(count, n - count + 1, 0.025)) if count > 0 else 0.0
    high = float(scipy.special.betaincinv(count + 1, n - count, 0.975)) if count < n else 1.0
    return low, high
