"""`Data` refuses what would spoil an audit, each fault with its own sentence, and lets honest data pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crushproof.targets.data.data import Data
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError
from crushproof.targets.model import TorchTarget
from crushproof.targets.model_checks import check_model
from crushproof.targets.seeds import generator


def records(n: int = 60, shape: tuple[int, ...] = (1, 4, 4), seed: int = 0, classes: int = 3) -> Records:
    x = torch.rand(n, *shape, generator=generator(seed, "test records"))
    return Records(x, torch.arange(n) % classes)


def data(**changes: Any) -> Data:
    arguments: dict[str, Any] = {
        "name": "test",
        "members": records(seed=1),
        "non_members": records(seed=2),
        "bounds": Bounds.of(0, 1),
        "class_names": ("a", "b", "c"),
    }
    return Data(**{**arguments, **changes})


def changed(part: Records, **values: Any) -> Records:
    return Records(values.get("x", part.x), values.get("y", part.y))


def with_value(value: float) -> Records:
    x = records(seed=2).x.clone()
    x[7, 0, 1, 2] = value
    return changed(records(seed=2), x=x)


def refused(build: Any, *words: str) -> str:
    """The one paragraph an InputError consists of, which contains all `words`."""
    with pytest.raises(InputError) as caught:
        build()
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    assert message.endswith(".")
    assert message.count(". ") >= 1, "cause and cure are two sentences"
    for word in words:
        assert word in message
    return message


BASE = records(seed=2)
FAULTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "float64 inputs": (
        {"non_members": changed(BASE, x=BASE.x.double())},
        ("float64", "test records (x_test, y_test)", "x.float()"),
    ),
    "int32 labels": ({"non_members": changed(BASE, y=BASE.y.int())}, ("int32", "y.long()")),
    "labels [n, 1]": ({"non_members": changed(BASE, y=BASE.y[:, None])}, ("[60, 1]",)),
    "inputs [n]": ({"non_members": changed(BASE, x=BASE.x.flatten(1)[:, 0])}, ("[60]", "features")),
    "other length": ({"non_members": changed(BASE, x=BASE.x[:50])}, ("50", "60 labels")),
    "no values": ({"non_members": changed(BASE, x=BASE.x[..., :0])}, ("no value",)),
    "other shapes": ({"members": records(shape=(16,))}, ("[16]", "[1, 4, 4]")),
    "empty split": ({"members": records(0)}, ("no training records", "empty")),
    "few records": ({"non_members": records(9)}, ("only 9", "10")),
    "single class": ({"non_members": changed(BASE, y=BASE.y * 0 + 1)}, ("'b'", "single-class", "(y_test)")),
    "label too large": ({"members": changed(records(seed=1), y=BASE.y + 5)}, ("5 to 7", "0 to 2")),
    "negative label": ({"non_members": changed(BASE, y=BASE.y - 1)}, ("-1 to 1",)),
    "labels from 1": ({"non_members": changed(BASE, y=BASE.y + 1)}, ("subtract 1",)),
    "NaN": ({"non_members": with_value(float("nan"))}, ("1 NaN", "record 7")),
    "infinite": ({"members": with_value(float("inf"))}, ("training records (x_train)", "record 7")),
    "0..255": ({"non_members": changed(BASE, x=BASE.x * 255)}, ("0..255", "[0, 1]", "[0, 255]")),
    "-1..1": ({"non_members": changed(BASE, x=BASE.x * 2 - 1)}, ("[-1, 1]",)),
    "normalised": ({"non_members": changed(BASE, x=BASE.x * 5 - 2)}, ("normalise",)),
    "one pixel beyond": ({"non_members": with_value(1.001)}, ("1 of the 60", "1.001", "record 7")),
    "bounds of another shape": ({"bounds": Bounds(torch.zeros(3, 1, 1), torch.ones(3, 1, 1))}, ("[3, 1, 1]",)),
    "groups": ({"groups": ("g",) * 59}, ("59", "60")),
    "one class name": ({"class_names": ("a",)}, ("two classes",)),
    "same class names": ({"class_names": ("a", "b", "a")}, ("Two classes", "'a'")),
    "empty class name": ({"class_names": ("a", "b", " ")}, ("' '",)),
    "long class name": ({"class_names": ("a", "b", "c" * 201)}, ("201", "200")),
    "lone surrogate": ({"class_names": ("a", "b", "x\ud800")}, ("\\ud800", "surrogate")),
    "long group name": ({"groups": ("g" * 999,) * 60}, ("group name", "999")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_sentence(fault: str) -> None:
    changes, words = FAULTS[fault]
    refused(lambda: data(**changes), *words)


def test_no_two_faults_share_a_sentence() -> None:
    messages = {refused(lambda changes=changes: data(**changes)) for changes, _ in FAULTS.values()}
    assert len(messages) == len(FAULTS)


def test_honest_data_passes_without_notes() -> None:
    assert data().notes == ()
    assert data(members=None).notes == ()
    assert data(bounds=Bounds(torch.zeros(1, 4, 4), torch.ones(1, 4, 4))).notes == ()


@pytest.mark.parametrize("seed", range(6))
def test_digits_pass(seed: int) -> None:
    digits = load_digits(seed)
    assert (len(digits.members or ()), len(digits.non_members), digits.notes) == (898, 899, ())


@pytest.mark.parametrize(
    "name",
    [
        "</script><script>alert(1)</script>",
        "\x1b[31mred",
        "a\0b",
        r"$\frac{1}$",
        "_hidden",
        "=1+1",
        "猫\u202e",
        "[bold]x",
    ],
)
def test_any_text_may_name_a_class(name: str) -> None:
    assert data(class_names=("a", "b", name)).class_names[2] == name


def test_a_class_without_records_is_noted() -> None:
    notes = data(class_names=("a", "b", "c", "rare")).notes
    assert len(notes) == 2
    assert all("'rare'" in note for note in notes)


# Members among the non-members ----------------------------------------------------------------------------------------


def overlapping(n: int, shared: int) -> tuple[Records, Records]:
    members, others = records(n, seed=1), records(n, seed=2)
    x = others.x.clone()
    x[-shared:] = members.x[:shared]
    y = others.y.clone()
    y[-shared:] = members.y[:shared]
    return members, Records(x, y)


def test_members_among_the_non_members_are_refused_with_their_ids() -> None:
    members, others = overlapping(300, 12)
    refused(
        lambda: data(members=members, non_members=others), "12 of the 300", "x_test 288, 289", "x_train 0, 1", "anew"
    )


def test_one_percent_is_allowed_and_noted() -> None:
    members, others = overlapping(300, 3)
    (note,) = data(members=members, non_members=others).notes
    assert "3 of the 300" in note


def test_equal_inputs_of_another_class_are_no_overlap_and_are_named() -> None:
    members = records(seed=1)
    (told,) = data(members=members, non_members=Records(members.x, (members.y + 1) % 3)).notes
    assert told.startswith("Test records are training records under another label")


def test_coarse_tables_repeat_themselves_and_pass_but_a_tenth_shared_without_repetition_does_not() -> None:
    rng = np.random.default_rng(0)

    def coarse(n: int) -> Records:  # 10 binary columns: nearly every record occurs many times
        x = torch.from_numpy(rng.integers(0, 2, (n, 10)).astype(np.float32))
        return Records(x, (x.sum(1) > 5).long())

    (note,) = data(members=coarse(2000), non_members=coarse(1000), class_names=("a", "b")).notes
    assert "equal a training record" in note
    fine = records(2000, (10,), seed=3)  # nothing repeats here, so a tenth shared is no chance
    leak = Records(torch.cat([records(900, (10,), seed=4).x, fine.x[:100]]), torch.arange(1000) % 3)
    refused(lambda: data(members=Records(fine.x, torch.arange(2000) % 3), non_members=leak))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(0, 2**31))
def test_the_overlap_found_is_that_of_a_naive_search(levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def part(n: int) -> Records:
        x = rng.integers(-levels, levels + 1, (n, 2)) / levels
        return Records(torch.from_numpy(x.astype(np.float32)), torch.from_numpy(np.arange(n) % 2))

    members, others = part(40), part(30)

    def keys(records: Records) -> list[tuple[float, ...]]:
        return [(*x, y) for x, y in zip(records.x.tolist(), records.y.tolist(), strict=True)]

    known = set(keys(members))
    count = sum(key in known for key in keys(others))
    repeated = sum(keys(members).count(key) > 1 for key in keys(members)) / 40

    def build() -> Data:
        return data(members=members, non_members=others, class_names=("a", "b"), bounds=Bounds.of(-1, 1))

    if count / 30 > max(0.01, 2 * repeated):
        refused(build, f"{count} of the 30 test records")
    else:
        assert [note.split(" of ")[0] for note in build().notes] == ([str(count)] if count else [])


def test_many_images_are_checked_in_seconds() -> None:
    """Whatever compares each with each in Python would take far longer."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (21_000, 784), dtype=np.uint8))
    x, y = pixels.float() / 255, torch.arange(21_000) % 3
    start = time.process_time()
    data(members=Records(x[:18_000], y[:18_000]), non_members=Records(x[18_000:], y[18_000:]))
    assert time.process_time() - start < 3  # measured: 0.8, on a busy machine


# Models ---------------------------------------------------------------------------------------------------------------

MEANS = torch.eye(3).repeat_interleave(4, 1)[:, :12]  # three classes that a linear model tells apart


def separable(n: int = 300) -> Records:
    y = torch.arange(n) % 3
    noise = torch.rand(n, 12, generator=generator(0, "noise")) * 0.4
    return Records((MEANS[y] * 0.6 + noise).clamp(0, 1), y)


class Model(nn.Module):
    """Right on `separable`, but for what `after` and `before` do to its outputs and inputs."""

    def __init__(self, after: Any = lambda z: z, before: Any = lambda x: x) -> None:
        super().__init__()
        self.after, self.before = after, before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after((self.before(x) - 0.3) @ MEANS.T)


def check(model: nn.Module) -> list[str]:
    return check_model(TorchTarget(model), separable(), Bounds.of(0, 1), 3)


def test_a_sound_model_passes() -> None:
    assert check(Model()) == []
    assert check(Model(after=lambda z: z.log_softmax(1))) == []


MODEL_FAULTS = {
    "probabilities": (Model(after=lambda z: z.softmax(1)), ("probabilities", "Remove the softmax")),
    "too many outputs": (Model(after=lambda z: torch.cat([z, z], 1)), ("[n, 6]", "[n, 3]")),
    "no class dimension": (Model(after=lambda z: z[:, 0]), ("[n]", "[n, 3]")),
    "NaN": (Model(after=lambda z: z / 0), ("NaN",)),
    "raises": (nn.Linear(7, 3), ("shape [12]", "Linear(in_features=7", "in_features to 12")),
    "a tuple": (Model(after=lambda z: (z, z)), ("tuple of 2 values", "one tensor")),
    "other class order": (Model(after=lambda z: z.roll(1, 1)), ("order of the classes is the likely cause",)),
    "constant": (Model(after=lambda z: z * 0 + torch.tensor([2.0, 0, 1])), ("chance (33%)", "normalised")),
    "other units": (Model(before=lambda x: (x / 255 > 0.4).float()), ("[0, 255]", "units are the likely cause")),
    "the wrong weights": (Model(before=lambda x: torch.sin(999 * x)), ("right weights",)),
}


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_models_that_break_an_assumption_are_refused(fault: str) -> None:
    model, words = MODEL_FAULTS[fault]
    refused(lambda: check(model), *words)


def test_doubtful_models_are_noted() -> None:
    assert "sigmoid" in check(Model(after=torch.sigmoid))[0]
    picture = generator(0, "weak")
    weak = Model(after=lambda z: torch.where(torch.rand(len(z), 1, generator=picture) < 0.13, z, z * 0))
    assert "weakly" in check(weak)[0]


def test_a_majority_guess_is_chance_even_at_high_accuracy() -> None:
    y = (torch.arange(300) % 10 == 0).long()
    constant = TorchTarget(Model(after=lambda z: z[:, :2] * 0 + torch.tensor([1.5, 0.0])))
    imbalanced = Records(separable().x, y)
    refused(lambda: check_model(constant, imbalanced, Bounds.of(0, 1), 2), "270 of 300", "chance (90%)")


def test_inputs_that_a_batch_normalisation_never_saw_are_noticed() -> None:
    x = torch.rand(400, 3, 6, 6, generator=generator(3, "batch norm"))
    y = (x[:, 0].mean((1, 2)) > x[:, 1].mean((1, 2))).long()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for index in torch.arange(300).repeat(10).split(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[index]), y[index]).backward()
        optimizer.step()
    net.eval()

    def noticed(change: Callable[[torch.Tensor], torch.Tensor]) -> bool:
        before = Shifted(change, net)
        notes = check_model(TorchTarget(before), Records(x[300:], y[300:]), Bounds.of(0, 1), 2)
        return any("first batch normalisation" in note for note in notes)

    assert not noticed(lambda x: x)
    assert noticed(lambda x: (x - 0.5) / 0.25)


def test_one_class_of_98_percent_is_no_other_class_order() -> None:
    y = (torch.arange(300) % 50 == 0).long()
    imbalanced = Records(separable().x, y)

    def answers(predicted: torch.Tensor) -> str:
        model = TorchTarget(Fixed(predicted))
        return refused(lambda: check_model(model, imbalanced, Bounds.of(0, 1), 2), "chance")

    assert "gives class number 1 to every record" in answers(torch.ones_like(y))
    assert "order of the classes" not in answers((torch.arange(300) % 7 > 0).long())
    assert "order of the classes is the likely cause" in answers(1 - y)


class Shifted(nn.Module):
    """A net that scales its inputs otherwise than in training."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor], net: nn.Module) -> None:
        super().__init__()
        self.change, self.net = change, net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.net(self.change(x))
        return answer


class Fixed(nn.Module):
    """These classes, whatever it is asked."""

    def __init__(self, predicted: torch.Tensor) -> None:
        super().__init__()
        self.predicted = predicted

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(self.predicted[: len(x)], 2) * 9.0 - 1


@pytest.mark.parametrize(("first", "last"), [(1, 3), (4, 6)])
def test_labels_that_start_elsewhere_are_recognised(first: int, last: int) -> None:
    shifted = Records(separable().x, separable().y + first)
    words = f"3 values, from {first} to {last}: number them 0 to 2"
    refused(lambda: check_model(TorchTarget(Model()), shifted, Bounds.of(0, 1), last + 1), words)


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits as published

    x, y = published(return_X_y=True)
    parts = load_digits(3).members, load_digits(3).non_members
    rows = torch.cat([torch.cat([one.x.reshape(len(one.x), -1) * 16, one.y[:, None]], 1) for one in parts if one])
    expected = torch.from_numpy(np.column_stack([x, y])).float()
    assert torch.equal(rows.unique(dim=0), expected.unique(dim=0))
    assert len(rows) == len(expected)
