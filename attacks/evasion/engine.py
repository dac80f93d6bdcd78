"""The engine: who is still to be fooled, which gradients lead there, and the deployed model that decides.

A perturber proposes inputs; a `Search` asks the deployed model about those that look promising, and lets a record go as
soon as it is fooled. Every random number of a record follows from the seed and the record's id, so its result depends
neither on the batch it is in nor on who else is left.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ...targets.data.records import Records
from ...targets.model import Target
from ...targets.seeds import derive, uniform
from ...targets.technique import Registry, Technique
from ...training.ball import per_record
from ..access import Access, Ledger
from ..case import Case
from ..effort import Effort
from .ascent.gradients import Ascent, Gradients, usable
from .ascent.losses import Goal, margins, reached
from .ball import Region

FLAT_STARTS = 3  # random starts at which a record may give no gradient before a gradient attack lets it go


class Search:
    """One perturber's search at one epsilon: the records it has not fooled yet, and the best input of each.

    A perturber works on the *active* records (`y`, `ball`, what it gets from `start` and `noise` are all in their
    order); when `offer` or `query` reports that some were fooled, it drops their rows from its own state.

    Args:
        target: the deployed model; only its answers count.
        records: all that are evaluated, [n]; ids: int64 [n], their identities, which seed their randomness.
        region: where an input for each of them may lie.
        among: bool [n], the records to fool.
        goal: whether a record's `y` is the class to get away from, or the one to get to.
        seed: of this perturber at this epsilon.
        from_center: start from the clean record instead of at random (the unbounded check).
        positions: int64 [n], where the records stand among the case's; None: at its beginning.
        before: float32 [n], the lowest margins that other parts came to on the same gradients; None: none did.
        told: is called with `progress` (see `offer`) each time something is tried.
    """

    def __init__(
        self,
        target: Target,
        records: Records,
        ids: np.ndarray[tuple[int], np.dtype[np.int64]],
        region: Region,
        *,
        among: Tensor,
        seed: int,
        ledger: Ledger,
        goal: Goal = "untargeted",
        from_center: bool = False,
        positions: Tensor | None = None,
        before: Tensor | None = None,
        told: Callable[[float], None] = lambda progress: None,
    ) -> None:
        self.ledger = ledger
        self.active = among.nonzero().squeeze(1)  # int64, positions in `records`
        self.y = records.y[self.active]
        self.towards: Tensor | None = None  # int64 [active], the class each is to ascend to; the goal stays what it is
        self.ball = region.take(self.active)
        self.goal: Goal = goal
        self.fooled = torch.zeros(len(records), dtype=torch.bool, device=records.x.device)
        self.found_at = torch.full((len(records),), torch.nan)  # share of the budget spent when it was fooled
        self.best = records.x.clone()  # the input that fooled the deployed model, or else the most promising one
        self.flat = torch.zeros_like(self.fooled)  # the module gave no gradient of its own anywhere
        self.plateau = torch.zeros_like(self.fooled)  # a perturber says so: further starts would end as those before
        self.margin = torch.full((len(records),), torch.inf, device=records.x.device)  # of `best`
        self._asked_margin = torch.full((len(records),), torch.inf, device=records.x.device)
        self._before = torch.full_like(self.margin, torch.inf) if before is None else before
        self.seed = seed
        self.told = told
        self._target, self._ids, self._from_center = target, ids, from_center
        self._records, self._region = records, region
        self._released = torch.zeros_like(self.fooled)
        self._paused: list[Tensor] = []  # int64, positions in `records`
        self._positions = positions

    @property
    def positions(self) -> Tensor:
        """int64 [active], where the active records stand among all of the case."""
        return self.active if self._positions is None else self._positions[self.active]

    @property
    def before(self) -> Tensor:
        """float32 [active], the lowest margins that other parts came to on the same gradients; infinite: none did."""
        return self._before[self.active]

    def noise(self, size: tuple[int, ...], *labels: str | int, rows: Tensor | None = None) -> Tensor:
        """Uniform in [0, 1), float32 [active, *size]; a record's own, for the use that the labels name.

        Args:
            rows: int64 or bool, of the active records; None: all of them.
        """
        places = self.active if rows is None else self.active[rows]
        drawn = uniform(derive(self.seed, *labels), self._ids[places.cpu().numpy()], size)
        return drawn.to(self.ball.center.device)

    def start(self, *labels: str | int) -> Tensor:
        """A random starting point for each active record, inside its ball."""
        if self._from_center:
            return self.ball.center.clone()
        return self.ball.random_start(self.noise(tuple(self.ball.center.shape[1:]), "start", *labels))

    def first_ascent(self, model: Gradients, restart: int, progress: float) -> tuple[Tensor, Ascent]:
        """A start for each active record, asked about, and the ascent there; further starts where it is flat, and one
        that stays flat is let go.
        """
        x = self.start(restart)
        if restart == 0:
            self.flat[self.active] = True
        found = self.ascent(model, x)
        for again in range(1, FLAT_STARTS + 1):
            stay = self.offer(x, found.margin, progress)
            if stay is not None:
                x, found = x[stay], found.take(stay)
            lost = ~usable(found.gradient)
            if not lost.any():
                break
            if again == FLAT_STARTS or self._from_center:
                stay = self.release(lost)
                return x[stay], found.take(stay)
            x = torch.where(per_record(lost, x), self.start(restart, "again", again), x)
            towards = None if self.towards is None else self.towards[lost]
            for column, new in zip(found, model(x[lost], self.y[lost], towards), strict=True):
                column[lost] = new
            self.flat[self.active] &= found.flat
        return x, found

    def ascent(self, model: Gradients, x: Tensor) -> Ascent:
        """What the module says at x [active, *shape]; `flat` forgets the records that it gives a gradient."""
        found = model(x, self.y, self.towards)
        self.flat[self.active] &= found.flat
        return found

    def offer(self, x: Tensor, margin: Tensor, progress: float) -> Tensor | None:
        """bool [active]: which records stay (None: all) of inputs whose margin on the twin is known.

        The deployed model is asked where that looks like a success. When it disagrees with the twin, the record stays,
        and is asked about again as soon as the twin's margin is lower still.

        Args:
            x: [active, *shape]; margin: [active]; progress: share of the budget spent, in [0, 1]; NaN when unknown.
        """
        self.told(progress)
        better = margin < self.margin[self.active]
        rows = self.active[better]
        self.margin[rows] = margin[better]
        self.best[rows] = x[better]
        promising = margin < 0
        if not promising.any():
            return None
        promising &= margin < self._asked_margin[self.active]
        if not promising.any():
            return None
        self._asked_margin[self.active[promising]] = margin[promising]
        wrong = torch.zeros_like(promising)
        wrong[promising] = self._ask(x[promising], self.y[promising]) < 0
        return self._settle(x, wrong, progress)

    def query(self, x: Tensor, progress: float) -> tuple[Tensor, Tensor | None]:
        """The deployed model's margins [active] on x [active, *shape], and which records stay (None: all).

        The margins come before any record leaves. Inputs outside the ball never count.
        """
        self.told(progress)
        margin = self._ask(x, self.y)
        better = margin < self.margin[self.active]
        if better.any():
            better &= self.ball.contains(x)
            rows = self.active[better]
            self.margin[rows] = self._asked_margin[rows] = margin[better]
            self.best[rows] = x[better]
        return margin, self._settle(x, margin < 0, progress)

    def reaches(self, x: Tensor, rows: Tensor) -> Tensor:
        """bool [m]: whether the deployed model answers x [m, *shape] as the attacker wants it to.

        Each is an input for one of the active records, `rows` int64 [m]. It may lie outside the ball; see `claim`.
        """
        return self._ask(x, self.y[rows]) < 0

    def claim(self, x: Tensor, right: Tensor, progress: float) -> Tensor | None:
        """Lets the records go whose input of x [active, *shape] is known to fool the deployed model, bool [active].

        Returns:
            As `query`.
        """
        self.told(progress)
        return self._settle(x, right, progress)

    def release(self, rows: Tensor) -> Tensor:
        """Lets these records go, bool [active]; `close` asks the deployed model about their best inputs, all at once.

        Returns:
            bool [active]: which records stay.
        """
        self._released[self.active[rows]] = True
        stay = ~rows
        self._keep(stay)
        return stay

    def pause(self, rows: Tensor) -> Tensor:
        """Lets these records rest, bool [active], until `resume`.

        Returns:
            bool [active]: which records stay.
        """
        self._paused.append(self.active[rows])
        stay = ~rows
        self._keep(stay)
        return stay

    def resume(self) -> None:
        """Makes the records that rest active again; all are in the order they came in, and none has a `towards`."""
        if self._paused:
            self.active = torch.cat([self.active, *self._paused]).sort().values
            self.y, self.ball, self.towards = self._records.y[self.active], self._region.take(self.active), None
            self._paused = []

    def close(self) -> None:
        """Asks the deployed model about the best input of each record that is left or was released, if it was not asked
        yet; whoever has a perturber search (`blocks.seek`) ends with it.
        """
        self.resume()
        self._released[self.active] = True
        rows = (self._released & (self.margin < self._asked_margin)).nonzero().squeeze(1)
        if len(rows):
            x, self._asked_margin[rows] = self.best[rows], self.margin[rows]
            wrong = (self._ask(x, self._records.y[rows]) < 0) & self._region.take(rows).contains(x)
            self.fooled[rows[wrong]] = True
            self.found_at[rows[wrong].cpu()] = 1.0
        self._keep(torch.zeros_like(self.active, dtype=torch.bool))

    def _ask(self, x: Tensor, y: Tensor) -> Tensor:
        """Margins, set to minus the smallest number where a tie is decided in favour of the goal."""
        self.ledger.queries += len(x)
        logits = self._target.logits(x)
        margin = margins(logits, y, self.goal)
        return torch.where(reached(logits, y, self.goal), margin.clamp_max(-1e-38), margin.clamp_min(0))

    def _settle(self, x: Tensor, wrong: Tensor, progress: float) -> Tensor | None:
        """Lets the records go whose input is misclassified inside the ball."""
        if not wrong.any():
            return None
        stay = ~self._mark(x, wrong, progress)
        self._keep(stay)
        return stay

    def _mark(self, x: Tensor, wrong: Tensor, progress: float) -> Tensor:
        """Notes the successes among `wrong`, bool [active]: those inside the ball, which it gives back."""
        wrong = wrong & self.ball.contains(x)
        done = self.active[wrong]
        self.fooled[done] = True
        self.best[done] = x[wrong]
        self.found_at[done.cpu()] = progress
        return wrong

    def _keep(self, stay: Tensor) -> None:
        self.active, self.y, self.ball = self.active[stay], self.y[stay], self.ball.take(stay)
        self.towards = None if self.towards is None else self.towards[stay]


class Perturber(Technique):
    """One way to find adversarial inputs; a part of the evasion attack. Adding one means adding one file."""

    kind: str
    uses_parent: ClassVar[bool] = False  # whether it needs the dense model that the audited one came from
    together: ClassVar[int] = 1  # inputs of one record that it tries at a time
    seeks_all: ClassVar[bool] = True  # False: successes of one sort only, so that who sees less may well find more
    label: str = Field("", pattern=r"^[\w.-]*$", description="the part's name in the report; default: its kind")
    at: Literal["all", "gate"] = Field("all", description="attack at every epsilon, or at the gate's only")

    @property
    def part(self) -> str:
        """What the part is called in evidence and report."""
        return self.label or self.kind

    @property
    @abstractmethod
    def access(self) -> Access:
        """What this perturber needs to see of the deployed model."""

    @property
    def follows(self) -> str | None:
        """Which gradients the margins it comes to are of, where parts after it may go by them; None: they may not."""
        return None

    @property
    def effort(self) -> Effort:
        """About what one record costs at one epsilon, if it withstands."""
        return Effort(answers=1)

    def differentiated(self, case: Case) -> tuple[nn.Module | None, ...]:
        """The modules of the case whose gradients it follows."""
        return (case.twin,) if self.access is Access.WHITE_BOX else ()

    def why_not(self, case: Case) -> str | None:
        """The reason why it cannot run on this case; None when it can."""
        return None

    def asked(self, case: Case) -> Target:
        """Whose answers decide who is fooled: the deployed model's, or several of them taken together."""
        return case.deployed

    @abstractmethod
    def perturb(self, search: Search, case: Case) -> None:
        """Looks for an input that fools the deployed model, for each active record of the search.

        Raises:
            NotApplicable: it cannot do its work on this case after all; the message says why.
        """


PERTURBERS: Registry[Perturber] = Registry(
    "perturber", "crushproof.attacks.evasion", "crushproof.perturbers", Perturber
)
