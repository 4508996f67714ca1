"""What was asked, as one command that asks it again: kept with a run, shown in its report."""

from __future__ import annotations

import re
import shlex
from typing import Any

import click
from click.core import ParameterSource

_KEY = "servecap.asked"
# Say what is printed and where it goes, not what is measured; a folder can be used once only.
_ASIDE = frozenset({"out", "as_json", "quiet", "lang", "progress", "help"})
_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")


class Asked(click.Command):
    """Remembers its options as they were written, in a command, a variable or a YAML file.

    What was left at its default is left away. Values of headers and the userinfo of URLs, which
    may be secrets, are never kept.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, and remembers."""
        written = list(args)
        rest = super().parse_args(ctx, args)
        given, *_ = self.make_parser(ctx).parse_args(written)
        words = ["servecap", str(ctx.info_name)]
        for param in self.get_params(ctx):
            value, source = param.consume_value(ctx, given)
            if source is not ParameterSource.DEFAULT and param.name not in _ASIDE:
                words += _words(param, value)
        ctx.meta[_KEY] = shlex.join(words)
        return rest


def command_line() -> str:
    """The running command; empty where none is running, or one that does not remember."""
    ctx = click.get_current_context(silent=True)
    return "" if ctx is None else str(ctx.meta.get(_KEY, ""))


def _words(param: click.Parameter, value: Any) -> list[str]:
    values = list(value) if param.multiple or param.nargs != 1 else [value]
    if not isinstance(param, click.Option):
        return [_harmless(param, item) for item in values]
    name = max(param.opts, key=len)
    if param.is_flag:
        on = value in (True, "1", "true", "yes", "on")
        off = max(param.secondary_opts, key=len, default=None)
        return [name] if on else [off] if off else []
    if param.multiple:
        return [word for item in values for word in (name, _harmless(param, item))]
    return [name, *(_harmless(param, item) for item in values)]


def _harmless(param: click.Parameter, value: Any) -> str:
    text = str(value)
    if param.name == "headers":
        return f"{text.partition(':')[0]}: ..."
    return _USERINFO.sub("", text)
