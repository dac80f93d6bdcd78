"""Looks into an ONNX file that may come from a stranger, and tries it, in a process of its own (see sandbox.py).

Whatever can fail or take long in another process is done here first, under limits: parsing, checks, inference of
shapes, loading, and one call as an audit makes it (_try_onnx.py).

Run by its path: it imports nothing of this package.
"""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import numpy  # noqa: F401  # what is loaded before the limits are set counts towards none of them
import onnx
import onnxruntime

# Its neighbours by path, because in the process of its own none of them belongs to a package.
_TRY = runpy.run_path(str(Path(__file__).with_name("_try_onnx.py")))
_CHECKS = runpy.run_path(str(Path(__file__).with_name("_check_onnx.py")))
Fault, NoOnnx, TooNew = _CHECKS["Fault"], _CHECKS["NoOnnx"], _CHECKS["TooNew"]
check_size, first_line, older_hint = (_CHECKS[name] for name in ("check_size", "first_line", "older_hint"))


def _check_shapes(model: onnx.ModelProto, source: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    for item in (*inferred.graph.value_info, *inferred.graph.output):
        known = [size.dim_value for size in item.type.tensor_type.shape.dim if size.HasField("dim_value")]
        check_size((max(size, 0) for size in known), "value", item.name)
    if source is not model:
        _check_quantisers(model, list(filter(_CHECKS["_QONNX"]["known"], source.graph.node)))


def _check_quantisers(model: onnx.ModelProto, quantisers: list[onnx.NodeProto]) -> None:
    """No scale makes more of a value than it was, whatever the file says of its shapes."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for item in bare.graph.output:
        item.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    shapes = {
        item.name: [size.dim_value for size in item.type.tensor_type.shape.dim]  # 0: free
        for item in (*graph.value_info, *graph.output, *graph.input)
        if item.type.tensor_type.HasField("shape")
    }
    for node in quantisers:
        given, made = shapes.get(node.input[0]), shapes.get(node.output[0])
        if given is None or made is None:
            continue
        if len(given) != len(made) or any(a and b and a != b for a, b in zip(given, made, strict=True)):
            raise Fault(
                f"The ONNX model was not run: its quantiser {node.op_type} of QONNX has a scale or a zero point that "
                f"makes {made[:8]} of values of shape {given[:8]}. {_CHECKS['_QONNX']['HINT']}"
            )


def main(arguments: list[str]) -> str:
    """Arguments: the file, most records of a call, most values of its input, the shape of a record as JSON ([]: not
    known).

    Returns JSON: {"facts", "seconds"}, or {"fault"} with {"sort"}: "" (refused), "alien" (not ONNX at all), "new".
    """
    path, batch, values, record = arguments
    try:
        data = Path(path).read_bytes()
        model, usable, zeroed, source = _CHECKS["parse"](data)
        known = _CHECKS["facts"](source, zeroed)
        _check_shapes(model, source)
        limits = {"batch": int(batch), "values": int(values), "size": max(len(data), len(usable))}
        took = _TRY["established"](model, usable, known["inputs"], json.loads(record), Path(path).parent, **limits)
    except Fault as fault:
        sort = "alien" if isinstance(fault, NoOnnx) else "new" if isinstance(fault, TooNew) else ""
        return json.dumps({"fault": str(fault), "sort": sort})
    except _TRY["Refused"] as error:
        if error.new:
            words = f"The ONNX model is newer than the installed ONNX Runtime {onnxruntime.__version__}."
            return json.dumps({"fault": f"{words} It was not run. {older_hint()}", "sort": "new"})
        return json.dumps({"fault": f"{first_line(error)} It was refused."})
    except _TRY["Large"] as error:
        return json.dumps({"fault": f"The ONNX model was refused: {error}"})
    except MemoryError:
        raise
    except (RecursionError, ValueError, TypeError, RuntimeError) as error:  # from onnx, about a model it did not expect
        if re.search(r"bad_alloc|allocate", str(error)):
            raise MemoryError from None
        return json.dumps({"fault": f"The ONNX model is malformed: {first_line(error)} It was refused."})
    return json.dumps({"facts": {**known, "at_once": took["at_once"]}, "seconds": took["seconds"]})
