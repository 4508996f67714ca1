"""The documents tell the truth: examples run, doctests pass, links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from doc_examples import Session, agrees, examples, shape

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "make_cli_reference.py"
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]
    if path.is_file()
)
MODULES = sorted(
    path for path in (ROOT / "src").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")
)
HAS_CLI = (ROOT / "src/servecap/cli.py").exists() or (ROOT / "src/servecap/cli").exists()


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def with_examples() -> Iterator[object]:
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        if "<!-- run" in text:
            slow = [pytest.mark.slow] if any(example.slow for example in examples(text)) else []
            yield pytest.param(path, id=relative(path), marks=slow)


# Examples


@pytest.mark.parametrize("path", list(with_examples()))
def test_console_examples_print_what_is_recorded(path: Path, tmp_path: Path) -> None:
    if not HAS_CLI:
        pytest.skip("servecap.cli does not exist yet")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with Session(tmp_path) as session:
        for example in examples(path.read_text(encoding="utf-8")):
            complaint = session.complaint(example)
            assert complaint is None, f"{relative(path)} {complaint}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_every_run_marker_stands_above_a_console_block(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for number, (line, below) in enumerate(zip(lines, [*lines[1:], ""], strict=True), start=1):
        if line.startswith("<!-- run"):
            assert line.endswith("-->"), f"{relative(path)}:{number} the marker must be one line"
            assert below == "```console", (
                f"{relative(path)}:{number + 1} a run marker must stand right above ```console"
            )


DOCUMENT = """\
<!-- run: shape, exit 1 -->
```console
$ servecap run \\
    --users 4
TTFT  1.5 s
$ servecap plan
```

```console
$ servecap not-run
```
"""


def test_examples_are_found_with_their_flags_and_lines() -> None:
    first, second = examples(DOCUMENT)
    assert (first.command, first.output) == ("servecap run --users 4", "TTFT  1.5 s")
    assert (first.shape, first.exit_code, first.stderr, first.slow) == (True, 1, False, False)
    assert (first.line, second.line, second.output) == (3, 6, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- run: exact -->\n```console\n$ servecap\n```\n", "'exact' is not shape"),
        ("<!-- run -->\n```console\n$ rm -r runs\n```\n", "only servecap is run"),
        ("<!-- run -->\n```console\nservecap\n```\n", "expected a command"),
    ],
)
def test_bad_examples_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        examples(text)


def test_shape_forgets_numbers_and_widths_only() -> None:
    assert shape("p99   1.25 s\n-----") == shape("p99 112.5 s\n---------")
    assert shape("p99 1 s") != shape("p99 1 ms")
    assert shape("PASS 1") != shape("FAIL 1")
    assert shape("a\nb") != shape("a")


def test_three_dots_stand_for_any_lines() -> None:
    assert agrees("a\n...\nd", "a\nb\nc\nd\n")
    assert agrees("a\n...\nd", "a\nd\n")
    assert not agrees("a\n...\nd", "a\nb\n")
    assert not agrees("a\nd", "a\nb\nd\n")
    assert not agrees("a.c", "abc")


PROGRAM = """
import sys, socket
match sys.argv[1:]:
    case ["say", *words]: print(*words)
    case ["fail"]: print("bad", file=sys.stderr); sys.exit(2)
    case ["serve", "--port", port]:
        listener = socket.create_server(("127.0.0.1", int(port)))
        while True: listener.accept()[0].close()
    case ["connect", port]:
        socket.create_connection(("127.0.0.1", int(port))).close(); print("reached", port)
"""


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("<!-- run -->\n```console\n$ servecap say 1\n1\n```\n", [None]),
        ("<!-- run -->\n```console\n$ servecap say 1\n2\n```\n", ["differs from"]),
        ("<!-- run: shape -->\n```console\n$ servecap say 1\n2\n```\n", [None]),
        ("<!-- run: shape -->\n```console\n$ servecap say a\nb\n```\n", ["differs in shape"]),
        ("<!-- run -->\n```console\n$ servecap fail\n```\n", ["ended with 2, not 0"]),
        ("<!-- run: exit 2, stderr -->\n```console\n$ servecap fail\nbad\n```\n", [None]),
        (
            "<!-- run -->\n```console\n$ servecap serve --port 8000 &\n"
            "$ servecap connect 8000\nreached 8000\n```\n",
            [None, None],
        ),
        ("<!-- run -->\n```console\n$ servecap serve &\n```\n", ["needs a --port"]),
    ],
)
def test_session_complains_when_the_program_does_otherwise(
    text: str, complaints: list[str | None], tmp_path: Path
) -> None:
    with Session(tmp_path, (sys.executable, "-c", PROGRAM)) as session:
        found = [session.complaint(example) for example in examples(text)]
    for complaint, expected in zip(found, complaints, strict=True):
        if expected is None:
            assert complaint is None
        else:
            assert expected in (complaint or "")


# Doctests


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_docstring_examples_are_true(path: Path) -> None:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0, f"python -m doctest fails for {name}, see the captured output"


# Links

_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.M | re.S)
_LINK = re.compile(r"\]\(\s*<?([^)>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)|(?:src|href|srcset)=\"([^\"]+)\"")


def links(text: str) -> list[str]:
    """The targets of a document's links and images that lead into this repository."""
    found = [a or b for a, b in _LINK.findall(_CODE.sub("", text))]
    return [target for target in found if not re.match(r"[a-z][a-z0-9+.-]*:", target)]


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as code hosts make them."""
    headings = re.findall(
        r"^#{1,6} +(.+?) *#*$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M
    )
    slugs = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return {*slugs, *re.findall(r"(?:id|name)=\"([^\"]+)\"", text)}


def dead_links(path: Path) -> list[str]:
    """The links of a document that lead nowhere."""
    dead = []
    for target in links(path.read_text(encoding="utf-8")):
        place, _, anchor = target.partition("#")
        file = (path.parent / place).resolve() if place else path
        if file == ROOT / "docs" / "cli.md" and not HAS_CLI:
            continue  # it is written from the program
        if not file.exists() or (
            file.suffix == ".md"
            and anchor
            and anchor not in anchors(file.read_text(encoding="utf-8"))
        ):
            dead.append(target)
    return dead


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(path: Path) -> None:
    dead = dead_links(path)
    assert not dead, f"{relative(path)} links to {', '.join(dead)}: no such file or heading"


def test_dead_links_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What it *is*\n[a](#what-it-is) [b](#gone) [c](page.md) [d](other.md) `[e](code.md)`\n"
        '![f](none.png "title") <img src="pic.svg"> [g](https://example.org/x) [h](page.md#what)\n'
    )
    assert dead_links(page) == ["#gone", "other.md", "none.png", "pic.svg", "page.md#what"]


# Command line reference


def test_command_line_reference_is_up_to_date() -> None:
    if not HAS_CLI:
        pytest.skip("servecap.cli does not exist yet")
    done = subprocess.run(
        [sys.executable, str(TOOL), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@click.group(epilog="\b\nservecap run\n  --users 4")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def group(as_json: bool) -> None:
    """Top of the tree."""


@group.command()
@click.argument("url")
@click.option("--users", type=int, default=8, show_default=True, help="How\nmany.")
@click.option("--api", type=click.Choice(["tgi", "openai"]), required=True, help="Dialect.")
@click.option("--stream/--no-stream", default=True, help="Read as it comes.")
@click.option("--secret", hidden=True)
def probe(url: str, users: int, api: str, stream: bool, secret: str) -> None:
    """Asks once.\f not shown"""


@group.command(hidden=True)
def inner() -> None:
    """Not shown."""


REFERENCE = """\
## `servecap`

Top of the tree.

```text
servecap [OPTIONS] COMMAND [ARGS]...
```

Options:

- `--json`: Machine-readable output.

```text
servecap run
  --users 4
```

Commands:

- [`probe`](#servecap-probe): Asks once.

## `servecap probe`

Asks once.

```text
servecap probe [OPTIONS] URL
```

Arguments:

- `URL`

Options:

- `--users INTEGER`: How many. [default: 8]
- `--api [tgi|openai]`: Dialect. [required]
- `--stream / --no-stream`: Read as it comes.
"""


def test_reference_is_made_from_the_command_tree() -> None:
    tool = runpy.run_path(str(TOOL))
    assert tool["reference"](group, "servecap").removeprefix(tool["HEAD"]).lstrip() == REFERENCE
