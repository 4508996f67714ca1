"""`servecap calibrate --url`: short runs on a server, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from servecap.cli import options, output, progress
from servecap.cli.run import target_spec
from servecap.errors import UsageError

if TYPE_CHECKING:
    from servecap.engine.spec import EngineSpec
    from servecap.metrics import Summary
    from servecap.predict.calibrate import Measured
    from servecap.predict.probing import Level, Probed
    from servecap.preflight import Prepared
    from servecap.run import Run
    from servecap.scenario import Scenario

F = TypeVar("F", bound=Callable[..., Any])


def probe_options(command: F) -> F:
    """The options of a server to be probed."""
    for option in reversed(
        (
            click.option(
                "--budget",
                type=options.Span(),
                default="10m",
                show_default=True,
                help="The probes end after so long (90s, 10m).",
            ),
            click.option("--runs", metavar="FOLDER", help="Folder that keeps the probes' runs."),
            click.option(
                "--model-name", help="Of the server's.  [default: the first that it names]"
            ),
            options.access_options,
            options.high_load_option,
        )
    ):
        command = option(command)
    return command


def probed(given: dict[str, Any], engine: str) -> tuple[list[Measured], int | None]:
    """The rows of the probes, and how many requests the server computes at once, if that is known.

    Raises:
        UsageError: the hardware is not told, or a name is unknown.
        EndpointError: the server cannot be used.
        InvalidRun: not one level could be believed.
    """
    import time

    from servecap.predict import probing

    if given["gpu"] is None:
        raise UsageError("--url: a server does not tell its GPU: give --gpu (and --tp)")
    prepared = _prepared(given, quiet=False)
    spec = _spec(given, prepared, engine)
    levels = probing.plan(given["max_running"] or probing.RUNNING_MOST, _context_tokens(spec))
    out = output.unused(output.folder(given["runs"], "probe"))
    progress.say(_announced(given, prepared, levels))
    found = probing.probe(
        lambda scenario, folder: _measured(given, scenario, folder),
        spec,
        levels,
        out,
        budget_s=given["budget"],
        now=time.monotonic,
        on_level=_say_level,
    )
    progress.say(f"the probes' runs are kept in {out}")
    return list(found.rows), _running(given["max_running"], found)


def _prepared(given: dict[str, Any], *, quiet: bool) -> Prepared:
    """The server, now that it has answered a short request."""
    from servecap.preflight import prepare
    from servecap.process import run_async
    from servecap.scenario import Timeouts
    from servecap.wire.endpoint import resolve

    target = target_spec({**given, "model": given["model_name"], "stream": True, "quiet": quiet})
    endpoint = resolve(
        target.url,
        headers=target.headers,
        security=target.security,
        proxy=target.proxy,
        key_file=target.key_file,
    )
    return run_async(
        prepare(
            endpoint,
            url=target.url,
            api=target.api,
            model=target.model,
            stream=True,
            timeouts=Timeouts(),
        )
    )


def _spec(given: dict[str, Any], prepared: Prepared, engine: str) -> EngineSpec:
    """The engine that is taken to be there; it is built once, so that errors come first."""
    from servecap.engine.spec import instance

    model = given["model"] or prepared.target.model
    if model is None:
        raise UsageError("--url: the server does not name its model: give --model")
    spec = spec_of(given, model, engine)
    instance(spec)
    return spec


def spec_of(given: dict[str, Any], model: str, engine: str) -> EngineSpec:
    """The engine that the runs were measured on, as the options tell it."""
    import msgspec

    from servecap.engine.spec import EngineSpec

    names = {name: given[name] for name in ("gpu", "tp", "weights", "kv_dtype", "max_running")}
    return msgspec.convert({"model": model, "engine": engine, **names}, EngineSpec)


def _context_tokens(spec: EngineSpec) -> int:
    from servecap.engine.spec import instance

    made = instance(spec)
    return min(made.max_context_tokens, made.kv_tokens)


def _measured(given: dict[str, Any], scenario: Scenario, folder: Path) -> Run:
    """One level, measured as `servecap run` measures.

    A short request goes before it, so that it begins when the server is done with what the level
    before has left: some engines finish a long prompt though nobody waits for it any more.
    """
    from servecap.probe import Bench
    from servecap.workload import source

    bench = Bench(
        _prepared(given, quiet=True),
        source.load(scenario.workload),
        None,
        high_load=given["allow_high_load"],
    )
    display = progress.Display(scenario, quiet=False)
    try:
        return bench.run(scenario, folder, display)
    finally:
        display.close()
        bench.close()


def _announced(given: dict[str, Any], prepared: Prepared, levels: Sequence[Level]) -> str:
    """What will be done, before it is."""

    def told(purpose: str, what: Callable[[Level], int]) -> str:
        return ", ".join(str(what(level)) for level in levels if level.purpose == purpose)

    parts = [
        f"prompts of {told('prefill', lambda x: x.prompt_tokens)} tokens by one user",
        f"answers to {told('decode', lambda x: x.users)} users (fewer where more only wait)",
    ]
    long = [level for level in levels if level.purpose == "context"]
    parts += [f"{x.users} users with prompts of {x.prompt_tokens} tokens" for x in long]
    return (
        f"probing {prepared.target.url}: at most {len(levels)} short runs in at most "
        f"{given['budget']:g} s: {'; '.join(parts)}"
    )


def _say_level(level: Level, summary: Summary | None, why: str | None) -> None:
    from servecap.report import units

    head = f"{level.purpose:<8} {level.users:4d} users, prompts of {level.prompt_tokens:5d} tokens"
    figures = [
        f"{name.upper()} {units.seconds(found.mean)}"
        for name in ("ttft", "tpot")
        if summary is not None and (found := summary.client.get(name)) is not None
    ]
    if summary is not None:
        figures.append(f"{summary.requests} requests")
    left_out = [] if why is None else [click.style(f"not fitted: {why}", fg="yellow")]
    progress.say("  ".join([head, *figures, *left_out]))


def _running(told: int | None, found: Probed) -> int | None:
    """How many requests the server computes at once: as told, else as seen."""
    seen = found.max_running
    if seen is None:
        return told
    if told is None:
        progress.say(
            f"more than about {seen} users wait for each other: taken as --max-running {seen}; "
            "give it where you know it"
        )
        return seen
    if told > seen:
        progress.say(
            f"note: --max-running {told} was told, but no more than about {seen} requests were "
            "seen to be computed at once"
        )
    return told
