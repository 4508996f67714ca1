"""Options of the commands from a YAML file: a map of commands to their options by long name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from servecap.errors import UsageError

_NOT_WRITTEN = ("help",)


def read(
    path: str, commands: list[str], load: Callable[[str], click.Command]
) -> dict[str, dict[str, Any]]:
    """The defaults for each command, as click wants them: by the parameter's own name.

    Args:
        load: gives the command of a name.

    Raises:
        UsageError: the file cannot be read, or names a command or an option that there is not.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path!r} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"--config {path!r} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise UsageError(f"--config {path!r} must map commands to options: {{run: {{users: 64}}}}")
    defaults = {}
    for name, options in found.items():
        if name not in commands:
            raise UsageError(f"--config {path!r}: {name!r} is no command{_near(name, commands)}")
        command = load(name)
        defaults[name] = _of_command(path, name, command, options)
    return defaults


def _of_command(
    path: str, name: str, command: click.Command, options: dict[Any, Any]
) -> dict[str, Any]:
    params = {
        max(param.opts, key=len).lstrip("-"): param
        for param in command.params
        if isinstance(param, click.Option) and param.name not in _NOT_WRITTEN
    }
    defaults: dict[str, Any] = {}
    for key, value in options.items():
        option = str(key).replace("_", "-")
        if option not in params:
            known = list(params)
            raise UsageError(
                f"--config {path!r}: {name} has no option {key!r}{_near(option, known)}"
            )
        param = params[option]
        if isinstance(value, dict) or (
            isinstance(value, list) and not param.multiple and param.nargs == 1
        ):
            raise UsageError(f"--config {path!r}: {name}.{key} takes one value, not {value!r}")
        found = [_value(path, f"{name}.{key}", param, x) for x in _listed(value)]
        defaults[str(param.name)] = found if isinstance(value, list) or param.multiple else found[0]
    return defaults


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _value(path: str, key: str, param: click.Option, value: Any) -> Any:
    """One value as the command line would have it: numbers as they are written.

    click would take 2.5 users for 2, and breaks on a flag that is a number.
    """
    if value is None or (param.is_flag and isinstance(value, bool)):
        return value
    if param.is_flag or isinstance(value, bool):
        allowed = "true or false" if param.is_flag else "no true or false"
        raise UsageError(f"--config {path!r}: {key} takes {allowed}, not {value!r}")
    return str(value)


def _near(name: object, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, 1)
    return f": did you mean {near[0]!r}?" if near else ""
