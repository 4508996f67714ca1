"""What a shell offers after Tab: the values that options know, and files where they name files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import click
from click.shell_completion import CompletionItem, FishComplete, add_completion_class

Values = Callable[[], Sequence[str]]


class Text(click.types.StringParamType):
    """A text of which some values are known; else it may name a file, or a folder."""

    def __init__(self, values: Values, place: str = "") -> None:
        self._values = values
        self._place = place  # "file", "dir" or none

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem[str]]:
        """The known values that begin so, after a comma the next; else what is on the disk."""
        before, comma, last = incomplete.rpartition(",")
        known = [f"{before}{comma}{x}" for x in self._values() if x.startswith(last)]
        if self._place and not known:
            return [CompletionItem(incomplete, type=self._place)]
        return [CompletionItem(x) for x in known]


def teach(command: click.Command, name: str) -> None:
    """Give the command's options of free text the values that are known for them."""
    for param in command.params:
        if param.type is click.STRING:  # others know what they take
            values, place = _values(param, name), _place(param, name)
            if values is not None or place:
                param.type = Text(values or tuple, place)
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        teach(below, name)


def _place(param: click.Parameter, command: str) -> str:
    said = f"{param.metavar or param.name}".upper()
    if "FOLDER" in said:
        return "dir"
    return "file" if "FILE" in said or _engine_model(param, command) else ""


def _values(param: click.Parameter, command: str) -> Values | None:
    """What is known to fit there; read only when it is asked for."""
    if kind := _engine_model(param, command):
        return {"--model": _models, "--gpu": _gpus}[kind]
    return {
        "--api": _apis,
        "--format": _formats,
        "--output": lambda: ("data", "natural"),
        "--ray": lambda: ("auto",),
        "--trace-format": _trace_formats,
        "--weights": _weights,
        "--workload": _workloads,
    }.get(_spelled(param))


def _engine_model(param: click.Parameter, command: str) -> str:
    """The option, if it names a preset or a file of the engine model's; else nothing.

    Elsewhere `--model` is a name of the server's, or one in a table.
    """
    option = _spelled(param)
    named = option == "--model" and command in ("predict", "calibrate", "emulate")
    return option if named or option == "--gpu" else ""


def _spelled(param: click.Parameter) -> str:
    return max(param.opts, key=len)


def _apis() -> Sequence[str]:
    from servecap.wire.api import API_NAMES

    return API_NAMES


def _formats() -> Sequence[str]:
    from servecap.workload.formats import FORMATS

    return FORMATS


def _trace_formats() -> Sequence[str]:
    from servecap.workload.traces import FORMATS

    return FORMATS


def _workloads() -> Sequence[str]:
    from servecap.workload.builtin import BUILTINS

    return tuple(BUILTINS)


def _gpus() -> Sequence[str]:
    from servecap.engine.hardware import gpus

    return tuple(gpu.name.lower() for gpu in gpus())


def _models() -> Sequence[str]:
    from servecap.engine.model import presets

    return presets()


def _weights() -> Sequence[str]:
    from servecap.engine.model import WEIGHT_NAMES

    return tuple(WEIGHT_NAMES)


class _Fish(FishComplete):
    """Descriptions whole: click's script cuts them off at their first comma."""

    source_template: ClassVar[str] = FishComplete.source_template.replace(
        'string split ","', 'string split --max 1 ","'
    )


add_completion_class(_Fish)
