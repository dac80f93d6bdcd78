"""The plan of an audit that was asked for in one line: a finished file, its data, perhaps the dense model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...targets.errors import InputError
from ..paths import shown
from .other_files import ARTIFACTS, refuse_other
from .plan import DENSE, Plan, validated
from .yaml_text import Source

SHADOWS = 16  # so that one line takes minutes; a plan may ask for more
FILES = ("--data", "--dense", "--policy")
DATA = "an .npz with x_test and y_test (and x_train, y_train for what it gives away of its training records)"


def plan_of_options(artifact: Path, options: Mapping[str, Any]) -> Plan:
    """A plan that names the file, its data, and what else the command line's options say.

    Raises:
        InputError: an option is missing or does not fit; the message names it.
    """
    data, dense = options["--data"], options["--dense"]
    refuse_other(artifact, "a finished .onnx or .tflite file", ARTIFACTS)
    if data is None:
        raise InputError(f"--artifact needs --data, {DATA}.")
    if Path(data).suffix.lower() != ".npz":
        raise InputError(f"--data {data}: give {DATA}. Write it with numpy.savez('data.npz', x_test=x, y_test=y).")
    interface = {
        "layout": options["--layout"],
        "channels": options["--channels"],
        "mean": numbers("--mean", options["--mean"]),
        "std": numbers("--std", options["--std"]),
        "units": options["--units"],
        "output": options["--output"],
        "outputs": options["--outputs"],
        "labels": whole_numbers("--labels", options["--labels"]),
        "hours": options["--hours"],
    }
    if options["--recipe"] is not None and dense is None:
        raise InputError("--recipe needs --dense: shadow models of the dense model are compressed as the file was.")
    shared = ("channels", "mean", "std", "units", "labels", "hours")
    both = {name: value for name, value in interface.items() if name in shared}
    candidate = {"file": str(artifact), "recipe": options["--recipe"], "interface": interface}
    raw = {
        "name": artifact.name,
        "data": {"kind": "npz", "path": str(data), "bounds": options["--bounds"]},
        "model": None if dense is None else {"file": str(dense), "interface": both},
        "candidates": {candidate_name(artifact): candidate},
        "shadows": {"training_free": SHADOWS, "trained": SHADOWS},
        "policy": options["--policy"],
    }
    return validated(Plan, raw, Source("the command line"))


def words_of_options(artifact: Path, options: Mapping[str, Any]) -> list[str]:
    """The options as they were given, to be repeated where the files lie."""
    words = ["--artifact", shown(artifact)]
    for option, value in options.items():
        if value is not None:
            given = value if isinstance(value, tuple) else (shown(value) if option in FILES else value,)
            words += [option, *(f"{one:g}" if isinstance(one, float) else str(one) for one in given)]
    return words


def candidate_name(artifact: Path) -> str:
    """The file's name without its suffix, as a plan may call a candidate."""
    name = re.sub(r"[^A-Za-z0-9._+-]", "-", artifact.stem)[:60].lstrip("._+-") or "file"
    return f"file-{name}" if name == DENSE or name.startswith(f"{DENSE}-") else name


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """The numbers in `0.485,0.456,0.406`, or in one of them.

    Raises:
        InputError: something in it is no number; the message names the option.
    """
    return None if text is None else tuple(_number(option, part) for part in _parts(text))


def whole_numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """The whole numbers in `1,2,0`. Raises InputError as `numbers`."""
    found = numbers(option, text)
    if found is not None and any(not value.is_integer() for value in found):
        raise InputError(f"{option} {text}: give whole numbers separated by commas, for example {option} 1,2,0.")
    return None if found is None else tuple(int(value) for value in found)


def _parts(text: str) -> Sequence[str]:
    return [part for part in re.split(r"[,\s]+", text.strip("[]() ")) if part]


def _number(option: str, part: str) -> float:
    try:
        top, _, bottom = part.partition("/")
        return float(top) / float(bottom) if bottom else float(top)
    except (ValueError, ZeroDivisionError):
        raise InputError(
            f"{option} {part}: give numbers separated by commas, one per channel (or per class, for --labels)."
        ) from None
