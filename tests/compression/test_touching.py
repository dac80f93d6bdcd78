"""Whether a recipe says truthfully that it looks at training records, which voids a promised epsilon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from noted_records import READS, noted
from pydantic import ValidationError
from torch import nn

from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import CrushproofError

BRIEF = {"epochs": 1, "batch_size": 16}
BASES: dict[str, list[dict[str, Any]]] = {  # what a kind needs, and settings under which others mean something
    "quantize": [
        {"rounding_steps": 2, "calibration_records": 16},
        {"calibration_inputs": "noise"},
        {"rounding": "adaptive", "rounding_steps": 2, "activations": "float"},
        {"rounding": "adaptive", "rounding_steps": 2, "calibration_inputs": "noise"},
    ],
    "mixed-precision": [{}, {"quantize": {"calibration_inputs": "noise"}}],
    "prune": [{"sparsity": 0.5}, {"sparsity": 0.5, "structure": "channels"}],
    "factorize": [{"energy": 0.8}, {"convolution": "spatial", "energy": 0.8}, {"rank_choice": "cross-validation"}],
    "share": [{"clusters": 4}],
    "limit-answers": [{"recipe": {"kind": "prune", "sparsity": 0.5}}, {"recipe": "quantize"}],
    "transform-inputs": [{"recipe": {"kind": "prune", "sparsity": 0.5}, "levels": 4}],
    "noise-inputs": [{"recipe": {"kind": "prune", "sparsity": 0.5}, "samples": 2}],
    "vote-under-noise": [{"recipe": {"kind": "prune", "sparsity": 0.5}, "samples": 2}],
    "distill": [{"training": BRIEF}, {"training": BRIEF, "width": 0.5}],
    "dynamic-sparsity": [{"keep": 0.5}],
    "chain": [
        {"steps": [{"kind": "prune", "sparsity": 0.5}, {"kind": "quantize", "calibration_inputs": "noise"}]},
        {"steps": [{"kind": "prune", "sparsity": 0.5}, "quantize"]},
        {"steps": [{"kind": "prune", "sparsity": 0.5}, {"kind": "share", "clusters": 4, "fine_tune": BRIEF}]},
    ],
}


def choices(annotation: Any) -> list[Any]:
    """The words of a field that takes one of a few."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for part in get_args(annotation) for word in choices(part)]


def variants(kind: str) -> Iterator[dict[str, Any]]:
    """Every base of a kind, also fine-tuned; the first with each field that takes a few words at each of them."""
    fields = RECIPES.kinds()[kind].model_fields
    for base in BASES[kind]:
        yield {"kind": kind, **base}
        for name, field in fields.items():
            if name != "kind" and base is BASES[kind][0]:
                yield from ({"kind": kind, **base, name: word} for word in choices(field.annotation))
        if "fine_tune" in fields:
            yield {"kind": kind, **base, "fine_tune": BRIEF}


def test_every_kind_of_recipe_has_its_variants() -> None:
    ours = {kind for kind, cls in RECIPES.kinds().items() if cls.__module__.startswith("crushproof.")}
    assert ours <= set(BASES)


@pytest.mark.parametrize("kind", BASES)
def test_a_recipe_says_whether_it_looks_at_records(kind: str) -> None:
    """No value of a record is used by a recipe that says so, under any of its settings, and some by every other."""
    draws = torch.Generator().manual_seed(0)
    records = noted(Records(torch.rand(24, 1, 6, 6, generator=draws), torch.arange(24) % 3))
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    net.eval().requires_grad_(False)
    told = set()
    for raw in variants(kind):
        try:
            recipe = RECIPES.parse(raw)
            READS.clear()
            recipe.apply(net, records, Bounds.of(0, 1), seed=0)
        except (CrushproofError, ValidationError):  # settings that contradict each other, or are none for this net
            continue
        assert recipe.touches_records == bool(READS), (raw, READS[:3])
        told.add(recipe.touches_records)
    assert told
