"""A stack of models trains each as it would be trained alone."""

from __future__ import annotations

from functools import partial
from itertools import cycle

import pytest
import torch
from torch import nn

from crushproof.targets.data.records import Records
from crushproof.targets.seeds import generator, global_seed
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, rate, train_many, train_stack
from crushproof.training.networks import Mlp, ResidualCnn
from crushproof.training.stacked import GROUP, group_size

CPU = torch.device("cpu")
MLP = Architecture("mlp", lambda: Mlp(64, 10, (16,)))
CNN = Architecture("cnn", lambda: ResidualCnn(channels=4))


def some_records(n: int = 96) -> Records:
    draws = torch.Generator().manual_seed(0)
    return Records(torch.rand(n, 1, 8, 8, generator=draws), torch.randint(0, 10, (n,), generator=draws))


def halves(count: int, records: Records) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    return [torch.randperm(len(records), generator=draws)[: len(records) // 2] for _ in range(count)]


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in module.state_dict().values()])


def trained_alone(
    architecture: Architecture, records: Records, subset: torch.Tensor, seed: int, training: Training
) -> nn.Module:
    module = architecture.fresh(seed)
    train_stack([module], records, [subset], [seed], training)
    return module


def test_a_stack_equals_training_alone() -> None:
    """After a few steps, before float rounding is amplified; batch norm's running statistics included."""
    records = some_records()
    subsets, seeds = halves(3, records), [7, 8, 9]
    for architecture, optimizer in ((MLP, "adamw"), (MLP, "sgd"), (CNN, "adamw")):
        training = Training(epochs=2, batch_size=16, optimizer=optimizer, learning_rate=0.02)
        for module, subset, seed in zip(
            train_many(TrainingJob(architecture, records, subsets, seeds, CPU), training), subsets, seeds, strict=True
        ):
            alone = trained_alone(architecture, records, subset, seed, training)
            assert not module.training
            assert torch.allclose(flat(module), flat(alone), atol=2e-4), architecture.name
            assert (flat(module) - flat(architecture.fresh(seed))).abs().max() > 5e-3


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_steps_are_those_of_torchs_optimisers(optimizer: str, decay: float) -> None:
    """Bit by bit, at a rate that changes; a layer that gets no gradient in a step is left as it is."""

    def fresh() -> nn.Module:
        with global_seed(3, "test"):
            module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
            module.register_module("seldom", nn.Linear(10, 10))
            module.register_module("unused", nn.Linear(2, 2))
        turns = cycle((False, True, True))

        def forward(x: torch.Tensor) -> torch.Tensor:
            x = module[1](module[0](x))
            return module.get_submodule("seldom")(x) if next(turns) else x

        module.forward = forward  # type: ignore[method-assign]  # which changes with each call
        return module

    records, ours, theirs = some_records(32), fresh(), fresh()
    fields = {"epochs": 6, "batch_size": 32, "optimizer": optimizer, "learning_rate": 0.05, "weight_decay": decay}
    training = Training.model_validate({**fields, "schedule": "cosine"})
    train_stack([ours], records, [torch.arange(32)], [4], training)
    made = (
        partial(torch.optim.AdamW, fused=True)
        if optimizer == "adamw"
        else partial(torch.optim.SGD, momentum=0.9, nesterov=True)
    )
    steps, order = made(theirs.parameters(), lr=1.0, weight_decay=decay), generator(4, "order of records")
    for step in range(6):
        index = torch.randperm(32, generator=order)
        steps.zero_grad()
        nn.functional.cross_entropy(theirs(records.x[index]), records.y[index], reduction="none").mean().backward()
        steps.param_groups[0]["lr"] = rate(training, step, 6)
        steps.step()
    assert torch.equal(flat(ours), flat(theirs))
    untrained = fresh()
    assert torch.equal(ours.get_submodule("unused").weight, untrained.get_submodule("unused").weight)
    assert not torch.equal(ours.get_submodule("seldom").weight, untrained.get_submodule("seldom").weight)


def test_long_training_gives_the_same_answers() -> None:
    records = some_records()
    subset = torch.arange(len(records))
    training = Training(epochs=30, batch_size=16)
    stacked = train_many(TrainingJob(MLP, records, [subset] * 2, [3, 4], CPU), training)[0]
    alone = trained_alone(MLP, records, subset, 3, training)
    agree = (stacked(records.x).argmax(1) == alone(records.x).argmax(1)).float().mean()
    assert agree >= 0.97


def test_a_model_does_not_depend_on_its_neighbours() -> None:
    """Same seed and subset beside other models and at another place of the stack: the same weights, bit by bit."""
    records, training = some_records(), Training(epochs=2, batch_size=16)
    subsets = halves(4, records)
    for architecture in (MLP, CNN):
        one = train_many(TrainingJob(architecture, records, subsets, [1, 2, 3, 4], CPU), training)
        moved = [subsets[i] for i in (3, 0, 1, 2)]
        two = train_many(TrainingJob(architecture, records, moved, [4, 1, 20, 30], CPU), training)
        assert torch.equal(flat(one[0]), flat(two[1])), architecture.name
        assert torch.equal(flat(one[3]), flat(two[0])), architecture.name
        assert not torch.equal(flat(one[1]), flat(two[2])), "another seed, another model"


def test_chunks_of_whole_groups_agree_bit_by_bit() -> None:
    records, training = some_records(), Training(epochs=1, batch_size=16)
    subsets, seeds = halves(GROUP + 2, records), list(range(GROUP + 2))
    together = train_many(TrainingJob(MLP, records, subsets, seeds, CPU), training)
    apart = train_many(TrainingJob(MLP, records, subsets[:GROUP], seeds[:GROUP], CPU), training)
    apart += train_many(TrainingJob(MLP, records, subsets[GROUP:], seeds[GROUP:], CPU), training)
    assert all(torch.equal(flat(one), flat(two)) for one, two in zip(together, apart, strict=True))


def test_training_changes_no_global_generator_and_repeats() -> None:
    records, training = some_records(), Training(epochs=1, batch_size=16)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = train_many(TrainingJob(MLP, records, halves(2, records), [1, 2], CPU), training)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(6)
    two = train_many(TrainingJob(MLP, records, halves(2, records), [1, 2], CPU), training)
    assert all(torch.equal(flat(a), flat(b)) for a, b in zip(one, two, strict=True))


def test_what_cannot_be_stacked_is_trained_alone() -> None:
    with_dropout = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5))
    recurrent = nn.LSTM(4, 4)
    assert group_size(Mlp(64, 10), 32, CPU) == GROUP
    assert group_size(Mlp(64, 10), 128, CPU) == 1
    assert group_size(Mlp(64, 10, (512,)), 32, CPU) == 1
    assert group_size(with_dropout, 32, CPU) == group_size(recurrent, 32, CPU) == 1
    records = some_records()
    dropout = Architecture("dropout", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5)))
    training = Training(epochs=1, batch_size=16)
    first = train_many(TrainingJob(dropout, records, halves(2, records), [1, 2], CPU), training)
    again = train_many(TrainingJob(dropout, records, halves(2, records)[::-1], [2, 1], CPU), training)
    assert torch.equal(flat(first[0]), flat(again[1]))


def test_tied_weights_train_in_a_stack_as_alone() -> None:
    def tied() -> nn.Module:
        with global_seed(0, "tied"):
            module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        module[2].weight = module[0].weight
        return module

    x = torch.rand(32, 6, generator=generator(0, "x"))
    records, training = Records(x, torch.arange(32) % 6), Training(epochs=2, batch_size=8)
    subsets = [torch.arange(16), torch.arange(16, 32)]
    stacked, alone = ([tied(), tied()] for _ in range(2))
    train_stack(stacked, records, subsets, [0, 1], training)
    for module, subset, seed in zip(alone, subsets, (0, 1), strict=True):
        train_stack([module], records, [subset], [seed], training)
    for one, other in zip(stacked, alone, strict=True):
        assert one[2].weight is one[0].weight
        assert torch.allclose(one(x), other(x), atol=1e-5)
        assert not torch.allclose(one(x), tied()(x), atol=1e-3)
