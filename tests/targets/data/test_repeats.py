"""Records that occur more than once: what is natural, what is flagged and what is refused, by table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from repeated_records import Split, both, data, fine, first, images, noisy, records, table, times, two_columns, visits

from crushproof.targets.data.copies.repeats import NEAR_DUPLICATES, REPEATED_MEMBERS, REPEATED_RECORDS
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds
from crushproof.targets.errors import InputError

TRAIN, TEST, COARSE = images(600, 0), images(300, 1), table(900, 2)

# training records, test records, flags, how many test records are left
DATA: dict[str, tuple[Split | None, Split, set[str], int]] = {
    "honest images": (TRAIN, TEST, set(), 300),
    "honest images, test records only": (None, TEST, set(), 300),
    "a coarse table": (COARSE, table(600, 3), set(), 600),
    "a coarse table, test records only": (None, first(table(600, 3), 60), set(), 60),
    "two fractions, neighbours by nature": (two_columns(600, 0), two_columns(300, 1), set(), 300),
    "an augmented training set": (both(TRAIN, noisy(TRAIN, 0.01)), TEST, {REPEATED_MEMBERS}, 300),
    "30 test records 10 times": (TRAIN, times(first(TEST, 30), 10), {REPEATED_RECORDS}, 30),
    "the same, nothing known of training": (None, times(first(TEST, 30), 10), {REPEATED_RECORDS}, 30),
    "one easy record as often as all others": (
        TRAIN,
        both(TEST, times(first(TEST, 1), 300)),
        {REPEATED_RECORDS},
        300,
    ),
    "the training set repeats as well": (
        times(first(TRAIN, 60), 10),
        times(first(TEST, 30), 10),
        {REPEATED_RECORDS, REPEATED_MEMBERS},
        30,
    ),
    "a coarse table's test records 10 times": (COARSE, times(table(60, 7), 10), {REPEATED_RECORDS}, 58),
    "copies with noise": (TRAIN, noisy(times(first(TEST, 30), 10), 1e-4), {REPEATED_RECORDS}, 300),
    "copies with more noise": (None, noisy(times(first(TEST, 30), 10), 3e-3), {REPEATED_RECORDS}, 300),
    "members with noise 1e-4": (TRAIN, noisy(first(TRAIN, 300), 1e-4), {NEAR_DUPLICATES}, 300),
    "members with noise 3e-3": (TRAIN, noisy(first(TRAIN, 300), 3e-3), {NEAR_DUPLICATES}, 300),
    "a fifth is members with noise": (
        TRAIN,
        both(noisy(first(TRAIN, 60), 1e-4), first(TEST, 240)),
        {NEAR_DUPLICATES},
        300,
    ),
    "150 records 16 times": (TRAIN, times(first(TEST, 150), 16), {REPEATED_RECORDS}, 150),
    "the same, training records twice": (
        times(TRAIN, 2),
        both(times(first(TEST, 150), 16), first(images(1, 5), 1)),
        {REPEATED_RECORDS, REPEATED_MEMBERS},
        151,
    ),
    "patients who do not change": (visits(200, 0), visits(100, 1), {REPEATED_MEMBERS}, 100),
    "patients in the test set only": (fine(900, 0), visits(100, 1), {REPEATED_RECORDS}, 100),
    "members with noise, the training set doubled so": (
        both(TRAIN, noisy(TRAIN, 1e-4)),
        noisy(first(TRAIN, 300), 3e-4),
        {NEAR_DUPLICATES},
        300,
    ),
    "the training set doubled with noise": (both(TRAIN, noisy(TRAIN, 1e-4)), TEST, {REPEATED_MEMBERS}, 300),
}


def words(n: int, seed: int) -> Split:
    """5 of 4,000 words each."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, 4_000), np.float32)
    np.put_along_axis(x, rng.integers(0, 4_000, (n, 5)), 1, 1)
    return x, rng.integers(0, 3, n)


def relabelled(split: Split) -> Split:
    return split[0], (split[1] + 1) % 3


MEMBERS = first(TRAIN, 200)
SMALL = first(TEST, 100)
SERIES, Y = SMALL[0].reshape(100, 1, 1, 36), np.zeros(100, dtype=int)
DATA |= {
    "copies a little brighter": (None, both(SMALL, (0.8 * SMALL[0] + 0.1, SMALL[1])), {REPEATED_RECORDS}, 200),
    "copies mirrored": (None, both(SMALL, (SMALL[0][..., ::-1].copy(), SMALL[1])), {REPEATED_RECORDS}, 200),
    "members darker": (TRAIN, (0.7 * MEMBERS[0], MEMBERS[1]), {NEAR_DUPLICATES}, 200),
    "members mirrored": (TRAIN, (MEMBERS[0][..., ::-1].copy(), MEMBERS[1]), {NEAR_DUPLICATES}, 200),
    "members with noise .02": (TRAIN, noisy(MEMBERS, 0.02), {NEAR_DUPLICATES}, 200),
    "members under another label": (TRAIN, relabelled(MEMBERS), {NEAR_DUPLICATES}, 200),
    "the same with noise": (TRAIN, relabelled(noisy(MEMBERS, 1e-3)), {NEAR_DUPLICATES}, 200),
    "each under two labels": (TRAIN, both(SMALL, relabelled(SMALL)), {REPEATED_RECORDS}, 200),
    "the same with noise, test records only": (
        None,
        both(SMALL, relabelled(noisy(SMALL, 1e-3))),
        {REPEATED_RECORDS},
        200,
    ),
    "mirror images have another label": (None, both((SMALL[0], Y), (SMALL[0][..., ::-1].copy(), Y + 1)), set(), 200),
    "series of two strengths": (None, both((SERIES, Y), (0.3 * SERIES, Y + 1)), set(), 200),
    "rows of a few of many words": (None, words(300, 1), set(), 300),
    "the same and copies": (
        None,
        both(words(80, 1), noisy(first(words(80, 1), 40), 1e-4)),
        {REPEATED_RECORDS},
        120,
    ),
    "rows under two labels": (fine(600, 0), both(fine(100, 1), relabelled(fine(100, 1))), {REPEATED_RECORDS}, 200),
    "the same, test records only": (None, both(fine(100, 1), relabelled(fine(100, 1))), {REPEATED_RECORDS}, 200),
    "rows 10 times with noise, test records only": (None, noisy(times(fine(30, 1), 10), 1e-6), {REPEATED_RECORDS}, 300),
    "honest rows, test records only": (None, fine(300, 1), set(), 300),
    "one image of each class, with noise": (None, noisy(times(first(TEST, 3), 100), 1e-3), {REPEATED_RECORDS}, 300),
    "a coarse table with noisy labels": (
        (COARSE[0], COARSE[1] ^ (np.random.default_rng(0).random(900) < 0.2)),
        (table(600, 3)[0], table(600, 3)[1] ^ (np.random.default_rng(1).random(600) < 0.2)),
        set(),
        600,
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_copies_of_records(name: str) -> None:
    members, tests, flags, left = DATA[name]
    made = data(members, tests)
    assert ({flag for flag, _ in made.doubts}, len(made.non_members)) == (flags, left)
    assert all(sentence in made.notes for _, sentence in made.doubts)
    assert len(set(map(int, made.evaluation_ids))) == len(made.evaluation_ids) < left


def test_groups_follow_the_records_that_are_left() -> None:
    x, y = times(first(TEST, 30), 10)
    groups = tuple(f"g{at % 30}" for at in range(300))
    non_members = records((x, y))
    assert non_members is not None
    made = Data("x", records(TRAIN), non_members, Bounds.of(0, 1), ("a", "b", "c"), groups)
    assert made.groups is not None
    assert torch.equal(made.non_members.x, torch.from_numpy(x[[int(name[1:]) for name in made.groups]]))


def divided(split: Split, n: int) -> tuple[Split, Split]:
    """By chance: n records and the rest."""
    order = np.random.default_rng(0).permutation(len(split[0]))
    return (split[0][order[:n]], split[1][order[:n]]), (split[0][order[n:]], split[1][order[n:]])


WITHIN = "Training records are among the test records"

REFUSED: dict[str, tuple[Split | None, Split, str]] = {
    "images that repeat, and some of them": (times(first(TRAIN, 60), 10), first(TRAIN, 60), WITHIN),
    "a table twice, 200 of 420 of it": (times(fine(600, 0), 2), both(first(fine(600, 0), 200), fine(220, 1)), WITHIN),
    "a third of it twice": (
        both(fine(600, 0), first(fine(600, 0), 200)),
        both(first(fine(600, 0), 200), fine(220, 1)),
        WITHIN,
    ),
    "5 times, and the test set twice": (
        times(fine(600, 0), 5),
        times(both(first(fine(600, 0), 200), fine(220, 1)), 2),
        WITHIN,
    ),
    "doubled before it was divided": (*divided(times(fine(600, 0), 2), 800), WITHIN),
    "a coarse table twice, which may or may not hold them": (times(COARSE, 2), table(600, 3), WITHIN),
    "2 records 100 times": (fine(600, 0), times(first(fine(9, 6), 2), 100), "only 2 test records .* of 200 given"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_copies_that_are_refused(name: str) -> None:
    members, tests, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        data(members, tests)
