"""Checks that a device can make of the weights it holds: a keyed checksum for each group of bytes, and one digest."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...targets.seeds import generator
from .stored import Flip, Stored

Octets = np.ndarray[Any, np.dtype[np.uint8]]
Sums = np.ndarray[Any, np.dtype[np.int32]]
DIGEST = "a digest of all"
# Of a group's sum, which bits are kept: the lowest of them, and how many.
SIGNATURES = {"keyed checksums of 8 bits": (0, 8), "of 2 bits (RADAR)": (7, 2)}
CHECKS = (*SIGNATURES, DIGEST)


@dataclass(frozen=True)
class Noticed:
    """What the checks say of a file with some bits flipped.

    Args:
        by: for each of `SIGNATURES`, whether a group's signature is no longer what it was; for the digest likewise.
        altered, seen: groups with a flipped bit, and those of them whose whole checksum changed.
    """

    by: tuple[bool, ...]
    altered: int
    seen: int


def octets(tensors: Sequence[Stored], flips: Iterable[Flip] = ()) -> Octets:
    """uint8 [bytes]: the parameters as they are stored, one tensor after the other, these bits flipped."""
    parts = [_packed(one) for one in tensors]
    for flip in flips:
        place = flip.element * tensors[flip.tensor].width + flip.bit
        parts[flip.tensor][place // 8] ^= np.uint8(1 << place % 8)
    return np.concatenate(parts)


def _packed(one: Stored) -> Octets:
    if one.width >= 8:
        whole: Octets = one.raw.astype(f"<u{one.width // 8}").view(np.uint8).copy()
        return whole
    per = 8 // one.width
    padded = np.zeros(math.ceil(len(one.raw) / per) * per, np.uint8)
    padded[: len(one.raw)] = one.raw
    shifts = np.arange(per, dtype=np.uint8) * np.uint8(one.width)
    together: Octets = np.bitwise_or.reduce(padded.reshape(-1, per) << shifts, axis=1).astype(np.uint8)
    return together


class Checksums:
    """Keyed signatures of groups of bytes (RADAR, Li et al. 2021, arXiv:2101.08254).

    The bytes of a group lie scattered, each enters its sum with a sign, and both follow from a key that the attacker
    does not have. It is made to be checked while the model runs: an addition a byte. RADAR keeps two bits of a sum,
    those worth 128 and 256, which only flips of a byte's upper bits change; the lowest eight show every single flip.

    Args:
        size: how many bytes there are; group: how many go into one signature.
        key: an integer; only who knows it can tell which bytes belong together.
    """

    def __init__(self, size: int, group: int, key: int) -> None:
        self.groups = math.ceil(size / group)
        padded = self.groups * group
        self._order = torch.randperm(padded, generator=generator(key, "order")).numpy()
        self._signs = (2 * torch.randint(2, (padded,), generator=generator(key, "signs")) - 1).numpy().astype(np.int32)
        self._size, self._group = size, group

    def sums(self, content: Octets) -> Sums:
        """int32 [groups], of `size` bytes."""
        padded = np.zeros(len(self._order), np.int32)
        padded[: self._size] = content.view(np.int8)
        sums: Sums = (padded[self._order] * self._signs).reshape(self.groups, self._group).sum(1, dtype=np.int32)
        return sums

    def group_of(self, place: int) -> int:
        """Which group a byte is in."""
        return int(np.flatnonzero(self._order == place)[0]) // self._group


def signatures(sums: Sums, kind: str) -> Octets:
    """uint8 [groups]: the bits of each sum that are kept."""
    lowest, bits = SIGNATURES[kind]
    kept: Octets = ((sums >> lowest) & (2**bits - 1)).astype(np.uint8)
    return kept


def noticed(tensors: Sequence[Stored], flips: Sequence[Flip], group: int, key: int) -> Noticed:
    """What the checks say, the signatures and the digest of the intact file being known."""
    intact, now = octets(tensors), octets(tensors, flips)
    checks = Checksums(len(intact), group, key)
    before, after = checks.sums(intact), checks.sums(now)
    changed = [signatures(before, kind) != signatures(after, kind) for kind in SIGNATURES]
    altered = {checks.group_of(int(place)) for place in np.flatnonzero(intact != now)}
    digests = [hashlib.sha256(one.tobytes()).digest() for one in (intact, now)]
    seen = sum(bool(changed[0][one]) for one in altered)
    return Noticed((*(bool(one.any()) for one in changed), digests[0] != digests[1]), len(altered), seen)
