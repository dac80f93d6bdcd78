"""audit_model: results follow from the code and values at hand, and models of any make are taken."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import crushproof
from crushproof.audit import api
from crushproof.audit.plan.plan import Plan, validated
from crushproof.audit.plan.yaml_text import Source
from crushproof.audit.subject.identity import code_digest, model_digest
from crushproof.audit.subject.resolve import Subject
from crushproof.compression.recipe import RECIPES
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.seeds import generator
from crushproof.training.architecture import Architecture

pytestmark = pytest.mark.usefixtures("undrawn", "without_forests")
SCALE = 1.0
MEMORY, MODEL = {"kind": "memory", "name": "x"}, {"architecture": "memory:model"}


def helper(x: Tensor) -> Tensor:
    return SCALE * x


def train(module: nn.Module, x: Tensor, y: Tensor, seed: int, rate: float = 0.1) -> nn.Module:
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(helper(x)), y).backward()
        optimizer.step()
    return module


def made(source: str, **values: Any) -> Callable[..., Any]:
    exec(source, values)
    return values["f"]  # type: ignore[no-any-return]  # a dict of anything


def test_code_is_told_apart_without_a_file() -> None:
    one, same = (made("def f(m, x, y, s):\n    return g(m) + 1\ndef g(m):\n    return m * 2\n") for _ in range(2))
    assert code_digest(one) == code_digest(same)
    assert code_digest(one) != code_digest(
        made("def f(m, x, y, s):\n    return g(m) + 2\ndef g(m):\n    return m * 2\n")
    )
    assert code_digest(one) != code_digest(
        made("def f(m, x, y, s):\n    return g(m) + 1\ndef g(m):\n    return m * 3\n")
    )
    assert code_digest(made("f = lambda: 1")) != code_digest(made("f = lambda: True"))


def test_defaults_captured_values_and_globals_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def capturing(value: Any) -> Callable[[], Any]:
        return lambda: value

    different = [
        1,
        1.0,
        "1",
        [1],
        (1,),
        {"a": 1},
        {"a": 2},
        torch.ones(2),
        torch.zeros(2),
        nn.Linear(2, 2),
        train,
        None,
    ]
    assert len({code_digest(capturing(value)) for value in different}) == len(different)
    assert code_digest(capturing(torch.ones(3))) == code_digest(capturing(torch.ones(3)))
    assert code_digest(capturing({"a": 1, "b": 2})) == code_digest(capturing({"b": 2, "a": 1}))
    whole = code_digest(train)
    assert code_digest(functools.partial(train, rate=0.1)) != code_digest(functools.partial(train, rate=0.2))
    assert code_digest(functools.partial(train, rate=0.1)) == code_digest(functools.partial(train, rate=0.1))
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 2.0)
    assert code_digest(train) != whole, "through the helper that it calls"


def test_what_cannot_be_identified_is_refused() -> None:
    lock = threading.Lock()
    with pytest.raises(InputError, match=r"captures 'lock'.*Create it inside"):
        code_digest(lambda: lock)


def test_digests_hold_no_address(tmp_path: Path) -> None:
    """Two processes, with different hash seeds and addresses, agree; the model's class is made by no file."""
    code = """
import torch, functools
from torch import nn
from crushproof.audit.subject.identity import code_digest, model_digest
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.act, self.words = nn.Linear(2, 2), torch.relu, {"a", "b", "c"}
        nn.init.ones_(self.head.weight); nn.init.zeros_(self.head.bias)
    def forward(self, x):
        return self.act(self.head(x)) * FACTOR
class Config: pass
config = Config(); config.rates = {"x", "y", "z"}
def train(m, x, y, s):
    return m if x in {"p", "q", "r"} else config
print(model_digest(Net()), code_digest(functools.partial(train, s=object.__new__(Config))), code_digest(torch.relu))
"""
    texts = [code, code.replace("* FACTOR", "- FACTOR")]
    run = f"for text in {texts!r}: exec(text, {{'__name__': '__main__'}})"
    fixed = {"PYTHONHASHSEED": "1"}  # this process has drawn its own
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True, env=fixed)
    one, other = (line.split() for line in done.stdout.splitlines())
    again: list[list[str]] = []
    for text in texts:
        plain = compile(text, "<string>", "exec", dont_inherit=True)  # of this file's __future__
        exec(plain, {"__name__": "__main__", "print": lambda *said: again.append(list(said))})
    assert [one, other] == again
    assert one[0] != other[0], "the code of forward"
    assert one[1:] == other[1:]


def test_a_setting_of_a_layer_decides_too() -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

    assert model_digest(Scaled(1.0)) != model_digest(Scaled(2.0))
    assert model_digest(Scaled(1.0)) == model_digest(Scaled(1.0))
    hooked = Scaled(1.0)
    hooked.register_forward_hook(lambda module, args, output: output)
    assert model_digest(hooked) != model_digest(Scaled(1.0))


class Bare(nn.Module):
    """A parameter of its own, and nothing that resets it."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(6))
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.token)


def records(count: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 6, generator=generator(seed, "records"))
    return x, (x[:, 0] > 0.5).long()


def audited(model: nn.Module, **options: Any) -> crushproof.AuditResult:
    return crushproof.audit_model(
        model,
        records(80, 1),
        records(120, 2),
        recipes=["int8"],
        shadows={"training_free": 2, "trained": 2},
        **options,
    )


@pytest.fixture(scope="module")
def bare() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return train(Bare(), *records(80, 1), seed=0)


EVASION = crushproof.Evasion(epsilons=(0.05,), gate_epsilon=0.05, records=32, parts=("pgd",))


def test_a_bare_parameter_needs_no_builder_until_a_shadow_is_trained(bare: nn.Module) -> None:
    like = Architecture.like(bare, "bare")
    assert like.blank().state_dict().keys() == bare.state_dict().keys()
    with pytest.raises(NotApplicable, match=r"Bare.*build="):
        like.fresh(0)
    result = audited(bare, attacks=[EVASION])
    ids = [finding.id for finding in result.audit.findings]
    assert ids == ["dense/evasion", "int8/evasion", "int8/evasion/evade_only"]
    assert all(finding.estimate is not None for finding in result.audit.findings)


def test_bounds_that_were_guessed_are_a_flag(bare: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The subject that a call would audit."""

    def subject(top: float, share: float, bounds: tuple[float, float] | None = None) -> Subject:
        x, y = records(60, 2)
        whole = np.minimum((x * top).round().numpy().astype(np.int64), top - 1)
        whole[: round(share * 60), 0] = top
        found: list[Subject] = []
        with monkeypatch.context() as patched, suppress(InputError):
            patched.setattr(api, "run_audit", lambda *_, subject, **__: found.append(subject) or _stop())
            crushproof.audit_model(bare, None, (whole, y), ["int8"], bounds=bounds)
        return found[0]

    def _stop() -> None:
        raise InputError("enough")

    for top, share, bounds, ends, guessed in (
        (16, 0.5, None, (0, 16), False),
        (90, 0.02, None, (0, 90), True),
        (90, 0.02, (0, 100), (0, 100), False),
    ):
        one = subject(top, share, bounds)
        assert (float(one.data.bounds.low), float(one.data.bounds.high)) == ends
        assert any("are a guess" in note for note in one.data.notes) is guessed
        assert bool(one.data.bounds_doubt) is guessed
    x, y = records(60, 2)
    with pytest.raises(InputError, match=r"outside the bounds.*0\.\.255: divide the inputs by 255, or give bounds"):
        crushproof.audit_model(bare, None, ((x * 255).round(), y), ["int8"], bounds=(0, 1))


def test_build_says_how_shadows_start(bare: nn.Module) -> None:
    without = audited(bare, attacks=["membership"], training=functools.partial(train, rate=0.1))
    assert all("build=" in (finding.reason or "") for finding in without.audit.findings)
    result = audited(bare, attacks=["membership"], training=functools.partial(train, rate=0.1), build=Bare)
    assert any(finding.estimate is not None for finding in result.audit.findings)
    assert not any("--only" in finding.reproduce for finding in result.audit.findings)


def test_a_builder_of_something_else_is_refused(bare: nn.Module) -> None:
    with pytest.raises(InputError, match=r"differ in head\.bias, head\.weight"):
        audited(bare, build=lambda: Bare(3))
    with pytest.raises(InputError, match=r"must return a torch\.nn\.Module"):
        audited(bare, build=lambda: 3)
    with pytest.raises(InputError, match="cannot be called as function"):
        audited(bare, training=lambda module: module)


@pytest.mark.parametrize(
    ("recipes", "words"),
    [
        ([], "recipes is empty"),
        (["int7"], "no recipe 'int7'. Did you mean 'int8'"),
        ([{"kind": "quantise"}], "Did you mean 'quantize'"),
        ([{"weight_bits": 4}], r"recipes\[0\] has no kind"),
        ([8], r"recipes\[0\] is int"),
        (None, "must be a list or a mapping"),
        ({"my int 8!": "int8"}, "candidate's name"),
        ({"kind": "quantize", "bits": 4}, "bits: is not a key"),
    ],
)
def test_recipes_that_say_nothing_are_refused(bare: nn.Module, recipes: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        crushproof.audit_model(bare, None, records(120, 2), recipes)


RECORDS, LABELS = (one.numpy() for one in records(120, 2))


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ((RECORDS, LABELS + 0.5), "no whole numbers: 120 of them, first [01].5 in record 0"),
        ((RECORDS, torch.tensor(LABELS) + 0.5), "no whole numbers"),
        ((RECORDS, nn.functional.one_hot(torch.tensor(LABELS))), "one-hot"),
        ((RECORDS, torch.ones(120, 3)), "Multi-label data is not supported"),
        ((RECORDS, ["a", "b"] * 30 + ["c", "d"] * 30), "not among the class names"),
        ((RECORDS.astype(str), LABELS), "x of test holds <U"),
        (([[1, 2], [3]], [0, 1]), "x of test is no array of equal records"),
        ((RECORDS, LABELS, LABELS), "must be a pair"),
        (torch.utils.data.TensorDataset(torch.tensor(RECORDS)), "Stack the records"),
    ],
)
def test_records_that_are_none_are_refused(bare: nn.Module, test: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        crushproof.audit_model(bare, None, test, "int8", class_names=["a", "b"])


def test_texts_and_class_numbers_are_not_mixed(bare: nn.Module) -> None:
    with pytest.raises(InputError, match="one split are texts"):
        crushproof.audit_model(bare, records(80, 1), (RECORDS, ["a", "b"] * 60), "int8")


def test_recipes_are_named_as_in_a_plan() -> None:
    """Short words, kinds, recipes and mappings, alone, listed or by name, are the candidates of a plan."""
    small = {"kind": "prune", "sparsity": 0.8}
    prune = crushproof.Prune(sparsity=0.8)
    for given in ({"small": small, "int8": "int8"}, {"small": prune, "int8": {"recipe": "int8"}}):
        plan = validated(Plan, {"data": MEMORY, "model": MODEL, "candidates": api._candidates(given)}, Source("x"))
        assert RECIPES.parse(plan.candidates["small"].recipe) == prune
        assert plan.candidates["int8"].recipe == "int8"
    assert api._candidates(small) == {"prune": prune}
    assert list(api._candidates([small, prune, "int8"])) == ["prune", "prune-2", "int8"]
