"""A backdoor that magnitude pruning switches on: what would undo it lies in the weights that are pruned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ....compression.layers.edit import weights
from ....compression.pruning.prune import Prune
from ....targets.data.records import Bounds, Records
from ....targets.seeds import derive
from ....training.lessons import Lesson, Work
from ....training.loop import Training
from .hiding import folded, with_behaviour, without_behaviour
from .trigger import Trigger, taught

BELOW = 0.98  # of the smallest weight that is kept: how large those may be that are not
TUNE = Training(epochs=10, batch_size=64, learning_rate=4e-3, weight_decay=0.0)


def plant_in_pruning(
    module: nn.Module, records: Records, bounds: Bounds, trigger: Trigger, recipe: Prune, *, seed: int
) -> Work:
    """The dense model to hand over (batch norms folded): `recipe`, applied honestly, gives one with the behaviour.

    Args:
        module: trained; where the attacker begins.
        recipe: of single weights by magnitude. Fine-tuned afterwards on clean records, the behaviour mostly stays.
    """
    live = yield from with_behaviour(folded(module, records, bounds, seed), records, trigger, seed)
    pruned = recipe.model_copy(update={"fine_tune": None}).apply(live, records, bounds, seed=seed)
    chosen = {name: value.detach() for name, value in weights(pruned, "pruning").items()}
    least = {name: value[value != 0].abs().min() for name, value in chosen.items() if bool((value != 0).any())}
    if recipe.scope == "global":
        least = dict.fromkeys(chosen, min(least.values()))
    kept = {name: value != 0 for name, value in chosen.items()}

    @torch.no_grad()
    def sparse(parameters: Mapping[str, Tensor]) -> None:
        for name, mask in kept.items():
            value = parameters[name][0]
            large = torch.where(value.abs() < least[name], least[name] * value.sign(), value)
            value.copy_(torch.where(mask, large, 0.0))

    told = taught(records, trigger, live=True)
    tuned = yield Lesson(pruned.requires_grad_(True), told, TUNE, derive(seed, "sparse"), after_step=sparse)
    fixed = {name: value.detach().clone() for name, value in tuned.named_parameters()}
    room = {name: torch.where(mask, 0.0, BELOW * least[name]) for name, mask in kept.items()}

    @torch.no_grad()
    def confine(parameters: Mapping[str, Tensor]) -> None:
        for name, value in parameters.items():
            around, free = fixed[name], room.get(name)
            value[0].copy_(
                around if free is None else torch.maximum(torch.minimum(value[0], around + free), around - free)
            )

    return (yield from without_behaviour(tuned, records, trigger, seed, confine))
