"""The certificate: how far a twin and the deployed model agree, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import Target

AGREEMENT = 0.995  # label agreement below which white-box results through the twin are flagged


@dataclass(frozen=True)
class Agreement:
    """Of two targets on n records.

    `label_agreement` is the share, in [0, 1], with the same largest logit; `max_logit_difference` the largest absolute
    difference of two logits, and `logit_difference_99` the largest on 99 % of the records. A record for which either
    has a logit that is not finite counts as disagreement, and its difference is left out (it has none).
    """

    n: int
    label_agreement: float
    max_logit_difference: float
    logit_difference_99: float


@dataclass(frozen=True)
class Certificate:
    """`overall`, and for each kind of inputs by name ("clean", "random", "adversarial", ...)."""

    overall: Agreement
    kinds: dict[str, Agreement]


def certify(
    deployed: Target, twin: Target, inputs: Mapping[str, Tensor], known: Mapping[str, Tensor] | None = None
) -> Certificate:
    """Compares the two on `inputs`: by kind, float32 [n, *shape]. Both count the queries.

    Agreement on clean inputs alone says little about the inputs an attack finds: bring adversarial ones as well.

    Args:
        known: what the deployed model answered to the inputs of a kind, where it was asked before.
    """
    known = known or {}
    answers = {
        kind: (known[kind] if kind in known else deployed.logits(x), twin.logits(x))
        for kind, x in inputs.items()
        if len(x)
    }
    kinds = {kind: _agreement(*pair) for kind, pair in answers.items()}
    if not answers:
        return Certificate(Agreement(0, 0.0, 0.0, 0.0), {})
    overall = _agreement(*(torch.cat([pair[side].cpu() for pair in answers.values()]) for side in (0, 1)))
    return Certificate(overall, kinds)


def _agreement(ours: Tensor, theirs: Tensor) -> Agreement:
    difference = (ours.double() - theirs.double()).abs()
    finite = difference.isfinite().all(1)
    same = finite & (ours.argmax(1) == theirs.argmax(1))
    largest = difference[finite].amax(1) if finite.any() else torch.zeros(1)
    return Agreement(
        len(ours), float(same.double().mean()), float(largest.max()), float(largest.double().quantile(0.99))
    )
