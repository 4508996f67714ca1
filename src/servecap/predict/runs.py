"""Stored runs as rows: load, lengths and figures of each, as its own records tell them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

import msgspec

from servecap import steady
from servecap.cell import Capacity
from servecap.engine.kv import BLOCK_TOKENS
from servecap.engine.spec import EngineSpec
from servecap.errors import UNREADABLE, UsageError
from servecap.metrics import Summary
from servecap.predict import calibrate
from servecap.predict.calibrate import Measured
from servecap.predict.expected import harness_of
from servecap.predict.figures import Case
from servecap.predict.harness import Lengths
from servecap.predict.place import place
from servecap.record import Record
from servecap.run import Run, Status
from servecap.scenario import ClosedLoop
from servecap.store import HEADER, read_run
from servecap.summarize import summarize

SEARCH = "search.json"  # beside the level folders of `servecap find`
_ERRORS_MOST = 0.01  # share of failed requests: beyond it the server carried another load
_STEP_ERROR = 0.04  # of the model of a step, where the harness is known (docs/accuracy.md)
_ALONE_ERROR = 0.06  # of a prompt that is computed alone
_QUEUE_ERROR = 0.25  # of the time to wait for others
_CACHED_MOST = 0.05  # share of the prompts' tokens that were not computed but kept
_TEMPLATE_MOST = 64  # tokens that a chat template may put before every prompt


class Runs(msgspec.Struct, frozen=True, kw_only=True):
    """Rows from run folders, and each folder that tells nothing, with the reason."""

    rows: tuple[Measured, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    estimated: tuple[str, ...] = ()  # folders whose token counts the server did not tell


class _Search(msgspec.Struct, frozen=True):
    """What is read of a search: only its answer, of users or of a rate."""

    capacity: dict[str, Any]


def folders_of(path: Path) -> list[Path]:
    """The run folders that *path* is or holds (a search's levels); empty if there are none."""
    if not path.is_dir():
        return []
    if (path / HEADER).is_file():
        return [path]
    return sorted(p.parent for p in path.glob(f"*/{HEADER}"))


def measured(paths: Sequence[Path], spec: EngineSpec) -> Runs:
    """Each believable run of users as a row; *spec* says on what they were measured.

    A run is left out where the engine model could not do the same: open load, think times of other
    distributions, an invalid or unfinished run, failures, hits in a prefix cache (but for a
    template's, see `_template_tokens`). The level that
    a search named is also the row of a capacity.

    Raises:
        UsageError: a folder is damaged, a name in *spec* is not known, or no run is left.
    """
    rows, skipped, estimated = [], [], []
    for path in paths:
        for folder in folders_of(path):
            run = read_run(folder)
            row = row_of(run, summarize(run), spec, capacity=_capacity(folder))
            if isinstance(row, str):
                skipped.append((str(folder), row))
                continue
            rows.append(row)
            if any(r.ok and r.token_source == "estimate" for r in run.records):
                estimated.append(str(folder))
    if not rows:
        reasons = "; ".join(f"{folder}: {why}" for folder, why in skipped)
        raise UsageError(f"no run can be calibrated with: {reasons or 'no run folder there'}")
    return Runs(rows=tuple(rows), skipped=tuple(skipped), estimated=tuple(estimated))


def row_of(
    run: Run, summary: Summary, spec: EngineSpec, *, capacity: Capacity | None = None
) -> Measured | str:
    """The run as a row, or why the engine model cannot be held against it.

    Args:
        capacity: what the search that the run is a level of has named.
    Raises:
        UsageError: a name in *spec* is not known.
    """
    good = _good(run, summary)
    load = run.scenario.load
    why = _unfit(run, summary, good)
    if why is not None or not isinstance(load, ClosedLoop):
        return why or ""
    where = place(
        spec.model,
        spec.gpu,
        spec.tp,
        memory_gb=spec.gpu_memory_gb,
        weights=spec.weights,
        kv_dtype=spec.kv_dtype,
    )
    harness = msgspec.structs.replace(harness_of(spec, think_s=load.think_s), queue=load.queue)
    case = Case(place=where, lengths=_lengths(good), harness=harness)
    return _row(run, load, summary, case, capacity, good)


def _good(run: Run, summary: Summary) -> list[Record]:
    inside = steady.counted(run.columns, summary.window)
    return [r for r in inside.records if r.ok]


def _unfit(run: Run, summary: Summary, good: Sequence[Record]) -> str | None:
    """Why the engine model cannot be held against the run; None if it can."""
    load = run.scenario.load
    if not isinstance(load, ClosedLoop) or load.think is not None or load.each is not None:
        return "not a closed loop of users who think between two numbers of seconds"
    if run.header.status is not Status.COMPLETE:
        return f"the run is {run.header.status}"
    if steady.given_up(summary.window):
        return "it was given up before it was steady"
    if summary.invalid_reasons:
        return f"INVALID: {'; '.join(summary.invalid_reasons)}"
    if not good:
        return "no request succeeded"
    if summary.error_rate > _ERRORS_MOST:
        return f"{summary.error_rate:.1%} of the requests failed"
    if any(r.prompt_tokens is None or not r.output_tokens for r in good):
        return "not all tokens were counted"
    template = _template_tokens(good)
    cached = sum(max(0, (r.cached_tokens or 0) - template) for r in good)
    share = cached / sum(r.prompt_tokens or 0 for r in good)
    if share > _CACHED_MOST:
        return f"{share:.0%} of the prompts' tokens came from a prefix cache"
    return None


def _template_tokens(good: Sequence[Record]) -> int:
    """Tokens with which all prompts begin, as a chat template's do, and which the server keeps.

    They are computed once and their keys and values kept once, so they count as no prompt's; that
    each step still reads them is left out, for which they must be few. 0: there are none, or what
    came from the cache differs from prompt to prompt.
    """
    kept = [r.cached_tokens or 0 for r in good]
    usual = round(median(kept))
    return usual if usual <= _TEMPLATE_MOST and max(kept) - usual <= BLOCK_TOKENS else 0


def _lengths(good: Sequence[Record]) -> Lengths:
    template = _template_tokens(good)
    prompts = [
        float(max(1, (r.prompt_tokens or 0) - min(r.cached_tokens or 0, template))) for r in good
    ]
    answers = [float(r.output_tokens or 0) for r in good]
    prompt, answer = fmean(prompts), fmean(answers)
    return Lengths(
        prompt_tokens=prompt,
        output_tokens=answer,
        prompt_spread=pstdev(prompts) / prompt,
        output_spread=pstdev(answers) / answer,
    )


def _row(
    run: Run,
    load: ClosedLoop,
    summary: Summary,
    case: Case,
    capacity: Capacity | None,
    good: Sequence[Record],
) -> Measured:
    client = summary.client
    ttft, tpot = client.get("ttft"), client.get("tpot")
    named = capacity is not None and capacity.users == load.users
    by_client = run.scenario.timings != "server"
    return Measured(
        case=case,
        users=load.users,
        slo=run.scenario.slo if named and by_client else None,
        ttft_s=None if ttft is None else ttft.mean,
        tpot_s=None if tpot is None else tpot.mean,
        requests_per_s=summary.qps,
        label=run.path or "",
        expected=_expected(load.users, good),
    )


def _expected(users: int, good: Sequence[Record]) -> dict[str, float]:
    """Standard errors of the figures' logarithms: the model's own, and that of so few requests.

    Of an own run all is known that the harness of a published row leaves open, so that less is to
    be expected than `calibrate.EXPECTED`. Of a single user there is no queue to be wrong about.
    """

    def joined(model: float, values: list[float]) -> float:
        if len(values) < 2 or not (mean := fmean(values)):
            return 2 * model
        return math.hypot(model, pstdev(values) / mean / math.sqrt(len(values) - 1))

    ttft = joined(_ALONE_ERROR if users == 1 else _QUEUE_ERROR, _known(r.ttft_s for r in good))
    return {
        "ttft_s": ttft,
        "tpot_s": joined(_STEP_ERROR, _known(r.tpot_s for r in good)),
        "requests_per_s": joined(_STEP_ERROR, [r.e2e_s for r in good]),
        "max_users": calibrate.EXPECTED["max_users"],
    }


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _capacity(folder: Path) -> Capacity | None:
    """What the search that this is a level of has named; None if it is of none.

    Raises:
        UsageError: the search's file is damaged.
    """
    path = folder.parent / SEARCH
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Search).capacity
        return None if "rate_rps" in found else msgspec.convert(found, Capacity)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except UNREADABLE as error:
        raise UsageError(f"{str(path)!r} is damaged: {error}") from None
