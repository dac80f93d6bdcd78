"""Majority vote under noise: certificates no attack breaks, and an attacker who knows the vote."""

from __future__ import annotations

import json
import math
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from crushproof.attacks.case import Case
from crushproof.attacks.evasion.gradient.pgd import craft
from crushproof.attacks.extraction.extraction import Extraction
from crushproof.attacks.membership.averaging import VOTES, Averaged, neighbourhood
from crushproof.attacks.membership.membership import Membership
from crushproof.attacks.smoothing.smoothing import Smoothing
from crushproof.audit.subject.audited import Opened, exported
from crushproof.audit.suite.model_cells import opened_in
from crushproof.audit.suite.model_suite import _timed
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.deployment.structure import load_module, save_module
from crushproof.compression.recipe import RECIPES
from crushproof.compression.smoothed import SmoothedAnswers
from crushproof.defenses.defense import DEFENSES, CompressionDefense
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.model import TorchTarget
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.seeds import generator
from crushproof.targets.serving.smoothed import PROPERTY, NoisyVote, Voted, copies, radii, vote_of
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp

PRUNED = {"kind": "prune", "sparsity": 0.3}
SIGMA, WEIGHT = 0.3, torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0, 0.7])


def linear() -> nn.Module:
    """Class 1 where the weighted sum is above .35: under noise the boundary stays where it is."""
    module = nn.Linear(6, 2)
    with torch.no_grad():
        module.weight.copy_(torch.stack([torch.zeros(6), WEIGHT]))
        module.bias.copy_(torch.tensor([0.0, -0.35]))
    return module.eval()


def test_a_vote_is_that_of_the_definition_and_a_radius_never_too_far() -> None:
    """Of a linear model both are known: the share of votes, and the distance to the boundary."""
    x, module = torch.rand(40, 6, generator=generator(0, "smoothed")), linear()
    voted = Voted(TorchTarget(module), NoisyVote(SIGMA, 1000, torch.tensor(SIGMA)), key=5)
    margin = ((x @ WEIGHT - 0.35) / WEIGHT.norm()).numpy()
    expected = np.array([NormalDist().cdf(float(one) / SIGMA) for one in margin])
    answers = voted.logits(x)
    assert np.abs(answers.exp()[:, 1].numpy() - expected).max() < 0.06
    assert torch.equal(answers[7:9], voted.logits(x[7:9])), "the same record has the same noise, whoever asks when"
    labels, found = voted.certified(x, samples=500, alpha=1e-5)
    assert (found <= np.abs(margin)).all()
    sure = labels >= 0
    assert 20 < sure.sum() < 40, "and it abstains near the boundary"
    assert np.array_equal(sure, found >= 0)
    assert np.array_equal(labels[sure], (margin > 0)[sure])
    assert found[sure].mean() > 0.4 * np.abs(margin)[sure].mean()
    step = neighbourhood(Bounds.of(0, 1), (6,))
    assert step is not None
    short = Voted(TorchTarget(module), NoisyVote(SIGMA, 20, torch.tensor(SIGMA)), key=5)
    summed = Averaged(short, Bounds.of(0, 1), step, 16, seed=0).logits(x).exp()[:, 1].numpy() - expected
    alone = short.logits(x).exp()[:, 1].numpy() - expected
    assert np.square(summed).mean() < 0.25 * np.square(alone).mean(), "neighbours have votes of their own"
    few = Voted(TorchTarget(module), NoisyVote(SIGMA, 32, torch.tensor(SIGMA)), key=5)
    first = int(np.flatnonzero(sure)[found[sure].argmin()])
    way = float(np.sign(margin[first])) * torch.linspace(0.5, 0.99, 200)[:, None] * float(found[first])
    near = x[first] - way * WEIGHT / WEIGHT.norm()
    assert bool((few.logits(near).argmax(1) != labels[first]).any()), "few votes can miss it within the radius"
    again, _ = voted.certified(near, samples=200)
    assert set(again.tolist()) <= {labels[first], -1}, "which many do not: they keep the label or abstain"
    with pytest.raises(InputError, match=r"records of shape \[6\], and one here has the shape \[5\]"):
        Voted(TorchTarget(module), NoisyVote(SIGMA, 4, torch.full((6,), SIGMA))).logits(x[:, :5])
    noise = copies(x, torch.tensor(SIGMA), 400, 5) - x
    assert noise.std() == pytest.approx(SIGMA, rel=0.02)
    assert abs(float((noise[:, 0] * noise[:, 1]).mean())) < 0.02, "of two records independent"


@pytest.fixture(scope="module")
def nets(digits: Data) -> list[nn.Module]:
    assert digits.members is not None
    training = Training(epochs=6, learning_rate=5e-3)
    return [train(Mlp(64, 10, (32,)), digits.members, training, seed=seed) for seed in range(3)]


def smoothed(net: nn.Module, data: Data, **fields: float) -> tuple[SmoothedAnswers, Opened]:
    assert data.members is not None
    defense = DEFENSES.parse({"kind": "randomized-smoothing", **fields})
    assert isinstance(defense, CompressionDefense)
    (recipe,) = defense.recipes(RECIPES.parse(PRUNED))
    module = recipe.apply(net, data.members, data.bounds, seed=0)
    assert isinstance(module, SmoothedAnswers)
    return module, exported(to_onnx(module, data.shape), "onnx", lambda: module)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_who_knows_the_vote_does_no_worse_and_no_attack_breaks_a_certificate(
    nets: list[nn.Module], digits: Data, seed: int
) -> None:
    _, file = smoothed(nets[seed], digits, sigma=0.2, samples=16)
    some = digits.evaluation.take(torch.arange(40))
    twin = file.twin()
    assert twin is not None
    assert file.naive is not None
    assert isinstance(file.target, Voted)
    assert torch.equal(twin(some.x).argmax(1), file.target.logits(some.x).argmax(1)), "its class is that of the votes"

    def found(through: nn.Module, radius: float) -> Tensor:
        return craft(through, some, [radius], "l2", digits.bounds, seed=seed, steps=5)[radius]

    def wrong(x: Tensor) -> float:
        return float((file.target.logits(x).argmax(1) != some.y).float().mean())

    naive, knowing = found(file.naive(), 1.0), found(twin, 1.0)
    assert wrong(knowing) >= wrong(naive) - 0.05
    assert wrong(knowing) >= wrong(some.x) + 0.2, "a planted gain is none: gradients lead through votes"
    labels, reach = file.target.certified(some.x, samples=300)
    near = found(twin, 0.25)
    moved = (near - some.x).flatten(1).norm(dim=1).numpy()
    held = (reach >= moved) & (labels >= 0)
    again, _ = file.target.certified(near[torch.from_numpy(held)], samples=300)
    assert held.sum() >= 3
    assert ((again == labels[held]) | (again < 0)).all()


def test_it_is_deployed_stored_and_certified_as_such(nets: list[nn.Module], digits: Data) -> None:
    module, file = smoothed(nets[0], digits, samples=16)
    x = digits.evaluation.x[:12]
    assert file.checked is not None
    vote = vote_of(file.checked.model)
    assert vote is not None
    assert (vote.sigma, vote.samples) == (0.25, 16)
    with torch.no_grad():
        rebuilt = load_module(Mlp(64, 10, (32,)), *save_module(module))
        torch.testing.assert_close(rebuilt(x), file.target.logits(x))
        assert torch.equal(OnnxTarget(file.checked).logits(x).argmax(1), module.inner(x).argmax(1)), "the bare file"
    attack, defense = Smoothing(records=5, samples=100, compared=10), DEFENSES.parse("randomized-smoothing")
    assert isinstance(defense, CompressionDefense)
    knowing = DEFENSES.parse({"kind": "randomized-smoothing", "sigma": 0.1}).adapted(attack)
    assert isinstance(knowing, Smoothing)
    assert defense.adapted(Membership()) == Membership(neighbours=VOTES)
    assert knowing.sigma == 0.1, "a certificate is of the noise that is served"
    assert defense.adapted(Extraction()) == Extraction()
    ids = digits.evaluation_ids.numpy()
    case = Case(file.target, None, None, None, digits.evaluation, ids, digits.attacker, digits.bounds, 10)
    bare = Case(TorchTarget(module.inner), None, None, None, digits.evaluation, ids, digits.attacker, digits.bounds, 10)
    of_vote, of_base = (attack.run(one, seed=0).arrays for one in (case, bare))
    assert np.array_equal(of_vote["hits"], of_base["hits"]), "of the model inside, not of noise upon noise"
    served = file.target.logits(digits.evaluation.x[:5]).argmax(1) == digits.evaluation.y[:5]
    assert np.array_equal(of_vote["clean_correct"], served.numpy())
    assert (radii(np.array([0.5, 0.4]), 1.0) == -1).all()


def test_other_runtimes_and_timings_are_of_the_vote_too(nets: list[nn.Module], digits: Data) -> None:
    _, file = smoothed(nets[0], digits, samples=4)
    recipe = RECIPES.parse({"kind": "vote-under-noise", "recipe": PRUNED})
    model: Any = SimpleNamespace(file=None, kind="onnx", recipe=recipe, opened=lambda *_: file)
    runtime: Any = SimpleNamespace(check=lambda: None, phrase="another", open=lambda file, output: OnnxTarget(file))
    assert isinstance(opened_in(model, runtime, file), Voted)
    made: Any = SimpleNamespace(files={"model.onnx": b""})
    timed: Any = _timed(model, made, digits)
    assert timed() is file.target


def test_what_cannot_be_smoothed_is_refused(digits: Data) -> None:
    recipe = RECIPES.parse({"kind": "vote-under-noise", "recipe": PRUNED})
    values = Records(torch.rand(4, 2), torch.rand(4, 1))
    with pytest.raises(NotApplicable, match="predicts values"):
        recipe.apply(nn.Linear(2, 1), values, Bounds.of(0, 1), seed=0)
    with pytest.raises(InputError, match="leave out what limits answers"):
        RECIPES.parse({"kind": "vote-under-noise", "recipe": {"kind": "limit-answers", "recipe": PRUNED}})
    tokens = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(NotApplicable, match="by number"):
        recipe.apply(tokens, Records(torch.rand(4, 2), torch.zeros(4, dtype=torch.long)), Bounds.of(0, 1), seed=0)
    inside = nn.Sequential(SmoothedAnswers(0.1, 2, (2,)), nn.ReLU())
    with pytest.raises(NotApplicable, match="nothing goes around it"):
        to_onnx(inside, (2,))
    model = onnx.ModelProto()
    assert vote_of(model) is None


@pytest.mark.parametrize(
    "change",
    [
        {"sigma": math.inf},
        {"sigma": math.nan},
        {"sigma": -0.1},
        {"samples": 0},
        {"samples": 10**400},
        {"samples": 10_000},
        {"scale": [-1.0]},
        {"scale": [math.nan]},
        {"scale": ["\ud800"]},
        {"scale": [0.1] * 9, "shape": [3, 3]},
        {"scale": [0.1] * 2000, "shape": [2000, 1]},
        {"shape": None},
        None,
    ],
)
def test_metadata_that_nobody_could_serve_by_is_refused(change: dict[str, object] | None) -> None:
    said = {"sigma": 0.1, "samples": 5, "scale": [0.1] * 6, "shape": [6]}
    model = onnx.load_model_from_string(to_onnx(linear(), (6,)))
    entry = model.metadata_props.add(key=PROPERTY, value=json.dumps(said))
    assert vote_of(model) is not None
    entry.value = "[" * 100_000 if change is None else json.dumps(said | change)
    with pytest.raises(InputError, match="does not say how to serve it"):
        vote_of(model)
