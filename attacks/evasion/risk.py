"""What a report says of evasion, and its figures."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

ROBUST_ACCURACY = Metric(
    name="robust_accuracy",
    title="Robust accuracy",
    subject="robust accuracy",
    unit="percent",
    better="higher",
    meaning="Share of records still classified correctly after the strongest of all attacks that ran, record by "
    "record.",
)
EVADE_ONLY = Metric(
    name="evade_only",
    title="Evade-only rate",
    subject="the evade-only rate",
    unit="percent",
    better="lower",
    meaning="Share of records that an attacker can change so that the compressed model errs and the dense one it came "
    "from still answers right; unchanged records on which only the compressed one errs count too. Whoever tests or "
    "monitors the dense model sees none of them.",
)

EVASION = Risk(
    name="evasion",
    title="Evasion",
    question="Can somebody change an input a little and get a wrong answer?",
    wants="To make the model answer wrongly while the input still looks the same to a person.",
    harm="Wrong decisions on demand: fraud that passes, signs misread, content that slips through.",
    advice=(
        "Prefer a candidate that passes; otherwise train adversarially and compress that model.",
        "Limit repeated queries and return labels, not scores, where the product allows: this slows black-box "
        "attackers and does not stop white-box ones.",
        "Re-audit after every recompression: robustness of the dense model does not carry over by itself.",
    ),
    reading="Each line shows the share of records still right as the attacker may change the input more. Higher is "
    "safer; a line that falls below the grey one lost robustness to compression.",
    described="Of the stored inputs that fooled the model at the epsilon judged: how far each is from its record, in "
    "units of [0, 1] pixels (L-inf: the largest change of a value; L2: the length of all together), how many values "
    "are others, and, of images, how alike the two look (SSIM; 1: the same). The smallest epsilon that fools is the "
    "median over all attacked records, 0 for those that are wrong as they are, of the epsilons that were tried.",
    transferred="Of the inputs that were made on one model (a row) and fool it within the epsilon judged, the share "
    "that fools another one (a column) as it ships, where both are right about the record as it is. They are those of "
    "the smallest epsilon tried that fools the first model, so that inputs made to travel would fool more; those made "
    "with the help of the model it came from are left out, and at most 200 are asked. A high share: whoever has the "
    "one can attack the other without ever seeing it. No policy judges it.",
    chart=Chart(x="epsilon", curve="worst case"),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.022", "NISTAML.025"),
        "MITRE ATLAS": ("AML.T0015", "AML.T0043"),
        "OWASP ML": ("ML01",),
        "NIST AI RMF": ("MEASURE 2.7", "MEASURE 2.6"),
    },
)
