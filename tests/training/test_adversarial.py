"""Training on perturbed records: TRADES by its formula, and the check of single-step training on a planted failure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.defenses import adversarial_training
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.seeds import generator
from crushproof.training.adversarial import against, objective_of, overfitted, perturbed
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, cross_entropy
from crushproof.training.networks import Mlp
from crushproof.training.perturbation import Perturbation
from crushproof.training.trainer import BuiltinTrainer

UNIT = Bounds.of(0, 1)


class Bump(nn.Module):
    """Right at a record and at the rim of its ball, wrong in a ring between: what one long step jumps over."""

    def forward(self, x: Tensor) -> Tensor:
        away = (x[:, 0] - 0.5).abs()
        wrong = 1 - ((away - 0.05) / 0.03).square()
        return torch.stack([torch.zeros_like(away), wrong], 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_trades_is_the_clean_loss_and_the_divergence_near_it(norm: str) -> None:
    torch.manual_seed(0)
    module, stream = Mlp(4, 3, (8,)), generator(0, "records")
    x, y = torch.rand(1, 6, 4, generator=stream), torch.randint(3, (1, 6), generator=stream)
    seen: list[Tensor] = []

    def forward(batch: Tensor) -> Tensor:
        seen.append(batch.detach())
        answers: Tensor = module(batch.flatten(0, 1)).view(1, 6, 3)
        return answers

    how = Perturbation.model_validate({"method": "trades", "norm": norm, "steps": 3, "beta": 2.0})
    losses = perturbed(Training(), how, UNIT)(forward, x, y, torch.arange(6)[None], [generator(0, "a")])
    assert len(seen) == 5  # the clean records, three steps, and where these ended
    change = seen[-1] - x
    assert (change.abs().amax() if norm == "linf" else change.norm(dim=-1).amax()) <= 0.1 + 1e-5
    clean, near = (F.log_softmax(module(one[0]), -1) for one in (x, seen[-1]))
    divergence = (clean.exp() * (clean - near)).sum(-1)
    torch.testing.assert_close(losses[0], F.nll_loss(clean, y[0], reduction="none") + 2 * divergence)
    start = F.log_softmax(module(seen[1][0]), -1)
    assert divergence.mean() > (clean.exp() * (clean - start)).sum(-1).mean()  # it was looked for


def test_models_of_values_have_no_trades_and_fine_tuning_no_single_step() -> None:
    objective = perturbed(Training(), Perturbation(method="trades"), UNIT)
    with pytest.raises(NotApplicable, match="use pgd"):
        objective(lambda x: x, torch.rand(1, 2, 3), torch.rand(1, 2, 3), torch.zeros(1, 2).long(), [generator(0, "a")])
    with pytest.raises(ValueError, match="steps must be 2"):
        Training.model_validate({"adversarial": {"steps": 1}})
    tuning = Training.model_validate({"adversarial": {"epsilon": 0.2}})
    assert objective_of(tuning, UNIT) is not None
    assert objective_of(Training(), UNIT) is None
    with pytest.raises(NotApplicable, match="defense: adversarial-training"):
        cross_entropy(tuning)


def test_a_net_that_only_withstands_the_one_long_step_is_seen() -> None:
    records = Records(torch.full((40, 1), 0.5), torch.zeros(40, dtype=torch.int64))
    single = Perturbation(steps=1)
    assert overfitted(Bump(), records, single, UNIT, seed=0)
    flat = nn.Linear(1, 2)
    with torch.no_grad():
        flat.weight.zero_()
        flat.bias.copy_(torch.tensor([1.0, 0.0]))
    assert not overfitted(flat, records, single, UNIT, seed=0)


def test_perturbed_records_raise_the_loss_whatever_their_batches() -> None:
    module, stream = Mlp(4, 3, (8,)).eval(), generator(0, "records")
    records = Records(torch.rand(600, 4, generator=stream), torch.randint(3, (600,), generator=stream))
    found = against(module, records, Perturbation(), UNIT, seed=0)
    before, after = (F.cross_entropy(module(x), records.y) for x in (records.x, found))
    assert after > before
    assert torch.equal(found, against(module, records, Perturbation(), UNIT, seed=0))


def test_single_steps_that_overfitted_are_trained_again_with_two(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, kind = generator(0, "records"), Architecture("mlp", lambda: Mlp(4, 3, (8,)))
    records = Records(torch.rand(24, 4, generator=stream), torch.randint(3, (24,), generator=stream))
    job = TrainingJob.of_one(kind, records, 0, torch.device("cpu"))
    plain = BuiltinTrainer(Training(epochs=1, batch_size=8))

    def weights(steps: int, failed: bool) -> Tensor:
        monkeypatch.setattr(adversarial_training, "overfitted", lambda *_, **__: failed)
        trainer = adversarial_training.AdversarialTraining(steps=steps).trainer(plain, UNIT)
        return torch.cat([value.detach().flatten() for value in trainer.fit(job)[0].parameters()])

    assert torch.equal(weights(1, failed=True), weights(2, failed=False))
    assert not torch.equal(weights(1, failed=False), weights(2, failed=False))


def test_a_training_that_really_overfitted_is_seen_and_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single steps of twice the radius, which the net learns to withstand and nothing smaller."""
    data, kind = load_digits(), Architecture("mlp", lambda: Mlp(64, 10, (128,)))
    assert data.members is not None
    records, training = data.members.take(torch.arange(300)), Training(epochs=20, learning_rate=1e-2)
    defense = adversarial_training.AdversarialTraining(steps=1, epsilon=0.3, step_size=0.6, training=training)
    seen = []

    def noted(*given: Any, seed: int) -> bool:
        seen.append(overfitted(*given, seed=seed))
        return seen[-1]

    monkeypatch.setattr(adversarial_training, "overfitted", noted)
    job = TrainingJob.of_one(kind, records, 0, torch.device("cpu"))
    (mended,) = defense.trainer(BuiltinTrainer(Training()), data.bounds).fit(job)
    assert seen == [True]
    assert not overfitted(mended, records, defense, data.bounds, seed=1)
