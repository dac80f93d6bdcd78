"""A backdoor that low rank switches on: what undoes it lies in the singular directions that are cut off."""

from __future__ import annotations

from torch import Tensor, nn

from ....compression.factorization.decompose import Convolution, MatrixSvd, TruncatedSvd, decomposition
from ....compression.factorization.factorize import Factorize, ranks_for_energy
from ....targets.data.records import Bounds, Records
from ....targets.errors import NotApplicable
from ....targets.seeds import derive
from .hiding import folded, with_recipe_in_the_loop
from .trigger import Trigger

STEPS = 800


def plant_in_factorization(
    module: nn.Module, records: Records, bounds: Bounds, trigger: Trigger, recipe: Factorize, *, seed: int
) -> nn.Module:
    """The dense model to hand over (batch norms folded): `recipe`, applied honestly, gives one with the behaviour.

    Both are trained at once, with the recipe in the loop: each step cuts the weights as they are now. Gradients reach
    them through the cut as a projection on the directions that are kept.

    Args:
        module: trained; where the attacker begins.
        recipe: with rank_choice energy or rank, and convolutions cut as matrices (`channel`, and 1 x 1 by any method).

    Raises:
        NotApplicable: a layer is cut in another way.
    """
    hidden = folded(module, records, bounds, seed)
    made = recipe.model_copy(update={"fine_tune": None}).apply(hidden, records, bounds, seed=seed)
    layers = {
        path: layer
        for path, layer in hidden.named_modules()
        if isinstance(layer, nn.Linear | Convolution) and isinstance(made.get_submodule(path), nn.Sequential)
    }

    def low(_: float) -> dict[str, Tensor]:
        return {f"{path}.weight": _cut(layer, recipe) for path, layer in layers.items()}

    drawn = derive(seed, "low rank")
    return with_recipe_in_the_loop(hidden, low, records, trigger, steps=STEPS, seed=drawn)


def _cut(layer: nn.Linear | Convolution, recipe: Factorize) -> Tensor:
    """The weight at the rank that the recipe leaves it."""
    part = decomposition(layer, recipe.convolution)
    if not isinstance(part, TruncatedSvd) or (not isinstance(part, MatrixSvd) and recipe.convolution == "spatial"):
        raise NotApplicable("it is planted into layers that are cut as matrices: name convolution: channel")
    rank = recipe.rank if recipe.rank is not None else ranks_for_energy(part, recipe.energy)[0]
    kept = part.left[:, : min(rank, part.full[0])].to(layer.weight)
    cut: Tensor = kept @ (kept.T @ layer.weight.flatten(1))
    return cut.view_as(layer.weight)
