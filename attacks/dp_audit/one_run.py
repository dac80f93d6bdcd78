"""Auditing DP-SGD by a single training into which many canaries' gradients are mixed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...targets.errors import InputError
from ...targets.seeds import generator
from .bounds import guesses_epsilon, guesses_gaussian_epsilon
from .claim import DpAudit, claimed_epsilon
from .worlds import LARGE, Step, two_bounds


class GradientCanaries:
    """Made-up records of one training, each of which takes part by a fair coin and has a gradient of its own.

    Train as ever, with `canaries.watch(step)` in place of the step; then ask `canaries.audit(...)`. The gradients are
    orthogonal, so that under DP-SGD the canaries' scores are independent, up to the two directions that the other
    records' gradients have in common: an auditor who knows these records leaves them out of what is seen.

    Args:
        dimensions: numbers of a gradient, at least twice the canaries.
        count: canaries; about 1,000 for a bound of more than half of an epsilon of 8.
    """

    def __init__(self, dimensions: int, count: int, *, seed: int = 0) -> None:
        if not 10 <= count <= dimensions // 2:
            raise InputError(
                f"GradientCanaries: {count} canaries in gradients of {dimensions} numbers; from 10 to half as many as "
                "a gradient has numbers."
            )
        draws = generator(seed, "canaries")
        self.directions = torch.linalg.qr(torch.randn(dimensions, count, generator=draws))[0].T.contiguous()
        self.taking_part = torch.rand(count, generator=draws) < 0.5
        self.scores = torch.zeros(count, dtype=torch.float64)

    def watch(self, step: Step) -> Step:
        """The same step, with the canaries among the records: gradients [records, dimensions] in, [dimensions] out.

        Their gradients are turned round at every other step, so that noise that comes back cancels.
        """
        canaries, sign = LARGE * self.directions[self.taking_part], -1

        def watched(gradients: Tensor, draws: torch.Generator) -> Tensor:
            nonlocal sign
            sign = -sign
            private = step(torch.cat([gradients, sign * canaries.to(gradients)]), draws)
            seen = private.detach().cpu().float()
            basis = _common(gradients.detach().cpu().float())
            self.scores += sign * (self.directions @ (seen - basis @ (basis.T @ seen))).double()
            return private

        return watched

    def audit(
        self,
        *,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
        delta: float = 1e-5,
        sampling_rate: float = 1.0,
        steps: int = 1,
        confidence: float = 0.999,
    ) -> DpAudit:
        """A lower bound on epsilon from what was watched; the claim is given as to `audit_dp`.

        Bounds at equal shares of the error: canaries in and out as pairs (exact for DP-SGD, whose noise is independent
        along orthogonal gradients); Steinke et al. 2023, which assumes nothing; and at a sampling rate of 1
        Mahloujifar et al. 2024, for a Gaussian trade-off and any dependence. The latter two guess the tenth with the
        highest scores in and that with the lowest out.

        Raises:
            InputError: a number of the claim is outside its range, or canaries of one kind are fewer than 5.
        """
        claimed = claimed_epsilon(epsilon, noise_multiplier, delta, sampling_rate, steps)
        inside, outside = self.scores[self.taking_part], self.scores[~self.taking_part]
        pairs = min(len(inside), len(outside))
        if pairs < 5:
            raise InputError("GradientCanaries: fewer than 5 canaries take part, or do not. Take more canaries.")
        count, tenth = len(self.scores), max(1, len(self.scores) // 10)
        alpha = (1 - confidence) / (3 if sampling_rate == 1 else 2)
        order = self.scores.argsort(descending=True)
        right = int(self.taking_part[order[:tenth]].sum()) + int((~self.taking_part[order[-tenth:]]).sum())
        bounds, told = two_bounds(inside[:pairs].numpy(), outside[:pairs].numpy(), delta, sampling_rate, steps, alpha)
        bounds["any mechanism"] = guesses_epsilon(count, 2 * tenth, right, delta, alpha)
        if sampling_rate == 1:
            bounds["Gaussian, any dependence"] = guesses_gaussian_epsilon(count, 2 * tenth, right, delta, alpha)
        access = f"one training, {count} canaries in it by a fair coin, every private gradient seen"
        return DpAudit(max(bounds.values()), bounds, claimed, delta, confidence, told, pairs, access)


def _common(gradients: Tensor) -> Tensor:
    """What gradients [n, d] add up to, as they are and at length 1, clipping being in between: orthonormal [d, 0-2]."""
    sums = torch.stack([gradients.sum(0), F.normalize(gradients, dim=1).sum(0)], dim=1)
    lengths = sums.norm(dim=0)
    basis: Tensor = torch.linalg.qr(sums[:, lengths > 0] / lengths[lengths > 0])[0]
    return basis
