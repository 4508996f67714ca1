"""Load shapes as they are asked for on the command line, and as they are kept in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from servecap.cli import shapes
from servecap.errors import UsageError
from servecap.scenario import (
    ClosedLoop,
    Exponential,
    Lognormal,
    Measured,
    OpenLoop,
    Replay,
    Scenario,
    WorkloadSpec,
)
from servecap.schedule import Day, Ramp, Steps

NOTHING: dict[str, Any] = dict.fromkeys(
    (
        "rate", "arrivals", "burstiness", "schedule", "max_in_flight", "trace", "trace_format",
        "time_scale", "rate_scale", "users", "queue", "each", "ramp", "requests",
    )
) | {"sessions": False, "workload": "chat-en", "think": (1.0, 3.0)}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "load"),
    [
        ({}, None),
        ({"rate": 5.0}, OpenLoop(rate_rps=5)),
        ({"rate": 5.0, "burstiness": 2.0}, OpenLoop(rate_rps=5, arrivals="gamma", cv=2)),
        ({"rate": 5.0, "max_in_flight": 7}, OpenLoop(rate_rps=5, max_in_flight=7)),
        ({"rate": 5.0, "sessions": True}, OpenLoop(rate_rps=5, think_s=(1, 3))),
        (
            {
                "rate": 5.0,
                "workload": "mix:50%sessions:2x9/9,50%fixed:9/9",
                "think": Exponential(2),
            },
            OpenLoop(rate_rps=5, think=Exponential(2)),
        ),
        (
            {"schedule": Steps((3, 9), 10)},
            OpenLoop(rate_rps=3, schedule=Steps((3, 9), 10)),
        ),
        ({"trace": "t.csv"}, OpenLoop(rate_rps=0, arrivals="trace")),
    ],
)
def test_options_become_a_load(given: dict[str, Any], load: OpenLoop | None) -> None:
    assert shapes.open_loop(NOTHING | given) == load


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rate": 0.0}, "--rate 0 must be more"),
        ({"rate": 1e9}, "--rate 1e\\+09 must be at most 100,000 requests per second"),
        ({"rate": float("nan")}, "--rate nan must be more"),
        ({"rate": 2.0, "users": 3}, "--rate and --users contradict"),
        ({"rate": 2.0, "trace": "t"}, "--trace and --rate contradict"),
        ({"trace": "t", "schedule": Ramp(3, 3)}, "--trace and --schedule contradict"),
        ({"trace": "t", "requests": 3}, "--trace and --requests contradict"),
        ({"arrivals": "gamma"}, "--arrivals belongs to --rate"),
        ({"schedule": Ramp(3, 3)}, "--schedule belongs to --rate"),
        ({"time_scale": 2.0}, "--time-scale belongs to --trace"),
        ({"rate": 2.0, "burstiness": 30.0}, "within 0"),
        ({"rate": 2.0, "burstiness": 2.0, "arrivals": "poisson"}, "leave --arrivals poisson away"),
        ({"rate": 2.0, "schedule": Steps((1,), 1)}, "both tell the rate"),
        ({"trace": "t", "sessions": True}, "a trace tells itself"),
    ],
)
def test_options_that_contradict_each_other(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        shapes.open_loop(NOTHING | given)


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("ramp:20/60", Ramp(20, 60)),
        ("steps:1,0,2.5/3", Steps((1, 0, 2.5), 3)),
        ("day:1,2/600", Day((1, 2), 600)),
    ],
)
def test_schedules_are_read(text: str, schedule: object) -> None:
    assert shapes.ScheduleText().convert(text, None, None) == schedule


@pytest.mark.parametrize(
    "text",
    [
        "ramp:20",
        "ramp:1,2/3",
        "steps:/3",
        "steps:0,0/3",
        "day:-1/3",
        "day:1/0",
        "wave:1/2",
        "",
        "x",
    ],
)
def test_schedules_that_cannot_be(text: str) -> None:
    with pytest.raises(click.BadParameter):
        shapes.ScheduleText().convert(text, None, None)


def test_think_times_are_read(tmp_path: Path) -> None:
    file = tmp_path / "think.txt"
    file.write_text("1.5\n\n2\n")
    read = shapes.ThinkTime().convert
    assert read("1..3", None, None) == (1, 3)
    assert read("2", None, None) == (2, 2)
    assert read("exp:2", None, None) == Exponential(2)
    assert read("lognormal:2", None, None) == Lognormal(2, 1)
    assert read("lognormal:2,0.5", None, None) == Lognormal(2, 0.5)
    assert read(f"file:{file}", None, None) == Measured((1.5, 2))


@pytest.mark.parametrize("text", ["3..1", "-1..2", "exp:", "exp:1,2", "lognormal:1,-2", "gauss:3"])
def test_think_times_that_cannot_be(text: str) -> None:
    with pytest.raises(click.BadParameter):
        shapes.ThinkTime().convert(text, None, None)


@pytest.mark.parametrize("text", ["", "fast\n", "-1\n", "nan\n"])
def test_files_that_hold_no_think_times(tmp_path: Path, text: str) -> None:
    file = tmp_path / "think.txt"
    file.write_text(text)
    with pytest.raises(UsageError, match="think times"):
        shapes.ThinkTime().convert(f"file:{file}", None, None)
    with pytest.raises(UsageError, match="cannot be read"):
        shapes.ThinkTime().convert(f"file:{file}.not", None, None)


def test_scenarios_written_before_there_were_shapes_are_read() -> None:
    old = b'{"load":{"kind":"open","rate_rps":2.0,"arrivals":"poisson","max_in_flight":20000}}'
    assert msgspec.json.decode(old, type=Scenario) == Scenario(load=OpenLoop(rate_rps=2))


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(load=OpenLoop(rate_rps=2, schedule=Day((1, 2), 60))),
        Scenario(load=ClosedLoop(users=2, think=Lognormal(2, 3))),
        Scenario(
            load=OpenLoop(rate_rps=2, arrivals="trace"),
            workload=WorkloadSpec(source="t.csv", replay=Replay(time_scale=3)),
        ),
    ],
)
def test_scenarios_survive_a_file(scenario: Scenario) -> None:
    assert msgspec.json.decode(msgspec.json.encode(scenario), type=Scenario) == scenario
