"""What an attacker can change in a record without pixels: its features, and what each can be changed into.

A feature is a one-hot block, a code of a category or a number of a table, or the token at one place of a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....targets.data.structure import Structure
from ....targets.errors import InputError, NotApplicable, nearest_hint, quoted, user_error
from ....targets.model import TorchTarget
from ...case import Case
from ..categories import known_structure

FEW_VALUES = 2  # of a column that holds no more different ones, only these are allowed
PADDED = 0.05  # of the records, at least, end (or begin) in two or more of an id that is taken for padding
WIDEST = 2**20  # values of a block's alternatives: of one with more than 1,024 categories, the commonest
STEPS = 8  # of a number, each way
NEAR = 1e-6  # what rounding to float32 adds to a step, as a share
NO_FEATURES = "the inputs are neither a table nor token ids, of which some could change"
AT_ONCE = 2**22  # values of inputs that are made at a time


@dataclass(frozen=True, eq=False)
class Features:
    """Moves: each sets one feature of a record, flattened to F values, to one of its alternatives. All on one device.

    Args:
        shape: of a record.
        tokens: whether the features are tokens.
        feature: int64 [moves], which one a move changes.
        columns, values: int64 and float32 [moves, largest width], the values it sets; a narrow feature repeats its
            first.
        width: int64 [features], how many columns are its own.
        cost: int64 [features], how many changes a change of it counts as.
        numbers: bool [features], which are numbers and no categories: their moves add `values` to what a record has.
        low, high, reach: float32 [features], of the numbers: their range, and how far one can move.
        whole: bool [features], numbers without fractions.
        padding: the id of a place that is not used, which stays so.
    """

    shape: tuple[int, ...]
    tokens: bool
    feature: Tensor
    columns: Tensor
    values: Tensor
    width: Tensor
    cost: Tensor
    numbers: Tensor
    low: Tensor
    high: Tensor
    reach: Tensor
    whole: Tensor
    padding: int | None = None

    def __len__(self) -> int:
        """How many features can change."""
        return len(self.cost)

    def each(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of each feature its first move, its columns int64 [width], and what its moves set, float32 [moves, width]."""
        first = 0
        for count, width in zip(torch.bincount(self.feature).tolist(), self.width.tolist(), strict=True):
            yield first, self.columns[first, :width], self.values[first : first + count, :width]
            first += count

    def used(self, x: Tensor, move: Tensor) -> Tensor:
        """bool [n]: whether the move [n] changes a place of x [n, F] that is no padding."""
        if self.padding is None:
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        return x.gather(1, self.columns[move, :1]).squeeze(1) != self.padding

    def moved(self, x: Tensor, move: Tensor) -> Tensor:
        """x [n, F] with one move [n] each, of features that are as in the record so far."""
        columns, values = self.columns[move], self.values[move]
        feature = self.feature[move].unsqueeze(1)
        added = torch.maximum(torch.minimum(x.gather(1, columns) + values, self.high[feature]), self.low[feature])
        return x.scatter(1, columns, torch.where(self.numbers[feature], added, values))

    def changes(self, x: Tensor, clean: Tensor) -> Tensor:
        """int64 [n]: what it costs to make x [n, F] of the records `clean`; more than any budget where it is no input.

        Padding stays, what belongs to no feature stays, a number moves within its range and reach, and any other
        feature holds one of its alternatives.
        """
        different, allowed = x != clean, torch.zeros_like(x, dtype=torch.bool)
        total = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for feature, (_, columns, table) in enumerate(self.each()):
            rows = different[:, columns].any(1).nonzero().squeeze(1)
            now, before = x[rows][:, columns], clean[rows][:, columns]
            if self.numbers[feature]:
                far = (now - before).abs() > self.reach[feature] * (1 + NEAR) + NEAR * self.high[feature].abs()
                outside = (now < self.low[feature]) | (now > self.high[feature])
                fits = ~(far | outside | (self.whole[feature] & (now != now.round()))).any(1)
            else:
                fits = (now.unsqueeze(1) == table).all(2).any(1)
                if self.padding is not None:
                    fits &= before[:, 0] != self.padding
            total[rows] += self.cost[feature]
            allowed[rows[fits].unsqueeze(1), columns] = True
        return torch.where((different & ~allowed).any(1), torch.iinfo(torch.int64).max, total)


def features_of(
    case: Case,
    *,
    reach: float = 1.0,
    costs: Mapping[str, int] | None = None,
    allowed: Sequence[int] = (),
    padding: int | None = None,
) -> Features:
    """The features of a case's records that are declared or seen, and their alternatives.

    A declared one-hot block can be any of its categories; one that is seen, and a code, any that some record has. A
    number moves up or down within its range; whole ones stay whole. A token can be any of `allowed`, or of those that
    the records hold.

    Args:
        reach: of a number, the share of its range that it can move by, in [0, 1].
        costs: by a feature's name or position, or by its table's column: how many changes it counts as; 1 where it is
            not named.
        padding: an id; None: it is looked for (`padding_of`).

    Raises:
        NotApplicable: the inputs are neither a table nor tokens, or nothing can change.
        InputError: `costs`, `allowed` or `padding` name what is not there.
    """
    structure, seen = known_structure(case), torch.cat([case.evaluation.x, case.attacker.x])
    shape = tuple(seen.shape[1:])
    x = seen.flatten(1)
    if structure.tokens:
        padding = padding_of(case, x) if padding is None else padding
        groups = _places(x, allowed, padding)
        if groups and max(allowed, default=0) > float(x.max()):
            _check_known(case, groups[0].columns[0], max(allowed))
    elif len(shape) == 1:
        padding = None
        groups = _columns(x, case, structure, reach)
    else:
        raise NotApplicable(f"not applicable: {NO_FEATURES}")
    if not groups:
        raise NotApplicable(
            f"not applicable: all {x.shape[1]} values of a record are immutable or cannot be anything else"
        )
    width = max(len(group.columns) for group in groups)
    device = x.device

    def told(values: Sequence[float | int | bool], kind: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=kind, device=device)

    counts = told([len(group.values) for group in groups], torch.int64)
    columns = [told(group.columns, torch.int64).expand(len(group.values), -1) for group in groups]
    return Features(
        shape=shape,
        tokens=structure.tokens,
        feature=torch.repeat_interleave(torch.arange(len(groups), device=device), counts),
        columns=torch.cat([_wide(one, width) for one in columns]),
        values=torch.cat([_wide(group.values, width) for group in groups]),
        width=told([len(group.columns) for group in groups], torch.int64),
        cost=_costs(costs or {}, groups, structure).to(device),
        numbers=told([group.number for group in groups], torch.bool),
        low=told([group.low for group in groups], torch.float32),
        high=told([group.high for group in groups], torch.float32),
        reach=told([group.reach for group in groups], torch.float32),
        whole=told([group.whole for group in groups], torch.bool),
        padding=padding,
    )


@dataclass(frozen=True)
class _Group:
    """One feature: its columns, and what its moves set or add, float32 [moves, columns]; see `Features`."""

    columns: tuple[int, ...]
    values: Tensor
    number: bool = False
    low: float = 0.0
    high: float = 0.0
    reach: float = 0.0
    whole: bool = False


def _wide(rows: Tensor, width: int) -> Tensor:
    """rows [n, narrow] as [n, width]: the first column once more in the places that are left."""
    return torch.cat([rows, rows[:, :1].expand(-1, width - rows.shape[1])], 1)


def _columns(x: Tensor, case: Case, structure: Structure, reach: float) -> list[_Group]:
    """Of a table, in the order of their first columns."""
    immutable, groups = {*structure.immutable}, list[_Group]()
    for block in structure.one_hot:
        if immutable & {*block}:
            continue
        rows, counts = x[:, list(block)].unique(dim=0, return_counts=True)
        if block in case.structure.one_hot and len(block) ** 2 <= WIDEST:  # a category need not be seen to be one
            rows = torch.cat([torch.eye(len(block), device=x.device), rows]).unique(dim=0)
        elif rows.numel() > WIDEST:
            common = counts.sort(descending=True, stable=True).indices[: max(2, WIDEST // len(block))]
            rows = rows[common.sort().values]
        groups.append(_Group(block, rows))
    taken = immutable | {at for block in structure.one_hot for at in block}
    low, high = (end.expand(x.shape[1:]) for end in (case.bounds.low, case.bounds.high))
    for at in sorted({*range(x.shape[1])} - taken):
        column = x[:, at]
        rows = column.unique()
        if len(rows) <= FEW_VALUES or at in structure.codes:
            groups.append(_Group((at,), rows.unsqueeze(1)))
            continue
        whole = at in structure.integer or bool((column == column.round()).all())
        groups.append(_number(at, float(low[at]), float(high[at]), reach, whole, x.device))
    return sorted((one for one in groups if len(one.values) > (not one.number)), key=lambda one: one.columns[0])


def _number(at: int, low: float, high: float, share: float, whole: bool, device: torch.device) -> _Group:
    """A number that moves by up to a share of its range, a few steps up and down."""
    if whole:
        low, high = float(math.ceil(low)), float(math.floor(high))
    reach = math.floor(share * (high - low)) if whole else share * (high - low)
    steps = torch.arange(-STEPS, STEPS + 1, device=device, dtype=torch.float32) / STEPS * reach
    steps = (steps.trunc() if whole else steps).unique()
    return _Group((at,), steps[steps != 0].unsqueeze(1), True, low, high, reach, whole)


def _places(x: Tensor, allowed: Sequence[int], padding: int | None) -> list[_Group]:
    """Of sequences: a place at which every record holds the same id is no word of a text."""
    known = x.unique()
    if allowed:
        odd = [one for one in allowed if one != int(one) or one < 0 or one == padding]
        if odd:
            raise InputError(f"allowed lists {odd[0]}, which no token can become: it is padding, or no id.")
        known = torch.tensor(sorted({*allowed}), dtype=x.dtype, device=x.device)
    if padding is not None:
        known = known[known != padding]
    varies = (x != x[0]).any(0).nonzero().squeeze(1).tolist() if len(known) else []
    return [_Group((at,), known.unsqueeze(1)) for at in varies]


def _check_known(case: Case, place: int, token: int) -> None:
    """Raises InputError where the model fails at a token that no record holds."""
    x = case.evaluation.x[:1].clone()
    x.view(-1)[place] = token
    try:
        for target in (case.deployed, *(TorchTarget(one) for one in (case.twin, case.native) if one is not None)):
            target.logits(x)
    except Exception as error:  # whatever a runtime says
        raise InputError(
            f"allowed lists {token}, which no record holds, and the model fails at it ({user_error(error)[:200]}). "
            "Leave out the ids that it does not know."
        ) from None


def padding_of(case: Case, x: Tensor) -> int | None:
    """The id that fills sequences x [n, F] up: an embedding says it, or every record has it at its end (or beginning)
    alone, and at least a twentieth of them several times; None: there is none.
    """
    for module in (case.parent, case.native, case.twin):
        for layer in module.modules() if module is not None else ():
            if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
                return int(layer.padding_idx)
    for ids in (x, x.flip(1)):
        filler = ids[:, -1].mode().values
        is_filler = ids == filler
        run = is_filler.flip(1).cumprod(1).sum(1)
        if bool((is_filler.sum(1) == run).all()) and float((run > 1).double().mean()) >= PADDED:
            return int(filler)
    return None


def _costs(costs: Mapping[str, int], groups: Sequence[_Group], structure: Structure) -> Tensor:
    """int64 [features]: 1, or what is named by a feature's name or position, or by its table's column."""
    first = {group.columns[0]: number for number, group in enumerate(groups)}
    at = {column: number for number, group in enumerate(groups) for column in group.columns}
    named = {str(column): number for column, number in at.items()}
    named |= {name: at[column] for column, name in enumerate(structure.names) if column in at}
    start = len(structure.names) - sum(len(one.categories) for one in structure.encoded)
    for encoded in structure.encoded:
        if start in first:
            named[encoded.column] = first[start]
        start += len(encoded.categories)
    found = torch.ones(len(groups), dtype=torch.int64)
    for name, cost in costs.items():
        if name not in named:
            hint = nearest_hint(name, named) or f" Those that can are {', '.join(map(quoted, list(named)[:12]))}."
            raise InputError(f"costs names {quoted(name)}, and no feature of that name can change.{hint}")
        found[named[name]] = cost
    return found
