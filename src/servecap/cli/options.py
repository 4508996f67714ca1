"""The options that `run`, `find` and `matrix` share, and what they amount to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click

from servecap import schedule
from servecap import slo as slos
from servecap.cli import output, progress, shapes
from servecap.cli.param import ParamType
from servecap.errors import UsageError
from servecap.scenario import (
    RETRIES_MOST,
    ClosedLoop,
    OpenLoop,
    Replay,
    Scenario,
    StopRule,
    Timeouts,
    WorkloadSpec,
)

if TYPE_CHECKING:
    from servecap.probe import Around

F = TypeVar("F", bound=Callable[..., Any])


class Span(ParamType[float]):
    """A time as a person says it, in seconds: 90s, 30m, 8h, or plain seconds."""

    name = "TIME"
    _UNITS: ClassVar[dict[str, float]] = {"s": 1.0, "m": 60.0, "h": 3600.0}

    def convert(self, value: Any, param: Any, ctx: Any) -> float:  # noqa: ARG002
        text = str(value)
        unit_s = self._UNITS.get(text[-1:])
        try:
            seconds = float(text if unit_s is None else text[:-1]) * (unit_s or 1.0)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            name = "" if param is None else f"{max(param.opts, key=len)} "
            raise UsageError(f"{name}{text} is no time: write seconds, or 90s, 30m, 8h")
        return seconds


class Workers(ParamType[int | None]):
    """A number of processes, or auto (None)."""

    name = "auto|N"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | None:
        if value is None or value == "auto":
            return None
        if not str(value).isdecimal() or not 1 <= int(value) <= _WORKERS_MAX:
            self.fail(f"{value!r} is neither auto nor a number of processes from 1", param, ctx)
        return int(value)


_WORKERS_MAX = 256


def stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    """All these options as one decorator, in their order."""

    def apply(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


def _seconds(name: str, default_s: float, said: str) -> Callable[[F], F]:
    """An option that takes seconds, written S in its help."""
    return click.option(
        name, type=float, default=default_s, show_default=True, metavar="S", help=said
    )


high_load_option: Callable[[F], F] = click.option(
    "--allow-high-load",
    is_flag=True,
    help="More than 2000 users or 200 requests/s at a server that is not on this machine.",
)

access_options = stack(
    click.option(
        "--api",
        default="auto",
        show_default=True,
        metavar="API",
        help="auto, openai-chat, openai-completions, tgi, ollama-chat, ollama-generate or sglang.",
    ),
    click.option(
        "--header", "headers", multiple=True, metavar="'Name: value'", help="Extra request header."
    ),
    click.option(
        "--api-key-file",
        type=click.Path(dir_okay=False),
        help="File that holds the API key.  [default: SERVECAP_API_KEY, OPENAI_API_KEY]",
    ),
    click.option("--insecure", is_flag=True, help="Do not verify the server's certificate."),
    click.option("--ca-file", type=click.Path(dir_okay=False), help="CA certificates to trust."),
    click.option("--proxy", metavar="URL", help="HTTP proxy to go through, http://host:port."),
)

target_options = stack(
    click.option("--url", required=True, help="Base URL, with or without /v1; or unix:///PATH."),
    click.option("--model", help="Model to ask for.  [default: the first that the server names]"),
    click.option("--stream/--no-stream", default=True, help="Stream the answers.  [default: on]"),
    access_options,
    high_load_option,
    click.option(
        "--workers",
        type=Workers(),
        default="auto",
        show_default=True,
        help="Processes that make the load.",
    ),
    click.option(
        "--ray",
        metavar="ADDRESS",
        help="Make the load on the nodes of the Ray cluster there (auto: the one this machine is"
        " in), --workers processes in all.  [default of those: one a node]",
    ),
)

telemetry_switch: Callable[[F], F] = click.option(
    "--telemetry/--no-telemetry",
    default=True,
    help="Look at the server's metrics, GPUs and machines beside each run.  [default: on]",
)

telemetry_options = stack(
    telemetry_switch,
    click.option(
        "--metrics-url",
        metavar="URL",
        help="The server's Prometheus page.  [default: /metrics at --url]",
    ),
    click.option(
        "--dcgm-exporter",
        metavar="URL",
        help="GPU figures of a DCGM exporter.  [default: NVML, if the server is here]",
    ),
    click.option("--node-exporter", metavar="URL", help="Figures of the server's machine."),
)

workload_options = stack(
    click.option(
        "--workload",
        default="chat-en",
        show_default=True,
        metavar="NAME|FILE",
        help="chat-en, chat-zh, docqa-en, docqa-zh, fixed:IN/OUT, or a data set's path.",
    ),
    click.option("--format", "data_format", metavar="FORMAT", help="Format of the data set."),
    click.option(
        "--output",
        "output",
        default="data",
        show_default=True,
        metavar="data|natural|N",
        help="Answer length: as in the data, as the model likes, or exactly N tokens.",
    ),
    click.option(
        "--repeat-prompts",
        is_flag=True,
        help="Do not make each prompt unique (tests caching); with --trace: share its prefixes.",
    ),
    click.option(
        "--sessions",
        is_flag=True,
        help="Send all turns of each conversation, with the history, each after the answer before "
        "it; --rate is then that of sessions.",
    ),
    click.option("--tokenizer", metavar="FILE", help="tokenizer.json to count tokens with."),
)

judge_options = stack(
    click.option(
        "--slo",
        default=slos.DEFAULT_SLO_TEXT,
        show_default=True,
        help="Limits as metric.statistic<value; also error_rate<5%.",
    ),
    click.option(
        "--timings",
        type=click.Choice(["client", "server", "both"]),
        default="client",
        show_default=True,
        help="Whose clock the SLO is held against (server: TGI headers, llama.cpp timings).",
    ),
    click.option(
        "--think",
        type=shapes.ThinkTime(),
        default="1..3",
        show_default=True,
        help="Seconds between an answer and the user's next question (of a session, with --rate): "
        "LOW..HIGH, exp:MEAN, lognormal:MEAN,CV, or file:PATH of measured ones.",
    ),
    click.option(
        "--patience",
        type=float,
        metavar="S",
        help="Users give up, and count as failed, when no first token comes within S seconds.",
    ),
    click.option("--ramp", type=float, metavar="S", help="Ramp-in time.  [default: one cycle]"),
    click.option(
        "--requests",
        type=click.IntRange(1),
        help="Requests that must end in the measured window.  [default: 250]",
    ),
    _seconds("--max-duration", 900.0, "End after S seconds at the latest."),
    click.option(
        "--seed",
        type=int,
        default=0,
        show_default=True,
        help="The same seed asks the same things in the same order.",
    ),
    _seconds("--request-timeout", 600.0, "A request that takes longer has failed."),
    _seconds("--connect-timeout", 10.0, "So has one that gets no connection in that time."),
    _seconds("--gap-timeout", 60.0, "And one whose answer pauses for longer."),
    click.option(
        "--retries",
        type=click.IntRange(0, RETRIES_MOST),
        default=0,
        show_default=True,
        help="Tries more for a request that was turned away (no connection, 429, 503); each failed "
        "one counts in error_rate.",
    ),
)

output_options = stack(
    click.option("--out", metavar="FOLDER", help="Folder for the results."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text."),
    click.option("--quiet", "-q", is_flag=True, help="No progress on stderr."),
    output.lang_option,
    progress.option,
)


def workload_spec(options: dict[str, Any]) -> WorkloadSpec:
    """The workload that the options ask for."""
    if options.get("trace") is not None:
        return _trace_spec(options)
    return WorkloadSpec(
        source=options["workload"],
        format=options["data_format"],
        output=options["output"],
        unique=not options["repeat_prompts"],
        tokenizer=options["tokenizer"],
        sessions=options["sessions"],
    )


def _trace_spec(options: dict[str, Any]) -> WorkloadSpec:
    """The trace as the workload; its shared prefixes are shared, unless it tells of none."""
    base = Replay()
    return WorkloadSpec(
        source=options["trace"],
        format=options["trace_format"],
        output=options["output"],
        unique=not options["repeat_prompts"],
        tokenizer=options["tokenizer"],
        replay=Replay(
            time_scale=base.time_scale if options["time_scale"] is None else options["time_scale"],
            rate_scale=base.rate_scale if options["rate_scale"] is None else options["rate_scale"],
        ),
    )


def around(options: dict[str, Any]) -> Around | None:
    """What to look at beside a run; None: at nothing.

    Raises:
        UsageError: a page was named, and nothing shall be looked at.
    """
    from servecap.probe import Around

    names = ("metrics_url", "dcgm_exporter", "node_exporter")
    if not options["telemetry"]:
        given = [f"--{name.replace('_', '-')}" for name in names if options[name] is not None]
        if given:
            raise UsageError(f"--no-telemetry and {given[0]} contradict each other: give one")
        return None
    return Around(
        metrics_url=options["metrics_url"],
        dcgm_url=options["dcgm_exporter"],
        node_url=options["node_exporter"],
    )


def timeouts(options: dict[str, Any]) -> Timeouts:
    """Timeouts under the one that users set."""
    total_s = _positive("--request-timeout", options["request_timeout"])
    base, patience_s = Timeouts(), options.get("patience")
    first_s = base.first_token_s if patience_s is None else _positive("--patience", patience_s)
    return Timeouts(
        connect_s=min(_positive("--connect-timeout", options["connect_timeout"]), total_s),
        first_token_s=min(first_s, total_s),
        gap_s=min(_positive("--gap-timeout", options["gap_timeout"]), total_s),
        total_s=total_s,
    )


def scenario(options: dict[str, Any], load: ClosedLoop | OpenLoop) -> Scenario:
    """The scenario that the options ask for, under *load*.

    Raises:
        UsageError: two options contradict each other.
    """
    duration_s = options.get("duration")
    if duration_s is not None and options["requests"] is not None:
        raise UsageError("--duration and --requests are two stop rules: give one of them")
    if duration_s is None and options["requests"] is None and isinstance(load, OpenLoop):
        duration_s = schedule.length_s(load.schedule)
    soak_s = options.get("soak")
    if soak_s is not None:
        for name in ("duration", "requests", "queue", "each"):
            if options.get(name) is not None:
                raise UsageError(f"--soak and --{name} are two stop rules: give one of them")
        duration_s = soak_s
    stop = StopRule(
        requests=options["requests"] or 250,
        duration_s=None if duration_s is None else _positive("--duration", duration_s),
        max_duration_s=_positive("--max-duration", options["max_duration"]),
        soak=soak_s is not None,
    )
    return Scenario(
        load=load,
        workload=workload_spec(options),
        slo=slos.parse(options["slo"]),
        stop=stop,
        timeouts=timeouts(options),
        timings=options["timings"],
        seed=options["seed"],
        retries=options["retries"],
    )


def closed_loop(options: dict[str, Any], users: int) -> ClosedLoop:
    """N users, with the stop rules that belong to them.

    Raises:
        UsageError: a count that cannot be, or two stop rules at once.
    """
    queue, each = options.get("queue"), options.get("each")
    if users < 1:
        raise UsageError(f"--users {users}: at least one user is needed")
    if queue is not None and queue < users:
        raise UsageError(
            f"--queue {queue} is smaller than --users {users}: some users would never send; "
            "queue at least as many requests as there are users"
        )
    given = [
        name for name in ("queue", "each", "requests", "duration") if options.get(name) is not None
    ]
    if (queue is not None or each is not None) and len(given) > 1:
        names = " and ".join(f"--{name}" for name in given)
        raise UsageError(f"{names} are different stop rules: give one of them")
    if options["ramp"] is not None and not 0 <= options["ramp"] < float("inf"):
        raise UsageError(f"--ramp {options['ramp']:g} must be 0 s or more")
    load = ClosedLoop(users=users, queue=queue, each=each, ramp_s=options["ramp"])
    return shapes.with_think(load, options["think"])


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise UsageError(f"{name} {value:g} must be more than 0 s")
    return value
