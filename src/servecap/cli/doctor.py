"""`servecap doctor`: what on this machine, and at a server, would spoil a measurement."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
import msgspec

from servecap.cli import output

if TYPE_CHECKING:
    from servecap.preflight import Prepared

State = Literal["ok", "warning", "unknown"]

_FILES_WANTED = 10_000
_PORTS_WANTED = 20_000
_FAST_CLOCKS = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "xen")
_OTHER_FILES = 64


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at: what it is, and what to do where it is not as it should be."""

    name: str
    state: State
    said: str
    todo: str = ""


@click.command("doctor")
@click.option("--url", help="Also look at the server there (one short request).")
@click.option("--api", default="auto", show_default=True, metavar="API")
@click.option("--model", help="Model to ask for.  [default: the first that the server names]")
@click.option("--header", "headers", multiple=True, metavar="'Name: value'", help="Extra header.")
@click.option("--insecure", is_flag=True, help="Do not verify the server's certificate.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
def command(
    url: str | None,
    api: str,
    model: str | None,
    headers: tuple[str, ...],
    insecure: bool,
    as_json: bool,
) -> int:
    """Look for what would spoil a measurement: this machine's limits, and what a server supports.

    Nothing is changed. It exits with 0 also where there are warnings, and with 3 if the server
    cannot be used.

    \b
    Examples:
      servecap doctor
      servecap doctor --url http://localhost:8000
    """
    found = machine()
    if url is not None:
        found += server(_prepared(url, api, model, headers, insecure))
    if as_json:
        output.print_json(found)
    else:
        click.echo(_text(found), nl=False)
    return 0


def _text(checks: list[Check]) -> str:
    from servecap.report.table import wrap

    colours = {"ok": "green", "warning": "yellow", "unknown": None}
    lines = []
    for check in checks:
        said = wrap(check.said, 70)
        state = click.style(f"{check.state:7}", fg=colours[check.state])
        lines.append(f"{state}  {check.name:16}  {said[0]}")
        todo = wrap(f"-> {check.todo}", 70) if check.todo else []
        lines += [" " * 27 + line for line in (*said[1:], *todo)]
    return "\n".join(lines) + "\n"


def machine(root: Path = Path("/")) -> list[Check]:
    """What there is to say of this machine; *root* is where /proc and /sys are."""
    return [
        Check(name="python", state="ok", said=f"{platform.python_version()}, {platform.system()}"),
        _processors(root),
        _load(os.getloadavg()[0], os.cpu_count() or 1),
        _governor(root),
        _clock(root),
        open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        _ports(root),
        *(_extra(module, name) for module, name in EXTRAS.items()),
    ]


EXTRAS = {"tokenizers": "tokenizer", "pyarrow": "parquet"}


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _processors(root: Path) -> Check:
    count = os.cpu_count() or 1
    words = (_read(root / "sys/fs/cgroup/cpu.max") or "max").split()
    if len(words) == 2 and words[0] != "max" and float(words[0]) < count * float(words[1]):
        cores = float(words[0]) / float(words[1])
        return Check(
            name="processors",
            state="warning",
            said=f"{count}, but this container may use {cores:g} cores and is stopped beyond that",
            todo="lift the container's CPU limit: a client that is stopped sends late",
        )
    return Check(
        name="processors",
        state="ok" if count > 1 else "warning",
        said=str(count),
        todo="" if count > 1 else "the client needs a core of its own beside the server",
    )


def _load(load: float, processors: int) -> Check:
    busy = load > 0.5 * processors
    return Check(
        name="load",
        state="warning" if busy else "ok",
        said=f"{load:.1f} on average in the last minute, on {processors} processors",
        todo="stop what else runs here, or measure from another machine" if busy else "",
    )


def _governor(root: Path) -> Check:
    name = _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if name is None:
        return Check(name="CPU governor", state="unknown", said="not told here (virtual machine?)")
    good = name in ("performance", "schedutil")
    return Check(
        name="CPU governor",
        state="ok" if good else "warning",
        said=name,
        todo="" if good else "sudo cpupower frequency-set -g performance",
    )


def _clock(root: Path) -> Check:
    step_s = time.get_clock_info("monotonic").resolution
    name = _read(root / "sys/devices/system/clocksource/clocksource0/current_clocksource")
    if name is None:
        return Check(name="clock", state="unknown", said=f"steps of {step_s:g} s; source not told")
    good = name in _FAST_CLOCKS and step_s <= 1e-6
    return Check(
        name="clock",
        state="ok" if good else "warning",
        said=f"{name}, steps of {step_s:g} s",
        todo="" if good else "reading this clock is slow or coarse: boot with a better clocksource",
    )


def open_files(soft: int, hard: int) -> Check:
    """How many users the limit on open files allows; servecap raises the soft one by itself."""
    if hard == resource.RLIM_INFINITY:
        return Check(name="open files", state="ok", said="no limit")
    users = max(0, hard - _OTHER_FILES)
    few = users < _FILES_WANTED
    return Check(
        name="open files",
        state="warning" if few else "ok",
        said=f"{soft:,}, may be raised to {hard:,}: at most {users:,} users",
        todo=f"for more users: ulimit -Hn {_FILES_WANTED + _OTHER_FILES}" if few else "",
    )


def _ports(root: Path) -> Check:
    words = (_read(root / "proc/sys/net/ipv4/ip_local_port_range") or "").split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return Check(name="local ports", state="unknown", said="not told here")
    count = int(words[1]) - int(words[0]) + 1
    few = count < _PORTS_WANTED
    return Check(
        name="local ports",
        state="warning" if few else "ok",
        said=f"{count:,}: at most so many connections to one server address",
        todo="sudo sysctl net.ipv4.ip_local_port_range='15000 64999'" if few else "",
    )


def _extra(module: str, name: str) -> Check:
    there = importlib.util.find_spec(module) is not None
    return Check(
        name=f"extra {name}",
        state="ok" if there else "unknown",
        said="installed" if there else f"not installed: pip install 'servecap[{name}]'",
    )


def _prepared(
    url: str, api: str, model: str | None, headers: tuple[str, ...], insecure: bool
) -> Prepared:
    from servecap.probe import TargetSpec, open_bench
    from servecap.scenario import Timeouts, WorkloadSpec
    from servecap.wire.endpoint import Security

    target = TargetSpec(
        url=url, api=api, model=model, headers=headers, security=Security(insecure=insecure)
    )
    return open_bench(target, WorkloadSpec(source="fixed:8/8"), Timeouts()).prepared


def server(prepared: Prepared) -> list[Check]:
    """What the server's answer to one short request says of what it supports."""
    from servecap.preflight import TRIAL_TOKENS
    from servecap.record import TokenSource
    from servecap.report.units import seconds

    target, trial = prepared.target, prepared.trial
    counts = trial.token_source is TokenSource.SERVER
    steps = len(trial.chunk_s)
    asked, got = TRIAL_TOKENS, trial.output_tokens
    timings = trial.server.origin if trial.server is not None else None
    return [
        Check(name="server", state="ok", said=f"{target.server or 'nameless'} at {target.url}"),
        Check(name="API", state="ok", said=f"{target.api}, model {target.model or 'n/a'}"),
        Check(
            name="first answer",
            state="ok",
            said=f"{seconds(trial.e2e_s)} in all, first token after {seconds(trial.ttft_s)}",
        ),
        Check(
            name="streaming",
            state="ok" if steps > 1 else "warning",
            said=f"{steps} chunks for {'n/a' if got is None else got} tokens",
            todo="" if steps > 1 else "the answer came at once: no TPOT (a buffering proxy?)",
        ),
        Check(
            name="token counts",
            state="ok" if counts else "warning",
            said="by the server" if counts else f"{trial.token_source}",
            todo="" if counts else "counts are estimates: give --tokenizer FILE",
        ),
        Check(
            name="server timings",
            state="ok" if timings else "unknown",
            said=f"told in {timings}" if timings else "not told: only the client's clock",
        ),
        Check(
            name="answer length",
            state="unknown" if got is None else "ok" if got == asked else "warning",
            said=f"{'n/a' if got is None else got} tokens where {asked} were asked for",
            todo="the server does not keep the asked length: use --output natural"
            if got is not None and got != asked
            else "",
        ),
        *(Check(name="note", state="unknown", said=note) for note in prepared.notes),
    ]
