"""The weights of two graphs, matched, and how far what follows each was compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...targets.onnx_graph.constants import Graph
from ...targets.onnx_graph.live import only_live
from ...targets.onnx_graph.unfused import unfuse
from ...targets.onnx_graph.weights import Stage, Weight, weights
from .codes_in_steps import Steps, folded_weight, held_against
from .matching import looked_up, paired, unpacked_projections
from .unread import unaccounted

if TYPE_CHECKING:
    import onnx

ALIKE = 0.5  # correlation; of unrelated weights it is near 0, of signs or three values with the weights .8 or .9


@dataclass(frozen=True)
class Fit:
    """A weight of the file beside the dense model's, under the way of folding that explains most of its codes."""

    weight: Weight
    dense: Weight
    ours: Stage
    theirs: Stage
    steps: Steps
    levels: str
    bits: int


@dataclass(frozen=True)
class Matched:
    """Two graphs, their weights, and which is held against which.

    Attributes:
        graph, origin: of the file and of the dense model, live nodes only.
        ours, theirs: all their weights.
        fits: one per matched pair.
        extra, missing: the file's weights without a counterpart, and the dense model's.
        unread: names of what the file makes in ways that are not followed; hidden: of what the dense model does.
    """

    graph: Graph
    origin: Graph
    ours: tuple[Weight, ...]
    theirs: tuple[Weight, ...]
    fits: tuple[Fit, ...]
    extra: tuple[Weight, ...]
    missing: tuple[Weight, ...]
    unread: tuple[str, ...]
    hidden: tuple[str, ...]


def match(dense: onnx.ModelProto, artifact: onnx.ModelProto) -> Matched:
    """Matches every weight; what is dead in the two is removed from these very objects."""
    graph, origin = Graph(unfuse(only_live(artifact))), Graph(unfuse(only_live(dense)))
    ours, whole = list(weights(graph)), list(weights(origin))
    theirs = [found for found in whole if found.stages]
    unread, hidden = (tuple(found.name for found in one if not found.stages) for one in (ours, whole))
    unread += tuple(unaccounted(graph, origin, ours))
    pairs, mine, yours = paired([found for found in ours if found.stages], theirs)
    if mine and yours:  # attention's projections: packed into one matrix by torch, three layers once it is unfolded
        more, mine, yours = paired(unpacked_projections(mine, yours), unpacked_projections(yours, mine))
        pairs += more
    yours = [weight for weight in yours if not looked_up(weight, graph)]
    fits = tuple(fit(weight, other) for weight, other in pairs)
    return Matched(graph, origin, tuple(ours), tuple(whole), fits, tuple(mine), tuple(yours), unread, hidden)


def fit(weight: Weight, dense: Weight) -> Fit:
    """The two under that way of folding which explains most codes; of equals, the one that follows furthest."""
    best: tuple[tuple[int, int, int], Fit] | None = None
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
                best = rank, Fit(weight, dense, ours, theirs, steps, levels, bits)
    assert best is not None
    return best[1]


def resembling(fits: Sequence[Fit]) -> int:
    """How many of the dense model's weights have a counterpart that goes with them, whatever it was rounded to.

    Layers are taken as wholes: correlated by more than one half. Of weights that are found several times, once.
    """
    found: dict[tuple[int, str], int] = {}
    for one in fits:
        ours, theirs = folded_weight(one.weight, one.ours).ravel(), folded_weight(one.dense, one.theirs).ravel()
        with np.errstate(all="ignore"):
            norms = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
            likeness = float(ours @ theirs) / norms if norms > 0 else float(np.array_equal(ours, theirs))
        if likeness > ALIKE:
            found[id(one.dense.node), one.dense.name] = len(ours)
    return sum(found.values())
