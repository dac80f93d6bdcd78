"""What an attacker asks of models and trains from their answers, the copies of several models side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...targets.data.records import Records
from ...targets.errors import NotApplicable
from ...targets.model import device_of
from ...targets.seeds import derive
from ...targets.serving.query_streams import shortest_distances
from ...targets.steps import Arrays, pulse
from ...training.architecture import Architecture
from ...training.loop import Training
from ..access import Ledger
from ..case import Case
from ..evasion.blocks import kept_at_cost
from ..evasion.categories import known_structure
from .answers import SEEN, Seen, as_logits, told
from .asking.queries import choose_labels, choose_queries
from .asking.strategies import ROUNDS, Asked, Strategy, ask, rounds_of
from .copying import Copy, Lesson, Pupil, Tutor
from .surrogate import families, guess, same_layers, surrogate_architecture
from .weights import WEIGHTS, check_copy, weights, with_state

UNQUERIED = "without-queries"  # the copy that shows what the queries bought


@dataclass(frozen=True)
class Attacker:
    """How it asks and trains; the fields are those of `Extraction`.

    Args:
        budgets: of each attacker, by the answers it sees, in their order.
    """

    budgets: tuple[tuple[Seen, tuple[int, ...]], ...]
    decimals: int
    strategy: Strategy
    training: Training
    least_steps: int
    most_rounds: int
    temperature: float

    @property
    def queries(self) -> dict[str, int]:
        """What each copy costs, by its name, in the order in which they are listed."""
        asked = {f"{answers}/{budget}": budget for answers, budgets in self.budgets for budget in budgets}
        return {**asked, UNQUERIED: 0}

    @property
    def strongest(self) -> str:
        """The copy from the most answers of who sees most of an answer."""
        return next(f"{sort}/{budgets[-1]}" for sort in SEEN for answers, budgets in self.budgets if answers == sort)

    @property
    def identity(self) -> dict[str, Any]:
        return {**asdict(self), "training": self.training.model_dump(mode="json")}

    @property
    def asked(self) -> int:
        """Answers of one model that it takes."""
        most = [budgets[-1] for _, budgets in self.budgets]
        return sum(most) if self.strategy in ROUNDS else max(most)

    @property
    def passes(self) -> float:
        """Records that copies of one model learn from: a round for each, two more of the largest, and another one for
        another architecture.
        """
        sizes = [budget for _, budgets in self.budgets for budget in budgets]
        on_the_way = [one for _, budgets in self.budgets for one in rounds_of(self.strategy, budgets[-1])]
        least, epochs = self.least_steps, self.training.epochs
        learnt = [*sizes, *[max(sizes)] * 3, *on_the_way]
        return float(sum(max(epochs * size, least * min(self.training.batch_size, size)) for size in learnt))

    def lesson(self, answers: Seen, x: Tensor, logits: Tensor, device: torch.device) -> Lesson:
        """What a copy is trained on by who sees these answers."""
        smoothing = self.training.label_smoothing
        told_of = told(logits.to(device), answers, self.temperature, smoothing, self.decimals)
        return Lesson(Records(x, logits.argmax(1)).to(device), *told_of)


@dataclass(frozen=True, eq=False)
class Answered:
    """What one model answered, and which copies of it are to be trained.

    Args:
        pupils: by the copy's name, in order.
        rivals: of the built-in architecture where the pupil's is the model's own, for the copies that may have one.
        distances: of the queries, by the sort of answers (`query_streams.shortest_distances`).
        known: the architecture of the pupils is the model's own.
        guessed: what it was taken for where it is not known, in words; empty: it is, or there was no choice.
        ledger: passes of copies that were trained on the way, and queries.
    """

    pupils: Mapping[str, Pupil]
    rivals: Mapping[str, Pupil]
    distances: Mapping[str, np.ndarray[Any, Any]]
    known: bool
    guessed: str
    ledger: Ledger


@dataclass(frozen=True, eq=False)
class Taught:
    """The copies of one model.

    Args:
        copies: in evaluation mode, by name, in order.
        builtin: names of those for which the built-in architecture was better than the model's own.
        kept: the name of the copy that the attacker keeps: the strongest, or the one from no queries where that gives
            more of the answers that both held out.
        distances, known, guessed: as in `Answered`.
        ledger: passes and queries.
    """

    copies: dict[str, nn.Module] = field(default_factory=dict)
    builtin: list[str] = field(default_factory=list)
    kept: str = ""
    distances: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    known: bool = False
    guessed: str = ""
    ledger: Ledger = field(default_factory=Ledger)

    def in_order(self, names: Sequence[str]) -> Taught:
        """The same, the copies in this order."""
        builtin = [name for name in names if name in self.builtin]
        return replace(self, copies={name: self.copies[name] for name in names}, builtin=builtin)


def question(attacker: Attacker, case: Case, *, seed: int) -> Answered:
    """Asks the case's model all that its copies are to learn.

    Raises:
        NotApplicable: it answers with values that are not finite, or nothing can be asked by this strategy.
    """
    ledger = Ledger()
    seed = derive(seed, "extraction")  # also keeps a copy's initial weights from being the target's own
    device, guessed = case.evaluation.x.device if case.parent is None else device_of(case.parent), ""
    structure = known_structure(case)
    architecture, known = surrogate_architecture(case.parent, case.evaluation, case.classes, tokens=structure.tokens)
    builtin, _ = surrogate_architecture(None, case.evaluation, case.classes, tokens=structure.tokens)
    other = known and not same_layers(architecture.blank(), builtin.blank())  # else a rival is but another draw

    def fresh(kind: Architecture, *labels: str | int) -> nn.Module:
        return kind.fresh(derive(seed, *labels)).to(device).requires_grad_(True)

    asked = _ask(attacker, case, partial(fresh, architecture), ledger, seed=seed)
    own = min(max(budgets[-1] for _, budgets in attacker.budgets), len(case.attacker))
    kinds = [] if known or structure.tokens else families(case.evaluation, case.classes, len(case.shipped))
    if kinds:
        strongest, _, most = attacker.strongest.partition("/")
        sort = next(answers for answers, _ in attacker.budgets if answers == strongest)
        shown = attacker.lesson(sort, *asked[sort].within(int(most)), device)
        tutor = Tutor(attacker.training, attacker.least_steps)
        architecture, guessed = guess(kinds, shown, tutor, ledger, seed=seed)
    owned = Records(
        choose_queries(case.attacker, own, seed=seed, structure=structure),
        choose_labels(case.attacker, own, seed=seed),
    ).to(device)

    pupils: dict[str, Pupil] = {}
    rivals: dict[str, Pupil] = {}
    distances: dict[str, np.ndarray[Any, Any]] = {}
    for answers, budgets in attacker.budgets:
        for budget in budgets:
            name = f"{answers}/{budget}"
            # labels alone say too little of how well a copy does
            whole = answers != "labels" and budget == budgets[-1]
            rounds, seeds = attacker.most_rounds if whole else 1, derive(seed, "train", name)
            lesson = attacker.lesson(answers, *asked[answers].within(budget), device)
            pupils[name] = Pupil(fresh(architecture, name), lesson, seeds, rounds)
            if other and whole:
                rivals[name] = replace(pupils[name], start=fresh(builtin, name, "built-in"))
        x, logits = asked[answers].within(budgets[-1])
        distances[answers] = shortest_distances(x, logits.argmax(1))
    classes = asked[attacker.budgets[0][0]].logits.shape[1]
    truth = Lesson(owned, F.one_hot(owned.y, classes).float())
    held = _among(owned.x, pupils[attacker.strongest])
    start = fresh(architecture, UNQUERIED)
    pupils[UNQUERIED] = Pupil(start, truth, derive(seed, "train", UNQUERIED), held=held)
    return Answered(pupils, rivals, distances, known, guessed, ledger)


def _among(own: Tensor, pupil: Pupil) -> Tensor:
    """Which of the attacker's own records, float32 [n, *shape], are among the queries that a pupil holds out: int64."""
    _, held = pupil.halves()
    asked = {record.numpy().tobytes() for record in pupil.lesson.records.x.cpu()[held]}
    return torch.tensor([at for at, record in enumerate(own.cpu()) if record.numpy().tobytes() in asked]).long()


def _ask(
    attacker: Attacker, case: Case, fresh: Callable[..., nn.Module], ledger: Ledger, *, seed: int
) -> dict[Seen, Asked]:
    """What each attacker asked; all the same where nobody chooses by what is answered.

    Args:
        fresh: an untrained copy, by labels that decide its weights.
    """
    structure = known_structure(case)

    def answer(x: Tensor) -> Tensor:
        ledger.queries += len(x)
        logits = as_logits(case.deployed.logits(x))
        if not torch.isfinite(logits).all():
            raise NotApplicable("The deployed model answers some queries with NaN or infinity; nothing can be learnt.")
        return logits

    def asked_by(answers: Seen, budgets: Sequence[int]) -> Asked:
        def teach(x: Tensor, logits: Tensor, number: int) -> nn.Module:
            labels = ("choice", answers, number)
            start = fresh(*labels)
            pupil = Pupil(start, attacker.lesson(answers, x, logits, device_of(start)), derive(seed, *labels))
            copy = Tutor(attacker.training, attacker.least_steps).copy(pupil)
            ledger.add(copy.spent)
            return copy.module

        return ask(attacker.strategy, case.attacker, budgets, answer, teach, seed=seed, structure=structure)

    if attacker.strategy in ROUNDS:
        return {answers: asked_by(answers, budgets) for answers, budgets in attacker.budgets}
    every = sorted({budget for _, budgets in attacker.budgets for budget in budgets})
    return dict.fromkeys(dict(attacker.budgets), asked_by(attacker.budgets[0][0], every))


def teach(attacker: Attacker, answered: Mapping[str, Answered], *, alike: bool = False) -> dict[str, Taught]:
    """The copies of models that an attacker has asked, all of one architecture, each kept as it is finished.

    The copy from no queries is the same for all, and trained once.

    Args:
        answered: by model; a name may be empty.
        alike: as `Tutor` has it: what becomes of a copy does not depend on the other models.
    """
    tutor = Tutor(attacker.training, attacker.least_steps, alike=alike)
    found = {
        model: Taught(distances=one.distances, known=one.known, guessed=one.guessed) for model, one in answered.items()
    }
    for model, one in answered.items():
        found[model].ledger.add(one.ledger)
    first = next(iter(answered.values()))
    rights = dict[tuple[str, str], int]()
    names, done, total = list(first.pupils), 0, sum(len(one.pupils) for one in answered.values())
    for part in tutor.groups(list(first.pupils.values())):
        together = [names[position] for position in part]
        at_once = max(1, tutor.size(first.pupils[together[0]]) // len(together))
        for some in range(0, len(answered), at_once):
            models = list(answered)[some : some + at_once]
            pupils, places = _side_by_side({model: answered[model] for model in models}, together)
            taught = cache(partial(tutor.copies, pupils))
            for (model, name), place in places.items():
                pulse("copy", done, total)
                done += 1
                start, rival = answered[model].pupils[name].start, answered[model].rivals.get(name)
                test = answered[model].pupils[attacker.strongest] if name in (attacker.strongest, UNQUERIED) else None
                train = partial(_trained, tutor, taught, place, rival, test)
                check = partial(check_copy, start, None if rival is None else rival.start)
                key = f"copy/{model}/{name}" if model else f"copy/{name}"
                kept = kept_at_cost(key, found[model].ledger, train, WEIGHTS, check)
                if bool(kept["built-in"].item()) and rival is not None:
                    found[model].builtin.append(name)
                    start = rival.start
                found[model].copies[name] = with_state(start, kept, "copy")
                rights[model, name] = int(kept["held-out"].sum())
    pulse("copy", total, total)
    for model in answered:
        better = rights[model, UNQUERIED] > rights[model, attacker.strongest]
        found[model] = replace(found[model], kept=UNQUERIED if better else attacker.strongest)
    return {model: one.in_order(names) for model, one in found.items()}


def _trained(
    tutor: Tutor,
    taught: Callable[[], Sequence[Copy]],
    place: int,
    rival: Pupil | None,
    test: Pupil | None,
    spent: Ledger,
) -> Arrays:
    return weights(tutor, taught()[place], rival, test, spent)


def _side_by_side(
    answered: Mapping[str, Answered], names: Sequence[str]
) -> tuple[list[Pupil], dict[tuple[str, str], int]]:
    """The pupils of these names, of each model, and where each one's is among them."""
    pupils: list[Pupil] = []
    places: dict[tuple[str, str], int] = {}
    first = next(iter(answered))
    for model, one in answered.items():
        for name in names:
            pupil, known = one.pupils[name], answered[first].pupils[name]
            shared = name == UNQUERIED and pupil.lesson.answers.shape == known.lesson.answers.shape
            if shared and pupil.held is not None and known.held is not None:
                shared = torch.equal(pupil.held, known.held)
            if model != first and shared:
                places[model, name] = places[first, name]
                continue
            places[model, name] = len(pupils)
            pupils.append(pupil)
    return pupils, places
