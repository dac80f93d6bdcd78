"""Policies: limits on figures, built in or of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from ..targets.errors import InputError
from . import words
from .plan import validated
from .settings import Settings, did_you_mean, fault
from .yaml_plan import SIZE_CAP, Source, load_yaml, read_text

SUBJECTS = {  # metric -> how a sentence calls it
    "accuracy": "accuracy",
    "mean_squared_error": "the mean squared error, as a share of the variance,",
    "robust_accuracy": "robust accuracy",
    "tpr_at_1_percent_fpr": "the share of members exposed at 1 % false accusations",
    "auc": "the membership attack's AUC",
    "fidelity": "the stolen copy's fidelity",
}
QUALITIES = ("accuracy", "mean_squared_error")  # of a candidate itself; the others are of findings
EXACT = 1e-9  # slack for rounding in a limit or an interval's end


class Policy(Settings):
    """Limits by metric: accuracy (or mean_squared_error), robust_accuracy, tpr_at_1_percent_fpr, auc, fidelity.

    All are fractions: 2 points are 0.02. A metric without a limit is reported and not judged.
    """

    name: str = Field(default="custom", min_length=1, max_length=200)
    changes: dict[str, float] = Field(
        default={},
        description="the worst change allowed against the candidate's own parent: accuracy -0.02 is at most 2 points "
        "lower, auc 0.05 is at most .05 higher",
    )
    absolutes: dict[str, float] = Field(
        default={}, description="the worst value allowed: robust_accuracy 0.4 is at least 40 %, auc 0.6 is at most .6"
    )

    @field_validator("changes", "absolutes")
    @classmethod
    def _known_metrics(cls, value: dict[str, float]) -> dict[str, float]:
        for metric, limit in value.items():
            if metric not in SUBJECTS:
                raise fault(did_you_mean("is not a metric", metric, list(SUBJECTS)), metric)
            if abs(limit) > 1:
                raise fault(f"{limit:g} is no fraction; 2 points are written 0.02", metric)
        return value

    @field_validator("changes")
    @classmethod
    def _signs(cls, value: dict[str, float]) -> dict[str, float]:
        for metric, limit in value.items():
            if (words.metric(metric).better == "higher" and limit > 0) or (
                words.metric(metric).better == "lower" and limit < 0
            ):
                raise fault(
                    f"{limit:g} asks for more than the parent has; to allow that much worse, write {-limit:g}", metric
                )
        return value

    @field_validator("absolutes")
    @classmethod
    def _not_negative(cls, value: dict[str, float]) -> dict[str, float]:
        for metric, limit in value.items():
            if limit < 0:
                raise fault(f"{limit:g} is no value this metric can take; changes stand under `changes`", metric)
        return value


BUILT_IN = {
    "release": Policy(
        name="release",
        changes={
            "accuracy": -0.02,
            "mean_squared_error": 0.02,
            "robust_accuracy": -0.05,
            "tpr_at_1_percent_fpr": 0.05,
            "auc": 0.05,
        },
    ),
    "robustness": Policy(
        name="robustness", changes={"accuracy": -0.02, "mean_squared_error": 0.02, "robust_accuracy": -0.05}
    ),
}


def load_policy(raw: str | Mapping[str, Any], folder: Path, source: Source | None = None) -> Policy:
    """The policy a plan or command line names: a built-in one, a YAML file seen from `folder`, or the limits.

    Raises:
        InputError: no such policy, or one that limits nothing; the message names the line where there is one.
        UnsafeInput: a tag in the file asks for a Python object.
    """
    if isinstance(raw, str) and raw in BUILT_IN:
        return BUILT_IN[raw]
    if not isinstance(raw, str):
        policy = validated(Policy, raw, source or Source("the policy"), () if source is None else ("policy",))
    elif Path(raw).suffix in (".yaml", ".yml", ".json") or "/" in raw:
        path = folder / raw
        values, lines = load_yaml(read_text(path, "policy", SIZE_CAP), path.name)
        named = {"name": path.stem[:200], **values} if isinstance(values, Mapping) else values
        policy = validated(Policy, named, lines)
    else:
        message = did_you_mean(f"there is no policy {raw!r}", raw, list(BUILT_IN))
        raise InputError(
            f"{message[0].upper()}{message[1:]} A policy of your own is named by its file, such as my.yaml."
        )
    if not policy.changes and not policy.absolutes:
        raise InputError(
            f"Policy {policy.name!r} limits nothing, so everything would pass. Give `changes`, `absolutes`."
        )
    return policy
