"""An audit on the terminal: a row per candidate, then the verdict in words."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...attacks.risk import ACCURACY, BALANCED_ACCURACY, Metric
from ..schema import wording
from ..schema.rows import Audit, Candidate

WIDTH = 140  # of the table where there is no terminal to ask
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def print_audit(audit: Audit) -> None:
    """Writes the table and the verdict to standard output."""
    console = _console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("candidate", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    metrics = _headlines(audit)
    quality = audit.candidates[0].quality_metric if audit.candidates else ACCURACY
    uneven = any(row.classes is not None and row.classes.uneven for row in audit.candidates)
    shown = [quality.title.lower(), *([BALANCED_ACCURACY.title.lower()] if uneven else [])]
    for name in (*shown, *(metric.title.partition(" (")[0].lower() for metric in metrics), "payload"):
        table.add_column(Text(wording.label(name)), justify="right")  # no markup: a metric may come from anywhere
    for row in audit.candidates:
        cells = [wording.estimate(row.quality, row.quality_metric)]
        if uneven:
            balanced = None if row.classes is None else row.classes.balanced_accuracy
            cells.append(wording.estimate(balanced, BALANCED_ACCURACY))
        cells += [_risk(audit, row, metric) for metric in metrics]
        verdict = Text(_verdict(row), style=COLOURS.get(row.verdict, ""))
        name = wording.label(row.name) + (" *" if row.name in audit.release else "")
        table.add_row(Text(name), verdict, *cells, _payload(row))
    console.print(table)
    if audit.release:
        console.print("* up for release", highlight=False)
    console.print()
    headline = Text(audit.verdict.upper(), style=f"bold {COLOURS[audit.verdict]}")
    console.print(headline, Text(f"by policy {wording.label(audit.policy_name, 200)}"))
    for sentence in audit.deciding:
        console.print(Text(f"  {wording.clean(sentence)}"))


def print_findings(audit: Audit) -> None:
    """Writes each finding in a line, with its flags and notes, or why there is none; for `--only`."""
    console = _console()
    for finding in audit.findings:
        words = wording.finding_words(finding, audit.metrics[finding.metric])
        console.print(Text(wording.clean(f"{finding.id}: {words} ({finding.verdict})")))
        for line in (*filter(None, [finding.reason]), *finding.flags, *finding.notes):
            console.print(Text(f"  {wording.clean(line)}"))
    if not audit.findings:
        for gap in audit.not_measured:
            where = "" if gap.candidate is None else f"{gap.candidate}: "
            console.print(
                Text(f"{where}{wording.clean(gap.what)} is missing. {wording.sentence(wording.clean(gap.reason))}")
            )


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _payload(row: Candidate) -> str:
    size = wording.size(row.footprint.payload_bytes)
    return size if row.parent is None else f"{size}, {row.footprint.ratio:.1f}x smaller"


def _verdict(row: Candidate) -> str:
    if row.verdict != "not-gated":
        return row.verdict
    return "not judged" if row.role == "candidate" else f"({row.role})"


def _headlines(audit: Audit) -> list[Metric]:
    """The main figure of each risk: that of its first finding."""
    first: dict[str, Metric] = {}
    for finding in audit.findings:
        first.setdefault(finding.risk, audit.metrics[finding.metric])
    return list(first.values())


def _risk(audit: Audit, row: Candidate, metric: Metric) -> str:
    """The finding's figure; the first of its metric is the one that policies judge."""
    found = next((one for one in audit.findings if one.candidate == row.name and one.metric == metric.name), None)
    if found is None:
        return "\u2013"
    return wording.estimate(found.estimate, metric) + (" \u2691" if found.flags else "")
