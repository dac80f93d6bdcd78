"""What every recipe is: data plus `apply`, pure in (module, records, seed), so that shadows replay it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import nn

from ..targets.data.records import Bounds, Records
from ..targets.technique import Registry, Technique
from ..training.lessons import Work, alone
from ..training.loop import Training
from ..training.perturbation import answering
from ..training.privacy import Noised

# Each weight rounded to the nearest code, or to one of its two neighbours; or values of any kind in the same shapes.
Promise = Literal["nearest", "neighbour", "shapes"]


class Recipe(Technique):
    """How a candidate is made from a dense module.

    `touches_records` and `trains` are what an audit must know before it runs the recipe: whether the members leave a
    trace in the candidate (calibration, fine-tuning: then DP-SGD's epsilon is void, unless `spends` states the noise
    they are seen through), and whether it is costly enough
    for fewer shadow replays. What a chain must know, and a class says where it is so: `is_last`, nothing can follow
    it (no recipe works on integers); `counts_activations`, what follows must leave the activations of every layer as
    they are; `keeps_activations`, it does that.
    """

    family: ClassVar[str] = ""  # under which a report groups its candidates; from `kind` where a class gives none
    is_last: ClassVar[bool] = False
    counts_activations: ClassVar[bool] = False
    keeps_activations: ClassVar[bool] = False
    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        kind = cls.model_fields["kind"].default
        if not cls.family and isinstance(kind, str):
            cls.family = kind[:1].upper() + kind[1:].replace("-", " ").replace("_", " ")

    @abstractmethod
    def apply(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> nn.Module:
        """A compressed copy of `module`, in evaluation mode on its device; `module` is left as it is.

        Args:
            records: what the model was trained on (a shadow's own training records on a shadow).
            bounds: what an input may be; the input's quantisation range follows from it, never from records.

        Raises:
            NotApplicable: the recipe cannot do its work on this module; the message says why.
        """

    def settled(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Recipe:
        """The recipe with the sizes that it would choose for `module`, kept for all models of its structure.

        An attacker sees the sizes of what is released, and gives all shadow models the same. Itself, where these follow
        from the structure alone and cost nothing to find. Arguments and errors are those of `apply`.
        """
        return self

    @property
    @abstractmethod
    def touches_records(self) -> bool:
        """Whether any value of the result depends on `records`."""

    def spends(self, records: int) -> tuple[Noised, ...] | None:
        """What its looks at so many records cost of differential privacy; None: it looks without stated noise."""
        return None if self.touches_records else ()

    @property
    @abstractmethod
    def trains(self) -> bool:
        """Whether applying it runs a training loop."""

    @property
    def passes(self) -> float | None:
        """Over the records, by a model of the dense one's size, that its trainings take; None: it does not say."""
        return None if self.trains else 0.0

    @property
    @abstractmethod
    def phrase(self) -> str:
        """The recipe in a phrase for the report's tables, e.g. `8-bit weights, 8-bit activations`."""

    @property
    def promise(self) -> Promise | None:
        """What it leaves of the dense model's weights, which a finished file declared as made by it is held against.

        None: not even their shapes.
        """
        return None

    def hardened(self, metric: str, setting: Mapping[str, Any]) -> list[Recipe]:
        """The same compression done so that it should cost less of a risk's figure, cheapest first, or none.

        Args:
            metric: that a candidate of this recipe fails, e.g. robust_accuracy.
            setting: of the attack that measured it, e.g. norm and epsilon.
        """
        return []

    @property
    def keeps_operators(self) -> bool:
        """Whether what it makes has the dense model's operators, in layers of its sizes or of smaller ones."""
        return self.promise is not None

    @property
    def bits(self) -> int | None:
        """1 .. 32: the most that a weight takes where the recipe was at work; None: it does not say."""
        return None


class TrainingRecipe(Recipe):
    """A recipe whose trainings can be done beside those of other models, as shadows have theirs."""

    @abstractmethod
    def work(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Work:
        """`apply` as a generator that asks for its trainings; arguments, result and errors are those of `apply`."""

    @property
    def passes(self) -> float | None:
        tuning: Training | None = getattr(self, "fine_tune", None)
        return super().passes if tuning is None else float(tuning.epochs)

    def spends(self, records: int) -> tuple[Noised, ...] | None:
        tuning: Training | None = getattr(self, "fine_tune", None)
        noised = None if tuning is None else tuning.noised(records)
        if noised is None:
            return super().spends(records)
        before = self.model_copy(update={"fine_tune": None}).spends(records)
        return None if before is None else (*before, noised)

    def hardened(self, metric: str, setting: Mapping[str, Any]) -> list[Recipe]:
        """Where it fine-tunes, or can: on records perturbed as the attack that measured robust accuracy does.

        For three times the epochs: what is learnt under attack is learnt slowly (digits CNN, 80 % pruned: 97.3 %
        accurate after 3 epochs and 98.3 after 9; robust .64 and .75).
        """
        attack = answering(metric, setting)
        if attack is None or "fine_tune" not in type(self).model_fields:
            return []
        tuning: Training = getattr(self, "fine_tune", None) or Training(epochs=3)
        if tuning.private is not None:
            return []
        longer = {"adversarial": attack, "epochs": 3 * tuning.epochs}
        return [self.model_copy(update={"fine_tune": tuning.model_copy(update=longer)})]

    def apply(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> nn.Module:
        return alone(self.work(module, records, bounds, seed=seed))


def work_of(recipe: Recipe, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Work:
    """The recipe at work; one that is no `TrainingRecipe` does all of it when it is begun."""
    if isinstance(recipe, TrainingRecipe):
        return (yield from recipe.work(module, records, bounds, seed=seed))
    return recipe.apply(module, records, bounds, seed=seed)


def fine_tuned(fine_tune: Training | None) -> str:
    """How `phrase` ends when a recipe trains afterwards."""
    if fine_tune is None:
        return ""
    attacked = "" if fine_tune.adversarial is None else " on adversarial records"
    if fine_tune.private is not None:
        attacked = f" by DP-SGD (noise {fine_tune.private.noise_multiplier:g})"
    return f", fine-tuned{attacked} for {fine_tune.epochs} epochs"


RECIPES: Registry[Recipe] = Registry("recipe", "crushproof.compression", "crushproof.recipes", Recipe)
