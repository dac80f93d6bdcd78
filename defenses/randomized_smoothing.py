"""Randomised smoothing: a model served by majority vote under noise, with a certified radius beside what is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ..attacks.attack import Attack
from ..attacks.membership.averaging import VOTES
from ..attacks.membership.membership import Membership
from ..attacks.smoothing.smoothing import Smoothing as Certificate
from ..compression.recipe import Recipe
from ..compression.smoothed import Smoothing, VoteUnderNoise
from .defense import DEFENSES, CompressionDefense, Stage


@DEFENSES.register
class RandomizedSmoothing(Smoothing, CompressionDefense):
    """The file says that it is served by vote, the runtime does so (`crushproof.load`), and so it is attacked.

    The noise of a record follows from its values and a key that the server keeps, so averaging answers to the same
    record buys nothing; neighbours have noise of their own, and membership inference adds up their votes. Whoever knows
    differentiates the mean over noise that is new at every step, beside one who takes the model without it. What
    attacks find is no proof; the attack `smoothing` certifies the majority over all noise, with abstentions (Cohen et
    al. 2019, arXiv:1902.02918), which the votes of a few copies can miss where it is narrow. A model that never saw
    noise gains nothing, and each answer costs `samples` of the model's. Digits, L2 .5, robust .44 without: votes under
    noise of .1 seem .42 and are .31, of .25 seem .37 and are .16; certified at L2 .2 are .75 and .65
    (benchmarks/wrappers.py).
    """

    title: ClassVar[str] = "Randomised smoothing"
    stage: ClassVar[Stage] = "answers"
    kind: Literal["randomized-smoothing"] = "randomized-smoothing"

    def phrase(self, statement: Mapping[str, Any]) -> str:
        return f"randomised smoothing: {self.smoothed_words}"

    def recipes(self, recipe: Recipe) -> list[Recipe]:
        return [VoteUnderNoise(recipe=recipe, sigma=self.sigma, samples=self.samples)]

    def adapted(self, attack: Attack) -> Attack:
        """The same attack, through the expectation over noise; a certificate is of the noise that is served, and
        membership inference adds up the votes about neighbours.
        """
        if isinstance(attack, Membership):
            return attack.model_copy(update={"neighbours": VOTES})
        return attack.model_copy(update={"sigma": self.sigma}) if isinstance(attack, Certificate) else attack
