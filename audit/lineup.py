"""Who takes part in an audit: the dense models (plain and hardened), and every candidate made from them."""

from __future__ import annotations

from dataclasses import dataclass

from ..attacks.attack import ATTACKS, Attack
from ..compression.recipe import RECIPES, Recipe
from ..defenses.defense import DEFENSES, CompressionDefense, Defense, TrainingDefense
from ..targets.errors import InputError, NotApplicable
from ..training.architecture import Architecture
from ..training.trainer import Trainer
from .plan import Plan
from .presets import ATTACK_PRESETS, RECIPE_WORDS
from .subject import Subject

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
        recipe: None for a dense model, which is audited as it is.
        draws: a random defense's other draws of the recipe, each audited beside the one that is shipped.
    """

    name: str
    parent: Dense
    recipe: Recipe | None
    defense: Defense | None = None
    control: bool = False
    draws: tuple[Recipe, ...] = ()

    @property
    def baselines(self) -> list[str]:
        """Names of the models it is compared with: its own parent first, then the plain dense model."""
        names = [] if self.recipe is None else [self.parent.name]
        return names if self.parent.name == PLAIN else [*names, PLAIN]

    @property
    def touches_members_after_dp(self) -> bool:
        """Compression that looks at members voids the epsilon of a parent trained with differential privacy."""
        private = self.parent.defense is not None and self.parent.defense.kind == "dp-sgd"
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
    plain = Dense(PLAIN, None, subject.architecture, subject.trainer)
    dense = {PLAIN: plain}
    candidates: list[Contender] = []
    for name, entry in plan.candidates.items():
        try:
            recipe = None if entry.recipe is None else RECIPES.parse(_expand(entry.recipe))
            defense = None if entry.defense is None else DEFENSES.parse(entry.defense)
        except InputError as error:
            raise InputError(f"Candidate {name!r}: {error}") from None
        parent = plain
        draws: tuple[Recipe, ...] = ()
        try:
            if isinstance(defense, TrainingDefense):
                parent = dense.setdefault(_dense_name(defense, dense), _harden(defense, subject, dense))
            elif isinstance(defense, CompressionDefense):
                if recipe is None:
                    raise InputError(f"defense {defense.kind!r} hardens a recipe, and there is none.")
                recipe, *others = defense.recipes(recipe)
                draws = tuple(others)
        except (InputError, NotApplicable) as error:
            raise InputError(f"Candidate {name!r}: {error}") from None
        if recipe is None:
            raise InputError(f"Candidate {name!r} has no recipe. The dense models are audited without being listed.")
        candidates.append(Contender(name, parent, recipe, defense, entry.control, draws))
    references = [Contender(one.name, one, None, one.defense) for one in dense.values()]
    return Lineup(tuple(dense.values()), (*references, *candidates), _attacks(plan))


def _expand(recipe: object) -> object:
    return RECIPE_WORDS.get(recipe, recipe) if isinstance(recipe, str) else recipe


def _attacks(plan: Plan) -> tuple[Attack, ...]:
    raw = ATTACK_PRESETS[plan.attacks] if isinstance(plan.attacks, str) else plan.attacks
    return tuple(ATTACKS.parse(item) for item in raw)


def _dense_name(defense: TrainingDefense, dense: dict[str, Dense]) -> str:
    """One hardened dense model per distinct defense; a second of the same kind gets a number."""
    same_kind = [one for one in dense.values() if one.defense is not None and one.defense.kind == defense.kind]
    for one in same_kind:
        if one.defense == defense:
            return one.name
    return f"{PLAIN}-{defense.kind}" + (f"-{len(same_kind) + 1}" if same_kind else "")


def _harden(defense: TrainingDefense, subject: Subject, dense: dict[str, Dense]) -> Dense:
    plain = subject.architecture
    architecture = Architecture(f"{plain.name}|{defense.kind}", lambda: defense.adapt(plain.build()))
    return Dense(
        _dense_name(defense, dense), defense, architecture, defense.trainer(subject.trainer, subject.data.bounds)
    )
