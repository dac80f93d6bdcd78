"""What masks, signs and code books alone tell of training records: shadows as targets, a planted mask, and nulls.

    python benchmarks/structure.py [--json FILE]

Digits, 32 MLPs, each trained on half of the 1,198 attacked records; every one is the target once, judged by the others
but its complement. Planted: masks in which a unit is kept for each record that was trained on. Nulls: 1,000 masks that
were drawn without looking at the records; the share of the AUC's 95 % intervals that hold .5; and 20 pruned nets that
were trained on none of them.
"""

from __future__ import annotations

import numpy as np
import torch
from contract import Row, parser, publish

from crushproof.attacks.membership.case import ShadowSignals
from crushproof.attacks.membership.infer import Population, train_shadows
from crushproof.attacks.membership.scoring import scores
from crushproof.attacks.statistics import ranking
from crushproof.attacks.structure.infer import Sees, book, by_book, infer_from_structure, signals
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Records
from crushproof.training.loop import Training, train
from crushproof.training.networks import digits_mlp

SHADOWS, NULLS = 32, 20
CASES: tuple[tuple[str, Sees, dict[str, object] | None], ...] = (
    ("mask, 80 % pruned", "mask", {"kind": "prune", "sparsity": 0.8}),
    ("mask, 95 % pruned", "mask", {"kind": "prune", "sparsity": 0.95}),
    ("signs, not compressed", "signs", None),
    ("code books of 16", "book", {"kind": "share", "clusters": 16}),
)


def kept(target: int) -> np.ndarray:
    return ~np.isin(np.arange(SHADOWS), (target, target ^ 1))


def aucs(phi: np.ndarray, inside: np.ndarray) -> list[float]:
    """Of each shadow as the target, by LiRA."""
    known = ShadowSignals(inside, phi)
    targets = range(len(phi))
    found = [scores.lira(phi[at : at + 1].astype(np.float64), known, kept(at)[None])[0] for at in targets]
    return [ranking.auc(one, inside[at]).estimate for at, one in enumerate(found)]


def by_books(population: Population) -> list[float]:
    books, inside = np.stack([book(one) for one in population.modules]), population.signals.inside
    found = [by_book(books[at], books[kept(at)], inside[kept(at)]) for at in range(SHADOWS)]
    return [ranking.auc(one, inside[at]).estimate for at, one in enumerate(found)]


def measured(name: str, setting: str, found: list[float]) -> Row:
    error = 1.96 * float(np.std(found, ddof=1)) / np.sqrt(len(found))
    return Row(name, f"{setting}, +- {error:.3f}", float(np.mean(found)), "AUC")


def nulls(inside: np.ndarray, n: int) -> Row:
    """Statistics that know nothing of the records, judged as those of masks are."""
    rng, held, seeds = np.random.default_rng(0), 0, 1000
    truth = np.arange(n) < n // 2
    for _ in range(seeds):
        phi = rng.standard_normal((SHADOWS + 1, n)).cumsum(0)[rng.permutation(SHADOWS + 1)].astype(np.float32)
        score = scores.lira(phi[:1].astype(np.float64), ShadowSignals(inside, phi[1:]))[0]
        found = ranking.auc(score, truth)
        held += found.low <= 0.5 <= found.high
    return Row("nulls", f"{seeds} seeds, intervals that hold .5", held / seeds, "share", target=0.935, better="higher")


def planted(inside: np.ndarray) -> Row:
    """A structure whose margin is a little higher on what it was trained on, by half a standard deviation."""
    rng = np.random.default_rng(1)
    phi = (rng.standard_normal(inside.shape) + 0.5 * inside).astype(np.float32)
    mean = float(np.mean(aucs(phi, inside)))
    return Row("planted", "half a standard deviation", mean, "AUC", target=0.6, better="higher")


def unrelated(population: Population, rest: Records) -> Row:
    """Masks of nets that were trained on none of the records, members by a coin, through the whole attack."""
    known, held = signals(population, "mask"), 0
    recipe, n = RECIPES.parse(dict(CASES[0][2] or {})), known.inside.shape[1]
    stream = np.random.default_rng(2)
    for seed in range(NULLS):
        own = rest.take(torch.from_numpy(stream.permutation(len(rest))[:500]))
        module = train(digits_mlp(), own, Training(epochs=10), seed=seed)
        pruned = recipe.apply(module, own, population.bounds, seed=seed)
        score = infer_from_structure(pruned, population, "mask").scores
        found = ranking.auc(score, stream.permutation(n) < n // 2)
        held += found.low <= 0.5 <= found.high
    return Row("mask alone", f"null, {NULLS} nets that saw none: AUC holds .5", held, "", target=17, better="higher")


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    digits = load_digits()
    assert digits.members is not None
    n = len(digits.evaluation_ids)
    x = torch.cat([digits.members.x[:n], digits.evaluation.x])
    y = torch.cat([digits.members.y[:n], digits.evaluation.y])
    population = train_shadows(digits_mlp(), x, y, shadows=SHADOWS, training=Training(epochs=40))
    inside = population.signals.inside
    rows = [measured("whole model", "not compressed", aucs(population.signals.phi, inside))]
    rest = Records(
        torch.cat([digits.members.x[n:], digits.attacker.x]), torch.cat([digits.members.y[n:], digits.attacker.y])
    )
    for setting, sees, recipe in CASES:
        own = population if recipe is None else population.replay(recipe)
        rows += [unrelated(own, rest)] if setting == CASES[0][0] else []
        found = by_books(own) if sees == "book" else aucs(signals(own, sees).phi, inside)
        rows.append(measured(f"{sees} alone", setting, found))
    publish([*rows, nulls(inside, len(x)), planted(inside)], options.json)


if __name__ == "__main__":
    main()
