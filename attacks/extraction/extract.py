"""Extraction as a call: a copy of one model from its answers, without a plan, a store or a report."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ...targets.data.records import Bounds, Records
from ...targets.data.structure import PLAIN, Structure
from ...targets.errors import CrushproofError, InputError, NotApplicable, user_error
from ...targets.model import Target, TorchTarget, device_of
from ...targets.seeds import derive
from ...targets.serving.query_streams import DELTA, noticed_after, shortest_distances, threshold
from ...training.architecture import Architecture
from ...training.loop import Training
from ..access import Ledger
from ..evasion.call.attackable import Attackable, attackable
from ..evasion.gradient.pgd import craft
from .answers import DECIMALS, SEEN, Seen, as_logits, told
from .asking.strategies import STRATEGIES, Strategy, ask
from .copying import Lesson, Pupil, Tutor
from .surrogate import same_layers, surrogate_architecture

TRAINING = Training(epochs=8, batch_size=16, learning_rate=1e-2)
LEAST_STEPS = 200


@dataclass(frozen=True, eq=False)
class Extracted:
    """What `extract` gave.

    Args:
        module: the copy, in evaluation mode: float32 [n, *shape] to logits [n, classes].
        target: the model that was copied.
        queries: float32 [budget, *shape], what was asked, in this order.
        labels: int64 [budget], the classes answered.
        answers: float32 [budget, classes], the distributions that the copy was to give, softened as scores are.
        agreement: share of the held-out fifth of the queries to which the copy gave the answer's label before it learnt
            them; NaN with fewer than 15 queries.
        architecture: the name of the copy's.
        ledger: passes of the training, and queries, in records.
    """

    module: nn.Module
    target: Target
    queries: Tensor
    labels: Tensor
    answers: Tensor
    agreement: float
    architecture: str
    ledger: Ledger

    def fidelity(self, x: Tensor) -> float:
        """The share of x, float32 [n, *shape], to which the copy gives the target's label. It asks the target."""
        if len(x) == 0:
            raise InputError("x holds no record. Give records that were not asked.")
        return float((TorchTarget(self.module).logits(x).argmax(1) == _ask(self.target, x).argmax(1)).float().mean())

    def transfer(
        self, x: Tensor, y: Tensor, epsilon: float = 0.1, *, lower: float = 0.0, upper: float = 1.0, steps: int = 10
    ) -> float:
        """The share of x, float32 [n, *shape], that the target gets wrong once PGD has changed it on the copy.

        It asks the target n times. What it gets wrong unchanged it most likely gets wrong changed, and counts.

        Args:
            y: int64 [n], the true classes.
            epsilon: L-inf, in units of `upper - lower`, the range of an input.

        Raises:
            InputError: no records, or x, y, epsilon or bounds do not fit.
        """
        if len(x) == 0 or y.shape != x.shape[:1] or not 0 < epsilon <= 1:
            raise InputError(
                f"x is {list(x.shape)}, y {list(y.shape)} and epsilon {epsilon}. Give one class for each of at least "
                "one record, and an epsilon above 0 and up to 1."
            )
        records, bounds = Records(x.float(), y).to(device_of(self.module, x.device)), Bounds.of(lower, upper)
        device = records.x.device
        crafted = craft(self.module, records, [epsilon], "linf", bounds.to(device), seed=0, steps=steps)[epsilon]
        return float((_ask(self.target, crafted.to(x.device)).argmax(1) != y).float().mean())

    def noticed(self, honest: Tensor) -> int | None:
        """After how many of the queries somebody would notice who watches the distances between them (PRADA, Juuti et
        al. 2019), with a threshold at which these records, float32 [n, *shape], pass; None: not at all. It asks the
        target n times. Fewer than 100 queries are never noticed, fewer than about 110 records set no threshold.
        """
        below = threshold(shortest_distances(honest, _ask(self.target, honest).argmax(1)))
        return noticed_after(shortest_distances(self.queries, self.labels), DELTA if below is None else below)

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
    decimals: int = DECIMALS,
    strategy: Strategy = "representative",
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
        decimals: of rounded probabilities.
        strategy: what is asked, by `strategies.STRATEGIES`. Copycat (Correia-Silva et al. 2018) is `composed`, `noise`
            or a pool of other records, with labels for answers.
        training: a round of it; there are at most `rounds`, while held-out answers are learnt better.
        temperature: logits are divided by it before scores are compared.
        structure: of the records: one-hot columns, codes, whole numbers, token ids; a mix is a record as well.
        seed: decides all that is random.

    Raises:
        InputError: shapes or settings do not fit, or the architecture is none for these records and classes.
        NotApplicable: the target answers with values that are not finite, or with one class only; `jacobian` where no
            value can be moved a little.
    """
    pool = _checked(pool, budget, answers, strategy, rounds, temperature, decimals)
    seed = derive(seed, "extract")
    opened = attackable(target, tuple(pool.shape[1:])).deployed
    owned = Records(pool, torch.zeros(len(pool), dtype=torch.int64, device=pool.device))
    parent = target if isinstance(target, nn.Module) and architecture is None else None
    device = device_of(target, pool.device) if isinstance(target, nn.Module) else pool.device
    tutor = Tutor(training, LEAST_STEPS, enough=math.inf)
    on_the_way = Ledger()

    def kinds(classes: int) -> tuple[Architecture, Architecture | None]:
        """What is trained, and what else where that is the target's own."""
        first, known = surrogate_architecture(parent, owned, classes, tokens=structure.tokens)
        if architecture is not None:
            return _architecture(architecture), None
        builtin, _ = surrogate_architecture(None, owned, classes, tokens=structure.tokens)
        return first, builtin if known and not same_layers(first.blank(), builtin.blank()) else None

    def fresh(kind: Architecture, x: Tensor, classes: int, *labels: str | int) -> nn.Module:
        module = kind.fresh(derive(seed, "initial weights", *labels)).to(device).requires_grad_(True)
        _check_answers(module, x, classes)
        return module

    def lesson(x: Tensor, logits: Tensor) -> Lesson:
        distributions = told(logits.to(device), answers, temperature, training.label_smoothing, decimals)
        return Lesson(Records(x, logits.argmax(1)).to(device), *distributions)

    def teach(x: Tensor, logits: Tensor, number: int) -> nn.Module:
        classes = logits.shape[1]
        start = fresh(kinds(classes)[0], x, classes, "choice", number)
        copy = tutor.copy(Pupil(start, lesson(x, logits), derive(seed, "choice", number)))
        on_the_way.add(copy.spent)
        return copy.module

    asked = ask(strategy, owned, [budget], partial(_ask, opened), teach, seed=seed, structure=structure)
    x, logits = asked.within(budget)
    classes, learnt = logits.shape[1], lesson(x, logits)
    own, other = kinds(classes)
    best, name = tutor.copy(Pupil(fresh(own, x, classes), learnt, derive(seed, "train"), rounds)), own.name
    if other is not None:
        first = best
        best = tutor.better(first, Pupil(fresh(other, x, classes), learnt, derive(seed, "train"), rounds))
        name = name if best.module is first.module else other.name
    spent = replace(best.spent, queries=len(x))
    spent.add(on_the_way)
    return Extracted(best.module, opened, x, learnt.records.y, learnt.answers, best.agreement, name, spent)


def _checked(
    pool: Tensor, budget: int, answers: str, strategy: str, rounds: int, temperature: float, decimals: int
) -> Tensor:
    if not isinstance(pool, Tensor) or pool.dim() < 2 or len(pool) == 0 or pool.is_complex():
        shape = f"of shape {list(pool.shape)}" if isinstance(pool, Tensor) else f"a {type(pool).__name__}"
        raise InputError(f"pool is {shape}. It is a tensor of records, float32 [n, *shape].")
    pool = pool.detach().float()
    if not torch.isfinite(pool).all():
        raise InputError("pool holds values that are not finite. Leave those records out.")
    if budget < 1 or rounds < 1 or not 1 <= decimals <= 6 or not 0 < temperature < math.inf:
        raise InputError(
            f"budget is {budget}, rounds {rounds}, decimals {decimals} and temperature {temperature}. The first two "
            "are at least 1, decimals 1 to 6, the last is a finite number above 0."
        )
    if answers not in SEEN or strategy not in STRATEGIES:
        raise InputError(
            f"answers is {answers!r} and strategy {strategy!r}. Give one of {', '.join(SEEN)}, and one of "
            f"{', '.join(STRATEGIES)}."
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
    return as_logits(logits)


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
