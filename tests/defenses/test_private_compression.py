"""Compression that looks at records through stated noise: what it spends, what it releases, what voids epsilon."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import dp_accounting
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.attacks.dp_audit.accounting import prv_composed
from crushproof.attacks.dp_audit.bounds import gaussian_epsilon
from crushproof.audit.engine.cells import Result
from crushproof.audit.findings.candidates import statement_of
from crushproof.audit.findings.results import AuditResults
from crushproof.audit.schema.rows import Candidate as CandidateRow
from crushproof.audit.subject.audited import Candidate, DenseModel
from crushproof.audit.verdict.policy import Policy
from crushproof.audit.verdict.promise_gate import promise_gate
from crushproof.compression.pruning.importance import private_taylor
from crushproof.compression.pruning.prune import Prune
from crushproof.compression.quantization.calibration import input_ranges
from crushproof.compression.quantization.private_ranges import private_ranges
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.recipe import RECIPES
from crushproof.defenses.adversarial_training import AdversarialTraining
from crushproof.defenses.defense import DEFENSES
from crushproof.defenses.dp_sgd import DpSgd
from crushproof.defenses.objectives import hyper_parameters
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.seeds import derive, generator
from crushproof.training.architecture import Architecture
from crushproof.training.lessons import together
from crushproof.training.loop import Training
from crushproof.training.networks import Mlp
from crushproof.training.privacy import Noised, PrivacyClaim
from crushproof.training.trainer import BuiltinTrainer

UNIT = Bounds.of(0, 1)
PRIVATE = {"epochs": 2, "batch_size": 50, "private": {"noise_multiplier": 3.0}}
NOISED = {"kind": "prune", "sparsity": 0.5, "importance": "taylor", "score_noise": 4.0}
CHAIN = {
    "kind": "chain",
    "steps": [
        {**NOISED, "fine_tune": PRIVATE, "steps": 2},
        {"kind": "quantize", "calibration_noise": 5.0, "calibration_records": 50},
    ],
}
PLAIN = {"kind": "prune", "sparsity": 0.5, "fine_tune": {"epochs": 2}}
TIED = {"kind": "share", "clusters": 4, "fine_tune": PRIVATE}
LESSON = {
    "epochs": 2,
    "batch_size": 10,
    "learning_rate": 0.05,
    "optimizer": "sgd",
    "weight_decay": 0,
    "schedule": "constant",
    "private": {"noise_multiplier": 0.5, "max_gradient_norm": 0.4},
}
ATTACK = {"norm": "linf", "epsilon": 0.1}
DEFENSE = DpSgd(noise_multiplier=2.0, batch_size=100, epochs=1)


def records(count: int = 200, seed: int = 0) -> Records:
    stream = generator(seed, "records")
    x = torch.rand(count, 6, generator=stream)
    return Records(x, (x[:, 0] > 0.5).long() + (x[:, 1] > 0.5).long())


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def values(module: nn.Module) -> Tensor:
    return torch.cat([value.float().flatten() for value in module.state_dict().values()])


def test_one_epsilon_of_training_and_compression_is_that_of_dp_accounting() -> None:
    """The oracle is given what is done, in its own words: the noise, rate and steps of each part."""
    spent = RECIPES.parse(CHAIN).spends(500)
    assert spent is not None
    oracle = PLDAccountant()
    for noise, rate, steps in ((2.0, 0.2, 15), (4.0, 1.0, 2), (3.0, 0.1, 40), (5.0, 0.1, 1)):
        one = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
        oracle.compose(dp_accounting.SelfComposedDpEvent(one, steps))
    whole = prv_composed((Noised("training", 2.0, 0.2, 15), *spent), 1e-5)
    assert whole == pytest.approx(oracle.get_epsilon(1e-5), rel=0.01)
    gaussians = (Noised("a", 3.0, 1.0, 1), Noised("b", 4.0, 1.0, 1))  # compose to one of 1 / sqrt(1 / 9 + 1 / 16)
    assert prv_composed(gaussians, 1e-5) == pytest.approx(prv_composed((Noised("c", 2.4, 1.0, 1),), 1e-5), rel=1e-3)


def test_little_that_is_spent_is_counted_as_closely_and_what_promises_nothing_at_once() -> None:
    """Gaussian releases of all records have a closed form (Balle and Wang 2018); tiny noise took gigabytes to count."""
    small = (Noised("scores", 20.0, 1.0, 1), Noised("ranges", 15.0, 1.0, 1))
    assert prv_composed(small, 1e-5) == pytest.approx(gaussian_epsilon(1 / 12, 1e-5), rel=0.01)
    with pytest.raises(NotApplicable, match=r"spends epsilon \d{6}\.\d\d, and may spend 8"):
        DpSgd(noise_multiplier=0.01).noise(150)
    with pytest.raises(InputError, match=r"epsilon: Input should be greater than or equal to 0\.01"):
        DEFENSES.parse({"kind": "dp-sgd", "epsilon": 1e-9})


@pytest.mark.parametrize(
    ("recipe", "spends"),
    [
        ({"kind": "prune", "sparsity": 0.5}, True),
        ({"kind": "quantize", "calibration_inputs": "noise"}, True),
        (NOISED, True),
        (CHAIN, True),
        ({"kind": "limit-answers", "recipe": CHAIN}, True),
        ({"kind": "factorize", "energy": 0.8, "fine_tune": PRIVATE}, True),
        (TIED, True),
        ({"kind": "distill", "training": PRIVATE}, True),
        ({"kind": "chain", "steps": [{"kind": "distill", "training": PRIVATE}, NOISED]}, True),
        ({"kind": "distill", "hint_weight": 1.0}, False),
        (PLAIN, False),
        ({**PLAIN, "importance": "taylor", "score_noise": 4.0}, False),
        ({"kind": "prune", "sparsity": 0.5, "importance": "taylor", "fine_tune": PRIVATE}, False),
        ({"kind": "factorize", "rank_choice": "cross-validation", "fine_tune": PRIVATE}, False),
        ("quantize", False),
        ({"kind": "quantize", "calibration_noise": 5.0, "fine_tune": {"epochs": 1}}, False),
        ({"kind": "mixed-precision", "quantize": {"calibration_noise": 5.0}}, False),
        ({"kind": "chain", "steps": [NOISED, "quantize"]}, False),
    ],
)
def test_one_look_without_noise_voids_epsilon(recipe: Any, spends: bool) -> None:
    parsed = RECIPES.parse(recipe)
    trainer = BuiltinTrainer(Training())
    architecture = Architecture("mlp", lambda: Mlp(6, 3))
    model = Candidate("a", DenseModel("dense-dp-sgd", architecture, trainer, DEFENSE), parsed)
    assert (model.void is None) == spends == (parsed.spends(200) is not None)
    assert Candidate("a", DenseModel("dense", architecture, trainer), parsed).void is None  # it promised nothing
    assert bool(parsed.spends(200)) == (spends and parsed.touches_records)


@pytest.mark.parametrize("claimed", [False, True], ids=["dp-sgd", "claim"])
def test_a_limit_on_epsilon_judges_the_file_that_ships(claimed: bool) -> None:
    """Training spends 1.0 of the 1.5 allowed; the noised look at the records fits in, one without noise voids it."""
    own = {"epsilon": 1.0, "delta": 1e-5, "noise_multiplier": 5.0, "sampling_rate": 0.1, "steps": 1}
    trained = Result(arrays={}, document={"statement": {} if claimed else own})
    subject = SimpleNamespace(data=SimpleNamespace(members=records(500)))
    suite = SimpleNamespace(subject=subject, training_cell=lambda name: name)
    results = cast(AuditResults, SimpleNamespace(suite=suite, get=lambda name: trained))
    promise = {"claim": PrivacyClaim(1.0, 1e-5)} if claimed else {"hardened": DEFENSE}
    parent = DenseModel("dense", Architecture("mlp", lambda: Mlp(6, 3)), BuiltinTrainer(Training()), **promise)

    def said(score_noise: float | None) -> tuple[Any, str]:
        recipe = RECIPES.parse({**NOISED, "score_noise": score_noise})
        statement = statement_of(results, Candidate("a", parent, recipe))
        row = SimpleNamespace(name="a", statement=statement)
        gate = promise_gate(cast(CandidateRow, row), Policy(absolutes={"epsilon": 1.5}))
        assert gate is not None
        return statement["epsilon"], gate.verdict

    plain = DenseModel("dense", parent.architecture, parent.trainer, AdversarialTraining())
    assert statement_of(results, Candidate("a", plain, RECIPES.parse(NOISED))) == trained.document["statement"]
    assert said(None) == ("void", "fail")
    epsilon, verdict = said(20.0)
    assert verdict == "pass"
    assert epsilon == pytest.approx(1 + gaussian_epsilon(1 / 20, 1e-5), abs=0.02) if claimed else 0 < epsilon < 1.5
    if claimed:
        assert said(2.0)[1] == "fail"
    else:
        told = DEFENSE.composed(own, (Noised("importance scores", 20.0, 1.0, 1),))
        assert told["training_epsilon"] == 1.0
        assert told["compression"] == "importance scores (noise 20.00, sampling rate 1.000, 1 step)"
        assert "with the compression" in DEFENSE.phrase(told)


@pytest.mark.parametrize(
    "recipe",
    [
        {**NOISED, "importance": "magnitude"},
        {"kind": "prune", "sparsity": 0.5, "importance": "adversarial-scores", "fine_tune": PRIVATE},
        {"kind": "quantize", "calibration_noise": 5.0, "activations": "dynamic"},
        {"kind": "quantize", "calibration_noise": 5.0, "calibration_inputs": "noise"},
        {"kind": "quantize", "calibration_noise": 5.0, "rounding": "adaptive"},
        {"kind": "quantize", "fine_tune": PRIVATE},
        {**PLAIN, "fine_tune": {**PRIVATE, "label_smoothing": 0.1}},
    ],
)
def test_noise_that_would_not_be_added_is_refused(recipe: Any) -> None:
    with pytest.raises((InputError, ValidationError)):
        RECIPES.parse(recipe)


def test_a_training_that_knows_no_private_steps_says_so() -> None:
    quantized = RECIPES.parse({"kind": "mixed-precision", "quantize": {"calibration_noise": 5.0}})
    assert quantized.spends(200) is None
    with pytest.raises(InputError, match="dp-sgd"):
        BuiltinTrainer(Training.model_validate(PRIVATE))
    with pytest.raises(NotApplicable, match="Regularisation adds no noise"):
        hyper_parameters(Training.model_validate(PRIVATE), BuiltinTrainer(Training()), "Regularisation")


@pytest.mark.parametrize("alpha", [0.7, 1.0])
def test_private_distillation_is_that_of_one_record_after_another(alpha: float) -> None:
    own, teacher = records(30), net()
    recipe = RECIPES.parse({"kind": "distill", "width": 1, "alpha": alpha, "temperature": 3, "training": LESSON})
    assert recipe.spends(30) == (Noised("distillation", 0.5, 10 / 30, 6),)
    student = recipe.apply(teacher, own, UNIT, seed=4)
    naive = Architecture.like(teacher, "student").fresh(derive(4, "student"))
    seed = derive(4, "training")
    sampling, noise = generator(seed, "poisson sampling"), generator(seed, "gaussian noise")
    optimizer = torch.optim.SGD(naive.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0)
    for _ in range(6):
        total = [torch.zeros_like(parameter) for parameter in naive.parameters()]
        drawn = torch.rand(30, generator=sampling) < 10 / 30
        for x, y in zip(own.x[drawn], own.y[drawn], strict=True):
            asked, soft = naive(x[None]), (teacher(x[None]) / 3).softmax(1)
            loss = 9 * F.kl_div(F.log_softmax(asked / 3, 1), soft, reduction="sum")
            loss = alpha * loss + (1 - alpha) * F.cross_entropy(asked, y[None])
            gradients = torch.autograd.grad(loss, list(naive.parameters()))
            length = torch.cat([one.flatten() for one in gradients]).norm()
            total = [a + b * min(1.0, 0.4 / float(length)) for a, b in zip(total, gradients, strict=True)]
        for parameter, one in zip(naive.parameters(), total, strict=True):
            parameter.grad = (one + 0.2 * torch.randn(one.shape, generator=noise)) / 10
        optimizer.step()
    for a, b in zip(student.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_of_private_distillation_what_would_need_more_noise_is_refused() -> None:
    with pytest.raises(InputError, match="without noise"):
        RECIPES.parse({"kind": "distill", "hint_weight": 1.0, "training": PRIVATE})
    assert RECIPES.parse({"kind": "distill", "training": PRIVATE}).hardened("robust_accuracy", ATTACK) == []


@pytest.mark.parametrize("recipe", [CHAIN, TIED], ids=["chain", "tied"])
def test_it_is_replayed_by_its_seed_and_keeps_what_was_compressed(recipe: Any) -> None:
    module, own = net(), records(60)
    parsed = RECIPES.parse(recipe)
    before = values(module)
    first, again, other = (parsed.apply(module, own, UNIT, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(values(first), values(again))
    assert not torch.equal(values(first), values(other))
    assert torch.equal(values(module), before)


def test_private_fine_tuning_keeps_zeros_and_is_the_same_beside_others() -> None:
    recipe = Prune.model_validate({**PLAIN, "fine_tune": PRIVATE})
    alone = [recipe.apply(net(), records(seed=seed), UNIT, seed=seed) for seed in (0, 1)]
    beside = together([recipe.work(net(), records(seed=seed), UNIT, seed=seed) for seed in (0, 1)])
    for one, other in zip(alone, beside, strict=True):
        torch.testing.assert_close(values(one), values(other))
        weights = torch.cat([layer.weight.flatten() for layer in one if isinstance(layer, nn.Linear)])
        assert int((weights == 0).sum()) == len(weights) // 2


def test_private_steps_refuse_what_lets_records_see_each_other() -> None:
    mixing = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    for raw in (NOISED, {**PLAIN, "fine_tune": PRIVATE}):
        with pytest.raises(NotApplicable, match="BatchNorm1d"):
            RECIPES.parse(raw).apply(mixing, records(), UNIT, seed=0)


def rows(scores: dict[str, Tensor]) -> Tensor:
    """What was released: the norm of each row of scores."""
    return torch.cat([value.norm(dim=1) for value in scores.values() if value.dim() > 1])


def test_noised_scores_are_sums_of_unit_parts_under_the_stated_noise() -> None:
    module, own = net(), records(40)
    layers = [layer for layer in module if isinstance(layer, nn.Linear)]
    parts = []
    for x, y in zip(own.x, own.y, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(module(x[None]), y[None]), [layer.weight for layer in layers])
        changes = [(g * layer.weight.detach()).norm(dim=1) for g, layer in zip(gradients, layers, strict=True)]
        parts.append(F.normalize(torch.cat(changes), dim=0))
    total = torch.stack(parts).sum(0).double()
    exact = private_taylor(module, own, 1e-9, seed=0)
    torch.testing.assert_close(rows(exact), total, rtol=1e-4, atol=1e-4)
    first, size = exact["0.weight"], layers[0].weight.detach().double().abs()
    torch.testing.assert_close(first, first.norm(dim=1, keepdim=True) * F.normalize(size))
    draws = torch.stack([rows(private_taylor(module, own, 0.5, seed=seed)) for seed in range(30)])
    well = total > 2  # four standard deviations: none was cut at zero
    assert float((draws - total)[:, well].std()) == pytest.approx(0.5, rel=0.15)


def test_no_record_moves_the_scores_by_more_than_one() -> None:
    """Records with gradients a million times larger, or with none that is finite, count like others."""
    module, own = net(), records(20)
    for wild in (torch.full((1, 6), 1e6), torch.full((1, 6), float("inf"))):
        more = Records(torch.cat([own.x, wild]), torch.cat([own.y, torch.tensor([0])]))
        before, after = (rows(private_taylor(module, one, 1e-9, seed=0)) for one in (own, more))
        assert float((after - before).norm()) <= 1 + 1e-3


def test_private_ranges_cover_nearly_all_records_and_follow_no_single_one() -> None:
    module, own = net(), records(250)
    layers = [layer for layer in module if isinstance(layer, nn.Linear)]
    noise = torch.rand(64, 6, generator=generator(9, "noise"))
    exact = input_ranges(module, layers, own.x, UNIT)
    cost = Noised("calibration ranges", 1.0, 1.0, 1)
    found = private_ranges(module, layers, own.x, noise, UNIT, cost, 0)
    assert found[0] == (0.0, 1.0), "what the bounds allow"
    for (low, high), (least, most) in zip(found[1:], exact[1:], strict=True):
        assert low == least == 0.0, "nothing is below a rectifier's zero"
        assert 0.7 * most <= high <= 3 * most
    wild = torch.cat([own.x, torch.full((1, 6), 1e5)])
    assert private_ranges(module, layers, wild, noise, UNIT, cost, 0)[1:] == found[1:]
    drowned = private_ranges(module, layers, own.x, noise, UNIT, replace(cost, noise_multiplier=1e5), 0)
    assert drowned == input_ranges(module, layers, noise, UNIT), "of noise, which no record decided"


def test_private_calibration_costs_little_accuracy() -> None:
    own = records(400)
    module = copy.deepcopy(net())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(module(own.x), own.y).backward()
        optimizer.step()
    quantized = Quantize(calibration_noise=2.0, calibration_records=400).apply(module, own, UNIT, seed=0)
    right, dense = ((one(own.x).argmax(1) == own.y).float().mean() for one in (quantized, module))
    assert float(right) >= float(dense) - 0.02


def test_a_noise_multiplier_gives_its_epsilon_or_is_refused() -> None:
    epsilon = prv_composed((Noised("training", 2.0, 0.2, 5),), 1e-5)
    assert DEFENSE.noise(500) == 2.0
    assert DEFENSE.privacy(500).epsilon == epsilon < 8
    with pytest.raises(NotApplicable, match="raise epsilon or the noise"):
        DEFENSE.model_copy(update={"epsilon": 0.9 * epsilon}).noise(500)
