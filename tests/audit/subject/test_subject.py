"""What a plan names: its code decides the identity, and its mistakes are the user's to mend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from crushproof.attacks.evasion.gradient.pgd import craft
from crushproof.audit.plan.plan import Plan
from crushproof.audit.subject.resolve import DenseModel, Subject, resolve
from crushproof.audit.subject.sources import source_digest
from crushproof.audit.suite.lineup import assemble
from crushproof.compression.layers.edit import noise
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError
from crushproof.targets.model import TorchTarget, device_of, resolve_device
from crushproof.training.architecture import Architecture
from crushproof.training.loop import TrainingJob
from crushproof.training.trainer import UserTrainer

CPU = torch.device("cpu")
MODEL = """
from torch import nn
import layers

def build():
    return nn.Sequential(nn.Flatten(), layers.head(64))

def train(module, x, y, seed):
    return module
"""
LAYERS = "from torch import nn\n\ndef head(n):\n    return nn.Linear(n, 10)\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "layers.py").write_text(LAYERS)
    return tmp_path


def plan(**model: Any) -> Plan:
    raw = {
        "data": {"kind": "digits"},
        "model": {"architecture": "my_model:build", **model},
        "candidates": {"a": "int8"},
    }
    return Plan.model_validate(raw)


def dense(subject: Subject) -> DenseModel:
    assert subject.model is not None
    return subject.model


def test_an_edited_neighbour_is_another_subject_and_is_loaded_anew(folder: Path) -> None:
    first = resolve(plan(), folder)
    assert resolve(plan(), folder).identity == first.identity
    (folder / "unrelated.py").write_text("x = 1\n")
    assert resolve(plan(), folder).identity == first.identity
    (folder / "layers.py").write_text(LAYERS.replace("nn.Linear(n, 10)", "nn.Linear(n, 10, bias=False)"))
    second = resolve(plan(), folder)
    assert second.identity != first.identity
    assert (
        len(dense(first).architecture.fresh(0).state_dict()),
        len(dense(second).architecture.fresh(0).state_dict()),
    ) == (2, 1)


def test_two_plans_with_neighbours_of_one_name(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "my_model.py").write_text(MODEL)
    (other / "layers.py").write_text(LAYERS.replace("10)", "10, bias=False)"))
    sizes = [len(dense(resolve(plan(), one)).architecture.fresh(0).state_dict()) for one in (folder, other, folder)]
    assert sizes == [2, 1, 2]


@pytest.mark.parametrize(
    "imports",
    [
        "import nets",
        "from nets import parts",
        "def build():\n    from nets.parts import x",
        "import importlib\nnets = importlib.import_module('nets')",
        "import chain",
    ],
)
def test_every_way_to_import_counts(tmp_path: Path, imports: str) -> None:
    (tmp_path / "nets").mkdir()
    for name, text in {
        "m.py": imports,
        "chain.py": "import nets.parts",
        "nets/__init__.py": "",
        "nets/parts.py": "x = 1",
    }.items():
        (tmp_path / name).write_text(text)
    before = source_digest(["m"], tmp_path)
    (tmp_path / "nets" / "parts.py").write_text("x = 2")
    assert source_digest(["m"], tmp_path) != before


def test_another_process_finds_the_same_digest(folder: Path) -> None:
    code = f"""
from pathlib import Path
from crushproof.audit.subject.sources import source_digest
print(source_digest(["my_model"], Path({str(folder)!r})))
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == source_digest(["my_model"], folder)


@pytest.mark.parametrize(
    ("change", "model", "hints"),
    [
        (("def build():", "def build(:"), {}, ["SyntaxError", "my_model.py, line 5"]),
        (("import layers", "import layers\n1 / 0"), {}, ["ZeroDivisionError", "my_model.py, line 4"]),
        (("import layers", "import sys\nsys.exit(3)"), {}, ["SystemExit", "line 4"]),
        (("import layers", "import einopsy"), {}, ["einopsy", "my_model.py, line 3"]),
        (("layers.head(64)", "layers.head(64, 3)"), {}, ["TypeError", "my_model.py, line 6"]),
        (("import layers", "import layers"), {"parameters": {"hiden": 3}}, ["hiden", "model.parameters"]),
        (("import layers", "import layers"), {"architecture": "math:sqrt"}, ["math:sqrt"]),
        (("import layers", "import layers"), {"training_function": "math:sqrt"}, ["math:sqrt", "(module, x, y, seed)"]),
        (("import layers", "import layers"), {"training_function": "my_model:build"}, ["my_model:build"]),
    ],
)
def test_mistakes_in_the_plans_code(
    folder: Path, change: tuple[str, str], model: dict[str, Any], hints: list[str]
) -> None:
    (folder / "my_model.py").write_text(MODEL.replace(*change))
    with pytest.raises(InputError) as raised:
        resolve(plan(**model), folder)
    assert all(hint in str(raised.value) for hint in hints), raised.value
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("body", "hints"),
    [("raise ValueError('too\\nfew')", ["ValueError: too few", "my_model.py, line 9"]), ("return 3", ["returned int"])],
)
def test_a_training_function_that_fails(folder: Path, body: str, hints: list[str]) -> None:
    (folder / "my_model.py").write_text(MODEL.replace("return module", body))
    subject = resolve(plan(training_function="my_model:train"), folder)
    assert isinstance(dense(subject).trainer, UserTrainer)
    records = Records(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InputError) as raised:
        dense(subject).trainer.fit(TrainingJob(dense(subject).architecture, records, [torch.arange(4)], [0], CPU))
    assert all(hint in str(raised.value) for hint in [*hints, "my_model:train"]), raised.value


def test_weights_without_a_word_on_their_training_are_noted(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(dense(resolve(plan(), folder)).architecture.fresh(1).state_dict(), folder / "w.safetensors")
    silent = resolve(plan(weights="w.safetensors"), folder)
    assert dense(silent).shadows_differ
    assert "underestimated" in silent.notes[0]
    for said in ({"training": {"epochs": 2}}, {"training_function": "my_model:train"}):
        assert not dense(resolve(plan(weights="w.safetensors", **said), folder)).shadows_differ
    assert not resolve(plan(), folder).notes


def test_a_defense_that_does_not_fit_names_its_candidate(folder: Path) -> None:
    raw = plan().model_dump(mode="json")
    raw["candidates"] = {"rounded": {"recipe": {"kind": "prune", "sparsity": 0.5}, "defense": "stochastic-rounding"}}
    with pytest.raises(InputError, match="Candidate 'rounded': "):
        assemble(Plan.model_validate(raw), resolve(plan(), folder))


class Buffered(nn.Module):
    """Like a quantised module: no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(4, 3, device="meta"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.device == self.codes.device, "the inputs must come to the weights"
        return x @ self.codes


def test_the_device_is_that_of_the_buffers() -> None:
    assert device_of(Buffered()).type == "meta"
    assert device_of(nn.Linear(2, 2)).type == "cpu"
    assert device_of(nn.Flatten()) == CPU
    records, bounds = Records(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)), Bounds.of(0, 1)
    assert noise(Buffered(), records, bounds, 2, 0).device.type == "meta"
    seen: list[str] = []

    class Arrived(Exception):  # no error: how the stubs end the call
        pass

    class Model(Buffered):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.device.type)
            raise Arrived

    class Space(Bounds):
        def to(self, device: torch.device) -> Bounds:
            seen.append(device.type)
            raise Arrived

    with pytest.raises(Arrived):
        TorchTarget(Model()).logits(records.x)
    with pytest.raises(Arrived):
        craft(Model(), records, (0.1,), "linf", Space(bounds.low, bounds.high), seed=0, steps=1)
    assert seen == ["meta", "meta"]


@pytest.mark.parametrize(
    ("devices", "name", "hint"),
    [
        (0, "cuda", "no CUDA device"),
        (0, "cuda:1", "device: cpu"),
        (2, "cuda:99", "cuda:1 or lower"),
        (0, "gpu", "auto"),
    ],
)
def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, devices: int, name: str, hint: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    with pytest.raises(InputError, match=hint):
        resolve_device(name)
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type == ("cuda" if devices else "cpu")


def test_attention_starts_as_its_constructor_makes_it() -> None:
    trained = nn.MultiheadAttention(8, 2)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.fill_(7.0)
    fresh = Architecture.like(trained, "attention").fresh(0)
    assert isinstance(fresh, nn.MultiheadAttention)
    assert not any((parameter == 7).any() for parameter in fresh.parameters())
    assert not fresh.out_proj.bias.any()
    assert trained.in_proj_weight.eq(7).all()


def test_an_own_training_gets_the_model_as_its_constructor_leaves_it(tmp_path: Path) -> None:
    """In training mode: else batch norm learns nothing, and shadows are no models like the audited one."""
    (tmp_path / "normed.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))\n"
        "def train(module, x, y, seed):\n"
        "    module(x)\n"
        "    return module\n"
    )
    model = {"architecture": "normed:build", "training_function": "normed:train"}
    plan = Plan.model_validate({"data": {"kind": "digits"}, "model": model, "candidates": {"a": "int8"}})
    subject = resolve(plan, tmp_path)
    assert subject.model is not None
    assert subject.data.members is not None
    job = TrainingJob.of_one(subject.model.architecture, subject.data.members, 0, torch.device("cpu"))
    [trained] = subject.model.trainer.fit(job)
    assert int(trained.state_dict()["2.num_batches_tracked"]) == 1
    assert not trained.training
