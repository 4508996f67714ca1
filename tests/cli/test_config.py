"""Options from a YAML file: below the command line, above the built-in defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from servecap import cli
from servecap.cli import config
from servecap.errors import UsageError

COMMANDS = list(cli.COMMANDS)


def written(folder: Path, text: str) -> str:
    path = folder / "servecap.yaml"
    path.write_text(text)
    return str(path)


def test_options_are_known_by_their_long_names(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "run: {users: 64, format: sharegpt, max_duration: 5, header: 'A: b', stream: false}\n"
        "find: {header: ['A: b', 'C: d'], max-users: 9}\n",
    )
    found = config.read(path, COMMANDS, cli._command)
    assert found["run"] == {
        "users": "64",
        "data_format": "sharegpt",
        "max_duration": "5",
        "headers": ["A: b"],
        "stream": False,
    }
    assert found["find"] == {"headers": ["A: b", "C: d"], "max_users": "9"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs: {users: 1}", "'runs' is no command: did you mean 'run'"),
        ("run: {usrs: 1}", "run has no option 'usrs': did you mean 'users'"),
        ("run: {users: [1, 2]}", "takes one value"),
        ("run: {users: yes}", "run.users takes no true or false, not True"),
        ("run: {json: 3}", "run.json takes true or false, not 3"),
        ("run: 3", "must map commands to options"),
        ("- run", "must map commands to options"),
        ("run: {users: ", "is no YAML"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        config.read(written(tmp_path, text), COMMANDS, cli._command)
    assert "\n" not in str(caught.value)


def test_an_option_of_two_values_takes_a_list_of_them(tmp_path: Path) -> None:
    path = written(tmp_path, "emulate: {freeze: [5, 1.5]}")
    assert config.read(path, COMMANDS, cli._command)["emulate"] == {"freeze": ["5", "1.5"]}


def test_every_command_can_stand_in_a_file(tmp_path: Path) -> None:
    text = "".join(f"{name}: {{}}\n" for name in COMMANDS)
    assert set(config.read(written(tmp_path, text), COMMANDS, cli._command)) == set(COMMANDS)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        config.read(str(tmp_path / "none.yaml"), COMMANDS, cli._command)


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from servecap.cli import run

    seen: dict[str, Any] = {}

    def callback(**given: Any) -> int:
        seen.update(given)
        return 0

    monkeypatch.setattr(run.command, "callback", callback)
    path = written(tmp_path, "run: {url: 'http://a', users: 64, seed: 1, queue: 7, header: 'A: b'}")
    args = ["--config", path, "run", "--seed", "3"]
    done = CliRunner().invoke(
        cli.cli, args, standalone_mode=False, env={"SERVECAP_RUN_USERS": "32"},
        auto_envvar_prefix="SERVECAP",
    )  # fmt: skip
    assert done.exception is None, done.exception
    assert (seen["url"], seen["queue"], seen["headers"]) == ("http://a", 7, ("A: b",))
    assert (seen["users"], seen["seed"]) == (32, 3)


@pytest.mark.parametrize("users", ["many", "2.5"])
def test_values_from_the_file_are_checked_as_those_of_the_command_line(
    tmp_path: Path, users: str
) -> None:
    path = written(tmp_path, f"run: {{url: 'http://a', users: {users}}}")
    done = CliRunner().invoke(cli.cli, ["--config", path, "run"], standalone_mode=False)
    assert isinstance(done.exception, click.BadParameter)
    assert f"'{users}' is not a valid integer" in done.exception.format_message()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_completion_script(shell: str) -> None:
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    complete = kind(cli.cli, {}, "servecap", "_SERVECAP_COMPLETE")
    names = [item.value for item in complete.get_completions([], "co")]
    assert names == ["compare"]
    assert "--users" in [item.value for item in complete.get_completions(["run"], "--u")]


def everything() -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name in COMMANDS:
        command = cli._command(name)
        below = command.commands if isinstance(command, click.Group) else {}
        found += [(name, command), *((f"{name} {sub}", made) for sub, made in below.items())]
    return found


@pytest.mark.parametrize(("path", "command"), everything())
def test_every_option_is_read_from_the_variable_of_its_name(
    path: str, command: click.Command
) -> None:
    for param in command.params:
        if not isinstance(param, click.Option):
            continue
        several = param.multiple or param.nargs != 1
        longest = max(param.opts, key=len).removeprefix("--")
        name = f"SERVECAP_{path}_{longest}".replace("-", "_").replace(" ", "_").upper()
        context = click.Context(command, info_name=path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, "A: b c\nD: e")
            got = param.value_from_envvar(context)
        assert isinstance(got, list) == several, name
        assert not param.multiple or got == ["A: b c", "D: e"], name


def test_flags_repeated_options_and_switches_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from servecap.cli import find, plan

    seen: dict[str, Any] = {}

    def callback(**given: Any) -> int:
        seen.update(given)
        return 0

    for module in (find, plan):
        monkeypatch.setattr(module.command, "callback", callback)
    env = {
        "SERVECAP_FIND_URL": "http://a", "SERVECAP_FIND_RATE": "1", "SERVECAP_FIND_STREAM": "0",
        "SERVECAP_FIND_HEADER": "A: b\nC: d", "SERVECAP_PLAN_JSON": "true",
        "SERVECAP_PLAN_PRICE": "a100=2.1\nv100=1", "SERVECAP_PLAN_USERS": "10000",
    }  # fmt: skip
    for args in (["find"], ["plan", "cells.csv"]):
        done = CliRunner().invoke(cli.cli, args, standalone_mode=False, env=env)
        assert done.exception is None, done.exception
    assert (seen["url"], seen["by_rate"], seen["headers"]) == ("http://a", True, ("A: b", "C: d"))
    assert seen["as_json"] is True
    assert seen["prices"] == ("a100=2.1", "v100=1")
