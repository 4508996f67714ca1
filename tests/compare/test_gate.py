"""Gates fail on what is shown, pass on what is ruled out, and are UNSURE between."""

from __future__ import annotations

import pytest

from servecap.compare import Change, Comparison
from servecap.errors import UsageError
from servecap.gate import check_gate, parse_gates
from servecap.metrics import Verdict


def verdict(term: str, *, change: float | None, low: float, high: float, outcome: str) -> Verdict:
    (gate,) = parse_gates([term])
    row = Change(metric=gate.metric, outcome=outcome, change=change, low=low, high=high)  # type: ignore[arg-type]
    found = Comparison(before="a", after="b", confidence=0.95, changes=(row,))
    return check_gate(gate, found).verdict


@pytest.mark.parametrize(
    ("term", "change", "low", "high", "outcome", "expected"),
    [
        ("ttft.p95>5%", 0.10, 0.02, 0.18, "worse", Verdict.FAIL),
        ("ttft.p95>5%", 0.03, 0.01, 0.045, "worse", Verdict.PASS),  # worse, but not by so much
        ("ttft.p95>5%", 0.03, 0.01, 0.06, "worse", Verdict.UNSURE),
        ("ttft.p95>5%", 0.10, -0.02, 0.22, "no difference shown", Verdict.UNSURE),
        ("ttft.p95>5%", 0.00, -0.04, 0.04, "no difference shown", Verdict.PASS),
        ("ttft.p95>5%", -0.20, -0.3, -0.1, "better", Verdict.PASS),
        ("ttft.p95>5%", 0.0, -1.0, float("inf"), "no difference shown", Verdict.UNSURE),
        ("ttft.p95>5%", None, 0.0, 0.0, "unknown", Verdict.UNSURE),
        ("qps<-5%", -0.10, -0.15, -0.05, "worse", Verdict.FAIL),
        ("qps<-5%", -0.01, -0.04, 0.02, "no difference shown", Verdict.PASS),
        ("qps<-5%", 0.10, 0.05, 0.15, "better", Verdict.PASS),
        ("error_rate>1%", 0.02, 0.005, 0.04, "worse", Verdict.FAIL),
        ("users<-10%", -0.3, -0.4, -0.2, "worse", Verdict.FAIL),
    ],
)
def test_gate_is_held_against_the_interval(
    term: str, change: float | None, low: float, high: float, outcome: str, expected: Verdict
) -> None:
    assert verdict(term, change=change, low=low, high=high, outcome=outcome) is expected


def test_a_gate_on_a_figure_that_is_not_there_is_unsure() -> None:
    (gate,) = parse_gates(["users<-5%"])
    found = Comparison(before="a", after="b", confidence=0.95, changes=())
    assert check_gate(gate, found).verdict is Verdict.UNSURE


def test_several_gates_are_read() -> None:
    gates = parse_gates(["ttft.p95>5%, qps<-2.5%", "error_rate > 1%"])
    assert [str(gate) for gate in gates] == ["ttft.p95>5%", "qps<-2.5%", "error_rate>1%"]


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("ttft.p95>5", "cannot be read"),
        ("ttft.p95", "cannot be read"),
        ("ttft.p95>1.2.3%", "cannot be read"),
        ("speed>5%", "cannot be compared"),
        ("qps>5%", "write qps<-5%"),
        ("qps<5%", "write qps<-5%"),
        ("ttft.p95<5%", "write ttft.p95>5%"),
        ("ttft.p95>-5%", "write ttft.p95>5%"),
    ],
)
def test_terms_that_make_no_sense_are_refused_with_what_to_write(term: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_gates([term])
