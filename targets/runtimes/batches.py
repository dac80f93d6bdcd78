"""What every runtime's adapter does alike: records in parts of the right type and size, answers back as floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, quoted
from ..model import BATCH
from ..untrusted.model_file import VALUES, Port

MAPS = "maps"  # an output that gives each record a map from class to score, as converters of classical models write
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
WIDEST = 2**16  # values of an answer for one record
TYPES = ("float32", "float16", "float64", *INTEGERS, "bool")  # of an input
SCORES = ("float32", "float16", "float64", "uint8", "int8")  # of an output: wider integers are labels


def named_output(outputs: tuple[Port, ...], output: str) -> Port:
    """The output of that name. Raises InputError, which names those that there are."""
    found = next((port for port in outputs if port.name == output), None)
    if found is None:
        raise InputError(
            f"The model has no output {quoted(output)}. Its outputs are {listed(outputs)}: name one of them (--output)."
        )
    return found


def listed(outputs: tuple[Port, ...]) -> str:
    """Names, types and shapes of outputs, for a sentence."""
    rest = f" and {len(outputs) - 8} more" if len(outputs) > 8 else ""
    words = [f"{quoted(port.name)} {port.type} [{', '.join(map(str, port.shape))}]" for port in outputs[:8]]
    return ", ".join(words) + rest


def check_ports(inputs: tuple[Port, ...], outputs: tuple[Port, ...], output: str | None = None) -> tuple[Port, Port]:
    """The input of a classifier, and its output of that name (None: the first); InputError when these are not such."""
    if output is not None:
        outputs = (named_output(outputs, output),)
    if len(inputs) != 1 or not outputs or inputs[0].type not in TYPES or outputs[0].type not in (*SCORES, MAPS):
        words = [
            ", ".join(f"{port.name!r} {port.type} {list(port.shape)}" for port in side) or "nothing"
            for side in (inputs, outputs)
        ]
        raise InputError(
            f"The model must take one input of numbers ({', '.join(TYPES)}) and answer with logits; it takes "
            f"{words[0]} and answers {words[1]}. Fix further inputs to constants, and export it again. A "
            "network's state is known by its name, as an input and as an output: state_in, state_out."
        )
    if len(inputs[0].shape) < 2:
        raise InputError(
            f"The model's input has the shape {list(inputs[0].shape)}; [batch, ...] is expected. Export it again with "
            "a batch as its first axis."
        )
    return inputs[0], outputs[0]


def answer_in_parts(
    x: Tensor,
    given: Port,
    wanted: Port,
    run: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
    at_once: int = BATCH,
    *,
    alone: bool = False,
) -> Tensor:
    """float32 [n, outputs] on x's device, for x float32 [n, *shape].

    Args:
        given: the model's input: values are cast to its type (for integers rounded half to even and kept within it, for
            truth values rounded), and come in parts of its batch, the last one filled up; where the batch is free, in
            parts of bounded size.
        wanted: its output, turned back into floats by its grid.
        run: one part through the runtime.
        at_once: records of a part, at most, where the batch is free.
        alone: each record is asked by itself; where the batch is fixed, among copies of itself.

    Raises:
        InputError: the runtime refuses the records, or does not answer each of them.
    """
    if not len(x):
        return torch.zeros(0, 0, device=x.device)
    records = _as_type(x.detach().cpu().float().contiguous().numpy(), given.type)
    size = given.shape[0]
    step = size if isinstance(size, int) else max(1, min(at_once, VALUES // max(1, math.prod(records.shape[1:]))))
    step = 1 if alone else step
    answers = []
    for first in range(0, len(records), step):
        part = records[first : first + step]
        n = len(part)
        if isinstance(size, int) and n < size:
            part = np.concatenate([part, np.repeat(part[-1:], size - n, axis=0)])
        try:
            answer = run(part)
        except Exception as error:  # each runtime has exceptions of its own, without a common base
            raise InputError(
                f"The model does not answer records of shape {list(part.shape[1:])}: {reason(error)}"
            ) from None
        if not answer.size or answer.size % len(part):
            raise InputError(
                f"The model answers {len(part)} records with an output of shape {list(answer.shape)}; "
                "[batch, classes] is expected."
            )
        if answer.size > WIDEST * len(part):
            raise InputError(
                f"The model answers with {answer.size // len(part):,} values for each record, and at most {WIDEST:,} "
                "are read as the scores of classes. Name the output that holds them (--output)."
            )
        answers.append(answer.reshape(len(part), -1)[:n].astype(np.float32))
    joined = np.concatenate(answers)
    if wanted.grid is not None:
        scale, zero_point = wanted.grid
        joined = (joined - np.float32(zero_point)) * np.float32(scale)
    return torch.from_numpy(joined).to(x.device)


def _as_type(records: np.ndarray[Any, Any], word: str) -> np.ndarray[Any, Any]:
    dtype = np.dtype(word)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        exact = np.float32 if dtype.itemsize < 4 else np.float64  # float32 cannot hold the limits of wide integers
        records = np.rint(records.astype(exact, copy=False)).clip(limits.min, limits.max)
        if dtype.itemsize == 8:  # nor float64 those of the widest: stay below them
            records = records.clip(float(limits.min), float(2**62))
    elif dtype.kind == "b":
        records = np.rint(records) > 0
    return records.astype(dtype, copy=False)


def reason(error: Exception) -> str:
    """The first line of its message; running out of memory comes without one."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:500]
