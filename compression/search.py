"""Search for compressed models under constraints: which recipes, how hard, and how large a student.

The space is a chain of four choices, each of which may be left out: a student (its width and depth: architecture search
under a compression budget), pruning, shared values or a factorisation, and quantisation. Optuna proposes (NSGA-II,
Deb et al. 2002, for several objectives at once); what is measured is a model that the search has trained itself on part
of the members, on the rest of them: neither evaluation records nor the attacker's own are touched, and a student is
measured on records it has never seen, as everything else is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import nn

from ..targets.data.data import Data
from ..targets.data.records import Records
from ..targets.errors import InputError, NotApplicable, UnsafeInput
from ..targets.model import accuracy
from ..targets.runtimes.onnx import OnnxTarget
from ..targets.seeds import derive, generator
from ..targets.technique import Technique
from ..training.architecture import Architecture
from ..training.loop import TrainingJob
from ..training.trainer import Trainer
from .deployment.onnx_export import to_onnx
from .footprint.payload import encode
from .footprint.timing import interleaved_latency
from .recipe import RECIPES, Recipe

if TYPE_CHECKING:
    import optuna

# Tried before the sampler proposes anything: what people ship first.
FIRST_TRIED: tuple[dict[str, Any], ...] = tuple(
    {"student": False, "prune": pruned, "sparsity": 0.5, "shape": "none", "bits": bits, "activations": "static"}
    for pruned, bits in (("none", 8), ("none", 4), ("weights", 8), ("channels", 8), ("weights", 4))
)
HELD_OUT = 0.25  # of the members, on which accuracy is measured
DENSE = "dense"

Objective = Literal["accuracy", "payload", "latency"]


class SearchSettings(Technique):
    """What is searched for, how long, and what a model that is found must keep to."""

    trials: int = Field(40, ge=1, le=10_000, description="recipes that are tried")
    objectives: tuple[Objective, ...] = Field(
        ("accuracy", "payload"), min_length=1, description="what the Pareto set is over; latency is measured here"
    )
    largest_payload: int | None = Field(None, ge=1, le=2**50, description="bytes of the packed weights")
    largest_latency: float | None = Field(None, gt=0, le=1e9, description="milliseconds, median of a call, at `batch`")
    largest_loss: float | None = Field(None, ge=0, le=1, description="of accuracy against dense; .01 is one point")
    batch: int = Field(1, ge=1, le=4096, description="records per call when latency is measured")
    epochs: int = Field(2, ge=1, le=1000, description="of fine-tuning after pruning or factorising")

    @property
    def times(self) -> bool:
        """Whether a run-time timing has a say: then two searches may find different recipes."""
        return "latency" in self.objectives or self.largest_latency is not None


@dataclass(frozen=True)
class TriedRecipe:
    """One recipe and what it came to.

    Args:
        recipe: as a plan writes it.
        accuracy: share of the held-out members, in [0, 1]; of n.
        payload_bytes: of the packed weights.
        latency_ms: median of a call; None: not measured.
        why_not: why the recipe could not be used; then the figures mean nothing.
    """

    recipe: dict[str, Any]
    accuracy: float = 0.0
    n: int = 0
    payload_bytes: int = 0
    latency_ms: float | None = None
    why_not: str | None = None


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Args:
        dense: the model of the search, uncompressed.
        trials: all, in order.
        chosen: of those that keep to the limits, the Pareto set, best first.
        nearest: of the usable ones, the one that exceeds the limits least.
    """

    dense: TriedRecipe
    trials: list[TriedRecipe]
    chosen: list[TriedRecipe]
    nearest: TriedRecipe


def search(
    settings: SearchSettings,
    architecture: Architecture,
    trainer: Trainer,
    data: Data,
    *,
    seed: int,
    device: torch.device,
    known: Mapping[str, TriedRecipe] | None = None,
    tell: Callable[[str, TriedRecipe], None] = lambda key, trial: None,
) -> Found:
    """Tries recipes on a model trained for it.

    Args:
        known: trials of an earlier run of the same search, by key: they are not computed again.
        tell: called with each new trial and its key, to keep it and to show progress.

    Raises:
        InputError: the data has no training records, or nothing that was tried can be used.
    """
    import optuna

    if data.members is None:
        raise InputError(
            "A search needs training records (x_train, y_train): recipes are tried on some, measured on others."
        )
    if data.regression:
        raise InputError("A search compares accuracies; for a model that predicts values there is none yet.")
    own, held_out = split(data.members, seed)
    dense = trainer.fit(TrainingJob.of_one(architecture, own, derive(seed, "search", DENSE), device))[0]
    results = dict(known or {})

    def tried(recipe: Recipe | None) -> TriedRecipe:
        key = DENSE if recipe is None else recipe.model_dump_json()
        if key not in results:
            results[key] = measure(recipe, dense, own, held_out, data, settings, seed=seed)
            tell(key, results[key])
        return results[key]

    reference = tried(None)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=["maximize" if one == "accuracy" else "minimize" for one in settings.objectives],
        sampler=optuna.samplers.NSGAIISampler(
            seed=derive(seed, "sampler") % 2**32,
            population_size=max(4, min(20, settings.trials // 3)),
        ),
    )
    for parameters in FIRST_TRIED:
        study.enqueue_trial(parameters)
    trials: list[TriedRecipe] = []
    for _ in range(settings.trials):
        proposed = study.ask()
        recipe = propose(proposed, settings)
        trial = tried(recipe) if recipe is not None else TriedRecipe({}, why_not="nothing is compressed")
        trials.append(trial)
        for limit, excess in beyond(trial, reference, settings).items():
            proposed.set_constraint(limit, excess)
        study.tell(proposed, values(trial, settings))
    usable = [trial for trial in trials if trial.why_not is None]
    if not usable:
        reasons = sorted({trial.why_not for trial in trials if trial.why_not is not None})
        raise InputError(f"None of {len(trials)} recipes can be used on this model: {' '.join(reasons[:3])}")
    kept = [trial for trial in usable if all(excess <= 0 for excess in beyond(trial, reference, settings).values())]
    nearest = min(usable, key=lambda trial: sum(max(0.0, one) for one in beyond(trial, reference, settings).values()))
    return Found(reference, trials, pareto(kept, settings), nearest)


def split(members: Records, seed: int) -> tuple[Records, Records]:
    """The members that models of a search are trained on, and those they are measured on."""
    order = torch.randperm(len(members), generator=generator(seed, "search", "held out"))
    count = max(1, int(HELD_OUT * len(members)))
    return members.take(order[count:]), members.take(order[:count])


def propose(trial: optuna.Trial, settings: SearchSettings) -> Recipe | None:
    """A recipe from the space, or None where every choice fell on leaving out.

    A parameter is asked for only where it matters, so that the sampler does not learn from what had no effect.
    """
    fine_tune = {"epochs": settings.epochs, "learning_rate": 4e-3}
    steps: list[dict[str, Any]] = []
    if trial.suggest_categorical("student", [False, True]):
        width, depth = (
            trial.suggest_float("width", 0.25, 1.0, step=0.125),
            trial.suggest_categorical("depth", [0.5, 1.0]),
        )
        if width < 1 or depth < 1:
            steps.append({"kind": "distill", "width": width, "depth": depth})
    pruned = trial.suggest_categorical("prune", ["none", "weights", "channels", "n:m"])
    if pruned != "none":
        sparsity = 0.5 if pruned == "n:m" else trial.suggest_float("sparsity", 0.1, 0.9, step=0.1)
        steps.append({"kind": "prune", "structure": pruned, "sparsity": sparsity, "fine_tune": fine_tune})
    shaped = trial.suggest_categorical("shape", ["none", "share", "factorize"])
    if shaped == "factorize":
        energy = trial.suggest_float("energy", 0.5, 0.95, step=0.05)
        steps.append({"kind": "factorize", "energy": energy, "fine_tune": fine_tune})
    elif shaped == "share":
        steps.append({"kind": "share", "clusters": trial.suggest_categorical("clusters", [4, 8, 16, 32, 64])})
    if shaped != "share":  # shared values would be rounded away
        bits = trial.suggest_categorical("bits", [0, 8, 4, 3, 2])
        if bits:
            activations = trial.suggest_categorical("activations", ["static", "float"])
            steps.append({"kind": "quantize", "weight_bits": bits, "activations": activations})
    if not steps:
        return None
    return RECIPES.parse(steps[0] if len(steps) == 1 else {"kind": "chain", "steps": steps})


def measure(
    recipe: Recipe | None,
    dense: nn.Module,
    own: Records,
    held_out: Records,
    data: Data,
    settings: SearchSettings,
    *,
    seed: int,
) -> TriedRecipe:
    """Applies one recipe and weighs the file it gives; on a failure, a trial that says why."""
    written = {} if recipe is None else recipe.model_dump(mode="json")
    try:
        module = dense
        if recipe is not None:
            module = recipe.apply(dense, own, data.bounds, seed=derive(seed, "search", recipe.model_dump_json()))
        model = to_onnx(module, data.shape)
        payload = len(encode(module))
        right = accuracy(OnnxTarget(model), held_out.x, held_out.y)
        latency = None
        if settings.times:
            row = interleaved_latency({"model": model}, data.shape, (settings.batch,))["model"][0]
            latency = float(row["p50"])
    except (NotApplicable, InputError, UnsafeInput) as error:
        return TriedRecipe(written, why_not=str(error))
    return TriedRecipe(written, right, len(held_out), payload, latency)


def values(trial: TriedRecipe, settings: SearchSettings) -> list[float]:
    """The objectives of a trial; of one that cannot be used, worse than any other's."""
    if trial.why_not is not None:
        return [0.0 if one == "accuracy" else 1e12 for one in settings.objectives]
    figures = {"accuracy": trial.accuracy, "payload": float(trial.payload_bytes), "latency": trial.latency_ms or 0.0}
    return [figures[one] for one in settings.objectives]


def beyond(trial: TriedRecipe, reference: TriedRecipe, settings: SearchSettings) -> dict[str, float]:
    """How far each limit is exceeded, by name; at most 0 where it is kept."""
    excess = {"usable": 0.0 if trial.why_not is None else 1.0}
    if settings.largest_payload is not None:
        excess["payload"] = trial.payload_bytes / settings.largest_payload - 1
    if settings.largest_latency is not None and trial.latency_ms is not None:
        excess["latency"] = trial.latency_ms / settings.largest_latency - 1
    if settings.largest_loss is not None:
        excess["loss"] = reference.accuracy - trial.accuracy - settings.largest_loss
    return excess


def pareto(trials: Sequence[TriedRecipe], settings: SearchSettings) -> list[TriedRecipe]:
    """Those that no other is at least as good as in every objective and better in one; each once, best first."""
    signs = [-1.0 if one == "accuracy" else 1.0 for one in settings.objectives]

    def costs(trial: TriedRecipe) -> list[float]:
        return [sign * value for sign, value in zip(signs, values(trial, settings), strict=True)]

    def dominated(trial: TriedRecipe) -> bool:
        mine = costs(trial)
        return any(
            theirs != mine and all(one <= other for one, other in zip(theirs, mine, strict=True))
            for theirs in map(costs, trials)
        )

    front = {str(costs(trial)): trial for trial in reversed(trials) if not dominated(trial)}
    return sorted(front.values(), key=costs)


def as_row(key: str, trial: TriedRecipe) -> dict[str, Any]:
    """A trial as JSON, to be kept between runs; `from_row` reads it again."""
    return {"key": key, **asdict(trial)}


def from_row(row: Mapping[str, Any]) -> tuple[str, TriedRecipe]:
    """Raises KeyError or TypeError for a row that `as_row` did not write."""
    fields = dict(row)
    return str(fields.pop("key")), TriedRecipe(**fields)
