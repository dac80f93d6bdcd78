"""Pruning: single weights set to zero, or whole channels and attention heads removed."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from ...targets.data.records import Bounds, Records
from ...targets.errors import NotApplicable
from ...targets.seeds import derive
from ...targets.steps import pulse
from ...training.lessons import Lesson, Work, fine_tuning
from ...training.loop import Training
from ...training.perturbation import Perturbation
from ...training.privacy import Noised
from ..layers.edit import noise, weights, working_copy
from ..recipe import RECIPES, Promise, Recipe, TrainingRecipe, fine_tuned
from .channels import remove_channels, remove_heads, unfolded
from .importance import Importance, importances, private_taylor
from .learnt_scores import Scored, lesson
from .masks import n_of_m, smallest, smallest_per_layer

HOW: dict[Importance, str] = {
    "magnitude": "",
    "taylor": " by Taylor importance",
    "random": " at random",
    "adversarial-taylor": " by Taylor importance under attack",
    "adversarial-scores": " by scores learnt under attack",
}


@RECIPES.register
class Prune(TrainingRecipe):
    """Pruning of single weights (Han et al. 2015, arXiv:1506.02626), of N in M, of channels or of attention heads.

    The result is a plain module: pruned weights are zeros; pruned channels and heads are gone, and the model is smaller
    and faster. Scattered zeros make a smaller payload, not a faster model.
    """

    family: ClassVar[str] = "Pruning"
    kind: Literal["prune"] = "prune"
    structure: Literal["weights", "n:m", "channels", "heads"] = Field(
        "weights",
        description="what is removed. weights: single ones; n:m: the same number of every group_size neighbours along "
        "a layer's inputs, where these are a multiple of group_size (2:4 is n:m with sparsity 0.5 of 4); channels: "
        "whole ones, the layer that gives the logits keeps its width; heads: of multi-head attention",
    )
    sparsity: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share that is removed: of the weights (biases and norms do not count), of each layer's channels, "
        "or of each attention layer's heads; one channel or head always stays",
    )
    importance: Importance = Field(
        "magnitude",
        description="the least important go first. magnitude: size of the weights; taylor: first-order change of the "
        "loss on the model's own training records (Molchanov et al. 2019, arXiv:1906.10771); random: by lot, a "
        "control; adversarial-taylor: taylor on records perturbed as in fine_tune.adversarial (by two steps of PGD at "
        "epsilon 0.1 where that says nothing); adversarial-scores: learnt on such records before fine-tuning, by its "
        "hyper-parameters (HYDRA, Sehwag et al. 2020, arXiv:2002.10509), of structure: weights",
    )
    score_noise: float | None = Field(
        None,
        ge=1e-3,
        le=1e6,
        description="of importance: taylor, which is then measured per output row of a weight, each record's values "
        "scaled to norm 1, summed under Gaussian noise of this standard deviation, and spread over the row by the "
        "weights' sizes: counted in the epsilon that the dense model's training promises. None: no noise, and taylor "
        "voids it",
    )
    scope: Literal["global", "layer"] = Field(
        "global",
        description="weights: ranked over the whole model, or within each layer; everything else is ranked per layer",
    )
    group_size: int = Field(4, ge=2, le=64, description="n:m: M, the weights per group")
    round_to: int = Field(
        1, ge=1, le=256, description="channels: each thinned layer keeps a multiple of this (rounded up), for hardware"
    )
    fine_tune: Training | None = Field(
        None,
        description="training after pruning (after each step), on the model's own training records; zeros stay zero. "
        "None: none",
    )
    steps: int = Field(
        1, ge=1, le=100, description="prune and fine-tune this many times, up to `sparsity`; needs fine_tune beyond 1"
    )
    schedule: Literal["cubic", "linear"] = Field(
        "cubic",
        description="of the sparsity over the steps; cubic prunes most at first (Zhu and Gupta 2017, arXiv:1710.01878)",
    )

    @model_validator(mode="after")
    def _coherent(self) -> Prune:
        if self.steps > 1 and self.fine_tune is None:
            raise ValueError("steps above 1 need fine_tune: they alternate pruning and training")
        if self.structure != "channels" and self.round_to != 1:
            raise ValueError("round_to is for structure: channels")
        if self.importance == "adversarial-scores" and (self.structure != "weights" or self.fine_tune is None):
            raise ValueError("importance: adversarial-scores is for structure: weights, and needs fine_tune")
        if self.score_noise is not None and self.importance != "taylor":
            raise ValueError("score_noise is for importance: taylor; magnitude and random look at no record")
        if (
            self.importance == "adversarial-scores"
            and self.fine_tune is not None
            and self.fine_tune.private is not None
        ):
            raise ValueError("importance: adversarial-scores is learnt without noise: leave out fine_tune.private")
        if self.structure == "n:m" and abs(self._dropped(self.sparsity) - self.sparsity * self.group_size) > 1e-6:
            raise ValueError(
                f"sparsity {self.sparsity:g} of groups of {self.group_size} is not a whole number of weights"
            )
        return self

    @property
    def touches_records(self) -> bool:
        return self.fine_tune is not None or self.importance in ("taylor", "adversarial-taylor")

    def spends(self, records: int) -> tuple[Noised, ...] | None:
        if not self.touches_records:
            return ()
        noised = None if self.fine_tune is None else self.fine_tune.noised(records)
        scored = None if self.score_noise is None else Noised("importance scores", self.score_noise, 1.0, 1)
        tuned, ranked = self.fine_tune is None or noised, self.importance in ("magnitude", "random") or scored
        if not (tuned and ranked):
            return None
        return tuple(replace(one, steps=self.steps * one.steps) for one in (scored, noised) if one is not None)

    @property
    def trains(self) -> bool:
        return self.fine_tune is not None

    @property
    def passes(self) -> float:
        trainings = self.steps * (2 if self.importance == "adversarial-scores" else 1)
        return 0.0 if self.fine_tune is None else float(trainings * self.fine_tune.epochs)

    @property
    def promise(self) -> Promise | None:
        return None if self.structure == "channels" else "shapes"

    @property
    def keeps_operators(self) -> bool:
        return True

    @property
    def phrase(self) -> str:
        if self.structure == "n:m":
            what = f"{self.group_size - self._dropped(self.sparsity)} of every {self.group_size} weights kept"
        else:
            what = f"{100 * self.sparsity:g} % of {self.structure} pruned"
        layers = " per layer" if self.structure == "weights" and self.scope == "layer" else ""
        how = HOW[self.importance] + ("" if self.score_noise is None else f" under noise ({self.score_noise:g})")
        steps = f" in {self.steps} steps" if self.steps > 1 else ""
        each = " each" if self.steps > 1 else ""
        return f"{what}{layers}{how}{steps}{fine_tuned(self.fine_tune)}{each}"

    def work(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Work:
        if self.fine_tune is not None and not len(records):
            raise NotApplicable("Fine-tuning needs the model's training records, and there are none.")
        structured = self.structure in ("channels", "heads")
        example = noise(module, records, bounds, 2, seed)
        dense = unfolded(working_copy(module), example) if structured else working_copy(module)
        if self.steps > 1 and structured:  # what cannot be done is said before anything is trained
            self._smaller(dense, example, importances(dense, "magnitude", records, seed=seed), self.sparsity, None)
        pruned = dense
        for step, share in enumerate(shares(self.sparsity, self.steps, self.schedule)):
            if self.steps > 1:
                pulse("pruning step", step, self.steps)
            if self.importance == "adversarial-scores":
                scores = yield from self._learnt(pruned, records, share, bounds, derive(seed, "scores", step))
            elif self.score_noise is not None:
                scores = private_taylor(pruned, records, self.score_noise, seed=derive(seed, "scores", step))
            else:
                scores = importances(pruned, self.importance, records, seed=seed, attack=self.attack, bounds=bounds)
            if structured:
                pruned = self._smaller(pruned, example, scores, share, dense if self.steps > 1 else None)
            else:
                pruned = self._masked(pruned, scores, share)
            if self.fine_tune is not None:
                pruned = yield _nonzero(pruned, records, self.fine_tune, bounds, derive(seed, "fine-tune", step))
        return pruned

    def hardened(self, metric: str, setting: Mapping[str, Any]) -> list[Recipe]:
        ways = super().hardened(metric, setting)
        scored = [way.model_copy(update={"importance": "adversarial-scores"}) for way in ways]
        return ways + (scored if self.structure == "weights" else [])

    @property
    def attack(self) -> Perturbation:
        """Under which importance is measured or learnt, where it is adversarial."""
        given = None if self.fine_tune is None else self.fine_tune.adversarial
        return given or Perturbation()

    def _learnt(
        self, module: nn.Module, records: Records, share: float, bounds: Bounds, seed: int
    ) -> Generator[Lesson, nn.Module, dict[str, Tensor]]:
        assert self.fine_tune is not None, "the validator asks for it"
        training = self.fine_tune.model_copy(update={"adversarial": self.attack})
        scored = Scored(copy.deepcopy(module), share, per_layer=self.scope == "layer")
        learnt = yield lesson(scored, records, training, bounds, seed)
        assert isinstance(learnt, Scored)
        return learnt.sizes()

    def _smaller(
        self, module: nn.Module, example: Tensor, scores: Mapping[str, Tensor], share: float, full: nn.Module | None
    ) -> nn.Module:
        if self.structure == "heads":
            return remove_heads(module, 1 - share, scores=scores, full=full)
        return remove_channels(module, example, 1 - share, scores=scores, round_to=self.round_to, full=full)

    def _masked(self, module: nn.Module, scores: Mapping[str, Tensor], share: float) -> nn.Module:
        """The module, which is changed: `work`'s own copy, or what came back from its fine-tuning."""
        chosen = weights(module, "pruning")
        # Weights that are zero already go first, whatever the importance: an earlier step's zeros are never traded.
        own = {name: scores[name].masked_fill(weight.detach().cpu() == 0, -1) for name, weight in chosen.items()}
        if self.structure == "n:m":
            masks = n_of_m(module, own, self.group_size, self._dropped(share))
        else:
            masks = (smallest if self.scope == "global" else smallest_per_layer)(own, share)
        for name, mask in masks.items():
            chosen[name].data.mul_(mask.to(chosen[name].device))
        return module

    def _dropped(self, share: float) -> int:
        """n:m: how many of each group go."""
        return round(share * self.group_size)


def _nonzero(module: nn.Module, records: Records, training: Training, bounds: Bounds, seed: int) -> Lesson:
    """A training in which every weight that is exactly zero (pruned, now or earlier in a chain) stays zero."""
    nonzero = {name: (weight.detach() != 0).float() for name, weight in weights(module, "pruning").items()}
    return fine_tuning(module, records, training, bounds, seed, nonzero)


def shares(sparsity: float, steps: int, schedule: Literal["cubic", "linear"]) -> list[float]:
    """The sparsity after each of `steps` steps; the last is `sparsity`.

    Cubic: sparsity * (1 - (1 - t/steps)^3), Zhu and Gupta 2017 (arXiv:1710.01878, eq. 1) from an initial sparsity of 0.
    """
    power = 3 if schedule == "cubic" else 1
    return [sparsity * (1 - (1 - step / steps) ** power) for step in range(1, steps + 1)]
