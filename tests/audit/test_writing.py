"""What is written: whole or not at all, only where it may be, and nothing of others is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from synthetic_audit import synthetic_audit
from typer.testing import CliRunner

import crushproof
from crushproof.audit import cli
from crushproof.audit.engine.store import Store
from crushproof.audit.exit_codes import Terminated
from crushproof.audit.report.html import render
from crushproof.audit.writing import GENERATOR, MARKER, check_ours, claim, write_together, write_verdict, writing
from crushproof.targets.errors import Incomplete, InputError


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("last", [1, 2])
def test_a_full_disk_leaves_every_file_as_it_was(last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {tmp_path / "audit.json": "old", tmp_path / "report.html": "old too"}
    write_together(texts, tmp_path)
    calls = iter(range(1, 3))
    monkeypatch.setattr(os, "fsync", lambda _: full() if next(calls) == last else None)
    with pytest.raises(Incomplete, match="is full"), writing(tmp_path):
        write_together(dict.fromkeys(texts, "new"), tmp_path)
    assert {path: path.read_text() for path in tmp_path.iterdir()} == texts


def test_a_command_on_a_full_disk_exits_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    done = CliRunner().invoke(cli.app, ["init", str(tmp_path)])
    assert done.exit_code == 3, done.output
    assert "is full" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_standard_output_without_room_exits_3(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "w") as nowhere:
        done = subprocess.run([sys.executable, "-m", "crushproof", "schema"], stdout=nowhere, stderr=subprocess.PIPE)
    assert done.returncode == 3
    assert "what standard output goes to" in " ".join(done.stderr.decode().split())
    assert b"Exception" not in done.stderr


def test_terminated_is_a_sentence_and_143(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def terminated(folder: Path) -> None:
        os.kill(os.getpid(), 15)
        raise AssertionError("the signal comes first")

    monkeypatch.setattr("crushproof.audit.plan.starter.write_starter", terminated)
    done = CliRunner().invoke(cli.app, ["init", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (143, "error: terminated. Run the same command again to go on from here.\n")
    assert issubclass(Terminated, KeyboardInterrupt)


def test_a_new_folder_is_marked_before_anything_else(tmp_path: Path) -> None:
    claim(tmp_path / "evidence")
    assert [path.name for path in (tmp_path / "evidence").iterdir()] == [MARKER]
    assert (tmp_path / "evidence").stat().st_mode & 0o777 == 0o700
    (tmp_path / "evidence" / "more").touch()
    claim(tmp_path / "evidence")


@pytest.mark.parametrize(
    "place", ["", "evidence", "evidence/temporary", "evidence/parts", "evidence/cells", "evidence/failures"]
)
def test_nothing_that_is_not_ours_is_deleted(place: str, tmp_path: Path) -> None:
    """A folder `evidence` of the user's, or a link to one, there or in place of a folder of ours."""
    precious = tmp_path / "precious"
    (precious / "temporary" / "deep").mkdir(parents=True)
    (precious / "failures").mkdir()
    (precious / "failures" / "file").touch()
    out = tmp_path / "out"
    if place == "":
        out.mkdir()
        precious.rename(out / "evidence")
        precious = out / "evidence"
    elif place == "evidence":
        out.mkdir()
        (out / place).symlink_to(precious)
    else:
        Store(out)
        if (out / place).exists():
            (out / place).rmdir()
        (out / place).symlink_to(precious)
    refused = pytest.raises(InputError, match="--out") if place != "evidence/failures" else nullcontext()
    with refused, Store(out):  # a link among what is swept goes, and nothing behind it
        pass
    assert (precious / "failures" / "file").exists()
    assert (precious / "temporary" / "deep").exists()


def test_a_verdict_takes_the_place_of_one_of_gate_and_of_nothing_else(tmp_path: Path) -> None:
    out, audited = tmp_path / "judged", tmp_path / "audited"
    audited.mkdir()
    for text in ("the audit's own policy", "the same after a rerun of the audit"):
        write_verdict(out, audited, text)
        assert (out / "audit.json").read_text() == text
    precious = tmp_path / "precious"
    precious.mkdir()
    for place in ("mine", "judged"):  # also one that says it is a verdict, and with a marker that is none
        (precious / "audit.json").write_text('"policy_from": "gate"')
        with pytest.raises(InputError, match="would be lost"):
            write_verdict(precious, audited, '"policy_from": "gate"')
        (precious / MARKER).unlink(missing_ok=True)
        (precious / MARKER).symlink_to(tmp_path / place)


def test_a_report_that_is_not_ours_stays(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    check_ours(report)
    template = (Path(crushproof.__file__).parent / "report_templates" / "report.html.j2").read_bytes()
    assert GENERATOR in template[:2048]
    report.write_bytes(template)
    check_ours(report)
    report.write_text("<html>of last year")
    for write_one in (lambda: check_ours(report), lambda: render(synthetic_audit(), report)):
        with pytest.raises(InputError, match="would be lost"):
            write_one()
    assert report.read_text() == "<html>of last year"
