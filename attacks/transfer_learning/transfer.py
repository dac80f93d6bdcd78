"""Transfer learning from a compressed model: accuracy, robust accuracy and membership of the new task.

The model is a feature extractor for records of other classes: a linear probe on what enters its last layer, or all of
it trained on with a new last layer. Beside the dense model's, by the same seeds, so that a copy changes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ...targets.data.records import Bounds, Records
from ...targets.errors import NotApplicable
from ...targets.model import TorchTarget, frozen_copy
from ...targets.seeds import derive
from ...training.loop import Training, train
from ..evasion.evade import evade
from ..measurement import Auc, Comparison, Rate
from ..membership.infer import infer_membership, train_shadows
from ..membership.signals import margin
from .features import Features

Way = Literal["probe", "fine-tuned"]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
PROBE = Training(epochs=40, batch_size=32, learning_rate=2e-2, weight_decay=5e-4)
FINE_TUNE = Training(epochs=6, batch_size=32, learning_rate=3e-3)


@dataclass(frozen=True)
class Task:
    """Another task for models that take records of the same shape.

    Args:
        members: what the new model is trained on; labels from 0 on.
        evaluation: others, of the same classes: accuracy, and the non-members of membership.
        bounds: of an input.
        epsilon: L-inf, in [0, 1] units.
        attacked: evaluation records that are attacked, at most.
        shadows: probes that the attacker of membership trains; fine-tuned models have none, and a weaker attacker.
    """

    members: Records
    evaluation: Records
    bounds: Bounds
    epsilon: float = 0.1
    attacked: int = 200
    shadows: int = 16

    @property
    def classes(self) -> int:
        return int(torch.cat([self.members.y, self.evaluation.y]).max()) + 1


@dataclass(frozen=True)
class Transferred:
    """What became of one model on the new task.

    Args:
        correct: bool [n], evaluation records; robust: bool [attacked], right under attack as well.
        scores: float64 [2 m], higher for members; is_member: bool [2 m]. As many of either.
        flags: why robustness may be less, as `Flag` values.
    """

    way: Way
    correct: Bools
    robust: Bools
    scores: np.ndarray[Any, np.dtype[np.floating[Any]]]
    is_member: Bools
    flags: tuple[str, ...]

    def beside(self, dense: Transferred, name: str) -> dict[str, Comparison]:
        """Each risk paired with that of the dense model, called `name`: the same records, seeds and attacker."""
        own, theirs = self, dense
        return {
            "accuracy": Comparison(name, Rate(own.correct), Rate(theirs.correct)),
            "robust accuracy": Comparison(name, Rate(own.robust), Rate(theirs.robust), flags=theirs.flags),
            "membership": Comparison(name, Auc(own.scores, own.is_member), Auc(theirs.scores, own.is_member)),
        }


def transferred(module: nn.Module, task: Task, *, seed: int, tune: bool = True) -> Mapping[Way, Transferred | str]:
    """The new models that start from this one; of one that cannot be made, why, in a sentence.

    Args:
        module: the dense model, or the differentiable twin of a candidate; left as it is.
        tune: whether the whole module is trained on, too.

    Raises:
        NotApplicable: it has no features.
    """
    features = Features(frozen_copy(module), task.members.x[:2])
    probed, head = _probed(features, task, seed)
    found: dict[Way, Transferred | str] = {"probe": probed}
    if tune:
        try:
            found["fine-tuned"] = _tuned(module, head, task, seed)
        except NotApplicable as reason:
            found["fine-tuned"] = str(reason)
    return found


def _probed(features: Features, task: Task, seed: int) -> tuple[Transferred, nn.Linear]:
    """A linear probe on standardised features, and as a layer on the features as they are.

    Its attacker trains probes on random halves of the same.
    """
    given = features(task.members.x).detach()
    center, spread = given.mean(0), given.std(0).clamp_min(1e-6)

    def of(records: Records) -> Records:
        return Records((features(records.x).detach() - center) / spread, records.y)

    members, rest = of(task.members), of(task.evaluation)
    probe = train(_fresh(features.width, task, seed), members, PROBE, seed=derive(seed, "probe"))
    half = min(len(members), len(rest))
    x, y = (torch.cat([getattr(members, one)[:half], getattr(rest, one)[:half]]) for one in ("x", "y"))
    known = (members.x[half:], members.y[half:]) if len(members) > half else None
    population = train_shadows(
        lambda: nn.Linear(features.width, task.classes),
        x,
        y,
        shadows=task.shadows,
        training=PROBE,
        known=known,
        lower=float(x.min()) - 1.0,
        upper=float(x.max()) + 1.0,
        seed=derive(seed, "shadows"),
    )
    scores, head = infer_membership(probe, population).scores, nn.Linear(features.width, task.classes)
    with torch.no_grad():
        weight, bias = probe.get_parameter("weight") / spread, probe.get_parameter("bias")
        head.weight.copy_(weight)
        head.bias.copy_(bias - weight @ center)
    return _judged("probe", nn.Sequential(features, head), task, scores, half, seed), head


def _tuned(module: nn.Module, head: nn.Linear, task: Task, seed: int) -> Transferred:
    """All of the module trained on from the probe (Kumar et al. 2022, arXiv:2202.10054).

    The attacker of its members has the margin alone, without shadows.
    """
    body = Features(copy.deepcopy(module).requires_grad_(True), task.members.x[:2])
    trained = [one for one in body.module.parameters() if one.dim() > 1]
    if not trained:
        raise NotApplicable("not applicable: it has no weights in floats that could be trained on")
    begun = nn.Sequential(body, copy.deepcopy(head).requires_grad_(True))
    whole = train(begun, task.members, FINE_TUNE, seed=derive(seed, "fine-tune"))
    half = min(len(task.members), len(task.evaluation))
    x, y = (torch.cat([getattr(one, name)[:half] for one in (task.members, task.evaluation)]) for name in ("x", "y"))
    scores = margin(TorchTarget(whole).logits(x), y).astype(np.float64)
    return _judged("fine-tuned", whole, task, scores, half, seed)


def _fresh(width: int, task: Task, seed: int) -> nn.Module:
    head = nn.Linear(width, task.classes)
    with torch.no_grad():
        stream = torch.Generator().manual_seed(derive(seed, "head"))
        head.weight.copy_(torch.randn(head.weight.shape, generator=stream) / width**0.5)
        head.bias.zero_()
    return head


def _judged(way: Way, model: nn.Module, task: Task, scores: Any, half: int, seed: int) -> Transferred:
    model = frozen_copy(model)
    x, y = task.evaluation.x, task.evaluation.y
    correct = (TorchTarget(model).logits(x).argmax(1) == y).cpu().numpy()
    n, scale = min(task.attacked, len(y)), task.bounds.scale.expand(x.shape[1:])
    low, high = (one.expand(x.shape[1:]) for one in (task.bounds.low, task.bounds.high))
    reach = task.epsilon * float(scale.max())
    found = evade(model, x[:n], y[:n], epsilon=reach, lower=low, upper=high, budget="quick", seed=derive(seed, "evade"))
    flags = tuple(sorted({one for some in found.flags.values() for one in some}))
    return Transferred(way, correct, ~found.success.cpu().numpy(), scores, np.arange(2 * half) < half, flags)
