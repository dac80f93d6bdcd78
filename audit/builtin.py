"""The built-in audit: compressed versions of a small residual CNN on scikit-learn's digits."""

from __future__ import annotations

from typing import Any

from .plan import Plan

FINE_TUNE = {"epochs": 4, "learning_rate": 2e-3}

PLAN: dict[str, Any] = {
    "name": "digits CNN",
    "seed": 0,
    "data": {"kind": "digits"},
    "model": {"architecture": "crushproof.training.networks:digits_cnn", "training": {"epochs": 12}},
    "candidates": {
        "int8": "int8",
        "int4": "int4",
        "int3": "int3",
        "prune50": "prune50",
        "svd": "svd",
        "share16": "share16",
        "prune80": {"kind": "prune", "sparsity": 0.8, "fine_tune": FINE_TUNE},
        "thin": {"kind": "prune", "structure": "channels", "sparsity": 0.3, "fine_tune": FINE_TUNE},
        "student": {"kind": "distill", "width": 0.75, "temperature": 4.0, "alpha": 0.7},
        "prune80-share16": {
            "kind": "chain",
            "steps": [{"kind": "prune", "sparsity": 0.8, "fine_tune": FINE_TUNE}, {"kind": "share", "clusters": 16}],
        },
        "int4-stochastic": {"recipe": "int4", "defense": "stochastic-rounding"},
        "robust-int8": {"recipe": "int8", "defense": "adversarial-training"},
        "private-int8": {
            "recipe": {"kind": "quantize", "weight_bits": 8, "calibration": "range-free"},
            "defense": "dp-sgd",
        },
        "int2": {"recipe": {"kind": "quantize", "weight_bits": 2}, "control": True},
    },
    "attacks": "standard",
    "policy": "release",
}


def builtin_plan() -> Plan:
    return Plan.model_validate(PLAN)
