"""Who takes part in an audit: the dense models (plain and hardened), and every candidate made from them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..attacks.attack import ATTACKS, Attack
from ..compression.recipe import RECIPES, Recipe
from ..defenses.defense import DEFENSES, CompressionDefense, Defense, TrainingDefense
from ..targets.errors import InputError, NotApplicable
from ..targets.records import Bounds
from ..training.architecture import Architecture
from ..training.trainer import Trainer
from .files import FinishedFile
from .plan import Plan
from .presets import ATTACK_PRESETS, RECIPE_WORDS
from .subject import DenseModel, Subject

PLAIN = "dense"


@dataclass(frozen=True)
class Dense:
    """An uncompressed model: the plain one, or one hardened by a training defense; parent of candidates."""

    name: str
    defense: TrainingDefense | None
    architecture: Architecture
    trainer: Trainer


@dataclass(frozen=True)
class Contender:
    """One model that is deployed and attacked.

    Args:
        parent: the dense model it came from, or that it is; None for a finished file about which nothing is known.
        recipe: None for a dense model, which is audited as it is; of a finished file, how it is declared to be made.
        file: the finished file that is deployed; None: what the recipe makes, or the dense model as it was trained.
        draws: a random defense's other draws of the recipe, each audited beside the one that is shipped.
    """

    name: str
    parent: Dense | None
    recipe: Recipe | None
    defense: Defense | None = None
    control: bool = False
    draws: tuple[Recipe, ...] = ()
    file: FinishedFile | None = None

    @property
    def is_dense(self) -> bool:
        return self.parent is not None and self.parent.name == self.name

    @property
    def dense(self) -> Dense:
        """The parent of a contender that has one."""
        assert self.parent is not None, f"{self.name} came from no known model"
        return self.parent

    @property
    def baselines(self) -> list[str]:
        """Names of the models it is compared with: its own parent first, then the plain dense model."""
        if self.parent is None:
            return []
        names = [] if self.is_dense else [self.parent.name]
        return names if self.parent.name == PLAIN else [*names, PLAIN]

    @property
    def touches_members_after_dp(self) -> bool:
        """Compression that looks at members voids the epsilon of a parent trained with differential privacy."""
        private = self.parent is not None and self.parent.defense is not None and self.parent.defense.kind == "dp-sgd"
        return private and self.recipe is not None and self.recipe.touches_records


@dataclass(frozen=True)
class Lineup:
    dense: tuple[Dense, ...]  # the plain one first
    contenders: tuple[Contender, ...]  # the dense ones first, then the plan's candidates in its order
    attacks: tuple[Attack, ...]

    def contender(self, name: str) -> Contender:
        return next(contender for contender in self.contenders if contender.name == name)


def assemble(plan: Plan, subject: Subject) -> Lineup:
    """Resolves the plan's recipes, defenses and attacks.

    Raises:
        InputError: an unknown or ill-defined technique, named with its candidate.
    """
    plain = None if subject.model is None else Dense(PLAIN, None, subject.model.architecture, subject.model.trainer)
    dense = {} if plain is None else {PLAIN: plain}
    candidates: list[Contender] = []
    for name, entry in plan.candidates.items():
        try:
            recipe = None if entry.recipe is None else RECIPES.parse(_expand(entry.recipe))
            defense = None if entry.defense is None else DEFENSES.parse(entry.defense)
        except InputError as error:
            raise InputError(f"Candidate {name!r}: {error}") from None
        if defense is not None and subject.data.regression:
            raise InputError(f"Candidate {name!r}: the defense {defense.kind} is one of classifiers: leave it out.")
        parent = plain
        draws: tuple[Recipe, ...] = ()
        try:
            if isinstance(defense, TrainingDefense) and subject.model is not None:
                parent = dense.setdefault(
                    _dense_name(defense, dense), _harden(defense, subject.model, subject.data.bounds, dense)
                )
            elif isinstance(defense, CompressionDefense):
                if recipe is None:
                    raise InputError(f"defense {defense.kind!r} hardens a recipe, and there is none.")
                recipe, *others = defense.recipes(recipe)
                draws = tuple(others)
        except (InputError, NotApplicable) as error:
            raise InputError(f"Candidate {name!r}: {error}") from None
        candidates.append(
            Contender(name, parent, recipe, defense, entry.control, draws, subject.files.get(name)),
        )
    references = [
        Contender(one.name, one, None, one.defense, file=subject.files.get(one.name)) for one in dense.values()
    ]
    return Lineup(tuple(dense.values()), (*references, *candidates), _attacks(plan))


def _expand(recipe: object) -> object:
    return RECIPE_WORDS.get(recipe, recipe) if isinstance(recipe, str) else recipe


def _attacks(plan: Plan) -> tuple[Attack, ...]:
    raw = ATTACK_PRESETS[plan.attacks] if isinstance(plan.attacks, str) else plan.attacks
    return tuple(ATTACKS.parse(item) for item in raw)


def _dense_name(defense: TrainingDefense, dense: dict[str, Dense]) -> str:
    """One hardened dense model per distinct defense; a second of the same kind gets a number."""
    same = [name for name, one in dense.items() if one.defense == defense]
    return same[0] if same else numbered(f"{PLAIN}-{defense.kind}", dense)


def numbered(name: str, taken: Collection[str], reserved: Collection[str] = ()) -> str:
    """`name`, or `name-2`, `name-3` ... when it is taken: the first that is neither `taken` nor another's own name."""
    number, free = 2, name
    while free in taken or (free != name and free in reserved):
        free, number = f"{name}-{number}", number + 1
    return free


def _harden(defense: TrainingDefense, model: DenseModel, bounds: Bounds, dense: dict[str, Dense]) -> Dense:
    plain = model.architecture
    architecture = Architecture(f"{plain.name}|{defense.kind}", lambda: defense.adapt(plain.build()))
    return Dense(_dense_name(defense, dense), defense, architecture, defense.trainer(model.trainer, bounds))
