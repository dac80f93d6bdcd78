"""What a finished file's values mean where being right does not tell: the file's own evidence, noise, doubt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from model_files import exported
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from crushproof.audit.plan.plan import DENSE, Plan
from crushproof.audit.plan.sections import InterfacePlan
from crushproof.audit.subject import finished_file
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError
from crushproof.targets.interface.assumptions import Assumptions, Overrides
from crushproof.targets.interface.finished_model import deployed, differentiable
from crushproof.targets.interface.infer import assume
from crushproof.targets.interface.readings import ALIKE
from crushproof.targets.seeds import generator
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp

SHAPE = (1, 8, 8)


@pytest.fixture(scope="session")
def digits(digits: Data) -> Data:
    """Fewer of them: every reading of a file is tried on all."""
    return replace(digits, non_members=digits.non_members.take(torch.arange(300)))


class Behind(nn.Module):
    """A network behind a function of its input."""

    def __init__(self, before: Callable[[Tensor], Tensor], inner: nn.Module) -> None:
        super().__init__()
        self.before, self.inner = before, inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.before(x))


def read(
    module: nn.Module | bytes, data: Data, like: Assumptions | None = None, **given: object
) -> tuple[Assumptions, list[str], bytes]:
    model = module if isinstance(module, bytes) else to_onnx(module.eval(), data.shape)
    return *assume(exported(model), data, Overrides.model_validate(given), like), model


def scaled(data: Data, high: float) -> Data:
    """The same records in 0..high."""
    records = Records(data.non_members.x * high, data.non_members.y)
    return Data("scaled", None, records, Bounds.of(0, high), data.class_names)


@pytest.fixture(scope="module")
def mlp(digits: Data) -> Mlp:
    assert digits.members is not None
    module = train(Mlp(64, 10, (32,)), digits.members, Training(epochs=10), seed=0)
    assert isinstance(module, Mlp)
    return module.eval()


@pytest.fixture(scope="module")
def binary(digits: Data) -> Data:
    """The digits in black and white: many readings of a network that binarises answer alike."""
    records = Records((digits.non_members.x > 0.4).float(), digits.non_members.y)
    return Data("binary", None, records, digits.bounds, digits.class_names)


# One network in several units -----------------------------------------------------------------------------------------

UNITS = {"0..1": (1.0, 0.0), "0..255": (255.0, 0.0), "-1..1": (2.0, -1.0), "normalised": (1 / 0.376, -0.305 / 0.376)}


def robust(module: nn.Module, x: Tensor, y: Tensor, size: float) -> Tensor:
    """bool [n]: right before and after one step along the sign of the gradient."""
    given = x.clone().requires_grad_(True)
    nn.functional.cross_entropy(module(given), y, reduction="sum").backward()
    assert given.grad is not None
    with torch.no_grad():
        return (module(x).argmax(1) == y) & (module(x + size * given.grad.sign()).argmax(1) == y)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("units", UNITS)
def test_one_network_in_four_units_is_as_robust_or_doubtful(units: str, inside: bool, digits: Data, mlp: Mlp) -> None:
    """The network takes records in `units`: it turns them back itself, or its first layer has learnt them."""
    scale, shift = UNITS[units]
    module: nn.Module = Behind(lambda z: (z - shift) / scale, mlp)
    if not inside:
        module = Mlp(64, 10, (32,))
        state = {name: value.clone() for name, value in mlp.state_dict().items()}
        first = next(name for name, value in state.items() if value.shape == (32, 64))
        state[first] = state[first] / scale
        bias = first.replace("weight", "bias")
        state[bias] = state[bias] - shift * state[first].sum(1)
        module.load_state_dict(state)
    truth = robust(mlp, digits.non_members.x, digits.non_members.y, 0.08).double().mean()
    for data in (digits, scaled(digits, 255)):
        assumptions, sentences, model = read(module, data)
        high = float(data.bounds.high)
        behind = differentiable(exported(model), assumptions, data.bounds, data.shape)
        found = robust(behind, data.non_members.x, data.non_members.y, 0.08 * high).double().mean()
        assert abs(float(found - truth)) < 0.05 or sentences[0].startswith(ALIKE)


@pytest.mark.parametrize("kind", ["blue first", "blue first in bytes", "Caffe", "ImageNet"])
def test_orders_of_colours_and_usual_means(kind: str, digits: Data, mlp: Mlp) -> None:
    """The digit is red; other digits, green and blue, must not be looked at."""
    x, y = digits.non_members.x, digits.non_members.y
    others = [x[torch.randperm(len(x), generator=generator(0, name))] for name in ("green", "blue")]
    data = Data("colours", None, Records(torch.cat([x, *others], 1) * 255, y), Bounds.of(0, 255), digits.class_names)
    before: dict[str, Callable[[Tensor], Tensor]] = {
        "blue first": lambda z: z[:, 2:],
        "blue first in bytes": lambda z: z[:, 2:] / 255,
        "Caffe": lambda z: (z[:, 2:] + 123.68) / 255,
        "ImageNet": lambda z: z[:, :1] * 0.229 + 0.485,
    }
    assumptions, sentences, model = read(Behind(before[kind], mlp), data)
    assert assumptions.channels == ("rgb" if kind == "ImageNet" else "bgr")
    assert any("--channels" in sentence for sentence in sentences)
    target = deployed(exported(model), assumptions)
    with torch.no_grad():
        clean = float((mlp(x).argmax(1) == y).double().mean())
    assert float((target.logits(data.non_members.x).argmax(1) == y).double().mean()) == pytest.approx(clean, abs=0.01)
    if kind == "Caffe":
        assert assumptions.mean == pytest.approx((103.939 / 255, 116.779 / 255, 123.68 / 255), abs=1e-5)
        assert assumptions.std == pytest.approx((1 / 255,) * 3)
        given, _, _ = read(model, data, channels="bgr", mean=assumptions.mean, std=assumptions.std)
        assert given == assumptions


def test_the_order_of_colours_is_for_colours(digits: Data, mlp: Mlp) -> None:
    with pytest.raises(InputError, match="three colours"):
        read(mlp, digits, channels="bgr")


# The file's own evidence ----------------------------------------------------------------------------------------------


def quantised_input(mlp: Mlp, integer: bool) -> bytes:
    """Its input goes through 8 bits that cover 0..1: as a quantiser in front, or as the type of the input."""
    model = onnx.load_model_from_string(to_onnx(mlp, SHAPE))
    for node in model.graph.node:
        node.input[:] = ["inner" if name == "input" else name for name in node.input]
    nodes = [helper.make_node("DequantizeLinear", ["input" if integer else "codes", "scale", "zero"], ["inner"])]
    if integer:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT8
    else:
        nodes.insert(0, helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["codes"]))
    for at, node in enumerate(nodes):
        model.graph.node.insert(at, node)
    zero = np.int8(-128) if integer else np.uint8(0)
    for name, value in (("scale", np.float32(1 / 255)), ("zero", zero)):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("integer", [True, False])
def test_what_the_input_quantiser_covers_decides(integer: bool, binary: Data, mlp: Mlp) -> None:
    data = scaled(binary, 255)  # black and white: 0 and 255 answer as 0 and 1, for what is above 1 is cut off
    model = quantised_input(mlp, integer)
    assumptions, sentences, _ = read(model, data)
    assert (assumptions.units, assumptions.mean) == ("0..1", None)
    assert not sentences[0].startswith(ALIKE)
    forced, _, _ = read(model, data, units="0..255")
    x = data.non_members.x
    fed, cut = deployed(exported(model), assumptions).logits(x), deployed(exported(model), forced).logits(x)
    assert torch.equal(fed, cut), "nothing but the range tells the two apart"


class Binarised(nn.Module):
    """Black and white by a threshold of its own, in units of [0, 1]; the gradient is zero everywhere."""

    def __init__(self, inner: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = norm, inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((torch.sign(self.norm(x)) + 1) / 2)


def test_the_statistics_of_the_first_normalisation_decide(binary: Data, mlp: Mlp) -> None:
    norm = nn.BatchNorm2d(1)
    x = binary.non_members.x
    norm.running_mean, norm.running_var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    assumptions, sentences, _ = read(Binarised(mlp, norm), binary)
    assert assumptions.units == "as given"
    assert not sentences[0].startswith(ALIKE)


class Compared(Binarised):
    """The same by a comparison, which has no gradient at all."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((self.norm(x) > 0).float())


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5


@pytest.mark.parametrize("kind", [Binarised, Compared])
def test_noise_tells_the_units_of_a_binarised_network(kind: type[Binarised], binary: Data, mlp: Mlp) -> None:
    """In 0..255 it is as right on clean records, and any noise turns a black pixel white."""
    for data in (binary, scaled(binary, 255)):
        high = float(data.bounds.high)
        assumptions, sentences, model = read(kind(mlp, Shift()), data)
        x, y = data.non_members.x, data.non_members.y
        noise = torch.randint(0, 2, x.shape, generator=generator(0, "noise")) * 2 - 1.0
        target = deployed(exported(model), assumptions)
        noisy = data.bounds.clamp(x + 0.1 * high * noise)
        assert torch.equal(target.logits(x), target.logits(noisy))
        assert sentences[0].startswith(ALIKE)
        assert "0..255" in sentences[0]
        assert f"of {min(500, len(y))}" in sentences[0]
        declared, said, _ = read(model, data, units="0..1")
        assert not said[0].startswith(ALIKE)
        assert torch.equal(deployed(exported(model), declared).logits(x), target.logits(x))


# Doubt ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shares() -> Data:
    """Two classes by the share of white pixels, 80 or 10 of 100."""
    y = torch.arange(240) % 2
    x = torch.zeros(240, 100)
    for at, label in enumerate(y.tolist()):
        order = torch.randperm(100, generator=generator(at, "white"))
        x[at, order[: 80 if label else 10]] = 1
    return Data("shares", None, Records(x, y), Bounds.of(0, 1), ("few", "many"))


@pytest.fixture(scope="module")
def counter() -> bytes:
    """Right on all in 0..1 and in -1..1, where the limit is 75 white pixels and the first class's margin is small."""
    layer = nn.Linear(100, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros(100), torch.full((100,), 0.01)]))
        layer.bias.copy_(torch.tensor([0.5, 0.0]))
    return to_onnx(layer, (100,))


def test_the_less_robust_of_equal_readings_is_audited(shares: Data, counter: bytes) -> None:
    assumptions, sentences, _ = read(counter, shares)
    assert assumptions.units == "-1..1"
    assert sentences[0].startswith(ALIKE)
    assert sentences[0].count("100.0 % [98.5, 100.0] of 240") == 2  # right under both
    assert "0.0 % [0.0, 1.8] of 200" not in sentences[0]  # half of the records are far from the limit
    declared, said, _ = read(counter, shares, units="0..1")
    assert declared.units == "as given"
    assert not any(sentence.startswith(ALIKE) for sentence in said)
    known = Assumptions(record=(100,), layout="flat")
    assert read(counter, shares, like=known)[0].units == "as given"  # as the model that it was made of


def test_doubt_is_a_flag_and_goes_from_the_dense_model_to_its_files(
    shares: Data, counter: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counter.onnx").write_bytes(counter)
    monkeypatch.setattr(
        finished_file, "read_model_file", lambda path, record: exported(path.read_bytes())
    )  # no process of its own
    alone = finished_file.open_file("counter.onnx", tmp_path, InterfacePlan(), shares)
    assert alone.doubtful
    assert not finished_file.open_file("counter.onnx", tmp_path, InterfacePlan(units="0..1"), shares).doubtful
    raw = {
        "data": {"kind": "npz", "path": "data.npz"},
        "model": {"file": "counter.onnx"},
        "candidates": {"same": {"file": "counter.onnx"}},
    }
    opened = finished_file.open_all(Plan.model_validate(raw), tmp_path, shares)
    assert all(file.doubtful for file in opened.values())
    assert opened[DENSE].assumptions == opened["same"].assumptions == alone.assumptions
    raw["model"] = {"file": "counter.onnx", "interface": {"units": "0..1"}}
    sure = finished_file.open_all(Plan.model_validate(raw), tmp_path, shares)
    assert not any(file.doubtful for file in sure.values())
