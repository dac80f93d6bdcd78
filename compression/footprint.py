"""What a candidate weighs: bytes, parameters, operations, modelled energy, and (apart, as timings) speed and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..targets.errors import CrushproofError
from ..targets.model import device_of
from ..targets.onnx import OnnxTarget, session_settings
from ..targets.onnx_safety import check_onnx
from .fake_quantize import QuantizedLayer
from .layers import WEIGHTED
from .payload import decode

# Picojoule per operation at 45 nm: M. Horowitz, "Computing's energy problem", ISSCC 2014.
FLOAT32_MULTIPLY_ADD = 3.7 + 0.9
INT8_MULTIPLY_INT32_ADD = 0.2 + 0.1
DRAM_PER_32_BITS = 640.0

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
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
session.run(None, {session.get_inputs()[0].name: numpy.zeros(json.loads(sys.argv[3]), numpy.float32)})
try:
    lines = open("/proc/self/status").read().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
except OSError:
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def footprint(module: nn.Module, onnx: bytes, payload: bytes, shape: tuple[int, ...]) -> dict[str, int | float]:
    """What follows from the bytes and the structure, the same on every machine.

    `disk_bytes` of the ONNX file; `payload_bytes`, after checking that the payload decodes to the module's values;
    `parameters` and `nonzero_parameters`: weights and biases (not scales, not a batch norm's statistics); `macs`:
    multiply-accumulates for one record in convolutions and linear layers, counted densely (scattered zeros save nothing
    on ordinary hardware); `energy_uj_modelled`: see `energy`.

    Args:
        module: the compressed module that `onnx` and `payload` were made from.
        shape: of one record.
    """
    state, decoded = module.state_dict(), decode(payload, module)
    wrong = [name for name, value in state.items() if not torch.equal(decoded[name], value.cpu())]
    if wrong:
        raise CrushproofError(f"The packed payload does not decode to the model's own values of {', '.join(wrong)}.")
    values = parameters(module)
    operations = layer_macs(module, shape)
    return {
        "disk_bytes": len(onnx),
        "payload_bytes": len(payload),
        "parameters": sum(value.numel() for value in values),
        "nonzero_parameters": sum(int(torch.count_nonzero(value)) for value in values),
        "macs": sum(macs for macs, _ in operations),
        "energy_uj_modelled": energy(operations, len(payload)),
    }


def parameters(module: nn.Module) -> list[Tensor]:
    """Weights and biases: the module's parameters, and the integers that stand for them in quantised layers."""
    values = [parameter.detach() for parameter in module.parameters()]
    for layer in module.modules():
        if isinstance(layer, QuantizedLayer):
            values.append(layer.codes)
            values += [layer.bias] if layer.bias is not None else []
    return values


def layer_macs(module: nn.Module, shape: tuple[int, ...]) -> list[tuple[int, bool]]:
    """(multiply-accumulates for one record, whether both factors are integers of at most 8 bits) per call of a layer.

    A weight that is used without calling its layer (attention's fast path) is not seen.
    """
    operations: list[tuple[int, bool]] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.codes if isinstance(layer, QuantizedLayer) else layer.weight
        assert isinstance(weight, Tensor)
        integer = isinstance(layer, QuantizedLayer) and layer.quantized_input
        # Each output value takes one multiplication per weight of its own channel; transposed: each input value.
        values = inputs[0] if isinstance(layer, TRANSPOSED) else output
        operations.append((values.numel() * weight[0].numel(), integer))

    counted = (*WEIGHTED, QuantizedLayer)
    handles = [layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, counted)]
    training = module.training
    try:
        module.eval()
        with torch.no_grad():
            module(torch.zeros(1, *shape, device=device_of(module)))
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    return operations


def energy(operations: Sequence[tuple[int, bool]], payload_size: int) -> float:
    """Modelled microjoule for one record, from operation counts; not a measurement.

    A multiply-accumulate costs a float32 multiplication and addition, or, where weights and activations are integers,
    an int8 multiplication and an int32 addition (Horowitz 2014, 45 nm); the packed weights are read once from DRAM.
    Activations' traffic, normalisation, activation functions and leakage are left out; weight-only quantisation
    computes in float32, and fewer than 8 bits save on reading only.
    """
    cost = {True: INT8_MULTIPLY_INT32_ADD, False: FLOAT32_MULTIPLY_ADD}
    arithmetic = sum(macs * cost[integer] for macs, integer in operations)
    return round((arithmetic + payload_size / 4 * DRAM_PER_32_BITS) / 1e6, 6)


def latency(
    model: bytes, shape: tuple[int, ...], batches: Sequence[int] = (1, 256), threads: int = 1, seconds: float = 0.2
) -> list[dict[str, int | float]]:
    """Milliseconds per call in ONNX Runtime: batch, threads, p50, p95. A timing: never decides anything.

    Args:
        model: the ONNX file.
        batches: records per call.
        seconds: spent per batch size, on at most 300 calls. To compare models fairly, call this for each in turn.
    """
    target = OnnxTarget(model, threads)
    rows: list[dict[str, int | float]] = []
    for batch in batches:
        x = torch.zeros(batch, *shape)
        for _ in range(3):
            target.logits(x)
        times: list[float] = []
        while len(times) < 300 and (len(times) < 5 or sum(times) < seconds):
            start = time.perf_counter()
            target.logits(x)
            times.append(time.perf_counter() - start)
        p50, p95 = (float(value) for value in np.percentile(times, [50, 95]) * 1e3)
        rows.append({"batch": batch, "threads": threads, "p50": p50, "p95": p95})
    return rows


def peak_resident_bytes(model: bytes, shape: tuple[int, ...]) -> int:
    """The largest resident memory of a fresh process that loads numpy and ONNX Runtime and answers 256 records."""
    settings, records = json.dumps(session_settings(check_onnx(model))), json.dumps([SERVED, *shape])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        command = [sys.executable, "-P", "-c", _SERVE, str(path), settings, records]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise CrushproofError(f"The process that measures a candidate's memory ended early: {reason[0]}")
    return int(done.stdout.split()[-1])
