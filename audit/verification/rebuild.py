"""An audit made again from what is stored of it: the same figures, changes, flags, sentences and verdict, or others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ...targets.errors import UnsafeInput, user_error
from ...targets.form import Arrays
from ...targets.serving.statement import ENVELOPE
from ..engine.cells import cell_key
from ..engine.schedule import Outcome
from ..engine.work import forms_of
from ..findings.assemble import assemble
from ..rounds import undecided
from ..schema import wording
from ..schema.read import folder_of
from ..schema.rows import Audit, Environment, RecordedAt
from ..schema.standing import REBUILT, SIGNED, Standing
from ..suite.suite import Reached, Suite
from ..verdict.fitting import policy_of
from ..verdict.judging import check_verdicts, rejudge
from .differences import differences
from .following import unfounded
from .record import Record, RecordError, read_record
from .stored import StoredCells

SHOWN = 3  # names in a sentence
HINT = "Run the audit again: what is intact is kept, the rest is computed anew."


class NoEvidenceError(Exception):
    """An audit.json cannot be made again from what is there; the message is a clause that says why."""


class Ended(BaseModel):
    """How an audit ended: what does not follow from its record and its cells.

    Attributes:
        failed, skipped, unavailable: of the cells that have no result the reasons, by name.
        environment: that of the audit, but for its record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    failed: dict[str, str]
    skipped: dict[str, str]
    unavailable: dict[str, str]
    environment: Environment

    @classmethod
    def of(cls, environment: Environment, outcome: Outcome) -> Ended:
        told = environment.model_copy(update={"record": None})
        return cls(failed=outcome.failed, skipped=outcome.skipped, unavailable=outcome.unavailable, environment=told)

    def key_for(self, record: str) -> str:
        """Under which the store keeps it, of the audit of this record. An audit.json that was written stays true."""
        return cell_key("ended", record, self.model_dump(mode="json"))


@dataclass(frozen=True)
class Rebuilt:
    """An audit made again.

    Args:
        record_arrays: labels and bounds, beside the record.
        reached: the round of each attack on each model, where it is not the first.
    """

    audit: Audit
    record: Record
    record_arrays: Arrays
    suite: Suite
    reached: Reached
    outcome: Outcome


def rebuild(read: Audit, cells: StoredCells) -> Rebuilt:
    """The audit that the stored cells of `read` amount to.

    Raises:
        NoEvidenceError: they are not there, or no suite can be built from their record here.
        UnsafeInput: they were changed.
    """
    at = read.environment.record
    if read.policy_from == "gate":
        raise NoEvidenceError("it is a verdict of crushproof gate, whose evidence lies with the audit it judged")
    private = cells.folder / "evidence"
    if at is None or not private.is_dir():
        raise NoEvidenceError("its evidence is not beside it")
    if not os.access(private, os.R_OK | os.X_OK):
        raise NoEvidenceError("its evidence is not readable for this user")
    record, suite = _recorded(at, cells)
    ended = _ended(at, cells)
    cells.expect(forms_of(suite.cells()))
    outcome = _outcome(ended, suite, cells)
    try:
        audit, reached = _judged(suite, cells, outcome, record)
        measured = {name: getattr(audit.environment, name) for name in audit.environment.model_fields_set}
        audit.environment = ended.environment.model_copy(update={**measured, "record": at})
        wrong = unfounded(suite, reached, cells)
    except Exception as error:  # stored results may hold anything
        raise UnsafeInput(
            f"The evidence in {cells.folder} makes no sense ({user_error(error)[:300]}). {HINT}"
        ) from None
    if wrong:
        told = wording.enumerate_words(wrong[:SHOWN])
        raise UnsafeInput(f"The evidence in {cells.folder} does not follow from itself: {told}. {HINT}")
    return Rebuilt(audit, record, cells.get(at.key).arrays, suite, reached, outcome)


def damage(rebuilt: Rebuilt, cells: StoredCells) -> list[str]:
    """What of all the evidence, also of that which no figure is made from, is missing or damaged, a phrase each."""
    known = {*rebuilt.outcome.failed, *rebuilt.outcome.skipped, *rebuilt.outcome.unavailable}
    missing = [
        f"the result of {cell.name} is missing"
        for cell in rebuilt.suite.cells_until(rebuilt.reached)
        if not cell.alone and cell.name not in known and not cells.has(cell.key)
    ]
    return [*(f"{where} is damaged: {why}" for where, why in sorted(cells.damaged.items())), *missing]


def not_computed(rebuilt: Rebuilt) -> list[str]:
    """The cells that have no result and a reason for it, which no evidence can show."""
    outcome = rebuilt.outcome
    return sorted({*outcome.failed, *outcome.skipped, *outcome.unavailable})


def held_against_evidence(read: Audit, folder: Path) -> tuple[Audit, Standing]:
    """An audit.json that was read, as its evidence has it, and how far it could be held against that.

    Args:
        folder: that it lies in, or the file itself.

    Raises:
        UnsafeInput: it says something else than its evidence, or contradicts itself.
    """
    folder = folder_of(folder)
    try:
        rebuilt = rebuild(read, StoredCells(folder))
    except NoEvidenceError as why:
        check_verdicts(read, folder)
        read = rejudge(read, policy_of(read), by=read.policy_from)  # its sentences follow from its figures at least
        return read, Standing(False, f"{why}, so that its figures cannot be made again")
    found = differences(read, rebuilt.audit)
    if found:
        raise UnsafeInput(
            f"{folder / 'audit.json'} does not verify: it differs from what its evidence amounts to in "
            f"{wording.enumerate_words(found)}. {HINT}"
        )
    audit = rebuilt.audit
    if rebuilt.outcome.failed:
        failed = wording.enumerate_words(sorted(rebuilt.outcome.failed)[:SHOWN])
        return audit, Standing(False, f"it is not complete ({failed} failed)")
    return audit, SIGNED if os.path.lexists(folder / ENVELOPE) else REBUILT


def _recorded(at: RecordedAt, cells: StoredCells) -> tuple[Record, Suite]:
    if not cells.has(at.key):
        raise NoEvidenceError("its record is damaged" if cells.damaged else "its record is not in its evidence")
    try:
        record, suite = read_record(at.key, cells.get(at.key))
    except RecordError as error:
        raise NoEvidenceError(str(error)) from None
    true = {"digest": cells.evidence(at.key)[1], "fixed": record.fixed, "known": record.known}
    if at.model_copy(update=true) != at:
        raise UnsafeInput(
            f"{cells.folder / 'audit.json'} does not verify: its record was changed, or it says another time than the "
            f"record ({record.fixed}) at which plan and policy were fixed. {HINT}"
        )
    return record, suite


def _ended(at: RecordedAt, cells: StoredCells) -> Ended:
    try:
        ended = Ended.model_validate(cells.get(at.ended).document)
    except KeyError:
        raise NoEvidenceError("how it ended is not in its evidence, or damaged") from None
    except ValidationError:
        raise NoEvidenceError("what its evidence says of its end makes no sense") from None
    if ended.key_for(at.key) != at.ended:
        raise NoEvidenceError("what its evidence says of its end was changed, or is of another audit")
    return ended


def _outcome(ended: Ended, suite: Suite, cells: StoredCells) -> Outcome:
    """What became of the cells that have no result."""
    told = {
        sort: {name: why for name, why in reasons.items() if suite.has(name) and not cells.has(suite.cell(name).key)}
        for sort, reasons in ended
        if sort != "environment"
    }
    measured = {name: why for name, why in ended.failed.items() if name.startswith("measure/")}
    return Outcome(failed=told["failed"] | measured, skipped=told["skipped"], unavailable=told["unavailable"])


def _judged(suite: Suite, cells: StoredCells, outcome: Outcome, record: Record) -> tuple[Audit, Reached]:
    """As `run_rounds` judged, which went on from round to round by what it found."""
    reached: Reached = {}
    while True:
        audit = assemble(suite, cells, outcome, record.policy, record.command, None, reached)
        after = None if outcome.failed else suite.further(reached, undecided(suite, audit))
        if after is None:
            return audit, reached
        reached = after
