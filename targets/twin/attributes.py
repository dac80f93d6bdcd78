"""What the import of a graph reads off single nodes: attributes, names, the number of axes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .nodes import FLOAT, INT64, Node, Operator, constant

_SAME_RANK = {
    *("Abs", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "DequantizeLinear", "Dropout"),
    *("Elu", "Erf", "Exp", "Floor", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish"),
    *("Identity", "InstanceNormalization", "LRN", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "MaxPool"),
    *("Mish", "Neg", "PRelu", "Pad", "QuantizeLinear", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Round"),
    *("Selu", "Sigmoid", "Sign", "Softmax", "Softplus", "Sqrt", "Tanh", "Transpose"),
    *("BipolarQuant", "IntQuant", "Quant", "Trunc"),
}
_BROADCAST = frozenset(["Add", "Div", "MatMul", "Max", "Min", "Mul", "Pow", "Sub", "Sum"])


def inferred_rank(
    node: Node, inputs: Sequence[str], ranks: Mapping[str, int | None], constants: Mapping[str, Tensor]
) -> int | None:
    """The number of axes of the output where it is plain to see, else None (a batch norm is no torch layer then)."""
    known = [constants[name].dim() if name in constants else ranks.get(name) for name in inputs if name]
    first = known[0] if known else None
    if node.operator in ("Conv", "ConvTranspose"):
        return known[1] if len(known) > 1 else None
    if node.operator in ("Gemm", "Flatten"):
        return 2
    if node.operator == "Reshape":
        return constants[inputs[1]].numel() if node.constant[1] else None
    if node.operator in _SAME_RANK and not (node.operator.startswith("Reduce") and not node.get("keepdims", 1)):
        return first
    if node.operator in _BROADCAST:
        return None if None in known else max(rank for rank in known if rank is not None)
    return None


def structural_inputs(entry: Operator, count: int) -> tuple[int, ...]:
    return tuple(at for at in entry.structural if at < count)


def attributes_of(node: Node, proto: Any) -> dict[str, Any]:
    """Python values; a tensor as the twin holds it, beside its element type `<name>_type`."""
    from onnx import AttributeProto, helper, numpy_helper

    found: dict[str, Any] = {}
    for item in proto.attribute:
        if item.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            node.refuse("it runs a graph of its own")
        if item.type in (AttributeProto.TENSOR,):
            found[item.name] = constant(numpy_helper.to_array(item.t), item.t.data_type, node.name)
            found[f"{item.name}_type"] = item.t.data_type
            continue
        if item.type not in (
            AttributeProto.FLOAT,
            AttributeProto.INT,
            AttributeProto.STRING,
            AttributeProto.FLOATS,
            AttributeProto.INTS,
            AttributeProto.STRINGS,
        ):
            node.refuse(f"its attribute {item.name!r} is of a kind that the twin does not read")
        value = helper.get_attribute_value(item)
        found[item.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if not isinstance(value, (bytes, int, float)):
            found[item.name] = list(value)
    if node.operator == "Constant" and "value" not in found:
        found.update(_plain_constant(node, found))
    return found


def _plain_constant(node: Node, found: dict[str, Any]) -> dict[str, Any]:
    kinds = {"value_float": (torch.float32, FLOAT), "value_int": (torch.int64, INT64)}
    for key, value in found.items():
        if key.removesuffix("s") in kinds:
            dtype, kind = kinds[key.removesuffix("s")]
            return {"value": torch.tensor(value, dtype=dtype), "value_type": kind}
    return node.refuse("its value is neither a tensor nor numbers")


def safe_name(name: str, module: nn.Module) -> str:
    """A name for a submodule or buffer: letters, digits and underscores, and not taken."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")[:100] or "unnamed"
    plain = f"node_{plain}" if plain[0].isdigit() else plain
    chosen, number = plain, 1
    while hasattr(module, chosen):
        number += 1
        chosen = f"{plain}_{number}"
    return chosen
