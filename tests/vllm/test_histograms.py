"""Histograms read from a Prometheus page: what they tell, and no more."""

from __future__ import annotations

import pytest
from histograms import Histogram, earlier_than_server, read_histogram

PAGE = """\
# TYPE vllm:ttft_seconds histogram
vllm:ttft_seconds_bucket{engine="0",le="0.1"} 2.0
vllm:ttft_seconds_bucket{engine="0",le="0.5"} 5.0
vllm:ttft_seconds_bucket{engine="0",le="+Inf"} 6.0
vllm:ttft_seconds_count{engine="0"} 6.0
vllm:ttft_seconds_sum{engine="0"} 3.0
vllm:ttft_seconds_bucket{engine="1",le="0.1"} 1.0
vllm:ttft_seconds_bucket{engine="1",le="0.5"} 1.0
vllm:ttft_seconds_bucket{engine="1",le="+Inf"} 1.0
vllm:ttft_seconds_count{engine="1"} 1.0
vllm:ttft_seconds_sum{engine="1"} 0.05
"""


def test_engines_are_added_up() -> None:
    found = read_histogram(PAGE, "vllm:ttft_seconds")
    assert found.at_most == (3, 6, 7)
    assert found.count == 7
    assert found.mean_s == pytest.approx(3.05 / 7)


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        read_histogram(PAGE, "vllm:tpot_seconds")


def test_quantiles_are_known_to_a_bucket() -> None:
    found = Histogram((0.1, 0.5, 2.0), (2, 5, 6), 3.0, 6)
    assert found.bucket_of(0.2) == (0.0, 0.1)
    assert found.bucket_of(0.5) == (0.1, 0.5)
    assert found.bucket_of(1.0) == (0.5, 2.0)


def test_difference_is_what_came_in_between() -> None:
    later, earlier = Histogram((1.0,), (9,), 4.0, 9), Histogram((1.0,), (4,), 1.5, 4)
    assert later - earlier == Histogram((1.0,), (5,), 2.5, 5)


def test_client_ahead_of_the_server_is_seen() -> None:
    server = Histogram((0.1, 0.5), (1, 3), 0.9, 3)
    assert earlier_than_server([0.11, 0.2, 0.4], server) <= 0
    assert earlier_than_server([0.09, 0.09, 0.4], server) == 1
