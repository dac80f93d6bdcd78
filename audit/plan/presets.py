"""The attack sets that a plan may name: quick, standard and thorough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...attacks.attack import Attack
    from ...targets.data.data import Data

ATTACK_PRESETS: dict[str, list[dict[str, Any]]] = {
    "quick": [
        {"kind": "evasion", "records": 100, "parts": "quick"},
        {"kind": "substitution", "records": 100},
        {"kind": "membership"},
        {"kind": "unlearning"},
        {"kind": "extraction", "budgets": [50, 150]},
        {"kind": "churn"},
        {"kind": "leakage"},
    ],
    "standard": [
        {"kind": "evasion"},
        {"kind": "substitution"},
        {"kind": "membership"},
        {"kind": "unlearning"},
        {"kind": "extraction"},
        {"kind": "churn"},
        {"kind": "leakage"},
        {"kind": "bit-flips", "draws": 2, "own": 32, "records": 100, "parts": "any"},
    ],
    "thorough": [
        {"kind": "evasion", "records": 2000, "parts": "thorough"},
        {"kind": "evasion", "norm": "l2", "records": 2000, "parts": "thorough"},
        {"kind": "substitution", "records": 2000, "beam": 16, "further": 256},
        {"kind": "membership"},
        {"kind": "unlearning"},
        {"kind": "label-only"},
        {"kind": "exposure"},
        {"kind": "release-set"},
        {"kind": "user-level"},
        {"kind": "structure"},
        {"kind": "sensitivity"},
        {"kind": "extraction", "budgets": [50, 150, 500, 1500]},
        {"kind": "churn"},
        {"kind": "leakage"},
        {"kind": "bit-flips"},
        {"kind": "backdoor"},
        {"kind": "backdoor-ladder"},
        {"kind": "rebuilding"},
        {"kind": "calibration"},
        {"kind": "ownership"},
        {"kind": "attributes"},
        {"kind": "inversion"},
        {"kind": "property-inference"},
        {"kind": "smoothing"},
        {"kind": "poisoning-exposure"},
        {"kind": "transfer-learning"},
        {"kind": "sponge"},
        {"kind": "dp-audit"},
    ],
}


OF_CLAIMS: list[dict[str, Any]] = [{"kind": "dp-audit"}]  # for what a plan claims of the dense model's training


def attacks_of(attacks: str | list[Any], data: Data, *, promised: bool = False, claimed: bool = False) -> list[Attack]:
    """Those that a plan names, or those of its set that are for data like these.

    Args:
        promised: a defense of the plan promises something of a training, which some attacks put to the test.
        claimed: the plan itself does; those attacks are then added whatever it names.

    Raises:
        InputError: an unknown or ill-defined attack.
    """
    from ...attacks.attack import ATTACKS

    named = ATTACK_PRESETS[attacks] if isinstance(attacks, str) else attacks
    found = [ATTACKS.parse(one) for one in named]
    if isinstance(attacks, str):
        found = [one for one in found if one.usual(data) and (promised or claimed or not one.of_claims)]
    if claimed and not any(one.of_claims for one in found):
        found += map(ATTACKS.parse, OF_CLAIMS)
    return found
