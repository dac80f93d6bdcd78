"""What ONNX Runtime's optimiser fused, taken apart again into the standard's operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

FUSED = ("BiasGelu", "Gelu", "QuickGelu", "SkipLayerNormalization", "FusedMatMul", "FusedConv", "FusedGemm")
# What a bias is added to: products, and the factor behind one of integers.
PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "Mul")


def unfuse(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` itself: Gelu and its kin, SkipLayerNormalization and fused products become what they stand for."""
    _unfuse(model.graph, model.graph, _ranks(model))
    return model


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Dimensions of tensors, where they are known: of what a turned product turns."""
    from onnx import shape_inference

    graph = model.graph
    if any(node.op_type == "FusedMatMul" for node in graph.node):
        graph = shape_inference.infer_shapes(model).graph
    known = {item.name: len(item.type.tensor_type.shape.dim) for item in (*graph.value_info, *graph.input)}
    return known | {tensor.name: len(tensor.dims) for tensor in graph.initializer}


def _unfuse(graph: onnx.GraphProto, outer: onnx.GraphProto, ranks: dict[str, int]) -> None:
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for held in node.attribute:
            for inner in (held.g, *held.graphs):
                if inner.node:
                    _unfuse(inner, outer, ranks)
        try:
            nodes += _parts(node, outer, ranks) or [node]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):  # attributes that do not fit: as it is
            nodes.append(node)
    if len(nodes) != len(graph.node):
        kept = [type(graph.node[0]).FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)


def _parts(node: onnx.NodeProto, graph: onnx.GraphProto, ranks: dict[str, int]) -> list[onnx.NodeProto]:
    from onnx import helper, numpy_helper

    if node.op_type not in FUSED:
        return []
    given, made = {item.name: helper.get_attribute_value(item) for item in node.attribute}, node.output[0]
    inputs = [*node.input, *[""] * 5]

    def make(kind: str, read: list[str], write: str, **more: Any) -> onnx.NodeProto:
        name = node.name if write == made else f"{node.name}/{write.removeprefix(made)}"
        return helper.make_node(kind, read, [write], name, **{k: v for k, v in more.items() if v is not None})

    def number(value: float, word: str) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), f"{made}/{word}"))
        return f"{made}/{word}"

    def sums(first: str, others: list[str], last: str | None = None) -> Iterator[onnx.NodeProto]:
        for place, other in enumerate(others):
            end = place == len(others) - 1
            yield make("Add", [first, other], last if end and last else f"{made}/plus{place}")
            first = f"{made}/plus{place}"

    if node.op_type in ("BiasGelu", "Gelu") and given.get("approximate", b"none") == b"none":
        first, before = inputs[0], []
        if node.op_type == "BiasGelu":
            before, first = list(sums(first, [inputs[1]])), f"{made}/plus0"
        return [  # as torch writes it
            *before,
            make("Div", [first, number(2**0.5, "root")], f"{made}/share"),
            make("Erf", [f"{made}/share"], f"{made}/erf"),
            make("Add", [f"{made}/erf", number(1.0, "one")], f"{made}/sum"),
            make("Mul", [first, f"{made}/sum"], f"{made}/twice"),
            make("Mul", [f"{made}/twice", number(0.5, "half")], made),
        ]
    if node.op_type == "SkipLayerNormalization":
        total = node.output[3] if len(node.output) > 3 and node.output[3] else f"{made}/total"
        norm = make(
            "LayerNormalization",
            [total, *filter(None, inputs[2:4])],
            made,
            axis=-1,
            epsilon=given.get("epsilon", 1e-12),
        )
        one, other = inputs[:2]
        if not inputs[4]:
            return [make("Add", [one, other], total), norm]
        made_by = {name: maker.op_type for maker in graph.node for name in maker.output}
        if made_by.get(one) in PRODUCTS and made_by.get(other) not in PRODUCTS:  # whose bias it was
            one, other = other, one
        biased = make("Add", [other, inputs[4]], f"{made}/biased")
        return [biased, make("Add", [one, f"{made}/biased"], total), norm]
    if node.op_type == "QuickGelu":
        alpha = float(given.get("alpha", 1.702))
        first = [make("Sigmoid", [inputs[0] if alpha == 1 else f"{made}/scaled"], f"{made}/gate")]
        if alpha != 1:
            first.insert(0, make("Mul", [inputs[0], number(alpha, "alpha")], f"{made}/scaled"))
        return [*first, make("Mul", [inputs[0], f"{made}/gate"], made)]
    turned = any(given.get(name) for name in ("transBatchA", "transBatchB"))
    if node.op_type == "FusedMatMul" and not turned and (given.get("alpha", 1.0) != 1 or given.get("transB")):
        if given.get("transA"):
            return []
        second, alpha = inputs[1], float(given.get("alpha", 1.0))
        before = []
        if given.get("transB"):
            rank = ranks.get(inputs[1], 0)
            if rank < 2:
                return []
            axes = [*range(rank - 2), rank - 1, rank - 2]
            before, second = [make("Transpose", [inputs[1]], f"{made}/turned", perm=axes)], f"{made}/turned"
        if alpha == 1:
            return [*before, make("MatMul", [inputs[0], second], made)]
        product = make("MatMul", [inputs[0], second], f"{made}/product")
        return [*before, product, make("Mul", [f"{made}/product", number(alpha, "alpha")], made)]
    if node.op_type in ("FusedConv", "FusedGemm"):
        kind = given.pop("activation", b"").decode()
        bounds = given.pop("activation_params", [])
        more = {name: value for name, value in given.items() if not name.startswith("activation_")}
        names = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": ("min", "max")}.get(kind, ())
        if len(bounds) not in (() if kind == "Clip" else (0,)) + (len(names),):
            return []
        last: dict[str, Any] = {
            name.removeprefix("activation_"): value for name, value in given.items() if name not in more
        }
        last |= {} if kind == "Clip" else dict(zip(names, bounds, strict=False))
        ends = []
        if kind == "Clip":
            ends = [number(value, word) for value, word in zip(bounds, ("low", "high"), strict=True)]
        whole = make(
            node.op_type.removeprefix("Fused"), [name for name in inputs[:3] if name], f"{made}/product", **more
        )
        before = list(sums(f"{made}/product", [inputs[3]])) if node.op_type == "FusedConv" and inputs[3] else []
        source = before[-1].output[0] if before else f"{made}/product"
        return [whole, *before, make(kind, [source, *ends], made, **last)] if kind else []
    return []
