"""Scores learnt under attack, Taylor scores under attack, and adversarial records in the fine-tuning."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crushproof.compression.pruning.importance import importances
from crushproof.compression.pruning.learnt_scores import Scored
from crushproof.compression.pruning.prune import Prune
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.seeds import generator
from crushproof.training.adversarial import against
from crushproof.training.perturbation import Perturbation

BOUNDS = Bounds.of(-1, 1)


def planted(count: int = 120) -> Records:
    """Two classes told by two features: one far apart, and a clearer one that an attack of .1 turns around."""
    stream = generator(0, "records")
    y = torch.randint(2, (count,), generator=stream)
    wide = y - 0.5 + 0.1 * torch.randn(count, generator=stream)
    narrow = 0.08 * (y - 0.5)
    return Records(torch.stack([wide, narrow], 1).clamp(-1, 1), y)


def fragile() -> nn.Sequential:
    """A net that looks at the narrow feature through larger weights."""
    net = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[-6.0, -9.0], [6.0, 9.0]]))
        net[0].bias.zero_()
    return net


def test_scores_learnt_under_attack_keep_what_withstands_it() -> None:
    """Magnitude keeps the narrow feature's larger weights, and no fine-tuning makes these robust."""
    records, kept, withstood = planted(), {}, {}
    tuning = {"epochs": 15, "batch_size": 20, "learning_rate": 0.1, "adversarial": {"epsilon": 0.1}}
    for importance in ("magnitude", "adversarial-scores"):
        recipe = {"kind": "prune", "sparsity": 0.5, "importance": importance, "fine_tune": tuning}
        pruned = RECIPES.parse(recipe).apply(fragile(), records, BOUNDS, seed=0)
        kept[importance] = int((pruned.get_parameter("0.weight") != 0).sum())
        found = against(pruned, records, Perturbation(steps=10), BOUNDS, seed=1)
        withstood[importance] = float((pruned(found).argmax(1) == records.y).float().mean())
    assert set(kept.values()) == {2}
    assert withstood["magnitude"] <= 0.6
    assert withstood["adversarial-scores"] >= 0.75


def test_scores_begin_as_magnitudes_and_weights_stay() -> None:
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.rand(4, 6, generator=generator(0, "x"))
    pruned = Prune(sparsity=0.5, scope="layer").apply(module, Records(x, torch.zeros(4).long()), BOUNDS, seed=0)
    scored = Scored(module, 0.5, per_layer=True)
    torch.testing.assert_close(scored(x), pruned(x))
    assert all(one.requires_grad == name.startswith("scores") for name, one in scored.named_parameters())
    scored(x).square().sum().backward()
    weights = [scored.module.get_parameter(name) for name in scored.names]
    # What a larger score would do is what a larger weight of the same sign would: to first order, grad * weight.
    dense = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    dense.load_state_dict(pruned.state_dict())
    dense(x).square().sum().backward()
    for score, weight, name in zip(scored.scores, weights, scored.names, strict=True):
        slope = dense.get_parameter(name).grad
        assert score.grad is not None
        assert slope is not None
        torch.testing.assert_close(score.grad * score.sign(), slope * weight)


def test_taylor_under_attack_sees_the_narrow_feature_fail() -> None:
    module, records = fragile(), planted()
    attack = Perturbation(epsilon=0.1, steps=4)
    plain = importances(module, "taylor", records, seed=0)["0.weight"]
    attacked = importances(module, "adversarial-taylor", records, seed=0, attack=attack, bounds=BOUNDS)["0.weight"]
    assert attacked.sum() > plain.sum()  # records that were right have a loss now


def test_phrases_passes_and_contradictions() -> None:
    tuned = {"sparsity": 0.8, "fine_tune": {"epochs": 3, "adversarial": {}}}
    recipe = Prune.model_validate({**tuned, "importance": "adversarial-scores"})
    assert recipe.passes == 6
    assert "by scores learnt under attack, fine-tuned on adversarial records for 3 epochs" in recipe.phrase
    assert Prune(importance="adversarial-taylor").touches_records
    with pytest.raises(ValueError, match="needs fine_tune"):
        Prune(importance="adversarial-scores")
    with pytest.raises(ValueError, match="structure: weights"):
        Prune.model_validate({**tuned, "importance": "adversarial-scores", "structure": "channels"})
