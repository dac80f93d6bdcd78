"""The report's charts: SVG images with their alt text and the table of the figures they show.

Drawn by matplotlib's object interface (no global state), one SVG unit per CSS pixel, text kept as text. The same input
gives the same bytes. An SVG goes into the page as an `<img>`: inline, a strict content security policy would strip its
styles. Series are told apart by marker and dash as well as by colour (after Okabe and Ito, darkened for white).
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...targets.quiet import away_from_home
from ..schema.rows import Point
from ..schema.wording import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1d2733", "#5d6875", "#dfe4ea"
REFERENCE = "#87919c"
PALETTE = ("#0068a8", "#c14a00", "#00795a", "#8a3f87", "#8a6d00")
MARKERS = ("o", "s", "^", "D", "v")

# What a browser uses to draw; the layout is computed with DejaVu Sans, which matplotlib ships and which is wider.
FONT_STACK = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"

STYLE: Any = {
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
    """One line. `group` gives colour and marker, 0 the grey reference: two lines of one model share theirs."""

    name: str
    points: list[Point]
    group: int
    dashed: str = ""  # what a dashed line is; "": it is not dashed


@dataclass(frozen=True)
class Axis:
    """One axis: its words, whether it is logarithmic, whether its values are rates, and fixed ends."""

    words: str
    log: bool = False
    percent: bool = False
    ends: tuple[float, float] | None = None


def _colour(group: int) -> str:
    return REFERENCE if group == 0 else PALETTE[(group - 1) % len(PALETTE)]


def to_data_uri(figure: Figure) -> str:
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


@contextmanager
def styled() -> Iterator[None]:
    """Inside the block matplotlib draws in the report's style, whatever the user's settings are."""
    with away_from_home():
        import matplotlib
        import matplotlib.font_manager
    defaults = dict(matplotlib.rcParamsDefault.items())
    del defaults["backend"]  # where the user's own figures are shown
    with matplotlib.rc_context(defaults | STYLE):
        yield


def new_figure(width: int, height: int) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="white")


def new_axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
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
    target.set_major_formatter(FuncFormatter(lambda value, _: tick(value, axis.percent)))


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


def tick(value: float, percent: bool) -> str:
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
    """A panel of a few lines, 344 pixels wide. Intervals are drawn where points are few, a band where they are many.

    Args:
        key_rows: rows to keep for the names, two to a row, so that the plots of panels side by side are level.
        diagonal: draw y = x, what guessing gives.

    Returns:
        None when no point can be drawn (no points, or none positive on a logarithmic axis).
    """

    def drawable(point: Point) -> bool:
        return (not x.log or point.x > 0) and (not y.log or point.estimate > 0)

    shown = [Series(s.name, kept, s.group, s.dashed) for s in series if (kept := [p for p in s.points if drawable(p)])]
    if not shown:
        return None
    named = [s for s in shown if not s.dashed]
    key_height = 16 * key_rows + 8
    width, height = 344, 214 + key_height
    with styled():
        figure = new_figure(width, height)
        axes = new_axes(figure, left=48, bottom=42, right=14, top=key_height + 4)
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
            elif bars and not s.dashed:
                least = min(py) / 10 if y.log else -math.inf  # of a logarithmic axis no band reaches 0
                where, low, high = zip(*bars, strict=True)
                axes.fill_between(where, [max(one, least) for one in low], high, color=colour, alpha=0.1, linewidth=0)
        if diagonal:
            ends = (min(min(xs), 0.01), 1.0)
            axes.plot(ends, ends, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
        _set_axis(axes, "x", x, xs)
        _set_axis(axes, "y", y, [point.estimate for s in shown for point in s.points])
        axes.set_xlabel(x.words, fontsize=10.5, labelpad=3)
        _key(figure, named)
        src = to_data_uri(figure)
    names = [label(s.name) + (f" ({s.dashed})" if s.dashed else "") for s in shown]
    ends_in_words = "; ".join(
        f"{name} goes from {tick(s.points[0].estimate, y.percent)} at {x.words} {tick(s.points[0].x, x.percent)} "
        f"to {tick(s.points[-1].estimate, y.percent)} at {tick(s.points[-1].x, x.percent)}"
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
            text = tick(at[0].estimate, y.percent) if at else "\u2013"
            if at and at[0].low is not None and at[0].high is not None:
                text += f" [{tick(at[0].low, y.percent)}, {tick(at[0].high, y.percent)}]"
            cells.append(text)
        rows.append([tick(value, x.percent), *cells])
    return rows
