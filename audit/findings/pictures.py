"""Pictures of records, for a plan that asks for them: for the report alone, as nothing else may hold a record."""

from __future__ import annotations

import contextlib

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
            with contextlib.suppress(Exception):  # another package's code, perhaps: every figure stands without it
                shown = one.attack.pictures(AttackResults(results, scope, model, level))
                if shown:
                    found[finding_id(model.name, label)] = shown
    return found
