"""The epsilon of DP-SGD by two independent accountants, and the noise that an epsilon asks for."""

from __future__ import annotations

import warnings
from functools import lru_cache


@lru_cache(maxsize=64)
def smallest_noise(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The noise multiplier whose PRV epsilon is at most `epsilon` and at least 99 % of it."""
    from opacus.accountants.utils import get_noise_multiplier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(
            get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=sampling_rate,
                steps=steps,
                accountant="prv",
                epsilon_tolerance=0.01 * epsilon,
            )
        )


def prv_epsilon(noise_multiplier: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Upper bound on epsilon by opacus's PRV accountant."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sampling_rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta=delta))


def pld_epsilon(noise_multiplier: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Upper bound on epsilon by dp-accounting's privacy loss distributions."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    event = PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier))
    return float(PLDAccountant().compose(event, steps).get_epsilon(delta))
