"""Numbers of a file that reach an output and that nobody has compared: neither weights that are read, nor the dense's.

A product of two tensors that both depend on the input looks like attention's. It is a hidden layer where one of them
is an arbitrary matrix plus nothing times the input. So every constant that meets the input has to be accounted for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...targets.onnx_graph.constants import FRACTION_BITS, LONGEST_CHAIN, SHORT, Array, Constant, Graph, coded
from ...targets.onnx_graph.live import reached
from ...targets.onnx_graph.weights import PASSING, UNFOLLOWED, Weight, places

if TYPE_CHECKING:
    import onnx

COARSEST = 3  # steps of a table's range: two bits
HANDFUL = 10  # values: shapes and paddings of a tensor of five dimensions, single factors
_BEHIND = (*PASSING, "Add", "Sub", "Mul", "Div", "BatchNormalization", "Reshape")


def unaccounted(graph: Graph, dense: Graph, found: Sequence[Weight]) -> list[str]:
    """Names of the constants of `graph`, in order, whose values are in no part of the check.

    Accounted for are: what `found` takes in (a weight's scales, zero points, bias, and per channel what follows its
    product), a handful of values, values without a message (all equal, counted up, a triangular mask), and tensors of
    the dense model, exactly or as the file's own type rounds them.

    Args:
        graph, dense: of live nodes only.
        found: every weight of `graph`, also those that could not be read.
    """
    told = {name for weight in found for name in _taken_in(weight, graph)}
    names = {name: node for node, name in _meeting(graph) if name not in told}
    names = {once: node for name, node in names.items() if (once := _unrepeated(name, graph)) not in told}
    attributes = [(node.output[0], held) for node in graph.nodes for held in _in_attributes(node)]
    if not names and not attributes:
        return []
    pool: list[Array] | None = None
    derivations = {_derivation(name, dense) for _, name in _meeting(dense) if dense.constant(name) is None}
    known = {held for node in dense.nodes for held in _in_attributes(node)}
    unread, few = [name for name, held in attributes if held not in known], list[str]()
    pieces = 0
    for name, node in names.items():
        constant = graph.constant(name)
        if constant is None:  # by an operator that is not followed: the dense model has to do the same
            if _holds_numbers(name, graph) and _derivation(name, graph) not in derivations:
                unread.append(name)
            continue
        constant = _with_scale(constant, node, name, graph)
        small = constant.values.size <= HANDFUL
        if _is_trivial(constant.values) and not (small and _may_be_a_piece(constant)):
            continue
        if pool is None:
            pool = list(_pool(dense))
        if not any(rounds(constant, table) for table in pool):
            (few if small else unread).append(name)
            pieces += constant.values.size if small else 0
    if pieces > HANDFUL:  # a table in pieces
        unread += few
    return list(dict.fromkeys(unread))


def _meeting(graph: Graph) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Tensors that follow from the file alone where a node brings them together with the input."""
    for node in graph.nodes:
        if any(name in graph.varying for name in node.output):
            results = [item.name for held in node.attribute for g in (held.g, *held.graphs) for item in g.output]
            for name in (*node.input, *results):  # the branches' results: the input may choose between them
                if name and name not in graph.varying:
                    yield node, name


def _unrepeated(name: str, graph: Graph) -> str:
    """What a tensor only repeats: a token for every record of a batch, say."""
    for _ in range(LONGEST_CHAIN):
        node = graph.producers.get(name)
        if node is None or node.op_type not in ("Expand", "Tile") or node.domain not in ("", "ai.onnx"):
            break
        name = node.input[0]
    return name


def _taken_in(weight: Weight, graph: Graph) -> Iterator[str]:
    """Names of the tensors that the check has read for this weight, or has already said that it cannot read."""
    node = weight.node
    if not weight.stages:
        yield from node.input
        return
    yield from (node.input[place] for place in places(node) if place < len(node.input))
    if node.op_type in UNFOLLOWED:
        return
    name, outputs = node.output[0], len(weight.stages[0].shift)
    for _ in range(LONGEST_CHAIN):
        users = graph.consumers.get(name, [])
        if len(users) != 1 or users[0].op_type.removeprefix("QLinear") not in _BEHIND:
            return
        makers = [graph.producers.get(item) for item in users[0].input if item != name]
        scales = [item for maker in makers if maker is not None and maker.op_type == "Mul" for item in maker.input]
        for item in (*users[0].input, *scales):  # a product of integers: input scale x weight scale
            constant = graph.constant(item)
            if constant is not None and int(np.prod(constant.shape)) == outputs:
                yield item
        name = users[0].output[0]


def _with_scale(constant: Constant, node: onnx.NodeProto, name: str, graph: Graph) -> Constant:
    """Of QLinearAdd and its kin the codes come with a scale and a zero point behind them."""
    if not node.op_type.startswith("QLinear") or name not in node.input or constant.plain is None:
        return constant
    place = list(node.input).index(name)
    scale, zero = (graph.constant(item) for item in (*node.input, "", "")[place + 1 : place + 3])
    single = scale is not None and scale.values.size == 1 and (zero is None or zero.values.size == 1)
    if scale is None or not single or constant.plain.dtype.kind not in "iu":
        return constant
    codes = coded(constant.plain, scale.values, None if zero is None else zero.values, 0)
    return Constant(constant.name, constant.stored, None, codes)


def _may_be_a_piece(constant: Constant) -> bool:
    """Whether a few numbers may be part of a table: not a shape, axes or paddings, and not one number repeated."""
    shape = constant.plain is not None and constant.plain.dtype.kind in "iub" and constant.plain.ndim < 2
    return not shape and not _equal(constant.values)


def _equal(values: Array) -> bool:
    return bool((values == values.ravel()[:1]).all())


def _is_trivial(values: Array) -> bool:
    """A handful of values, one value, whole numbers counted up, or a triangle of one value in another."""
    if values.size <= HANDFUL or _equal(values):
        return True
    flat = values.ravel()
    if values.dtype.kind in "iu" and bool((np.diff(flat.astype(np.float64)) == float(flat[1]) - float(flat[0])).all()):
        return True
    square = values.reshape(-1, values.shape[-1])
    if len(square) != square.shape[1]:
        return False
    low, high = square[-1, 0], square[0, -1]
    below = np.tri(len(square), k=0, dtype=bool)
    return any(bool((square == np.where(part, low, high)).all()) for part in (below, np.tri(len(square), k=-1) > 0))


def _pool(dense: Graph) -> Iterator[Array]:
    """The constants of the dense model, flat: as it holds them, and as its nodes make them."""
    for name in (*dense.held, *(name for name in dense.producers if name not in dense.varying)):
        constant = dense.constant(name)
        if constant is not None and int(np.prod(constant.shape)) > 1:
            yield constant.values.ravel()


def rounds(constant: Constant, table: Array) -> bool:
    """Whether the values are the table's, to the nearest that the file's type can hold: its first, all, or repeated."""
    held = constant.values.astype(np.float64).ravel()
    if len(table) < len(held) and len(held) % len(table):
        return False
    wanted = np.resize(table[: len(held)], len(held)).astype(np.float64)
    if constant.codes is not None:
        slack = 0.501 * np.abs(constant.codes.scale.astype(np.float64)).ravel() + 1e-6 * np.abs(wanted)
    elif constant.stored in FRACTION_BITS:
        bits = min(FRACTION_BITS[constant.stored], 20)
        slack = np.abs(wanted) * 2.0 ** -(bits + 1) * 1.01 + (2.0**-23 if bits == 10 else 0.0)
    else:
        slack = np.zeros(held.shape)
    with np.errstate(invalid="ignore"):
        return bool(((held == wanted) | (np.abs(held - wanted) <= slack) | (np.isnan(held) & np.isnan(wanted))).all())


def same_numbers(held: Constant, wanted: Constant, step: float) -> bool:
    """Whether two operands are the same, to what the type or the step of the file's codes can hold."""
    one, other = held.values, wanted.values
    if one.size != other.size:  # one number, or as many of it
        single = one.size > 0 < other.size and bool((one == one.ravel()[0]).all() and (other == other.ravel()[0]).all())
        if not single:
            return False
        one, other = one.ravel()[:1], other.ravel()[:1]
    with np.errstate(invalid="ignore", over="ignore"):
        flat, far = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
        close = np.isclose(flat, far, rtol=1e-5, atol=1e-7 * float(np.abs(far).max(initial=0.0)), equal_nan=True)
        if bool(close.all()) or bool(((np.abs(flat) > 1e4) & (np.abs(far) > 1e4) & (flat * far > 0) | close).all()):
            return True  # a mask's "minus infinity" is any large number
    span = float(max(far.max(initial=0.0), 0.0) - min(far.min(initial=0.0), 0.0))
    if 0 < step <= span / COARSEST and bool((np.abs(flat - far) <= 0.501 * step).all()):
        return True
    if one.size != held.values.size or (held.stored not in FRACTION_BITS and held.codes is None):
        return False
    return rounds(held, far)


def _holds_numbers(name: str, graph: Graph) -> bool:
    """Whether more than a handful of the file's own numbers go into a tensor."""

    def makers(item: str) -> Sequence[str]:
        node = graph.producers.get(item)
        return () if node is None or item in graph.held or graph.constant(item) is not None else node.input

    def tells(item: str) -> bool:
        constant, node = graph.constant(item), graph.producers.get(item)
        if constant is not None:
            return not _is_trivial(constant.values)
        if item in graph.held or node is None:
            return item in graph.held
        return node.op_type.startswith("Random") or any(held.HasField("g") for held in node.attribute)

    return any(tells(item) for item in reached([name], makers))


def _derivation(name: str, graph: Graph) -> str:
    """A tensor's making in words that are the same for equal derivations: operators, attributes and values."""
    from hashlib import sha256

    made: dict[str, str] = {}

    def digest(item: str, depth: int) -> str:
        if item in made or not item:
            return made.get(item, "")
        constant, node = graph.constant(item), graph.producers.get(item)
        if constant is not None:
            text = repr((constant.shape, constant.values.tobytes()))
        elif item in graph.held:  # text
            text = repr(graph.held[item].SerializeToString(deterministic=True))
        elif node is None or depth > LONGEST_CHAIN:
            text = f"{item} {id(graph)}"  # equal to none
        else:
            attributes = sorted(held.SerializeToString(deterministic=True) for held in node.attribute)
            inputs = [digest(part, depth + 1) for part in node.input]
            text = repr((node.domain, node.op_type, list(node.output).index(item), attributes, inputs))
        made[item] = sha256(text.encode()).hexdigest()
        return made[item]

    return digest(name, 0)


def _in_attributes(node: onnx.NodeProto) -> Iterator[bytes]:
    """Numbers that a node holds itself, as the operators for classical models do: more than a handful."""
    for held in node.attribute:
        if node.op_type == "Constant" and held.name in ("value", *SHORT):
            continue  # they are among the graph's own
        tensor = held.t
        many = tensor is not None and int(np.prod(tensor.dims, dtype=np.int64)) > HANDFUL
        if many or max(len(held.floats), len(held.ints)) > HANDFUL or held.HasField("sparse_tensor") or held.tensors:
            yield node.op_type.encode() + held.SerializeToString(deterministic=True)
