"""The service level objective: which limits must hold, parsed from and printed as one line."""

from __future__ import annotations

import re

import msgspec

from servecap.errors import UsageError

# metric -> unit class; the names users write on the command line, see docs/methodology.md
METRICS = {"ttft": "s", "tpot": "s", "e2e": "s", "gap": "s", "queue": "s", "error_rate": "share"}
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
DEFAULT_ERROR_SHARE_MAX = 0.05
DEFAULT_SLO_TEXT = "ttft.mean<3s,tpot.mean<100ms"

_TERM = re.compile(
    r"^(?P<metric>[a-z][a-z0-9_]*?)(?:\.(?P<stat>[a-z0-9]+))?\s*<=?\s*(?P<value>[0-9.eE+-]+)\s*(?P<unit>us|ms|s|%)?$"
)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`metric`.`statistic` must stay at or below `at_most_s` (seconds)."""

    metric: str
    statistic: str
    at_most_s: float

    def __str__(self) -> str:
        return f"{self.metric}.{self.statistic}<{_duration(self.at_most_s)}"

    @property
    def quantile(self) -> float | None:
        """0.99 for p99; None for the mean; 1.0 for max."""
        if self.statistic == "mean":
            return None
        return 1.0 if self.statistic == "max" else int(self.statistic[1:]) / 100


class Slo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All limits must hold, and at most `error_share_max` of the requests may fail."""

    limits: tuple[Limit, ...]
    error_share_max: float = DEFAULT_ERROR_SHARE_MAX

    def __str__(self) -> str:
        return ",".join([*map(str, self.limits), f"error_rate<{self.error_share_max * 100:g}%"])

    def limit(self, metric: str, statistic: str = "mean") -> Limit | None:
        """The limit on that metric and statistic, if there is one."""
        for limit in self.limits:
            if limit.metric == metric and limit.statistic == statistic:
                return limit
        return None


def _duration(seconds: float) -> str:
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1e3:g}ms"


def parse(text: str) -> Slo:
    """The SLO written as `metric.statistic<value` terms joined by commas.

    Times need a unit (s, ms, us); `error_rate<1%` (or `<0.01`) bounds the share of failures.

    Raises:
        UsageError: a term cannot be read; the message names it and what is allowed.

    >>> str(parse("ttft.mean<3s, tpot.p99<100ms, error_rate<1%"))
    'ttft.mean<3s,tpot.p99<100ms,error_rate<1%'
    """
    limits: list[Limit] = []
    share: float | None = None
    for term in (t.strip() for t in text.split(",")):
        if not term:
            continue
        match = _TERM.match(term.lower())
        if match is None:
            raise _bad(term, "write it as metric.statistic<value, for example ttft.mean<3s")
        metric, stat, unit = match["metric"], match["stat"], match["unit"]
        try:
            value = float(match["value"])
        except ValueError:
            raise _bad(term, f"{match['value']!r} is not a number") from None
        if metric not in METRICS:
            raise _bad(term, f"metric {metric!r} is not one of {', '.join(METRICS)}")
        if metric == "error_rate":
            if share is not None:
                raise UsageError(f"SLO {text!r} limits error_rate twice; keep one of the two")
            share = _share(term, value, unit, stat)
            continue
        limits.append(_time_limit(term, metric, stat or "mean", value, unit))
    if not limits:
        raise UsageError(f"SLO {text!r} has no latency limit; for example {DEFAULT_SLO_TEXT}")
    names = [(limit.metric, limit.statistic) for limit in limits]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"SLO {text!r} limits {'.'.join(name)} twice; keep one of the two")
    return Slo(tuple(limits), DEFAULT_ERROR_SHARE_MAX if share is None else share)


def _time_limit(term: str, metric: str, stat: str, value: float, unit: str | None) -> Limit:
    if stat not in STATISTICS:
        raise _bad(term, f"statistic {stat!r} is not one of {', '.join(STATISTICS)}")
    if unit not in _SECONDS:
        raise _bad(term, "give the time a unit: s, ms or us")
    if not 0 < value < float("inf"):
        raise _bad(term, "the limit must be greater than 0")
    return Limit(metric, stat, value * _SECONDS[unit])


def _share(term: str, value: float, unit: str | None, stat: str | None) -> float:
    if stat is not None or unit in _SECONDS:
        raise _bad(term, "write it as error_rate<1% or error_rate<0.01")
    share = value / 100 if unit == "%" else value
    if not 0 <= share <= 1:
        raise _bad(term, f"the share {share:g} is not within 0 and 1 (did you forget the %?)")
    return share


def _bad(term: str, why: str) -> UsageError:
    return UsageError(f"SLO term {term!r} cannot be read: {why}")


DEFAULT = parse(DEFAULT_SLO_TEXT)
