"""The adversarial patch: where it lies, the best one of a net of which that is known, and what its evidence must be."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.patch import Patch, laid, places_of, under
from crushproof.targets.data.data import Data
from crushproof.targets.errors import NotApplicable

QUICK = Patch(records=80, crafted_on=30, steps=12)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(4, 9), st.integers(4, 9), st.floats(0.01, 0.5))
def test_a_patch_lies_inside_and_changes_nothing_else(seed: int, high: int, wide: int, share: float) -> None:
    stream = torch.Generator().manual_seed(seed)
    x, size = torch.rand(5, 2, high, wide, generator=stream), Patch(share=share).size((2, high, wide))
    patch = 2 + torch.rand(2, *size, generator=stream)
    noise = torch.rand(5, 2, generator=stream)
    noise[0], noise[1] = 0, 1 - 2**-24
    places = places_of(noise, (2, high, wide), size)
    assert places[0].tolist() == [0, 0]
    assert places[1].tolist() == [high - size[0], wide - size[1]]
    covered = laid(x, patch, places)
    assert torch.equal(under(covered, places, size), patch.expand(5, *patch.shape))
    assert int((covered != x).sum()) == 5 * patch.numel()


class Bright(nn.Module):
    """Class 1 where an image is bright on average: nothing beats a patch of one colour, wherever it lies."""

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.flatten(1).mean(1)
        return torch.stack([torch.full_like(brightness, 0.3), brightness], dim=1)


def bright_case(digits: Data) -> Case:
    made = case_of(digits, Bright())
    dark = (digits.non_members.x.flatten(1).mean(1) > 0.3).long()
    labels = dark[digits.evaluation_ids]
    attackers = replace(digits.attacker, y=torch.zeros_like(digits.attacker.y))
    return replace(made, evaluation=replace(digits.evaluation, y=labels), attacker=attackers, classes=2)


def test_the_best_patch_is_found_where_it_is_known(digits: Data) -> None:
    case = bright_case(digits)
    found = QUICK.run(case, seed=0)
    assert (found.arrays["patch"] == 1).all(), "who is to be moved up is given all the brightness there is"
    x, places = case.evaluation.x[:80], found.arrays["places"]
    for row, (top, left) in enumerate(places.tolist()):
        image = x[row].clone()
        image[:, top : top + 3, left : left + 3] = 1
        assert torch.equal(image, torch.from_numpy(found.arrays["adversarial"][row]))
        assert found.arrays["correct"][row] == (int(image.mean() > 0.3) == int(case.evaluation.y[row]))
    assert found.ledger.queries == 160
    assert 0 < found.arrays["fails"].sum() < 80


def test_it_fools_more_than_a_patch_of_noise(digits: Data, dense: nn.Module) -> None:
    case = case_of(digits, dense)
    found = QUICK.run(case, seed=0)
    noise = torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(0))
    x, y = digits.evaluation.x[:80], digits.evaluation.y[:80]
    by_noise = int((dense(laid(x, noise, torch.from_numpy(found.arrays["places"]))).argmax(1) != y).sum())
    assert found.arrays["fails"].sum() > by_noise + 8
    again, other = QUICK.run(case, seed=0), QUICK.run(case, seed=1)
    assert all(np.array_equal(found.arrays[name], again.arrays[name]) for name in found.arrays)
    assert not np.array_equal(found.arrays["places"], other.arrays["places"])


def test_stored_evidence_is_held_against_itself_and_the_model(digits: Data) -> None:
    case, scope = bright_case(digits), SimpleNamespace(data=digits)
    found = QUICK.run(case, seed=0)
    model: Any = None
    form, raw = QUICK.form(model, scope), json.dumps(found.summary).encode()  # type: ignore[arg-type]  # all it reads
    form.check(raw, found.summary, found.arrays, {})
    assert QUICK.asked_again(found, case) == []

    def forged(**arrays: Any) -> Evidence:
        return replace(found, arrays={**found.arrays, **arrays})

    flipped = ~found.arrays["correct"]
    assert "80 of 80 answers" in QUICK.asked_again(forged(correct=flipped), case)[0]
    assert "with the patch on them" in QUICK.asked_again(forged(patch=found.arrays["patch"] / 2), case)[0]
    for changed in ({"fails": ~found.arrays["fails"]}, {"ids": found.arrays["ids"][::-1].copy()}):
        with pytest.raises(ValueError, match=r"ids|fails"):
            form.check(raw, found.summary, forged(**changed).arrays, {})


def test_it_says_why_it_cannot_run(digits: Data, dense: nn.Module) -> None:
    case = case_of(digits, dense)
    flat = replace(case, evaluation=replace(case.evaluation, x=case.evaluation.x.flatten(1)))
    nobody = replace(digits.attacker, x=digits.attacker.x[:0], y=digits.attacker.y[:0])
    for other, words in (
        (flat, "on an image"),
        (replace(case, twin=None), "no differentiable"),
        (replace(case, attacker=nobody), "no records of its own"),
    ):
        with pytest.raises(NotApplicable, match=words):
            QUICK.run(other, seed=0)
