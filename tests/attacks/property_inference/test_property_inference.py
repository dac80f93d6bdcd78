"""Property inference: samples have their shares, a share that models tell is read, one that they do not tell is not."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from known_results import Known
from torch import nn

from crushproof.attacks.preparation import Basis
from crushproof.attacks.property_inference.preparations import ModelsAtShares
from crushproof.attacks.property_inference.property_inference import PropertyInference
from crushproof.attacks.property_inference.shares import FEWEST, PORTION, Question, asked_of
from crushproof.attacks.property_inference.telling import estimated, of_margins, of_weights, reader, told_right
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training
from crushproof.training.networks import Mlp
from crushproof.training.trainer import BuiltinTrainer

QUESTION = Question(column=3, label=None, above=None, shares=(0.2, 0.8), repetitions=8)
ATTACK = PropertyInference(column=3, shares=(0.2, 0.8), models=8)
INT8 = Quantize(weight_bits=8, activations="float")


def table(n: int, share: float, seed: int) -> Records:
    """Three numbers and a property: with it the second number says the class, without it the first."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, 4)).astype(np.float32)
    x[:, 3] = rng.random(n) < share
    return Records(
        torch.from_numpy(x), torch.from_numpy((np.where(x[:, 3] > 0, x[:, 1], x[:, 0]) > 0.5).astype(np.int64))
    )


@pytest.fixture(scope="module")
def data() -> Data:
    return Data("table", table(500, 0.4, 0), table(600, 0.5, 1), Bounds.of(0, 1), ("no", "yes"))


class Parent:
    """A dense model as an attacker knows it: it never sees the property's column."""

    name, hardened = "dense", None
    architecture = Architecture("mlp", lambda: nn.Sequential(Blind(), Mlp(3, 2, ())))
    trainer = BuiltinTrainer(Training(epochs=12, learning_rate=2e-2))

    def side_by_side(self, device: torch.device) -> int:
        return 16


class Blind(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :3]


def model_of(recipe: Any) -> Any:
    return SimpleNamespace(name="m", parent=Parent(), recipe=recipe, undeclared=False, baselines=("m",), is_dense=False)


def test_samples_have_their_shares_and_pools_are_apart(data: Data) -> None:
    assert data.members is not None
    shares = QUESTION.settled(data)
    plan, members = shares.plan(data, 0), len(data.members)
    has, outside = shares.having.of(plan.records), len(plan.records) - members
    sizes = plan.inside.sum(1)
    assert set(sizes.tolist()) == {int(PORTION * float(has[outside:].sum()) / 0.8)}
    for inside, share, held_out in zip(plan.inside, shares.share, shares.held_out, strict=True):
        assert float(has[torch.from_numpy(inside)].double().mean()) == pytest.approx(share, abs=0.5 / sizes[0] + 1e-9)
        assert bool(inside[outside:].any()) == bool(held_out) != bool(inside[:outside].any())
    asked = data.attacker.x[: asked_of(data)]
    assert not (plan.records.x[:, None] == asked[None]).all(2).any(), "nobody is trained on what is asked"
    usual = Question(None, 1, None, None, 8).settled(data)
    share = float((data.attacker.y == 1).double().mean())
    assert usual.shares == pytest.approx(
        (share - min(share, 1 - share) / 2, share + min(share, 1 - share) / 2), abs=1e-3
    )
    with pytest.raises(NotApplicable, match=f"samples of {FEWEST}"):
        Question(0, None, 0.99, (0.5, 0.9), 8).settled(data).plan(data, 0)


def test_a_share_is_read_where_it_is_told_and_nowhere_else() -> None:
    rng, share = np.random.default_rng(0), np.tile([0.2, 0.8], 16)
    way, fit, held, covered = rng.normal(size=40), np.arange(32) < 16, np.arange(32) >= 16, 0
    right = {0.0: 0, 3.0: 0}
    for strength in right:
        for _ in range(10):
            told = strength * share[:, None] * way + rng.normal(size=(32, 40))
            by, error = reader(told[fit], share[fit])
            assert (error < 0.6) or not strength
            read = by.read(told[held])
            right[strength] += int(told_right(read, share[held], 0.5).sum())
            own = float(by.read(strength * 0.35 * way[None] + rng.normal(size=(1, 40)))[0])
            estimate, low, high = estimated(own, read, share[held])
            assert 0 <= low <= estimate <= high <= 1
            covered += low <= 0.35 <= high
    assert right[3.0] >= 0.95 * 160
    assert abs(right[0.0] - 80) < 4 * 7
    assert covered >= 16


def test_what_is_told_does_not_depend_on_scale_or_on_the_order_of_units() -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(6, 4), "b": torch.randn(3, 6)}
    order = torch.randperm(6)
    moved = {"a": 2 * weights["a"][order], "b": weights["b"][:, order]}
    assert np.allclose(of_weights(weights), of_weights(moved))
    phi = np.random.default_rng(0).normal(size=(2, 30))
    assert np.allclose(of_margins(phi), of_margins(3 * phi + 1))


def test_the_whole_way(data: Data) -> None:
    assert data.members is not None
    scope: Any = SimpleNamespace(data=data, seed=0, device="cpu", shadow_notes=(), shadows_differ=False)
    model = model_of(INT8)
    (run,) = ATTACK.runs(model, scope)
    told, made = run.needs[0], {}  # type: ignore[var-annotated]  # by need
    dense = Mlp(3, 2, ())
    shipped = to_onnx(nn.Sequential(Blind(), dense).eval(), (4,))
    inputs: Any = SimpleNamespace(
        scope=scope, device=torch.device("cpu"), prepared=lambda need: made[need],
        case=lambda name: SimpleNamespace(shipped=shipped), weights=lambda name: nn.Sequential(Blind(), dense),
    )  # fmt: skip
    for need in (*told.needs, told):  # type: ignore[union-attr]  # a preparation
        made[need] = need.compute(inputs)
        need.form(scope).check(json.dumps(made[need].document).encode(), made[need].document, made[need].arrays, {})
    assert run.prepare is not None
    given = run.prepare(inputs)
    chunk = told.needs[0]  # type: ignore[union-attr]  # a preparation
    assert isinstance(chunk, ModelsAtShares)
    case = case_of(data, chunk.trained(inputs)[0], prepared=given, shipped=shipped)
    evidence = ATTACK.run(case, seed=0)
    form = ATTACK.form(model, scope)
    form.check(json.dumps(evidence.summary).encode(), evidence.summary, evidence.arrays, {})
    assert set(evidence.summary["parts"]) == {"scores", "weights"}
    results: Any = Known(scope, model, {"m": evidence})
    results.level = 0.95
    (figure,) = ATTACK.measure(results)
    assert figure.outcome.successes.sum() >= 7, "of 8"  # type: ignore[union-attr]  # a rate
    assert "column 3 are 20 % or 80 %" in figure.attack
    truth = 100 * float((data.members.x[:, 3] > 0).double().mean())
    assert any(f"it is {truth:.1f} %" in one for one in figure.notes)
    basis = Basis(lambda: given, True)
    assert ATTACK.follows(evidence, basis) == ATTACK.asked_again(evidence, case) == []
    evidence.arrays["phi"] = evidence.arrays["phi"][::-1].copy()
    assert ATTACK.follows(evidence, basis)
    assert ATTACK.asked_again(evidence, case)


def test_where_there_is_no_property(data: Data) -> None:
    scope: Any = SimpleNamespace(data=data, seed=0, device="cpu")
    none, model = PropertyInference(), model_of(None)
    assert none.runs(model, scope) == ()
    (row,) = none.measure(Known(scope, model, {}))  # type: ignore[arg-type]  # enough of one
    assert row.reason is not None
    assert "column: 3" in row.reason
    with pytest.raises(NotApplicable, match="no property"):
        none.run(case_of(data, nn.Flatten()), seed=0)
    for wrong, words in (({"column": 9}, "4 features"), ({"label": "yess"}, "'yes'"), ({"column": "0-2"}, "several")):
        with pytest.raises(InputError, match=words):
            PropertyInference(**wrong).runs(model, scope)
    with pytest.raises(ValueError, match="two properties"):
        PropertyInference(column=1, label="yes")
    undeclared = SimpleNamespace(**{**model.__dict__, "undeclared": True})
    assert ATTACK.runs(undeclared, scope) == ()  # type: ignore[arg-type]  # enough of one
