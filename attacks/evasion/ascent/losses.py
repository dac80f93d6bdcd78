"""What counts as a success, how far off it is, and what a gradient attack ascends to get there."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Goal = Literal["untargeted", "targeted"]  # any other class than `y`, or the class `y` itself
Loss = Literal["ce", "margin", "dlr"]
Ascended = Loss | Literal["probability"]  # the last is for attacks that weigh several models

SATURATED = 10.0  # a logit gap from which softmax loses its small terms to float rounding


def reached(logits: Tensor, y: Tensor, goal: Goal = "untargeted") -> Tensor:
    """bool [n]: whether the class of the largest logit (the first, where several are) is what the attacker wants."""
    answered = logits.argmax(1)
    return answered != y if goal == "untargeted" else answered == y


def margins(logits: Tensor, y: Tensor, goal: Goal = "untargeted") -> Tensor:
    """How far the goal is off, [n], negative once it is reached: `z_y - max z_other`, or minus that for a target y."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf)
    margin = own - others.amax(1)
    return margin if goal == "untargeted" else -margin


def losses(
    logits: Tensor, y: Tensor, loss: Ascended, goal: Goal = "untargeted", towards: Tensor | None = None
) -> Tensor:
    """What a gradient attack ascends, float [n]. None of them goes flat where the logits saturate.

    With `towards`, int64 [n], it leads from the class y to that one; whether it got there is still up to the goal.

    - "margin": minus the logit margin (Carlini & Wagner 2017).
    - "ce": cross-entropy in float64 (minus it for a target), the logits divided by a temperature per record (held fixed
      in the gradient) that brings a gap beyond `SATURATED` back to it; a plain softmax has no gradient there.
    - "probability": minus the probability of the class (of a target, that itself), the logits divided as for "ce".
    - "dlr": the difference of logits ratio (Croce & Hein 2020), which no rescaling of the logits changes; needs three
      classes and is the margin below that. Towards a class it is that of Auto-PGD's targeted form, of four classes.
    """
    if towards is not None:
        return _losses_towards(logits, y, towards, loss)
    if loss in ("ce", "probability"):
        temperature = (margins(logits.detach(), y, goal).abs().double() / SATURATED).clamp_min(1)
        entropy = F.cross_entropy(logits.double() / temperature[:, None], y, reduction="none")
        value = entropy if loss == "ce" else -torch.exp(-entropy)
        return value if goal == "untargeted" else -value
    margin = margins(logits, y, goal)
    if loss == "dlr" and logits.shape[1] >= 3:
        top = logits.topk(3, dim=1).values
        return -margin / (top[:, 0] - top[:, 2]).clamp_min(1e-12)
    return -margin


def _losses_towards(logits: Tensor, y: Tensor, towards: Tensor, loss: Ascended) -> Tensor:
    if loss == "ce":
        return losses(logits, towards, "ce", "targeted")
    gap = (logits.gather(1, towards[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
    if loss == "margin" or logits.shape[1] < 4:
        return gap
    top = logits.topk(4, dim=1).values
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(1e-12)
