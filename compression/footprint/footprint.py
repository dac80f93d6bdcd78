"""What a candidate weighs: bytes, parameters, operations, modelled energy (speed and memory: see `timing`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...targets.errors import CrushproofError
from ...targets.model import device_of
from ...targets.onnx_graph.constants import Graph
from ...targets.onnx_graph.live import only_live
from ...targets.onnx_graph.operations import Operation, operations, parameters, tensors
from ...targets.untrusted.model_file import ModelFile
from ..layers.attention import Attention
from ..layers.edit import REBUILDABLE, TRANSPOSED, WEIGHTED
from .energy import energy
from .payload import LONGEST_GAP, decode, distinct, encode

Footprint = dict[str, Any]


def footprint(module: nn.Module, onnx: bytes, payload: bytes, shape: tuple[int, ...]) -> Footprint:
    """What follows from the bytes and the structure, the same on every machine.

    `disk_bytes` of the ONNX file; `payload_bytes`, after checking that the payload decodes to the module's values;
    `entropy_bytes`: see `entropy_bytes`; `parameters` and `nonzero_parameters`: weights and biases (not scales, not a
    batch norm's statistics); `macs`: multiply-accumulates for one record, counted densely (scattered zeros save nothing
    on ordinary hardware); `macs_by_width`: the same as a list of {weight_bits, activation_bits, macs}, float32 as 32;
    `energy_uj_modelled` and `energy_memory_share`: see `energy`.

    Args:
        module: the compressed module that `onnx` and `payload` were made from.
        shape: of one record.
    """
    state, decoded = module.state_dict(), decode(payload, module)
    wrong = [name for name, value in state.items() if not torch.equal(decoded[name], value.cpu())]
    if wrong:
        raise CrushproofError(f"The packed payload does not decode to the model's own values of {', '.join(wrong)}.")
    values = module_parameters(module)
    nonzero = sum(int(torch.count_nonzero(value)) for value in values)
    return {
        "disk_bytes": len(onnx),
        "payload_bytes": len(payload),
        "entropy_bytes": entropy_bytes(module),
        "parameters": sum(value.numel() for value in values),
        "nonzero_parameters": nonzero,
        **_operations(layer_macs(module, shape), len(payload)),
    }


def footprint_of_file(file: ModelFile, shape: tuple[int, ...]) -> Footprint:
    """As `footprint`, of a finished file alone.

    The payload is the file's initialisers, packed as a module's values are; decode -> equal is checked. Parameters and
    operations are those that reach an output. Of a TFLite file only `disk_bytes` is known: it stands for the payload
    too, and everything else is None, `macs_by_width` empty.

    Raises:
        UnsafeInput, InputError: see `model_file.check_onnx`; the file does not answer records of this shape.
    """
    if file.kind == "tflite":
        return {
            "disk_bytes": len(file.data),
            "payload_bytes": len(file.data),
            **dict.fromkeys(("entropy_bytes", "parameters", "nonzero_parameters", "macs")),
            "macs_by_width": [],
            **dict.fromkeys(("energy_uj_modelled", "energy_memory_share")),
        }
    holder = nn.Module()
    for index, value in enumerate(tensors(Graph(file.checked.model)).values()):
        holder.register_buffer(f"tensor_{index}", value)
    payload = encode(holder)
    decoded = decode(payload, holder)
    if not all(torch.equal(_without_nan(decoded[name]), _without_nan(value)) for name, value in holder.named_buffers()):
        raise CrushproofError("The packed payload does not decode to the file's own values.")
    live = only_live(file.checked.copy())
    count, nonzero = parameters(Graph(live))
    return {
        "disk_bytes": len(file.data),
        "payload_bytes": len(payload),
        "entropy_bytes": entropy_bytes(holder),
        "parameters": count,
        "nonzero_parameters": nonzero,
        **_operations(operations(live, shape), len(payload)),
    }


def _without_nan(value: Tensor) -> Tensor:
    return value.nan_to_num() if value.dtype.is_floating_point else value


def _operations(counted: Sequence[Operation], payload_size: int) -> Footprint:
    by_width: dict[tuple[int, int], int] = {}
    for macs, weight_bits, activation_bits in counted:
        by_width[weight_bits, activation_bits] = by_width.get((weight_bits, activation_bits), 0) + macs
    joule, share = energy(counted, payload_size)
    return {
        "macs": sum(operation.macs for operation in counted),
        "macs_by_width": [
            {"weight_bits": weight, "activation_bits": activation, "macs": macs}
            for (weight, activation), macs in sorted(by_width.items())
            if macs
        ],
        "energy_uj_modelled": joule,
        "energy_memory_share": share,
    }


def module_parameters(module: nn.Module) -> list[Tensor]:
    """Weights and biases: the module's parameters, and what stands for them in layers of our own (codes, biases).

    A tensor that layers share is listed once.
    """
    values: list[Tensor] = list(module.parameters())
    for layer in module.modules():
        if type(layer) in REBUILDABLE:
            values += [
                value
                for name, value in layer.named_buffers(recurse=False)
                if name != "bias_codes" and (name.endswith("codes") or name.startswith("bias"))
            ]
    return list({id(value): value for value in values}.values())


def entropy_bytes(module: nn.Module) -> int:
    """A bound below which no payload of this module's values can go, whatever its entropy coder.

    Of each tensor the least of: its own bytes; integers as offsets in as few bits as the largest needs; the empirical
    entropy of single values (order 0; Shannon 1948) with a table of the distinct ones; and, where there are zeros, the
    entropy of the gaps between nonzero values with the least for those. Biases that follow from integers take nothing,
    nor does a tensor under its second name (tied weights).
    """
    derived = {
        f"{path}.bias".lstrip(".")
        for path, layer in module.named_modules()
        if getattr(layer, "bias_codes", None) is not None
    }
    state = {name: value for name, value in module.state_dict().items() if name not in derived}
    bits = sum(_tensor_bits(value.detach().cpu()) for value in distinct(state).values())
    return int(bits / 8)


def _tensor_bits(value: Tensor) -> float:
    flat = value.reshape(-1)
    if flat.dtype.is_floating_point:
        flat = torch.where(flat == 0, torch.zeros_like(flat), flat)
    integer = not flat.dtype.is_floating_point
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    size = flat.element_size()
    words = (flat.to(torch.int16) if flat.dtype in (torch.uint8, torch.bool) else flat.view(kinds[size])).numpy()
    least = _dense_bits(words, size, integer=integer)
    places = np.flatnonzero(words)
    if len(places) < len(words):
        gaps = np.diff(places, prepend=-1) - 1
        ends, longs = gaps % LONGEST_GAP, int((gaps // LONGEST_GAP).sum())
        symbols = np.bincount(ends, minlength=LONGEST_GAP + 1)
        symbols[LONGEST_GAP] += longs
        least = min(least, _entropy(symbols) + _dense_bits(words[places], size, integer=integer))
    return least


def _dense_bits(words: np.ndarray[Any, Any], size: int, *, integer: bool) -> float:
    if not len(words):
        return 0.0
    low, high = int(words.min()), int(words.max())
    width = min(8 * size, (high - low).bit_length()) if integer else 8 * size
    counts = np.unique(words, return_counts=True)[1]
    return float(min(len(words) * width, _entropy(counts) + len(counts) * min(width, 8 * size)))


def _entropy(counts: np.ndarray[Any, Any]) -> float:
    """Bits of all symbols together, of a coder that knows how often each occurs."""
    present = counts[counts > 0].astype(np.float64)
    return float(-(present * np.log2(present / present.sum())).sum()) if len(present) else 0.0


def layer_macs(module: nn.Module, shape: tuple[int, ...]) -> list[Operation]:
    """What one record costs, per call of a layer: a convolution, linear or recurrent layer, attention, or one of ours.

    Layers registered by `edit.rebuildable` answer for themselves (`operations`), and for what they wrap. Attention
    counts its projections and its two products (q k^T, and the shares times v). An embedding multiplies nothing. A
    product that the model's own code makes outside such layers is not seen.
    """
    counted: list[Operation] = []

    def count(layer: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
        own: Callable[..., tuple[int, int, int]] | None = getattr(layer, "operations", None)
        if own is not None:
            counted.append(Operation(*own(inputs, output)))
        elif isinstance(layer, nn.RNNBase):
            sequence = inputs[0] if isinstance(inputs[0], Tensor) else inputs[0].data
            matrices = [value for name, value in layer.named_parameters() if name.startswith("weight_")]
            steps = sequence.numel() // sequence.shape[-1]
            counted.append(Operation(steps * sum(value.numel() for value in matrices), 32, 32))
        elif isinstance(layer, nn.MultiheadAttention | Attention):
            query, key = (inputs[i] if len(inputs) > i else named[name] for i, name in enumerate(("query", "key")))
            long, wide = (sequence.numel() // sequence.shape[-1] for sequence in (query, key))
            features = layer.num_heads * layer.head_dim
            products = 2 * long * wide * features
            if isinstance(layer, nn.MultiheadAttention):  # its projections call no layer
                products += 2 * long * layer.embed_dim**2 + wide * (layer.kdim + layer.vdim) * layer.embed_dim
            counted.append(Operation(products, 32, 32))
        else:
            # Each output value takes one multiplication per weight of its own channel; transposed: each input value.
            weight = layer.weight
            assert isinstance(weight, Tensor)  # not always its own parameter: a user's wrapper may compute it
            values = inputs[0] if isinstance(layer, TRANSPOSED) else output
            counted.append(Operation(values.numel() * weight[0].numel(), 32, 32))

    handles = [layer.register_forward_hook(count, with_kwargs=True) for layer in _counted(module)]
    training, fast = module.training, torch.backends.mha.get_fastpath_enabled()
    try:
        module.eval()
        torch.backends.mha.set_fastpath_enabled(False)  # it calls no layer
        with torch.no_grad():
            module(torch.zeros(1, *shape, device=device_of(module)))
    finally:
        module.train(training)
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    return counted


def _counted(module: nn.Module) -> list[nn.Module]:
    """The layers that are asked what a call costs; none of them inside one that answers for it."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for layer in module.modules():
        if layer in inside:
            continue
        answers = type(layer) in REBUILDABLE and hasattr(layer, "operations")
        if answers or isinstance(layer, (*WEIGHTED, nn.RNNBase, nn.MultiheadAttention, Attention)):
            found.append(layer)
        if answers or isinstance(layer, nn.MultiheadAttention):
            inside.update(child for child in layer.modules() if child is not layer)
    return found
