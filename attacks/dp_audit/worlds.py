"""Auditing a private training step by many tiny worlds, half of them with one record more."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...targets.errors import InputError
from ...targets.seeds import generator, global_seed
from .bounds import Vector, pairs_told, rate_low, threshold_epsilon
from .claim import DpAudit, claimed_epsilon
from .subsampled import epsilon_of_share

Step = Callable[[Tensor, torch.Generator], Tensor]

OTHERS, DIMENSIONS = 7, 8  # records beside the canary, and numbers of a gradient, in a world
# Of a canary's gradient: no number is 0, so that clipping number by number is found, and signs differ, so that noise
# that is one number for all is.
DIRECTION = torch.tensor([1.0, -1.0] * (DIMENSIONS // 2), dtype=torch.float64) * DIMENSIONS**-0.5
LARGE = 1e3  # length of a canary's gradient: whoever clips, clips it
OPPOSED = -LARGE / (10 * OTHERS)  # a tenth of the canary all together: whoever clips the batch alone turns round
AT_ONCE = 4096  # worlds in one call of a stacked step
# From which on noise is not alike in all numbers: times what is told by the canary's direction, and 2 / n times what
# a chi square of 8 degrees of freedom exceeds once in 30,000 draws.
UNEVEN, CHANCE = 2.0, 2 * 35.0


@dataclass(frozen=True)
class World:
    """What the auditor chooses: the gradients, what is read off the private ones, and how that is summed up over steps.

    Args:
        others: the other records' gradients along the canary's.
        turned: every other step has all gradients turned round, so that noise that comes back cancels.
        reading: float64 [8], what private gradients are projected on.
        likelihood: steps are summed up by it, else plainly.
    """

    others: float
    turned: bool
    reading: Tensor = field(default_factory=lambda: DIRECTION)
    likelihood: bool = False

    def __str__(self) -> str:
        rest = "silent" if self.others == 0 else "opposed"
        turned = ", every other step turned round" if self.turned else ""
        return (
            f"the other records {rest}{turned}, steps summed up by {'likelihood' if self.likelihood else 'their sum'}"
        )


def audit_dp(
    step: Step,
    *,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    delta: float = 1e-5,
    sampling_rate: float = 1.0,
    steps: int = 1,
    worlds: int = 4000,
    confidence: float = 0.999,
    stacked: bool = False,
    seed: int = 0,
) -> DpAudit:
    """A lower bound on the epsilon of DP-SGD's step, by worlds with and without one record (Nasr et al. 2023,
    arXiv:2302.07956).

    A world is `steps` calls of the step on the same 8 records' gradients; one of them, the canary, has a large
    gradient in half of the worlds and a zero one in the others. The auditor sees every private gradient and reads it
    along the canary's, or, where noise is clearly not alike in all numbers, where it hides least. Which kind of
    worlds is used is chosen on an eighth more of each. Two bounds at half the error each: from the
    share of pairs of worlds that are told apart (exact for DP-SGD, with the sampling given), and from Clopper-Pearson
    at one threshold, which assumes nothing and cannot exceed about log(worlds) - 2.5.

    Args:
        step: `step(gradients, generator)`: float32 [8, 8], a row per record of the data set, not of a batch: a step
            that samples draws its batch itself. It gives the private gradient [8], in any unit, and draws from the
            generator. The number of records counts as public.
        epsilon: what is claimed for all steps together.
        noise_multiplier: standard deviation of the noise over the clipping norm, as claimed; epsilon follows from it
            (PRV, checked by PLD) where none is given, and it sharpens the bound where the step samples.
        sampling_rate: with which a record takes part in a step, as claimed.
        worlds: of either kind.
        confidence: with which the bound holds: a true claim is called false in 1 of 1,000 audits.
        stacked: the step takes gradients [worlds, 8, 8] and gives [worlds, 8], which is a thousand times faster.

    Raises:
        InputError: a number is outside its range, or the step gives no such gradient.

    Example:
        >>> def forgets_noise(gradients, generator):
        ...     return (gradients / gradients.norm(dim=-1, keepdim=True).clamp_min(1)).sum(-2)
        >>> audit_dp(forgets_noise, epsilon=8, stacked=True).above_claim
        True
    """
    claimed = claimed_epsilon(epsilon, noise_multiplier, delta, sampling_rate, steps)
    if worlds < 100 or not 0.5 <= confidence < 1:
        raise InputError(f"audit_dp: {worlds} worlds (at least 100) at confidence {confidence} (from .5 to below 1).")

    def ways(scored: Tensor, silent: Tensor) -> list[Tensor]:
        """Projections [2, worlds, steps] as scores [2, worlds] in every way there is."""
        if noise_multiplier is None or sampling_rate == 1 or steps == 1:
            return [scored.sum(-1)]
        z = (scored - silent.mean()) / silent.std().clamp_min(1e-12) / noise_multiplier
        exponent = math.log(sampling_rate) + z - 0.5 / noise_multiplier**2
        return [scored.sum(-1), torch.logaddexp(torch.tensor(math.log1p(-sampling_rate)), exponent).sum(-1)]

    best, chosen, pilot, some = -1, World(0.0, False), None, max(20, worlds // 8)
    for others, turned in ((0.0, False), (0.0, True), (OPPOSED, False))[:: 1 if steps > 1 else 2]:
        world = World(others, turned)
        tried, reading = _projections(step, world, some, steps, stacked, seed, "pilot")
        if reading is not None:
            world = replace(world, reading=reading)
            tried, _ = _projections(step, world, some, steps, stacked, seed, "pilot of another reading")
        for likelihood, scores in enumerate(ways(tried, tried[1])):
            told = pairs_told(scores[0].numpy(), scores[1].numpy())
            if told > best:
                best, chosen, pilot = told, replace(world, likelihood=bool(likelihood)), tried[1]
    assert pilot is not None
    seen, _ = _projections(step, chosen, worlds, steps, stacked, seed, "worlds")
    with_it, without = ways(seen, pilot)[int(chosen.likelihood)].numpy()
    bounds, told = two_bounds(with_it, without, delta, sampling_rate, steps, (1 - confidence) / 2)
    access = f"white box, every private gradient seen, {chosen}"
    return DpAudit(max(bounds.values()), bounds, claimed, delta, confidence, told, worlds, access)


def two_bounds(
    with_it: Vector, without: Vector, delta: float, sampling_rate: float, steps: int, alpha: float
) -> tuple[dict[str, float], int]:
    """Bounds on epsilon at `alpha` each, from as many scores of either kind, and how many pairs are told apart."""
    told, pairs = pairs_told(with_it, without), len(with_it)
    bounds = {
        "claimed kind": epsilon_of_share(rate_low(told, pairs, alpha), delta, sampling_rate, steps),
        "any mechanism": threshold_epsilon(with_it, without, delta, alpha),
    }
    return bounds, told


def _projections(
    step: Step, world: World, worlds: int, steps: int, stacked: bool, seed: int, use: str
) -> tuple[Tensor, Tensor | None]:
    """Private gradients as they are read, float64 [2, worlds, steps], worlds with the canary first; a better reading.

    Even the order of the calls follows from the arguments alone. A pair shares nothing.
    """
    found = torch.empty(2, worlds, steps, dtype=torch.float64)
    total, square = torch.zeros(2, DIMENSIONS, dtype=torch.float64), torch.zeros(DIMENSIONS, DIMENSIONS).double()
    for kind, length in enumerate((LARGE, 0.0)):
        gradients = torch.tensor([length] + [world.others] * OTHERS)[:, None] * DIRECTION.float()
        about = ("audit of a private step", use, kind, str(world.others), world.turned)
        draws = generator(seed, *about)
        with global_seed(seed, *about):
            for start in range(0, worlds, AT_ONCE if stacked else 1):
                size = min(AT_ONCE, worlds - start) if stacked else 1
                given = gradients.expand(size, -1, -1) if stacked else gradients
                for now in range(steps):
                    sign = -1 if world.turned and now % 2 else 1
                    private = _checked(step(sign * given, draws), (size, DIMENSIONS) if stacked else (DIMENSIONS,))
                    seen = sign * private.double().reshape(-1, DIMENSIONS)
                    found[kind, start : start + size, now] = seen @ world.reading
                    total[kind] += seen.sum(0)
                    if kind:
                        square += seen.T @ seen
    count = worlds * steps
    return found, _better(total[0] / count, total[1] / count, square / count, count)


def _better(with_it: Tensor, without: Tensor, square: Tensor, count: int) -> Tensor | None:
    """Fisher's discriminant [8], which reads where noise hides least; None: as far as is sure that is `DIRECTION`."""
    noise = square - torch.outer(without, without)
    noise += (1e-9 * noise.trace() / DIMENSIONS + 1e-30) * torch.eye(DIMENSIONS, dtype=torch.float64)
    apart = with_it - without
    best = torch.linalg.solve(noise, apart)
    plain = (apart @ DIRECTION) ** 2 / (DIRECTION @ noise @ DIRECTION)
    return best / best.norm() if apart @ best > UNEVEN * plain + CHANCE / count else None


def _checked(private: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(private, Tensor) or tuple(private.shape) != shape or not bool(private.isfinite().all()):
        what = f"a tensor of shape {tuple(private.shape)}" if isinstance(private, Tensor) else type(private).__name__
        if isinstance(private, Tensor) and not bool(private.isfinite().all()):
            what += " with NaN or infinity in it"
        raise InputError(
            f"audit_dp: the step must give a finite tensor of shape {shape}, the private gradient of the gradients it "
            f"was given; it gave {what}. A step of batches needs a function around it that takes gradients."
        )
    return private.detach().cpu()
