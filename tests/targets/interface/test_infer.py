"""A finished file behind its preprocessing: what its input means is found from the data alone, and said."""

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
from torch.nn import functional

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.data.data import Data
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, NotApplicable, UnsafeInput
from crushproof.targets.interface.assumptions import Assumptions, Overrides
from crushproof.targets.interface.finished_model import deployed, differentiable
from crushproof.targets.interface.infer import assume
from crushproof.targets.runtimes.onnx import OnnxTarget, integer_kernels
from crushproof.targets.runtimes.openvino import OpenVinoTarget
from crushproof.targets.seeds import generator
from crushproof.targets.untrusted.model_file import read_model_file

SHAPE = (1, 8, 8)


@pytest.fixture(scope="session")
def digits(digits: Data) -> Data:
    """Fewer of them: every reading of a file is tried on all."""
    return replace(digits, non_members=digits.non_members.take(torch.arange(200)))


class Around(nn.Module):
    """A network that takes other inputs, or gives other outputs, than the one inside."""

    def __init__(
        self, inner: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor] = lambda z: z
    ) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(self.before(x)))


def export(
    inner: nn.Module, before: Callable[[Tensor], Tensor], shape: tuple[int, ...] = SHAPE, **more: object
) -> bytes:
    return to_onnx(Around(inner, before, **more), shape)  # type: ignore[arg-type]  # `after` only


def same(x: Tensor) -> Tensor:
    return x


def in_front(
    model: bytes,
    *nodes: onnx.NodeProto,
    shape: tuple[int, ...] = SHAPE,
    word: int = TensorProto.FLOAT,
    **constants: object,
) -> bytes:
    """The same network behind `nodes`, which make "inner" of "input" [batch, *shape] and of constants."""
    edited = onnx.load_model_from_string(model)
    for node in edited.graph.node:
        node.input[:] = ["inner" if name == "input" else name for name in node.input]
    for at, node in enumerate(nodes):
        edited.graph.node.insert(at, node)
    edited.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    edited.graph.input[0].CopyFrom(helper.make_tensor_value_info("input", word, ["batch", *shape]))
    return bytes(edited.SerializeToString())


def cast_input(model: bytes, word: int) -> bytes:
    return in_front(model, helper.make_node("Cast", ["input"], ["inner"], to=TensorProto.FLOAT), word=word)


def fixed_batch(model: bytes, size: int) -> bytes:
    graph = onnx.load_model_from_string(model)
    for port in (graph.graph.input[0], graph.graph.output[0]):
        port.type.tensor_type.shape.dim[0].dim_value = size
    return bytes(graph.SerializeToString())


@pytest.fixture(scope="module")
def coloured(digits: Data) -> Data:
    """The digits as the middle one of three channels; the others hold noise."""
    noise = torch.rand(len(digits.non_members), 3, 8, 8, generator=generator(0, "noise"))
    noise[:, 1:2] = digits.non_members.x
    return Data("coloured", None, Records(noise, digits.non_members.y), digits.bounds, digits.class_names)


@pytest.fixture(scope="module")
def bytes_0_255(digits: Data) -> Data:
    x = (digits.non_members.x * 255).round()
    return Data("bytes", None, Records(x, digits.non_members.y), Bounds.of(0, 255), digits.class_names)


def check(model: bytes, data: Data, wanted: dict[str, object], clean: float, **given: object) -> list[str]:
    """`assume` finds `wanted`, and the deployed file is then as accurate as the network inside."""
    assumptions, sentences = assume(exported(model), data, Overrides.model_validate(given))
    for name, value in wanted.items():
        found = getattr(assumptions, name)
        assert found == pytest.approx(value, abs=0.02) if isinstance(value, tuple) else found == value, name
    target = deployed(exported(model), Assumptions.model_validate_json(assumptions.model_dump_json()))
    x, y = data.non_members.x, data.non_members.y
    logits = target.logits(x)
    assert logits.shape == (len(x), data.classes)
    assert logits.dtype == torch.float32
    assert bool(torch.isfinite(logits).all())
    assert target.queries == len(x)
    assert float((logits.argmax(1) == y).double().mean()) == pytest.approx(clean, abs=0.01)
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in sentences)
    return sentences


@pytest.fixture(scope="module")
def clean(digits: Data, dense: nn.Module) -> float:
    with torch.no_grad():
        return float((dense(digits.non_members.x).argmax(1) == digits.non_members.y).double().mean())


SCALINGS: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, object]]] = {
    "as given": (same, {"units": "as given", "mean": None, "layout": "channels-first"}),
    "0..255": (lambda z: z / 255, {"units": "0..255"}),
    "-1..1": (lambda z: (z + 1) / 2, {"units": "-1..1"}),
    "the data's own": (lambda z: z * 0.376 + 0.305, {"units": "0..1", "mean": (0.305,), "std": (0.376,)}),
    "a narrow one": (lambda z: z * 0.05 + 0.7, {"units": "0..1", "mean": (0.7,), "std": (0.05,)}),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_the_scaling_is_found(name: str, digits: Data, dense: nn.Module, clean: float) -> None:
    before, wanted = SCALINGS[name]
    model = export(dense, before)
    given = {"mean": (0.7,), "std": (0.05,)} if name == "a narrow one" else {}
    sentences = check(model, digits, wanted, clean, **given)
    assert any("--mean" in sentence for sentence in sentences) is (not given)


def test_a_wrong_mean_is_an_error_or_a_note(digits: Data, dense: nn.Module) -> None:
    model = export(dense, same)
    with pytest.raises(InputError, match=r"chance.*as given.*would be right") as caught:
        assume(exported(model), digits, Overrides(mean=(1.0,), std=(0.01,)))
    assert "\n" not in str(caught.value)
    _, sentences = assume(exported(model), digits, Overrides(mean=(0.4,)))  # std 1: nearly harmless shifts
    assert len(sentences) >= 1
    with pytest.raises(InputError, match="divide them by 255"):
        assume(exported(model), digits, Overrides(mean=(123.7,), std=(58.4,)))
    with pytest.raises(InputError, match="above 0"):
        assume(exported(model), digits, Overrides(mean=(0.1,), std=(0.0,)))
    with pytest.raises(InputError, match="3 values"):
        assume(exported(model), digits, Overrides(mean=(0.1, 0.1, 0.1)))


def test_integer_inputs(digits: Data, bytes_0_255: Data, dense: nn.Module, clean: float) -> None:
    pixels = cast_input(export(dense, lambda z: z / 255), TensorProto.UINT8)
    for data in (digits, bytes_0_255):
        units = "as given" if data is bytes_0_255 else "0..255"
        check(pixels, data, {"units": units, "layout": "channels-first"}, clean)
    signed = cast_input(export(dense, lambda z: (z + 128) / 255), TensorProto.INT8)
    check(signed, digits, {"units": "0..255"}, clean)
    grid = helper.make_node("DequantizeLinear", ["input", "scale", "zero"], ["inner"])
    steps = in_front(export(dense, same), grid, word=TensorProto.INT8, scale=np.float32(0.01), zero=np.int8(-50))
    sentences = check(steps, digits, {"units": "as given"}, clean)
    assert any("int8" in sentence for sentence in sentences)


def test_other_floats(digits: Data, dense: nn.Module, clean: float) -> None:
    for word in (TensorProto.FLOAT16, TensorProto.DOUBLE):
        check(cast_input(export(dense, same), word), digits, {"units": "as given"}, clean)


def test_the_layout_is_found(digits: Data, coloured: Data, dense: nn.Module, clean: float) -> None:
    plain = to_onnx(dense, SHAPE)
    reshape = helper.make_node("Reshape", ["input", "size"], ["inner"])
    size = np.array([-1, 1, 8, 8])
    grey = in_front(plain, helper.make_node("Transpose", ["input"], ["inner"], perm=[0, 3, 1, 2]), shape=(8, 8, 1))
    assert "channels-last from the input [batch, 8, 8, 1]" in check(grey, digits, {"layout": "channels-last"}, clean)[0]
    check(in_front(plain, reshape, shape=(8, 8), size=size), digits, {"layout": "channels-first"}, clean)
    check(in_front(plain, reshape, shape=(64,), size=size), digits, {"layout": "flat"}, clean)

    def middle(axis: int, shape: tuple[int, ...], full: list[int]) -> bytes:
        """Takes three channels along `axis` of `full`, and shows the middle one to the network."""
        nodes = [
            helper.make_node("Reshape", ["input", "full"], ["whole"]),
            helper.make_node("Gather", ["whole", "one"], ["picture"], axis=axis),
            helper.make_node("Reshape", ["picture", "size"], ["inner"]),
        ]
        return in_front(plain, *nodes, shape=shape, full=np.array(full), one=np.array([1]), size=size)

    last = middle(3, (8, 8, 3), [-1, 8, 8, 3])
    check(last, coloured, {"layout": "channels-last", "record": (8, 8, 3)}, clean)
    check(middle(1, (192,), [-1, 3, 8, 8]), coloured, {"layout": "flat"}, clean)
    moved = middle(3, (192,), [-1, 8, 8, 3])
    check(moved, coloured, {"layout": "channels-last"}, clean)
    with pytest.raises(InputError, match="does not fit"):
        assume(exported(last), coloured, Overrides(layout="channels-first"))
    with pytest.raises(InputError, match=r"channels-last.*would be right"):
        assume(exported(moved), coloured, Overrides(layout="flat"))
    with pytest.raises(InputError, match=r"grey.*repeat\(x, 3"):
        assume(exported(last), digits, Overrides())


def test_outputs_become_logits(digits: Data, dense: nn.Module, clean: float) -> None:
    x = digits.non_members.x
    plain = OnnxTarget(to_onnx(dense, SHAPE)).logits(x).log_softmax(1)
    for after, word in ((lambda z: z.softmax(1), "probabilities"), (lambda z: z.log_softmax(1), "log-probabilities")):
        model = export(dense, same, after=after)
        sentences = check(model, digits, {"outputs": word}, clean)
        assert any(word in sentence for sentence in sentences)
        assumptions, _ = assume(exported(model), digits, Overrides())
        answered = deployed(exported(model), assumptions).logits(x)
        near = plain > -10
        assert float((answered - plain)[near].abs().max()) < 1e-2


def test_a_softmax_in_eight_bits_gives_probabilities(digits: Data, dense: nn.Module) -> None:
    """As onnxruntime quantises it: rows sum to 1 but for its steps, and a 0 is a probability below half a step."""
    model = onnx.load_model_from_string(export(dense, same, after=lambda z: z.softmax(1)))
    graph = model.graph
    last = graph.output[0].name
    next(node for node in graph.node if last in node.output).output[0] = "chances"
    for name, value in (("eighth", np.float32(1 / 256)), ("least", np.int8(-128))):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    graph.node.append(helper.make_node("QuantizeLinear", ["chances", "eighth", "least"], ["codes"]))
    graph.node.append(helper.make_node("DequantizeLinear", ["codes", "eighth", "least"], [last]))
    file = exported(model.SerializeToString())
    assumptions, _ = assume(file, digits, Overrides())
    assert (assumptions.outputs, assumptions.smallest) == ("probabilities", 1 / 512)


def test_the_order_of_classes(digits: Data, dense: nn.Module, clean: float) -> None:
    background = export(dense, same, after=lambda z: torch.cat([z[:, :1] * 0, z], dim=1))
    sentences = check(background, digits, {"labels": tuple(range(1, 11))}, clean)
    assert any("outputs 1 to 10" in sentence for sentence in sentences)
    check(background, digits, {"labels": tuple(range(1, 11))}, clean, labels=1)
    for order in ([3, 0, 4, 8, 5, 9, 2, 6, 1, 7], [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]):  # the second keeps two places
        shuffled = export(dense, same, after=lambda z, order=order: z[:, order])
        places = tuple(order.index(label) for label in range(10))
        words = f"--labels {','.join(map(str, places))}"
        if order[1] != 1:
            with pytest.raises(InputError, match=words):
                assume(exported(shuffled), digits, Overrides())
        else:
            assert any(words in sentence for sentence in assume(exported(shuffled), digits, Overrides())[1])
        check(shuffled, digits, {"labels": places}, clean, labels=places)
    with pytest.raises(InputError, match="10 classes"):
        assume(exported(export(dense, same, after=lambda z: z[:, :4])), digits, Overrides())


def test_one_output_of_two_classes(digits: Data, dense: nn.Module) -> None:
    every = load_digits().non_members
    keep = every.y < 2
    records = Records(every.x[keep], every.y[keep])
    data = Data("two", None, records, digits.bounds, ("zero", "one"))
    for after in (lambda z: z[:, 1:2] - z[:, 0:1], lambda z: (z[:, 1:2] - z[:, 0:1]).sigmoid()):
        check(export(dense, same, after=after), data, {"labels": None}, 1.0)


# Several outputs ------------------------------------------------------------------------------------------------------


def with_outputs(model: bytes, *chosen: tuple[str, int]) -> bytes:
    """The same network, whose outputs are these values of so many numbers; "features" is what the last layer takes."""
    edited = onnx.load_model_from_string(model)
    last = next(node for node in edited.graph.node if "logits" in node.output)
    edited.graph.node.append(helper.make_node("Identity", [last.input[0]], ["features"]))
    edited.graph.node.append(helper.make_node("Softmax", ["logits"], ["chances"]))
    edited.graph.node.append(helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0))
    del edited.graph.output[:]
    for name, size in chosen:
        word, shape = (TensorProto.FLOAT, ["batch", size]) if size else (TensorProto.INT64, ["batch"])
        edited.graph.output.append(helper.make_tensor_value_info(name, word, shape))
    return bytes(edited.SerializeToString())


@pytest.mark.parametrize(
    ("chosen", "taken"),
    [
        ((("features", 64), ("logits", 10)), "logits"),
        ((("chances", 10), ("logits", 10)), "logits"),
        ((("logits", 10), ("chances", 10)), None),
        ((("label", 0), ("chances", 10)), "chances"),
    ],
)
def test_the_output_that_fits_is_taken(
    chosen: tuple[tuple[str, int], ...], taken: str | None, digits: Data, dense: nn.Module, clean: float
) -> None:
    model = with_outputs(to_onnx(dense, SHAPE), *chosen)
    sentences = check(model, digits, {"output": taken}, clean)
    assert any(repr(taken or "logits") in sentence and "--output" in sentence for sentence in sentences)
    assumptions, _ = assume(exported(model), digits, Overrides())
    x = digits.non_members.x[:50]
    answered = differentiable(exported(model), assumptions, digits.bounds, digits.shape)(x)
    assert float((answered.detach() - deployed(exported(model), assumptions).logits(x)).abs().max()) < 1e-3
    other = OpenVinoTarget(model, output=taken).logits(x)
    assert float((other - OnnxTarget(model, output=taken).logits(x)).abs().max()) < 1e-3


def test_an_output_that_is_named_is_taken(digits: Data, dense: nn.Module, clean: float) -> None:
    model = with_outputs(to_onnx(dense, SHAPE), ("logits", 10), ("chances", 10), ("features", 64))
    sentences = check(model, digits, {"output": "chances", "outputs": "probabilities"}, clean, output="chances")
    assert not any("--output;" in sentence for sentence in sentences)
    with pytest.raises(InputError, match=r"no output 'scores'.*'logits'.*'chances'.*'features' float32 \[batch, 64\]"):
        assume(exported(model), digits, Overrides(output="scores"))
    with pytest.raises(InputError, match="chance"):
        assume(exported(model), digits, Overrides(output="features"))
    with pytest.raises(InputError, match=r"labels only.*zipmap"):
        assume(exported(with_outputs(to_onnx(dense, SHAPE), ("label", 0))), digits, Overrides())


@pytest.mark.parametrize("zipmap", [False, True])
def test_a_classical_model_is_read_by_its_probabilities(zipmap: bool, digits: Data, tmp_path: Path) -> None:
    """As skl2onnx writes it: the label first, then probabilities or, by default, one map for each record."""
    from sklearn.linear_model import LogisticRegression

    assert digits.members is not None
    fitted = LogisticRegression(tol=0.01)
    fitted.fit(digits.members.x.flatten(1).numpy(), digits.members.y.numpy())
    classes = list(range(10))
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["input"],
            ["label", "scores"],
            domain="ai.onnx.ml",
            coefficients=fitted.coef_.ravel().tolist(),
            intercepts=fitted.intercept_.tolist(),
            classlabels_ints=classes,
            post_transform="SOFTMAX",
        ),
        helper.make_node("ZipMap", ["scores"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=classes),
    ][: 2 if zipmap else 1]
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
        helper.make_value_info("maps", maps)
        if zipmap
        else helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10]),
    ]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 64])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    graph = helper.make_graph(nodes, "classical", [given], outputs)
    path = tmp_path / "classical.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    found = read_model_file(path)
    assumptions, _ = assume(found, digits, Overrides())
    assert (assumptions.output, assumptions.outputs) == ("maps" if zipmap else "scores", "probabilities")
    x = digits.non_members.x
    answered = deployed(found, assumptions).logits(x)
    wanted = torch.from_numpy(fitted.predict_proba(x.flatten(1).numpy())).float().log()
    assert float((answered - wanted).abs().max()) < 1e-2
    with pytest.raises(NotApplicable):
        differentiable(found, assumptions, digits.bounds, digits.shape)


def test_nothing_fits(digits: Data) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(flat[1].weight)
    with pytest.raises(InputError, match=r"chance.*channels-first: as given .* %, .*0\.\.255") as caught:
        assume(exported(to_onnx(flat, SHAPE)), digits, Overrides())
    assert "\n" not in str(caught.value)


def test_fixed_batches(digits: Data, dense: nn.Module, clean: float) -> None:
    free = export(dense, same)
    expected = OnnxTarget(free).logits(digits.non_members.x)
    for size in (1, 16):
        model = fixed_batch(free, size)
        check(model, digits, {"units": "as given"}, clean)
        answered = OnnxTarget(model).logits(digits.non_members.x)
        assert float((answered - expected).abs().max()) < 1e-4


# ONNX Runtime's own quantiser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtimes_own(digits: Data, dense: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    from onnxruntime import quantization

    folder: Path = tmp_path_factory.mktemp("quantised")
    source, prepared = folder / "float.onnx", folder / "prepared.onnx"
    source.write_bytes(to_onnx(dense, SHAPE))
    quantization.shape_inference.quant_pre_process(source, prepared)
    assert digits.members is not None
    records = digits.members.x[:100].numpy()

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # the library is not typed
        def __init__(self) -> None:
            self.parts = iter(np.split(records, 4))

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self.parts, None)
            return None if part is None else {"input": part}

    made = {}
    for name in ("QOperator", "QDQ"):
        target = folder / f"{name}.onnx"
        quantization.quantize_static(
            prepared, target, Reader(), quant_format=quantization.QuantFormat[name], per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        made[name] = target.read_bytes()
    quantization.quantize_dynamic(prepared, folder / "dynamic.onnx")
    made["dynamic"] = (folder / "dynamic.onnx").read_bytes()
    return made


@pytest.mark.parametrize("name", ["QOperator", "QDQ", "dynamic"])
def test_files_of_the_runtimes_quantiser(
    name: str, digits: Data, clean: float, runtimes_own: dict[str, bytes], tmp_path: Path
) -> None:
    model = runtimes_own[name]
    check(model, digits, {"units": "as given", "outputs": "logits"}, clean)
    kernels = integer_kernels(model)
    assert sum(kernels["integer"].values()) >= 6  # of five convolutions and a linear layer
    assert sum(kernels["float"].values()) == 0
    found = exported(model)
    assert found.facts.quantisation[0].startswith("dynamic" if name == "dynamic" else "static")
    if name == "QOperator":
        path = tmp_path / "model_int8.onnx"
        path.write_bytes(model)
        assert read_model_file(path) == found


# Preprocessing and twin -----------------------------------------------------------------------------------------------


def test_the_twin_computes_what_the_file_computes(
    digits: Data, bytes_0_255: Data, dense: nn.Module, runtimes_own: dict[str, bytes]
) -> None:
    pixels = cast_input(export(dense, lambda z: z / 255, after=lambda z: z.softmax(1)), TensorProto.UINT8)
    for model, data in ((pixels, bytes_0_255), (runtimes_own["QOperator"], digits)):
        assumptions, _ = assume(exported(model), data, Overrides())
        twin = differentiable(exported(model), assumptions, data.bounds, data.shape)
        x = data.non_members.x[:200].clone().requires_grad_(True)
        answered = twin(x)
        expected = deployed(exported(model), assumptions).logits(x)
        assert float((answered.argmax(1) == expected.argmax(1)).double().mean()) >= 0.995
        (gradient,) = torch.autograd.grad(functional.cross_entropy(answered, data.non_members.y[:200]), x)
        assert float((gradient.flatten(1).abs().sum(1) > 0).double().mean()) > 0.9
        assert twin.rounds
        twin.straight_through = False  # the gradients that rounding really has
        hard = twin(x)
        assert torch.equal(hard, answered)
        assert not hard.requires_grad or not torch.autograd.grad(hard.sum(), x, allow_unused=True)[0].any()


@pytest.mark.parametrize(("probabilities", "scale", "zero_point"), [(False, 0.25, 128), (True, 1 / 256, 0)])
def test_the_twin_of_a_file_that_answers_in_integers(
    probabilities: bool, scale: float, zero_point: int, digits: Data, dense: nn.Module
) -> None:
    model = onnx.load_model_from_string(export(dense, same, after=lambda z: z.softmax(1) if probabilities else z))
    for node in model.graph.node:
        node.output[:] = ["real" if name == "logits" else name for name in node.output]
    model.graph.node.append(helper.make_node("QuantizeLinear", ["real", "scale", "zero"], ["logits"]))
    for name, value in (("scale", np.float32(scale)), ("zero", np.uint8(zero_point))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    data = bytes(model.SerializeToString())
    assumptions, _ = assume(exported(data), digits, Overrides())
    assert assumptions.outputs == ("probabilities" if probabilities else "logits")
    x = digits.non_members.x[:100].clone().requires_grad_(True)
    answered = differentiable(exported(data), assumptions, digits.bounds, digits.shape)(x)
    off = (answered.detach() - deployed(exported(data), assumptions).logits(x)).abs().amax(1)
    assert float((off < 1e-5).double().mean()) > 0.98  # float sums may fall on the other side of a step, seldom


# Other runtimes -------------------------------------------------------------------------------------------------------


def test_openvino_agrees(digits: Data, dense: nn.Module, runtimes_own: dict[str, bytes]) -> None:
    x = digits.non_members.x
    plain = to_onnx(dense, SHAPE)
    for model, labels in ((plain, 1.0), (fixed_batch(plain, 16), 1.0), (runtimes_own["QDQ"], 0.98)):
        ours, theirs = OnnxTarget(model).logits(x), OpenVinoTarget(model)
        answered = theirs.logits(x)
        assert theirs.queries == len(x)
        assert float((ours.argmax(1) == answered.argmax(1)).double().mean()) >= labels
    with pytest.raises(UnsafeInput):
        OpenVinoTarget(b"nothing")
