"""Who trains: the built-in loop, a hardened training, or the user's own function. All fit one model or a population."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..targets.answers import answer_with_logits, answers_with_logits, as_written
from ..targets.data.records import Records
from ..targets.errors import CrushproofError, InputError, user_error
from ..targets.plain import plain
from ..targets.seeds import global_seed
from ..targets.steps import pulse
from .architecture import Architecture
from .loop import Training, TrainingJob, train_many
from .stacked import group_size


class Trainer(ABC):
    """Fits models from scratch. `identity` decides the cache key: same identity and inputs, same weights, if it is
    `repeatable`.
    """

    repeatable: bool = True

    @property
    @abstractmethod
    def identity(self) -> str:
        """Everything that decides the result, as text (JSON of the hyper-parameters, or a digest of the code)."""

    @abstractmethod
    def fit(self, job: TrainingJob) -> list[nn.Module]:
        """The job's models, trained, in evaluation mode on its device."""

    @property
    def of_shipped(self) -> Trainer:
        """Who trains the model that ships, where that differs from how its shadows are trained."""
        return self

    @property
    def passes(self) -> float | None:
        """Over the records, that a plain training takes; None: it does not say, or does more than to pass over them."""
        return None

    def side_by_side(self, architecture: Architecture, device: torch.device) -> int:
        """How many models `fit` trains as one computation; 1: one after the other. A fixed rule, never a timing."""
        return 1


class BuiltinTrainer(Trainer):
    """The built-in loop with the given hyper-parameters."""

    def __init__(self, training: Training) -> None:
        if training.adversarial is not None:
            raise InputError(
                "The training of the dense model cannot perturb its records (adversarial), so that there is a plain "
                "one to compare with: leave it out, and write defense: adversarial-training at a candidate."
            )
        if training.private is not None:
            raise InputError(
                "The training of the dense model is not made private by `private`: leave it out, and write "
                "defense: dp-sgd at a candidate."
            )
        self.training = training

    @property
    def identity(self) -> str:
        return f"builtin:{self.training.model_dump_json()}"

    @property
    def passes(self) -> float:
        return float(self.training.epochs)

    def fit(self, job: TrainingJob) -> list[nn.Module]:
        return train_many(job, self.training)

    def side_by_side(self, architecture: Architecture, device: torch.device) -> int:
        return group_size(architecture.blank(), self.training.batch_size, device)


class UserTrainer(Trainer):
    """The user's own training function.

    Args:
        function: `function(module, x, y, seed) -> module`; trains the fresh `module`, in training mode as its
            constructor leaves it, on x float32 [n, *shape] and y int64 [n] and returns it. It runs with torch's global
            generator seeded.
        identity: the function's name, "@" and a digest of its code.
    """

    def __init__(self, function: Callable[[nn.Module, Tensor, Tensor, int], nn.Module], identity: str) -> None:
        self.function, self._identity = function, identity

    @property
    def identity(self) -> str:
        return f"user:{self._identity}"

    def fit(self, job: TrainingJob) -> list[nn.Module]:
        models = []
        for number, (subset, seed) in enumerate(zip(job.subsets, job.seeds, strict=True)):
            if len(job.seeds) > 1:
                pulse("model", number, len(job.seeds))
            own = job.records.take(subset).to(job.device)
            with global_seed(seed, "user training"):
                fresh = job.architecture.fresh(seed)
                wanted, logits_only = _shapes(fresh), answers_with_logits(fresh)
                trained, _ = plain(self._call(as_written(fresh).to(job.device).train(), own, seed))
                answer_with_logits(trained, logits_only)
                self._check_same(wanted, _shapes(trained))
                models.append(trained.to(job.device).eval())
        return models

    def _check_same(self, given: dict[str, torch.Size], returned: dict[str, torch.Size]) -> None:
        odd = sorted(name for name in given.keys() | returned.keys() if given.get(name) != returned.get(name))
        if odd:
            raise InputError(
                f"The training function {self._identity.partition('@')[0]} returns another model than it is given: "
                f"they differ in {', '.join(odd[:5])}. It must return the module it trained."
            )

    def _call(self, fresh: nn.Module, records: Records, seed: int) -> nn.Module:
        name = self._identity.partition("@")[0]
        try:
            module = self.function(fresh, records.x, records.y, seed)
        except CrushproofError:
            raise
        except (Exception, SystemExit) as error:  # sys.exit(0) would end the audit as a pass does
            place = records.x.device
            where = f" The module, x and y are on {place}; what it makes itself must be too, or write device: cpu."
            raise InputError(
                f"The training function {name} raised {user_error(error)}. It is called as function(module, x, y, "
                f"seed) and must return the trained module.{where if place.type != 'cpu' else ''}"
            ) from None
        if not isinstance(module, nn.Module):
            got = "nothing: end it with return module" if module is None else type(module).__name__
            raise InputError(
                f"The training function {name} must return the trained torch.nn.Module; it returned {got}."
            )
        return module


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}
