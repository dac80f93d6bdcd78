"""What a file does to its inputs: planted shams against who does not know, and the attacker who does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from crushproof.attacks.evasion.gradient.pgd import craft
from crushproof.attacks.extraction.extraction import Extraction
from crushproof.audit.subject.audited import Opened, exported
from crushproof.audit.suite.attack_cells import true_gradients_of
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.deployment.structure import load_module, save_module
from crushproof.compression.inputs import NoiseInputs, TransformedInputs, TransformInputs
from crushproof.compression.recipe import RECIPES
from crushproof.compression.wrapping import Wrapper, behind, compressed_by
from crushproof.defenses.chain import parse_defenses, steps_of
from crushproof.defenses.defense import DEFENSES, CompressionDefense
from crushproof.defenses.stochastic_rounding import ExpectationTwin
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp

PRUNED = {"kind": "prune", "sparsity": 0.3}
ATTACKED = torch.arange(60)


def made(recipe: dict[str, Any], module: nn.Module, records: Records, bounds: Bounds) -> nn.Module:
    return RECIPES.parse(recipe).apply(module, records, bounds, seed=0)


def opened(module: nn.Module, data: Data) -> Opened:
    return exported(to_onnx(module, data.shape), "onnx", lambda: module)


@pytest.fixture(scope="module")
def nets(digits: Data) -> list[nn.Module]:
    assert digits.members is not None
    training = Training(epochs=6, learning_rate=5e-3)
    return [train(Mlp(64, 10, (32,)), digits.members, training, seed=seed) for seed in range(3)]


def fooled(opened: Opened, through: nn.Module | None, data: Data, seed: int, epsilon: float = 0.1) -> Tensor:
    """bool [n]: the file is wrong on what was crafted through that module."""
    assert through is not None
    some = data.evaluation.take(ATTACKED)
    found = craft(through, some, [epsilon], "linf", data.bounds, seed=seed, steps=6)[epsilon]
    return opened.target.logits(found).argmax(1) != some.y


def no_weaker(knowing: Tensor, naive: Tensor) -> bool:
    """Not clearly: by an exact McNemar test of the records that one of the two fools."""
    more, less = int((knowing & ~naive).sum()), int((naive & ~knowing).sum())
    return more + less == 0 or binomtest(less, more + less, alternative="greater").pvalue > 0.05


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rounded_inputs_only_look_like_a_win(nets: list[nn.Module], digits: Data, seed: int) -> None:
    """Planted gradient masking: the file's own gradients lead nowhere; straight through, they lead where they did."""
    assert digits.members is not None
    plain = made(PRUNED, nets[seed], digits.members, digits.bounds)
    (recipe,) = DEFENSES.parse({"kind": "transformed-inputs", "levels": 8}).recipes(RECIPES.parse(PRUNED))  # type: ignore[attr-defined]  # a CompressionDefense
    wrapped = opened(recipe.apply(nets[seed], digits.members, digits.bounds, seed=0), digits)
    without = fooled(opened(plain, digits), plain, digits, seed)
    twin = wrapped.twin()
    naive, knowing = (fooled(wrapped, one, digits, seed) for one in (true_gradients_of(twin), twin))
    assert without.float().mean() - naive.float().mean() >= 0.25
    assert knowing.float().mean() >= without.float().mean() - 0.05
    assert no_weaker(knowing, naive)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_on_inputs_is_averaged_over(nets: list[nn.Module], digits: Data, seed: int) -> None:
    """Who holds the file, and who draws noise of one's own, against who attacks the model as if there were none."""
    assert digits.members is not None
    defense = DEFENSES.parse({"kind": "noisy-inputs", "samples": 4, "draws": 3})
    assert isinstance(defense, CompressionDefense)
    shipped, *others = (
        one.apply(nets[seed], digits.members, digits.bounds, seed=0) for one in defense.recipes(RECIPES.parse(PRUNED))
    )
    assert isinstance(shipped, Wrapper)
    file = opened(shipped, digits)
    unaware = fooled(file, shipped.inner, digits, seed)
    knowing, expecting = (fooled(file, one, digits, seed) for one in (file.twin(), ExpectationTwin(others)))
    assert no_weaker(knowing, unaware)
    assert no_weaker(expecting, unaware)
    assert (
        knowing.float().mean()
        >= fooled(opened(shipped.inner, digits), shipped.inner, digits, seed).float().mean() - 0.1
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_inputs_and_answers_chained_are_attacked_behind_both(nets: list[nn.Module], digits: Data, seed: int) -> None:
    """Rounded inputs and labels only: the file's gradients are zero twice over, who knows both finds those of neither.

    Planted sham: what the chain seems to gain over no defense is gone under who knows it.
    """
    assert digits.members is not None
    chain = parse_defenses(["limited-answers", {"kind": "transformed-inputs", "levels": 8}])
    recipe = RECIPES.parse(PRUNED)
    for step in steps_of(chain):
        assert isinstance(step, CompressionDefense)
        (recipe,) = step.recipes(recipe)
    module = recipe.apply(nets[seed], digits.members, digits.bounds, seed=0)
    assert isinstance(behind(module), TransformedInputs)
    file = exported(to_onnx(module, digits.shape), "onnx", lambda: module, limited=True)
    assert file.naive is not None
    assert file.target.logits(digits.evaluation.x[:9]).exp().amax(1).allclose(torch.ones(9)), "it shows labels"
    plain = made(PRUNED, nets[seed], digits.members, digits.bounds)
    without = fooled(opened(plain, digits), plain, digits, seed)
    naive, knowing = (fooled(file, one, digits, seed) for one in (true_gradients_of(file.naive()), file.twin()))
    assert without.float().mean() - naive.float().mean() >= 0.25
    assert knowing.float().mean() >= without.float().mean() - 0.05
    assert no_weaker(knowing, naive)


class Detector(nn.Module):
    """A planted detector: an input with more in its outer columns than 97 % of honest ones have gets no class."""

    def __init__(self, inner: nn.Module, honest: Tensor) -> None:
        super().__init__()
        self.inner, self.limit = inner, self.seen(honest).quantile(0.97)

    @staticmethod
    def seen(x: Tensor) -> Tensor:
        return x[..., [0, 7]].flatten(1).sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.inner(x) * (self.seen(x) <= self.limit)
        return answers


def test_a_detector_is_passed_by_who_knows_what_it_looks_at(nets: list[nn.Module], digits: Data) -> None:
    """Who does not, is nearly always seen; who leaves the outer columns alone fools about as many as without it."""
    assert digits.members is not None
    some, bounds = digits.evaluation.take(ATTACKED), digits.bounds
    detector = Detector(nets[0], digits.members.x)
    outer = torch.zeros(1, 8, 8, dtype=torch.bool)
    outer[..., [0, 7]] = True

    def fools(within: Bounds, against: nn.Module) -> float:
        found = craft(nets[0], some, [0.15], "linf", within, seed=0, steps=6)[0.15]
        answers = against(found)
        return float(((answers.argmax(1) != some.y) & (answers != 0).any(1)).float().mean())

    naive, knowing = fools(bounds, detector), fools(Bounds(bounds.low, bounds.high, held=outer), detector)
    without = fools(bounds, nets[0])
    assert naive <= 0.15
    assert knowing >= without - 0.25
    assert knowing >= naive + 0.3


@pytest.mark.parametrize(
    "recipe",
    [
        {"kind": "transform-inputs", "levels": 5, "smoothing": "median"},
        {"kind": "transform-inputs", "smoothing": "mean", "window": 5},
        {"kind": "noise-inputs", "samples": 3},
        {"kind": "transform-inputs", "levels": 4, "recipe": {"kind": "limit-answers", "recipe": PRUNED}},
    ],
)
def test_the_file_answers_so_and_is_stored_and_rebuilt(recipe: dict[str, Any], digits: Data) -> None:
    assert digits.members is not None
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    module = made({"recipe": PRUNED, **recipe}, plain, digits.members, digits.bounds)
    x = digits.evaluation.x[:20]
    rebuilt = load_module(plain, *save_module(module))
    with torch.no_grad():
        expected = module(x)
        assert torch.equal(rebuilt(x), expected)
    file = opened(module, digits)
    torch.testing.assert_close(file.target.logits(x), expected, atol=1e-4, rtol=1e-4)
    twin = file.twin()
    assert twin is not None
    torch.testing.assert_close(twin(x), expected, atol=1e-4, rtol=1e-4)


def test_values_are_those_of_the_definition(digits: Data) -> None:
    """Against numpy and scipy; the layer that limits answers stays outermost whatever the order asked for."""
    from scipy.ndimage import median_filter, uniform_filter

    x = torch.rand(3, 2, 6, 5) * 4 - 1

    def changed(**fields: Any) -> Tensor:
        wrapper = TransformInputs(recipe=RECIPES.parse(PRUNED), **fields).wrapper(
            nn.Identity(), Records(x, torch.zeros(3, dtype=torch.long)), Bounds.of(-1, 3), seed=0
        )
        answers: Tensor = wrapper(x)
        return answers

    median = median_filter(x.numpy(), size=(1, 1, 3, 3), mode="nearest")
    torch.testing.assert_close(changed(smoothing="median"), torch.from_numpy(median))
    inside = uniform_filter(x.numpy(), size=(1, 1, 3, 3))[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(changed(smoothing="mean")[:, :, 1:-1, 1:-1], torch.from_numpy(inside))
    few = changed(levels=3)
    assert set(few.unique().tolist()) == {-1.0, 1.0, 3.0}
    assert float((few - x).abs().max()) <= 1.0
    limited = RECIPES.parse({"kind": "limit-answers", "recipe": PRUNED})
    outer = TransformInputs(recipe=limited, levels=4)
    assert digits.members is not None
    module = outer.apply(Mlp(64, 10, (8,)), digits.members, digits.bounds, seed=0)
    assert isinstance(behind(module), TransformedInputs)
    assert compressed_by(outer).kind == "prune"


def test_what_cannot_be_wrapped_is_refused() -> None:
    bounds, tokens = Bounds.of(0, 1), nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(4, 2))
    records = Records(torch.rand(4, 2), torch.zeros(4, dtype=torch.long))
    coarse: dict[str, Any] = {"kind": "transform-inputs", "recipe": PRUNED, "levels": 2}
    with pytest.raises(NotApplicable, match="by number"):
        made(coarse, tokens, records, bounds)
    with pytest.raises(NotApplicable, match="for images"):
        made({**coarse, "smoothing": "mean"}, nn.Linear(2, 2), records, bounds)
    noise = NoiseInputs(recipe=RECIPES.parse(PRUNED), samples=4)
    with pytest.raises(NotApplicable, match="predicts values"):
        noise.apply(nn.Linear(2, 1), Records(records.x, torch.rand(4, 1)), bounds, seed=0)
    held = Bounds(bounds.low, bounds.high, held=torch.tensor([True, False]))
    wrapper = noise.wrapper(nn.Linear(2, 2), records, held, seed=0)
    assert (wrapper.noise[:, 0] == 0).all()  # type: ignore[index]  # a buffer
    assert (wrapper.noise[:, 1] != 0).all()  # type: ignore[index]  # a buffer
    with pytest.raises(ValueError, match="levels"):
        TransformInputs(recipe=RECIPES.parse(PRUNED))
    for kind in ("noisy-inputs", {"kind": "transformed-inputs", "levels": 4}):
        defense = DEFENSES.parse(kind)
        assert defense.adapted(Extraction()) == Extraction()
