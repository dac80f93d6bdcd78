"""Weight sharing: k-means against scikit-learn, code books that last, and Deep Compression's three steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crushproof.compression.footprint.payload import decode, encode
from crushproof.compression.recipe import RECIPES
from crushproof.compression.share import share_values
from crushproof.targets.data.data import Data
from crushproof.targets.model import TorchTarget, accuracy

BRIEF = {"epochs": 1, "learning_rate": 2e-3, "batch_size": 64}


def kernels(module: nn.Module) -> list[Tensor]:
    return [layer.weight.detach() for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def shared(module: nn.Module, digits: Data, **fields: Any) -> nn.Module:
    assert digits.members is not None
    return RECIPES.parse({"kind": "share", **fields}).apply(module, digits.members, digits.bounds, seed=0)


@pytest.mark.parametrize("clusters", [2, 5, 16])
def test_shared_values_are_those_of_sklearns_k_means(clusters: int) -> None:
    from sklearn.cluster import KMeans

    values = torch.randn(700, generator=torch.Generator().manual_seed(clusters))
    table, assignment = share_values(values, clusters)
    ours = ((table[assignment] - values).double() ** 2).sum()
    start = np.linspace(float(values.min()), float(values.max()), clusters)[:, None]
    peer = KMeans(clusters, init=start, n_init=1, tol=0, max_iter=1000).fit(values.double().numpy()[:, None])
    assert float(ours) == pytest.approx(peer.inertia_, rel=0.01)
    # A fixed point of Lloyd's algorithm: every weight is at its nearest value, every value the mean of its weights.
    distances = (values[:, None] - table[None, 1:]).abs()
    torch.testing.assert_close(distances.min(1).values, (values - table[assignment]).abs())
    for cluster in range(1, len(table)):
        torch.testing.assert_close(values[assignment == cluster].double().mean().float(), table[cluster])


def test_separate_groups_are_split_as_by_trying_every_partition() -> None:
    values = torch.tensor([-1.0, -0.9, -0.95, 0.1, 0.2, 0.15, 0.8, 0.9])
    ordered = values.sort().values.numpy()
    best = min(
        sum(((part - part.mean()) ** 2).sum() for part in np.split(ordered, [i, j]))
        for i in range(1, 7)
        for j in range(i + 1, 8)
    )
    table, assignment = share_values(values, 3)
    assert float(((table[assignment] - values) ** 2).sum()) == pytest.approx(best, rel=1e-4)


def test_zeros_stay_zero_and_few_values_are_kept_exactly() -> None:
    values = torch.tensor([0.0, 0.5, 0.0, -0.25, 0.5])
    table, assignment = share_values(values, 4)
    assert torch.equal(table[assignment], values)
    table, assignment = share_values(torch.zeros(3), 4)
    assert torch.equal(table[assignment], torch.zeros(3))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_fine_tuned_weights_go_on_sharing(scope: str, dense: nn.Module, digits: Data) -> None:
    assert digits.members is not None
    before = RECIPES.parse({"kind": "prune", "sparsity": 0.5}).apply(dense, digits.members, digits.bounds, seed=0)
    plain = shared(before, digits, clusters=4, scope=scope)
    tuned = shared(before, digits, clusters=4, scope=scope, fine_tune=BRIEF)
    zeros, groups, values = kernels(before), kernels(plain), kernels(tuned)
    if scope == "global":  # one book for all: as if the layers were one
        zeros, groups, values = ([torch.cat([each.flatten() for each in part])] for part in (zeros, groups, values))
    for pruned, untrained, trained in zip(zeros, groups, values, strict=True):
        assert torch.equal(pruned == 0, trained == 0)
        assert len(trained.unique()) <= 5
        assert not torch.equal(untrained, trained)
        for value in untrained.unique():
            assert len(trained[untrained == value].unique()) == 1


def test_a_global_book_is_that_of_all_weights_together(dense: nn.Module, digits: Data) -> None:
    everything = torch.cat([weight.flatten() for weight in kernels(dense)])
    table, assignment = share_values(everything, 8)
    ours = torch.cat([weight.flatten() for weight in kernels(shared(dense, digits, clusters=8, scope="global"))])
    assert torch.equal(ours, table[assignment])


def test_fewer_bits_go_into_the_payload(dense: nn.Module, digits: Data) -> None:
    """At most ceil(log2 16) bits an index: the payload of 16 values is at least five times smaller (biases, norms)."""
    small = shared(dense, digits, clusters=16)
    payload = encode(small)
    assert len(encode(dense)) / len(payload) > 5
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in decode(payload, small).items())


def test_deep_compression(dense: nn.Module, digits: Data) -> None:
    """Prune, share, Huffman (arXiv:1510.00149): 9x at 1.5 points on a network this small, norms and all."""
    assert digits.members is not None
    tuning = {"epochs": 3, "learning_rate": 4e-3}
    chain = {
        "kind": "chain",
        "steps": [
            {"kind": "prune", "sparsity": 0.7, "fine_tune": tuning},
            {"kind": "share", "clusters": 16, "fine_tune": {"epochs": 1, "learning_rate": 5e-4}},
        ],
    }
    small = RECIPES.parse(chain).apply(dense, digits.members, digits.bounds, seed=0)
    payload = encode(small)
    assert len(encode(dense)) / len(payload) >= 9
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in decode(payload, small).items())
    x, y = digits.non_members.x, digits.non_members.y
    assert accuracy(TorchTarget(small), x, y) >= accuracy(TorchTarget(dense), x, y) - 0.015
