"""The checks every `Data` passes before anything is computed on it.

Each fault has its own sentence: what is wrong, where, and how to mend it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError, quoted
from .records import Bounds, Records
from .value_range import fitted

FEWEST = 10  # records of a split; below it no interval says anything
NAME_LENGTH = 200  # characters of a class or group name


def check_data(
    members: Records | None,
    non_members: Records,
    bounds: Bounds,
    class_names: tuple[str, ...],
    groups: tuple[str, ...] | None,
    *,
    forgotten: Records | None = None,
    public: Tensor | None = None,
) -> list[str]:
    """Notes for the reader of the report: sentences about what is allowed but worth knowing.

    Args:
        class_names: none where values are predicted.
        groups: one per non-member.
        public: float32 [n, *shape]; nothing is asked about what a model should answer.

    Raises:
        InputError: wrong types or shapes, too few records, a split of a single class, labels out of range, NaN, values
            outside the bounds, class or group names that cannot be shown.
    """
    regression = non_members.y.is_floating_point()
    _check_names(list(class_names), "class name")
    if not regression and len(class_names) < 2:
        raise InputError(
            f"The data has {len(class_names)} class name(s). A classifier needs at least two classes: give one "
            "name for each output of the model."
        )
    double = next((name for at, name in enumerate(class_names) if name in class_names[:at]), None)
    if double is not None:
        raise InputError(f"Two classes are named {quoted(double)}. Give each class a name of its own.")
    splits = {"test records": non_members} | ({"training records": members} if members is not None else {})
    splits |= {} if forgotten is None else {"records to forget": forgotten}
    for split, records in splits.items():
        _check_form(records, split)
    if members is not None and members.x.shape[1:] != non_members.x.shape[1:]:
        raise InputError(
            f"A training record (x_train) has shape {list(members.x.shape[1:])} and a test record (x_test) "
            f"{list(non_members.x.shape[1:])}. Prepare both in the same way."
        )
    if regression and members is not None and members.y.shape[1:] != non_members.y.shape[1:]:
        raise InputError(
            f"A training record (y_train) has {members.y.shape[1]} values to predict and a test record (y_test) "
            f"{non_members.y.shape[1]}. Give the same values for both."
        )
    _check_bounds_shape(bounds, non_members.x.shape[1:])
    if public is not None:
        if public.dtype != torch.float32 or public.shape[1:] != non_members.x.shape[1:]:
            raise InputError(
                f"The public records (x_population) are {_word(public)} of shape {list(public.shape)}, and a test "
                f"record (x_test) has shape {list(non_members.x.shape[1:])}. Prepare both in the same way, as float32."
            )
        _check_values(public, "public records", bounds)
    for split, records in splits.items():
        if regression:
            _check_targets(records.y, split)
        else:
            _check_labels(records.y, split, class_names, several=records is not forgotten)
        _check_values(records.x, split, bounds)
    spans = _check_span(members, non_members, bounds)
    if groups is not None:
        if len(groups) != len(non_members):
            raise InputError(
                f"There are {len(groups)} group names for {len(non_members)} test records (groups_test, x_test). Give "
                "one group for each, in the same order."
            )
        _check_names(sorted(set(groups)), "group name")
    return spans + [
        f"No record of class {quoted(name)} is among the {split}."
        for split, records in splits.items()
        if records is not forgotten  # of which one class may well be all
        for label, name in enumerate(class_names)
        if len(class_names) <= 100 and not bool((records.y == label).any())
    ]


def _check_names(names: list[str], what: str) -> None:
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"A {what} is {quoted(name)}. Give each a text that can be read.")
        if len(name) > NAME_LENGTH:
            raise InputError(
                f"The {what} {quoted(name)} has {len(name):,} characters. At most {NAME_LENGTH} are shown: shorten it."
            )
        if any(0xD800 <= ord(character) < 0xE000 for character in name):
            raise InputError(
                f"The {what} {quoted(name)} contains half of a surrogate pair, which is no character. Decode the names "
                "as UTF-8 anew."
            )


def _check_form(records: Records, split: str) -> None:
    """x float32 [n, *shape], y int64 [n], enough of them."""
    x, y = records.x, records.y
    if x.dtype != torch.float32 or y.dtype not in (torch.int64, torch.float32):
        raise InputError(
            f"The {_named(split)} hold x as {_word(x)} and y as {_word(y)}. Give x as float32 and y as int64: "
            "x.float(), y.long() (or float32 values, for a model that predicts values)."
        )
    if y.is_floating_point() and y.ndim != 2:
        raise InputError(
            f"The values of the {_named(split, 'y')} have shape {list(y.shape)}. Give them as [n, outputs]."
        )
    if not y.is_floating_point() and y.ndim != 1:
        raise InputError(
            f"The labels of the {_named(split, 'y')} have shape {list(y.shape)}. Give one class number per record, [n]."
        )
    if x.ndim < 2 or len(x) != len(y):
        raise InputError(
            f"The {_named(split)} have inputs of shape {list(x.shape)} and {len(y)} labels. Inputs are [n, features] "
            "or [n, channels, height, width], with one label each."
        )
    if len(y) == 0:
        raise InputError(f"There are no {_named(split)}: the split is empty. Check how the data was divided.")
    if x[0].numel() == 0:
        raise InputError(
            f"The {_named(split, 'x')} have inputs of shape {list(x.shape)}, which hold no value. Check the features."
        )
    check_enough(records, split)


def check_enough(records: Records, split: str, given: int = 0) -> None:
    """Raises InputError: too few records.

    Args:
        given: how many there were before copies of others were left out; 0: none were.
    """
    if len(records) < FEWEST:
        copies = f" that are distinct, of {given:,} given: the others are copies of them" if given else ""
        raise InputError(
            f"There are only {len(records)} {_named(split)}{copies}. At least {FEWEST} are needed, and hundreds for a "
            "useful audit."
        )


def _check_bounds_shape(bounds: Bounds, shape: torch.Size) -> None:
    for side in (bounds.low, bounds.high):
        try:
            side.expand(shape)
        except RuntimeError:
            raise InputError(
                f"The bounds have shape {list(side.shape)}, which does not fit a record of shape {list(shape)}. Give "
                "one number, or one per channel as [c, 1, 1]."
            ) from None


def _check_labels(y: Tensor, split: str, class_names: tuple[str, ...], *, several: bool) -> None:
    low, high, classes = int(y.min()), int(y.max()), len(class_names)
    if low < 0 or high >= classes:
        hint = " They seem to start at 1: subtract 1." if low == 1 and high == classes else ""
        raise InputError(
            f"The labels of the {_named(split, 'y')} run from {low} to {high}, and the {classes} class names allow 0 "
            f"to {classes - 1}.{hint} Number the classes from 0 on and give a name for each."
        )
    if several and low == high:
        raise InputError(
            f"All {len(y)} {_named(split, 'y')} are of class {quoted(class_names[low])}: a single-class split measures "
            "nothing. Shuffle the data before it is divided."
        )


def _check_targets(y: Tensor, split: str) -> None:
    if not bool(torch.isfinite(y).all()):
        raise InputError(
            f"The values to predict of the {_named(split, 'y')} hold NaN or infinity. Leave out such records."
        )
    if not bool((y.amax(0) > y.amin(0)).all()):
        raise InputError(
            f"A value to predict is the same for all {len(y)} {_named(split, 'y')}: there is nothing to predict."
        )


def _check_values(x: Tensor, split: str, bounds: Bounds) -> None:
    per_record = x.flatten(1)
    finite = torch.isfinite(per_record).all(1)
    if not bool(finite.all()):
        count = int((~torch.isfinite(per_record)).sum())
        raise InputError(
            f"The inputs of the {_named(split, 'x')} hold {count} NaN or infinite value(s), first in record "
            f"{int((~finite).nonzero()[0])}. Fill in or leave out such records."
        )
    outside = ((x < bounds.low.to(x.device)) | (x > bounds.high.to(x.device))).flatten(1).any(1)
    if bool(outside.any()):
        low, high = float(x.min()), float(x.max())
        raise InputError(
            f"{int(outside.sum()):,} of the {len(x):,} {_named(split, 'x')} have values outside the bounds: the bounds "
            f"are {shown_range(bounds)} and the values run from {low:g} to {high:g} (first in record "
            f"{int(outside.nonzero()[0])}). {_bounds_hint(x, low, high)}"
        )


def _check_span(members: Records | None, non_members: Records, bounds: Bounds) -> list[str]:
    """Bounds far wider than the values make every epsilon far larger than it looks."""
    splits = [split.x for split in (members, non_members) if split is not None]
    low, high = min(float(x.min()) for x in splits), max(float(x.max()) for x in splits)
    room = float(bounds.scale.max())
    if high - low < room / 20:
        raise InputError(
            f"The values run from {low:g} to {high:g} and the bounds are {shown_range(bounds)}: an epsilon, counted "
            "in units of the bounds, would cover all of them. Give the smallest and largest value an input can take."
        )
    if high - low < room / 4:
        return [f"The values run from {low:g} to {high:g}, less than a quarter of the bounds {shown_range(bounds)}."]
    return []


def _bounds_hint(x: Tensor, low: float, high: float) -> str:
    found = fitted([x.cpu().numpy()])
    if found is not None and (found.low, found.high) == (0, 1):
        return "They look like 0..1: give bounds [0, 1]."
    if found is not None:
        ends = f"{found.low:g}..{found.high:g}", f"bounds [{found.low:g}, {found.high:g}]"
        divide = f"divide the inputs by {found.high:g}, or " if found.low == 0 else ""
        return f"They look like {ends[0]}: {divide}give {ends[1]}."
    if low >= 0 and 1 < high <= 255:
        return "They look like 0..255: divide the inputs by 255, or give bounds [0, 255]."
    if -1 <= low < 0 and high <= 1:
        return "They look like -1..1: give bounds [-1, 1]."
    if low < 0:
        return (
            "They look normalised: give the bounds after normalisation, or hand over the raw values and let the model "
            "normalise in its forward."
        )
    return "Give the smallest and largest value an input can take as bounds."


def shown_range(bounds: Bounds) -> str:
    if bounds.low.numel() == 1 and bounds.high.numel() == 1:
        return f"[{float(bounds.low):g}, {float(bounds.high):g}]"
    return f"per feature, from {float(bounds.low.min()):g} to {float(bounds.high.max()):g} at the widest"


def _named(split: str, array: str = "") -> str:
    """The records as the user knows them: `test records (x_test)`."""
    if "forget" in split:
        return split
    part = split.split()[0].replace("training", "train").replace("public", "population")
    if part == "population":
        return f"{split} (x_population)"
    return f"{split} ({array}_{part})" if array else f"{split} (x_{part}, y_{part})"


def _word(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
