"""Whoever watches queries: distances as an oracle has them, a planted attacker is noticed, an honest client is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from crushproof.attacks.extraction.measure import queries_to
from crushproof.targets.errors import InputError
from crushproof.targets.serving.query_streams import (
    DELTA,
    ENOUGH,
    NONE,
    Watcher,
    normality,
    noticed_after,
    shortest_distances,
    threshold,
)


def stream(count: int, seed: int, features: int = 30) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, features, generator=draw), torch.randint(3, (count,), generator=draw)


def oracle(x: np.ndarray, labels: np.ndarray) -> list[float]:
    """Algorithm 3 of the paper, line by line."""
    found, sets, distances, limits = [], {}, {}, {}
    for record, c in zip(x, labels, strict=True):
        if c not in sets:
            sets[c], distances[c], limits[c] = [record], [0.0], 0.0
            found.append(NONE)
            continue
        nearest = min(np.linalg.norm(record - other) for other in sets[c])
        found.append(nearest)
        if nearest > limits[c]:
            sets[c].append(record)
            distances[c].append(nearest)
            limits[c] = max(limits[c], np.mean(distances[c]) - np.std(distances[c]))
    return found


def test_distances_are_those_of_the_paper() -> None:
    x, labels = stream(150, 0)
    x[100:] = x[:50] + 0.1 * stream(50, 1)[0]
    expected = oracle(x.double().numpy(), labels.numpy())
    assert shortest_distances(x, labels) == pytest.approx(expected, rel=1e-5)


def test_a_projection_keeps_large_distances() -> None:
    x, labels = stream(60, 0, features=3000)
    expected = np.array(oracle(x.numpy(), labels.numpy()))
    found = shortest_distances(x.view(60, 3, 1000), labels)
    assert found == pytest.approx(expected, rel=0.15)


def test_steps_from_earlier_queries_are_noticed_and_honest_ones_are_not() -> None:
    x, labels = stream(250, 2)
    honest = shortest_distances(x, labels)
    below = threshold(honest)
    assert below is not None
    assert 0.9 < below <= DELTA
    assert noticed_after(honest, below) is None
    assert noticed_after(shortest_distances(*stream(180, 3)), below - 0.02) is None
    start, answers = stream(100, 5)
    moved = torch.cat([start, start + 0.1 * torch.randn(100, 30).sign()])
    noticed = noticed_after(shortest_distances(moved, answers.repeat(2)), below)
    assert noticed is not None
    assert 100 < noticed < 180
    assert noticed_after(shortest_distances(torch.zeros(150, 4), labels[:150] * 0), below) is not None


def test_too_few_queries_are_not_judged() -> None:
    few = shortest_distances(*stream(ENOUGH, 6))
    assert normality(few) == []
    assert threshold(few) is None
    assert noticed_after(few, 1.1) is None


def test_each_client_is_watched_by_itself() -> None:
    """Planted: a thief who steps from earlier queries is found; honest clients and few queries are not."""
    x, labels = stream(250, 2)
    watcher = Watcher.calibrated(x, labels)
    start, answers = stream(100, 5)
    stolen = torch.cat([start, start + 0.1 * torch.randn(100, 30, generator=torch.Generator().manual_seed(7)).sign()])
    known = noticed_after(shortest_distances(stolen, answers.repeat(2)), watcher.below)
    honest = {f"client {seed}": stream(200, seed) for seed in (3, 4)}
    for at in range(0, 200, 25):
        part = slice(at, at + 25)
        watcher.see("thief", stolen[part], answers.repeat(2)[part])
        watcher.see(f"thief {at}", stolen[part], answers.repeat(2)[part])  # spread over many names
        for name, (queries, told) in honest.items():
            watcher.see(name, queries[part], told[part])
    assert known is not None
    assert watcher.noticed("thief") == known
    assert [watcher.noticed(name) for name in (*honest, "thief 175", "nobody")] == [None] * 4
    with pytest.raises(InputError, match="too few"):
        Watcher.calibrated(x[:50], labels[:50])


def test_a_watcher_keeps_the_queries_of_so_many_clients() -> None:
    """Whoever asked last is watched on; of the others the longest silent begins anew; a thief is not forgotten."""
    x, labels = stream(120, 3)
    watcher = Watcher(2.0, clients=2)  # whoever is judged is noticed
    watcher.see("thief", x, labels)
    for at in range(0, 90, 30):
        part = slice(at, at + 30)
        for name in ("steady", f"passing {at}"):
            watcher.see(name, x[part], labels[part])
    assert list(watcher._streams) == ["steady", "passing 60"]
    watcher.see("steady", x[90:], labels[90:])
    watcher.see("passing 0", x[30:], labels[30:])
    assert watcher.noticed("thief") == watcher.noticed("steady")
    assert watcher.noticed("passing 0") is None, "its first 30 queries are forgotten"
    assert set(watcher._judged) <= set(watcher._streams)


def test_queries_to_a_fidelity() -> None:
    assert queries_to([(100, 0.8), (400, 1.0)]) == pytest.approx(200)
    assert queries_to([(50, 0.95), (100, 0.8)]) == 50
    assert queries_to([(50, 0.5), (100, 0.4), (300, 0.9)]) == pytest.approx(300)
    assert queries_to([(50, 0.5), (500, 0.89)]) is None
