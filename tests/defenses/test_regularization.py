"""Regularisation: each objective by an independent calculation, and what cannot be done is said."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.attacks.extraction.extraction import Extraction
from crushproof.defenses.regularization import Regularization, mixed, penalized, relaxed
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.seeds import generator
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, cross_entropy
from crushproof.training.networks import Mlp
from crushproof.training.trainer import BuiltinTrainer, UserTrainer

STREAM = generator(0, "records")
X, Y = torch.rand(2, 6, 4, generator=STREAM), torch.randint(3, (2, 6), generator=STREAM)
INDEX = torch.arange(12).view(2, 6)
WEIGHTS = torch.randn(2, 4, 3, generator=STREAM)


def linear(x: Tensor) -> Tensor:
    return x @ WEIGHTS


def streams() -> list[torch.Generator]:
    return [generator(0, "a"), generator(0, "b")]


def test_mixup_mixes_a_models_own_records_and_losses_alike() -> None:
    seen: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        seen.append(x)
        return linear(x)

    losses = mixed(cross_entropy(Training()), 1.0)(forward, X, Y, INDEX, streams())
    for model in range(2):
        stream = streams()[model]
        share = float(torch.rand((), generator=stream, dtype=torch.float64))  # Beta(1, 1) is uniform
        order = torch.randperm(6, generator=stream)
        torch.testing.assert_close(seen[0][model], share * X[model] + (1 - share) * X[model][order])
        logits = seen[0][model] @ WEIGHTS[model]
        soft = share * F.one_hot(Y[model], 3) + (1 - share) * F.one_hot(Y[model][order], 3)
        torch.testing.assert_close(losses[model], -(soft * F.log_softmax(logits, -1)).sum(-1))


def test_the_penalty_is_the_gradient_in_units_of_the_bounds() -> None:
    bounds = Bounds(torch.zeros(4), torch.tensor([1.0, 2.0, 1.0, 255.0]))
    losses = penalized(cross_entropy(Training()), 0.5, bounds)(linear, X, Y, INDEX, streams())
    off = torch.softmax(linear(X), -1) - F.one_hot(Y, 3)
    gradient = (off @ WEIGHTS.transpose(1, 2)) * bounds.scale  # of a linear model, by hand
    plain = F.cross_entropy(linear(X).flatten(0, 1), Y.flatten(), reduction="none").view(2, 6)
    torch.testing.assert_close(losses, plain + 0.5 * gradient.square().sum(-1))


def test_relax_loss_lets_no_batch_below_its_target_get_better() -> None:
    """Above the target it is cross-entropy; below it the labels' probabilities fall, or the others become alike."""
    logits = torch.zeros(2, 6, 3).scatter(-1, Y[..., None], torch.tensor([4.0, 0.1])[:, None, None].expand(2, 6, 1))
    logits[0, :, 0] += torch.where(Y[0] == 0, 0.0, 1.0)
    kinds = set()
    for seed in range(8):
        own = logits.clone().requires_grad_()
        draws = [generator(seed, "a"), generator(seed, "b")]
        losses = relaxed(0.5)(partial(torch.mul, own), torch.ones(2, 6, 1), Y, INDEX, draws)
        torch.testing.assert_close(losses[1], F.cross_entropy(own[1], Y[1], reduction="none"))
        (gradient,) = torch.autograd.grad(losses[0].sum(), own)
        of_label = gradient[0].gather(-1, Y[0][:, None])
        raised = bool(losses[0].detach().mean() < 0)
        kinds.add("raised" if raised else "flattened")
        if raised:
            assert float(of_label.min()) > 0  # descent lowers the label's logit
        else:
            torch.testing.assert_close(losses[0], F.cross_entropy(own[0], Y[0], reduction="none"))
    assert kinds == {"raised", "flattened"}


@pytest.mark.parametrize("fields", [{"mixup": 0.4, "gradient_penalty": 0.1}, {"relax_loss": 0.9}])
def test_a_stack_learns_what_each_model_learns_alone(fields: dict[str, float]) -> None:
    kind = Architecture("mlp", lambda: Mlp(4, 3, (8,)))
    records = Records(X.flatten(0, 1), Y.flatten())
    plain = BuiltinTrainer(Training(epochs=2, batch_size=4))
    trainer = Regularization.model_validate(fields).trainer(plain, Bounds.of(0, 1))
    subsets, seeds = [torch.arange(8), torch.arange(4, 12)], [3, 4]
    together = trainer.fit(TrainingJob(kind, records, subsets, seeds, torch.device("cpu")))
    alone = trainer.fit(TrainingJob(kind, records, subsets[1:], seeds[1:], torch.device("cpu")))[0]
    for a, b in zip(alone.parameters(), together[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_fields_reach_the_training_the_net_and_the_identity() -> None:
    defense = Regularization(weight_decay=0.1, early_stopping=3, label_smoothing=0.2, dropout=0.3)
    trainer = defense.trainer(BuiltinTrainer(Training(epochs=9)), Bounds.of(0, 1))
    assert '"epochs":3' in trainer.identity
    assert '"label_smoothing":0.2' in trainer.identity
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    adapted = defense.adapt(net)
    assert [layer.p for layer in adapted.modules() if isinstance(layer, nn.Dropout)] == [0.3]
    assert defense.phrase({}).startswith("regularisation (weight decay 0.1, dropout 0.3")
    assert defense.adapted(Extraction()) == Extraction()


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ValueError, match="say which"):
        Regularization()
    with pytest.raises(ValueError, match="does not go with mixup"):
        Regularization(relax_loss=0.5, mixup=0.2)
    with pytest.raises(NotApplicable, match="no dropout layer"):
        Regularization(dropout=0.2).adapt(nn.Linear(2, 2))
    with pytest.raises(NotApplicable, match="Regularisation happens inside"):
        Regularization(mixup=0.2).trainer(UserTrainer(lambda module, x, y, seed: module, "mine"), Bounds.of(0, 1))
