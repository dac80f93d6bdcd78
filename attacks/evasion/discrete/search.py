"""The search: from the record on, the few states nearest to a success are changed by one more feature each.

Beam search over moves. What is tried from a state is proposed by the model's own answers or by gradients; the deployed
model is asked about everything that is tried, and alone decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ....targets.model import Target
from ....targets.seeds import derive, uniform
from ...access import Ledger
from ..ascent.losses import margins
from .features import AT_ONCE, Features
from .guidance import Guide

BATCH = 64  # records searched at a time
NONE = -1  # in place of a move


@dataclass(frozen=True)
class States:
    """Of each record some changed inputs, all at the same cost: x float32 [n, states, F]; moves int64 [n, states,
    most], NONE where there are fewer; alive bool [n, states].
    """

    x: Tensor
    moves: Tensor
    alive: Tensor

    def take(self, rows: Tensor) -> States:
        return States(self.x[rows], self.moves[rows], self.alive[rows])


class Proposer(Protocol):
    """What to try next."""

    def propose(self, states: States, y: Tensor, allowed: Tensor, *, first: bool) -> Tensor:
        """int64 [n, states, tried], NONE where there is nothing.

        Args:
            allowed: bool [moves]; first: the states are the records, and none of these moves was tried on them.
        """
        ...

    def learn(self, moves: Tensor, margin: Tensor) -> None:
        """What the moves [n, tried] on the records themselves led to, float32 [n, tried], infinite where to nothing."""
        ...

    def keep(self, rows: Tensor) -> None:
        """The records, bool [n], that are left."""
        ...


@dataclass
class ByAnswers:
    """All moves on the record, or `first` of them at random; from a changed one those that did most on their own.

    Args:
        ids: int64 [n], of the records, which seed what is drawn.
        further: moves tried from each changed state.
    """

    ids: np.ndarray[tuple[int], np.dtype[np.int64]]
    seed: int
    first: int
    further: int
    _moves: list[Tensor] = field(default_factory=list)
    _margin: list[Tensor] = field(default_factory=list)

    def propose(self, states: States, y: Tensor, allowed: Tensor, *, first: bool) -> Tensor:
        n, count = states.alive.shape
        if first:
            among = allowed.nonzero().squeeze(1)
            if len(among) <= self.first:
                return among.expand(n, 1, -1)
            noise = uniform(derive(self.seed, len(self._moves)), self.ids, (self.first,)).to(y.device)
            return among[(noise.double() * len(among)).long().clamp_max(len(among) - 1)].unsqueeze(1)
        moves, margin = torch.cat(self._moves, 1), torch.cat(self._margin, 1)
        order = margin.masked_fill(~allowed[moves], torch.inf).sort(dim=1, stable=True)
        best = moves.gather(1, order.indices)[:, : self.further]
        best = best.masked_fill(order.values[:, : self.further].isinf(), NONE)
        return best.unsqueeze(1).expand(-1, count, -1)

    def learn(self, moves: Tensor, margin: Tensor) -> None:
        self._moves.append(moves)
        self._margin.append(margin)

    def keep(self, rows: Tensor) -> None:
        self.ids = self.ids[rows.cpu().numpy()]
        self._moves = [one[rows] for one in self._moves]
        self._margin = [one[rows] for one in self._margin]


@dataclass
class ByGradient:
    """From every state the moves that the gradient there promises most from.

    Attributes:
        flat: bool [n], records that never gave a gradient.
    """

    guide: Guide
    further: int
    flat: Tensor

    def propose(self, states: States, y: Tensor, allowed: Tensor, *, first: bool) -> Tensor:
        n, count = states.alive.shape
        best, flat = self.guide.best(states.x.flatten(0, 1), y.repeat_interleave(count), allowed, self.further)
        self.flat &= (flat.view(n, count) | ~states.alive).all(1)
        return best.view(n, count, -1)

    def learn(self, moves: Tensor, margin: Tensor) -> None:
        pass

    def keep(self, rows: Tensor) -> None:
        self.flat = self.flat[rows]


@dataclass(frozen=True)
class Sought:
    """Of n records, on their device.

    Args:
        level: int64 [n], the cost at which the deployed model was fooled; 0: it was not.
        inputs: float32 [n, F], what came nearest at a cost of up to `shown`, or fooled it there.
        later: what fooled it at a higher cost; elsewhere as `inputs`.
        flat: bool [n], withstood and never gave a gradient.
    """

    level: Tensor
    inputs: Tensor
    later: Tensor
    flat: Tensor


def seek(
    target: Target,
    features: Features,
    x: Tensor,
    y: Tensor,
    proposer: Proposer,
    *,
    most: int,
    shown: int,
    beam: int,
    ledger: Ledger,
    told: Callable[[int], None] = lambda level: None,
) -> Sought:
    """Searches up to a cost of `most`, cheapest first; a record is let go as soon as it is fooled.

    Args:
        x: float32 [n, F], classified right; y: int64 [n].
        beam: states that are gone on from at each cost.
        told: is called with each cost before it is tried.
    """
    level = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    inputs, later, best = x.clone(), x.clone(), torch.full((len(x),), torch.inf, device=x.device)
    flat, rows = torch.zeros(len(x), dtype=torch.bool, device=x.device), torch.arange(len(x), device=x.device)
    root = States(
        x.unsqueeze(1),
        torch.full((len(x), 1, most), NONE, device=x.device),
        torch.ones(len(x), 1, dtype=torch.bool, device=x.device),
    )
    reached = [root]
    for cost in range(1, most + 1):
        told(cost)
        tried: list[tuple[States, Tensor, Tensor]] = []
        for own in features.cost.unique().tolist():
            if own > cost:
                continue
            parents, allowed = reached[cost - own], (features.cost == own)[features.feature]
            moves = proposer.propose(parents, y[rows], allowed, first=own == cost)
            margin = _ask(target, features, parents, moves, y[rows], ledger)
            if own == cost:
                proposer.learn(moves.squeeze(1), margin.squeeze(1))
            tried.append((parents, moves, margin))
        found, margin = _nearest(features, tried, beam)
        reached.append(found)
        if not found.x.shape[1]:
            continue
        success = (margin[:, 0] < 0) & found.alive[:, 0]
        nearer = found.alive[:, 0] & (margin[:, 0] < best[rows])
        if cost <= shown:
            inputs[rows[nearer]], best[rows[nearer]] = found.x[nearer, 0], margin[nearer, 0]
        later[rows[success]] = found.x[success, 0]
        level[rows[success]] = cost
        rows = rows[~success]
        reached = [one.take(~success) for one in reached]
        proposer.keep(~success)
        if not len(rows):
            break
    if isinstance(proposer, ByGradient):
        flat[rows] = proposer.flat
    return Sought(level, inputs, later, flat)


def _ask(target: Target, features: Features, parents: States, moves: Tensor, y: Tensor, ledger: Ledger) -> Tensor:
    """The deployed model's margins [n, states, tried] after each move; infinite where that changes nothing."""
    changed = features.feature[parents.moves.clamp_min(0)].masked_fill(parents.moves == NONE, NONE)
    due = (moves != NONE) & parents.alive.unsqueeze(2)
    due &= (features.feature[moves.clamp_min(0)].unsqueeze(3) != changed.unsqueeze(2)).all(3)
    margin = torch.full(moves.shape, torch.inf, device=y.device)
    for some in due.nonzero().split(max(1, AT_ONCE // parents.x.shape[2])):
        row, state, place = some.unbind(1)
        move, before = moves[row, state, place], parents.x[row, state]
        x = features.moved(before, move)
        new = (x != before).any(1) & features.used(before, move)
        row, state, place, x = row[new], state[new], place[new], x[new]
        if not len(x):
            continue
        ledger.queries += len(x)
        logits = target.logits(x.view(-1, *features.shape))
        found, wrong = margins(logits, y[row]).nan_to_num(torch.inf), logits.argmax(1) != y[row]
        margin[row, state, place] = torch.where(wrong & found.isfinite(), found.clamp_max(-1e-38), found.clamp_min(0))
    return margin


def _nearest(features: Features, tried: list[tuple[States, Tensor, Tensor]], beam: int) -> tuple[States, Tensor]:
    """The `beam` states with the smallest margins among all that were tried, and these, float32 [n, states].

    The same moves in another order are the same state.
    """
    parts = []
    for parents, moves, margin in tried:
        value, at = margin.flatten(1).sort(dim=1, stable=True)
        value, at = value[:, : 4 * beam], at[:, : 4 * beam]
        parent = at.div(max(moves.shape[2], 1), rounding_mode="floor")
        move = moves.flatten(1).gather(1, at)
        before = parents.moves.gather(1, parent.unsqueeze(2).expand(-1, -1, parents.moves.shape[2]))
        # the largest first: a state has at most as many moves as its cost, so that the last place is still free
        chain = torch.cat([before[:, :, :-1], move.unsqueeze(2)], 2).sort(dim=2, descending=True).values
        parts.append((value, chain, parents.x.gather(1, parent.unsqueeze(2).expand(-1, -1, parents.x.shape[2])), move))
    value, chain, x, move = (torch.cat([part[one] for part in parts], 1) for one in range(4))
    value, order = value.sort(dim=1, stable=True)
    chain = chain.gather(1, order.unsqueeze(2).expand_as(chain))
    same = (chain.unsqueeze(2) == chain.unsqueeze(1)).all(3).tril(-1).any(2)
    value = value.masked_fill(same, torch.inf)
    value, again = value.sort(dim=1, stable=True)
    value, order = value[:, :beam], order.gather(1, again)[:, :beam]
    chain = chain.gather(1, again[:, :beam].unsqueeze(2).expand(-1, -1, chain.shape[2]))
    x = x.gather(1, order.unsqueeze(2).expand(-1, -1, x.shape[2]))
    move = move.gather(1, order)
    n, kept, width = x.shape
    alive = value.isfinite()
    flat_x, flat_move = x.reshape(-1, width), move.reshape(-1)
    moved = torch.where(alive.reshape(-1, 1), features.moved(flat_x, flat_move.clamp_min(0)), flat_x).view(
        n, kept, width
    )
    return States(moved, chain, alive), value
