"""What is claimed of a private training, and what an audit of it found."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...targets.errors import InputError
from .accounting import pld_epsilon, prv_epsilon
from .bounds import gaussian_epsilon


@dataclass(frozen=True)
class DpAudit:
    """What `audit_dp` or `GradientCanaries.audit` found.

    Attributes:
        epsilon_low: the lower bound on the true epsilon at `delta`: the largest of `bounds`, which hold together with
            `confidence`. The bound "claimed kind" is one of a subsampled Gaussian mechanism that leaks so much; what
            it refutes is the claim, and its figure is an epsilon only as far as the step is of that kind.
        bounds: by what they assume: "claimed kind", "any mechanism" and, of one training at a sampling rate of 1,
            "Gaussian, any dependence".
        claimed: the epsilon that is claimed.
        told, pairs: pairs with and without a canary, and those where the scores tell which is which.
        access: what the auditor saw and chose.
    """

    epsilon_low: float
    bounds: dict[str, float]
    claimed: float
    delta: float
    confidence: float
    told: int
    pairs: int
    access: str

    @property
    def above_claim(self) -> bool:
        """Whether the claim is refuted."""
        return self.epsilon_low > self.claimed

    def __str__(self) -> str:
        verdict = "above the claim: the step leaks more than is claimed" if self.above_claim else "within the claim"
        return (
            f"epsilon is at least {self.epsilon_low:.2f} at delta {self.delta:g} (confidence {self.confidence:g}, "
            f"{self.told} of {self.pairs} pairs told apart; {self.access}); claimed {self.claimed:.2f}: {verdict}"
        )


def claimed_epsilon(
    epsilon: float | None, noise_multiplier: float | None, delta: float, sampling_rate: float, steps: int
) -> float:
    """The claim itself, or that which follows from the noise.

    Raises:
        InputError: a number is outside its range, nothing is claimed, or the two accountants (PRV, PLD) disagree.
    """
    given = {"epsilon": epsilon, "noise_multiplier": noise_multiplier}
    for name, value in given.items():
        if value is not None and not (0 < value < math.inf):
            raise InputError(f"audit_dp: {name} is {value}; it must be above 0 and finite.")
    if not (0 < delta < 1 and 0 < sampling_rate <= 1 and steps >= 1):
        raise InputError(
            f"audit_dp: delta is {delta}, sampling_rate {sampling_rate} and steps {steps}; delta must be in (0, 1), "
            "the sampling rate in (0, 1] and steps at least 1."
        )
    if epsilon is not None:
        return epsilon
    if noise_multiplier is None:
        raise InputError("audit_dp: nothing is claimed. Give `epsilon`, or the `noise_multiplier` it follows from.")
    if sampling_rate == 1:
        return gaussian_epsilon(math.sqrt(steps) / noise_multiplier, delta)
    prv = prv_epsilon(noise_multiplier, delta, sampling_rate, steps)
    pld = pld_epsilon(noise_multiplier, delta, sampling_rate, steps)
    if abs(prv - pld) > 0.02 * max(prv, pld) + 0.01:
        raise InputError(
            f"audit_dp: the accountants disagree on epsilon (PRV {prv:.3f}, PLD {pld:.3f}) for noise multiplier "
            f"{noise_multiplier}, sampling rate {sampling_rate} and {steps} steps. Give the `epsilon` that you claim."
        )
    return prv
