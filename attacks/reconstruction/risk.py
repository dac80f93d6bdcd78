"""What a report says of files that give something away by themselves, and its figures."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

TRAINING_ROWS = Metric(
    name="training_records_in_file",
    title="Training records in the file",
    subject="the number of training records in the file",
    unit="number",
    better="lower",
    meaning="How many training records lie in the shipped bytes, exact or scaled, rounded, standardised or with their "
    "features in another order. Whoever has the file has them.",
    fails_beyond=0.0,
)
PRIVATE_WORDS = Metric(
    name="private_words",
    title="Private words in the file",
    subject="the number of private words in the file",
    unit="number",
    better="lower",
    meaning="How many paths, names of users and machines, e-mail addresses and secrets the shipped bytes hold.",
)

LEAKAGE = Risk(
    name="leakage",
    title="What the file gives away",
    question="Does the file itself hold what nobody meant to ship?",
    wants="Training records, names of people and machines, paths, secrets: read off the file, the model is not asked.",
    harm="A record in the file is disclosed to whoever gets the file; paths and names help whoever attacks its makers.",
    advice=(
        "Write the file again without the tensor, example input or metadata that is named, and audit it again.",
        "Export with an example input of random numbers; clone it first, so that no whole storage comes along.",
        "Remove doc strings and metadata (onnx: `model.metadata_props`, `doc_string`) before the file ships.",
    ),
    reading="Each point is what one file holds; lower is better.",
    chart=Chart(x="file", curve="records"),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.032",),
        "MITRE ATLAS": ("AML.T0024.001",),
        "OWASP ML": ("ML03",),
        "NIST AI RMF": ("MEASURE 2.10",),
    },
)
