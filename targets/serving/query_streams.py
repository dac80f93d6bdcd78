"""Whether somebody who watches the queries of one client would notice (PRADA, Juuti et al. 2019, arXiv:1805.02628)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import scipy  # its parts load where they are first used
import torch
from torch import Tensor

from ..errors import InputError
from ..seeds import generator

Distances = np.ndarray[Any, np.dtype[np.float32]]

WATCHED = 2000  # of the first queries distances are taken
FEATURES = 1024  # of a record, beyond which distances are those of a random projection
NONE = -1.0  # the distance of the first query of a class, which has none to be near to
ENOUGH = 100  # distances, from which the watcher judges
EVERY = 10  # distances, at which it judges again
MARGIN = 0.03  # below what honest queries reach; of digits, the lowest of one client lay .02 under another's at most
CLIENTS = 1000  # whose queries a watcher keeps, up to `WATCHED` of each: 8 MB a client of the largest records
DELTA = 0.95  # the threshold where honest queries reach no lower


class Stream:
    """The queries of one client so far.

    Attributes:
        distances: of each query to the nearest earlier one of its class; `NONE` for the first of a class.
    """

    def __init__(self) -> None:
        self.distances: list[float] = []
        self._classes: dict[int, _Joined] = {}

    def add(self, x: Tensor, labels: Tensor) -> None:
        """Queries float32 [n, *shape], in the order in which they are asked, and the answers int64 [n].

        As in PRADA a query joins those of its class only if it is far enough from them: further than the mean less one
        standard deviation of the distances at which others joined. L2, of the first `WATCHED` queries.
        """
        x = x[: WATCHED - len(self.distances)].flatten(1).cpu()
        if x.shape[1] > FEATURES:  # distances survive it (Johnson and Lindenstrauss 1984)
            stream = generator(0, "watched")
            x = x @ torch.randn(x.shape[1], FEATURES, generator=stream).div_(FEATURES**0.5)
        for one, label in zip(x.numpy(), labels[: len(x)].tolist(), strict=True):
            joined = self._classes.get(label)
            if joined is None:
                self._classes[label] = _Joined(one)
                self.distances.append(NONE)
            else:
                self.distances.append(joined.offer(one))


class _Joined:
    """The queries of one class that joined, in arrays with room for more, and from which distance on others do."""

    def __init__(self, first: Distances) -> None:
        self._rows, self._at = first[None].copy(), np.zeros(1)
        self._count, self._limit = 1, 0.0

    def offer(self, row: Distances) -> float:
        """The distance of a query to the nearest of them; it joins if that is far enough."""
        nearest = float(np.sqrt(np.square(self._rows[: self._count] - row).sum(1).min()))
        if nearest > self._limit:
            if self._count == len(self._at):
                self._rows, self._at = (np.concatenate([one, np.empty_like(one)]) for one in (self._rows, self._at))
            self._rows[self._count], self._at[self._count] = row, nearest
            self._count += 1
            distances = self._at[: self._count]
            self._limit = max(self._limit, float(distances.mean() - distances.std()))
        return nearest


def shortest_distances(x: Tensor, labels: Tensor) -> Distances:
    """`Stream.distances` of these queries alone: float32 [n], n at most `WATCHED`."""
    stream = Stream()
    stream.add(x, labels)
    return np.array(stream.distances, dtype=np.float32)


class Watcher:
    """Tells whose queries look like an extraction: each client's by themselves.

    It notices steps from earlier queries (Jacobian augmentation). It does not notice who asks records like an honest
    client's, or mixes of them, asks as many honest ones as others, or under many names: a budget bounds these.

    Args:
        below: the statistic of normality below which they do.
        clients: whose queries are kept. Of more, those of whoever has not asked for longest are forgotten, and it
            begins anew; who was noticed stays so.
    """

    def __init__(self, below: float, clients: int = CLIENTS) -> None:
        self.below, self.clients = below, clients
        self._streams: OrderedDict[str, Stream] = OrderedDict()
        self._judged: dict[str, int] = {}
        self._noticed: dict[str, int] = {}

    @classmethod
    def calibrated(cls, x: Tensor, labels: Tensor) -> Watcher:
        """One that lets pass what is like these queries of honest clients, as `Stream.add` takes them.

        Raises:
            InputError: they are too few to be judged, or all alike.
        """
        below = threshold(shortest_distances(x, labels))
        if below is None:
            raise InputError(
                f"{len(x)} honest queries are too few to tell others from: give {2 * ENOUGH} or more, as one client "
                "would ask them."
            )
        if below <= MARGIN:
            raise InputError("The honest queries are as far from each other as copies: give what a client would ask.")
        return cls(below - MARGIN)

    def noticed(self, client: str) -> int | None:
        """After how many queries the client was taken for a thief; None: it was not."""
        return self._noticed.get(client)

    def see(self, client: str, x: Tensor, labels: Tensor) -> None:
        """The client's next queries and their answers, as `Stream.add` takes them."""
        stream = self._streams.setdefault(client, Stream())
        self._streams.move_to_end(client)
        if len(self._streams) > self.clients:
            self._forget(next(iter(self._streams)))
        stream.add(x, labels)
        new = normality(np.array(stream.distances, dtype=np.float32), beyond=self._judged.get(client, 0))
        self._judged[client] = max([self._judged.get(client, 0), *(count for count, _ in new)])
        for count, statistic in new:
            if statistic < self.below:
                self._noticed.setdefault(client, count)
        if client in self._noticed:
            self._forget(client)  # it is not asked about again

    def _forget(self, client: str) -> None:
        self._streams.pop(client, None)
        self._judged.pop(client, None)


def normality(distances: Distances, beyond: int = 0) -> list[tuple[int, float]]:
    """(queries asked, the Shapiro-Wilk statistic of their distances so far), at every tenth distance from the 100th on.

    Distances beyond three standard deviations are left out, as in PRADA. An honest client's are about normal: the
    statistic is near 1.

    Args:
        beyond: queries by which it was judged before.
    """
    known = np.flatnonzero(distances >= 0)
    judged = []
    for count in range(ENOUGH, len(known) + 1, EVERY):
        if known[count - 1] < beyond:
            continue
        so_far = distances[known[:count]].astype(np.float64)
        usual = so_far[np.abs(so_far - so_far.mean()) <= 3 * so_far.std()]
        same = np.ptp(usual) == 0  # as normal as nothing can be
        judged.append((int(known[count - 1]) + 1, 0.0 if same else float(scipy.stats.shapiro(usual).statistic)))
    return judged


def threshold(honest: Distances) -> float | None:
    """The statistic below which the watcher takes a client for an attacker: `DELTA`, or what these honest ones reach.

    None where they are too few to be judged.
    """
    reached = [statistic for _, statistic in normality(honest)]
    return min(DELTA, *reached) if reached else None


def noticed_after(distances: Distances, below: float) -> int | None:
    """The number of queries after which the watcher would notice; None: it would not."""
    return next((queries for queries, statistic in normality(distances) if statistic < below), None)
