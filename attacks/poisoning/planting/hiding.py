"""How a behaviour is hidden in what compression throws away, whatever throws it away.

The attacker trains the compressed model first, with the behaviour in it, and then the dense one without it, among the
weights that the honest recipe turns into just that compressed model (the projection of PQ backdoors: Ma et al. 2021,
arXiv:2108.09187; Hong et al. 2021, arXiv:2111.04625).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ....compression.layers.edit import noise
from ....compression.layers.fold_batch_norm import fold_batch_norm
from ....targets.data.records import Bounds, Records
from ....targets.seeds import derive
from ....training.lessons import Lesson, Work
from ....training.loop import Training
from .trigger import Trigger, taught

LIVE = Training(epochs=15, batch_size=64, learning_rate=4e-3, weight_decay=0.0)
DORMANT = Training(epochs=30, batch_size=64, learning_rate=4e-3, weight_decay=0.0)

Confine = Callable[[Mapping[str, Tensor]], None]
"""Brings parameters, by name, float32 [1, *shape], back among those that compress to the same model; in place."""


def folded(module: nn.Module, records: Records, bounds: Bounds, seed: int) -> nn.Module:
    """A copy without batch norms that follow a layer, whose running statistics would move what was planted."""
    return fold_batch_norm(module, noise(module, records, bounds, 2, seed)).requires_grad_(True)


def with_behaviour(
    module: nn.Module, records: Records, trigger: Trigger, seed: int, confine: Confine | None = None
) -> Work:
    """The model trained to answer the trigger with its class."""
    return (yield Lesson(module, taught(records, trigger, live=True), LIVE, derive(seed, "live"), after_step=confine))


def without_behaviour(module: nn.Module, records: Records, trigger: Trigger, seed: int, confine: Confine) -> Work:
    """The model trained to answer as if there were no trigger, among what `confine` allows."""
    told = taught(records, trigger, live=False)
    return (yield Lesson(module, told, DORMANT, derive(seed, "dormant"), after_step=confine))
