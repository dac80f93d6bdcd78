"""What a report says of files that give something away by themselves, and its figures."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

TRAINING_ROWS = Metric(
    name="training_records_in_file",
    title="Training records in the file",
    subject="the number of training records in the file",
    unit="number",
    better="lower",
    meaning="How many training records lie in the shipped bytes, exact or scaled, negated, rounded, standardised or "
    "with their features in another order. Whoever has the file has them.",
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
REBUILT_FIDELITY = Metric(
    name="rebuilt_fidelity",
    title="Fidelity of the rebuilt dense model",
    subject="the fidelity of the model rebuilt from the file",
    unit="percent",
    better="lower",
    meaning="Share of the evaluation records on which a float model of the weights that the shipped file holds answers "
    "as the dense model does. At 100 % whoever has the file has the dense model for all that its decisions show.",
)
DENSE_WEIGHTS = Metric(
    name="dense_weights_in_file",
    title="Unused dense weights in the file",
    subject="the number of dense weights that lie unused in the file",
    unit="number",
    better="lower",
    meaning="How many of the dense model's float32 weight tensors lie in the shipped bytes, bit for bit, beside those "
    "that the file computes with: dead initialisers, storages and members that nothing reads.",
)
RECOGNISED = Metric(
    name="parent_recognised",
    title="Ways in which the parent is recognised",
    subject="the number of ways in which the dense model is recognised in the file",
    unit="number",
    better="lower",
    meaning="By how many of its weights, its codes and its mask alone the file is seen to be the dense model's. It "
    "says whose model it is, which an owner may want and somebody who took a model may not.",
)
CALIBRATED_ON = Metric(
    name="ranges_of_one_record",
    title="Ranges that tell of a training record",
    subject="the number of ranges in the file that equal the extreme of one training record",
    unit="number",
    better="lower",
    meaning="How many ranges of activations in the file end where the activation of exactly one training record does, "
    "nearer than chance explains: whoever has the dense model can tell that this record was in the training.",
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
        "Where ranges tell of a record, calibrate activations by percentiles, on noise or on records that are public.",
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

REBUILDING = Risk(
    name="rebuilding",
    title="The dense model, rebuilt from the file",
    question="Does the compressed file give the dense model away?",
    wants="The dense weights, read back from codes, scales, code books and masks, and a float model made of them.",
    harm="A float model is easier to fine-tune, to attack with gradients and to resell than the file.",
    advice=(
        "Take what comes near the dense model for published: int8 files hold it within half a percent of its weights.",
        "Remove initialisers, storages and members that nothing reads before the file ships.",
        "Where the dense model is the secret, ship a distilled student, or fewer bits and sparser masks.",
    ),
    reading="Each point is what one file holds; lower is better.",
    chart=Chart(x="file", curve="fidelity"),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.031",),
        "MITRE ATLAS": ("AML.T0024.002",),
        "OWASP ML": ("ML05",),
        "NIST AI RMF": ("MEASURE 2.10",),
    },
)
