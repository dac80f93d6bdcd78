"""Short words a plan may use: named recipes, and the attack sets quick, standard and thorough."""

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

ATTACK_PRESETS: dict[str, list[dict[str, Any]]] = {
    "quick": [
        {"kind": "evasion", "records": 100, "parts": [{"kind": "pgd", "steps": 20}, {"kind": "transfer"}]},
        {"kind": "membership"},
        {"kind": "extraction", "budgets": [50, 150]},
    ],
    "standard": [{"kind": "evasion"}, {"kind": "membership"}, {"kind": "extraction"}],
    "thorough": [
        {"kind": "evasion", "records": 2000},
        {"kind": "evasion", "norm": "l2", "records": 2000},
        {"kind": "membership"},
        {"kind": "extraction", "budgets": [50, 150, 500, 1500]},
    ],
}
