"""What a report says of whose model a file is, and its figures."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

OWNED = Metric(
    name="matched_as_own",
    title="Ways in which it is shown to be one's own",
    subject="the number of ways in which the file is shown to come from the dense model",
    unit="number",
    better="higher",
    meaning="By how many of three ways the file is shown to come from the dense model: its decisions, against control "
    "models that were trained independently of it; its weights; and what drives its hidden units, both against the "
    "same with units in random order. Weights that cannot be held against the dense model's leave fewer ways.",
)
AGREEMENT = Metric(
    name="own_agreement",
    title="Agreement where only copies agree",
    subject="the agreement with the dense model where only copies agree",
    unit="percent",
    better="higher",
    meaning="Share of made-up records on which the file decides as the dense model does: records whose features are "
    "exchanged, far from all that was learnt, or records just beyond its decision boundary. Control models, trained "
    "independently, say how much agreement chance explains.",
)

OWNERSHIP = Risk(
    name="ownership",
    title="Whose model it is",
    question="If a compressed copy turned up elsewhere, could it be shown to be one's own?",
    wants="To use or sell a compressed copy of a model as if it had been trained independently.",
    harm="Without evidence that survives compression an owner cannot show that a model was taken.",
    advice=(
        "Keep the dense model, its digest and the date: agreement with it is the evidence.",
        "Where no way matches, embed a watermark before compression and measure that it survives the recipe.",
        "Keep control models of the same architecture: they turn a likeness into a p-value.",
    ),
    reading="A file whose agreement lies above that of all controls, with a p-value below .001, comes from the dense "
    "model.",
    described="Controls are shadow models: trained as the dense model was, on half of the same records and others.",
    chart=Chart(x="control model", curve="agreement"),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.031",),
        "MITRE ATLAS": ("AML.T0024.002", "AML.T0048.004"),
        "OWASP ML": ("ML05",),
        "NIST AI RMF": ("MEASURE 2.7",),
    },
)
