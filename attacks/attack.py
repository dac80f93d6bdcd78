"""What every attack is: data plus `run`, which turns a case into evidence per record."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from ..targets.data.data import Data
from ..targets.form import Form
from ..targets.technique import Registry, Technique
from .case import Case, Evidence
from .effort import UNKNOWN, Effort
from .measurement import Measurement, PerRecord, Picture
from .preparation import Audited, Basis, Inputs, Need, Preparation, Prepared, Ran, Results, Scope
from .risk import Metric, Risk


class Task(StrEnum):
    """What a model is for, and so which attacks make sense."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


@dataclass(frozen=True)
class Run:
    """One run of an attack against one model.

    Args:
        detail: tells an attack's runs on one model apart; "" for the main one.
        model: name of the model attacked; None: the one that was asked about.
        attack: a variant of the attack; None: itself.
        needs: shared work to be done before.
        prepare: from that, what the attack finds in `Case.prepared`.
        identity: what else decides the result, as a JSON value.
        draw: which draw of a random recipe is attacked, counted from the one that ships; None: that one, and the
            finding is of this run.
        without_draw: the attacker does not have the shipped draw and works on the others.
        uses_parent: whether the case holds the dense model that the audited one came from.
        effort: about what it costs.
    """

    detail: str = ""
    model: str | None = None
    attack: Attack | None = None
    needs: tuple[Need, ...] = ()
    prepare: Callable[[Inputs], Any] | None = None
    identity: Any = None
    draw: int | None = None
    without_draw: bool = False
    uses_parent: bool = True
    effort: Effort = UNKNOWN


@dataclass(frozen=True)
class Round:
    """An attack on the first so many records of those it may have."""

    attack: Attack
    records: int


class Attack(Technique):
    """One attack with its parameters, and all that a report says of its risk."""

    kind: str
    risk: ClassVar[Risk]
    metrics: ClassVar[tuple[Metric, ...]]  # of its measurements, the headline first
    tasks: ClassVar[frozenset[Task]] = frozenset({Task.CLASSIFICATION})
    of_claims: ClassVar[bool] = False  # puts to the test what is claimed of a training, and is for no other plan
    parts_known: ClassVar[Registry[Any] | None] = None  # what its exchangeable parts may be, where it has any

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        named = isinstance(cls.model_fields["kind"].default, str)
        missing = [one for one in ("risk", "metrics") if not getattr(cls, one, None)]
        if named and missing:
            raise TypeError(f"{cls.__name__} declares no {' and no '.join(missing)}, which every attack brings")

    @property
    def effort(self) -> Effort:
        """About what one run costs."""
        return UNKNOWN

    @classmethod
    def defect(cls) -> str | None:
        if not isinstance(cls.risk, Risk):
            return "has a `risk` that is no attacks.risk.Risk"
        if not isinstance(cls.metrics, tuple) or not all(isinstance(one, Metric) for one in cls.metrics):
            return "has `metrics` that are no tuple of attacks.risk.Metric"
        if not isinstance(cls.parts_known, Registry | None):
            return "has `parts_known` that are no targets.technique.Registry"
        return None

    def unfit(self, scope: Scope) -> str | None:
        """Why this attack is none for these inputs, as far as is known before anything runs; None: it may be one.

        A phrase for the name of a policy, such as "token inputs"; `tasks` need not be looked at. It takes a second at
        most, and what it misses is said by `run`.
        """
        return None

    def usual(self, data: Data) -> bool:
        """Whether a set of attacks that a plan takes by its name has this one for data like these.

        Only what `targets.data.outline` keeps may be looked at: no inputs. Named by itself it is run anyway.
        """
        return True

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        """Which runs on this model there are to be; none where the attack has nothing to work with."""
        return (Run(effort=self.effort),)

    def reads(self, model: Audited, scope: Scope) -> tuple[Need, ...]:
        """What `measure` looks at on this model: runs, and shared work that is done for the sake of a comparison."""
        return tuple(Ran(name) for name in (model.name, *model.baselines))

    def beside(self, model: Audited, scope: Scope) -> tuple[Preparation, ...]:
        """Shared work that `measure` looks at where it is there, and that no finding alone (`--only`) is worth."""
        return ()

    def rounds(self, scope: Scope) -> tuple[Round, ...]:
        """The attack on ever more records, which go on until its gates are decided; one round is all at once.

        The intervals of several rounds are widened, so that they hold whenever one stops.
        """
        return (Round(self, 0),)

    def sharing(self) -> Attack:
        """The attack whose finished parts this one takes over: itself, however many records each is for."""
        return self

    def smaller(self) -> Attack | None:
        """The next smaller one, for who has less time; None: it gets no smaller."""
        return None

    def probes(self, scope: Scope) -> tuple[Preparation, ...]:
        """What has to be looked at before its own settings are known."""
        return ()

    def settled(self, found: Mapping[Preparation, Prepared]) -> Attack:
        """The attack with the settings that its probes decide, as the resolved plan holds them.

        Args:
            found: its probes' results, of those that applied.
        """
        return self

    def details(self, model: Audited) -> tuple[str, ...]:
        """The `Measurement.detail` of every finding there will be on this model."""
        return ("",)

    def form(self, model: Audited, scope: Scope) -> Form:
        """What its evidence on this model looks like: `Form.document` of the summary, `arrays` by the summary.

        Stored evidence that looks otherwise is computed anew. Open by default.
        """
        return Form()

    @abstractmethod
    def run(self, case: Case, *, seed: int) -> Evidence:
        """Attacks the case's deployed model.

        Raises:
            NotApplicable: this attack cannot run on this case; the message says why.
        """

    @abstractmethod
    def measure(self, results: Results) -> list[Measurement]:
        """What its runs on one model amount to; a measurement without an outcome where they did not finish."""

    def pictures(self, results: Results) -> tuple[Picture, ...]:
        """Records that its runs on one model changed, as images, for who may see them; none where they are no images.

        It is asked only where a plan says `show_records: true`, and what it gives goes into the HTML report alone.
        """
        return ()

    def per_record(self, results: Results) -> PerRecord | None:
        """What it found of each training record of one model, which no report prints; None: nothing."""
        return None

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        """In what the case's deployed model, asked anew, contradicts evidence that `run` gave, a phrase each.

        Nothing where there is nothing to ask it.
        """
        return []

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        """In what evidence that `run` gave does not follow from its own arrays and its basis, a phrase each.

        No model is asked: whoever reads an audit may look here, `asked_again` needs the files.
        """
        return []

    def power(self, scope: Scope) -> list[str]:
        """Sentences: which loss or leak would have gone unseen, at 80 % power and 95 % confidence."""
        return []

    def leak_seen(self, scope: Scope, shadows: int) -> float | None:
        """The smallest leak that it sees with so many shadow models, at that power and confidence.

        A true positive rate at 1 % false positives, as any number of shadow models would find it. None: it uses none,
        or these records cannot tell.
        """
        return None

    def limits(self, scope: Scope) -> list[str]:
        """Sentences: what a good figure does not prove."""
        return []


ATTACKS: Registry[Attack] = Registry("attack", "crushproof.attacks", "crushproof.attacks", Attack)
