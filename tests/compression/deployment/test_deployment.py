"""What ships: the ONNX bytes compute what the module computes, and hold integers where they should."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.layers.edit import called_layers, replace_layers
from crushproof.compression.layers.fold_batch_norm import fold_batch_norm
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.quantization.quantized_layer import Activations, QuantizedLayer, quantize_layer
from crushproof.compression.quantization.weight_codes import WeightFormat
from crushproof.targets.certificate import certify
from crushproof.targets.data.data import Data
from crushproof.targets.errors import InputError, NotApplicable, UnsafeInput
from crushproof.targets.model import TorchTarget
from crushproof.targets.runtimes.onnx import OnnxTarget, executed_operators
from crushproof.targets.seeds import generator
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp

SHAPE = (1, 8, 8)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator(4, "noise"))


@pytest.fixture(scope="module")
def quantized(digits: Data, dense: nn.Module) -> Callable[[int, bool], nn.Module]:
    made: dict[tuple[int, bool], nn.Module] = {}

    def quantize(bits: int, activations: bool) -> nn.Module:
        if (bits, activations) not in made:
            recipe = Quantize(weight_bits=bits, activations="static" if activations else "float")
            made[bits, activations] = recipe.apply(dense, digits.members, digits.bounds, seed=0)
        return made[bits, activations]

    return quantize


def agreement(module: nn.Module, x: Tensor) -> tuple[float, float]:
    certificate = certify(OnnxTarget(to_onnx(module, tuple(x.shape[1:]))), TorchTarget(module), {"all": x})
    return certificate.overall.label_agreement, certificate.overall.max_logit_difference


def test_float_models_agree(digits: Data, dense: nn.Module) -> None:
    labels, difference = agreement(dense, digits.non_members.x)
    assert labels == 1.0
    assert difference < 1e-4
    assert agreement(Mlp(64, 10).eval(), noise(50, *SHAPE))[1] < 1e-5


@pytest.mark.parametrize(("bits", "activations"), [(8, True), (4, True), (2, True), (8, False), (3, False)])
def test_quantised_models_agree(
    digits: Data, quantized: Callable[[int, bool], nn.Module], bits: int, activations: bool
) -> None:
    module = quantized(bits, activations)
    inputs = torch.cat([digits.non_members.x, noise(300, *SHAPE)])
    labels, difference = agreement(module, inputs)
    assert labels >= 0.995
    if not activations:
        assert labels == 1.0
        assert difference < 1e-4  # no rounding at run time, so no rounding to disagree about


def test_integers_ship(dense: nn.Module, quantized: Callable[[int, bool], nn.Module]) -> None:
    plain = to_onnx(dense, SHAPE)
    for activations in (True, False):
        module = quantized(8, activations)
        data = to_onnx(module, SHAPE)
        assert len(data) < 0.5 * len(plain)
        graph = onnx.load_model_from_string(data).graph
        layers = [layer for layer in module.modules() if isinstance(layer, QuantizedLayer)]
        held = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
        held += [numpy_helper.to_array(node.attribute[0].t) for node in graph.node if node.op_type == "Constant"]
        for layer in layers:
            assert any(array.dtype == np.int8 and np.array_equal(array, layer.codes.numpy()) for array in held)
            if layer.bias_codes is not None:
                assert any(array.dtype == np.int32 and np.array_equal(array, layer.bias_codes) for array in held)
        largest = max(array.size for array in held if array.dtype == np.float32)
        assert largest <= max(len(layer.codes) for layer in layers)  # scales and biases; no float copy of the weights
        kinds = {node.op_type for node in graph.node}
        assert "DequantizeLinear" in kinds
        assert ("QuantizeLinear" in kinds) == activations


def test_integer_kernels_run(quantized: Callable[[int, bool], nn.Module], dense: nn.Module) -> None:
    operators = executed_operators(to_onnx(quantized(8, True), SHAPE))
    assert operators["QLinearConv"] >= 2
    assert operators["QGemm"] == 1
    weights_only = executed_operators(to_onnx(quantized(8, False), SHAPE))
    assert not {"DequantizeLinear", "MatMulNBits"} & set(weights_only)  # unpacked on loading, computed in float32
    assert not {"QLinearConv", "QGemm"} & set(executed_operators(to_onnx(dense, SHAPE)))


def test_a_quantised_layer_is_integer_arithmetic() -> None:
    """Against the arithmetic of Jacob et al. 2018, section 2.2, in numpy integers."""
    weight = noise(6, 5) * 2 - 1
    linear = nn.Linear(5, 6)
    linear.weight.data, linear.bias.data = weight, noise(6) - 0.5
    layer = quantize_layer(linear, WeightFormat(), activations=(-0.4, 1.0))
    x = noise(200, 5) * 1.6 - 0.5  # partly outside the range: saturates
    scale, zero = np.float32(layer.input_scale), int(layer.input_zero_point)
    q = np.clip(np.rint(x.numpy() / scale) + zero, 0, 255).astype(np.int64) - zero
    accumulator = q @ layer.codes.numpy().astype(np.int64).T + layer.bias_codes.numpy()
    expected = accumulator * (scale * layer.weight_scale.numpy())
    answered = OnnxTarget(to_onnx(layer, (5,))).logits(x).numpy()
    np.testing.assert_allclose(answered, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activations", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_every_quantised_geometry(activations: bool, bias: bool) -> None:
    grid = (-0.2, 1.0) if activations else None

    def quantise(layer: nn.Module) -> nn.Module:
        return quantize_layer(layer, WeightFormat(), activations=grid)

    convolution = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, bias=bias)
    along = nn.Conv1d(3, 4, 3, stride=2, padding=1, bias=bias)
    for module, shape in (
        (nn.Sequential(quantise(convolution), nn.Flatten()), (4, 9, 7)),
        (nn.Sequential(quantise(along), nn.ReLU(), quantise(nn.Conv1d(4, 2, 1, bias=bias)), nn.Flatten()), (3, 11)),
        (nn.Sequential(quantise(nn.Linear(5, 4, bias=bias)), nn.Flatten()), (3, 5)),  # on a sequence: a product
    ):
        x = noise(20, *shape)
        with torch.no_grad():
            expected = module.eval()(x)
        answered = OnnxTarget(to_onnx(module, shape)).logits(x)
        step = 1.2 / 255 if activations else 0.0  # of the later layer's input: one may round the other way
        assert float((answered - expected).abs().max()) <= 1e-5 + step


FORMATS = [
    *(("integer", bits) for bits in (8, 4, 3, 2)),
    ("fixed-point", 8),
    ("fixed-point", 4),
    ("binary", 8),
    ("ternary", 8),
]
GRANULARITIES = ["tensor", "channel", "group"]


@pytest.fixture(scope="module")
def small(digits: Data) -> nn.Module:
    """Of each sort of layer one: many formats are tried on it."""
    assert digits.members is not None
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )
    return train(module, digits.members, Training(epochs=6, learning_rate=5e-3), seed=0).eval()


@pytest.fixture(scope="module")
def reformat(digits: Data, small: nn.Module) -> Callable[[WeightFormat, str], nn.Module]:
    """The small CNN, every layer in one format; static activations calibrated on members."""
    assert digits.members is not None
    x = digits.members.x[:256]
    folded = fold_batch_norm(copy.deepcopy(small), x[:2])
    ranges: dict[str, tuple[float, float]] = {}
    paths = {layer: path for path, layer in folded.named_modules()}
    layers = called_layers(folded, x[:2])
    handles = [
        layer.register_forward_pre_hook(
            lambda layer, inputs: ranges.__setitem__(paths[layer], (float(inputs[0].min()), float(inputs[0].max())))
        )
        for layer in layers
    ]
    with torch.no_grad():
        folded(x)
    for handle in handles:
        handle.remove()

    def make(format: WeightFormat, activations: str) -> nn.Module:
        module = copy.deepcopy(folded)
        stand_ins: dict[nn.Module, nn.Module] = {}
        for path, span in ranges.items():
            choice: Activations = {"static": span, "dynamic": "dynamic", "float": None}[activations]  # type: ignore[assignment]  # "dynamic" is no longer a literal
            stand_ins[module.get_submodule(path)] = quantize_layer(
                module.get_submodule(path), format, activations=choice
            )
        return replace_layers(module, stand_ins).eval()

    return make


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("number", "bits"), FORMATS)
def test_every_format_ships_and_agrees(
    digits: Data, reformat: Callable[[WeightFormat, str], nn.Module], number: Any, bits: Any, granularity: Any
) -> None:
    x = digits.non_members.x[:200]
    left_out = (FORMATS.index((number, bits)) + GRANULARITIES.index(granularity)) % 3  # every two go together twice
    for activations in (one for place, one in enumerate(("static", "dynamic", "float")) if place != left_out):
        module = reformat(WeightFormat(number, bits, granularity, 20), activations)
        data = to_onnx(module, SHAPE)
        certificate = certify(OnnxTarget(data), TorchTarget(module), {"records": x}).overall
        with torch.no_grad():
            logits = module(x)
        best = logits.topk(2, dim=1).values
        decided = best[:, 0] - best[:, 1] > 2 * certificate.max_logit_difference  # ternary logits can tie
        assert certificate.label_agreement >= float(decided.double().mean()) >= 0.95
        spread = float(logits.std())
        assert certificate.max_logit_difference < (1e-4 if activations == "float" else 0.1) * max(spread, 1.0)


@pytest.mark.parametrize("number", ["float16", "bfloat16"])
def test_sixteen_bit_floats_ship_in_sixteen_bits(
    digits: Data, small: nn.Module, reformat: Callable[[WeightFormat, str], nn.Module], number: Any
) -> None:
    module = reformat(WeightFormat(number), "float")
    certificate = certify(
        OnnxTarget(to_onnx(module, SHAPE)), TorchTarget(module), {"records": digits.non_members.x}
    ).overall
    assert certificate.label_agreement == 1.0
    assert certificate.max_logit_difference < 1e-4
    layers = [layer for layer in module.modules() if isinstance(layer, QuantizedLayer)]
    saved = len(to_onnx(fold_batch_norm(copy.deepcopy(small), noise(2, *SHAPE)), SHAPE)) - len(to_onnx(module, SHAPE))
    assert saved > 2 * sum(layer.codes.numel() for layer in layers) - 1500  # two bytes a weight, less the Casts


@pytest.mark.parametrize(
    ("format", "width"),
    [
        (WeightFormat(bits=4), 4),
        (WeightFormat(bits=3), 4),  # ONNX has no 3-bit type
        (WeightFormat(bits=2), 2),
        (WeightFormat("ternary"), 2),
        (WeightFormat("binary"), 2),  # and no 1-bit type
        (WeightFormat(bits=4, granularity="group"), 4),
    ],
)
@pytest.mark.parametrize("activations", ["static", "float"])
def test_small_codes_ship_small(
    reformat: Callable[[WeightFormat, str], nn.Module], format: WeightFormat, width: int, activations: str
) -> None:
    module = reformat(format, activations)
    graph = onnx.load_model_from_string(to_onnx(module, SHAPE)).graph
    held = [tensor for tensor in graph.initializer if tensor.data_type in (TensorProto.INT4, TensorProto.INT2)]
    for layer in module.modules():
        if isinstance(layer, QuantizedLayer):
            codes = layer.codes.flatten(1) if format.granularity == "group" else layer.codes
            same = [
                tensor
                for tensor in held
                if tuple(tensor.dims) == tuple(codes.shape)
                and np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), codes.numpy())
            ]
            assert len(same) == 1
            assert len(same[0].raw_data) == (codes.numel() * width + 7) // 8
    if activations == "static" and format.granularity == "channel":
        assert executed_operators(to_onnx(module, SHAPE))["QGemm"] == 1  # the runtime widened the codes on loading


def test_layers_of_different_formats_side_by_side() -> None:
    """Equal codes and zero points are one constant to torch's exporter, whatever types they are to have."""
    layers = [nn.Linear(6, 6, bias=False) for _ in range(4)]
    formats = [WeightFormat(), WeightFormat(bits=4), WeightFormat("ternary"), WeightFormat("bfloat16")]
    for activations in (None, "dynamic", (-1.0, 1.0)):
        ones = [(torch.ones(6, 6, dtype=torch.int8), torch.ones(6)) for _ in range(3)]
        stack: list[nn.Module] = [
            quantize_layer(layer, format, activations=activations, codes=codes)  # type: ignore[arg-type]  # a loop's str
            for layer, format, codes in zip(layers, formats, ones, strict=False)
        ]
        stack += [quantize_layer(layers[1], formats[1], activations=activations)]  # type: ignore[arg-type]  # a loop's str
        stack += [quantize_layer(layers[3], formats[3]), nn.Tanh(), nn.Linear(6, 3)]
        module = nn.Sequential(*stack).eval()
        x = noise(40, 6) - 0.5
        with torch.no_grad():
            expected = module(x)
        assert float((OnnxTarget(to_onnx(module, (6,))).logits(x) - expected).abs().max()) < 0.02


def test_an_embedding_ships_as_integers() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = quantize_layer(nn.Embedding(50, 8), WeightFormat(bits=4, granularity="group", group_size=4))

        def forward(self, x: Tensor) -> Tensor:
            looked_up: Tensor = self.words(x.long())
            return looked_up.mean(1)

    module, x = Words().eval(), (noise(30, 7) * 50).floor()
    data = to_onnx(module, (7,))
    assert float((OnnxTarget(data).logits(x) - module(x)).abs().max()) < 1e-6
    assert any(tensor.data_type == TensorProto.INT4 for tensor in onnx.load_model_from_string(data).graph.initializer)


def test_what_a_layer_ships_as_takes_its_place() -> None:
    class Doubled(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError

        def shipped(self) -> nn.Module:
            return nn.Sequential(self.layer, nn.Identity(), self.layer)

    layer = quantize_layer(nn.Linear(4, 4), WeightFormat())
    x = noise(9, 4)
    for module in (Doubled(layer), nn.Sequential(Doubled(Doubled(layer)), nn.Flatten())):
        answered = OnnxTarget(to_onnx(module, (4,))).logits(x)
        expected = layer(layer(x)) if isinstance(module, Doubled) else layer(layer(layer(layer(x))))
        assert float((answered - expected).abs().max()) < 1e-5


def test_same_module_same_bytes(quantized: Callable[[int, bool], nn.Module]) -> None:
    module = quantized(4, True)
    first = to_onnx(module, SHAPE)
    to_onnx(Mlp(3, 2), (3,))
    assert to_onnx(copy.deepcopy(module), SHAPE) == first
    assert str(Path.cwd()).encode() not in first  # no trace of where it was made


def test_what_cannot_be_exported() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x).real

    with pytest.raises(NotApplicable, match="ONNX"):
        to_onnx(Odd(), (3, 3))


def test_batches_threads_and_queries(digits: Data, dense: nn.Module) -> None:
    model = to_onnx(dense, SHAPE)
    target = OnnxTarget(model)
    x = digits.non_members.x.repeat(3, 1, 1, 1)[:1100]
    together = target.logits(x)
    assert together.dtype == torch.float32
    assert together.shape == (1100, 10)
    assert target.queries == 1100
    assert float((torch.cat([target.logits(part) for part in x.split(7)]) - together).abs().max()) < 1e-4
    assert torch.equal(OnnxTarget(model, threads=2).logits(x), together)
    assert target.logits(x[:0]).shape[0] == 0
    x.requires_grad_(True)
    assert torch.equal(target.logits(x), together)


def tiny(domain: str = "", **changes: object) -> onnx.ModelProto:
    """logits = input @ weight, with one thing wrong."""
    weight = numpy_helper.from_array(np.ones((3, 2), dtype=np.float32), "weight")
    nodes = [helper.make_node("MatMul", ["input", "weight"], ["logits"], domain=domain)]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, changes.get("shape", ["batch", 3]))]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])]
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_external_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_bytes(np.full(6, 7, dtype=np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    assert OnnxTarget(tiny().SerializeToString()).logits(torch.ones(1, 3)).tolist() == [[3.0, 3.0]]
    for location in ("secret", "../secret", str(tmp_path / "secret"), "junk/../../secret"):
        model = tiny()
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        with pytest.raises(UnsafeInput, match="other files"):
            OnnxTarget(model.SerializeToString())
        hidden = tiny()  # the same tensor, inside an attribute of a node of a subgraph
        branch = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "b", [], [])
        hidden.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch))
        with pytest.raises(UnsafeInput, match="other files"):
            OnnxTarget(hidden.SerializeToString())


def test_operators_outside_the_standard_are_refused() -> None:
    for domain in ("com.example", "com.microsoft", "ai.onnx.contrib"):  # MatMul is no operator of the runtime's own
        with pytest.raises(UnsafeInput, match=domain):
            OnnxTarget(tiny(domain).SerializeToString())
    unlisted = tiny()
    unlisted.graph.node[0].domain = "com.example"
    with pytest.raises(UnsafeInput, match=r"com\.example"):
        OnnxTarget(unlisted.SerializeToString())


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]  # what a malicious pickle does


def test_what_is_no_onnx_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = tiny().SerializeToString()
    cut = [whole[:length] for length in range(0, len(whole), 3)]
    for data in (b"", pickle.dumps(Payload()), b"\x80\x04.", b"PK\x03\x04", *cut):
        with pytest.raises(UnsafeInput) as caught:
            OnnxTarget(data)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
    unknown = tiny()
    unknown.graph.node[0].op_type = "Frobnicate"
    with pytest.raises(UnsafeInput, match="Frobnicate"):
        OnnxTarget(unknown.SerializeToString())
    garbled = whole.replace(b"batch", b"batc\xff")
    with pytest.raises(UnsafeInput, match="malformed"):
        OnnxTarget(garbled)
    with pytest.raises(InputError, match=r"shape \[4\]"):
        OnnxTarget(whole).logits(torch.ones(2, 4))
    with pytest.raises(InputError, match="absent"):
        OnnxTarget(tmp_path / "absent.onnx")
    with pytest.raises(InputError, match="batch"):
        OnnxTarget(tiny(shape=[3]).SerializeToString())


def test_a_file_is_read_like_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny().SerializeToString())
    assert OnnxTarget(path).logits(torch.ones(2, 3)).tolist() == [[3.0, 3.0]] * 2


class Fixed:
    """Answers what it was given."""

    def __init__(self, logits: list[list[float]]) -> None:
        self.queries, self._logits = 0, torch.tensor(logits)

    def logits(self, x: Tensor) -> Tensor:
        return self._logits[: len(x)]


def test_certificate() -> None:
    ours = Fixed([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [float("nan"), 0.0]])
    theirs = Fixed([[1.5, 0.0], [1.0, 0.0], [2.0, 0.25], [float("nan"), 0.0]])
    certificate = certify(
        ours, theirs, {"three": torch.zeros(3, 1), "four": torch.zeros(4, 1), "none": torch.zeros(0, 1)}
    )
    assert set(certificate.kinds) == {"three", "four"}
    assert certificate.kinds["three"].label_agreement == pytest.approx(2 / 3)
    assert certificate.kinds["four"].label_agreement == pytest.approx(2 / 4)
    assert certificate.overall.n == 7
    assert certificate.overall.label_agreement == pytest.approx(4 / 7)
    assert certificate.overall.max_logit_difference == 1.0
