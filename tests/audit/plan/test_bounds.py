"""No number of a plan is without end: a slip of the finger must not become a week of work, or an overflow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from crushproof.attacks.attack import ATTACKS
from crushproof.attacks.evasion.engine import PERTURBERS
from crushproof.audit.plan.plan import Plan, check_techniques, parse_plan
from crushproof.compression.recipe import RECIPES
from crushproof.compression.search import SearchSettings
from crushproof.defenses.defense import DEFENSES
from crushproof.targets.errors import InputError
from crushproof.targets.runtimes.runtime import RUNTIMES
from crushproof.training.loop import Training

REGISTRIES = (RECIPES, ATTACKS, PERTURBERS, DEFENSES, RUNTIMES)
OURS = [
    *(Plan, Training, SearchSettings),
    *(
        kind
        for registry in REGISTRIES
        for kind in registry.kinds().values()
        if kind.__module__.startswith("crushproof")
    ),
]


def numbers(
    schema: Any, where: str, definitions: dict[str, Any], known: set[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every number in a JSON schema and where it stands."""
    if not isinstance(schema, dict):
        return
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    if name and name not in known:
        known.add(name)
        yield from numbers(definitions[name], name, definitions, known)
    if schema.get("type") in ("integer", "number") and not schema.keys() & {"enum", "const"}:
        yield where, schema
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for inner in schema.get(key, ()):
            yield from numbers(inner, where, definitions, known)
    for key in ("items", "additionalProperties"):
        yield from numbers(schema.get(key), f"{where}[]", definitions, known)
    for key, inner in schema.get("properties", {}).items():
        yield from numbers(inner, f"{where}.{key}", definitions, known)


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_every_number_has_two_ends(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    endless = [
        where
        for where, one in numbers(schema, model.__name__, schema.get("$defs", {}), set())
        if not one.keys() & {"minimum", "exclusiveMinimum"} or not one.keys() & {"maximum", "exclusiveMaximum"}
    ]
    assert endless == []


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("shadows: {training_free: 1000000}", "training_free"),
        ("attacks: [{kind: evasion, records: 100000000000}]", "records"),
        ("attacks: [{kind: evasion, epsilon: 1000000}]", "epsilon"),
        ("attacks: [{kind: evasion, parts: [{kind: pgd, steps: 1000000000}]}]", "steps"),
        (
            "attacks: [{kind: evasion, parts: [{kind: art, name: BoundaryAttack, parameters: {max_iter: 10000000}}]}]",
            "",
        ),
        ("attacks: [{kind: extraction, budgets: [100000000000]}]", "budgets"),
        ("attacks: [{kind: membership}]\nengine: {kind: local, workers: 100000}", "workers"),
        ("seed: 9223372036854775808", ""),
        ("seed: 1" + 400 * "0", ""),
    ],
)
def test_what_is_too_much_is_one_paragraph(line: str, key: str) -> None:
    model = "model: {architecture: 'a:b'}\n"
    with pytest.raises(InputError) as caught:
        check_techniques(parse_plan(f"data: {{kind: digits}}\n{model}candidates: {{a: int8}}\n{line}\n"))
    assert key in str(caught.value)
    assert len(str(caught.value)) < 600
