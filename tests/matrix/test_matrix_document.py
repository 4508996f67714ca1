"""YAML with lines."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servecap.errors import UsageError
from servecap.matrix.document import parse, read


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    size: int


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    items: list[Inner]
    names: dict[str, Inner] = {}


def test_values_and_the_lines_they_stand_on() -> None:
    document = parse("a: 1\nb:\n  - x\n  - c: [2,\n      yes]\n", name="t.yaml")
    assert document.root == {"a": 1, "b": ["x", {"c": [2, True]}]}
    assert document.lines[("b",)] == 2
    assert document.lines[("b", 1, "c")] == 4
    assert document.lines[("b", 1, "c", 1)] == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "t.yaml: is empty"),
        ("# only a comment\n", "t.yaml: is empty"),
        ("a: 1\nb: [1\nc: 2\n", "t.yaml, line 3: is not YAML"),
        ("a: 1\n\tb: 2\n", "t.yaml, line 2: is not YAML"),
        ("a: 1\na: 2\n", "t.yaml, line 2: key 'a' is there twice"),
        ("[1, 2]: 3\n", "t.yaml, line 1: a key must be a word"),
        ("a: &x [*x]\n", "t.yaml, line 1: an alias repeats itself"),
        ("a: !!python/object:os.system x\n", "is not YAML"),
        ("--- 1\n--- 2\n", "is not YAML"),
        ("a: 2026-13-40\n", "is not YAML"),
        ("a: \x00\n", "is not YAML"),
    ],
)
def test_what_is_no_yaml_is_told_in_one_line(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, name="t.yaml")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_that_multiply_are_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(UsageError, match="an alias repeats itself"):
        parse("\n".join(lines), name="t.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("items:\n- size: 1\n- size: big\n", "line 3, items[1].size: Expected `int`, got `str`"),
        ("items:\n- {}\n", "line 2, items[0]: Object missing required field `size`"),
        ("names: {}\n", "line 1: Object missing required field `items`"),
        ("item: []\n", "line 1, item: key 'item' is not known; did you mean 'items'?"),
        ("zzz: []\n", "key 'zzz' is not known; known: items, names"),
        ("- items\n", "line 1: expected a mapping of keys to values, got a list"),
        ("items: []\nnames:\n  a: {size: x}\n", "line 2, names: Expected `int`"),
    ],
)
def test_what_does_not_fit_is_told_with_its_line_and_key(text: str, told: str) -> None:
    document = parse(text, name="t.yaml")
    with pytest.raises(UsageError) as caught:
        document.convert(document.root, Outer, ())
    assert told in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "no.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read(tmp_path / "bad.yaml")


@given(st.text(max_size=80))
def test_no_text_makes_a_traceback(text: str) -> None:
    try:
        document = parse(text, name="t.yaml")
        document.convert(document.root, Outer, ())
    except UsageError as error:
        assert str(error).startswith("t.yaml")  # noqa: PT017
