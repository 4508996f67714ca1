"""Writes docs/schema/*.json: what is in the files that servecap keeps; --check only compares."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from servecap.cell import Cell
from servecap.engine.gpu_file import GpuFile
from servecap.metrics import Summary
from servecap.record import Counts, Record, Times
from servecap.run import Header
from servecap.sample import Sample
from servecap.search import SearchResult

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "schema"
TYPES: dict[str, tuple[Any, str]] = {
    "run": (Header, "run.json: all that is known of a run but its records"),
    "record": (Record, "records.jsonl: one line for each request that ended"),
    "telemetry": (Sample, "telemetry.jsonl: one line for each look at what is around a run"),
    "summary": (Summary, "summary.json: every figure of a run"),
    "search": (SearchResult, "search.json: what find found"),
    "cell": (Cell, "one cell of a matrix"),
    "gpu": (GpuFile, "a GPU of one's own, in YAML: --gpu FILE"),
}


def schemas() -> dict[str, str]:
    """File name -> its text."""
    found = {}
    for name, (kind, title) in TYPES.items():
        schema = _dedented(msgspec.json.schema(kind, schema_hook=_hook))
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
        found[f"{name}.json"] = json.dumps(head | schema, indent=2) + "\n"
    return found


def _dedented(value: Any) -> Any:
    """The same with docstrings as Python keeps them from 3.13 on, whichever runs this."""
    if isinstance(value, dict):
        return {
            key: inspect.cleandoc(part)
            if key == "description" and isinstance(part, str)
            else _dedented(part)
            for key, part in value.items()
        }
    return [_dedented(part) for part in value] if isinstance(value, list) else value


def _hook(kind: type) -> dict[str, Any]:
    """Arrays of our own are arrays of numbers in JSON."""
    if kind is Times:
        return {"type": "array", "items": {"type": "number"}}
    if kind is Counts:
        return {"type": "array", "items": {"type": "integer", "minimum": 0}}
    raise NotImplementedError(kind)


def main() -> int:
    """Writes the schemas; with --check only compares: 1 if one is out of date."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, text in schemas().items():
        path = FOLDER / name
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if check and stale:
        print(
            f"docs/schema: {', '.join(stale)} out of date: run python tools/make_schemas.py",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
