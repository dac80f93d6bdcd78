"""Extraction: how faithful a copy of a digits net is, by queries, answers and strategy, and what training it costs.

Two targets: the CNN on which the peers' attacks are timed (digits at 28x28, 105,866 parameters) and the built-in
audit's (8x8, 10,810 parameters, residual). Means over seeds, each with its own halves, target and copy; the attacker
owns 299 records, 600 others judge. The two asked figures are shown for the five seeds on which the rule for further
rounds was chosen and for five fresh ones, answers and strategies for three of the fresh ones. `noticed`: on how many
seeds PRADA would notice the queries, at a threshold at which those 600 records pass. `fooled`: the target's error on
PGD examples of the copy, L-inf .1.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from contract import Row, alternate, arguments, cpu_seconds, publish
from torch import nn
from torch.nn import functional as F

SEEDS = {"seeds 0-4": range(5), "fresh seeds 5-9": range(5, 10)}
FEW = range(5, 8)  # seeds of what has no target
TARGETS = {100: 0.94, 300: 0.975}  # of the attacker who sees scores
ANSWERS: dict[str, dict[str, Any]] = {
    "scores": {"answers": "scores"},
    "rounded to 2 places": {"answers": "rounded"},
    "rounded to 1 place": {"answers": "rounded", "decimals": 1},
    "top1": {"answers": "top1"},
    "labels": {"answers": "labels"},
}


def peers_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def large(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=28, mode="bilinear", align_corners=False)


class Digits:
    """One seed's halves of the digits, and a net trained on one of them."""

    def __init__(
        self, build: Callable[[], nn.Module], shape: Callable[[torch.Tensor], torch.Tensor], seed: int
    ) -> None:
        from crushproof.targets.data.digits import load_digits
        from crushproof.targets.data.records import Records
        from crushproof.training.architecture import Architecture
        from crushproof.training.loop import Training, TrainingJob, train_many

        self.seed, self.data = seed, load_digits(seed)
        assert self.data.members is not None
        members, self.evaluation, self.attacker = (
            Records(shape(some.x), some.y) for some in (self.data.members, self.data.evaluation, self.data.attacker)
        )
        job = TrainingJob.of_one(Architecture("net", build), members, 1000 + seed, torch.device("cpu"))
        self.net = train_many(job, Training(epochs=9))[0].requires_grad_(False)

    def extract(self, budget: int, **settings: Any) -> Any:
        from crushproof.attacks.extraction.extract import extract

        return extract(self.net, self.attacker.x, budget=budget, seed=self.seed, **settings)

    def case(self, module: nn.Module) -> Any:
        from crushproof.attacks.case import Case
        from crushproof.targets.model import TorchTarget

        return Case(
            TorchTarget(module), module, module, self.net, self.evaluation, self.data.evaluation_ids.numpy(),
            self.attacker, self.data.bounds, self.data.classes,
        )  # fmt: skip

    def compressed(self) -> list[nn.Module]:
        """The net and two candidates, as many as an audit puts together of the built-in net."""
        from crushproof.compression.recipe import RECIPES
        from crushproof.compression.words import RECIPE_WORDS

        assert self.data.members is not None
        made = [
            RECIPES.parse(RECIPE_WORDS[name]).apply(self.net, self.data.members, self.data.bounds, seed=self.seed)
            for name in ("prune80", "int4")
        ]
        return [self.net, *(module.eval().requires_grad_(False) for module in made)]

    def audited(self, modules: list[nn.Module], *, together: bool) -> None:
        """The attack of an audit on each, with its five copies: those of all side by side, or each model's."""
        from dataclasses import replace

        from crushproof.attacks.extraction.extraction import Extraction
        from crushproof.attacks.extraction.teaching import question, teach

        attack = Extraction()
        cases = {str(at): self.case(module) for at, module in enumerate(modules)}
        taught = dict[str, Any]()
        if together:
            answered = {name: question(attack.attacker, case, seed=self.seed) for name, case in cases.items()}
            taught = teach(attack.attacker, answered, alike=True)
        for name, case in cases.items():
            attack.run(replace(case, prepared=taught.get(name)), seed=self.seed)


def asked_figures() -> list[Row]:
    """Fidelity of copies of the peers' CNN from scores, by budget and group of seeds, and what a call costs."""
    rows, seconds = [], list[float]()
    for group, seeds in SEEDS.items():
        digits = [Digits(peers_cnn, large, seed) for seed in seeds]
        for budget, target in TARGETS.items():
            found = list[float]()
            for one in digits:
                copied = list[Any]()
                seconds.append(cpu_seconds(lambda one=one, into=copied, n=budget: into.append(one.extract(n))))
                found.append(copied[0].fidelity(one.evaluation.x))
            setting = f"{budget} queries, scores, {group}, lowest {min(found):.3f}"
            rows.append(Row("fidelity, peers' CNN", setting, statistics.mean(found), "share", None, target, "higher"))
    return [*rows, Row("extract(), peers' CNN", "100 and 300 queries, median", statistics.median(seconds), "CPU s")]


def by_answers(digits: list[Digits], budget: int = 150) -> list[Row]:
    rows = []
    for words, settings in ANSWERS.items():
        copies = [(one, one.extract(budget, **settings)) for one in digits]
        found = [copy.fidelity(one.evaluation.x) for one, copy in copies]
        rows.append(Row("fidelity by answers", f"{budget} queries, {words}", statistics.mean(found), "share"))
    return rows


def by_strategy(digits: list[Digits], budget: int = 200) -> list[Row]:
    from crushproof.attacks.extraction.asking.strategies import STRATEGIES

    rows = []
    for answers in ("scores", "labels"):
        for strategy in STRATEGIES:
            found, noticed, fooled = list[float](), list[int](), list[float]()
            for one in digits:
                copy = one.extract(budget, answers=answers, strategy=strategy)
                x, y = one.evaluation.x, one.evaluation.y
                found.append(copy.fidelity(x))
                fooled.append(copy.transfer(x[:200], y[:200]))
                noticed.extend(queries for queries in [copy.noticed(x)] if queries is not None)
            after = f" after {statistics.median(noticed):.0f}" if noticed else ""
            seen = f"noticed {len(noticed)}/{len(digits)}{after}"
            setting = f"{budget} queries, {answers}, {strategy}, fooled {statistics.mean(fooled):.2f}, {seen}"
            rows.append(Row("fidelity by strategy", setting, statistics.mean(found), "share"))
    return rows


def stacking(one: Digits) -> list[Row]:
    """The attack of an audit on three models with their copies side by side, against one copy at a time."""
    from crushproof.attacks.extraction.copying import Tutor

    modules = one.compressed()

    def alone() -> None:
        with mock.patch.object(Tutor, "groups", lambda self, pupils: [[at] for at in range(len(pupils))]):
            one.audited(modules, together=False)

    together, by_model, apart = alternate(
        lambda: one.audited(modules, together=True), lambda: one.audited(modules, together=False), alone
    )
    setting = "3 models, 5 copies of each; peer: one at a time"
    return [
        Row("attack of an audit, built-in CNN", f"all together, {setting}", together, "CPU s", apart, 0.5),
        Row("attack of an audit, built-in CNN", f"each model's together, {setting}", by_model, "CPU s", apart),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    from crushproof.training.networks import digits_cnn

    builtin = [Digits(digits_cnn, lambda x: x, seed) for seed in FEW]
    rows = stacking(builtin[0])
    rows += asked_figures()
    rows += by_answers(builtin)
    rows += by_strategy(builtin)
    publish(rows, options.json)


if __name__ == "__main__":
    main()
