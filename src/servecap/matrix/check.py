"""A table of measured cells held against itself: what cannot be, and what it should be.

Unlike the import, which drops what cannot be used, this says of every figure how it follows from
the others: Little's law, tokens = requests x lengths, the SLO that the row is listed under, and
what a short run's tail does to rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal

import msgspec

from servecap import slo as slos
from servecap.errors import UsageError
from servecap.matrix.lines import UNITLESS_AT_MOST_S, FieldError, Row, rows
from servecap.matrix.plausible import DEFAULT_THINK_MEAN_S, LENGTHS
from servecap.matrix.table import DEFAULT_SCENARIO

Kind = Literal["swapped", "impossible", "contradiction", "tail", "slo"]
WRONG: tuple[Kind, ...] = ("swapped", "impossible", "contradiction")

NEEDED = ("model", "gpu", "tp")
SAME = 1.15  # two ways to the same figure may differ by this factor: rounding, different means
TAIL_SHARE = 0.90  # a rate below this share of the steady one has a tail in it
TIME_SHARE = 1.02  # rounding of the latencies alone
# TPOT above so many TTFTs: a first token comes with a step, too, and a step is what TPOT tells.
EXCHANGED = 3.0
TPOT_LEAST_S = 2e-4  # 5,000 tokens/s for one user: nothing serves as fast


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a row (or, with `line` None, with the whole table)."""

    kind: Kind
    where: str
    said: str
    should_be: str
    line: int | None = None


class _Cell(msgspec.Struct, kw_only=True):
    """One row's figures as they stand."""

    line: int
    where: str
    scenario: str
    users: int  # 0: the row does not tell
    ttft_s: float | None
    tpot_s: float | None
    context: float | None
    output: float | None
    errors: float | None
    qps: float | None
    tps: float | None
    counted: str | None
    slo: slos.Slo
    note: str

    def wait_s(self, think_s: float) -> float | None:
        return None if self.ttft_s is None else self.ttft_s + think_s

    def answer_tokens(self, qps: float, think_s: float) -> float | None:
        """Tokens per answer by Little's law: users = qps x (TTFT + (n - 1) TPOT + think)."""
        wait_s = self.wait_s(think_s)
        if wait_s is None or not self.tpot_s or not self.users:
            return None
        return 1 + (self.users / qps - wait_s) / self.tpot_s

    def steady_qps(self, tokens: float, think_s: float) -> float | None:
        wait_s = self.wait_s(think_s)
        if wait_s is None or self.tpot_s is None or not self.users:
            return None
        return self.users / (wait_s + (tokens - 1) * self.tpot_s)


def check(
    text: str,
    *,
    name: str,
    slo: slos.Slo = slos.DEFAULT,
    think_mean_s: float = DEFAULT_THINK_MEAN_S,
    queue: int | None = None,
) -> tuple[int, list[Finding]]:
    """How many cells the CSV *text* has, and everything that contradicts itself in it.

    Args:
        slo: the limits that a row without an SLO of its own is listed under.
        think_mean_s: mean think time of the users behind the table.
        queue: requests in all of each run behind the table, if it was the classic queue.
    Raises:
        UsageError: it is no table of cells.
    """
    found, _ = rows(text, name=name, required=NEEDED)
    if not found:
        raise UsageError(f"{name}: has a header but no cells")
    cells, findings = [], []
    for row in found:
        try:
            cells.append(_cell(row, slo))
        except FieldError as error:
            findings.append(_no_value(row, error))
    findings += [*_exchanged_times(cells), *_units(cells), *_swapped(cells)]
    usual = _usual_tokens(cells, think_mean_s)
    for cell in cells:
        findings += _rates(cell, usual.get(cell.scenario), think_mean_s)
        findings += _queue(cell, queue)
        findings += _limits(cell)
    return len(found), findings


def _no_value(row: Row, error: FieldError) -> Finding:
    """A value that cannot stand where it stands; nothing else of its row is judged."""
    said, _, right = error.said.partition("; ")
    where = " ".join(row.values.get(name, "").strip() for name in ("model", "gpu"))
    return Finding(
        kind="impossible",
        where=f"{where} TP{row.values.get('tp', '').strip()}",
        line=row.line,
        said=said,
        should_be="filled in" if right == "fill it in" else "put right, or left empty if unknown",
    )


def _cell(row: Row, slo: slos.Slo) -> _Cell:
    own = row.text("slo")
    try:
        limits = slo if own is None else slos.parse(own)
    except UsageError as error:
        raise row.error("slo", f"is no SLO: {error}") from None
    output_tps, total_tps = row.number("output_tokens_per_s"), row.number("total_tokens_per_s")
    tps = row.number("tokens_per_s")
    counted = row.choice("tokens_counted", ("output", "total"))
    if tps is None and (output_tps or total_tps) is not None:
        tps, counted = (total_tps, "total") if total_tps is not None else (output_tps, "output")
    model, gpu, tp = row.required("model"), row.required("gpu"), row.count("tp")
    if tp is None:
        raise row.error("tp", "is no value; fill it in")
    scenario = row.text("scenario") or DEFAULT_SCENARIO
    return _Cell(
        line=row.line,
        where=f"{model} {gpu} TP{tp}, {scenario}",
        scenario=scenario,
        users=row.count("max_users") or 0,
        ttft_s=row.number("ttft_s"),
        tpot_s=row.number("tpot_s"),
        context=row.number("avg_context_tokens"),
        output=row.number("avg_output_tokens"),
        errors=row.number("error_rate"),
        qps=row.number("requests_per_s") or None,
        tps=tps or None,
        counted=counted,
        slo=limits,
        note=row.text("note") or "",
    )


def _exchanged_times(cells: Sequence[_Cell]) -> list[Finding]:
    """Rows in which a token takes far longer than the first one; their times are put right."""
    both = [c for c in cells if c.ttft_s is not None and c.tpot_s is not None]
    wrong = [c for c in both if (c.tpot_s or 0) > EXCHANGED * (c.ttft_s or 0)]
    for cell in wrong:
        cell.ttft_s, cell.tpot_s = cell.tpot_s, cell.ttft_s
    if 2 * len(wrong) > len(both):
        said = f"TPOT is far above TTFT in {len(wrong)} of {len(both)} rows"
        return [_table("swapped", said, "the headings of TTFT and TPOT exchanged")]
    return [
        _of(c, "swapped", "TPOT is far above TTFT",
            f"TTFT {c.ttft_s:.4g} s and TPOT {c.tpot_s:.4g} s: exchanged")
        for c in wrong
    ]  # fmt: skip


def _units(cells: Sequence[_Cell]) -> list[Finding]:
    """Columns whose heading says another unit than their values; these are put right."""
    findings = []
    ttft_s = [c.ttft_s for c in cells if c.ttft_s is not None]
    late = [c for c in cells if c.ttft_s and c.users and c.qps and c.ttft_s > c.users / c.qps]
    judged = [c for c in cells if c.ttft_s and c.users and c.qps]
    if ttft_s and median(ttft_s) > UNITLESS_AT_MOST_S["ttft_s"] and 2 * len(late) >= len(judged):
        said = f"TTFT is {median(ttft_s):,.0f} s in the middle of {len(ttft_s)} rows"
        findings.append(_table("impossible", said, "under a heading of milliseconds: ttft_ms"))
        for cell in cells:
            cell.ttft_s = None if cell.ttft_s is None else cell.ttft_s / 1e3
    tpot_s = [c.tpot_s for c in cells if c.tpot_s is not None]
    middle = median(tpot_s) if tpot_s else 0.01
    for wrong, factor, unit in (
        (middle > UNITLESS_AT_MOST_S["tpot_s"], 1e-3, "milliseconds: tpot_ms"),
        (middle < TPOT_LEAST_S, 1e3, "seconds: tpot_s"),
    ):
        if wrong:
            said = f"TPOT is {middle * 1e3:,.4g} ms in the middle of {len(tpot_s)} rows"
            findings.append(_table("impossible", said, f"under a heading of {unit}"))
            for cell in cells:
                cell.tpot_s = None if cell.tpot_s is None else cell.tpot_s * factor
    return findings


def _swapped(cells: Sequence[_Cell]) -> list[Finding]:
    """Rows with fewer tokens/s than requests/s: an answer has at least one token.

    Their two figures are put right, so that the rest can be judged. A whole column that was
    swapped and put right by hand is told as well, where the notes say so.
    """
    both = [c for c in cells if c.qps is not None and c.tps is not None]
    wrong = [c for c in both if (c.tps or 0) < (c.qps or 0)]
    for cell in wrong:
        cell.qps, cell.tps = cell.tps, cell.qps
    if wrong and 2 * len(wrong) > len(both):
        said = f"tokens/s is below requests/s in {len(wrong)} of {len(both)} rows"
        return [_table("swapped", said, "the headings of requests/s and tokens/s exchanged")]
    if wrong:
        return [
            _of(c, "swapped", "tokens/s is below requests/s", f"{c.qps:g} requests/s, {c.tps:g} "
                "tokens/s: exchanged")
            for c in wrong
        ]  # fmt: skip
    noted = [c for c in both if "swap" in c.note.casefold()]
    if noted:
        said = (
            f"the notes of {len(noted)} rows say that requests/s and tokens/s were swapped in the "
            "source"
        )
        right = f"as they stand: tokens/s exceeds requests/s in all {len(both)} rows"
        return [_table("swapped", said, f"{right}; exchange the headings in the source")]
    return []


def _usual_tokens(cells: Sequence[_Cell], think_s: float) -> dict[str, float]:
    """Tokens of an answer per scenario: as stated, else the median of what Little's law implies."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        implied = None if cell.qps is None else cell.answer_tokens(cell.qps, think_s)
        tokens = cell.output if cell.output is not None else implied
        if tokens is not None and tokens > 1:
            found.setdefault(cell.scenario, []).append(tokens)
    return {scenario: median(values) for scenario, values in found.items() if len(values) > 2}


def _rates(cell: _Cell, usual: float | None, think_s: float) -> list[Finding]:
    """What of requests/s and tokens/s cannot be, and what the other figures make of it."""
    if cell.qps is None:
        return []
    impossible = _impossible(cell, usual, think_s)
    if impossible is not None:
        return [impossible]
    apart = _apart(cell, usual, think_s)
    if apart is not None:
        return [apart]
    steady = None if cell.output is None else cell.steady_qps(cell.output, think_s)
    if steady is None or TAIL_SHARE * steady < cell.qps <= LENGTHS * steady:
        return []
    if cell.qps > steady:
        said = f"requests/s {cell.qps:g} is {cell.qps / steady:.0%} of what Little's law allows"
        return [_of(cell, "impossible", said, f"{steady:.3g} requests/s")]
    said = (
        f"requests/s {cell.qps:g} is {cell.qps / steady:.0%} of the steady rate by Little's law: "
        "the tail of a finite queue, in which users have run out of requests, is in it"
    )
    return [_of(cell, "tail", said, f"{steady:.3g} requests/s in the steady state")]


def _impossible(cell: _Cell, usual: float | None, think_s: float) -> Finding | None:
    """A cycle shorter than the wait for the first token and the think time."""
    wait_s = cell.wait_s(think_s)
    assert cell.qps is not None
    if wait_s is None or not cell.users or cell.users / cell.qps * TIME_SHARE >= wait_s:
        return None
    said = (
        f"requests/s {cell.qps:g} is impossible: {cell.users} users would send one every "
        f"{cell.users / cell.qps:.2f} s, but first token and thinking alone take {wait_s:.2f} s"
    )
    return _of(cell, "impossible", said, _instead(cell, usual, think_s))


def _instead(cell: _Cell, usual: float | None, think_s: float) -> str:
    """The request rate that the rest of the row supports."""
    wait_s = cell.wait_s(think_s) or think_s
    most = cell.users / wait_s
    parts = [f"below {most:.3g} requests/s"]
    each = cell.output if cell.counted == "output" else cell.context
    if cell.tps is not None and each and cell.tps / each < most:
        parts.append(f"{cell.tps / each:.3g} by tokens/s / {each:g} tokens a request")
    tokens = cell.output if cell.output is not None else usual
    steady = None if tokens is None else cell.steady_qps(tokens, think_s)
    if steady is not None:
        parts.append(f"{steady:.3g} by Little's law with answers of {tokens:.0f} tokens")
    return "; ".join(parts)


def _apart(cell: _Cell, usual: float | None, think_s: float) -> Finding | None:
    """Tokens/s that is not requests/s x tokens per request, and which of the two is to blame."""
    assert cell.qps is not None
    if cell.tps is None:
        return None
    implied = cell.answer_tokens(cell.qps, think_s)
    readings = {"total": cell.context, "output": cell.output if cell.output else implied}
    if cell.counted is not None:
        readings = {cell.counted: readings[cell.counted]}
    each = cell.tps / cell.qps
    known = {name: size for name, size in readings.items() if size is not None and size > 0}
    least, most = (cell.tps / rate for rate in _rounding(cell.qps)[::-1])
    if not known or any(least / SAME <= size <= most * SAME for size in known.values()):
        return None
    name, size = min(known.items(), key=lambda pair: _ratio(each, pair[1]))
    if name == "output" and cell.output is None and cell.context:
        name, size = "total", cell.context  # an implied length is no figure to correct others by
    said = (
        f"requests/s {cell.qps:g} and tokens/s {cell.tps:g} contradict each other: "
        f"{each:.0f} tokens a request instead of {size:.0f} ({name})"
    )
    by_tokens = cell.tps / size
    expected = cell.output if cell.output is not None else usual
    fits = [
        (_ratio(tokens, expected), what)
        for rate, what in (
            (cell.qps, f"{cell.qps * size:,.0f} tokens/s (requests/s fits Little's law)"),
            (by_tokens, f"{by_tokens:.3g} requests/s (tokens/s fits Little's law)"),
        )
        if expected and (tokens := cell.answer_tokens(rate, think_s)) is not None and tokens > 1
    ]
    if not fits:
        return _of(cell, "contradiction", said, "measured again: nothing tells which one is wrong")
    return _of(cell, "contradiction", said, min(fits)[1])


def _queue(cell: _Cell, queue: int | None) -> list[Finding]:
    if queue is None or 2 * cell.users <= queue:
        return []
    said = f"{queue} requests for {cell.users} users: " + (
        "not even one for each" if queue < cell.users else "fewer than two for each"
    )
    right = f"at least {10 * cell.users:,} requests, or a stationary window"
    return [_of(cell, "tail", f"{said}, so there was no steady state", right)]


def _limits(cell: _Cell) -> list[Finding]:
    """The row breaks the SLO that it is listed under."""
    found = []
    fewer = (
        f"listed with fewer than {cell.users} users" if cell.users else "listed with fewer users"
    )
    seen = {"ttft": cell.ttft_s, "tpot": cell.tpot_s}
    for limit in cell.slo.limits:
        value = seen.get(limit.metric) if limit.statistic == "mean" else None
        if value is not None and value > limit.at_most_s:
            over = value / limit.at_most_s
            much = f"{over - 1:.1%} over" if over < 10 else f"{over:.0f} times as much"
            said = f"breaks {limit}: {value:.4g} s is {much}"
            found.append(_of(cell, "slo", said, fewer))
    if cell.errors is not None and cell.errors > cell.slo.error_share_max:
        said = f"breaks error_rate<{cell.slo.error_share_max:.0%}: {cell.errors:.1%} failed"
        found.append(_of(cell, "slo", said, fewer))
    return found


def _rounding(rate: float) -> tuple[float, float]:
    """The rates that are printed as *rate*: 0.3 may stand for anything within 0.25 and 0.35."""
    decimals = len(f"{rate:.10f}".rstrip("0").partition(".")[2])
    half = 0.5 * 10.0**-decimals
    return max(rate - half, 1e-9), rate + half


def _ratio(a: float, b: float) -> float:
    return max(a / b, b / a) if a > 0 and b > 0 else float("inf")


def _of(cell: _Cell, kind: Kind, said: str, should_be: str) -> Finding:
    return Finding(kind=kind, where=cell.where, line=cell.line, said=said, should_be=should_be)


def _table(kind: Kind, said: str, should_be: str) -> Finding:
    return Finding(kind=kind, where="whole table", said=said, should_be=should_be)
