"""Training on perturbed records: the objectives, the records themselves, and a check of single-step training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..targets.data.records import Bounds, Records
from ..targets.errors import NotApplicable
from ..targets.model import BATCH, TorchTarget, device_of
from ..targets.seeds import generator
from .ball import Ball
from .loop import Forward, Objective, Training, cross_entropy
from .perturbation import Perturbation

CHECKED, CHECK_STEPS = 256, 10  # records and steps of the check for catastrophic overfitting
GAP = 0.25  # of accuracy: a sound single-step training loses less between one step and ten (digits: .01 to .05)


def objective_of(training: Training, bounds: Bounds) -> Objective | None:
    """What a training with perturbed records minimises; None: the training has none, and its own objective stands.

    Args:
        bounds: what an input may be, on any device.
    """
    if training.adversarial is None:
        return None
    return perturbed(training.model_copy(update={"adversarial": None}), training.adversarial, bounds)


def perturbed(
    training: Training, perturbation: Perturbation, bounds: Bounds, plain: Objective | None = None
) -> Objective:
    """The plain objective on perturbed records, or that of TRADES, for every model of a stack at once.

    `plain` is what is learnt, by default the labels; a teacher's soft labels, say, stay those of the clean records.

    The models stay in training mode while their inputs are perturbed (Rice et al. 2020, arXiv:2002.11569), so batch
    norm normalises as in the step that follows; its running statistics see the perturbed batches too, which on digits
    changes neither clean nor robust accuracy.

    Raises (when called):
        NotApplicable: the loss has no gradient with respect to the inputs; or TRADES, and the model predicts values.
    """
    learnt = plain or cross_entropy(training)
    places: dict[torch.device, Bounds] = {}

    def objective(
        forward: Forward, x: Tensor, y: Tensor, index: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        own = places.setdefault(x.device, bounds.to(x.device))
        ball = Ball(perturbation.norm, perturbation.epsilon, x.flatten(0, 1), own)
        noise = torch.stack(
            [torch.rand(one.shape, generator=draw, device=one.device) for one, draw in zip(x, generators, strict=True)]
        )
        if perturbation.method == "pgd":

            def loss(near: Tensor) -> Tensor:
                return learnt(forward, near.view_as(x), y, index, generators)

            return loss(ascend(ball, noise.flatten(0, 1), loss, perturbation))
        if y.is_floating_point():
            raise NotApplicable("TRADES compares probabilities of classes, and this model predicts values: use pgd.")
        clean = forward(x)
        wanted = F.log_softmax(clean, -1)

        def divergence(near: Tensor, wanted: Tensor) -> Tensor:
            answered = F.log_softmax(forward(near.view_as(x)), -1)
            return F.kl_div(answered, wanted, reduction="none", log_target=True).sum(-1)

        fixed = wanted.detach()
        adversarial = ascend(ball, noise.flatten(0, 1), lambda near: divergence(near, fixed), perturbation)
        right = learnt(lambda _: clean, x, y, index, generators)
        return right + perturbation.beta * divergence(adversarial, wanted)

    return objective


def ascend(ball: Ball, noise: Tensor, loss: Callable[[Tensor], Tensor], perturbation: Perturbation) -> Tensor:
    """Inputs of the ball at which a loss is high, float32 [n, *shape], after the perturbation's steps.

    Args:
        noise: uniform in [0, 1), [n, *shape]: where they start.
        loss: of inputs [n, *shape], values of any shape; each input has its own.

    Raises:
        NotApplicable: the loss has no gradient with respect to the inputs.
    """
    near = ball.random_start(noise)
    for _ in range(perturbation.steps):
        near.requires_grad_()
        losses = loss(near)
        gradient = None
        if losses.requires_grad:
            (gradient,) = torch.autograd.grad(losses.sum(), near, allow_unused=True)
        if gradient is None:
            raise NotApplicable(
                "Adversarial training moves the inputs along the gradient of the loss, and here the loss has none "
                "with respect to them, as where they are token ids."
            )
        near = ball.step(near.detach(), gradient, perturbation.size)
    return near


def against(module: nn.Module, records: Records, perturbation: Perturbation, bounds: Bounds, *, seed: int) -> Tensor:
    """The records' inputs, perturbed where cross-entropy is high: float32 [n, *shape], on the module's device.

    Args:
        module: in evaluation mode; classes or values, as the records say.
    """
    device = device_of(module)
    x, y = records.x.to(device), records.y.to(device)
    noise = torch.rand(x.shape, generator=generator(seed, "perturbed"), dtype=x.dtype).to(device)

    found = []
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        for some, wanted, start in zip(x.split(BATCH), y.split(BATCH), noise.split(BATCH), strict=True):

            def loss(near: Tensor, y: Tensor = wanted) -> Tensor:
                outputs = module(near)
                if y.is_floating_point():
                    squared: Tensor = (outputs - y).square().sum(-1)
                    return squared
                losses: Tensor = F.cross_entropy(outputs, y, reduction="none")
                return losses

            ball = Ball(perturbation.norm, perturbation.epsilon, some, bounds.to(device))
            found.append(ascend(ball, start, loss, perturbation))
    return torch.cat(found)


def overfitted(module: nn.Module, records: Records, perturbation: Perturbation, bounds: Bounds, *, seed: int) -> bool:
    """Whether a single-step training ended in catastrophic overfitting (Wong et al. 2020, arXiv:2001.03994).

    The model then resists the step it was trained on, and ten smaller ones inside the same ball undo it.

    Args:
        records: it was trained on; the first 256 are tried.
    """
    tried = records.take(torch.arange(min(CHECKED, len(records)), device=records.y.device))
    target = TorchTarget(module)

    def kept(steps: int) -> float:
        own = perturbation.model_copy(update={"method": "pgd", "steps": steps, "step_size": None})
        x = against(module, tried, own, bounds, seed=seed)
        return float((target.logits(x).argmax(1) == tried.y.to(x.device)).float().mean())

    return kept(perturbation.steps) - kept(CHECK_STEPS) > GAP
