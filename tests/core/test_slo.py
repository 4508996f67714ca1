"""SLOs as users write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servecap.errors import UsageError
from servecap.slo import METRICS, STATISTICS, Limit, Slo, parse


@pytest.mark.parametrize(
    ("text", "limits", "share"),
    [
        ("ttft.mean<3s", [("ttft", "mean", 3.0)], 0.05),
        ("ttft<3s", [("ttft", "mean", 3.0)], 0.05),
        ("TTFT.P99 <= 250ms", [("ttft", "p99", 0.25)], 0.05),
        ("tpot.p50<900us, error_rate<1%", [("tpot", "p50", 0.0009)], 0.01),
        ("e2e.max<1e1s,error_rate<0.02,", [("e2e", "max", 10.0)], 0.02),
        ("gap.p95<1s,queue.p90<2s,error_rate<=0%", [("gap", "p95", 1.0), ("queue", "p90", 2.0)], 0),
    ],
)
def test_terms_are_read(text: str, limits: list[tuple[str, str, float]], share: float) -> None:
    slo = parse(text)
    assert [(x.metric, x.statistic) for x in slo.limits] == [x[:2] for x in limits]
    assert [x.at_most_s for x in slo.limits] == pytest.approx([x[2] for x in limits])
    assert slo.error_share_max == share


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no latency limit"),
        ("error_rate<1%", "no latency limit"),
        ("ttft", "metric.statistic<value"),
        ("ttft.mean>3s", "metric.statistic<value"),
        ("ttft.mean<3", "unit"),
        ("ttft.mean<3%", "unit"),
        ("ttft.mean<3 minutes", "metric.statistic<value"),
        ("ttft.mean<-3s", "greater than 0"),
        ("ttft.mean<0s", "greater than 0"),
        ("ttft.mean<1.2.3s", "not a number"),
        ("ttft.p42<3s", "p42"),
        ("latency.mean<3s", "latency"),
        ("ttft.mean<3s,ttft<4s", "twice"),
        ("ttft.mean<3s,error_rate<1%,error_rate<2%", "twice"),
        ("ttft.mean<3s,error_rate<5", "forget the %"),
        ("ttft.mean<3s,error_rate<5s", "error_rate<1%"),
        ("ttft.mean<3s,error_rate.mean<5%", "error_rate<1%"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


LIMITS = st.builds(
    Limit,
    st.sampled_from([m for m in METRICS if m != "error_rate"]),
    st.sampled_from(STATISTICS),
    st.integers(1, 99_999).map(lambda n: n / 1000),
)


@given(
    st.lists(LIMITS, min_size=1, max_size=4, unique_by=lambda x: (x.metric, x.statistic)),
    st.integers(0, 100).map(lambda n: n / 100),
)
def test_slo_is_read_back_from_its_text(limits: list[Limit], share: float) -> None:
    back = parse(str(Slo(tuple(limits), share)))
    assert [(x.metric, x.statistic) for x in back.limits] == [
        (x.metric, x.statistic) for x in limits
    ]
    for old, new in zip(limits, back.limits, strict=True):
        assert new.at_most_s == pytest.approx(old.at_most_s, rel=1e-12)
    assert back.error_share_max == pytest.approx(share)


@given(st.text(max_size=40))
def test_any_text_is_an_slo_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse(text).limits
