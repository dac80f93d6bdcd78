"""Models as people have them: wrapped, parametrised, tied, with slopes of their own, in other floats, TorchScript."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

import crushproof
from crushproof.audit.plan.plan import Plan
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.subject.scripted import without_script
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.deployment.structure import load_module, save_module
from crushproof.compression.footprint.footprint import footprint
from crushproof.compression.footprint.payload import decode, encode
from crushproof.compression.pruning.channels import remove_channels
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.plain import plain, shared_weights, tie
from crushproof.targets.seeds import generator, global_seed
from crushproof.training.architecture import Architecture
from crushproof.training.loop import TrainingJob
from crushproof.training.trainer import UserTrainer

Form = Callable[[nn.Linear], nn.Module]
X = torch.rand(24, 8, generator=generator(3, "x"))
Y = torch.arange(24) % 3


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def halved(layer: nn.Linear) -> nn.Module:
    parametrize.register_parametrization(layer, "bias", Halved())
    parametrize.register_parametrization(layer, "weight", Halved())
    return parametrize.register_parametrization(layer, "weight", Halved())


def masked(layer: nn.Linear) -> nn.Module:
    prune.l1_unstructured(layer, "weight", amount=0.5)
    prune.random_structured(layer, "weight", amount=1, dim=0)  # a container of two masks
    return prune.l1_unstructured(layer, "bias", amount=2)


COMPUTED: dict[str, Form] = {
    "pruning mask": masked,
    "weight norm": nn.utils.weight_norm,
    "weight norm, parametrised": parametrizations.weight_norm,
    "spectral norm": nn.utils.spectral_norm,
    "spectral norm, parametrised": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "one's own": halved,
}


def network(form: Form = lambda layer: layer) -> nn.Module:
    """Trained for a step, so that a computed weight hangs on its graph, as after a user's own training."""
    with global_seed(0, "forms"):
        module = nn.Sequential(form(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 3))
        F.cross_entropy(module(X), Y).backward()
    return module.eval()


@pytest.mark.parametrize("form", COMPUTED)
def test_a_computed_weight_is_written_out(form: str) -> None:
    module = network(COMPUTED[form])
    expected, state = module(X), copy.deepcopy(dict(module.state_dict()))
    made, notes = plain(module, X)
    assert torch.allclose(made(X), expected, atol=1e-6)
    assert type(made[0]) is nn.Linear
    assert set(made.state_dict()) == set(dict(made.named_parameters())) == set(network().state_dict())
    assert "0.weight" in notes[0]
    made.load_state_dict(made.state_dict(), strict=True)  # no hook still looks for the old names
    assert torch.equal(copy.deepcopy(made)(X), made(X))
    if form == "pruning mask":
        assert int((made[0].weight == 0).sum()) >= 32
    assert module.state_dict().keys() == state.keys(), "the user's own is left as it is"
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert torch.equal(module(X), expected)


def test_recurrent_weights_are_written_out() -> None:
    layer = nn.GRU(4, 6, batch_first=True)
    module = nn.ModuleDict({"gru": parametrizations.weight_norm(layer, "weight_hh_l0")})
    x = torch.rand(2, 5, 4)
    expected = module["gru"](x)[0]
    made = plain(module)[0]["gru"]
    assert torch.allclose(made(x)[0], expected, atol=1e-6)
    with torch.no_grad():
        made.weight_hh_l0.zero_()
    assert not torch.allclose(made(x)[0], expected, atol=1e-3), "the written-out weight is the one in use"


class OptimizedModule(nn.Module):
    """As torch.compile's (which takes seconds to import): a module of this name with the original inside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module

    def forward(self, x: Tensor) -> Tensor:
        return self._orig_mod(x)


@pytest.mark.parametrize("wrapper", [nn.DataParallel, AveragedModel, OptimizedModule])
def test_wrappers_come_off_wherever_they_are(wrapper: Callable[[nn.Module], nn.Module]) -> None:
    module = network()
    for wrapped in (wrapper(module), OptimizedModule(wrapper(module)), nn.Sequential(wrapper(module[0]), *module[1:])):
        made, notes = plain(wrapped.eval())
        assert made.state_dict().keys() == module.state_dict().keys()
        assert torch.equal(made(X), module(X))
        assert not notes


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floats_are_audited_as_float32(kind: torch.dtype) -> None:
    module = network(parametrizations.weight_norm).to(kind)
    made, notes = plain(module, X)
    assert {value.dtype for value in made.state_dict().values()} == {torch.float32}
    assert torch.allclose(made(X), module(X.to(kind)).float(), atol=0.05)
    assert str(kind).removeprefix("torch.") in notes[0]


class FakeQuantizeBase(nn.Identity):
    """As torch's, by its name."""


def test_what_cannot_be_made_plain_is_refused_with_the_cure() -> None:
    quantised = torch.ao.quantization.quantize_dynamic(network())
    for module, words in (
        (torch.jit.script(network()), "TorchScript.*nn.Module it was made from"),
        (nn.Sequential(nn.LazyLinear(3)), "lazy layer"),
        (quantised, "float model"),
        (nn.Sequential(nn.Linear(8, 3), FakeQuantizeBase()), "float model it was prepared from"),
        (nn.Linear(8, 3, device="meta"), "without values"),
    ):
        with pytest.raises(InputError, match=words):
            plain(module)


@pytest.mark.parametrize("make", [torch.jit.script, lambda module: torch.jit.trace(module, X[:1])])
def test_torchscript_is_read_into_layers(make: Callable[[nn.Module], nn.Module]) -> None:
    module = network()
    read, sentence = without_script(make(module), X)
    assert torch.allclose(read(X), module(X), atol=1e-5)
    assert sum(value.numel() for value in plain(read)[0].parameters()) == sum(p.numel() for p in module.parameters())
    assert "TorchScript" in sentence


def test_torchscript_that_cannot_be_read_says_what_to_do() -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            while float(x.sum()) > 1:
                x = x / 2
            return x[:, :3]

    with pytest.raises(InputError, match=r"TorchScript.*nn\.Module it was made from"):
        without_script(torch.jit.script(Loop()), X)


# -- tied weights -----------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 3)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))


class Language(nn.Module):
    """The embedding of the tokens is the weight of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(12, 16), nn.GRU(16, 16, batch_first=True), nn.Linear(16, 12)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed((x * 11).round().long()))[0][:, -1])


TRAINED = {"epochs": 1, "batch_size": 8}
KEEP_TIES: list[dict[str, Any]] = [
    {"kind": "quantize"},
    {"kind": "quantize", "weight_bits": 4},  # of which the first and last layer keep 8
    {"kind": "quantize", "weight_bits": 4, "rounding": "stochastic", "activations": "float"},
    {"kind": "quantize", "weight_bits": 4, "fine_tune": TRAINED},
    {"kind": "quantize", "number": "float16", "activations": "float"},
    {"kind": "prune"},
    {"kind": "prune", "fine_tune": TRAINED},
    {"kind": "factorize", "energy": 0.7},
    {"kind": "share"},
    {"kind": "distill", "training": TRAINED},
]


@pytest.mark.parametrize("tied", [Tied, Language])
@pytest.mark.parametrize("recipe", KEEP_TIES, ids=lambda recipe: "-".join(map(str, recipe.values()))[:40])
def test_tied_weights_stay_one_tensor_and_count_once(tied: type[nn.Module], recipe: dict[str, Any]) -> None:
    with global_seed(1, "tied"):
        module = tied().eval()
    records = Records(X, Y)
    if recipe["kind"] == "distill" and tied is Tied:
        with pytest.raises(NotApplicable, match="one tensor"):
            RECIPES.parse(recipe).apply(module, records, Bounds.of(0, 1), seed=0)
        return
    made = RECIPES.parse(recipe).apply(module, records, Bounds.of(0, 1), seed=0)
    first, second = ("b", "c") if tied is Tied else ("embed", "out")
    layers = dict(made.named_modules())
    what = "codes" if recipe["kind"] == "quantize" else "weight"
    assert getattr(layers[first], what).data_ptr() == getattr(layers[second], what).data_ptr()
    file, payload = to_onnx(made, (8,)), encode(made)
    assert len(payload) <= len(file)
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in decode(payload, made).items())
    weighed = footprint(made, file, payload, (8,))
    assert weighed["entropy_bytes"] <= weighed["payload_bytes"]
    if recipe["kind"] not in ("factorize", "distill"):
        assert weighed["parameters"] == sum(value.numel() for value in module.parameters())
    rebuilt = load_module(copy.deepcopy(module), *save_module(made))
    assert torch.equal(rebuilt(X), made(X))


def test_tied_weights_are_said_and_their_layers_keep_their_width() -> None:
    module = Tied()
    assert shared_weights(plain(module)[0]) == [["b.weight", "c.weight"]]
    assert "one tensor" in plain(module)[1][0]
    with pytest.raises(NotApplicable, match=r"b\.weight and c\.weight are one tensor"):
        remove_channels(module.eval(), X[:2], 0.5)
    untied = Tied()
    untied.c.weight = nn.Parameter(untied.b.weight.detach().clone())
    tie(untied, module)
    assert untied.c.weight is untied.b.weight
    payloads = [len(encode(one)) for one in (module, copy.deepcopy(untied))]
    assert payloads[0] < payloads[1] + 24 * 24 * 4
    assert sorted(shared_weights(plain(tied_masks())[0])[0]) == ["b.weight", "c.weight"]


def tied_masks() -> nn.Module:
    """The same mask on a weight that two layers share; writing out one must not change the other."""
    module = Tied()
    for layer in (module.b, module.c):
        prune.l1_unstructured(layer, "weight", amount=0.5)
    return module


# -- activations with values of their own -----------------------------------------------------------------------------


class Swish(nn.Module):
    """A user's own, with a slope per channel, or one."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.slopes * x)


SLOPES: dict[str, Callable[[], nn.Module]] = {
    "one": nn.PReLU,
    "per channel": lambda: nn.PReLU(8),
    "own, one": lambda: Swish(1),
    "own, per channel": lambda: Swish(8, 1, 1),
}


@pytest.mark.parametrize("slopes", SLOPES)
def test_channels_go_with_their_slopes(slopes: str) -> None:
    """Thinned, it answers as the whole does whose lost channels are disconnected."""
    with global_seed(2, "slopes"):
        module = nn.Sequential(
            nn.Conv2d(1, 8, 3), SLOPES[slopes](), nn.Conv2d(8, 8, 3), SLOPES[slopes](), nn.Flatten(), nn.Linear(128, 10)
        ).eval()
        for layer in (module[1], module[3]):
            values = next(layer.parameters())
            values.data.copy_(torch.rand(values.shape))
    x = torch.rand(3, 1, 8, 8)
    thinned = remove_channels(module, x, 0.5)
    cut = copy.deepcopy(module)
    kept = [(module[0].weight.flatten(1)[:, None] == thinned[0].weight.flatten(1)).all(2).any(1)]
    inner = module[2].weight[:, kept[0]].flatten(1)
    kept.append((inner[:, None] == thinned[2].weight.flatten(1)).all(2).any(1))
    assert [int(one.sum()) for one in kept] == [4, 4]
    cut[2].weight.data[:, ~kept[0]] = 0
    cut[5].weight.data.view(10, 8, 16)[:, ~kept[1]] = 0
    assert torch.allclose(thinned(x), cut(x), atol=1e-5)
    description, arrays = save_module(thinned)
    assert torch.equal(load_module(copy.deepcopy(module), description, arrays)(x), thinned(x))


# -- from end to end --------------------------------------------------------------------------------------------------


def build() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 16)), nn.PReLU(16), nn.Linear(16, 2))


def too_wide() -> nn.Module:
    return nn.Linear(8, 5)


def labelled(count: int, seed: int) -> tuple[Tensor, list[str]]:
    x = torch.rand(count, 8, generator=generator(seed, "records"))
    return x, [("low", "up")[int(value > 0.5)] for value in x[:, 0]]


@pytest.fixture
def trained() -> nn.Module:
    with global_seed(0, "trained"):
        module = build()
        x, texts = labelled(100, 1)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(module(x), torch.tensor([text == "up" for text in texts]).long()).backward()
            optimizer.step()
    return module


@pytest.mark.usefixtures("undrawn")
def test_an_audit_of_a_wrapped_normed_float64_model_on_text_labels(trained: nn.Module) -> None:
    result = crushproof.audit_model(
        nn.DataParallel(trained.double()),
        labelled(100, 1),
        labelled(90, 2),
        [
            {"kind": "quantize"},
            {"kind": "quantize"},
            {"kind": "prune", "structure": "channels"},
            crushproof.Distill(student=too_wide),
        ],
        attacks={"kind": "evasion", "records": 5, "epsilons": [0.1], "parts": ["pgd"]},
    )
    audit = result.audit
    assert [candidate.name for candidate in audit.candidates] == ["dense", "quantize", "quantize-2", "prune"]
    assert audit.candidates[0].accuracy is not None
    assert audit.candidates[0].accuracy.estimate > 0.9
    assert audit.data.classes == ["low", "up"]
    assert any("float64" in line for line in audit.limits)
    assert any("0.weight (weight norm)" in line for line in audit.limits)
    assert any("low, up" in line for line in audit.limits)
    assert any("5 paired records" in line for line in audit.power)
    unmade = [row for row in audit.not_measured if row.candidate == "distill"]
    assert "cannot be applied to this model" in unmade[0].reason
    assert "shape (5,)" in unmade[0].reason


def test_a_plan_names_a_normed_model_and_its_own_weights(trained: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 16)), "
        "nn.PReLU(16), nn.Linear(16, 2))\n"
    )
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    x, texts = labelled(40, 2)
    y = torch.tensor([text == "up" for text in texts]).long()
    np.savez(tmp_path / "data.npz", x_test=x.numpy(), y_test=y.numpy())
    plan = Plan.model_validate(
        {
            "name": "normed",
            "data": {"kind": "npz", "path": "data.npz"},
            "model": {"architecture": "nets:build", "weights": "weights.safetensors"},
            "candidates": {"int8": {"recipe": "int8"}},
        }
    )
    model = resolve(plan, tmp_path).model
    assert model is not None
    assert model.state is not None
    module = model.architecture.blank()
    module.load_state_dict(model.state)
    assert torch.allclose(module(x), trained.eval()(x), atol=1e-6)
    assert "weight norm" in model.notes[0]


def test_a_training_function_may_wrap_what_it_trains_but_not_exchange_it() -> None:
    architecture = Architecture.like(network(), "net")

    def fit(function: Callable[..., nn.Module]) -> nn.Module:
        trainer = UserTrainer(function, "function@0")
        return trainer.fit(TrainingJob(architecture, Records(X, Y), [torch.arange(24)], [0], torch.device("cpu")))[0]

    wrapped = fit(lambda module, x, y, seed: nn.DataParallel(nn.Sequential(masked(module[0]), *module[1:])))
    assert wrapped.state_dict().keys() == network().state_dict().keys()
    with pytest.raises(InputError, match=r"another model than it is given.*2\.weight"):
        fit(lambda module, x, y, seed: nn.Sequential(*module[:2]))
