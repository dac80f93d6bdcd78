"""How well anybody can tell two worlds apart after DP-SGD: the Gaussian mechanism on Poisson samples, composed.

The privacy loss of a step is put on a grid, and the steps are a power of its Fourier transform. What an auditor of
pairs can reach at best is the area under the ROC curve of the loss.
"""

from __future__ import annotations

import math

import numpy as np
import scipy

from .bounds import MOST, Vector, gaussian_epsilon

GRID = 2**16  # points of the loss
LOUDEST, QUIETEST = 0.2, 1e4  # least and most noise, in units of the clipping norm, that are told apart


def best_share(noise_multiplier: float, sampling_rate: float, steps: int) -> float:
    """The largest probability of naming which of two worlds holds the record, .5 for guessing.

    Args:
        noise_multiplier: standard deviation of the noise over the clipping norm, above 0.
        sampling_rate: in (0, 1]; 1 has a closed form.
        steps: at least 1.
    """
    if sampling_rate == 1:
        return float(scipy.special.ndtr(math.sqrt(steps / 2) / noise_multiplier))
    _, with_it, without = _losses(noise_multiplier, sampling_rate, steps)
    return float(with_it @ (np.cumsum(without) - without / 2))


def subsampled_epsilon(noise_multiplier: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Epsilon at `delta` for removing a record; accurate to the grid, where the accountants give upper bounds."""
    if sampling_rate == 1:
        return gaussian_epsilon(math.sqrt(steps) / noise_multiplier, delta)
    losses, with_it, _ = _losses(noise_multiplier, sampling_rate, steps)

    def excess(epsilon: float) -> float:
        return float(with_it @ -np.expm1(np.minimum(0.0, epsilon - losses))) - delta

    if excess(0.0) <= 0:
        return 0.0
    return MOST if excess(MOST) > 0 else float(scipy.optimize.brentq(excess, 0.0, MOST))


def epsilon_of_share(share: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Epsilon at `delta` of the DP-SGD under which an auditor of pairs reaches `share` at best; 0 up to guessing."""
    if best_share(QUIETEST, sampling_rate, steps) >= share:
        return 0.0
    sigma = LOUDEST
    if best_share(LOUDEST, sampling_rate, steps) > share:
        bracket = math.log(LOUDEST), math.log(QUIETEST)
        log = scipy.optimize.brentq(
            lambda log: best_share(math.exp(log), sampling_rate, steps) - share, *bracket, xtol=1e-4
        )
        sigma = math.exp(log)
    return subsampled_epsilon(sigma, delta, sampling_rate, steps)


def _losses(sigma: float, sampling_rate: float, steps: int) -> tuple[Vector, Vector, Vector]:
    """The privacy loss [GRID] and its probabilities with the record and without it, for a sampling rate below 1."""
    # The loss log(1 - q + q exp((x - 1/2) / sigma^2)) of what is seen, x, which lies within 9 sigma of 0 or 1
    edges = np.linspace(-9 * sigma, 1 + 9 * sigma, GRID + 1)
    exponent = ((edges[1:] + edges[:-1]) / 2 - 0.5) / sigma**2
    loss = np.logaddexp(math.log1p(-sampling_rate), math.log(sampling_rate) + exponent)
    absent, alone = (np.diff(scipy.special.ndtr((edges - at) / sigma)) for at in (0, 1))
    present = (1 - sampling_rate) * absent + sampling_rate * alone
    spread = 0.0
    for mass in (absent, present):
        mean = float(mass @ loss)
        spread = max(spread, abs(mean) * steps + 12 * math.sqrt(float(mass @ (loss - mean) ** 2) * steps))
    width = 2 * (spread + float(np.abs(loss).max())) / GRID
    # Each mass is split between two points so that its loss stays the same: rounding would add up over the steps
    place = loss / width + GRID // 2
    lower = np.floor(place).astype(np.int64)

    def composed(mass: Vector) -> Vector:
        upper = mass * (place - lower)
        grid = np.bincount(lower, mass - upper, GRID) + np.bincount(lower + 1, upper, GRID)
        power = np.fft.rfft(np.fft.ifftshift(grid)) ** steps
        return np.maximum(np.fft.fftshift(np.fft.irfft(power, GRID)), 0.0)

    return (np.arange(GRID) - GRID // 2) * width, composed(present), composed(absent)
