"""Honest mistakes of somebody who audits a model for the first time: each is one sentence that says how to mend it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from crushproof.audit import cli

MODEL = """
import torch
from torch import nn


def build(classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))


def train(module, x, y, seed):
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for index in torch.randperm(len(x)).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x[index]), y[index]).backward()
        optimizer.step()
    return module
"""
PLAN = """
name: mine
data: {kind: npz, path: data.npz, bounds: [0, 1]}
model: {architecture: my_model:build, training: {epochs: 3}}
candidates: {int8: int8, pruned: {kind: prune, sparsity: 0.5}}
attacks: quick
"""
BUILD = "def build(classes: int = 4) -> nn.Module:\n"
CANDIDATES = "{int8: int8, pruned: {kind: prune, sparsity: 0.5}}"
DENSE = "model: {architecture: my_model:build, training: {epochs: 3}}\n"
Arrays = dict[str, np.ndarray[Any, Any]]
Change = tuple[str, str]


@dataclass(frozen=True)
class Mistake:
    """What is wrong about files that are right otherwise, and words of the cure."""

    words: tuple[str, ...]
    model: Change | None = None
    plan: Change | None = None
    data: Callable[[Arrays], Any] | None = None
    files: dict[str, Callable[[Path], Any]] = field(default_factory=dict)
    call: tuple[str, ...] = ("audit", "plan.yaml")


def arrays(n: int = 80) -> Arrays:
    rng = np.random.default_rng(0)
    made: Arrays = {}
    for part in ("train", "test"):
        made[f"x_{part}"] = rng.random((n, 1, 8, 8), dtype=np.float32)
        made[f"y_{part}"] = np.arange(n) % 4
    return made


def both(letter: str, change: Callable[[Any], Any]) -> Callable[[Arrays], None]:
    """Changes x or y of training and test records alike."""

    def apply(made: Arrays) -> None:
        for part in ("train", "test"):
            made[f"{letter}_{part}"] = change(made[f"{letter}_{part}"])

    return apply


def test_only(key: str, change: Callable[[Any], Any]) -> Callable[[Arrays], None]:
    return lambda made: made.update({key: change(made[key])})


test_only.__test__ = False  # type: ignore[attr-defined]  # no test, in spite of its name


def net(forward: str, layers: str = "self.head = nn.Linear(64, 4)") -> Change:
    """A module of one's own in place of the model."""
    return BUILD, (
        f"class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        {layers}\n\n"
        f"    def forward(self, {forward}\n\n\n{BUILD}    return Net()\n"
    )


def tokens(x: Any) -> Any:
    return (x.reshape(len(x), 64) * 19.9).astype(np.int64)


def weights(rename: str = "", classes: int = 4) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        from safetensors.torch import save_file

        scope: dict[str, Any] = {}
        exec(MODEL, scope)
        save_file({rename + name: value for name, value in scope["build"](classes).state_dict().items()}, path)

    return write


def lines(text: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(text)


TRAINED = DENSE.replace("training: {epochs: 3}", "training_function: my_model:train")


def trains(*words: str, model: Change) -> Mistake:
    return Mistake(words, model=model, plan=(DENSE, TRAINED))


def planned(old: str, new: str, *words: str) -> Mistake:
    return Mistake(words, plan=(old, new))


EMBEDDED = "self.embed, self.head = nn.Embedding(10, 8), nn.Linear(8, 4)"
SUPERLESS = "class Net(nn.Module):\n    def __init__(self):\n        self.act = nn.ReLU()\n"
FREE = ", bounds: [0, 1]", ""
MODELS = {
    "no flatten": Mistake(("layer '3'", "nn.Flatten()"), ("nn.Flatten(), ", "")),
    "wrong in_features": Mistake(("in_features to 144",), ("144", "100")),
    "three channels": Mistake(("in_channels=1", "gets [n, 1, 8, 8]"), ("Conv2d(1", "Conv2d(3")),
    "flat records": Mistake(("[n, 1, size, size]",), data=both("x", lambda x: x.reshape(len(x), 64))),
    "channels last": Mistake(
        ("stand last",), ("Conv2d(1", "Conv2d(5"), data=both("x", lambda x: np.repeat(x, 5, 1).transpose(0, 2, 3, 1))
    ),
    "sequences": Mistake(
        ("x.squeeze(1)",),
        net(
            "x): return self.head(self.gru(x)[0][:, -1])",
            "self.gru, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 4)",
        ),
    ),
    "too few outputs": Mistake(("[n, 3]", "4 classes"), ("int = 4", "int = 3")),
    "too many outputs": Mistake(("[n, 10]", "output layer"), ("int = 4", "int = 10")),
    "a step for each pixel": Mistake(("once for each record",), net("x): return self.head(x.flatten(2))")),
    "probabilities": Mistake(("Remove the softmax",), ("classes))", "classes), nn.Softmax(1))")),
    "NaN": Mistake(("divides by",), net("x): return self.head(x.flatten(1)) / 0 * 0")),
    "a tuple": Mistake(("tuple of 2 values", "alone"), net("x): return self.head(x.flatten(1)), x")),
    "a dictionary without logits": Mistake(("keys out",), net("x): return {'out': self.head(x.flatten(1))}")),
    "no return": Mistake(("returns nothing",), net("x): self.head(x.flatten(1))")),
    "two inputs": Mistake(("more than one input", "Wrap it"), net("x, mask): return self.head(x.flatten(1))")),
    "no forward": Mistake(("forward",), ("    return nn.Sequential(", "    return nn.Module()  # (")),
    "a fixed batch": Mistake(("my_model.py, line", "x.flatten(1)"), net("x): return self.head(x.view(32, 64))")),
    "embedding of floats": Mistake(
        (".long()",), net("x): return self.head(self.embed(x).mean(1))", EMBEDDED), FREE, both("x", tokens)
    ),
    "ids outside the vocabulary": Mistake(
        ("ids 0 to 9", "0 to 19"),
        net("x): return self.head(self.embed(x.long()).mean(1))", EMBEDDED),
        FREE,
        both("x", tokens),
    ),
    "no operator of ONNX": Mistake(
        ("fft", "other operations"), net("x): return self.head(torch.fft.fft2(x).real.flatten(1))")
    ),
    "needs arguments": Mistake(("'classes'", "parameters: {classes"), ("int = 4", "int")),
    "returns a class": Mistake(("Linear itself", "Linear(...)"), (BUILD, f"{BUILD}    return nn.Linear\n")),
    "build without return": Mistake(("a return is missing",), ("    return nn.Seq", "    nn.Seq")),
    "a model for a function": Mistake(("is a model", "def build()"), ("def train(", "build = build()\n\n\ndef train(")),
    "a module that is not installed": Mistake(("torchvisoin", "install"), ("import torch\n", "import torchvisoin\n")),
    "a relative import": Mistake(("import nets",), ("import torch\n", "import torch\nfrom .nets import other\n")),
    "no super": Mistake(("super().__init__() first",), (BUILD, f"{SUPERLESS}\n\n{BUILD}    return Net()\n")),
    "layers in a list": Mistake(("nn.Sequential(*layers)",), (BUILD, f"{BUILD}    return [nn.Flatten()]\n")),
    "build exits": Mistake(("sys.exit() out",), (BUILD, f"{BUILD}    raise SystemExit(0)\n")),
    "a file of another folder": Mistake(
        ("Path(__file__).parent", "line 7"), (BUILD, f"{BUILD}    open('weights.bin')\n")
    ),
    "a syntax error": Mistake(("SyntaxError", "line 6"), ("def build(", "def build((")),
    "no training returned": trains(
        "returned nothing: end it with return module", model=("    return module", "    pass")
    ),
    "the loss returned": trains("returned float", model=("return module", "return 0.3")),
    "module and history": trains("returned tuple", model=("return module", "return module, [0.3]")),
    "training raises": trains("oh no (my_model.py, line 16)", model=("return module", "raise ValueError('oh no')")),
    "training of floats": trains("line 14", "(module, x, y, seed)", model=("y[index])", "y[index].float())")),
    "training with a loader": trains("(module, x, y, seed)", model=("(module, x, y, seed)", "(module, loader)")),
    "another model returned": trains("4.bias", "must return the module", model=("return module", "return build(5)")),
    "training exits": trains("sys.exit() out", model=("return module", "raise SystemExit(0)")),
    "training asks": trains("take input() out", model=("return module", "raise EOFError('EOF when reading a line')")),
    "training diverges": trains("not finite: its training diverged", model=("lr=1e-2", "lr=1e30")),
    "training in float64": trains("float32", model=("module(x[index])", "module(x[index].double())")),
    "frozen for training": trains(
        "does not require grad", model=("    optimizer =", "    module.requires_grad_(False)\n    optimizer =")
    ),
}
DATA = {
    "labels from 1": Mistake(("from 1 to 4", "y - 1"), data=both("y", lambda y: y + 1)),
    "labels from -1": Mistake(("y_train", "from 0 on"), data=both("y", lambda y: y - 1)),
    "one-hot labels": Mistake(("y.argmax(axis=1)",), data=both("y", lambda y: np.eye(4)[y])),
    "labels as fractions": Mistake(("task: regression",), data=both("y", lambda y: y + 0.5)),
    "labels as text": Mistake(("y_train", "astype('int64')"), data=both("y", lambda y: y.astype(str))),
    "labels as names": Mistake(("numpy.unique(y, ", "class_names"), data=both("y", lambda y: np.array([*"abcd"])[y])),
    "tests channels last": Mistake(
        ("[3, 8, 6]", "[8, 6, 3]"),
        data=lambda a: a.update(x_train=np.zeros((80, 3, 8, 6)), x_test=np.zeros((80, 8, 6, 3))),
    ),
    "a name too many": Mistake(
        ("run from 0 to 3, which fits", "more class names"), data=lambda a: a.update(class_names=np.array([*"abcde"]))
    ),
    "NaN in the records": Mistake(
        ("test records (x_test)", "64 NaN"), data=lambda a: a["x_test"].__setitem__(0, np.nan)
    ),
    "records as text": Mistake(("x_test", "astype('float32')"), data=test_only("x_test", lambda x: x.astype(str))),
    "pixels to 255": Mistake(
        ("x_test", "divide the inputs by 255"), data=both("x", lambda x: (x * 255).astype(np.uint8))
    ),
    "normalised pixels": Mistake(("bounds after normalisation",), data=both("x", lambda x: x * 4 - 2)),
    "another length": Mistake(("x_test, y_test", "70 labels"), data=test_only("y_test", lambda y: y[:70])),
    "five test records": Mistake(
        ("only 5 test records",), data=lambda a: a.update(x_test=a["x_test"][:5], y_test=a["y_test"][:5])
    ),
    "tested on the training set": Mistake(
        ("x_test 0, 1", "Divide the data anew"), data=lambda a: a.update(x_test=a["x_train"], y_test=a["y_train"])
    ),
    "sorted by class": Mistake(("(y_test)", "Shuffle"), data=test_only("y_test", lambda y: y * 0)),
    "X_test": Mistake(("mean 'x_test'",), data=lambda a: a.update(X_test=a.pop("x_test"))),
    "no y_train": Mistake(("lacks y_train",), data=lambda a: a.pop("y_train")),
    "no training records": Mistake(
        ("x_train, y_train", "model.weights"), data=lambda a: [a.pop("x_train"), a.pop("y_train")]
    ),
    "two class names": planned("bounds: [0, 1]", "bounds: [0, 1], class_names: [a, b]", "(y_test)", "2 class names"),
    "another path": planned("data.npz", "dta.npz", "mean 'data.npz'"),
    "one array": Mistake(
        ("single numpy array", "savez"), plan=("data.npz", "x.npy"), files={"x.npy": lambda p: np.save(p, [1])}
    ),
    "data as a word": planned("{kind: npz, path: data.npz, bounds: [0, 1]}", "data.npz", "kind: npz, path: data.npz"),
    "no kind of data": planned("kind: npz, ", "", "digits, npz or csv"),
    "one bound": planned("bounds: [0, 1]", "bounds: 1", "[0, 1]"),
}
PLANS = {
    "a tab": planned("name: mine", "model:\n\tseed: 1", "line 3", "spaces"),
    "an unknown key": planned("attacks: quick", "atacks: quick", "mean 'attacks'"),
    "epochs 0": planned("epochs: 3", "epochs: 0", "greater than 0", "line 4"),
    "lr": planned("epochs: 3", "lr: 0.1", "learning_rate"),
    "candidates as a list": planned(CANDIDATES, "[int8, int4]", "{int8: int8, int4: int4}"),
    "no candidate": planned(CANDIDATES, "{}", "{int8: int8"),
    "a misspelt recipe": planned("int8: int8", "int8: itn8", "mean 'int8'"),
    "bits": planned("int8: int8", "int8: {kind: quantize, bits: 8}", "weight_bits"),
    "16 bits": planned("int8: int8", "int8: {kind: quantize, weight_bits: 16}", "2, 3, 4 or 8"),
    "sparsity 80": planned("sparsity: 0.5", "sparsity: 80", "written 0.8"),
    "sparsity 80 %": planned("sparsity: 0.5", "sparsity: 80%", "0.8"),
    "amount": planned("sparsity: 0.5", "amount: 0.5", "'sparsity'"),
    "a recipe without kind": planned("kind: prune, ", "", "kind: prune"),
    "pruning": planned("kind: prune,", "kind: pruning,", "mean 'prune'"),
    "a policy misspelt": planned("attacks: quick", "attacks: quick\npolicy: relaese", "mean 'release'"),
    "a policy in percent": planned("attacks: quick", "attacks: quick\npolicy: {changes: {accuracy: -2}}", "0.02"),
    "a policy without changes": planned("attacks: quick", "attacks: quick\npolicy: {accuracy: -0.02}", "changes"),
    "epsilon 8": planned("quick", "[{kind: evasion, epsilon: 8}]", "8/255"),
    "eps": planned("quick", "[{kind: evasion, eps: 0.1}]", "'epsilon'"),
    "no records": planned("quick", "[{kind: evasion, records: 0}]", "greater than 0"),
    "an unknown attack": planned("quick", "[fgsm]", "label-only, leakage, membership, ownership, patch"),
    "a speed": planned("quick", "fast", "quick, standard, thorough"),
    "fewer than no shadow": planned("attacks: quick", "attacks: quick\nshadows: {trained: -1}", "equal to 0"),
    "none to compare with": planned(
        "attacks: quick", "attacks: quick\nshadows: {training_free: 0, trained: 4}", "more than training_free: 0"
    ),
    "gpu": planned("attacks: quick", "attacks: quick\ndevice: gpu", "cuda:0"),
    "release of nobody": planned("attacks: quick", "attacks: quick\nrelease: [int4]", "mean 'int8'"),
    "no model": planned(DENSE, "", "under model"),
    "another module": planned("my_model:build", "mymodel:build", "mymodel.py beside the plan"),
    "a file for a module": planned("my_model:build", "my_model.py:build", "write the module, my_model:build"),
    "a dot for a colon": planned("my_model:build", "my_model.build", "module:function"),
    "another function": planned("my_model:build", "my_model:biuld", "mean 'build'"),
    "two ways to train": planned(
        "training: {", "training_function: my_model:train, training: {", "keep one of the two"
    ),
    "no recipe that can": planned(
        CANDIDATES, "{heads: {kind: prune, structure: heads, sparsity: 0.5}}", "No candidate can be made", "heads"
    ),
    "weights of another model": Mistake(
        ("4.weight", "[5, 144]"),
        plan=("training: {", "weights: w.safetensors, training: {"),
        files={"w.safetensors": weights(classes=5)},
    ),
    "weights of a parallel model": Mistake(
        ("model.module.state_dict()",),
        plan=("training: {", "weights: w.safetensors, training: {"),
        files={"w.safetensors": weights("module.")},
    ),
    "weights never trained": Mistake(
        ("test records right, which is chance",),
        plan=("training: {", "weights: w.safetensors, training: {"),
        files={"w.safetensors": weights()},
    ),
    "weights that are not there": planned("training: {", "weights: w.safetensors, training: {", "does not exist"),
}


def given(name: str, *words: str, artifact: bool = False, data: bool = True) -> Mistake:
    """A file of another sort in place of the plan, or of the finished file."""
    there = {} if name in ("plan.yaml", "data.npz", "my_model.py") else {name: lines("x")}
    option = ("--artifact", name, *(("--data", "data.npz") if data else ())) if artifact else (name,)
    return Mistake(words, files=there, call=("audit", *option))


CALLS = {
    "a folder": Mistake(("is a folder",), call=("audit", ".")),
    "a misspelt plan": Mistake(("mean 'plan.yaml'",), call=("audit", "paln.yaml")),
    "an ONNX file": given("model.onnx", "crushproof audit --artifact model.onnx --data"),
    "weights for a plan": given("weights.safetensors", "without the network", "architecture: my_model:build"),
    "a file of torch for a plan": given("best.pt", "file of torch", "weights: best.pt"),
    "data for a plan": given("data.npz", "holds data", "--data"),
    "code for a plan": given("my_model.py", "architecture: my_model:build"),
    "weights for a model": given("weights.safetensors", "without the network", artifact=True),
    "a file of torch for a model": given("best.pth", "file of torch", artifact=True),
    "data for a model": given("data.npz", "holds data", artifact=True),
    "a plan for a model": given("plan.yaml", "crushproof audit plan.yaml", artifact=True),
    "Keras": given("model.keras", "another framework", "tf2onnx", artifact=True),
    "no data": given("model.onnx", "--artifact needs --data", artifact=True, data=False),
}
MISTAKES = MODELS | DATA | PLANS | CALLS


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_that_mends_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    for file, text, change in (("my_model.py", MODEL, mistake.model), ("plan.yaml", PLAN, mistake.plan)):
        assert change is None or change[0] in text
        Path(file).write_text(text if change is None else text.replace(*change))
    made = arrays()
    if mistake.data is not None:
        mistake.data(made)
    np.savez("data.npz", **made)  # type: ignore[arg-type]  # its stub takes the keys for its own arguments
    for file, write in mistake.files.items():
        write(Path(file))
    started = time.process_time()
    done = CliRunner().invoke(cli.app, [*mistake.call, "--workers", "0"])
    assert time.process_time() - started < 10
    _, *errors = " ".join(done.stderr.split()).split("error: ")  # after what the first line says
    assert done.exit_code == 2, done.stderr
    (said,) = errors
    assert said.endswith((".", "?"))
    assert "Traceback" not in done.output
    assert done.stdout == ""
    assert not any(word in said for word in ("non-member", "non_member")), said
    for word in mistake.words:
        assert word in said, said
    assert not list(tmp_path.rglob("arrays.safetensors")), "nothing was computed"


def test_what_a_model_prints_is_no_part_of_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_model.py").write_text(MODEL.replace(BUILD, f"{BUILD}    print('built')\n    raise SystemExit(0)\n"))
    Path("plan.yaml").write_text(PLAN)
    np.savez("data.npz", **arrays())  # type: ignore[arg-type]  # its stub takes the keys for its own arguments
    done = CliRunner().invoke(cli.app, ["audit", "plan.yaml", "--json"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "built" in done.stderr


def test_there_are_many() -> None:
    assert len(MISTAKES) >= 34
