"""The built-in audit: compressed versions of a small residual CNN on scikit-learn's digits."""

from __future__ import annotations

from typing import Any

from ...compression.words import FINE_TUNE
from .plan import Plan

PLAN: dict[str, Any] = {
    "name": "digits CNN",
    "seed": 0,
    "data": {"kind": "digits"},
    "model": {"architecture": "crushproof.training.networks:digits_cnn", "training": {"epochs": 9}},
    "candidates": {
        "int8": "int8",
        "int4": "int4",
        "int3": "int3",
        "prune30": "prune30",
        "prune80": "prune80",
        "channels50": "channels50",
        "svd70": "svd70",
        "share16": "share16",
        "student": "student",
        "prune85-int4": {
            "kind": "chain",
            "steps": [
                {"kind": "prune", "sparsity": 0.85, "steps": 2, "fine_tune": FINE_TUNE},
                {"kind": "quantize", "weight_bits": 4, "keep_ends_8bit": False},
            ],
        },
        "int4-stochastic": {"recipe": "int4", "defense": "stochastic-rounding"},
        "robust-int8": {
            "recipe": "int8",
            "defense": {"kind": "adversarial-training", "training": {"epochs": 6, "learning_rate": 5e-3}},
        },
        "private-int8": {
            "recipe": {"kind": "quantize", "weight_bits": 8, "calibration_inputs": "noise"},
            "defense": "dp-sgd",
        },
        "int2": {"recipe": "int2", "control": True},
    },
    "attacks": "standard",
    "policy": "release",
}


def builtin_plan() -> Plan:
    return Plan.model_validate(PLAN)
