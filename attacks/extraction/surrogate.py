"""What an attacker trains: the architecture it knows, or a built-in one that fits the inputs."""

from __future__ import annotations

import math

from torch import nn

from ...targets.data.records import Records
from ...training.architecture import Architecture, unresettable
from ...training.networks import Mlp, ResidualCnn, TokenGru


def surrogate_architecture(
    parent: nn.Module | None, records: Records, classes: int, *, tokens: bool = False
) -> tuple[Architecture, bool]:
    """What the attacker trains, and whether it is the parent's own architecture."""
    if parent is not None and unresettable(parent) is None:  # else the attacker falls back on its own
        return Architecture.like(parent, "parent"), True
    shape = tuple(records.x.shape[1:])
    if tokens:
        words = int(records.x.max()) + 1
        return Architecture("token gru", lambda: TokenGru(words, classes)), False
    if len(shape) == 3 and min(shape[1:]) >= 4:
        return Architecture("residual cnn", lambda: ResidualCnn(classes, in_channels=shape[0])), False
    return Architecture("mlp", lambda: Mlp(math.prod(shape), classes)), False
