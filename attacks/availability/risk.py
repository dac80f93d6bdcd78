"""What a report says of sponge inputs, and its figures."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

DENSITY_GAIN = Metric(
    name="sponge_density_gain",
    title="Work added by sponge inputs",
    subject="the work added by sponge inputs",
    unit="percent",
    better="lower",
    meaning="By how many points the share of products that the file computes rises from ordinary records to the inputs "
    "found. A file that multiplies zeros like any number computes all of them, whatever comes in.",
)

AVAILABILITY = Risk(
    name="availability",
    title="Sponge inputs",
    question="Can somebody send inputs that cost more time and energy than ordinary ones?",
    wants="To slow the service down or drain a battery with inputs that look like any other to whoever counts them.",
    harm="What was saved by skipping activations is lost when somebody wants it lost: queues grow, devices run out.",
    advice=(
        "Size hardware and time limits by the worst density and not by the one on ordinary records.",
        "Where operations are skipped by value, fix how many are kept, as dynamic sparsity does: that is a ceiling.",
        "Limit what one client may ask for in a time, and refuse inputs unlike any seen.",
    ),
    reading="Each line is the share of products computed as the search goes on. A level line cannot be made to work "
    "harder. Lower is safer.",
    described="Shares of activations that are not zero are what a kernel that skipped every zero would compute: no "
    "ordinary runtime does. Energy is modelled from operation counts, without reading the weights; nothing is timed.",
    chart=Chart(x="steps of the search", curve="products computed"),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.014",),
        "MITRE ATLAS": ("AML.T0029", "AML.T0034.001"),
        "NIST AI RMF": ("MEASURE 2.6", "MEASURE 2.12"),
    },
)
