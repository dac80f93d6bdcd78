"""Data from an `.npz` archive that may come from a stranger. Nothing is ever unpickled.

It is read without `numpy.load`: the zip structure, each array's header and each size are checked before memory
is taken. What is accepted and refused is told to users in docs/inputs.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, UnsafeInput, nearest_hint, quoted
from ..untrusted.files import RATIO, SMALL, is_pickle, open_archive, ordinary_file, read_entry
from .data import Data
from .declared import Column, Declared
from .further.forgetting import set_aside
from .labels import class_numbers, predicted_values
from .npy import parse_npy
from .records import Bounds, Persons, Records
from .structure import Structure, resolved
from .value_range import column_bounds, fitted

Array = NDArray[np.generic]

ARCHIVE_BYTES = 4 * 2**30  # of an npz, packed and unpacked
CHANNELS = (1, 3, 4)

REQUIRED = ["x_test", "y_test"]
PERSONS = ("persons_train", "persons_test")
KEYS = ["x_train", "y_train", *REQUIRED, "groups_test", *PERSONS, "class_names", "feature_names", "forget"]
PUBLIC = "x_population"


def load_npz(
    path: Path | str,
    *,
    bounds: Bounds | Mapping[Column, tuple[float, float]] | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    name: str | None = None,
    regression: bool = False,
    declared: Declared | None = None,
    forget: object = None,
) -> Data:
    """Data from an `.npz` with `x_test, y_test`; optionally `x_train, y_train, groups_test, class_names, forget`,
    `x_population` (public records), both of `persons_train, persons_test` and, of a table, `feature_names`.

    The training records are the members, the test records the non-members. Values keep the file's units: the model must
    take them as they are. `[n, h, w]` becomes `[n, 1, h, w]`; `[n, h, w, c]` with c in 1, 3, 4 becomes `[n, c, h, w]`
    where that is unambiguous.

    Args:
        bounds: what a value may be, for all or by column of a table. Left out: the range of the grid that the values
            lie on, see `value_range.fitted`; where they do not tell, an error asks for them. A table of which anything
            is declared gets bounds by column (`value_range.column_bounds`).
        class_names: in the order of the labels; else the file's, else "0", "1", ...
        seed: splits the non-members.
        name: what the report calls the data; else the file's name.
        regression: the `y` are numbers to predict, [n] or [n, outputs], not classes.
        declared: what the columns are, or that the values are token ids.
        forget: which of the training records the model was to forget, positions or a mask; None: as the array `forget`
            of the file says, if there is one.

    Raises:
        InputError: not an npz, a key missing or unknown, or data that `Data` refuses.
        UnsafeInput: a damaged or crafted archive, a pickled or an oversized array.
    """
    path = ordinary_file(path, "the data", ARCHIVE_BYTES)
    arrays = _read_npz(path)
    where = quoted(path.name)
    _check_keys(list(arrays), where)
    notes: list[str] = []
    parts = [part for part in ("train", "test") if f"x_{part}" in arrays]
    inputs = {part: arrays[f"x_{part}"] for part in parts}
    read = predicted_values if regression else class_numbers
    labels = {part: read(arrays[f"y_{part}"], f"y_{part} in {where}") for part in parts}
    if PUBLIC in arrays:
        inputs["population"] = arrays[PUBLIC]
    for part, x in inputs.items():
        if x.dtype.kind not in "fiub":
            raise InputError(
                f"x_{part} in {where} holds {x.dtype} values. Save numbers, for example x.astype('float32')."
            )
    names = _texts(arrays["feature_names"], f"feature_names in {where}") if "feature_names" in arrays else []
    structure, bounds, said, doubt = read_structure(list(inputs.values()), declared or Declared(), bounds, names, where)
    notes += said
    channels_last = all(_channels_last(x.shape) for x in inputs.values())  # else they differ, which is told as they are
    if channels_last:
        notes.append("The images were stored channels-last [n, h, w, c] and are audited as [n, c, h, w].")
    records = {part: Records(_tensor(inputs[part], channels_last), torch.from_numpy(labels[part])) for part in parts}
    if regression:
        class_names = []
    elif class_names is None and "class_names" in arrays:
        class_names = _texts(arrays["class_names"], f"class_names in {where}")
    if class_names is None:
        class_names = [
            str(label) for label in range(max((int(y.max()) for y in labels.values() if y.size), default=0) + 1)
        ]
    groups = arrays.get("groups_test")
    named = [_texts(arrays[key], f"{key} in {where}") for key in PERSONS if key in arrays]
    if len(named) == 1:
        raise InputError(f"{where} holds one of persons_train and persons_test. Give both: whose each record is.")
    persons = Persons.of(*named) if named else None
    members, forgotten = records.get("train"), None
    if forget is not None and "forget" in arrays:
        raise InputError(f"What is to be forgotten is said twice, by data.forget and in {where}. Keep one of the two.")
    if forget is not None or "forget" in arrays:
        asked, told = (arrays["forget"], f"forget in {where}") if forget is None else (forget, "data.forget")
        trained = 0 if members is None else len(members)
        members, forgotten, kept = set_aside(members, asked, told)
        if persons is not None and len(persons.members) == trained:  # else whoever checks it says so
            persons = Persons(persons.members[kept], persons.non_members)
    return Data(
        name=name or path.stem,
        members=members,
        non_members=records["test"],
        bounds=bounds,
        class_names=tuple(class_names),
        groups=None if groups is None else tuple(_texts(groups, f"groups_test in {where}")),
        persons=persons,
        seed=seed,
        notes=tuple(notes),
        bounds_doubt=doubt,
        structure=structure,
        forgotten=forgotten,
        public=_tensor(inputs["population"], channels_last) if PUBLIC in arrays else None,
    )


def _read_npz(path: Path) -> dict[str, Array]:
    where = quoted(path.name)
    with path.open("rb") as stream:
        head = stream.read(8)
        if is_pickle(head):
            raise UnsafeInput(
                f"The data {where} is a pickle, which can run any program when it is read; it was not read. Save the "
                "arrays with numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)."
            )
        if head[:4] != b"PK\x03\x04":
            sort = "a single numpy array" if head.startswith(b"\x93NUMPY") else "not an npz archive"
            raise InputError(
                f"The data {where} is {sort}. Save the arrays together with "
                "numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)."
            )
        with open_archive(stream, f"The data {where}", limit=ARCHIVE_BYTES) as archive:
            entries = archive.infolist()
            odd = [entry.filename for entry in entries if not entry.filename.endswith(".npy")]
            if odd:
                raise InputError(
                    f"The data {where} is a zip archive that holds {quoted(odd[0])}, so it is not an npz. Save the "
                    "arrays with numpy.savez."
                )
            _check_keys([entry.filename.removesuffix(".npy") for entry in entries], where)
            arrays = {}
            for entry in entries:
                which = f"Array {quoted(entry.filename)} of {where}"
                array = parse_npy(read_entry(archive, entry, where), which)
                _check_room(array, entry.compress_size, which)
                arrays[entry.filename.removesuffix(".npy")] = array
            return arrays


def _check_room(array: Array, packed: int, where: str) -> None:
    """Raises UnsafeInput where an array, as float32, takes far more memory than its bytes in the archive promise."""
    room = 4 * array.size if array.dtype.kind in "fiub" else array.nbytes
    if room > 2 * SMALL and room > RATIO * packed:
        raise UnsafeInput(
            f"{where} would grow from {packed:,} bytes to {room:,} in memory, as a zip bomb does; {2 * SMALL:,} bytes, "
            f"or {RATIO} times the packed size, are accepted. Save fewer records, or save them without compression."
        )


def _check_keys(keys: list[str], where: str) -> None:
    for key in keys:
        if key == "y_population":
            raise InputError(
                f"y_population in {where}: public records are used without labels, which a teacher gives them. Leave "
                "y_population out, and keep x_population."
            )
        if key not in (*KEYS, PUBLIC):
            raise InputError(
                f"{where} holds an array {quoted(key)} that is not a known key.{nearest_hint(key, [*KEYS, PUBLIC])} "
                f"Known: {', '.join([*KEYS, PUBLIC])}. Leave out or rename the array."
            )
    missing = [key for key in REQUIRED if key not in keys]
    if ("x_train" in keys) != ("y_train" in keys):
        missing += [key for key in ("x_train", "y_train") if key not in keys]
    if missing:
        raise InputError(
            f"{where} lacks {' and '.join(missing)}. Test records are always needed; training records come as x_train "
            "and y_train together."
        )


def _texts(values: Array, where: str) -> list[str]:
    if values.ndim != 1 or values.dtype.kind not in "Uiub":
        raise InputError(
            f"{where} has type {values.dtype} and shape {list(values.shape)}. Save one row of texts: names.astype(str)."
        )
    texts = [str(value) for value in values.tolist()]
    half = next((text for text in texts if any("\ud800" <= character <= "\udfff" for character in text)), None)
    if half is not None:
        raise InputError(
            f"{where} holds the text {quoted(half)} with half of a surrogate pair, which is no character. Decode the "
            "texts as UTF-8 anew."
        )
    return texts


def _channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[3] in CHANNELS and shape[1] not in CHANNELS


def _tensor(x: Array, channels_last: bool) -> Tensor:
    """float32 [n, *shape]; grey images [n, h, w] get a channel, channels-last ones theirs in front."""
    if x.ndim == 3:
        x = x[:, None]
    elif channels_last and x.ndim == 4:
        x = np.moveaxis(x, 3, 1)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is refused as such
        return torch.from_numpy(np.array(x, dtype=np.float32, order="C"))


def read_structure(
    inputs: Sequence[Array],
    declared: Declared,
    bounds: Bounds | Mapping[Column, tuple[float, float]] | None,
    names: Sequence[str],
    where: str,
) -> tuple[Structure, Bounds, tuple[str, ...], str]:
    """What the features are, their bounds, sentences about them, and why the bounds are doubtful ("": they are not).

    Args:
        inputs: numbers [n, ...], training and test records.
        bounds: for all, by column of a table, or to be found.
        names: of the columns of a table; empty where there are none.
        where: they come from, for messages.

    Raises:
        InputError: what is declared is not there, or the values do not tell their bounds.
    """
    shape = inputs[0].shape[1:]
    if names and (len(shape) != 1 or len(names) != shape[0] or len(set(names)) < len(names)):
        raise InputError(
            f"There are {len(names)} feature names ({len(set(names))} different ones) for records of shape "
            f"{list(shape)} in {where}. Give one name of its own for each column of a table [n, features]."
        )
    written = next((column for column, kind in declared.categorical.items() if kind != "codes"), None)
    if written is not None:
        raise InputError(
            f"categorical names the column {quoted(str(written))} of {where}, whose values reach the model as they "
            "are: only tables of text (CSV) are written out. For a column that holds the codes of categories say "
            f"categorical: {{{written}: codes}}; columns that are written out are listed under one_hot."
        )
    structure = resolved(declared, shape, names, where)
    finite = [x for x in inputs if x.size and x.dtype.kind in "fiub" and bool(np.isfinite(x).all())]
    if isinstance(bounds, Bounds):
        return structure, bounds, (), ""
    if structure.tokens and len(finite) == len(inputs):
        low, high = min(float(x.min()) for x in finite), max(float(x.max()) for x in finite)
        return structure, Bounds.of(low, max(high, low + 1)), (), ""
    if len(shape) == 1 and (bounds is not None or structure.declared) and len({x.shape[1:] for x in inputs}) == 1:
        values = np.concatenate([np.asarray(x, dtype=np.float32) for x in inputs])
        if np.isfinite(values).all():  # else `Data` refuses them, with the sentence for NaN
            found, doubt = column_bounds(values, bounds or {}, structure, where)
            return structure, found, (doubt,) if doubt else (), doubt
    if bounds is not None:
        raise InputError(
            f"bounds by column are for tables [n, features], and the records of {where} have shape {list(shape)}. Give "
            "one smallest and largest value, for example bounds: [0, 1]."
        )
    return structure, *inferred_bounds(inputs, where)


def inferred_bounds(inputs: Sequence[Array], where: str) -> tuple[Bounds, tuple[str, ...], str]:
    """The bounds that values without any get, sentences about them, and why they are doubtful ("": they are not).

    Args:
        inputs: numbers [n, ...], training and test records.
        where: they come from, for the message.

    Raises:
        InputError: the values do not tell.
    """
    filled = [x for x in inputs if x.size]
    if not filled or not all(bool(np.isfinite(x).all()) for x in filled):
        return Bounds.of(0, 1), (), ""  # `Data` refuses the values themselves, with the sentence for NaN
    found = fitted(filled)
    if found is not None:
        return Bounds.of(found.low, found.high), tuple(filter(None, (found.note, found.doubt))), found.doubt
    low, high = min(float(x.min()) for x in filled), max(float(x.max()) for x in filled)
    by_column = " Of a table they are given by column, bounds: {0: [17, 90]}." if filled[0].ndim == 2 else ""
    raise InputError(
        f"The inputs in {where} run from {low:g} to {high:g}, so their bounds cannot be guessed. Give the smallest and "
        f"largest value an input can take, for example bounds: [-1, 1]; or scale the inputs to [0, 1].{by_column}"
    )
