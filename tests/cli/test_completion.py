"""What shells offer after Tab, asked as their scripts ask; and that what is offered is accepted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from click.shell_completion import BashComplete

from servecap import cli
from servecap.cli import completion
from servecap.engine import hardware, model

VARIABLE = "_SERVECAP_COMPLETE"


def asked(words: str, shell: str) -> dict[str, str]:
    """The environment in which a shell's script asks what the last of the words may become."""
    typed = ["servecap", *words.split(" ")]
    at = typed[-1] if shell == "fish" else str(len(typed) - 1)
    return {VARIABLE: f"{shell}_complete", "COMP_WORDS": " ".join(typed), "COMP_CWORD": at}


def program(environment: dict[str, str]) -> str:
    """What the program prints in it."""
    return subprocess.run(
        [sys.executable, "-c", "import sys; from servecap import cli; sys.argv = ['servecap'];"
         " cli.main()"],
        env=os.environ | environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("ru", ["plain,run"]),
        ("run --timi", ["plain,--timings"]),
        ("run --timings s", ["plain,server"]),
        ("run --api sg", ["plain,sglang"]),
        ("run --workload docqa-", ["plain,docqa-en", "plain,docqa-zh"]),
        ("run --workload ./cha", ["file,./cha"]),
        ("run --model lla", []),
        ("find --out ru", ["dir,ru"]),
        ("predict --gpu a30,h20", ["plain,a30,h200", "plain,a30,h20", "plain,a30,h20-3e"]),
        ("emulate --model qwen2.5-7", ["plain,qwen2.5-7b", "plain,qwen2.5-72b"]),
        ("workload sample --format longb", ["plain,longbench"]),
    ],
)
def test_commands_options_values_and_places_are_offered(
    words: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in asked(words, "bash").items():
        monkeypatch.setenv(name, value)
    assert BashComplete(cli.cli, {}, "servecap", VARIABLE).complete() == "\n".join(told)


def test_fish_and_zsh_are_told_what_a_command_does_whole() -> None:
    said = "Show stored runs, searches, matrices and plans; write one HTML page."
    assert program(asked("rep", "fish")) == f"plain,report\t{said}\n"
    assert program(asked("rep", "zsh")).splitlines() == ["plain", "report", said]
    source = program({VARIABLE: "fish_source"})
    assert 'string split --max 1 ","' in source  # or descriptions end at their first comma


@pytest.mark.parametrize(
    ("values", "accepts"),
    [
        (completion._gpus, hardware.gpu),
        (completion._models, model.model),
        (completion._weights, lambda weights: model.model("llama-13b", weights=weights)),
    ],
)
def test_what_is_offered_is_accepted(
    values: completion.Values, accepts: Callable[[str], object]
) -> None:
    assert len(values()) > 5
    for value in values():
        accepts(value)
