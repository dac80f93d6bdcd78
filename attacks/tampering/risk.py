"""What a report says of flipped bits, and its figures."""

from __future__ import annotations

from ..risk import Chart, Metric, Risk

FLIPS_TO_CHANCE = Metric(
    name="flips_to_chance",
    title="Bit flips to chance",
    subject="the number of bit flips to chance",
    unit="number",
    better="higher",
    meaning="How many bits of the stored parameters have to be flipped, and which ones is the attacker's choice, until "
    "the file is no better than always naming the commonest class. Where the search ends without that, it is one more "
    "than it was allowed.",
)
FLIPS_TO_MISS = Metric(
    name="flips_to_miss_a_class",
    title="Bit flips to miss a class",
    subject="the number of bit flips to miss a class",
    unit="number",
    better="higher",
    meaning="How many bits have to be flipped until the file gets at most one in twenty records of one class right, "
    "while it is right about the others half as often as before, or more. The class is drawn anew each time.",
)
FLIPS_NOTICED = Metric(
    name="flips_noticed",
    title="Attacked files that a checksum notices",
    subject="the share of attacked files that a keyed checksum notices",
    unit="percent",
    better="higher",
    meaning="Share of the files made useless by flips in which a keyed checksum of each group of bytes is no "
    "longer what it was. A full digest notices every flip.",
)

TAMPERING = Risk(
    name="tampering",
    title="Flipped bits in the file",
    question="How few bits of the stored model must somebody change to make it useless?",
    wants="To make the model useless, or blind for one class, by changing a few bits of it where it is stored or held "
    "in memory (Rowhammer, a faulty update, write access to a device).",
    harm="The model goes on answering and nobody is told that its answers are worth nothing.",
    advice=(
        "Check a signed digest of the file whenever it is loaded, and a keyed checksum of each group while it runs.",
        "Protect first what falls first: the table shows how many flips each kind of parameter takes by itself. "
        "Scales, zero points and exponents are few bytes: keep a copy, or store them with error correction.",
        "Clip weights and bound scales when loading: a scale a million times what it was is no scale.",
    ),
    reading="Each line shows what is left of a file's accuracy after each of the flips that the search chose. Further "
    "to the right is safer.",
    described="Random flips are the control: as many bits of the same parameters, chosen by chance.",
    chart=Chart(x="bits flipped", curve="accuracy"),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.011", "NISTAML.026"),
        "MITRE ATLAS": ("AML.T0018", "AML.T0031"),
        "OWASP ML": ("ML10", "ML09"),
        "NIST AI RMF": ("MEASURE 2.7", "MEASURE 2.6"),
    },
)
