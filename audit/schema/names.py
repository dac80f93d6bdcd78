"""That an audit explains every risk and figure that it names, each under its own name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...attacks.risk import PROMISES, QUALITIES, Metric, Risk


def check_names(risks: Mapping[str, Risk], metrics: Mapping[str, Metric], used: Iterable[str]) -> None:
    """Args:
        used: names of figures that the rows of the audit use.

    Raises:
        ValueError: one is not explained, stands under another name than its own, or is another figure than ours.
    """
    unknown = sorted(set(used) - set(metrics))
    if unknown:
        raise ValueError(f"{unknown[0]!r:.80} is not among `metrics`")
    if any(name != one.name for name, one in risks.items()) or any(name != one.name for name, one in metrics.items()):
        raise ValueError("a risk or a metric stands under another name than its own")
    for ours in (*QUALITIES, *PROMISES):
        theirs = metrics.get(ours.name, ours)
        if (theirs.better, theirs.unit) != (ours.better, ours.unit):
            raise ValueError(f"`metrics` says of {ours.name} that {theirs.better} is better, in {theirs.unit}")
