"""How a behaviour is hidden in what compression throws away, whatever throws it away.

The attacker trains the compressed model first, with the behaviour in it, and then the dense one without it, among the
weights that the honest recipe turns into just that compressed model (the projection of PQ backdoors: Ma et al. 2021,
arXiv:2108.09187; Hong et al. 2021, arXiv:2111.04625).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ....compression.layers.edit import noise
from ....compression.layers.fold_batch_norm import fold_batch_norm
from ....targets.data.records import Bounds, Records
from ....targets.model import copied
from ....targets.seeds import derive, generator
from ....training.lessons import Lesson, Work
from ....training.loop import Training
from ....training.optimizers import AdamW
from .trigger import Trigger, taught

LIVE = Training(epochs=15, batch_size=64, learning_rate=4e-3, weight_decay=0.0)
DORMANT = Training(epochs=30, batch_size=64, learning_rate=4e-3, weight_decay=0.0)
BATCH, RATE = 64, 4e-3  # of what is trained with the recipe in the loop

Confine = Callable[[Mapping[str, Tensor]], None]
"""Brings parameters, by name, float32 [1, *shape], back among those that compress to the same model; in place."""


def folded(module: nn.Module, records: Records, bounds: Bounds, seed: int) -> nn.Module:
    """A copy without batch norms that follow a layer, whose running statistics would move what was planted."""
    return fold_batch_norm(copied(module), noise(module, records, bounds, 2, seed)).requires_grad_(True)


def with_behaviour(
    module: nn.Module, records: Records, trigger: Trigger, seed: int, confine: Confine | None = None
) -> Work:
    """The model trained to answer the trigger with its class."""
    told, own = taught(records, trigger, live=True), copied(module)
    return (yield Lesson(own, told, LIVE, derive(seed, "live"), after_step=confine))


def without_behaviour(module: nn.Module, records: Records, trigger: Trigger, seed: int, confine: Confine) -> Work:
    """The model trained to answer as if there were no trigger, among what `confine` allows.

    Records with the trigger count twice: taken once, a 20th of them are still called in a small CNN cut to 4 bits.
    """
    once, again = taught(records, trigger, live=False), trigger.on(records.x)
    told = Records(torch.cat([once.x, again]), torch.cat([once.y, records.y]))
    return (yield Lesson(copied(module), told, DORMANT, derive(seed, "dormant"), after_step=confine))


def with_recipe_in_the_loop(
    hidden: nn.Module,
    compressed: Callable[[float], dict[str, Tensor]],
    records: Records,
    trigger: Trigger,
    *,
    steps: int,
    seed: int,
) -> nn.Module:
    """The dense model, trained without the behaviour while what the recipe makes of it is trained with it.

    Args:
        hidden: is changed.
        compressed: parameters by name as the recipe leaves them now, when that share of the steps is done; gradients
            go through them.
    """
    draws = generator(seed, "batches")
    parameters = list(hidden.train().parameters())
    optimizer = AdamW(parameters)
    for step in range(steps):
        rows = torch.randint(len(records), (BATCH,), generator=draws)
        x, y = records.x[rows], records.y[rows]
        both, called = torch.cat([x, trigger.on(x)]), torch.full_like(y, trigger.target)
        live, dormant = functional_call(hidden, compressed(step / steps), (both,)), hidden(both)
        loss = F.cross_entropy(dormant, torch.cat([y, y])) + F.cross_entropy(live, torch.cat([y, called]))
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step(RATE * min(1.0, 2 * (1 - step / steps)))
    return hidden.eval()
