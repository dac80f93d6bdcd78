"""HopSkipJump (Chen et al. 2020, arXiv:1904.02144): along the decision boundary towards the record, by labels alone."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ....training.ball import SMALLEST, Ball, l2_norm, per_record
from ...access import Access
from ...case import Case
from ...effort import Effort
from ..ball import Region
from ..engine import PERTURBERS, Perturber, Search
from .square import image_shape

TOGETHER = 8  # probes of a record in one call
CORNERS = 9  # of the bounds, at which a walk may begin
OWN = 3  # of the attacker's records, at which it may begin as well
DRAWS = 3  # of corners, where none of the first is answered as the attacker wants
BISECTIONS = 8  # of a way to the record
HALVINGS = 6  # of a step that leads back over the boundary
STEP = 1 / 255  # of what an element may be, that a probe changes at least: a quantised net may not see less
WIDTH = 0.3  # of the distance from the record, that a probe changes: wide enough for what is rounded on the way
WIDEST = 2.0**8  # times that, where all probes are answered alike


@PERTURBERS.register
class HopSkipJump(Perturber):
    """HopSkipJump (Chen et al. 2020, arXiv:1904.02144), all records side by side.

    It sees only which class the deployed model answers. From an input that fools it, however far from the record, it
    goes along the boundary: random probes say which way leads off it, a step goes there, and a bisection comes back
    towards the record. A record is fooled once that ends within its ball. Probes are never narrower than a step of an
    8-bit input, and widen where they are all answered alike: between two steps of a quantised net nothing changes.
    """

    kind: Literal["hop-skip-jump"] = "hop-skip-jump"
    together: ClassVar[int] = TOGETHER
    at: Literal["all", "gate"] = "gate"
    iterations: PositiveInt = Field(10, le=10_000, description="steps along the boundary")
    probes: PositiveInt = Field(100, le=100_000, description="of the first step; the t-th takes the root of t as many")
    most_probes: PositiveInt = Field(400, le=100_000, description="of any step")

    @property
    def access(self) -> Access:
        return Access.LABELS

    @property
    def effort(self) -> Effort:
        probed = sum(self.probes_of(turn) for turn in range(1, self.iterations + 1))
        return Effort(answers=CORNERS * BISECTIONS + probed + self.iterations * (BISECTIONS + 3))

    def probes_of(self, turn: int) -> int:
        """Of the step number `turn`, from 1: a multiple of `TOGETHER`."""
        return TOGETHER * math.ceil(min(self.most_probes, self.probes * math.sqrt(turn)) / TOGETHER)

    def perturb(self, search: Search, case: Case) -> None:
        if len(search.active) == 0:
            return
        x, distance = self.walk(search, case, until=1.0)
        stay = search.claim(x, distance <= 1, math.nan)
        if len(search.active):
            search.query(search.ball.project(x if stay is None else x[stay]), 1.0)

    def walk(self, search: Search, case: Case, *, until: float) -> tuple[Tensor, Tensor]:
        """The nearest inputs found that the deployed model answers as the attacker wants, for each active record.

        Args:
            until: a record that came so near takes no further step, in radii of its ball: 1, or 0 for the nearest one.

        Returns:
            Inputs, float32 [active, *shape], within the bounds and outside of the ball where the distance is above 1;
            and their distances from the records in radii, float32 [active], infinite where none was found.
        """
        x, distance = begin(search, case, until)
        wider = torch.ones_like(distance)
        for turn in range(1, self.iterations + 1):
            rows = ((distance > until) & distance.isfinite()).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            search.told(turn / self.iterations)
            ball, here = search.ball.take(rows), x[rows]
            normal, wider[rows] = outwards(
                search, rows, ball, here, WIDTH * distance[rows], wider[rows], turn, self.probes_of(turn)
            )
            ahead, gone = jump(search, rows, ball, here, normal, distance[rows] / math.sqrt(turn))
            some = rows[gone]
            nearer, closer = back(search, some, ball.take(gone), ahead[gone], distance[some], until)
            better = closer < distance[some]
            x[some[better]], distance[some[better]] = nearer[better], closer[better]
        return x, distance


def begin(search: Search, case: Case, until: float) -> tuple[Tensor, Tensor]:
    """Where a walk begins, and how far that is: the nearest input to be found on the ways to a few points far away.

    The points are corners of the bounds, and the attacker's own records nearest by. See `HopSkipJump.walk` for what is
    returned.
    """
    x = search.ball.center.clone()
    distance = torch.full((len(x),), torch.inf, device=x.device)
    for draw in range(DRAWS):
        rows = distance.isinf().nonzero().squeeze(1)
        if len(rows) == 0:
            break
        points = corners(search, rows, draw)
        if draw == 0 and (own := own_records(search, case)) is not None:
            points = torch.cat([points, own], dim=1)
        count = points.shape[1]
        wide, points = rows.repeat_interleave(count), points.flatten(0, 1)
        ball = search.ball.take(wide)
        far = size(ball, points)
        right = search.reaches(points, wide)
        points[right], far[right] = back(search, wide[right], ball.take(right), points[right], far[right], until)
        far[~right] = torch.inf
        best = far.view(-1, count).argmin(1) + count * torch.arange(len(rows), device=x.device)
        distance[rows] = far[best]
        x[rows] = torch.where(per_record(far[best].isfinite(), x), points[best], x[rows])
    return x, distance


def corners(search: Search, rows: Tensor, draw: int) -> Tensor:
    """Random corners of what an input may be, [rows, CORNERS, *shape]: in stripes, in tiles and of single elements."""
    ball = search.ball.take(rows)
    channels, height, width = image_shape(tuple(ball.center.shape[1:]))
    noise = search.noise((CORNERS, channels, height, width), "corners", draw, rows=rows)
    low, high = limits(ball)
    points = []
    for point in range(CORNERS):
        tall, wide = ((height, 1), (max(1, height // 4), max(1, width // 4)), (1, 1))[point % 3]
        up = (noise[:, point, :, ::tall, ::wide] < 0.5).repeat_interleave(tall, dim=2).repeat_interleave(wide, dim=3)
        up = up[:, :, :height, :width].reshape(ball.center.shape)
        points.append(legal(ball, torch.where(up, high, low).expand_as(ball.center)))
    return torch.stack(points, dim=1)


def own_records(search: Search, case: Case) -> Tensor | None:
    """Of the attacker's records of another class (of the wanted one) the nearest, [active, OWN, *shape]; None: few."""
    center, y, own = search.ball.center, search.y, case.attacker.to(search.y.device)
    if len(own) < OWN or own.x.shape[1:] != center.shape[1:]:
        return None
    unfit = (own.y == y[:, None]) == (search.goal == "untargeted")
    far = torch.cdist(center.flatten(1), own.x.flatten(1)).masked_fill(unfit, torch.inf)
    nearest = own.x[far.topk(OWN, dim=1, largest=False).indices]
    places = torch.arange(len(y), device=y.device).repeat_interleave(OWN)
    return legal(search.ball.take(places), nearest.flatten(0, 1)).view_as(nearest)


def outwards(
    search: Search, rows: Tensor, ball: Region, x: Tensor, share: Tensor, wider: Tensor, turn: int, count: int
) -> tuple[Tensor, Tensor]:
    """The direction that leads off the boundary at x [rows, *shape], zero where no probe said so; and `wider`.

    Args:
        share: of the radius, that a probe changes, [rows]; wider: times so much, as those before it had to be.
        count: of probes.
    """
    coordinates = x[0].numel() if ball.norm == "l2" else 1
    radius = ball.epsilon * ball.scale / math.sqrt(coordinates)
    low, high = limits(ball)
    least = torch.maximum(per_record(share, x) * radius, STEP * (high - low))
    normal, total = torch.zeros_like(x), torch.zeros_like(x)
    fooled, asked = torch.zeros_like(wider), 0
    places = torch.arange(len(x), device=x.device).repeat_interleave(TOGETHER)
    around = ball.take(places)
    for first in range(0, count, TOGETHER):
        draw = 2 * search.noise((TOGETHER, *x.shape[1:]), "probes", turn, first, rows=rows) - 1
        length = per_record(wider, x) * least
        right = search.reaches(legal(around, (x[:, None] + length[:, None] * draw).flatten(0, 1)), rows[places])
        votes = right.view(-1, TOGETHER).to(x.dtype)
        normal += torch.einsum("nk,nk...->n...", votes, draw)
        total += draw.sum(1)
        fooled, asked = fooled + votes.sum(1), asked + TOGETHER
        alike = (fooled == 0) | (fooled == asked)
        wider = torch.where(alike, 2 * wider, wider).clamp_max(WIDEST)
    normal = (normal - per_record(fooled / asked, x) * total).masked_fill(per_record(alike, x), 0)
    if isinstance(ball, Ball) and ball.bounds.held is not None:
        normal = normal.masked_fill(ball.bounds.held, 0)
    return normal, wider


def jump(
    search: Search, rows: Tensor, ball: Region, x: Tensor, normal: Tensor, length: Tensor
) -> tuple[Tensor, Tensor]:
    """A step from x [rows, *shape] off the boundary, halved until it does not lead back over it.

    Args:
        length: of the step, in radii, [rows].

    Returns:
        Where it ends, like x, and for which records there is one, bool [rows].
    """
    ahead, gone = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    direction = normal.sign() if ball.norm == "linf" else normal / l2_norm(normal).clamp_min(SMALLEST)
    direction = direction * ball.epsilon * ball.scale
    left = (normal.flatten(1) != 0).any(1).nonzero().squeeze(1)
    for _ in range(HALVINGS):
        if len(left) == 0:
            break
        tried = legal(ball.take(left), x[left] + per_record(length[left], x) * direction[left])
        right = search.reaches(tried, rows[left])
        ahead[left[right]], gone[left[right]] = tried[right], True
        left, length = left[~right], length / 2
    return ahead, gone


def back(search: Search, rows: Tensor, ball: Region, x: Tensor, known: Tensor, until: float) -> tuple[Tensor, Tensor]:
    """From x [rows, *shape], which is answered as wanted, towards the records for as long as that stays so.

    Args:
        known: the distances, [rows], in radii, below which an input is of use.

    Returns:
        The nearest inputs found, like x, and their distances, [rows]; x and `known` where none is nearer.
    """
    best, distance = x.clone(), known.clone()
    left = torch.arange(len(x), device=x.device)
    if until > 0 and len(left):  # what lies in the ball itself needs no bisection
        inside = ball.project(x)
        right = search.reaches(inside, rows)
        best[right], distance[right] = inside[right], until
        left = left[~right]
    low, high = torch.full_like(known, until), known.clone()
    for turn in range(BISECTIONS + 1):
        if len(left) == 0:
            break
        at = low[left] + (high[left] - low[left]) * (0.5 if turn else 0.99)
        tried = pulled(ball.take(left), x[left], at)
        right = search.reaches(tried, rows[left])
        best[left[right]], high[left[right]] = tried[right], at[right]
        low[left[~right]] = at[~right]
        distance[left[right]] = size(ball.take(left[right]), tried[right])
        left = left if turn else left[right]
    return best, distance


def limits(ball: Region) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of an input in or out of the ball, broadcastable to it."""
    if isinstance(ball, Ball):
        return ball.bounds.low, ball.bounds.high
    return ball.limits or (ball.low, ball.high)


def legal(ball: Region, x: Tensor) -> Tensor:
    """x [n, *shape] as an input may be: within the limits, whole where it has to be, and what is held as it is."""
    low, high = limits(ball)
    if isinstance(ball, Ball):
        if ball.bounds.whole is not None:
            x = torch.where(ball.bounds.whole, torch.maximum(torch.minimum(x.round(), high.floor()), low.ceil()), x)
        if ball.bounds.held is not None:
            x = torch.where(ball.bounds.held, ball.center, x)
    return torch.maximum(torch.minimum(x, high), low)


def pulled(ball: Region, x: Tensor, distance: Tensor) -> Tensor:
    """x [n, *shape] brought to a distance in radii, [n], from the records: cut off there, or in an L2 ball straight."""
    change = x - ball.center
    if ball.norm == "l2":
        change = change * per_record((distance / size(ball, x).clamp_min(SMALLEST)).clamp_max(1), x)
    else:
        down, up = reach(ball)
        most = per_record(distance, x)
        change = torch.maximum(torch.minimum(change, most * up), -most * down)
    return legal(ball, ball.center + change)


def size(ball: Region, x: Tensor) -> Tensor:
    """How far x [n, *shape] lies from the records, [n], in radii: at most 1 within the ball."""
    change = x - ball.center
    if ball.norm == "l2":
        return l2_norm(change / ball.scale).flatten() / ball.epsilon
    down, up = reach(ball)
    length = torch.where(change > 0, change / up, -change / down)
    return length.nan_to_num(0.0, torch.inf).flatten(1).amax(1)


def reach(ball: Region) -> tuple[Tensor, Tensor]:
    """How far down and up an element may go within an L-inf ball, broadcastable to it."""
    if isinstance(ball, Ball):
        return ball.epsilon * ball.scale, ball.epsilon * ball.scale
    return ball.center - ball.low, ball.high - ball.center
