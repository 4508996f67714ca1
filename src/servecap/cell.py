"""One place of the key performance matrix, and how its figures were come by."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Origin = Literal["measured", "predicted"]


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """The most users for whom the SLO holds.

    A search gives an interval: at its `confidence` the SLO holds for `users`, the number to
    promise, and no longer for `users_high + 1` (None: no upper end was found). `users` is 0 where
    not even one user is served within the SLO. A predicted capacity is a best estimate, and
    `users_low` to `users_high` is the range that holds the truth with `confidence`.
    """

    users: int
    users_high: int | None
    users_low: int | None = None  # of a prediction only: what a search promises is `users` itself
    confidence: float | None = None  # of each level's verdict; None: imported without one
    limited_by: str | None = None  # the limit that broke first, as the SLO writes it

    @property
    def high(self) -> float | None:
        """The upper end of the interval."""
        return self.users_high

    @property
    def named(self) -> float:
        """The number to promise."""
        return self.users


class RateCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """The most requests/s for which the SLO holds while they come for ever.

    At its `confidence` the limit lies within `rate_rps`, the rate to promise, and `rate_high_rps`
    (None: no upper end was found). `rate_rps` is 0 where no rate was shown to be carried.
    """

    rate_rps: float
    rate_high_rps: float | None
    confidence: float
    limited_by: str | None = None  # what breaks first: a limit of the SLO, or "saturation"
    answered_rps: float | None = None  # by a server that always has work; None: never reached
    answered_error: float | None = None  # its standard error, as a share

    @property
    def high(self) -> float | None:
        """The upper end of the interval."""
        return self.rate_high_rps

    @property
    def named(self) -> float:
        """The rate to promise."""
        return self.rate_rps


class Modelled(msgspec.Struct, frozen=True, kw_only=True):
    """What a predicted cell was predicted on, so that a simulation of a fleet can be of the same.

    Spreads are standard deviation / mean of the tokens of prompts and answers.
    """

    engine: dict[str, Any]  # the engine's settings, as `engine.spec.EngineSpec` has them
    prompt_spread: float
    output_spread: float


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """model x GPU x tensor-parallel degree x scenario, at its capacity.

    Figures hold for one instance of `tp` GPUs carrying `capacity.users` users. A figure that is
    unknown, or that was seen to be impossible, is None and `notes` says why.
    """

    model: str
    gpu: str
    tp: int
    scenario: str
    origin: Origin
    provenance: str  # run folder, file and line, or the engine model's name
    capacity: Capacity | None = None  # None: no belief can be had (see invalid_reason)
    gpu_memory_gb: float | None = None
    interconnect: str | None = None
    avg_context_tokens: float | None = None  # prompt + output
    avg_output_tokens: float | None = None
    error_rate: float | None = None
    ttft_s: float | None = None  # mean at capacity
    tpot_s: float | None = None  # mean at capacity
    requests_per_s: float | None = None
    output_tokens_per_s: float | None = None
    total_tokens_per_s: float | None = None  # prompt + output
    slo: str | None = None  # the SLO that the capacity was found under, if known
    invalid_reason: str | None = None
    notes: tuple[str, ...] = ()
    modelled: Modelled | None = None  # of a prediction by the engine model, if that is known
