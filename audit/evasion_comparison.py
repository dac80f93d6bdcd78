"""What evasion found on one model, and how two models compare: like with like (rule 11).

A change counts the parts that ran on both sides with the same parameters and, of transfer, the inputs crafted on each
of the two and asked of the other. What one side alone faced is in its own figure and in the row of that part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..attacks.attack import Access, Flag
from ..attacks.evasion import trust
from ..attacks.evasion.evasion import Evasion
from .cells import Result
from .evasion_cells import at_radius, radius_cell, replay_cell, room_cell
from .findings import Change
from .lineup import Contender
from .measures import Bools, rate, rate_change
from .reader import Reader, candidate_flags
from .steps import AGREEMENT

REPLAYED = "transfer from its candidates"  # as a dense model faces it; no part can be labelled so
BOTH_WAYS = "transfer both ways"  # as a change counts it


@dataclass(frozen=True)
class Measured:
    """The evidence on one model, with what its candidates contribute where it is a dense one.

    Args:
        robust: bool [n], withstood every attack at the gate's epsilon.
        flags: of that worst case; part_flags: by part.
        replayed: bool [n], fooled by inputs crafted on its candidates; None where there are none.
    """

    result: Result
    attack: Evasion
    robust: Bools
    flags: list[str]
    part_flags: dict[str, list[str]]
    replayed: Bools | None

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = self.result.document["summary"]
        return summary

    def fooled(self, part: str) -> Bools | None:
        """bool [n], at the gate's epsilon; None where the part did not run there."""
        array = self.result.arrays.get(f"fooled/{part}/{self.attack.gate!r}")
        return None if array is None else np.asarray(array, dtype=bool)


def measured(
    reader: Reader, contender: Contender, attack: Evasion, label: str, against: Contender | None = None
) -> Measured | None:
    """What was found on one model; None where the attack did not run.

    Args:
        against: of the candidates of a dense model, only this one's crafted inputs count; None: those of all.
    """
    result = reader.get(reader.suite.attack_cell(label, contender.name))
    resolved = resolve_radius(reader, attack)
    if result is None or resolved is None:
        return None
    replayed = [
        np.asarray(found.arrays["on_baseline"], dtype=bool)
        for other in (reader.suite.compared_with(contender) if against is None else [against.name])
        if (found := reader.get(replay_cell(label, other, contender.name))) is not None
    ]
    robust = robust_at(result, resolved.gate)
    flags, part_flags = set(result.document["summary"]["union_flags"]), dict(result.document["flags"])
    together = None
    if replayed:
        together = np.logical_or.reduce(replayed)
        robust = robust & ~together
        flags, part_flags = _flags_with_replays(result, resolved, together)
    certificate = result.document.get("certificate")
    if certificate is not None and certificate["overall"]["label_agreement"] < AGREEMENT:
        flags.add(Flag.TWIN_DISAGREES.value)
    if without_twin(reader, contender):
        flags.add(Flag.NO_WHITE_BOX.value)
    if reader.suite.subject.data.bounds_doubt:
        flags.add(Flag.BOUNDS_DOUBTFUL.value)
    chosen = reader.get(radius_cell(attack)) if attack.automatic else None
    if chosen is not None and chosen.document["radius"]["how"] == "nearest":
        flags.add(Flag.EPSILON_EXTREME.value)
    return Measured(result, resolved, robust, sorted(flags), part_flags, together)


def resolve_radius(reader: Reader, attack: Evasion) -> Evasion | None:
    """The attack with the radius that was chosen for it; None where none could be."""
    if not attack.automatic:
        return attack
    chosen = reader.get(radius_cell(attack))
    return None if chosen is None else at_radius(attack, chosen)


def _flags_with_replays(result: Result, attack: Evasion, replayed: Bools) -> tuple[set[str], dict[str, list[str]]]:
    """The flags of a dense model's worst case once inputs crafted on its candidates are among its attacks."""
    summary = result.document["summary"]
    access = {part: Access(value) for part, value in summary["part_access"].items()} | {REPLAYED: Access.LABELS}
    fooled = {
        part: np.asarray(result.arrays[f"fooled/{part}/{attack.gate!r}"], dtype=bool)
        for part in summary["parts"]
        if f"fooled/{part}/{attack.gate!r}" in result.arrays
    } | {REPLAYED: replayed}
    flags = {part: set(raised) for part, raised in result.document["flags"].items()}
    for part, outcomes in fooled.items():
        if access[part] is Access.WHITE_BOX and trust.beats(replayed, outcomes):
            flags.setdefault(part, set()).add(Flag.BLACK_BOX_WINS.value)
    by_part = {part: sorted(raised) for part, raised in flags.items() if raised}
    return set(trust.union_flags(access, by_part, fooled)), by_part


def like_for_like(
    reader: Reader, contender: Contender, name: str, mine: Measured, theirs: Measured, label: str
) -> Change | None:
    """The paired change over what both models faced with the same parameters; None where there is no such part."""
    both: dict[str, tuple[Bools, Bools]] = {}
    for part in mine.summary["parts"]:
        alike = mine.summary["settings"][part] == theirs.summary["settings"].get(part)
        own, other = mine.fooled(part), theirs.fooled(part)
        if alike and own is not None and other is not None and part not in mine.summary["use_parent"]:
            both[part] = own, other
    replays = reader.get(replay_cell(label, contender.name, name))
    if replays is not None and mine.summary["use_parent"]:
        both[BOTH_WAYS] = replays.arrays["on_candidate"].astype(bool), replays.arrays["on_baseline"].astype(bool)
    if not both:
        return None
    robust = ~np.logical_or.reduce([own for own, _ in both.values()])
    baseline = ~np.logical_or.reduce([other for _, other in both.values()])
    parent = reader.suite.lineup.contender(name)
    change = rate_change(robust, baseline, name)
    return change.model_copy(
        update={
            "counted": list(both),
            "flags": sorted({*theirs.flags, *candidate_flags(reader, parent)}),
            "floor": _chance(reader, theirs),
            "instead": _instead(reader, parent, theirs.attack, label),
        }
    )


def _chance(reader: Reader, baseline: Measured) -> float:
    """The robust accuracy of a guesser, where that is well below a third of the baseline's accuracy, else 0.

    With few classes an attack pushes any model below chance, so there chance is no floor.
    """
    chance = 1 / reader.suite.subject.data.classes
    return chance if chance < float(np.mean(baseline.result.arrays["clean_correct"])) / 6 else 0.0


def _instead(reader: Reader, parent: Contender, attack: Evasion, label: str) -> str | None:
    """The epsilon at which the parent keeps about half of its accuracy, where at the gate's it keeps next to none."""
    found = reader.get(room_cell(label, parent.name))
    radius = None if found is None else found.document["radius"]
    if radius is None:
        return None
    share = kept_words(radius)
    if radius["how"] == "nearest":
        return f"no epsilon was found that leaves {parent.name} about half; at {radius['epsilon']:.2g} it keeps {share}"
    return f"at epsilon {radius['epsilon']:.2g} {parent.name} keeps {share}: name that, or epsilon: auto"


def without_twin(reader: Reader, contender: Contender) -> bool:
    candidate = reader.get(reader.suite.candidate_cell(contender))
    return candidate is not None and candidate.document["certificate"] is None


def robust_at(result: Result, epsilon: float) -> Bools:
    """bool [n]: the deployed model withstood every attack at this epsilon."""
    return ~np.asarray(result.arrays[f"worst/{epsilon!r}"], dtype=bool)


def kept_words(radius: Mapping[str, Any]) -> str:
    """What the probed model keeps at the chosen radius, with its interval, n and access."""
    probe = {float(epsilon): share for epsilon, share in radius["probe"].items()}
    right = max(1, round(probe[0.0] * radius["records"]))
    kept = rate(np.arange(right) < round(radius["kept"] * right))
    return (
        f"{100 * kept.estimate:.0f} % [{100 * kept.low:.0f}, {100 * kept.high:.0f}] of its accuracy (a quick probe of "
        f"{radius['records']} of the attacker's records, white-box where there is a twin)"
    )
