"""The cells of an evasion attack: its radius, the attack, its draws, and what a fair comparison needs beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..attacks.attack import Case
from ..attacks.evasion.ball import Ball
from ..attacks.evasion.categories import not_pixels
from ..attacks.evasion.evasion import Evasion
from ..attacks.evasion.pgd import GradientPerturber, craft
from ..attacks.evasion.radius import LEAST, choose
from ..attacks.evasion.transfer import replayed
from ..targets.data import Data
from ..targets.errors import NotApplicable
from ..targets.seeds import derive
from .cells import Result, cell_key
from .lineup import Contender, Dense

if TYPE_CHECKING:
    from .suite import Suite

Get = Callable[[str], Result]


def add(suite: Suite, contender: Contender, attack: Evasion, label: str) -> None:
    """The attack itself; the draws of a random recipe; and what a fair comparison with its baselines needs."""
    needs = [suite.candidate_cell(contender), *suite.parent_cell(contender), *_radius(suite, attack)]
    transfer = None
    if contender.parent is not None and not contender.is_dense:
        transfer = _transfer(suite, contender.parent, attack)
        needs.append(transfer)
    suite.add_attack(suite.attack_cell(label, contender.name), attack, contender, needs, transfer)
    if contender.draws:
        _add_draws(suite, contender, attack, label, transfer)
    if any(part.uses_parent for part in attack.parts):
        for name in contender.baselines:
            _add_replay(suite, contender, suite.lineup.contender(name), attack, label)
    if contender.is_dense:
        _add_room(suite, contender, attack, label)


def radius_cell(attack: Evasion) -> str:
    """Where the epsilon of an attack without one is chosen."""
    return f"radius/{attack.norm}"


def room_cell(label: str, dense: str) -> str:
    """Where a dense model that is left with next to nothing is asked for an epsilon at which it keeps about half."""
    return f"room/{label}/{dense}"


def replay_cell(label: str, candidate: str, baseline: str) -> str:
    """Where a candidate and a baseline are each asked what was crafted on the other."""
    return f"replay/{label}/{candidate}/{baseline}"


def resolved(attack: Evasion, get: Get) -> Evasion:
    """The attack with its radius, where that follows from a probe."""
    return at_radius(attack, get(radius_cell(attack))) if attack.automatic else attack


def at_radius(attack: Evasion, chosen: Result) -> Evasion:
    """The attack at the radius that the probe found."""
    radius = chosen.document["radius"]
    return attack.at(radius["epsilon"], tuple(radius["epsilons"]))


def _radius(suite: Suite, attack: Evasion) -> list[str]:
    """The epsilon that the dense model's own curve asks for; without a dense model, the first candidate's."""
    if not attack.automatic:
        return []
    reference = suite.lineup.contenders[0]
    suite.add(
        radius_cell(attack),
        attack.kind,
        ["radius", attack.norm],
        [suite.candidate_cell(reference), *suite.parent_cell(reference)],
        lambda get: _choose_radius(suite.case(reference, get), attack, suite.plan.seed),
    )
    return [radius_cell(attack)]


def _transfer(suite: Suite, dense: Dense, attack: Evasion) -> str:
    spec = [attack.norm, attack.epsilon, attack.epsilons, attack.records]
    name = f"transfer/{dense.name}/{cell_key(spec)[:12]}"
    suite.add(
        name,
        attack.kind,
        spec,
        [f"train/{dense.name}", *_radius(suite, attack)],
        lambda get: _craft(suite.dense_model(dense, get), suite.subject.data, resolved(attack, get), suite.plan.seed),
    )
    return name


def _add_draws(suite: Suite, contender: Contender, attack: Evasion, label: str, transfer: str | None) -> None:
    """Every draw under one attack, gradients at the gate; and the attacker who does not know which draw ships."""
    common = [*suite.parent_cell(contender), *_radius(suite, attack)]
    parts = tuple(part for part in attack.parts if isinstance(part, GradientPerturber))
    gradients = attack.model_copy(update={"parts": parts})
    draws = [suite.candidate_cell(contender, draw) for draw in range(len(contender.draws) + 1)]
    for draw, cell in enumerate(draws):
        name = suite.attack_cell(label, contender.name, f"draw-{draw}")
        suite.add_attack(name, gradients, contender, [cell, *common], None, draw=draw, gate_only=True)
    needs = [*draws, *common, *([transfer] if transfer else [])]
    name = suite.attack_cell(label, contender.name, "without-draw")
    suite.add_attack(name, attack, contender, needs, transfer, without_draw=True)


def _add_replay(suite: Suite, contender: Contender, baseline: Contender, attack: Evasion, label: str) -> None:
    crafted = _transfer(suite, baseline.dense, attack)

    def compute(get: Get) -> Result:
        mine, theirs = suite.case(contender, get), suite.case(baseline, get)
        return _replayed_both_ways(mine, theirs, resolved(attack, get), get(crafted), suite.plan.seed)

    models = {suite.candidate_cell(contender), suite.candidate_cell(baseline)}
    needs = sorted({*models, *suite.parent_cell(contender), *suite.parent_cell(baseline)})
    spec = ["replay", attack.norm, attack.gate_epsilon, attack.records]
    name = replay_cell(label, contender.name, baseline.name)
    suite.add(name, attack.kind, spec, [*needs, crafted, *_radius(suite, attack)], compute)


def _add_room(suite: Suite, dense: Contender, attack: Evasion, label: str) -> None:
    attacked = suite.attack_cell(label, dense.name)
    suite.add(
        room_cell(label, dense.name),
        attack.kind,
        ["room", attack.norm],
        [attacked, suite.candidate_cell(dense), *suite.parent_cell(dense)],
        lambda get: _room(get(attacked), lambda: suite.case(dense, get), attack, suite.plan.seed),
    )


def _craft(parent: nn.Module, data: Data, attack: Evasion, seed: int) -> Result:
    """Adversarial inputs made on a parent, which every candidate of it is asked."""
    records = data.evaluation.take(torch.arange(min(attack.records, len(data.evaluation))))
    crafted = craft(parent, records, attack.epsilons, attack.norm, data.bounds, seed=derive(seed, "transfer"))
    return Result(arrays={f"{epsilon!r}": x.cpu().numpy() for epsilon, x in crafted.items()}, document={})


def _replayed_both_ways(candidate: Case, baseline: Case, attack: Evasion, crafted: Result, seed: int) -> Result:
    """Which records the inputs crafted on each of two models, at the gate's epsilon, fool on the other.

    Arrays `on_candidate` and `on_baseline`, bool [n] (clean errors count): the one part of an attack that a model and
    the one it came from can both face alike. Both are crafted by the same steps from the same starts.

    Raises:
        NotApplicable: the candidate has no twin to craft on.
    """
    if candidate.twin is None:
        raise NotApplicable("nothing can be crafted on it: it has no differentiable twin")
    count = min(attack.records, len(candidate.evaluation))
    records = candidate.evaluation.take(torch.arange(count))
    ball = Ball(attack.norm, attack.gate, records.x, candidate.bounds)
    theirs = torch.from_numpy(crafted.arrays[f"{attack.gate!r}"])
    mine = craft(candidate.twin, records, (attack.gate,), attack.norm, candidate.bounds, seed=derive(seed, "transfer"))[
        attack.gate
    ]
    return Result(
        arrays={
            "on_candidate": replayed(candidate.deployed, theirs, records, ball).cpu().numpy(),
            "on_baseline": replayed(baseline.deployed, mine, records, ball).cpu().numpy(),
        }
    )


def _choose_radius(case: Case, attack: Evasion, seed: int) -> Result:
    """The epsilon at which the probed model keeps about half of its accuracy, and the probe it follows from.

    Raises:
        NotApplicable: the inputs are no pixels.
    """
    why_not = not_pixels(case)
    if why_not is not None:
        raise NotApplicable(why_not)
    return Result(document={"radius": asdict(choose(case, attack.norm, seed=derive(seed, "radius")))})


def _room(attacked: Result, case: Callable[[], Case], attack: Evasion, seed: int) -> Result:
    """Where a dense model is left with less than a third of its accuracy: the epsilon at which it keeps about half.

    The document's `radius` is None where there is room enough, and nothing was probed.
    """
    gate = attacked.document["summary"]["gate_epsilon"]
    robust, clean = 1 - attacked.arrays[f"worst/{gate!r}"].mean(), attacked.arrays["clean_correct"].mean()
    if robust >= LEAST * clean:
        return Result(document={"radius": None})
    return _choose_radius(case(), attack, seed)
