"""How much a model would miss each of its weights: by size, by first-order effect on the loss, or by lot."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...targets.data.records import Bounds, Records
from ...targets.errors import NotApplicable
from ...targets.model import device_of
from ...targets.seeds import generator
from ...training.adversarial import against
from ...training.per_record import clipped_sum
from ...training.perturbation import Perturbation
from ...training.private_steps import noisy_mean, refuse_mixing

Importance = Literal["magnitude", "taylor", "random", "adversarial-taylor", "adversarial-scores"]

TAYLOR_BATCH = 32  # records per gradient; part of the method, since squares are averaged over batches


def importances(
    module: nn.Module,
    importance: Importance,
    records: Records,
    *,
    seed: int,
    attack: Perturbation | None = None,
    bounds: Bounds | None = None,
) -> dict[str, Tensor]:
    """A score per value of every parameter, by name: float64 of the parameter's shape, on the CPU, >= 0.

    Scores add up: that of a set of values (a channel, a head) is the sum of theirs.

        magnitude: w^2 (Han et al. 2015; summed, a filter's squared L2 norm).
        taylor: (w * dL/dw)^2, the square of the change of the loss, to first order, when w becomes zero; the mean over
            batches of records (Molchanov et al. 2019, arXiv:1906.10771). L: cross-entropy, of values the squared
            error, in evaluation mode.
        random: uniform, by `seed`; the control that every criterion must beat.
        adversarial-taylor: taylor on records that `attack` perturbs within `bounds`, which it needs.

    Scores learnt under attack take a training: `learnt_scores`.

    Raises:
        NotApplicable: taylor, and there are no records or no finite gradient.
    """
    parameters: dict[str, Tensor] = dict(module.named_parameters())
    if importance == "magnitude":
        return {name: value.detach().cpu().double().square() for name, value in parameters.items()}
    if importance == "random":
        return {
            name: torch.rand(value.shape, generator=generator(seed, "random", name), dtype=torch.float64)
            for name, value in parameters.items()
        }
    if importance == "adversarial-taylor" and len(records):
        assert attack is not None, "it perturbs the records"
        assert bounds is not None, "a perturbed record stays within them"
        records = Records(against(module, records, attack, bounds, seed=seed), records.y)
    return _taylor(module, parameters, records, seed)


def private_taylor(module: nn.Module, records: Records, noise_multiplier: float, *, seed: int) -> dict[str, Tensor]:
    """A first-order score that is differentially private: one release, of a sum over records under Gaussian noise.

    A record's part has a value for each row of a weight (of an output channel or feature): the L2 norm of w * dL/dw
    over the row. All of them are scaled to norm 1, which bounds the part without a norm to choose (as Bu et al. 2023,
    arXiv:2206.07136, scale gradients). Within a row the noised sum is spread by the weights' sizes, at which no record
    is looked: a score per weight would drown, as noise grows with the number of values (DP-SGD digits CNN, prune80,
    noise 4: accurate .22 and .29 by weights, .66 and .62 by rows, .49 and .40 by size alone).

    Args:
        noise_multiplier: standard deviation of the noise on every value of the sum.

    Returns:
        As `importances`; 0 for parameters that are no weights: biases and norms.

    Raises:
        NotApplicable: there are no records, they have values, or the module mixes records.
    """
    if not len(records) or records.y.is_floating_point():
        raise NotApplicable("Noised importance is measured on training records with classes, and there are none.")
    refuse_mixing(module)
    device, draws = device_of(module), generator(seed, "noised scores")
    matrices = {name: value.detach() for name, value in module.named_parameters() if value.dim() > 1}

    def parts(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        changes = {name: gradients[name] * weight for name, weight in matrices.items()}
        rows = {name: change.flatten(2).norm(dim=2).nan_to_num(0, 0) for name, change in changes.items()}
        norms = torch.cat(list(rows.values()), 1).norm(dim=1, keepdim=True).clamp_min(1e-12)
        return {name: row / norms for name, row in rows.items()}

    totals = clipped_sum(module, records.to(device), 1.0, parts)
    scores = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in module.named_parameters()}
    for name, weight in matrices.items():
        noised = noisy_mean(totals[name].cpu().double(), 1.0, noise_multiplier, draws).clamp_min(0)
        sizes = weight.cpu().double().abs().flatten(1)
        spread = sizes / sizes.norm(dim=1, keepdim=True).clamp_min(1e-12)
        scores[name] = (noised[:, None] * spread).view_as(scores[name])
    return scores


def _taylor(module: nn.Module, parameters: dict[str, Tensor], records: Records, seed: int) -> dict[str, Tensor]:
    if not len(records):
        raise NotApplicable(
            "Taylor importance is measured on the model's training records, and there are none; use magnitude."
        )
    device, batch = device_of(module), min(TAYLOR_BATCH, len(records))
    totals = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in parameters.items()}
    order = torch.randperm(len(records), generator=generator(seed, "taylor"))
    batches = len(order) // batch  # the rest is dropped: the gradient of a smaller batch is noisier
    for index in order[: batches * batch].view(batches, batch):
        index = index.to(records.x.device)
        # Off, because cuDNN's recurrent layers have no backward pass in evaluation mode.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            outputs, y = module(records.x[index].to(device)), records.y[index].to(device)
            loss = F.mse_loss(outputs, y) if y.is_floating_point() else F.cross_entropy(outputs, y)
            if not loss.requires_grad:
                raise NotApplicable("The model's outputs have no gradient, so Taylor importance cannot be measured.")
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
            if gradient is not None:
                totals[name] += (value.detach().double() * gradient.double()).square()
    scores = {name: total.cpu() / batches for name, total in totals.items()}
    if not all(bool(torch.isfinite(score).all()) for score in scores.values()):
        raise NotApplicable("The gradient of the model's loss is not finite, so Taylor importance cannot be measured.")
    return scores
