"""Pictures of records, for a plan that asks for them: for the report alone, as nothing else may hold a record."""

from __future__ import annotations

import warnings

from ...attacks.measurement import Picture
from .finding_rows import finding_id
from .results import AttackResults, AuditResults

Pictures = dict[str, tuple[Picture, ...]]
"""By the finding's id."""


def pictures_of(results: AuditResults) -> Pictures:
    """Of the main finding of each attack that has some; nothing where the plan does not say `show_records`."""
    found: Pictures = {}
    suite = results.suite
    if not suite.plan.show_records:
        return found
    for model in suite.models.values():
        for attack, label in suite.lineup.attacks:
            if suite.task not in attack.tasks:
                continue
            position, one = results.round_of(label, model.name)
            scope, level = suite.scope(suite.round_label(label, position)), suite.level(label, position)
            try:
                shown = one.attack.pictures(AttackResults(results, scope, model, level))
            except Exception as error:  # another package's code, perhaps: every figure stands without it
                warnings.warn(f"{label} on {model.name} has no pictures: {error}", stacklevel=2)
                continue
            if shown:
                found[finding_id(model.name, label)] = shown
    return found
