"""Long work tells how far it is, and keeps the parts that are done, so that a kill costs one part and not the whole.

Code that takes long calls `pulse` and `kept` wherever it is, as it would call a logger. Nobody need listen: in a
notebook both do nothing but compute. Whoever runs the work listens with `heard_by`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np

from .form import ANY, Layout, check_arrays
from .recent import LARGE, give_back

Arrays = dict[str, np.ndarray[Any, Any]]
Check = Callable[[Arrays], None]


class Listener(Protocol):
    """Who runs a piece of work."""

    def at(self, what: str, done: int, total: int) -> None:
        """The work has done so many of so many steps of what it is at: `shadow`, 3, 16. Called often; must be cheap."""

    def part(self, name: str, check: Check) -> Arrays | None:
        """What an earlier attempt at the same work kept under this name, if `check` raises no MisfitError at it."""

    def keep(self, name: str, arrays: Arrays) -> None:
        """Stores a part; it is there after a kill."""


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: Listener | None) -> Iterator[None]:
    """Inside the block this listener hears `pulse` and keeps what `kept` computes."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def pulse(what: str, done: int, total: int) -> None:
    """Says how far the work is: `done` of `total` steps of `what`, a word for people (`shadow`, `epoch`, `query`).

    A loop says so when it begins (0 of 16), before the loops inside it do, and after each step. It costs about a
    microsecond where somebody listens.
    """
    listener = _listener.get()
    if listener is not None:
        listener.at(what, done, total)


def unchecked(found: Arrays) -> None:
    """The check of who takes any part."""


def kept(name: str, compute: Callable[[], Arrays], form: Layout | Check = ANY) -> Arrays:
    """A part of a longer piece of work: as an earlier attempt at that work kept it, else computed and kept.

    Args:
        name: tells the parts of one piece of work apart. Together with what decides the work it must decide the arrays;
            how much of the work is to be done (how many records) need not be in either, if the name says which part.
        compute: gives named arrays (bool, integer or float).
        form: what they look like, or what raises MisfitError where they do not: a part that was kept and is otherwise
            is computed anew.
    """
    listener = _listener.get()
    if listener is None:
        return compute()
    arrays = listener.part(name, form if callable(form) else lambda found: check_arrays(found, form))
    if arrays is None:
        arrays = compute()
        listener.keep(name, arrays)
        give_back(LARGE)
    return arrays
