"""Short words a plan may use: named recipes, and the attack sets quick, standard and thorough."""

from __future__ import annotations

from typing import Any, Literal

RECIPE_WORDS: dict[str, dict[str, Any]] = {
    "int8": {"kind": "quantize", "weight_bits": 8},
    "int4": {"kind": "quantize", "weight_bits": 4},
    "int3": {"kind": "quantize", "weight_bits": 3},
    "prune50": {"kind": "prune", "sparsity": 0.5},
    "prune80": {"kind": "prune", "sparsity": 0.8, "fine_tune": {"epochs": 4, "learning_rate": 2e-3}},
    "svd": {"kind": "factorize", "energy": 0.95},
    "share16": {"kind": "share", "clusters": 16},
}

ATTACK_PRESETS: dict[Literal["quick", "standard", "thorough"], list[dict[str, Any]]] = {
    "quick": [
        {"kind": "evasion", "records": 100, "parts": [{"kind": "pgd", "steps": 20}, {"kind": "transfer"}]},
        {"kind": "membership"},
        {"kind": "extraction", "budgets": [50, 150]},
    ],
    "standard": [{"kind": "evasion"}, {"kind": "membership"}, {"kind": "extraction"}],
    "thorough": [
        {"kind": "evasion", "records": 1000},
        {"kind": "evasion", "norm": "l2", "epsilons": [0.25, 0.5, 1.0], "gate_epsilon": 0.5, "records": 1000},
        {"kind": "membership"},
        {"kind": "extraction", "budgets": [50, 150, 500, 1500]},
    ],
}
