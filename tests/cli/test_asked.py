"""The command that a run keeps asks the same thing again."""

from __future__ import annotations

import os
import shlex
from typing import Any

import click
import pytest

from servecap import cli
from servecap.cli import asked

ASIDE = ("out", "as_json", "quiet", "lang")


def told(name: str, words: list[str], **more: Any) -> tuple[str, dict[str, Any]]:
    """The command line that is remembered, and the options that it stands for."""
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    with command.make_context(name, list(words), **more) as ctx:
        rest = {key: value for key, value in ctx.params.items() if key not in ASIDE}
        return asked.command_line(), rest


@pytest.mark.parametrize(
    "line",
    [
        "run --url http://h:1 --users 64 --slo 'ttft.p95<2s,tpot.mean<80ms'",
        "run --url http://h:1 --no-stream --think exp:2.5 --insecure --workers 2 --soak 90s",
        "run --url http://h:1 --rate 2 --schedule ramp:20/120 --burstiness 2 --no-telemetry",
        "find --url unix:///x/y --rate --budget 20m --precision 10%",
        "find --url http://h:1 --gpu a30 --tp 2 --repeat-prompts",
        "matrix 'my spec.yaml' --only a --only 'b c'",
    ],
)
def test_it_asks_the_same_again(line: str) -> None:
    name, *words = shlex.split(line)
    aside = [] if name == "matrix" else ["--out", "x", "--lang", "zh"]
    kept, meant = told(name, [*words, *aside, "--quiet"])
    assert kept.startswith(f"servecap {name} ")
    assert "--lang" not in kept
    assert "--quiet" not in kept
    again, same = told(name, shlex.split(kept)[2:])
    assert again == kept
    assert {k: repr(x) for k, x in same.items()} == {k: repr(x) for k, x in meant.items()}


def test_defaults_are_left_away() -> None:
    assert told("run", ["--url", "http://h:1"])[0] == "servecap run --url http://h:1"


def test_what_a_file_and_the_environment_say_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SERVECAP_RUN_SEED", "7")
    monkeypatch.setitem(os.environ, "SERVECAP_RUN_HEADER", "A: 1\nB: 2")
    kept, _ = told("run", ["--url", "http://h:1"], default_map={"users": 5, "stream": False})
    assert set(shlex.split(kept)[2:]) == {
        "--url", "http://h:1", "--users", "5", "--no-stream", "--seed", "7",
        "--header", "A: ...", "B: ...",
    }  # fmt: skip


def test_secrets_are_not_kept() -> None:
    words = ["--header", "Authorization: Bearer sesame", "--proxy", "http://me:sesame@p:1"]
    kept, _ = told("run", ["--url", "http://me:sesame@h:1", *words])
    assert "sesame" not in kept
    assert "--header 'Authorization: ...' --proxy http://p:1" in kept
