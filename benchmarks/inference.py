"""The attackers beside the membership attack: what each finds where there is something, and where there is nothing.

    python benchmarks/inference.py [--seeds 1000] [--json FILE]

Labels alone, all released versions together, all records of a person together, and the odds of single records. First
the scores on drawn margins, over many seeds: how often the 95 % intervals of a target that was trained on none of the
records hold .5 and 1 %. Then digits, a small MLP with 16 shadows, records of persons with three each: targets that were
trained on the members (planted), and targets that were trained on none of them, members by a coin (null).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from contract import Row, parser, publish
from torch import nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.case import Case
from crushproof.attacks.inference.attacked import Attacked
from crushproof.attacks.inference.calibration import calibrated
from crushproof.attacks.inference.choosing import over_shadows
from crushproof.attacks.inference.exposure import log_odds, most_exposed
from crushproof.attacks.inference.label_only import LabelOnly
from crushproof.attacks.inference.probing import features
from crushproof.attacks.inference.release_set import alone, chosen, together
from crushproof.attacks.inference.sensitivity import scored
from crushproof.attacks.inference.user_level import PersonCase, UserLevel, person_scores
from crushproof.attacks.membership.case import ShadowSignals
from crushproof.attacks.membership.persons import masks_by_person
from crushproof.attacks.membership.population import PopulationPlan, masks, plan_population
from crushproof.attacks.membership.scoring import scores
from crushproof.attacks.membership.signals import margin, replay, shadow_signals
from crushproof.attacks.statistics.ranking import auc, tpr_at_fpr
from crushproof.compression.recipe import RECIPES, work_of
from crushproof.targets.data.data import Data
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Persons, Records
from crushproof.targets.model import TorchTarget
from crushproof.training.architecture import Architecture
from crushproof.training.lessons import together as worked
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import Mlp
from crushproof.training.trainer import BuiltinTrainer

CPU, K, TARGETS, NULLS = torch.device("cpu"), 16, 8, 20
MLP, TRAINER = Architecture("mlp", lambda: Mlp(64, 10, (64, 128))), BuiltinTrainer(Training(epochs=15))
VERSIONS = {
    "int8": {"kind": "quantize", "weight_bits": 8},
    "int4": {"kind": "quantize", "weight_bits": 4},
    "prune80": {"kind": "prune", "sparsity": 0.8, "fine_tune": {"epochs": 3, "learning_rate": 4e-3}},
}
Found = dict[str, tuple[np.ndarray, np.ndarray]]  # by name: scores and who is a member


def drawn(seed: int, n: int = 400) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Of a target that knows none of n records, by shadows that know half: name, scores, who is called a member."""
    stream, inside, is_member = np.random.default_rng(seed), masks(n, K, seed), np.arange(n) < n // 2
    hard, every = stream.normal(2, 3, n), np.ones((1, K), dtype=bool)

    def margins(side: np.ndarray) -> np.ndarray:
        common = stream.normal(size=(len(side), 1, n))
        return (hard + side[:, None] + 0.5 * common + stream.normal(size=(len(side), 3, n))).astype(np.float32)

    phi, shadows = margins(np.zeros((1, n))), margins(inside)
    signals = ShadowSignals(inside, shadows[:, 0])
    yield "labels alone", calibrated(np.exp(phi[0, 0] / 5), signals), is_member
    for name, score in together(phi.astype(float), shadows, inside, every).items():
        yield f"release set, {name}", score[0], is_member
    person = np.concatenate([np.arange(n // 2) // 3, np.arange(n // 2) // 3 + (n // 2 + 2) // 3])
    by_person = masks_by_person(person, K, seed)
    given = ShadowSignals(by_person, margins(by_person)[:, 0])
    of_persons = np.arange(person.max() + 1) < (person.max() + 1) // 2
    for name, score in person_scores(phi[:, 0].astype(float), given, person, every).items():
        yield f"persons, {name}", score[0], of_persons


def levels(seeds: int) -> list[Row]:
    held: dict[str, list[tuple[bool, bool | None]]] = {}
    for seed in range(seeds):
        for name, score, is_member in drawn(seed):
            area, rate = auc(score, is_member), None
            if (~is_member).sum() >= 100:
                found = tpr_at_fpr(score, is_member, 0.01)
                rate = found.low <= 0.01 <= found.high
            held.setdefault(name, []).append((area.low <= 0.5 <= area.high, rate))
    rows = []
    for name, found in held.items():
        rows.append(
            Row(name, f"null, {seeds} seeds: AUC holds .5", 100 * float(np.mean([one for one, _ in found])), "%",
                target=93.5, better="higher")
        )  # fmt: skip
        rates = [one for _, one in found if one is not None]
        if rates:
            rows.append(
                Row(name, f"null, {seeds} seeds: TPR holds 1 %", 100 * float(np.mean(rates)), "%",
                    target=93.5, better="higher")
            )  # fmt: skip
    return rows


def of_persons(data: Data) -> Data:
    """With persons of three records each, at random."""
    assert data.members is not None
    stream = np.random.default_rng(0)
    sides = [torch.from_numpy(stream.permutation(np.arange(len(one)) // 3)) for one in (data.members, data.non_members)]
    return replace(data, persons=Persons(sides[0], sides[1] + 10_000))


def compressed(
    modules: list[nn.Module], subsets: list[torch.Tensor], plan: PopulationPlan, data: Data
) -> dict[str, list[nn.Module]]:
    found = {}
    for name, spec in VERSIONS.items():
        recipe = RECIPES.parse(spec)
        work = [
            work_of(recipe, module, plan.records.take(subset), data.bounds, seed=at)
            for at, (module, subset) in enumerate(zip(modules, subsets, strict=True))
        ]
        found[name] = worked(work)
    return found


def attacks(
    versions: dict[str, nn.Module],
    shadows: dict[str, ShadowSignals],
    plan: PopulationPlan,
    data: Data,
    choice: dict,
    at: int,
) -> Found:
    """Every attacker's headline on one target; `plan.is_member` says who is called a member."""
    module, signals = TorchTarget(versions["int8"]), shadows["int8"]
    phi = {name: margin(TorchTarget(one).logits(plan.targets.x), plan.targets.y) for name, one in versions.items()}
    stacked, own = np.stack([*phi.values()])[None].astype(float), np.stack([one.phi for one in shadows.values()], 1)
    every = np.ones((1, K), dtype=bool)
    held = {**together(stacked, own, signals.inside, every), **alone(stacked, own, signals.inside, every, [*phi])}
    members, others = (np.flatnonzero(side)[:200] for side in (plan.is_member, ~plan.is_member))
    rows = np.concatenate([members, others])
    attacked = Attacked(
        plan.targets.take(torch.from_numpy(rows)), rows, plan.ids[rows], plan.is_member[rows],
        ShadowSignals(signals.inside[:, rows], signals.phi[:, rows]),
    )  # fmt: skip
    case = Case(
        module, None, None, None, attacked.records, attacked.ids, data.attacker, data.bounds, 10, prepared=attacked
    )
    labels = LabelOnly().run(case, seed=at)
    assert plan.person is not None
    persons = UserLevel()._evidence(phi["int8"], PersonCase(plan, signals), plan.person, Ledger())
    first = np.unique(plan.person, return_index=True)[1]
    lira, rmia = (how(stacked[:, 0], signals)[0] for how in (scores.lira, scores.rmia))
    return {
        "one record, scores, LiRA": (lira, plan.is_member),
        "one record, scores, RMIA": (rmia, plan.is_member),
        "labels alone, distance": (labels.arrays["score/distance"], attacked.is_member),
        "labels alone, distance calibrated": (labels.arrays["score/distance/calibrated"], attacked.is_member),
        "labels alone, copies": (labels.arrays["score/copies"], attacked.is_member),
        "release set, headline": (held[choice["headline_auc"]][0], plan.is_member),
        "release set, largest alone": (held[choice["largest_auc"]][0], plan.is_member),
        "persons, headline": (persons.arrays[f"score/{persons.summary['headline_auc']}"], plan.is_member[first]),
    }


def end_to_end() -> list[Row]:
    data = of_persons(load_digits(0))
    plan = plan_population(data, K, seed=0)
    shadows = plan.fit(TRAINER, MLP, first=0, last=K, device=CPU)
    signals = {
        name: shadow_signals(plan, shadows, recipe=RECIPES.parse(spec), bounds=data.bounds)
        for name, spec in VERSIONS.items()
    }
    choice = chosen(np.stack([one.phi for one in signals.values()], 1), plan.inside, [*VERSIONS])
    half = plan.attacked // 2
    members = torch.cat([torch.arange(half), torch.arange(plan.attacked, len(plan.records))])
    planted = TRAINER.fit(TrainingJob(MLP, plan.records, [members] * TARGETS, [*range(100, 100 + TARGETS)], CPU))
    rest = torch.arange(plan.attacked, len(plan.records))
    others = Records(
        torch.cat([plan.records.x[rest], data.attacker.x]), torch.cat([plan.records.y[rest], data.attacker.y])
    )
    whole = replace(
        plan,
        records=Records(torch.cat([plan.records.x, data.attacker.x]), torch.cat([plan.records.y, data.attacker.y])),
    )
    free = torch.cat([rest, torch.arange(len(plan.records), len(whole.records))])
    coin = torch.Generator().manual_seed(0)
    subsets = [free[torch.randperm(len(others), generator=coin)[:500]] for _ in range(NULLS)]
    null = BuiltinTrainer(Training(epochs=6)).fit(TrainingJob(MLP, whole.records, subsets, [*range(NULLS)], CPU))
    rows: list[Row] = []
    assert plan.person is not None
    for what, modules, taken in (("planted", planted, [members] * TARGETS), ("null", null, subsets)):
        versions = compressed(modules, taken, whole, data)
        found: dict[str, list[tuple[float, float, bool]]] = {}
        for at in range(len(modules)):
            own = plan
            if what == "null":  # members by a coin, person by person
                own = replace(plan, is_member=masks_by_person(plan.person, 2 * NULLS, 7)[2 * at])
            told = attacks({name: one[at] for name, one in versions.items()}, signals, own, data, choice, at)
            for name, (score, is_member) in told.items():
                area, rate = auc(score, is_member), tpr_at_fpr(score, is_member, 0.01)
                found.setdefault(name, []).append((area.estimate, rate.estimate, area.low <= 0.5 <= area.high))
        for name, ones in found.items():
            areas, rates, held = (np.array(one) for one in zip(*ones, strict=True))
            if what == "null":
                rows.append(
                    Row(
                        name,
                        f"null, digits, {NULLS} targets: AUC holds .5",
                        float(held.sum()),
                        "",
                        target=17,
                        better="higher",
                    )
                )
            else:
                rows.append(Row(name, f"planted, digits, mean of {TARGETS}: AUC", float(areas.mean()), ""))
                rows.append(
                    Row(name, f"planted, digits, mean of {TARGETS}: TPR at 1 %", 100 * float(rates.mean()), "%")
                )
    return rows


def mislabelled() -> list[Row]:
    """50 members with a wrong label, learned by heart."""
    found = []
    for seed in range(3):
        data = load_digits(0)
        plan = plan_population(data, K, seed=seed)
        stream, half = np.random.default_rng(seed), plan.attacked // 2
        wrong = stream.choice(half, 50, replace=False)
        y = plan.records.y.clone()
        y[wrong] = (y[wrong] + torch.from_numpy(stream.integers(1, 10, 50))) % 10
        plan = replace(plan, records=Records(plan.records.x, y))
        trainer = BuiltinTrainer(Training(epochs=40))
        shadows = plan.fit(trainer, MLP, first=0, last=K, device=CPU)
        signals = shadow_signals(plan, shadows, recipe=None, bounds=data.bounds)
        members = torch.cat([torch.arange(half), torch.arange(plan.attacked, len(plan.records))])
        module = trainer.fit(TrainingJob(MLP, plan.records, [members], [77], CPU))[0]
        odds = log_odds(margin(TorchTarget(module).logits(plan.targets.x), plan.targets.y), signals)
        found.append(len({*most_exposed(odds[:half], 75).tolist()} & {*wrong.tolist()}))
    return [
        Row(
            "exposure",
            "50 mislabelled records, of them among the 75 most exposed; least of 3",
            min(found),
            "",
            target=45,
            better="higher",
        )
    ]


def steadiness(seeds: int) -> list[Row]:
    """Planted: shadows that answer more steadily on what they know; null; and pruned nets on digits."""
    rows, n = [], 300
    for what, gap in (("planted, steadier by a deviation", 1.0), ("null", 0.0)):
        found: dict[str, list] = {}
        for seed in range(seeds):
            stream, inside = np.random.default_rng(seed), masks(n, K, seed)
            truth = np.arange(n) < n // 2
            both = np.vstack([inside, truth])
            known = stream.normal(size=(K + 1, n, 6)).astype(np.float32)
            known[:, :, 1] -= gap * both
            for name, score in scored(known[-1], known[:-1], inside, seed)[0].items():
                found.setdefault(name, []).append(auc(score, truth))
        for name, ones in found.items():
            if gap:
                mean = float(np.mean([one.estimate for one in ones]))
                rows.append(Row(f"steadiness, {name}", f"{what}, {seeds} seeds: AUC", mean, ""))
            else:
                share = 100 * float(np.mean([one.low <= 0.5 <= one.high for one in ones]))
                rows.append(Row(f"steadiness, {name}", f"null, {seeds} seeds: AUC holds .5", share, "%"))
    data = load_digits(0)
    plan = plan_population(data, K, seed=0)
    shadows = BuiltinTrainer(Training(epochs=40)).fit(
        TrainingJob(MLP, plan.records, [plan.subset(at) for at in range(K)], plan.seeds, CPU)
    )
    pruned = {"kind": "prune", "sparsity": 0.8, "fine_tune": {"epochs": 10, "learning_rate": 4e-3}}
    for what, modules in (
        ("dense", shadows),
        ("pruned", replay(plan, shadows, recipe=RECIPES.parse(pruned), bounds=data.bounds)),
    ):
        known = np.stack([features(TorchTarget(one), plan.targets, data, 8, seed=0) for one in modules])
        for name, one in over_shadows(scored(known[0], known, plan.inside, 0)[1], plan.inside).items():
            rows.append(
                Row(f"steadiness, {name}", f"digits, {what}, mean of {K} shadows as targets: AUC", one.auc_mean, "")
            )
    return rows


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=1000)
    given = options.parse_args()
    torch.set_num_threads(1)
    publish([*levels(given.seeds), *mislabelled(), *steadiness(given.seeds // 10), *end_to_end()], given.json)


if __name__ == "__main__":
    main()
