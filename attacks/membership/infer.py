"""Membership inference as calls: shadow models and what they tell of a model, without a plan, a store or a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...compression.recipe import RECIPES, Recipe
from ...compression.words import spelled
from ...targets.data.records import Bounds, Records
from ...targets.errors import CrushproofError, InputError, NotApplicable, user_error
from ...targets.model import Target, TorchTarget, frozen_copy
from ...targets.seeds import derive
from ...training.architecture import Architecture
from ...training.loop import Training
from ...training.stacked import GROUP
from ...training.trainer import BuiltinTrainer, Trainer, UserTrainer
from ..evasion.call.attackable import Attackable, attackable
from ..statistics import ranking
from .case import ShadowSignals
from .likeness import masked, restored
from .population import PopulationPlan, masks
from .scoring.pseudo_targets import choose, pseudo_targets, score_all
from .signals import margin, replay, settled, target_signals

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

TRAINING = Training()
MEMORY = 4 * 10**9  # bytes
BUILDS = "Give a torch.nn.Module, or a function without arguments that builds one: lambda: nn.Linear(4, 2)."
ONE = "A single score is no answer for two classes here: let the model give two, (0, z) where it gives the logit z."
COPIES = 4  # of a model in training: its weights, their gradients and Adam's two means


@dataclass(frozen=True, eq=False)
class Population:
    """Shadow models: each trained on a random half of the same n records, every record in half of them.

    Args:
        modules: k of them, in evaluation mode.
        signals: `inside` bool [k, n], who was trained on what, and `phi` float32 [k, n], their logit margins.
        plan: the records and seeds.
        bounds: what an input may be.
    """

    modules: tuple[nn.Module, ...]
    signals: ShadowSignals
    plan: PopulationPlan
    bounds: Bounds

    def replay(self, recipe: Recipe | dict[str, Any] | str) -> Population:
        """The population compressed as a candidate was, each shadow with its own training records and seed.

        Args:
            recipe: itself, or as a plan writes it: `"int8"`, or `{"kind": "prune", "sparsity": 0.8}`.

        Raises:
            InputError: it is no recipe, or records lie outside of what `train_shadows` was told an input may be.
            NotApplicable: it cannot do its work on such a model.
        """
        parsed, (low, high) = RECIPES.parse(spelled(recipe)), self.plan.records.x.aminmax()
        if (self.bounds.low > low).any() or (self.bounds.high < high).any():
            raise InputError(
                f"The records run from {float(low):g} to {float(high):g}, beyond what an input may be, from which a "
                "recipe takes its ranges: give train_shadows lower= and upper=."
            )
        chosen = settled(self.plan, self.modules[0], parsed, self.bounds)
        return _population(replay(self.plan, self.modules, recipe=chosen, bounds=self.bounds), self.plan, self.bounds)

    def __len__(self) -> int:
        return len(self.modules)

    def __repr__(self) -> str:
        return f"Population({len(self)} shadows, {self.plan.attacked} records)"


@dataclass(frozen=True, eq=False)
class Inferred:
    """What `infer_membership` gave; n records, in the population's order. Higher means "more likely a member".

    Args:
        scores: float64 [n], the score of `headline`.
        headline: the score that was best on the shadows, each attacked in turn by the others; the target has no say.
            With fewer than 16 shadows it is `bavaria` or `rmia`; with two or three `bavaria`, with one `rmia`, both
            named beforehand.
        odds: float64 [n], above 0: how many times more likely the target's answer is from models trained on the
            record than from models that were not (BaVarIA). 1 says nothing, as with one shadow all are.
        parts: each score by name: `loss`, `bavaria`, `calibrated`, `lira`, `lira-offline`, `rmia`; with one shadow
            `loss` and `rmia`.
        masked: the target's scores are on another scale than its shadows', as if changed behind the model: they were
            put back on it by their order.
    """

    scores: Floats = field(repr=False)
    headline: str
    odds: Floats = field(repr=False)
    parts: dict[str, Floats] = field(repr=False)
    masked: bool

    def roc(self, is_member: Bools) -> tuple[Floats, Floats]:
        """False and true positive rates at every threshold, where bool [n] says who was a member."""
        return ranking.roc(self.scores, self._truth(is_member))

    def auc(self, is_member: Bools) -> tuple[float, float, float]:
        """The area under the ROC curve: estimate, low, high (DeLong, 95 %)."""
        found = ranking.auc(self.scores, self._truth(is_member))
        return found.estimate, found.low, found.high

    def tpr(self, is_member: Bools, fpr: float = 0.01) -> tuple[float, float, float]:
        """The true positive rate at a false positive rate: estimate, low, high (95 %, the threshold's error within).

        Raises:
            InputError: that few non-members cannot tell such a rate.
        """
        truth = self._truth(is_member)
        if not isinstance(fpr, int | float):
            raise InputError(f"fpr is {fpr!r}. It is a number between 0 and 1: a false positive rate of 1 % is 0.01.")
        if not 0 < fpr < 1 or fpr * int((~truth).sum()) < 1:
            raise InputError(f"{int((~truth).sum())} non-members tell no false positive rate of {fpr:g}.")
        found = ranking.tpr_at_fpr(self.scores, truth, fpr)
        return found.estimate, found.low, found.high

    def _truth(self, is_member: Bools) -> Bools:
        truth = np.asarray(is_member)
        if truth.dtype != bool or truth.shape != self.scores.shape or truth.all() or not truth.any():
            raise InputError(
                f"is_member is {truth.dtype} {list(truth.shape)}; it is bool [{len(self.scores)}], with both sorts."
            )
        return truth


def train_shadows(
    architecture: Architecture | nn.Module | Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    shadows: int = 16,
    training: Training | Callable[[nn.Module, Tensor, Tensor, int], nn.Module] = TRAINING,
    known: tuple[Tensor, Tensor] | None = None,
    lower: float = 0.0,
    upper: float = 1.0,
    memory: int = MEMORY,
    seed: int = 0,
) -> Population:
    """Trains shadow models, small ones side by side.

    Memory, in bytes, which `memory` caps: 4 * W * (k + 4 * g) + R + 32 * k * n, for k shadows of W weights, of which
    g = min(k, 16) train at once; R: the records, once more for what is known; signals and scores. The activations of
    one step come on top.

    ```python
    >>> import torch
    >>> from crushproof import Training, infer_membership, train_shadows
    >>> x, y, net = torch.rand(40, 4), torch.arange(40) % 2, torch.nn.Linear(4, 2)
    >>> population = train_shadows(net, x, y, shadows=4, training=Training(epochs=1))
    >>> infer_membership(net, population).scores.shape
    (40,)

    ```

    Args:
        architecture: an untrained module or one of the same structure (it is initialised anew), or what builds one.
        x: float32 [n, *shape], the records whose membership is asked: the target was trained on some of them.
        y: int64 [n], their classes.
        shadows: an even number puts each record in exactly half of them; one alone tells little (RMIA's ratio to it).
        training: as the target was trained: hyper-parameters of the built-in loop, or your own
            `function(module, x, y, seed) -> module`.
        known: (x, y) of further records that the target is known to be trained on; every shadow is.
        lower, upper: what an input may be, from which a recipe takes the input's quantisation range.

    Raises:
        InputError: shapes or settings do not fit, or the memory would not do.
        NotApplicable: a layer of the module cannot be initialised anew; give a function that builds it.
    """
    if type(shadows) is not int or not all(isinstance(one, int | float) for one in (lower, upper, memory)):
        raise InputError(
            f"shadows is {shadows!r}, lower {lower!r}, upper {upper!r} and memory {memory!r}. shadows is a whole "
            "number, the others are numbers; memory is in bytes."
        )
    records = _records(x, y, "x, y")
    every = records if known is None else _joined(records, _pair(known, "known"))
    if shadows < 1 or len(records) < 4 or not lower < upper:
        raise InputError(
            f"{shadows} shadows, {len(records)} records, lower {lower:g} and upper {upper:g}. At least 1 shadow, 4 "
            "records and lower below upper are needed."
        )
    asked = {one.tobytes() for one in records.x.cpu().numpy()}
    if both := sum(one.tobytes() in asked for one in every.x[len(records) :].cpu().numpy()):
        raise InputError(
            f"{both} of the known records are among x: every shadow would be trained on them, and none could tell what "
            "a model without them says. Leave them out of one of the two."
        )
    kind = Architecture.of(architecture)
    try:
        blank = kind.blank()
    except CrushproofError:
        raise
    except Exception as error:
        raise InputError(f"architecture gives no module: {user_error(error)}. {BUILDS}") from None
    if not isinstance(blank, nn.Module):
        raise InputError(f"architecture gives {type(blank).__name__}. {BUILDS}")
    weights = sum(one.numel() for one in blank.parameters())
    needed = 4 * weights * (shadows + COPIES * min(shadows, GROUP)) + 2 * every.x.numel() * 4
    needed += 32 * shadows * len(records)
    if needed > memory:
        raise InputError(
            f"{shadows} shadows of {weights:,} weights on {len(every)} records take about {needed / 1e9:.2g} GB, which "
            f"is above memory = {memory / 1e9:.2g} GB. Train fewer, or allow more."
        )
    try:
        shape = list(TorchTarget(frozen_copy(blank)).logits(records.x[:2]).shape)
    except Exception as error:
        raise InputError(f"The architecture is none for records {list(x.shape[1:])}: {user_error(error)}") from None
    if len(shape) != 2 or shape[1] <= int(every.y.max()):
        cure = f" {ONE}" if shape in ([2], [2, 1]) else ""
        raise InputError(f"The architecture answers two records with {shape}; y goes up to {int(every.y.max())}.{cure}")
    count = len(records)
    plan = PopulationPlan(
        records=every,
        attacked=count,
        is_member=np.zeros(count, dtype=bool),  # not known here, and not used
        ids=np.arange(count),
        inside=masks(count, shadows, seed),
        seeds=tuple(derive(seed, "shadow", shadow) for shadow in range(shadows)),
    )
    modules = plan.fit(_trainer(training), kind, first=0, last=shadows, device=every.x.device)
    return _population(modules, plan, Bounds.of(lower, upper))


def infer_membership(
    target: nn.Module | Path | str | bytes | Target | Attackable,
    population: Population,
    records: tuple[Tensor, Tensor] | None = None,
) -> Inferred:
    """Scores for each of the population's records: was the target trained on it? It is asked once about each.

    A compressed target is judged by shadows compressed the same way: `population.replay(recipe)`. See `train_shadows`.

    Args:
        target: a torch module; an ONNX or TFLite file, or the bytes of one; or anything with `logits`.
        records: (x, y) of some of the records that the shadows were trained with and without, in the order in which
            they are to be scored; None: all, in theirs.

    Raises:
        InputError: the target cannot be asked about these records, or they are none of the population's.
        NotApplicable: it answers with other classes or values that are not finite.
    """
    if not isinstance(population, Population):
        raise InputError(f"population is {type(population).__name__}. Give what train_shadows or .replay() returned.")
    known, signals = population.plan.targets, population.signals
    places = np.arange(len(known)) if records is None else _places(_pair(records, "records"), known)
    asked = known.take(torch.from_numpy(places))
    opened = attackable(target, tuple(asked.x.shape[1:])).deployed
    classes = TorchTarget(population.modules[0]).logits(asked.x[:1]).shape[1]
    try:
        logits = opened.logits(asked.x)
    except CrushproofError:
        raise
    except Exception as error:
        raise InputError(f"The target cannot be asked about {list(asked.x.shape)}: {user_error(error)}") from None
    if list(logits.shape) != [len(asked), classes]:
        cure = f" {ONE}" if logits.numel() == len(asked) else ""
        raise NotApplicable(
            f"The target answers {len(asked)} records with {list(logits.shape)}, where its shadows give {classes} "
            f"values for each: they are no models like it.{cure}"
        )
    if not torch.isfinite(logits).all():
        raise NotApplicable("The target answers with values that are not finite: nothing can be told of them.")
    phi, alike = margin(logits, asked.y), signals.phi[:, places]
    hidden = masked(phi, alike, asked.y.cpu().numpy())
    every = signals.phi.mean(0, dtype=np.float64)  # what is known of all records says how far shadows differ on any
    every[places] = restored(logits, asked.y, alike) if hidden else phi
    found = score_all(every[None], {"own": signals})
    parts = {name.partition("/")[0]: score[0, places] for name, score in found.items()}
    figures = pseudo_targets({"own": signals})
    headline = choose(figures, "tpr_mean", shadows=len(population)).partition("/")[0]
    log_odds = parts.get("bavaria", np.zeros(len(asked)))
    odds = np.exp(np.clip(log_odds, -math.log(1e12), math.log(1e12)))
    return Inferred(parts[headline], headline, odds, parts, hidden)


def _trainer(training: Training | Callable[[nn.Module, Tensor, Tensor, int], nn.Module]) -> Trainer:
    if isinstance(training, Training):
        return BuiltinTrainer(training)
    if not callable(training):
        raise InputError(
            f"training is {type(training).__name__}. Give a crushproof.Training, or your own function(module, x, y, "
            "seed) that returns the trained module."
        )
    return UserTrainer(training, getattr(training, "__name__", type(training).__name__))


def _population(modules: Sequence[nn.Module], plan: PopulationPlan, bounds: Bounds) -> Population:
    phi = np.stack([target_signals(TorchTarget(module), plan) for module in modules])
    if not np.isfinite(phi).all():
        raise NotApplicable("A shadow model answers with values that are not finite: its training diverged.")
    return Population(tuple(modules), ShadowSignals(plan.inside, phi), plan, bounds)


def _places(some: Records, known: Records) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where each of some records stands among those that are known."""
    told = [[(x.tobytes(), int(y)) for x, y in zip(one.x.cpu().numpy(), one.y, strict=True)] for one in (some, known)]
    at = {record: place for place, record in enumerate(told[1])}
    if not told[0]:
        raise InputError(
            "records are none. Give some of those that the shadows were trained with and without, or None."
        )
    if missing := sum(record not in at for record in told[0]):
        raise InputError(
            f"{missing} of {len(some)} records are none of the {len(known)} that the shadows were trained with and "
            "without, so nothing is known of them. Give them to train_shadows."
        )
    return np.array([at[record] for record in told[0]], dtype=np.int64)


def _pair(given: Any, name: str) -> Records:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise InputError(f"{name} is {type(given).__name__}. Give a pair (x, y) of tensors like x and y.")
    return _records(given[0], given[1], name)


def _records(x: Tensor, y: Tensor, name: str) -> Records:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.dim() < 2 or y.shape != x.shape[:1]:
        given = [list(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in (x, y)]
        raise InputError(f"{name} are {given[0]} and {given[1]}. Give tensors, float32 [n, *shape] and int64 [n].")
    if y.is_floating_point() or y.dtype == torch.bool or (len(y) and int(y.min()) < 0):
        raise InputError(f"{name}: classes are {y.dtype}. They are whole numbers from 0 on.")
    x = x.detach().float()
    if not torch.isfinite(x).all():
        raise InputError(f"{name} hold values that are not finite. Leave those records out.")
    return Records(x, y.long())


def _joined(one: Records, other: Records) -> Records:
    if one.x.shape[1:] != other.x.shape[1:]:
        raise InputError(f"known records are {list(other.x.shape[1:])}, the others {list(one.x.shape[1:])}.")
    return Records(torch.cat([one.x, other.x]), torch.cat([one.y, other.y]))
