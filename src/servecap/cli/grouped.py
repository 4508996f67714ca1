"""A command whose options stand in groups in its help."""

from __future__ import annotations

from typing import Any

import click

from servecap.cli.asked import Asked


class Grouped(Asked):
    """Lists its options under titles; each title stands above the option that begins its group.

    An option that is added to a group's middle or end needs no word here.
    """

    def __init__(self, *args: Any, titles: dict[str, str], **more: Any) -> None:
        super().__init__(*args, **more)
        self.titles = titles  # name of a group's first parameter -> title

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the groups in the order of the options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        title = "Options"
        for param in self.get_params(ctx):
            if not isinstance(param, click.Option):
                continue
            title = self.titles.get(str(param.name), title)
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)
