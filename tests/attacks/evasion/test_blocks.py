"""Records in blocks: what a kill costs, what more records cost, and that neither changes a figure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from hypothesis import given
from hypothesis import strategies as st
from kept_parts import Folder, KilledError
from torch import nn

from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.evasion.black_box.square import Square
from crushproof.attacks.evasion.black_box.transfer import Transfer
from crushproof.attacks.evasion.blocks import blocks
from crushproof.attacks.evasion.case import EvasionInputs
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.apgd import Apgd
from crushproof.attacks.evasion.gradient.pgd import Pgd, craft
from crushproof.attacks.evasion.trust import FALLS
from crushproof.targets import model
from crushproof.targets.data.data import Data
from crushproof.targets.model import BATCH, held_for_backward, records_at_once
from crushproof.targets.seeds import derive
from crushproof.targets.steps import heard_by
from crushproof.training.networks import Mlp

EPSILONS = (0.05, 0.1)
PARTS = (Pgd(steps=4, loss="margin"), Apgd(steps=4), Transfer(), Square(queries=8))


@pytest.fixture(scope="module")
def case(digits: Data) -> Case:
    torch.manual_seed(0)
    parent, module = Mlp(64, 10).eval(), Mlp(64, 10).eval()
    with torch.no_grad():
        for mine, theirs in zip(module.parameters(), parent.parameters(), strict=True):
            mine.copy_(0.9 * theirs + 0.1 * mine)
    labels = module(digits.evaluation.x).argmax(1)
    records = replace(digits.evaluation, y=torch.where(torch.arange(len(labels)) % 20 == 0, (labels + 1) % 10, labels))
    crafted = craft(parent, records, EPSILONS, "linf", digits.bounds, seed=1, steps=5)
    prepared = EvasionInputs(parent_adversarial=crafted)
    return case_of(digits, module, parent=parent, evaluation=records, prepared=prepared)


def evidence(case: Case, records: int, listener: Folder | None = None, **fields: Any) -> Evidence:
    with heard_by(listener):
        return Evasion(epsilons=EPSILONS, records=records, **{"parts": PARTS, **fields}).run(case, seed=4)


def same(first: Evidence, second: Evidence) -> bool:
    assert first.arrays.keys() == second.arrays.keys()
    equal = all(np.array_equal(first.arrays[key], second.arrays[key]) for key in first.arrays)
    return equal and replace(first, arrays={}) == replace(second, arrays={})


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_blocks_are_the_same_for_any_count(count: int, more: int) -> None:
    some, all_ = blocks(count), blocks(count + more)
    assert [first for first, _ in some] == [0, *(end for _, end in some[:-1])]
    assert some[-1][1] == count
    assert some[:-1] == all_[: len(some) - 1]
    assert all(end - first <= max(200, first) for first, end in all_)


def test_more_records_cost_only_what_is_new(case: Case) -> None:
    direct, folder = evidence(case, 400), Folder()
    few = evidence(case, 200, folder)
    assert few.arrays["worst/0.1"].mean() > few.arrays["worst/0.05"].mean() > 0.05
    before = list(folder.order)
    assert same(evidence(case, 400, folder), direct)
    assert {name.rsplit("/", 1)[1] for name in folder.order[len(before) :]} == {"200-400"}
    assert same(evidence(case, 200, folder), few)
    assert len(before) == 9  # clean answers, three parts at two radii, square at the gate, a walk
    assert len(folder.order) == 2 * len(before) - 1  # which is the same for both
    done, total = zip(*folder.told, strict=True)
    assert set(total) == {200 * 7, 400 * 7}
    assert done[-1] == 200 * 7


def test_what_is_found_is_the_union_over_the_blocks(case: Case) -> None:
    """The second block alone, as records of an attack of its own, gives its rows of the whole."""
    whole = evidence(case, 400)
    alike = [key for key in whole.arrays if key not in ("adversarial", FALLS)]
    for rows in (slice(0, 200), slice(200, 400)):
        crafted = {epsilon: x[rows] for epsilon, x in case.prepared.parent_adversarial.items()}
        prepared = EvasionInputs(parent_adversarial=crafted)
        records = case.evaluation.take(torch.arange(400)[rows])
        alone = evidence(replace(case, evaluation=records, ids=case.ids[:400][rows], prepared=prepared), 200)
        assert all(np.array_equal(alone.arrays[key], whole.arrays[key][rows]) for key in alike)
        assert np.array_equal(alone.arrays["adversarial"], whole.arrays["adversarial"][rows])


def test_a_kill_costs_one_part(case: Case) -> None:
    direct, folder = evidence(case, 210), Folder(room=3)
    for room in (3, 9, 10):
        folder.room = room
        with pytest.raises(KilledError):
            evidence(case, 210, folder)
    folder.room = 1000
    assert same(evidence(case, 210, folder), direct)


def test_crafted_inputs_are_those_of_one_pass(case: Case) -> None:
    """A record's start follows from its position, whatever block it is in; parts kept under two names are two."""
    folder, records = Folder(), case.evaluation.take(torch.arange(230))
    assert case.twin is not None
    with heard_by(folder):
        for name in ("one", "two"):
            few = craft(case.twin, records, EPSILONS, "linf", case.bounds, seed=2, steps=3, name=name)
    assert set(folder.order) == {
        f"{name}/{epsilon}/{block}" for name in ("one", "two") for epsilon in EPSILONS for block in ("0-200", "200-230")
    }
    again = craft(case.twin, records, EPSILONS[1:], "linf", case.bounds, seed=2, steps=3)
    assert torch.equal(few[0.1], again[0.1])
    assert derive(2, "craft", repr(0.1)) != derive(2, "craft", repr(0.05))


# --- memory


def test_bytes_held_for_backward_by_hand() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5), nn.Sigmoid())
    x = torch.rand(3, 3, 4)
    frozen = held_for_backward(net.requires_grad_(False), x)
    assert frozen == 4 * (20 + 5)  # the outputs of ReLU and sigmoid
    assert held_for_backward(net.requires_grad_(True), x) == frozen + 4 * 12  # and what weights are multiplied with
    assert records_at_once(x, net) == BATCH
    assert held_for_backward(nn.Embedding(9, 4), torch.zeros(1, 3, dtype=torch.int64)) == 3 * 8


def test_a_cap_on_memory_changes_no_finding(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    free = evidence(case, 60)
    seen: list[int] = []
    assert case.twin is not None

    def note(_module: nn.Module, inputs: Any, _output: Any) -> None:
        seen.extend([len(inputs[0])] * inputs[0].requires_grad)

    hook = case.twin.register_forward_hook(note)
    monkeypatch.setattr(model, "HELD", 17 * (held_for_backward(case.twin, case.evaluation.x) + 16 * 64 * 4))
    capped = evidence(case, 60)
    hook.remove()
    assert 16 <= max(seen) <= 17
    assert all(np.array_equal(free.arrays[key], capped.arrays[key]) for key in free.arrays if key != "adversarial")
    assert np.allclose(free.arrays["adversarial"], capped.arrays["adversarial"], atol=1e-5)
    assert capped.summary == free.summary
    assert capped.ledger == free.ledger
