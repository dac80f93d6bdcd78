"""What stored evidence of evasion must look like, and what of it follows from the rest."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from pydantic import JsonValue, PositiveFloat, PositiveInt

from ...targets.form import Array, Arrays, Document, Form, Layout, require
from ..access import Access, Flag
from ..preparation import Scope
from .ball import Norm
from .parameters import EvasionParameters


class Summary(Document):
    """`Evidence.summary` of the evasion attack."""

    norm: Norm
    epsilons: tuple[PositiveFloat, ...]
    gate_epsilon: PositiveFloat
    parts: tuple[str, ...]
    settings: dict[str, dict[str, JsonValue]]
    part_access: dict[str, Access]
    use_parent: tuple[str, ...]
    union_flags: tuple[Flag, ...]
    without_gradient: dict[str, PositiveInt]


def evidence_form(attack: EvasionParameters, scope: Scope) -> Form:
    """Of a run with these settings."""
    count = min(attack.count, len(scope.data.evaluation_ids))
    return Form(Summary, partial(_layout, count, scope.data.shape), holds=partial(_holds, attack, scope))


def _layout(count: int, shape: tuple[int, ...], summary: Summary) -> Layout:
    outcomes = Array("bool", (count,))
    tried = {f"fooled/{part}/{epsilon!r}" for part in summary.parts for epsilon in summary.epsilons}
    at_gate = {f"fooled/{part}/{summary.gate_epsilon!r}" for part in summary.parts}
    return {
        "ids": Array("int64", (count,)),
        "clean_correct": outcomes,
        "adversarial": Array("float32", (count, *shape)),
        **{f"worst/{epsilon!r}": outcomes for epsilon in summary.epsilons},
        **{name: Array("bool", (count,), optional=name not in at_gate) for name in tried},
    }


def _holds(attack: EvasionParameters, scope: Scope, found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
    known = {part.part: part for part in attack.parts}
    require(bool(found.parts) and len({*found.parts}) == len(found.parts), "no parts, or one twice")
    require({*found.parts} <= known.keys(), "a part that the attack does not have")
    settings = {part: known[part].model_dump(mode="json") for part in found.parts}
    require(found.settings == settings, "the settings are not those of the attack")
    require(found.part_access == {part: known[part].access for part in found.parts}, "the access is another")
    require({*found.use_parent} == {part for part in found.parts if known[part].uses_parent}, "use_parent is another")
    require(found.gate_epsilon in found.epsilons and found.norm == attack.norm, "another epsilon or norm")
    named = attack.automatic or ({*found.epsilons} <= {*attack.epsilons} and found.gate_epsilon == attack.gate)
    require(named, "epsilons that the attack does not name")
    ids = arrays["ids"]
    require(np.array_equal(ids, scope.data.evaluation_ids.numpy()[: len(ids)]), "ids are not those of the records")
    most = max(found.without_gradient.values(), default=0)
    require({*found.without_gradient} <= {*found.parts} and most <= len(ids), "without_gradient counts too many")
    worst = ~arrays["clean_correct"]
    for epsilon in found.epsilons:
        outcomes = [arrays.get(f"fooled/{part}/{epsilon!r}") for part in found.parts]
        worst = np.logical_or.reduce([worst, *(one for one in outcomes if one is not None)])
        require(np.array_equal(worst, arrays[f"worst/{epsilon!r}"]), f"worst/{epsilon!r} is not that of its parts")
