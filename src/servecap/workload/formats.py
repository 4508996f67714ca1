"""Data sets in the formats that benchmarks use, told from their content or named by the user.

Every JSON format may come as a JSON array, as JSONL or, where it is one document, whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from servecap.errors import UsageError
from servecap.workload import dialogues, documents
from servecap.workload.read import Record, json_records, read_text
from servecap.workload.sample import Dropped, Parsed, Sample, tally

# "sharegpt-unfiltered" is sharegpt without vLLM's rule on lengths (see source.vllm_rule).
FORMATS = (
    "sharegpt",
    "sharegpt-unfiltered",
    "vllm-custom",
    "openai",
    "alpaca",
    "longbench",
    "squad",
    "squad-paragraph",
    "dureader",
    "mt-bench",
    "text",
)


def load(path: str, format: str | None = None) -> Parsed:
    """The file's samples, with the number of records that were dropped, by reason.

    Args:
        format: one of `FORMATS`; None tells it from the content.
    Raises:
        UsageError: the file cannot be read as that format, or has no usable record.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"format {format!r} is not one of {', '.join(FORMATS)}")
    text = read_text(path)
    if format == "text" or (format is None and _is_plain(path, text)):
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        plain = [dialogues.plain(line) for line in lines if line.strip()]
        return tally("text", [_placed(outcome, i) for i, outcome in enumerate(plain)])
    if text.lstrip()[:1] not in ("{", "["):
        raise UsageError(
            f"data set {path} is not JSON: it starts with {text.lstrip()[:20]!r};"
            " use --format text to send its lines as prompts"
        )
    records = json_records(path, text)
    name = format or sniff(path, records[0])
    outcomes: list[Sample | Dropped] = []
    for i, record in enumerate(records):
        outcomes += [_placed(outcome, i) for outcome in _samples(path, name, record)]
    return tally(name, outcomes)


def _placed(outcome: Sample | Dropped, record: int) -> Sample | Dropped:
    if isinstance(outcome, Dropped):
        return outcome
    return msgspec.structs.replace(outcome, record=record)


def _is_plain(path: str, text: str) -> bool:
    suffixes = {suffix.lower() for suffix in Path(path).suffixes}
    if ".csv" in suffixes:
        raise UsageError(
            f"data set {path} is a CSV file, which holds no prompts that can be told;"
            f" allowed formats: {', '.join(FORMATS)}"
        )
    return text.lstrip()[:1] not in ("{", "[") and not suffixes & {".json", ".jsonl"}


def sniff(path: str, record: Record) -> str:
    """The format that the record's fields belong to.

    Raises:
        UsageError: they belong to none; the message names the fields that were seen.
    """
    value = record.value
    if not isinstance(value, dict):
        raise UsageError(
            f"data set {path}, {record.place}: expected a JSON object, found {_kind(value)}"
        )
    match value:
        case {"conversations": _}:
            return "sharegpt"
        case {"messages": _} | {"body": {"messages": _}}:
            return "openai"
        case {"turns": _}:
            return "mt-bench"
        case {"instruction": _}:
            return "alpaca"
        case {"context": _, "input": _}:
            return "longbench"
        case {"documents": _, "question": _}:
            return "dureader"
        case {"data": _}:
            return "squad"
        case {"prompt": _}:
            return "vllm-custom"
        case _:
            seen = ", ".join(repr(str(key)) for key in list(value)[:8]) or "none"
            raise UsageError(
                f"data set {path}, {record.place}: its fields ({seen}) fit no known format;"
                f" name it with --format: {', '.join(FORMATS)}"
            )


def _samples(path: str, format: str, record: Record) -> list[Sample | Dropped]:
    try:
        return _convert(format, record.value)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"data set {path}, {record.place}: not a {format} record: {error}"
        ) from error


def _convert(format: str, value: Any) -> list[Sample | Dropped]:
    match format:
        case "sharegpt" | "sharegpt-unfiltered":
            return [dialogues.sharegpt(value)]
        case "vllm-custom":
            return [dialogues.vllm_custom(value)]
        case "openai":
            return [dialogues.openai(value)]
        case "alpaca":
            return [dialogues.alpaca(value)]
        case "mt-bench":
            return [dialogues.mt_bench(value)]
        case "longbench":
            return documents.longbench(value)
        case "squad":
            return documents.squad(value)
        case "squad-paragraph":
            return documents.squad(value, whole_article=False)
        case "dureader":
            return documents.dureader(value)
        case _:
            raise AssertionError(format)


def _kind(value: Any) -> str:
    names = {str: "a string", list: "an array", bool: "a boolean", int: "a number"}
    return names.get(type(value), "null" if value is None else "a number")
