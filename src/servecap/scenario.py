"""What is tested: the workload, the load on it, when to stop, and the limits it is held to."""

from __future__ import annotations

from typing import Literal

import msgspec

from servecap import slo
from servecap.schedule import Schedule, course

Timings = Literal["client", "server", "both"]


class Replay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a trace is played: time_scale 10 in a tenth of its time, rate_scale 0.5 half its rows.

    Where `rate_scale` is above 1, rows are repeated: each copy is a request of its own, due at a
    random time between its row and the next.
    """

    time_scale: float = 1.0
    rate_scale: float = 1.0


class WorkloadSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which prompts are sent and how long their answers shall be.

    `source`: a built-in name (chat-en, chat-zh, docqa-en, docqa-zh, docqa), `fixed:IN/OUT`,
    the path of a data set or, with `replay`, of a trace; or a mix of those, "mix:70%A,30%B".
    `output`: "data" asks for exactly the answer length found in the
    data, "natural" lets the model end by itself, a number asks for exactly that many tokens.
    `sessions`: all turns of each conversation are sent, one after another with the history.
    """

    source: str = "chat-en"
    format: str | None = None  # of a file; None: told from its content
    output: str = "data"
    unique: bool = True  # mark each prompt so that no two are equal (no prefix-cache hits)
    tokenizer: str | None = None  # path of a tokenizer.json; None: estimate until the server tells
    replay: Replay | None = None
    sessions: bool = False


class Exponential(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="exponential"
):
    """Think times without memory, in seconds."""

    mean_s: float


class Lognormal(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="lognormal"
):
    """Think times with a long tail: mean in seconds, and standard deviation over mean."""

    mean_s: float
    cv: float = 1.0


class Measured(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="measured"
):
    """Think times drawn, each alike, from those given, in seconds."""

    values_s: tuple[float, ...]


Think = Exponential | Lognormal | Measured


def _mean_s(think_s: tuple[float, float], think: Think | None) -> float:
    match think:
        case None:
            return sum(think_s) / 2
        case Measured(values_s=values_s):
            return sum(values_s) / len(values_s)
        case Exponential(mean_s=mean_s) | Lognormal(mean_s=mean_s):
            return mean_s


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
    `users_before`: so many were there already and go on, those above `users` leave after their
    answer, and only newcomers ramp in; None: all start anew.
    Think times are uniform within `think_s`, unless `think` tells another distribution.
    """

    users: int
    think_s: tuple[float, float] = (1.0, 3.0)
    queue: int | None = None
    each: int | None = None
    ramp_s: float | None = None
    think: Think | None = None
    users_before: int | None = None

    @property
    def think_mean_s(self) -> float:
        """The mean of the think times."""
        return _mean_s(self.think_s, self.think)


class OpenLoop(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="open",
):
    """Requests arrive at `rate_rps` whatever the server does; each is a user of its own.

    `arrivals`: gaps that are equal (constant), without memory (poisson), gamma distributed with
    standard deviation over mean `cv`, or those of the workload's trace (trace; `rate_rps` is then
    the mean over it). With a `schedule` the rate changes with time. `rate_before_rps`: the load
    went on from that rate; None: it starts anew. With think times (as in `ClosedLoop`) it is
    *sessions* that arrive, and a user who has come sends the next turn when the answer has ended
    and the think time is over.
    """

    rate_rps: float
    arrivals: Literal["poisson", "constant", "gamma", "trace"] = "poisson"
    cv: float = 1.0
    schedule: Schedule | None = None
    max_in_flight: int = 20_000
    rate_before_rps: float | None = None
    think_s: tuple[float, float] | None = None
    think: Think | None = None

    @property
    def of_sessions(self) -> bool:
        """Whether sessions arrive, and the rate is theirs."""
        return self.think_s is not None or self.think is not None

    @property
    def think_mean_s(self) -> float | None:
        """The mean of the think times between turns; None where requests arrive alone."""
        return _mean_s(self.think_s or (0.0, 0.0), self.think) if self.of_sessions else None

    @property
    def peak_rps(self) -> float:
        """The highest rate at any time; of a trace, the mean, which is all that is known here."""
        pieces = course(self.rate_rps, self.schedule).pieces
        return max(max(piece.from_rps, piece.to_rps) for piece in pieces)

    @property
    def stationary(self) -> bool:
        """Whether the load is the same at all times, so that a run under it can settle."""
        return self.schedule is None and self.arrivals != "trace"


Load = ClosedLoop | OpenLoop


class StopRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When there is enough: `requests` ended in the stationary window, or `duration_s` passed.

    `duration_s` given: the run lasts exactly that long. Otherwise it goes on until the window
    holds `requests` requests and two cycles, at most until `max_duration_s`; with `decide` it ends
    earlier where the SLO is broken by far and nothing recovers, or an open loop's queue grows
    without bound, and its window is at least `least_s` long. A `soak` is a long run of
    `duration_s` of which only the latest records are held in memory.
    """

    requests: int = 250
    decide: bool = False
    least_s: float = 0.0
    duration_s: float | None = None
    max_duration_s: float = 900.0
    soak: bool = False


RETRIES_MOST = 10  # more would keep a server that is down under fire


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a request is given up, in seconds since it was sent (gap: since the last read)."""

    connect_s: float = 10.0
    first_token_s: float = 120.0
    gap_s: float = 60.0
    total_s: float = 600.0


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what is sent and how it is judged; with `seed` it is repeatable.

    `retries`: how often a request that was turned away is sent again (`load.retries`).
    """

    load: Load
    workload: WorkloadSpec = msgspec.field(default_factory=WorkloadSpec)
    slo: slo.Slo = slo.DEFAULT
    stop: StopRule = msgspec.field(default_factory=StopRule)
    timeouts: Timeouts = msgspec.field(default_factory=Timeouts)
    timings: Timings = "client"
    seed: int = 0
    retries: int = 0

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
