"""Asks an ONNX model once, with zeros, in a process of its own that has limits: what any later call will take.

Run by its path (_read_onnx.py): it imports nothing of this package. _check_onnx.py let the model pass before, so that
what is computed follows from the shape of the records alone: a process that asks for as many records of that shape at
once needs no more than was needed here.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.numpy_helper

BATCH_BYTES = 2**28  # of the four largest values between operators, for all records of a call together
BATCH_WORK = 2**35  # multiplications of a call: a second or two on one core
ELEMENTWISE = 16  # multiplications that a value costs which is only copied or mapped
LARGEST, LARGEST_BY_BYTE = 2**24, 1  # values of a call's input: at least, and for each byte of the file
GUESS = 32  # for a size that neither the file nor the data tell
TOGETHER = 16  # records that a pass with gradients takes at least (model.FEW)
KEPT, KEPT_BY_BYTE = (
    2**25,
    64,
)  # bytes of all values between operators, of one record: at least, and for each of the file
MADE, MADE_BY_BYTE = 2**24, 16  # values that are computed from constants alone: at least, and for each byte of the file
VIEWS = ("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
DIVISIONS = ("Div", "Mod")
NO_MEMORY = re.compile(r"bad_alloc|[Ff]ailed to allocate|out of memory|[Ff]ailed to reserve|not enough memory")
SMALLER = "If the model is yours, export it with fewer or smaller values between its operators."

Json = dict[str, Any]


class Refused(Exception):
    """The runtime does not take the model, or does not answer. `new`: because it is too new for it."""

    def __init__(self, words: str, *, new: bool = False) -> None:
        super().__init__(words)
        self.new = new


class Large(Exception):
    """What the model computes is out of proportion to its file: a sentence for the user."""


def settings(model: onnx.ModelProto) -> dict[str, str]:
    """ONNX Runtime's settings for a model: the same values of the file's arithmetic, sooner.

    Where only weights are quantised there is no integer arithmetic to keep, so they are unpacked once, on loading,
    instead of on every call (measured: four times faster). Weights in groups have no integer kernel either, whatever
    the activations are (measured: 1.7 times faster unpacked).
    """
    nodes = model.graph.node
    blocked = any(one.name == "block_size" and one.i for node in nodes for one in node.attribute)
    if not blocked and any(node.op_type == "QuantizeLinear" for node in nodes):
        # A weight-only product among them multiplies in float32, as the file says, not with activations in 8 bits.
        return {"session.qdq_matmulnbits_accuracy_level": "1"}
    return {"session.disable_quant_qdq": "1"}


def established(
    model: onnx.ModelProto,
    usable: bytes,
    ports: Sequence[Json],
    record: Sequence[int],
    folder: Path,
    *,
    batch: int,
    values: int,
    size: int,
) -> Json:
    """What asking the model takes: {"at_once": records of a call, "seconds": CPU seconds of one record}.

    Args:
        usable: the model's bytes as a runtime is given them.
        ports: its inputs, as `_check_onnx.facts` describes them.
        record: the shape of a record of the data; empty: not known.
        folder: for the runtime's own record of a call.
        batch, values: records of a call, and values of its input, at most.
        size: bytes of the file, to which what it takes is in proportion.

    Raises:
        Refused, Large: see there.
        MemoryError: it takes more than this process may.
    """
    free = any(isinstance(size, str) for port in ports for size in port["shape"][1:])
    fixed = next((size for port in ports for size in port["shape"][:1] if isinstance(size, int)), None)
    found = {"at_once": batch, "seconds": 0.0}
    most = LARGEST + LARGEST_BY_BYTE * size
    refused, answered, session = None, False, None
    for shapes in _shapes(ports, record):
        largest = max(math.prod(shape) for shape in shapes)
        if (fixed or 1) * largest > most:
            raise Large(
                f"a call takes an input of {(fixed or 1) * largest:,} values, and a file of {size:,} bytes is "
                f"given at most {most:,}. Export it with a smaller batch or record."
            )
        try:
            first = _zeros(ports, shapes, 1)
        except TypeError:  # strings and the like: no classifier, which is said later
            _session(usable, settings(model))
            return found
        try:
            calls = _watched(model, first, folder / "calls")
            _check_divisions(model.graph, calls)
            largest_four, work = _sizes(model, calls, size, fixed or 1)
            session = session or _session(usable, settings(model))
            single = _answer(session, first)
            fitting = min(batch, values // max(1, largest), BATCH_BYTES // largest_four, BATCH_WORK // work)
            count = 1 if fixed is not None else max(1, fitting)
            seconds = single if count == 1 else _answer(session, _zeros(ports, shapes, count))
        except Refused as error:
            refused = error
            continue
        answered = True
        found["at_once"] = min(found["at_once"], count if fixed is None else batch)
        found["seconds"] = max(found["seconds"], seconds / (fixed or count))
    if refused is not None and not (free or answered):  # sizes that the file leaves open were guessed
        raise refused
    return found


def _zeros(ports: Sequence[Json], shapes: Sequence[list[int]], count: int) -> Json:
    """A call's inputs. Raises TypeError where they are of no type of numpy's."""
    import numpy as np

    return {
        port["name"]: np.zeros(
            [*(size if isinstance(size, int) else count for size in port["shape"][:1]), *shape], kind
        )
        for port, shape in zip(ports, shapes, strict=True)
        for kind in [port["type"]]
    }


def _shapes(ports: Sequence[Json], record: Sequence[int]) -> Iterator[list[list[int]]]:
    """For each input the shape of a record: as the data have it in any layout; what they do not tell is guessed."""
    declared = [port["shape"][1:] for port in ports]
    guess = [[GUESS if isinstance(size, str) else size for size in sizes] for sizes in declared]
    orders = [list(record), [*record[1:], *record[:1]], [math.prod(record)]] if record and len(ports) == 1 else []
    fitting = [
        order
        for order in orders
        if len(order) == len(declared[0])
        and all(isinstance(wanted, str) or wanted == size for wanted, size in zip(declared[0], order, strict=True))
    ]
    yield from ([order] for at, order in enumerate(fitting) if order not in fitting[:at])
    if not fitting:
        yield guess


def _watched(model: onnx.ModelProto, feeds: Json, prefix: Path) -> list[Json]:
    """What runs, in order, when the model is asked as it is written: the events of the runtime's own record."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for at, node in enumerate(copy.graph.node):
        node.name = f"node{at} {node.name}".strip()
        for number, inner in enumerate(_inner_nodes(node)):
            inner.name = f"inner{at}-{number} {inner.name}".strip()
    try:
        session = _session(copy.SerializeToString(), profile=prefix)
        _answer(session, feeds)
        events = json.loads(Path(session.end_profiling()).read_bytes())
    finally:
        for path in prefix.parent.glob(f"{prefix.name}*"):
            path.unlink()
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]


def _session(model: bytes, entries: dict[str, str] | None = None, *, profile: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    if profile is not None:  # as written, node by node
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exception types have no common base
        raise _refusal("ONNX Runtime refuses the model", error) from None


def _answer(session: Any, feeds: Json) -> float:
    """CPU seconds of one call."""
    started = time.thread_time(), time.perf_counter()
    try:
        session.run(None, feeds)
    except Exception as error:  # as above
        raise _refusal("ONNX Runtime does not answer a record of zeros", error) from None
    return min(time.thread_time() - started[0], time.perf_counter() - started[1])  # the first clock may tick coarsely


def _refusal(what: str, error: Exception) -> Exception:
    words = str(error)
    if isinstance(error, MemoryError) or NO_MEMORY.search(words):
        return MemoryError()
    line = next(iter(words.strip().splitlines()), type(error).__name__)[:300].rstrip()
    return Refused(f"{what}: {line}", new=bool(re.search(r"IR version|opset", words)))


def _sizes(model: onnx.ModelProto, calls: Sequence[Json], size: int, batch: int) -> tuple[int, int]:
    """Bytes of the four largest values of a call, and its multiplications, each at least 1.

    Args:
        size: bytes of the file; batch: records of the call.

    Raises:
        Large: see there.
    """
    constant = _constant(model.graph)
    outputs, kept, made, work = [1], 0, 0, 1
    for call in calls:
        known = call["args"]
        results = [dims for one in known.get("output_type_shape", ()) for dims in one.values()]
        given = [dims for one in known.get("input_type_shape", ()) for dims in one.values()]
        elements = sum(map(math.prod, results))
        outputs.append(int(known.get("output_size", 4 * elements)))
        number = re.match(r"node(\d+)[ _]", call["name"])
        if number and int(number[1]) in constant:
            made += elements
        elif known.get("op_name") not in VIEWS:
            kept += 4 * elements
        work += ELEMENTWISE * elements + _products(str(known.get("op_name")), given, results)
    if made > MADE + MADE_BY_BYTE * size:
        raise Large(
            f"it computes {made:,} values from its constants alone, and a file of {size:,} bytes may have "
            f"{MADE + MADE_BY_BYTE * size:,}. If the model is yours, export it with constants folded."
        )
    most = (KEPT + KEPT_BY_BYTE * size) * min(batch, TOGETHER)
    if kept > most:
        raise Large(
            f"the values between its operators take {kept:,} bytes for {batch} record{'s' * (batch > 1)}, and those of "
            f"a file of {size:,} bytes may take {most:,}. {SMALLER}"
        )
    return sum(sorted(outputs)[-4:]), work


def _check_divisions(graph: onnx.GraphProto, calls: Sequence[Json]) -> None:
    """The smallest whole number divided by -1 ends the process on x86, without an exception, and a record may bring
    that about though zeros do not. Divisors that the file holds, none of them 0 or -1, are safe, as in hashed
    categories; so is what follows from shapes alone.

    Raises Large where a record's values decide what whole numbers are divided by.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    weights |= {
        node.output[0]: one.t
        for node in graph.node
        for one in node.attribute
        if node.op_type == "Constant" and one.name == "value"
    }
    drawn = {name for node in graph.node if not node.input and node.op_type != "Constant" for name in node.output}
    varying = {item.name for item in graph.input if item.name not in weights} | drawn
    safe = set()
    for at, node in enumerate(graph.node):
        inner = any(True for _ in _inner_nodes(node))
        varies = inner or bool(varying.intersection(node.input))
        if varies and node.op_type not in ("Shape", "Size"):
            varying.update(name for name in node.output if name)
        if not varies or (node.op_type in DIVISIONS and _divides_safely(weights.get(node.input[1]))):
            safe.add(at)
    for call in calls:
        kinds = {kind for one in call["args"].get("input_type_shape", ()) for kind in one}
        number = re.match(r"node(\d+)[ _]", call["name"])
        if (
            call["args"].get("op_name") in DIVISIONS
            and any("int" in kind for kind in kinds)
            and not (number and int(number[1]) in safe)
        ):
            raise Large(
                f"a record's values decide which whole numbers its operator {call['args']['op_name']} divides, which "
                "can end the process that asks it. If the model is yours, divide by a constant, or in floats."
            )


def _divides_safely(divisor: onnx.TensorProto | None) -> bool:
    """Whether these are numbers that the file holds, and none of them is 0 or -1."""
    if divisor is None:
        return False
    numbers = onnx.numpy_helper.to_array(divisor)
    return not ((numbers == 0) | (numbers == -1)).any()


def _inner_nodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """All nodes of the graphs within a node."""
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
            for inner in graph.node:
                yield inner
                yield from _inner_nodes(inner)


def _constant(graph: onnx.GraphProto) -> set[int]:
    """The nodes that depend on no input of the model."""
    weights = {tensor.name for tensor in graph.initializer} | {one.values.name for one in graph.sparse_initializer}
    varying = {item.name for item in graph.input if item.name not in weights}
    found = set()
    for at, node in enumerate(graph.node):
        inner = any(True for _ in _inner_nodes(node))  # which may read what is outside
        if inner or varying.intersection(node.input):
            varying.update(name for name in node.output if name)
        else:
            found.add(at)
    return found


def _products(operator: str, given: Sequence[list[int]], results: Sequence[list[int]]) -> int:
    """Multiplications of a layer: every output's elements times what each is a sum over."""
    if not given or not results or not given[0]:
        return 0
    elements = math.prod(results[0])
    if "ConvTranspose" in operator:
        return math.prod(given[0]) * math.prod(given[1][1:])
    if "Conv" in operator:
        weight = next((dims for dims in given[1:] if len(dims) == len(results[0]) > 2), [])
        return elements * math.prod(weight[1:])
    if "Gemm" in operator or "MatMul" in operator or "Attention" in operator or operator == "Einsum":
        return elements * max(given[0])  # of a transposed factor it is not the last
    if operator in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"):
        return math.prod(given[0][:2]) * sum(math.prod(dims) for dims in given[1:3])
    return 0
