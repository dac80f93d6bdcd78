"""What the features of a record are where they are no plain numbers: as a user declares it, checked on the records.

An input that an attacker makes must be one that somebody could send: a one-hot block holds a single 1, a count is a
whole number, an id is an id. Which columns are what cannot always be seen, so it is declared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InputError, nearest_hint, quoted
from .declared import STRETCH, Column, Declared

MOST_NAMED = 8  # times that each column may be named, on average: stretches of them are short to write


@dataclass(frozen=True)
class Encoded:
    """A column of a table that was written out as one 0/1 feature per category, in this order."""

    column: str
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """Positions are those of features in a record [features], counted from 0.

    Args:
        names: one per feature; none where nobody named them.
        immutable: what an attacker cannot change.
        one_hot: blocks of 0/1 features of which a record has at most one 1.
        codes: features that hold the code of a category: a neighbouring number means another thing.
        integer: features that are whole numbers.
        tokens: every value of a record (of any shape) is an id that the model looks up.
        whole: every value of a record that is no table is a whole number, as the pixels of 8-bit images are.
        encoded: the columns that became one-hot blocks when a table was read.
    """

    names: tuple[str, ...] = ()
    immutable: tuple[int, ...] = ()
    one_hot: tuple[tuple[int, ...], ...] = ()
    codes: tuple[int, ...] = ()
    integer: tuple[int, ...] = ()
    tokens: bool = False
    encoded: tuple[Encoded, ...] = ()
    whole: bool = False

    @property
    def declared(self) -> bool:
        return bool(self.immutable or self.one_hot or self.codes or self.integer or self.tokens or self.whole)

    @cached_property
    def held(self) -> tuple[int, ...]:
        """Features that an evasion attacker leaves as they are, in order.

        Within an epsilon below 1 no category can change: its 1 would have to become 0, which is the whole range.
        """
        return tuple(sorted({*self.immutable, *self.codes, *(at for block in self.one_hot for at in block)}))

    def held_in(self, shape: tuple[int, ...]) -> Tensor | None:
        """bool [*shape]: the values of a record that stay as they are; None: none does."""
        if self.tokens:
            return torch.ones(shape, dtype=torch.bool)
        return _mask(self.held, shape)

    def whole_in(self, shape: tuple[int, ...]) -> Tensor | None:
        """bool [*shape]: the values that are whole numbers and may change; None: none is."""
        if self.whole:
            return torch.ones(shape, dtype=torch.bool)
        return _mask(tuple(at for at in self.integer if at not in set(self.held)), shape)

    def rounded(self, x: Tensor) -> Tensor:
        """x [n, *shape] with whole numbers where a record has them and they may change."""
        whole = self.whole_in(tuple(x.shape[1:]))
        return x if whole is None else torch.where(whole.to(x.device), x.round(), x)

    def layout_words(self) -> str:
        """Which features a table became, in a sentence; "" where its columns are the features."""
        if not self.encoded:
            return ""
        numbers = len(self.names) - sum(len(one.categories) for one in self.encoded)
        blocks = ", ".join(f"{quoted(one.column)} ({len(one.categories)})" for one in self.encoded[:12])
        more = ", ..." if len(self.encoded) > 12 else ""
        return (
            f"The {len(self.names)} features are the {numbers} columns of numbers in the order of the table, then a "
            f"0/1 block for each column of text: {blocks}{more}."
        )

    def words(self, features: int) -> str:
        """What an evasion attacker cannot do, as a phrase for the threat model; "" where nothing is declared."""
        parts = []
        if self.held:
            left = features - len(self.held)
            why = [("immutable", self.immutable), ("one-hot", self.one_hot), ("codes of categories", self.codes)]
            kinds = ", ".join(word for word, given in why if given)
            parts.append(f"changes {left} of {features} features, the others stay ({kinds})")
        if free := set(self.integer) - set(self.held):
            parts.append("1 is a whole number" if len(free) == 1 else f"{len(free)} are whole numbers")
        if self.whole:
            parts.append("whole numbers only")
        return "; ".join(parts)


PLAIN = Structure()


def resolved(
    declared: Declared,
    shape: tuple[int, ...],
    names: Sequence[str],
    where: str,
    spread: Mapping[str, tuple[int, ...]] | None = None,
    encoded: tuple[Encoded, ...] = (),
) -> Structure:
    """Positions in place of names.

    Args:
        shape: of a record.
        names: of its features; may be empty.
        where: the columns are, for messages: "data.npz".
        spread: columns that became several features, which are a one-hot block each.
        encoded: how those were written out.

    Raises:
        InputError: no such column, a column with two meanings, or a table's words for records that are none.
    """
    spread = spread or {}
    if declared.tokens and (declared.immutable or declared.categorical or declared.one_hot or declared.integer):
        raise InputError(
            "tokens: true says that every value of a record is an id; immutable, categorical, one_hot and integer "
            "are for tables. Keep one of the two."
        )
    named = declared.immutable or declared.categorical or declared.one_hot
    if declared.integer is True and len(shape) != 1 and not named:
        return Structure(names=tuple(names), whole=True)
    if declared and not declared.tokens and len(shape) != 1:
        raise InputError(
            f"immutable, categorical, one_hot and integer name columns of a table [n, features], and the records "
            f"of {where} have shape {list(shape)}. Leave them out; of sequences of ids say tokens: true, of images of "
            "whole numbers integer: true."
        )
    finder = _Finder(shape[0] if len(shape) == 1 else 0, tuple(names), spread, where)
    codes = finder.all([column for column, kind in declared.categorical.items() if column not in spread], "categorical")
    one_hot = (*(finder.all(block, "one_hot") for block in declared.one_hot), *spread.values())
    if declared.integer is True:
        named_otherwise = {*codes, *(at for block in one_hot for at in block)}
        integer = tuple(at for at in range(shape[0]) if at not in named_otherwise)
    else:
        integer = finder.all(declared.integer, "integer")
    _check_apart([*one_hot, *((at,) for at in codes), *((at,) for at in integer)], finder)
    short = next((block for block in one_hot[: len(declared.one_hot)] if len(block) < 2), None)
    if short is not None:
        raise InputError(
            f"one_hot lists blocks of columns, and one of them is only {finder.shown(short)}. Write a list of "
            "lists with all columns of a block, for example one_hot: [[3, 4, 5], [6-14]]."
        )
    return Structure(
        names=tuple(names),
        immutable=finder.all(declared.immutable, "immutable"),
        one_hot=one_hot,
        codes=codes,
        integer=integer,
        tokens=declared.tokens,
        encoded=encoded,
    )


def positions(column: Column, key: str, features: int, names: Sequence[str], where: str) -> Sequence[int]:
    """Of a column, or of a stretch of them, among the features of a table.

    Args:
        key: that names it, for messages.

    Raises:
        InputError: there is none.
    """
    return _Finder(features, tuple(names), {}, where).at(column, key)


@dataclass(frozen=True)
class _Finder:
    features: int
    names: tuple[str, ...]
    spread: Mapping[str, tuple[int, ...]]
    where: str

    @cached_property
    def place(self) -> dict[str, int]:
        return {name: at for at, name in reversed([*enumerate(self.names)])}  # the first of equal ones

    def all(self, columns: Sequence[Column], key: str) -> tuple[int, ...]:
        found = [self.at(column, key) for column in dict.fromkeys(columns)]
        if sum(map(len, found)) > MOST_NAMED * max(1, len(self.names), self.features):
            raise InputError(f"{key} names the columns of {self.where} many times over. Name each once.")
        return tuple(dict.fromkeys(at for places in found for at in places))

    def at(self, column: Column, key: str) -> Sequence[int]:
        text = str(column)
        if text in self.spread:
            return self.spread[text]
        if text in self.place:
            return (self.place[text],)
        stretch = STRETCH.fullmatch(text)
        numbers = range(int(stretch[1]), int(stretch[2]) + 1) if stretch else range(0)
        if isinstance(column, int) or (text.isdecimal() and len(text) < 10):  # longer ones are no positions
            numbers = range(int(column), int(column) + 1)
        if numbers and not self.spread and numbers[0] >= 0 and numbers[-1] < self.features:
            return numbers
        if numbers and not self.spread and not self.names:
            raise InputError(
                f"{key} names column {text}, and the records of {self.where} have {self.features} features, 0 to "
                f"{self.features - 1}."
            )
        known = [*self.spread, *(name for name in self.names if "=" not in name)] or list(self.names)
        if not known:
            raise InputError(
                f"{key} names the column {quoted(text)}, and {self.where} names none. Give positions counted from 0, "
                "or save the names as feature_names."
            )
        hint = nearest_hint(text, known) or f" Known: {', '.join(map(quoted, known[:12]))}."
        raise InputError(
            f"{key} names the column {quoted(text)}, which {self.where} does not have.{hint} Columns are named as they "
            "are written there."
        )

    def shown(self, block: Sequence[int]) -> str:
        return ", ".join(quoted(self.names[at]) if self.names else str(at) for at in block[:4])


def _check_apart(groups: Sequence[tuple[int, ...]], finder: _Finder) -> None:
    seen: set[int] = set()
    for group in groups:
        twice = [at for at in group if at in seen]
        if twice:
            raise InputError(
                f"Column {finder.shown(twice)} is declared twice among one_hot, categorical and integer. A column has "
                "one meaning: name it once."
            )
        seen |= set(group)


def _mask(positions: Sequence[int], shape: tuple[int, ...]) -> Tensor | None:
    if not positions:
        return None
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[list(positions)] = True
    return mask


def check_structure(structure: Structure, splits: Mapping[str, Tensor]) -> list[str]:
    """That the records are what was declared; sentences about what is allowed but worth knowing.

    Args:
        splits: x float32 [n, *shape], finite, by the name of their split.

    Raises:
        InputError: the first record that is not, in its own sentence.
    """
    notes: list[str] = []

    def called(at: int) -> str:
        return quoted(structure.names[at]) if structure.names else str(at)

    for split, x in splits.items():
        if structure.tokens:
            _refuse(
                x.flatten(1),
                (x != x.round()) | (x < 0),
                f"tokens: true says that the values are ids, whole numbers from 0, and the {split} hold",
                "Leave tokens out, or save the ids themselves.",
            )
            continue
        if structure.whole:
            _refuse(
                x.flatten(1),
                x != x.round(),
                f"integer: true says that the values are whole numbers, and the {split} hold",
                "Leave it out, or hand over the pixels before they are scaled and let the model scale them.",
            )
        for kind, positions in (("integer", structure.integer), ("categorical", structure.codes)):
            for at in positions:
                column = x[:, [at]]
                _refuse(
                    column,
                    column != column.round(),
                    f"Column {called(at)} is declared as {kind}, and the {split} hold",
                    "Leave it out of the list, or hand over the numbers before they are scaled and let the model scale "
                    "them.",
                )
        for block in structure.one_hot:
            columns = x[:, list(block)]
            named = f"{called(block[0])} to {called(block[-1])}"
            _refuse(
                columns,
                (columns != 0) & (columns != 1),
                f"The one-hot block of columns {named} holds 0 and 1 only, and the {split} hold",
                "Hand over the block before it is scaled, or correct the list of its columns.",
            )
            ones = columns.sum(1)
            crowded = (ones > 1).nonzero().flatten()
            if len(crowded):
                raise InputError(
                    f"The one-hot block of columns {named} has {int(ones[crowded[0]])} ones in record "
                    f"{int(crowded[0])} of the {split} ({len(crowded):,} such records). A block has a single 1: "
                    "correct the list of its columns; yes/no columns beside it are none of it."
                )
            if bool((ones == 0).any()):
                notes.append(
                    f"{int((ones == 0).sum()):,} of the {len(x):,} {split} have no 1 in the one-hot block of columns "
                    f"{named}; that is taken as a category of its own."
                )
    return notes


def _refuse(values: Tensor, odd: Tensor, what: str, cure: str) -> None:
    """Where any of `odd`, like `values` [n, columns], is true."""
    odd = odd.flatten(1)
    if bool(odd.any()):
        record = int(odd.any(1).nonzero()[0])
        value = float(values[record][odd[record]][0])
        raise InputError(f"{what} {value:g} in record {record}. {cure}")
