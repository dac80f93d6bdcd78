"""Looks into an ONNX file that may come from a stranger, and tries it, in a process of its own (see sandbox.py).

Run by its path: it imports nothing of this package.
"""

from __future__ import annotations

import json
import math
import re
import runpy
from pathlib import Path
from typing import Any

import onnx

# Its neighbour by path, because in the process of its own neither of them belongs to a package.
_CHECKS = runpy.run_path(str(Path(__file__).with_name("_check_onnx.py")))
Fault, NoOnnx, TooNew = _CHECKS["Fault"], _CHECKS["NoOnnx"], _CHECKS["TooNew"]
ELEMENTS, check_size, quoted, first_line, older_hint = (
    _CHECKS[name] for name in ("ELEMENTS", "check_size", "quoted", "first_line", "older_hint")
)


def _check_shapes(model: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    for item in (*inferred.graph.value_info, *inferred.graph.output):
        known = [size.dim_value for size in item.type.tensor_type.shape.dim if size.HasField("dim_value")]
        check_size((max(size, 0) for size in known), "value", item.name)


def _try(model: str | bytes, ports: list[dict[str, Any]], largest: int, values: int) -> None:
    """Runs zeros through ONNX Runtime, one record and then as many as a run of the audit has."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exception types have no common base
        raise _refused("ONNX Runtime refuses the model", error) from None
    free = any(isinstance(size, str) for port in ports for size in port["shape"][1:])
    batches = (1, None) if any(isinstance(size, str) for port in ports for size in port["shape"][:1]) else (1,)
    for batch in batches:
        feeds = {}
        for port in ports:
            record = [32 if isinstance(size, str) else size for size in port["shape"][1:]]
            records = batch or max(1, min(largest, values // max(1, math.prod(record))))
            first = [size if isinstance(size, int) else records for size in port["shape"][:1]]
            if math.prod([*first, *record]) > ELEMENTS:
                raise Fault(f"The ONNX model was not run: its input {quoted(port['name'])} has {port['shape']} values.")
            try:
                feeds[port["name"]] = np.zeros([*first, *record], port["type"])
            except TypeError:
                return  # strings and the like: no classifier, which is said later
        try:
            session.run(None, feeds)
        except Exception as error:  # as above
            refused = _refused("ONNX Runtime does not answer a record of zeros", error)
            if not free:  # sizes that the file leaves open were guessed here
                raise refused from None


def _refused(what: str, error: Exception) -> Any:
    words = str(error)
    if isinstance(error, MemoryError) or re.search(r"bad_alloc|[Ff]ailed to allocate|out of memory", words):
        return MemoryError()
    if re.search(r"IR version|opset", words):
        import onnxruntime

        version = onnxruntime.__version__
        return TooNew(
            f"The ONNX model is newer than the installed ONNX Runtime {version}. It was not run. {older_hint()}"
        )
    return Fault(f"{what}: {first_line(error)} It was refused.")


def main(arguments: list[str]) -> str:
    """Arguments: the file, most records of a run, most values of its input.

    Returns JSON: {"facts"}, or {"fault"} with {"sort"}: "" (refused), "alien" (not ONNX at all), "new".
    """
    path, largest, values = arguments
    try:
        data = Path(path).read_bytes()
        model, usable, zeroed = _CHECKS["parse"](data)
        known = _CHECKS["facts"](model, zeroed)
        _check_shapes(model)
        _try(path if usable is data else usable, known["inputs"], int(largest), int(values))
    except Fault as fault:
        sort = "alien" if isinstance(fault, NoOnnx) else "new" if isinstance(fault, TooNew) else ""
        return json.dumps({"fault": str(fault), "sort": sort})
    except MemoryError:
        raise
    except (RecursionError, ValueError, TypeError, RuntimeError) as error:  # from onnx, about a model it did not expect
        if re.search(r"bad_alloc|allocate", str(error)):
            raise MemoryError from None
        return json.dumps({"fault": f"The ONNX model is malformed: {first_line(error)} It was refused."})
    return json.dumps({"facts": known})
