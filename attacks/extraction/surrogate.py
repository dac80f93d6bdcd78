"""What an attacker trains: the architecture it knows, or a built-in one that fits the inputs."""

from __future__ import annotations

import math

import numpy as np
from torch import nn

from ...targets.data.records import Records
from ...targets.form import Array
from ...targets.seeds import derive
from ...targets.steps import Arrays
from ...training.architecture import Architecture, unresettable
from ...training.networks import Mlp, ResidualCnn, TokenGru
from ..access import Ledger
from ..evasion.blocks import kept_at_cost
from .copying import Lesson, Pupil, Tutor

BYTES = (4.0, 1.0)  # of a weight in a file
CHANNELS, HIDDEN = (8, 16, 32, 64), ((32,), (64, 128), (256, 256), (1024, 512))  # sizes of the families
TRIED = {"agreement": Array("float64", (None,), finite=False), "loss": Array("float64", (None,), finite=False)}


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


def same_layers(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules are built of the same classes and settings, under the same names, weights apart."""
    shapes = [[(name, value.shape) for name, value in module.state_dict().items()] for module in (one, other)]
    return type(one) is type(other) and repr(one) == repr(other) and shapes[0] == shapes[1]


def families(records: Records, classes: int, size: int) -> list[Architecture]:
    """What an unknown classifier of images may be built like: of each family those nearest to the size of its file,
    with weights of 32 bits and of 8.

    Args:
        size: of the file in bytes; 0: not known, and the networks are those of `surrogate_architecture`.
    """
    shape = tuple(records.x.shape[1:])
    if len(shape) != 3 or min(shape[1:]) < 4:
        return []

    def nearest(kinds: list[Architecture]) -> list[Architecture]:
        if not size:
            return [kinds[1]]
        weights = {kind: sum(one.numel() for one in kind.blank().parameters()) for kind in kinds}

        def fitting(each: float) -> Architecture:
            return min(kinds, key=lambda kind: abs(math.log(weights[kind] * each / size)))

        return list(dict.fromkeys(fitting(each) for each in BYTES))

    def cnn(channels: int) -> Architecture:
        return Architecture(f"residual cnn of {channels} channels", lambda: ResidualCnn(classes, channels, shape[0]))

    def mlp(hidden: tuple[int, ...]) -> Architecture:
        name = f"mlp with layers of {' and '.join(map(str, hidden))}"
        return Architecture(name, lambda: Mlp(math.prod(shape), classes, hidden))

    return [*nearest([cnn(one) for one in CHANNELS]), *nearest([mlp(one) for one in HIDDEN])]


def guess(
    kinds: list[Architecture], lesson: Lesson, tutor: Tutor, ledger: Ledger, *, seed: int
) -> tuple[Architecture, str]:
    """The one of which a short copy gives most held-out answers, and what was compared, in words.

    Of as many, the one with the smaller loss; the first where none were held out.

    Args:
        kinds: one or more.
    """
    device = lesson.records.x.device

    def compare(spent: Ledger) -> Arrays:
        copies = []
        for kind in kinds:
            start = kind.fresh(derive(seed, "guess", kind.name)).to(device).requires_grad_(True)
            copies.append(tutor.copy(Pupil(start, lesson, derive(seed, "guess"))))
            spent.add(copies[-1].spent)
        return {name: np.array([getattr(copy, name) for copy in copies]) for name in TRIED}

    found = kept_at_cost("guess", ledger, compare, TRIED)
    ranked = sorted(range(len(kinds)), key=lambda at: (-found["agreement"][at], found["loss"][at]))
    if bool(np.isnan(found["agreement"]).any()):
        return kinds[0], kinds[0].name
    shares = [f"{kind.name} {share:.0%}" for kind, share in zip(kinds, found["agreement"].tolist(), strict=True)]
    return kinds[ranked[0]], f"{kinds[ranked[0]].name} (held-out answers right: {', '.join(shares)})"
