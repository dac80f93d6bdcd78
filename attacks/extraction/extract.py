"""Extraction as a call: a copy of one model from its answers, without a plan, a store or a report."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ...targets.data.records import Records
from ...targets.data.structure import PLAIN, Structure
from ...targets.errors import CrushproofError, InputError, NotApplicable, user_error
from ...targets.model import Target, TorchTarget, device_of
from ...targets.seeds import derive
from ...training.architecture import Architecture
from ...training.loop import Training
from ..access import Ledger
from ..evasion.call.attackable import Attackable, attackable
from .answers import SEEN, Seen, told
from .copying import Lesson, Pupil, Tutor
from .queries import choose_queries, representative
from .surrogate import surrogate_architecture

TRAINING = Training(epochs=8, batch_size=16, learning_rate=1e-2)
LEAST_STEPS = 200


@dataclass(frozen=True, eq=False)
class Extracted:
    """What `extract` gave.

    Args:
        module: the copy, in evaluation mode: float32 [n, *shape] to logits [n, classes].
        target: the model that was copied.
        queries: float32 [budget, *shape], what was asked.
        answers: float32 [budget, classes], the distributions that the copy was to give, softened as scores are.
        agreement: share of the held-out fifth of the queries to which the copy gave the answer's label before it learnt
            them; NaN with fewer than 15 queries.
        architecture: the name of the copy's.
        ledger: passes of the training, and queries, in records.
    """

    module: nn.Module
    target: Target
    queries: Tensor
    answers: Tensor
    agreement: float
    architecture: str
    ledger: Ledger

    def fidelity(self, x: Tensor) -> float:
        """The share of x, float32 [n, *shape], to which the copy gives the target's label. It asks the target."""
        if len(x) == 0:
            raise InputError("x holds no record. Give records that were not asked.")
        return float((TorchTarget(self.module).logits(x).argmax(1) == _ask(self.target, x).argmax(1)).float().mean())

    def __repr__(self) -> str:
        held = "" if math.isnan(self.agreement) else f", {self.agreement:.1%} of the held-out ones right"
        return f"<Extracted: {self.architecture} from {len(self.queries)} queries{held}>"


def extract(
    target: nn.Module | Path | str | bytes | Target | Attackable,
    pool: Tensor,
    *,
    architecture: Architecture | nn.Module | Callable[[], nn.Module] | None = None,
    budget: int = 500,
    answers: Seen = "scores",
    choice: Literal["representative", "random"] = "representative",
    training: Training = TRAINING,
    rounds: int = 3,
    temperature: float = 3.0,
    structure: Structure = PLAIN,
    seed: int = 0,
) -> Extracted:
    """Trains a copy of a model from its answers to so many queries (Tramèr et al. 2016; Orekondy et al. 2019).

    ```python
    >>> import torch
    >>> from crushproof import extract
    >>> _ = torch.manual_seed(0)
    >>> net, pool, x = torch.nn.Linear(4, 3), torch.rand(100, 4), torch.rand(200, 4)
    >>> extract(net, pool, budget=60).fidelity(x) > 0.9
    True

    ```

    Args:
        target: a torch module; an ONNX or TFLite file, or the bytes of one; or anything with `logits`. Answers that are
            probabilities are taken as such.
        pool: float32 [n, *shape], the attacker's own records; no labels are used. It may be of another distribution.
        architecture: what is trained: an untrained module or one of the same structure, or a function that builds one.
            None: a torch target's own, or a built-in one where that learns better or the target is none.
        budget: queries. Beyond the pool, mixes of two of its records are asked.
        answers: what is seen of an answer, by `answers.SEEN`.
        choice: which of a larger pool are asked: the records nearest to the means of as many clusters, or any.
        training: a round of it; there are at most `rounds`, while held-out answers are learnt better.
        temperature: logits are divided by it before scores are compared.
        structure: of the records: one-hot columns, codes, whole numbers, token ids; a mix is a record as well.
        seed: decides all that is random.

    Raises:
        InputError: shapes or settings do not fit, or the architecture is none for these records and classes.
        NotApplicable: the target answers with values that are not finite, or with one class only.
    """
    pool = _checked(pool, budget, answers, choice, rounds, temperature)
    seed = derive(seed, "extract")
    opened = attackable(target, tuple(pool.shape[1:])).deployed
    owned = Records(pool, torch.zeros(len(pool), dtype=torch.int64, device=pool.device))
    if choice == "representative" and budget < len(pool) and not structure.tokens:
        x = pool[representative(pool, budget, seed=seed)]
    else:
        x = choose_queries(owned, budget, seed=seed, structure=structure)
    logits = _ask(opened, x)
    classes = logits.shape[1]
    parent = target if isinstance(target, nn.Module) and architecture is None else None
    builtin, known = surrogate_architecture(parent, owned, classes, tokens=structure.tokens)
    own = builtin if architecture is None else _architecture(architecture)
    device = device_of(target, pool.device) if isinstance(target, nn.Module) else pool.device

    def fresh(kind: Architecture) -> nn.Module:
        module = kind.fresh(derive(seed, "initial weights")).to(device).requires_grad_(True)
        _check_answers(module, x, classes)
        return module

    distributions, compared_at = told(logits.to(device), answers, temperature, training.label_smoothing)
    lesson = Lesson(Records(x, logits.argmax(1)).to(device), distributions, compared_at)
    tutor = Tutor(training, LEAST_STEPS, enough=math.inf)
    copy = tutor.copy(Pupil(fresh(own), lesson, derive(seed, "train"), rounds))
    name = own.name
    if known:
        other, _ = surrogate_architecture(None, owned, classes, tokens=structure.tokens)
        best = tutor.better(copy, Pupil(fresh(other), lesson, derive(seed, "train"), rounds))
        name = name if best.module is copy.module else other.name
        copy = best
    copy.spent.queries += len(x)
    return Extracted(copy.module, opened, x, distributions, copy.agreement, name, copy.spent)


def _checked(pool: Tensor, budget: int, answers: str, choice: str, rounds: int, temperature: float) -> Tensor:
    if not isinstance(pool, Tensor) or pool.dim() < 2 or len(pool) == 0 or pool.is_complex():
        shape = f"of shape {list(pool.shape)}" if isinstance(pool, Tensor) else f"a {type(pool).__name__}"
        raise InputError(f"pool is {shape}. It is a tensor of records, float32 [n, *shape].")
    pool = pool.detach().float()
    if not torch.isfinite(pool).all():
        raise InputError("pool holds values that are not finite. Leave those records out.")
    if budget < 1 or rounds < 1 or not 0 < temperature < math.inf:
        raise InputError(
            f"budget is {budget}, rounds {rounds} and temperature {temperature}. The first two are at least 1, the "
            "last is a finite number above 0."
        )
    if answers not in SEEN or choice not in ("representative", "random"):
        raise InputError(
            f"answers is {answers!r} and choice {choice!r}. Give one of {', '.join(SEEN)}, and representative or "
            "random."
        )
    return pool


def _ask(target: Target, x: Tensor) -> Tensor:
    """The target's logits, float32 [n, classes]; logarithms where it gives probabilities."""
    try:
        logits = target.logits(x)
    except CrushproofError:
        raise
    except Exception as error:
        raise InputError(f"The target cannot be asked about records {list(x.shape)}: {user_error(error)}") from None
    if logits.dim() != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise NotApplicable(
            f"The target answers {len(x)} records with {list(logits.shape)}. A classifier's answers are [n, classes], "
            "of two classes or more."
        )
    if not torch.isfinite(logits).all():
        raise NotApplicable("The target answers some queries with NaN or infinity; nothing can be learnt.")
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all()):
        logits = logits.clamp_min(1e-12).log()
    return logits


def _architecture(given: Architecture | nn.Module | Callable[[], nn.Module]) -> Architecture:
    if isinstance(given, Architecture):
        return given
    if isinstance(given, nn.Module):
        return Architecture.like(given, type(given).__name__)
    return Architecture(getattr(given, "__name__", type(given).__name__), given)


def _check_answers(module: nn.Module, x: Tensor, classes: int) -> None:
    try:
        shape = list(TorchTarget(module).logits(x[:2]).shape)
    except Exception as error:
        raise InputError(f"The architecture is none for records {list(x.shape[1:])}: {user_error(error)}") from None
    if shape != [len(x[:2]), classes]:
        raise InputError(f"The architecture answers two records with {shape}, the target has {classes} classes.")
