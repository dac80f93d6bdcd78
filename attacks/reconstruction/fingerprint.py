"""Whose model is this? A compressed file held against a dense model, by its weights, codes or mask alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...compression.lineage.codes_in_steps import folded_weight
from ...compression.lineage.matched import Fit, match
from ...targets.seeds import derive
from ...targets.untrusted.model_file import check_onnx

Sees = Literal["weights", "codes", "mask"]
Floats = np.ndarray[Any, np.dtype[np.float64]]

ORDERS = 200  # of a layer's units, that the match is held against
SURE = 6.0  # standard deviations: 1e-9 under a normal error, and what is tried is a handful of layers


@dataclass(frozen=True)
class Fingerprint:
    """How a file goes with a model.

    Args:
        sees: what was looked at: weights; integer codes without their scales; which weights are zero.
        correlation: over all layers, weighted by their numbers of weights; 0: nothing could be compared.
        deviations: how far it lies above the mean of the same with the units of each layer in random order, in their
            standard deviations. Inputs that no model uses, and small weights of some layers, are the same there.
        weights: how many were compared.
    """

    sees: Sees
    correlation: float
    deviations: float
    weights: int

    @property
    def matches(self) -> bool:
        """Whether the file came from the model: chance, or training on the same data, would not do that."""
        return self.deviations > SURE


def fingerprint(shipped: bytes, parent: bytes, sees: Sees = "weights", *, seed: int = 0) -> Fingerprint:
    """Holds a file against a model that it may come from.

    Independent trainings put their units in any order, so a match of unit with unit betrays the one training, through
    rounding, pruning and some fine-tuning. Who exchanges units on purpose is not found out.

    Args:
        shipped: the compressed file; parent: the dense model, as ONNX.
        sees: what of the file is looked at.

    Raises:
        UnsafeInput: a file that `check_onnx` refuses.
    """
    known = match(check_onnx(parent).copy(), check_onnx(shipped).copy())
    rng = np.random.default_rng(derive(seed, "fingerprint"))
    own, chance, count = 0.0, np.zeros(ORDERS), 0
    last = len(known.fits) - 1
    for at, fit in enumerate(known.fits):
        pair = _pair(fit, sees)
        if pair is None:
            continue
        ours, theirs = pair
        if min(ours.shape) < 2:
            continue
        size = ours.size
        own += size * _correlation(ours, theirs)
        # Classes stay in order: what may be exchanged is the units that they read, each with all its places.
        units = known.fits[at - 1].weight.constant.shape[0] if at == last and at else 0
        blocks = ours.reshape(len(ours), units, -1) if units and ours.shape[1] % units == 0 else ours
        side = 0 if blocks is ours else 1
        for draw in range(ORDERS):
            order = rng.permutation(blocks.shape[side])
            chance[draw] += size * _correlation(np.take(blocks, order, side), theirs)
        count += size
    if not count:
        return Fingerprint(sees, 0.0, 0.0, 0)
    deviation = max(float(chance.std(ddof=1)), 1e-12)
    return Fingerprint(sees, own / count, (own - float(chance.mean())) / deviation, count)


def _pair(fit: Fit, sees: Sees) -> tuple[Floats, Floats] | None:
    """What is seen of a weight of the file, and what it is held against: [out, n] each; None: nothing to compare."""
    ours, theirs = folded_weight(fit.weight, fit.ours), folded_weight(fit.dense, fit.theirs)
    if sees == "mask":
        mask = (ours != 0).astype(np.float64)
        return None if mask.all() or not mask.any() else (mask, np.abs(theirs))
    if sees == "codes":
        codes = fit.weight.constant.codes
        return None if codes is None else ((codes.codes - codes.zero).reshape(theirs.shape).astype(np.float64), theirs)
    return ours, theirs


def _correlation(one: Floats, other: Floats) -> float:
    one, other = one.ravel() - one.mean(), other.ravel() - other.mean()
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norms if norms > 0 else 0.0
