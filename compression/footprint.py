"""What a candidate weighs: bytes, parameters, operations, modelled energy, and (apart, as timings) speed and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..targets.errors import CrushproofError
from ..targets.model import Target, device_of
from ..targets.model_file import CheckedOnnx, ModelFile, check_onnx
from ..targets.onnx import OnnxTarget, session_settings
from .attention import Attention
from .layers import REBUILDABLE, TRANSPOSED, WEIGHTED
from .onnx_constants import Graph
from .onnx_live import only_live
from .onnx_operations import Operation, operations, parameters, tensors
from .payload import LONGEST_GAP, decode, distinct, encode

# Picojoule per operation at 45 nm: M. Horowitz, "Computing's energy problem", ISSCC 2014. There is no figure for
# fewer than 8 bits: they are counted as 8.
FLOAT32_MULTIPLY_ADD = 3.7 + 0.9
FLOAT16_MULTIPLY_ADD = 1.1 + 0.4
INT8_MULTIPLY_INT32_ADD = 0.2 + 0.1
DRAM_PER_32_BITS = 640.0

SERVED = 256  # records that a fresh process answers while its memory is watched

# A fresh process that serves a model. VmHWM and not ru_maxrss: the latter starts at the parent's peak.
_SERVE = """
import json, sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 4
for name, value in json.loads(sys.argv[2]).items():
    options.add_session_config_entry(name, value)
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {session.get_inputs()[0].name: numpy.zeros(json.loads(sys.argv[3]), sys.argv[4])})
try:
    lines = open("/proc/self/status").read().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
except OSError:
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


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

    Layers registered by `layers.rebuildable` answer for themselves (`operations`), and for what they wrap. Attention
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


def energy(counted: Sequence[Operation], payload_size: int) -> tuple[float, float]:
    """Modelled microjoule for one record, and the share of it that is reading the weights; not a measurement.

    A multiply-accumulate costs a float32 multiplication and addition; where both factors are 16 bits, a float16 one;
    where both are integers of at most 8 bits, an int8 multiplication and an int32 addition (Horowitz 2014, 45 nm; there
    is no figure for 4 bits, which are taken for 8). The packed weights are read once from DRAM. Activations' traffic,
    normalisation, activation functions and leakage are left out; weight-only quantisation computes in float32, and
    fewer than 8 bits save on reading only.
    """

    def cost(operation: Operation) -> float:
        widest = max(operation.weight_bits, operation.activation_bits)
        each = (
            INT8_MULTIPLY_INT32_ADD if widest <= 8 else FLOAT16_MULTIPLY_ADD if widest <= 16 else FLOAT32_MULTIPLY_ADD
        )
        return operation.macs * each

    arithmetic, memory = sum(cost(operation) for operation in counted), payload_size / 4 * DRAM_PER_32_BITS
    total = arithmetic + memory
    return round(total / 1e6, 6), round(memory / total, 6) if total else 0.0


Timed = bytes | Callable[[], Target]


def latency(
    model: Timed, shape: tuple[int, ...], batches: Sequence[int] = (1, 32, 256), threads: int = 1, seconds: float = 0.2
) -> list[dict[str, int | float]]:
    """A row per batch size: batch, threads, p50 and p95 (milliseconds per call), records_per_second at the median.

    See `interleaved_latency`, which compares models fairly.
    """
    return interleaved_latency({"": model}, shape, batches, threads, seconds)[""]


def interleaved_latency(
    models: Mapping[str, Timed],
    shape: tuple[int, ...],
    batches: Sequence[int] = (1, 32, 256),
    threads: int = 1,
    seconds: float = 0.1,
) -> dict[str, list[dict[str, int | float]]]:
    """Times models in turns (A B C, A B C ...), a call each, so that a slow moment of the machine hits all alike.

    A timing: never decides anything.

    Args:
        models: ONNX files, run by ONNX Runtime on `threads` threads, or what makes a target of one's own.
        shape: of one record; inputs are float32 zeros.
        batches: records per call.
        seconds: spent per model and batch size: at least 5 calls, at most 300.

    Returns:
        By model, a row per batch size: batch, threads, p50, p95 (milliseconds per call), records_per_second.
    """
    targets = {
        name: OnnxTarget(model, threads, together=True) if isinstance(model, bytes) else model()
        for name, model in models.items()
    }
    rows: dict[str, list[dict[str, int | float]]] = {name: [] for name in models}
    for batch in batches:
        x = torch.zeros(batch, *shape)
        times: dict[str, list[float]] = {name: [] for name in models}
        for target in targets.values():
            for _ in range(3):
                target.logits(x)
        while waiting := [
            name for name, spent in times.items() if len(spent) < 5 or (sum(spent) < seconds and len(spent) < 300)
        ]:
            for name in waiting:
                start = time.perf_counter()
                targets[name].logits(x)
                times[name].append(time.perf_counter() - start)
        for name, spent in times.items():
            p50, p95 = (float(value) for value in np.percentile(spent, [50, 95]) * 1e3)
            each = {"batch": batch, "threads": threads, "p50": p50, "p95": p95, "records_per_second": 1e3 * batch / p50}
            rows[name].append(each)
    return rows


def peak_resident_bytes(model: CheckedOnnx | bytes, shape: tuple[int, ...]) -> int:
    """The largest resident memory of a fresh process that loads numpy and ONNX Runtime and answers 256 records.

    A file with a fixed batch answers one batch of that size.
    """
    checked = check_onnx(model)
    entry = checked.inputs[0]
    batch = entry.shape[0] if isinstance(entry.shape[0], int) else SERVED
    settings, records = json.dumps(session_settings(checked)), json.dumps([batch, *shape])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(checked.usable)
        command = [sys.executable, "-P", "-c", _SERVE, str(path), settings, records, entry.type]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise CrushproofError(f"The process that measures a candidate's memory ended early: {reason[0]}")
    return int(done.stdout.split()[-1])
