"""What an attack found, as data: per-record outcomes, who could do it, and what to know about the figure.

An attack turns its evidence into measurements; intervals, paired changes, gates and rows of a report are made from
them by whoever reads them, in one way for all attacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..targets.data.data import Data
from .access import Access
from .risk import Metric

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class Rate:
    """A share of records: bool [n].

    Args:
        among: how many shares it was chosen from by looking at them: the interval holds whichever it is (Bonferroni).
    """

    successes: Bools
    among: int = 1


@dataclass(frozen=True)
class GroupRates:
    """A share of the records of each of several classes and groups; two of them are compared where it fell most.

    Args:
        successes: bool [n]; masks: bool [n] by the name of the class or group, one at least.
    """

    successes: Bools
    masks: Mapping[str, Bools]


@dataclass(frozen=True)
class Crossed:
    """A share of records over several models made alike, which stand for all that would be: bool [models, records]."""

    successes: Bools


@dataclass(frozen=True)
class Mean:
    """A mean over records: float [n].

    Args:
        least: no mean can be below it, so that its interval is not either.
        step: values are multiples of it, 1 for counts: they vary by a rounding's spread at least, so that a few equal
            ones leave a doubt.
    """

    values: Floats
    least: float = -np.inf
    step: float = 0.0


@dataclass(frozen=True)
class Auc:
    """The area under the ROC curve of scores, float [n], which are higher for members, bool [n].

    Args:
        spread: by how much one of .5 varies among models alike beyond what the records explain, as a standard
            deviation; the interval is as much wider there, and less near 0 and 1.
    """

    scores: Floats
    is_member: Bools
    spread: float = 0.0


@dataclass(frozen=True)
class TprAtFpr:
    """The share of members above the threshold that a share `fpr` of the non-members reaches."""

    scores: Floats
    is_member: Bools
    fpr: float


@dataclass(frozen=True)
class Found:
    """How much a search found, exactly: no sample, so that there is no interval; what it cannot find, it cannot count.

    Args:
        count: of what was found.
        searched: for how many; or in how many ways.
        unsearched: a phrase: what the search would not have found.
    """

    count: int
    searched: int
    unsearched: str


@dataclass(frozen=True)
class AtLeast:
    """A figure of which only a lower bound is known.

    Args:
        value: the bound, with a confidence of 95 % or more.
        most: the largest that could have been said; nothing else bounds it from above.
        n: trials it rests on.
    """

    value: float
    most: float
    n: int


Outcome = Rate | GroupRates | Crossed | Mean | Auc | TprAtFpr | Found | AtLeast


@dataclass(frozen=True)
class ThreatModel:
    """The attacker of the parts that ran.

    Args:
        knowledge: one phrase: what the attacker knows and has.
        budget: one phrase: epsilon, queries, shadow models.
    """

    access: Access | None  # None: nothing ran
    knowledge: str
    budget: str


NOTHING_RAN = ThreatModel(None, "nothing ran", "none")


@dataclass(frozen=True)
class Comparison:
    """The same figure on a model and on one it is compared with, of the same records and by the same means.

    Args:
        baseline: name of the model compared with.
        own, theirs: outcomes of one kind on the same records; what only one side faced is in neither.
        counted: names of the parts in them, where there are several.
        flags: why the baseline's figure may be too optimistic.
        floor: a baseline no better than this has no room to fall; None: the question does not arise.
        instead: where there is no room to fall, what to measure instead.
    """

    baseline: str
    own: Outcome
    theirs: Outcome
    counted: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    floor: float | None = None
    instead: str | None = None


@dataclass(frozen=True)
class MeasuredPart:
    """One attack among those a figure takes the worst case (or the headline) over.

    Args:
        outcome: None: it did not run, or not where the figure is taken.
        skipped: why it did not run.
        headline: the one the figure is, where one is chosen.
        counted: whether it counts towards the change: both sides faced it alike.
    """

    name: str
    outcome: Outcome | None
    flags: tuple[str, ...] = ()
    skipped: str | None = None
    headline: bool = False
    counted: bool = True


@dataclass(frozen=True)
class Graded:
    """Of each record the first of a few ascending settings at which something happened to it.

    Args:
        settings: ascending; nothing was tried between two of them.
        first: int [n], positions in them; their number: it happened at none.
    """

    settings: tuple[float, ...]
    first: np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Quantity:
    """A plain figure that describes what was found, and that no policy judges.

    Args:
        name: what is described: "L-inf change".
        statistic: what of it: "median", "largest".
        value: the figure; or what a median with its interval is taken of.
        n: of how many records.
    """

    name: str
    statistic: str
    value: float | Graded
    n: int


@dataclass(frozen=True)
class Fragile:
    """The records that fell at the smallest setting at which any did.

    Args:
        at: that setting, as the risk's chart counts it (`Chart.x`).
        count: how many fell there.
        ids: a few of them, those that fell in the most ways first.
    """

    at: float
    count: int
    ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pattern:
    """A picture that was computed and holds no record: a trigger's mask.

    Args:
        title: what it shows; values: float [height, width] in [0, 1], 64 x 64 at most.
    """

    title: str
    values: Floats


@dataclass(frozen=True, eq=False)
class Picture:
    """A record and what an attack made of it, for a reader who may see records. Pixels are uint8 [height, width, 3].

    Args:
        record: its id; label: its true class.
        difference: grey where nothing changed, brighter or darker by so many times (`magnified`) as much as it did.
        linf, l2: of the change, in units of [0, 1] pixels; similarity: SSIM of the two.
        words: below the first two pictures.
    """

    record: int
    label: str
    clean: np.ndarray[Any, np.dtype[np.uint8]]
    changed: np.ndarray[Any, np.dtype[np.uint8]]
    difference: np.ndarray[Any, np.dtype[np.uint8]]
    magnified: int
    linf: float
    l2: float
    similarity: float
    words: tuple[str, str] = ("as it is", "changed")


@dataclass(frozen=True)
class Measurement:
    """One figure of one model, or the reason why there is none.

    Args:
        attack: what the figure is the result of, in words.
        outcome: None: not measured, see `reason`.
        detail: tells several findings of one attack apart, in their ids; "" for the main one.
        run: of which run of the attack the evidence is, by its detail.
        draw: of a random recipe's draw, counted from the one that ships: a figure beside the candidate and no finding.
        gateable: whether a policy may judge it.
        setting: what the figure depends on: {"norm": "linf", "epsilon": 0.1}.
        chosen: how a setting that was left open was chosen.
        available: records the data has for it; the outcome may rest on fewer.
        curves: by name; (x, figure) in the order of x, or scores whose ROC it is.
        groups: the figure per class or group of records, by name: who is hit.
        quantities: plain figures beside it; what they are of is said by `Risk.described`.
        fragile: the records that fell first.
        pattern: a computed picture of what was found.
        transfers: of the inputs found, the share that fools another model too, by its name.
        worse: those of `groups` in which more got worse than chance explains, against the model that it came from.
        notes: sentences the reader must know.
        flags: why it may be too optimistic; of its parts, see there.
    """

    metric: Metric
    attack: str
    outcome: Outcome | None
    threat: ThreatModel = NOTHING_RAN
    reason: str | None = None
    detail: str = ""
    run: str = ""
    draw: int | None = None
    gateable: bool = True
    setting: dict[str, str | float | int] = field(default_factory=dict)
    chosen: str | None = None
    available: int | None = None
    comparisons: tuple[Comparison, ...] = ()
    parts: tuple[MeasuredPart, ...] = ()
    curves: Mapping[str, Sequence[tuple[float, Outcome]] | Auc] = field(default_factory=dict)
    groups: Mapping[str, Outcome] = field(default_factory=dict)
    quantities: tuple[Quantity, ...] = ()
    fragile: Fragile | None = None
    pattern: Pattern | None = None
    transfers: Mapping[str, Rate] = field(default_factory=dict)
    worse: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class PerRecord:
    """What was found of each training record, for whoever answers for the data: ids and figures, no values of a record.

    Args:
        ids: int64 [n], indices into `Data.members`.
        columns: by name, [n] each: texts, numbers or bool.
        order: int64 [n], the places of the records, the gravest first.
    """

    ids: np.ndarray[Any, np.dtype[np.int64]]
    columns: Mapping[str, np.ndarray[Any, Any]]
    order: np.ndarray[Any, np.dtype[np.int64]]


def masks_by_group(data: Data, ids: np.ndarray[Any, Any]) -> dict[str, Bools]:
    """bool [n] for each class, and each group where the data has groups, that occurs among non-members with these ids.

    Args:
        ids: int64 [n].
    """
    labels = data.non_members.y.numpy()[ids]
    masks: dict[str, Bools] = {name: labels == label for label, name in enumerate(data.class_names)}
    if data.groups is not None:
        groups = np.array(data.groups)[ids]
        masks |= {f"group {name}": groups == name for name in sorted(set(data.groups))}
    return {name: mask for name, mask in masks.items() if mask.any()}
