"""How figures and labels read in a report: cleaned names, rounded numbers, the parts of sentences.

Every text that reaches the report passes `clean`: control characters, lone surrogates and direction marks are dropped,
because a class name or a candidate name may come from anywhere.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from ...attacks.access import Flag
from ...attacks.risk import Metric
from .policy_rows import Gate
from .quantity_rows import Fragile, Quantity
from .rows import Change, Estimate, Finding

MINUS = "\u2212"
NO_BREAK = "\u00a0"
ELLIPSIS = "\u2026"

# C0 and C1 controls, lone surrogates, private use, unassigned, and format characters (zero width, direction overrides)
# but for the two joiners, which Persian and Indic scripts need.
_DROPPED_CATEGORIES = {"Cc", "Cs", "Co", "Cn", "Cf"}
_JOINERS = "\u200c\u200d"


def clean(text: str) -> str:
    """The text without characters that are invisible, reorder their neighbours or are not valid in a document."""
    if text.isascii() and text.isprintable():
        return text
    kept = (" " if c in "\t\n\r" else c for c in text)
    return "".join(c for c in kept if c in _JOINERS or unicodedata.category(c) not in _DROPPED_CATEGORIES)


def label(text: str, limit: int = 64) -> str:
    """A name to print on one line: cleaned, spaces collapsed, at most `limit` characters."""
    short = " ".join(clean(text).split()) or "(unnamed)"
    return short if len(short) <= limit else short[: limit - 1].rstrip() + ELLIPSIS


def digest(text: str) -> str:
    """The first 12 characters of a digest: enough to compare by eye."""
    return label(text.removeprefix("sha256:"), 200)[:12]


def number(value: float | None, digits: int = 3) -> str:
    """A plain number to `digits` significant digits, without an exponent where that stays short."""
    if value is None:
        return "\u2013"
    if value != 0 and abs(value) < 1e-3:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        shown = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{shown}e{int(power)}".replace("-", MINUS)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}".replace(",", NO_BREAK).replace("-", MINUS)
    return f"{value:.{digits}g}".replace("-", MINUS)


def figure(value: float | None, metric: Metric) -> str:
    """A value of a metric: `61.3 %`, or `0.612` for a score."""
    if value is None:
        return "\u2013"
    if metric.unit == "number":
        return number(value)
    if metric.unit == "score":
        return f"{value:.3f}".replace("-", MINUS)
    return f"{100 * value:.1f}{NO_BREAK}%".replace("-", MINUS)


def bare(value: float, metric: Metric) -> str:
    """The same without its unit, for use inside an interval."""
    return figure(value, metric).removesuffix(f"{NO_BREAK}%")


def interval(low: float | None, high: float | None, metric: Metric) -> str:
    """`[55.3, 66.4]`, in the metric's unit; an empty text when there is none."""
    return "" if low is None or high is None else f"[{bare(low, metric)}, {bare(high, metric)}]"


def signed(value: float, metric: Metric) -> str:
    """A difference with its sign, without a unit: `+1.2` points or `−0.012`."""
    text = {"percent": f"{100 * value:+.1f}", "score": f"{value:+.3f}", "number": f"{value:+.3g}"}[metric.unit]
    if float(text) == 0:
        text = text.replace("-", "").replace("+", "")
    return text.replace("-", MINUS)


def change_unit(metric: Metric) -> str:
    return f"{NO_BREAK}points" if metric.unit == "percent" else ""


def change(value: Change | None, metric: Metric) -> str:
    """`−3.2 points [−6.1, −0.4]`."""
    if value is None:
        return "\u2013"
    return f"{signed(value.difference, metric)}{change_unit(metric)} {change_interval(value.low, value.high, metric)}"


def change_interval(low: float, high: float, metric: Metric) -> str:
    return f"[{signed(low, metric)}, {signed(high, metric)}]"


def estimate(value: Estimate | None, metric: Metric) -> str:
    """`61.3 % [55.3, 66.4]`; `0 found` by a search, which has no interval; "not measured" when there is none."""
    if value is None:
        return "not measured"
    if value.unsearched is not None:
        return f"{figure(value.estimate, metric)} found"
    return f"{figure(value.estimate, metric)} {interval(value.low, value.high, metric)}"


def quantity(value: Quantity) -> str:
    """`0.098`, or with its interval `above 0.15 [0.1, above 0.15]`."""

    def told(end: float | None) -> str:
        return f"above {number(value.above)}" if end is None else number(end)

    return told(value.value) + ("" if value.low is None else f" [{told(value.low)}, {told(value.high)}]")


def fragile_words(found: Fragile, along: str) -> str:
    """Which records fell first, in a sentence.

    Args:
        along: what the setting counts, as the risk's chart says: epsilon.
    """
    some = "" if found.count == len(found.ids) else f" (of {found.count})"
    ids = ", ".join(map(str, found.ids))
    return (
        f"Most fragile records{some}, by id: {ids}. They fell at {label(along)} {number(found.at)}, before any other."
    )


def size(count: int) -> str:
    """Bytes as kB or MB (powers of 1,000)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * scale:
            return f"{count / scale:.3g}{NO_BREAK}{unit}"
    return f"{count}{NO_BREAK}bytes"


def duration(seconds: float) -> str:
    """Seconds as `41 s`, `2.5 min` or `1.3 h`."""
    if seconds < 100:
        return f"{seconds:.3g}{NO_BREAK}s"
    return f"{seconds / 60:.3g}{NO_BREAK}min" if seconds < 5400 else f"{seconds / 3600:.3g}{NO_BREAK}h"


def milliseconds(value: float | None) -> str:
    if value is None:
        return "\u2013"
    return (f"{value:#.2g}" if value < 1 else f"{value:#.3g}".rstrip(".")) + f"{NO_BREAK}ms"


_SETTING_NAMES = {"norm": "norm", "epsilon": "eps", "linf": "L\u221e", "l2": "L2"}


def setting(values: dict[str, Any]) -> str:
    """`L∞, eps 0.1` from `{"norm": "linf", "epsilon": 0.1}`."""
    parts = []
    for key, value in values.items():
        if key == "fpr":  # the metric's name says it
            continue
        shown = number(value) if isinstance(value, int | float) else _SETTING_NAMES.get(str(value), label(str(value)))
        parts.append(shown if key == "norm" else f"{_SETTING_NAMES.get(key, label(key.replace('_', ' ')))} {shown}")
    return ", ".join(parts)


def enumerate_words(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def sentence(text: str) -> str:
    """A phrase as a sentence: a capital in front, a full stop behind."""
    text = text.strip()
    return text and text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


_ACCESS = {
    "white-box": "weights and gradients (white-box access)",
    "scores": "the scores of inputs of their choice",
    "labels": "the predicted labels of inputs of their choice",
    "none": "nothing of the model",
}


def sees(access: str) -> str:
    return _ACCESS.get(access) or label(access)


def in_text(metric: Metric) -> str:
    """A metric's title inside a sentence: `robust accuracy`."""
    return metric.title[0].lower() + metric.title[1:]


def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


VERDICT_WORDS = {
    "pass": ("\u2713", "pass"),
    "fail": ("\u2715", "fail"),
    "inconclusive": ("?", "inconclusive"),
    "not-gated": ("\u00b7", "not gated"),
    "not-measured": ("\u2013", "not measured"),
}


def flag_meaning(name: str) -> str:
    known = {flag.value: flag.meaning for flag in Flag}
    return known.get(name, "A reason why this measurement may be too optimistic.")


def limit_words(gate: Gate, metric: Metric) -> str:
    """`at most 5.0 points lower than its parent` or `at least 40.0 %`: the rule of a gate in words."""
    if gate.limit is None:
        return "no limit"
    if gate.compares == "change":
        allowed = signed(abs(gate.limit), metric).removeprefix("+") + change_unit(metric)
        return f"at most {allowed} {'lower' if metric.better == 'higher' else 'higher'} than its parent"
    side = "at least" if metric.better == "higher" else "at most"
    return f"{side} {figure(gate.limit, metric)}"


def finding_words(finding: Finding, metric: Metric) -> str:
    """A finding in half a sentence: `robust accuracy 31.0 % [27.0, 35.0], −9.0 points [−12.0, −6.0]`."""
    if finding.estimate is None:
        return f"{metric.title}: not measured"
    text = f"{metric.title} {estimate(finding.estimate, metric)}"
    if finding.estimate.unsearched is not None:
        return f"{text} by this search; what it would not have found: {finding.estimate.unsearched}"
    return text + (f", {change(finding.changes[0], metric)}" if finding.changes else "")
