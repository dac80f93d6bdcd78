"""Scores of weights that are learnt while the model is attacked: which weights a robust model can do without."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...targets.data.records import Bounds, Records
from ...training.lessons import Lesson, fine_tuning
from ...training.loop import Training
from ..layers.edit import weights

SLOWER = 0.3  # than weights: at their rate scores forget what magnitudes said


class Scored(nn.Module):
    """A module whose weights stay what they are, and of which only those with the largest scores take part.

    The choice is passed straight through to the scores (Ramanujan et al. 2020, arXiv:1911.13299).

    Args:
        module: used up; its parameters are frozen.
        share: of the weights that is left out, ranked over all of them, or within each where `per_layer`.
    """

    def __init__(self, module: nn.Module, share: float, *, per_layer: bool) -> None:
        super().__init__()
        self.module, self.share, self.per_layer = module.requires_grad_(False), share, per_layer
        self.names = list(weights(module, "pruning"))
        self.scores = nn.ParameterList()
        for name in self.names:
            weight = module.get_parameter(name).detach()
            self.scores.append(nn.Parameter(weight / weight.abs().max().clamp_min(1e-12)))

    def forward(self, x: Tensor) -> Tensor:
        masks = self.masks()
        chosen = {}
        for name, score in zip(self.names, self.scores, strict=True):
            size = score.abs()  # what ranks: a negative weight's score gains by falling
            chosen[name] = self.module.get_parameter(name) * (masks[name] + size - size.detach())
        answers: Tensor = functional_call(self.module, chosen, (x,))
        return answers

    @torch.no_grad()
    def masks(self) -> dict[str, Tensor]:
        """1 for weights that take part, 0 for others, by name; scores that tie with the last one left out are out too.

        A selection and no sorting, since each of a training step's passes asks for it.
        """
        sizes = {name: score.abs() for name, score in zip(self.names, self.scores, strict=True)}
        groups = [[name] for name in sizes] if self.per_layer else [list(sizes)]
        masks: dict[str, Tensor] = {}
        for group in groups:
            together = torch.cat([sizes[name].flatten() for name in group])
            out = round(self.share * len(together))
            last = together.kthvalue(out).values if out else together.new_tensor(-1.0)
            masks |= {name: (sizes[name] > last).to(together.dtype) for name in group}
        return masks

    @torch.no_grad()
    def sizes(self) -> dict[str, Tensor]:
        """What the scores amount to, by name of the weight: float64 of its shape, on the CPU, >= 0."""
        return {name: score.cpu().double().abs() for name, score in zip(self.names, self.scores, strict=True)}


def lesson(scored: Scored, records: Records, training: Training, bounds: Bounds, seed: int) -> Lesson:
    """HYDRA's pruning step (Sehwag et al. 2020, arXiv:2002.10509): scores start at the weights' sizes, as a share of
    the largest of each layer, and learn by the training's own (perturbed) objective; the trained module is a `Scored`.
    """
    own = {"weight_decay": 0.0, "learning_rate": SLOWER * training.learning_rate}
    return fine_tuning(scored, records, training.model_copy(update=own), bounds, seed)
