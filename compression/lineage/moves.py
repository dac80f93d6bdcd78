"""Where values are moved from: transposes, slices, reshapes and the rows of products, as one map of places."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...targets.onnx_graph.constants import Array, attribute
from .forms import Form
from .limits import Stripped
from .operators import SAME_ORDER

if TYPE_CHECKING:
    import onnx

LARGEST_MAP = 2**24  # places of a tensor that moves are followed for


def places(form: Form, found: Stripped) -> Array | None:
    """Of each element, where it stands in the source: None where nothing is moved.

    The rows of a product are numbered as those of its operand are sorted: which comes first changes nothing.

    Raises:
        ValueError: the moves are not followed.
    """
    order = _order(form, found.base)
    if order is None and all(node.op_type in SAME_ORDER for node, _ in found.moves):
        return None
    shape = form.seen.shapes.get(found.moves[-1][0].input[0] if found.moves else found.base)
    if shape is None or math.prod(shape) > LARGEST_MAP:
        raise ValueError
    array = np.arange(math.prod(shape)) if order is None else order
    array = array.reshape(shape)
    for node, name in reversed(found.moves):
        array = _moved(form, node, name, array)
    flat: Array = array.ravel()
    return None if np.array_equal(flat, np.arange(math.prod(shape))) else flat


def rows(form: Form, base: str) -> Array | None:
    """What each row of a product's operand is made of, [rows, in]: None where nothing is moved; else ValueError."""
    operand = form.core(base).operands[0]
    found, shape = places(form, form.strip(operand)), form.seen.shapes.get(operand, ())
    return None if found is None or not shape else found.reshape(-1, shape[-1])


def _order(form: Form, base: str) -> Array | None:
    """The places of a product's outputs once its rows are sorted; None: as they are."""
    if base not in form.ends or form.core(base).kind != "product":
        return None
    made, shape = rows(form, base), form.seen.shapes.get(base, ())
    if made is None or not shape or len(made) * shape[-1] != math.prod(shape):
        return None
    rank = np.unique(made, axis=0, return_inverse=True)[1].reshape(-1, 1)
    order: Array = (rank * shape[-1] + np.arange(shape[-1])).ravel()
    return order


def _moved(form: Form, node: onnx.NodeProto, name: str, array: Array) -> Array:
    from onnx import NodeProto
    from onnx.reference import ReferenceEvaluator

    shape = form.seen.shapes[name]
    if node.op_type in SAME_ORDER:
        return array.reshape(shape)
    if node.op_type == "Transpose":
        return np.transpose(array, attribute(node, "perm", None))
    numbered = NodeProto()
    numbered.CopyFrom(node)
    numbered.domain = ""
    numbered.input[:] = [str(place) if item else "" for place, item in enumerate(node.input)]
    feeds = {"0": array}
    for place, item in enumerate(node.input):
        if place and item:
            constant = form.value(item)
            if constant is None:
                raise ValueError
            feeds[str(place)] = constant.values
    try:
        run: Callable[..., Any] = ReferenceEvaluator(numbered, opsets=form.graph.opsets).run
        results = run(None, feeds)
    except Exception:  # its exceptions have no common base; a node that does not fit is not followed
        raise ValueError from None
    return np.asarray(results[list(node.output).index(name)])
