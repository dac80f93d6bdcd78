"""The data of an audit as rows: counts, what the values are, and how well a model does on each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...attacks.statistics.balanced import balanced_change, balanced_rate
from ...targets.data.data import Data
from ...targets.data.structure import PLAIN
from ..schema.data_rows import DataStructure, DataSummary, Encoding
from ..schema.rows import Change, Classes, Estimate, GroupEstimate
from .estimates import rate

FAR_MORE = 1.4  # times the mean number of records of a class
BEYOND_CHANCE = 4.0  # standard deviations above it


def data_summary(data: Data) -> DataSummary:
    return DataSummary(
        name=data.name,
        digest=data.digest,
        shape=list(data.shape),
        classes=list(data.class_names),
        members=None if data.members is None else len(data.members),
        non_members=len(data.non_members),
        evaluation=len(data.evaluation_ids),
        attacker=len(data.non_members) - len(data.evaluation_ids),
        forgotten=None if data.forgotten is None else len(data.forgotten),
        public=None if data.public is None else len(data.public),
        transfer=None if data.transfer is None else len(data.transfer.members) + len(data.transfer.evaluation),
        structure=_structure(data),
    )


def _structure(data: Data) -> DataStructure | None:
    found = data.structure
    if found == PLAIN:
        return None

    def called(positions: Sequence[int]) -> list[str]:
        return [found.names[at] if found.names else str(at) for at in positions]

    return DataStructure(
        features=list(found.names),
        immutable=called(found.immutable),
        one_hot=[called(block) for block in found.one_hot],
        codes=called(found.codes),
        integer=called(found.integer),
        tokens=found.tokens,
        whole=found.whole,
        encoded=[Encoding(column=one.column, categories=list(one.categories)) for one in found.encoded],
    )


def classes_row(data: Data, correct: Any, parent: str | None, parents: Any) -> Classes:
    """How well a classifier does on each class that occurs among the non-members.

    Args:
        correct: bool [n], of each non-member; parents: the same of the model it came from, or None.
        parent: its name.
    """
    labels = data.non_members.y.cpu().numpy()
    balanced = balanced_rate(correct, labels)
    change = None
    if parent is not None and parents is not None:
        moved = balanced_change(correct, parents, labels)
        change = Change(
            baseline=parent,
            baseline_estimate=balanced_rate(parents, labels).estimate,
            difference=moved.estimate,
            low=moved.low,
            high=moved.high,
        )
    sizes = np.bincount(labels, minlength=data.classes)
    mean = len(labels) / data.classes
    recalls = [
        GroupEstimate(name=data.class_names[label], **rate(correct[labels == label]).model_dump())
        for label in np.flatnonzero(sizes)
    ]
    return Classes(
        balanced_accuracy=Estimate(estimate=balanced.estimate, low=balanced.low, high=balanced.high, n=len(labels)),
        change=change,
        recalls=recalls,
        uneven=bool(sizes.max() > max(FAR_MORE * mean, mean + BEYOND_CHANCE * mean**0.5)),
    )
