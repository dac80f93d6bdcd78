"""Evasion beside its peers: the same nets, records and radius, one thread, CPU seconds, in turns, median of three.

    python benchmarks/evasion.py [--only PART ...] [--json FILE]

Two CNNs of 107,000 parameters on scikit-learn's digits at 16x16 (nothing is downloaded), one trained plainly and one
adversarially, and a radius at which the first keeps little and the second about half. PART: pgd, targeted, autoattack,
square, hop-skip-jump or overhead. `standard` is the whole call `evade(budget="standard")`, its trust flags included;
other rows of ours are one part of the attack, on records that the net classifies right. Robust accuracy is that of the
net on what came back, cut off at epsilon and [0, 1].

Peers that are missing are rows without a figure. They are installed beside this project, without what they ask for
(another torch, among others):

    pip install --no-deps adv-lib==0.2.8 adversarial-robustness-toolbox==1.20.1 foolbox==3.3.4 eagerpy==0.30.0 \
        torchattacks==3.5.1 GitPython gitdb smmap requests
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from contract import Row, alternate, parser, publish
from evasion_peers import (
    AUTOATTACK,
    HOP_SKIP_JUMP,
    HOPS,
    PGD,
    SQUARE,
    SQUARE_QUERIES,
    STEPS,
    TARGETED,
    Peers,
    Subject,
    Work,
    present,
)
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.attacks.access import Ledger
from crushproof.attacks.evasion.black_box.hop_skip_jump import HopSkipJump
from crushproof.attacks.evasion.black_box.square import Square
from crushproof.attacks.evasion.blocks import at_once, seek
from crushproof.attacks.evasion.call.attackable import attackable, case_of
from crushproof.attacks.evasion.engine import Perturber, Search
from crushproof.attacks.evasion.evade import evade
from crushproof.attacks.evasion.gradient.apgd_targeted import ApgdTargeted
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.defenses.adversarial_training import AdversarialTraining
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Bounds, Records
from crushproof.training.architecture import Architecture
from crushproof.training.ball import TOLERANCE, Ball
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.trainer import BuiltinTrainer

FEW, MANY = 200, 500  # records: of single attacks, and of the strongest ones
TRAINED, EPSILON = 0.1, 0.12  # the radius of adversarial training, and of the attacks
FASTER = {"ART": 1 / 2.5}  # of ART's time; of anybody's:
FASTEST = 1 / 1.5
TARGETED_COST, AUTOATTACK_COST = 0.4, {"standard net": 0.25, "adversarially trained": 0.12}
HOP_COST, OVERHEAD = 1 / 8, 1.15


def cnn() -> nn.Module:
    """107,318 parameters on images of 16x16."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 196), nn.ReLU(), nn.Linear(196, 10),
    )  # fmt: skip


def halves() -> tuple[Records, Records]:
    """The digits that the nets are trained on, and the others, at 16x16."""
    data = load_digits()
    assert data.members is not None
    return _large(data.members), _large(data.non_members)


def _large(records: Records) -> Records:
    return Records(F.interpolate(records.x, size=16, mode="bilinear", align_corners=False), records.y)


def subjects() -> list[Subject]:
    members, others = halves()
    training = Training(epochs=12)
    job = TrainingJob.of_one(Architecture("cnn", cnn), members, 0, torch.device("cpu"))
    plain = BuiltinTrainer(training)
    hard = AdversarialTraining(epsilon=TRAINED, steps=4, training=training).trainer(plain, Bounds.of(0, 1))
    nets = {"standard net": plain.fit(job)[0], "adversarially trained": hard.fit(job)[0]}
    return [
        Subject(name, net.eval().requires_grad_(False), others.x[:MANY].clone(), others.y[:MANY], EPSILON)
        for name, net in nets.items()
    ]


def one_part(subject: Subject, part: Perturber) -> Work:
    """One part of the attack as an audit runs it."""
    opened = attackable(subject.net, tuple(subject.x.shape[1:]))
    case = case_of(opened, Records(subject.x, subject.y))

    def work() -> Tensor:
        ledger = Ledger(queries=len(subject.x))
        right = case.deployed.logits(subject.x).argmax(1) == subject.y
        ball = Ball("linf", subject.epsilon, subject.x, Bounds.of(0, 1))
        found = seek(
            part, case, case.evaluation, case.ids, ball, among=right, seed=0, ledger=ledger, batch=at_once(case)
        )
        return torch.where(found.fooled[:, None, None, None], found.best, subject.x)

    return work


def standard(subject: Subject) -> Work:
    return lambda: evade(subject.net, subject.x, subject.y, epsilon=subject.epsilon).adversarial


def robust(subject: Subject, adversarial: Tensor) -> float:
    """The share of records, in [0, 1], that the net still classifies right."""
    most = subject.epsilon + TOLERANCE
    change = (adversarial.detach() - subject.x).clamp(-most, most)
    with torch.no_grad():
        answers = subject.net((subject.x + change).clamp(0, 1)).argmax(1)
    return float((answers == subject.y).double().mean())


def timed(works: dict[str, Work], rounds: int = 3) -> tuple[dict[str, float], dict[str, Tensor]]:
    """CPU seconds of each work and what it returned the last time, all in turns."""
    returned: dict[str, Tensor] = {}

    def noted(name: str) -> Callable[[], None]:
        return lambda: returned.update({name: works[name]()})

    seconds = alternate(*(noted(name) for name in works), rounds=rounds)
    return dict(zip(works, seconds, strict=True)), returned


def beside(
    subject: Subject, ours: dict[str, Work], peers: Peers
) -> tuple[dict[str, float], dict[str, float], list[Row]]:
    """CPU seconds and robust accuracy of our works and of the peers', and a row for each peer that is missing."""
    works, missing = present(peers, subject)
    seconds, returned = timed({**ours, **works})
    left = {name: robust(subject, x) for name, x in returned.items()}
    return seconds, left, [Row(f"beside {name}, {subject.name}", why, None, "") for name, why in missing.items()]


def pgd_rows(subject: Subject) -> Iterator[Row]:
    subject = subject.first(FEW)
    seconds, left, missing = beside(subject, {"ours": one_part(subject, Pgd(steps=STEPS))}, PGD)
    yield from missing
    peers = [name for name in seconds if name != "ours"]
    for name in peers:
        setting = f"{FEW} records, beside {name}; robust {left['ours']:.3f} / {left[name]:.3f}"
        target = FASTER.get(name, FASTEST)
        yield Row(f"PGD-{STEPS}, {subject.name}", setting, seconds["ours"], "CPU s", seconds[name], target)
    if peers:
        lowest = min(left[name] for name in peers)
        yield Row(f"PGD-{STEPS}, {subject.name}", "robust accuracy, peers' lowest", left["ours"], "", target=lowest)


def targeted_rows(subject: Subject) -> Iterator[Row]:
    ours = {"APGD-T": one_part(subject, ApgdTargeted(steps=20, classes=9)), "standard": standard(subject)}
    seconds, left, missing = beside(subject, ours, TARGETED)
    yield from missing
    for name in ours if not missing else ():
        setting = f"{MANY} records, beside adv-lib's APGD-T"
        yield Row(f"{name}, {subject.name}", setting, seconds[name], "CPU s", seconds["adv-lib"], TARGETED_COST)
        yield Row(f"{name}, {subject.name}", "robust accuracy, beside it", left[name], "", target=left["adv-lib"])


def autoattack_rows(subject: Subject) -> Iterator[Row]:
    seconds, left, missing = beside(subject, {"standard": standard(subject)}, AUTOATTACK)
    yield from missing
    if not missing:
        setting = f"{MANY} records, beside torchattacks' AutoAttack"
        cost, peer = AUTOATTACK_COST[subject.name], seconds["torchattacks"]
        yield Row(f"standard, {subject.name}", setting, seconds["standard"], "CPU s", peer, cost)
        allowed, setting = round(MANY * left["torchattacks"]) + 1.0, "records left; AutoAttack leaves one less"
        yield Row(f"standard, {subject.name}", setting, MANY * left["standard"], "", target=allowed)


@contextmanager
def passes(net: nn.Module) -> Iterator[list[tuple[int, bool]]]:
    """The passes through a net and its copies inside the block: how many records, and whether with gradients."""
    noted: list[tuple[int, bool]] = []

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        noted.append((len(inputs[0]), output.requires_grad))

    hook = net.register_forward_hook(note)
    try:
        yield noted
    finally:
        hook.remove()


def square_rows(subject: Subject) -> Iterator[Row]:
    subject = subject.first(FEW)
    works, missing = present(SQUARE, subject)
    yield from (Row(f"beside {name}, {subject.name}", why, None, "") for name, why in missing.items())
    works = {"ours": one_part(subject, Square(queries=SQUARE_QUERIES)), **works}
    clean = robust(subject, subject.x)
    seconds, returned = timed(works)
    asked = {}
    for name in works:
        with passes(subject.net) as noted:
            again = one_part(subject, Square(queries=SQUARE_QUERIES)) if name == "ours" else works[name]
            again()
        asked[name] = sum(count for count, _ in noted)
    left = {name: robust(subject, x) for name, x in returned.items()}
    each = {name: asked[name] / max(1.0, FEW * (clean - left[name])) for name in works}
    cost = {name: 1e6 * seconds[name] / asked[name] for name in works}
    peers = [name for name in works if name != "ours"]
    for what, unit, figure in (("queries per success", "", each), ("cost per query", "CPU us", cost)):
        for name in peers:
            setting = f"{what}, beside {name}; robust {left['ours']:.3f} / {left[name]:.3f}"
            target = 1.0 if figure[name] == min(figure[peer] for peer in peers) else None
            yield Row(f"Square-{SQUARE_QUERIES}, {subject.name}", setting, figure["ours"], unit, figure[name], target)


def hop_skip_jump_rows(subject: Subject) -> Iterator[Row]:
    """Distances are of inputs that fool the net; a record without one is infinitely far away."""
    subject = subject.first(FEW)
    part = HopSkipJump(iterations=2, probes=60)
    opened = attackable(subject.net, tuple(subject.x.shape[1:]))
    case = case_of(opened, Records(subject.x, subject.y))

    def ours() -> Tensor:
        right = case.deployed.logits(subject.x).argmax(1) == subject.y
        whole = Ball("linf", 1.0, subject.x, Bounds.of(0, 1))
        found, size = subject.x.clone(), at_once(case) // part.together
        for rows in right.nonzero().squeeze(1).split(size):
            some = torch.zeros_like(right).index_fill(0, rows, True)
            search = Search(case.deployed, case.evaluation, case.ids, whole, among=some, seed=0, ledger=Ledger())
            found[rows] = part.walk(search, case, until=0.0)[0]
        return found

    works, missing = present(HOP_SKIP_JUMP, subject)
    yield from (Row(f"beside {name}, {subject.name}", why, None, "") for name, why in missing.items())
    seconds, returned = timed({"ours": ours, **works}, rounds=1)
    away = {}
    for name, x in returned.items():
        with torch.no_grad():
            fooled = subject.net(x.float().clamp(0, 1)).argmax(1) != subject.y
        distance = torch.where(fooled, (x - subject.x).flatten(1).abs().amax(1), torch.inf)
        away[name] = statistics.median(distance.tolist())
    for name in works:
        target = HOP_COST if name == "ART" else None
        setting = f"{FEW} records, {HOPS} iterations of the peer, beside {name}, once"
        yield Row(f"HopSkipJump, {subject.name}", setting, seconds["ours"], "CPU s", seconds[name], target)
        setting = f"median distance, beside {name}"
        yield Row(f"HopSkipJump, {subject.name}", setting, away["ours"], "", away[name], 1.0)


def overhead_rows(subject: Subject) -> Iterator[Row]:
    """Our time against that of the same passes, on as many records each, and nothing else."""
    for name, part in (("PGD-40", Pgd(steps=STEPS)), ("APGD-T", ApgdTargeted(steps=20, classes=9))):
        with passes(subject.net) as noted:
            one_part(subject, part)()

        def bare(noted: list[tuple[int, bool]] = noted) -> Tensor:
            x = subject.x
            for count, gradients in noted:
                inputs = subject.x[:count].clone().requires_grad_(gradients)
                with torch.set_grad_enabled(gradients):
                    answers = subject.net(inputs)
                if gradients:
                    (x,) = torch.autograd.grad(answers.sum(), inputs)
            return x

        seconds, _ = timed({"ours": one_part(subject, part), "bare": bare})
        setting = f"{MANY} records, beside its {len(noted)} passes alone"
        yield Row(f"{name}, {subject.name}", setting, seconds["ours"], "CPU s", seconds["bare"], OVERHEAD)


ROWS = {
    "pgd": pgd_rows,
    "targeted": targeted_rows,
    "autoattack": autoattack_rows,
    "square": square_rows,
    "hop-skip-jump": hop_skip_jump_rows,
    "overhead": overhead_rows,
}


def main() -> None:
    command = parser(__doc__ or "")
    command.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), help="of the parts above")
    options = command.parse_args()
    torch.set_num_threads(1)
    rows = []
    for subject in subjects():
        clean = robust(subject, subject.x)
        rows.append(Row(subject.name, f"clean accuracy, {MANY} records; epsilon {EPSILON:g}", clean, ""))
        for part in options.only:
            rows += ROWS[part](subject)
    publish(rows, options.json)


if __name__ == "__main__":
    main()
