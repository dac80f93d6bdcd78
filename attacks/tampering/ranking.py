"""Which bits' flips should do the most harm, to first order: gradient times change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from .stored import Flip, Floats, Stored
from .surrogate import Surrogate

OF_A_TENSOR = 3  # of ten flips that are tried, at most
ROUNDS = 4  # of so many trials, at most
WILD = 1e6  # a change beyond it is none that a gradient tells of
AT_ONCE = 2**22  # flips whose harm is estimated at a time
HUGE = 1e30  # what a flip to NaN or infinity counts
COUNTED = 64  # flips of a tensor whose harm is added up

Allowed = Callable[[Stored, int], bool]  # whether this bit of a tensor's elements may be flipped


def ranked(
    surrogate: Surrogate,
    gradients: Sequence[Floats | None],
    allowed: Allowed,
    without: set[Flip],
    inert: set[int],
    trials: int,
) -> list[Flip]:
    """The flips that should do the most harm, to first order: the worst of each role first, in turns, those that a
    first order holds for apart from the others; else a scale's exponent would always seem worse than all else.
    """
    scored: dict[tuple[str, bool], list[tuple[float, Flip]]] = {}
    for number, (stored, gradient) in enumerate(zip(surrogate.tensors, gradients, strict=True)):
        bits = [bit for bit in stored.tried if allowed(stored, bit)]
        if gradient is None or number in inert or not bits:
            continue
        together, share = max(1, AT_ONCE // len(gradient)), OF_A_TENSOR * trials // 10
        best: dict[bool, list[tuple[float, Flip]]] = {True: [], False: []}
        for start in range(0, len(bits), together):
            some = bits[start : start + together]
            harm, wild = expected_harm(gradient, surrogate.moved(number, some))
            for flip in without:
                if flip.tensor == number and flip.bit in some:
                    harm[some.index(flip.bit), flip.element] = 0
            for kind, found in best.items():
                of_kind = np.where(wild == kind, harm, 0).ravel()
                most = min(len(of_kind), share)
                for place in np.argpartition(-of_kind, most - 1)[:most]:
                    if of_kind[place] > 0:
                        bit, element = divmod(int(place), len(gradient))
                        found.append((float(of_kind[place]), Flip(number, element, some[bit])))
        for kind, found in best.items():  # those to NaN and beyond first: one of them is often enough
            scored.setdefault((stored.role, kind), []).extend(sorted(found, reverse=True)[:share])
    ordered = [[flip for _, flip in sorted(one, reverse=True)] for one in scored.values()]
    turns = [flip for turn in zip_longest(*ordered) for flip in turn if flip is not None]
    return turns[: trials * ROUNDS]


def expected_harm(gradient: Floats, moved: Floats) -> tuple[Floats, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Gradient [n] times change [bits, n]; and bool [bits, n], whether no first order holds: a change to NaN or
    infinity, or by more than a million, harms whichever its direction, if anything depends on the number.
    """
    size = np.abs(moved)
    wild = ~(size <= WILD)
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.where(size <= HUGE, size, HUGE)
        return np.where(wild, np.abs(gradient) * size, gradient * moved), wild


def fewest(
    surrogate: Surrogate, aims: Sequence[Sequence[Floats | None]], allowed: Allowed, needed: Sequence[float]
) -> list[float]:
    """How many flips should do so much harm together, if each did what it does to first order; infinity: none do.

    Args:
        aims: the gradients of each, for each tensor; needed: of each.
    """
    largest: list[list[Floats]] = [[] for _ in aims]
    for number, stored in enumerate(surrogate.tensors):
        some = {place: one for place, gradients in enumerate(aims) if (one := gradients[number]) is not None}
        bits = [bit for bit in stored.tried if allowed(stored, bit)]
        if not some or not bits:
            continue
        together = np.stack(list(some.values()))
        most = min(together.shape[1], COUNTED)
        for bit in bits:
            moved = surrogate.moved(number, [bit])[0]
            harm = together * np.where(np.abs(moved) <= WILD, moved, 0)  # of a wild change no first order holds
            for place, row in zip(some, np.partition(harm, harm.shape[1] - most)[:, -most:], strict=True):
                largest[place].append(row)
    return [_flips_for(found, enough) for found, enough in zip(largest, needed, strict=True)]


def _flips_for(largest: list[Floats], needed: float) -> float:
    together = np.cumsum(-np.sort(-np.concatenate(largest))) if largest else np.zeros(0)
    if not len(together) or together[-1] <= 0:
        return float("inf")
    at = int(np.searchsorted(together, needed))
    return at + float(needed / together[min(at, len(together) - 1)])
