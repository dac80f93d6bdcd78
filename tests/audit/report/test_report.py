"""The report: every finding is in it, hostile names are text, the same audit gives the same bytes."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import judged_rows
import pytest
from cheap_audits import undrawn
from synthetic_audit import HOSTILE, SCRIPT, synthetic_audit

from crushproof.attacks.access import Flag
from crushproof.attacks.membership.risk import AUC, TPR
from crushproof.attacks.risk import ACCURACY
from crushproof.audit.report import charts, defense_views, dot_charts, footprint_views, price_views, views
from crushproof.audit.report.html import render, to_html
from crushproof.audit.report.terminal import print_audit, print_findings, transfer_lines
from crushproof.audit.result import AuditResult
from crushproof.audit.schema import wording
from crushproof.audit.schema.rows import Audit, Environment, Estimate, Point
from crushproof.audit.verdict.fitting import DEFAULT, NO_DENSE, fitted
from crushproof.audit.writing import GENERATOR


class Page(HTMLParser):
    """What a reader or a test may ask of a page without a browser."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def audit() -> Audit:
    return synthetic_audit()


@pytest.fixture(scope="module")
def html(audit: Audit) -> str:
    return to_html(audit)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_every_finding_and_every_gap_is_there(audit: Audit, page: Page) -> None:
    for finding in audit.findings:
        assert finding.id in page.text
        assert finding.reproduce in page.text
        if finding.estimate is not None:
            low, high = (
                wording.bare(v, audit.metrics[finding.metric]) for v in (finding.estimate.low, finding.estimate.high)
            )
            assert (
                f"{wording.figure(finding.estimate.estimate, audit.metrics[finding.metric])} [{low}, {high}]".replace(
                    "\u00a0", " "
                )
                in page.text
            )
    for gap in audit.not_measured:
        assert gap.what in page.text
        assert gap.reason in page.text
    for finding in audit.findings:
        for part in finding.parts:
            assert part.skipped is None or part.skipped in page.text
    for flag in ("twin-disagrees", "black-box-wins", "few-shadows"):
        assert Flag(flag).meaning in page.text
    for sentence in [*audit.deciding, *audit.beside, *audit.power, *audit.limits]:
        assert sentence.replace("\u00a0", " ") in page.text


def test_links_lead_somewhere(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {str(attrs["href"]) for tag, attrs in page.tags if tag == "a"}
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert all(link.startswith("#") for link in links)


def test_the_page_needs_nothing_from_elsewhere(html: str, page: Page) -> None:
    assert "script" not in {tag for tag, _ in page.tags}
    sources = [str(v) for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "srcset", "data", "poster")]
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.findall(r"url\(|@import|https?://", html)
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script-src 'none'" in policy
    assert len(html.encode()) < 1_500_000


def test_charts_have_words_sizes_and_figures(page: Page) -> None:
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) >= 16  # size; three risks of five panels; defenses
    for attrs in images:
        assert len(str(attrs["alt"])) > 40
        svg = base64.b64decode(str(attrs["src"]).partition(",")[2]).decode("utf-8")
        assert f'width="{attrs["width"]}" height="{attrs["height"]}"' in svg
    assert page.text.count("Figures of this chart") == len(images)


def test_same_audit_same_bytes(audit: Audit, html: str) -> None:
    again = Audit.model_validate_json(audit.model_dump_json(by_alias=True))
    assert to_html(again) == html


def test_hostile_names_are_text(tmp_path: Path) -> None:
    names = dict(
        zip(
            ("dense", "prune50", "int8", "int4", "int2", "student", "svd90", "int8-dpsgd", "shared16"),
            HOSTILE,
            strict=True,
        )
    )
    hostile = synthetic_audit(renamed=names, classes=HOSTILE)
    render(hostile, tmp_path / "report.html")
    raw = (tmp_path / "report.html").read_bytes().decode("utf-8", errors="strict")
    page = Page(raw)
    assert "script" not in {tag for tag, _ in page.tags}
    assert SCRIPT in page.text
    assert r"$\frac{1}$" in page.text
    assert "_hidden" in page.text
    assert "<b>&amp;" in page.text
    shown = [raw, *(base64.b64decode(found).decode("utf-8") for found in re.findall(r"base64,([\w+/=]+)", raw))]
    assert not any(re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text) for text in shown)
    drawn = "".join(shown[1:])
    assert "_hidden" in drawn
    assert r"$\frac{1}$" in drawn
    assert "<script" not in drawn


@pytest.mark.parametrize("name", [*HOSTILE, "lone\ud800surrogate"])
def test_labels_are_short_visible_and_encodable(name: str) -> None:
    shown = wording.label(name)
    assert 0 < len(shown) <= 64
    assert shown.isprintable()
    shown.encode("utf-8")


def test_a_bare_audit_still_reads() -> None:
    """No candidate, no finding, no rule, no training records: everything says so instead of failing."""
    full = synthetic_audit()
    data = full.data.model_copy(update={"members": None})
    bare = full.model_copy(
        update={
            "candidates": full.candidates[:1],
            "findings": [],
            "policy": [],
            "release": [],
            "not_measured": [],
            "power": [],
            "limits": [],
            "declared": {},
            "environment": Environment(),
            "data": data,
            "verdict": "inconclusive",
            "deciding": ["No candidate is up for release."],
        }
    )
    text = Page(to_html(bare)).text
    assert "INCONCLUSIVE" in text
    assert "No risk was measured." in text
    assert "training records not given" in text


def test_what_was_not_counted_is_said() -> None:
    """A .tflite file has a size, and no counts: null in audit.json, words on the page."""
    full = synthetic_audit()
    counts = ("parameters", "nonzero_parameters", "macs", "entropy_bytes", "energy_uj_modelled", "energy_memory_share")
    bare = full.candidates[1].footprint.model_copy(update={**dict.fromkeys(counts), "macs_by_width": []})
    rows = [c.model_copy(update={"footprint": bare}) for c in full.candidates[:2]]
    few = full.model_copy(update={"candidates": rows, "findings": [], "policy": [], "release": []})
    read = Audit.model_validate_json(few.model_dump_json(by_alias=True))
    assert read.candidates[1].footprint.macs is None
    assert Page(to_html(read)).text.count("not counted") == 6
    mixed = few.model_copy(update={"candidates": [rows[0], full.candidates[1]]})
    assert {level.energy for level in footprint_views.levels(views.index(mixed))} == {None}


def test_writing_is_whole_or_not_at_all(tmp_path: Path, audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    old = GENERATOR.decode()  # another's would be refused before
    target.write_text(old)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crushproof.audit.writing.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        render(audit.model_copy(update={"findings": []}), target)
    assert target.read_text() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_picks_are_the_best_of_those_that_pass(audit: Audit) -> None:
    passing = [c for c in audit.candidates if c.verdict == "pass"]
    found = {what: c for what, c, _ in views.picks(views.index(audit))}
    assert found["Smallest that passes"].footprint.payload_bytes == min(c.footprint.payload_bytes for c in passing)
    times = {c.name: audit.environment.latency[c.name][0].p50 for c in passing}
    assert times[found["Fastest that passes"].name] == min(times.values())


def test_a_mend_is_named_only_where_it_was_measured(audit: Audit) -> None:
    ix = views.index(audit)
    assert "int8-advtrain" in price_views.cheapest_fix(ix, ix.candidates["int2"])
    assert "another recipe" in price_views.cheapest_fix(ix, ix.candidates["int2"])
    assert "None of the measured defenses" in price_views.cheapest_fix(ix, ix.candidates["channels50"])
    # Its hardened twin is inconclusive on robust accuracy, so it mends nothing yet.
    assert "None of the measured defenses" in price_views.cheapest_fix(ix, ix.candidates["student"])
    passed = [
        f.model_copy(update={"verdict": "pass"}) if f.id == "student-advtrain/evasion" else f for f in audit.findings
    ]
    ix = views.index(audit.model_copy(update={"findings": passed}))
    sentence = price_views.cheapest_fix(ix, ix.candidates["student"])
    assert "student-advtrain" in sentence
    assert "another recipe" not in sentence


def test_defenses_are_compared_with_the_same_recipe_without_them(audit: Audit) -> None:
    ix = views.index(audit)
    pairs = {
        h.candidate.name: h.plain.name if h.plain else None
        for h in defense_views.hardened_models(ix, views.columns(audit))
    }
    assert pairs["dense-dpsgd"] == "dense"
    assert pairs["int8-advtrain"] == "int8"
    assert pairs["int4-stochastic"] == "int4"
    assert pairs["int8-dpsgd"] is None  # "8-bit weights" alone was not audited without DP-SGD


def test_what_a_defense_only_seems_to_buy(audit: Audit) -> None:
    """Random rounding: the attacker without the stored draw; else the single attack that flatters most."""
    ix = views.index(audit)
    found = defense_views.naive(ix, ix.findings["int4-stochastic/evasion"])
    assert found is not None
    assert (found.name, found.estimate) == (ix.findings["int4-stochastic/evasion/without-draw"].attack, 0.66)
    found = defense_views.naive(ix, ix.findings["int8-advtrain/evasion"])
    assert found is not None
    assert found.name == "square alone"
    assert found.estimate == max(p.estimate or 0 for p in ix.findings["int8-advtrain/evasion"].parts)
    found = defense_views.naive(ix, ix.findings["int8-dpsgd/membership"])
    assert found is not None
    assert found.estimate == min(p.estimate or 1 for p in ix.findings["int8-dpsgd/membership"].parts)


def test_zero_gradients_that_only_the_hardened_model_has_look_like_a_win(audit: Audit) -> None:
    """Planted: a part that the model without the defense gave no cause for is held against all that it faced."""
    ix = views.index(audit)
    column = next(one for one in views.columns(audit) if "int8/evasion" in {f.id for f in one.findings.values()})
    base = ix.findings["int8/evasion"]
    part = {"name": "own", "estimate": 1.0, "low": 0.97, "high": 1.0, "skipped": None, "headline": False}
    masked = base.model_copy(update={"parts": [*base.parts, defense_views.Part.model_validate(part)]})
    found = defense_views.illusion(None, masked, base, column)
    assert found is not None
    assert found.name == "own alone"
    absent = base.parts[0].model_copy(update={"name": "own", "estimate": None, "skipped": "too slow"})
    without = base.model_copy(update={"parts": [*base.parts, absent]})
    assert defense_views.illusion(None, masked, without, column) is None


def test_difference_interval_is_newcombes() -> None:
    """Newcombe (1998), table II, method 10: 56/70 - 48/80 with Wilson intervals gives .2 [.0524, .3339]."""
    one = Estimate(estimate=56 / 70, low=0.6916, high=0.8771, n=70)
    other = Estimate(estimate=48 / 80, low=0.4904, high=0.7003, n=80)
    assert defense_views.difference(one, other) == pytest.approx((0.2, 0.0524, 0.3339), abs=2e-4)


def test_figures_read_as_people_write_them() -> None:
    assert wording.figure(0.0654, TPR) == "6.5\u00a0%"
    assert wording.figure(0.6118, AUC) == "0.612"
    assert wording.signed(-0.0321, ACCURACY) == "\u22123.2"
    assert wording.signed(-0.00001, AUC) == "0.000"
    assert wording.size(40_872) == "40.9\u00a0kB"
    assert wording.size(999_999) == "1\u00a0MB"
    assert wording.number(1e-5) == "1e\u22125"
    assert wording.number(12_345) == "12\u00a0345"
    assert wording.duration(224.0) == "3.73\u00a0min"
    assert wording.setting({"norm": "linf", "epsilon": 0.1}) == "L\u221e, eps 0.1"


def test_charts_survive_odd_figures() -> None:
    axis, log = charts.Axis("x"), charts.Axis("y", log=True, percent=True, ends=(0.01, 1.0))
    nothing = [charts.Series("a", [Point(x=0.0, estimate=0.0)], 1)]
    assert charts.lines("all zero on a logarithmic axis", nothing, log, log, key_rows=1) is None
    one = [charts.Series("a", [Point(x=0.1, estimate=0.5)], 1)]
    assert charts.lines("one point", one, axis, charts.Axis("y", percent=True), key_rows=1) is not None
    same = [dot_charts.Dot("a" * 300, 1.0, 1.0, 1.0, 1.0, "pass")] * 40
    assert dot_charts.quality_against_size(same, ACCURACY) is not None
    assert dot_charts.quality_against_size([], ACCURACY) is None


def test_a_promise_of_another_defense_is_told_in_its_own_terms() -> None:
    """Only a whole statement of differential privacy reads as one; anything else is listed."""
    for promise in ({"epsilon": 1.0}, {"epsilon": 1.0, "delta": "small", "steps": 3}, {"radius": 0.5}):
        told = defense_views.promise_words(promise)
        assert all(f"{key}: {value}" in told for key, value in promise.items())


def test_a_title_is_no_markup_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    audit = synthetic_audit()
    hostile = audit.metrics["robust_accuracy"].model_copy(update={"title": "a[/b]\x1b[31m"})
    print_audit(audit.model_copy(update={"metrics": {**audit.metrics, "robust_accuracy": hostile}}))
    printed = capsys.readouterr().out
    assert "a[/b]" in printed
    assert "\x1b" not in printed


def test_a_result_shows_its_table_and_verdict_and_no_markup_of_others() -> None:
    hostile = synthetic_audit(renamed={"int8": SCRIPT, "int4": HOSTILE[2], "prune50": "<b>&amp;"})
    result = AuditResult(hostile)
    text, html = repr(result), result._repr_html_()
    lines = text.splitlines()
    assert len(lines) == 2 + len(hostile.candidates) + len(hostile.deciding) + len(hostile.beside)
    assert lines[0].split()[:3] == ["candidate", "verdict", "accuracy"]
    assert "FAIL by policy release" in lines
    assert "\x1b" not in text + html
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "&lt;b&gt;&amp;amp;" in html
    assert html.count("<tr>") == 1 + len(hostile.candidates)


def test_the_report_names_what_was_left_out() -> None:
    policy = fitted(DEFAULT, [limit.model_copy(update={"left_out": NO_DENSE}) for limit in DEFAULT.limits])
    alone = judged_rows.candidate("a").model_copy(update={"parent": None, "quality_change": None})
    page = to_html(
        judged_rows.audit_of(
            [alone], [judged_rows.finding("a", "robust_accuracy", changes=[])], policy, {"policy": None}
        )
    )
    assert "policy “release, without changes: no dense model”" in page
    assert page.count("not judged: no dense model") == 4  # accuracy is, and error would be of another sort of model
    assert "Nothing could be judged" in page
    assert "1 candidate up for release: 1 not judged." in page


def test_what_describes_a_figure_stands_beside_it(audit: Audit, page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    """Distances and similarity in the table of each model, and fragile records by id; both with `--only`, too."""
    assert "above 0.15 [0.1, above 0.15]" in page.text, "most adversarially trained records withstand every epsilon"
    for text in ("0.0981 / 0.1", "0.931 / 0.712", "0.1 [0.05, 0.1]", audit.risks["evasion"].described):
        assert text in page.text
    assert "Most fragile records (of 14), by id: 3, 17, 21, 40, 58, 77, 102, 230, 311, 400." in page.text
    assert "They fell at epsilon 0.03, before any other." in page.text
    only = audit.model_copy(update={"findings": audit.findings[:1]})
    print_findings(only)
    printed = capsys.readouterr().out
    assert "SSIM, lowest: 0.712, n = " in printed
    assert "by id: 3, 17" in printed


def test_what_fools_one_model_is_shown_against_every_other(audit: Audit, html: str, page: Page) -> None:
    """Who was made on and who was asked cannot be mixed up: the shares are of one direction."""
    table = html.partition('<table class="heat">')[2].partition("</table>")[0]
    rows = table.split("<tr>")[2:]
    assert len(rows) == len(audit.candidates)
    assert [row.count("<td") for row in rows] == [len(rows)] * len(rows)
    assert audit.risks["evasion"].transferred in page.text
    first = {one.model: one for one in audit.findings[0].transfers}
    cells = rows[0].split("<td")[1:]
    for name, cell in zip([one.name for one in audit.candidates], cells, strict=True):
        wanted = "own" if name == "dense" else f"shade{min(4, int(5 * first[name].estimate))}"
        assert f'class="{wanted}"' in cell
        if name != "dense":
            assert f"{100 * first[name].estimate:.1f}" in cell
            assert "n = 120" in cell
    assert transfer_lines(audit) == [
        "transfer (robust accuracy): inputs made on dense fool another model in 30.4\u00a0% to 95.2\u00a0%; on another "
        "fool dense in 28.5\u00a0% to 95.1\u00a0%; on one of the rest fool another of them in 27.4\u00a0% to "
        "95.1\u00a0%"
    ]
    bare = audit.model_copy(update={"findings": [one.model_copy(update={"transfers": []}) for one in audit.findings]})
    assert transfer_lines(bare) == []
    with undrawn():
        assert '<table class="heat">' not in to_html(bare)
