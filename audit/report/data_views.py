"""What the report says of the data and of single classes."""

from __future__ import annotations

from ..schema.data_rows import DataStructure
from ..schema.rows import Audit, Candidate, GroupEstimate
from ..schema.wording import plural

SHOWN_CLASSES = 12


def weakest_classes(audit: Audit) -> list[GroupEstimate]:
    """The classes a table has room for, in their order: those that the first model knows worst."""
    first = next((one.classes for one in audit.candidates if one.classes is not None), None)
    recalls = [] if first is None else first.recalls
    kept = {one.name for one in sorted(recalls, key=lambda one: one.estimate)[:SHOWN_CLASSES]}
    return [one for one in recalls if one.name in kept]


def recall(candidate: Candidate, name: str) -> GroupEstimate | None:
    recalls = [] if candidate.classes is None else candidate.classes.recalls
    return next((one for one in recalls if one.name == name), None)


def structure_words(found: DataStructure) -> str:
    """`14 one-hot blocks, 3 immutable features`."""
    if found.tokens:
        return "token ids"
    if found.whole:
        return "whole numbers"
    counts = [
        (len(found.encoded), "column of text, written out as 0 and 1", "columns of text, written out as 0 and 1"),
        (0 if found.encoded else len(found.one_hot), "one-hot block", "one-hot blocks"),
        (len(found.immutable), "immutable feature", "immutable features"),
        (len(found.codes), "code of a category", "codes of categories"),
        (len(found.integer), "whole number", "whole numbers"),
    ]
    said = [f"{count} {many if count > 1 else one}" for count, one, many in counts if count]
    return ", ".join(said) or plural(len(found.features), "named feature")
