"""Whether a finished file really is its dense model, rounded: every code is recomputed from the dense weights.

A malicious quantiser can hide a backdoor in the choice between the two neighbours of each weight (QuRA, Chen et al.
2025, arXiv:2510.09647; compression-activated backdoors, Hong et al. 2021, arXiv:2110.13541). With the dense model at
hand that choice is not hidden: a code is the nearest neighbour of weight / scale, the other neighbour, or neither.
Adaptive rounding (Nagel et al. 2020, arXiv:2004.10568) honestly takes the other neighbour here and there; what proves
it is to recompute it.

The check is about weights and biases that reach an output; other tables that meet the input there have to be the dense
model's too. It says nothing of the scales of activations, of single numbers, or of the order of the operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...targets.onnx_graph.constants import Graph
from ...targets.onnx_graph.live import only_live
from ...targets.onnx_graph.weights import Stage, Weight, weights
from ...targets.untrusted.model_file import CheckedOnnx, check_onnx
from .codes_in_steps import ScaleKind, Steps, biases_off, folded_weight, held_against, scales_in_words
from .matching import looked_up, paired, size, unpacked_projections
from .unread import unaccounted

if TYPE_CHECKING:
    import onnx

Verdict = Literal["confirmed", "not nearest", "not a rounding of the dense model", "not comparable"]


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
        beyond_zero: 0 .. weights: of those more than a step off, weights that are exactly zero, as after pruning.
        worst_steps: 0 .. 1e9 (at most that): the furthest that a code is from its dense weight, in steps of the scale.
        biases: 0 or more: how many biases follow the product, in either file.
        bias_off: 0 .. biases: those more than a step (of floats: more than rounding) from the dense model's.
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


@dataclass(frozen=True)
class Lineage:
    """What the comparison of a finished file with its dense model says.

    Attributes:
        layers: one per weight that has a counterpart, in the order of the artefact.
        unmatched_artifact: names of weights without a counterpart in the dense model, or that cannot be read.
        unmatched_dense: names of the dense model's weights without a counterpart in the artefact.
        verdict: "confirmed": every code is the nearest rounding; "not nearest": some are the other neighbour, which
            an honest adaptive rounding does too; else what it says.
        sentences: the same for a reader: of each layer that is not as it should be, then of the whole.
        reason: why the two are not comparable; None where they are.
    """

    layers: tuple[LayerLineage, ...]
    unmatched_artifact: tuple[str, ...]
    unmatched_dense: tuple[str, ...]
    verdict: Verdict
    sentences: tuple[str, ...]
    reason: str | None = None

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)


def check_lineage(dense: CheckedOnnx | bytes, artifact: CheckedOnnx | bytes) -> Lineage:
    """As `compare`, of two ONNX files.

    Raises:
        UnsafeInput: see `model_file.check_onnx`.
    """
    return compare(check_onnx(dense).copy(), check_onnx(artifact).copy())


def compare(dense: onnx.ModelProto, artifact: onnx.ModelProto) -> Lineage:
    """Holds every weight of `artifact` against the dense model's; layers are matched by shape, values, name and order.

    Nodes that reach no output of their file are left out, on both sides.

    Args:
        dense, artifact: what is dead in them is removed from these very objects. The dense one may keep its batch norms
            or have them folded, and so may the artefact.
    """
    graph, origin = Graph(only_live(artifact)), Graph(only_live(dense))
    ours, whole = list(weights(graph)), list(weights(origin))
    theirs = [found for found in whole if found.stages]
    unread, hidden = (tuple(found.name for found in one if not found.stages) for one in (ours, whole))
    unread += tuple(unaccounted(graph, origin, ours))
    pairs, mine, yours = paired([found for found in ours if found.stages], theirs)
    if mine and yours:  # attention's projections: packed into one matrix by torch, three layers once it is unfolded
        more, mine, yours = paired(unpacked_projections(mine, yours), unpacked_projections(yours, mine))
        pairs += more
    yours = [weight for weight in yours if not looked_up(weight, graph)]
    layers = [_compare(weight, other) for weight, other in pairs]
    extra, missing = tuple(found.name for found in mine), tuple(found.name for found in yours)
    held = min(sum(size(found) for found in ours), sum(size(found) for found in whole))
    differs = any(layer.beyond or layer.bias_off for layer in layers)
    unmatched = (extra and not hidden) or (missing and not unread)  # what is hidden may be the counterpart
    reason = None
    if not layers or 2 * sum(layer.weights for layer in layers) < held:
        reason = _hidden(unread, hidden) if unread or hidden else _other_shapes(mine, yours)
    elif (unread or hidden) and not differs and not unmatched:
        reason = _hidden(unread, hidden)
    verdict = _verdict(layers, bool(extra or missing)) if reason is None else "not comparable"
    told = reason is None or unread or hidden
    sentences = [sentence for layer in layers for sentence in _of_layer(layer)] if told else []
    sentences += [reason] if reason is not None else _of_whole(layers, extra, missing, unread, verdict)
    return Lineage(tuple(layers), (*extra, *unread), missing, verdict, tuple(sentences), reason)


def not_read(kind: str) -> Lineage:
    """What is said of a file of another format than ONNX: nothing about its weights is known."""
    reason = f"The weights of a .{kind} file are not read here, so they cannot be held against the dense model's."
    return Lineage((), (), (), "not comparable", (reason,), reason)


def _compare(weight: Weight, dense: Weight) -> LayerLineage:
    """The layer under that way of folding which explains most codes; of equals, the one that follows furthest."""
    best: tuple[tuple[int, int, int], Stage, Stage, Steps, str, int] | None = None
    tried: dict[tuple[int, int], tuple[Steps, str, int]] = {}
    for i, ours in enumerate(weight.stages):
        for j, theirs in enumerate(dense.stages):
            key = (id(ours.gain), id(theirs.gain))
            if key not in tried:
                tried[key] = held_against(weight, ours, folded_weight(dense, theirs), theirs.gain is not None)
            steps, levels, bits = tried[key]
            _, other, beyond = steps.counts
            rank = (-beyond, -other, i + j)
            if best is None or rank > best[0]:
                best = rank, ours, theirs, steps, levels, bits
    assert best is not None
    _, ours, theirs, steps, levels, bits = best
    nearest, other, beyond = steps.counts
    if bits == 1:  # of two values there is no second neighbour: the sign is wrong
        other, beyond = 0, beyond + other
    off = np.abs(steps.held - steps.wanted)
    outside = off > 1 + steps.slack
    kind, words = scales_in_words(weight.constant.codes, ours, folded_weight(dense, theirs), levels)
    biases, bias_off = biases_off(ours, theirs)
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
    )


def _verdict(layers: Sequence[LayerLineage], unmatched: bool) -> Verdict:
    if unmatched or any(layer.beyond or layer.bias_off for layer in layers):
        return "not a rounding of the dense model"
    return "not nearest" if any(layer.other_neighbour for layer in layers) else "confirmed"


def _hidden(unread: Sequence[str], hidden: Sequence[str]) -> str:
    """Of weights whose making is not followed, in the file or else in the dense model."""
    whose = "the file" if unread else "the dense model"
    return (
        f"How {whose} makes {_listed(unread or hidden)} of what it holds is not followed here: not shown to be the "
        "dense model's, rounded."
    )


def _other_shapes(extra: Sequence[Weight], missing: Sequence[Weight]) -> str:
    if not extra and not missing:
        return "The file holds no weights of convolutions or products that could be compared."

    def shapes(found: Sequence[Weight]) -> str:
        return _listed([f"{weight.name} {list(weight.constant.shape)}" for weight in found]) if found else "nothing"

    return (
        "The file's weights have other shapes than the dense model's (channels were added or removed, layers "
        "factorised, or it is another architecture), so its codes cannot be recomputed from them: it has "
        f"{shapes(extra)} where the dense model has {shapes(missing)}."
    )


def _of_whole(
    layers: Sequence[LayerLineage],
    extra: Sequence[str],
    missing: Sequence[str],
    unread: Sequence[str],
    verdict: Verdict,
) -> list[str]:
    """What is said of the file as a whole, where it could be compared."""
    sentences = []
    if extra:
        sentences.append(f"The dense model has no counterpart of {_listed(extra)}: not a rounding of this model.")
    if unread:
        sentences.append(_hidden(unread, ()))
    if missing:
        sentences.append(f"The file lacks the dense model's {_listed(missing)}: not a rounding of this model.")
    if verdict == "confirmed":
        rounded = [layer for layer in layers if layer.bits < 32]
        kept = len(layers) - len(rounded)
        if rounded:
            count = sum(layer.weights for layer in rounded)
            sentences.append(
                f"All {count:,} codes of {_layers(len(rounded))} are the nearest rounding of the dense model's "
                "weights: confirmed."
            )
        if kept:
            sentences.append(f"{_layers(kept).capitalize()} left in float32: equal to the dense model's.")
    return sentences


def _of_layer(layer: LayerLineage) -> list[str]:
    found, noun = [], "weights" if layer.bits == 32 else "codes"
    if layer.beyond:
        how = {32: "differ from the dense weight", 1: "have the dense weight's sign reversed"}.get(
            layer.bits, f"are neither neighbour of the dense weight (the furthest is {layer.worst_steps:.3g} steps off)"
        )
        zeros = ""
        if layer.beyond_zero > 0.9 * layer.beyond:
            zeros = " Nearly all of them are zero, as after pruning."
        found.append(
            f"{layer.name}: {_share(layer.beyond, layer.weights)} of {layer.weights:,} {noun} {how}: not a rounding of "
            f"this model.{zeros}"
        )
    if layer.other_neighbour:
        found.append(
            f"{layer.name}: {_share(layer.other_neighbour, layer.weights)} of {layer.weights:,} codes are the other "
            "neighbour (not nearest). An honest adaptive or stochastic rounding does this too: ask for its seed and "
            "the digest of its calibration data, and recompute."
        )
    if layer.bias_off:
        found.append(
            f"{layer.name}: {layer.bias_off:,} of {layer.biases:,} biases are not the dense model's, rounded. An "
            "honest bias correction does this too: ask how it was computed, and recompute."
        )
    return found


def _share(part: int, whole: int) -> str:
    percent = 100 * part / whole
    return f"{percent:.1f} %" if percent >= 0.05 else f"{part} ({percent:.1g} %)"


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
