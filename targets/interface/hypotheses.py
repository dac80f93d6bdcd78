"""What a finished file's input and output may mean: the layouts, scalings and orders of classes worth trying."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.data import Data
from ..errors import InputError
from ..runtimes.batches import MAPS, listed, named_output
from ..untrusted.model_file import ModelFile, Port
from .assumptions import SMALLEST, Assumptions, Channels, Grid, Layout, Outputs, Overrides, Units

SURE = ("SOFTMAX", "SIGMOID", "LOGISTIC", "QLINEARSOFTMAX", "QLINEARSIGMOID")  # operators that give probabilities
MOST_OUTPUTS = 16  # that are tried: each is a session of the runtime
SCORES = ("float32", "float16", "float64", "uint8", "int8", MAPS)  # what a class may be scored by; others are labels
KNOWN = {  # channels: name, mean, std of usual training data, in [0, 1], red first
    3: (
        ("ImageNet's mean and std", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("CIFAR-10's mean and std", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        ("Caffe's mean of 0..255", (0.485020, 0.457957, 0.407604), (1 / 255,) * 3),  # 123.68, 116.779, 103.939
    ),
    1: (
        ("MNIST's mean and std", (0.1307,), (0.3081,)),
        ("Fashion-MNIST's mean and std", (0.286,), (0.353,)),
    ),
}


class Scaling(NamedTuple):
    """Units, mean, std and channels as in `Assumptions`; in words; and whether what the user said allows it."""

    units: Units
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    words: str
    allowed: bool
    channels: Channels = "rgb"


def outputs_for(outputs: tuple[Port, ...], classes: int, override: str | None) -> list[Port]:
    """Those of a file's outputs that may hold one value per class, the likeliest first: of several, those of as many
    values as there are classes; values before a softmax (whose gradients vanish) before those behind it.

    Raises:
        InputError: there is no output of the name `override`, or none but labels.
    """
    if override is not None:
        return [named_output(outputs, override)]
    scores = [port for port in outputs if port.type in SCORES]
    if not scores:
        raise InputError(
            f"The model answers with labels only ({listed(outputs)}), and an audit needs the scores of the classes. "
            "Export them as well: from scikit-learn, skl2onnx.to_onnx(model, x, options={'zipmap': False}) writes "
            "probabilities, and options={'raw_scores': True} scores, beside the labels."
        )
    wide = [port for port in scores if all(isinstance(size, int) for size in port.shape[1:])]
    widths = {classes, classes + 1} | ({1} if classes == 2 else set())
    fits = [port for port in scores if port not in wide or _width(port) in widths]
    if len(fits or scores) > MOST_OUTPUTS:
        raise InputError(
            f"{len(fits or scores):,} of the model's outputs may be the scores of the classes ({listed(outputs)}); at "
            f"most {MOST_OUTPUTS} are tried. Name the one that is (--output)."
        )
    return sorted(fits or scores, key=lambda port: port.operator.upper() in SURE)


def _width(port: Port) -> int:
    return math.prod(int(size) for size in port.shape[1:])


def hypotheses(
    file: ModelFile, output: Port, data: Data, overrides: Overrides
) -> Iterator[tuple[Assumptions, str, bool]]:
    """Layouts and scalings, the simplest first: (assumptions, the scaling in words, whether the user allows it)."""
    port = file.facts.inputs[0]
    layouts = _layouts(port.shape[1:], data.shape)
    if not layouts:
        raise InputError(
            f"A record of the data has the shape {list(data.shape)} and the model takes {list(port.shape[1:])}, in "
            f"whatever order of its axes. {_mend(port.shape[1:], data.shape)}"
        )
    if overrides.layout is not None and overrides.layout not in dict(layouts):
        raise InputError(
            f"--layout {overrides.layout} does not fit the model's input {list(port.shape)} and records of shape "
            f"{list(data.shape)}: only {' or '.join(dict(layouts))} does."
        )
    grid = None
    if port.type in ("uint8", "int8") or (port.type in ("uint16", "int16") and port.grid is not None):
        scale, zero_point = port.grid or (1.0, 0.0 if port.type == "uint8" else -128.0)
        grid = Grid.model_validate({"type": port.type, "scale": scale, "zero_point": zero_point})
    low, high = _values(data.bounds.low), _values(data.bounds.high)
    steps = output.grid or (output.steps if output.operator.upper() in SURE else None)
    smallest = SMALLEST if steps is None else max(SMALLEST, steps[0] / 2)
    scalings = _scalings(data, overrides, floats=grid is None)
    coloured = len(data.shape) == 3 and data.shape[0] == 3
    if overrides.channels is not None and not coloured:
        raise InputError(
            f"--channels {overrides.channels} is for images in three colours, and a record of the data has the shape "
            f"{list(data.shape)}. Leave it out."
        )
    if coloured:
        turned = [_turned(scaling, overrides) for scaling in scalings]
        scalings = [one._replace(allowed=one.allowed and overrides.channels != "bgr") for one in scalings]
        scalings = turned + scalings if "bgr" in port.name.lower() else scalings + turned
    for (layout, record), scaling in product(layouts, scalings):
        assumptions = Assumptions(
            layout=layout,
            record=record,
            units=scaling.units,
            channels=scaling.channels,
            low=low,
            high=high,
            mean=scaling.mean,
            std=scaling.std,
            grid=grid,
            smallest=smallest,
            output=None if output == file.facts.outputs[0] else output.name,
        )
        yield assumptions, scaling.words, scaling.allowed and overrides.layout in (None, layout)


def _mend(declared: tuple[int | str, ...], shape: tuple[int, ...]) -> str:
    """How records of `shape` become what the network declares, where only the number of channels is another."""
    mends = {
        (1, 3): "The images are grey and the model takes colours: numpy.repeat(x, 3, axis=1), x as [n, 1, h, w].",
        (1, 4): "The images are grey and the model takes four channels: prepare them as in its training.",
        (3, 1): "The images are in colours and the model takes grey ones: turn them grey as in its training, for "
        "example x.mean(axis=1, keepdims=True), x as [n, 3, h, w].",
        (4, 1): "The images have a fourth channel (transparency) and the model takes grey ones: turn them grey as in "
        "its training, without that channel.",
        (4, 3): "The images have a fourth channel (transparency): leave it out, x[:, :3], x as [n, 4, h, w].",
    }
    if len(declared) == 3 == len(shape):
        for axis in (0, 2):  # where the network has its channels
            sides = list(declared)
            channels = sides.pop(axis)
            same = all(isinstance(side, str) or side == size for side, size in zip(sides, shape[1:], strict=True))
            if same and isinstance(channels, int) and (shape[0], channels) in mends:
                return mends[shape[0], channels]
    return "Bring the data into the size that the model was trained on."


def _layouts(declared: tuple[int | str, ...], shape: tuple[int, ...]) -> list[tuple[Layout, tuple[int, ...]]]:
    """The orders of values that fit the network's record `declared`, each with the record's shape in numbers."""
    found: list[tuple[Layout, tuple[int, ...]]] = []
    orders: list[tuple[Layout, tuple[int, ...]]] = [("channels-first", shape)]
    if len(shape) == 1:
        orders = [("flat", shape)]
    else:
        orders += [("channels-last", (*shape[1:], shape[0])), ("flat", (math.prod(shape),))]
    for layout, order in orders:
        fits = len(order) == len(declared) and all(
            isinstance(wanted, str) or wanted == size for wanted, size in zip(declared, order, strict=True)
        )
        if fits or not declared:
            found.append((layout, order))
    sizes = [size for size in declared if isinstance(size, int)]
    if len(sizes) == len(declared) > 0 and math.prod(sizes) == math.prod(shape):
        plain: Layout = "flat" if len(sizes) == 1 else "channels-first"
        if not found:
            found.append((plain, tuple(sizes)))
        if len(shape) > 1 and shape[0] > 1 and (len(sizes) == 1 or found[0][1] == tuple(sizes) != shape):
            found.append(("channels-last", tuple(sizes)))
    return list(dict(reversed(found)).items())[::-1]  # the first of each layout


def _scalings(data: Data, overrides: Overrides, *, floats: bool) -> list[Scaling]:
    """The usual first. `floats`: the network takes floats, not bytes."""
    user_normalises = overrides.mean is not None or overrides.std is not None
    free = not user_normalises and overrides.units is None
    extremes = _values(data.bounds.low), _values(data.bounds.high)
    units: tuple[Units, ...] = ("0..1", "0..255", "-1..1") if len(data.shape) > 1 else ("0..1", "-1..1")
    limits = {"0..1": ((0.0,), (1.0,)), "0..255": ((0.0,), (255.0,)), "-1..1": ((-1.0,), (1.0,))}
    already = next((unit for unit in units if limits[unit] == extremes), None)
    words = "as given" + (f" ({already})" if already else "")
    allowed = not user_normalises and overrides.units in (None, "as given", already)
    found = [Scaling("as given", None, None, words, allowed)]
    found += [
        Scaling(unit, None, None, f"scaled to {unit}", not user_normalises and overrides.units in (None, unit))
        for unit in units
        if unit != already
    ]
    if floats and already == "0..255":  # networks on floats are rarely trained on raw bytes
        found[:2] = found[1], found[0]
    found += [Scaling("0..1", mean, std, f"normalised by {name}", free) for name, mean, std in _normalisations(data)]
    if user_normalises:
        size = len(overrides.mean or overrides.std or ())
        mean, std = overrides.mean or (0.0,) * size, overrides.std or (1.0,) * size
        _check_normalisation(mean, std, data.shape)
        words = f"normalised by mean {shown_values(mean)} and std {shown_values(std)}"
        found.append(Scaling("0..1", mean, std, words, overrides.units in (None, "0..1")))
    if not any(scaling.allowed for scaling in found):
        raise InputError("--mean and --std are in units 0..1, so the units cannot be others as well. Leave one out.")
    return found


def _turned(scaling: Scaling, overrides: Overrides) -> Scaling:
    """The same with blue first; what the user gave per channel is in the network's order already."""
    mean, std = scaling.mean, scaling.std
    if overrides.mean is None and overrides.std is None and mean is not None and std is not None:
        mean, std = mean[::-1], std[::-1]
    allowed = scaling.allowed and overrides.channels != "rgb"
    return Scaling(scaling.units, mean, std, f"{scaling.words}, blue first", allowed, "bgr")


def _normalisations(data: Data) -> list[tuple[str, tuple[float, ...], tuple[float, ...]]]:
    """Name, mean and std per channel (per feature of a table): the data's own, then those of usual training data."""
    records = (data.members or data.non_members).x.cpu()
    unit = (records - data.bounds.low) / data.bounds.scale
    axes = (0, *range(2, unit.ndim))
    own = unit.mean(axes), unit.std(axes).clamp(min=1e-3)
    found = [("the data's own mean and std", _values(own[0], 4), _values(own[1], 4))]
    for name, mean, std in KNOWN.get(data.shape[0], ()) if len(data.shape) > 1 else ():
        off = max(float((torch.tensor(values) - ours).abs().max()) for values, ours in ((mean, own[0]), (std, own[1])))
        if off < 0.01:  # the data are those that these figures are known from: the model had the published ones
            found[0] = name, mean, std
        else:
            found.append((name, mean, std))
    return found


def _check_normalisation(mean: tuple[float, ...], std: tuple[float, ...], shape: tuple[int, ...]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, shape[0], math.prod(shape)):
            raise InputError(
                f"--{name} has {len(values)} values for records of shape {list(shape)}. Give one value, or one for "
                f"each of the {shape[0]} channels."
            )
    if len(mean) != len(std) or min(std) <= 0:
        raise InputError("--mean and --std need as many values as each other, and every std must be above 0.")
    if max(*mean, *std, 0) > 1.5 or min(mean) < -1:
        raise InputError(
            f"--mean {shown_values(mean)} and --std {shown_values(std)} are not in units of [0, 1]: divide them by "
            "255 where they are those of pixel values 0..255."
        )


def outputs_of(raw: Tensor, softmax: bool, smallest: float) -> Outputs:
    """What the answers show: rows of probabilities lie in [0, 1] and sum to 1, but for a quantised output's steps."""
    coarse = 1e-3 + (smallest * raw.shape[1] if smallest > SMALLEST else 0)
    in_unit = bool((raw >= 0).all() and (raw <= 1).all())
    if raw.shape[1] == 1:
        return "probabilities" if in_unit and softmax else "logits"
    if in_unit and bool(((raw.sum(1) - 1).abs() < coarse).all()):
        return "probabilities"
    if bool((raw <= 1e-6).all()) and bool((raw.double().logsumexp(1).abs() < 1e-3).all()):
        return "log-probabilities"
    return "logits"


def labels_of(outputs: int, classes: int, override: tuple[int, ...] | int | None) -> list[tuple[int, ...] | None]:
    if override is not None:
        labels = tuple(range(override, override + classes)) if isinstance(override, int) else override
        room = 2 if outputs == 1 else outputs
        if len(labels) != classes or min(labels) < 0 or max(labels) >= room or len(set(labels)) != classes:
            raise InputError(
                f"--labels must name a different output of the model for each of the data's {classes} classes, by "
                f"numbers from 0 to {room - 1}."
            )
        return [labels]
    if outputs == classes or (outputs == 1 and classes == 2):
        return [None]
    if outputs < classes:
        raise InputError(
            f"The model has {outputs} outputs and the data {classes} classes (by class names or the largest label). "
            "One output per class is needed: check that the data belong to the model."
        )
    offsets = [0, 1] if outputs == classes + 1 else [0]  # one more: often a background, usually the first
    return [tuple(range(offset, offset + classes)) for offset in offsets]


def _values(values: Tensor, digits: int | None = None) -> tuple[float, ...]:
    numbers = [float(value) if digits is None else round(float(value), digits) for value in values.flatten().tolist()]
    return tuple(numbers[:1]) if len(set(numbers)) == 1 else tuple(numbers)


def shown_values(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values[:4]) + (",..." if len(values) > 4 else "")
