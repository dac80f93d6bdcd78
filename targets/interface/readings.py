"""Which reading of a finished file is meant, where several are right about as often.

In this order: what the file itself says of its input (the range of its own quantiser, the statistics that its first
batch normalisation was trained on), how probable the labels are, what small noise does to it, and last what a quick
attack finds. Readings that none of this tells apart are the doubtful ones: the least robust of them is taken, and said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..data.records import Bounds
from ..model import Target
from ..model_checks import as_uneven, exact_interval, off_statistics
from ..seeds import generator
from ..untrusted.model_file import Port
from .assumptions import Assumptions, alike
from .preprocessing import Preprocessing
from .trials import TEMPERATURES, Trial, clearly, likelier

ALIKE = "Two readings of the file fit about alike"  # how the sentence starts that makes a file doubtful
WIDE = 0.01  # readings are apart when their accuracies differ with less luck than this
GUARD = 1.64  # standard errors that a gain in likelihood must have for its sum to count
NOISE = 0.05  # random signs, in units of the bounds
EPSILONS = (0.02, 0.05, 0.1)  # of the quick attack
STEPS = 3  # of the quick attack
RECORDS, FEWER, LARGE = 200, 60, 2**14  # records it tries; fewer (of noise, too) where one has over LARGE values
APART = 0.7  # about the logarithm of 2: a first layer sees twice the variance that it was trained on
MATTERS, POINTS = 0.05, 0.05  # p, and share of the records: beyond both the quick attack tells readings apart
FILLS = 0.8  # of the best overlap with the file's own range: below it that range speaks against a reading
SURER = 4  # octaves of confidence that speak against a reading


@dataclass(frozen=True)
class Asked:
    """How readings are tried: the records (in random order), and the file behind a set of assumptions."""

    x: Tensor
    y: Tensor
    bounds: Bounds
    port: Port
    deployed: Callable[[Assumptions], Target]
    module: Callable[[Assumptions], nn.Module | None]  # its twin; None where it has none


def simplest(trials: Sequence[Trial], like: Assumptions | None = None) -> Trial:
    """The first of those under which the labels are most probable; of normalisations, none of which is simpler than
    another, the likeliest. `like`: of the model that the file was made of; it comes first.
    """
    surest = max(trials, key=_mean_likelihood)
    equal = [trial for trial in trials if trial is surest or not likelier(surest, trial)]
    best = equal[0]
    if best.assumptions.mean is None or (like is not None and alike(best.assumptions, like)):
        return best
    return max((trial for trial in equal if trial.assumptions.mean is not None), key=_mean_likelihood)


def _mean_likelihood(trial: Trial) -> float:
    return float(trial.likelihood.mean())


def choose(best: Trial, trials: Sequence[Trial], asked: Asked, *, settled: bool = False) -> tuple[Trial, str]:
    """The reading to audit, and the sentence that makes it doubtful ("" where it is not).

    Args:
        best: of `trials`, by accuracy and likelihood; the simplest of equals.
        settled: `best` is how the model is read that the file was made of: among equals it is kept.
    """
    rivals = [trial for trial in trials if trial is best or not clearly(best, trial, asked.y, WIDE)]
    rivals = _supported(rivals, asked)
    if best not in rivals:  # the file itself speaks against it
        best, settled = simplest(rivals), False
    rivals = [trial for trial in rivals if trial is best or not _outweighs(best, trial)]
    if settled or len(rivals) == 1:
        return best, ""
    noisy = _noisy(rivals, asked)
    rivals = [trial for trial in rivals if trial is best or not _same(noisy[id(best)], noisy[id(trial)])]
    steadiest = max(rivals, key=lambda trial: noisy[id(trial)].accuracy(asked.y))
    steady = [trial for trial in rivals if not clearly(noisy[id(steadiest)], noisy[id(trial)], asked.y, WIDE)]
    if best not in steady:
        best = simplest(steady)
    survivors = {id(trial): _survivors(trial, asked) for trial in rivals}
    others = [trial for trial in rivals if _differ(survivors[id(best)], survivors[id(trial)])]
    if not others:
        return best, ""
    if len(steady) > 1 and any(trial in steady for trial in others):
        best = min(steady, key=lambda trial: int(survivors[id(trial)].sum()))
    other = max(others, key=lambda trial: int((survivors[id(trial)] != survivors[id(best)]).sum()))
    if other is best:
        other = max(steady, key=lambda trial: int(survivors[id(trial)].sum()))
    return best, _doubt(best, other, survivors, asked, falls=other not in steady)


def _same(one: Trial, other: Trial) -> bool:
    """Whether they answer alike to the last digits, as on grey pictures in three channels, whatever their order."""
    return torch.allclose(one.likelihoods, other.likelihoods, rtol=1e-5, atol=1e-5)


def _outweighs(best: Trial, trial: Trial) -> bool:
    """Whether labels are clearly more probable under `best`, or a hundred times so with what is usual beforehand."""
    if likelier(best, trial):
        return True
    gain = best.likelihood - trial.likelihood
    sure = float(gain.mean()) > GUARD * float(gain.std()) / len(gain) ** 0.5 > 0
    return sure and float(gain.sum()) + _usual(best) - _usual(trial) > math.log(100)


def _usual(trial: Trial) -> float:
    """Logarithm of how usual a reading is: units alone, or a mean and deviation as well, or blue first."""
    return -2.0 * (trial.assumptions.mean is not None) - 2.0 * (trial.assumptions.channels == "bgr")


# What the file says ---------------------------------------------------------------------------------------------------


def _supported(trials: list[Trial], asked: Asked) -> list[Trial]:
    """Those that nothing in the file speaks against: its own range and statistics, and how sure it is. A network that
    learnt by cross-entropy is about as sure as it is right; fed a hundred times too bright it is a hundred times surer.
    """
    shared = [_overlap(trial.assumptions, asked) for trial in trials]
    kept = [trial for trial, overlap in zip(trials, shared, strict=True) if overlap >= FILLS * max(shared)]
    octaves = [_octaves(trial) for trial in kept]
    kept = [trial for trial, off in zip(kept, octaves, strict=True) if off < min(octaves) + SURER]
    if len(kept) == 1:
        return kept
    off = [_off_statistics(trial.assumptions, asked) for trial in kept]
    known = [distance for distance in off if distance is not None]
    return [
        trial for trial, distance in zip(kept, off, strict=True) if distance is None or distance <= min(known) + APART
    ]


def _octaves(trial: Trial) -> float:
    """How often its logits must at least be halved or doubled for the labels to be about as probable as they can be."""
    sums = trial.likelihoods.sum(0)
    good = (sums >= sums.max() - 2).tolist()
    return min(abs(math.log2(temperature)) for temperature, fits in zip(TEMPERATURES, good, strict=True) if fits)


def _overlap(assumptions: Assumptions, asked: Asked) -> float:
    """How well the values, or all that the bounds allow, fill what the file's input quantiser covers: the share of both
    ranges that they have in common; 1 where there is no quantiser.
    """
    covered = asked.port.covers
    if covered is None:
        return 1.0
    before = Preprocessing(assumptions.model_copy(update={"grid": None}))
    ends = torch.stack([side.expand(asked.x.shape[1:]) for side in (asked.bounds.low, asked.bounds.high)])
    return max(_fills((float(values.min()), float(values.max())), covered) for values in map(before, (asked.x, ends)))


def _fills(values: tuple[float, float], covered: tuple[float, float]) -> float:
    (low, high), (least, most) = values, covered
    if math.isclose(-least, most, rel_tol=0.05):  # a symmetrical quantiser says nothing of the other side
        reach = max(-low, high, 0.0)
        return min(reach, most) / max(reach, most)
    return max(0.0, min(high, most) - max(low, least)) / (max(high, most) - min(low, least))


def _off_statistics(assumptions: Assumptions, asked: Asked) -> float | None:
    """Of the module behind these assumptions, as `off_statistics`."""
    module = asked.module(assumptions)
    return None if module is None else off_statistics(module, asked.x[: _few(asked)])


# Noise, and a quick attack --------------------------------------------------------------------------------------------


def _noisy(trials: list[Trial], asked: Asked) -> dict[int, Trial]:
    """The same on records with small noise, by identity."""
    x = asked.x if asked.x[0].numel() <= LARGE else asked.x[:FEWER]
    x = asked.bounds.clamp(x + NOISE * asked.bounds.scale * _signs(x, "noise"))
    found = {}
    for trial in trials:
        logits = asked.deployed(trial.assumptions).logits(x).double()
        found[id(trial)] = replace(trial, predicted=logits.argmax(1), likelihoods=torch.log_softmax(logits, 1))
    return found


def _survivors(trial: Trial, asked: Asked) -> Tensor:
    """bool [len(EPSILONS), n]: the records that stay right under noise and a few steps along the gradient's sign."""
    x, y = asked.x[: _few(asked)], asked.y[: _few(asked)]
    target, module = asked.deployed(trial.assumptions), asked.module(trial.assumptions)
    clean = target.logits(x).argmax(1) == y
    rows = []
    for epsilon in EPSILONS:
        size = epsilon * asked.bounds.scale
        tried = [x + size * _signs(x, f"probe {draw}") for draw in range(2 if module is not None else 5)]
        if module is not None:
            tried.append(_ascended(module, x, y, asked.bounds, size))
        right = clean.clone()
        for one in tried:
            right &= target.logits(asked.bounds.clamp(one)).argmax(1) == y
        rows.append(right)
    return torch.stack(rows)


def _ascended(module: nn.Module, x: Tensor, y: Tensor, bounds: Bounds, size: Tensor) -> Tensor:
    """Signed gradient steps on the margin of the label, which does not vanish however large the logits are."""
    found = x
    for _ in range(STEPS):
        found = found.detach().requires_grad_(True)
        logits = module(found)
        own = logits.gather(1, y[:, None])[:, 0]
        margin = own - logits.scatter(1, y[:, None], -math.inf).amax(1)
        gradient = None
        if margin.requires_grad:  # a comparison lets nothing through
            (gradient,) = torch.autograd.grad(margin.sum(), found, allow_unused=True)
        if gradient is None:
            break
        moved = found.detach() - size / 2 * gradient.nan_to_num().sign()
        found = bounds.clamp(torch.maximum(torch.minimum(moved, x + size), x - size))
    return found.detach()


def _few(asked: Asked) -> int:
    return RECORDS if asked.x[0].numel() <= LARGE else FEWER


def _signs(x: Tensor, purpose: str) -> Tensor:
    return torch.randint(0, 2, x.shape, generator=generator(0, "artifact", purpose)).to(x.dtype) * 2 - 1


def _differ(one: Tensor, other: Tensor) -> bool:
    """At any epsilon, by the exact McNemar test and by more than `POINTS`."""
    counts = [(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in zip(one, other, strict=True)]
    return any(abs(won - lost) > POINTS * one.shape[1] and as_uneven(won, lost) < MATTERS for won, lost in counts)


def _doubt(best: Trial, other: Trial, survivors: dict[int, Tensor], asked: Asked, *, falls: bool) -> str:
    """Both readings with their accuracy and what is left of it at the epsilon where they are furthest apart."""
    own, theirs = survivors[id(best)], survivors[id(other)]
    at = int((own != theirs).sum(1).argmax())
    words = [
        f"with the values {_named(trial)}, {_share(trial.right(asked.y))} are right and "
        f"{_share(survivors[id(trial)][at])} stay right under a quick attack at epsilon {EPSILONS[at]:g}"
        for trial in (best, other)
    ]
    why = (
        "Small noise makes the second clearly worse, so that the first is likelier to be meant; it is audited"
        if falls
        else "The records do not tell which is meant, and the less robust one, the first, is audited"
    )
    hint = "Say which it is with --units, --mean and --std, --channels or --layout."
    return f"{ALIKE}: {words[0]}; {words[1]}. {why}. {hint}"


def _named(trial: Trial) -> str:
    return f"{trial.units} ({trial.assumptions.layout})"


def _share(right: Tensor) -> str:
    count, n = int(right.sum()), len(right)
    low, high = exact_interval(count, n)
    return f"{100 * count / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {n}"
