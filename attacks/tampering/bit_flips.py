"""Bit flips: the fewest bits of the shipped file whose change makes it useless, found with its gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from ...targets.data.records import Records
from ...targets.errors import CrushproofError, NotApplicable, UnsafeInput
from ...targets.form import Form
from ...targets.seeds import derive, generator
from ...targets.steps import pulse
from ...targets.untrusted.model_file import check_onnx
from ..access import Ledger
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Measurement
from ..preparation import Audited, Basis, Results, Scope
from ..risk import Metric, Risk
from .evidence_form import evidence_form, flips_of, reached
from .files import Files, random_flips
from .goal import Goal
from .integrity import CHECKS, noticed, octets
from .measure import CLASS, NOTICED, measure_flips
from .ranking import Allowed
from .risk import FLIPS_NOTICED, FLIPS_TO_CHANCE, FLIPS_TO_MISS, TAMPERING
from .search import Found, search
from .stored import Stored, by_role, parameters
from .surrogate import Surrogate, correct

ANY, NO_EXPONENT = "any bit", "all but exponents"
LAYERS = 32  # that are searched one by one, at most
KEEP = 2.0  # how much the others count beside the class to miss: to break all must not look like an advance
FEWEST = 8  # records of the attacker's own


@ATTACKS.register
class BitFlips(Attack):
    """The fewest bits to flip in the stored file (Bit-Flip Attack, Rakin et al. 2019, arXiv:1903.12269).

    All parameters that the file holds are searched, as they are stored: codes of any width, packed ones too, scales,
    zero points, biases, code books and their indices, norms, and floats with their exponents and signs. A search
    follows the gradients of the file's twin on a few records of the attacker's own; each flip is made in the file and
    run in ONNX Runtime before it counts, and the evaluation records decide when the goal is reached: accuracy no
    better than always naming the commonest class (with two standard errors), or one class always wrong. Each draw has
    other records of the attacker's own and another class. NaN and infinite logits are wrong answers.

    Evidence arrays, n evaluation records, f flips of s searches: `ids` int64 [n]; `clean_correct` bool [n]; `flips`
    int64 [f, 4] (search, tensor, element, bit), in the order in which they are made; `after` bool [f, n], what the
    file gets right after each; `random` bool [draws that run, n], after as many random flips; `noticed` bool [s, 3],
    by each of `integrity.CHECKS`; `groups` int64 [s, 2], with a flipped bit, and of these noticed.
    """

    risk: ClassVar[Risk] = TAMPERING
    metrics: ClassVar[tuple[Metric, ...]] = (FLIPS_TO_CHANCE, FLIPS_TO_MISS, FLIPS_NOTICED)

    kind: Literal["bit-flips"] = "bit-flips"
    draws: int = Field(5, ge=2, le=100, description="searches of a sort, each with other records of the attacker's")
    budget: int = Field(24, ge=1, le=10_000, description="flips of a search, at most")
    own: int = Field(128, ge=FEWEST, le=100_000, description="records of the attacker's own in a search, at most")
    records: int = Field(300, ge=1, le=10_000_000, description="evaluation records, at most")
    parts: Literal["any", "kinds", "layers"] = Field(
        "kinds",
        description="any: all bits may be flipped; kinds: then also each kind of parameter alone, and all but "
        "exponents; layers: then also each layer alone",
    )
    random: int = Field(64, ge=0, le=1_000_000, description="random flips, the control; 0: none")
    group_bytes: int = Field(64, ge=2, le=2**20, description="bytes that share a keyed checksum")

    @property
    def effort(self) -> Effort:
        searches = self.draws * {"any": 2, "kinds": 6, "layers": 14}[self.parts]
        flips = min(self.budget, 4)
        return Effort(
            answers=searches * flips * (8 * self.own + self.records), gradients=searches * flips * 2 * self.own
        )

    def unfit(self, scope: Scope) -> str | None:
        return "no records of the attacker's own" if len(scope.data.attacker) < FEWEST else None

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        return (Run(uses_parent=False, effort=self.effort),)

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", CLASS, NOTICED)

    def form(self, model: Audited, scope: Scope) -> Form:
        count = min(self.records, len(scope.data.evaluation_ids))
        return evidence_form(count, {"draws": self.draws, "budget": self.budget, "random": self.random}, scope)

    def run(self, case: Case, *, seed: int) -> Evidence:
        work = _opened(self, case, seed)
        searches = list(self._searches(work))
        rows = [(number, *flip) for number, (_, found) in enumerate(searches) for flip in found.flips]
        after = [right.numpy() for _, found in searches for right in found.after]
        by_chance = [work.files.answers(flips, work.own.x[:1]) for flips in self._random(work.tensors, seed)]
        ran = [told[1].numpy() for told in by_chance if told is not None]
        checks = [
            noticed(work.tensors, found.flips, self.group_bytes, derive(seed, "key", number))
            for number, (_, found) in enumerate(searches)
        ]
        n, size = len(work.evaluation), len(octets(work.tensors))
        summary = {
            "tensors": [
                {"name": one.name, "role": one.role, "layer": one.layer, "width": one.width, "elements": len(one.raw)}
                for one in work.tensors
            ],
            "searches": [told for told, _ in searches],
            "chance": work.chance,
            "own": min(self.own, len(work.own)),
            "budget": self.budget,
            "random": self.random,
            "lost": len(by_chance) - len(ran),
            "groups": math.ceil(size / self.group_bytes),
        }
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "ids": np.asarray(case.ids[:n], np.int64),
            "clean_correct": work.clean,
            "flips": np.array(rows, np.int64).reshape(-1, 4),
            "after": np.array(after, bool).reshape(-1, n),
            "random": np.array(ran, bool).reshape(-1, n),
            "noticed": np.array([one.by for one in checks], bool).reshape(-1, len(CHECKS)),
            "groups": np.array([(one.altered, one.seen) for one in checks], np.int64).reshape(-1, 2),
        }
        return Evidence(arrays, summary, ledger=work.ledger)

    def _searches(self, work: _Work) -> Iterator[tuple[dict[str, Any], Found]]:
        """Each with what it was for. Who may flip any bit may do what is found where only some may be flipped."""
        parts = self._parts(work.tensors)
        for draw in range(self.draws):
            pulse("draw", draw, self.draws)
            order = torch.randperm(len(work.own), generator=generator(work.seed, "own", draw))
            goal, wanted = _goal(work, order[: self.own], -1), self._class(work, draw)
            found = {part: self._found(work, goal, allowed) for part, allowed in parts.items()}
            shortest = min(found.values(), key=lambda one: (not one.reached, len(one.flips)))
            if shortest.reached and len(shortest.flips) < len(found[ANY].flips) + 10**9 * (not found[ANY].reached):
                found[ANY] = shortest
            for part, one in found.items():
                yield self._told("chance", part, draw, -1, one), one
            if wanted is not None:
                mine = work.own.y[order] == wanted
                half = order[mine][: self.own // 2]
                rows = torch.cat([half, order[~mine][: self.own - len(half)]])
                one = self._found(work, _goal(work, rows, wanted), parts[ANY])
                yield self._told("class", ANY, draw, wanted, one), one
        pulse("draw", self.draws, self.draws)

    def _told(self, goal: str, part: str, draw: int, wanted: int, found: Found) -> dict[str, Any]:
        stuck = not found.reached and len(found.flips) < self.budget
        row = {"goal": goal, "part": part, "draw": draw, "wanted": wanted}
        return {**row, "reached": found.reached, "stuck": stuck}

    def _found(self, work: _Work, goal: Goal, allowed: Allowed) -> Found:
        return search(work.surrogate, work.files, goal, self.budget, allowed, work.inert, work.ledger)

    def _class(self, work: _Work, draw: int) -> int | None:
        """A class that both the attacker and the evaluation have, and that the file mostly gets right."""
        y, own = work.evaluation.y.numpy(), work.own.y.numpy()
        known = [one for one in np.unique(y) if (own == one).any() and work.clean[y == one].mean() > 0.5]
        if len(known) < 2:
            return None
        order = torch.randperm(len(known), generator=generator(work.seed, "classes")).tolist()
        return int(known[order[draw % len(known)]])

    def _parts(self, tensors: list[Stored]) -> dict[str, Allowed]:
        found: dict[str, Allowed] = {ANY: lambda one, bit: True}
        roles, layers = list(by_role(tensors)), list(dict.fromkeys(one.layer for one in tensors))
        if self.parts != "any":
            for role in roles if len(roles) > 1 else ():
                found[f"{role} alone"] = partial(_is, "role", role)
            found[NO_EXPONENT] = lambda one, bit: not one.exponent(bit)
        if self.parts == "layers" and len(layers) > 1:
            for layer in layers[:LAYERS]:
                found[f"layer {layer[:80]} alone"] = partial(_is, "layer", layer)
        return found

    def _random(self, tensors: list[Stored], seed: int) -> list[Any]:
        draws = self.draws if self.random else 0
        return [random_flips(tensors, self.random, derive(seed, "random", draw)) for draw in range(draws)]

    def measure(self, results: Results) -> list[Measurement]:
        return measure_flips(results)

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        right = evidence.arrays["clean_correct"]
        if basis.contradicted(evidence.arrays["ids"], right, right):
            return ["the records that the model classifies right are others"]
        return []

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        """The last flips of each search are made again and the file is run."""
        work, told = _opened(self, case, 0), []
        if [one.name for one in work.tensors] != [one["name"] for one in evidence.summary["tensors"]]:
            return ["the file holds other parameters"]
        for number in range(len(evidence.summary["searches"])):
            flips = flips_of(evidence.arrays, number)
            after = evidence.arrays["after"][evidence.arrays["flips"][:, 0] == number]
            again = work.files.answers(flips, work.own.x[:1]) if flips else None
            if flips and (again is None or not np.array_equal(again[1].numpy(), after[-1])):
                told.append(f"the file answers otherwise after the flips of search {number}")
        return told

    def limits(self, scope: Scope) -> list[str]:
        return [
            "The bit flips found are the fewest that this search found on the stored file: fewer may do, and how hard "
            "it is to flip a given bit of a given memory is not measured."
        ]


def _is(attribute: str, wanted: str, one: Stored, bit: int) -> bool:
    return bool(getattr(one, attribute) == wanted)


def _goal(work: _Work, rows: torch.Tensor, wanted: int) -> Goal:
    """To be useless (`wanted` -1), or wrong about one class and right about the others.

    Args:
        rows: of the attacker's records, those that it is searched with.
    """
    own = work.own.take(rows)
    labels, weights, enough = work.evaluation.y.numpy(), torch.ones(len(own)), work.chance / 2
    if wanted >= 0:
        enough = -0.9 * KEEP / (1 + KEEP)  # of the class nothing is left, of the others nine tenths
        mine = own.y == wanted
        others = -KEEP * float(mine.sum()) / max(1, int((~mine).sum()))
        weights = torch.where(mine, 1.0, torch.tensor(others))
    return Goal(own, weights, lambda right: reached(right.numpy(), work.clean, labels, wanted, work.chance), enough)


@dataclass
class _Work:
    """What all searches of a run share."""

    tensors: list[Stored]
    surrogate: Surrogate
    files: Files
    own: Records
    evaluation: Records
    clean: np.ndarray[Any, Any]
    chance: float
    seed: int
    ledger: Ledger
    inert: set[int] = field(default_factory=set)


def _opened(attack: BitFlips, case: Case, seed: int) -> _Work:
    """Raises NotApplicable where there is nothing to flip, or nothing to lose."""
    if not case.shipped:
        raise NotApplicable("the shipped bytes are not at hand")
    if len(case.attacker) < FEWEST:
        raise NotApplicable(f"not applicable: the attacker has {len(case.attacker)} records of its own, too few")
    try:
        checked = check_onnx(case.shipped)
        tensors = parameters(checked)
    except UnsafeInput:
        raise NotApplicable("not applicable: bits are flipped in ONNX files, and this file is none") from None
    if not tensors:
        raise NotApplicable("the file holds no parameters that an operator known here computes with")
    try:
        surrogate = Surrogate(checked, tensors, case.assumptions)
    except CrushproofError as error:
        raise NotApplicable(f"the bits to flip are found by gradients, and there are none: {error}") from None
    own, ledger = case.attacker.to("cpu"), Ledger()
    evaluation = case.evaluation.take(torch.arange(min(attack.records, len(case.evaluation)))).to("cpu")
    files = Files(checked, tensors, case.assumptions, evaluation, ledger)
    clean = correct(case.deployed.logits(evaluation.x).cpu(), evaluation.y).numpy()
    ledger.queries += len(evaluation)
    commonest = float(torch.bincount(evaluation.y).max()) / len(evaluation)
    chance = min(1.0, commonest + 2 * math.sqrt(commonest * (1 - commonest) / len(evaluation)))
    if clean.mean() <= chance:
        raise NotApplicable("not applicable: the model is no better than guessing as it is")
    return _Work(tensors, surrogate, files, own, evaluation, clean, chance, seed, ledger)
