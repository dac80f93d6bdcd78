"""A weight of a file beside the dense weight it is held against, in the steps of the file's own scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ...targets.onnx_graph.constants import FRACTION_BITS, Array, Codes, Constant, code_range
from ...targets.onnx_graph.weights import Stage, Weight

ULPS = 8  # of float32: what dividing by a scale of one's own rounding may differ by
ULPS_FOLDED = 64  # after a batch norm or a factor was multiplied into the weight
ULPS_FLOAT = 64  # for weights that are still float32
LARGEST_CODEBOOK = 256
# Squared error of what shares a scale / its squared weights, by bits: beyond it the scale was not chosen for them.
LARGEST_ERROR = {1: 0.75, 2: 0.5, 3: 0.2, 4: 0.1}
ERROR_OF_MORE = 0.05
USUAL = (0.6, 2.05)  # a scale / that which just holds the largest weight: cut a little, or up to a power of two
FAINT = 1e-6  # squared weights / those of a typical scale: channels that are as good as zero
COARSEST = 3  # steps of a bias's codes in the largest bias

ScaleKind = Literal["per tensor", "per channel", "blocked", "none"]


@dataclass(frozen=True)
class Steps:
    """Where the codes are and where they should be, in steps: all [n]."""

    held: Array  # whole numbers
    wanted: Array  # real numbers within the range of the codes
    slack: Array  # what float rounding may move `wanted` by
    misscaled: Array | None = None  # bool: their scale cuts them off or flattens them; None: none of them

    @property
    def counts(self) -> tuple[int, int, int]:
        """Nearest, other neighbour, beyond."""
        off = np.abs(self.held - self.wanted)
        near, next_to = off <= 0.5 + self.slack, off <= 1 + self.slack
        if self.misscaled is not None:
            near, next_to = near & ~self.misscaled, next_to & ~self.misscaled
        nearest, neighbours = int(near.sum()), int(next_to.sum())
        return nearest, neighbours - nearest, len(off) - neighbours


def folded_weight(dense: Weight, stage: Stage) -> Array:
    """The dense weight with what follows it multiplied in: float64 [out, n]."""
    values = dense.constant.values.astype(np.float64)
    rows = values.reshape(values.shape[0], -1)
    return rows if stage.gain is None else rows * stage.gain[:, None]


def held_against(weight: Weight, stage: Stage, dense: Array, folded: bool) -> tuple[Steps, str, int]:
    """The artefact's codes and the dense weights in the steps of its scale; the words for its levels, and its bits."""
    steps, levels, bits = _held_against(weight, stage, dense, folded)
    if bits == 32 or levels in FRACTION_BITS:
        return steps, levels, bits
    return replace(steps, misscaled=_misscaled(weight.constant, stage, dense, bits)), levels, bits


def _misscaled(constant: Constant, stage: Stage, dense: Array, bits: int) -> Array | None:
    """Whose scale (or code book) leaves too little of them, though each code is the nearest: the choice of a scale is
    free, and one that is far too small or too large changes a channel as its maker likes.
    """
    gain = 1.0 if stage.gain is None else stage.gain[:, None]
    values = constant.values.astype(np.float64).reshape(dense.shape) * gain
    codes = constant.codes
    scale = np.zeros(1) if codes is None else np.abs(codes.scale.astype(np.float64)).ravel()
    unit = np.unique(scale, return_inverse=True)[1].ravel() if scale.size > 1 else np.zeros(dense.size, np.int64)
    sums, errors = (np.bincount(unit, part.ravel()) for part in (dense**2, (values - dense) ** 2))
    typical = float(np.median(sums[sums > 0])) if (sums > 0).any() else 0.0
    wrong = (errors > LARGEST_ERROR.get(bits, ERROR_OF_MORE) * sums) & (sums > FAINT * typical)
    if codes is not None:
        low, high, _ = code_range(constant.stored, codes)
        span, held = np.zeros((2, len(sums))), np.zeros(len(sums))
        np.minimum.at(span[0], unit, dense.ravel())
        np.maximum.at(span[1], unit, dense.ravel())
        np.maximum.at(held, unit, (np.abs(codes.scale.astype(np.float64).reshape(dense.shape) * gain)).ravel())
        whole = span[1] - span[0] if codes.zero.any() else 2 * np.abs(span).max(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = held * (high - low) / whole
        wrong &= ~((ratio >= USUAL[0]) & (ratio <= USUAL[1]))
    return wrong[unit] if wrong.any() else None


def _held_against(weight: Weight, stage: Stage, dense: Array, folded: bool) -> tuple[Steps, str, int]:
    codes = weight.constant.codes
    if codes is None:
        return _float_steps(weight.constant, stage, dense)
    held = (codes.codes - codes.zero).astype(np.float64).ravel()
    scale = codes.scale.astype(np.float64).reshape(dense.shape)
    if stage.gain is not None:
        scale = scale * stage.gain[:, None]
    ulps = (ULPS_FOLDED if folded or stage.gain is not None else ULPS) * 2.0**-23
    wanted = _ratio(dense, scale).ravel()
    if np.array_equal(np.unique(held), [-1.0, 1.0]):
        return Steps((held + 1) / 2, (np.clip(wanted, -1, 1) + 1) / 2, np.full(held.shape, ulps)), "two values", 1
    low, high, bits = code_range(weight.constant.stored, codes)
    zero = codes.zero.astype(np.float64).ravel()
    if bits == 2 and not zero.any() and np.array_equal(held, _ternary(dense, codes.unit).ravel()):
        return Steps(held, held, np.zeros(held.shape)), "ternary, by a threshold of .7 of the mean magnitude", 2
    clipped = np.clip(wanted, low - zero, high - zero)
    return Steps(held, clipped, ulps * (np.abs(clipped) + np.abs(zero)) + 1e-9), f"{high - low + 1} integers", bits


def _ratio(values: Array, scale: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps = values / scale
    far = np.where(values == 0, 0.0, 1e9)  # a scale of zero writes zeros only
    found: Array = np.clip(np.nan_to_num(np.where(scale == 0, far, steps), nan=1e9), -1e9, 1e9)
    return found


def _ternary(dense: Array, unit: Array) -> Array:
    """Li & Liu 2016 (arXiv:1605.04711), section 2.2: -1, 0, 1 by a threshold of .7 of the unit's mean magnitude."""
    units = unit.reshape(dense.shape)
    magnitude = np.abs(dense)
    sums = np.bincount(units.ravel(), magnitude.ravel())
    means = sums / np.maximum(np.bincount(units.ravel()), 1)
    found: Array = np.sign(dense) * (magnitude > 0.7 * means[units])
    return found


def _float_steps(constant: Constant, stage: Stage, dense: Array) -> tuple[Steps, str, int]:
    """Values held in float: steps of their own rounding, or, of few distinct values, of a code book."""
    values = constant.values.astype(np.float64).reshape(dense.shape)
    if stage.gain is not None:
        values = values * stage.gain[:, None]
    held, wanted = values.ravel(), dense.ravel()
    fraction_bits = FRACTION_BITS.get(constant.stored, 23)
    spacing = np.exp2(np.floor(np.log2(np.maximum(np.abs(wanted), 2.0**-24 if fraction_bits == 10 else 2.0**-126))))
    spacing = np.maximum(spacing * 2.0**-fraction_bits, 2.0**-24 if fraction_bits == 10 else 0.0)
    off = (held - wanted) / spacing
    if fraction_bits >= 23:  # not rounded at all: folding aside, equal
        largest = np.abs(dense).max(axis=1, keepdims=True, initial=0.0) * 2.0**-23
        close = np.abs(values - dense) <= ULPS_FLOAT * np.maximum(np.abs(dense) * 2.0**-23, largest / 16)
        off = np.where(close.ravel(), 0.0, np.sign(off) * np.maximum(np.abs(off), 2.0))
    plain = Steps(np.clip(off, -1e9, 1e9), np.zeros(off.shape), np.full(off.shape, 0.01))
    if plain.counts[2]:
        levels, index = np.unique(held, return_inverse=True)
        if 1 < len(levels) <= LARGEST_CODEBOOK and 4 * len(levels) <= len(held):
            wanted_index = np.interp(wanted, levels, np.arange(len(levels)))
            steps = Steps(index.ravel().astype(np.float64), wanted_index, np.full(off.shape, 1e-4))
            if steps.counts[2] < plain.counts[2]:
                return steps, f"code book of {len(levels)} values", int(len(levels) - 1).bit_length()
    return plain, constant.stored, 16 if fraction_bits < 23 else 32


def scales_in_words(codes: Codes | None, stage: Stage, dense: Array, levels: str) -> tuple[ScaleKind, str]:
    """How many weights share a scale, and what the scales are in terms of the dense weights."""
    if codes is None:
        return "none", levels
    units = codes.unit.reshape(dense.shape)
    count = int(units.max(initial=0)) + 1
    channel = (units == units[:, :1]).all()
    kind: ScaleKind = "per tensor" if count == 1 else "per channel" if channel else "blocked"
    noun = "block" if kind == "blocked" else kind.removeprefix("per ")
    scale = np.zeros(count)
    gain = np.ones(len(dense)) if stage.gain is None else np.abs(stage.gain)
    scale[units.ravel()] = (codes.scale.reshape(dense.shape) * gain[:, None]).ravel()
    largest, lowest = np.zeros(count), np.zeros(count)
    np.maximum.at(largest, units.ravel(), dense.ravel())
    np.minimum.at(lowest, units.ravel(), dense.ravel())
    if "integers" not in levels:
        return kind, levels
    steps = int(levels.split()[0]) - 1
    asymmetric = bool(codes.zero.any())
    span = largest - lowest if asymmetric else 2 * np.maximum(largest, -lowest)
    alive = span > 0
    if not alive.any():
        return kind, f"the {noun}'s weights are all zero"
    if bool((np.frexp(codes.scale[codes.scale > 0])[0] == 0.5).all()):
        return kind, "powers of two"
    ratio = scale[alive] * (steps + steps % 2 * (not asymmetric)) / span[alive]
    typical = float(np.median(ratio))
    base = f"the {noun}'s range" if asymmetric else f"the {noun}'s largest magnitude"
    if float(np.abs(ratio - 1).max()) < 2 / max(steps, 1) * (1 if steps > 200 else 0.01):
        return kind, f"{base} / {steps if asymmetric else (steps + 1) // 2}"
    if typical < 1:
        return kind, f"not {base}: clipped to {typical:.2f} of it (median)"
    return kind, f"not {base}: {typical:.2f} times it (median)"


def biases_off(ours: Stage, theirs: Stage, dense: Array) -> tuple[int, int]:
    """How many biases there are, and how many are more than half a step off.

    A step counts as far as it is one that could be asked for: a third of the largest bias, or what codes of the
    product have. One that is larger was chosen to move the biases.

    Args:
        dense: the dense weights, [out, n].
    """
    if not ours.biased and not theirs.biased:
        return 0, 0
    if ours.shift.shape != theirs.shift.shape:
        return ours.shift.size, ours.shift.size
    largest = float(np.abs(theirs.shift).max(initial=0.0))
    widest = max(largest / COARSEST, float(np.abs(dense).max(initial=0.0)))
    step = np.where(ours.step <= widest, ours.step, 0.0)
    slack = 0.505 * step + 1e-5 * np.abs(theirs.shift) + 1e-6 * largest
    with np.errstate(over="ignore"):
        narrow = ours.shift.astype(np.float16)
    if bool((narrow == ours.shift).all()):  # a file in float16: half a step of its eleven bits
        slack = slack + 2**-11 * np.abs(theirs.shift) + 2**-25
    return ours.shift.size, int((~(np.abs(ours.shift - theirs.shift) <= slack)).sum())
