"""Charts of dots: accuracy against size, and defenses side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...attacks.risk import Metric
from ..schema.wording import label
from .charts import GRID, MUTED, PALETTE, REFERENCE, Chart, new_axes, new_figure, styled, tick, to_data_uri

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VERDICT_COLOURS = {"pass": "#00694f", "fail": "#b23a00", "inconclusive": "#4b569b"}
VERDICT_MARKERS = {"pass": "o", "fail": "X", "inconclusive": "D"}


@dataclass(frozen=True)
class Dot:
    """One model in the chart of accuracy against size."""

    name: str
    x: float
    y: float
    low: float
    high: float
    kind: str = field(metadata={"values": "pass, fail, inconclusive or reference"})


def quality_against_size(dots: list[Dot], known: Metric) -> Chart | None:
    """Accuracy, or an error, against how many times smaller the payload is, in a wide form and one for phones."""
    if not dots:
        return None
    wide, narrow = _scatter(dots, 920, 420, known), _scatter(dots, 344, 420, known)
    best, name = max(dots, key=lambda d: d.x), known.title
    alt = (
        f"Scatter chart of {len(dots)} models: {name.lower()} against payload, times smaller than the dense model. "
        f"The smallest, {label(best.name)}, is {best.x:.3g} times smaller at {tick(best.y, True)} {name.lower()}."
    )
    rows = [
        [label(d.name), f"{d.x:.3g}\u00d7", f"{tick(d.y, True)} [{tick(d.low, True)}, {tick(d.high, True)}]", d.kind]
        for d in dots
    ]
    columns = ["Model", "Times smaller", name, "Verdict"]
    return Chart("", wide, 920, 420, alt, columns, rows, narrow, 344, 420)


def _scatter(dots: list[Dot], width: int, height: int, known: Metric) -> str:
    with styled():
        figure = new_figure(width, height)
        axes = new_axes(figure, left=52, bottom=44, right=18, top=14)
        axes.grid(True, axis="x", color=GRID, linewidth=0.8)
        high_x = max(2.0, *(d.x for d in dots))
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(0.85, *(d.x for d in dots)) * 0.9, high_x * 1.35)
        low_y, high_y = min(d.low for d in dots), max(d.high for d in dots)
        if known.better == "higher":
            axes.set_ylim(max(0.0, low_y - 0.08 * (1.01 - low_y)), 1.01)
        else:
            axes.set_ylim(0.0, 1.08 * high_y)
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
        return to_data_uri(figure)


def _set_tick_words(axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = axes.get_xlim()
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    axes.xaxis.set_major_locator(FixedLocator([2.0**power for power in powers]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}\u00d7"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, True)))


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
    """Per hardened model: without the defense (open), with it under its adaptive attack (filled), as it seems (+)."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if not rows:
        return None
    width, height = 344, 72 + 42 * len(rows) + 30
    with styled():
        figure = new_figure(width, height)
        axes = new_axes(figure, left=14, bottom=32, right=18, top=40)
        axes.grid(True, axis="x", color=GRID, linewidth=0.8)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.4, -0.75)
        values = [v for r in rows for v in (*r.hardened, *(r.plain or ()), *([] if r.naive is None else [r.naive]))]
        reach = max(max(values) - min(values), 0.02)
        axes.set_xlim(min(values) - 0.06 * reach, max(values) + 0.06 * reach)
        for place, row in enumerate(rows):
            axes.annotate(
                label(row.name, 34),
                (0, place),
                xycoords=("axes fraction", "data"),
                xytext=(0, 10),
                textcoords="offset points",
                fontsize=10.5,
                annotation_clip=False,
            )
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
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, percent)))
        _pairs_key(figure, any(row.naive is not None for row in rows))
        src = to_data_uri(figure)
    cells = []
    for row in rows:
        naive = "\u2013" if row.naive is None else tick(row.naive, percent)
        cells.append([label(row.name), _triple(row.plain, percent), _triple(row.hardened, percent), naive])
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
    return f"{tick(value[0], percent)} [{tick(value[1], percent)}, {tick(value[2], percent)}]"
