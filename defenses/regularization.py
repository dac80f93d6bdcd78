"""Regularisation: trainings that fit their records less closely, each with what it is known to help or to harm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import scipy  # its parts load where they are first used
import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..attacks.attack import Attack
from ..targets.data.records import Bounds
from ..targets.errors import NotApplicable
from ..training.loop import Forward, Objective, Training, cross_entropy
from ..training.trainer import Trainer
from .defense import DEFENSES, TrainingDefense
from .objectives import ObjectiveTrainer, hyper_parameters

SURE = 1.0  # RelaxLoss: a posterior is flattened up to this probability of the label
FIELDS = (
    "weight_decay",
    "dropout",
    "label_smoothing",
    "mixup",
    "early_stopping",
    "gradient_penalty",
    "relax_loss",
)


@DEFENSES.register
class Regularization(TrainingDefense):
    """The plain training with one or several regularisers; what is left out stays as the plain training has it.

    None of them hides anything: robustness is judged by the same white-box attacks, membership by shadow models that
    are trained with the same regulariser, which is the attacker who knows it. Label smoothing and mixup are here since
    they are often taken for defenses: on digits they raise the AUC of membership from .61 to .65 and .64, where shadows
    without them would say that it falls to .57. RelaxLoss lowers it to .57, a sixth of the passes to .55 (benchmarks).
    """

    kind: Literal["regularization"] = "regularization"
    weight_decay: float | None = Field(None, ge=0, le=100, description="of the optimiser, decoupled")
    dropout: float | None = Field(None, ge=0, lt=1, description="probability in every dropout layer the net has")
    label_smoothing: float | None = Field(None, ge=0, lt=1, description="share of a label given to all classes")
    mixup: PositiveFloat | None = Field(
        None,
        le=100,
        description="alpha of the Beta distribution by which pairs of records are mixed (Zhang et al. 2018, "
        "arXiv:1710.09412)",
    )
    early_stopping: PositiveInt | None = Field(
        None, le=10_000, description="passes over the records in place of the plain training's; the schedule fits them"
    )
    gradient_penalty: PositiveFloat | None = Field(
        None,
        le=1e6,
        description="weight of the squared norm of the loss's gradient by the inputs, in [0, 1] units (Ross and "
        "Doshi-Velez 2018, arXiv:1711.09404)",
    )
    relax_loss: PositiveFloat | None = Field(
        None,
        le=100,
        description="mean loss below which a batch's is raised or its posteriors are flattened, so that members look "
        "like non-members (RelaxLoss, Chen et al. 2022, arXiv:2207.05801)",
    )
    training: Training | None = Field(None, description="hyper-parameters in place of the plain training's")

    @model_validator(mode="after")
    def _something(self) -> Regularization:
        given = [name for name in FIELDS if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"say which: one or more of {', '.join(FIELDS)}")
        odd = {"mixup", "label_smoothing", "gradient_penalty"} & set(given)
        if self.relax_loss is not None and odd:
            raise ValueError(f"relax_loss sets the objective itself, so it does not go with {', '.join(sorted(odd))}")
        return self

    def phrase(self, statement: object) -> str:
        """`regularisation (mixup 0.2, early stopping 10)`."""
        given = [f"{name.replace('_', ' ')} {getattr(self, name):g}" for name in FIELDS if getattr(self, name)]
        return f"regularisation ({', '.join(given)})" if given else "no regularisation"

    def adapt(self, module: nn.Module) -> nn.Module:
        """With the dropout layers at this defense's probability.

        Raises:
            NotApplicable: it is to have dropout, and has no such layer.
        """
        if self.dropout is None:
            return module
        layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.dropout._DropoutNd)]
        if not layers:
            raise NotApplicable("The model has no dropout layer, so its probability cannot be set: leave dropout out.")
        for layer in layers:
            layer.p = self.dropout
        return module

    def trainer(self, plain: Trainer, bounds: Bounds) -> Trainer:
        training = hyper_parameters(self.training, plain, "Regularisation")
        changed = {
            "weight_decay": self.weight_decay,
            "label_smoothing": self.label_smoothing,
            "epochs": self.early_stopping,
        }
        training = training.model_copy(update={name: value for name, value in changed.items() if value is not None})
        scale = bounds.scale.flatten().tolist()
        name = f"regularized:{self.model_dump_json(exclude={'training'})}:{scale}"
        return ObjectiveTrainer(name, training, self.objective(training, bounds))

    def objective(self, training: Training, bounds: Bounds) -> Objective:
        """Of a stack, as `training.loop` asks for it."""
        objective = cross_entropy(training)
        if self.relax_loss is not None:
            return relaxed(self.relax_loss)
        if self.mixup is not None:
            objective = mixed(objective, self.mixup)
        return objective if self.gradient_penalty is None else penalized(objective, self.gradient_penalty, bounds)

    def adapted(self, attack: Attack) -> Attack:
        """The same attack: gradients are there, and membership attacks train their shadows with the defense."""
        return attack


def mixed(plain: Objective, alpha: float) -> Objective:
    """Mixup: each model's batch mixed with a shuffled copy of itself, in one ratio; the losses in the same ratio."""

    def objective(
        forward: Forward, x: Tensor, y: Tensor, index: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        shares, orders = [], []
        for stream in generators:
            uniform = float(torch.rand((), generator=stream, device=stream.device, dtype=torch.float64))
            shares.append(float(scipy.special.betaincinv(alpha, alpha, uniform)))
            orders.append(torch.randperm(x.shape[1], generator=stream, device=stream.device).to(x.device))
        share = x.new_tensor(shares)
        other = torch.stack(orders)
        row = torch.arange(len(x), device=x.device)[:, None]
        wide = share.view(-1, *[1] * (x.dim() - 1))
        answers = forward(wide * x + (1 - wide) * x[row, other])
        own, others = (plain(lambda _: answers, x, labels, index, generators) for labels in (y, y[row, other]))
        return share[:, None] * own + (1 - share[:, None]) * others

    return objective


def penalized(plain: Objective, weight: float, bounds: Bounds) -> Objective:
    """The loss, and the squared norm of its gradient by each input in [0, 1] units."""

    def objective(
        forward: Forward, x: Tensor, y: Tensor, index: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        near = x.detach().requires_grad_()
        losses = plain(forward, near, y, index, generators)
        (gradient,) = torch.autograd.grad(losses.sum(), near, create_graph=True, allow_unused=True)
        if gradient is None:
            raise NotApplicable(
                "The loss has no gradient by the inputs, as where they are token ids: no penalty on it."
            )
        return losses + weight * (gradient * bounds.scale.to(x.device)).square().flatten(2).sum(-1)

    return objective


def relaxed(target: float) -> Objective:
    """RelaxLoss: cross-entropy while a model's batch is above `target` on average; below it, by lot, the loss is
    raised or posteriors are flattened. (The paper alternates by epochs; a coin for each batch needs no count of them.)
    """

    def objective(
        forward: Forward, x: Tensor, y: Tensor, index: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        if y.is_floating_point():
            raise NotApplicable("RelaxLoss flattens probabilities of classes, and this model predicts values.")
        logits = forward(x)
        losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y)
        coins = [float(torch.rand((), generator=stream, device=stream.device)) for stream in generators]
        ascent = (x.new_tensor(coins) < 0.5)[:, None]
        log_probabilities = F.log_softmax(logits, -1)
        of_label = log_probabilities.detach().gather(-1, y[..., None]).exp().clamp_max(SURE)
        rest = (1 - of_label) / (logits.shape[-1] - 1)
        soft = rest.expand_as(logits).scatter(-1, y[..., None], of_label)
        right = logits.argmax(-1) == y
        flattened = torch.where(right, 0.0, -(soft * log_probabilities).sum(-1)) + losses
        below = losses.mean(1, keepdim=True) <= target
        return torch.where(below, torch.where(ascent, -losses, flattened), losses)

    return objective
