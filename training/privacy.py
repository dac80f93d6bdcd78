"""What is promised of a private training, and what looks at records under stated noise, as an accountant needs it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from ..targets.technique import Technique

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


@dataclass(frozen=True)
class Noised:
    """Releases of a sum over records to which each adds a vector of limited L2 norm, under Gaussian noise.

    Args:
        what: is released, in words: `fine-tuning`.
        noise_multiplier: standard deviation of the noise over that norm.
        sampling_rate: with which a record takes part in a release, in (0, 1], each by itself (Poisson).
        steps: releases.
    """

    what: str
    noise_multiplier: float
    sampling_rate: float
    steps: int

    @property
    def phrase(self) -> str:
        often = f"{self.steps} {'step' if self.steps == 1 else 'steps'}"
        return f"{self.what} (noise {self.noise_multiplier:.2f}, sampling rate {self.sampling_rate:.3f}, {often})"


class PrivateTraining(Technique):
    """DP-SGD in a training (Abadi et al. 2016, arXiv:1607.00133): `defenses.dp_sgd` has more of it."""

    noise_multiplier: float = Field(
        ge=1e-3, le=1e6, description="standard deviation of the noise over max_gradient_norm; epsilon follows from it"
    )
    max_gradient_norm: PositiveFloat = Field(
        1.0, le=1e6, description="L2 norm to which each record's gradient is clipped"
    )


def schedule(epochs: int, batch_size: int, records: int) -> tuple[float, int]:
    """(sampling rate, steps) of a private training on so many records, whose number counts as public."""
    sampling_rate = min(1.0, batch_size / max(1, records))
    return sampling_rate, math.ceil(epochs / sampling_rate)
