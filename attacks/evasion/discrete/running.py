"""One run of evasion by exchange: the records in blocks, what each part finds on them, and the worst case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ....targets.data.records import Records
from ....targets.errors import NotApplicable
from ....targets.form import Array, Layout
from ....targets.model import device_of
from ....targets.seeds import derive
from ....targets.steps import Arrays
from ...access import Access, Flag, Ledger
from ...case import Case, Evidence
from ..blocks import Counter, blocks, kept_at_cost
from ..likeness.distances import distances
from ..trust import gradients_missing
from .embeddings import seek_softly
from .features import Features
from .guidance import Guide
from .parameters import SubstitutionParameters
from .search import BATCH, ByAnswers, ByGradient, Proposer, seek

GRADIENT, EMBEDDING, ANSWERS = "gradient", "embedding", "answers"  # the parts
ACCESS = {GRADIENT: Access.WHITE_BOX, EMBEDDING: Access.WHITE_BOX, ANSWERS: Access.SCORES}
Ids = np.ndarray[tuple[int], np.dtype[np.int64]]


def attack(case: Case, settings: SubstitutionParameters, *, seed: int) -> Evidence:
    """The evidence of `Substitution.run`, whose gate and reach are chosen.

    Raises:
        NotApplicable: nothing can change.
    """
    case = on_device(case)
    features, ledger = settings.features(case), Ledger()
    count = min(settings.count, len(case.evaluation))
    records = Records(case.evaluation.x[:count].flatten(1), case.evaluation.y[:count])
    ids = np.asarray(case.ids[:count], dtype=np.int64)
    correct = np.concatenate(
        [
            kept_at_cost(
                f"clean/{first}-{end}",
                ledger,
                partial(_clean, case, records.take(torch.arange(first, end))),
                {"correct": Array("bool", (end - first,))},
            )["correct"]
            for first, end in blocks(count)
        ]
    )
    parts, skipped = (
        [part for part in ACCESS if part != EMBEDDING or (features.tokens and settings.embedding_steps)],
        {},
    )
    if case.twin is None:
        skipped = {part: "there is no differentiable module for this candidate" for part in parts if part != ANSWERS}
        parts = [ANSWERS]
    counter = Counter(count * len(parts))
    found: dict[str, Arrays] = {}
    for part in parts:
        pieces = []
        try:
            for first, end in blocks(count):
                rows = torch.arange(first, end)
                work = partial(
                    on_block, part, case, features, settings, records.take(rows), ids[first:end], correct[first:end]
                )
                pieces.append(
                    kept_at_cost(
                        f"{part}/{first}-{end}",
                        ledger,
                        partial(work, derive(seed, part)),
                        _form(features, end - first),
                    )
                )
                counter.add(end - first)
        except NotApplicable as error:
            skipped[part] = str(error)
            continue
        found[part] = {name: np.concatenate([piece[name] for piece in pieces]) for name in _form(features, 0)}
    return _evidence(case, settings, features, found, correct, ids, skipped, ledger)


def on_device(case: Case) -> Case:
    """The case with its records where the twin is."""
    device = case.evaluation.x.device if case.twin is None else device_of(case.twin, case.evaluation.x.device)
    return replace(case, evaluation=case.evaluation.to(device), attacker=case.attacker.to(device))


def _clean(case: Case, records: Records, spent: Ledger) -> Arrays:
    spent.queries += len(records)
    x = records.x.view(-1, *case.evaluation.x.shape[1:])
    return {"correct": (case.deployed.logits(x).argmax(1) == records.y).cpu().numpy()}


def _form(features: Features, count: int) -> Layout:
    values = int(np.prod(features.shape))
    return {
        "level": Array("int64", (count,), low=0),
        "flat": Array("bool", (count,)),
        "inputs": Array("float32", (count, values)),
    }


def on_block(
    part: str,
    case: Case,
    features: Features,
    settings: SubstitutionParameters,
    records: Records,
    ids: Ids,
    correct: np.ndarray[Any, np.dtype[np.bool_]],
    seed: int,
    spent: Ledger,
) -> Arrays:
    """One part on records [n, F]: `level` (the cost of fooling it, 0: not fooled, or wrong as it is), `inputs`, `flat`.

    What fooled the model in the search has to fool it when it is asked again, and to be an input. `inputs` are what
    fooled it or came nearest at up to the gate's cost.
    """
    level = torch.zeros(len(records), dtype=torch.int64)
    flat, inputs = torch.zeros(len(records), dtype=torch.bool), records.x.cpu().clone()
    guide = Guide(case.twin, features, spent) if part != ANSWERS and case.twin is not None else None
    for some in torch.from_numpy(correct.nonzero()[0]).split(BATCH):
        rows = some.to(records.x.device)
        x, y = records.x[rows], records.y[rows]
        most, shown = settings.changes[-1], settings.gate
        if part == EMBEDDING and guide is not None:
            sought = seek_softly(
                case.deployed,
                features,
                x,
                y,
                guide,
                most=most,
                shown=shown,
                steps=settings.embedding_steps,
                epsilon=settings.embedding_epsilon,
                ledger=spent,
            )
        else:
            proposer: Proposer = ByAnswers(ids[some.numpy()], seed, settings.first, settings.further)
            if guide is not None:
                proposer = ByGradient(guide, settings.further, torch.ones(len(some), dtype=torch.bool, device=x.device))
            sought = seek(
                case.deployed,
                features,
                x,
                y,
                proposer,
                most=most,
                shown=shown,
                beam=settings.beam,
                ledger=spent,
            )
        spent.queries += len(some)
        wrong = case.deployed.logits(sought.later.view(-1, *features.shape)).argmax(1) != y
        fooled = (sought.level > 0) & wrong & (features.changes(sought.later, x) <= sought.level)
        level[some], flat[some] = sought.level.where(fooled, 0).cpu(), sought.flat.cpu()
        inputs[some] = sought.inputs.cpu()
    return {"level": level.numpy(), "flat": flat.numpy(), "inputs": inputs.numpy()}


def _evidence(
    case: Case,
    settings: SubstitutionParameters,
    features: Features,
    found: dict[str, Arrays],
    correct: np.ndarray[Any, np.dtype[np.bool_]],
    ids: Ids,
    skipped: dict[str, str],
    ledger: Ledger,
) -> Evidence:
    arrays: dict[str, np.ndarray[Any, Any]] = {"ids": ids, "clean_correct": correct}
    for changes in settings.changes:
        worst = ~correct
        for part, arrays_of in found.items():
            fooled = ~correct | ((arrays_of["level"] > 0) & (arrays_of["level"] <= changes))
            arrays[f"fooled/{part}/{changes}"] = fooled
            worst = worst | fooled
        arrays[f"worst/{changes}"] = worst
    inputs = case.evaluation.x[: len(ids)].flatten(1).cpu().numpy().copy()
    for part, arrays_of in found.items():  # the last part, by answers, says what came nearest; a success is kept
        mine = correct & ~np.logical_or.reduce(
            [arrays[f"fooled/{one}/{settings.gate}"] for one in found if one != part]
        )
        mine |= correct & arrays[f"fooled/{part}/{settings.gate}"]
        inputs[mine] = arrays_of["inputs"][mine]
    arrays["adversarial"] = inputs.reshape(-1, *features.shape)
    clean, crafted = case.evaluation.x[: len(ids)], torch.from_numpy(arrays["adversarial"])
    arrays |= distances(clean, crafted, case.bounds, tokens=features.tokens)
    exhaustive = len(features.feature) <= settings.first
    without = int(found[GRADIENT]["flat"].sum()) if GRADIENT in found else 0
    flags = part_flags(list(found), without, len(ids), case.twin_agrees)
    summary = {
        "changes": list(settings.changes),
        "gate": settings.gate,
        "reach": settings.reach,
        "tokens": features.tokens,
        "features": len(features),
        "moves": len(features.feature),
        "padding": features.padding,
        "parts": list(found),
        "without_gradient": without,
        "union_flags": union_flags(list(found), flags, exhaustive=exhaustive),
    }
    return Evidence(arrays, summary, flags, skipped, ledger)


def part_flags(parts: list[str], without: int, records: int, twin_agrees: bool) -> dict[str, list[str]]:
    """Why the parts that follow gradients may have done less than they could, in alphabetical order; by part."""
    missing = {GRADIENT: gradients_missing(without, records)}
    raised = {
        part: [Flag.NO_GRADIENT] * missing.get(part, False) + [Flag.TWIN_DISAGREES] * (not twin_agrees)
        for part in parts
        if ACCESS[part] is Access.WHITE_BOX
    }
    return {part: sorted(map(str, flags)) for part, flags in raised.items() if flags}


def union_flags(parts: list[str], flags: Mapping[str, list[str]], *, exhaustive: bool) -> list[str]:
    """Why the worst case may be too optimistic: nothing where the model was asked about every single change."""
    if exhaustive:
        return []
    return list(flags.get(GRADIENT, [])) if GRADIENT in parts else [str(Flag.NO_GRADIENT)]
