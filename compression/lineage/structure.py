"""Whether a file computes what its dense model computes, weights and rounding aside: operator by operator.

The outputs of the two graphs are held against each other, then what they are made of, down to the input. What the file
has more is listed. A hidden branch needs no weights of its own (a slice, a comparison and a choice are enough), so it
is the operators that have to be accounted for, all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from ...targets.onnx_graph.constants import Constant
from ...targets.onnx_graph.live import reached
from ...targets.onnx_graph.weights import RECURRENT
from .forms import Form
from .limits import Limit, Stripped, behind, interval, near, ranges, within
from .moves import places, rows
from .operators import COMMUTATIVE, SAME_ORDER, SELECTING, plain_name
from .patterns import passed
from .scales import misfits, unfit_factors, unfit_gains, unfit_steps
from .unread import same_numbers

if TYPE_CHECKING:
    import onnx

GAIN = 1e-3  # relative: a single factor may have been rounded to float16, or to a code
HEADS = ("Softmax", "LogSoftmax", "Sigmoid")  # over the dense model's own logits they hide nothing


@dataclass(frozen=True)
class Difference:
    """Operators of the file, or of the dense model, without a counterpart in the other; and why."""

    nodes: tuple[str, ...]
    words: str
    selecting: bool = False


@dataclass
class Comparison:
    """What came of holding two graphs against each other.

    Attributes:
        differences: none: they compute the same, weights and rounding aside.
        ranges: each quantiser of an activation in the file, with the dense model's tensor that it rounds.
        matched: nodes of the file that have a counterpart, by id.
    """

    differences: list[Difference] = field(default_factory=list)
    ranges: list[tuple[Limit, str]] = field(default_factory=list)
    matched: set[int] = field(default_factory=set)
    known: frozenset[str] = frozenset()
    accounted: set[tuple[str, str, str]] = field(default_factory=set)  # operands: their places, or their gain


def named(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"


def compare_graphs(
    ours: Form, theirs: Form, outputs: Iterable[tuple[str, str]], known: frozenset[str] = frozenset()
) -> Comparison:
    """Holds `ours` (the file) against `theirs` (the dense model).

    Args:
        outputs: pairs of outputs to begin with: the file's and the dense model's.
        known: choices that the declared recipe makes itself (`patterns`).
    """
    found = Comparison(known=known)
    usual = {(node.op_type, words) for node, words in (*misfits(theirs), *unfit_factors(theirs), *unfit_steps(theirs))}
    found.differences += [
        Difference((named(node),), words, True)
        for node, words in (*misfits(ours), *unfit_factors(ours), *unfit_steps(ours))
        if (node.op_type, words) not in usual
    ]
    waiting, seen = list(outputs), set[tuple[str, str]]()
    while waiting:
        pair = waiting.pop()
        if pair not in seen:
            seen.add(pair)
            waiting += _compare(ours, theirs, *pair, found)
    if found.differences:
        _left_over(ours, theirs, [name for name, _ in seen], found)
    return found


def _left_over(ours: Form, theirs: Form, names: Iterable[str], found: Comparison) -> None:
    """Lists what else of the file looks like nothing of the dense model: what hangs on an operator that is extra."""
    known = {theirs.skeleton(name) for name in theirs.graph.producers if not theirs.fixed(name)}
    told = {node for difference in found.differences for node in difference.nodes}
    more = []
    for base in reached([ours.strip(name).base for name in names], ours.before):
        node = ours.core(base).node
        if node is None or id(node) in found.matched or ours.fixed(base) or named(node) in told:
            continue
        if ours.skeleton(base) not in known:
            more.append(base)
    _list(ours, sorted(more), found)


def _compare(ours: Form, theirs: Form, a: str, d: str, found: Comparison) -> list[tuple[str, str]]:
    """Compares what makes tensor `a` with what makes `d`; the pairs of operands to go on with."""
    left, right = ours.strip(a), theirs.strip(d)
    other = theirs.core(right.base)
    while other.kind != "Where" and (chosen := passed(ours, left.base, found.known)) is not None:
        left = behind(left, ours.strip(chosen))
    one = ours.core(left.base)
    if one.kind == other.kind == "constant":
        _constants(ours, theirs, left, right, found)
        return []
    same = (one.kind, one.detail) == (other.kind, other.detail)
    if not same:
        return _resumed(ours, theirs, left, right, found)
    _limits(ours, left, right, d, found)
    if not ours.with_sizes and left.base in ours.ends and right.base in theirs.ends:
        _grown(ours, theirs, left.base, right.base, found)
    if one.kind == "product" and not _same_rows(ours, theirs, left.base, right.base):
        words = "takes other values together than in the dense model"
        found.differences.append(Difference((named_source(ours, left),), words, True))
    if (a, d, "product") not in found.accounted and not _moved_alike(ours, theirs, left, right):
        nodes = tuple(named(node) for node, _ in left.moves) or (named_source(ours, left),)
        found.differences.append(Difference(nodes, "moves values to other places than the dense model does", True))
    found.differences += [Difference((named(node),), words, True) for node, words in unfit_gains(ours, left, right)]
    gains = (1.0, 1.0) if (a, d, "MatMul") in found.accounted else (left.gain, right.gain)
    if one.kind == "MatMul":  # of scores: query, key and their product may all be scaled
        inner = [
            math.prod(form.strip(name).gain for name in core.operands) for form, core in ((ours, one), (theirs, other))
        ]
        gains = gains[0] * inner[0], gains[1] * inner[1]
    if not math.isclose(*gains, rel_tol=GAIN):
        nodes = tuple(map(named, left.scaled)) or (named_source(ours, left),)
        words = f"scales by {gains[0]:.4g} where the dense model has {gains[1]:.4g}"
        found.differences.append(Difference(nodes, words, True))
    found.matched.update(id(node) for node in (one.node, *left.scaled) if node is not None)
    pairs = list(zip_longest(one.operands, other.operands, fillvalue=""))
    pairs = [pair for pair in pairs if not _absent(ours, theirs, *pair)]
    if any(bool(mine) != bool(yours) for mine, yours in pairs):
        found.differences.append(
            Difference((named_source(ours, left),), "has other inputs than in the dense model", True)
        )
        return []
    if one.kind in COMMUTATIVE and len(pairs) == 2:
        (a0, d0), (a1, d1) = pairs
        straight = (ours.skeleton(a0) == theirs.skeleton(d0)) + (ours.skeleton(a1) == theirs.skeleton(d1))
        crossed = (ours.skeleton(a0) == theirs.skeleton(d1)) + (ours.skeleton(a1) == theirs.skeleton(d0))
        mixed = ours.fixed(a0) != theirs.fixed(d0) and ours.fixed(a0) == theirs.fixed(d1)
        if crossed > straight or (crossed == straight and mixed):
            pairs = [(a0, d1), (a1, d0)]
    going = []
    free = one.kind == "MatMul" or one.kind == "product"
    for mine, yours in pairs:
        if not mine:
            continue
        if ours.constant(mine) is not None and theirs.constant(yours) is not None:
            _values(ours, theirs, (mine, one.node), (yours, other.node), found)
        else:
            going.append((mine, yours))
    if free:
        found.accounted.update((mine, yours, one.kind) for mine, yours in going)
    return going


def _same_rows(ours: Form, theirs: Form, left: str, right: str) -> bool:
    """Whether two products have the same rows, whichever comes first."""
    if not ours.with_sizes:
        return True
    try:
        mine, yours = rows(ours, left), rows(theirs, right)
    except ValueError:
        return False
    if mine is yours is None:
        return True
    shape = (mine if mine is not None else yours).shape  # type: ignore[union-attr]  # not both are None
    every = np.arange(shape[0] * shape[1]).reshape(shape)
    one, other = (np.unique(every if made is None else made, axis=0) for made in (mine, yours))
    return np.array_equal(one, other)


def _grown(ours: Form, theirs: Form, left: str, right: str, found: Comparison) -> None:
    """Lists a layer that is larger than the dense model's, or has another kernel."""
    for mine, yours in zip(ours.ends[left], theirs.ends[right], strict=False):
        weight = ours.weights[mine]
        one, other = weight.constant.shape, theirs.weights[yours].constant.shape
        kernels = weight.node.op_type in RECURRENT or one[2:] == other[2:]
        if len(one) != len(other) or not kernels or any(a > b for a, b in zip(one, other, strict=True)):
            words = f"has a weight {list(one)} where the dense model has {list(other)}"
            told = Difference((named(weight.node),), words)
            found.differences += [told] if told not in found.differences else []


def _absent(ours: Form, theirs: Form, mine: str, yours: str) -> bool:
    """Whether an operand is given in neither; zeros, as a recurrence begins with, are as good as none."""
    held = [form.constant(name) for form, name in ((ours, mine), (theirs, yours)) if name]
    return len(held) < 2 and all(constant is not None and not constant.values.any() for constant in held)


def named_source(form: Form, stripped: Stripped) -> str:
    node = form.core(stripped.base).node or form.graph.producers.get(stripped.base)
    return stripped.base if node is None else named(node)


def _constants(ours: Form, theirs: Form, left: Stripped, right: Stripped, found: Comparison) -> None:
    if ours.constant(left.base) is not None and theirs.constant(right.base) is not None:
        _values(ours, theirs, (left.base, None), (right.base, None), found)
    elif ours.skeleton(left.base) != theirs.skeleton(right.base):
        words = "is computed from numbers of the file in a way that is not followed"
        found.differences.append(Difference((named_source(ours, left),), words, True))


def _values(
    ours: Form,
    theirs: Form,
    mine: tuple[str, onnx.NodeProto | None],
    yours: tuple[str, onnx.NodeProto | None],
    found: Comparison,
) -> None:
    held, wanted = ours.real(*mine), theirs.real(*yours)
    if held is None or wanted is None or same_numbers(held, wanted, ours.step(mine[0]) if held.codes is None else 0.0):
        return
    if not ours.with_sizes and min(held.values.size, wanted.values.size) > 1 and held.values.size <= wanted.values.size:
        return  # one number a channel
    node = mine[1] or ours.graph.producers.get(mine[0])
    name = mine[0] if node is None else named(node)
    words = f"counts with other numbers than the dense model does ({_shown(held)} for {_shown(wanted)})"
    found.differences.append(Difference((name,), words, True))


def _shown(constant: Constant) -> str:
    values = constant.values.ravel()
    return f"{float(values[0]):.4g}" if values.size == 1 else f"{values.size} values"


def _moved_alike(ours: Form, theirs: Form, left: Stripped, right: Stripped) -> bool:
    if not ours.with_sizes:
        one, other = ([n.op_type for n, _ in side.moves if n.op_type not in SAME_ORDER] for side in (left, right))
        return one == other
    try:
        mine, yours = places(ours, left), places(theirs, right)
    except ValueError:
        return [node.op_type for node, _ in left.moves] == [node.op_type for node, _ in right.moves]
    part = ours.part(left.base)
    if part is not None and theirs.part(right.base) is None:  # a third of each row that the dense model has
        size, whole = (form.seen.shapes[base][-1] for form, base in ((ours, left.base), (theirs, right.base)))
        shape = ours.seen.shapes[left.base]
        mine = np.arange(math.prod(shape)) if mine is None else mine
        mine = mine // size * whole + part * size + mine % size
    return mine is yours is None or (mine is not None and yours is not None and np.array_equal(mine, yours))


def _limits(ours: Form, left: Stripped, right: Stripped, d: str, found: Comparison) -> None:
    """Relus and Clips of the two, or a quantiser in their place; and the pairs of quantiser and dense tensor."""
    own = [limit for limit in left.limits if limit.step]
    cut = within(limit for limit in left.limits if not limit.step)
    wanted = within(limit for limit in right.limits if not limit.step)
    rounded = within([*own, *(limit for limit in left.limits if not limit.step)])
    step = max((limit.step for limit in own), default=0.0)
    close = 1e-5 * max(1.0, *(abs(end) for end in (*cut, *wanted) if math.isfinite(end)), 0.0)
    if not near(cut, wanted, close):
        covered = step and rounded[0] >= wanted[0] - step / 2 and rounded[1] <= wanted[1] + step
        looser = cut[0] <= wanted[0] + close and cut[1] >= wanted[1] - close
        if not (covered and looser):
            nodes = tuple(named(limit.node) for limit in left.limits if not limit.step)
            missing = tuple(named(limit.node) for limit in right.limits if not limit.step)
            words = f"limits values to {interval(cut)} where the dense model has {interval(wanted)}"
            found.differences.append(Difference(nodes or missing or (named_source(ours, left),), words, True))
    found.matched.update(id(limit.node) for limit in left.limits)
    found.ranges += ranges(left, right, d)


def _resumed(ours: Form, theirs: Form, left: Stripped, right: Stripped, found: Comparison) -> list[tuple[str, str]]:
    """What the file or the dense model has more here is listed; goes on where the two meet again."""
    one = ours.core(left.base)
    between = _way(ours, left.base, {theirs.skeleton(right.base)})
    if between is not None:
        end, extra = between
        _list(ours, extra, found)
        return [(end, right.base)]
    back = _way(theirs, right.base, {ours.skeleton(left.base)})
    if back is not None:
        end, lacking = back
        nodes = tuple(named(node) for base in lacking if (node := theirs.core(base).node) is not None)
        words = "is in the dense model and not in the file"
        found.differences.append(Difference(nodes, words, _selects(lacking, theirs)))
        return [(left.base, end)]
    node, other = one.node, theirs.core(right.base).node
    here = named_source(ours, left)
    there = "an input or a constant" if other is None else named(other)
    same = node is not None and other is not None and plain_name(node) == plain_name(other)
    words = f"differs from the dense model's {there}" if same else f"stands where the dense model has {there}"
    found.differences.append(Difference((here,), words, _selects([left.base], ours)))
    known = {theirs.skeleton(base): base for base in _above(theirs, right.base)}
    pairs = []
    for operand in one.operands:
        if not operand or ours.fixed(operand):
            continue
        met = _way(ours, ours.strip(operand).base, set(known), itself=True)
        if met is not None:
            end, extra = met
            _list(ours, extra, found)
            pairs.append((end, known[ours.skeleton(end)]))
        else:
            _list(ours, [ours.strip(operand).base], found)
    return pairs


def _list(form: Form, bases: Iterable[str], found: Comparison) -> None:
    """What leads to an extra operator, as far as it has no counterpart: of the way itself, and beside it."""
    bases = list(bases)
    nodes = [node for base in bases if (node := form.core(base).node) is not None]
    if nodes:
        words = "has no counterpart in the dense model"
        found.differences.append(Difference(tuple(map(named, nodes)), words, _selects(bases, form)))


def _selects(bases: Iterable[str], form: Form) -> bool:
    return any((node := form.core(base).node) is not None and plain_name(node) in SELECTING for base in bases)


def _way(form: Form, start: str, wanted: set[str], *, itself: bool = False) -> tuple[str, list[str]] | None:
    """The nearest source behind `start` that looks like one that is wanted, and the sources on the way there."""
    waiting, came = [start], {start: ""}
    for base in waiting:
        if (base != start or itself) and form.core(base).kind != "constant" and form.skeleton(base) in wanted:
            way, at = [], came[base]
            while at:
                way.append(at)
                at = came[at]
            return base, way[::-1]
        for before in form.before(base):
            if before not in came:
                came[before] = base
                waiting.append(before)
    return None


def _above(form: Form, start: str) -> Iterator[str]:
    """Every source behind `start`, the furthest first, constants aside."""
    found = [base for base in reached([start], form.before) if form.core(base).kind != "constant"]
    return reversed(found)
