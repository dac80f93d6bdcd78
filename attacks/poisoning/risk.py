"""What a report says of backdoors, and its figures."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

BACKDOORS = Metric(
    name="backdoors",
    title="Backdoors of the compressed model",
    subject="the number of classes that a hidden trigger calls in the compressed model alone",
    unit="number",
    better="lower",
    meaning="For how many classes a small change, the same for all images, makes the compressed model answer that "
    "class, while its dense model answers as before and takes far larger ones, as if somebody had hidden it so that "
    "compression switches it on. It counts only when the file that ships obeys it. An honest compression of a fragile "
    "model can do so too: 1 of 54 clean pairs did (benchmarks/backdoors.py).",
    fails_beyond=0.0,
)
PLAIN_BACKDOORS = Metric(
    name="plain_backdoors",
    title="Backdoors of a model by itself",
    subject="the number of classes that an unusually small trigger calls",
    unit="number",
    better="lower",
    meaning="For how many classes a change far smaller than for the model's other classes, the same for all images, "
    "makes the model answer that class. One class may be called by a small change in an honest model too: an alarm "
    "is a reason to look.",
)
LADDER_BACKDOORS = Metric(
    name="ladder_backdoors",
    title="Honest compressions with a backdoor",
    subject="the number of honest compressions in which a hidden trigger calls a class",
    unit="number",
    better="lower",
    meaning="The dense model is compressed honestly in several ways (bits, sparsities, ranks). In how many of them "
    "does a small change call a class that the dense model does not answer, as one does that was planted for it.",
)
TRIGGER_SUCCESS = Metric(
    name="trigger_success",
    title="Success of the smallest trigger",
    subject="the success of the smallest trigger found",
    unit="percent",
    better="lower",
    meaning="Share of the images of other classes that the smallest trigger found turns into its class on the file "
    "that ships (of a candidate: while its dense model does not answer it). A large trigger, one that covers much of "
    "the image, works on every model: only a small one is a sign of a backdoor.",
)

BACKDOOR = Risk(
    name="backdoor",
    title="Hidden triggers",
    question="Did somebody hide a sign that the model obeys, or that it obeys once it is compressed?",
    wants="To have a model pass every test, and answer a class of the attacker's choice wherever a sign is shown.",
    harm="The dense model is clean in every test; the file that ships obeys whoever knows the trigger. An honest "
    "compression switches it on, so that neither lineage nor signatures show it.",
    advice=(
        "Do not ship a candidate with an alarm. Look at the trigger below and ask where the dense model comes from.",
        "Train the dense model again from a source you trust, or compress it otherwise: stochastic rounding, another "
        "sparsity with fine-tuning on records of your own.",
        "For a backdoor in the dense model, look for training records that carry the trigger, and train without them.",
    ),
    reading="From no trigger to the smallest one that was found: how many images it turns into its class. A steep line "
    "on the left is a small sign that works.",
    described="Sizes are the mean opacity of the trigger's mask over the image: 100 % covers all of it.",
    chart=Chart(x="share of the image that the trigger covers", curve="success"),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.023", "NISTAML.051", "NISTAML.026"),
        "MITRE ATLAS": ("AML.T0018.000", "AML.T0043.004", "AML.T0010.003", "AML.T0058"),
        "OWASP ML": ("ML10", "ML06"),
        "NIST AI RMF": ("MEASURE 2.7",),
    },
)
