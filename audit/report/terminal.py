"""An audit in a few lines, on the terminal and in Python: a row per candidate, then the verdict in words."""

from __future__ import annotations

import json
import re
from pathlib import Path

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...attacks.risk import ACCURACY, BALANCED_ACCURACY, Metric
from ..schema import wording
from ..schema.rows import Audit, Candidate
from ..schema.standing import CAVEATS, MEASURED, NOT_VERIFIED, Standing, told
from .views import columns, index

WIDTH = 140  # of the table where there is no terminal to ask
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
LEFT = 2  # columns of words, before those of figures
GAP = 2  # between columns


def table_of(audit: Audit) -> list[list[str]]:
    """A row per candidate under one of headings: name (starred where it is up for release), verdict, figures, size."""
    headlines = _headlines(audit)
    quality = audit.candidates[0].quality_metric if audit.candidates else ACCURACY
    uneven = any(row.classes is not None and row.classes.uneven for row in audit.candidates)
    own = [quality.title.lower(), *([BALANCED_ACCURACY.title.lower()] if uneven else [])]
    titles = [*own, *(_title(audit, risk) for risk in headlines)]
    rows = [["candidate", "verdict", *map(wording.label, titles), "payload"]]
    for row in audit.candidates:
        figures = [wording.estimate(row.quality, row.quality_metric)]
        if uneven:
            balanced = None if row.classes is None else row.classes.balanced_accuracy
            figures.append(wording.estimate(balanced, BALANCED_ACCURACY))
        figures += [_risk(audit, row, *headline) for headline in headlines.items()]
        name = wording.label(row.name) + (" *" if row.name in audit.release else "")
        rows.append([name, _verdict(row), *figures, _payload(row)])
    return rows


def verdict_line(audit: Audit) -> str:
    return f"{audit.verdict.upper()} by policy {wording.label(audit.policy_name, 200)}"


def as_text(audit: Audit) -> str:
    """The table and the verdict, without colours: what Python shows of a result."""
    rows = table_of(audit)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    gap = " " * GAP
    lines = [
        gap.join(cell.ljust(width) if place < LEFT else cell.rjust(width) for place, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    told = [f"  {wording.clean(sentence)}" for sentence in (*audit.deciding, *audit.beside)]
    return "\n".join([*(line.rstrip() for line in lines), verdict_line(audit), *told])


def as_html(audit: Audit) -> str:
    """The same as HTML, for notebooks: every text of the audit is escaped."""
    head, *rows = table_of(audit)
    line = Markup("<tr>{}</tr>")
    body = [line.format(Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row)) for row in rows]
    titles = line.format(Markup("").join(Markup("<th>{}</th>").format(cell) for cell in head))
    told = [Markup("<p>{}</p>").format(wording.clean(sentence)) for sentence in (*audit.deciding, *audit.beside)]
    page = Markup("<table>{}</table><p><b>{}</b></p>{}")
    return str(page.format(Markup("").join([titles, *body]), verdict_line(audit), Markup("").join(told)))


def show(
    result: Audit, as_json: bool, report_path: Path | None, only: str | None, standing: Standing | None = None
) -> None:
    """Prints an audit: as JSON, or as a table with the verdict and what decides it.

    Args:
        standing: how far it was held against its evidence; None: it was just measured.
    """
    if as_json:
        text = result.model_dump_json(by_alias=True, indent=1)
        print(re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text))  # any encoding can say it
        return
    if only is not None:
        print_findings(result)
    else:
        print_audit(result, standing or MEASURED)
    if report_path is not None:
        print(f"Report: {report_path}")


def print_audit(audit: Audit, standing: Standing = MEASURED) -> None:
    """Writes the table and the verdict to standard output.

    Args:
        standing: how far the audit was held against its evidence; the default is for one that was just measured.
    """
    audit = told(audit, standing)
    console = _console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    head, *rows = table_of(audit)
    if sum(max(map(len, column)) + GAP for column in zip(head, *rows, strict=True)) - GAP > console.width:
        rows = [[_on_two_lines(cell) for cell in row] for row in rows]
    for place, title in enumerate(head):  # no markup: a metric may come from anywhere
        table.add_column(Text(title), no_wrap=place < LEFT, justify="left" if place < LEFT else "right")
    for row, cells in zip(audit.candidates, rows, strict=True):
        name, verdict, *figures = cells
        table.add_row(Text(name), Text(verdict, style=COLOURS.get(row.verdict, "")), *map(Text, figures))
    console.print(table)
    console.print()
    for line in legend(audit):
        console.print(Text(line, style="dim"))
    console.print()
    for line in transfer_lines(audit):
        console.print(Text(line))
    headline, _, rest = verdict_line(audit).partition(" ")
    if not standing.verified:
        console.print(Text(NOT_VERIFIED, style="bold yellow"))
    if standing in CAVEATS:
        rest = f"{rest} ({CAVEATS[standing]})"
    console.print(Text(headline, style=f"bold {COLOURS[audit.verdict]}"), Text(rest))
    for sentence in (*audit.deciding, *audit.beside):
        console.print(Text(f"  {wording.clean(sentence)}"))


def legend(audit: Audit) -> list[str]:
    """What the table's headings and signs mean, a line each."""
    lines = ["[low, high]: the true figure lies in between, with 95 % confidence; n and access are in the report"]
    if audit.release:
        lines.insert(0, "* up for release: the verdict is about these")
    if any(finding.flags for finding in audit.findings):
        lines.append("\u2691 the figure may be too optimistic; the report says why")
    metrics = {metric.name: metric for metric in _headlines(audit).values()}.values()
    told = [f"{_short(metric)}: {metric.meaning}" for metric in metrics]
    return [*lines, *map(wording.clean, told)]


def transfer_lines(audit: Audit) -> list[str]:
    """For each attack whose inputs were asked of other models: how many of them fool others, in a line."""
    ix, lines = index(audit), []
    for column in columns(audit):
        found = [(name, one) for name, finding in column.findings.items() for one in finding.transfers]
        plain = "" if ix.plain is None else ix.plain.name
        ways = [
            (f"{plain} fool another model", [one.estimate for name, one in found if name == plain]),
            (f"another fool {plain}", [one.estimate for _, one in found if one.model == plain]),
            (
                "one of the rest fool another of them",
                [one.estimate for name, one in found if plain not in (name, one.model)],
            ),
        ]
        told = [
            f"{words} in {' to '.join(dict.fromkeys(wording.figure(one(shares), ACCURACY) for one in (min, max)))}"
            for words, shares in ways
            if shares
        ]
        if told:
            lines.append(
                wording.clean(f"transfer ({wording.label(column.title).lower()}): inputs made on {'; on '.join(told)}")
            )
    return lines


def print_findings(audit: Audit) -> None:
    """Writes each finding in a line, with its flags and notes, or why there is none; for `--only`."""
    console = _console()
    for finding in audit.findings:
        words = wording.finding_words(finding, audit.metrics[finding.metric])
        console.print(Text(wording.clean(f"{finding.id}: {words} ({finding.verdict})")))
        found = [f"{one.name}, {one.statistic}: {wording.quantity(one)}, n = {one.n}" for one in finding.quantities]
        found += [
            f"of the inputs that fool it fool {one.model}: {wording.figure(one.estimate, ACCURACY)} "
            f"{wording.interval(one.low, one.high, ACCURACY)}, n = {one.n}"
            for one in finding.transfers
        ]
        if finding.fragile is not None:
            found.append(wording.fragile_words(finding.fragile, audit.risks[finding.risk].chart.x))
        for line in (*filter(None, [finding.reason]), *finding.flags, *finding.notes, *found):
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


def _on_two_lines(cell: str) -> str:
    """A figure above its interval, a size above its ratio: where a row is wider than the terminal."""
    return re.sub(r" (?=\[)|(?<=,) (?=[\d.]+x)", "\n", cell)


def _verdict(row: Candidate) -> str:
    if row.verdict != "not-gated":
        return row.verdict
    return "not judged" if row.role == "candidate" else f"({row.role})"


def _headlines(audit: Audit) -> dict[str, Metric]:
    """The main figure of each risk: that of its first finding."""
    first: dict[str, Metric] = {}
    for finding in audit.findings:
        first.setdefault(finding.risk, audit.metrics[finding.metric])
    return first


def _short(metric: Metric) -> str:
    return metric.title.partition(" (")[0].lower()


def _title(audit: Audit, risk: str) -> str:
    """Of a column; where two risks have one figure, with the risk."""
    headlines = _headlines(audit)
    metric = headlines[risk]
    alone = sum(one.name == metric.name for one in headlines.values()) == 1
    return _short(metric) if alone else f"{_short(metric)}, {risk}"


def _risk(audit: Audit, row: Candidate, risk: str, metric: Metric) -> str:
    """The finding's figure; the first of its metric is the one that policies judge."""
    mine = (row.name, risk, metric.name)
    found = next((one for one in audit.findings if (one.candidate, one.risk, one.metric) == mine), None)
    if found is None:
        return "\u2013"
    return wording.estimate(found.estimate, metric) + (" \u2691" if found.flags else "")
