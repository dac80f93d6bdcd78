"""The dense weights, read back out of a compressed ONNX file: how near they come, and the model that they make."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import nn

from ...compression.lineage.codes_in_steps import folded_weight
from ...compression.lineage.matched import Fit, match
from ...targets.errors import NotApplicable
from ...targets.twin.twin import Twin, twin_of
from ...targets.untrusted.model_file import check_onnx
from .contents.containers import take_apart

if TYPE_CHECKING:
    import onnx

ALIKE = 0.3  # correlation: below it a layer holds other weights, not the dense ones compressed
CODEBOOK = 256
EQUAL = 1e-6  # relative error of a weight that was left as it is
WINDOW = 32  # consecutive values that are looked for: 1,024 bits which no other weights share
SPOTS = 5  # of a tensor that are looked for

How = Literal["integers", "code book", "mask", "float"]


@dataclass(frozen=True)
class Layer:
    """One weight of the file beside the dense one.

    Args:
        name: in the file; dense: of the dense weight; how: it is held.
        bits: of a code, of a place in a code book; 32 and 16: of a float.
        weights: how many.
        error: |read - dense| / |dense|, L2.
        rounding: what the scales of integer codes say that error is, uniform within a step (scale / sqrt 12); None: it
            is not held in integers.
        kept: the share of the weights that are not zero.
        norm: |dense|.
    """

    name: str
    dense: str
    how: How
    bits: int
    weights: int
    error: float
    rounding: float | None
    kept: float
    norm: float


@dataclass(frozen=True)
class Rebuilt:
    """What a file tells of the dense weights: `missing` of theirs have no counterpart in it."""

    layers: tuple[Layer, ...]
    missing: int

    def overall(self) -> tuple[float, float | None]:
        """Relative L2 error over all layers; and what the scales say it is, over those held in integers alone."""
        squares = sum(one.norm**2 for one in self.layers)
        error = np.sqrt(sum((one.error * one.norm) ** 2 for one in self.layers) / squares)
        coded = [one for one in self.layers if one.rounding is not None]
        if not coded:
            return float(error), None
        return float(error), _joint(coded, [one.rounding or 0.0 for one in coded])

    @property
    def uncompressed(self) -> set[str]:
        """Names of the dense weights that the file itself computes with, as they were."""
        return {one.dense for one in self.layers if one.how == "float" and one.error < EQUAL}

    def coded_error(self) -> float | None:
        """As `overall`, of the layers held in integers alone."""
        coded = [one for one in self.layers if one.rounding is not None]
        return _joint(coded, [one.error for one in coded]) if coded else None


def _joint(layers: Sequence[Layer], errors: Sequence[float]) -> float:
    parts = sum((error * one.norm) ** 2 for one, error in zip(layers, errors, strict=True))
    return float(np.sqrt(parts / sum(one.norm**2 for one in layers)))


def rebuild(shipped: bytes, dense: bytes) -> Rebuilt:
    """Reads every weight of an ONNX file and holds it against the dense model's.

    Args:
        shipped: the compressed file; dense: the model it came from, as ONNX.

    Raises:
        UnsafeInput: a file that `check_onnx` refuses.
        NotApplicable: the layers are no longer the dense model's (factors, fewer channels, a student).
    """
    known = match(check_onnx(dense).copy(), check_onnx(shipped).copy())
    layers = [layer for fit in known.fits if (layer := _layer(fit)) is not None]
    if not layers:
        raise NotApplicable("none of the file's weights is one of the dense model's, compressed")
    return Rebuilt(tuple(layers), len(known.missing) + len(known.fits) - len(layers))


def _layer(fit: Fit) -> Layer | None:
    constant = fit.weight.constant
    if constant.plain is None and constant.codes is None:
        return None
    ours, theirs = folded_weight(fit.weight, fit.ours), folded_weight(fit.dense, fit.theirs)
    norm, own = float(np.linalg.norm(theirs)), float(np.linalg.norm(ours))
    if not norm > 0 or not own > 0 or float((ours * theirs).sum()) / (norm * own) < ALIKE:
        return None
    rounding = None
    kept = float((ours != 0).mean())
    how: How = "mask" if kept < 1 - 1e-3 else "float"
    bits = fit.bits
    levels = len(np.unique(constant.values))
    if constant.codes is not None:
        how = "integers"
        scale = np.abs(constant.codes.scale.astype(np.float64)).reshape(theirs.shape)
        scale = scale if fit.ours.gain is None else scale * np.abs(fit.ours.gain[:, None])
        rounding = float(np.sqrt((scale**2).sum() / 12)) / norm
    elif levels <= CODEBOOK and 4 * levels <= ours.size:
        how, bits = "code book", int(levels - 1).bit_length()
    error = float(np.linalg.norm(ours - theirs)) / norm
    return Layer(fit.weight.name, fit.dense.constant.name, how, bits, ours.size, error, rounding, kept, norm)


def rebuilt_model(shipped: bytes, twin: nn.Module | None = None) -> nn.Module:
    """The file as a float model with the weights that it holds: trainable, and nothing is rounded between layers.

    Args:
        twin: of the file behind whatever its inputs go through first; None: they go in as they are.

    Raises:
        UnsafeInput: `check_onnx` refuses the file.
        NotApplicable: it has no twin.
    """
    model = check_onnx(shipped).copy()
    _unround(model.graph)
    inner = twin_of(model.SerializeToString())
    whole: nn.Module = inner
    if twin is not None and not isinstance(twin, Twin):
        own = [name for name, child in twin.named_children() if isinstance(child, Twin)]
        if own:
            whole = copy.deepcopy(twin)
            setattr(whole, own[0], inner)
    return whole.requires_grad_(True)


def _unround(graph: onnx.GraphProto) -> None:
    """Takes out the pairs of QuantizeLinear and DequantizeLinear that lie between layers; weights keep theirs."""
    held = {tensor.name for tensor in graph.initializer}
    entering = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in held
    }
    plain = {
        node.output[0]: entering[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in entering
    }
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = _source(name, plain)
    kept = [node for node in graph.node if not set(node.output) <= set(plain) - outputs]
    del graph.node[:]
    graph.node.extend(kept)


def _source(name: str, plain: dict[str, str]) -> str:
    while name in plain:  # pairs may follow each other
        name = plain[name]
    return name


def dense_tensors(dense: bytes) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The weights of the dense file that are long enough to be told from any other; biases often stay as they are."""
    from onnx import numpy_helper

    for tensor in check_onnx(dense).copy().graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1 and values.size >= WINDOW:
            yield tensor.name, values


def dense_tensors_in(shipped: bytes, dense: bytes) -> tuple[dict[str, str], int]:
    """The dense model's float32 tensors that lie in a file bit for bit, and where; and how many were looked for.

    Wherever they lie, and whether or not anything reads them: dead initialisers, storages of a `.pt2`, members of an
    archive, base64. Rows or columns first; not as float16, and not where something changed them.

    Raises:
        UnsafeInput: an archive that is damaged or crafted.
    """
    contents = take_apart(shipped)
    found, count = {}, 0
    for name, values in dense_tensors(dense):
        windows = [part for part in map(_window, _orders(values)) if part]
        if not windows:
            continue
        count += 1
        for at, part in enumerate(contents.parts):
            offset = max((part.content.find(window) for window in windows), default=-1)
            if offset >= 0:
                found[name] = contents.place(at, offset)
                break
    return found, count


def _orders(values: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    flat = values.reshape(values.shape[0], -1)
    return [flat.ravel()] if min(flat.shape) == 1 else [flat.ravel(), flat.T.ravel()]


def _window(values: np.ndarray[Any, Any]) -> bytes:
    """A run of values that is nobody else's: none is zero and nearly all differ; empty: there is none."""
    for begin in np.linspace(0, len(values) - WINDOW, SPOTS).astype(int):
        part = values[begin : begin + WINDOW]
        if (part != 0).all() and len(np.unique(part)) > WINDOW // 2:
            return part.astype("<f4").tobytes()
    return b""
