"""A compressed model as the beginning of one for another task: new models, made of its file and asked as files.

The model is a feature extractor for records of other classes: a linear probe on what enters its last layer, or all of
it trained on with a new last layer. By the same seeds for every model, so that a copy of one changes nothing.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...compression.deployment.onnx_export import to_onnx
from ...targets.data.further.task import NewTask
from ...targets.data.records import Bounds, Records
from ...targets.errors import NotApplicable, failing_as_not_applicable
from ...targets.interface.assumptions import Assumptions
from ...targets.interface.finished_model import Deployed, Differentiable
from ...targets.model import Target
from ...targets.runtimes.onnx import OnnxTarget
from ...targets.seeds import derive
from ...targets.twin.twin import Twin, twin_of
from ...targets.untrusted.model_file import CheckedOnnx, check_onnx
from ...training.loop import Training, train
from ..evasion.call.attackable import Attackable
from ..evasion.evade import evade
from ..membership.case import ShadowSignals
from ..membership.infer import train_shadows
from ..membership.scoring.pseudo_targets import score_all
from ..membership.signals import phi_of
from .head_file import with_features, with_head

Way = Literal["probe", "fine-tuned"]
WAYS: tuple[Way, ...] = ("probe", "fine-tuned")
PROBE = Training(epochs=40, batch_size=32, learning_rate=2e-2, weight_decay=5e-4)
FINE_TUNE = Training(epochs=6, batch_size=32, learning_rate=3e-3)
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Beginning:
    """A file that a new model is made of.

    Args:
        file: as it ships; assumptions: how its input is read, where somebody else made it.
        shape: of a record.
    """

    file: CheckedOnnx
    assumptions: Assumptions | None
    shape: tuple[int, ...]

    def opened(self, data: bytes) -> Attackable:
        """What was made of the file, behind the same preprocessing, with its twin."""
        own = _opened(data)
        if self.raw is None:
            return Attackable(own.deployed, own.twin)
        twin = None if own.twin is None else Differentiable(own.twin, self.raw).eval()
        return Attackable(Deployed(own.deployed, self.raw), twin)

    def tuned(self, data: bytes) -> Attackable:
        """A file that `tuned` made, which holds the preprocessing."""
        own = _opened(data)
        return Attackable(own.deployed, own.twin)

    @property
    def raw(self) -> Assumptions | None:
        """Of what is made of the file, which answers with features or logits of its own."""
        own = {"outputs": "logits", "labels": None, "output": None}
        return None if self.assumptions is None else self.assumptions.model_copy(update=own)


@dataclass(frozen=True)
class _File:
    deployed: OnnxTarget
    twin: Twin | None


def _opened(data: bytes) -> _File:
    checked = check_onnx(data)
    twin = None
    with suppress(NotApplicable):  # an operator that has no twin
        twin = twin_of(checked)
    return _File(OnnxTarget(checked), twin)


@dataclass(frozen=True)
class Head:
    """A linear probe as a layer on features as they are: weight float32 [classes, features], bias [classes]."""

    weight: np.ndarray[Any, np.dtype[np.float32]]
    bias: np.ndarray[Any, np.dtype[np.float32]]


def probed(start: Beginning, task: NewTask, shadows: int, seed: int) -> tuple[Head, ShadowSignals]:
    """A linear probe on the file's features, standardised, and what probes on random halves of the same say.

    The records of the signals are those of `asked`, in that order.

    Raises:
        NotApplicable: the file has no features, or answers with numbers that are not finite.
    """
    runs = start.opened(with_features(start.file)).deployed
    given = _features(runs, task.members.x)
    center, spread = given.mean(0), given.std(0).clamp_min(1e-6)

    def of(records: Records) -> Records:
        return Records((_features(runs, records.x) - center) / spread, records.y)

    members, questions = of(task.members), of(asked(task))
    width, half = given.shape[1], len(questions) // 2
    probe = train(_fresh(width, task.classes, seed), members, PROBE, seed=derive(seed, "probe"))
    population = train_shadows(
        lambda: nn.Linear(width, task.classes),
        questions.x,
        questions.y,
        shadows=shadows,
        training=PROBE,
        known=(members.x[half:], members.y[half:]) if len(members) > half else None,
        lower=float(questions.x.min()) - 1.0,
        upper=float(questions.x.max()) + 1.0,
        seed=derive(seed, "shadows"),
    )
    weight, bias = (probe.get_parameter(name).detach().double() for name in ("weight", "bias"))
    weight = weight / spread.double()
    head = Head(weight.float().numpy(), (bias - weight @ center.double()).float().numpy())
    return head, population.signals


def asked(task: NewTask) -> Records:
    """Whose membership is asked: as many members as others, members first."""
    half = min(len(task.members), len(task.evaluation))
    parts = [(one.x[:half], one.y[:half]) for one in (task.members, task.evaluation)]
    return Records(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))


def tuned(start: Beginning, head: Head, task: NewTask, seed: int) -> bytes:
    """The file of all of the model trained on from the probe (Kumar et al. 2022, arXiv:2202.10054).

    Weights that are stored as codes begin as the numbers they stand for and become floats; what the file rounds
    between its layers it rounds still.

    Raises:
        NotApplicable: nothing of the file can be trained, or what came of it cannot be exported.
    """
    twin = twin_of(with_head(start.file, head.weight, head.bias, floats=True))
    if sum(one.dim() > 1 for one in twin.parameters()) < 2:  # the head is one of them
        raise NotApplicable("not applicable: it has no weights that could be trained on")
    whole: nn.Module = twin if start.raw is None else Differentiable(twin, start.raw)
    whole.requires_grad_(True)
    with failing_as_not_applicable("the model cannot be trained on"):
        made = train(whole, task.members, FINE_TUNE, seed=derive(seed, "fine-tune"))
        return to_onnx(made, start.shape)


def judged(
    model: Attackable, task: NewTask, bounds: Bounds, epsilon: float, records: int, seed: int, attacks: bool
) -> tuple[Arrays, list[str]]:
    """What a new model gets right, with and without an attack, and its margins where membership is asked; its flags.

    Arrays: `correct` bool [n]; `phi` float32 [2 m]; where `attacks`, of the first evaluation records `robust` bool [a]
    and `crafted` float32 [a, *shape], within `epsilon` of them and the bounds.
    """
    x, y = task.evaluation.x, task.evaluation.y
    found: Arrays = {"correct": (model.deployed.logits(x).argmax(1) == y).cpu().numpy()}
    found["phi"] = phi_of(model.deployed, asked(task))
    if not np.isfinite(found["phi"]).all():
        raise NotApplicable("the new model answers with numbers that are not finite")
    if not attacks:
        return found, []
    x, y = x[:records], y[:records]
    low, high = around(x, bounds, epsilon)
    search = evade(model, x, y, lower=low, upper=high, budget="quick", seed=derive(seed, "evade"))
    found["robust"], found["crafted"] = ~search.success.cpu().numpy(), search.adversarial.cpu().numpy()
    return found, sorted({one for some in search.flags.values() for one in some})


def around(x: Tensor, bounds: Bounds, epsilon: float) -> tuple[Tensor, Tensor]:
    """What an input may be, value by value: float32 like x."""
    reach = epsilon * bounds.scale.expand(x.shape[1:])
    low, high = bounds.clamp(x - reach), bounds.clamp(x + reach)
    if bounds.held is None:
        return low, high
    return torch.where(bounds.held, x, low), torch.where(bounds.held, x, high)


def scores_of(way: Way, phi: np.ndarray[Any, Any], signals: ShadowSignals) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Higher for members, float64 [2 m]: of a probe RMIA against other probes; of what was tuned its margins beyond
    the mean of probes that were not trained on the record (difficulty calibration, Watson et al. 2022,
    arXiv:2111.08440), since as many tuned models would cost as many trainings.
    """
    known = phi.astype(np.float64)
    if way == "probe":
        parts = score_all(known[None], {"own": signals})
        return np.asarray(parts["rmia/own"][0], np.float64)
    out = ~signals.inside
    return np.asarray(known - np.where(out, signals.phi, 0).sum(0) / np.maximum(out.sum(0), 1), np.float64)


def _features(runs: Target, x: Tensor) -> Tensor:
    found = runs.logits(x).float().cpu()
    if found.dim() != 2 or not torch.isfinite(found).all():
        raise NotApplicable("what enters the model's last layer is not finite")
    return found


def _fresh(width: int, classes: int, seed: int) -> nn.Module:
    head = nn.Linear(width, classes)
    with torch.no_grad():
        stream = torch.Generator().manual_seed(derive(seed, "head"))
        head.weight.copy_(torch.randn(head.weight.shape, generator=stream) / width**0.5)
        head.bias.zero_()
    return head
