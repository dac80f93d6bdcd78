"""Square Attack (Andriushchenko et al. 2020, arXiv:1912.00049): random search on the deployed model's own answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ....training.ball import l2_norm, per_record
from ...access import Access
from ...case import Case
from ...effort import Effort
from ..ball import Region
from ..engine import PERTURBERS, Perturber, Search

HALVINGS = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: when the windows' area is halved


@PERTURBERS.register
class Square(Perturber):
    """Square Attack (Andriushchenko et al. 2020, arXiv:1912.00049), each record with windows of its own.

    It sees nothing but the deployed model's scores, so rounding and masked gradients do not stop it. Records that are
    not images are perturbed in intervals of neighbouring features.
    """

    kind: Literal["square"] = "square"
    at: Literal["all", "gate"] = "gate"
    queries: PositiveInt = Field(500, le=10_000_000, description="per record and epsilon")
    first_share: float = Field(0.8, gt=0, le=1, description="share of the pixels in the first windows (the paper's p)")

    @property
    def access(self) -> Access:
        return Access.SCORES

    @property
    def effort(self) -> Effort:
        return Effort(answers=self.queries)

    def perturb(self, search: Search, case: Case) -> None:
        channels, _, width = image_shape(tuple(search.ball.center.shape[1:]))
        columns = 5 + channels  # two window corners, one orientation, a sign per channel
        random = search.noise((self.queries, columns), "windows")
        ends: list[Tensor] = []  # of an L-inf ball, whose corners are all that is tried there
        if search.ball.norm == "linf":
            stripes = search.noise((channels, 1, width), "stripes") < 0.5
            x = extreme(search.ball, stripes)
            low = torch.zeros(1, dtype=torch.bool, device=x.device)
            ends = [extreme(search.ball, low), extreme(search.ball, ~low)]
        else:
            x = tiles(search.ball, search.noise((channels, 10, 10), "tiles") < 0.5)
        rows = torch.arange(len(x), device=x.device)  # of `random`, which is too large to be cut at every success
        lowest, stay = search.query(x, 0.0)
        if stay is not None:
            x, lowest, rows, *ends = (one[stay] for one in (x, lowest, rows, *ends))
        for query in range(1, self.queries):
            if len(x) == 0:
                return
            share = share_at(query / self.queries, self.first_share)
            draw = random[rows, query]
            proposed = square_step(ends, x, share, draw) if ends else move_mass(search.ball, x, share, draw)
            margin, stay = search.query(proposed, query / self.queries)
            better = margin < lowest
            x = torch.where(per_record(better, x), proposed, x)
            lowest = torch.where(better, margin, lowest)
            if stay is not None:
                x, lowest, rows, *ends = (one[stay] for one in (x, lowest, rows, *ends))


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width) of a record; anything but an image is one row of features."""
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (1, 1, math.prod(shape))


def share_at(progress: float, first: float) -> float:
    """The share of the pixels a window covers, at `progress` in [0, 1] of the query budget (the paper's schedule)."""
    return float(first / 2 ** sum(progress * 10_000 > halving for halving in HALVINGS))


def window_size(share: float, height: int, width: int) -> tuple[int, int]:
    """A square that covers `share` of the pixels, cut where the image is narrower; an interval for a row."""
    if height == 1:
        return 1, min(width, max(1, round(share * width)))
    side = max(1, round(math.sqrt(share * height * width)))
    return min(height, side), min(width, side)


def corner(draw: Tensor, room: int) -> Tensor:
    """int64 [n] in 0 .. room, from uniform noise [n]."""
    return (draw * (room + 1)).long().clamp_max(room)


def offsets(first: Tensor, length: int) -> Tensor:
    """int64 [n, length]: each position's distance from the window's first one, [n]."""
    return torch.arange(length, device=first.device) - first[:, None]


def window(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """bool [n, 1, image height, image width]: the pixels of a window, by their offsets from its corner."""
    inside_rows = (rows >= 0) & (rows < height)
    inside_columns = (columns >= 0) & (columns < width)
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]


def extreme(ball: Region, positive: Tensor) -> Tensor:
    """The L-inf ball's largest values where `positive` (broadcastable to an image), its smallest elsewhere."""
    images = ball.center.view(len(ball.center), *image_shape(tuple(ball.center.shape[1:])))
    sign = torch.where(positive, 1.0, -1.0).expand_as(images).reshape(ball.center.shape)
    return ball.project(ball.center + 2 * ball.epsilon * ball.scale * sign)


def square_step(ends: Sequence[Tensor], x: Tensor, share: float, draw: Tensor) -> Tensor:
    """One window per record pushed to the edge of the L-inf ball, up or down by channel.

    Where the window already is so, the opposite sign is tried: no query is spent on an input known before.

    Args:
        ends: the ball's smallest and its largest values, like x [n, *shape].
    """
    low, high = ends
    channels, height, width = image_shape(tuple(x.shape[1:]))
    tall, wide = window_size(share, height, width)
    top, left = corner(draw[:, 0], height - tall), corner(draw[:, 1], width - wide)
    inside = window(offsets(top, height), offsets(left, width), tall, wide).expand(-1, channels, -1, -1)
    inside = inside.reshape(x.shape)
    up = (draw[:, 5:].view(-1, channels, 1, 1) < 0.5).expand(-1, -1, height, width).reshape(x.shape)
    proposed = torch.where(inside, torch.where(up, high, low), x)
    same = (proposed == x).flatten(1).all(1)
    if not same.any():
        return proposed
    return torch.where(per_record(same, x) & inside, torch.where(up, low, high), proposed)


def bumps(height: int, width: int) -> Tensor:
    """The paper's L2 pattern [height, width]: a bump up and a bump down, of unit norm."""

    def bump(tall: int, wide: int) -> Tensor:
        pattern: Tensor = torch.zeros(tall, wide)
        top, left, low, high = tall // 2, wide // 2, tall // 2 + 1, wide // 2 + 1
        for layer in range(1, max(tall, wide) // 2 + 2):
            pattern[max(top, 0) : low, max(left, 0) : high] += 1.0 / layer**2
            top, left, low, high = top - 1, left - 1, low + 1, high + 1
        unit: Tensor = pattern / torch.linalg.vector_norm(pattern)
        return unit

    pattern: Tensor = torch.zeros(height, width)
    if height > 1:
        half = height // 2
        pattern[:half] = bump(half, width)
        pattern[half:] = -bump(height - half, width)
    else:
        half = max(1, width // 2)
        pattern[:, :half] = bump(1, half)
        if width > half:
            pattern[:, half:] = -bump(1, width - half)
    whole: Tensor = pattern / torch.linalg.vector_norm(pattern)
    return whole


def scaled(ball: Region, change: Tensor) -> Tensor:
    """The point of the ball in the direction of `change` (in [0, 1] units, an image each), at the full radius."""
    change = change.reshape(ball.center.shape)
    change = change / l2_norm(change).clamp_min(1e-12) * ball.epsilon
    return ball.project(ball.center + change * ball.scale)


def tiles(ball: Region, positive: Tensor) -> Tensor:
    """The L2 start: bumps side by side over the whole image, each with a sign from `positive`, bool [n, c, 10, 10]."""
    channels, height, width = image_shape(tuple(ball.center.shape[1:]))
    change = torch.zeros(len(ball.center), channels, height, width, device=ball.center.device)
    tall, wide = max(1, height // 5), max(1, width // 5)
    pattern = bumps(tall, wide).to(change.device)
    for row in range(height // tall):
        for column in range(width // wide):
            sign = torch.where(positive[:, :, row % 10, column % 10], 1.0, -1.0)[:, :, None, None]
            change[:, :, row * tall : (row + 1) * tall, column * wide : (column + 1) * wide] = sign * pattern
    return scaled(ball, change)


def move_mass(ball: Region, x: Tensor, share: float, draw: Tensor) -> Tensor:
    """The L2 proposal: a bump in one window, paid for with the norm of another window and what is left of epsilon."""
    channels, height, width = image_shape(tuple(x.shape[1:]))
    tall, wide = window_size(share, height, width)
    tall, wide = min(height, max(tall, 3)), min(width, max(wide, 3))
    change = ((x - ball.center) / ball.scale).view(len(x), channels, height, width)
    rows = offsets(corner(draw[:, 0], height - tall), height)
    columns = offsets(corner(draw[:, 1], width - wide), width)
    gains = window(rows, columns, tall, wide)
    pays = window(
        offsets(corner(draw[:, 2], height - tall), height),
        offsets(corner(draw[:, 3], width - wide), width),
        tall,
        wide,
    )
    pattern = bumps(tall, wide).to(x.device)
    upright = pattern[rows.clamp(0, tall - 1)[:, :, None], columns.clamp(0, wide - 1)[:, None, :]]
    if tall == wide:
        lying = pattern.T[rows.clamp(0, tall - 1)[:, :, None], columns.clamp(0, wide - 1)[:, None, :]]
        upright = torch.where(draw[:, 4, None, None] < 0.5, upright, lying)
    sign = torch.where(draw[:, 5:] < 0.5, 1.0, -1.0)[:, :, None, None]
    old = change * gains
    old = old / torch.linalg.vector_norm(old.flatten(2), dim=2)[:, :, None, None].clamp_min(1e-12)
    new = (upright[:, None] * sign + old) * gains
    new = new / torch.linalg.vector_norm(new.flatten(2), dim=2)[:, :, None, None].clamp_min(1e-12)
    spent = (change * (gains | pays)).flatten(1).square().sum(1)
    left = (ball.epsilon**2 - change.flatten(1).square().sum(1)).clamp_min(0)
    budget = (left + spent) / channels
    change = torch.where(pays, 0.0, change)
    change = torch.where(gains, new * budget.sqrt()[:, None, None, None], change)
    return scaled(ball, change)
