"""The answers of a deployed model under noise, record by record."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...targets.errors import NotApplicable
from ...targets.form import Array
from ...targets.model import Target
from ...targets.seeds import derive, normal
from ...targets.serving.smoothed import Voted
from ...targets.steps import Arrays
from ..access import Ledger
from ..case import Case
from ..evasion.blocks import Counter, blocks, kept_at_cost

Labels = np.ndarray[Any, np.dtype[np.int64]]
AGAIN = 5  # records that are asked about under noise again
FORM = ("clean_correct", "top", "hits", "first")
TOGETHER = 128  # noisy inputs of one record that are made and asked at a time: fixed, so that no answer depends on it


def sampled(
    case: Case, count: int, sigma: float, chosen_by: int, n: int, m: int, *, seed: int, ledger: Ledger
) -> Arrays:
    """The evidence arrays of `Smoothing` but for `ids`, of the first `count` records.

    Args:
        sigma: of the noise, in [0, 1] units.
        chosen_by: draws that choose the answer; n: that count it; m: of these, those whose answers are kept.

    Raises:
        NotApplicable: the model answers with NaN.
    """
    counter, pieces = Counter(count), []
    for first, end in blocks(count):
        rows = end - first
        form = {
            "clean_correct": Array("bool", (rows,)),
            "top": Array("int64", (rows,), low=0),
            "hits": Array("int64", (rows,), low=0, high=n),
            "first": Array("int32", (rows, m), low=0),
        }
        work = partial(_block, case, first, end, sigma, chosen_by, n, m, seed, counter)
        pieces.append(kept_at_cost(f"noise/{first}-{end}", ledger, work, form))
        counter.add(rows)
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in FORM}


def contradictions(arrays: Arrays, case: Case, sigma: float, seed: int) -> list[str]:
    """In what the deployed model's answers differ from those that `sampled` gave, a phrase each: without noise on all
    records, under noise on the first few.
    """
    ids = arrays["ids"]
    if not np.array_equal(ids, case.ids[: len(ids)]):
        return ["records were asked about that are none to be evaluated"]
    found, m = [], arrays["first"].shape[1]
    records = case.evaluation.take(torch.arange(len(ids)))
    right = _labels(case.deployed, records.x) == records.y.cpu().numpy()
    if off := int((right != arrays["clean_correct"]).sum()):
        found.append(f"{off} of {len(ids)} records are classified otherwise")
    few, counting = min(AGAIN, len(ids)), derive(seed, "count")
    again = [_under_noise(case, at, sigma, m, counting, spent=Ledger()) for at in range(few)]
    if off := int((np.stack(again) != arrays["first"][:few]).any(axis=1).sum()):
        found.append(f"{off} of {few} records are classified otherwise under the same noise")
    return found


def _block(
    case: Case,
    first: int,
    end: int,
    sigma: float,
    chosen_by: int,
    n: int,
    m: int,
    seed: int,
    counter: Counter,
    spent: Ledger,
) -> Arrays:
    spent.queries += end - first
    records = case.evaluation.take(torch.arange(first, end))
    clean = _labels(case.deployed, records.x) == records.y.cpu().numpy()
    top, hits, kept = np.zeros(end - first, np.int64), np.zeros(end - first, np.int64), []
    for at in range(first, end):
        asked = partial(_under_noise, case, at, sigma, spent=spent)
        top[at - first] = np.bincount(asked(chosen_by, derive(seed, "choice"))).argmax()
        answers = asked(n, derive(seed, "count"))
        hits[at - first] = int((answers == top[at - first]).sum())
        kept.append(answers[:m].astype(np.int32))
        counter.now(at + 1 - first)
    return {"clean_correct": clean, "top": top, "hits": hits, "first": np.stack(kept)}


def _under_noise(case: Case, at: int, sigma: float, draws: int, seed: int, *, spent: Ledger) -> Labels:
    """Labels int64 [draws] of one record under noise that follows from the seed, its id and the draw alone.

    Of a model that is served by votes under noise: of the model inside, whose votes these are. What an attacker cannot
    change (`Bounds.held`) gets no noise. Inputs may leave the bounds, as the theorem needs.
    """
    x, bounds = case.evaluation.x[at], case.bounds.to(case.evaluation.x.device)
    scale = (sigma * bounds.scale).expand(x.shape)
    if bounds.held is not None:
        scale = scale.masked_fill(bounds.held, 0.0)
    spent.queries += draws
    asked = case.deployed.base if isinstance(case.deployed, Voted) else case.deployed
    labels = []
    for number in range(0, draws, TOGETHER):
        size = min(TOGETHER, draws - number)
        identity = case.ids[at : at + 1].astype(np.int64)
        noise = normal(derive(seed, number), identity, (TOGETHER, *x.shape))[0, :size]
        labels.append(_labels(asked, x + scale * noise.to(x.device)))
    return np.concatenate(labels)


def _labels(target: Target, x: Tensor) -> Labels:
    logits = target.logits(x)
    if bool(logits.isnan().any()):
        raise NotApplicable("The deployed model answers some inputs under noise with NaN: there is no label to count.")
    labels: Labels = logits.argmax(1).cpu().numpy()
    return labels
