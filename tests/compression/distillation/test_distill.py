"""Distillation: the losses against numpy, students of every sort, and what they learn from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.deployment.structure import load_module, save_module
from crushproof.compression.distillation.distill import Distill, soft_labels, soft_targets
from crushproof.compression.distillation.hints import hinted
from crushproof.compression.distillation.student import Skip, Student, droppable, shallow
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.training.adversarial import against
from crushproof.training.networks import Mlp, digits_cnn, digits_transformer
from crushproof.training.perturbation import Perturbation

BRIEF = {"epochs": 1, "learning_rate": 2e-3, "batch_size": 64}
LONGER = {"epochs": 4, "batch_size": 64, "learning_rate": 1e-2}


def distilled(module: nn.Module, digits: Data, records: Records | None = None, **fields: Any) -> nn.Module:
    records = records or digits.members
    assert records is not None
    recipe = RECIPES.parse({"kind": "distill", "training": BRIEF, **fields})
    return recipe.apply(module, records, digits.bounds, seed=0)


def kernels(module: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def right(module: nn.Module, digits: Data) -> float:
    return accuracy(TorchTarget(module), digits.non_members.x, digits.non_members.y)


def small_mlp() -> nn.Module:
    return Mlp(64, 10, (24,))


def two_classes() -> nn.Module:
    return Mlp(64, 2, (4,))


def not_a_module() -> Any:
    return "a string"


# -- losses -----------------------------------------------------------------------------------------------------------


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("teacher_decides", [False, True])
def test_the_soft_loss_is_hintons(teacher_decides: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(6, 4, generator=generator), torch.randn(1, 3, 4, generator=generator)
    y, index = torch.tensor([[0, 3, 1]]), torch.tensor([[5, 0, 2]])
    objective = soft_labels(teacher, 3.0, 0.7, teacher_decides=teacher_decides)
    losses = objective(lambda x: x, student, y, index, [])
    p, q = softmax(teacher.double().numpy()[index[0]] / 3), softmax(student.double().numpy()[0] / 3)
    labels = teacher.numpy()[index[0]].argmax(-1) if teacher_decides else y[0].numpy()
    hard = -np.log(softmax(student.double().numpy()[0])[np.arange(3), labels])
    expected = 0.7 * 9 * (p * np.log(p / q)).sum(-1) + 0.3 * hard
    np.testing.assert_allclose(losses[0].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 1), (1, 3, 2)])
def test_values_have_squared_errors(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, outputs, y = torch.randn(6, shape[-1], generator=generator), torch.randn(shape), torch.randn(shape)
    index = torch.tensor([[5, 0, 2]])
    flat = y.squeeze(-1) if shape[-1] == 1 else y  # a single target may come without its own dimension
    losses = soft_targets(teacher, 0.25)(lambda x: x, outputs, flat, index, [])
    expected = 0.25 * (outputs[0] - teacher[index[0]]) ** 2 + 0.75 * (outputs[0] - y[0]) ** 2
    torch.testing.assert_close(losses[0], expected.mean(-1))


# -- what the student learns from -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"alpha": 1}, {"alpha": 0, "hard_labels": "teacher"}])
def test_students_are_thinner_fresh_and_learn_from_the_teacher(
    fields: dict[str, Any], dense: nn.Module, digits: Data
) -> None:
    assert digits.members is not None
    wrong = Records(digits.members.x, digits.members.y.roll(1))  # the teacher's outputs alone must teach the digits
    student = distilled(dense, digits, wrong, training=LONGER, **fields)
    assert [len(weight) for weight in kernels(student)] == [8, 8, 8, 8, 8, 10]
    assert right(student, digits) > 0.75


def test_the_same_architecture_starts_anew(dense: nn.Module, digits: Data) -> None:
    same = distilled(dense, digits, width=1)
    assert [weight.shape for weight in kernels(same)] == [weight.shape for weight in kernels(dense)]
    assert not any(torch.equal(a, b) for a, b in zip(kernels(same), kernels(dense), strict=True))


def test_hints_lead_the_features_to_the_teachers(dense: nn.Module, digits: Data) -> None:
    """With nothing else to learn from, the student's features come to explain the teacher's (by least squares)."""
    assert digits.members is not None
    noise = torch.randint(10, digits.members.y.shape, generator=torch.Generator().manual_seed(0))
    x, records = digits.non_members.x, Records(digits.members.x, noise)

    def features(module: nn.Module) -> np.ndarray:
        found: list[Tensor] = []
        handle = module.get_submodule("head").register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        with torch.no_grad():
            module.eval()(x[:512])
        handle.remove()
        return np.c_[found[0].double().numpy(), np.ones(len(found[0]))]

    def unexplained(module: nn.Module) -> float:
        own, teachers = features(module), features(dense)
        missed = teachers - own @ np.linalg.lstsq(own, teachers, rcond=None)[0]
        return float((missed**2).sum() / ((teachers - teachers.mean(0)) ** 2).sum())

    brief = {**LONGER, "epochs": 3}
    plain = distilled(dense, digits, records, training=brief, alpha=0)
    helped = distilled(dense, digits, records, training=brief, alpha=0, hint_weight=10.0)
    assert helped.state_dict().keys() == plain.state_dict().keys()  # the regressor is gone
    assert unexplained(helped) < 0.8 * unexplained(plain)


def test_hints_are_the_named_layers_outputs(dense: nn.Module, digits: Data) -> None:
    x = digits.non_members.x[:6]
    teacher, student = dense.eval(), digits_cnn().eval()
    wrapped, features = hinted(student, teacher, ["stem", "block2=block1"], x, 0)
    assert [type(each) for each in wrapped.regressors] == [nn.Conv2d, nn.Conv2d]
    with torch.no_grad():
        answers = wrapped(x)
        torch.testing.assert_close(answers[:, :10], student(x))
        torch.testing.assert_close(answers[:, 10 : 10 + 16 * 64], wrapped.regressors[0](student.stem(x)).flatten(1))
        # The teacher's block2 has 4 x 4 pixels and the student's block1 8 x 8: averaged to the student's size.
        block2 = teacher.block2(teacher.pool(teacher.block1(torch.relu(teacher.norm(teacher.stem(x))))))
    wanted = features(x)
    assert wanted.shape == answers[:, 10:].shape
    torch.testing.assert_close(wanted[:, : 16 * 64], teacher.stem(x).detach().flatten(1))
    spread = nn.functional.adaptive_avg_pool2d(block2, (8, 8))
    torch.testing.assert_close(wanted[:, 16 * 64 :], spread.flatten(1))
    with pytest.raises(NotApplicable, match="student has no layer 'nowhere'"):
        hinted(student, teacher, ["stem=nowhere"], x, 0)
    with pytest.raises(NotApplicable, match="stem=head differ in kind"):
        hinted(student, teacher, ["stem=head"], x, 0)


def test_regressions() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(256, 6, generator=generator)
    y = x @ torch.randn(6, 1, generator=generator)
    teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    training = {"epochs": 30, "batch_size": 32, "learning_rate": 2e-2}
    recipe = RECIPES.parse({"kind": "distill", "alpha": 0, "training": training})
    student = recipe.apply(teacher, Records(x, y), Bounds.of(0, 1), seed=0)
    missed = (TorchTarget(student).logits(x) - y).square().mean()
    assert missed < 0.05 * y.var()


# -- students ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def block() -> nn.Module:
    return Residual(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))


def names(module: nn.Module, example: Tensor) -> list[str]:
    found = {layer: name for name, layer in module.named_modules()}
    return [found[layer] for layer in droppable(module.eval(), example)]


def test_what_can_be_dropped() -> None:
    image, row = torch.rand(2, 1, 8, 8), torch.rand(2, 8)
    assert names(digits_cnn(), image) == ["block1", "block2"]
    assert names(digits_transformer(), image) == ["encoder.layers.0", "encoder.layers.1"]
    assert names(nn.Sequential(block(), nn.Sequential(block(), block()), nn.Linear(8, 3)), row) == ["0", "1.0", "1.1"]
    plain = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    assert names(plain, row) == ["0", "1", "2"]  # the last gives the output
    tied = nn.Linear(8, 8)
    assert names(nn.Sequential(tied, tied, nn.Linear(8, 3)), row) == []


@pytest.mark.parametrize(("depth", "kept"), [(0.5, [0, 2, 4]), (0.34, [0, 2, 4]), (1 / 3, [0, 3]), (0.1, [0])])
def test_blocks_are_dropped_evenly(depth: float, kept: list[int]) -> None:
    module = nn.Sequential(*(block() for _ in range(6)), nn.Linear(8, 3)).eval()
    x = torch.rand(4, 8)
    cut = shallow(module, x, depth)
    assert [index for index in range(6) if not isinstance(cut[index], Skip)] == kept
    torch.testing.assert_close(cut(x), nn.Sequential(*(module[index] for index in kept), module[6])(x))


@pytest.mark.parametrize(("build", "width"), [(digits_cnn, 0.5), (digits_transformer, 1), (digits_transformer, 0.5)])
def test_shallow_students_ship(build: Any, width: float, digits: Data) -> None:
    torch.manual_seed(0)
    student = distilled(build().eval(), digits, width=width, depth=0.5)
    assert sum(isinstance(layer, Skip) for layer in student.modules()) == 1
    x = digits.non_members.x[:50]
    logits = TorchTarget(student).logits(x)
    shipped = to_onnx(student, tuple(x.shape[1:]))
    torch.testing.assert_close(OnnxTarget(shipped).logits(x), logits, rtol=1e-4, atol=1e-5)
    description, arrays = save_module(student)
    again = load_module(build(), json.loads(json.dumps(description)), arrays)
    assert torch.equal(TorchTarget(again).logits(x), logits)


def test_the_users_own_student(dense: nn.Module, digits: Data) -> None:
    assert digits.members is not None
    recipe = Distill.model_validate({"student": small_mlp, "training": LONGER, "hint_weight": 0.1})
    assert recipe.student == f"{__name__}:small_mlp"
    student = recipe.apply(dense, digits.members, digits.bounds, seed=0)
    assert right(student, digits) > 0.75
    x = digits.non_members.x[:20]
    description, arrays = save_module(student)
    again = load_module(digits_cnn(), json.loads(json.dumps(description)), arrays)
    assert isinstance(again, Student)
    assert torch.equal(TorchTarget(again).logits(x), TorchTarget(student).logits(x))
    both = RECIPES.parse({"kind": "chain", "steps": [json.loads(recipe.model_dump_json()), "quantize"]})
    quantized = both.apply(dense, digits.members, digits.bounds, seed=0)
    again = load_module(digits_cnn(), *save_module(quantized))
    assert torch.equal(TorchTarget(again).logits(x), TorchTarget(quantized).logits(x))


def test_a_stored_document_cannot_name_a_function_nobody_offered() -> None:
    description = [{"path": "", "type": "Student", "arguments": {"factory": "os:getcwd"}}]
    with pytest.raises(InputError, match="was not offered"):
        load_module(digits_cnn(), description, {})


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"student": f"{__name__}:two_classes"}, InputError, r"outputs of shape \(2,\)"),
        ({"student": f"{__name__}:not_a_module"}, InputError, "must return a torch.nn.Module; it returned str"),
        ({"student": f"{__name__}:nobody"}, InputError, "no such function"),
        ({"student": "no_such_module_at_all:build"}, InputError, "cannot be imported"),
        ({"student": "no_colon"}, InputError, "student"),
        ({"depth": 0.9}, NotApplicable, "drops none of the model's 2 blocks; ask for 0.5 or less"),
        ({"hint_weight": 1, "hint_layers": ["stm"]}, NotApplicable, "teacher has no layer 'stm'"),
    ],
)
def test_refusals(fields: dict[str, Any], error: type[Exception], message: str, dense: nn.Module, digits: Data) -> None:
    with pytest.raises(error, match=message):
        distilled(dense, digits, **fields)


def test_no_block_to_drop(digits: Data) -> None:
    with pytest.raises(NotApplicable, match="no two blocks"):
        distilled(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits, depth=0.5)


# -- under attack -----------------------------------------------------------------------------------------------------


def test_soft_labels_under_attack_teach_what_withstands_it() -> None:
    """The teacher looks at a narrow feature through large weights; only a student that is attacked looks elsewhere."""
    stream, bounds = torch.Generator().manual_seed(0), Bounds.of(-1, 1)
    y = torch.randint(2, (120,), generator=stream)
    wide, narrow = (2 * y - 1) * torch.rand((2, 120), generator=stream).add(torch.tensor([[2.0], [0.5]])) / 5
    records, teacher = Records(torch.stack([wide, narrow], 1).clamp(-1, 1), y), nn.Sequential(nn.Linear(2, 2))
    teacher[0].weight.data, teacher[0].bias.data = torch.tensor([[0.0, -20.0], [0.0, 20.0]]), torch.zeros(2)
    training = {"epochs": 20, "batch_size": 20, "learning_rate": 0.3}
    withstood = {}
    for name, more in (("clean", {}), ("attacked", {"adversarial": {"epsilon": 0.15}})):
        recipe = Distill.model_validate({"width": 1, "alpha": 1, "training": {**training, **more}})
        student = recipe.apply(teacher, records, bounds, seed=0)
        found = against(student, records, Perturbation(epsilon=0.15, steps=10), bounds, seed=1)
        withstood[name] = float((student(found).argmax(1) == y).float().mean())
    assert withstood["attacked"] > withstood["clean"] + 0.15, withstood


def test_a_student_that_falls_is_taught_under_attack() -> None:
    (way,) = Distill().hardened("robust_accuracy", {"norm": "linf", "epsilon": 0.05})
    assert isinstance(way, Distill)
    assert way.training.adversarial == Perturbation(epsilon=0.05)
    assert way.phrase.endswith("on adversarial records")
    assert Distill().hardened("auc", {}) == []
    with pytest.raises(ValueError, match="hint_weight"):
        Distill.model_validate({"hint_weight": 1.0, "training": {"adversarial": {}}})
