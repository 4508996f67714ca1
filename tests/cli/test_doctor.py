"""The doctor: what it makes of a machine, and of a server's first answer."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from click.testing import CliRunner

from servecap import cli
from servecap.cli.doctor import Check, machine, open_files
from servecap.emulate.config import EmulatorConfig
from servecap.emulate.launch import running
from servecap.errors import EndpointError


def of(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


GOVERNOR = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
CLOCK = "sys/devices/system/clocksource/clocksource0/current_clocksource"
PORTS = "proc/sys/net/ipv4/ip_local_port_range"


@pytest.mark.parametrize(
    ("file", "text", "name", "state"),
    [
        (GOVERNOR, "performance", "CPU governor", "ok"),
        (GOVERNOR, "powersave", "CPU governor", "warning"),
        (CLOCK, "tsc", "clock", "ok"),
        (CLOCK, "hpet", "clock", "warning"),
        (PORTS, "32768\t60999", "local ports", "ok"),
        (PORTS, "60000\t60999", "local ports", "warning"),
        (PORTS, "what", "local ports", "unknown"),
        ("sys/fs/cgroup/cpu.max", "50000 100000", "processors", "warning"),
    ],
)
def test_what_the_system_tells_is_judged(
    tmp_path: Path, file: str, text: str, name: str, state: str
) -> None:
    write(tmp_path, file, text)
    check = of(machine(tmp_path), name)
    assert check.state == state
    assert bool(check.todo) == (state == "warning")


def test_what_the_system_does_not_tell_is_unknown(tmp_path: Path) -> None:
    checks = machine(tmp_path)
    for name in ("CPU governor", "clock", "local ports"):
        assert of(checks, name).state == "unknown"


def test_the_hard_limit_of_open_files_counts() -> None:
    assert open_files(1024, 1_000_000).state == "ok"
    assert open_files(1024, resource.RLIM_INFINITY).state == "ok"
    few = open_files(1024, 1064)
    assert few.state == "warning"
    assert "at most 1,000 users" in few.said


def doctor(*args: str) -> list[dict[str, str]]:
    done = CliRunner().invoke(cli.cli, ["doctor", "--json", *args], standalone_mode=False)
    assert done.exception is None, done.output
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def test_a_server_is_asked_once_for_what_it_supports() -> None:
    with running(EmulatorConfig(model="llama-13b", gpu="a100-40gb", tp=4, speed=20)) as url:
        found = {check["name"]: check for check in doctor("--url", url)}
    assert found["streaming"]["state"] == "ok"
    assert found["token counts"]["said"] == "by the server"
    assert found["answer length"]["state"] == "ok"
    assert "llama-13b" in found["API"]["said"]


def test_a_server_that_is_not_there_is_an_error() -> None:
    args = ["doctor", "--url", "http://127.0.0.1:9"]
    done = CliRunner().invoke(cli.cli, args, standalone_mode=False)
    assert isinstance(done.exception, EndpointError)


def test_text_names_what_to_do() -> None:
    done = CliRunner().invoke(cli.cli, ["doctor"], standalone_mode=False)
    assert done.return_value == 0
    assert "open files" in done.output
    assert max(map(len, done.output.splitlines())) <= 100
