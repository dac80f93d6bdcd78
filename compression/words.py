"""Short words for recipes."""

from __future__ import annotations

from typing import Any

FINE_TUNE = {"epochs": 3, "learning_rate": 4e-3}

RECIPE_WORDS: dict[str, dict[str, Any]] = {
    "int8": {"kind": "quantize", "weight_bits": 8},
    "int4": {"kind": "quantize", "weight_bits": 4},
    "int3": {"kind": "quantize", "weight_bits": 3},
    "int2": {"kind": "quantize", "weight_bits": 2},
    "prune30": {"kind": "prune", "sparsity": 0.3},
    "prune80": {"kind": "prune", "sparsity": 0.8, "fine_tune": FINE_TUNE},
    "channels50": {"kind": "prune", "structure": "channels", "sparsity": 0.5, "fine_tune": FINE_TUNE},
    "svd70": {"kind": "factorize", "convolution": "channel", "energy": 0.7, "fine_tune": FINE_TUNE},
    "share16": {"kind": "share", "clusters": 16},
    "student": {"kind": "distill", "training": {"epochs": 8, "batch_size": 64, "learning_rate": 1e-2}},
}


def spelled(recipe: Any) -> Any:
    """The mapping that a short word stands for; anything else as it is."""
    return RECIPE_WORDS.get(recipe, recipe) if isinstance(recipe, str) else recipe
