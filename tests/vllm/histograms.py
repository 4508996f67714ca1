"""What a server's Prometheus histograms say of the requests between two looks at them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Histogram:
    """`at_most[i]` of the `count` values are <= `edges_s[i]`; their sum is exact."""

    edges_s: tuple[float, ...]
    at_most: tuple[int, ...]
    sum_s: float
    count: int

    def __sub__(self, earlier: Histogram) -> Histogram:
        return Histogram(
            self.edges_s,
            tuple(a - b for a, b in zip(self.at_most, earlier.at_most, strict=True)),
            self.sum_s - earlier.sum_s,
            self.count - earlier.count,
        )

    @property
    def mean_s(self) -> float:
        return self.sum_s / self.count

    def bucket_of(self, quantile: float) -> tuple[float, float]:
        """Lower and upper edge of the bucket that the quantile lies in: all that can be told."""
        rank = quantile * self.count
        for number, (edge, below) in enumerate(zip(self.edges_s, self.at_most, strict=True)):
            if below >= rank:
                return (self.edges_s[number - 1] if number else 0.0), edge
        raise ValueError("an empty histogram has no quantiles")


def read_histogram(text: str, name: str) -> Histogram:
    """The histogram of that name on a Prometheus page, over all its labels.

    Raises:
        KeyError: there is none.
    """
    buckets: dict[float, float] = {}
    total = count = 0.0
    for family in text_string_to_metric_families(text):
        if family.name != name or family.type != "histogram":
            continue
        for sample in family.samples:
            if sample.name == f"{name}_bucket":
                edge = float(sample.labels["le"])
                buckets[edge] = buckets.get(edge, 0.0) + sample.value
            elif sample.name == f"{name}_sum":
                total += sample.value
            elif sample.name == f"{name}_count":
                count += sample.value
    if not buckets:
        raise KeyError(name)
    edges = tuple(sorted(buckets))
    return Histogram(edges, tuple(int(buckets[e]) for e in edges), total, int(count))


def earlier_than_server(client_s: Iterable[float], server: Histogram) -> int:
    """By how many values the client is ahead of the server at the edge where it is most.

    What reaches the client is later than what left the server, so below no edge can it have more
    values than the server: a positive number is an error of one of the two clocks.
    """
    values = sorted(client_s)
    return max(
        bisect_right(values, edge) - below
        for edge, below in zip(server.edges_s, server.at_most, strict=True)
    )
