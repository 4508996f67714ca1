"""Load shapes as they are written on the command line: think times, schedules, traces."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import click

from servecap.cli.param import ParamType
from servecap.errors import UsageError
from servecap.scenario import ClosedLoop, Exponential, Lognormal, Measured, OpenLoop, Think
from servecap.schedule import Day, Ramp, Schedule, Steps

SECONDS_MAX = 1e7
_Load = TypeVar("_Load", ClosedLoop, OpenLoop)


class ThinkTime(ParamType[tuple[float, float] | Think]):
    """Think times in seconds: 1..3, 2, exp:2, lognormal:2,1.5 or file:PATH."""

    name = "THINK"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, float] | Think:
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        kind, colon, rest = value.partition(":")
        if not colon:
            return self._range(value, param, ctx)
        match kind:
            case "exp":
                return Exponential(self._numbers(rest, 1, param, ctx)[0])
            case "lognormal":
                return Lognormal(*self._numbers(rest, 2, param, ctx))
            case "file":
                return Measured(_values(rest))
            case _:
                raise click.BadParameter(
                    f"{value!r} is no think time: write 1..3, exp:MEAN, lognormal:MEAN,CV or"
                    " file:PATH",
                    ctx,
                    param,
                )

    def _range(self, value: str, param: Any, ctx: Any) -> tuple[float, float]:
        low, dots, high = value.partition("..")
        try:
            pair = (float(low), float(high if dots else low))
        except ValueError:
            self.fail(
                f"{value!r} is no range of seconds: write 1..3, or one number,"
                " exp:MEAN, lognormal:MEAN,CV or file:PATH",
                param,
                ctx,
            )
        if not 0 <= pair[0] <= pair[1] < math.inf:
            self.fail(f"{value!r} must run from a smaller to a larger number >= 0", param, ctx)
        return pair

    def _numbers(self, text: str, most: int, param: Any, ctx: Any) -> list[float]:
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if not 1 <= len(numbers) <= most or not all(0 <= n < SECONDS_MAX for n in numbers):
            self.fail(f"{text!r} must be 1 to {most} numbers >= 0, comma between", param, ctx)
        return numbers


def _values(path: str) -> tuple[float, ...]:
    """The numbers in a file, one a line, in seconds."""
    try:
        with open(path, encoding="utf-8") as file:
            values = tuple(float(line) for line in file if line.strip())
    except OSError as error:
        raise UsageError(f"think times {path!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(
            f"think times {path!r}: one number of seconds a line, but {error}"
        ) from None
    if not values or not all(0 <= v < SECONDS_MAX for v in values):
        raise UsageError(f"think times {path!r} must hold numbers of seconds >= 0, at least one")
    return values


_SCHEDULES = "ramp:TO/S, steps:A,B,C/S or day:W,W,.../S"


class ScheduleText(ParamType[Schedule]):
    """How a rate changes: ramp:TO/S, steps:A,B,C/S or day:W,W,.../S."""

    name = "SCHEDULE"

    def convert(self, value: Any, param: Any, ctx: Any) -> Schedule:
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        kind, _, rest = value.partition(":")
        listed, slash, length = rest.rpartition("/")
        try:
            numbers, length_s = tuple(float(n) for n in listed.split(",")), float(length)
        except ValueError:
            numbers, length_s = (), 0.0
        if not slash or not numbers or not 0 < length_s < SECONDS_MAX:
            self.fail(f"{value!r}: write {_SCHEDULES}", param, ctx)
        if not all(0 <= n < math.inf for n in numbers) or not any(numbers):
            self.fail(f"{value!r}: rates and weights must be >= 0, and not all 0", param, ctx)
        match kind:
            case "ramp" if len(numbers) == 1:
                return Ramp(numbers[0], length_s)
            case "steps":
                return Steps(numbers, length_s)
            case "day":
                return Day(numbers, length_s)
            case _:
                raise click.BadParameter(f"{value!r}: write {_SCHEDULES}", ctx, param)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of open loops: rates, arrivals, schedules and traces."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


arrival_options: tuple[Callable[..., Any], ...] = (
    click.option(
        "--arrivals",
        type=click.Choice(["poisson", "constant", "gamma"]),
        help="Gaps between them.  [default: poisson, or gamma with --burstiness]",
    ),
    click.option(
        "--burstiness",
        type=float,
        metavar="CV",
        help="Gamma gaps: standard deviation over mean (1 is Poisson, more is burstier).",
    ),
    click.option(
        "--max-in-flight",
        type=click.IntRange(1),
        help="Open loop: arrivals beyond that fail.  [default: 20000]",
    ),
)
_OPTIONS = (
    click.option("--rate", type=float, metavar="RPS", help="Open loop: requests per second."),
    *arrival_options[:2],
    click.option(
        "--schedule",
        type=ScheduleText(),
        help="Rate over time: ramp:TO/S from --rate to TO within S seconds, steps:A,B,C/S for S "
        "seconds each, day:W,W,.../S a day's weights within S seconds (mean: --rate).",
    ),
    arrival_options[2],
    click.option("--trace", metavar="FILE", help="Open loop: replay this trace."),
    click.option(
        "--trace-format",
        metavar="FORMAT",
        help="azure, burstgpt, mooncake, bailian or plain.  [default: told from the file]",
    ),
    click.option("--time-scale", type=float, metavar="X", help="Play the trace X times as fast."),
    click.option("--rate-scale", type=float, metavar="Y", help="Send Y times as many of its rows."),
)
_OF_A_RATE = ("arrivals", "burstiness", "schedule", "rate")
_OF_A_TRACE = ("trace_format", "time_scale", "rate_scale")
_OF_USERS = ("users", "queue", "each", "ramp")


def open_loop(given: dict[str, Any]) -> OpenLoop | None:
    """The open loop that the options ask for; None: they ask for users.

    A trace's rate is not known before it was read: it is 0 here.

    Raises:
        UsageError: options that contradict each other, or a rate that cannot be.
    """
    trace, rate, plan = given["trace"], given["rate"], given["schedule"]
    if trace is None:
        _needs(given, _OF_A_TRACE, "--trace FILE")
    if trace is None and rate is None and not isinstance(plan, Steps):
        _needs(given, (*_OF_A_RATE, "max_in_flight"), "--rate RPS")
        return None
    what = "--trace" if trace is not None else "--rate" if rate is not None else "--schedule"
    _contradict(given, what, _OF_USERS if trace is None else (*_OF_USERS, *_OF_A_RATE, "requests"))
    if given["sessions"] and trace is not None:
        raise UsageError(
            "--trace and --sessions: a trace tells itself when each turn was sent; give --rate or"
            " --users for sessions whose users wait"
        )
    if trace is not None:
        return OpenLoop(rate_rps=0, arrivals="trace", max_in_flight=_ceiling(given))
    load = at_rate(given)
    sessions = given["sessions"] or "sessions:" in given["workload"]
    return with_think(load, given["think"]) if sessions else load


_RATE_MOST = 100_000  # each second's arrivals are records, sent or not: more fill the memory


def _ceiling(given: dict[str, Any]) -> int:
    return given["max_in_flight"] or OpenLoop(rate_rps=1).max_in_flight


def at_rate(given: dict[str, Any]) -> OpenLoop:
    """Requests at the rate, or by the schedule, that the options ask for.

    Raises:
        UsageError: a rate that cannot be, or two of them.
    """
    rate, plan, cv = given["rate"], given["schedule"], given["burstiness"]
    if isinstance(plan, Steps):
        if rate is not None:
            raise UsageError("--rate and --schedule steps:... both tell the rate: give one of them")
        rate = plan.rates_rps[0]
    elif not 0 < rate < math.inf:
        raise UsageError(f"--rate {rate:g} must be more than 0 requests per second")
    if rate > _RATE_MOST:
        raise UsageError(f"--rate {rate:g} must be at most {_RATE_MOST:,} requests per second")
    arrivals: Literal["poisson", "constant", "gamma"] = given["arrivals"] or (
        "poisson" if cv is None else "gamma"
    )
    if cv is not None and arrivals != "gamma":
        raise UsageError(f"--burstiness is for gamma gaps: leave --arrivals {arrivals} away")
    if cv is not None and not 0 <= cv <= 20:
        raise UsageError(f"--burstiness {cv:g} must lie within 0 (equal gaps) and 20")
    return OpenLoop(
        rate_rps=rate,
        arrivals=arrivals,
        cv=1.0 if cv is None else cv,
        schedule=plan,
        max_in_flight=_ceiling(given),
    )


def _needs(given: dict[str, Any], names: tuple[str, ...], what: str) -> None:
    for name in names:
        if given[name] is not None:
            raise UsageError(f"{_option(name)} belongs to {what}: give that, or leave it away")


def _contradict(given: dict[str, Any], what: str, names: tuple[str, ...]) -> None:
    for name in names:
        if given[name] is not None and _option(name) != what:
            raise UsageError(f"{what} and {_option(name)} contradict each other: give one of them")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def with_think(load: _Load, think: tuple[float, float] | Think) -> _Load:
    """The load with these think times."""
    import msgspec

    if isinstance(think, tuple):
        return msgspec.structs.replace(load, think_s=think)
    return msgspec.structs.replace(load, think=think)
