"""What asking a finished file takes, measured once and multiplied by the records that a plan asks about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crushproof.audit.plan.plan import Plan
from crushproof.audit.plan.sections import InterfacePlan
from crushproof.audit.subject import finished_file
from crushproof.audit.subject.finished_file import HOURS, answers_planned, open_file
from crushproof.targets.data.data import Data
from crushproof.targets.errors import InputError, UnsafeInput
from crushproof.targets.untrusted.model_file import Facts, ModelFile

FACTS = Facts(inputs=(), outputs=(), operators={}, last_operator="", quantisation=(), opset=17, producer="")


class Assumed(Exception):
    """The file was let pass."""


def opened(seconds: float, digits: Data, monkeypatch: pytest.MonkeyPatch, size: int = 4000, **known: Any) -> None:
    def assume(*_: object) -> None:
        raise Assumed

    file = ModelFile("onnx", bytes(size), FACTS, seconds=seconds)
    monkeypatch.setattr(finished_file, "read_model_file", lambda *_: file)
    monkeypatch.setattr(finished_file, "assume", assume)
    answers = known.pop("answers", 0.0)
    open_file("shipped.onnx", Path(), InterfacePlan(**known), digits, answers=answers)


@pytest.mark.parametrize(
    ("seconds", "known", "words"),
    [
        (0.001, {}, ""),
        (0.027, {}, "27 ms .*about 4,000 to find out.*--hours 2 "),
        (0.001, {"answers": 10**7}, "10,000,000 by this plan: 2.8 h.*--hours 3 "),
        (0.001, {"answers": 10**7, "hours": 3}, ""),
        (0.027, {"hours": 2}, ""),
        (0.027, {"size": 2 * 10**6}, ""),
        (50.0, {"size": 2 * 10**6}, "find out"),
    ],
)
def test_more_than_a_files_share_is_refused(
    seconds: float, known: dict[str, Any], words: str, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything but the trial asked the file; what the message says to allow is enough."""
    with pytest.raises(UnsafeInput if words else Assumed, match=words or None) as caught:
        opened(seconds, digits, monkeypatch, **known)
    if words:
        assert str(caught.value).isprintable()


def test_of_several_files_the_one_that_does_not_fit_is_named(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def assume(*_: object) -> None:
        raise InputError("It takes [15].")

    monkeypatch.setattr(finished_file, "read_model_file", lambda *_: ModelFile("onnx", bytes(4000), FACTS, seconds=0.0))
    monkeypatch.setattr(finished_file, "assume", assume)
    with pytest.raises(InputError, match=r"^'shipped\.onnx': It takes \[15\]\.$"):
        open_file("shipped.onnx", Path(), InterfacePlan(), digits)


def test_the_plan_decides_how_often_a_file_is_asked(digits: Data) -> None:
    raw = {"data": {"kind": "npz", "path": "d.npz"}, "candidates": {"shipped": {"file": "m.onnx"}}}
    quick, standard, thorough = (
        answers_planned(Plan.model_validate({**raw, "attacks": attacks}), digits)
        for attacks in ("quick", "standard", "thorough")
    )
    assert 2_000 < quick < standard < thorough
    assert standard * 0.01 < HOURS * 3600, "10 ms for each record are a tiny file's share"
