"""The report's charts: SVG images with their alt text and the table of the figures they show.

Drawn by matplotlib's object interface (no global state), one SVG unit per CSS pixel, text kept as text. The same input
gives the same bytes. An SVG goes into the page as an `<img>`: inline, a strict content security policy would strip its
styles. Series are told apart by marker and dash as well as by colour (the palette of Okabe and Ito, darkened for white).
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .findings import Point
from .words import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1d2733", "#5d6875", "#dfe4ea"
REFERENCE = "#87919c"
PALETTE = ("#0068a8", "#c14a00", "#00795a", "#8a3f87", "#8a6d00")
MARKERS = ("o", "s", "^", "D", "v")
VERDICT_COLOURS = {"pass": "#00694f", "fail": "#b23a00", "inconclusive": "#4b569b"}
VERDICT_MARKERS = {"pass": "o", "fail": "X", "inconclusive": "D"}

# What a browser uses to draw; the layout is computed with DejaVu Sans, which matplotlib ships and which is wider.
FONT_STACK = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "crushproof",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 11.0,
    "text.color": INK,
    "axes.edgecolor": REFERENCE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.linewidth": 0.8,
    "path.simplify": False,
}


@dataclass(frozen=True)
class Chart:
    """An image for the page: `src` is a data URI, `columns` and `rows` are the figures it shows, ready to print."""

    title: str
    src: str
    width: int
    height: int
    alt: str
    columns: list[str]
    rows: list[list[str]]
    narrow_src: str | None = None
    narrow_width: int = 0
    narrow_height: int = 0


@dataclass(frozen=True)
class Series:
    """One line of a chart. `group` gives colour and marker (0 is the grey reference), so that two lines of one model match."""

    name: str
    points: list[Point]
    group: int
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis: its words, whether it is logarithmic, whether its values are rates, and fixed ends."""

    words: str
    log: bool = False
    percent: bool = False
    ends: tuple[float, float] | None = None


@dataclass(frozen=True)
class Dot:
    """One model in the chart of accuracy against size."""

    name: str
    x: float
    y: float
    low: float
    high: float
    kind: str = field(metadata={"values": "pass, fail, inconclusive or reference"})


def _colour(group: int) -> str:
    return REFERENCE if group == 0 else PALETTE[(group - 1) % len(PALETTE)]


def _svg(figure: Figure) -> str:
    """The figure as a data URI. Sizes lose their unit `pt`, so that one unit is one CSS pixel."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = buffer.getvalue().decode("utf-8")
    text = text[text.index("<svg") :]  # the document type names a file on another host
    text = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', text)
    text = text.replace("'DejaVu Sans'", FONT_STACK)
    text = re.sub(r"(\d\.\d{2})\d+", r"\1", text)
    text = re.sub(r"\n\s*", "\n", text)
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode("utf-8")).decode("ascii")


def _figure(width: int, height: int) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="white")


def _box(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Axes with margins in pixels, a light horizontal grid and no frame on top and right."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=3, width=0.8, labelsize=10)
    return axes


def _set_axis(axes: Axes, which: str, axis: Axis, values: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    target = axes.xaxis if which == "x" else axes.yaxis
    set_scale, set_limits = (axes.set_xscale, axes.set_xlim) if which == "x" else (axes.set_yscale, axes.set_ylim)
    if axis.log:
        set_scale("log")
        low, high = axis.ends or (min(values), max(values))
        if low == high:
            low, high = low / 2, high * 2
        ticks = _log_ticks(low, high)
        target.set_major_locator(FixedLocator(ticks))
        target.set_minor_locator(NullLocator())
        target.set_minor_formatter(NullFormatter())
        margin = (high / low) ** 0.03
        set_limits(low / margin, high * margin)
    elif axis.ends is not None:
        set_limits(*axis.ends)
    if not axis.log and which == "x" and len(set(values)) <= 7:
        target.set_major_locator(FixedLocator(_spread(sorted(set(values)))))
    target.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, axis.percent)))


def _spread(values: list[float]) -> list[float]:
    """The values far enough apart for their tick labels not to touch."""
    reach = (values[-1] - values[0]) or 1.0
    kept = values[:1]
    for value in values[1:]:
        if value - kept[-1] >= reach / 9:
            kept.append(value)
    return kept


def _log_ticks(low: float, high: float) -> list[float]:
    steps = (1.0,) if high / low > 200 else (1.0, 2.0, 5.0)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return [tick for tick in ticks if low * 0.97 <= tick <= high * 1.03]


def _tick(value: float, percent: bool) -> str:
    return f"{100 * value:.3g}\u00a0%" if percent else f"{value:,.4g}".replace(",", "\u00a0")


def _key(figure: Figure, entries: Sequence[Series]) -> None:
    """The names of the lines above the plot, two to a row: never on top of the data, and no rule for odd names."""
    from matplotlib.lines import Line2D

    width, height = (72 * inches for inches in figure.get_size_inches())
    for place, entry in enumerate(entries):
        x, y = 8 + (place % 2) * width / 2, height - 12 - 16 * (place // 2)
        figure.add_artist(
            Line2D(
                [x / width, (x + 20) / width],
                [y / height, y / height],
                color=_colour(entry.group),
                linewidth=2,
                marker=MARKERS[(entry.group - 1) % len(MARKERS)] if entry.group else None,
                markevery=[1],
                markersize=5.5,
            )
        )
        figure.text((x + 28) / width, y / height, label(entry.name, 20), va="center_baseline", fontsize=10.5)


def lines(title: str, series: list[Series], x: Axis, y: Axis, *, key_rows: int, diagonal: bool = False) -> Chart | None:
    """A panel of a few lines, 344 pixels wide. Intervals are drawn where a line has few points.

    Args:
        key_rows: rows to keep for the names, two to a row, so that the plots of panels side by side are level.
        diagonal: draw y = x, what guessing gives.

    Returns:
        None when no point can be drawn (no points, or none positive on a logarithmic axis).
    """
    import matplotlib

    def drawable(point: Point) -> bool:
        return (not x.log or point.x > 0) and (not y.log or point.estimate > 0)

    shown = [Series(s.name, kept, s.group, s.dashed) for s in series if (kept := [p for p in s.points if drawable(p)])]
    if not shown:
        return None
    named = [s for s in shown if not s.dashed]
    key_height = 16 * key_rows + 8
    width, height = 344, 214 + key_height
    with matplotlib.rc_context(_STYLE):
        figure = _figure(width, height)
        axes = _box(figure, left=48, bottom=42, right=14, top=key_height + 4)
        xs = [point.x for s in shown for point in s.points]
        reach = max(xs) - min(xs) or 1.0
        for place, s in enumerate(shown):
            few = len(s.points) <= 8
            nudge = 0.0 if x.log or s.group == 0 else reach * 0.008 * (place - len(shown) / 2)
            px, py = [p.x + nudge for p in s.points], [p.estimate for p in s.points]
            colour = _colour(s.group)
            axes.plot(
                px,
                py,
                color=colour,
                linewidth=2.6 if s.group == 0 else 1.8,
                linestyle=(0, (3, 2)) if s.dashed else "-",
                marker=MARKERS[(s.group - 1) % len(MARKERS)] if s.group and few else None,
                markersize=4.5,
                zorder=2 if s.group == 0 else 3,
                solid_capstyle="round",
            )
            bars = [
                (a, p.low, p.high)
                for a, p in zip(px, s.points, strict=True)
                if p.low is not None and p.high is not None
            ]
            if few and not s.dashed:
                axes.vlines(
                    [b[0] for b in bars],
                    [b[1] for b in bars],
                    [b[2] for b in bars],
                    color=colour,
                    linewidth=1,
                    alpha=0.55,
                )
        if diagonal:
            ends = (min(min(xs), 0.01), 1.0)
            axes.plot(ends, ends, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
        _set_axis(axes, "x", x, xs)
        _set_axis(axes, "y", y, [point.estimate for s in shown for point in s.points])
        axes.set_xlabel(x.words, fontsize=10.5, labelpad=3)
        _key(figure, named)
        src = _svg(figure)
    names = [label(s.name) + (" (labels only)" if s.dashed else "") for s in shown]
    ends_in_words = "; ".join(
        f"{name} goes from {_tick(s.points[0].estimate, y.percent)} at {x.words} {_tick(s.points[0].x, x.percent)} "
        f"to {_tick(s.points[-1].estimate, y.percent)} at {_tick(s.points[-1].x, x.percent)}"
        for name, s in zip(names, shown, strict=True)
    )
    alt = f"Line chart, {title}: {y.words} against {x.words}. {ends_in_words}."
    return Chart(title, src, width, height, alt, [x.words, *names], _line_rows(shown, x, y))


def _line_rows(shown: list[Series], x: Axis, y: Axis) -> list[list[str]]:
    """At most a dozen rows: a longer curve is thinned evenly (audit.json holds every point)."""
    every = sorted({point.x for s in shown for point in s.points})
    if len(every) > 12:
        every = [every[round(i * (len(every) - 1) / 11)] for i in range(12)]
    rows = []
    for value in every:
        cells = []
        for s in shown:
            at = [p for p in s.points if p.x == value]
            text = _tick(at[0].estimate, y.percent) if at else "\u2013"
            if at and at[0].low is not None and at[0].high is not None:
                text += f" [{_tick(at[0].low, y.percent)}, {_tick(at[0].high, y.percent)}]"
            cells.append(text)
        rows.append([_tick(value, x.percent), *cells])
    return rows


def accuracy_against_size(dots: list[Dot]) -> Chart | None:
    """Accuracy against how many times smaller the payload is, in a wide form and one for phones."""
    if not dots:
        return None
    wide, narrow = _scatter(dots, 920, 420), _scatter(dots, 344, 420)
    best = max(dots, key=lambda d: d.x)
    alt = (
        f"Scatter chart of {len(dots)} models: accuracy against payload, times smaller than the dense model. "
        f"The smallest, {label(best.name)}, is {best.x:.3g} times smaller at {_tick(best.y, True)} accuracy."
    )
    rows = [
        [label(d.name), f"{d.x:.3g}\u00d7", f"{_tick(d.y, True)} [{_tick(d.low, True)}, {_tick(d.high, True)}]", d.kind]
        for d in dots
    ]
    columns = ["Model", "Times smaller", "Accuracy", "Verdict"]
    return Chart("", wide, 920, 420, alt, columns, rows, narrow, 344, 420)


def _scatter(dots: list[Dot], width: int, height: int) -> str:
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure = _figure(width, height)
        axes = _box(figure, left=52, bottom=44, right=18, top=14)
        axes.grid(True, axis="x", color=GRID, linewidth=0.8)
        high_x = max(2.0, *(d.x for d in dots))
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(0.85, *(d.x for d in dots)) * 0.9, high_x * 1.35)
        low_y = min(d.low for d in dots)
        axes.set_ylim(max(0.0, low_y - 0.08 * (1.01 - low_y)), 1.01)
        for d in dots:
            colour = VERDICT_COLOURS.get(d.kind, REFERENCE)
            axes.vlines([d.x], [d.low], [d.high], color=colour, linewidth=1.2, alpha=0.45)
            axes.plot(
                [d.x],
                [d.y],
                marker=VERDICT_MARKERS.get(d.kind, "s"),
                color=colour,
                markersize=8,
                markeredgecolor="white",
                markeredgewidth=0.8,
                linestyle="none",
                zorder=3,
            )
        _set_tick_words(axes)
        axes.set_xlabel("payload, times smaller than the dense model", fontsize=10.5)
        _place_names(figure, axes, dots)
        return _svg(figure)


def _set_tick_words(axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = axes.get_xlim()
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    axes.xaxis.set_major_locator(FixedLocator([2.0**power for power in powers]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}\u00d7"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, True)))


def _place_names(figure: Figure, axes: Axes, dots: list[Dot]) -> None:
    """Puts each name at the first free place around its dot, nearest first, with a hair line when it is far.

    A name without a free place is left out: the table under the chart has it.
    """
    width, height = (72 * inches for inches in figure.get_size_inches())
    to_pixels = axes.transData.transform
    centres = [tuple(to_pixels((d.x, d.y))) for d in dots]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in centres]
    for d, (x, y) in sorted(zip(dots, centres, strict=True), key=lambda pair: (-pair[1][1], pair[1][0])):
        text = label(d.name, 24)
        text_width, text_height = 6.3 * len(text), 12.0
        for distance in (9, 16, 26, 38, 52, 68, 86):
            boxes = [
                (x + distance, y - text_height / 2),
                (x - distance - text_width, y - text_height / 2),
                (x - text_width / 2, y + distance - 2),
                (x - text_width / 2, y - distance - text_height + 2),
                (x + distance * 0.8, y + distance * 0.7),
                (x + distance * 0.8, y - distance * 0.7 - text_height),
                (x - distance * 0.8 - text_width, y + distance * 0.7),
                (x - distance * 0.8 - text_width, y - distance * 0.7 - text_height),
            ]
            free = [
                (a, b, a + text_width, b + text_height)
                for a, b in boxes
                if a >= 54
                and a + text_width <= width - 2
                and b >= 46
                and b + text_height <= height - 2
                and not any(a < t[2] and t[0] < a + text_width and b < t[3] and t[1] < b + text_height for t in taken)
            ]
            if free:
                left, bottom, right, top = free[0]
                taken.append(free[0])
                if distance > 16:
                    from matplotlib.lines import Line2D

                    nearest = (min(max(x, left), right) / width, min(max(y, bottom), top) / height)
                    figure.add_artist(
                        Line2D([x / width, nearest[0]], [y / height, nearest[1]], color=REFERENCE, linewidth=0.7)
                    )
                figure.text(left / width, (bottom + top) / 2 / height, text, va="center", fontsize=10.5)
                break


@dataclass(frozen=True)
class Pair:
    """A hardened model beside the same model without the defense: values with intervals, None where not measured."""

    name: str
    plain: tuple[float, float, float] | None
    hardened: tuple[float, float, float]
    naive: float | None


def pairs(title: str, rows: list[Pair], *, percent: bool) -> Chart | None:
    """Per hardened model: plain (open), hardened under its adaptive attack (filled), under the most flattering one (+)."""
    import matplotlib
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if not rows:
        return None
    width, height = 344, 72 + 42 * len(rows) + 30
    with matplotlib.rc_context(_STYLE):
        figure = _figure(width, height)
        axes = _box(figure, left=14, bottom=32, right=18, top=40)
        axes.grid(True, axis="x", color=GRID, linewidth=0.8)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.4, -0.75)
        values = [v for r in rows for v in (*r.hardened, *(r.plain or ()), *([] if r.naive is None else [r.naive]))]
        reach = max(max(values) - min(values), 0.02)
        axes.set_xlim(min(values) - 0.06 * reach, max(values) + 0.06 * reach)
        for place, row in enumerate(rows):
            axes.annotate(label(row.name, 34), (0, place), xycoords=("axes fraction", "data"), xytext=(0, 10),
                          textcoords="offset points", fontsize=10.5, annotation_clip=False)  # fmt: skip
            if row.plain is not None:
                axes.hlines([place + 0.13], row.plain[1], row.plain[2], color=REFERENCE, linewidth=1.2)
                axes.plot(
                    [row.plain[0]], [place + 0.13], "o", markersize=7, color="white", markeredgecolor=MUTED, zorder=3
                )
            axes.hlines([place], row.hardened[1], row.hardened[2], color=PALETTE[0], linewidth=1.6)
            axes.plot([row.hardened[0]], [place], "o", markersize=7, color=PALETTE[0], zorder=4)
            if row.naive is not None:
                axes.plot([row.naive], [place], "P", markersize=8, color=PALETTE[1], markeredgecolor="white", zorder=5)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, percent)))
        _pairs_key(figure, any(row.naive is not None for row in rows))
        src = _svg(figure)
    cells = [[label(r.name), _triple(r.plain, percent), _triple(r.hardened, percent), "\u2013" if r.naive is None else _tick(r.naive, percent)] for r in rows]  # fmt: skip
    said = "; ".join(f"{c[0]}: {c[1]} without, {c[2]} with the defense" for c in cells)
    columns = ["Hardened model", "Without the defense", "With it, adaptive attack", "With it, most flattering attack"]
    return Chart(title, src, width, height, f"Dot chart, {title}. {said}.", columns, cells)


def _pairs_key(figure: Figure, naive: bool) -> None:
    from matplotlib.lines import Line2D

    width, height = (72 * inches for inches in figure.get_size_inches())
    entries = [("o", "white", MUTED, "without"), ("o", PALETTE[0], PALETTE[0], "with defense")]
    if naive:
        entries.append(("P", PALETTE[1], "white", "as it seems"))
    x = 14.0
    for marker, face, edge, text in entries:
        figure.add_artist(
            Line2D([(x + 4) / width], [1 - 13 / height], marker=marker, markersize=7, color=face, markeredgecolor=edge)
        )
        figure.text((x + 14) / width, 1 - 13 / height, text, va="center_baseline", fontsize=10.5)
        x += 34 + 6.3 * len(text)


def _triple(value: tuple[float, float, float] | None, percent: bool) -> str:
    if value is None:
        return "not measured"
    return f"{_tick(value[0], percent)} [{_tick(value[1], percent)}, {_tick(value[2], percent)}]"
