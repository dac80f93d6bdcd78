"""Whether a finished file really is its dense model, rounded: every code is recomputed from the dense weights.

A malicious quantiser can hide a backdoor in the choice between the two neighbours of each weight (QuRA, Ma et al. 2023;
compression-activated backdoors, Hong et al. 2021, arXiv:2110.13541). With the dense model at hand that choice is not
hidden: a code is the nearest neighbour of weight / scale, the other neighbour, or neither. Adaptive rounding (Nagel et
al. 2020, arXiv:2004.10568) honestly takes the other neighbour here and there; what proves it is to recompute it.

The check is about weights and biases. It says nothing of the scales of activations or of other constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from .lineage_steps import Steps, biases_off, folded_weight, held_against, scales_in_words
from .onnx_constants import Array, Graph
from .onnx_weights import Stage, Weight, weights

Verdict = Literal["confirmed", "not nearest", "not a rounding of the dense model", "not comparable"]

SAMPLE = 4096  # values by which layers of equal shape are told apart


@dataclass(frozen=True)
class LayerLineage:
    """One weight of the artefact beside the dense weight that it is held against.

    `nearest`, `other_neighbour` and `beyond` count weights; together they are `weights`. A float32 tie (weight / scale
    within a few units of rounding of one half) counts as nearest either way, and so does a weight beyond the range of
    the codes that was clipped to its end.
    """

    name: str
    dense_name: str
    shape: tuple[int, ...]
    weights: int
    bits: int  # of a weight; 32, 16: it is held in float
    levels: str  # "255 integers", "code book of 16 values", "float16"
    scale_kind: Literal["per tensor", "per channel", "blocked", "none"]
    scale_words: str
    nearest: int
    other_neighbour: int
    beyond: int
    beyond_zero: int  # of those beyond: weights that are exactly zero (pruned)
    worst_steps: float  # the furthest that a code is from its weight, in steps of the scale
    biases: int
    bias_off: int  # biases more than one step (float: more than rounding) from the dense model's


@dataclass(frozen=True)
class Lineage:
    layers: tuple[LayerLineage, ...]
    unmatched_artifact: tuple[str, ...]  # weights without a counterpart in the dense model, or that cannot be read
    unmatched_dense: tuple[str, ...]
    verdict: Verdict
    sentences: tuple[str, ...]

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)


def check_lineage(dense: bytes, artifact: bytes) -> Lineage:
    """Holds every weight of `artifact` against the dense model's; layers are matched by shape, values, name and order.

    Args:
        dense, artifact: ONNX files that `targets.onnx_safety.check_onnx` let pass. The dense one may keep its batch
            norms or have them folded, and so may the artefact.
    """
    import onnx

    graph = Graph(onnx.load_model_from_string(artifact))
    ours = list(weights(graph))
    theirs = [found for found in weights(Graph(onnx.load_model_from_string(dense))) if found.stages]
    unread = tuple(found.name for found in ours if not found.stages)
    total = sum(_size(found) for found in ours)
    pairs, mine, yours = _pairs([found for found in ours if found.stages], theirs)
    if mine and yours:  # attention's projections: packed into one matrix by torch, three layers once it is unfolded
        more, mine, yours = _pairs(_thirds(mine, yours), _thirds(yours, mine))
        pairs += more
    yours = [weight for weight in yours if not _looked_up(weight, graph)]
    layers = [_compare(weight, other) for weight, other in pairs]
    extra, missing = tuple(found.name for found in mine), tuple(found.name for found in yours)
    verdict = _verdict(layers, extra, missing, unread, total)
    sentences = _sentences(layers, extra, missing, unread, verdict)
    return Lineage(tuple(layers), (*extra, *unread), missing, verdict, tuple(sentences))


def _pairs(
    ours: Sequence[Weight], theirs: Sequence[Weight]
) -> tuple[list[tuple[Weight, Weight]], list[Weight], list[Weight]]:
    """(matched weights, the artefact's left over, the dense model's left over)."""
    matches = _match(ours, theirs)
    taken = set(matches.values())
    return (
        [(ours[index], theirs[matches[index]]) for index in sorted(matches)],
        [weight for index, weight in enumerate(ours) if index not in matches],
        [weight for index, weight in enumerate(theirs) if index not in taken],
    )


def _thirds(found: Sequence[Weight], others: Sequence[Weight]) -> list[Weight]:
    """Each weight [3 n, in] cut into three where the other side has weights [n, in]; the rest as they are."""
    shapes = {other.constant.shape for other in others}
    parts: list[Weight] = []
    for weight in found:
        rows, odd = divmod(weight.constant.shape[0], 3)
        if odd or (rows, *weight.constant.shape[1:]) not in shapes:
            parts.append(weight)
            continue
        for index, noun in enumerate(("query", "key", "value")):
            part = slice(index * rows, (index + 1) * rows)
            stages = [
                replace(
                    stage,
                    gain=None if stage.gain is None else stage.gain[part],
                    shift=stage.shift[part],
                    step=stage.step[part],
                )
                for stage in weight.stages
            ]
            constant = weight.constant.moved(partial(_rows, part))
            parts.append(replace(weight, name=f"{weight.name} ({noun})", constant=constant, stages=tuple(stages)))
    return parts


def _looked_up(dense: Weight, graph: Graph) -> bool:
    """Whether a table of the dense model (of positions, say) is in the file as it is, the look-up done beforehand."""
    from onnx import numpy_helper

    if dense.node.op_type != "Gather" or dense.constant.plain is None:
        return False
    table = dense.constant.plain
    held = (tensor for tensor in graph.held.values() if int(np.prod(tensor.dims, dtype=np.int64)) == table.size)
    return any(np.array_equal(numpy_helper.to_array(tensor).ravel(), table.ravel()) for tensor in held)


def _rows(part: slice, array: Array) -> Array:
    chosen: Array = array[part]
    return chosen


def _size(weight: Weight) -> int:
    return int(np.prod(weight.constant.shape, dtype=np.int64))


def _match(ours: Sequence[Weight], theirs: Sequence[Weight]) -> dict[int, int]:
    """Index of an artefact's weight -> index of the dense weight: the pairing of the largest total correlation."""
    from scipy.optimize import linear_sum_assignment

    groups: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for side, found in enumerate((ours, theirs)):
        for index, weight in enumerate(found):
            key = (weight.constant.shape[0], _size(weight))
            groups.setdefault(key, ([], []))[side].append(index)
    matches: dict[int, int] = {}
    for mine, yours in groups.values():
        if not mine or not yours:
            continue
        left, right = [_samples(ours[i]) for i in mine], [_samples(theirs[j]) for j in yours]
        likeness = np.array([[max(float(a @ b) for a in one for b in other) for other in right] for one in left])
        bonus = np.zeros_like(likeness)
        for row, i in enumerate(mine):
            for column, j in enumerate(yours):
                bonus[row, column] = 0.02 * (ours[i].name == theirs[j].name) - 1e-6 * abs(row - column)
        rows, columns = linear_sum_assignment(-(likeness + bonus))
        matches.update({mine[row]: yours[column] for row, column in zip(rows, columns, strict=True)})
        for row in set(range(len(mine))) - set(rows):  # a weight that several nodes of the artefact share
            column = int(likeness[row].argmax())
            if likeness[row, column] > 0.9:
                matches[mine[row]] = yours[column]
    return matches


def _samples(weight: Weight) -> list[Array]:
    """A few values of the weight, standardised; once per way of folding what follows it."""
    values = weight.constant.values
    rows = values.reshape(values.shape[0], -1)
    places = np.linspace(0, rows.size - 1, min(SAMPLE, rows.size)).astype(np.int64)
    picked, channel = rows.ravel()[places].astype(np.float64), places // max(rows.shape[1], 1)
    found = []
    for gain in _gains(weight):
        sample = picked if gain is None else picked * gain[channel]
        sample = np.nan_to_num(sample - sample.mean(), nan=0.0, posinf=0.0, neginf=0.0)
        found.append(sample / max(float(np.linalg.norm(sample)), 1e-30))
    return found


def _gains(weight: Weight) -> list[Array | None]:
    kept: list[Array | None] = []
    for stage in weight.stages:
        if not any(stage.gain is known for known in kept):
            kept.append(stage.gain)
    return kept


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
        weights=_size(weight),
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


def _verdict(
    layers: Sequence[LayerLineage], extra: Sequence[str], missing: Sequence[str], unread: Sequence[str], total: int
) -> Verdict:
    matched = sum(layer.weights for layer in layers)
    if not layers or 2 * matched < total:
        return "not comparable"
    if extra or missing or any(layer.beyond or layer.bias_off for layer in layers):
        return "not a rounding of the dense model"
    if unread:
        return "not comparable"
    return "not nearest" if any(layer.other_neighbour for layer in layers) else "confirmed"


def _sentences(
    layers: Sequence[LayerLineage],
    extra: Sequence[str],
    missing: Sequence[str],
    unread: Sequence[str],
    verdict: Verdict,
) -> list[str]:
    hidden = (
        f"How the file makes {_listed(unread)} of what it holds is not followed here: not shown to be the dense "
        "model's, rounded."
    )
    if verdict == "not comparable" and unread:
        return [*(sentence for layer in layers for sentence in _of_layer(layer)), hidden]
    if verdict == "not comparable":
        return [
            "The file's weights have other shapes than the dense model's (channels were removed, layers factorised, or "
            "it is another architecture), so its codes cannot be recomputed from them."
            if layers or extra
            else "The file holds no weights of convolutions or products that could be compared."
        ]
    sentences = [sentence for layer in layers for sentence in _of_layer(layer)]
    if extra:
        sentences.append(f"The dense model has no counterpart of {_listed(extra)}: not a rounding of this model.")
    if unread:
        sentences.append(hidden)
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
