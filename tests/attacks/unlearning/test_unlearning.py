"""Unlearning: the score against a naive oracle, planted and true forgetting, what a report says of each."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import nn

from crushproof.attacks.access import Flag
from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.membership.population import plan_population
from crushproof.attacks.membership.preparations import ShadowModels
from crushproof.attacks.membership.replayed import SignalsOfShadows, replays_of
from crushproof.attacks.membership.scoring.bavaria import shrinkage
from crushproof.attacks.membership.signals import phi_of
from crushproof.attacks.preparation import Basis, Prepared, Scope
from crushproof.attacks.statistics.ranking import auc
from crushproof.attacks.unlearning.scores import ForgettingCase, known_beyond, null_of
from crushproof.attacks.unlearning.unlearning import Unlearning, forgetting_case
from crushproof.audit.findings.estimates import estimate
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.model import TorchTarget
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training
from crushproof.training.trainer import BuiltinTrainer

F, H, K = 60, 120, 16  # records to forget, others, shadows


def case_of(rng: np.random.Generator, common: float = 0.0, control: Any = None) -> ForgettingCase:
    """Margins Normal(difficulty, 1), those of records to forget moved together by Normal(0, common) in each shadow."""
    inside = np.zeros((K, F + H), dtype=bool)
    for pair in range(0, K, 2):
        inside[pair, F + rng.permutation(H)[: H // 2]] = True
        inside[pair + 1, F:] = ~inside[pair, F:]
    difficulty = 3 * rng.standard_normal(F + H)
    phi = difficulty + rng.standard_normal((K, F + H)) + 3 * inside
    phi[:, :F] += common * rng.standard_normal((K, 1))
    records = Records(torch.zeros(F + H, 2), torch.arange(F + H) % 2)
    return ForgettingCase(records, F, np.arange(H), inside, phi.astype(np.float32), control)


class Says:
    """A deployed model with these margins, two classes."""

    def __init__(self, phi: np.ndarray, y: torch.Tensor) -> None:
        self.phi, self.y, self.queries = torch.from_numpy(phi), y, 0

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        own = torch.nn.functional.one_hot(self.y[: len(x)], 2).float()
        return own * self.phi[: len(x), None]


def ran(asked: ForgettingCase, phi: np.ndarray) -> Evidence:
    few = asked.records.take(torch.arange(20))
    deployed: Any = Says(phi.astype(np.float32), asked.records.y)
    none: dict[str, Any] = {"twin": None, "native": None, "parent": None}
    case = Case(
        deployed,
        evaluation=few,
        ids=np.arange(20),
        attacker=few,
        bounds=Bounds.of(0, 1),
        classes=2,
        prepared=asked,
        **none,
    )
    return Unlearning().run(case, seed=0)


def test_the_score_is_a_distance_in_standard_deviations() -> None:
    rng = np.random.default_rng(0)
    asked = case_of(rng)
    assert asked.phi is not None
    assert asked.inside is not None
    phi, keep = rng.standard_normal((2, F + H)), np.ones((2, K), dtype=bool)
    keep[1, :4] = False
    found = known_beyond(phi, asked.phi, ~asked.inside, keep)
    for target in range(2):
        outs = [asked.phi[keep[target] & ~asked.inside[:, at], at].astype(float) for at in range(F + H)]
        n = np.array([len(one) for one in outs])
        variance = np.array([one.var(ddof=1) for one in outs])
        squares = ((n - 1) * variance)[None]
        flat = np.zeros_like(squares), np.ones_like(squares, dtype=bool)
        d0, s0 = (float(one[0, 0]) for one in shrinkage(squares, (n - 1.0)[None], *flat))
        shrunk = ((n - 1) * variance + d0 * s0) / (n - 1 + d0)
        expected = (phi[target] - [one.mean() for one in outs]) / np.sqrt(shrunk * (1 + 1 / n))
        assert found[target] == pytest.approx(expected, abs=1e-4)


def test_what_is_remembered_is_found_and_what_is_forgotten_is_not() -> None:
    rng, found = np.random.default_rng(1), []
    for _ in range(20):
        asked = case_of(rng)
        assert asked.phi is not None
        centre = np.where(asked.inside, np.nan, asked.phi)
        fresh = np.nanmean(centre, axis=0) + rng.standard_normal(F + H)
        pair = [ran(asked, fresh), ran(asked, fresh + 1.5 * asked.is_forgotten)]
        found.append([estimate(Unlearning().measure(results(one))[0].outcome) for one in pair])  # type: ignore[arg-type]  # there is one
    assert sum(clean.low <= 0.5 <= clean.high for clean, _ in found) >= 17
    assert all(known.low > 0.6 for _, known in found)


def results(evidence: Evidence | None, shadows_differ: bool = False) -> Any:
    forgotten = Records(torch.zeros(F, 2), torch.arange(F) % 2)
    data = SimpleNamespace(forgotten=forgotten, class_names=("a", "b"))
    scope = SimpleNamespace(data=data, shadow_notes=(), shadows_differ=shadows_differ)
    model = SimpleNamespace(name="int4", baselines=("dense",), parent=object(), undeclared=False)
    return SimpleNamespace(
        scope=scope, model=model, evidence=lambda _: evidence, why=lambda _: "it failed", flags=lambda _: set()
    )


def test_what_varies_among_models_alike_widens_the_interval() -> None:
    rng = np.random.default_rng(2)
    quiet, moved = (null_of(case_of(rng, common)) for common in (0.0, 1.0))
    assert quiet is not None
    assert moved is not None
    assert quiet.spread < 0.03 < 0.1 < moved.spread
    assert abs(quiet.auc_mean - 0.5) < 0.03


def test_a_model_that_remembers_everything_is_told_though_models_vary() -> None:
    """A shift of all scores by .35 moves an area of .5 by .1, and one of .96 far less."""
    rng, truth, found = np.random.default_rng(5), float(ndtr(2.5 / 2**0.5)), []
    for _ in range(300):
        scores = rng.standard_normal(260)
        scores[:60] += 2.5 + 0.1 * 2**0.5 * (2 * np.pi) ** 0.5 * rng.standard_normal()
        found.append(auc(scores, np.arange(260) < 60, spread=0.1))
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.93
    assert np.median([one.low for one in found]) > 0.85


def test_a_retrained_model_stands_in_for_shadows() -> None:
    rng = np.random.default_rng(3)
    control = rng.standard_normal(F + H).astype(np.float32)
    asked = case_of(rng, control=control)
    alone = ForgettingCase(asked.records, F, asked.ids, None, None, control)
    evidence = ran(alone, control + 0.3 * rng.standard_normal(F + H) + asked.is_forgotten)
    assert (evidence.summary["headline"], evidence.summary["null"], evidence.flags) == ("retrained", None, {})
    assert estimate(Unlearning().measure(results(evidence))[0].outcome).low > 0.9  # type: ignore[arg-type]  # as above
    nothing = ran(ForgettingCase(asked.records, F, asked.ids, None, None, None), control)
    assert nothing.flags == {"population": [Flag.NO_SHADOWS.value]}
    assert Flag.DISTRIBUTION_SHIFT.value in Unlearning().measure(results(nothing))[0].flags


def test_evidence_follows_from_its_margins_or_is_told() -> None:
    rng = np.random.default_rng(4)
    asked = case_of(rng)
    evidence = ran(asked, rng.standard_normal(F + H))
    basis = Basis(lambda: asked, True)
    assert Unlearning().follows(evidence, basis) == []
    evidence.arrays["score/shadows"][0] += 1
    evidence.summary["null"]["spread"] += 0.2
    assert len(Unlearning().follows(evidence, basis)) == 2


def test_a_reason_where_nothing_was_measured() -> None:
    assert [one.reason for one in Unlearning().measure(results(None))] == ["it failed"] * 2
    with pytest.raises(NotApplicable, match="no records to forget"):
        Unlearning().run(SimpleNamespace(prepared=None), seed=0)  # type: ignore[arg-type]  # all it looks at


def test_shadows_never_saw_what_is_to_be_forgotten() -> None:
    """From data to a case: the same shadows as membership's, asked about the records to forget as well."""
    draws = torch.Generator().manual_seed(0)
    x, y = torch.rand(90, 4, generator=draws), torch.arange(90) % 2
    split = [Records(x[at], y[at]) for at in (slice(0, 30), slice(30, 75), slice(75, 90))]
    data = Data("d", split[0], split[1], Bounds.of(0, 1), ("a", "b"), forgotten=split[2])
    architecture = Architecture("linear", lambda: nn.Linear(4, 2))
    parent: Any = SimpleNamespace(
        name="dense",
        architecture=architecture,
        trainer=BuiltinTrainer(Training(epochs=1)),
        hardened=None,
        side_by_side=lambda device: 1,
        stacks=lambda device: (1, 1),
    )
    model = SimpleNamespace(name="dense", parent=parent, recipe=None)
    scope = Scope("unlearning", data, 0, 6, 4, {"dense": model})  # type: ignore[dict-item]  # all that is looked at
    plan = plan_population(data, 6, seed=0)
    gone = {tuple(row) for row in split[2].x.tolist()}
    assert not gone & {tuple(row) for row in plan.records.x.tolist()}
    chunk, recipe = ShadowModels(parent, 0, 6), Quantize(activations="float", keep_ends_8bit=False)
    inputs: Any = SimpleNamespace(scope=scope, device=torch.device("cpu"))
    trained = chunk.compute(inputs).arrays
    signals = SignalsOfShadows(parent, recipe, replays_of(parent, recipe, (chunk,), 6, torch.device("cpu")), 6)
    known = {chunk.name: Prepared(trained)}
    inputs.prepared = lambda need: known[need.name]
    for one in (*signals.replays, signals):
        known[one.name] = one.compute(inputs)
    asked = forgetting_case(signals, None, inputs)
    assert asked.phi is not None
    assert asked.phi.shape == (4, 15 + 30), "as many shadows as recipes that train get"
    module = architecture.blank()
    module.load_state_dict({key: torch.from_numpy(trained[f"0/{key}"]) for key in ("weight", "bias")})
    rounded = recipe.apply(module, split[0], data.bounds, seed=0)
    assert np.allclose(asked.phi[0, :15], phi_of(TorchTarget(rounded), split[2]), atol=1e-4)
    for count, name in ((4, "shadows"), (1, "population"), (0, "population")):
        few = replace(scope, training_free=count, trained=count)
        run = Unlearning().runs(model, few)[0]  # type: ignore[arg-type]  # as above
        assert len(run.needs) == (count > 1)
        layout: Any = Unlearning().form(model, few).arrays  # type: ignore[arg-type]  # as above
        assert {one for one in layout(None) if "/" in one} == {f"score/{name}"}
        if count < 2:
            given: Any = SimpleNamespace(scope=few)
            case: Any = SimpleNamespace(prepared=run.prepare(given), deployed=TorchTarget(module), attacker=split[1])
            evidence = Unlearning().run(case, seed=0)
            assert evidence.summary["headline"] == "population"
            assert evidence.flags == {"population": [Flag.NO_SHADOWS]}
    with pytest.raises(InputError, match="'other' is no model of this plan"):
        Unlearning(retrained="other").runs(model, scope)  # type: ignore[arg-type]  # as above
