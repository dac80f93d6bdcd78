"""Which move the gradient promises most from: the first-order change of the margin (HotFlip, Ebrahimi et al. 2018,
arXiv:1712.06751), at the values of a table and at the embeddings of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ....targets.errors import NotApplicable
from ....targets.model import differentiable, frozen_copy
from ....targets.twin.logits import logits_of
from ...access import Ledger
from ..ascent.gradients import Gradients
from ..ascent.losses import margins
from .features import AT_ONCE, Features

BATCH = 256  # states differentiated at a time


class Guide:
    """First-order scores of moves through one differentiable module; it is copied."""

    def __init__(self, module: nn.Module, features: Features, ledger: Ledger) -> None:
        self._module, self._features, self._ledger = frozen_copy(module), features, ledger
        self._gradients = Gradients(module, "margin", ledger)

    def best(self, x: Tensor, y: Tensor, allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The most promising moves, int64 [n, count] (fewer where there are no more), and bool [n]: no gradient came.

        Args:
            x: float32 [n, F]; y: int64 [n]; allowed: bool [moves].

        Raises:
            NotApplicable: nothing in the module looks tokens up.
        """
        chosen, flat = [], []
        count = min(count, int(allowed.sum()))
        for some, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            slopes = self._at_embeddings(some, labels) if self._features.tokens else [self._at_values(some, labels)]
            flat.append(torch.stack([(slope.flatten(1) == 0).all(1) for slope, _ in slopes]).all(0))
            for rows in torch.arange(len(some), device=x.device).split(max(1, AT_ONCE // len(allowed))):
                scores = torch.stack([self._scores(some[rows], slope[rows], table) for slope, table in slopes]).sum(0)
                chosen.append(scores.masked_fill(~allowed, -torch.inf).topk(count, dim=1).indices)
        return torch.cat(chosen), torch.cat(flat)

    def _scores(self, x: Tensor, slope: Tensor, table: Tensor | None) -> Tensor:
        """float32 [n, moves]: how much the margin falls to first order, by slopes [n, F] or [n, F, size]."""
        features = self._features
        if table is None:
            at = features.columns[:, 0]
            scores = slope[:, at] * (
                features.values[:, 0] - x[:, at].masked_fill(features.numbers[features.feature], 0)
            )
            for first, columns, values in features.each() if features.columns.shape[1] > 1 else ():
                if len(columns) > 1:
                    own = slope[:, columns]
                    gained = own @ values.T - (own * x[:, columns]).sum(1, keepdim=True)
                    scores[:, first : first + len(values)] = gained
            return scores
        ids = features.values[: len(features.values) // len(features), 0].long()  # the same at every place
        places = features.columns[:: len(ids), 0]
        own = (slope * table[x.long()]).sum(2)
        return (slope[:, places] @ table[ids].T - own[:, places, None]).flatten(1)

    def table(self, x: Tensor) -> Tensor:
        """float32 [tokens, size]: what the module looks up for a token, of all tables that it asks side by side.

        Raises:
            NotApplicable: as `best`.
        """
        return torch.cat([table.detach() for _, table in self._at_embeddings(x[:1], x.new_zeros(1).long())], 1)

    def ascent(self, x: Tensor, y: Tensor) -> Tensor:
        """float32 [n, F, size]: minus the gradient of the margin by what is looked up (`table`) at x [n, F]."""
        pieces = [self._at_embeddings(*some) for some in zip(x.split(BATCH), y.split(BATCH), strict=True)]
        return torch.cat([torch.cat([slope for slope, _ in piece], 2) for piece in pieces])

    def _at_values(self, x: Tensor, y: Tensor) -> tuple[Tensor, None]:
        found = self._gradients(x.view(-1, *self._features.shape), y)
        return found.gradient.flatten(1).nan_to_num(0.0, 0.0, 0.0), None

    def _at_embeddings(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """By table that looks the tokens up: minus the gradient of the margin there [n, F, size], and the table."""
        ids = x.view(-1, *self._features.shape).long()
        self._ledger.forwards += len(x)
        with differentiable(self._module), _looked_up(self._module, ids) as found:
            logits = logits_of(self._module, ids.to(x.dtype)).float()
        if not found:
            raise NotApplicable(
                "the differentiable module has no embedding that looks the tokens up, so that no gradient is there"
            )
        if not logits.requires_grad:
            return [(torch.zeros_like(rows).flatten(1, -2), table) for rows, table in found]
        self._ledger.backwards += len(x)
        leaves = [rows for rows, _ in found]
        slopes = torch.autograd.grad(-margins(logits, y).sum(), leaves, allow_unused=True)
        told = [torch.zeros_like(rows) if slope is None else slope for rows, slope in zip(leaves, slopes, strict=True)]
        return [
            (slope.nan_to_num(0.0, 0.0, 0.0).flatten(1, -2), table)
            for slope, (_, table) in zip(told, found, strict=True)
        ]


@contextmanager
def _looked_up(module: nn.Module, ids: Tensor) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inside the block, what each embedding gives for these ids [n, *shape], as leaves to differentiate at, and its
    table. Embeddings that are asked about anything else (places) are left alone.
    """
    found: list[tuple[Tensor, Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        asked = (inputs[0], inputs[0].transpose(0, -1))  # some nets take places first
        mine = [index.shape == ids.shape and torch.equal(index.long(), ids) for index in asked]
        if not any(mine):
            return None
        turned = not mine[0]
        rows = (output.transpose(0, 1) if turned else output).detach().requires_grad_()
        assert isinstance(layer, nn.Embedding)
        found.append((rows, layer.weight))
        return rows.transpose(0, 1) if turned else rows

    hooks = [layer.register_forward_hook(note) for layer in module.modules() if isinstance(layer, nn.Embedding)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
