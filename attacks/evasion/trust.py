"""When a robustness figure may be too optimistic: trust flags (after Pintor et al. 2022, arXiv:2106.09947).

Pure functions over per-record outcomes, so that they can be recomputed from stored evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from ..access import Access, Flag
from ..case import Evidence
from ..preparation import Basis
from ..statistics.rates import mcnemar

Outcomes = np.ndarray[tuple[int], np.dtype[np.bool_]]

MATERIAL = 0.01  # share of the records from which a difference counts
SIGNIFICANT = 0.01  # p of an exact McNemar test
LATE = 0.75  # share of the budget after which a success is a late one
LATE_RECORDS = 0.03  # late successes: at least this share of the records ...
LATE_SUCCESSES = 0.25  # ... and of the successes at that epsilon, i.e. no slower than at the beginning
FALLS = "walk/fall"  # among the arrays of evidence
CLIFF = 0.85  # of what a margin loses on a walk away from a record, in one step
FAR_BELOW = 0.1  # of the records, that all parts together fool beyond the strongest one
UNBOUNDED_MARGIN = 0.05  # above chance
FEWEST_STEPS = 3  # of a gradient attack that deserves the name


def beats(stronger: Outcomes, weaker: Outcomes) -> bool:
    """Whether one attack fooled more than another, by at least 1 % of the records and exact McNemar p < .01.

    Args:
        stronger, weaker: bool [n], the records each of them fooled.
    """
    gained = int((stronger & ~weaker).sum())
    lost = int((weaker & ~stronger).sum())
    if gained - lost < max(1.0, MATERIAL * len(stronger)):
        return False
    return mcnemar(gained, lost) < SIGNIFICANT


def chance(labels: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """The accuracy of always guessing the commonest label, in (0, 1]."""
    return float(np.bincount(labels).max() / len(labels))


def gradients_missing(without: int, records: int) -> bool:
    """Whether records that withstood an attack without ever giving it a gradient are at least 1 % of all."""
    return without > 0 and without >= MATERIAL * records


def unfinished(found_at: np.ndarray[tuple[int], np.dtype[np.float32]], records: int) -> bool:
    """Whether an optimisation was cut off: successes still came as thick at its end as on average.

    Args:
        found_at: float32, the share of the budget spent at each success at one epsilon (NaN: no success).
        records: how many were evaluated.
    """
    late = int((found_at > LATE).sum())
    successes = int(np.isfinite(found_at).sum())
    return late >= max(5.0, LATE_RECORDS * records) and late >= LATE_SUCCESSES * successes


def too_weak(settings: Mapping[str, Any], epsilon: float) -> bool:
    """Whether a part that follows gradients gave up early, or had steps too short to leave its start."""
    steps, size = settings.get("steps"), settings.get("step_size")
    return isinstance(steps, int) and (steps < FEWEST_STEPS or (size is not None and size * steps < epsilon))


def unbounded_fails(fooled: Outcomes, labels: np.ndarray[tuple[int], np.dtype[np.int64]]) -> bool:
    """Whether an attack free to use the whole range of inputs leaves the model better than chance (plus a margin)."""
    return float(1 - fooled.mean()) > chance(labels) + UNBOUNDED_MARGIN


def black_box_wins(part: str, access: Mapping[str, Access], fooled: Mapping[str, Mapping[float, Outcomes]]) -> bool:
    """Whether any part without gradients beats this one at an epsilon where both ran.

    Args:
        fooled: by part and epsilon, bool [n].
    """
    return any(
        beats(outcomes, fooled[part][epsilon])
        for other in fooled
        if access[other] is not Access.WHITE_BOX
        for epsilon, outcomes in fooled[other].items()
        if epsilon in fooled[part]
    )


def cliff(falls: np.ndarray[Any, np.dtype[np.float32]]) -> bool:
    """Whether most records lose nearly all of their margin in a single step of a walk away from them.

    Args:
        falls: see `ascent.walk.falls`.
    """
    return float((falls > CLIFF).mean()) > 0.5


def whole_flags(
    access: Mapping[str, Access],
    flags: Mapping[str, Sequence[str]],
    fooled: Mapping[str, Outcomes],
    falls: np.ndarray[Any, np.dtype[np.float32]] | None,
) -> list[str]:
    """`union_flags`, whether the parts add up to far more than any of them, and what a walk away from the records says
    of the model, whoever attacks it (None: no walk).
    """
    more = [str(Flag.MARGIN_CLIFF)] if falls is not None and cliff(falls) else []
    more += [str(Flag.UNION_FAR_BELOW)] if far_below(list(fooled.values())) else []
    return sorted({*union_flags(access, flags, fooled), *more})


def far_below(fooled: Sequence[Outcomes]) -> bool:
    """Whether all parts together, bool [n] each, fool at least a tenth of the records more than the strongest alone."""
    union = np.logical_or.reduce(fooled)
    best = max(fooled, key=lambda one: int(one.sum()))
    return float(union.mean() - best.mean()) >= FAR_BELOW and beats(union, best)


def union_flags(
    access: Mapping[str, Access], flags: Mapping[str, Sequence[str]], fooled: Mapping[str, Outcomes]
) -> list[str]:
    """The flags of the worst case over all parts at one epsilon, in alphabetical order.

    The union carries the flags of its parts unless the white-box parts that have none explain it, i.e. no other part
    beats what they found together. With no white-box part at all there were no gradients to trust. (The union itself
    is no fair rival: it contains what they found, so any eight records more would pass McNemar's test.)

    Args:
        access, flags: by part.
        fooled: by part, bool [n], its own successes at this epsilon.
    """
    white = [part for part in fooled if access[part] is Access.WHITE_BOX]
    if not white:
        return sorted({str(Flag.NO_GRADIENT), *(flag for part in fooled for flag in flags.get(part, ()))})
    trusted = [part for part in white if not flags.get(part)]
    if trusted:
        explained = np.logical_or.reduce([fooled[part] for part in trusted])
        if not any(beats(fooled[part], explained) for part in fooled if part not in trusted):
            return []
    return sorted({str(flag) for part in fooled for flag in flags.get(part, ())})


def unfounded(evidence: Evidence, basis: Basis, seek_all: Set[str]) -> list[str]:
    """What in evidence of `Evasion.run` does not follow from its outcomes and the model's clean answers, a phrase each.

    Whether an optimisation was unfinished, or failed without a limit, does not follow: its course is not kept.

    Args:
        seek_all: names of the parts that take any success (`Perturber.seeks_all`).
    """
    arrays, summary, flags, wrong = evidence.arrays, evidence.summary, evidence.flags, []
    if basis.contradicted(arrays["ids"], arrays["clean_correct"], arrays["clean_correct"]):
        wrong.append("the records that the model classifies right are others")
    access = {part: Access(value) for part, value in summary["part_access"].items()}
    names = {part: {epsilon: f"fooled/{part}/{epsilon!r}" for epsilon in summary["epsilons"]} for part in access}
    fooled = {
        part: {epsilon: arrays[name] for epsilon, name in own.items() if name in arrays} for part, own in names.items()
    }
    for part in access:
        white, without = access[part] is Access.WHITE_BOX, summary["without_gradient"].get(part, 0)
        due = {
            Flag.NO_GRADIENT: gradients_missing(without, len(arrays["ids"])),
            Flag.BLACK_BOX_WINS: white and part in seek_all and black_box_wins(part, access, fooled),
            Flag.TWIN_DISAGREES: white and not basis.twin_agrees,
        }
        wrong += [f"the flag {flag} of {part}" for flag in due if due[flag] != (flag in flags.get(part, ()))]
    at_gate = {part: outcomes[summary["gate_epsilon"]] for part, outcomes in fooled.items()}
    if whole_flags(access, flags, at_gate, arrays.get(FALLS)) != list(summary["union_flags"]):
        wrong.append("the flags of the worst case")
    return wrong
