"""Gates: changes for the worse that are too much, held against a comparison."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import msgspec

from servecap.compare import Comparison, known, lower_is_better
from servecap.errors import UsageError
from servecap.metrics import Verdict

_GATE = re.compile(r"^(?P<metric>[a-z0-9_.]+)\s*(?P<sign>[<>])\s*(?P<bound>[+-]?[0-9.]+)\s*%$")


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """A change for the worse that is too much: `bound` is signed, as in ttft.p95>5%, qps<-5%."""

    metric: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{'>' if lower_is_better(self.metric) else '<'}{self.bound * 100:g}%"


class GateCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A gate held against a comparison: FAIL only where the change for the worse is shown."""

    gate: Gate
    verdict: Verdict
    reason: str


def parse_gates(texts: Sequence[str]) -> tuple[Gate, ...]:
    """Gates from terms joined by commas, such as `ttft.p95>5%,qps<-5%`.

    Raises:
        UsageError: a term cannot be read, or bounds a change for the better.

    >>> [str(gate) for gate in parse_gates(["ttft.p95>5%, qps<-2.5%"])]
    ['ttft.p95>5%', 'qps<-2.5%']
    """
    return tuple(_gate(term.strip()) for text in texts for term in text.split(",") if term.strip())


def _gate(term: str) -> Gate:
    match = _GATE.match(term.lower())
    try:
        bound = float(match["bound"]) / 100 if match else math.nan
    except ValueError:
        bound = math.nan
    if match is None or math.isnan(bound):
        raise UsageError(
            f"--fail-on {term!r} cannot be read: write ttft.p95>5%, qps<-5% or error_rate>1%"
        )
    metric = known(match["metric"])
    lower = lower_is_better(metric)
    if (match["sign"] == ">") != lower or (bound < 0) == lower:
        fix = f"{metric}>{abs(bound) * 100:g}%" if lower else f"{metric}<-{abs(bound) * 100:g}%"
        raise UsageError(f"--fail-on {term!r} is no change for the worse: write {fix}")
    return Gate(metric=metric, bound=bound)


def check_gate(gate: Gate, comparison: Comparison) -> GateCheck:
    """FAIL: worse is shown, by more than the bound. PASS: that much is ruled out. Else UNSURE."""
    row = next((c for c in comparison.changes if c.metric == gate.metric), None)
    if row is None or row.change is None or row.low is None or row.high is None:
        why = row.note if row else "the figure is in neither"
        return GateCheck(gate=gate, verdict=Verdict.UNSURE, reason=f"the change is unknown: {why}")
    sign = 1 if lower_is_better(gate.metric) else -1
    worst = row.high if sign > 0 else row.low
    past = sign * (row.change - gate.bound) > 0
    if row.outcome == "worse" and past:
        return GateCheck(gate=gate, verdict=Verdict.FAIL, reason="worse by more than the bound")
    if sign * (worst - gate.bound) <= 0:
        return GateCheck(gate=gate, verdict=Verdict.PASS, reason="so much worse is ruled out")
    return GateCheck(
        gate=gate, verdict=Verdict.UNSURE, reason="so much worse is neither shown nor ruled out"
    )
