"""Writes docs/cli.md from the command tree of `servecap.cli`, so that the two cannot differ.

python tools/make_cli_reference.py           # writes docs/cli.md
python tools/make_cli_reference.py --check   # exit 1 if it is not up to date
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

TARGET = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """\
# Command line reference

<!-- Written by tools/make_cli_reference.py from the program itself: change the program instead. -->
"""


def reference(command: click.Command, name: str) -> str:
    """The Markdown reference of the command and of everything below it."""
    root = click.Context(command, info_name=name)
    return "\n".join([HEAD, *_sections(command, root, name)]).rstrip() + "\n"


def _sections(command: click.Command, context: click.Context, path: str) -> Iterator[str]:
    yield f"## `{path}`\n"
    if command.help:
        yield _prose(inspect.cleandoc(command.help))  # as Python does by itself from 3.13 on
    yield "```text\n" + " ".join([path, *command.collect_usage_pieces(context)]) + "\n```\n"
    yield from _parameters(command)
    if command.epilog:
        yield _prose(command.epilog)
    if not isinstance(command, click.Group):
        return
    below = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    shown = [(name, child) for name, child in below if child is not None and not child.hidden]
    if shown:
        yield "Commands:\n"
        yield "\n".join(_listed(path, name, child) for name, child in shown) + "\n"
    for name, child in shown:
        inner = click.Context(child, info_name=name, parent=context)
        yield from _sections(child, inner, f"{path} {name}")


def _listed(path: str, name: str, child: click.Command) -> str:
    anchor = f"{path} {name}".replace(" ", "-").lower()
    first = (child.short_help or child.help or "").split("\f")[0].strip().split("\n\n")[0]
    return f"- [`{name}`](#{anchor}): {' '.join(first.split())}"


def _prose(text: str) -> str:
    """Help text as Markdown; a paragraph that begins with a \\b line keeps its line breaks."""
    parts = []
    for part in text.split("\f")[0].strip().split("\n\n"):
        lines = [line.strip() if "\b" in line else line.rstrip() for line in part.splitlines()]
        if lines and lines[0] == "\b":
            parts.append("```text\n" + "\n".join(lines[1:]) + "\n```")
        else:
            parts.append("\n".join(line.strip() for line in lines))
    return "\n\n".join(parts) + "\n"


def _parameters(command: click.Command) -> Iterator[str]:
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if arguments:
        needed = [f"- `{_label(a)}`{'' if a.required else ' (may be left out)'}" for a in arguments]
        yield "Arguments:\n\n" + "\n".join(needed) + "\n"
    if options:
        yield "Options:\n\n" + "\n".join(_option(option) for option in options) + "\n"


def _label(argument: click.Argument) -> str:
    return (argument.metavar or argument.name or "").upper() + ("..." if argument.nargs < 0 else "")


def _option(option: click.Option) -> str:
    names = ", ".join(option.opts)
    if option.secondary_opts:
        names += " / " + ", ".join(option.secondary_opts)
    value = "" if option.is_flag or option.count else " " + _value(option)
    notes = []
    if option.required:
        notes.append("required")
    if option.multiple:
        notes.append("may be repeated")
    if (default := _default(option)) is not None:
        notes.append(f"default: {default}")
    tail = f" [{'; '.join(notes)}]" if notes else ""
    return f"- `{names}{value}`: {' '.join((option.help or '').split())}{tail}"


def _value(option: click.Option) -> str:
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "[" + "|".join(str(choice) for choice in option.type.choices) + "]"
    return option.type.name.upper()


def _default(option: click.Option) -> str | None:
    """The default as `--help` shows it; None where there is none to show."""
    if isinstance(option.show_default, str):
        return option.show_default
    default = option.to_info_dict()["default"]  # unlike .default, the same in all of click 8
    if default is None or default == () or isinstance(default, bool) or callable(default):
        return None
    if isinstance(default, (list, tuple)):
        return ", ".join(str(item) for item in default)
    return str(default)


def find_cli() -> click.Command:
    """The command tree of servecap.

    Raises:
        TypeError: servecap.cli has neither a `cli` nor a `main` that is a click command.
    """
    module = importlib.import_module("servecap.cli")
    for name in ("cli", "main"):
        found = getattr(module, name, None)
        if isinstance(found, click.Command):
            return found
    raise TypeError("servecap.cli has no click command called cli or main")


def main() -> int:
    """Writes the reference; with --check only compares: 1 if docs/cli.md is out of date."""
    text = reference(find_cli(), "servecap")
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text)
        return 0
    if TARGET.exists() and TARGET.read_text() == text:
        return 0
    print("docs/cli.md is out of date: run python tools/make_cli_reference.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
