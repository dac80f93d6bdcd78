"""What can go wrong in a way the user can mend. Each error carries its exit code (README, "Exit codes")."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType

# What libraries and papers call our fields.
OTHER_WORDS = {"amount": "sparsity", "ratio": "sparsity", "bits": "weight_bits", "samples": "records", "eps": "epsilon"}


class CrushproofError(Exception):
    """Base of every error whose message is written for the user: what happened, where, and how to mend it."""

    exit_code = 4


class InputError(CrushproofError):
    """A plan, an argument or a data file is wrong in an honest way: misspelt key, NaN pixel, missing file."""

    exit_code = 2


class NotApplicable(CrushproofError):
    """A recipe, attack or defense cannot do its work on this model or data; the message says why.

    The suite turns it into a row "not measured: <message>", so an audit never loses its other results to it.
    """

    exit_code = 2


class Unavailable(NotApplicable):
    """Something is missing on this machine, now: a runtime that is not installed, a GPU.

    A row "not measured" like any `NotApplicable`, but never stored as a result: the next run tries again.
    """


class Incomplete(CrushproofError):
    """The audit could not finish now (another run holds the folder, a cell failed); what is computed is kept."""

    exit_code = 3


class UnsafeInput(CrushproofError):
    """A file may be crafted: a pickle, a bomb, a malformed header. It was refused and nothing in it was executed."""

    exit_code = 5


def quoted(text: object, limit: int = 80) -> str:
    """`text` for a message: quoted, control and invisible characters escaped, cut after `limit` characters."""
    string = str(text)
    return repr(string if len(string) <= limit else string[:limit] + "...")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` may be a slip of, if any is near: in another case, misspelt, or cut short."""
    known, folded = list(known), word.lower().replace("-", "_")
    same = [one for one in known if one.lower().replace("-", "_") == folded]
    parts = {one: one.lower().replace("-", "_").split("_") for one in known}
    short = [one for one in known if folded in (*parts[one], "".join(part[:1] for part in parts[one]))]
    other = [one for one in known if one == OTHER_WORDS.get(folded)]
    return next(
        iter(same or other or difflib.get_close_matches(word, known, 1) or (short if len(word) > 1 else ())), None
    )


def nearest_hint(word: str, known: Iterable[str]) -> str:
    """A sentence " Did you mean 'x'?", or nothing when no known word is near."""
    near = nearest(word, known)
    return "" if near is None else f" Did you mean {quoted(near)}?"


@contextmanager
def failing_as_not_applicable(what: str) -> Iterator[None]:
    """What cannot be made is a row of its own: what the user gave is not to blame, and the audit goes on.

    What the machine lacks (memory, disk, a package) still fails the work, which is then tried again.

    Args:
        what: the beginning of the reason: `it cannot be deployed`.
    """
    try:
        yield
    except (InputError, UnsafeInput) as error:
        raise NotApplicable(f"{what}: {error}") from error
    except (CrushproofError, MemoryError, ImportError, OSError):
        raise
    except Exception as error:  # torch, the exporter or the user's own forward, on layers of other sizes
        raise NotApplicable(f"{what}: {user_error(error)}") from error


DEVICE = "Take .cuda() and .to('cuda') out: models and records are put where the plan's device says"
CURES = {  # part of what Python and torch say of a common mistake: how to mend it
    "attempted relative import": "Beside the plan is no package: write import nets instead of from . import nets",
    "Torch not compiled with CUDA": DEVICE,
    "Found no NVIDIA driver": DEVICE,
    "before Module.__init__() call": "Call super().__init__() first in the model's __init__",
    "FileNotFoundError": "Paths count from where crushproof is run; Path(__file__).parent / 'name' is beside the code",
    "SystemExit": "Take sys.exit() out: code that an audit calls returns or raises",
    "EOF when reading a line": "Nobody answers while an audit runs: take input() out",
    "type (double) and": "Models and records are float32: take .double() and float64 arrays out, or write x.float()",
}


def user_error(error: BaseException) -> str:
    """What went wrong in the user's own code, on one line: `ValueError: too few heads (my_model.py, line 12)`."""
    words = " ".join(str(error).split())
    place = None
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        words, place = error.msg, (error.filename, error.lineno)
    place = place or _place(error.__traceback__)
    text = f"{type(error).__name__}: {words[:500]}" if words else type(error).__name__
    text = text if place is None else f"{text} ({os.path.basename(place[0])}, line {place[1]})"
    cure = next((cure for said, cure in CURES.items() if said in text), "")
    return f"{text}. {cure}" if cure else text


def _place(trace: TracebackType | None) -> tuple[str, int] | None:
    """File and line of the innermost frame that is neither Python's, a library's nor this package's."""
    own, found = __name__.partition(".")[0], None
    while trace is not None:
        file, module = trace.tb_frame.f_code.co_filename, str(trace.tb_frame.f_globals.get("__name__", ""))
        top = module.partition(".")[0]
        if top != own and top not in sys.stdlib_module_names and "-packages" not in file and "<frozen" not in file:
            found = file, trace.tb_lineno
        trace = trace.tb_next
    return found
