"""What a report says of poisoning exposure, and its figures."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

TARGETED_ERROR = Metric(
    name="targeted_error_after_flips",
    title="Targeted error after label flips",
    subject="the targeted error after label flips",
    unit="percent",
    better="lower",
    meaning="Share of records of one class that are taken for another, when a share of the training records, all of "
    "the one class, was labelled as the other before the model was trained and compressed.",
)
RANDOM_ACCURACY = Metric(
    name="accuracy_after_random_flips",
    title="Accuracy after random label flips",
    subject="accuracy after random label flips",
    unit="percent",
    better="higher",
    meaning="Share of records classified correctly when a share of the training records was given other labels at "
    "random before the model was trained and compressed.",
)
PATCH_SUCCESS = Metric(
    name="patch_success_after_poisoning",
    title="Success of a planted patch",
    subject="the success of a planted patch",
    unit="percent",
    better="lower",
    meaning="Share of records of other classes that a patch turns into its target, when a share of the training "
    "records bore the patch and the target's label before the model was trained and compressed.",
)
CALIBRATED_ACCURACY = Metric(
    name="accuracy_after_poisoned_calibration",
    title="Accuracy after poisoned calibration",
    subject="accuracy after poisoned calibration",
    unit="percent",
    better="higher",
    meaning="Share of records that the dense model classifies correctly when its activations are rounded as the "
    "candidate's are, over ranges calibrated on records of which a few lie many times beyond their range.",
)

POISONING_EXPOSURE = Risk(
    name="poisoning-exposure",
    title="Exposure to poisoned training data",
    question="How much does the model change if somebody slips records into what it is trained or calibrated on?",
    wants="To make the model useless, or wrong about one class or whatever bears a sign, by changing a few of the "
    "records that it is trained on.",
    harm="A model that looks as good as before and answers as somebody else wishes. Whether compression hides or "
    "strengthens that is not seen on clean data.",
    advice=(
        "Know where training and calibration records come from; keep their digests, and sample labels for a second "
        "look, those of the two classes that are confused most first.",
        "Where a small share turns the targeted error, let nobody add that many records unseen.",
        "Calibrate by percentile rather than by the whole range, check that calibration records lie within the "
        "bounds, and take the range of the model's own input from the bounds.",
        "Do not count on compression to cure: compare with the same poisoned dense model.",
    ),
    reading="Each line is a model's targeted error as more training records are poisoned: each point stands for "
    "several trainings. Lower is safer; where a line leaves that of the dense model, compression amplifies or cures.",
    chart=Chart(x="share of the training records poisoned", curve="targeted error"),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.013", "NISTAML.024"),
        "MITRE ATLAS": ("AML.T0020", "AML.T0059"),
        "OWASP ML": ("ML02",),
        "NIST AI RMF": ("MEASURE 2.7",),
    },
)
