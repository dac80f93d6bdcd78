"""Evasion by changed tokens: substitutes are allowed ones, padding stays, and gradients at the embedding lead there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from evasion_cases import LENGTH, WORDS, case_of
from torch import Tensor, nn

from crushproof.attacks.case import Case
from crushproof.attacks.evasion.discrete.exchanged import costs_on
from crushproof.attacks.evasion.discrete.features import features_of, padding_of
from crushproof.attacks.evasion.discrete.substitution import Substitution
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.data.structure import Structure
from crushproof.targets.errors import InputError
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.twin.twin import twin_of

FILLER = 0
ALLOWED = (3, 4, 5, 6, 7)


class Reader(nn.Module):
    """Sums what a token says for each class over its states; ids from 25 on speak for the second class."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, 2)
        layers = {"gru": nn.GRU(8, 8, batch_first=True), "lstm": nn.LSTM(8, 8, batch_first=True)}
        self.states = layers.get(kind)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) if kind == "transformer" else None
        with torch.no_grad():
            self.embedding.weight[25:, 0] += 3
            self.embedding.weight[:25, 0] -= 3

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embedding(x.long())
        if self.states is not None:
            rows = self.states(rows)[0]
        elif self.attention is not None:
            rows = self.attention(rows)
        answers: Tensor = self.head(rows.mean(1))
        return answers


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def token_case(module: Reader) -> Case:
    """Sequences that end in padding, labelled by the model; as it ships, an ONNX file with its twin."""
    stream = np.random.default_rng(0)
    x = stream.integers(1, WORDS, (90, LENGTH))
    x[np.arange(LENGTH) >= stream.integers(6, LENGTH + 1, 90)[:, None]] = FILLER
    ids = torch.as_tensor(x, dtype=torch.float32)
    with torch.no_grad():
        gap = module(ids)[:, 1] - module(ids)[:, 0]
        module.head.bias[1] -= gap.median()
        y = module.eval()(ids).argmax(1)
    data = Data("ids", None, Records(ids, y), Bounds.of(0, WORDS), ("a", "b"), structure=Structure(tokens=True))
    model = to_onnx(module, data.shape)
    return replace(case_of(data, twin_of(model)), deployed=OnnxTarget(model), parent=None, structure=data.structure)


@pytest.mark.parametrize("kind", ["gru", "lstm", "transformer"])
def test_substitutes_come_from_the_allowed_set(kind: str) -> None:
    case = token_case(Reader(kind))
    evidence = Substitution(gate_changes=2, allowed=ALLOWED, records=40, further=3).run(case, seed=0)
    assert evidence.summary["parts"] == ["gradient", "embedding", "answers"]
    assert evidence.summary["padding"] == FILLER
    x, clean = evidence.arrays["adversarial"], case.evaluation.x[:40].numpy()
    different = x != clean
    assert np.isin(x[different], ALLOWED).all()
    assert (clean[different] != FILLER).all()
    assert different.sum(1).max() <= 2
    wrong = (case.deployed.logits(torch.as_tensor(x)).argmax(1) != case.evaluation.y[:40]).numpy()
    assert wrong.tolist() == evidence.arrays["worst/2"].tolist(), "clean answers are right here"
    falls = {part: int(evidence.arrays[f"fooled/{part}/2"].sum()) for part in evidence.summary["parts"]}
    assert falls["answers"] > 5
    assert falls["gradient"] >= 0.6 * falls["answers"], "of 60 moves it tried the three that the gradient named"
    assert falls["embedding"] >= 0.6 * falls["answers"], "what lies between tokens leads to those that are allowed"
    assert evidence.summary["without_gradient"] == 0
    told = Substitution(gate_changes=2, reach=1.0, allowed=ALLOWED, records=40)
    assert told.asked_again(evidence, case) == []


def test_the_vocabulary_is_the_datas_own_and_a_mistake_is_named() -> None:
    case = token_case(Reader("gru"))
    features = features_of(case)
    assert {*features.values.flatten().tolist()} == {*case.evaluation.x.unique().tolist()} - {FILLER}
    assert padding_of(case, case.evaluation.x.flip(1)) == FILLER
    without = case.evaluation.x.clamp_min(1)
    assert padding_of(case, without) is None
    for allowed, words in (((FILLER,), "padding, or no id"), ((3, 10 * WORDS), "the model fails at it")):
        with pytest.raises(InputError, match=words):
            features_of(case, allowed=allowed)


def test_logits_before_a_saturated_softmax_lead_on() -> None:
    case = token_case(Reader("gru"))
    assert case.twin is not None
    sure = nn.Sequential(case.twin, Times(1e4), nn.Softmax(1)).eval()
    evidence = Substitution(gate_changes=2, records=40).run(replace(case, twin=sure, native=sure), seed=0)
    assert evidence.summary["without_gradient"] == 0
    assert evidence.arrays["fooled/gradient/2"].sum() > 10


def test_a_file_without_gradients_falls_by_its_answers() -> None:
    case = replace(token_case(Reader("gru")), twin=None, native=None)
    evidence = Substitution(gate_changes=2, records=40).run(case, seed=0)
    assert evidence.summary["parts"] == ["answers"]
    assert evidence.skipped.keys() == {"gradient", "embedding"}
    assert evidence.summary["union_flags"] == []  # it was asked about every single change
    assert evidence.arrays["worst/2"].sum() > 10


class Shy(nn.Module):
    """A reader whose embeddings lead away from where its answers lie; ids are looked up in a table that lies."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader, self.embedding = reader, nn.Embedding(WORDS, 8)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.reader(x) + self.embedding(x.long()).sum((1, 2))[:, None] * torch.tensor([1.0, -1.0])
        return answers


def test_between_tokens_nothing_counts() -> None:
    """A twin that gives in at once where no token is: what it finds is asked of the model, and fails there."""
    case = token_case(Reader("gru"))
    lying = replace(case, twin=Shy(Reader("gru")).eval(), twin_agrees=False)
    told = Substitution(gate_changes=2, allowed=ALLOWED, records=40, first=1, further=1, beam=1)
    evidence = told.run(lying, seed=0)
    x = torch.as_tensor(evidence.arrays["adversarial"])
    wrong = (case.deployed.logits(x).argmax(1) != case.evaluation.y[:40]).numpy()
    assert wrong.tolist() == evidence.arrays["worst/2"].tolist()
    assert evidence.flags["embedding"] == ["twin-disagrees"]
    alone = told.model_copy(update={"embedding_steps": 0}).run(case, seed=0)
    assert alone.summary["parts"] == ["gradient", "answers"]


def test_what_fools_one_model_is_tried_on_the_other() -> None:
    """A file without gradients, asked one question a record, falls to what its dense model's gradients find."""
    dense = token_case(Reader("gru"))
    blind = replace(dense, twin=None, native=None)
    told = Substitution(gate_changes=2, records=40, first=1, further=1, beam=1)
    strong = Substitution(gate_changes=2, records=40).run(dense, seed=0)
    weak = told.run(blind, seed=0)
    cost = costs_on(blind, told, strong)
    features = features_of(blind)
    x = torch.as_tensor(strong.arrays["adversarial"])
    assert (cost > 0).tolist() == (strong.arrays["worst/2"] & strong.arrays["clean_correct"]).tolist()
    assert cost[cost > 0].tolist() == features.changes(x, dense.evaluation.x[:40])[cost > 0].tolist()
    assert (cost > 0).sum() > weak.arrays["worst/2"].sum() + 5
    back = costs_on(dense, told, weak)
    assert ((back > 0) <= weak.arrays["worst/2"]).all()
