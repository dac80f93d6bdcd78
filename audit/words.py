"""How figures and labels read in a report: cleaned names, rounded numbers, and one sentence per flag, metric and risk.

Every text that reaches the report passes `clean`: control characters, lone surrogates and direction marks are dropped,
because a class name or a candidate name may come from anywhere.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .findings import Change, Estimate, Finding, Gate

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


@dataclass(frozen=True)
class Metric:
    """How a metric is called and printed. `unit` is "percent" for rates and "score" for an area under a curve."""

    name: str
    unit: str
    better: str
    meaning: str


METRICS = {
    "accuracy": Metric("Accuracy", "percent", "higher", "Share of evaluation records classified correctly."),
    "mean_squared_error": Metric(
        "Mean squared error",
        "percent",
        "lower",
        "Mean squared error as a share of the values' variance: 0 % is perfect, 100 % no better than their mean.",
    ),
    "robust_accuracy": Metric(
        "Robust accuracy",
        "percent",
        "higher",
        "Share of records still classified correctly after the strongest of all attacks that ran, record by record.",
    ),
    "tpr_at_1_percent_fpr": Metric(
        "Members exposed (TPR at 1 % FPR)",
        "percent",
        "lower",
        "Share of training records the attacker names correctly while wrongly accusing at most 1 % of the others. "
        "1 % is no better than guessing.",
    ),
    "auc": Metric(
        "Membership AUC",
        "score",
        "lower",
        "Chance that a training record looks more like a member than another record does. 0.5 is guessing.",
    ),
    "fidelity": Metric(
        "Copy fidelity",
        "percent",
        "lower",
        "Share of inputs on which the stolen copy answers as the deployed model does.",
    ),
}


def metric(name: str) -> Metric:
    """The metric of that name; one that is not known is printed as a percentage under its own name."""
    return METRICS.get(name) or Metric(label(name.replace("_", " ").capitalize()), "percent", "higher", "")


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


def figure(value: float | None, name: str) -> str:
    """A value of the metric `name`: `61.3 %`, or `0.612` for an area under a curve."""
    if value is None:
        return "\u2013"
    if metric(name).unit == "score":
        return f"{value:.3f}".replace("-", MINUS)
    return f"{100 * value:.1f}{NO_BREAK}%".replace("-", MINUS)


def bare(value: float, name: str) -> str:
    """The same without its unit, for use inside an interval."""
    return figure(value, name).removesuffix(f"{NO_BREAK}%")


def interval(low: float | None, high: float | None, name: str) -> str:
    """`[55.3, 66.4]`, in the metric's unit; an empty text when there is none."""
    return "" if low is None or high is None else f"[{bare(low, name)}, {bare(high, name)}]"


def signed(value: float, name: str) -> str:
    """A difference with its sign, without a unit: `+1.2` points or `−0.012`."""
    text = f"{value:+.3f}" if metric(name).unit == "score" else f"{100 * value:+.1f}"
    if float(text) == 0:
        text = text.replace("-", "").replace("+", "")
    return text.replace("-", MINUS)


def change_unit(name: str) -> str:
    return "" if metric(name).unit == "score" else f"{NO_BREAK}points"


def change(value: Change | None, name: str) -> str:
    """`−3.2 points [−6.1, −0.4]`."""
    if value is None:
        return "\u2013"
    return f"{signed(value.difference, name)}{change_unit(name)} {change_interval(value.low, value.high, name)}"


def change_interval(low: float, high: float, name: str) -> str:
    return f"[{signed(low, name)}, {signed(high, name)}]"


def estimate(value: Estimate | None, name: str) -> str:
    """`61.3 % [55.3, 66.4]`; "not measured" when there is none."""
    if value is None:
        return "not measured"
    return f"{figure(value.estimate, name)} {interval(value.low, value.high, name)}"


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


def in_text(name: str) -> str:
    """A metric's name inside a sentence: `robust accuracy`."""
    full = metric(name).name
    return full[0].lower() + full[1:]


_DEFENSES = {"dp-sgd": "DP-SGD", "dpsgd": "DP-SGD"}


def defense(kind: str) -> str:
    """A defense's kind as a title: `Adversarial training`, `DP-SGD`."""
    known = _DEFENSES.get(kind.replace("_", "-"))
    return known or label(kind.replace("_", " ").replace("-", " ").capitalize())


def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


VERDICT_WORDS = {
    "pass": ("\u2713", "pass"),
    "fail": ("\u2715", "fail"),
    "inconclusive": ("?", "inconclusive"),
    "not-gated": ("\u00b7", "not gated"),
    "not-measured": ("\u2013", "not measured"),
}


FLAGS = {
    "no-gradient": "Gradients were missing, zero or not finite, so gradient attacks could not do their work. A high "
    "figure may be an illusion (gradient masking).",
    "black-box-wins": "An attack that sees less did better than one that sees more. The stronger attack was probably "
    "blinded, and the true figure may be worse.",
    "unbounded-fails": "Even with no limit on the change of the input the attack did not bring the model to chance. It "
    "should have: something stops the attack, not the model.",
    "unfinished-optimisation": "The attack was still improving when its budget ended. More steps may find more.",
    "twin-disagrees": "The differentiable twin and the deployed model agree on fewer than 99.5 % of the labels, so "
    "attacks made on the twin may miss.",
    "few-records": "Too few records for a figure this small: the interval is wide.",
    "interface-doubtful": "The file fits clearly better when its inputs are read in another way than was declared, or "
    "about as well in another way, under which it is not as robust: what was assumed of it says both figures.",
    "bounds-doubtful": "The bounds of the inputs were guessed and may be others. Epsilon counts in units of them, so "
    "that the changes allowed may have been too small (the model looks stronger than it is) or too large (it looks "
    "weaker): give the bounds.",
    "answers-vary": "The model answers a record otherwise when it is asked again, in another order or beside other "
    "records. Every figure then follows from how the questions were put.",
    "no-shadows": "The attacker had no shadow models: this model's training is not known. Leaks are underestimated.",
    "no-white-box": "The file has no differentiable twin, so only its answers were attacked: a stronger attack exists.",
    "few-shadows": "Too few shadow models for the attacker to be at full strength.",
    "at-chance": "The model is hardly better than guessing. Such a model is neither robust nor private, whatever the "
    "other figures say.",
    "distribution-shift": "A classifier that never sees the model already tells members from non-members. What the "
    "attack finds is not attributable to membership.",
    "epsilon-extreme": "No radius was found at which the dense model keeps about half of its accuracy: it keeps nearly "
    "all or nearly nothing. Something stops the probe, or the model answers in steps.",
    "shadows-differ": "The shadow models are not trained as the audited model was, or nothing says that they are. An "
    "attacker who knows better may see more: name the training function or its hyper-parameters.",
    "epsilon-void": "The compression looked at training records after DP-SGD, so the promised epsilon does not hold.",
}


def flag_meaning(name: str) -> str:
    return FLAGS.get(name, "A reason why this measurement may be too optimistic.")


@dataclass(frozen=True)
class RiskWords:
    """What a reader must know of a risk before its figures."""

    title: str
    question: str
    wants: str
    harm: str
    advice: tuple[str, ...]
    reading: str
    x_name: str


RISKS = {
    "evasion": RiskWords(
        "Evasion",
        "Can somebody change an input a little and get a wrong answer?",
        "To make the model answer wrongly while the input still looks the same to a person.",
        "Wrong decisions on demand: fraud that passes, signs misread, content that slips through.",
        (
            "Prefer a candidate that passes; otherwise train adversarially and compress that model.",
            "Limit repeated queries and return labels, not scores, where the product allows: this slows black-box "
            "attackers and does not stop white-box ones.",
            "Re-audit after every recompression: robustness of the dense model does not carry over by itself.",
        ),
        "Each line shows the share of records still right as the attacker may change the input more. Higher is safer; "
        "a line that falls below the grey one lost robustness to compression.",
        "epsilon",
    ),
    "membership": RiskWords(
        "Membership inference",
        "Can somebody tell whether a person's record was used for training?",
        "To learn that a given record was among the training data.",
        "A privacy breach in itself where being in the data is sensitive (a clinic, a debt register), and a sign that "
        "the model remembers more than it should.",
        (
            "Prefer a candidate that passes; otherwise train with DP-SGD and compress without touching members.",
            "Do not fine-tune or calibrate on members after compression: it brings leakage back.",
            "Train less long or regularise more: leakage follows the gap between training and test accuracy.",
        ),
        "Both axes are logarithmic. The further a line lies above the dotted diagonal (guessing), the more members are "
        "exposed; the left edge, few false accusations, matters most.",
        "false positive rate",
    ),
    "extraction": RiskWords(
        "Model extraction",
        "Can somebody copy the model by asking it questions?",
        "To own a copy: to save the cost, to study it at leisure, or to prepare other attacks on it.",
        "Loss of the investment, and a stepping stone: attacks made on the copy often work on the original.",
        (
            "Limit and watch the number of queries per client.",
            "Return labels or coarse scores: compare the two attackers to see what that buys.",
            "Do not rely on compression to protect the model: check the change against its parent.",
        ),
        "Each line shows how closely a stolen copy follows the model as the attacker asks more. Lower is safer; solid "
        "lines: the attacker sees scores, dashed lines: labels only.",
        "queries",
    ),
}


def limit_words(gate: Gate) -> str:
    """`at most 5.0 points lower than its parent` or `at least 40.0 %`: the rule of a gate in words."""
    if gate.limit is None:
        return "no limit"
    if gate.compares == "change":
        allowed = signed(abs(gate.limit), gate.rule).removeprefix("+") + change_unit(gate.rule)
        return f"at most {allowed} {'lower' if metric(gate.rule).better == 'higher' else 'higher'} than its parent"
    side = "at least" if metric(gate.rule).better == "higher" else "at most"
    return f"{side} {figure(gate.limit, gate.rule)}"


def finding_words(finding: Finding) -> str:
    """A finding in half a sentence: `robust accuracy 31.0 % [27.0, 35.0], −9.0 points [−12.0, −6.0]`."""
    name = metric(finding.metric).name
    if finding.estimate is None:
        return f"{name}: not measured"
    text = f"{name} {estimate(finding.estimate, finding.metric)}"
    return text + (f", {change(finding.changes[0], finding.metric)}" if finding.changes else "")
