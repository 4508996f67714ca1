"""YAML with the line of every key, so that a mistake is told where it stands."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from servecap.errors import UsageError

T = TypeVar("T", bound=msgspec.Struct)
Path_ = tuple[str | int, ...]

_MOST_NODES = 100_000  # aliases can blow a small file up without end


class Document(msgspec.Struct, frozen=True):
    """A YAML file's content as plain values, and where each part of it stands."""

    name: str
    root: Any
    lines: dict[Path_, int]

    def error(self, path: Path_, why: str) -> UsageError:
        """An error at that part of the file, or at the nearest part around it."""
        while path not in self.lines and path:
            path = path[:-1]
        where = f", {_dotted(path)}" if path else ""
        return UsageError(f"{self.name}, line {self.lines.get(path, 1)}{where}: {why}")

    def convert(self, value: Any, kind: type[T], path: Path_) -> T:
        """*value* (which stands at *path*) as a *kind*.

        Raises:
            UsageError: a key is unknown (with the one that was meant), missing or of a wrong type.
        """
        self.check_keys(value, msgspec.structs.fields(kind), path)
        try:
            return msgspec.convert(value, type=kind)
        except msgspec.ValidationError as error:
            why, _, inner = str(error).partition(" - at `$")
            raise self.error((*path, *_parse(inner.rstrip("`"))), why) from None

    def check_keys(
        self, value: Any, fields: tuple[msgspec.structs.FieldInfo, ...], path: Path_
    ) -> None:
        """Returns if *value* is a mapping and holds only keys that name a field.

        Raises:
            UsageError: it is something else, or a key is unknown.
        """
        if not isinstance(value, dict):
            raise self.error(path, f"expected a mapping of keys to values, got {_told(value)}")
        known = [field.encode_name for field in fields]
        for key in value:
            if key not in known:
                near = get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise self.error((*path, key), f"key {key!r} is not known; {hint}")


def read(path: Path) -> Document:
    """The YAML file's content.

    Raises:
        UsageError: it cannot be read, is no YAML, or is empty; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text ({error.reason})") from None
    return parse(text, name=str(path))


def parse(text: str, *, name: str) -> Document:
    """The content of YAML *text*; *name* stands for the file in messages.

    Raises:
        UsageError: as `read`.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise UsageError(f"{name}: is empty; see the documentation of matrix specs")
            lines: dict[Path_, int] = {}
            root = _Builder(name, loader, lines).build(node, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        raise UsageError(f"{name}{line}: is not YAML: {_one_line(error)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date like 2026-13-40; [[[[
        raise UsageError(f"{name}: is not YAML: {' '.join(str(error).split())}") from None
    return Document(name, root, lines)


def _one_line(error: yaml.MarkedYAMLError) -> str:
    return ", ".join(part for part in (error.context, error.problem) if part)


class _Builder:
    """Plain values from nodes, noting the line of each."""

    def __init__(self, name: str, loader: yaml.SafeLoader, lines: dict[Path_, int]) -> None:
        self._name = name
        self._loader = loader
        self._lines = lines
        self._open: list[yaml.Node] = []

    def build(self, node: yaml.Node, path: Path_) -> Any:
        line = node.start_mark.line + 1
        self._lines.setdefault(path, line)
        if len(self._lines) > _MOST_NODES or any(node is outer for outer in self._open):
            raise UsageError(f"{self._name}, line {line}: an alias repeats itself without end")
        self._open.append(node)
        try:
            match node:
                case yaml.MappingNode():
                    return self._mapping(node, path)
                case yaml.SequenceNode():
                    return [self.build(n, (*path, i)) for i, n in enumerate(node.value)]
                case _:
                    return self._loader.construct_object(node)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            line = key_node.start_mark.line + 1
            if key is None:
                raise UsageError(f"{self._name}, line {line}: a key must be a word")
            if key in found:
                raise UsageError(f"{self._name}, line {line}: key {key!r} is there twice; keep one")
            self._lines[(*path, key)] = line
            found[key] = self.build(value_node, (*path, key))
        return found


def _dotted(path: Path_) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _parse(dotted: str) -> Path_:
    """The path that msgspec writes as ".cells[0].tp"."""
    parts: list[str | int] = []
    for part in dotted.replace("[", ".[").split("."):
        if part.startswith("["):
            inside = part[1:-1]
            parts.append(int(inside) if inside.isdigit() else inside)
        elif part:
            parts.append(part)
    return tuple(parts)


def _told(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case list():
            return "a list"
        case _:
            return repr(value)
