"""What an attacker takes an unknown model for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.extraction.copying import Lesson, Tutor
from crushproof.attacks.extraction.surrogate import families, guess, same_layers
from crushproof.targets.data.records import Records
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training
from crushproof.training.networks import Mlp, ResidualCnn


def images(count: int, *shape: int) -> Records:
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
    return Records(x, (x.flatten(1)[:, 0] > 0.5).long())


@pytest.mark.parametrize(("size", "channels"), [(0, [16]), (3_000, [8]), (43_000, [16, 32]), (11_000, [8, 16])])
def test_a_family_is_as_large_as_the_file(size: int, channels: list[int]) -> None:
    found = families(images(3, 1, 8, 8), 10, size)
    names = [f"residual cnn of {one} channels" for one in channels]
    assert [one.name for one in found][: len(names)] == names, "in 32 bits or in 8"
    assert all(one.name.startswith("mlp") for one in found[len(names) :])
    for kind in found:
        assert kind.fresh(0)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_only_images_leave_a_choice() -> None:
    assert families(images(3, 12), 2, 1000) == []
    assert families(images(3, 2, 50), 2, 1000) == []


def test_held_out_answers_decide() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answers: torch.Tensor = self.head(torch.zeros(len(x), 1))
            return answers

    records = images(60, 1, 4, 4)
    lesson = Lesson(records, nn.functional.one_hot(records.y, 2).float())
    kinds = [Architecture("deaf", Deaf), Architecture("mlp", lambda: Mlp(16, 2, (16,)))]
    ledger, tutor = Ledger(), Tutor(Training(epochs=1, batch_size=16, learning_rate=1e-2), 40)
    chosen, words = guess(kinds, lesson, tutor, ledger, seed=0)
    assert chosen is kinds[1]
    assert words.startswith("mlp (held-out answers right: deaf ")
    assert ledger.backwards > 0
    few = Lesson(records.take(torch.arange(5)), lesson.answers[:5])
    assert guess(kinds, few, tutor, ledger, seed=0)[0] is kinds[0], "nothing was held out"


def test_layers_are_the_same_whatever_their_weights_and_others_of_another_size_kind_or_class() -> None:
    assert same_layers(ResidualCnn(10), ResidualCnn(10))
    assert not same_layers(ResidualCnn(10), ResidualCnn(10, 8))
    assert not same_layers(Mlp(64, 10), nn.Sequential(nn.Linear(64, 10)))
    assert not same_layers(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
