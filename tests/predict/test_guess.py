"""Where a search starts by the engine model."""

from __future__ import annotations

import pytest

from servecap.engine.spec import EngineSpec
from servecap.errors import UsageError
from servecap.predict.answer import Range
from servecap.predict.guess import first_level, users_expected
from servecap.scenario import ClosedLoop, Scenario

ASKED = Scenario(load=ClosedLoop(users=1))


def test_more_gpus_are_expected_to_carry_more() -> None:
    one, four = (
        users_expected(EngineSpec(model="llama-13b", gpu="a100-40gb", tp=tp), ASKED)
        for tp in (1, 4)
    )
    assert one is not None
    assert four is not None
    assert one.low < one.value < one.high
    assert four.value > 1.5 * one.value


def test_the_first_level_is_below_what_is_expected() -> None:
    assert first_level(Range(100, 61.7, 160), otherwise=8, most=1000) == 61
    assert first_level(Range(100, 61.7, 160), otherwise=8, most=40) == 40
    assert first_level(Range(2, 0.4, 5), otherwise=8, most=1000) == 1
    assert first_level(None, otherwise=8, most=1000) == 8


def test_unknown_hardware_is_told() -> None:
    with pytest.raises(UsageError, match="no-such"):
        users_expected(EngineSpec(model="llama-13b", gpu="no-such"), ASKED)
