"""What an attacker sees of an answer, and what it takes from it as the distribution that its copy is to give."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Seen = Literal["scores", "rounded", "top1", "labels"]
SEEN: dict[Seen, str] = {
    "scores": "all logits, or all probabilities",
    "rounded": "all probabilities, to two decimal places",
    "top1": "the class and its probability",
    "labels": "the class",
}
STEP = 0.01  # of rounded probabilities


def told(logits: Tensor, answers: Seen, temperature: float, smoothing: float = 0.0) -> tuple[Tensor, float]:
    """The distributions to be learnt, float32 [n, classes], and the temperature at which they are compared.

    Scores tell most after dividing logits by a temperature, by which small probabilities count. What rounding hides is
    taken to be half of what it could be at most; what a top answer hides, to be spread evenly, which is compared as it
    is, at temperature 1.

    Args:
        logits: of the model, float32 [n, classes]; only what `SEEN` says of them is looked at.
        smoothing: of labels.
    """
    classes = logits.shape[1]
    if answers == "scores":
        return torch.softmax(logits / temperature, 1), temperature
    probabilities, label = torch.softmax(logits, 1), F.one_hot(logits.argmax(1), classes).float()
    if answers == "rounded":
        seen = ((probabilities / STEP).round() * STEP).clamp_min(STEP / 4)
        return torch.softmax(seen.log() / temperature, 1), temperature
    if answers == "top1":
        top = probabilities.amax(1, keepdim=True)
        return label * top + (1 - label) * (1 - top) / max(1, classes - 1), 1.0
    return (1 - smoothing) * label + smoothing / classes, 1.0
