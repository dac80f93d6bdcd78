"""What an attacker sees of a model, what that cost, and why a figure may be too optimistic."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Access(StrEnum):
    """What the attacker sees of the deployed model."""

    WHITE_BOX = "white-box"  # weights and gradients, through the twin
    SCORES = "scores"  # logits or probabilities of chosen inputs
    LABELS = "labels"  # the predicted class of chosen inputs


class Flag(StrEnum):
    """Why a measurement may be too optimistic; `meaning` explains it to a reader of the report."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Flag:
        flag = str.__new__(cls, value)
        flag._value_ = value
        flag.meaning = meaning
        return flag

    NO_GRADIENT = (
        "no-gradient",
        "Gradients were missing, zero or not finite, so gradient attacks could not do their work. A high figure may be "
        "an illusion (gradient masking).",
    )
    NO_WHITE_BOX = (
        "no-white-box",
        "The file has no differentiable twin, so only its answers were attacked: a stronger attack exists.",
    )
    BLACK_BOX_WINS = (
        "black-box-wins",
        "An attack that sees less did better than one that sees more. The stronger attack was probably blinded, and "
        "the true figure may be worse.",
    )
    UNBOUNDED_FAILS = (
        "unbounded-fails",
        "Even with no limit on the change of the input the attack did not bring the model to chance. It should have: "
        "something stops the attack, not the model.",
    )
    UNFINISHED = (
        "unfinished-optimisation",
        "The attack was still improving when its budget ended. More steps may find more.",
    )
    TWIN_DISAGREES = (
        "twin-disagrees",
        "The differentiable twin and the deployed model agree on fewer than 99.5 % of the labels, so attacks made on "
        "the twin may miss. Have the model itself asked more: Square with more queries, or HopSkipJump.",
    )
    UNION_FAR_BELOW = (
        "union-far-below",
        "Every attack finds much that the others miss: together they leave at least 10 points less standing than the "
        "strongest alone, so that further attacks would find more still. Give them more steps, restarts and queries.",
    )
    FEW_RECORDS = "few-records", "Too few records for a figure this small: the interval is wide."
    FEW_SHADOWS = "few-shadows", "Too few shadow models for the attacker to be at full strength."
    NO_SHADOWS = (
        "no-shadows",
        "The attacker had no shadow models: how this model was trained is not known, or the plan trains none like it. "
        "Leaks are underestimated.",
    )
    AT_CHANCE = (
        "at-chance",
        "The model is hardly better than guessing. Such a model is neither robust nor private, whatever the other "
        "figures say.",
    )
    DISTRIBUTION_SHIFT = (
        "distribution-shift",
        "A classifier that never sees the model already tells members from non-members. What the attack finds is not "
        "attributable to membership.",
    )
    SHADOWS_DIFFER = (
        "shadows-differ",
        "The shadow models are not trained as the audited model was, or nothing says that they are. An attacker who "
        "knows better may see more: name the training function or its hyper-parameters.",
    )
    INTERFACE_DOUBTFUL = (
        "interface-doubtful",
        "The file fits clearly better when its inputs are read in another way than was declared, or about as well in "
        "another way, under which it is not as robust: what was assumed of it says both figures.",
    )
    BOUNDS_DOUBTFUL = (
        "bounds-doubtful",
        "The bounds of the inputs were guessed and may be others. Epsilon counts in units of them, so that the changes "
        "allowed may have been too small (the model looks stronger than it is) or too large (it looks weaker): give "
        "the bounds.",
    )
    ANSWERS_VARY = (
        "answers-vary",
        "The model answers a record otherwise when it is asked again, in another order or beside other records. Every "
        "figure then follows from how the questions were put.",
    )
    MARGIN_CLIFF = (
        "margin-cliff",
        "A little beside its records the model is far less sure than at them, all at once: it has memorised where they "
        "are, or refuses whatever is new. What it withstands there says nothing on records it has not seen.",
    )
    EPSILON_EXTREME = (
        "epsilon-extreme",
        "No radius was found at which the dense model keeps about half of its accuracy: it keeps nearly all or nearly "
        "nothing. Something stops the probe, or the model answers in steps.",
    )
    EPSILON_TINY = (
        "epsilon-tiny",
        "The changes allowed are so small that next to no model fails: an L-inf epsilon below 0.001, which is a "
        "quarter of one step of an 8-bit pixel, or an L2 epsilon below 0.05 (with fewer than 2,500 values less: 0.001 "
        "times the root of their number). Epsilon counts in units of the bounds: 8/255 is 0.031.",
    )
    BELOW_GRID = (
        "below-grid",
        "The changes allowed are smaller than one step of the grid that inputs lie on (1/255 for 8-bit pixels in "
        "[0, 1]): there is no input to try but the record itself. Allow at least one step.",
    )
    LITTLE_FREE = (
        "little-free",
        "Fewer than a tenth of the values that are no categories may change within epsilon: the others are declared "
        "immutable, or whole numbers of so small a range that epsilon is less than 1. An attacker may do otherwise.",
    )
    WEAK_ATTACK = (
        "weak-attack",
        "The gradient attacks had fewer than 3 steps each, or too short ones: a usual attack has 20 and finds more.",
    )
    REPEATED_RECORDS = (
        "repeated-records",
        "Test records are repeated, exactly or but for a little noise, beyond what the training records show to be "
        "natural: fewer were measured than it seems, and those that are repeated may have been chosen.",
    )
    NEAR_DUPLICATES = (
        "near-duplicates",
        "Test records are training records but for a little noise: the model was as good as trained on them, so that "
        "it looks better than it is and gives away less than it does.",
    )
    REPEATED_MEMBERS = (
        "repeated-members",
        "Most of what the membership attack asks about is known to every shadow model in another copy, or is among "
        "members and non-members alike: the attack can hardly find what the model remembers.",
    )
    TEST_KNOWN = (
        "test-records-known",
        "The attack takes test records for training records: the model is surer of them than of what it was trained "
        "on. It was trained on the test records, or they are easier than others.",
    )
    SCORES_MASKED = (
        "scores-masked",
        "Within a class the model's scores say almost nothing beyond the label, or are on another scale than those of "
        "the shadow models, which are made alike: scores were changed behind the model. The attack puts them back on "
        "the shadow models' scale by their order; an attacker who knows how they were changed may find more.",
    )
    ANSWERS_LIMITED = (
        "answers-limited",
        "A layer of the file, or the vote it is served by, shows less than its scores. The attacker here reads what is "
        "shown; whoever holds the file reads the scores behind that, as of the same model without it.",
    )
    BEYOND_PARENT = (
        "beyond-its-parent",
        "The file does far better than the model it is said to come from. Compression does not do that: it was trained "
        "otherwise, on these very records perhaps. Name the model that it really came from.",
    )
    EPSILON_VOID = (
        "epsilon-void",
        "The compression looked at training records after DP-SGD, so the promised epsilon does not hold.",
    )


@dataclass
class Ledger:
    """What an attack spent, in records: one forward or backward pass of one record counts one."""

    forwards: int = 0
    backwards: int = 0
    queries: int = 0  # asked of the deployed model

    def add(self, other: Ledger) -> None:
        """Enters what another one holds."""
        self.forwards += other.forwards
        self.backwards += other.backwards
        self.queries += other.queries
