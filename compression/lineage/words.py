"""What is said of a file beside its dense model: of weights that are not as they should be, of the graph, of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ...targets.onnx_graph.weights import Weight
    from .graphs import Structure
    from .layer import LayerLineage
    from .ranges import Range
    from .structure import Difference

Verdict = Literal[
    "confirmed",
    "not nearest",
    "not as declared",
    "other structure",
    "not a rounding of the dense model",
    "not comparable",
]
StructureVerdict = Literal["same", "differs", "not compared", "not comparable by recipe"]
NOTHING = 0.1  # share of the dense model's weights: a file in which fewer are found is another model
SMALLER = "Operator for operator it is the dense model, in layers of the same sizes or smaller ones."
SHOWN = 4  # differences of the graphs that sentences tell


def hidden_words(unread: Sequence[str], hidden: Sequence[str]) -> str:
    """Of weights whose making is not followed, in the file or else in the dense model."""
    whose = "the file" if unread else "the dense model"
    return (
        f"How {whose} makes {_listed(unread or hidden)} of what it holds is not followed here: not shown to be the "
        "dense model's, rounded."
    )


def other_shapes(extra: Sequence[Weight], missing: Sequence[Weight]) -> str:
    if not extra and not missing:
        return "The file holds no weights of convolutions or products that could be compared."

    def shapes(found: Sequence[Weight]) -> str:
        return _listed([f"{weight.name} {list(weight.constant.shape)}" for weight in found]) if found else "nothing"

    return (
        "The file's weights have other shapes than the dense model's (channels were added or removed, layers "
        "factorised, or it is another architecture), so its codes cannot be recomputed from them: it has "
        f"{shapes(extra)} where the dense model has {shapes(missing)}."
    )


def of_whole(
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
        sentences.append(hidden_words(unread, ()))
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


def of_layer(layer: LayerLineage) -> list[str]:
    found, noun = [], "weights" if layer.bits == 32 else "codes"
    if layer.beyond:
        how = {32: "differ from the dense weight", 1: "have the dense weight's sign reversed"}.get(
            layer.bits, f"are neither neighbour of the dense weight (the furthest is {layer.worst_steps:.3g} steps off)"
        )
        if layer.misscaled:
            how = f"{how}, or their scale cuts them off or flattens them ({layer.misscaled:,})"
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


def of_nothing(share: float) -> str:
    """Of a file in which nothing of the dense model is found."""
    much = "None" if share < 0.0005 else f"Only {100 * share:.1f} %"
    return (
        f"{much} of the dense model's weights is found in the file: it holds other weights, or layers of other sizes."
    )


def of_structure(found: Structure) -> list[str]:
    """Of the operators: what the file has, lacks or does otherwise; empty where that is the whole reason already."""
    if found.reason is not None:
        return [f"Its operators are not compared with the dense model's. {found.reason}"]
    sentences = []
    if found.heads:
        sentences.append(f"Behind the dense model's own output stands {_listed(found.heads)}.")
    if not found.differences:
        return sentences
    sentences += [f"{_nodes(difference)}." for difference in found.differences[:SHOWN]]
    more = len(found.differences) - SHOWN
    if more > 0:
        sentences.append(f"{more} more differences of the graphs are in audit.json.")
    if any(difference.selecting for difference in found.differences):
        sentences.append(
            "Operators that compare or choose can give some inputs another answer, whatever the weights are."
        )
    return [*sentences, "Its graph is not shown to compute what the dense model computes."]


def _nodes(difference: Difference) -> str:
    return f"{_listed(difference.nodes)} {difference.words}"


def of_range(found: Range) -> str:
    """Of an activation's range that is not what the dense model's activations ask for."""
    told = f"The range [{found.low:.4g}, {found.high:.4g}] of {found.tensor}"
    dense = f"[{found.dense_low:.4g}, {found.dense_high:.4g}]"
    if found.clips:
        return f"{told} cuts off {100 * found.clipped:.1f} % of the dense model's typical activations ({dense})."
    return f"{told} is {found.wider:.3g} times as wide as the dense model's typical activations ({dense})."
