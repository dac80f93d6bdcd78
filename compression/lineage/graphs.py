"""The graphs of a file and its dense model, brought into one form each and compared, optimised or as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from ...targets.errors import InputError
from ...targets.onnx_graph.observed import Level, Observed, blank, observe, optimised
from ...targets.onnx_graph.unfused import unfuse
from ...targets.onnx_graph.weights import RECURRENT, Weight
from .forms import Form
from .matched import Matched, match
from .matching import PROJECTIONS
from .operators import SAME_ORDER
from .patterns import patterns
from .structure import HEADS, Comparison, Difference, compare_graphs, named

if TYPE_CHECKING:
    import onnx

# An optimiser fuses operators. Which of the two files it went over is not known, so all likely cases are tried.
FORMS: tuple[tuple[Level | None, Level | None], ...] = (
    (None, None),
    (None, "basic"),
    (None, "extended"),
    ("extended", "extended"),
)
FINEST = 1 / 100  # steps of a head's shares: what eight bits hold of 0 .. 1


@dataclass(frozen=True)
class Structure:
    """What came of comparing two graphs.

    Attributes:
        differences: what the file has, lacks or does otherwise; none: operator for operator the dense model's.
        reason: why they could not be compared; None where they could.
        heads: operators behind the dense model's own outputs, which hide nothing.
    """

    differences: tuple[Difference, ...] = ()
    reason: str | None = None
    heads: tuple[str, ...] = ()
    comparison: Comparison | None = None


def compare_structures(
    dense: onnx.ModelProto,
    artifact: onnx.ModelProto,
    known: Matched,
    record: Sequence[int] = (),
    exports: Sequence[onnx.ModelProto] = (),
    *,
    smaller: bool = False,
) -> Structure:
    """Compares the operators of the two; of several ways to fuse them, the one that leaves least.

    Args:
        dense, artifact: live nodes only.
        known: their weights, matched.
        record: the sizes of a record, for a model that leaves them free.
        smaller: the file's layers may be smaller than the dense model's, with other weights; larger they may not be.
        exports: what the declared recipe makes of other models: choices that these have may be the file's too.
    """
    choices = frozenset[str]().union(*(patterns(_alone(model)) for model in exports))
    best: Structure | None = None
    for ours, theirs in FORMS:
        try:
            if ours is None and theirs is None:
                found = _compared(dense, artifact, known, record, choices, smaller)
            else:
                both = [_at(dense, theirs), _at(artifact, ours)]
                found = _compared(both[0], both[1], match(both[0], both[1]), record, choices, smaller)
        except (InputError, ValueError, IndexError, KeyError, TypeError, OverflowError) as error:  # it does not fit
            best = best or Structure(reason=f"The graph of one of the two could not be followed: {error}")
            continue
        if best is None or best.reason or len(found.differences) < len(best.differences):
            best = found
        if not best.differences and not best.reason:
            break
    assert best is not None
    return best


def _at(model: onnx.ModelProto, level: Level | None) -> onnx.ModelProto:
    other = type(model)()
    other.CopyFrom(model)
    return other if level is None else unfuse(optimised(other, level))


def _compared(
    dense: onnx.ModelProto,
    artifact: onnx.ModelProto,
    known: Matched,
    record: Sequence[int],
    choices: frozenset[str],
    smaller: bool,
) -> Structure:
    ours, theirs = forms(dense, artifact, known, record, smaller=smaller)
    pairs, heads = _outputs(ours, theirs, [o.name for o in artifact.graph.output], [o.name for o in dense.graph.output])
    found = compare_graphs(ours, theirs, pairs, choices)
    return Structure(tuple(found.differences), None, tuple(heads), found)


def forms(
    dense: onnx.ModelProto, artifact: onnx.ModelProto, known: Matched, record: Sequence[int], *, smaller: bool = False
) -> tuple[Form, Form]:
    """Both graphs' forms: the file's, the dense model's. With `smaller`, any weight is as good as any other."""
    chosen: dict[int, str] = {}
    classes: dict[int, str] = {}
    thirds: dict[int, int] = {}
    for fit in () if smaller else known.fits:
        chosen.setdefault(id(fit.weight.node), fit.ours.end)
        chosen.setdefault(id(fit.dense.node), fit.theirs.end)
        values = [
            fit.dense.constant.values,
            *(part for part in (fit.theirs.gain, fit.theirs.shift) if part is not None),
        ]
        told = sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in values)).hexdigest()
        third = next((index for index, word in enumerate(PROJECTIONS) if fit.dense.name.endswith(f"({word})")), None)
        if third is not None and not fit.weight.name.endswith(f"({PROJECTIONS[third]})"):
            told, thirds[_key(fit.weight)] = f"packed {_key(fit.dense)}", third
        classes[_key(fit.weight)] = classes[_key(fit.dense)] = told
    found = []
    for model, graph, held in ((artifact, known.graph, known.ours), (dense, known.origin, known.theirs)):
        seen, changing = _seen(model, record)
        ends: dict[str, tuple[int, ...]] = {}
        for index, weight in enumerate(held):
            if not weight.stages:
                continue
            node = weight.node
            names = (
                node.output
                if node.op_type in RECURRENT
                else [chosen.get(id(node), weight.stages[-1 if smaller else 0].end)]
            )
            for name in filter(None, names):
                ends[name] = (*ends.get(name, ()), index)
        told_of = {
            index: "" if smaller else classes.get(_key(weight), f"{id(graph)} {index}")
            for index, weight in enumerate(held)
        }
        inputs = tuple(item.name for item in model.graph.input if item.name not in graph.held)
        parts = {index: thirds[_key(weight)] for index, weight in enumerate(held) if _key(weight) in thirds}
        found.append(Form(graph, held, ends, told_of, seen, inputs, changing, parts, not smaller))
    return found[0], found[1]


def _alone(model: onnx.ModelProto) -> Form:
    """The form of a graph that is compared with none."""
    other = type(model)()
    other.CopyFrom(model)
    return forms(model, other, match(model, other), ())[0]


def _key(weight: Weight) -> int:
    """One weight of one node: a recurrence has several."""
    return hash((id(weight.node), weight.constant.name))


def _seen(model: onnx.ModelProto, record: Sequence[int]) -> tuple[Observed, frozenset[str]]:
    """Its tensors with two records, and which of them are others with one."""
    names = [name for node in model.graph.node for name in node.output if name]
    seen = []
    for records in (2, 1):
        try:
            seen.append(observe(model, blank(model, records, record), names))
        except InputError:  # a file may have been traced with one record, though its batch is said to be free
            if records == 1 and not seen:
                raise
    first, last = seen[0], seen[-1]
    changing = (
        name
        for name, shape in first.shapes.items()
        if last.shapes.get(name) != shape
        or (name in first.values and not np.array_equal(first.values[name], last.values.get(name, ())))
    )
    return first, frozenset(changing)


def _outputs(ours: Form, theirs: Form, mine: list[str], yours: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Which outputs are held against each other, and what stands behind the dense model's own."""
    pairs, heads = [], []
    known = {theirs.skeleton(name): name for name in reversed(yours)}
    for place, name in enumerate(mine):
        other = known.get(ours.skeleton(name)) or (yours[place] if place < len(yours) else yours[0])
        core = ours.core(ours.strip(name).base)
        if ours.skeleton(name) not in known and core.node is not None and _is_head(ours, name):
            behind = known.get(ours.skeleton(core.operands[0]))
            if behind is not None:
                heads.append(named(core.node))
                name, other = core.operands[0], behind
        pairs.append((name, other))
    return pairs, heads


def _is_head(form: Form, name: str) -> bool:
    """Whether an output is a plain Softmax or its kin over the last axis: the classes.

    What stands behind it is compared with nothing, so it must do nothing; codes must hold all that the head can be.
    """
    found = form.strip(name)
    core = form.core(found.base)
    if core.kind not in HEADS or core.node is None or found.gain != 1 or found.scaled:
        return False
    if any(node.op_type not in SAME_ORDER for node, _ in found.moves):
        return False
    told, rank = dict(core.detail[0]), len(form.seen.shapes.get(found.base, ()))
    if core.kind != "Sigmoid" and (rank < 2 or told.get("axis") != rank - 1):
        return False
    shares = core.kind != "LogSoftmax"
    return all(
        shares and 0 < limit.step <= FINEST and limit.low <= limit.step and limit.high >= 1 - 2 * limit.step
        for limit in found.limits
        if limit.step or limit.cuts
    )
