"""Weights: safetensors whose header lies, and files of torch that hold more than tensors."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hostile_case import UNSAFE, USAGE, Case
from hostile_data import Canary, archive
from safetensors.torch import save

from crushproof.targets.untrusted.weights import load_weights

Header = dict[str, Any]
EITHER = frozenset({USAGE, UNSAFE})


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


@cache
def good() -> tuple[Header, bytes]:
    """The header and the values of the network's own file."""
    content = save(network().state_dict())
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def written(header: Header | str | bytes, values: bytes | None = None, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return (
        (len(text) if length is None else length).to_bytes(8, "little")
        + text
        + (good()[1] if values is None else values)
    )


def changed(name: str, key: str, value: Any) -> bytes:
    header, _ = good()
    return written({**header, name: {**header[name], key: value}})


def tensors(**more: torch.Tensor) -> bytes:
    return save({**network().state_dict(), **more})


def renamed(name: str) -> bytes:
    header, _ = good()
    return written({(name if key == "0.weight" else key): entry for key, entry in header.items()})


def headers() -> dict[str, tuple[bytes, int | frozenset[int]]]:
    header, values = good()
    whole = written(header)
    text = json.dumps(header)
    spans = header["0.weight"]["data_offsets"]
    found: dict[str, tuple[bytes, int | frozenset[int]]] = {
        "cut off": (whole[:-1], UNSAFE),
        "cut in the header": (whole[:50], UNSAFE),
        "8 bytes": (whole[:8], USAGE),
        "a header of 2^62 bytes": (written(header, length=2**62), UNSAFE),
        "a header of 2^64 - 1 bytes": (written(header, length=2**64 - 1), UNSAFE),
        "a header of nothing": (written(header, length=0), UNSAFE),
        "a header a byte too long": (written(header, length=len(text) + 1), UNSAFE),
        "a header a byte too short": (written(header, length=len(text) - 1), UNSAFE),
        "bytes behind it": (whole + b"x", UNSAFE),
        "a header that is a list": (written("[1]"), EITHER),
        "a header that is a number": (written("{1}"), UNSAFE),
        "a header that is no JSON": (written("{" + "x" * 20), UNSAFE),
        "a header that is no text": (written(b'{"\xff": 1}'), UNSAFE),
        "a header nested deep": (written('{"a":' * 50_000), UNSAFE),
        "a number of 5,000 digits": (written('{"a": ' + "9" * 5000 + "}"), UNSAFE),
        "NaN": (written('{"a": NaN}'), UNSAFE),
        "a name twice": (written('{"a": 1, "a": 2}'), UNSAFE),
        "nothing in it": (written("{}", b""), EITHER),
        "no tensor but values": (written("{}"), UNSAFE),
        "metadata that are numbers": (written({**header, "__metadata__": {"a": 1}}), UNSAFE),
        "metadata that are a list": (written({**header, "__metadata__": []}), UNSAFE),
        "an entry that is a list": (written({**header, "0.weight": []}), UNSAFE),
        "an entry that is nothing": (written({**header, "0.weight": None}), UNSAFE),
        "an entry with more": (changed("0.weight", "hook", "os.system"), UNSAFE),
        "offsets on top of another": (changed("0.bias", "data_offsets", spans), UNSAFE),
        "half of the values": (written(header, values[: len(values) // 2]), UNSAFE),
        "a pickle behind the header": (written(header, pickle.dumps(Canary())), UNSAFE),
    }
    wrong: dict[str, list[Any]] = {
        "dtype": [None, 1, [], "F31", "object", "f32", "F8_E5M2", "C64", "F64", "I8", "x" * 9000],
        "shape": [None, 1, {}, [-1], [1.5], ["4"], [True], [[3]], [2**63], [2**32, 2**32], [0] * 17, [3, 5], [2**48]],
        "data_offsets": [None, 1, [], [0], [0, 1, 2], [8, 0], [-8, 40], ["0", "48"], [0, 2**63], [0.0, 48.0], [0, 47]],
    }
    for key, odd in wrong.items():
        found |= {f"{key}: {str(one)[:30]}": (changed("0.weight", key, one), UNSAFE) for one in odd}
    for name in ("", "../x", "/etc/x", "a\\b", "a\0b", "\x1b[31m", "\ud800", "n" * 2000):
        found[f"a tensor named: {name[:10]!r}"] = (renamed(name), UNSAFE)
    for name in ("</script><script>", "__class__", "0.wieght", "module.0.weight", "\u202etxt", "_hidden", "$x$"):
        found[f"a tensor named: {name[:10]!r}"] = (renamed(name), USAGE)
    return found


def states() -> dict[str, tuple[bytes, int | frozenset[int]]]:
    own = network().state_dict()
    weight, bias = own["0.weight"], own["0.bias"]
    without = {name: value for name, value in own.items() if name != "0.bias"}
    return {
        "NaN": (tensors(**{"0.bias": bias * torch.nan}), USAGE),
        "infinity": (tensors(**{"0.bias": bias * torch.inf}), USAGE),
        "beyond float32": (tensors(**{"0.bias": torch.full((3,), 1e300, dtype=torch.float64)}), USAGE),
        "whole numbers": (tensors(**{"0.bias": torch.zeros(3, dtype=torch.int64)}), USAGE),
        "another shape": (tensors(**{"0.weight": weight.T.contiguous()}), USAGE),
        "one more": (tensors(more=bias), USAGE),
        "one less": (save(without), USAGE),
        "no weights": (save({}), EITHER),
        "another network's": (save({"a": bias}), USAGE),
        "a step that is a fraction": (tensors(**{"1.num_batches_tracked": torch.tensor(0.5)}), USAGE),
    }


def torch_file(value: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **how)
    return stream.getvalue()


def others() -> dict[str, tuple[bytes, int | frozenset[int]]]:
    """What is refused before a process of its own would read it."""
    own = torch_file(network().state_dict())
    with zipfile.ZipFile(io.BytesIO(own)) as packed:
        parts = {entry.filename: packed.read(entry) for entry in packed.infolist()}
    root = next(iter(parts)).partition("/")[0]
    return {
        "a pickle": (pickle.dumps(Canary()), UNSAFE),
        "a pickle of the first sort": (b"cos\nmkdir\n(S'canary'\ntR.", USAGE),
        "a file of an old torch": (torch_file(network().state_dict(), _use_new_zipfile_serialization=False), UNSAFE),
        "a tar": (b"weights".ljust(257, b"\0") + b"ustar\0" + bytes(300), UNSAFE),
        "TorchScript": (archive({**parts, f"{root}/constants.pkl": b""}), UNSAFE),
        "TorchScript's code": (archive({**parts, f"{root}/code/a.py": b""}), UNSAFE),
        "an exported program": (archive({**parts, f"{root}/archive_format": b"pt2"}), UNSAFE),
        "no pickle in it": (archive({f"{root}/x": b""}), UNSAFE),
        "two roots": (archive({**parts, "other/data.pkl": b""}), UNSAFE),
        "packed anew": (archive(parts, zipfile.ZIP_DEFLATED), UNSAFE),
        "a way out": (archive({**parts, "../canary": b""}), UNSAFE),
        "cut off": (own[:-50], UNSAFE),
        "an npz": (archive({"a.npy": b""}), USAGE),
        "a comment": (own[:-2] + b"\x01\x00x", UNSAFE),
        "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(50), USAGE),
        "GGUF": (b"GGUF" + bytes(50), USAGE),
        "one array": (b"\x93NUMPY\x01\x00" + bytes(50), USAGE),
        "HTML": (b"<html>not found</html>", USAGE),
        "text": (b"0.1 0.2 0.3", USAGE),
    }


def weights(content: bytes) -> Callable[[Path], Callable[[], object]]:
    def call(folder: Path) -> Callable[[], object]:
        path = folder / "w.safetensors"
        path.write_bytes(content)
        return lambda: load_weights(network(), path)

    return call


def cases() -> Iterator[Case]:
    for sort in (headers(), states(), others()):
        for name, (content, code) in sort.items():
            yield Case(name, weights(content), code)
