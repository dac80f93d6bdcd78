"""`extract`: a copy by one call, of whatever answers, from the records that tell most."""

from __future__ import annotations

import doctest
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import crushproof
import crushproof.attacks.extraction.extract as module_of_extract
from crushproof.attacks.extraction.answers import SEEN, Seen, as_logits, told
from crushproof.attacks.extraction.asking.queries import representative
from crushproof.attacks.extraction.asking.strategies import STRATEGIES, Strategy
from crushproof.attacks.extraction.extract import Extracted, extract
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.training.loop import Training
from crushproof.training.networks import Mlp


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))


def records(count: int, seed: int) -> Tensor:
    return 4 * torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)) - 2


class Probabilities:
    """Answers as the module within, through a softmax."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.queries = module, 0

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        self.queries += len(x)
        return torch.softmax(self.module(x), 1)


@pytest.fixture(autouse=True, scope="module")
def _fewer_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_of_extract, "LEAST_STEPS", 120)
        yield


@pytest.fixture(scope="module")
def copied() -> Extracted:
    return extract(net(), records(120, 0), budget=90)


def test_the_example_of_its_documentation_runs() -> None:
    assert crushproof.extract is extract
    found = doctest.DocTestFinder(recurse=False).find(extract, "extract", globs={})
    assert doctest.DocTestRunner().run(found[0]) == doctest.TestResults(0, 5)


def test_a_torch_module_is_copied_and_left_as_it_is(copied: Extracted) -> None:
    x = records(300, 1)
    assert copied.fidelity(x) >= 0.93
    assert copied.ledger.queries == len(copied.queries) == 90
    assert copied.architecture == "parent"
    before = net().state_dict()
    assert all(torch.equal(value, before[name]) for name, value in copied.target.module.state_dict().items())  # type: ignore[attr-defined]  # a TorchTarget
    first, again = (extract(net(), records(120, 0), budget=20, rounds=1).module for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert "90 queries" in repr(copied)


def test_probabilities_of_an_unknown_model_are_as_good_as_logits() -> None:
    target = Probabilities(net())
    copy = extract(target, records(120, 0), budget=90, architecture=lambda: Mlp(4, 3, (32,)), rounds=2)
    assert target.queries == 90
    assert copy.fidelity(records(300, 1)) >= 0.93
    quick = Training(epochs=1, batch_size=8)
    assert extract(target, records(20, 0), budget=8, rounds=1, training=quick).architecture == "mlp"


def test_a_file_is_copied_as_its_model_is(copied: Extracted) -> None:
    copy = extract(to_onnx(net().eval(), (4,)), records(120, 0), budget=90, architecture=net(), rounds=1)
    assert copy.fidelity(records(300, 1)) >= 0.93
    assert torch.equal(copy.queries, copied.queries)
    assert torch.allclose(copy.answers, copied.answers, atol=1e-5)


def test_more_queries_than_records_are_mixes(copied: Extracted) -> None:
    pool = records(20, 0)
    asked = extract(net(), pool, budget=50, rounds=1).queries
    assert len(torch.unique(asked, dim=0)) == 50
    assert torch.equal(asked[:20].sort(0).values, pool.sort(0).values)
    assert bool(((asked >= pool.amin(0)) & (asked <= pool.amax(0))).all())


def test_what_is_seen_of_an_answer() -> None:
    logits = torch.tensor([[4.0, 0.0, -3.0], [0.1, 0.2, 0.0]])
    exact = torch.softmax(logits, 1)
    seen = {answers: told(logits, answers, 1.0) for answers in SEEN}
    for distribution, temperature in seen.values():
        assert temperature == 1
        assert torch.allclose(distribution.sum(1), torch.ones(2))
        assert distribution.argmax(1).tolist() == [0, 1]
    assert torch.allclose(seen["scores"][0], exact)
    assert (seen["rounded"][0] - exact).abs().max() < 0.01
    assert not torch.equal(seen["rounded"][0], exact)
    assert torch.allclose(seen["top1"][0].amax(1), exact.amax(1))
    assert seen["top1"][0][0, 1] == seen["top1"][0][0, 2]
    assert seen["labels"][0].tolist() == [[1, 0, 0], [0, 1, 0]]
    moved = logits + torch.tensor([[0.0, 1e-5, 0.0], [0.0, 0.0, 1e-5]])
    hidden: tuple[Seen, ...] = ("rounded", "labels")
    assert all(torch.equal(told(moved, one, 3.0)[0], told(logits, one, 3.0)[0]) for one in hidden)
    tenths = told(logits, "rounded", 1.0, decimals=1)[0]
    assert 0.01 < (tenths - exact).abs().max() < 0.1
    assert torch.equal(tenths, told(logits + torch.tensor([0.01, 0.0, 0.0]), "rounded", 1.0, decimals=1)[0])
    assert torch.allclose(as_logits(exact).softmax(1), exact)
    assert torch.equal(as_logits(logits), logits)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_counts_its_queries_and_copies(strategy: Strategy) -> None:
    target = Probabilities(net())
    quick = Training(epochs=1, batch_size=32, learning_rate=2e-2)
    copy = extract(target, records(70, 0), budget=110, strategy=strategy, architecture=net(), rounds=1, training=quick)
    assert target.queries == len(copy.queries) == copy.ledger.queries == 110
    assert copy.fidelity(records(300, 1)) > 0.6
    assert torch.equal(copy.labels, net()(copy.queries).argmax(1))


def test_what_a_copy_is_good_for(copied: Extracted) -> None:
    x = records(300, 1)
    y = net()(x).argmax(1)
    assert copied.transfer(x, y, 1e-6, lower=-2, upper=2) == 0
    fooled = copied.transfer(x, y, 0.1, lower=-2, upper=2)
    own = extract(net(), records(120, 0), budget=2, rounds=1, training=Training(epochs=1)).transfer(
        x, y, 0.1, lower=-2, upper=2
    )
    assert fooled > own + 0.1
    assert copied.transfer(x, y, 0.5, lower=-2, upper=2) > fooled
    assert copied.noticed(x) is None, "90 queries are too few to be noticed"
    with pytest.raises(InputError, match="one class for each"):
        copied.transfer(x, y[:2])


def test_representative_records_stand_for_every_cloud() -> None:
    stream = torch.Generator().manual_seed(0)
    sizes = (150, 20, 20, 10)
    centres = 10 * torch.eye(4)
    pool = torch.cat([c + 0.1 * torch.randn(n, 4, generator=stream) for c, n in zip(centres, sizes, strict=True)])
    for seed in range(5):
        chosen = representative(pool, 4, seed=seed)
        assert sorted(pool[chosen].argmax(1).tolist()) == [0, 1, 2, 3]
    assert sorted(representative(pool, 200, seed=0).tolist()) == list(range(200))
    assert len(set(representative(torch.zeros(30, 2, 2), 7, seed=0).tolist())) == 7
    assert len(representative(torch.randn(50, 400, generator=stream), 5, seed=1).unique()) == 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pool": torch.zeros(3)}, "pool is of shape"),
        ({"pool": [[1.0]]}, "pool is a list"),
        ({"pool": torch.full((3, 4), torch.nan)}, "not finite"),
        ({"pool": torch.zeros(3, 5)}, "The target cannot be asked"),
        ({"budget": 0}, "budget is 0"),
        ({"temperature": 0.0}, "temperature 0"),
        ({"answers": "logits"}, "scores, rounded, top1, labels"),
        ({"strategy": "active"}, "random, representative, adaptive"),
        ({"decimals": 0}, "decimals 1 to 6"),
        ({"architecture": nn.Linear(4, 2)}, "3 classes"),
        ({"architecture": nn.Linear(5, 3)}, "The architecture is none"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], words: str) -> None:
    given = {"pool": records(20, 0), "training": Training(epochs=1), **settings}
    with pytest.raises(InputError, match=words):
        extract(net(), **given)  # type: ignore[arg-type]  # that is the mistake


def test_a_target_without_answers_to_learn_is_none() -> None:
    with pytest.raises(NotApplicable, match="two classes"):
        extract(nn.Linear(4, 1), records(20, 0))
    with pytest.raises(NotApplicable, match="NaN"):
        extract(nn.Sequential(nn.Linear(4, 3), nn.Threshold(1e9, float("nan"))), records(20, 0))
