"""audit.json: text that is none, every value replaced, figures out of range, rows that contradict each other."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from hostile_case import UNSAFE, Case
from synthetic_audit import synthetic_audit

Values = dict[str, Any]


@cache
def audit() -> Values:
    """A small audit of three models as JSON values, with draws, gates, groups, curves and times."""
    values: Values = json.loads(synthetic_audit().model_dump_json(by_alias=True))
    named = ["dense", "int4", "int4-stochastic"]
    mine = {row["name"]: row for row in values["candidates"]}
    findings = [
        {
            **row,
            "curves": {name: points[:2] for name, points in row["curves"].items()},
            "parts": row["parts"][:2],
            "who_is_hit": row["who_is_hit"][:2],
            "transfers": [other for other in row["transfers"] if other["model"] in named],
        }
        for row in values["findings"]
        if row["candidate"] in named
    ]
    gates = [row for row in values["policy"] if row["candidate"] in named]
    return {
        **values,
        "candidates": [mine[name] for name in named],
        "findings": findings,
        "policy": gates,
        "release": named[1:],
        "not_measured": values["not_measured"][:1],
    }


def texts() -> dict[str, bytes | str]:
    whole = json.dumps(audit())
    return {
        "cut off": whole[:-30],
        "an empty object": "{}",
        "a list": "[1]",
        "a number": "1",
        "null": "null",
        "a pickle": b"\x80\x04cos\nmkdir\n(S'canary'\ntR.",
        "no UTF-8": whole.encode().replace(b"digits", b"\xff\xfe", 1),
        "UTF-16": whole.encode("utf-16"),
        "UTF-8 with a mark": whole.encode("utf-8-sig"),
        "NUL": whole.replace("digits", "a\0b", 1),
        "an escape": whole.replace("digits", "\x1b[31m", 1),
        "half a surrogate pair": whole.replace("digits", "\\ud800", 1),
        "NaN": whole.replace('"seed": 0', '"seed": NaN'),
        "Infinity": whole.replace('"seed": 0', '"seed": -Infinity'),
        "a number beyond all": whole.replace('"seed": 0', '"seed": 1e999'),
        "5,000 digits": whole.replace('"seed": 0', f'"seed": {"9" * 5000}'),
        "a fraction of 5,000 digits": whole.replace('"seed": 0', f'"seed": 0.{"9" * 5000}e99999'),
        "a key twice": whole.replace('"seed": 0', '"seed": 0, "seed": 1'),
        "a key twice by an escape": whole.replace('"seed": 0', '"seed": 0, "\\u0073eed": 1'),
        "nested 100,000 deep": '{"schema": ' + "[" * 100_000,
        "nested 5,000 deep inside": whole.replace('"plan": {', '"plan": {"a": ' + "[" * 5000 + "]" * 5000 + ", ", 1),
        "something behind it": f"{whole} {{}}",
        "a comment": f"// an audit\n{whole}",
        "single quotes": whole.replace('"', "'"),
        "another schema": whole.replace("crushproof.audit/1", "crushproof.audit/2"),
        "HTML": "<html><script>alert(1)</script></html>",
    }


WRONG: list[Any] = [True, "0.5", [], {"a": 1}, -1.5, 1e200]  # each wrong for most values
DIGEST, SHARE = ["", "0" * 63, "g" * 64, "F" * 64, "../" + "0" * 61], [-0.1, 1.1, "0.5", True, None]
# Values that no audit may have there, by the path of the key; one that starts with - is taken away.
STRANGE: dict[str, list[Any]] = {
    "seed": [-1, 0.5, 2**63, None, *WRONG[:4]],
    "name": [1, None, *WRONG[2:4]],
    "verdict": ["PASS", "passed", "not-gated", "", None, 1],
    "plan_digest": DIGEST,
    "data.digest": DIGEST,
    "data.members": [-1, 0.5, *WRONG],
    "data.non_members": [0, 1, -5, "899", None],
    "data.evaluation": [10**6, -1, 5.5],
    "data.shape": [[-1], ["8"], 8, None],
    "data.classes": [1, [1], "ab"],
    "candidates": [None, {}, [], [None], [1]],
    "candidates.0.name": ["no such", "", None, 1, "int4"],
    "candidates.0.digest": DIGEST,
    "candidates.0.role": ["boss", None, 1],
    "candidates.0.accuracy": [None, 0.9, [], {}],
    "candidates.0.accuracy.estimate": [*SHARE, 2],
    "candidates.0.accuracy.low": [0.999, *SHARE],
    "candidates.0.accuracy.high": [0.001, *SHARE],
    "candidates.0.accuracy.n": [0, -1, 1.5, 10**9, "540", True, None],
    "candidates.0.mean_squared_error": [{"estimate": 0.1, "low": 0.0, "high": 0.2, "n": 9}, 1],
    "candidates.0.footprint.ratio": [-1, "4", None, 1e200],
    "candidates.0.footprint.disk_bytes": [0, -1, 1.5, "9", None],
    "candidates.0.footprint.nonzero_parameters": [10**17, -1, 0.5],
    "candidates.1.certificate.label_agreement": SHARE,
    "candidates.1.certificate.n": [0, -1, "9"],
    "candidates.1.worst_risk": ["no/such", 1],
    "candidates.2.draws.0.draw": [-1, 0.5, "0"],
    "candidates.2.draws.0.figures.robust_accuracy.high": [7, "1"],
    "findings": [None, {}, [1], [{}]],
    "findings.0.id": ["", "no/such", "dense", 1, None],
    "findings.0.candidate": ["nobody", "", 1, None],
    "findings.0.metric": ["no_such", "", 1, None],
    "findings.0.risk": ["no_such", 1, None],
    "findings.0.better": ["larger", None, 1],
    "findings.0.estimate": [1, [], {}, {"estimate": 0.5}],
    "findings.0.estimate.estimate": [*SHARE, 55.0],
    "findings.0.estimate.low": [0.9999, -5, "0", None],
    "findings.0.estimate.high": [0.0001, 5, "1", None],
    "findings.0.estimate.n": [0, -1, 10**9, 0.5, "300"],
    "findings.0.parts.0.estimate": [-0.5, 3, "x"],
    "findings.0.queries": [-1, 0.5, "many"],
    "findings.0.flags": ["flag", [1], None],
    "findings.0.evidence_digest": DIGEST[:4],
    "findings.0.who_is_hit.0.n": [0, 10**9, "9"],
    "findings.0.curves": [1, [], {"a": [1]}, {"a": [{"x": "0", "estimate": 1}]}],
    "findings.0.verdict": ["ok", 1, None],
    "findings.0.threat_model": [None, 1, {}],
    "findings.4.changes.0.difference": [1.5, -1.5, "0", None],
    "findings.4.changes.0.p_value": [-0.1, 1.1, "0"],
    "policy": [None, {}, [1]],
    "policy.0.candidate": ["nobody", 1, None],
    "policy.0.rule": ["no_such", 1],
    "policy.0.value": [1.5, "0", True],
    "policy.0.low": [0.9, "0"],
    "policy.0.limit": ["0", [], 1e200],
    "policy.0.compares": ["both", None],
    "policy.1.finding": ["no/such", 1],
    "policy_limits.0.limit": ["x", None, 1e200],
    "policy_from": ["me", None],
    "metrics": [None, {}, [], {"accuracy": 1}],
    "metrics.accuracy.unit": ["percentage", None],
    "metrics.robust_accuracy.title": ["", 1, "t" * 300],
    "risks": [None, {}, [], 1],
    "release": [None, "int4", [1], ["int4", "int4"]],
    "environment": [None, 1, []],
    "environment.wall_seconds": [-1, "1", None],
    "environment.latency": [1, {"int4": [1]}, {"int4": [{"batch": 0}]}],
    "declared": [1, {"a": 1}, None],
    "extra": [1, None],
    "candidates.0.extra": [1],
    "findings.0.__class__": [1],
}


@cache
def _text() -> str:
    return json.dumps(audit())


def changed(path: str, value: Any) -> Values:
    result: Any = json.loads(_text())
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    inner = result
    for step in steps:
        inner = inner[step]
    inner[last] = value
    return result  # type: ignore[no-any-return]  # JSON


def without(key: str) -> Values:
    return {name: value for name, value in audit().items() if name != key}


def twice(rows: str) -> Values:
    return {**audit(), rows: [*audit()[rows], audit()[rows][0]]}


def command(name: str) -> Callable[[Path, bytes | str], list[str]]:
    def words(folder: Path, text: bytes | str) -> list[str]:
        (folder / "audit.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return [name, "."]

    return words


def cases() -> Iterator[Case]:
    gate, others = command("gate"), itertools.cycle(["gate", "report", "verify"])
    for name, text in texts().items():
        use = next(others)
        words = command(use)
        yield Case(f"{name} ({use})", lambda folder, text=text, words=words: words(folder, text), UNSAFE)
    makes: dict[str, Callable[[], Values]] = {
        f"{path}: {str(value)[:30]}": partial(changed, path, value)
        for path, values in STRANGE.items()
        for value in values
    }
    keys = [key for key in audit() if key not in ("policy_from", "declared")]
    makes |= {f"without: {key}": partial(without, key) for key in keys}
    makes |= {f"a row of {rows} twice": partial(twice, rows) for rows in ("candidates", "findings")}
    for name, make in makes.items():
        yield Case(name, lambda folder, make=make: gate(folder, json.dumps(make())), UNSAFE)
