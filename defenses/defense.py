"""What every defense is: a hardened training or recipe, and the attack that knows it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from ..attacks.attack import Attack, Task
from ..compression.recipe import Recipe
from ..targets.data.data import Data
from ..targets.data.records import Bounds
from ..targets.technique import Registry, Technique
from ..training.privacy import Noised, PrivacyClaim
from ..training.trainer import Trainer

Stage = Literal["training", "compression", "inputs", "answers"]  # when, or on what, a defense acts
STAGES: tuple[Stage, ...] = get_args(Stage)  # in the order in which they follow each other


class Defense(Technique):
    """A defense without its adaptive attack is not a defense here."""

    kind: str
    stage: ClassVar[Stage] = "compression"
    title: ClassVar[str] = ""  # what a report calls it; "": the kind in words
    tasks: ClassVar[frozenset[Task]] = frozenset({Task.CLASSIFICATION})

    def named(self) -> str:
        """As a title: `Adversarial training`."""
        return self.title or self.kind.replace("-", " ").replace("_", " ").capitalize()

    def phrase(self, statement: Mapping[str, Any]) -> str:
        """The defense in a phrase, with what it promises: `DP-SGD, epsilon 8.00 at delta 1.0e-05`.

        Args:
            statement: of the training it hardened; empty where it hardens none.
        """
        return self.kind.replace("-", " ")

    @abstractmethod
    def adapted(self, attack: Attack) -> Attack:
        """The attack that knows this defense; the same object when nothing about it need change."""


class TrainingDefense(Defense):
    """Hardens how the dense model (and each of its shadows) is trained."""

    stage: ClassVar[Stage] = "training"
    private: ClassVar[bool] = False  # its promise is about the members: a recipe that looks at them afterwards voids it
    counts: ClassVar[bool] = False  # whether `composed` counts what compression looks at through stated noise
    void: ClassVar[str] = "The compression looked at training records after private training."  # and says so

    @classmethod
    def proposed(cls, metric: str, setting: Mapping[str, Any]) -> list[TrainingDefense]:
        """Forms of this defense to try where a candidate fails a figure, cheapest first; empty: it does not help.

        Arguments are those of `Recipe.hardened`.
        """
        return []

    @abstractmethod
    def trainer(self, plain: Trainer, bounds: Bounds) -> Trainer:
        """The hardened trainer; `plain` gives the hyper-parameters that the defense leaves open.

        Raises:
            NotApplicable: this defense cannot harden that training.
        """

    def trained_on(self, data: Data, plain: Trainer) -> Trainer:
        """`trainer` for these data; a defense says here what more than their bounds it needs of them.

        Raises:
            NotApplicable: the data lack it; or as `trainer`.
        """
        return self.trainer(plain, data.bounds)

    def adapt(self, module: nn.Module) -> nn.Module:
        """The architecture this defense needs (GroupNorm for DP-SGD); the module itself when it needs no change."""
        return module

    def statement(self, training_records: int) -> dict[str, Any]:
        """What the defense promises, for the report (DP-SGD: epsilon, delta, sampling rate, steps, accountant)."""
        return {}

    def privacy(self, training_records: int) -> PrivacyClaim | None:
        """The same of differential privacy, as an audit puts it to the test; None: it promises none."""
        return None

    def composed(self, statement: Mapping[str, Any], spent: tuple[Noised, ...]) -> dict[str, Any]:
        """The same statement of the file that ships, after compression that looked at the records through this noise;
        only asked of one that `counts`.
        """
        raise NotImplementedError(f"{self.kind} does not count what compression spends")

    def voided(self, statement: Mapping[str, Any]) -> dict[str, Any]:
        """The same statement once compression has voided it; only asked of a `private` defense."""
        return dict(statement)


class CompressionDefense(Defense):
    """Hardens a recipe, or wraps what it makes: its stage is then `inputs` or `answers`, on which the wrapper acts."""

    @abstractmethod
    def recipes(self, recipe: Recipe) -> list[Recipe]:
        """The hardened recipe: one per draw when the defense is random; the first is the one that is shipped."""


DEFENSES: Registry[Defense] = Registry("defense", "crushproof.defenses", "crushproof.defenses", Defense)
