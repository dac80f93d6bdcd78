"""Pruning: what goes is what each criterion says, zeros stay, and cut layers really are smaller."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_cases import BRIEF, UNIT, Encoder, Knotted, Recurrent, fresh, kernels, same_state
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from crushproof.compression.pruning.importance import importances
from crushproof.compression.pruning.masks import smallest_in_groups
from crushproof.compression.pruning.prune import Prune, shares
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Records
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.training.loop import Training
from crushproof.training.networks import Mlp, digits_cnn


def accuracy_of(module: nn.Module, digits: Data) -> float:
    return accuracy(TorchTarget(module), digits.non_members.x, digits.non_members.y)


# -- every option, on every sort of model ------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "global": (digits_cnn, {"sparsity": 0.6}),
    "layer": (digits_cnn, {"sparsity": 0.6, "scope": "layer"}),
    "taylor": (digits_cnn, {"importance": "taylor"}),
    "random": (Recurrent, {"importance": "random"}),
    "2:4": (Knotted, {"structure": "n:m"}),
    "1:8-random": (Encoder, {"structure": "n:m", "sparsity": 0.875, "group_size": 8, "importance": "random"}),
    "channels": (digits_cnn, {"structure": "channels", "round_to": 4}),
    "channels-taylor-knotted": (Knotted, {"structure": "channels", "importance": "taylor"}),
    "channels-encoder": (Encoder, {"structure": "channels", "importance": "random"}),
    "channels-recurrent": (Recurrent, {"structure": "channels"}),
    "heads": (Encoder, {"structure": "heads"}),
    "heads-taylor-stepped": (
        Encoder,
        {"structure": "heads", "importance": "taylor", "sparsity": 0.75, "steps": 2, "fine_tune": BRIEF},
    ),
    "stepped": (Knotted, {"sparsity": 0.8, "steps": 3, "schedule": "linear", "fine_tune": BRIEF}),
    "channels-stepped": (Knotted, {"structure": "channels", "steps": 2, "fine_tune": BRIEF}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_replays_ships_and_is_stored(name: str, few: Records) -> None:
    import onnxruntime

    from crushproof.compression.deployment.onnx_export import to_onnx
    from crushproof.compression.deployment.structure import load_module, save_module

    build, fields = OPTIONS[name]
    recipe, module = Prune(**fields), fresh(build).requires_grad_(False)
    before = copy.deepcopy(module)
    pruned = recipe.apply(module, few, UNIT, seed=3)
    torch.manual_seed(99)  # whatever the process drew before must not matter
    assert same_state(pruned, recipe.apply(module, few, UNIT, seed=3))
    assert same_state(module, before)
    assert not any(layer.training for layer in pruned.modules())

    # Other records change the result exactly when the recipe says that it touches them.
    others = Records(torch.rand(few.x.shape, generator=torch.Generator().manual_seed(1)), few.y.flip(0))
    assert same_state(pruned, recipe.apply(module, others, UNIT, seed=3)) == (not recipe.touches_records)

    x = few.x[:16]
    with torch.no_grad():
        logits = pruned(x)
    loaded = load_module(fresh(build), *save_module(pruned))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), logits, rtol=0, atol=0)
    session = onnxruntime.InferenceSession(to_onnx(pruned, tuple(x.shape[1:])), providers=["CPUExecutionProvider"])
    shipped = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(shipped, logits.numpy(), atol=2e-5)


# -- single weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_magnitude_drops_what_torchs_own_pruning_drops(
    scope: str, sparsity: float, dense: nn.Module, few: Records
) -> None:
    pruned = Prune(sparsity=sparsity, scope=scope).apply(dense, few, UNIT, seed=0)
    peer = copy.deepcopy(dense)
    layers = [(layer, "weight") for layer in peer.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    if scope == "global":
        torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=sparsity)
    else:
        for layer, name in layers:
            torch_prune.l1_unstructured(layer, name, amount=sparsity)
    for (layer, _), weight in zip(layers, kernels(pruned), strict=True):
        assert torch.equal(layer.weight, weight)
    assert not any("mask" in name or "orig" in name for name in pruned.state_dict())


def test_random_keeps_exactly_the_share_and_follows_the_seed(dense: nn.Module, few: Records) -> None:
    def zeros(seed: int) -> Tensor:
        pruned = Prune(sparsity=0.7, importance="random").apply(dense, few, UNIT, seed=seed)
        return torch.cat([(weight == 0).flatten() for weight in kernels(pruned)])

    first, second = zeros(0), zeros(1)
    assert int(first.sum()) == int(second.sum()) == round(0.7 * len(first))
    assert torch.equal(first, zeros(0))
    # Two independent draws share .7^2 of all places; a criterion that looks at the weights would share more.
    assert float((first & second).float().mean()) == pytest.approx(0.49, abs=0.02)


def test_taylor_predicts_the_change_of_the_loss_when_a_weight_is_zeroed() -> None:
    """Against the loss itself: w is made a hundredth smaller, in float64, and the change is scaled up."""
    module = fresh(lambda: Mlp(6, 3, (5,))).double()
    generator = torch.Generator().manual_seed(0)
    records = Records(torch.rand(24, 6, generator=generator).double(), torch.arange(24) % 3)  # one batch
    scores = importances(module, "taylor", records, seed=0)

    def loss() -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(module(records.x), records.y))

    start = loss()
    for name, parameter in module.named_parameters():
        values, predicted = parameter.data.flatten(), scores[name].sqrt().flatten()
        for position in range(len(values)):
            kept = float(values[position])
            values[position] = kept * (1 - 1e-4)
            change = abs(loss() - start) * 1e4
            values[position] = kept
            assert float(predicted[position]) == pytest.approx(change, rel=0.02, abs=1e-7)


def test_taylor_is_the_mean_over_batches_of_all_records(members: Records) -> None:
    """As in Molchanov et al.: squares are averaged over batches, so every record counts once."""
    module = fresh(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    same = Records(members.x[:1].repeat(96, 1, 1, 1), members.y[:1].repeat(96))
    one = Records(members.x[:1], members.y[:1])
    for name, score in importances(module, "taylor", same, seed=0).items():
        torch.testing.assert_close(score, importances(module, "taylor", one, seed=5)[name], rtol=1e-4, atol=1e-10)


def test_taylor_of_a_regression_uses_the_squared_error() -> None:
    """One linear layer, by hand: dL/dw = 2/(n k) sum over records of residual times input."""
    module: Any = fresh(lambda: nn.Sequential(nn.Linear(3, 2)))
    generator = torch.Generator().manual_seed(2)
    records = Records(torch.rand(20, 3, generator=generator), torch.rand(20, 2, generator=generator))
    x, y, weight = records.x.numpy(), records.y.numpy(), module[0].weight.detach().numpy()
    residual = x @ weight.T + module[0].bias.detach().numpy() - y
    expected = (weight * (2 / 40 * residual.T @ x)) ** 2
    score = importances(module, "taylor", records, seed=0)["0.weight"]
    np.testing.assert_allclose(score.numpy(), expected, rtol=1e-3, atol=1e-12)


def test_taylor_finds_weights_that_do_nothing_however_large(few: Records) -> None:
    """Large weights behind a unit that never fires: magnitude keeps them, Taylor drops them first."""
    module: Any = fresh(lambda: Mlp(64, 10, (8,)))
    with torch.no_grad():
        module.layers[1].bias[3] = -100.0
        module.layers[3].weight[:, 3] = 5.0
    dead = {
        kind: Prune(sparsity=0.3, importance=kind).apply(module, few, UNIT, seed=0).layers[3].weight[:, 3] == 0
        for kind in ("magnitude", "taylor")
    }
    assert not dead["magnitude"].any()
    assert dead["taylor"].all()


# -- n:m ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 8), st.data())
def test_each_group_loses_its_smallest(rows: int, groups: int, group_size: int, data: st.DataObject) -> None:
    dropped = data.draw(st.integers(0, group_size - 1))
    values = data.draw(
        st.lists(st.integers(0, 9), min_size=rows * groups * group_size, max_size=rows * groups * group_size)
    )
    score = np.array(values, dtype=np.float64).reshape(rows, groups * group_size)
    mask = smallest_in_groups(torch.from_numpy(score), group_size, dropped).numpy()
    expected = np.ones_like(score)
    for row in range(rows):
        for first in range(0, groups * group_size, group_size):
            order = sorted(range(group_size), key=lambda place: (score[row, first + place], place))
            for place in order[:dropped]:
                expected[row, first + place] = 0
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("fine_tune", [None, BRIEF])
def test_two_of_four_along_the_input_channels(fine_tune: Training | None, dense: nn.Module, few: Records) -> None:
    recipe = Prune(structure="n:m", fine_tune=fine_tune, steps=1 if fine_tune is None else 2)
    pruned = recipe.apply(dense, few, UNIT, seed=0)
    for before, after in zip(kernels(dense), kernels(pruned), strict=True):
        old, new = before.detach().numpy(), after.detach().numpy()
        if old.shape[1] % 4:  # the stem, which has one input channel
            assert (new != 0).all()
            continue
        grouped = np.moveaxis(new, 1, -1).reshape(-1, 4)
        assert ((grouped == 0).sum(1) == 2).all()
        if fine_tune is None:
            reference = np.abs(np.moveaxis(old, 1, -1).reshape(-1, 4))
            largest = np.sort(np.argsort(-reference, axis=1, kind="stable")[:, :2], axis=1)
            np.testing.assert_array_equal(np.nonzero(grouped)[1].reshape(-1, 2), largest)


def test_groups_run_along_the_inputs_of_a_transposed_convolution() -> None:
    module: Any = fresh(lambda: nn.Sequential(nn.ConvTranspose2d(8, 3, 2), nn.Flatten()))
    records = Records(torch.rand(4, 8, 2, 2), torch.arange(4))
    pruned: Any = Prune(structure="n:m", sparsity=0.25).apply(module, records, UNIT, seed=0)
    zeros = (pruned[0].weight == 0).view(2, 4, 3, 2, 2).sum(1)
    assert bool((zeros == 1).all())


# -- steps -------------------------------------------------------------------------------------------------------------


def test_the_schedules_are_those_of_zhu_and_gupta() -> None:
    """s_f + (s_i - s_f) (1 - t/n)^3 with s_i = 0; linear: equal parts."""
    assert shares(0.8, 4, "cubic") == pytest.approx([0.8 - 0.8 * (1 - t / 4) ** 3 for t in (1, 2, 3, 4)])
    assert shares(0.8, 4, "linear") == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert shares(0.3, 1, "cubic") == shares(0.3, 1, "linear") == [0.3]


@pytest.mark.parametrize("kind", ["magnitude", "taylor"])
def test_steps_end_at_the_same_sparsity_and_beat_one_step_without_training(
    kind: Any, dense: nn.Module, digits: Data, members: Records
) -> None:
    tuned = Prune(
        sparsity=0.8, importance=kind, steps=2, fine_tune=Training(epochs=2, learning_rate=4e-3, batch_size=64)
    ).apply(dense, members, UNIT, seed=0)
    zeros = sum(int((weight == 0).sum()) for weight in kernels(tuned))
    assert zeros == round(0.8 * sum(weight.numel() for weight in kernels(dense)))
    plain = Prune(sparsity=0.8, importance=kind).apply(dense, members, UNIT, seed=0)
    assert accuracy_of(tuned, digits) > max(0.9, accuracy_of(plain, digits))


def test_fine_tuning_keeps_zeros_of_every_earlier_step(dense: nn.Module, few: Records) -> None:
    """Also the scattered zeros of a chain's first step, when the second one removes channels and trains."""
    plain = Prune(sparsity=0.8).apply(dense, few, UNIT, seed=0)
    tuned = Prune(sparsity=0.8, fine_tune=BRIEF).apply(dense, few, UNIT, seed=0)
    for before, after in zip(kernels(plain), kernels(tuned), strict=True):
        assert torch.equal(before == 0, after == 0)
        assert not torch.equal(before, after)
    thinned = Prune(structure="channels").apply(plain, few, UNIT, seed=0)
    retrained = Prune(structure="channels", fine_tune=BRIEF).apply(plain, few, UNIT, seed=0)
    for before, after in zip(kernels(thinned), kernels(retrained), strict=True):
        assert torch.equal(before == 0, after == 0)
        assert not torch.equal(before, after)


@pytest.mark.parametrize("structure", ["channels", "heads"])
def test_structures_shrink_step_by_step_to_the_same_shapes(structure: Any, few: Records) -> None:
    module = fresh(Encoder)
    once = Prune(structure=structure, sparsity=0.6).apply(module, few, UNIT, seed=0)
    stepped = Prune(structure=structure, sparsity=0.6, steps=3, fine_tune=BRIEF).apply(module, few, UNIT, seed=0)
    assert [tuple(value.shape) for value in once.parameters()] == [tuple(v.shape) for v in stepped.parameters()]


# -- what cannot be done -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sparsity": 1.0}, "less than 1"),
        ({"sparsity": 0.0}, "greater than 0"),
        ({"steps": 2}, "need fine_tune"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"round_to": 8}, "structure: channels"),
        ({"structure": "n:m", "sparsity": 0.6}, "not a whole number"),
        ({"structure": "n:m", "group_size": 1}, "greater than or equal to 2"),
        ({"importance": "gut feeling"}, "magnitude"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Prune(**fields)


@pytest.mark.parametrize(
    ("build", "fields", "words"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"structure": "channels"}, "between two"),
        (lambda: Mlp(64, 10, (1, 1)), {"structure": "channels"}, "wide enough"),
        (lambda: Mlp(64, 10, (1, 1)), {"structure": "channels", "steps": 2, "fine_tune": BRIEF}, "wide enough"),
        (digits_cnn, {"structure": "heads"}, "no heads to remove"),
        (Encoder, {"structure": "heads", "sparsity": 0.1}, "enough heads"),
        (lambda: Mlp(64, 10, (7, 9)), {"structure": "n:m", "sparsity": 0.6, "group_size": 5}, "multiple of 5"),
        (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)), {}, "no linear"),
    ],
)
def test_what_a_model_does_not_have_is_said_in_one_sentence(
    build: Any, fields: dict[str, Any], words: str, few: Records
) -> None:
    with pytest.raises(NotApplicable, match=words) as caught:
        Prune(**fields).apply(fresh(build), few, UNIT, seed=0)
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize("fields", [{"importance": "taylor"}, {"fine_tune": BRIEF}])
def test_what_needs_records_says_so(fields: dict[str, Any], few: Records) -> None:
    none = few.take(torch.arange(0))
    with pytest.raises(NotApplicable, match="training records, and there are none"):
        Prune(**fields).apply(fresh(digits_cnn), none, UNIT, seed=0)
    Prune().apply(fresh(digits_cnn), none, UNIT, seed=0)


def test_a_plan_is_told_in_the_same_words() -> None:
    from crushproof.compression.recipe import RECIPES

    with pytest.raises(InputError, match="sparsity"):
        RECIPES.parse({"kind": "prune", "sparsity": 1.0})
    with pytest.raises(InputError, match="need fine_tune"):
        RECIPES.parse({"kind": "prune", "steps": 4})


def test_the_words_of_the_report() -> None:
    tuning = Training(epochs=2)
    assert Prune(sparsity=0.8).phrase == "80 % of weights pruned"
    assert Prune(structure="n:m").phrase == "2 of every 4 weights kept"
    assert Prune(scope="layer", importance="random").phrase == "50 % of weights pruned per layer at random"
    assert Prune(structure="heads", importance="taylor", steps=3, fine_tune=tuning).phrase == (
        "50 % of heads pruned by Taylor importance in 3 steps, fine-tuned for 2 epochs each"
    )
