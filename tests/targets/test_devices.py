"""What a GPU needs said, checked without one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.evasion.ascent.gradients import Gradients
from crushproof.defenses.adversarial_training import AdversarialTraining
from crushproof.defenses.dp_sgd import DpSgd, DpSgdTrainer
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.model import differentiable, reproducible
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import SequenceLstm, TokenGru
from crushproof.training.trainer import BuiltinTrainer

CPU = torch.device("cpu")


class Seen(nn.Module):
    """Notes whether cuDNN was at hand when its layer answered."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.seen = layer, list[bool]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(torch.backends.cudnn.enabled)
        logits: Tensor = self.layer(x)
        return logits


@pytest.mark.filterwarnings("ignore:.*jit.script")
@pytest.mark.parametrize("scripted", [False, True])
def test_recurrent_layers_are_differentiated_without_cudnn(scripted: bool) -> None:
    """Its recurrent layers have no backward pass in evaluation mode; convolutions keep it."""
    recurrent, plain = SequenceLstm(), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for layer, expected in ((recurrent, False), (plain, True)):
        seen = Seen(torch.jit.script(layer) if scripted else layer)
        with differentiable(seen):
            seen(torch.rand(2, 1, 8, 8))
        assert seen.seen == [expected]
    gradients = Gradients(recurrent, "ce", Ledger())
    assert gradients(torch.rand(2, 1, 8, 8), torch.tensor([0, 1])).gradient.abs().sum() > 0


def test_whatever_the_caller_set_work_is_done_the_same_way() -> None:
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    before = (cudnn.deterministic, cudnn.allow_tf32)
    try:
        with reproducible():
            assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (1, "highest")
            assert (cudnn.enabled, cudnn.deterministic, cudnn.allow_tf32) == (True, True, False)
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "medium")
        assert (cudnn.deterministic, cudnn.allow_tf32) == before
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")


def test_defenses_say_what_they_cannot_train() -> None:
    architecture = Architecture("tokens", lambda: TokenGru(8, 2, 4))
    records = Records(torch.randint(8, (40, 6)).float(), torch.arange(40) % 2)
    job = TrainingJob.of_one(architecture, records, 0, CPU)
    brief = BuiltinTrainer(Training(epochs=1))
    with pytest.raises(NotApplicable, match="token ids"):
        AdversarialTraining().trainer(brief, Bounds.of(0, 7)).fit(job)
    with pytest.raises(NotApplicable, match=r"recurrent layers such as gru \(GRU\)"):
        DpSgdTrainer(DpSgd()).fit(job)
