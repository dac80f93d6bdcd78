"""The HTML report: one self-contained file, a view of an audit and nothing else.

No script, no request: styles and charts are inside, and the page's content security policy says so to the browser. The
same audit gives the same bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ...attacks.measurement import Picture
from ...attacks.risk import ACCURACY, FRAMEWORKS, Chart
from ...attacks.risk import Risk as RiskWords
from ..schema import wording
from ..schema.rows import Audit, Candidate, Finding, Point, ThreatModel
from ..schema.standing import MEASURED, NOT_VERIFIED, Standing, told
from ..writing import check_ours, write
from . import charts, data_views, defense_views, dot_charts, footprint_views, price_views, risk_views, views
from .pictures import shown

# Charts hold this many models beside the grey reference; more would be hard to tell apart.
_MODELS_PER_PANEL = 4
_POINTS_PER_LINE = 60
_ROOT = __name__.partition(".")[0]  # the package that holds the templates


def render(audit: Audit, path: Path, standing: Standing = MEASURED) -> None:
    """Writes the report to `path`: whole or not at all (a file beside it is written first, then takes its place).

    Args:
        standing: how far the audit was held against its evidence; the default is for one that was just measured.

    Raises:
        InputError: there is a file that is no report of ours.
        OSError: the folder cannot be written.
    """
    check_ours(path)
    write(path, to_html(audit, standing))


def to_html(
    audit: Audit, standing: Standing = MEASURED, pictures: Mapping[str, Sequence[Picture]] | None = None
) -> str:
    """The report as one HTML document.

    Args:
        pictures: of records, by the finding's id; only a plan that says `show_records` gives some.
    """
    audit = told(audit, standing)
    ix = views.index(audit)
    columns = views.columns(audit)
    matrix = [c for c in columns if c.gated or "/" not in c.suffix]
    hardened = defense_views.hardened_models(ix, matrix)
    style = resources.files(_ROOT).joinpath("report_templates", "style.css")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            audit=audit,
            standing=standing,
            NOT_VERIFIED=NOT_VERIFIED,
            ix=ix,
            style=Markup(style.read_text(encoding="utf-8")),  # ours, not the audit's
            matrix=matrix,
            risks=_risks(ix, columns),
            sizes=dot_charts.quality_against_size(_dots(ix), views.quality(audit)),
            hardened=hardened,
            defense_charts=_defense_charts(hardened, matrix),
            plan=json.dumps(audit.plan, indent=2, sort_keys=True, default=str),
            views=views,
            data_views=data_views,
            footprint_views=footprint_views,
            risk_views=risk_views,
            defense_views=defense_views,
            price_views=price_views,
            prices=price_views.prices(ix, matrix),
            words=wording,
            pictures=shown(pictures or {}),
            ACCURACY=ACCURACY,
            FRAMEWORKS=FRAMEWORKS,
        )
    )


@cache
def _environment() -> Environment:
    """The templates, compiled once for all reports of a process."""
    environment = Environment(
        loader=PackageLoader(_ROOT, "report_templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_final,
    )
    environment.filters["label"] = wording.label
    environment.filters["short_digest"] = wording.digest
    environment.filters["bytes"] = wording.size
    environment.filters["duration"] = wording.duration
    environment.filters["number"] = wording.number
    environment.filters["listed"] = wording.enumerate_words
    return environment


_TOGETHER = re.compile(r"\[[-+\u2212.\d]+, [-+\u2212.\d]+\]|\d %")


def _final(value: Any) -> Any:
    """The last step of every value before it is escaped: no odd characters, no line break inside a figure."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _TOGETHER.sub(lambda match: match[0].replace(" ", wording.NO_BREAK), wording.clean(value))


@dataclass(frozen=True)
class Risk:
    """Everything the section of one risk prints."""

    name: str
    row: RiskWords
    columns: list[views.Column]
    threats: list[ThreatModel]
    charts: list[charts.Chart]
    taxonomy: dict[str, list[str]]
    hit: tuple[views.Column, risk_views.Hits] | None


def _risks(ix: views.Index, columns: list[views.Column]) -> list[Risk]:
    risks = []
    for name, text in ix.audit.risks.items():
        mine = [c for c in columns if c.risk == name]
        if not mine:
            continue
        findings = [f for c in mine for f in c.findings.values()]
        measured = [f for f in findings if f.estimate is not None]  # who attacked nothing is no attacker
        measured.sort(key=lambda finding: finding.candidate not in ix.audit.release)  # theirs are told first
        hit = next(((c, h) for c in mine if (h := risk_views.who_is_hit(ix, c)) is not None), None)
        panels, ids = _panels(ix, text.chart, mine), views.taxonomy(findings)
        risks.append(Risk(name, text, mine, risk_views.threats(measured), panels, ids, hit))
    return risks


# --- charts ----------------------------------------------------------------------------------------------------------


def _groups(ix: views.Index) -> list[tuple[str, list[str]]]:
    """Models that belong together in one panel: by technique, then by defense; small neighbours share a panel."""
    wanted: dict[str, list[str]] = {}
    for c in ix.audit.candidates:
        if c is not ix.plain and c.defense is None:
            title = "Controls" if c.role == "control" else wording.label(c.family)
            wanted.setdefault(title, []).append(c.name)
    for c in ix.audit.candidates:
        if c.defense is not None:
            wanted.setdefault(f"Defense: {wording.label(c.defense_title or c.defense)}", []).append(c.name)
    panels: list[tuple[list[str], list[str]]] = []
    for title, names in wanted.items():
        last = panels[-1] if panels else None
        alike = last is not None and last[0][0].startswith("Defense") == title.startswith("Defense")
        if last is not None and alike and len(last[1]) + len(names) <= _MODELS_PER_PANEL:
            panels[-1] = ([*last[0], _lower(title.removeprefix("Defense: "))], [*last[1], *names])
            continue
        starts = range(0, len(names), _MODELS_PER_PANEL)
        panels.extend(([title], names[start : start + _MODELS_PER_PANEL]) for start in starts)
    return [(wording.enumerate_words(titles), names) for titles, names in panels]


def _lower(title: str) -> str:
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def _main_curve(finding: Finding, chart: Chart) -> list[Point]:
    """The curve that stands for the finding; else its first."""
    return finding.curves.get(chart.curve) or next(iter(finding.curves.values()), [])


def _panels(ix: views.Index, chart: Chart, columns: Sequence[views.Column]) -> list[charts.Chart]:
    """Small charts on common axes, a few models each, the plain dense model in grey in every one."""
    column = next((c for c in columns if any(f.curves for f in c.findings.values())), None)
    if column is None:
        return []
    curves = {name: _thinned(_main_curve(f, chart)) for name, f in column.findings.items() if f.curves}
    points = [p for line in curves.values() for p in line]
    x, y = _axes(chart, column, points)
    panels: list[tuple[str, list[charts.Series]]] = []
    for title, names in _groups(ix):
        series = []
        if ix.plain is not None and ix.plain.name in curves:
            series.append(charts.Series(ix.plain.name, curves[ix.plain.name], 0))
        for place, name in enumerate(names, start=1):
            if name not in curves:
                continue
            series.append(charts.Series(name, curves[name], place))
            second = column.findings[name].curves.get(chart.dashed)
            if second:
                series.append(charts.Series(name, second, place, dashed=chart.dashed_title))
        if any(s.group for s in series):
            panels.append((title, series))
    rows = max((math.ceil(sum(not s.dashed for s in series) / 2) for _, series in panels), default=0)
    drawn = [charts.lines(title, s, x, y, key_rows=rows, diagonal=chart.rates) for title, s in panels]
    return [panel for panel in drawn if panel is not None]


def _axes(chart: Chart, column: views.Column, points: list[Point]) -> tuple[charts.Axis, charts.Axis]:
    name = column.metric.title.split(" (")[0].lower()
    along = wording.clean(chart.x)
    if chart.rates:
        rates = [v for p in points for v in (p.x, p.estimate) if v > 0]
        ends = (max(1e-4, min([0.01, *rates])), 1.0)
        return charts.Axis(along, log=True, percent=True, ends=ends), charts.Axis(
            "true positive rate", log=True, percent=True, ends=ends
        )
    lowest = min([p.low if p.low is not None else p.estimate for p in points], default=0.0)
    if column.metric.unit != "percent":
        highest = max([p.high if p.high is not None else p.estimate for p in points], default=1.0)
        ends = (min(0.0, lowest) if chart.from_zero else lowest, highest + 0.02 * max(highest - lowest, 1e-9))
        return charts.Axis(along, log=chart.log_x), charts.Axis(name, ends=ends)
    floor = 0.0 if chart.from_zero else max(0.0, int(lowest * 10) / 10 - 0.1)
    highest = max([p.high if p.high is not None else p.estimate for p in points], default=1.0)
    top = 1.02 if highest > 0.5 else max(1.1 * highest, floor + 0.01)  # small shares are drawn large
    return charts.Axis(along, log=chart.log_x), charts.Axis(name, percent=True, ends=(floor, top))


def _thinned(points: list[Point]) -> list[Point]:
    """At most 60 points of a curve, evenly by their place, both ends kept."""
    if len(points) <= _POINTS_PER_LINE:
        return points
    last = _POINTS_PER_LINE - 1
    return [points[round(i * (len(points) - 1) / last)] for i in range(_POINTS_PER_LINE)]


def _dots(ix: views.Index) -> list[dot_charts.Dot]:
    def kind(c: Candidate) -> str:
        return c.verdict if c.role == "candidate" and c.verdict in dot_charts.VERDICT_COLOURS else "reference"

    return [
        dot_charts.Dot(c.name, max(c.footprint.ratio, 1e-3), c.quality.estimate, c.quality.low, c.quality.high, kind(c))
        for c in ix.audit.candidates
    ]


def _defense_charts(rows: list[defense_views.Hardened], columns: Sequence[views.Column]) -> list[charts.Chart]:
    """Defenses side by side: accuracy first, then a chart per risk figure."""
    accuracy = [
        dot_charts.Pair(
            row.candidate.name, _ends(row.plain.quality) if row.plain else None, _ends(row.candidate.quality), None
        )
        for row in rows
    ]
    made = [dot_charts.pairs("Accuracy", accuracy, percent=True)]
    for column in columns:
        pairs = []
        for row in rows:
            for b in row.bought:
                if b.column is column and b.hardened.estimate is not None:
                    plain = _ends(b.plain.estimate) if b.plain is not None and b.plain.estimate is not None else None
                    naive = b.naive.estimate if b.naive is not None else None
                    pairs.append(dot_charts.Pair(row.candidate.name, plain, _ends(b.hardened.estimate), naive))
        percent = column.metric.unit == "percent"
        made.append(dot_charts.pairs(column.metric.title, pairs, percent=percent))
    return [chart for chart in made if chart is not None]


def _ends(estimate: Any) -> tuple[float, float, float]:
    return estimate.estimate, estimate.low, estimate.high
