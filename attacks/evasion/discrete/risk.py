"""What a report says of evasion by exchange; its figure is the same robust accuracy."""

from __future__ import annotations

from ...risk import Chart, Risk

SUBSTITUTION = Risk(
    name="substitution",
    title="Evasion by changed features or tokens",
    question="Can somebody change a few features or tokens of an input and get a wrong answer?",
    wants="To make the model answer wrongly by sending another category, number or token in a few places.",
    harm="Wrong decisions on demand: a loan that is granted, a claim or a message that passes.",
    advice=(
        "Prefer a candidate that passes; otherwise check what is easily changed against another source, and train "
        "without features that anybody can set at will.",
        "Declare what an attacker cannot change (immutable) and what costs more (costs): the figure is about the rest.",
        "Re-audit after every recompression: robustness of the dense model does not carry over by itself.",
    ),
    reading="Each line shows the share of records still right as more features or tokens of a record may be others. "
    "Higher is safer; a line that falls below the grey one lost robustness to compression.",
    described="Of the stored inputs that fooled the model at the number of changes judged: how far each is from its "
    "record, in units of each feature's range (L-inf: the largest change of a value; L2: the length of all together), "
    "and how many values are others, a category counting as the two that become 0 and 1. The smallest number of "
    "changes that fools is the median over all attacked records, 0 for those that are wrong as they are.",
    chart=Chart(x="changed features or tokens", curve="worst case"),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.022", "NISTAML.025"),
        "MITRE ATLAS": ("AML.T0015", "AML.T0043"),
        "OWASP ML": ("ML01",),
        "NIST AI RMF": ("MEASURE 2.7", "MEASURE 2.6"),
    },
)
