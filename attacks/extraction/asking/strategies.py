"""What an attacker asks, by strategy: known beforehand, or chosen as the answers come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ....targets.data.records import Records
from ....targets.data.structure import PLAIN, Structure
from .adaptive import least_certain
from .foreign import composed, noise
from .jacobian import augmented, check_moves
from .queries import choose_queries, own_order, representative

Strategy = Literal["random", "representative", "adaptive", "jacobian", "composed", "noise"]
STRATEGIES: dict[Strategy, str] = {
    "random": "its own records in any order, then mixes of two of them",
    "representative": "those of its own records that stand for the others, then as random",
    "adaptive": "in rounds, what a copy from the answers so far is least certain of",
    "jacobian": "in rounds, what was asked so far moved along the gradients of a copy of it",
    "composed": "pieces of several of its own records put together, which are of no class",
    "noise": "random values",
}
USUAL: Strategy = "representative"
ROUNDS: tuple[Strategy, ...] = ("adaptive", "jacobian")  # these train copies on the way
FIRST = 50  # queries before the first choice; a round asks as many again as were asked before it
MOST_SPREAD = 1000  # representatives that are looked for; a larger budget takes any records

Answer = Callable[[Tensor], Tensor]
"""float32 [n, *shape] -> logits float32 [n, classes]: asks the target."""

Teach = Callable[[Tensor, Tensor, int], nn.Module]
"""(what was asked, its logits, the number of the round) -> a copy trained on them."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What was asked of the target, each query once.

    Args:
        x: float32 [n, *shape]; logits: float32 [n, classes].
        of: by budget, int64 [budget]: which of them, in the order in which they are asked.
    """

    x: Tensor
    logits: Tensor
    of: Mapping[int, Tensor]

    def within(self, budget: int) -> tuple[Tensor, Tensor]:
        """The queries of one budget, float32 [budget, *shape], and their logits."""
        at = self.of[budget].to(self.x.device)
        return self.x[at], self.logits[at]


def ask(
    strategy: Strategy,
    attacker: Records,
    budgets: Sequence[int],
    answer: Answer,
    teach: Teach,
    *,
    seed: int,
    structure: Structure = PLAIN,
) -> Asked:
    """Asks the target by one of `STRATEGIES`. Except for `representative`, a smaller budget is a prefix.

    `random` is Knockoff's random strategy (Orekondy et al. 2019, arXiv:1812.02766); `adaptive` takes the place of its
    adaptive one, a bandit over the classes of a labelled pool, than which it was no worse; `jacobian` is Papernot et
    al. 2017 (arXiv:1602.02697); `composed` and `noise` ask out of distribution, as Copycat does, which sees labels only
    (Correia-Silva et al. 2018, arXiv:1806.05476).

    Fidelity from 300 scores of a CNN on MNIST at 14x14, pool of 4,000, mean of two seeds: random .960, representative
    .967, adaptive .970 for twice the time, the bandit .964. So `representative`, which costs next to nothing, is usual.

    Args:
        attacker: the records owned; their labels are not looked at.
        budgets: ascending.
        teach: is called by the strategies of `ROUNDS` only.
        structure: of the records; a query is a record, too.

    Raises:
        NotApplicable: `jacobian`, and no value of a record can be moved.
    """
    most = max(budgets)
    whole = {budget: torch.arange(budget) for budget in budgets}
    if strategy == "representative":
        return _representative(attacker, budgets, answer, seed=seed, structure=structure)
    if strategy == "adaptive":
        x, logits = _adaptive(attacker, most, answer, teach, seed=seed, structure=structure)
        return Asked(x, logits, whole)
    if strategy == "jacobian":
        x, logits = _jacobian(attacker, most, answer, teach, seed=seed, structure=structure)
        return Asked(x, logits, whole)
    choose = {"random": choose_queries, "composed": composed, "noise": noise}[strategy]
    x = choose(attacker, most, seed=seed, structure=structure)
    return Asked(x, answer(x), whole)


def _spread(own: int, budget: int, structure: Structure) -> bool:
    """Whether representatives are looked for. Ids have no distances that mean anything."""
    return budget < own and budget <= MOST_SPREAD and not structure.tokens


def _representative(
    attacker: Records, budgets: Sequence[int], answer: Answer, *, seed: int, structure: Structure
) -> Asked:
    own, order = len(attacker), own_order(attacker, seed).cpu()
    places = {  # of own records, then of mixes
        budget: representative(attacker.x, budget, seed=seed).cpu()
        if _spread(own, budget, structure)
        else torch.cat([order[:budget], torch.arange(own, max(own, budget))])
        for budget in budgets
    }
    used = torch.cat(list(places.values())).unique()
    mixes = choose_queries(attacker, max(budgets), seed=seed, structure=structure)[own:]
    x = torch.cat([attacker.x[used[used < own].to(attacker.x.device)], mixes])
    return Asked(x, answer(x), {budget: torch.searchsorted(used, at) for budget, at in places.items()})


def _adaptive(
    attacker: Records, most: int, answer: Answer, teach: Teach, *, seed: int, structure: Structure
) -> tuple[Tensor, Tensor]:
    own = len(attacker)
    first = (
        representative(attacker.x, FIRST, seed=seed)
        if _spread(own, FIRST, structure)
        else own_order(attacker, seed)[:FIRST]
    )
    free = torch.ones(own, dtype=torch.bool, device=first.device)
    free[first] = False

    def more(module: nn.Module, x: Tensor, logits: Tensor, number: int) -> Tensor:
        """Of the records that were not asked, and of mixes where those are too few to choose from."""
        left = free.nonzero().flatten()
        pool = attacker.x[left]
        if len(left) < 2 * len(x):
            mixes = choose_queries(attacker, own + 2 * len(x), seed=seed + number + 1, structure=structure)[own:]
            pool = torch.cat([pool, mixes])
        chosen = least_certain(module, pool, len(x), seed=seed, structure=structure)
        free[left[chosen[chosen < len(left)]]] = False
        return pool[chosen]

    return _in_rounds(attacker.x[first[:most]], most, answer, teach, more)


def _jacobian(
    attacker: Records, most: int, answer: Answer, teach: Teach, *, seed: int, structure: Structure
) -> tuple[Tensor, Tensor]:
    check_moves(attacker.x, structure)

    def more(module: nn.Module, x: Tensor, logits: Tensor, number: int) -> Tensor:
        return augmented(module, x, logits.argmax(1), attacker.x, number, seed=seed, structure=structure)

    first = attacker.x[own_order(attacker, seed)[: min(2 * FIRST, most)]]
    return _in_rounds(first, most, answer, teach, more)


def _in_rounds(
    first: Tensor, most: int, answer: Answer, teach: Teach, more: Callable[[nn.Module, Tensor, Tensor, int], Tensor]
) -> tuple[Tensor, Tensor]:
    x, logits, number = first, answer(first), 0
    while len(x) < most:
        new = more(teach(x, logits, number), x, logits, number)[: most - len(x)]
        x, logits = torch.cat([x, new]), torch.cat([logits, answer(new)])
        number += 1
    return x, logits


def rounds_of(strategy: Strategy, most: int) -> list[int]:
    """How many queries the copies learn that are trained on the way to so many."""
    first = {"adaptive": FIRST, "jacobian": 2 * FIRST}.get(strategy, most)
    sizes = []
    while first < most:
        sizes.append(first)
        first *= 2
    return sizes
