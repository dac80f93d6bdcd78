"""Output defenses: the deployed file shows labels, rounded or few scores, and is attacked as it then answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ..attacks.attack import Attack
from ..attacks.membership.averaging import NEIGHBOURS
from ..attacks.membership.membership import Membership
from ..compression.answers import LimitAnswers, ShownAnswers
from ..compression.recipe import Recipe
from .defense import DEFENSES, CompressionDefense, Stage


@DEFENSES.register
class LimitedAnswers(ShownAnswers, CompressionDefense):
    """A last layer, in the file itself, that shows less of a model's scores.

    It hides scores from whoever can only ask; the weights and gradients behind it stay where they are. So the attacker
    with the bytes differentiates the logits behind the layer (beside one who takes the file as it is, and meets the
    layer's gradients), attackers by labels alone ask the file itself, thieves learn from what is shown, and membership
    attacks put the same layer behind their shadow models. Noise is the same for the same input, so asking again tells
    nothing; asking about neighbours averages it out. Digits, AUC of membership .62 without: noise of one logit seems
    .57, and is .61 to who averages 64 answers (benchmarks/wrappers.py).
    """

    title: ClassVar[str] = "Limited answers"
    stage: ClassVar[Stage] = "answers"
    kind: Literal["limited-answers"] = "limited-answers"

    def phrase(self, statement: Mapping[str, Any]) -> str:
        return f"limited answers: {self.shown_words}"

    def recipes(self, recipe: Recipe) -> list[Recipe]:
        shown = {name: getattr(self, name) for name in ShownAnswers.model_fields}
        return [LimitAnswers(recipe=recipe, **shown)]

    def adapted(self, attack: Attack) -> Attack:
        """The same attack: the audit hands it the logits behind the layer wherever it may see the file's bytes.

        Against noise membership inference averages over neighbours. Thieves do not: of as many queries, four to each of
        72 records instead of one to each of 288 make no better copies (digits, fidelity at noise 1 .96 and .98, at
        noise 4 .95 and .95: benchmarks/wrappers.py).
        """
        if self.show == "noisy" and isinstance(attack, Membership):
            return attack.model_copy(update={"neighbours": NEIGHBOURS})
        return attack
