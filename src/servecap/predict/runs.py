"""Stored runs as rows: load, lengths and figures of each, as its own records tell them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev

import msgspec

from servecap import steady
from servecap.cell import Capacity
from servecap.engine.spec import EngineSpec
from servecap.errors import UNREADABLE, UsageError
from servecap.metrics import Summary
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
_CACHED_MOST = 0.05  # share of the prompts' tokens that were not computed but kept


class Runs(msgspec.Struct, frozen=True, kw_only=True):
    """Rows from run folders, and each folder that tells nothing, with the reason."""

    rows: tuple[Measured, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    estimated: tuple[str, ...] = ()  # folders whose token counts the server did not tell


class _Search(msgspec.Struct, frozen=True):
    """What is read of a search: only its answer."""

    capacity: Capacity


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
    distributions, an invalid or unfinished run, failures, hits in a prefix cache. The level that
    a search named is also the row of a capacity.

    Raises:
        UsageError: a folder is damaged, a name in *spec* is not known, or no run is left.
    """
    where = place(
        spec.model,
        spec.gpu,
        spec.tp,
        memory_gb=spec.gpu_memory_gb,
        weights=spec.weights,
        kv_dtype=spec.kv_dtype,
    )
    rows, skipped, estimated = [], [], []
    for path in paths:
        for folder in folders_of(path):
            run = read_run(folder)
            summary = summarize(run)
            good = _good(run, summary)
            why = _unfit(run, summary, good)
            if why is not None or not isinstance(run.scenario.load, ClosedLoop):
                skipped.append((str(folder), why or ""))
                continue
            if any(r.token_source == "estimate" for r in good):
                estimated.append(str(folder))
            harness = msgspec.structs.replace(
                harness_of(spec, think_s=run.scenario.load.think_s), queue=run.scenario.load.queue
            )
            case = Case(place=where, lengths=_lengths(good), harness=harness)
            rows.append(_row(run, run.scenario.load, summary, case, _capacity(folder)))
    if not rows:
        reasons = "; ".join(f"{folder}: {why}" for folder, why in skipped)
        raise UsageError(f"no run can be calibrated with: {reasons or 'no run folder there'}")
    return Runs(rows=tuple(rows), skipped=tuple(skipped), estimated=tuple(estimated))


def _good(run: Run, summary: Summary) -> list[Record]:
    inside = steady.counted(sorted(run.records, key=lambda r: r.end_s), summary.window)
    return [r for r in inside if r.ok]


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
    cached = sum(r.cached_tokens or 0 for r in good) / sum(r.prompt_tokens or 0 for r in good)
    if cached > _CACHED_MOST:
        return f"{cached:.0%} of the prompts' tokens came from a prefix cache"
    return None


def _lengths(good: Sequence[Record]) -> Lengths:
    prompts = [float(r.prompt_tokens or 0) for r in good]
    answers = [float(r.output_tokens or 0) for r in good]
    prompt, answer = fmean(prompts), fmean(answers)
    return Lengths(
        prompt_tokens=prompt,
        output_tokens=answer,
        prompt_spread=pstdev(prompts) / prompt,
        output_spread=pstdev(answers) / answer,
    )


def _row(
    run: Run, load: ClosedLoop, summary: Summary, case: Case, capacity: Capacity | None
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
    )


def _capacity(folder: Path) -> Capacity | None:
    """What the search that this is a level of has named; None if it is of none.

    Raises:
        UsageError: the search's file is damaged.
    """
    path = folder.parent / SEARCH
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Search).capacity
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except UNREADABLE as error:
        raise UsageError(f"{str(path)!r} is damaged: {error}") from None
