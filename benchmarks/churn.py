"""Churn gates: is a candidate that fails one group named and failed, and how often is an honest one?

    python benchmarks/churn.py [--seeds 100] [--json FILE]

Records of 10 classes and 4 groups; a candidate loses and gains records at random. Planted: it loses a quarter of one
group's. Equal: flips of the same rate in every group, as many lost as gained on average, of which each name and each
failed gate is an alarm. Also the coverage of the simultaneous interval around the true worst change, with losses that
differ by group.
"""

from __future__ import annotations

import numpy as np
from contract import Row, parser, publish

from crushproof.attacks.statistics.groups import got_worse, worst_change
from crushproof.attacks.statistics.rates import holm, mcnemar

CLASSES, GROUPS = 10, ("north", "south", "east", "west")
SIZES = (0.1, 0.2, 0.3, 0.4)  # of the groups, as shares
Masks = dict[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]
Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]


def population(records: int, rng: np.random.Generator) -> tuple[Masks, Bools]:
    """The masks of classes and groups, and what the parent gets right (96 %)."""
    labels, groups = rng.integers(CLASSES, size=records), rng.choice(len(GROUPS), size=records, p=SIZES)
    masks = {str(one): labels == one for one in range(CLASSES)}
    masks |= {f"group {name}": groups == at for at, name in enumerate(GROUPS)}
    return masks, rng.random(records) < 0.96


def compressed(before: Bools, loses: Bools | float, gains: float, rng: np.random.Generator) -> Bools:
    """What a candidate gets right that loses and gains records with these probabilities."""
    flips = rng.random(len(before))
    return np.where(before, flips >= loses, flips < gains)


def planted(seeds: int, records: int) -> list[Row]:
    named = beyond = failed = others = 0
    for seed in range(seeds):
        rng = np.random.default_rng([seed, records, 1])
        masks, before = population(records, rng)
        after = compressed(before, np.where(masks["group north"], 0.25, 0.01), 0.2, rng)
        lost, gained = before & ~after, after & ~before
        worse, _ = got_worse(lost, gained, masks)
        p = holm([mcnemar(int(lost[mask].sum()), int(gained[mask].sum())) for mask in masks.values()])
        named += "group north" in worse
        beyond += p[list(masks).index("group north")] < 0.01
        others += any(name != "group north" for name in worse)
        failed += worst_change(after, before, masks)[1].high < -0.05
    setting = f"{records} records, one group loses 25 %"
    target = 0.95 if records >= 2000 else None  # of 600 records 60 are of that group
    return [
        Row("planted: the group is named", setting, named / seeds, "of seeds", target=target, better="higher"),
        Row("planted: with p < .01 after Holm", setting, beyond / seeds, "of seeds", target=target, better="higher"),
        Row("planted: the gate at 5 points fails", setting, failed / seeds, "of seeds", target=target, better="higher"),
        Row("planted: a class is named too", setting, others / seeds, "of seeds"),
    ]


def equal(seeds: int, records: int) -> list[Row]:
    rows = []
    for rate in (0.02, 0.05, 0.1):
        named = failed = 0
        for seed in range(seeds):
            rng = np.random.default_rng([seed, records, 2])
            masks, _ = population(records, rng)
            before = rng.random(records) < 0.8
            after = compressed(before, rate, 4 * rate, rng)  # a fifth are wrong, so that as many are gained as lost
            named += bool(got_worse(before & ~after, after & ~before, masks)[0])
            failed += worst_change(after, before, masks)[1].high < 0
        setting = f"{records} records, {2 * rate * 0.8:.1%} flip"
        rows += [
            Row("equal: alarms, a class or group named", setting, named / seeds, "of seeds", target=0.05),
            Row("equal: alarms, the gate at 0 fails", setting, failed / seeds, "of seeds", target=0.05),
        ]
    return rows


def coverage(seeds: int, records: int) -> list[Row]:
    inside = below = 0
    for seed in range(seeds):
        rng = np.random.default_rng([seed, records, 3])
        masks, _ = population(records, rng)
        loses = 0.02 + 0.1 * masks["3"] + 0.1 * masks["group north"]
        before = np.ones(records, dtype=bool)
        after = compressed(before, loses, 0.0, rng)
        truth = min(float(-loses[mask].mean()) for mask in masks.values())
        found = worst_change(after, before, masks)[1]
        inside += found.low <= truth <= found.high
        below += found.high < truth
    setting = f"{records} records, losses differ by group"
    return [
        Row("interval holds the worst change", setting, inside / seeds, "of seeds", target=0.95, better="higher"),
        Row("interval wholly below it", setting, below / seeds, "of seeds", target=0.025),
    ]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=100)
    chosen = options.parse_args()
    rows = [
        row for records in (600, 2000) for part in (planted, equal, coverage) for row in part(chosen.seeds, records)
    ]
    publish(rows, chosen.json)


if __name__ == "__main__":
    main()
