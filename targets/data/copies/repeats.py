"""Records that occur more than once, exactly or but for a little noise: how many there are is decided by the distinct.

Tables of few, coarse columns repeat themselves: 16 % of UCI Adult's test records (without its weight column) equal a
training record in every value and in the label, and 17 % of its training records equal another one. What is natural so
shows across the splits too: a training record is then about as likely to equal a test record as another training
record. A test set that was made larger by copies of itself, or of the training set with noise, shows it in one only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import InputError
from ..records import Bounds, Records
from .neighbours import NEAR, NEAR_IMAGES, TIGHT, Search, is_image

OVERLAP = 0.01  # of the smaller split may equal a training record; see check_overlap
OF_IMAGES = 0.05  # the most of them, where records are no rows of a table: those do not repeat by chance
TOLERATED = 0.02  # of the test records may have a twin, whatever the others do
# The most that only the training records' own repetition excuses: UCI Adult, without its weight column, has 17 % of
# its training records twice or more and 16 % of its test records among them.
UNSEEN = 0.2
ALIKE = 1.5  # times as many copies per test record as per training record are no sign of copying, where those repeat
ALONE = 0.5  # of the rows of a test set without training records: nothing says what is natural there
FEW_COLUMNS = 256  # more than that do not agree by chance
DILUTED = 0.25  # of the members have a twin, or of the test records are members: membership can hardly be told
FEWEST_COPIES = 3
COARSE = 3  # values of a record: so few are close to others' by nature, however fine they are

AT_ONCE = 2**22  # values that are copied at once, where all of them are read
SURE = 3.0  # standard errors

REPEATED_RECORDS, NEAR_DUPLICATES, REPEATED_MEMBERS = "repeated-records", "near-duplicates", "repeated-members"


class Repeats(NamedTuple):
    """What was found.

    Args:
        notes: what is allowed and worth knowing, in sentences.
        keep: int64, the test records that are left once each counts once; None: all of them.
        doubts: name of a trust flag and a sentence for the reader of the report, each.
    """

    notes: list[str]
    keep: Tensor | None
    doubts: tuple[tuple[str, str], ...]


def find_repeats(members: Records | None, non_members: Records, bounds: Bounds, *, tokens: bool) -> Repeats:
    """Copies among the test records, among the training records, and of one among the other.

    Args:
        tokens: values are ids, of which a neighbouring one is no near duplicate.

    Raises:
        InputError: training records are among the test records.
    """
    theirs, own = None if members is None else codes(members), codes(non_members)
    contradicting = _contradicting(members, non_members)
    notes = [] if members is None or theirs is None else _check_overlap(members, (theirs, own))
    first = np.unique(own, return_index=True)[1]
    doubts, keep = [], None
    natural, how = _natural(theirs, own, non_members)
    copies = len(own) - len(first)
    if _twins(own) > natural and copies >= FEWEST_COPIES:
        keep = torch.from_numpy(np.sort(first))
        told = (
            f"Test records are repeated: of {len(own):,} only {len(first):,} are distinct in values and label, {how}. "
            "Each counts once in every figure; records are numbered without the copies."
        )
        if theirs is not None and _grouped(theirs, own):
            notes.append(f"{told} The training records repeat themselves as much.")
        else:
            doubts.append((REPEATED_RECORDS, f"{told} Give each record once."))
        non_members = non_members.take(keep)
    if contradicting and not doubts:
        doubts.append((REPEATED_RECORDS, _CONTRADICTING))
    if theirs is not None:
        shared = float(np.isin(own, theirs).mean())
        if shared > 2 * DILUTED:
            doubts.append((REPEATED_MEMBERS, notes[0]))
        elif _twins(theirs) > max(DILUTED, 2 * shared):
            doubts.append((REPEATED_MEMBERS, _diluted(_twins(theirs))))
    if not tokens:
        doubts += [one for one in _near(members, non_members, bounds) if one[0] not in dict(doubts)]
    return Repeats(notes, keep, tuple(doubts))


def _check_overlap(members: Records, both: tuple[NDArray[np.uint64], NDArray[np.uint64]]) -> list[str]:
    """Refuses a test set that contains training records; allows what repeated records explain.

    An overlap is allowed up to 1 % of the smaller split, or up to twice the share of members that equal another member
    by chance (`_explained`).

    Raises:
        InputError: more than that.
    """
    shared = np.intersect1d(*both)
    if not len(shared):
        return []
    ids = [np.flatnonzero(np.isin(code, shared)) for code in both]
    share = len(ids[1]) / min(len(both[0]), len(both[1]))
    explained = _explained(*both)
    if members.x.ndim > 2:
        explained = min(explained, OF_IMAGES)
    count = f"{len(ids[1]):,} of the {len(both[1]):,}"
    what = f"{count} test records equal a training record in every value and in the label"
    if share > max(OVERLAP, explained):
        raise InputError(
            f"Training records are among the test records: {what} (x_test {_some(ids[1])}; x_train {_some(ids[0])}). "
            "Divide the data anew so that no record is in both, each given once; else membership cannot be told and "
            "accuracy is too good."
        )
    return [f"{what} ({share:.1%}). Whether those were trained on cannot be told, which lowers membership figures."]


def _explained(theirs: NDArray[np.uint64], own: NDArray[np.uint64]) -> float:
    """The share of test records that may equal a training record, for all that is known of how records repeat.

    Where rows are drawn by chance a test record is as likely to equal a training record as another training record is.
    Copies made on purpose are no such measure: the test records' own repetition is one then, up to UNSEEN. Chance would
    show among the test records too, in as many equal pairs at least as the overlap and the sizes foretell.
    """
    if not _by_chance(own):
        own = np.unique(own)
    # Of few training records a larger share is met by more test records.
    explained = 2 * _twins(theirs) * min(max(1.0, len(own) / len(theirs)), 3.0)
    if not _by_chance(theirs):
        explained = min(2 * _twins(own) * max(1.0, len(theirs) / len(own)), UNSEEN)
    counts = np.unique(own, return_counts=True)[1]
    pairs = float((counts * (counts - 1) // 2).sum())
    foretold = float(np.isin(own, theirs).mean()) * len(own) * (len(own) - 1) / 2 / len(theirs)
    return min(explained, UNSEEN) if pairs < foretold - SURE * math.sqrt(foretold) else explained


def _by_chance(found: NDArray[np.uint64]) -> bool:
    """Whether so many records occur once, twice, three times ... as drawing them by chance can give.

    Drawn from whatever distribution, the expected number f(k) of rows that occur k times is a mixture of Poisson
    terms, for which f(k)^2 <= (k + 1) / k * f(k - 1) * f(k + 1) (Cauchy and Schwarz). Records given twice break that.
    """
    f = np.append(np.bincount(np.unique(found, return_counts=True)[1]), 0).astype(float)
    k = np.arange(2, len(f) - 1)
    least = np.maximum(f - SURE * np.sqrt(f), 0)
    most = f + SURE * np.sqrt(f + 4)  # 6 where none was seen
    return bool((least[k] ** 2 <= (k + 1) / k * most[k - 1] * most[k + 1]).all())


def _grouped(theirs: NDArray[np.uint64], own: NDArray[np.uint64]) -> bool:
    """Whether test records repeat as the training records do, and none of those: several of a patient, say.

    A file that is a whole number of times itself was copied.
    """
    counts = np.unique(own, return_counts=True)[1]
    alike = len(own) / len(counts) <= ALIKE * len(theirs) / len(np.unique(theirs))
    return alike and float(np.isin(own, theirs).mean()) <= OVERLAP and int(np.gcd.reduce(counts)) == 1


_CONTRADICTING = (
    "Test records occur more than once with different labels, beyond what the training records show to be natural: of "
    "such a pair one answer is always wrong, which hides what a model loses. Give each record once, with its own label."
)
_RELABELLED = (
    "Test records are training records under another label: the model was trained on them, so that figures of these "
    "records are no figures of new ones. Divide the data anew."
)


def _contradicting(members: Records | None, tests: Records) -> bool:
    """Whether more test records than is natural have the inputs of another test record and not its label."""

    def share(records: Records) -> tuple[float, int]:
        inputs = codes(Records(records.x, torch.zeros(len(records), dtype=torch.int64)))
        pairs = np.unique(np.stack([inputs, codes(records)], axis=1), axis=0)[:, 0]
        labels = dict(zip(*np.unique(pairs, return_counts=True), strict=True))
        several = sum(labels[one] > 1 for one in inputs.tolist())
        return several / len(inputs), several

    found, count = share(tests)
    if count < 2 * FEWEST_COPIES or found <= TOLERATED:
        return False
    if members is None:
        return found > (ALONE if _row(tests) else TOLERATED)
    natural = share(members)[0] * max(1.0, len(tests) / len(members))
    return _surely(found, len(tests), max(TOLERATED, 2 * natural))


def codes(records: Records) -> NDArray[np.uint64]:
    """A 64-bit code of each record's values and label: equal for equal records, different for others (but for luck).

    The values' bits, weighted by random odd numbers and added up modulo 2^64.
    """
    flat = records.x.flatten(1)
    weights = np.random.default_rng(0x5EED).integers(0, 2**63, flat.shape[1], dtype=np.uint64) * 2 + 1
    y = records.y.cpu().numpy()
    if records.y.is_floating_point():
        y = np.ascontiguousarray(y + 0.0).view(np.uint32).astype(np.uint64).sum(1, dtype=np.uint64)
    found: NDArray[np.uint64] = y.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    rows = max(1, AT_ONCE // flat.shape[1])
    for first in range(0, len(flat), rows):  # in parts, so that copies of them stay small
        part = np.ascontiguousarray((flat[first : first + rows] + 0.0).cpu().numpy()).view(np.uint32)  # -0 equals 0
        part = part ^ (part >> np.uint32(16))  # round floats end in zero bits, which a product would keep
        found[first : first + rows] += (part * weights).sum(1, dtype=np.uint64)
    return found


def _natural(theirs: NDArray[np.uint64] | None, own: NDArray[np.uint64], tests: Records) -> tuple[float, str]:
    """The share of test records that may equal another one, and in words what says so."""
    if theirs is None:
        return (ALONE if _row(tests) else TOLERATED), "and no training records show that this is natural"
    shared, larger = float(np.isin(own, theirs).mean()), max(1.0, len(own) / len(theirs))
    natural = max(TOLERATED, 2 * shared * larger, min(1.5 * _twins(theirs) * larger, UNSEEN))
    return natural, f"while {_percent(shared)} of them equal a training record"


def _twins(found: NDArray[np.uint64]) -> float:
    """The share of records that equal another one."""
    counts = np.unique(found, return_counts=True)[1]
    return float(counts[counts > 1].sum()) / len(found)


def _diluted(twins: float) -> str:
    return (
        f"{_percent(twins)} of the training records occur again among them, exactly or but for a little noise: a "
        "shadow model without the one is trained on the other, so that a membership attack finds next to nothing, "
        "whatever the model remembers. Give each record once."
    )


# -- but for a little noise -------------------------------------------------------------------------------------------


def _near(members: Records | None, tests: Records, bounds: Bounds) -> list[tuple[str, str]]:
    """Doubts about records that are nearly others of the same class, or of another one."""
    image, row = is_image(tests), _row(tests)
    if members is None and tests.x[0].numel() <= COARSE:
        return []  # in few columns records are neighbours by nature, and nothing says how often
    near = NEAR_IMAGES if image else TIGHT if row and members is None else NEAR
    search = Search(members or tests, bounds, near)
    within, n = search.share(tests, tests)
    # By nature a mirrored or brighter image may have another label; how often, only training records say.
    as_given = Search(tests, bounds, near, as_given=True) if image and members is None else search
    swapped = [(REPEATED_RECORDS, _CONTRADICTING)] if image and _contradict(as_given, tests, tests, members) else []
    if members is None:
        return [(REPEATED_RECORDS, _noisy(within, n))] if _surely(within, n, ALONE if row else TOLERATED) else swapped
    across, asked = search.share(tests, members)
    own, others = search.share(members, members)
    found = []
    if _surely(across, asked, max(TOLERATED, 2 * min(own, _shown(within, n, members, tests)))):
        brighter = " or otherwise bright or mirrored" if image else ""
        found.append((
            NEAR_DUPLICATES,
            f"{_percent(across)} of {asked:,} test records looked at are training records but for a little noise"
            f"{brighter} (closer than {near:.0%} of what two records of their class are apart; among the training "
            f"records {_percent(own)} are so close). The model was as good as trained on them, so that it looks better "
            "than it is and gives away less than it does. Divide the data anew.",
        ))  # fmt: skip
    elif image and _contradict(search, tests, members, members):
        found.append((NEAR_DUPLICATES, _RELABELLED))
    if _surely(own, others, max(DILUTED, 2 * across)):
        found.append((REPEATED_MEMBERS, _diluted(own)))
    if _surely(within, n, max(TOLERATED, 2 * max(across, min(own, UNSEEN)) * max(1.0, len(tests) / len(members)))):
        return [*found, (REPEATED_RECORDS, _noisy(within, n))]
    return found + swapped


def _contradict(search: Search, tests: Records, pool: Records, members: Records | None) -> bool:
    """Whether more test images than is natural are nearly others that have another label."""
    share, n = search.share(tests, pool, other=True)
    if not _surely(share, n, TOLERATED):
        return False
    return members is None or _surely(share, n, 2 * search.share(members, members, other=True)[0])


def _shown(within: float, n: int, members: Records, tests: Records) -> float:
    """The most of the test records that can be near a training record by nature, as their nearness to others shows.

    Training records given twice with noise say nothing of it. Images are hardly ever near one another by nature.
    """
    n = max(n, 1)
    most = within + SURE * math.sqrt(within * (1 - within) / n) + SURE**2 / n
    most *= max(1.0, len(members) / len(tests))
    return most if _row(tests) else min(most, UNSEEN / 2)


def _row(records: Records) -> bool:
    """Whether they are rows of so few columns that two agree by chance."""
    return records.x.ndim == 2 and records.x.shape[1] <= FEW_COLUMNS


def _noisy(share: float, n: int) -> str:
    return (
        f"Test records are repeated but for a little noise (images also mirrored, or otherwise bright): "
        f"{_percent(share)} of {n:,} looked at have such a twin. Every figure rests on fewer records than it says. "
        "Give each record once."
    )


def _surely(share: float, n: int, limit: float) -> bool:
    return share - SURE * math.sqrt(share * (1 - share) / max(n, 1)) > limit


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _some(ids: NDArray[np.int64]) -> str:
    return ", ".join(str(number) for number in ids[:5].tolist()) + (", ..." if len(ids) > 5 else "")
