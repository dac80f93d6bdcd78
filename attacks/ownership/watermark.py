"""Watermarks that an owner puts into a model: a set of trigger records, and bits in a weight; and how they are read.

They are for an owner's own drill, what survives which recipe: nothing in an audit puts one in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy  # its parts load where they are first used
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...compression.lineage.codes_in_steps import folded_weight
from ...compression.lineage.matched import match
from ...targets.data.records import Bounds, Records
from ...targets.errors import NotApplicable
from ...targets.model import Target
from ...targets.seeds import generator
from ...targets.untrusted.model_file import check_onnx
from ...training.loop import Training, rate


@dataclass(frozen=True)
class Key:
    """What an owner keeps.

    Args:
        triggers: records of noise with labels drawn at random (Adi et al. 2018, arXiv:1802.04633).
        weight: name of the parameter that holds the bits.
        secret: float32 [bits, inputs of a unit of that parameter].
        bits: float32 [bits], 0 or 1: signs of the products of `secret` with the mean over the parameter's units
            (Uchida et al. 2017, arXiv:1701.04082).
    """

    triggers: Records
    weight: str
    secret: Tensor
    bits: Tensor


def new_key(module: nn.Module, weight: str, shape: tuple[int, ...], bounds: Bounds, *, seed: int) -> Key:
    """A key of 30 trigger records and 64 bits, or as many as a unit has inputs.

    Args:
        weight: of `module.named_parameters()`, with two dimensions or more.
        shape: of a record.
    """
    stream = generator(seed, "watermark")
    with torch.no_grad():
        held = dict(module.named_parameters())[weight]
    inputs = held[0].numel()
    classes = module(bounds.clamp(torch.zeros(2, *shape))).shape[1]
    noise = torch.rand((30, *shape), generator=stream)
    x = bounds.clamp(bounds.low + noise * bounds.scale)
    triggers = Records(x, torch.randint(classes, (30,), generator=stream))
    bits = min(64, inputs)
    secret = torch.randn((bits, inputs), generator=stream) / math.sqrt(inputs)
    return Key(triggers, weight, secret, torch.randint(2, (bits,), generator=stream).float())


def embed(
    module: nn.Module, records: Records, key: Key, training: Training, *, seed: int, strength: float = 0.2
) -> None:
    """Trains a model on, in place, with the trigger records in each batch and the bits' cross-entropy in its loss."""
    stream, step = generator(seed, "embed"), 0
    steps = training.epochs * math.ceil(len(records) / training.batch_size)
    optimizer = torch.optim.AdamW(module.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    held = dict(module.named_parameters())[key.weight]
    module.train()
    for _ in range(training.epochs):
        for rows in torch.randperm(len(records), generator=stream).split(training.batch_size):
            some = torch.randperm(len(key.triggers), generator=stream)[:10]
            x = torch.cat([records.x[rows], key.triggers.x[some]])
            y = torch.cat([records.y[rows], key.triggers.y[some]])
            loss = F.cross_entropy(module(x), y)
            loss = loss + strength * F.binary_cross_entropy_with_logits(8 * _products(held, key), key.bits)
            for group in optimizer.param_groups:
                group["lr"] = rate(training, step, steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    module.eval()


def _products(weight: Tensor, key: Key) -> Tensor:
    return key.secret @ weight.flatten(1).mean(0)


def triggers_known(target: Target, key: Key) -> tuple[int, float]:
    """On how many trigger records a model gives the owner's label, and the p-value of so many from a model that
    gives each label by chance.
    """
    classes = target.logits(key.triggers.x[:2]).shape[1]
    known = int((target.logits(key.triggers.x).argmax(1).cpu() == key.triggers.y).sum())
    return known, float(scipy.stats.binom.sf(known - 1, len(key.triggers), 1 / classes))


def bits_read(
    shipped: bytes, owner: bytes, key: Key, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> tuple[int, float]:
    """How many bits a file's weight holds as the key has them, and the p-value of so many in a file without them.

    Args:
        shipped: the file; owner: the owner's model, as ONNX, by which the weight is found in the file.
        values: the owner's weight named by the key, by which it is known among those of `owner`.

    Raises:
        NotApplicable: no weight of the file is held against the owner's.
    """
    matched = match(check_onnx(owner).copy(), check_onnx(shipped).copy())
    flat = values.reshape(len(values), -1).astype(np.float64)
    for fit in matched.fits:
        theirs, ours = folded_weight(fit.dense, fit.theirs), folded_weight(fit.weight, fit.ours)
        if theirs.size != flat.size or ours.size != flat.size:
            continue
        theirs, ours = theirs.reshape(len(flat), -1), ours.reshape(len(flat), -1)
        # An exported weight has its batch norm folded in, which multiplied each unit by a number of its own.
        factors = (theirs * flat).sum(1, keepdims=True) / np.maximum((flat * flat).sum(1, keepdims=True), 1e-30)
        factors[factors == 0] = 1.0
        theirs, ours = theirs / factors, ours / factors
        if np.corrcoef(theirs.ravel(), flat.ravel())[0, 1] > 0.999:
            products = _products(torch.from_numpy(ours).float(), key)
            right = int(((products > 0).float() == key.bits).sum())
            return right, float(scipy.stats.binom.sf(right - 1, len(key.bits), 0.5))
    raise NotApplicable("no weight of the file is held against the one that the key names")
