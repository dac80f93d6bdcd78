"""What is promised of a private training, as whoever tests the promise needs to know it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PrivateStep = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, eq=False)
class PrivacyClaim:
    """(epsilon, delta)-differential privacy of a training, for one record added or removed.

    Args:
        epsilon, delta: of the whole training.
        noise_multiplier: standard deviation of the noise over the clipping norm; None: not known.
        sampling_rate: with which a record takes part in a step, in (0, 1].
        steps: of the training.
        step: one of them, on gradients as `crushproof.audit_dp` has them; None: it is not at hand.
        stacked: the step takes many worlds at once.
        void: why compression that looks at training records voids it, in a sentence.
    """

    epsilon: float
    delta: float
    noise_multiplier: float | None = None
    sampling_rate: float = 1.0
    steps: int = 1
    step: PrivateStep | None = None
    stacked: bool = False
    void: str = "Epsilon: void. The compression looked at training records after the training that is claimed private."
