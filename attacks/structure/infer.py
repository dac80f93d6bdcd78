"""Membership from a mask, from signs or from a code book alone: what is told by what many would publish."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from ...targets.errors import InputError
from ...targets.model import TorchTarget
from ..membership.case import ShadowSignals
from ..membership.infer import Inferred, Population
from ..membership.scoring import scores
from ..membership.signals import target_signals

Sees = Literal["mask", "signs", "book"]
Floats = np.ndarray[Any, np.dtype[np.float64]]

PLACES = 16  # of a layer's weights in ascending order, at which its code book is read
LARGEST = math.log(1e12)  # of the logarithm of odds that are told


def infer_from_structure(target: nn.Module, population: Population, sees: Sees = "mask") -> Inferred:
    """Scores for each of the population's records: was the model behind this structure trained on it?

    A mask (which weights are zero) or the signs are filled into the network, without biases and norms, and the margins
    that it then has on a record are compared with those of the shadows' structures (LiRA). A code book is compared
    value by value: how much nearer it is to books of shadows with the record than to those without (naive Bayes).

    Args:
        target: a module as its recipe leaves it: its mask is where its weights are zero.
        population: shadows compressed as the target was, `train_shadows(...).replay(recipe)`.
        sees: what the attacker has.

    Raises:
        InputError: the two are not of one structure.
    """
    layers = [[tuple(one.shape) for one in _weights(module)] for module in (target, population.modules[0])]
    if layers[0] != layers[1] or not layers[0]:
        raise InputError("The target's weights have other shapes than the shadows': compress them by one recipe.")
    if sees == "book":
        score = by_book(book(target), np.stack([book(one) for one in population.modules]), population.signals.inside)
        parts = {"book": score}
    else:
        known = signals(population, sees)
        own = target_signals(TorchTarget(structure_of(target, sees)), population.plan)[None].astype(np.float64)
        score = scores.lira(own, known)[0]
        parts = {"loss": scores.loss(own)[0], "lira": score}
    odds = np.exp(np.clip(score, -LARGEST, LARGEST))
    return Inferred(score, "book" if sees == "book" else "lira", odds, parts, masked=False)


def signals(population: Population, sees: Literal["mask", "signs"]) -> ShadowSignals:
    """What the shadows' structures say of the records."""
    filled = [TorchTarget(structure_of(module, sees)) for module in population.modules]
    return ShadowSignals(population.signals.inside, np.stack([target_signals(one, population.plan) for one in filled]))


def structure_of(module: nn.Module, sees: Literal["mask", "signs"]) -> nn.Module:
    """The network with its mask or its signs for weights, scaled by the root of what a unit reads.

    Biases are left out, and norms pass on what they get: the attacker has neither.
    """
    found = copy.deepcopy(module).eval().requires_grad_(False)
    chosen = {id(one) for one in _weights(found)}
    for layer in found.modules():
        norm = isinstance(layer, nn.modules.batchnorm._NormBase)
        if norm and isinstance(layer.running_mean, Tensor) and isinstance(layer.running_var, Tensor):
            layer.running_mean.zero_()
            layer.running_var.fill_(1.0)
        for name, one in layer.named_parameters(recurse=False):
            if id(one) in chosen:
                read = one.flatten(1)
                seen = (read != 0).float() if sees == "mask" else read.sign()
                one.copy_((seen / (read != 0).sum(1, keepdim=True).clamp_min(1).sqrt()).view_as(one))
            else:
                one.fill_(1.0 if "weight" in name else 0.0)
    return found


def book(module: nn.Module) -> Floats:
    """A layer's different weights, at places from the smallest to the largest, over its largest; [layers * PLACES]."""
    found = []
    for one in _weights(module):
        values = np.unique(one.detach().cpu().double().numpy())
        places = np.interp(np.linspace(0, len(values) - 1, PLACES), np.arange(len(values)), values)
        found.append(places / max(float(np.abs(values).max()), 1e-30))
    return np.concatenate(found)


def by_book(own: Floats, known: Floats, inside: np.ndarray[Any, np.dtype[np.bool_]]) -> Floats:
    """Naive Bayes with one variance per value: log p(book | record inside) - log p(book | outside), float64 [n].

    Args:
        own: [f]; known: [k, f], of the shadows; inside: bool [k, n].
    """
    side = inside.T.astype(float)
    with_it = side @ known / np.maximum(side.sum(1, keepdims=True), 1)
    without = (1 - side) @ known / np.maximum((1 - side).sum(1, keepdims=True), 1)
    variance = np.maximum(known.var(0), 1e-12)
    score: Floats = ((with_it - without) * (own - (with_it + without) / 2) / variance).sum(1)
    return score


def _weights(module: nn.Module) -> Sequence[Tensor]:
    """The matrices and kernels of its layers, embeddings among them, in order."""
    return [one for one in module.parameters() if one.dim() > 1]
