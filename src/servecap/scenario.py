"""What is tested: the workload, the load on it, when to stop, and the limits it is held to."""

from __future__ import annotations

from typing import Literal

import msgspec

from servecap import slo

Timings = Literal["client", "server", "both"]


class WorkloadSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which prompts are sent and how long their answers shall be.

    `source`: a built-in name (chat-en, chat-zh, docqa-en, docqa-zh, docqa), `fixed:IN/OUT`,
    or the path of a data set. `output`: "data" asks for exactly the answer length found in the
    data, "natural" lets the model end by itself, a number asks for exactly that many tokens.
    """

    source: str = "chat-en"
    format: str | None = None  # of a file; None: told from its content
    output: str = "data"
    unique: bool = True  # mark each prompt so that no two are equal (no prefix-cache hits)
    tokenizer: str | None = None  # path of a tokenizer.json; None: estimate until the server tells


class ClosedLoop(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="closed",
):
    """N users all the time: each sends, reads to the end, thinks, and sends again.

    `queue`: the classic stop rule, that many requests in all, all users starting at once.
    `each`: the older test, every user sends that many requests and leaves.
    `ramp_s`: users start spread over this time; None: over one cycle (response + mean think).
    """

    users: int
    think_s: tuple[float, float] = (1.0, 3.0)
    queue: int | None = None
    each: int | None = None
    ramp_s: float | None = None


class OpenLoop(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="open",
):
    """Requests arrive at `rate_rps` whatever the server does; each is a user of its own."""

    rate_rps: float
    arrivals: Literal["poisson", "constant"] = "poisson"
    max_in_flight: int = 20_000


Load = ClosedLoop | OpenLoop


class StopRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When there is enough: `requests` ended in the stationary window, or `duration_s` passed.

    `duration_s` given: the run lasts exactly that long. Otherwise it goes on until the window
    holds `requests` requests and two cycles, at most until `max_duration_s`; with `decide`, until
    it also tells whether the SLO holds, looking at 1, 2 and at last 4 times `requests`.
    """

    requests: int = 250
    decide: bool = False
    duration_s: float | None = None
    max_duration_s: float = 900.0


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a request is given up, in seconds since it was sent (gap: since the last read)."""

    connect_s: float = 10.0
    first_token_s: float = 120.0
    gap_s: float = 60.0
    total_s: float = 600.0


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what is sent and how it is judged; with `seed` it is repeatable."""

    load: Load
    workload: WorkloadSpec = msgspec.field(default_factory=WorkloadSpec)
    slo: slo.Slo = slo.DEFAULT
    stop: StopRule = msgspec.field(default_factory=StopRule)
    timeouts: Timeouts = msgspec.field(default_factory=Timeouts)
    timings: Timings = "client"
    seed: int = 0

    @property
    def users(self) -> int | None:
        """The closed loop's population; None for open-loop load."""
        return self.load.users if isinstance(self.load, ClosedLoop) else None


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The endpoint under test. Keys and secret headers are never part of it."""

    url: str
    api: str
    model: str | None = None
    stream: bool = True
    server: str | None = None  # what the server calls itself, if it does
