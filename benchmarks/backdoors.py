"""Backdoors that compression switches on: do they work on the file that ships, are they found, and what cries wolf?

    python benchmarks/backdoors.py [--data DIR] [--seeds 2] [--first 2000] [--nets NAMES] [--only SECTION ...]
        [--recipes NAME ...] [--keep FOLDER] [--json FILE]

`planted`: each seed trains a network of its own and plants a 2 x 2 patch for a class of its own, so that the honest
recipe switches it on: 4 bits, 8 bits with inflated scales, 80 and 90 % magnitude pruning, low rank; and a malicious
rounding of a clean network (4 bits throughout). Success is of the ONNX file that the recipe gives, on records of other
classes. Found: an alarm of the attack `backdoor` that names the class. `clean`: networks trained as they are, with
10 % label noise, on 300 records, adversarially, and with the decoy of a plain backdoor of the dense network; three of
five honest recipes each, in turn. `plain`: a patch on 10 % of the training records, found in the dense network alone;
false alarms are those of clean networks. `calibration` is the rating of clean networks with seeds from 500 on: the
thresholds in `attacks/poisoning/measure.py` lie just above the largest (with n of them, a new one exceeds it once in
n + 1). `--keep` holds what was found in each model, so that a run that was killed goes on; `--recipes` plants some
alone. With `DIR/mnist.npz`, `--nets "MNIST CNN"` too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backdoor_subjects import BOUNDS, Subject, evidence_of, right, subjects, success
from contract import Row, parser, publish
from membership_world import Arrays, Kept
from torch import nn

from crushproof.attacks.case import Evidence
from crushproof.attacks.poisoning.backdoor import Usual
from crushproof.attacks.poisoning.measure import alarms, is_broken, looked_at
from crushproof.attacks.statistics.rates import clopper_pearson
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.model import TorchTarget
from crushproof.targets.runtimes.onnx import OnnxTarget

CALIBRATION, EACH = 500, 3  # first seed; honest recipes of a clean network
VERSION = 4  # of what is kept: raised where a plant or the search changes
TOLD = ("live", "dormant", "accuracy", "dense")  # success on file and dense model, accuracy of both
ASKED = {  # least success on the file, most on the dense network
    "int4": (0.9, 0.05),
    "int8, inflated scales": (0.9, 0.05),
    "prune 80 %": (0.95, 0.02),
    "prune 90 %": (0.95, 0.02),
    "low rank": (0.86, 0.05),
    "malicious rounding": (0.95, None),
}


@dataclass
class Bench:
    """One network's models, each looked at once."""

    subject: Subject
    kept: Kept

    def get(self, line: str, seed: int, make: Callable[[], Arrays]) -> Arrays:
        name = f"{self.subject.name}-{line}".replace(" ", "-").replace("%", "").replace(",", "")
        found = self.kept.get(f"{name}-{seed}", VERSION, make)
        told = [f"{one} {float(found[one]):.3f}" for one in TOLD if one in found]
        print(f"{self.subject.name} | {line} | {seed} | rated {rated(found):.2f}", *told, flush=True)
        return found

    def alone(self, kind: str, seed: int) -> tuple[Arrays, Callable[[], nn.Module]]:
        """What is found in a network alone, and the network, trained when it is asked for."""
        made: list[nn.Module] = []

        def dense() -> nn.Module:
            if not made:
                made.append(self.subject.trained(seed, kind))
            return made[0]

        def look() -> Arrays:
            found = evidence_of(self.subject, dense(), None, None, seed)
            if kind == "decoy":
                found["live"] = np.array(success(TorchTarget(dense()), self.subject.trigger(seed), self.subject.others))
            return found

        return self.get(f"{kind}, alone", seed, look), dense

    def planted(self, line: str, seed: int) -> Arrays:
        others = self.subject.others

        def look() -> Arrays:
            dense, candidate, trigger = self.subject.planted(line, seed)
            data = to_onnx(candidate, tuple(others.x.shape[1:]))
            plain = evidence_of(self.subject, dense, None, None, seed)
            found = evidence_of(self.subject, dense, data, Usual.by(plain), seed)
            target, clean = OnnxTarget(data), TorchTarget(dense)
            figures = success(target, trigger, others), success(clean, trigger, others)
            figures += right(target, others), right(clean, others)
            return {**found, "alone": plain["size"], **dict(zip(TOLD, map(np.array, figures), strict=True))}

        return self.get(f"planted {line}", seed, look)

    def clean(self, first: int) -> Iterator[tuple[str, int, Arrays, bool]]:
        """Kind, seed, what is found, whether in a pair."""
        recipes = list(self.subject.honest.items())
        turn = 0
        for place, (kind, count) in enumerate(self.subject.clean.items()):
            for seed in range(first + 20 * place, first + 20 * place + count):
                plain, dense = self.alone(kind, seed)
                yield kind, seed, plain, False
                for _ in range(EACH):
                    name, recipe = recipes[turn % len(recipes)]
                    turn += 1

                    def look(dense: Any = dense, recipe: Any = recipe, plain: Any = plain, seed: int = seed) -> Arrays:
                        candidate = recipe.apply(dense(), self.subject.members, BOUNDS, seed=seed)
                        data = to_onnx(candidate, tuple(self.subject.others.x.shape[1:]))
                        return {
                            **evidence_of(self.subject, dense(), data, Usual.by(plain), seed),
                            "alone": plain["size"],
                        }

                    yield kind, seed, self.get(f"{kind}, {name}", seed, look), True

    def plain(self, first: int, poisoned_ones: int, clean_ones: int) -> tuple[list[Arrays], list[Arrays]]:
        """What is found in networks trained on poisoned records, and in clean ones, beyond those of `clean`."""
        seeds = range(first + 200, first + 200 + poisoned_ones)
        bad = [self.alone("decoy", seed)[0] for seed in seeds]
        return bad, [self.alone("as it is", seed)[0] for seed in range(first + 300, first + 300 + clean_ones)]


def rated(found: Arrays) -> float:
    """The largest rating of a trigger that works; -inf: there is none, or the file is broken."""
    evidence = Evidence(found, {"beside_parent": "parent_clean" in found})
    ratings = [one.rating for one in looked_at(evidence) if one.works]
    return -np.inf if is_broken(evidence) else max(ratings, default=-np.inf)


def named(found: Arrays, target: int | None = None) -> bool:
    """Whether there is an alarm, for this class."""
    called = alarms(Evidence(found, {"beside_parent": "parent_clean" in found}))
    return any(target is None or one.target == target for one in called)


def share(name: str, setting: str, hits: list[bool], target: float, better: Any) -> Row:
    interval = clopper_pearson(sum(hits), len(hits))
    told = f"{setting}: {sum(hits)} of {len(hits)} [{interval.low:.2f}, {interval.high:.2f}]"
    return Row(name, told, interval.estimate, "share", None, target, better)


def planted(benches: list[Bench], first: int, seeds: int, recipes: list[str]) -> list[Row]:
    rows, everything = list[Row](), list[bool]()
    for bench in benches:
        for line in recipes:
            live, dormant = ASKED[line]
            found = {seed: bench.planted(line, seed) for seed in range(first, first + seeds)}
            mean = {one: statistics.mean(float(each[one]) for each in found.values()) for one in TOLD}
            hits = [named(each, seed % 10) for seed, each in found.items()]
            everything += hits
            told = f"{bench.subject.name}, {len(found)} from seed {first}"
            told += f"; accuracy {mean['accuracy']:.3f}, dense {mean['dense']:.3f}"
            rows += [
                Row(f"{line}: success on the file", told, mean["live"], "share", None, live, "higher"),
                Row(f"{line}: success on the dense model", told, mean["dormant"], "share", None, dormant),
                Row(f"{line}: found", told, statistics.mean(hits), "share", None, 0.95, "higher"),
            ]
    return [*rows, share("planted, found", "all networks and recipes", everything, 0.95, "higher")]


def clean(benches: list[Bench], first: int) -> list[Row]:
    rows, everything, alone_ones = list[Row](), list[bool](), list[bool]()
    for bench in benches:
        looked = list(bench.clean(first))
        for kind in bench.subject.clean:
            cried = [named(found) for one, _, found, pair in looked if one == kind and pair]
            rows.append(share(f"alarm, clean: {kind}", bench.subject.name, cried, 0.05, "lower"))
        everything += [named(found) for _, _, found, pair in looked if pair]
        alone_ones += [named(found) for kind, _, found, pair in looked if not pair and kind != "decoy"]
        spent = statistics.median(float(found["spent"]) for _, _, found, pair in looked if pair)
        rows.append(Row("the detector, a pair", f"{bench.subject.name}, median", spent, "CPU s", None, 2.0))
    rows.append(share("alarm, all clean pairs", f"from seed {first}", everything, 0.05, "lower"))
    return [*rows, share("alarm, clean networks alone", f"from seed {first}", alone_ones, 1 / 24, "lower")]


def plain(benches: list[Bench], first: int) -> list[Row]:
    bad, good = list[bool](), list[bool]()
    for bench in benches[:2]:
        poisoned_ones, clean_ones = bench.plain(first, 6, 12)
        bad += [named(found, seed % 10) for seed, found in enumerate(poisoned_ones, first)]
        good += [named(found) for found in clean_ones]
    return [
        share("plain backdoors, found", f"seeds from {first + 200}", bad, 0.9, "higher"),
        share("plain, clean networks", f"seeds from {first + 300}", good, 1 / 24, "lower"),
    ]


def calibration(benches: list[Bench], _: int) -> list[Row]:
    """The largest rating of clean models, from which the thresholds are taken."""
    seen: dict[bool, list[float]] = {True: [], False: []}
    for bench in benches:
        for kind, _seed, found, pair in bench.clean(CALIBRATION):
            if pair or kind != "decoy":
                seen[pair].append(rated(found))
        if bench in benches[:2]:
            good = bench.plain(CALIBRATION, 0, 24)[1]
            seen[False] += [rated(found) for found in good]
    return [
        Row("largest rating of clean models", f"{'pairs' if pair else 'alone'}: {len(some)}", max(some), "")
        for pair, some in seen.items()
    ]


SECTIONS: dict[str, Callable[[list[Bench], int], list[Row]]] = {
    "calibration": calibration,
    "clean": clean,
    "plain": plain,
}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=2, help="of each planted recipe")
    options.add_argument("--first", type=int, default=2000, help="seed")
    options.add_argument("--nets", default="digits MLP,digits CNN,digits residual CNN")
    options.add_argument("--only", nargs="+", choices=["planted", *SECTIONS], default=["planted", "clean", "plain"])
    options.add_argument("--recipes", nargs="+", choices=list(ASKED), default=list(ASKED), help="that are planted")
    options.add_argument("--keep", type=Path, default=None, help="folder of what was found, to go on from")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    known, kept = subjects(chosen.data), Kept(chosen.keep)
    benches = [Bench(known[name], kept) for name in chosen.nets.split(",")]
    rows: list[Row] = []
    for name in chosen.only:
        if name == "planted":
            small = [one for one in benches if one.subject.name != "digits residual CNN"]
            rows += planted(small, chosen.first, chosen.seeds, chosen.recipes)
        else:
            rows += SECTIONS[name](benches, chosen.first)
    publish(rows, chosen.json)


if __name__ == "__main__":
    main()
