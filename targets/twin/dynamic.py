"""Dynamic quantisation in a twin: the range of each record, wherever the records are in a tensor.

The standard takes the range of the whole batch: an answer then depends on who else asks. A file that does so is
deployed one record at a time (`onnx.OnnxTarget`). The twin computes many at once, each with the range it has alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..seeds import generator
from .module import Twin
from .nodes import Node, RecordAxis
from .rounding import quantized


def dynamic_codes(node: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u8 codes over the range of each record, 0 included; scale; zero point. The range has no gradient."""
    least, most = _ends(node, x.detach())
    low, high = least.clamp(max=0), most.clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = (-low / scale).clamp(0, 255).round()
    return quantized(x, scale, zero, (0, 255), node.straight_through), scale, zero


def find_records(twin: Twin) -> None:
    """Has the nodes that measure ranges note where the records are, by a pass over equal ones, as many as nothing else.

    Later as many records may come as there are steps, and sizes could not tell them apart. Where the file leaves the
    record's sizes open, they have to.
    """
    if not twin.measuring or twin.batch is not None or twin.shape is None or None in twin.shape:
        return
    sizes = [size for size in twin.shape if size is not None]
    records = next(prime for prime in (7, 11, 13, 17, 19, 23, 29) if prime not in sizes)
    for node in twin.measuring:
        node.layouts = {}
    twin.eval()(torch.rand((1, *sizes), generator=generator(0, "records")).expand(records, *sizes))


def _ends(node: Node, x: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of each record, of x's rank; of the whole, [], where records are not found."""
    records = node.records
    if records == 1:
        return x.amin(), x.amax()
    if node.layouts is None:
        layout = _layout(x, records)
    else:
        if x.dim() not in node.layouts:
            node.layouts[x.dim()] = _layout_of_equals(x, records)
        layout = node.layouts[x.dim()]
    if layout in ("first", "second"):
        others = [axis for axis in range(x.dim()) if axis != (layout == "second")]
        return x.amin(others, keepdim=True), x.amax(others, keepdim=True)
    if layout == "whole" or len(x) % records:
        return x.amin(), x.amax()
    first: tuple[int, int] = (records, -1) if layout == "outer" else (-1, records)
    parts = x.reshape(*first, x[0].numel())
    others = [1, 2] if layout == "outer" else [0, 2]

    def spread(ends: Tensor) -> Tensor:
        return ends.expand(*parts.shape[:2], 1).reshape(-1, *[1] * (x.dim() - 1))

    return spread(parts.amin(others, keepdim=True)), spread(parts.amax(others, keepdim=True))


def _layout(x: Tensor, records: int) -> RecordAxis:
    """Where sizes say that the records are; an axis shared with heads of attention is the records' first."""
    sizes = x.shape[:2]
    if records in sizes:
        return "first" if sizes[0] == records else "second"
    return "outer" if x.dim() > 1 and sizes[0] % records == 0 else "whole"


def _layout_of_equals(x: Tensor, records: int) -> RecordAxis:
    """The same of records that equal each other: then an axis shared with heads or steps shows whose it is first."""
    layout = _layout(x, records)
    if layout != "outer":
        return layout
    parts = x.reshape(-1, records, x[0].numel())
    return "inner" if torch.allclose(parts, parts[:, :1], rtol=1e-4, atol=1e-6) else "outer"
