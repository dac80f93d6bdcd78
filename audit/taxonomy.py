"""What the public catalogues of attacks call each risk, so that a report can be read beside them.

The ids exist in the catalogues' editions named here; which id fits which check is this project's judgement.
"""

from __future__ import annotations

FRAMEWORKS = {
    "NIST AI 100-2": "NIST AI 100-2e2025, Adversarial Machine Learning: A Taxonomy and Terminology",
    "MITRE ATLAS": "MITRE ATLAS 5.6",
    "OWASP ML": "OWASP Machine Learning Security Top 10 (2023)",
    "NIST AI RMF": "NIST AI Risk Management Framework 1.0, MEASURE",
}

_IDS: dict[str, tuple[list[str], list[str], list[str], list[str]]] = {
    "evasion": (
        ["NISTAML.022", "NISTAML.025"],
        ["AML.T0015", "AML.T0043"],
        ["ML01"],
        ["MEASURE 2.7", "MEASURE 2.6"],
    ),
    "extraction": (["NISTAML.031"], ["AML.T0024.002", "AML.T0005.001"], ["ML05"], ["MEASURE 2.7"]),
    "membership": (["NISTAML.033"], ["AML.T0024.000"], ["ML04"], ["MEASURE 2.10"]),
    "reconstruction": (["NISTAML.032", "NISTAML.034"], ["AML.T0024.001"], ["ML03"], ["MEASURE 2.10"]),
    "poisoning": (
        ["NISTAML.013", "NISTAML.012", "NISTAML.024"],
        ["AML.T0020", "AML.T0059"],
        ["ML02"],
        ["MEASURE 2.7"],
    ),
    "backdoor": (
        ["NISTAML.023", "NISTAML.021"],
        ["AML.T0018.000", "AML.T0043.004"],
        ["ML10", "ML07"],
        ["MEASURE 2.7"],
    ),
    "compression-backdoor": (
        ["NISTAML.051", "NISTAML.026"],
        ["AML.T0010.003", "AML.T0058", "AML.T0018"],
        ["ML06", "ML10"],
        ["MEASURE 2.7"],
    ),
    "tampering": (
        ["NISTAML.011", "NISTAML.026"],  # the nearest; hardware faults have no id of their own
        ["AML.T0018", "AML.T0031"],
        ["ML10", "ML09"],
        ["MEASURE 2.7", "MEASURE 2.6"],
    ),
    "sponge": (["NISTAML.014"], ["AML.T0029", "AML.T0034"], [], ["MEASURE 2.6", "MEASURE 2.12"]),
    "fairness": ([], [], [], ["MEASURE 2.11"]),
}


def taxonomy(risk: str) -> dict[str, list[str]]:
    """Ids of a risk by framework; frameworks that have none are left out, and so is every one for an unknown risk."""
    ids = _IDS.get(risk, ([], [], [], []))
    return {framework: list(found) for framework, found in zip(FRAMEWORKS, ids, strict=True) if found}
