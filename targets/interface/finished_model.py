"""A finished file as it runs, behind its preprocessing, and its twin behind the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.records import Bounds
from ..errors import CrushproofError, NotApplicable
from ..model import BATCH, Target
from ..runtimes.batches import reason
from ..runtimes.litert import LiteRtTarget
from ..runtimes.onnx import OnnxTarget
from ..twin.logits import answer_and_logits
from ..twin.tflite.twin import twin_of_tflite
from ..twin.twin import Twin, twin_of
from ..untrusted.model_file import ModelFile
from .assumptions import Assumptions
from .preprocessing import Preprocessing, class_logits


class Deployed:
    """A runtime behind the file's preprocessing; see `deployed`."""

    def __init__(self, runtime: Target, assumptions: Assumptions) -> None:
        self._runtime, self._assumptions = runtime, assumptions
        self._preprocessing = Preprocessing(assumptions)
        self.queries = 0

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """See `Target.logits`. Raises InputError when the records do not fit the model."""
        self.queries += len(x)
        parts = [
            class_logits(self._runtime.logits(self._preprocessing(part.detach().cpu().float())), self._assumptions)
            for part in x.split(BATCH)
            if len(part)
        ]
        return torch.cat(parts).to(x.device) if parts else torch.zeros(0, 0, device=x.device)


def deployed(file: ModelFile, assumptions: Assumptions, threads: int = 1) -> Target:
    """The file as it runs: x float32 [n, *shape] in the data's bounds -> logits float32 [n, classes], finite.

    Raises:
        InputError, UnsafeInput: as `onnx.OnnxTarget` and `litert.LiteRtTarget` do.
    """
    return Deployed(runtime_of(file, threads, assumptions.output), assumptions)


def runtime_of(file: ModelFile, threads: int, output: str | None) -> Target:
    if file.kind == "onnx":
        return OnnxTarget(file.checked, threads, output=output)
    return LiteRtTarget(file.data, threads, output=output)


class Differentiable(nn.Module):
    """The twin of a file behind its preprocessing; see `differentiable`.

    Attributes:
        rounds: whether anything is rounded, the input included.
        straight_through: settable; False gives rounding the zero gradients that it really has.
    """

    def __init__(self, twin: Twin, assumptions: Assumptions) -> None:
        super().__init__()
        self.preprocessing, self.twin = Preprocessing(assumptions), twin
        self._assumptions = assumptions

    @property
    def rounds(self) -> bool:
        return bool(self.twin.rounds) or self._assumptions.grid is not None

    @property
    def straight_through(self) -> bool:
        return self.preprocessing.straight_through

    @straight_through.setter
    def straight_through(self, passes: bool) -> None:
        self.preprocessing.straight_through = self.twin.straight_through = passes

    def forward(self, x: Tensor) -> Tensor:
        x, assumptions = self.preprocessing(x), self._assumptions
        if assumptions.outputs != "probabilities":
            return class_logits(self.twin(x).float(), assumptions)
        answer, logits = answer_and_logits(self.twin, x)
        if logits is not answer and logits.flatten(1).shape[1] == 1:  # a sigmoid: two classes, by what goes into it
            logits = logits.flatten(1)
            answer = torch.softmax(torch.cat([torch.zeros_like(logits), logits], dim=1), dim=1)
        return class_logits(answer.float(), assumptions)


def differentiable(file: ModelFile, assumptions: Assumptions, bounds: Bounds, shape: tuple[int, ...]) -> Differentiable:
    """The file's twin behind the same preprocessing as the deployed file: what white-box attacks follow.

    Args:
        bounds, shape: of the data; a record from the middle of the bounds is tried.

    Raises:
        InputError: the records do not fit the model.
        NotApplicable: an operator without a twin (the message names it), or one that mixes records.
    """
    module = Differentiable(file_twin(file, assumptions.output), assumptions).eval()
    middle = ((bounds.low + bounds.high) / 2).expand(shape)
    check_followed(module, middle)
    return module


def file_twin(file: ModelFile, output: str | None) -> Twin:
    """The twin of a file's bytes; see `twin.twin_of` and `tflite.twin.twin_of_tflite`."""
    if file.kind == "onnx":
        return twin_of(file.checked, output)
    names = [port.name for port in file.facts.outputs]
    return twin_of_tflite(file.data, 0 if output is None else names.index(output))


def check_followed(module: Differentiable, record: Tensor) -> None:
    """Raises NotApplicable unless the twin answers two copies of `record`, each by itself."""
    try:
        with torch.no_grad():
            answers = module(record.expand(2, *record.shape).clone())
    except (CrushproofError, MemoryError):
        raise
    except Exception as error:  # what the runtime takes, torch may not: an axis beyond all, say
        raise NotApplicable(
            f"The model has no differentiable twin: torch does not follow it ({reason(error)})."
        ) from None
    if answers.dim() != 2 or len(answers) != 2:
        raise NotApplicable(
            f"The model has no differentiable twin: it answers 2 records in the shape {list(answers.shape)}, so that "
            "they are not told apart. Export it with the batch as the first axis of its output."
        )
