"""The report's texts in another language, from one catalogue of sentences.

English is written where a figure is known; what is read in another language is found afterwards,
by the catalogue (`zh.txt`): a sentence in English with holes, and below it the same sentence in
Chinese with the same holes. Reasons, warnings and caveats are stored in files as finished English
sentences, so there is no other place at which they could be translated, and one way serves all.
Figures and units pass through holes as they are: they cannot differ between languages. A sentence
that the catalogue does not have stays English.

Holes: `{x}` takes words that are themselves translated, `{x!}` foreign words that stay as they are
(names, URLs, messages of a server; not several sentences), `{x@}` the same without blanks, `{x#}`
one figure, `{x&}` a list as in "a, b and c", `{x,}` and `{x;}` lists separated by commas and
semicolons.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Literal, get_args

import msgspec

from servecap.errors import UsageError
from servecap.report.table import Column, Table

Lang = Literal["en", "zh"]
LANGS: tuple[str, ...] = get_args(Lang)

_HOLE = re.compile(r"\{(\w+)([!#@&,;]?)\}")
_FILLED = re.compile(r"\{(\w+)\}( ?)")
_FIGURE = re.compile(r"[~<>]?-?\d([\d,.]*\d)?(e[+-]?\d+)?%?( (s|ms|us|min))?|n/a|\?")
_ALIKE = re.compile(
    r"([~<>*=?]?[-+]?\d[\d,.]*%?|TP\d+|\bx\b|n/a|s|ms|us|min|h|tokens|[-+()<>=/~?*]|\s)*"
)
_SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z*(\d])")
_WORD = 12  # characters; what is longer is a clause, and a list of clauses takes commas
_DEPTH = 8  # sentences within sentences; what a server says cannot make it endless

# Columns and facts that hold names and words from elsewhere.
FOREIGN = frozenset(
    {"model", "GPU", "model, GPU", "scenario", "target", "server", "stored in", "seed", "started",
     "servecap", "part"}
)  # fmt: skip
_OURS = ("n/a", "same")  # ... but for what we say ourselves in their place


class Pattern(msgspec.Struct, frozen=True):
    """One entry of the catalogue."""

    literals: tuple[str, ...]  # one more than there are holes
    holes: tuple[tuple[str, str], ...]  # name and kind
    target: str

    def match(self, text: str) -> dict[str, str] | None:
        """What fills the holes, found in time linear in the text; None when it does not fit.

        Each literal is taken at the first place outside of brackets that the hole before it opens:
        nothing is tried twice, so nothing that a server writes can make this slow.
        """
        first, *rest = self.literals
        if not text.startswith(first) or not text.endswith(self.literals[-1]):
            return None
        at, found = len(first), dict[str, str]()
        for (name, kind), literal in zip(self.holes, rest, strict=True):
            last = len(found) == len(rest) - 1
            end = len(text) - len(literal) if last else _place(text, literal, at)
            if end <= at:
                return None
            found[name] = text[at:end]
            if kind == "#" and not _FIGURE.fullmatch(found[name]):
                return None
            if kind == "@" and " " in found[name]:
                return None
            if kind == "!" and _SENTENCE_END.search(found[name]):
                return None
            if kind in "!@" and kind and end == len(text) and text.endswith("."):
                return None  # the full stop is ours, not the name's
            at = end + len(literal)
        return found


def _place(text: str, literal: str, at: int) -> int:
    """Where the literal stands first behind *at*, outside of brackets opened in between; or -1."""
    end = text.find(literal, at + 1)
    while end > 0 and text.count("(", at, end) > text.count(")", at, end):
        end = text.find(literal, end + 1)
    return end


def parse(catalogue: str) -> tuple[dict[str, str], list[Pattern]]:
    """Whole sentences, and patterns with the most specific first.

    Raises:
        ValueError: a sentence stands alone or twice, or its holes are not those of its partner.
    """
    lines = [x for x in catalogue.split("\n") if x.strip() and not x.startswith("# ")]
    whole: dict[str, str] = {}
    patterns: list[Pattern] = []
    seen: set[str] = set()
    if len(lines) % 2:
        raise ValueError("the catalogue has a sentence without its partner")
    for source, target in zip(lines[::2], lines[1::2], strict=True):
        holes = tuple((m[1], m[2]) for m in _HOLE.finditer(source))
        used = re.findall(r"\{(\w+)\}", target)
        figures = {name for name, kind in holes if kind == "#"}
        if set(used) != {name for name, _ in holes} or any(used.count(x) > 1 for x in figures):
            raise ValueError(f"{source!r} and {target!r} have different holes")
        if source in seen:
            raise ValueError(f"{source!r} stands twice")
        seen.add(source)
        if holes:
            literals = tuple(_HOLE.sub("\0", source).split("\0"))
            patterns.append(Pattern(literals, holes, target))
        else:
            whole[source] = target
    patterns.sort(key=lambda p: (-sum(map(len, p.literals)), len(p.holes)))
    return whole, patterns


@cache
def _catalogue(lang: str) -> tuple[dict[str, str], list[Pattern]]:
    path = resources.files("servecap.report") / f"{lang}.txt"
    return parse(path.read_text(encoding="utf-8"))


def check(lang: str) -> None:
    """Returns when there are texts in that language.

    Raises:
        UsageError: there are none.
    """
    if lang not in LANGS:
        raise UsageError(f"--lang {lang}: give one of {', '.join(LANGS)}")


def say(text: str, lang: str = "en") -> str:
    """The text in that language; what the catalogue does not have stays English.

    >>> say("The same as a table", "zh"), say("64 users", "zh"), say("64 users")
    ('以表格显示', '64 个用户', '64 users')
    """
    if lang == "en" or not text:
        return text
    return _say(text, lang, 0)[0]


def untold(text: str, lang: str) -> str:
    """The first piece of the text that the catalogue does not have; "" when it has all."""
    return "" if lang == "en" or not text else _say(text, lang, 0)[1]


@lru_cache(maxsize=8192)
def _say(text: str, lang: str, depth: int) -> tuple[str, str]:
    """The translation, and the first piece that has none ("" when there is no such piece)."""
    bare = text.strip()
    if not bare or _ALIKE.fullmatch(bare):
        return text, ""
    whole, patterns = _catalogue(lang)
    if bare in whole:
        return text.replace(bare, whole[bare], 1), ""
    if depth > _DEPTH:
        return text, bare
    first: tuple[str, str] | None = None
    for pattern in patterns:
        found = pattern.match(bare)
        if found is not None:
            told = _filled(pattern, found, lang, depth + 1)
            if not told[1]:
                return told
            first = first or told
    told = _by_sentences(bare, lang, depth)
    return told if not told[1] or first is None else first


def _by_sentences(text: str, lang: str, depth: int) -> tuple[str, str]:
    pieces = _SENTENCE_END.split(text)
    if len(pieces) > 1:
        told = [_say(piece, lang, depth + 1) for piece in pieces]
        joined = "".join(
            f"{said} " if lost else said.removesuffix(".") + "。" if said.endswith(".") else said
            for said, lost in told
        )
        return joined.rstrip(), next((lost for _, lost in told if lost), "")
    if text.endswith("."):
        body, unknown = _say(text[:-1], lang, depth + 1)
        return (text, unknown) if unknown else (body + "。", "")
    clauses = text.split("; ")
    if len(clauses) > 1:
        told = [_say(clause, lang, depth + 1) for clause in clauses]
        return "；".join(clause for clause, _ in told), next((u for _, u in told if u), "")
    return text, text


def _filled(pattern: Pattern, found: dict[str, str], lang: str, depth: int) -> tuple[str, str]:
    told, unknown = dict[str, str](), ""
    for name, kind in pattern.holes:
        match kind:
            case "!" | "#" | "@":
                told[name] = found[name]
                continue
            case "&":
                parts = _items(found[name])
            case "," | ";":
                parts = found[name].split(f"{kind} ")
            case _:
                parts = [found[name]]
        said = [_say(part, lang, depth) for part in parts]
        joint = {"&": "、", ",": "，", ";": "；"}.get(kind, "")
        if kind == "&" and any(len(piece) > _WORD for piece, _ in said):
            joint = "，"
        told[name] = joint.join(piece for piece, _ in said)
        unknown = unknown or next((u for _, u in said if u), "")
    # Not str.format: a foreign text may hold braces. A full-width bracket has its own blank.
    return _FILLED.sub(
        lambda m: told[m[1]] + ("" if told[m[1]].endswith("）") else m[2]), pattern.target
    ), unknown


def _items(text: str) -> list[str]:
    *first, last = text.split(", ")
    return [*first, *last.rsplit(" and ", 1)]


def table(told: Table, lang: str) -> Table:
    """The table in that language; names stay what they are."""
    if lang == "en":
        return told
    facts = not any(column.name for column in told.columns)
    return Table(
        title=say(told.title, lang),
        columns=tuple(Column(say(c.name, lang), c.number) for c in told.columns),
        rows=tuple(
            tuple(
                cell if is_foreign(told, row, i, facts=facts) else say(cell, lang)
                for i, cell in enumerate(row)
            )
            for row in told.rows
        ),
        notes=tuple(say(note, lang) for note in told.notes),
    )


def is_foreign(told: Table, row: Sequence[str], i: int, *, facts: bool) -> bool:
    """Whether a cell holds a name, or other words that are not ours."""
    about = row[0] if facts and i else told.columns[i].name
    return about in FOREIGN and not row[i].startswith(_OURS)
