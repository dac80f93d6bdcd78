"""Pieces of work that ask for trainings: done side by side they come to what each comes to by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import crushproof.training.lessons as lessons
from crushproof.compression.recipe import RECIPES, work_of
from crushproof.targets.data.records import Bounds, Records
from crushproof.training.architecture import Architecture
from crushproof.training.lessons import Lesson, Work, alone, together
from crushproof.training.loop import Training
from crushproof.training.networks import Mlp

MLP = Architecture("mlp", lambda: Mlp(16, 4, (12, 8)))
BOUNDS = Bounds.of(0.0, 1.0)
TUNE = {"epochs": 2, "batch_size": 16}
PRUNE = {"kind": "prune", "sparsity": 0.6, "fine_tune": TUNE}


def records(seed: int, n: int = 48) -> Records:
    draws = torch.Generator().manual_seed(seed)
    return Records(torch.rand(n, 16, generator=draws), torch.randint(0, 4, (n,), generator=draws))


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in module.state_dict().values()])


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the stacks that are trained from now on."""
    sizes: list[int] = []
    real = lessons.train_stack

    def counted(modules: Any, *rest: Any, **named: Any) -> None:
        sizes.append(len(modules))
        real(modules, *rest, **named)

    monkeypatch.setattr(lessons, "train_stack", counted)
    return sizes


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (PRUNE, [3]),
        ({**PRUNE, "structure": "channels", "sparsity": 0.5}, [3]),
        ({"kind": "share", "clusters": 5, "fine_tune": TUNE}, [3]),
        ({"kind": "dynamic-sparsity", "fine_tune": TUNE}, [3]),
        ({"kind": "factorize", "rank_choice": "rank", "rank": 2, "fine_tune": TUNE}, [3]),
        ({"kind": "distill", "training": TUNE}, [3]),
        ({"kind": "distill", "hint_weight": 1.0, "training": TUNE}, []),  # whose teachers are asked in every step
        ({"kind": "chain", "steps": [{**PRUNE, "steps": 2}, {"kind": "quantize", "weight_bits": 4}]}, [3, 3]),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_recipes_side_by_side_equal_each_alone(stacks: list[int], spec: dict[str, Any], expected: list[int]) -> None:
    """Each model has records, teacher, mask and clusters of its own."""
    recipe, owned = RECIPES.parse(spec), [records(seed) for seed in range(3)]
    modules = [MLP.fresh(seed).eval() for seed in range(3)]
    before = [flat(module) for module in modules]
    works = [work_of(recipe, modules[one], owned[one], BOUNDS, seed=one) for one in range(3)]
    made = together(works)
    assert stacks == expected
    for one, module in enumerate(made):
        by_itself = recipe.apply(modules[one], owned[one], BOUNDS, seed=one)
        assert not module.training
        assert torch.allclose(module(owned[one].x), by_itself(owned[one].x), atol=1e-4)
        assert torch.equal(flat(modules[one]), before[one])
    assert not torch.allclose(made[0](owned[0].x), made[1](owned[0].x), atol=1e-3)


def test_a_settled_recipe_gives_all_models_the_ranks_of_one(stacks: list[int]) -> None:
    recipe = RECIPES.parse({"kind": "factorize", "energy": 0.6, "fine_tune": TUNE})
    modules = [MLP.fresh(seed).eval() for seed in range(3)]
    with torch.no_grad():
        modules[0].layers[1].weight[1:] *= 0.01  # one direction holds nearly all of its energy
    settled = recipe.settled(modules[0], records(0), BOUNDS, seed=0)
    made = together([work_of(settled, module, records(0), BOUNDS, seed=0) for module in modules])
    assert stacks == [3]
    assert len({tuple(value.shape for value in module.state_dict().values()) for module in made}) == 1
    assert torch.allclose(
        made[0](records(0).x), recipe.apply(modules[0], records(0), BOUNDS, seed=0)(records(0).x), atol=1e-4
    )
    stacks.clear()
    together([work_of(recipe, module, records(0), BOUNDS, seed=0) for module in modules])
    assert stacks != [3]  # each by its own weights


def test_a_settled_student_is_the_one_that_each_model_has() -> None:
    recipe = RECIPES.parse({"kind": "distill", "width": 0.5, "training": TUNE})
    modules = [MLP.fresh(seed).eval() for seed in range(2)]
    settled = recipe.settled(modules[0], records(0), BOUNDS, seed=0)
    alone, like_the_first = (one.apply(modules[1], records(1), BOUNDS, seed=1) for one in (recipe, settled))
    assert torch.equal(flat(alone), flat(like_the_first))


def lesson(module: nn.Module, seed: int = 0, n: int = 48, training: Training | None = None) -> Work:
    return (yield Lesson(module, records(seed, n), training or Training(epochs=1, batch_size=16), seed))


class Scaled(nn.Module):
    """Keeps a constant beside its weights, which no state dictionary tells."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.layer = scale, nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x) * self.scale
        return out


def test_only_like_trainings_are_stacked(stacks: list[int]) -> None:
    other = Training(epochs=1, batch_size=8)
    works = [
        lesson(MLP.fresh(0)),
        lesson(Scaled(1.0)),
        lesson(MLP.fresh(1)),
        lesson(Scaled(2.0)),
        lesson(MLP.fresh(2), n=40),
        lesson(MLP.fresh(3), training=other),
    ]
    made = together(works)
    assert stacks == [2, 1, 1, 1, 1]
    assert [type(one) for one in made] == [Mlp, Scaled, Mlp, Scaled, Mlp, Mlp]
    assert made[3].scale == 2.0  # type: ignore[union-attr]  # a module's attribute may be of any type


def test_what_records_take_bounds_a_stack(stacks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "RECORD_BYTES", 2 * 48 * 16 * 4)
    together([lesson(MLP.fresh(one), one) for one in range(3)])
    assert stacks == [2, 1]


def test_a_forward_that_looks_at_values_is_trained_alone(stacks: list[int]) -> None:
    class Looks(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    together([lesson(Looks(16, 4)), lesson(Looks(16, 4))])
    assert stacks == [2, 1, 1]


def test_an_error_of_one_is_raised() -> None:
    def fails() -> Work:
        yield Lesson(MLP.fresh(0), records(0), Training(epochs=1), 0)
        raise ValueError("after its training")

    with pytest.raises(ValueError, match="after its training"):
        alone(fails())
