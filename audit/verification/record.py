"""What an audit leaves beside its cells, so that every figure can be made from them again without its model and data.

The record is stored before the first attack, with the time: plan and policy are fixed from then on. It holds no input
and no code; the suite that is built from it has the same cells under the same keys, but can compute none of them.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from ...targets.data.outline import Outline, data_of, outline
from ...targets.errors import user_error
from ...targets.form import Array, Arrays, Document, Form, WithoutModelError, require
from ...targets.runtimes.litert import PACKAGES as LITERT
from ...targets.untrusted.model_file import ModelFile
from ...training.architecture import Architecture
from ...training.loop import Training
from ...training.trainer import BuiltinTrainer, Trainer, UserTrainer
from ..engine.cells import ENGINE_VERSION, Result, cell_key
from ..engine.store import Store
from ..plan.plan import DENSE, Plan
from ..schema.rows import Machine, RecordedAt
from ..subject.audited import DenseModel
from ..subject.claims import claim_of
from ..subject.finished_file import OpenedFile, Reading, paths_of, reading_of
from ..subject.resolve import Subject
from ..suite.environment import Setup, release, versions
from ..suite.suite import Suite
from ..verdict.policy import FittedPolicy, Policy

PACKAGE = "crushproof"
FILE = "record.json"  # a file of its own: the order of candidates and limits counts
BUILTIN, USER = "builtin:", "user:"  # how the identities of the two sorts of trainers begin
UTC = Field(pattern=r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$")


class RecordError(Exception):
    """A record that is none, or from which no suite can be built here; the message is a clause that says why."""


class _Settled(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecordedDense(_Settled):
    """The plain dense model. Each trainer is told by its identity: hyper-parameters, or a name and a digest of code."""

    architecture: str
    trainer: str
    given: bool
    shadows_differ: bool
    notes: tuple[str, ...]


class RecordedFile(_Settled):
    name: str
    reading: Reading


class Fixed(Document):
    """When a plan and a policy were first met in this store."""

    fixed: str = UTC
    known: int = Field(ge=0)


FIXED = Form(Fixed, {}, declines=False)


class Record(_Settled):
    """See the head of this module.

    Attributes:
        asked: the plan as it was given; plan: the same with all that a probe or the time decided.
        policy: as it was judged by, with what these inputs cannot decide.
        command: how the audit was started.
        home, source: the folder in which the plan's paths are looked up, and the plan's file, seen from the output
            folder; None: there is none.
        engine: what else a cell's key depends on (`cells.ENGINE_VERSION`).
        releases: of packages that only some audits need.
        identity, notes: of the models (`Subject`).
        together: by dense model, how many like it are trained, and how many are compressed, side by side.
        fixed: when plan and policy were fixed, in UTC; known: how many results of attacks were there by then, which an
            earlier run by another plan or policy gave.
    """

    asked: dict[str, Any]
    plan: dict[str, Any]
    policy: FittedPolicy
    command: str
    home: str | None
    source: str | None
    engine: str
    device: str
    versions: dict[str, str]
    machine: Machine
    releases: dict[str, str]
    data: Outline
    identity: str
    notes: tuple[str, ...]
    dense: RecordedDense | None
    files: dict[str, RecordedFile]
    together: dict[str, tuple[int, int]]
    fixed: str = UTC
    known: int = Field(ge=0)


def record_of(
    suite: Suite, asked: Plan, policy: Policy, command: str, home: str | None, source: str | None, fixed: Fixed
) -> tuple[str, Result]:
    """The key under which the store keeps the record of an audit, and the record."""
    subject = suite.subject
    told, arrays = outline(subject.data)
    packages = sorted({*LITERT, *(package for runtime, _ in suite.lineup.runtimes for package in runtime.packages)})
    record = Record(
        asked=_plan(asked),
        plan=_plan(suite.plan),
        policy=FittedPolicy(**policy.model_dump(exclude={"left_out"}), left_out=getattr(policy, "left_out", ())),
        command=command,
        home=home,
        source=source,
        engine=ENGINE_VERSION,
        device=suite.device.type,
        versions=dict(suite.setup.versions),
        machine=suite.setup.machine,
        releases={package: release(package) for package in packages},
        data=told,
        identity=subject.identity,
        notes=subject.notes,
        dense=dense_of(subject),
        files={name: RecordedFile(name=file.name, reading=reading_of(file)) for name, file in subject.files.items()},
        together={one.name: one.stacks(suite.device) for one in suite.lineup.dense},
        fixed=fixed.fixed,
        known=fixed.known,
    )
    return key_of(record), Result(arrays, files={FILE: record.model_dump_json().encode()})


def dense_of(subject: Subject) -> RecordedDense | None:
    model = subject.model
    if model is None:
        return None
    return RecordedDense(
        architecture=model.architecture.name,
        trainer=model.trainer.identity,
        given=model.state is not None,
        shadows_differ=model.shadows_differ,
        notes=model.notes,
    )


def fixed_in(store: Store, suite: Suite, asked: Plan, policy: Policy) -> Fixed:
    """When this plan and this policy were first met in the store; it is noted that they are met now, if not before."""
    key = cell_key("fixed", _plan(asked), _plan(suite.plan), [one.model_dump(mode="json") for one in policy.limits])
    store.expect({key: FIXED})
    if not store.has(key):
        known = sum(store.has(suite.cell(name).key) for name in suite.runs)
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        store.put(key, Result(document={"fixed": now, "known": known}))
    return Fixed.model_validate(store.get(key).document)


def form_of_record(key: str, fresh: Result) -> Form:
    """What is stored under the key of a record: the one that was just made."""

    def holds(document: Any, arrays: Arrays, files: Mapping[str, bytes]) -> None:
        require(key_of(Record.model_validate_json(files[FILE])) == key, "it is another record")
        same = all(np.array_equal(arrays[name], array) for name, array in fresh.arrays.items())
        require(same, "its labels or bounds are not those of the data")

    layout = {name: Array(str(array.dtype), array.shape) for name, array in fresh.arrays.items()}
    return Form(Document, layout, (FILE,), holds, declines=False)


def key_of(record: Record) -> str:
    """Under which the store keeps a record."""
    orders = [list(record.plan.get("candidates", {})), list(record.policy.changes), list(record.policy.absolutes)]
    return cell_key("record", record.model_dump(mode="json"), orders)


def recorded_at(key: str, ended: str, store: Store) -> RecordedAt:
    """Where the record of an audit lies, and how it ended, for its audit.json."""
    record = Record.model_validate_json(store.get(key).files[FILE])
    return RecordedAt(key=key, digest=store.evidence(key)[1], ended=ended, fixed=record.fixed, known=record.known)


def read_record(key: str, stored: Result) -> tuple[Record, Suite]:
    """The record in a stored result, and the suite that it tells of.

    Raises:
        RecordError: it is not the record of this key, is damaged, or needs a package that is not there.
    """
    try:
        record = Record.model_validate_json(stored.files[FILE])
        made, here = (record.versions.get(PACKAGE), record.engine), (versions()[PACKAGE], ENGINE_VERSION)
        if made != here:
            raise RecordError(f"it was made by crushproof {made[0]} ({made[1]}), and this is {here[0]} ({here[1]})")
        if key_of(record) != key:
            raise RecordError("its record was changed")
        plan, asked = Plan.model_validate(record.plan), Plan.model_validate(record.asked)
        if not record.files.keys() == paths_of(plan).keys() == paths_of(asked).keys():
            raise RecordError("its record names other files than its plan")
        return record, Suite(plan, _subject(record, plan, stored), setup=_setup(record))
    except RecordError:
        raise
    except Exception as error:  # a record may hold anything
        raise RecordError(f"its record does not make sense here ({user_error(error)[:300]})") from None


def _plan(plan: Plan) -> dict[str, Any]:
    return plan.model_dump(mode="json", exclude={"engine"})


def _setup(record: Record) -> Setup:
    return Setup(torch.device(record.device), record.versions, record.machine, record.releases)


def _subject(record: Record, plan: Plan, stored: Result) -> Subject:
    files = {name: _Absent.of(one) for name, one in record.files.items()}
    data = data_of(record.data, stored.arrays)
    dense = record.dense
    model = None
    if dense is not None:
        model = DenseModel(
            DENSE,
            Architecture(dense.architecture, _refuse),
            _trainer(dense.trainer),
            state={} if dense.given else None,
            shadows_differ=dense.shadows_differ,
            notes=dense.notes,
            file=files.get(DENSE),
            claim=claim_of(plan.claims, data, None),
            together=record.together.get(DENSE, (1, 1)),
        )
    return Subject(data, model, record.identity, files, record.notes, together=record.together)


def _trainer(identity: str) -> Trainer:
    if identity.startswith(BUILTIN):
        return BuiltinTrainer(Training.model_validate_json(identity.removeprefix(BUILTIN)))
    return UserTrainer(_refuse, identity.removeprefix(USER))


def _refuse(*_: Any) -> NoReturn:
    raise WithoutModelError("a record builds and trains no model")


@dataclass(frozen=True, eq=False)
class _Absent(OpenedFile):
    """A finished file that is not at hand: what was found out about it."""

    sha256: str = ""

    @property
    def digest(self) -> str:
        return self.sha256

    @property
    def content(self) -> bytes:
        raise WithoutModelError("a record holds no file")

    @classmethod
    def of(cls, one: RecordedFile) -> _Absent:
        known = one.reading
        file = ModelFile(known.kind, b"", known.facts, known.packed)
        return cls(one.name, file, known.assumptions, known.notes, known.doubtful, known.digest)
