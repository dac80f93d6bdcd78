"""Sets of assumptions that were tried on a finished file: how they compare, and what the user is told of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.data import Data
from ..errors import quoted
from ..model_checks import CHANCE_P, at_least
from ..runtimes.batches import listed
from ..untrusted.model_file import ModelFile
from .assumptions import Assumptions, Overrides
from .hypotheses import shown_values

TIED = 0.1  # assumptions whose difference is likelier by luck than this are as good as each other: the simplest wins
TEMPERATURES = tuple(2.0**power for power in range(-10, 17))  # 0..255 instead of 0..1 makes logits 2^8 times as large
LIKELIER = 2.5  # standard errors by which the labels are more probable under one of two that are right as often
LEAST_GAIN = 0.01  # nats; less comes of temperatures that are not quite the best
DOUBT = "Under what was given"  # how the sentence starts that says that something else would have fitted clearly better
WEAK = 0.2  # Cohen's kappa; a wrong scaling often keeps as much, so a scaling that was only guessed needs more


@dataclass
class Trial:
    """One set of assumptions, in words, and what it gave.

    Args:
        chosen: consistent with what the user said.
        predicted: int64 [n], -1 where there is no answer.
        likelihoods: float64 [n, len(TEMPERATURES)], the logarithm of the probability of the record's own label, with
            the logits divided by each temperature.
    """

    assumptions: Assumptions
    units: str
    chosen: bool
    predicted: Tensor
    likelihoods: Tensor
    fault: str = ""

    def right(self, y: Tensor) -> Tensor:
        return self.predicted == y[: len(self.predicted)]

    @property
    def likelihood(self) -> Tensor:
        """float64 [n], at the temperature that suits the network best: brighter inputs alone make it no surer."""
        return self.likelihoods[:, int(self.likelihoods.mean(0).argmax())]

    def accuracy(self, y: Tensor) -> float:
        return float(self.right(y).double().mean())


def clearly(better: Trial, worse: Trial, y: Tensor, p: float) -> bool:
    """Exact one-sided McNemar test on the records that both answered."""
    n = min(len(better.predicted), len(worse.predicted))
    ours, theirs = better.right(y)[:n], worse.right(y)[:n]
    won, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return won > lost and at_least(won, won + lost, 0.5) < p


def likelier(one: Trial, other: Trial) -> bool:
    """Whether the labels are clearly more probable under `one`: a paired t test on the records that both answered.

    It tells a network that sees its own pixels from one that sees them a few times too bright, which is right almost as
    often and sure of its mistakes.
    """
    n = min(len(one.likelihoods), len(other.likelihoods))
    gain = one.likelihood[:n] - other.likelihood[:n]
    spread = float(gain.std()) / n**0.5 if n > 1 else 0.0
    return float(gain.mean()) > max(LIKELIER * spread, LEAST_GAIN)


def agreement(predicted: Tensor, y: Tensor, classes: int) -> tuple[float, float]:
    """How likely unrelated predictions with the same shares would be right as often (binomial), and Cohen's kappa."""
    n, right = len(y), int((predicted == y).sum())
    shares = [torch.bincount(labels[labels >= 0], minlength=classes).double() / n for labels in (predicted, y)]
    chance = float((shares[0] * shares[1]).sum())
    if chance >= 1:
        return 1.0, 0.0
    return at_least(right, n, chance), (right / n - chance) / (1 - chance)


def _percent(trial: Trial, y: Tensor) -> str:
    return f"{100 * trial.accuracy(y):.1f} %"


def _shown_labels(labels: tuple[int, ...] | None) -> str:
    return "" if labels is None else f", outputs from {labels[0]} on"


def nothing_fits(tried_as_allowed: list[Trial], best: Trial, trials: list[Trial], y: Tensor, data: Data) -> str:
    groups: dict[str, list[str]] = {}
    for trial in tried_as_allowed:
        head = trial.assumptions.layout + _shown_labels(trial.assumptions.labels)
        groups.setdefault(head, []).append(f"{trial.units} {_percent(trial, y)}")
    tried = "; ".join(f"{head}: {', '.join(rows)}" for head, rows in groups.items())
    hint = max((renamed(trial, y, data.classes) for trial in tried_as_allowed), key=lambda found: found[0])[1]
    barred = [trial for trial in trials if not trial.chosen and not trial.fault]
    if barred:
        rival = max(barred, key=lambda trial: trial.accuracy(y))
        if clearly(rival, best, y, CHANCE_P):
            hint += (
                f" With the values {rival.units} ({rival.assumptions.layout}) {_percent(rival, y)} would be right: "
                "leave out what you gave, or correct it."
            )
    return (
        f"The model's accuracy on {len(y)} test records is not clearly above chance under any assumption about its "
        f"input that was tried ({tried}).{hint} Say how it was trained with --layout, --mean, --std or --labels, or "
        "check that the data belong to this model."
    )


def renamed(trial: Trial, y: Tensor, classes: int) -> tuple[float, str]:
    """The share that would be right in the order of outputs that fits best; where it is telling, with a sentence."""
    from scipy.optimize import linear_sum_assignment

    if classes > 1_000 or trial.assumptions.labels is not None or trial.accuracy(y) > 0.5:
        return 0.0, ""
    answered = trial.predicted >= 0
    codes = y[: len(trial.predicted)][answered] * classes + trial.predicted[answered]
    confusion = torch.bincount(codes, minlength=classes**2).reshape(classes, classes).numpy()
    rows, columns = linear_sum_assignment(-confusion)
    share = float(confusion[rows, columns].sum()) / len(trial.predicted)
    if share <= 0.7:
        return share, ""
    order = ",".join(map(str, columns.tolist()))
    return share, (
        f" With the values {trial.units}, {share:.0%} would be right if the classes were renamed: give --labels "
        f"{order} if that is the model's order."
    )


def _of_outputs(file: ModelFile, best: Trial, trials: list[Trial], y: Tensor) -> str:
    """Which of several outputs was taken, and why."""
    first = file.facts.outputs[0].name
    others: dict[str, Trial] = {}
    for trial in trials:
        if trial.chosen and not trial.fault and trial.assumptions.output != best.assumptions.output:
            name = trial.assumptions.output or first
            others[name] = max(trial, others.get(name, trial), key=lambda one: one.accuracy(y))
    rest = "".join(f", by {quoted(name)} {_percent(trial, y)}" for name, trial in others.items())
    return (
        f"Of the file's {len(file.facts.outputs)} outputs ({listed(file.facts.outputs)}), "
        f"{quoted(best.assumptions.output or first)} is audited: {_percent(best, y)} of {len(y)} test records are "
        f"right by it{rest}; overrule with --output."
    )


def sentences_of(
    file: ModelFile, data: Data, overrides: Overrides, best: Trial, trials: list[Trial], y: Tensor
) -> list[str]:
    port, assumed = file.facts.inputs[0], best.assumptions
    declared = f"[{', '.join(map(str, port.shape))}]"
    sentences = []
    if len(file.facts.outputs) > 1 and overrides.output is None:
        sentences.append(_of_outputs(file, best, trials, y))
    if overrides.layout is None:
        sentences.append(f"Assumed {assumed.layout} from the input {declared}; overrule with --layout.")
    if overrides.mean is None and overrides.std is None and overrides.units is None:
        tried = len({trial.units for trial in trials})
        mean = ""
        if assumed.mean is not None and assumed.std is not None:
            mean = f" ({shown_values(assumed.mean)} and {shown_values(assumed.std)})"
        sentences.append(
            f"Assumed that the model takes the values {best.units}{mean}: of {tried} scalings tried on {len(y)} "
            f"test records, {_percent(best, y)} were right under this one; overrule with --units, --mean and --std"
            f"{', or --channels' if len(data.shape) == 3 and data.shape[0] == 3 else ''}."
        )
    if assumed.grid is not None:
        sentences.append(
            f"The input takes {assumed.grid.type}: values are rounded to whole steps of {assumed.grid.scale:g}."
        )
    if overrides.outputs is None and assumed.outputs != "logits":
        seen = "each row sums to 1" if assumed.outputs == "probabilities" else "their exponentials sum to 1"
        sentences.append(f"Assumed that the outputs are {assumed.outputs} ({seen}); their logarithms serve as logits.")
    if overrides.labels is None and assumed.labels is not None:
        sentences.append(
            f"Assumed that outputs {assumed.labels[0]} to {assumed.labels[-1]} of the model are the data's "
            f"{data.classes} classes; overrule with --labels."
        )
    if agreement(best.predicted, y, data.classes)[1] < WEAK:
        sentences.append(f"The model is right on only {_percent(best, y)}: check --layout, --mean, --std and --labels.")
    if hint := renamed(best, y, data.classes)[1]:
        sentences.append(hint.strip())
    others = [trial for trial in trials if not trial.fault and trial is not best and trial.chosen]
    if others:
        second = max(others, key=lambda trial: trial.accuracy(y))
        if not clearly(best, second, y, TIED) and not likelier(best, second):
            sentences.append(
                f"With the values {second.units} ({second.assumptions.layout}"
                f"{_shown_labels(second.assumptions.labels)}) {_percent(second, y)} would be right, which is as good: "
                "if that is how the model was trained, say so."
            )
    barred = [trial for trial in trials if not trial.fault and not trial.chosen]
    if barred:
        rival = max(barred, key=lambda trial: trial.accuracy(y))
        if clearly(rival, best, y, CHANCE_P):
            sentences.append(
                f"{DOUBT}, {_percent(best, y)} are right; with the values {rival.units} "
                f"({rival.assumptions.layout}) it would be {_percent(rival, y)}. Check --layout, --mean and --std."
            )
    return sentences
