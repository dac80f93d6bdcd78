"""YAML as a plan needs it: nothing is executed, nothing is silently changed, and every value knows its line.

Python's usual YAML reads `1e-3` and `8/255` as text, `no` as False, `12:30` as 750, and lets the second of two equal
keys win. Here plain scalars follow YAML 1.2's core schema, plus `8/255` for a number; keys are always text; duplicate
keys, anchors, tags, non-finite numbers and endless nesting are errors that name their line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ...targets.errors import InputError, UnsafeInput
from ...targets.untrusted.files import ordinary_file

SIZE_CAP = 256 * 1024  # bytes; the longest plan we know of has 6 kB
DEPTH_CAP = 20
DIGITS_CAP = 18  # of an integer: it fits 64 bits, so that it survives every format it is written to

INTEGER = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
FRACTION = re.compile(r"([-+]?[0-9]+(?:\.[0-9]*)?)\s*/\s*([0-9]+(?:\.[0-9]*)?)")
NON_FINITE = re.compile(r"[-+]?\.?(inf|infinity|nan)", re.IGNORECASE)
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # tab, LF and CR stay

HINTS = {  # for what a YAML parser says in its own terms, and of the line after the one to mend
    "\\t": " Indent with spaces, never with tabs.",
    "mapping values": " In this line or the one above: keys of a block begin in one column, each as `key: value`.",
    "expected ':'": " In this line or the one above: a key ends in a colon and a blank, `key: value`.",
}

Steps = tuple[str | int, ...]  # keys and list positions that lead to a value: ("candidates", "int8", "recipe")


@dataclass(frozen=True)
class Source:
    """Where a document came from: what to call it in an error, and the line (from 1) of each key and list item."""

    name: str = "the plan"
    lines: Mapping[Steps, int] = field(default_factory=dict)

    def where(self, path: Steps) -> str:
        """`plan.yaml, line 7`: the nearest known line at or above `path`.

        Steps that are not in the document (the tag a union adds, a key that is missing) are passed over.
        """
        known: Steps = ()
        for step in path:
            if (*known, step) in self.lines:
                known = (*known, step)
        return f"{self.name}, line {self.lines[known]}" if known in self.lines else self.name


def read_text(path: Path, what: str, cap: int) -> str:
    """The text of a UTF-8 file of at most `cap` bytes; `what` names it in errors ("plan", "policy").

    Raises:
        InputError: there is no such file, it is no plain file, unreadable, too large or not UTF-8.
    """
    with ordinary_file(path, f"the {what}", cap).open("rb") as stream:
        raw = stream.read(cap)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text. Save the file as UTF-8.") from None


def load_yaml(text: str, name: str) -> tuple[Any, Source]:
    """The document in `text` as dicts, lists and scalars, and where each value stands. `name` is used in errors.

    Raises:
        InputError: the text is no YAML, or uses what a plan has no use for; the message names the line.
        UnsafeInput: a tag asks for a Python object. Nothing was made of it.
    """
    found = FORBIDDEN.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise InputError(
            f"{name}, line {line}: the character U+{ord(found.group()):04X} does not belong in a text file."
        )
    lines: dict[Steps, int] = {}
    try:
        value = _Builder(yaml.parse(text, Loader=yaml.SafeLoader), name, lines).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        problem = error.problem or error.context or "cannot be read"
        hint = next((hint for words, hint in HINTS.items() if words in problem), "")
        raise InputError(f"{name}, line {line}: not valid YAML: {problem}.{hint}") from None
    except (ValueError, OverflowError):  # an escape such as "\U00110000"
        raise InputError(f"{name}: not valid YAML: an escape in it is no character of Unicode.") from None
    return value, Source(name, lines)


class _Builder:
    """Turns the parser's events into values. Recursion is bounded by DEPTH_CAP."""

    def __init__(self, events: Iterator[yaml.Event], name: str, lines: dict[Steps, int]) -> None:
        self.events, self.name, self.lines = events, name, lines

    def document(self) -> Any:
        next(self.events)  # the stream starts
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        self.lines[()] = 1
        value = self.value(next(self.events), ())
        next(self.events)  # the document ends
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            self.refuse(event, "a second document starts here; keep one per file")
        return value

    def value(self, event: yaml.Event, path: Steps) -> Any:
        self.check(event, path)
        if isinstance(event, yaml.ScalarEvent):
            return self.text(event) if event.style is not None else self.plain(event)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
                here = (*path, len(items))
                self.lines[here] = line_of(event)
                items.append(self.value(event, here))
            return items
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            self.check(event, path)
            if not isinstance(event, yaml.ScalarEvent):
                self.refuse(event, "a key must be a word, not a list or a mapping")
            key = self.text(event)
            here = (*path, key)
            if key in mapping:
                self.refuse(event, f"the key {key!r} was already given in line {self.lines[here]}; keep one of the two")
            self.lines[here] = line_of(event)
            mapping[key] = self.value(next(self.events), here)
        return mapping

    def check(self, event: yaml.Event, path: Steps) -> None:
        """Refuses what no plan needs: aliases, anchors, tags, endless nesting."""
        if len(path) > DEPTH_CAP:
            self.refuse(event, f"nested more than {DEPTH_CAP} levels deep, which no plan needs")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            self.refuse(event, "anchors (&) and aliases (*) are not used in plans; write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None and "python" in tag:
            raise UnsafeInput(
                f"{self.name}, line {line_of(event)}: the tag {tag.rpartition(':')[2]!r} asks for a Python object. "
                "Refused, and nothing was executed. Write a plain value instead."
            )
        if tag is not None:
            self.refuse(event, "tags (!) are not used in plans; write a plain value")

    def text(self, event: yaml.ScalarEvent) -> str:
        found = FORBIDDEN.search(event.value)  # escapes such as "\0" only appear here
        if found:
            self.refuse(event, f"the character U+{ord(found.group()):04X} does not belong in a name or a path")
        return str(event.value)

    def plain(self, event: yaml.ScalarEvent) -> Any:
        """An unquoted scalar by YAML 1.2's core schema; `8/255` is a number too."""
        text = self.text(event)
        if text in ("", "~", "null", "Null", "NULL"):
            return None
        if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
            return text.lower() == "true"
        if NON_FINITE.fullmatch(text):
            self.refuse(event, f"{text} is not a finite number")
        number: int | float
        if INTEGER.fullmatch(text):
            if len(text) > DIGITS_CAP:
                self.refuse(event, f"an integer of more than {DIGITS_CAP} digits")
            number = int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        elif FLOAT.fullmatch(text):
            number = float(text)
        elif fraction := FRACTION.fullmatch(text):
            denominator = float(fraction[2])
            if denominator == 0:
                self.refuse(event, f"{text} divides by zero")
            number = float(fraction[1]) / denominator
        else:
            return text
        if not math.isfinite(number):
            self.refuse(event, f"{text[:40]} is not a finite number")
        return number

    def refuse(self, event: yaml.Event, why: str) -> NoReturn:
        raise InputError(f"{self.name}, line {line_of(event)}: {why}.")


def line_of(event: yaml.Event) -> int:
    """The line an event starts in, from 1."""
    return event.start_mark.line + 1 if event.start_mark is not None else 1
