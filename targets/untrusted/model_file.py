"""Model files, ONNX and TFLite: read where they can do no harm, and parsed and checked once.

A file that somebody else made is copied into memory once, and what is looked at is what is run later. A process of its
own, with limits on memory and time, parses it, checks it and runs zeros through it (_read_onnx.py, _read_tflite.py);
only then does this process touch it. Nothing is ever unpickled, and no other file is read.

Whatever takes an ONNX model (runtimes, twin, footprint, lineage) takes a `CheckedOnnx`. Only `check_onnx` makes one, so
that no bytes, our own and those from a store included, reach a runtime unchecked, and none are checked twice in a
process that still has them at hand.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from ..errors import InputError, UnsafeInput, quoted
from ..model import BATCH
from ..recent import Recent
from ..temporary import scratch
from ._state_names import comes_back
from .files import ordinary_file
from .other_formats import refuse_by_name, refuse_other, unpacked
from .sandbox import run_limited

if TYPE_CHECKING:
    import onnx

FILE_BYTES = 2 * 2**30  # what protobuf and flatbuffers can hold
ROOM = 768 * 2**20  # bytes that loading a model and one call may take, besides copies of the file
COPIES = 8  # of the file, while it is parsed, checked, loaded and its weights are unpacked
SECONDS, SECONDS_BY_BYTE = 5, 2**-22  # of processor time for the same: at least, and for each byte of the file
AT_HAND = 256 * 2**20  # bytes of checked models that a process keeps, about: many ask for the same
VALUES = 2**20  # of a run's input: large records come in smaller parts, so that memory stays bounded
LIMIT_HINT = "Nothing else came of it. Refuse the file, or ask whoever made it for one that needs less."

Kind = Literal["onnx", "tflite"]


class Port(BaseModel):
    """An input or output of a model: a free size is its name or "?"; `grid` is scale and zero point of integers;
    `operator` is what makes an output, before reshapes and quantisers ("Softmax" hints at probabilities); `covers` is
    the range of values that the file's own quantiser of an input can tell apart; `steps` is scale and zero point of the
    integers that an output of floats is made from.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    type: str  # numpy's word where numpy has one: "float32", "uint8", ...; "maps": from each class to its score
    shape: tuple[int | str, ...]
    grid: tuple[float, float] | None
    operator: str = ""
    covers: tuple[float, float] | None = None
    steps: tuple[float, float] | None = None


class Facts(BaseModel):
    """What a file says about itself."""

    model_config = ConfigDict(frozen=True)

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: dict[str, int]
    last_operator: str  # of the first output
    quantisation: tuple[str, ...]  # in words; empty for a float model
    opset: int | None  # ONNX: of the standard operators; TFLite: the schema's version
    producer: str
    zeroed: tuple[str, ...] = ()  # further inputs, for the state of a recurrent network: zeros for every record
    at_once: int = BATCH  # records of a call, at most: so many were tried under limits


@dataclass(frozen=True, eq=False)
class CheckedOnnx:
    """An ONNX model that `check_onnx` parsed and let pass.

    Attributes:
        data: the bytes as they came: what ships, is digested and weighed.
        usable: the bytes to hand to a runtime: `data` itself unless its form had to be mended.
        model: what `usable` holds, in its usual form (_usual_onnx.py). It is shared: whoever changes it takes a `copy`.
        source: the same with the quantisers of QONNX that the file has, which `model` computes in standard operators.
        facts: what it says about itself.
    """

    data: bytes
    usable: bytes
    model: onnx.ModelProto
    source: onnx.ModelProto
    facts: Facts

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self.facts.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self.facts.outputs

    def copy(self) -> onnx.ModelProto:
        """The model for somebody who changes it."""
        other = type(self.model)()
        other.CopyFrom(self.model)
        return other

    @property
    def measures_ranges(self) -> bool:
        """Whether the model quantises by the range of all that are asked at once."""
        return any(node.op_type.startswith("DynamicQuantize") for node in self.model.graph.node)


def check_onnx(data: CheckedOnnx | bytes) -> CheckedOnnx:
    """The model in `data`, in its usual form: free sizes, nodes in order, states zero. A checked one is handed back.

    Raises:
        UnsafeInput: it is not well formed, too new, needs other files or operators outside the standard (but for those
            that ONNX Runtime's own quantiser and optimiser write, and QONNX's), lets a record's values decide how much
            is computed, or has an input or output of no known type.
    """
    if isinstance(data, CheckedOnnx):
        return data
    if (known := _checked.find(lambda one: one.data is data)) is not None:
        return known  # not even hashed again
    digest = hashlib.sha256(data).hexdigest()
    if (known := _checked.get(digest)) is not None:
        return known
    from ._check_onnx import Fault, facts, parse

    try:
        model, usable, zeroed, source = parse(data)
        found = facts(source, zeroed)
    except Fault as fault:
        raise UnsafeInput(str(fault)) from None
    except (ValueError, TypeError, RuntimeError) as error:  # from onnx, about a model it did not expect
        raise UnsafeInput(
            f"The ONNX model is malformed: {' '.join(str(error).split())[:300]}. It was refused."
        ) from None
    at_once = _tried.get(digest, BATCH)
    checked = CheckedOnnx(data, usable, model, source, Facts.model_validate({**found, "at_once": at_once}))
    _checked.put(digest, checked, 3 * len(data))  # as it came, as it is run, and parsed
    return checked


_checked: Recent[CheckedOnnx] = Recent(AT_HAND)
_tried: dict[str, int] = {}  # by digest, of strangers' files: records of a call that was tried under limits


def _note(digest: str, facts: Facts) -> None:
    """So that whoever has a file's bytes alone asks for no more records at once than were tried."""
    if _tried.get(digest, BATCH) != facts.at_once:
        _tried[digest] = facts.at_once
        _checked.drop(digest)


@dataclass(frozen=True)
class ModelFile:
    """A finished model, checked; `finished_model.deployed` runs it. `data` is unpacked where the file was by gzip.

    `seconds`: of processor time that one record took when it was tried; 0 where it was tried by another process.
    """

    kind: Kind
    data: bytes
    facts: Facts
    packed: bool = False
    seconds: float = field(default=0.0, compare=False)

    @cached_property
    def checked(self) -> CheckedOnnx:
        """The model of an ONNX file, parsed in this process on first use and kept."""
        return check_onnx(self.data)

    @property
    def notes(self) -> list[str]:
        """Sentences on how the file is run, for the reader of the report."""
        from ._qonnx import OPERATORS

        found = ["The file was packed by gzip: digest and size are those of the model in it."] if self.packed else []
        if self.facts.zeroed:
            names = ", ".join(quoted(name) for name in self.facts.zeroed[:4])
            found.append(f"The file asks for its state as inputs ({names}): they are zeros, anew for every record.")
        if quantisers := [f"{count} {name}" for name, count in self.facts.operators.items() if name in OPERATORS]:
            found.append(
                f"The file rounds by operators of QONNX ({', '.join(quantisers)}), which no runtime knows: it is run "
                "as standard operators of the same meaning, in float32. Digest and size are those of the file itself."
            )
        return found


def read_model_file(path: Path, record: tuple[int, ...] = ()) -> ModelFile:
    """The model in an ONNX or TFLite file, also packed by gzip; what it is is told by its content, not by its name.

    Args:
        record: the shape of a record of the data that it will be asked about, whatever the layout; empty: not known,
            and sizes that the file leaves open are guessed.

    Raises:
        InputError: missing, a folder, empty, or too large a file; of another kind (the message names it and the way to
            one that can be run); newer than the installed onnx or ONNX Runtime; a TFLite file without ai-edge-litert.
        UnsafeInput: neither ONNX nor TFLite, damaged, or crafted: weights in other files, operators that are not known,
            names that are none, sizes that follow from a record's values; loading it and asking it once takes more
            memory or time than a file of its size may (`ROOM`, `SECONDS`), or it computes out of all proportion to it.
    """
    path = ordinary_file(path, "the model", FILE_BYTES)
    return read_model(path.read_bytes(), path.name, record)


def read_model(stored: bytes, name: str, record: tuple[int, ...] = ()) -> ModelFile:
    """The same of the bytes of a file; `name` is used in errors. Raises as `read_model_file`."""
    data = unpacked(stored, name, FILE_BYTES)
    refuse_other(data, name)
    kind: Kind = "tflite" if data[4:8] == b"TFL3" else "onnx"
    if kind == "tflite":
        need_litert()
    with scratch() as folder:
        copy = folder / "model"
        copy.write_bytes(data)
        answer = run_limited(
            Path(__file__).with_name(f"_read_{kind}.py"),
            [str(copy), str(BATCH), str(VALUES), json.dumps(list(record))],
            what=f"the model {quoted(name)}",
            seconds=SECONDS + int(SECONDS_BY_BYTE * len(data)),
            memory=ROOM + COPIES * len(data),
            hint=LIMIT_HINT,
        )
    try:
        found = json.loads(answer)
    except ValueError:  # something in it wrote to the reader's output
        raise UnsafeInput(f"The model {quoted(name)} confused its reader and was refused. {LIMIT_HINT}") from None
    if "fault" in found:
        if found.get("sort") == "alien":
            refuse_by_name(name)
        kind_of_error = InputError if found.get("sort") == "new" else UnsafeInput
        raise kind_of_error(f"{quoted(name)}: {' '.join(found['fault'].split())}")
    facts = Facts.model_validate(found["facts"])
    if kind == "tflite":
        inputs, states = without_states(facts.inputs, facts.outputs)
        facts = facts.model_copy(update={"inputs": inputs, "zeroed": tuple(port.name for port in states)})
    _note(hashlib.sha256(data).hexdigest(), facts)
    return ModelFile(kind, data, facts, packed=data is not stored, seconds=float(found["seconds"]))


def read_again(path: Path, digest: str, kind: Kind, facts: Facts, *, packed: bool) -> ModelFile | None:
    """A file that was read and found harmless before, by `read_model_file`; None: it is another one by now.

    Args:
        digest: sha256 (hex) of what was read, unpacked; the rest as `ModelFile` had it.

    Raises:
        InputError: as `read_model_file`, where there is no such file.
    """
    data = unpacked(ordinary_file(path, "the model", FILE_BYTES).read_bytes(), path.name, FILE_BYTES)
    if hashlib.sha256(data).hexdigest() != digest:
        return None
    _note(digest, facts)
    return ModelFile(kind, data, facts, packed)


def without_states(inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The inputs of a TFLite file that are given, and those that are its state: all but the first, where each comes
    back as an output (beyond the first) of the same type and shape, and is named as a state. An ordinary input must not
    become zeros: in doubt all are given, and the file is refused for it. (For ONNX: _usual_onnx.py.)
    """
    left = list(outputs[1:])
    for port in inputs[1:]:
        fitting = (one for one in left if (one.type, one.shape) == (port.type, port.shape))
        match = next((one for one in fitting if comes_back(port.name, one.name)), None)
        if match is None:
            return inputs, ()
        left.remove(match)
    return inputs[:1], inputs[1:]


def need_litert() -> None:
    """Raises InputError unless LiteRT is installed."""
    from importlib.util import find_spec

    if find_spec("ai_edge_litert") is None:
        raise InputError("A .tflite model is run by LiteRT, which is not installed: pip install crushproof[litert].")
