"""Evasion by changed features of a table: every stored record could be sent, and what an exhaustive search finds."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crushproof.attacks.attack import ATTACKS
from crushproof.attacks.case import Case
from crushproof.attacks.evasion.discrete.exchanged import costs_on
from crushproof.attacks.evasion.discrete.features import features_of
from crushproof.attacks.evasion.discrete.substitution import Substitution
from crushproof.attacks.preparation import Basis, Prepared, Results, Scope
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.data.structure import Structure
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.form import MisfitError
from crushproof.targets.model import TorchTarget

BLOCK = [3, 4, 5, 6]
COLUMNS = Structure(
    names=("rate", "share", "age", "a", "b", "c", "d", "code"),
    immutable=(0,),
    one_hot=(tuple(BLOCK),),
    codes=(7,),
    integer=(2,),
)
LOW, HIGH = torch.zeros(8), torch.tensor([1.0, 1, 60, 1, 1, 1, 1, 4])


def rows(n: int = 90) -> Tensor:
    """Two fractions, a count of 0 to 60, a block of four, a code of 0, 1 or 4."""
    stream = np.random.default_rng(0)
    numbers = [stream.random((n, 2)), stream.integers(0, 61, n)]
    categories = [np.eye(4)[stream.integers(0, 4, n)], stream.choice([0, 1, 4], n)]
    return torch.as_tensor(np.column_stack([*numbers, *categories]), dtype=torch.float32)


def table_data(module: nn.Module, structure: Structure = COLUMNS) -> Data:
    """Records that the model itself labels."""
    x = rows()
    y = module(x).argmax(1)
    y[:2] = torch.tensor([0, 1])  # both classes, whatever the model says
    return Data("table", None, Records(x, y), Bounds(LOW, HIGH), ("no", "yes"), structure=structure)


def table_case(module: nn.Module, structure: Structure = COLUMNS) -> Case:
    data = table_data(module, structure)
    return case_of(data, module.eval().requires_grad_(False), structure=structure)


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    with torch.no_grad():
        module[0].weight[:, 2] /= 20
        answers = module(rows())
        module[2].bias[1] += (answers[:, 0] - answers[:, 1]).median()  # as many of one class as of the other
    return module


class Categorical(nn.Module):
    """The second category of the block decides, and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([0.5 - x[:, 4], x[:, 4] - 0.5], 1)


def attack(**fields: Any) -> Substitution:
    return Substitution(**{"gate_changes": 2, "reach": 0.2, "records": 40, **fields})


def changed(x: Tensor, clean: Tensor) -> Tensor:
    """How many features differ, written out apart from `Features`."""
    single = (x[:, [0, 1, 2, 7]] != clean[:, [0, 1, 2, 7]]).sum(1)
    return single + (x[:, BLOCK] != clean[:, BLOCK]).any(1)


def invalid(x: Tensor, clean: Tensor, reach: float) -> list[int]:
    """The rows that nobody could send."""
    bad = (x[:, 0] != clean[:, 0]) | (x[:, 2] % 1 != 0) | ~torch.isin(x[:, 7], torch.tensor([0.0, 1, 4]))
    bad |= (x[:, BLOCK].sum(1) != 1) | ~torch.isin(x[:, BLOCK], torch.tensor([0.0, 1.0])).all(1)
    bad |= ((x < LOW) | (x > HIGH)).any(1) | (((x - clean).abs() / HIGH)[:, 1:3] > reach + 1e-6).any(1)
    return bad.nonzero().flatten().tolist()


@settings(max_examples=6)
@given(st.integers(0, 2**31), st.floats(0, 1), st.integers(1, 3), st.booleans())
def test_every_stored_record_could_be_sent(seed: int, reach: float, gate: int, blind: bool) -> None:
    case = table_case(net(seed))
    if blind:
        case = replace(case, twin=None, native=None, parent=None)
    told = attack(gate_changes=gate, reach=reach)
    evidence = told.run(case, seed=seed)
    x, clean = torch.as_tensor(evidence.arrays["adversarial"]), case.evaluation.x[:40]
    assert invalid(x, clean, reach) == []
    assert int(changed(x, clean).max()) <= gate
    wrong = (case.deployed.logits(x).argmax(1) != case.evaluation.y[:40]).numpy()
    assert (wrong | ~evidence.arrays["clean_correct"]).tolist() == evidence.arrays[f"worst/{gate}"].tolist()
    assert told.asked_again(evidence, case) == []
    assert (evidence.arrays["worst/3"] >= evidence.arrays["worst/1"]).all()


def all_inputs(record: Tensor, reach: float, most: int) -> Tensor:
    """Every input with up to so many changes, numbers in eighths of the reach, by plain enumeration."""
    eighths = torch.arange(-8, 9) / 8 * reach
    share = (record[1] + eighths).clamp(0, 1)
    age = (record[2] + (eighths * 60).trunc()).clamp(0, 60)
    options: dict[tuple[int, ...], list[Tensor]] = {
        (1,): [one.view(1) for one in share],
        (2,): [one.view(1) for one in age],
        tuple(BLOCK): list(torch.eye(4)),
        (7,): [torch.tensor([code]) for code in (0.0, 1.0, 4.0)],
    }
    made = []
    for chosen in combinations(options, most):
        for values in product(*(options[columns] for columns in chosen)):
            x = record.clone()
            for columns, value in zip(chosen, values, strict=True):
                x[list(columns)] = value
            made.append(x)
    return torch.stack(made)


def test_an_exhaustive_search_finds_no_more() -> None:
    case = table_case(net(0))
    evidence = attack(records=20, gate_changes=1, reach=0.1).run(case, seed=0)
    assert evidence.summary["union_flags"] == []
    for most in (1, 2):
        falls = [
            bool((case.deployed.logits(all_inputs(x, 0.1, most)).argmax(1) != y).any())
            for x, y in zip(case.evaluation.x[:20], case.evaluation.y[:20], strict=True)
        ]
        found = evidence.arrays[f"worst/{most}"]
        assert found.tolist() == falls if most == 1 else found.sum() >= sum(falls) - 1
        assert 2 < sum(falls) < 20, "neither all nor none"


def test_what_is_immutable_stays_and_costs_count() -> None:
    robust = {}
    for name, structure, costs in (
        ("free", COLUMNS, {}),
        ("held", replace(COLUMNS, immutable=(0, *BLOCK)), {}),
        ("dear", COLUMNS, {"b": 2}),
        ("by position", COLUMNS, {"4": 3}),
    ):
        evidence = attack(costs=costs).run(table_case(Categorical(), structure), seed=0)
        robust[name] = [int((~evidence.arrays[f"worst/{changes}"]).sum()) for changes in (1, 2, 3)]
    right = robust["held"][0]
    assert right > 30
    assert robust == {
        "free": [0, 0, 0],
        "held": [right, right, right],
        "dear": [right, 0, 0],
        "by position": [right, right, 0],
    }
    with pytest.raises(InputError, match="'shar', and no feature of that name can change"):
        attack(costs={"shar": 2}).run(table_case(Categorical()), seed=0)


def test_the_same_model_gives_the_same_and_a_batch_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = table_case(net(3))
    evidence = attack().run(case, seed=0)
    monkeypatch.setattr("crushproof.attacks.evasion.discrete.running.BATCH", 7)
    monkeypatch.setattr("crushproof.attacks.evasion.discrete.guidance.BATCH", 5)
    again = attack().run(replace(case, parent=None), seed=0)
    assert evidence.summary == again.summary
    assert all(np.array_equal(evidence.arrays[name], again.arrays[name]) for name in evidence.arrays)


def test_few_moves_are_drawn_by_record() -> None:
    """Where a model cannot be asked about all moves, each record has draws of its own, and the row says so."""
    case = replace(table_case(net(0)), twin=None)
    evidence = attack(first=10).run(case, seed=0)
    assert evidence.summary["union_flags"] == ["no-gradient"]
    part = case.evaluation.take(torch.arange(5, 40))
    later = attack(first=10, records=35).run(replace(case, evaluation=part, ids=case.ids[5:]), seed=0)
    assert later.arrays["worst/2"].tolist() == evidence.arrays["worst/2"][5:].tolist()


def test_the_probe_leaves_about_half() -> None:
    told = Substitution(records=40)
    evidence = told.run(table_case(net(0)), seed=0)
    kept = 1 - evidence.arrays[f"worst/{evidence.summary['gate']}"].mean()
    assert 0.2 < kept < 0.8
    assert 0 <= evidence.summary["reach"] < 1
    with pytest.raises(NotApplicable, match="immutable"):
        told.run(table_case(net(0), replace(COLUMNS, immutable=tuple(range(8)))), seed=0)


def test_what_is_seen_counts_as_declared() -> None:
    seen = features_of(table_case(net(0), Structure()), reach=0.2)
    declared = features_of(table_case(net(0), replace(COLUMNS, immutable=(), codes=())), reach=0.2)
    assert torch.equal(seen.columns, declared.columns)
    assert torch.equal(seen.values, declared.values)


def test_a_change_is_like_for_like_and_a_model_is_no_worse_than_itself() -> None:
    case, told = table_case(net(0)), attack()
    found = {"dense": told.run(case, seed=0), "same": told.run(case, seed=0)}
    against = dict.fromkeys(("dense", "same"), case)
    against["weak"] = replace(case, deployed=TorchTarget(Categorical()), twin=None, native=None)
    found["weak"] = told.run(against["weak"], seed=0)
    data = table_data(net(0))
    comparisons = {}

    def asked_of(asked: Any) -> Prepared:
        pair = {"on_candidate": (asked.candidate, "dense"), "on_baseline": ("dense", asked.candidate)}
        return Prepared({side: costs_on(against[one], told, found[other]) for side, (one, other) in pair.items()})

    for name, evidence in found.items():
        scope = SimpleNamespace(label="substitution", data=data, reference=SimpleNamespace(name="dense"), runtimes={})
        results = SimpleNamespace(
            scope=scope,
            model=SimpleNamespace(name=name, baselines=() if name == "dense" else ("dense",)),
            evidence=lambda ran: found[ran.model],
            flags=lambda model: set(),
            without_twin=lambda model: None,
            prepared=lambda asked: asked_of(asked) if asked.name.startswith("exchanged/") else None,
        )
        (measured,) = told.measure(cast(Results, results))
        assert measured.setting == {"changed features": 2}
        assert [x for x, _ in measured.curves["worst case"]] == [0, 1, 2, 3]
        assert measured.threat.budget.startswith("2 of 4 features changed; categories to any other")
        comparisons[name] = measured.comparisons
        form = told.form(cast(Any, None), cast(Scope, scope))
        raw = json.dumps(evidence.summary).encode()
        form.check(raw, evidence.summary, evidence.arrays, {})
        forged = {**evidence.arrays, "worst/2": ~evidence.arrays["worst/2"]}
        with pytest.raises(MisfitError):
            form.check(raw, evidence.summary, forged, {})
        basis = Basis(lambda: None, twin_agrees=True)
        assert told.follows(evidence, basis) == []
        assert told.follows(replace(evidence, flags={"gradient": ["no-gradient"]}), basis) != []
    (same,), (weaker,) = comparisons["same"], comparisons["weak"]
    assert same.own.successes.tolist() == same.theirs.successes.tolist()
    assert same.counted == ("gradient", "answers", "transfer both ways")
    assert weaker.counted == ("answers", "transfer both ways"), "the other has no gradient to be led by"
    assert weaker.own.successes.sum() < weaker.theirs.successes.sum()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"changes": [2, 1]}, "ascend"),
        ({"gate_changes": 4}, "not among changes"),
        ({"reach": 1.5}, "reach"),
        ({"chosen": {"reach": 1, "changes": 1, "kept": 1, "records": 1, "clean": 1, "probe": {}}}, "leave it out"),
    ],
)
def test_mistakes_are_explained(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ATTACKS.parse({"kind": "substitution", **fields})
    assert ATTACKS.parse(attack().model_dump(mode="json")) == attack()
