"""What the comparison says of one weight of a file beside the dense model's."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from .codes_in_steps import ScaleKind, biases_off, folded_weight, scales_in_words
from .matched import Fit
from .matching import size


@dataclass(frozen=True)
class LayerLineage:
    """One weight of the artefact beside the dense weight that it is held against.

    `nearest`, `other_neighbour` and `beyond` count weights; together they are `weights`. A float32 tie (weight / scale
    within a few units of rounding of one half) counts as nearest either way, and so does a weight beyond the range of
    the codes that was clipped to its end.

    Attributes:
        name: of the weight in the artefact.
        dense_name: of its counterpart in the dense model.
        shape: of the weight, outputs first.
        weights: how many numbers it has: the product of `shape`.
        bits: 1 .. 32: the fewest that hold the integer codes (1 .. 32) or the places in a code book (1 .. 8); 16 of
            float16 and bfloat16, 32 of a float that is not rounded.
        levels: what a code may be, in words: "255 integers", "two values", "code book of 16 values", "float16".
        scale_kind: what shares a scale: the tensor, an output channel, a block of a channel's weights; "none": floats.
        scale_words: how the scales follow from the dense weights: "the channel's largest magnitude / 127".
        nearest: 0 .. weights: codes that are the nearest neighbour of dense weight / scale.
        other_neighbour: 0 .. weights: codes that are the neighbour on the other side; 0 where there are two values.
        beyond: 0 .. weights: codes that are neither; of floats, values that differ by more than rounding.
        beyond_zero: 0 .. beyond: of those beyond, weights that are exactly zero, as after pruning.
        worst_steps: 0 .. 1e9 (at most that): the furthest that a code is from its dense weight, in steps of the scale.
        misscaled: 0 .. beyond: of those beyond, weights whose scale or code book cuts them off or flattens them.
        biases: 0 or more: how many biases follow the product, in either file.
        bias_off: 0 .. biases: those more than half a step (of floats: more than rounding) from the dense model's.
    """

    name: str
    dense_name: str
    shape: tuple[int, ...]
    weights: int
    bits: int
    levels: str
    scale_kind: ScaleKind
    scale_words: str
    nearest: int
    other_neighbour: int
    beyond: int
    beyond_zero: int
    worst_steps: float
    biases: int
    bias_off: int
    misscaled: int = 0


def row_of(fit: Fit) -> LayerLineage:
    """Its row."""
    weight, dense, ours, theirs, steps, levels, bits = (getattr(fit, field.name) for field in fields(fit))
    nearest, other, beyond = steps.counts
    if bits == 1:  # of two values there is no second neighbour: the sign is wrong
        other, beyond = 0, beyond + other
    off = np.abs(steps.held - steps.wanted)
    outside = off > 1 + steps.slack
    if steps.misscaled is not None:
        outside |= steps.misscaled
    kind, words = scales_in_words(weight.constant.codes, ours, folded_weight(dense, theirs), levels)
    biases, bias_off = biases_off(ours, theirs, folded_weight(dense, theirs))
    return LayerLineage(
        name=weight.name,
        dense_name=dense.name,
        shape=tuple(weight.constant.shape),
        weights=size(weight),
        bits=bits,
        levels=levels,
        scale_kind=kind,
        scale_words=words,
        nearest=nearest,
        other_neighbour=other,
        beyond=beyond,
        beyond_zero=int((outside & (weight.constant.values.ravel() == 0)).sum()),
        worst_steps=round(float(np.minimum(off.max(initial=0.0), 1e9)), 3),
        biases=biases,
        bias_off=bias_off,
        misscaled=0 if steps.misscaled is None else int(steps.misscaled.sum()),
    )
