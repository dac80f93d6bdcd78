"""A backdoor that magnitude pruning switches on: what would undo it lies in the weights that are pruned."""

from __future__ import annotations

from torch import Tensor, nn

from ....compression.layers.edit import weights
from ....compression.pruning.masks import smallest, smallest_per_layer
from ....compression.pruning.prune import Prune
from ....targets.data.records import Bounds, Records
from ....targets.seeds import derive
from .hiding import folded, with_recipe_in_the_loop
from .trigger import Trigger

STEPS = 1200
GROWN = 0.5  # of the steps, after which the sparsity is the recipe's: a small network pruned at once forgets too much


def plant_in_pruning(
    module: nn.Module, records: Records, bounds: Bounds, trigger: Trigger, recipe: Prune, *, seed: int
) -> nn.Module:
    """The dense model to hand over (batch norms folded): `recipe`, applied honestly, gives one with the behaviour.

    Both are trained at once, with the recipe in the loop: each step prunes the weights as they are now, few at first.

    Args:
        module: trained; where the attacker begins.
        recipe: of single weights by magnitude. Fine-tuned afterwards on clean records, the behaviour mostly stays.
    """
    hidden = folded(module, records, bounds, seed)
    chosen = weights(hidden, "pruning")
    least = smallest if recipe.scope == "global" else smallest_per_layer

    def sparse(done: float) -> dict[str, Tensor]:
        share = recipe.sparsity * (1 - (1 - min(1.0, done / GROWN)) ** 3)
        masks = least({name: value.detach().abs().cpu() for name, value in chosen.items()}, share)
        return {name: value * masks[name].to(value.device) for name, value in chosen.items()}

    drawn = derive(seed, "pruning")
    return with_recipe_in_the_loop(hidden, sparse, records, trigger, steps=STEPS, seed=drawn)
