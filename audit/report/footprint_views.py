"""What compression bought: the level table, the speed that was measured, the footprint in full."""

from __future__ import annotations

from dataclasses import dataclass

from ..schema import wording
from ..schema.file_rows import Kernels
from ..schema.rows import Candidate
from .views import Index, latency

LEVELS = (2, 4, 8, 16)
AS_FAST = 1.05  # a ratio of two medians below it is no gain worth the name


@dataclass(frozen=True)
class Level:
    """The candidate of a size level: the least loss among those at least so many times smaller than the dense model.

    Args:
        speed: dense median / the candidate's, by batch size; above 1 is faster. Empty: not timed.
        energy: dense energy / the candidate's, modelled.
    """

    times: int
    candidate: Candidate | None
    speed: dict[int, float]
    energy: float | None


def levels(ix: Index) -> list[Level]:
    """The table of sizes, from the audit's own candidates; empty without a dense model to compare with."""
    if ix.plain is None:
        return []
    made = []
    for times in LEVELS:
        fitting = [
            c for c in ix.audit.candidates if c.role == "candidate" and c.defense is None and c.footprint.ratio >= times
        ]
        best = max(fitting, key=lambda c: (c.merit, c.footprint.ratio), default=None)
        energy, dense = None, ix.plain.footprint.energy_uj_modelled
        if best is not None and best.footprint.energy_uj_modelled and dense is not None:
            energy = dense / best.footprint.energy_uj_modelled
        made.append(Level(times, best, {} if best is None else speeds(ix, best), energy))
    return made


def speeds(ix: Index, candidate: Candidate) -> dict[int, float]:
    """How many times faster than the plain dense model, by batch size, on this machine."""
    if ix.plain is None:
        return {}
    found = {}
    for row in ix.audit.environment.latency.get(candidate.name, []):
        dense = latency(ix.audit, ix.plain.name, row.batch)
        if dense is not None and row.p50 > 0:
            found[row.batch] = dense / row.p50
    return found


def speed_words(ix: Index) -> str:
    """One sentence on what integer kernels bought here; empty where nothing computes in integers."""
    timed = {c.name: speeds(ix, c) for c in ix.audit.candidates if c.role != "dense" and in_integers(c.kernels)}
    best = {name: max(by_batch.values()) for name, by_batch in timed.items() if by_batch}
    if not best:
        return ""
    name = max(best, key=best.__getitem__)
    if best[name] < AS_FAST:
        return (
            f"Integer arithmetic buys no speed on this model and machine: the fastest model that computes in integers, "
            f"{wording.label(name)}, is {best[name]:.2f} times as fast as the dense one. Small layers cost more to "
            "round than they save; it buys size."
        )
    return (
        f"Integer arithmetic buys speed here: {wording.label(name)} is up to {best[name]:.2f} times as fast as dense."
    )


def in_integers(kernels: Kernels | None) -> bool:
    return kernels is not None and kernels.integer > 0


def kernel_words(kernels: Kernels | None) -> str:
    """`9 integer, 2 float`; what ONNX Runtime really runs."""
    if kernels is None:
        return "not run by ONNX Runtime"
    return f"{kernels.integer} integer, {kernels.floating} float"


def width_words(candidate: Candidate) -> str:
    """`8x8 bit: 92 %, float: 8 %` of the multiply-accumulates, widest share first."""
    total = sum(row.macs for row in candidate.footprint.macs_by_width)
    if not total:
        return "none"
    shares: dict[str, int] = {}
    for row in candidate.footprint.macs_by_width:
        wide = row.weight_bits >= 32 and row.activation_bits >= 32
        name = "float" if wide else f"{row.weight_bits}\u00d7{row.activation_bits} bit"
        shares[name] = shares.get(name, 0) + row.macs
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * macs / total:.0f} %" for name, macs in ordered)
