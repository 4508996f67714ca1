"""A smaller data set or trace that is like the whole: records as they stand, chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from servecap import rand
from servecap.errors import UsageError
from servecap.workload.census import trace_prefix_share
from servecap.workload.read import json_records, read_text
from servecap.workload.sample import Sample
from servecap.workload.traces import Trace, has_header

_PLACES = 400  # parts of a trace that are compared with the whole
_ROWS_SEARCHED = 1_000_000  # for shared prefixes, over all parts that are compared


def of_trace(path: str, trace: Trace, wanted: int) -> str:
    """That many successive rows of the trace, as text in its own format.

    A part in one piece keeps gaps, bursts and shared prefixes, which single rows would lose. Of
    parts spread over the trace it is the one whose mean lengths, rate, burstiness and share of
    shared prefixes are nearest to those of the whole.

    Raises:
        UsageError: the trace has no more rows than that.
    """
    _check(path, len(trace.rows), wanted)
    start = _nearest(trace, wanted)
    chosen = sorted(row.record for row in trace.rows[start : start + wanted])
    text = read_text(path)
    if text.lstrip()[:1] in ("{", "["):
        records = json_records(path, text)
        return "".join(_line(records[i].value) for i in chosen)
    lines = [line for line in text.splitlines() if line.strip()]
    head = [lines.pop(0)] if has_header(lines[0]) else []
    return "\n".join([*head, *(lines[i] for i in chosen)]) + "\n"


def _nearest(trace: Trace, wanted: int) -> int:
    """Where the part starts whose figures are nearest to those of all rows."""
    rows = trace.rows
    alike = trace_prefix_share(rows, trace.block_tokens)
    gaps = [b.due_s - a.due_s for a, b in pairwise(rows)]
    columns = [
        [float(row.in_tokens) for row in rows],
        [float(row.out_tokens) for row in rows],
        [*gaps, 0.0],
        [*(gap * gap for gap in gaps), 0.0],
    ]
    sums = [[0.0, *accumulate(column)] for column in columns]

    def means(start: int, end: int) -> list[float]:
        return [(s[end] - s[start]) / (end - start) + 1e-12 for s in sums]

    whole = means(0, len(rows))
    most = min(_PLACES, 1 + _ROWS_SEARCHED // wanted) if alike else _PLACES
    places = range(0, len(rows) - wanted + 1, max(1, (len(rows) - wanted) // most))

    def distance(start: int) -> float:
        part = means(start, start + wanted)
        apart = sum(abs(math.log(a / b)) for a, b in zip(part, whole, strict=True))
        if alike:
            found = trace_prefix_share(rows[start : start + wanted], trace.block_tokens)
            apart += abs(math.log((found + 0.01) / (alike + 0.01)))
        return apart

    return min(places, key=distance)


def of_samples(path: str, samples: Sequence[Sample], wanted: int, seed: int) -> str:
    """That many records of a data set, as JSON lines (or lines of text).

    They are taken at equal steps along the order of prompt length, with a random start, so that
    the lengths are spread as in the whole.

    Raises:
        UsageError: there are no more usable records than that, or the data set is one document.
    """
    one_each = {sample.record: sample for sample in samples}
    if len(one_each) < len(samples):
        raise UsageError(
            f"data set {path} holds several prompts in one record, which cannot be taken apart"
        )
    _check(path, len(one_each), wanted)
    ordered = sorted(samples, key=lambda s: (s.prompt_tokens or 0, s.answer_tokens or 0))
    step = len(ordered) / wanted
    start = rand.stream(seed, "sample").random() * step
    chosen = sorted(ordered[int(start + k * step)].record or 0 for k in range(wanted))
    text = read_text(path)
    if text.lstrip()[:1] in ("{", "["):
        records = json_records(path, text)
        return "".join(_line(records[i].value) for i in chosen)
    lines = [line for line in text.split("\n") if line.strip()]
    return "".join(f"{lines[i]}\n" for i in chosen)


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _check(path: str, there: int, wanted: int) -> None:
    if wanted >= there:
        raise UsageError(f"{path} has {there} usable records: ask for fewer than that")
