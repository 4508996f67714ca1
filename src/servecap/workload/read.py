"""From a file to its records, each with the place that an error message can name.

JSONL is split on "\\n" only: real prompts contain U+2028 and U+0085, on which `str.splitlines`
cuts a record in two.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

import msgspec

from servecap.errors import UsageError

_SURROGATE = re.compile("[\ud800-\udfff]")


class Record(msgspec.Struct, frozen=True):
    """One JSON value of a data set and where it stood, such as "line 12" or "record 3"."""

    place: str
    value: Any


def read_text(path: str) -> str:
    """The file's text, decoded as UTF-8 without a byte order mark; gzip is unpacked.

    Raises:
        UsageError: it is missing, a folder, unreadable, damaged, empty or not UTF-8.
    """
    data = _read_bytes(path)
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"data set {path}: not a whole gzip file ({error})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"data set {path}: not UTF-8 at byte {error.start} (line {line});"
            " convert it, for example with: iconv -f LATIN1 -t UTF-8"
        ) from error
    if not text.strip():
        raise UsageError(f"data set {path} is empty: it must hold at least one prompt")
    return text


def _read_bytes(path: str) -> bytes:
    try:
        file = Path(path)
        if file.is_dir():
            raise UsageError(f"data set {path} is a folder; name one file in it")
        return file.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"data set {path} does not exist; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise UsageError(f"data set {path!r} cannot be read: {error}") from error


def json_records(path: str, text: str) -> list[Record]:
    """The records of a JSON array, of JSONL, or the one record that a whole JSON document is.

    Raises:
        UsageError: it is not JSON, with the line; or the array holds nothing.
    """
    if text.lstrip().startswith("["):
        values = _decode(path, text, first_line=1)
        if not values:
            raise UsageError(f"data set {path} is an empty JSON array: it must hold records")
        return [Record(f"record {i}", value) for i, value in enumerate(values, 1)]
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and _spans_lines(lines[0][1]):
        return [Record("record 1", _decode(path, text, first_line=1))]
    return [Record(f"line {i}", _decode(path, line, first_line=i)) for i, line in lines]


def _spans_lines(line: str) -> bool:
    """Whether a line only begins a JSON object, as in a pretty-printed document."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line.rstrip())
    except (ValueError, RecursionError):
        return False
    return False


def _decode(path: str, text: str, *, first_line: int) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        # Either not JSON, or something that only the lenient decoder reads: NaN, or half of a
        # surrogate pair (seen in dumps that were cut at a number of UTF-16 units).
        return _decode_leniently(path, text, first_line)


def _decode_leniently(path: str, text: str, first_line: int) -> Any:
    try:
        return without_surrogates(json.loads(text))
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UsageError(
            f"data set {path}, line {line}: malformed JSON at column {error.colno}: {error.msg}"
        ) from error
    except RecursionError as error:
        raise UsageError(f"data set {path}, line {first_line}: JSON nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise UsageError(f"data set {path}, line {first_line}: {error}") from error


def without_surrogates(value: Any) -> Any:
    """The value with half surrogate pairs replaced, since they cannot be sent as UTF-8."""
    match value:
        case str():
            return _SURROGATE.sub("\ufffd", value)
        case list():
            return [without_surrogates(item) for item in value]
        case dict():
            return {
                without_surrogates(key): without_surrogates(item) for key, item in value.items()
            }
        case _:
            return value
