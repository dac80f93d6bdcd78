"""The runs of membership inference: what they are called, what they need, and what the attacker is handed."""

from __future__ import annotations

from functools import partial

from ...compression.answers import without_noise
from ...compression.smoothed import asked_often
from ..attack import Run
from ..preparation import Audited, Inputs, Scope
from .case import MembershipCase, ShadowSignals
from .preparations import BlindScores, population_of, shadow_count
from .replayed import SignalsOfShadows, signals_of


def membership_run(model: Audited, scope: Scope, *, shadows: int | None = None, neighbours: int = 1) -> Run:
    """A run against one model, with every shadow there is or with the first so many.

    Args:
        shadows: at most so many; 0: the attacker has none.
        neighbours: over so many its answers are averaged: shadow models answer without noise, and by more votes.
    """
    recipe = model.recipe
    if neighbours > 1:
        recipe = asked_often(without_noise(recipe), neighbours)
    own = None if shadows == 0 else signals_of(scope, model.parent, recipe)
    uncompressed = None if own is None or model.recipe is None else signals_of(scope, model.parent, None)
    blind = BlindScores()
    return Run(
        detail=run_detail(model, scope, shadows),
        model=model.name,
        needs=(blind, *(one for one in (own, uncompressed) if one is not None)),
        prepare=partial(_case, own, uncompressed, blind, shadows),
        identity=shadows,
        uses_parent=False,
    )


def run_detail(model: Audited, scope: Scope, shadows: int | None) -> str:
    """What the run with so many shadows is called: nothing for all of them."""
    full = shadows is None or shadows >= shadow_count(scope, model.parent, None)
    return "" if full else f"{shadows}-shadows"


def _case(
    own: SignalsOfShadows | None,
    uncompressed: SignalsOfShadows | None,
    blind: BlindScores,
    shadows: int | None,
    inputs: Inputs,
) -> MembershipCase:
    """What the membership attacker has; without own signals it has no shadow model, and uses the records it owns."""

    def of(signals: SignalsOfShadows | None) -> ShadowSignals | None:
        if signals is None:
            return None
        arrays = inputs.prepared(signals).arrays
        return ShadowSignals(arrays["inside"][:shadows], arrays["phi"][:shadows])

    scores = inputs.prepared(blind).arrays["scores"]
    return population_of(inputs.scope).case(of(own), of(uncompressed), scores)
