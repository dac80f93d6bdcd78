"""How fast candidates answer and how much memory that takes: measured on this machine, so they decide nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ...targets.errors import CrushproofError
from ...targets.model import Target
from ...targets.runtimes.onnx import OnnxTarget
from ...targets.temporary import scratch
from ...targets.untrusted._try_onnx import settings as settings_of
from ...targets.untrusted.model_file import CheckedOnnx, check_onnx

SERVED = 256  # records that a fresh process answers while its memory is watched, at most
LARGEST = 2**23  # values of a call: large records come fewer at a time, or the measurement would take gigabytes
LONG = 2.0  # seconds in a model's calls after which no more are needed, however few they were

# A fresh process that serves a model. VmHWM and not ru_maxrss: the latter starts at the parent's peak.
_SERVE = """
import ctypes, json, sys, numpy, onnxruntime
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # it dies with its parent
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

Timed = bytes | Callable[[], Target]


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
        batches: records per call; of large records those that hold at most `LARGEST` values, and one alone.
        seconds: spent per model and batch size: at least 5 calls (fewer where they take `LONG`), at most 300.

    Returns:
        By model, a row per batch size: batch, threads, p50, p95 (milliseconds per call), records_per_second.
    """
    targets = {
        name: OnnxTarget(model, threads, together=True) if isinstance(model, bytes) else model()
        for name, model in models.items()
    }
    rows: dict[str, list[dict[str, int | float]]] = {name: [] for name in models}
    for batch in batches:
        if batch > fitting(shape):
            continue
        x = torch.zeros(batch, *shape)
        times: dict[str, list[float]] = {name: [] for name in models}
        for target in targets.values():
            start = time.perf_counter()
            for _ in range(3):
                if time.perf_counter() - start < LONG:
                    target.logits(x)
        while waiting := [
            name
            for name, spent in times.items()
            if (len(spent) < 5 and sum(spent) < LONG) or (sum(spent) < seconds and len(spent) < 300)
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


def fitting(shape: tuple[int, ...]) -> int:
    """How many records of this shape a call may hold, at least one."""
    return max(1, LARGEST // max(1, math.prod(shape)))


def peak_resident_bytes(model: CheckedOnnx | bytes, shape: tuple[int, ...]) -> int:
    """The largest resident memory of a fresh process that loads numpy and ONNX Runtime and answers 256 records.

    A file with a fixed batch answers one batch of that size; one that takes fewer at a time, as many as it takes; of
    large records (`fitting`) there are fewer.
    """
    checked = check_onnx(model)
    entry = checked.inputs[0]
    batch = entry.shape[0] if isinstance(entry.shape[0], int) else min(SERVED, fitting(shape), checked.facts.at_once)
    settings, records = json.dumps(settings_of(checked.model)), json.dumps([batch, *shape])
    with scratch() as folder:
        path = folder / "model.onnx"
        path.write_bytes(checked.usable)
        command = [sys.executable, "-P", "-c", _SERVE, str(path), settings, records, entry.type]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise CrushproofError(f"The process that measures a candidate's memory ended early: {reason[0]}")
    return int(done.stdout.split()[-1])
