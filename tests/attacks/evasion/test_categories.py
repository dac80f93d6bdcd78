"""Inputs that are no pixels are named; whole-number pixels, binary images and series are not taken for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import LENGTH, WORDS, Pooled, case_of
from torch import Tensor, nn

from crushproof.attacks.case import Case
from crushproof.attacks.evasion.categories import not_pixels, one_hot
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.data.data import Data
from crushproof.targets.data.one_hot import one_hot_blocks
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.twin.twin import twin_of


class Recurrent(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(self.gru(self.embedding(x.long()))[0][:, -1])
        return answers


class Attentive(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(self.encoder(self.embedding(x.long())).mean(1))
        return answers


def data_of(x: Any, low: float, high: float) -> Data:
    x = torch.as_tensor(np.asarray(x, dtype=np.float32))
    y = torch.arange(len(x)) % 2
    return Data("data", None, Records(x, y), Bounds.of(low, high), ("a", "b"))


def deployed(data: Data, module: nn.Module) -> Case:
    """The module as it ships: an ONNX file, and the twin read from its bytes."""
    model = to_onnx(module.eval(), data.shape)
    twin = twin_of(model)
    return replace(case_of(data, twin), deployed=OnnxTarget(model), parent=None)


@pytest.mark.parametrize("module", [Pooled(), Recurrent(), Attentive()], ids=["pooled", "gru", "transformer"])
def test_token_ids(module: nn.Module) -> None:
    data = data_of(np.random.default_rng(0).integers(0, WORDS, (90, LENGTH)), 0, WORDS - 1)
    for case in (deployed(data, module), case_of(data, module.eval())):
        why = not_pixels(case)
        assert why is not None
        assert "token ids" in why
        with pytest.raises(NotApplicable, match="token ids"):
            Evasion(records=10).run(case, seed=0)


class Rounds(nn.Module):
    """Whole-number pixels, rounded by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(LENGTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(x.round() / 255)
        return answers


def test_whole_number_pixels_have_neighbours() -> None:
    data = data_of(np.random.default_rng(0).integers(0, 256, (90, LENGTH)), 0, 255)
    assert not_pixels(case_of(data, nn.Linear(LENGTH, 2))) is None
    assert not_pixels(deployed(data, Rounds())) is None
    assert not_pixels(case_of(data, Rounds().eval())) is None
    series = data_of(np.random.default_rng(0).random((90, LENGTH)), 0, 1)
    assert not_pixels(case_of(series, nn.Linear(LENGTH, 2))) is None


def test_one_hot_columns_are_found_where_they_are() -> None:
    stream = np.random.default_rng(0)
    numbers = stream.random((300, 3))
    first = np.eye(4)[stream.integers(0, 3, 300)]  # nobody has the last category
    second = np.eye(2)[stream.integers(0, 2, 300)]
    flags = (stream.random((300, 2)) < 0.5).astype(float)  # independent yes/no columns are no block
    table = torch.as_tensor(np.concatenate([numbers, first, flags, second, numbers[:, :1]], 1), dtype=torch.float32)
    assert one_hot_blocks(table) == [(3, 5), (9, 10)]
    standardised = (table - table.mean(0)) / table.std(0).clamp_min(1e-6)
    assert [block[0] for block in one_hot_blocks(standardised)] == [3, 9]
    assert "2 blocks" not in (one_hot(table) or "")
    assert "columns 3-" in (one_hot(table) or "")
    assert one_hot_blocks(torch.as_tensor(stream.random((300, 6)), dtype=torch.float32)) == []
    assert one_hot_blocks(torch.as_tensor(flags, dtype=torch.float32)) == []
    dropped = np.eye(4)[stream.integers(0, 4, 300)][:, 1:]  # the first category is left out
    assert one_hot_blocks(torch.as_tensor(np.concatenate([flags, dropped], 1), dtype=torch.float32)) == [(2, 4)]
    rare = stream.random((300, 40)) < 0.01  # rare flags hardly ever meet, and are no categories
    assert one_hot_blocks(torch.as_tensor(rare, dtype=torch.float32)) == []


def test_a_wide_table_of_flags_takes_no_time() -> None:
    """Every column is looked at once or twice, however often blocks begin and break."""
    table = torch.as_tensor(np.random.default_rng(0).random((500, 3000)) < 0.002, dtype=torch.float32)
    assert one_hot_blocks(table) == []


def test_one_hot_sequences_and_binary_images() -> None:
    stream = np.random.default_rng(0)
    bases = torch.as_tensor(np.eye(4)[stream.integers(0, 4, (60, 20))].transpose(0, 2, 1), dtype=torch.float32)
    assert one_hot(bases) is not None
    padded = bases.clone()
    padded[:, :, -5:] = 0
    assert one_hot(padded) is not None
    images = torch.as_tensor(stream.random((60, 1, 8, 8)) < 0.4, dtype=torch.float32)
    assert one_hot(images) is None


class Mixed(Pooled):
    """Codes of categories in the first column, numbers in the others."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 + 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(torch.cat([self.embedding(x[:, 0].long()), x[:, 1:]], 1))
        return answers


def test_codes_among_numbers_are_found() -> None:
    stream = np.random.default_rng(0)
    x = np.concatenate([stream.integers(0, WORDS, (90, 1)), stream.random((90, 3))], 1)
    torch.manual_seed(0)
    why = not_pixels(case_of(data_of(x, 0, WORDS), Mixed().eval()))
    assert why is not None
    assert "1 of 4 inputs of a record" in why
    dead = nn.Linear(4, 2)
    with torch.no_grad():
        dead.weight[:, 0] = 0  # a column the model does not look at is no key
    assert not_pixels(case_of(data_of(x, 0, WORDS), dead)) is None


def test_without_gradients_answers_tell_tokens_from_pixels() -> None:
    stream = np.random.default_rng(0)
    torch.manual_seed(0)
    tokens = data_of(stream.integers(0, WORDS, (90, LENGTH)), 0, WORDS - 1)
    blind = replace(case_of(tokens, Pooled().eval()), twin=None, native=None, parent=None)
    assert not_pixels(blind) is not None
    pixels = data_of(stream.integers(0, 256, (90, LENGTH)), 0, 255)
    blind = replace(case_of(pixels, Rounds().eval()), twin=None, native=None, parent=None)
    assert not_pixels(blind) is None


def test_a_table_with_one_hot_columns_is_not_attacked_in_pixels() -> None:
    stream = np.random.default_rng(0)
    table = np.concatenate([stream.random((90, 4)), np.eye(3)[stream.integers(0, 3, 90)]], 1)
    why = not_pixels(case_of(data_of(table, 0, 1), nn.Linear(7, 2)))
    assert why is not None
    assert "columns 4-6" in why
