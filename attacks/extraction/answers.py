"""What an attacker sees of an answer, and what it takes from it as the distribution that its copy is to give."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..access import Access

Seen = Literal["scores", "rounded", "top1", "labels"]
SEEN: dict[Seen, str] = {  # who sees most is first
    "scores": "all logits, or all probabilities",
    "rounded": "all probabilities, to a few decimal places",
    "top1": "the class and its probability",
    "labels": "the class",
}
ACCESS: dict[Seen, Access] = {sort: Access.LABELS if sort == "labels" else Access.SCORES for sort in SEEN}
DECIMALS = 2  # of rounded probabilities
LEAST = 1e-12  # probability that is told from 0


def as_logits(answers: Tensor) -> Tensor:
    """float32 [n, classes]: the answers, or their logarithms where all of them are probabilities."""
    if bool((answers >= 0).all()) and bool(((answers.sum(1) - 1).abs() < 1e-3).all()):
        return answers.clamp_min(LEAST).log()
    return answers


def told(
    logits: Tensor, answers: Seen, temperature: float, smoothing: float = 0.0, decimals: int = DECIMALS
) -> tuple[Tensor, float]:
    """The distributions to be learnt, float32 [n, classes], and the temperature at which they are compared.

    Scores tell most after dividing logits by a temperature, by which small probabilities count. What rounding hides is
    taken to be half of what it could be at most; what a top answer hides, to be spread evenly, which is compared as it
    is, at temperature 1.

    Args:
        logits: of the model, float32 [n, classes]; only what `SEEN` says of them is looked at.
        smoothing: of labels.
        decimals: of rounded probabilities.
    """
    classes = logits.shape[1]
    if answers == "scores":
        return torch.softmax(logits / temperature, 1), temperature
    probabilities, label = torch.softmax(logits, 1), F.one_hot(logits.argmax(1), classes).float()
    if answers == "rounded":
        step = 10.0**-decimals
        seen = ((probabilities / step).round() * step).clamp_min(step / 4)
        return torch.softmax(seen.log() / temperature, 1), temperature
    if answers == "top1":
        top = probabilities.amax(1, keepdim=True)
        return label * top + (1 - label) * (1 - top) / max(1, classes - 1), 1.0
    return (1 - smoothing) * label + smoothing / classes, 1.0
