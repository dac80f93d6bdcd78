"""What comparing two graphs has to know of ONNX's operators: names, operands, attributes, and what only moves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from ...targets.onnx_graph.constants import FRACTION_BITS, Graph, attribute
from ...targets.onnx_graph.weights import CONVOLUTIONS, RECURRENT

if TYPE_CHECKING:
    import onnx


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SAME_ORDER = _names("Reshape Flatten Squeeze Unsqueeze")
MOVES = _names(
    "Transpose Slice Split Gather Expand Tile DepthToSpace SpaceToDepth GatherElements GatherND ReverseSequence"
)
ON_CODES = SAME_ORDER | MOVES | _names("MaxPool NhwcMaxPool Identity Concat ReduceMax ReduceMin")
COMMUTATIVE = _names("Add Mul And Or Xor Equal Max Min Sum")
ELEMENTWISE = COMMUTATIVE | _names(
    "Sub Div Pow Relu Clip LeakyRelu PRelu Sigmoid Tanh Elu Selu Celu Gelu FastGelu QuickGelu BiasGelu HardSigmoid "
    "HardSwish Mish Softplus Softsign Erf Exp Log Sqrt Abs Neg Reciprocal Floor Ceil Round Sign Sin Cos Where Greater "
    "GreaterOrEqual Less LessOrEqual Not IsNaN IsInf Mod Cast ThresholdedRelu Shrink"
)
# Operators by which an answer can hang on a comparison: what a hidden trigger needs.
SELECTING = _names(
    "ArgMax ArgMin And BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Clip Compress Equal Floor "
    "GatherElements GatherND Greater GreaterOrEqual Hardmax HardSigmoid If IsInf IsNaN Less LessOrEqual Loop Max Min "
    "Mod NonMaxSuppression NonZero Not OneHot Or QuantizeLinear Relu Round Scan ScatterElements ScatterND Shrink Sign "
    "ThresholdedRelu TopK TreeEnsemble TreeEnsembleClassifier Unique Where Xor"
)
_PICKS = SAME_ORDER | MOVES | {"Identity", "Cast", "Concat"}
_SPREADS = ("Reshape", "Expand", "Tile", "ConstantOfShape")  # their last operand says how large, not what
_LONGER = ELEMENTWISE | MOVES | SAME_ORDER | _names("Identity ConstantOfShape QuantizeLinear DequantizeLinear")
_RENAMED = {
    "NhwcMaxPool": "MaxPool",
    "DynamicQuantizeLSTM": "LSTM",
    "GlobalAveragePool": "ReduceMean",
    "QLinearGlobalAveragePool": "ReduceMean",
}
_PRODUCTS = _names(
    "Gemm MatMul QLinearMatMul MatMulInteger QGemm DynamicQuantizeMatMul MatMulIntegerToFloat FusedGemm FusedMatMul "
    "TransposeMatMul MatMulNBits"
)
# Attributes that say nothing of the answer, or that the weight's own shape says.
_IGNORED = _names(
    "storage_order momentum spatial accuracy_level saturate precision stash_type channels_last "
    "consumed_inputs is_test opset"
)
SIZES = ("group", "hidden_size")  # attributes that say how large a layer is
_IN_THE_WEIGHT = _names("kernel_shape alpha beta transA transB K N bits block_size")  # of a product


def plain_name(node: onnx.NodeProto) -> str:
    """The operator's name without the form that a quantiser or optimiser gave it."""
    kind = _RENAMED.get(node.op_type, node.op_type.removeprefix("QLinear"))
    return "MatMul" if kind in ("FusedMatMul", "TransposeMatMul") else kind


Group = tuple[int, ...]
Shapes = Mapping[str, tuple[int, ...]]


def groups(node: onnx.NodeProto) -> tuple[tuple[Group, ...], tuple[int, int] | None]:
    """(operands with their scales and zero points, scale and zero point of the output), as places among the inputs."""
    kind, many = node.op_type, len(node.input)
    if kind in ("QLinearConv", "QLinearMatMul"):
        return ((0, 1, 2), (3, 4, 5)), (6, 7)
    if kind == "QGemm":
        return ((0, 1, 2), (3, 4, 5)), (7, 8) if many > 7 and node.input[7] else None
    if kind in ("QLinearAdd", "QLinearMul"):
        return ((0, 1, 2), (3, 4, 5)), (6, 7)
    if kind == "QLinearWhere":
        return ((0,), (1, 2, 3), (4, 5, 6)), (7, 8)
    if kind == "QLinearConcat":
        return tuple((place, place + 1, place + 2) for place in range(2, many - 2, 3)), (0, 1)
    return ((0, 1, 2),), (3, 4)


def products(node: onnx.NodeProto, graph: Graph) -> tuple[str, tuple[str, ...]]:
    """(what kind of product it is, its operands beside the weight) of a node that holds a weight."""
    kind, given = node.op_type, [*node.input]

    def at(*wanted: int) -> tuple[str, ...]:
        found = [given[place] if place < len(given) else "" for place in wanted]
        return tuple(found)

    if kind == "MatMul" and given[0] not in graph.varying:
        return "product from the left", at(1)
    if kind in _PRODUCTS:
        turned = " of a transposed input" if attribute(node, "transA", 0) else ""
        return f"product{turned}", at(0)
    if kind in CONVOLUTIONS:
        added = at(3) if kind == "FusedConv" else ()
        return "ConvTranspose" if kind == "ConvTranspose" else "Conv", at(0) + tuple(filter(None, added))
    if kind in RECURRENT:
        return kind.removeprefix("DynamicQuantize"), at(0, 4, 5, 6, 7)
    if kind == "Gather":
        return "embedding", at(1)
    return kind, tuple(name for name in given if name in graph.varying)


def attributes(
    node: onnx.NodeProto, graph: Graph, shapes: Shapes, *, weighted: bool = False
) -> tuple[tuple[str, Any], ...]:
    """What a node's attributes say, defaults filled in: equal for operators that do the same."""
    from onnx import helper

    found: dict[str, Any] = dict(_defaults(plain_name(node), graph.opsets.get("", 0)))
    for item in node.attribute:
        found[item.name] = helper.get_attribute_value(item)
    conv = node.op_type in (*CONVOLUTIONS, "MaxPool", "AveragePool", "NhwcMaxPool", "QLinearAveragePool")
    ignored = _IGNORED | _IN_THE_WEIGHT if weighted else _IGNORED
    kept = {name: _value(value) for name, value in found.items() if name not in ignored}
    if node.op_type in RECURRENT and not kept.get("layout"):
        kept.pop("layout", None)
    if node.op_type == "Cast":  # how many digits a float has is the file's affair
        kind = helper.tensor_dtype_to_np_dtype(kept["to"]).name
        kept = {"to": "float" if kind in FRACTION_BITS else "int" if kind in ("int32", "int64") else kind}
    if node.op_type in ("FusedMatMul", "TransposeMatMul"):
        usual = {"alpha": 1.0, "transA": 0, "transB": 0, "transBatchA": 0, "transBatchB": 0}
        kept = {name: value for name, value in kept.items() if usual.get(name) != value}
    if conv:
        dimensions = len(shapes.get(node.input[0], (0, 0, 0, 0))) - 2
        for name, size, one in (("strides", dimensions, 1), ("dilations", dimensions, 1), ("pads", 2 * dimensions, 0)):
            kept[name] = kept.get(name) or (one,) * size
        kept.setdefault("auto_pad", "NOTSET")
        if kept["auto_pad"] == "VALID":
            kept["auto_pad"] = "NOTSET"
    if node.op_type in ("Softmax", "LogSoftmax", "LayerNormalization", "Concat", "QLinearConcat", "QLinearSoftmax"):
        rank = len(shapes.get(node.output[0], ()))
        kept["axis"] = int(found.get("axis", -1)) % rank if rank else found.get("axis")
    if node.op_type.startswith("ArgM"):
        kept.pop("keepdims", None)
    if plain_name(node).startswith("Reduce"):
        kept = {"axes": _axes(node, kept.get("axes"), bool(kept.get("noop_with_empty_axes")), graph, shapes)}
    return tuple(sorted(kept.items(), key=lambda item: item[0]))


def _axes(node: onnx.NodeProto, told: Any, none: bool, graph: Graph, shapes: Shapes) -> tuple[int, ...] | None:
    """The axes that an operator reduces: as an attribute, or since version 13 or 18 as an input; None: not known."""
    rank = len(shapes.get(node.input[0], ()))
    if node.op_type.endswith("GlobalAveragePool"):
        return tuple(range(2, rank))
    if told is None and len(node.input) > 1 and node.input[1] and not node.op_type.startswith("QLinear"):
        held = graph.constant(node.input[1])
        if held is None:
            return None
        told = held.values.ravel().tolist()
    if not told:
        return () if none else tuple(range(rank))
    return tuple(sorted(int(axis) % max(rank, 1) for axis in told))


def _value(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return tuple(_value(item) for item in value)
    if hasattr(value, "SerializeToString"):
        return _graph_in_words(value) if hasattr(value, "node") else value.SerializeToString(deterministic=True)
    return value


def _graph_in_words(graph: Any) -> tuple[Any, ...]:
    """An inner graph whatever its tensors are called."""
    from onnx.numpy_helper import to_array

    numbered: dict[str, int] = {}

    def number(name: str) -> int:
        return numbered.setdefault(name, len(numbered))

    nodes = []
    for item in graph.input:
        number(item.name)
    for node in graph.node:
        words = sorted((item.name, repr(_value(_attribute(item)))) for item in node.attribute)
        nodes.append(
            (node.domain, node.op_type, tuple(words), tuple(map(number, node.input)), tuple(map(number, node.output)))
        )
    held = tuple((number(t.name), t.data_type, tuple(t.dims), to_array(t).tobytes()) for t in graph.initializer)
    return tuple(nodes), held, tuple(number(item.name) for item in graph.output)


def _attribute(item: Any) -> Any:
    from onnx import helper

    return helper.get_attribute_value(item)


@cache
def _defaults(kind: str, version: int) -> tuple[tuple[str, Any], ...]:
    from onnx import defs, helper

    try:
        schema = defs.get_schema(kind, version or 1)
    except defs.SchemaError:
        return ()
    given = ((name, item.default_value) for name, item in schema.attributes.items())
    return tuple((name, helper.get_attribute_value(item)) for name, item in given if item.type)


def trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the ones that broadcasting puts in front."""
    first = next((place for place, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]


def captured(graph: onnx.GraphProto) -> list[str]:
    """Tensors of outer graphs that an inner graph reads, in order."""
    own = {item.name for item in (*graph.input, *graph.initializer)} | {o for node in graph.node for o in node.output}
    read = [name for node in graph.node for name in node.input] + [item.name for item in graph.output]
    return [name for name in dict.fromkeys(read) if name and name not in own]


def counting(
    graph: Graph, shaped: Collection[str], changing: Collection[str], types: Mapping[str, str]
) -> tuple[frozenset[str], frozenset[str]]:
    """Those of `shaped` whose values may depend on the number of records; and of these, which are no multiples of it.

    They are known before the input is, and still no constants: a model is audited in large batches and attacked in
    small ones, and a comparison with their number can change every answer of a batch of one.

    Args:
        shaped: tensors that follow from shapes and constants.
        changing: tensors whose shape or values were other ones with another number of records. Of sizes and of what
            picks from them that decides; of what is computed with a size nothing does: it may ask for any number.
        types: numpy's names of the tensors' types.
    """
    sizes, values, lengths, odd = set[str](), set[str](), set[str](), set[str]()
    for node in graph.nodes:  # what is known to follow from shapes stands behind what it follows from
        if not any(name in shaped for name in node.output):
            continue
        kind, given = node.op_type, [name for name in node.input if name]
        source, others = given[:1], given[1:]
        if kind in ("Shape", "Size") and odd.isdisjoint(source):
            picks = True
        else:
            picked, by = (given, []) if kind == "Concat" else (source, others)
            multiple = kind == "Mul" and sum(name in values for name in given) < 2
            picked = given if multiple else picked
            known = all(name in sizes or name not in values for name in picked)
            whole = types.get(node.output[0]) in ("int32", "int64")
            picks = (multiple or (kind in _PICKS and values.isdisjoint(by))) and whole
            picks = picks and known and not sizes.isdisjoint(picked)
        if picks:
            sizes.update(node.output)
            values.update(name for name in node.output if name in changing)
            continue
        how_many = (given if kind == "ConstantOfShape" else others) if kind in _SPREADS else []
        what = [name for name in given if name not in how_many]
        if not values.isdisjoint(what) or (kind not in _LONGER and not lengths.isdisjoint(given)):
            values.update(node.output)
        if not lengths.isdisjoint(given) or not values.isdisjoint(how_many):
            lengths.update(node.output)
        if not odd.isdisjoint(given) or not (values - sizes).isdisjoint(how_many):
            odd.update(node.output)
    return frozenset(values), frozenset(values - sizes)
