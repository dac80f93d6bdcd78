"""Low-rank factorisation: a layer becomes two or three thinner ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor, nn

from ...targets.data.records import Bounds, Records
from ...targets.errors import NotApplicable
from ...targets.model import TorchTarget
from ...targets.seeds import derive, generator
from ...training.lessons import Work, fine_tuning
from ...training.loop import Training
from ..layers.attention import unfold_attention
from ..layers.edit import called, noise, replace_layers, working_copy
from ..recipe import RECIPES, Recipe, TrainingRecipe, fine_tuned
from .decompose import Decomposition, Method, decomposition
from .low_rank_recurrent import RecurrentSvd

ENERGIES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99)  # what cross-validation chooses from

Ranks = dict[str, tuple[int, ...]]  # of the layers that are to be replaced, by name


@RECIPES.register
class Factorize(TrainingRecipe):
    """Truncated SVD of linear layers and embeddings (Eckart & Young 1936), Tucker or SVD of convolutions.

    A layer is replaced only where that saves weights. torch's attention is opened first, so that its projections are
    layers like others; the linear layers of a Transformer's feed-forward part are.
    """

    family: ClassVar[str] = "Factorization"
    kind: Literal["factorize"] = "factorize"
    rank_choice: Literal["energy", "budget", "rank", "cross-validation"] = Field(
        "energy",
        description="energy: each layer's ranks are the smallest that retain `energy`; budget: ranks go where they "
        "keep most energy per weight, until `budget` is spent; rank: `rank` everywhere; cross-validation: as energy, "
        "with the smallest of a grid (.5 to .99) that is accurate enough on the model's own training records",
    )
    energy: float = Field(
        0.9, gt=0, le=1, description="share of a layer's squared weights that is kept; for rank_choice energy"
    )
    budget: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the weights of the layers concerned, together, that may remain; for rank_choice budget",
    )
    rank: int | None = Field(
        None,
        ge=1,
        le=10**6,
        description="channels or features between the thinner layers; refused above a layer's full rank; needed by "
        "rank_choice rank, and by it alone",
    )
    layers: tuple[str, ...] = Field(
        (), description="dotted names of the layers concerned; empty: every layer that can be factorised"
    )
    convolution: Method = Field(
        "tucker",
        description="tucker: 1x1, kernel, 1x1 (Tucker-2); spatial: kx1, 1xk; channel: kernel, 1x1. A 1x1 convolution "
        "is a matrix by any of them",
    )
    folds: int = Field(5, ge=2, le=20, description="of cross-validation")
    validation_records: int = Field(
        256, ge=20, le=10_000_000, description="training records, drawn by the seed, that are cut into folds"
    )
    tolerance: float = Field(
        0.01,
        ge=0,
        le=1,
        description="accuracy (share of records; of regressions, R squared) below the best mean over folds that "
        "cross-validation accepts; one standard error of the best mean is accepted in any case",
    )
    fine_tune: Training | None = Field(
        None, description="training after factorisation, on the model's own training records. None: none"
    )
    _settled: Ranks | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _rank_is_for_rank(self) -> Self:
        if (self.rank_choice == "rank") != (self.rank is not None):
            raise ValueError("rank_choice: rank goes with a rank, and a rank goes with rank_choice: rank")
        return self

    @property
    def touches_records(self) -> bool:
        return self.rank_choice == "cross-validation" or self.fine_tune is not None

    @property
    def trains(self) -> bool:
        return self.fine_tune is not None

    @property
    def phrase(self) -> str:
        how = {
            "energy": f"{100 * self.energy:g} % of the energy",
            "budget": f"{100 * self.budget:g} % of the weights",
            "rank": f"rank {self.rank}",
            "cross-validation": "cross-validated rank",
        }
        return f"low rank, {how[self.rank_choice]}{fine_tuned(self.fine_tune)}"

    def settled(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Recipe:
        opened = unfold_attention(working_copy(module))
        chosen = self.model_copy()
        chosen._settled = self._ranks(
            opened, self._concerned(opened, noise(module, records, bounds, 2, seed)), records, seed
        )
        return chosen

    def work(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Work:
        opened = unfold_attention(working_copy(module))
        concerned = self._concerned(opened, noise(module, records, bounds, 2, seed))
        ranks = self._settled or self._ranks(opened, concerned, records, seed)
        factorized = factorize(opened, concerned, ranks)
        if self.fine_tune is None:
            return factorized
        return (yield fine_tuning(factorized, records, self.fine_tune, bounds, derive(seed, "fine-tune")))

    def _concerned(self, module: nn.Module, example: Tensor) -> dict[str, Decomposition]:
        """The layers that are called and can be factorised, by name, in the order of calls.

        A weight that two layers share is left alone: factors of their own would cost twice what they save.
        """
        names = {layer: name for name, layer in module.named_modules()}
        owners = [id(parameter) for layer in names for parameter in layer.parameters(recurse=False)]
        found = {
            names[layer]: layer
            for layer in factorable(module, example)
            if all(owners.count(id(parameter)) == 1 for parameter in layer.parameters())
        }
        if not found:
            raise NotApplicable(
                "The model has no linear, ungrouped convolutional, embedding or recurrent layer with a weight of its "
                "own that could be factorised."
            )
        for name in self.layers:
            if name not in found:
                known = ", ".join(list(found)[:12]) + (", ..." if len(found) > 12 else "")
                raise NotApplicable(f"The model has no layer {name!r} that could be factorised; it has {known}.")
        return {name: self._decomposition(found[name]) for name in self.layers or found}

    def _decomposition(self, layer: nn.Module) -> Decomposition:
        if isinstance(layer, nn.LSTM | nn.GRU):
            return RecurrentSvd(layer)
        assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding)
        return decomposition(layer, self.convolution)

    def _ranks(self, module: nn.Module, concerned: Mapping[str, Decomposition], records: Records, seed: int) -> Ranks:
        if self.rank_choice == "cross-validation":
            return self._cross_validated(module, concerned, records, seed)
        if self.rank_choice == "budget":
            return ranks_for_budget(concerned, self.budget)
        if self.rank is None:
            return {name: ranks_for_energy(part, self.energy) for name, part in concerned.items()}
        for name, part in concerned.items():
            if self.rank > max(part.full):
                raise NotApplicable(
                    f"Rank {self.rank} is above the full rank of layer {name or 'of the model'}, which is "
                    f"{max(part.full)}; ask for less, or name the layers to factorise."
                )
        return {name: tuple(min(self.rank, full) for full in part.full) for name, part in concerned.items()}

    def _cross_validated(
        self, module: nn.Module, concerned: Mapping[str, Decomposition], records: Records, seed: int
    ) -> Ranks:
        """The smallest energy within the tolerance, or within one standard error, of the best mean accuracy over folds.

        Factors are computed from the weights alone: there is nothing to refit on the other folds, and the records were
        trained on. What the folds measure is how far the mean would move with other records (the one-standard-error
        rule of Breiman et al. 1984), not the accuracy to expect on new ones.
        """
        order = torch.randperm(len(records), generator=generator(seed, "folds"))[: self.validation_records]
        held_out = records.take(order.to(records.y.device))
        choices: list[tuple[Ranks, nn.Module]] = []
        for energy in ENERGIES:
            ranks = {name: ranks_for_energy(part, energy) for name, part in concerned.items()}
            if any(concerned[name].worthwhile(each) for name, each in ranks.items()):
                choices.append((ranks, factorize(working_copy(module), concerned, ranks)))
        if not choices:
            raise NotApplicable(NO_GAIN)
        means, errors = [], []
        for _, choice in choices:
            right = scores(TorchTarget(choice).logits(held_out.x), held_out.y)
            per_fold = torch.stack([fold.mean() for fold in right.tensor_split(self.folds)])
            means.append(float(per_fold.mean()))
            errors.append(float(per_fold.std()) / self.folds**0.5)
        best = max(range(len(choices)), key=means.__getitem__)
        enough = means[best] - max(self.tolerance, errors[best])
        return next(ranks for (ranks, _), mean in zip(choices, means, strict=True) if mean >= enough)


NO_GAIN = "No layer has a rank low enough for its thinner layers to hold fewer weights; retain less."


def factorable(module: nn.Module, example: Tensor) -> list[nn.Module]:
    """The layers that a pass over `example` calls and that have a decomposition, each once, in the order of calls."""

    def fits(layer: nn.Module) -> bool:
        if type(layer) in (nn.Conv1d, nn.Conv2d):
            return bool(layer.groups == 1)
        if type(layer) in (nn.LSTM, nn.GRU):
            return bool(layer.proj_size == 0)
        return type(layer) is nn.Linear or (type(layer) is nn.Embedding and layer.max_norm is None)

    return called(module, example, fits)


def factorize(module: nn.Module, concerned: Mapping[str, Decomposition], ranks: Ranks) -> nn.Module:
    """`module` in evaluation mode, changed in place: the layers of `ranks` replaced where that saves weights.

    Raises:
        NotApplicable: no layer gains by it.
    """
    layers = dict(module.named_modules())
    gains = {name: each for name, each in ranks.items() if concerned[name].worthwhile(each)}
    if not gains:
        raise NotApplicable(NO_GAIN)
    return replace_layers(module, {layers[name]: concerned[name].build(each) for name, each in gains.items()}).eval()


def ranks_for_energy(part: Decomposition, energy: float) -> tuple[int, ...]:
    """The ranks that retain `energy` with few weights: from 1, each step takes the mode that keeps most per weight."""
    ranks = (1,) * len(part.full)
    while part.energy(ranks) < energy - 1e-12 and ranks != part.full:
        ranks = _next(part, ranks)
    return ranks


def ranks_for_budget(concerned: Mapping[str, Decomposition], budget: float) -> Ranks:
    """Ranks for all layers together: from 1, each step goes to the layer that keeps most of its energy per weight.

    Layers count equally, by the share of their own energy. A layer that would cost what it does now stays as it is,
    and counts so.

    Raises:
        NotApplicable: rank 1 everywhere takes more than `budget` of the weights.
    """
    ranks: Ranks = {name: (1,) * len(part.full) for name, part in concerned.items()}
    costs = {name: min(part.cost(ranks[name]), part.dense) for name, part in concerned.items()}
    total = sum(part.dense for part in concerned.values())
    if sum(costs.values()) > budget * total:
        raise NotApplicable(
            f"Rank 1 in every layer already takes {100 * sum(costs.values()) / total:.1f} % of the weights, which is "
            f"more than the budget of {100 * budget:g} %."
        )
    left = int(budget * total) - sum(costs.values())
    steps = {name: step for name, part in concerned.items() if (step := _step(part, ranks[name])) is not None}
    while steps:
        name = max(steps, key=lambda each: steps[each][0])  # the first among equals: the order of calls decides
        _, after, cost = steps.pop(name)
        if cost - costs[name] > left:
            continue  # this layer is done; a cheaper step elsewhere may still fit
        left -= cost - costs[name]
        ranks[name], costs[name] = after, cost
        following = _step(concerned[name], after)
        if following is not None:
            steps[name] = following
    return ranks


def _step(part: Decomposition, ranks: tuple[int, ...]) -> tuple[float, tuple[int, ...], int] | None:
    """(energy gained per weight, ranks, weights) of the best next step, None behind the last.

    The last is the layer as it is, once a further rank would cost as much.
    """
    if ranks == part.full or not part.worthwhile(ranks):
        return None
    after = _next(part, ranks)
    if part.worthwhile(after):
        cost, gained = part.cost(after), part.energy(after) - part.energy(ranks)
    else:
        after, cost, gained = part.full, part.dense, 1 - part.energy(ranks)
    return gained / max(1, cost - part.cost(ranks)), after, cost


def _next(part: Decomposition, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """One rank raised by one: the one that keeps most energy per weight added."""

    def raised(mode: int) -> tuple[int, ...]:
        return tuple(rank + (position == mode) for position, rank in enumerate(ranks))

    def worth(mode: int) -> float:
        after = raised(mode)
        return (part.energy(after) - part.energy(ranks)) / max(1, part.cost(after) - part.cost(ranks))

    return raised(max((mode for mode, full in enumerate(part.full) if ranks[mode] < full), key=worth))


def scores(outputs: Tensor, y: Tensor) -> Tensor:
    """float64 [n], whose mean is the accuracy or, for float targets, R squared."""
    if not y.dtype.is_floating_point:
        return (outputs.argmax(1) == y).double()
    targets = y.view(outputs.shape).double()
    spread = (targets - targets.mean(0)).square().sum(1).mean().clamp_min(1e-30)
    return 1 - (outputs.double() - targets).square().sum(1) / spread
