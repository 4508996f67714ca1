"""Help that can be read: grouped, with examples, and every option also from the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from click.testing import CliRunner

from servecap import cli
from servecap.cli.grouped import Grouped
from servecap.cli.param import ENGINE
from servecap.engine.spec import EngineKind


def command(name: str) -> click.Command:
    found = cli.cli.get_command(click.Context(cli.cli), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_says_what_it_does_and_shows_an_example(name: str) -> None:
    text = CliRunner().invoke(cli.cli, [name, "--help"], terminal_width=80).output
    assert max(map(len, text.splitlines())) <= 100
    assert f"  servecap {name}" in text or name in ("demo", "self-test", "doctor", "workload")


@pytest.mark.parametrize("name", ["run", "find", "matrix", "plan", "compare"])
def test_every_option_says_what_it_is(name: str) -> None:
    silent = [p.name for p in command(name).params if isinstance(p, click.Option) and not p.help]
    assert silent == []


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_numbers_within_a_range_are_finite(name: str) -> None:
    for param in command(name).params:
        if isinstance(param.type, click.FloatRange):
            for text in ("nan", "inf"):
                with pytest.raises(click.BadParameter):
                    param.type(text, param, None)


@pytest.mark.parametrize("name", ["run", "find", "plan"])
def test_long_helps_are_grouped(name: str) -> None:
    grouped = command(name)
    assert isinstance(grouped, Grouped)
    assert set(grouped.titles) <= {p.name for p in grouped.params}
    text = CliRunner().invoke(cli.cli, [name, "--help"]).output
    for title in grouped.titles.values():
        assert f"\n{title}:\n" in text
    assert "\nOptions:\n" not in text
    for param in grouped.params:
        if isinstance(param, click.Option):
            assert max(param.opts, key=len) in text


TEXTS = {"integer": "7", "float": "1.5", "integer range": "7", "float range": "1.5"}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_option_is_read_from_the_environment(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SERVECAP_COMMAND_OPTION` for each of them, one at a time."""
    tested = command(name)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(tested, "callback", lambda **given: seen.update(given))
    for param in tested.params:
        if param.required:
            monkeypatch.setattr(param, "required", False)
    for param in tested.params:
        if not isinstance(param, click.Option) or param.nargs != 1 or not param.expose_value:
            continue
        if isinstance(param.type, click.Choice):
            text = str(param.type.choices[-1])
        elif param.is_flag:
            text = "0" if param.default is True else "1"
        elif type(param.type).__module__.startswith("click"):
            text = TEXTS.get(param.type.name, __file__)
        else:
            continue  # types of our own are held in their own tests
        if isinstance(param.type, click.IntRange | click.FloatRange) and param.type.max is not None:
            text = str(param.type.max)
        if isinstance(param.type, click.Path) and not param.type.file_okay:
            text = str(Path(__file__).parent)
        variable = f"SERVECAP_{name}_{param.name}".upper().replace("-", "_")
        seen.clear()
        done = CliRunner().invoke(
            cli.cli, [name], env={variable: text}, auto_envvar_prefix="SERVECAP"
        )
        assert done.exit_code == 0, (variable, done.output)
        got = seen[str(param.name)]
        one = got[0] if isinstance(got, tuple) else got
        if param.is_flag:
            assert one is (text == "1"), variable
        else:
            assert str(one) in (text, f"{text}.0"), variable


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_program_prints_a_completion_script(shell: str) -> None:
    env = os.environ | {"_SERVECAP_COMPLETE": f"{shell}_source"}
    code = "import sys; sys.argv = ['servecap']; from servecap.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    if shell == "bash" and "Bash" in done.stderr:
        pytest.skip("this bash is too old")
    assert f"_SERVECAP_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.parametrize(
    ("typed", "told"),
    [("fnd", "'fnd'. Did you mean 'find'?"), ("reprt", "'report'?"), ("xyz", "No such command")],
)
def test_a_command_that_is_mistyped_is_guessed(typed: str, told: str) -> None:
    result = CliRunner().invoke(cli.cli, [typed])
    assert result.exit_code == 2
    assert told in result.output
    assert ("Did you mean" in result.output) == (typed != "xyz")


def test_engines_are_those_of_the_engine_model() -> None:
    assert tuple(ENGINE.choices) == get_args(EngineKind)
