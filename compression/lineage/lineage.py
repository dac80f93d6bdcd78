"""Whether a finished file really is its dense model, rounded: every code is recomputed from the dense weights.

A malicious quantiser can hide a backdoor in the choice between the two neighbours of each weight (QuRA, Chen et al.
2025, arXiv:2510.09647; compression-activated backdoors, Hong et al. 2021, arXiv:2110.13541). With the dense model at
hand that choice is not hidden: a code is the nearest neighbour of weight / scale, the other neighbour, or neither.
Adaptive rounding (Nagel et al. 2020, arXiv:2004.10568) honestly takes the other neighbour here and there; what proves
it is to recompute it.

The check is about what reaches an output: weights and biases, other tables that meet the input there, and every
operator with its numbers and its order. The scales of activations are held against the dense model's own activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...targets.onnx_graph.constants import Array
from ...targets.untrusted.model_file import CheckedOnnx, check_onnx
from .graphs import compare_structures
from .layer import LayerLineage, row_of
from .matched import Matched, match, resembling
from .matching import size
from .ranges import CLIPPED, WIDER, Range, compare_ranges
from .structure import Difference
from .words import (
    NOTHING,
    SMALLER,
    StructureVerdict,
    Verdict,
    hidden_words,
    of_layer,
    of_nothing,
    of_range,
    of_structure,
    of_whole,
    other_shapes,
)

if TYPE_CHECKING:
    import onnx

NAMED = 3  # ranges that sentences tell


@dataclass(frozen=True)
class Declared:
    """What a declared recipe says of a file.

    Attributes:
        bits: the most that a weight takes once the recipe went over it; None: it says nothing of that.
        changes_shapes: the dense model's layers do not stay what they are (factors, fewer channels, a student).
        keeps_operators: where it does: layers may be smaller, what they compute stays.
        exports: ONNX files that the recipe made of small models, where it puts operators that choose into a graph.
    """

    bits: int | None = None
    changes_shapes: bool = False
    exports: tuple[bytes, ...] = ()
    keeps_operators: bool = False


UNDECLARED = Declared()


@dataclass(frozen=True)
class Lineage:
    """What the comparison of a finished file with its dense model says.

    Attributes:
        layers: one per weight that has a counterpart, in the order of the artefact.
        unmatched_artifact: names of weights without a counterpart in the dense model, or that cannot be read.
        unmatched_dense: names of the dense model's weights without a counterpart in the artefact.
        verdict: "confirmed": every code is the nearest rounding, and the graph is the dense model's; "not nearest":
            some are the other neighbour, which an honest adaptive rounding does too; "not as declared": no weight
            takes as few bits as the declared recipe says; "other structure": the weights are the dense model's and
            the operators are not; else what it says.
        sentences: the same for a reader: of each layer that is not as it should be, then of the whole.
        reason: why the two are not comparable; None where they are.
        found: 0 .. 1: the share of the dense model's weights that have a counterpart in the file that resembles them.
            None: not known, where some of either's weights cannot be read.
        structure: "same": operator for operator the dense model's; "differs"; "not compared": for a reason, or because
            the weights settle it; "not comparable by recipe".
        differences: of the graphs, where they differ.
        ranges: those of the file's quantised activations that were held against the dense model's.
    """

    layers: tuple[LayerLineage, ...]
    unmatched_artifact: tuple[str, ...]
    unmatched_dense: tuple[str, ...]
    verdict: Verdict
    sentences: tuple[str, ...]
    reason: str | None = None
    found: float | None = None
    structure: StructureVerdict = "not compared"
    differences: tuple[Difference, ...] = ()
    ranges: tuple[Range, ...] = ()

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)


def check_lineage(
    dense: CheckedOnnx | bytes,
    artifact: CheckedOnnx | bytes,
    declared: Declared = UNDECLARED,
    records: Array | None = None,
) -> Lineage:
    """As `compare`, of two ONNX files.

    Raises:
        UnsafeInput: see `model_file.check_onnx`.
    """
    return compare(check_onnx(dense).copy(), check_onnx(artifact).copy(), declared, records)


def compare(
    dense: onnx.ModelProto,
    artifact: onnx.ModelProto,
    declared: Declared = UNDECLARED,
    records: Array | None = None,
) -> Lineage:
    """Holds every weight of `artifact` against the dense model's, and then its graph.

    Layers are matched by shape, values, name and order. Nodes that reach no output of their file are left out, on both
    sides.

    Args:
        dense, artifact: what is dead in them is removed from these very objects. The dense one may keep its batch norms
            or have them folded, and so may the artefact.
        declared: what the recipe that the file is declared to be made by says of it.
        records: as the dense model takes them, [n, ...]: an attacker's own. None: no range is compared.
    """
    known = match(dense, artifact)
    mine, yours, unread, hidden = known.extra, known.missing, known.unread, known.hidden
    layers = [row_of(fit) for fit in known.fits]
    extra, missing = tuple(found.name for found in mine), tuple(found.name for found in yours)
    held = sum(size(found) for found in known.theirs)
    alike = resembling(known.fits) / max(held, 1)
    differs = any(layer.beyond or layer.bias_off for layer in layers)
    unmatched = (extra and not hidden) or (missing and not unread)  # what is hidden may be the counterpart
    reason = None
    compared = 2 * sum(layer.weights for layer in layers)
    if not layers or compared < min(held, sum(map(size, known.ours))) or (compared < held and not differs):
        reason = hidden_words(unread, hidden) if unread or hidden else other_shapes(mine, yours)
    elif (unread or hidden) and not differs and not unmatched:
        reason = hidden_words(unread, hidden)
    verdict = _verdict(layers, bool(extra or missing)) if reason is None else "not comparable"
    told = reason is None or unread or hidden
    sentences = [sentence for layer in layers for sentence in of_layer(layer)] if told else []
    sentences += [reason] if reason is not None else of_whole(layers, extra, missing, unread, verdict)
    found = Lineage(tuple(layers), (*extra, *unread), missing, verdict, tuple(sentences), reason)
    if held and not unread and not hidden:
        found = replace(found, found=round(alike, 4))
        if alike < NOTHING:
            found = replace(found, sentences=(*sentences, of_nothing(alike)))
    if declared.changes_shapes and declared.keeps_operators:
        return _of_smaller(found, dense, artifact, known, declared, records)
    if found.sentences != tuple(sentences):
        return found
    if declared.changes_shapes:
        words = "Its operators are not comparable by recipe: the one it is declared to be made by changes them."
        return replace(found, structure="not comparable by recipe", sentences=(*sentences, words))
    return (
        found
        if reason is not None or extra or missing
        else _with_structure(found, dense, artifact, known, declared, records)
    )


def _of_smaller(
    found: Lineage,
    dense: onnx.ModelProto,
    artifact: onnx.ModelProto,
    known: Matched,
    declared: Declared,
    records: Array | None,
) -> Lineage:
    """Of a file whose layers may be smaller: its weights promise nothing, its operators are the dense model's."""
    exports = [check_onnx(data).copy() for data in declared.exports]
    record = () if records is None else records.shape[1:]
    graphs = compare_structures(dense, artifact, known, record, exports, smaller=True)
    return replace(
        found,
        verdict="other structure" if graphs.differences or graphs.reason else found.verdict,
        sentences=(*found.sentences, *(of_structure(graphs) or [SMALLER])),
        structure="not compared" if graphs.reason else "differs" if graphs.differences else "same",
        differences=graphs.differences,
    )


def _with_structure(
    found: Lineage,
    dense: onnx.ModelProto,
    artifact: onnx.ModelProto,
    known: Matched,
    declared: Declared,
    records: Array | None,
) -> Lineage:
    """What else there is to say of a file whose weights could be compared: its bits, operators and ranges."""
    verdict, sentences = found.verdict, list(found.sentences)
    widths = [layer.bits for layer in found.layers]
    if declared.bits is not None and widths and min(widths) > declared.bits:
        verdict = "not as declared" if verdict in ("confirmed", "not nearest") else verdict
        sentences.append(
            f"It is declared to hold weights of {declared.bits} bits, and none of its weights takes less than "
            f"{min(widths)}: not what the declared recipe makes."
        )
    exports = [check_onnx(data).copy() for data in declared.exports]
    graphs = compare_structures(dense, artifact, known, () if records is None else records.shape[1:], exports)
    if (graphs.differences or graphs.reason) and verdict in ("confirmed", "not nearest", "not as declared"):
        verdict = "other structure"
    ranges = [] if graphs.comparison is None else compare_ranges(dense, graphs.comparison.ranges, records)
    odd = [
        of_range(one)
        for one in sorted(ranges, key=lambda one: -max(one.clipped / CLIPPED, one.wider / WIDER))
        if one.odd
    ]
    more = [f"{len(odd) - NAMED} more ranges of activations are like that."] if len(odd) > NAMED else []
    return replace(
        found,
        verdict=verdict,
        sentences=(*sentences, *of_structure(graphs), *odd[:NAMED], *more),
        structure="not compared" if graphs.reason else "differs" if graphs.differences else "same",
        differences=graphs.differences,
        ranges=tuple(ranges),
    )


def not_read(kind: str) -> Lineage:
    """What is said of a file of another format than ONNX: nothing about its weights is known."""
    reason = f"The weights of a .{kind} file are not read here, so they cannot be held against the dense model's."
    return Lineage((), (), (), "not comparable", (reason,), reason)


def _verdict(layers: Sequence[LayerLineage], unmatched: bool) -> Verdict:
    if unmatched or any(layer.beyond or layer.bias_off for layer in layers):
        return "not a rounding of the dense model"
    return "not nearest" if any(layer.other_neighbour for layer in layers) else "confirmed"
