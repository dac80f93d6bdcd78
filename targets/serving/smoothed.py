"""Answers by majority over noisy copies of an input (randomised smoothing, Cohen, Rosenfeld & Kolter 2019,
arXiv:1902.02918): what a file says of how it is served, who serves it so, and what is certain of its answers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # its parts load where they are first used: a worker needs few
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..model import Target
from ..seeds import derive, normal

Counts = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

PROPERTY = "crushproof.served-by-vote"  # of a file's metadata
MOST = 1000  # copies of an input
AUDITED = 0  # the key of the noise in an audit, so that it finds the same again
LEAST = 1e-6  # the share that is told in place of 0, of which there is no logarithm
TOGETHER = 2**22  # values of noise that are made at a time, or those of one record; fixed: no answer depends on it


@dataclass(frozen=True, eq=False)
class NoisyVote:
    """How a file is to be served.

    Args:
        sigma: standard deviation of the noise, in [0, 1] units, which are those of radii.
        samples: noisy copies of an input, each of which has a vote.
        scale: float32, broadcastable to a record: the standard deviation in the input's own units, 0 where a value is
            given no noise.
    """

    sigma: float
    samples: int
    scale: Tensor

    def written(self) -> str:
        """As a file's metadata has it."""
        scale = self.scale.flatten()[0] if bool((self.scale == self.scale.flatten()[0]).all()) else self.scale
        values = {"shape": list(scale.shape), "scale": scale.flatten().tolist()}
        return json.dumps({"sigma": self.sigma, "samples": self.samples, **values})


def vote_of(model: Any) -> NoisyVote | None:
    """How an `onnx.ModelProto` says that it is to be served; None: as it is.

    Raises:
        InputError: it says so in a way that cannot be followed.
    """
    found = [entry.value for entry in model.metadata_props if entry.key == PROPERTY]
    if not found:
        return None
    try:
        (text,) = found
        said = json.loads(text)
        sigma, samples = float(said["sigma"]), int(said["samples"])
        shape = [int(side) for side in said["shape"]]
        if shape and shape != [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim[1:]]:
            raise ValueError
        scale = torch.tensor(said["scale"], dtype=torch.float32).reshape(shape)
        if not (0 < sigma < math.inf and 1 <= samples <= MOST and bool((scale >= 0).all() & scale.isfinite().all())):
            raise ValueError
    except (ValueError, TypeError, LookupError, RuntimeError, OverflowError, RecursionError):
        raise InputError(
            f"The file's metadata {PROPERTY} does not say how to serve it: it must hold sigma, samples (1 to "
            f"{MOST:,}), and shape (a record's, or none) and scale of the noise. Export the model again."
        ) from None
    return NoisyVote(sigma, samples, scale)


def copies(x: Tensor, scale: Tensor, samples: int, key: int) -> Tensor:
    """Noisy copies of inputs float32 [n, *shape]: float32 [samples, n, *shape].

    The noise follows from the key and the record's own values: whoever asks again gets the same answer, so that
    averaging repeated answers tells nothing more; another record has other noise.
    """
    digests = [hashlib.sha256(row.numpy().tobytes()).digest() for row in x.detach().float().cpu().contiguous()]
    ids = np.array([int.from_bytes(digest[:8], "big") >> 1 for digest in digests], dtype=np.int64)
    noise = normal(key, ids, (samples, *x.shape[1:])).to(x.device)
    return x + noise.transpose(0, 1) * scale.to(x.device)


def shares(logits: Tensor, samples: int) -> Tensor:
    """Of the copies' votes, by class: float32 [n, classes] of logits [samples * n, classes]; NaN where one is."""
    won = F.one_hot(logits.argmax(1).view(samples, -1), logits.shape[1]).sum(0).float() / samples
    undefined = logits.isnan().any(1).view(samples, -1).any(0)
    return won.masked_fill(undefined[:, None], math.nan)


def counted(ask: Callable[[Tensor], Tensor], x: Tensor, scale: Tensor, samples: int, key: int) -> Tensor:
    """`shares` of what `ask` answers about copies of x float32 [n, *shape], of few records at a time."""
    rows = max(1, TOGETHER // max(1, samples * x[:1].numel()))
    return torch.cat([shares(ask(copies(part, scale, samples, key).flatten(0, 1)), samples) for part in x.split(rows)])


class Voted:
    """A `Target` that answers by the votes of another on noisy copies: logarithms of the shares of votes.

    Args:
        key: of the noise. Where it is secret and as good as random, certificates hold for who does not know it.
    """

    def __init__(self, base: Target, vote: NoisyVote, key: int = AUDITED) -> None:
        self.base, self.vote, self.key, self.queries = base, vote, key, 0

    def logits(self, x: Tensor) -> Tensor:
        """float32 [n, classes] of x [n, *shape]; counts n queries, however many copies are asked about.

        Raises:
            InputError: records of another shape.
        """
        self.queries += len(x)
        return self._counted(x, self.vote.samples, self.key).clamp_min(LEAST).log()

    def certified(
        self, x: Tensor, *, chosen_by: int = 100, samples: int = 1000, alpha: float = 0.001
    ) -> tuple[Counts, Floats]:
        """The paper's CERTIFY: labels int64 [n] and L2 radii float64 [n] within which the majority over all noise
        keeps them; -1 and -1: it abstains. Each holds with confidence 1 - alpha, of changes to values that are given
        noise. The few votes of `logits` may miss a narrow majority, within the radius too.

        Args:
            chosen_by: copies that choose a label; samples: others that count how often it comes.
        """
        self.queries += len(x)
        chosen = self._counted(x, chosen_by, derive(self.key, "choice")).argmax(1, keepdim=True)
        hits = self._counted(x, samples, derive(self.key, "count")).gather(1, chosen)[:, 0] * samples
        found = radii(least_share(hits.round().long().cpu().numpy(), samples, alpha), self.vote.sigma)
        labels: Counts = np.where(found >= 0, chosen[:, 0].cpu().numpy(), -1)
        return labels, found

    def _counted(self, x: Tensor, samples: int, key: int) -> Tensor:
        if self.vote.scale.dim() and x.shape[1:] != self.vote.scale.shape:
            raise InputError(
                f"The model is served by vote under noise on records of shape {list(self.vote.scale.shape)}, and one "
                f"here has the shape {list(x.shape[1:])}."
            )
        return counted(self.base.logits, x, self.vote.scale, samples, key)


def least_share(hits: Counts, n: int, alpha: float) -> Floats:
    """What a probability is at least, with confidence 1 - alpha: Clopper and Pearson's one-sided bound (1934).

    Args:
        hits: int64 [r], of `n` independent draws each.
        alpha: in (0, 1).

    Returns:
        float64 [r].
    """
    hits = np.asarray(hits, dtype=np.int64)
    return np.where(hits > 0, scipy.special.betaincinv(np.maximum(hits, 1), n - hits + 1, alpha), 0.0)


def radii(share: Floats, sigma: float) -> Floats:
    """The L2 radius within which a model under Gaussian noise keeps its answer; -1: it abstains (theorem 1, with the
    runner-up's probability bounded by the rest).

    Args:
        share: float64 [r], what the probability of the answer is at least.
        sigma: standard deviation of the noise; the radii are in its units.
    """
    sure = share > 0.5
    return np.where(sure, sigma * scipy.special.ndtri(np.where(sure, share, 0.75)), -1.0)
