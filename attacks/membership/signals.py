"""What a membership attack keeps of a model's answers: one number per record, the logit margin phi."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...compression.recipe import Recipe, TrainingRecipe, work_of
from ...targets.data.records import Bounds, Records
from ...targets.model import Target, TorchTarget, device_of, laid_out
from ...targets.seeds import derive
from ...training.lessons import Work, together
from ...training.stacked import group_size
from ..preparation import Basis
from .case import ShadowSignals
from .population import PopulationPlan

SAME = 1e-3  # of margins, absolute and relative: another batch or processor adds up in another order
AT_ONCE = 256  # records asked about at once: calls of fewer take longer than what they compute, more fit no cache


def margin(logits: Tensor, y: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """phi = z_y - logsumexp(z of the other classes), float32 [n], for logits [n, classes] and labels y int64 [n].

    It is the logit of the label's probability, log(p / (1 - p)) (Carlini et al. 2022, section 4.2), computed without p:
    in float32 one record in six has p = 1, a loss of exactly 0, and would tell an attacker nothing.
    """
    z = logits.detach().to(torch.float64)
    label = y.to(z.device).unsqueeze(1)
    others = torch.logsumexp(z.scatter(1, label, -torch.inf), dim=1)
    phi: np.ndarray[Any, np.dtype[np.float32]] = (z.gather(1, label).squeeze(1) - others).float().cpu().numpy()
    return phi


def phi_of(target: Target, records: Records) -> np.ndarray[Any, np.dtype[np.float32]]:
    """phi of one model on some records, float32 [n]; counts n queries."""
    return margin(torch.cat([target.logits(some) for some in records.x.split(AT_ONCE)]), records.y)


def phi_of_shadow(module: nn.Module, records: Records) -> np.ndarray[Any, np.dtype[np.float32]]:
    """phi of a shadow model, in evaluation mode, on some records on the CPU, float32 [n]."""
    return phi_of(TorchTarget(laid_out(module, records.x)), records)


def margins_again(target: Target, records: Records, stored: np.ndarray[Any, Any]) -> list[str]:
    """In what stored margins, float32 [n], are not those of a model that is asked anew: a phrase, or nothing."""
    off = int((~np.isclose(margin(target.logits(records.x), records.y), stored, rtol=SAME, atol=SAME)).sum())
    return [f"its margin on {off} of {len(stored)} records is another"] if off else []


def impossible(basis: Basis, ids: np.ndarray[Any, Any], phi: np.ndarray[Any, Any], y: Tensor) -> list[str]:
    """In what margins phi [n] of non-members `ids` [n] contradict whom the model was found to classify right.

    Args:
        y: labels of all records, which say how many classes there are.
    """
    least = phi > SAME, phi > -np.log(max(int(y.max()), 1)) - SAME
    wrong = basis.contradicted(ids, *least)
    return ["its margins are not those of a model that classifies these records so"] if wrong else []


def target_signals(target: Target, plan: PopulationPlan) -> np.ndarray[Any, np.dtype[np.float32]]:
    """phi of one model on the attacked records, float32 [n]; counts n queries."""
    return phi_of(target, plan.targets)


def replayed_at_once(recipe: Recipe | None, module: nn.Module) -> int:
    """On how many shadows like `module` a recipe is replayed as one piece of work: a fixed rule, never a timing.

    One that trains small modules has its trainings stacked; of anything else a shadow is a piece of its own.
    """
    stacked = isinstance(recipe, TrainingRecipe) and recipe.trains
    return group_size(module, 1, device_of(module)) if stacked else 1


def settled(plan: PopulationPlan, module: nn.Module, recipe: Recipe, bounds: Bounds) -> Recipe:
    """The recipe with the sizes that it chooses for the population's first shadow, `module`, for all of them."""
    own = plan.records.take(plan.subset(0)).to(device_of(module))
    return recipe.settled(module, own, bounds, seed=derive(plan.seeds[0], "recipe"))


def works(
    plan: PopulationPlan, modules: Sequence[nn.Module], *, first: int = 0, recipe: Recipe, bounds: Bounds
) -> list[Work]:
    """The recipe at work on shadows `first`, `first + 1`, ... of the plan, each with its own training records and seed.

    Args:
        recipe: `settled`, so that all shadows get one size, and their trainings can be stacked.
    """

    def work(shadow: int, module: nn.Module) -> Work:
        own = plan.records.take(plan.subset(shadow)).to(device_of(module))
        return work_of(recipe, module, own, bounds, seed=derive(plan.seeds[shadow], "recipe"))

    return [work(shadow, module) for shadow, module in enumerate(modules, start=first)]


def replay(
    plan: PopulationPlan, modules: Sequence[nn.Module], *, first: int = 0, recipe: Recipe, bounds: Bounds
) -> list[nn.Module]:
    """What `works` give.

    Raises:
        NotApplicable: the recipe cannot do its work on a shadow.
    """
    return together(works(plan, modules, first=first, recipe=recipe, bounds=bounds))


def shadow_signals(
    plan: PopulationPlan, modules: Sequence[nn.Module], *, first: int = 0, recipe: Recipe | None, bounds: Bounds
) -> ShadowSignals:
    """What shadows `first`, `first + 1`, ... of the plan say of the attacked records, each compressed by `recipe`.

    Args:
        modules: the trained, uncompressed shadows; left as they are.
        recipe: replayed on each shadow with that shadow's own training records and seed; None: as trained.

    Raises:
        NotApplicable: the recipe cannot do its work on a shadow.
    """
    if recipe is not None:
        modules = replay(plan, modules, first=first, recipe=recipe, bounds=bounds)
    rows = [phi_of_shadow(module, plan.targets) for module in modules]
    return ShadowSignals(inside=plan.inside[first : first + len(modules)], phi=np.stack(rows))
