"""Exposure: records that a model memorised stand first, a null names next to nobody, and the table for the officer."""

from __future__ import annotations

import csv
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from crushproof.attacks.case import Evidence
from crushproof.attacks.inference.exposure import Exposure, log_odds, most_exposed
from crushproof.attacks.membership.case import ShadowSignals
from crushproof.attacks.membership.population import masks
from crushproof.audit.export import per_record
from crushproof.targets.data.data import Data
from crushproof.targets.errors import InputError

N = 600


def planted(seed: int, gap: float, loud: int) -> tuple[np.ndarray, ShadowSignals]:
    """Margins of a target, [n], and of 16 shadows; the first `loud` records are wrong unless they were trained on."""
    stream = np.random.default_rng(seed)
    inside, is_member, hard = masks(N, 16, seed), np.arange(N) < N // 2, stream.normal(4, 2, N)
    hard[:loud] = -4
    gaps = np.full(N, gap)
    gaps[:loud] = 8

    def margins(side: np.ndarray) -> np.ndarray:
        return (hard + gaps * side + stream.normal(size=side.shape)).astype(np.float32)

    return margins(is_member), ShadowSignals(inside, margins(inside))


def test_memorised_records_are_the_most_exposed_and_where_nothing_leaks_nobody_is() -> None:
    phi, shadows = planted(0, 0.3, 25)
    odds = log_odds(phi, shadows)
    assert len(set(most_exposed(odds[: N // 2], 38)) & set(range(25))) >= 23
    phi, shadows = planted(1, 0.0, 0)
    odds = log_odds(phi, shadows)
    assert (odds >= np.log(10)).mean() < 0.05


class Outcome:
    """What `measure` reads, of one model."""

    def __init__(self, data: Data, odds: np.ndarray) -> None:
        half = len(odds) // 2
        self.scope: Any = SimpleNamespace(data=data, shadows_differ=False)
        self.model: Any = SimpleNamespace(name="int8", parent=None, baselines=(), undeclared=False, void=None)
        arrays = {
            "ids": np.tile(np.arange(half), 2) + 100,
            "is_member": np.arange(2 * half) < half,
            "right": np.ones(2 * half, dtype=bool),
            "phi": odds.astype(np.float32),
            "log_odds": odds,
        }
        self.found = Evidence(arrays, {"shadows": 16})

    def evidence(self, ran: Any) -> Evidence:
        return self.found

    def prepared(self, preparation: Any) -> None:
        return None

    def flags(self, model: str) -> set[str]:
        return set()


def test_the_row_counts_members_alone_and_names_them_by_id(digits: Data) -> None:
    results = cast(Any, Outcome(digits, np.array([0.0, 9, 3, -1, 0, 0, 0, 5])))
    (row,) = Exposure().measure(results)
    assert cast(Any, row.outcome).successes.tolist() == [False, True, True, False]
    assert "101, 102, 100, 103" in row.notes[-1]
    assert "25.0 %" in row.notes[-1]
    assert {one.name: one.value for one in row.quantities}["others with such odds"] == 0.25
    assert digits.members is not None
    assert set(row.groups) == {digits.class_names[one] for one in digits.members.y[torch.arange(100, 104)]}
    table = Exposure().per_record(results)
    assert table is not None
    assert table.ids[table.order].tolist() == [101, 102, 100, 103]
    assert table.columns["non_members_with_such_odds"].tolist() == [1.0, 0.0, 0.25, 1.0]


def test_the_table_is_written_once_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [["candidate", "attack", "record", "odds"], ["int8", "exposure", 7, "12.5"]]
    monkeypatch.setattr(per_record, "_lines", lambda folder: iter(lines))
    file = tmp_path / "exposure.csv"
    assert per_record.write_per_record(tmp_path, file) == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(csv.reader(file.open()))[1] == ["int8", "exposure", "7", "12.5"]
    with pytest.raises(InputError, match="--out"):
        per_record.write_per_record(tmp_path, file)
    monkeypatch.setattr(per_record, "_lines", lambda folder: iter(lines[:1]))
    with pytest.raises(InputError, match="kind: exposure"):
        per_record.write_per_record(tmp_path, tmp_path / "other.csv")
    assert per_record._cell("=cmd()") == "'=cmd()"
