"""Policies: limits on figures, built in or of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from ...attacks.risk import PROMISES, Metric
from ...targets.errors import InputError
from ..plan.plan import validated
from ..plan.settings import Settings, did_you_mean, fault
from ..plan.yaml_text import SIZE_CAP, Source, load_yaml, read_text
from ..schema.policy_rows import Compares, Limit

LEAVE_OUT = "Give a limit that can be missed, or leave it out: what is not limited is reported all the same"
EXACT = 1e-9  # slack for rounding in a limit or an interval's end


class Policy(Settings):
    """Limits by metric: accuracy (or mean_squared_error) and the figures of the attacks; the catalogue lists them.

    Shares and scores are fractions: 2 points are 0.02. A metric without a limit is reported and not judged.
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
    def _known_metrics(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        for name, limit in value.items():
            metric = _metric(name, info)
            if metric is not None and metric.unit != "number" and abs(limit) > 1:
                raise fault(f"{limit:g} is no fraction: as a share it is {limit / 100:g}", name)
        return value

    @field_validator("changes")
    @classmethod
    def _signs(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        for name, limit in value.items():
            metric = _metric(name, info)
            if metric in PROMISES:
                raise fault("is promised and no figure that changes; its limit stands under `absolutes`", name)
            if metric is not None and limit * (1 if metric.better == "higher" else -1) > 0:
                raise fault(
                    f"{limit:g} asks for more than the parent has; to allow that much worse, write {-limit:g}", name
                )
            if metric is not None and metric.unit != "number" and abs(limit) >= 1 - EXACT:
                raise fault(f"{limit:g} allows any loss, so that nothing can fail. {LEAVE_OUT}", name)
        return value

    @field_validator("absolutes")
    @classmethod
    def _not_negative(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        for name, limit in value.items():
            metric = _metric(name, info)
            if metric in PROMISES and limit <= 0:
                raise fault(f"{limit:g} is no epsilon that a training can promise; write 8, for example", name)
            if metric is not None and limit < 0 and metric.unit != "number":
                raise fault(f"{limit:g} is no value this metric can take; changes stand under `changes`", name)
            if metric is not None and metric.unit != "number":
                allows_all = limit <= EXACT if metric.better == "higher" else limit >= 1 - EXACT
                if allows_all:
                    raise fault(f"{limit:g} allows every value, so that nothing can fail. {LEAVE_OUT}", name)
        return value

    @property
    def limits(self) -> list[Limit]:
        """As rows of audit.json."""
        both: list[tuple[Compares, dict[str, float]]] = [("change", self.changes), ("absolute", self.absolutes)]
        return [
            Limit(metric=metric, compares=compares, limit=limit)
            for compares, values in both
            for metric, limit in values.items()
        ]


class FittedPolicy(Policy):
    """A policy without the limits that the inputs of an audit cannot decide (see `fitting`). It may limit nothing."""

    left_out: tuple[Limit, ...] = ()

    @property
    def limits(self) -> list[Limit]:
        return [*super().limits, *self.left_out]


def _metric(name: str, info: ValidationInfo) -> Metric | None:
    """One of the metrics that the policy is read for; None for a policy written in code, which is read for none."""
    if info.context is None:
        return None
    metrics: Mapping[str, Metric] = info.context
    if name not in metrics:
        raise fault(did_you_mean("is not a metric", name, list(metrics)), name)
    return metrics[name]


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

# What a figure is called leaky or fragile beyond, whatever the policy. No limit of `release`, which compares: a model
# may be no worse than its parent and both be weak. The report then says so beside the verdict. Of small digit nets with
# 600 members, LiRA with 16 shadows has AUC .64 and TPR 8 %, after DP-SGD of epsilon 8 .54 and 2 %; robust accuracy
# at L-inf .15 is 9 %, after adversarial training 49 % and more. The limits lie between.
ADVICE = {"robust_accuracy": 0.2, "tpr_at_1_percent_fpr": 0.05, "auc": 0.6}


def load_policy(
    raw: str | Mapping[str, Any], folder: Path, metrics: Mapping[str, Metric] | None, source: Source | None = None
) -> Policy:
    """The policy a plan or command line names: a built-in one, a YAML file seen from `folder`, or the limits.

    Args:
        metrics: those it may limit, by name; None: only looks whether there is such a policy, as it is written.

    Raises:
        InputError: no such policy, or one that limits nothing; the message names the line where there is one.
        UnsafeInput: a tag in the file asks for a Python object.
    """
    if isinstance(raw, str) and raw in BUILT_IN:
        return BUILT_IN[raw]
    if not isinstance(raw, str):
        at = () if source is None else ("policy",)
        policy = validated(Policy, raw, source or Source("the policy"), at, metrics)
    elif Path(raw).suffix in (".yaml", ".yml", ".json") or "/" in raw:
        path = folder / raw
        values, lines = load_yaml(read_text(path, "policy", SIZE_CAP), path.name)
        named = (
            {"name": path.stem[:200] if path.stem.casefold() not in BUILT_IN else path.name[:200], **values}
            if isinstance(values, Mapping)
            else values
        )
        policy = validated(Policy, named, lines, (), metrics)
    else:
        message = did_you_mean(f"there is no policy {raw!r}", raw, list(BUILT_IN))
        raise InputError(
            f"{message[0].upper()}{message[1:]} A policy of your own is named by its file, such as my.yaml."
        )
    if policy.name.strip().casefold() in BUILT_IN:
        raise InputError(
            f"A policy of your own is named {policy.name!r}, as one of the built-in ones is, and a reader of the "
            "verdict would take it for that. Give it another `name`."
        )
    if not policy.changes and not policy.absolutes:
        raise InputError(
            f"Policy {policy.name!r} limits nothing, so everything would pass. Give `changes`, `absolutes`."
        )
    return policy
