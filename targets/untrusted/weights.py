"""Weights from files that may come from a stranger: safetensors, or a `.pt` state dict read by a limited child process.

A file is what its content says, never what its suffix says. safetensors is checked by a strict reader of our own and
then read by the library: both must accept it. Nothing is ever unpickled in this process.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import InputError, UnsafeInput, nearest_hint, quoted
from ..temporary import scratch
from .files import FETCH_HINT, is_pickle, name_fault, open_archive, ordinary_file
from .sandbox import run_limited

ROOM = 64 * 2**20  # bytes a weights file may always have; beyond it, as many times the model's own size:
TIMES = 8  # float64 instead of float32, and an optimiser's state beside it
HEADER = 4 * 2**20  # bytes of a safetensors header: 40,000 tensors
SECONDS, SECONDS_BY_BYTE = 5, 2**-22  # of processor time for a `.pt`: at least, and for each of its bytes
SAFE_COPY = (
    "Whoever trusts the file can save its weights anew: `safetensors.torch.save_file(model.state_dict(), "
    '"weights.safetensors")`.'
)
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Copies the weights in a file into `module`, on whatever device it is; on any error `module` stays as it was.

    Accepts safetensors, and torch state dicts (`torch.save(model.state_dict(), ...)`, torch >= 1.6) from any device.
    Values are cast to the module's floating type; names and shapes must be the module's own.

    Raises:
        InputError: no such file, not a file of weights, names or shapes that do not fit, NaN or infinite weights.
        UnsafeInput: a file that is damaged or crafted, or that holds more than tensors (a whole pickled model,
            TorchScript, `.pt2`). Nothing in it was executed.
    """
    own = module.state_dict()
    size = sum(tensor.numel() * tensor.element_size() for tensor in own.values() if isinstance(tensor, Tensor))
    limit = max(ROOM, TIMES * size)
    path = ordinary_file(path, "the weights", limit)
    where = quoted(path.name)
    state = read_weights(path.read_bytes(), where, limit=limit)
    ready = _fitted(state, own, where)
    try:
        module.load_state_dict(ready, strict=True)
    except RuntimeError as error:
        raise InputError(f"The weights in {where} do not fit the model: {' '.join(str(error).split())[:300]}") from None


def read_weights(content: bytes, where: str, *, limit: int) -> dict[str, Tensor]:
    """The named tensors of a weights file, on the CPU.

    Args:
        content: the whole file.
        where: its name as shown in messages.
        limit: the most bytes its tensors may take.
    """
    head = content[:16]
    if head[:4] == b"PK\x03\x04":
        return _read_torch(content, where, limit)
    if is_pickle(head) or b".ustar" in content[250:270] or content[257:262] == b"ustar":
        raise UnsafeInput(
            f"The weights {where} are a bare pickle or an archive of torch before 1.6; reading such a file can run any "
            f"program, so it was not read. {SAFE_COPY}"
        )
    if head[8:9] == b"{":
        return read_safetensors(content, where)
    sorts = {b"\x93NUMPY": "a numpy array", b"\x89HDF": "HDF5 (Keras)", b"GGUF": "GGUF", b"<": "HTML or XML text"}
    sort = next((word for magic, word in sorts.items() if head.startswith(magic)), "of an unknown format")
    raise InputError(
        f"The weights {where} are {sort}. safetensors and torch state dicts are read: save the model with "
        '`safetensors.torch.save_file(model.state_dict(), "weights.safetensors")`.'
    )


def read_safetensors(content: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, after a check that leaves no byte unaccounted for.

    Raises:
        UnsafeInput: anything but a well-formed header whose tensors tile the rest of the file exactly.
    """
    fault = _safetensors_fault(content)
    if fault is None:
        try:
            return dict(safetensors.torch.load(content))
        except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
            fault = " ".join(str(error).split())[:200]
    raise UnsafeInput(f"The weights {where} are not sound safetensors: {fault}. {FETCH_HINT}")


def _safetensors_fault(content: bytes) -> str | None:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 10 or length > min(HEADER, len(content) - 8):
        return f"a header of {length:,} bytes is declared in a file of {len(content):,}, so it is cut short or crafted"
    text = content[8 : 8 + length]
    if not text.startswith(b"{"):
        return "the header does not start with '{'"
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_number)
    except RecursionError:
        return "the header is nested too deeply"
    except ValueError as error:  # JSON, UTF-8, duplicate keys and numbers of thousands of digits
        return f"the header cannot be read ({str(error)[:200]})"
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        return "its metadata is not a mapping from text to text"
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if fault := name_fault(name):
            return f"the tensor name {quoted(name)} {fault}"
        if fault := _entry_fault(entry):
            return f"tensor {quoted(name)} {fault}"
        spans.append((*entry["data_offsets"], name))
    end = 0
    for begin, stop, name in sorted(spans):
        if begin != end:
            return f"tensor {quoted(name)} overlaps another or leaves a gap"
        end = stop
    if end != len(content) - 8 - length:
        return f"its tensors take {end:,} bytes and {len(content) - 8 - length:,} follow the header"
    return None


def _entry_fault(entry: Any) -> str | None:
    """What is wrong with one tensor's header entry: `{"dtype": ..., "shape": [...], "data_offsets": [begin, end]}`."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "is not described by exactly dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        return f"has the unknown or unsupported dtype {quoted(dtype, 20)}; known are {', '.join(ITEM_BYTES)}"
    if not _sizes(shape) or len(shape) > 16 or max(shape, default=0) >= 2**48:
        return "has no valid shape"
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return "has no valid offsets"
    if math.prod(shape) * ITEM_BYTES[dtype] != offsets[1] - offsets[0]:
        return f"has a shape and dtype of another size than its {offsets[1] - offsets[0]:,} bytes"
    return None


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a key appears twice")
    return mapping


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not a size")


def _read_torch(content: bytes, where: str, limit: int) -> dict[str, Tensor]:
    """A zip archive of torch: looked at here, read by a child with limits, handed over as safetensors."""
    with open_archive(io.BytesIO(content), f"The weights file {where}", limit=limit) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    inner = {name.partition("/")[2] for name in names}
    if any(name.endswith(".npy") for name in names):
        raise InputError(f"The weights {where} are an npz archive of numpy arrays. {SAFE_COPY}")
    kinds = {
        "TorchScript, which is a program": "constants.pkl" in inner or any(name.startswith("code/") for name in inner),
        "an exported program (.pt2)": bool({"archive_format", "archive_version"} & inner),
        "not an archive written by torch.save": "data.pkl" not in inner
        or len({n.partition("/")[0] for n in names}) > 1,
        "an archive somebody packed anew, compressed": any(entry.compress_type for entry in entries),
    }
    for kind, found in kinds.items():
        if found:
            raise UnsafeInput(f"The weights {where} are {kind}; only weights are read, so it was refused. {SAFE_COPY}")
    with scratch() as folder:
        source, destination = folder / "weights.pt", folder / "weights.safetensors"
        source.write_bytes(content)
        script = Path(__file__).with_name("_read_torch.py")
        answer = run_limited(
            script,
            [str(source), str(destination), str(limit)],
            what=f"the weights {where}",
            seconds=SECONDS + int(SECONDS_BY_BYTE * len(content)),
            memory=3 * limit + 512 * 2**20,  # the file, the tensors, their clones; torch's own working memory
        )
        fault = json.loads(answer)
        if fault:
            raise _refusal(fault["fault"], [str(item) for item in fault["detail"]], where)
        return read_safetensors(destination.read_bytes(), where)


def _refusal(fault: str, detail: list[str], where: str) -> InputError | UnsafeInput:
    listed = ", ".join(quoted(item) for item in detail)
    if fault == "globals":
        asks = f" (it asks for {listed})" if listed else ""
        return UnsafeInput(
            f"The weights {where} hold more than tensors{asks}: a whole pickled model, or a program. It was refused "
            f"and nothing in it was executed. {SAFE_COPY}"
        )
    if fault == "wrapped":
        return InputError(
            f"The weights {where} are not one flat mapping from names to tensors, but hold {listed}, as a training "
            "checkpoint does. Save only the model's part, for example `safetensors.torch.save_file(checkpoint["
            '"state_dict"], "weights.safetensors")`.'
        )
    if fault == "tensor":
        return InputError(
            f"The weights {where} hold a tensor that is not plain and dense ({listed}), such as a quantised or sparse "
            "one. Save the float model's weights."
        )
    if fault == "large":
        return UnsafeInput(f"The weights {where} describe tensors far larger than the model's own. {SAFE_COPY}")
    return UnsafeInput(f"The weights {where} are damaged or crafted ({listed}). {FETCH_HINT}")


def _fitted(state: dict[str, Tensor], own: dict[str, Any], where: str) -> dict[str, Tensor]:
    """`state` once its names, shapes, sorts and values fit `own`, the module's state dict; tied weights filled in."""
    odd = [name for name, value in own.items() if not isinstance(value, Tensor)]
    if odd:
        raise InputError(
            f"The model keeps something else than tensors in its state dict ({_listed(odd)}), which a file of weights "
            "cannot hold. Remove get_extra_state from the model."
        )
    state = {**_tied(state, own), **state}
    if state.keys() != own.keys():
        raise InputError(_name_fault(list(state), list(own), where))
    shapes = [
        f"{quoted(name)} is {list(state[name].shape)} in the file and {list(value.shape)} in the model"
        for name, value in own.items()
        if state[name].shape != value.shape
    ]
    if shapes:
        raise InputError(
            f"The weights {where} have other shapes than the model: {'; '.join(shapes[:4])}"
            f"{f'; and {len(shapes) - 4} more' if len(shapes) > 4 else ''}. Build the model with the parameters it was "
            "trained with (layer sizes, number of classes)."
        )
    ready = {}
    for name, value in own.items():
        given = state[name]
        if given.is_floating_point() != value.is_floating_point():
            raise InputError(
                f"Tensor {quoted(name)} of {where} is {_word(given)} and the model's is {_word(value)}. Save the "
                "weights of the float model."
            )
        ready[name] = given.to(value.dtype)
        broken = int((~torch.isfinite(ready[name])).sum())
        if broken:
            raise InputError(
                f"Tensor {quoted(name)} of {where} holds {broken} NaN or infinite values of {given.numel()}. The "
                "training diverged or the file is damaged: take an earlier checkpoint."
            )
    return ready


def _tied(state: dict[str, Tensor], own: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors the file leaves out because the module holds them under another name as well (tied weights)."""
    place = {
        name: (value.data_ptr(), value.shape, value.stride())
        for name, value in own.items()
        if value.numel() and value.data_ptr()
    }
    present = {place[name]: state[name] for name in state if name in place}
    return {name: present[place[name]] for name in own if name not in state and place.get(name) in present}


def _name_fault(given: list[str], own: list[str], where: str) -> str:
    missing, unexpected = [n for n in own if n not in given], [n for n in given if n not in own]
    start = f"The weights {where} do not belong to this model: "
    for prefix, origin in {"module.": "nn.DataParallel", "_orig_mod.": "torch.compile"}.items():
        if given and all(name.startswith(prefix) for name in given):
            return (
                f"{start}every name starts with {prefix!r}, as {origin} writes it. Save the inner model instead: "
                f"`safetensors.torch.save_file(model.{prefix}state_dict(), ...)`."
            )
    parts = []
    if missing:
        parts.append(f"{len(missing)} of its {len(own)} tensors are missing ({_listed(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} are not the model's ({_listed(unexpected)})")
    hint = nearest_hint(unexpected[0], missing) if missing and unexpected else ""
    return f"{start}{' and '.join(parts)}.{hint} Name the architecture the weights were trained with."


def _listed(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return ", ".join(quoted(name) for name in names[:most]) + (", ..." if len(names) > most else "")


def _word(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
