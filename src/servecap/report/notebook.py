"""A result inside a notebook: the report's words and tables, in the notebook's own look.

Plain elements with styles of their own. There is no id, script or style sheet that another output
on the page could meet (the one of a page's frame is kept to that frame), and colours and fonts are
the notebook's, so that its dark theme holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from servecap.report.table import Table
from servecap.report.words import Headline

Lists = Sequence[tuple[str, list[str]]]  # heading and items

# A notebook sets the lines of `pre` in the font of its prose, which would undo the columns.
_LINES = (
    "font-family: ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; line-height: 1.35; "
    "white-space: pre; overflow-x: auto"
)
_CELL = "padding: .2em .8em; vertical-align: top"  # and centred or to the right in notebooks

# A page in a frame is dark where its frame's `color-scheme` is. JupyterLab sets that of its theme
# itself since 2024, and a frame inherits it; what else tells its theme is asked for it here.
# `@scope` keeps the rules to this one frame.
_THEMES = (
    "@scope { :is(.vscode-dark, .vscode-high-contrast, [data-jp-theme-light=false]) :scope > iframe"
    " { color-scheme: dark } :is(.vscode-light, .vscode-high-contrast-light,"
    " [data-jp-theme-light=true]) :scope > iframe { color-scheme: light } }"
)


def in_lines(text: str) -> str:
    """Plain text whose columns stay columns; a wide line scrolls."""
    return f'<pre style="{_LINES}">{escape(text)}</pre>'


def fragment(
    head: Headline,
    tables: Sequence[Table],
    *,
    lists: Lists = (),
    folded: Sequence[Table] = (),
    folded_lists: Lists = (),
) -> str:
    """The answer, then tables and lists; what is *folded* opens by a click."""
    parts = [_title(head.badge), *(f"<p>{escape(x)}</p>" for x in (head.plain, head.quote) if x)]
    parts.append(_items(head.todo))
    named = (head.plain, head.quote)  # the title of a lone table may stand there already
    parts += [("" if x.title in named else _title(x.title)) + _table(x) for x in tables]
    parts += [_title(name) + _items(items) for name, items in lists if items]
    parts += [_fold(table.title, _table(table)) for table in folded]
    parts += [_fold(name, _items(items)) for name, items in folded_lists if items]
    return f'<div style="max-width: 70em">{"".join(parts)}</div>'


def _title(text: str) -> str:
    return f"<p><strong>{escape(text)}</strong></p>"


def _items(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""


def _fold(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def _table(table: Table) -> str:
    notes = "".join(f'<p style="margin: 0 0 .3em">{escape(note)}</p>' for note in table.notes)
    if not table.rows:
        return notes
    names = [column.name for column in table.columns]
    head = f"<thead><tr>{_row(table, names, 'th')}</tr></thead>" if any(names) else ""
    rows = "".join(f"<tr>{_row(table, row, 'td')}</tr>" for row in table.rows)
    return (
        f'<div style="overflow-x: auto"><table style="margin: 0 0 .6em">{head}<tbody>{rows}</tbody>'
        f"</table></div>{notes}"
    )


def _row(table: Table, cells: Sequence[str], tag: str) -> str:
    """One row; the last column may be prose, which breaks its lines."""
    last = len(cells) - 1
    return "".join(
        f'<{tag} style="{_CELL}; text-align: {"right" if column.number else "left"}; '
        f'white-space: {"normal" if i == last else "nowrap"}">{escape(cell)}</{tag}>'
        for i, (cell, column) in enumerate(zip(cells, table.columns, strict=True))
    )


def framed(page: str) -> str:
    """A whole HTML page in a frame of its own, light or dark as the notebook is."""
    return (
        f"<div><style>{_THEMES}</style>"
        f'<iframe srcdoc="{escape(page)}" style="width: 100%; height: 40em; border: 0"></iframe>'
        "</div>"
    )
