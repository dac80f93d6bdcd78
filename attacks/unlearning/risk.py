"""What a report says of unlearning, and its figures."""

from __future__ import annotations

from ..membership.risk import MEMBERSHIP
from ..risk import Chart, Metric, Risk

# As the advice on membership's AUC: nets that overfit 600 records have .64. A model that never saw the records has .5.
REMEMBERED = 0.6

FORGET_AUC = Metric(
    name="forget_auc",
    title="Forgotten records recognised (AUC)",
    subject="how well forgotten records are recognised (AUC)",
    unit="score",
    better="lower",
    meaning="Chance that a record which was to be forgotten looks more like one the model was trained on than a record "
    "that it never saw. 0.5 is what retraining without them gives. Surely above 0.6 fails under every policy that does "
    "not limit it.",
    fails_beyond=REMEMBERED,
)
FORGET_RECALL = Metric(
    name="forget_recall",
    title="Forgotten records recalled",
    subject="the share of forgotten records that are recalled",
    unit="percent",
    better="lower",
    meaning="Share of the records to forget whose class the model gives more than half of its probability. Models that "
    "never saw them recall some, too: the row says how many.",
)

UNLEARNING = Risk(
    name="unlearning",
    title="Survival of what was unlearned",
    question="Are the records that were deleted from the model still known to what ships?",
    wants="To learn that a record was once among the training data although its deletion was promised, or what the "
    "model knew of it.",
    harm="A request for erasure that was not met. Fine-tuning and small corrections can hide what a model knows, and "
    "compression rounds the correction away: the dense model passes and the file that ships does not.",
    advice=(
        "Retrain without the records, and compress that model.",
        "Unlearn after compression, or on the compressed model itself, and ask again what ships.",
        "Prefer a candidate whose recovery against its parent is nil; do not fine-tune it on records to forget.",
    ),
    reading="Both axes are logarithmic. The further a line lies above the dotted diagonal (guessing), the more of the "
    "forgotten records are recognised.",
    described="The margin is the logit of the right class's probability; 'without them' are shadow models that were "
    "trained without the records to forget and compressed as the model was.",
    chart=Chart(x="false positive rate", curve="roc", rates=True),
    taxonomy=dict(MEMBERSHIP.taxonomy),
)
