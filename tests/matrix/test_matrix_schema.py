"""The published schema, and the spec that `servecap matrix init` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from servecap.cli.matrix import command
from servecap.errors import UsageError
from servecap.matrix import spec as specs
from servecap.matrix.document import parse
from servecap.matrix.schema import SCHEMA_NAME, schema, schema_text, write_starter

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / SCHEMA_NAME


def test_the_published_schema_is_that_of_the_program() -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == schema_text(), (
        "record it anew: python -c 'from servecap.matrix.schema import schema_text; "
        f'print(schema_text(), end="")\' > docs/{SCHEMA_NAME}'
    )


def errors(document: Any) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    checker = jsonschema.Draft202012Validator(schema())
    return [error.message for error in checker.iter_errors(document)]


def test_the_schema_is_one() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())


def test_the_starter_is_read_by_the_program_and_keeps_the_schema(tmp_path: Path) -> None:
    path, beside = write_starter(tmp_path / "matrix.yaml")
    loaded = specs.load(path)
    assert len(loaded.jobs) == 6
    assert {job.origin for job in loaded.jobs} == {"predicted"}
    assert json.loads(beside.read_text()) == schema()
    assert errors(yaml.safe_load(path.read_text())) == []
    assert path.read_text().startswith(f"# yaml-language-server: $schema={SCHEMA_NAME}\n")
    with pytest.raises(UsageError, match="is there already"):
        write_starter(path)
    with pytest.raises(UsageError, match="end the name of a spec in"):
        write_starter(tmp_path / "matrix.txt")


def test_every_example_in_the_starters_comments_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "measured.csv").write_text("model,gpu,tp,max_users\nm,g,1,5\n")
    path, _ = write_starter(tmp_path / "matrix.yaml")
    lines = []
    for line in path.read_text().splitlines():
        bare = line.strip().removeprefix("# ")
        code = bare.startswith(("- ", "long:", "own:")) or line.startswith("  #   ")
        lines.append(line.replace("# ", "", 1) if code and line.startswith("  #") else line)
    text = "\n".join(lines)
    loaded = specs.from_document(parse(text, name="matrix.yaml"), tmp_path)
    assert {job.scenario_name for job in loaded.jobs} == {"chat"}
    assert len(loaded.jobs) == 10
    assert len(loaded.imported) == 1
    assert errors(yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"cells": [{"model": "m", "gpu": "g", "tp": "two", "url": "u"}]}, True),
        ({"cells": [{"model": "m", "gpu": "g", "tp": 2, "uri": "u"}]}, True),
        ({"cells": [{"model": "m", "gpu": "g", "tp": 2}]}, True),
        ({"cells": [{"import": "a.csv", "url": "u"}]}, True),
        ({"cells": [{"model": "m", "tp": 2, "gpu": "g", "predict": {"speed_": 1}}]}, True),
        ({"defaults": {"think": [1, 2]}, "cells": []}, True),
        ({}, True),
        ({"cells": [{"import": "a.csv"}]}, False),
        ({"cells": [{"model": "m", "gpu": "g", "tp": 2, "command": "c", "url": "u"}]}, False),
    ],
)
def test_the_schema_finds_what_the_program_refuses(change: dict[str, Any], wrong: bool) -> None:
    assert bool(errors(change)) is wrong


def test_the_command_writes_them_and_says_what_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, ["init"], standalone_mode=False)
    assert done.exception is None
    assert "next: servecap matrix matrix.yaml --dry-run" in done.stdout
    dry = CliRunner().invoke(command, ["matrix.yaml", "--dry-run"], standalone_mode=False)
    assert dry.stdout.count("about 1 s") == 6
    assert "about 6 s in all" in dry.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"matrix.yaml", SCHEMA_NAME}
    two = CliRunner().invoke(command, ["matrix.yaml", "b.yaml"], standalone_mode=False)
    assert "one too many" in str(two.exception)
