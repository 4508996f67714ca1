"""Several workloads in one: each request, or session, is drawn from one of them by its share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec

from servecap import rand
from servecap.errors import UsageError
from servecap.record import Request

PREFIX = "mix:"
_SUM_SLACK = 0.1  # percent that the shares may miss 100 by: 33.3% three times is meant


def parse(source: str) -> list[tuple[float, str]]:
    """Shares (together 1) and workloads in "mix:70%chat-en,20%docqa-en,10%FILE".

    Raises:
        UsageError: it is not written so, or the shares are not 100% together.
    """
    parts: list[tuple[float, str]] = []
    for text in source.removeprefix(PREFIX).split(","):
        share, sign, name = text.partition("%")
        try:
            percent = float(share)
        except ValueError:
            percent = math.nan
        if not sign or not name.strip() or not 0 < percent <= 100:
            raise UsageError(
                f"workload {source!r}: {text!r} is no share of a workload; write"
                " mix:70%chat-en,30%docqa-en"
            )
        parts.append((percent / 100, name.strip()))
    total = sum(share for share, _ in parts)
    if abs(total - 1) > _SUM_SLACK / 100:
        raise UsageError(f"workload {source!r}: the shares are {total:.4g} of 1 together, not all")
    return [(share / total, name) for share, name in parts]


def merged(
    shares: Sequence[float], streams: Sequence[Iterator[Request]], seed: int, first_id: int
) -> Iterator[Request]:
    """Requests of all streams in the order drawn, numbered anew; sessions stay in one piece."""
    rng = rand.stream(seed, "workload", "mix")
    places, request_id = range(len(streams)), first_id
    while True:
        place = rng.choices(places, shares)[0]
        turns_left = 1
        while turns_left:
            request = next(streams[place], None)
            if request is None:
                return
            turns_left = request.turns_left
            session = request.session
            yield msgspec.structs.replace(
                request,
                request_id=request_id,
                part=place,
                session=None if session is None else session * len(streams) + place,
            )
            request_id += 1
