"""Which tool wrote a result file is told from what is in it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import msgspec

from servecap.errors import UsageError
from servecap.foreign import arrays, guidellm, nvidia
from servecap.foreign.rows import Found, check
from servecap.workload.read import without_surrogates

KNOWN = (
    "the JSON of vllm bench serve (--save-result) and guidellm, SGLang's JSONL, AIPerf's "
    "profile_export.jsonl and profile_export_aiperf.json|csv, genai-perf's profile_export.json and "
    "profile_export_genai_perf.json|csv"
)


_DAMAGED = (
    msgspec.ValidationError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError,
    RecursionError, csv.Error,
)  # fmt: skip


def read(path: Path) -> list[Found]:
    """The load tests in a result file, in its order.

    Raises:
        UsageError: it cannot be read, or is none of a tool that is known.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{str(path)!r} is not UTF-8 text: give {KNOWN}") from None
    try:
        found = _found(path, text)
        for test in found:
            check(test)
    except _DAMAGED as error:
        raise UsageError(f"{str(path)!r} is damaged, or of a version not known: {error}") from None
    if not found:
        raise UsageError(f"{str(path)!r} holds no load test")
    return found


def _found(path: Path, text: str) -> list[Found]:
    if nvidia.is_csv(text):
        return [nvidia.read_csv(text)]
    documents = _documents(text)
    if documents and all(map(nvidia.is_line, documents)):
        return [nvidia.read_lines(documents, _beside(path))]
    if documents and all(arrays.is_vllm(d) or arrays.is_sglang(d) for d in documents):
        return [arrays.read(document) for document in documents]
    if len(documents) == 1:
        document = documents[0]
        if guidellm.is_report(document):
            return guidellm.read(document)
        if nvidia.is_raw(document):
            return nvidia.read_raw(document)
        if nvidia.is_aggregate(document):
            return [nvidia.read_aggregate(document)]
        if isinstance(document.get("data"), list):
            raise UsageError(f"{str(path)!r} holds prompts, not results: give {KNOWN}")
    raise UsageError(f"{str(path)!r} is no result file that servecap knows: give {KNOWN}")


def _documents(text: str) -> list[dict[str, Any]]:
    """The objects in JSON or JSON lines, in which Python's tools also write NaN and Infinity."""
    try:
        whole = without_surrogates(json.loads(text))
    except ValueError:
        # Only "\n" ends a line: generated texts may hold U+2028 and its like.
        lines = [line for line in text.split("\n") if line.strip()]
        try:
            values = [without_surrogates(json.loads(line)) for line in lines]
        except ValueError:
            return []
        return values if all(isinstance(value, dict) for value in values) else []
    return [whole] if isinstance(whole, dict) else []


def _beside(path: Path) -> dict[str, Any] | None:
    """AIPerf's aggregates in the folder of its requests: they tell the load."""
    name = f"{path.stem.removesuffix('.jsonl')}_aiperf.json"
    try:
        found = json.loads(path.with_name(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
