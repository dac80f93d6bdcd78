"""Which training records are poisoned and how: labels flipped at random or from one class to another, or a patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...targets.data.records import Bounds, Records
from ...targets.seeds import derive, generator

RANDOM, TARGETED, PATCH = "random", "targeted", "patch"  # sorts of poison
SMALLEST = 4  # pixels of an image's side, below which a patch is no part of it


@dataclass(frozen=True)
class Poisoning:
    """The poisoned trainings of one procedure, in the order: for each repetition the clean one, then sorts by shares.

    Args:
        sorts: of RANDOM, TARGETED, PATCH, those that these records allow.
        shares: of the training records, ascending.
        repetitions: how often each is repeated, with other records, initial weights and order; random flips and patches
            at shares that no figure is of once less, but twice at least.
        judged: position of the share that figures are of.
    """

    sorts: tuple[str, ...]
    shares: tuple[float, ...]
    repetitions: int
    judged: int

    @property
    def models(self) -> list[tuple[int, str, int]]:
        """(repetition, sort, position in `shares`) of each model; ("", -1) for a clean one."""
        each = [("", -1), *((sort, at) for sort in self.sorts for at in range(len(self.shares)))]
        return [
            (repetition, sort, at)
            for repetition in range(self.repetitions)
            for sort, at in each
            if repetition < max(2, self.repetitions - 1) or sort in ("", TARGETED) or at == self.judged
        ]

    def rows(self, sort: str, at: int) -> list[int]:
        """Positions in `models`, in the order of repetitions; at -1 the clean ones."""
        wanted = ("", -1) if at < 0 else (sort, at)
        return [position for position, (_, *one) in enumerate(self.models) if tuple(one) == wanted]


@dataclass(frozen=True)
class Pair:
    """The classes of a targeted attack: records of `source` are to be taken for `target`."""

    source: int
    target: int


def can_be_patched(shape: Sequence[int]) -> bool:
    """Whether records are images [channels, height, width] with room for a patch."""
    return len(shape) == 3 and min(shape[1:]) >= SMALLEST


def patched(x: Tensor, bounds: Bounds) -> Tensor:
    """Images with a square of the largest value in the lower right corner, a seventh of the side (BadNets' pattern).

    Gu et al. 2017, arXiv:1708.06733.

    Args:
        x: float32 [n, channels, height, width].
    """
    side = max(2, min(x.shape[2:]) // 7)
    changed = x.clone()
    high = bounds.high.to(x.device).expand(x.shape[1:])
    changed[:, :, -side:, -side:] = high[:, -side:, -side:]
    return changed


def changes(
    members: Records, bounds: Bounds, sort: str, share: float, pair: Pair, classes: int, seed: int
) -> tuple[Tensor, Records]:
    """Which training records are poisoned, int64 [k], and what becomes of them.

    random: any records, each with another label drawn evenly (`classes` of them). targeted: records of the pair's
    source labelled as its target, all of them where the share is more than there are. patch: records of other classes
    with the patch, labelled as the target. A smaller share's are among a larger one's of the same seed.
    """
    found = _open(members, sort, pair).nonzero().flatten()
    order = found[torch.randperm(len(found), generator=generator(seed, "poisoned", sort))]
    rows = order[: count_of(members, sort, share, pair)]
    chosen = members.take(rows.to(members.y.device))
    labels = torch.full_like(chosen.y, pair.target)
    if sort == RANDOM:
        step = torch.randint(1, classes, (len(order),), generator=generator(seed, "labels"))
        labels = (chosen.y + step[: len(rows)].to(labels.device)) % classes
    return rows, Records(patched(chosen.x, bounds) if sort == PATCH else chosen.x, labels)


def count_of(members: Records, sort: str, share: float, pair: Pair) -> int:
    """How many records `changes` poisons."""
    return min(int(_open(members, sort, pair).sum()), max(1, round(share * len(members))))


def _open(members: Records, sort: str, pair: Pair) -> Tensor:
    """bool [members], those that may be poisoned."""
    y = members.y.cpu()
    return {RANDOM: torch.ones_like(y, dtype=torch.bool), TARGETED: y == pair.source, PATCH: y != pair.target}[sort]


def pool_of(
    members: Records, bounds: Bounds, poisoning: Poisoning, pair: Pair, classes: int, seed: int, first: int, last: int
) -> tuple[Records, list[Tensor]]:
    """All records that models [first, last) are trained on, and of each its own, int64 [members], in the old order."""
    x, y, subsets, count = [members.x], [members.y], list[Tensor](), len(members)
    for repetition, sort, at in poisoning.models[first:last]:
        own = torch.arange(len(members))
        if at >= 0:
            drawn = derive(seed, "poison", repetition)
            rows, changed = changes(members, bounds, sort, poisoning.shares[at], pair, classes, drawn)
            own[rows] = torch.arange(count, count + len(rows))
            x, y, count = [*x, changed.x], [*y, changed.y], count + len(rows)
        subsets.append(own)
    return Records(torch.cat(x), torch.cat(y)), subsets
