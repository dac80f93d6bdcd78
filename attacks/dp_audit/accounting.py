"""The epsilon of DP-SGD by two independent accountants, and the noise that an epsilon asks for."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache

from ...training.privacy import Noised
from .bounds import gaussian_mu

TRIALS = 8  # of the search for a noise multiplier; three or four are usual
MANY = 150.0  # an epsilon that promises nothing, which these accountants would take minutes and gigabytes to count
ORDERS = list(range(2, 64))  # of Renyi divergences, by which it is bounded then
ERROR, LEAST_ERROR = 1e-2, 1e-4  # of the PRV accountant, by which what it says is larger than what is spent


@lru_cache(maxsize=64)
def smallest_noise(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The noise multiplier whose PRV epsilon is at most `epsilon`, and at least 99 % of it.

    The first trial is the noise of the central limit theorem (Dong, Roth & Su 2022, corollary 5.6). From there on the
    secant of log epsilon over log noise, which is nearly a line: a third of the trials that halving takes.

    Args:
        epsilon: at most `bounds.MOST`.
    """
    from opacus.accountants.utils import get_noise_multiplier

    limit = (gaussian_mu(epsilon, delta) / sampling_rate) ** 2 / steps
    place, slope, before = -0.5 * math.log(math.log1p(limit)), -1.5, (math.inf, 0.0)
    for _ in range(TRIALS):
        found = prv_epsilon(math.exp(place), delta, sampling_rate, steps)
        if 0.99 * epsilon <= found <= epsilon:
            return math.exp(place)
        height = math.log(found / (0.995 * epsilon))
        if before[0] < math.inf:
            slope = min(-0.5, (height - before[1]) / (place - before[0]))
        before = place, height
        place -= height / slope
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
    return prv_composed((Noised("", noise_multiplier, sampling_rate, steps),), delta)


def pld_epsilon(noise_multiplier: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Upper bound on epsilon by dp-accounting's privacy loss distributions."""
    return pld_composed((Noised("", noise_multiplier, sampling_rate, steps),), delta)


@lru_cache(maxsize=64)
def prv_composed(parts: tuple[Noised, ...], delta: float) -> float:
    """Upper bound on the one epsilon of everything that looked at the records, by opacus's PRV accountant.

    Within 1 % of what is spent, from .01 on; beyond `MANY` a cruder one by Renyi divergences (Mironov 2017,
    arXiv:1702.07476).
    """
    from opacus.accountants import PRVAccountant, RDPAccountant

    history = [(one.noise_multiplier, one.sampling_rate, one.steps) for one in parts]
    renyi, accountant = RDPAccountant(), PRVAccountant()
    renyi.history, accountant.history = history, history
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        crude = float(renyi.get_epsilon(delta, alphas=ORDERS))
        if crude > MANY:
            return crude
        error = ERROR
        while True:
            found = float(accountant.get_epsilon(delta=delta, eps_error=error))
            if error <= max(LEAST_ERROR, 0.01 * found):
                return found
            error /= 10


@lru_cache(maxsize=64)
def pld_composed(parts: tuple[Noised, ...], delta: float) -> float:
    """The same by dp-accounting's privacy loss distributions, and beyond `MANY` by its Renyi divergences."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, PrivacyAccountant
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    def spent(accountant: PrivacyAccountant) -> float:
        for one in parts:
            event = PoissonSampledDpEvent(one.sampling_rate, GaussianDpEvent(one.noise_multiplier))
            accountant.compose(event, one.steps)
        return float(accountant.get_epsilon(delta))

    crude = spent(RdpAccountant(ORDERS))
    return crude if crude > MANY else spent(PLDAccountant())


def counted(parts: tuple[Noised, ...], delta: float) -> dict[str, float]:
    """One epsilon at `delta` of all the parts, by PRV, and by PLD as a check."""
    return {"epsilon": prv_composed(parts, delta), "epsilon_pld_check": pld_composed(parts, delta)}
