"""What a stored result must look like: declared beside the code that makes it, checked when it is read back.

Whoever can write into an output folder can put any result there, with the right digests. A form keeps out what the code
that reads it could not take or would misread; that a result was really computed, only computing it again can show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Arrays = Mapping[str, np.ndarray[Any, Any]]
Count = Annotated[int, Field(ge=0, le=2**62)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]

DECLINED = "not_applicable"  # the one key of a result that says why there is none


class WithoutModelError(Exception):
    """What a form asks of a model cannot be asked here: only what was recorded of the model is at hand."""


class MisfitError(ValueError):
    """A result is not of its declared form; the message says where."""


class Document(BaseModel):
    """A JSON document of fixed keys, without NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Array:
    """One array, or several that are alike.

    Args:
        dtype: NumPy's name of it; empty: any.
        shape: of each axis its length, or a letter for a length that is the same wherever it stands, or None for any;
            None: any shape.
        low, high: of every value.
        finite: no NaN and no infinity.
        optional: it may be missing.
    """

    dtype: str = ""
    shape: tuple[int | str | None, ...] | None = None
    low: float | None = None
    high: float | None = None
    finite: bool = True
    optional: bool = False


Layout = Mapping[str, Array]  # by name; what is under "*" may have any other name
ANY: Layout = {"*": Array(finite=False)}


def check_arrays(arrays: Arrays, layout: Layout) -> None:
    """Compares named arrays with their layout.

    Raises:
        MisfitError: a name is missing or unknown, or an array is another one.
    """
    lengths: dict[str, int] = {}
    missing = [name for name, one in layout.items() if name != "*" and not one.optional and name not in arrays]
    if missing:
        raise MisfitError(f"it has no array {missing[0]!r}")
    for name in sorted(arrays):
        form = layout.get(name) or layout.get("*")
        if form is None:
            raise MisfitError(f"it has an array {name[:80]!r} that nobody reads")
        _check_array(name, arrays[name], form, lengths)


def _check_array(name: str, array: np.ndarray[Any, Any], form: Array, lengths: dict[str, int]) -> None:
    if form.dtype and array.dtype != form.dtype:
        raise MisfitError(f"{name} is {array.dtype} and not {form.dtype}")
    if form.shape is not None:
        pairs = list(zip(form.shape, array.shape, strict=False))
        wanted = [lengths.setdefault(n, have) if isinstance(n, str) else n for n, have in pairs]
        if len(form.shape) != array.ndim or any(
            n not in (None, have) for n, (_, have) in zip(wanted, pairs, strict=True)
        ):
            raise MisfitError(f"{name} has the shape {array.shape} and not {form.shape}")
    if form.finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise MisfitError(f"{name} is not finite")
    if array.size and form.low is not None and array.min() < form.low:
        raise MisfitError(f"{name} goes below {form.low:g}")
    if array.size and form.high is not None and array.max() > form.high:
        raise MisfitError(f"{name} goes above {form.high:g}")


@dataclass(frozen=True)
class Form:
    """Of one sort of result: its document, arrays and files.

    Args:
        document: a pydantic model of the JSON document; None: any object.
        arrays: their layout, or what makes it of the validated document; None: any.
        files: names, all of them.
        holds: what else is so; raises MisfitError, or whatever it meets on the way.
        declines: the document may say instead why there is no result (`not_applicable`).
    """

    document: type[BaseModel] | None = None
    arrays: Layout | Callable[[Any], Layout] | None = None
    files: tuple[str, ...] = ()
    holds: Callable[[Any, Arrays, Mapping[str, bytes]], None] | None = None
    declines: bool = True

    def check(self, raw: bytes, value: Any, arrays: Arrays, files: Mapping[str, bytes]) -> None:
        """Compares a result with this form.

        Args:
            raw: the document as JSON; value: the same, read.

        Raises:
            MisfitError: it is another one.
        """
        try:
            if not isinstance(value, dict):
                raise MisfitError("the document is no object")
            if self.declines and value.keys() == {DECLINED}:
                if not isinstance(value[DECLINED], str) or arrays or files:
                    raise MisfitError("it says that there is no result, and has one")
                return
            if DECLINED in value:
                raise MisfitError("it says that there is no result, and has one")
            document = value if self.document is None else self.document.model_validate_json(raw, strict=True)
            if set(files) != set(self.files):
                raise MisfitError(f"its files are not {', '.join(self.files) or 'none'}")
            layout = self.arrays(document) if callable(self.arrays) else self.arrays
            check_arrays(arrays, ANY if layout is None else layout)
            if self.holds is not None:
                self.holds(document, arrays, files)
        except (MisfitError, WithoutModelError):
            raise
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(one) for one in first["loc"])[:200]
            raise MisfitError(f"{where or 'the document'}: {first['msg'][:200]}") from None
        except Exception as error:  # what the code that reads it would have met
            raise MisfitError(f"{type(error).__name__}: {str(error)[:200]}") from error


def require(condition: bool, what: str) -> None:
    """Raises MisfitError unless the condition holds: `what` is wrong."""
    if not condition:
        raise MisfitError(what)
