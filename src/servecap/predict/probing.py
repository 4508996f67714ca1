"""Short runs that tell an engine's step times: which ones, how long, and what they came to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Literal

import msgspec

from servecap.engine.scheduler import plans_ahead
from servecap.engine.spec import EngineSpec, default_policy
from servecap.errors import InvalidRun
from servecap.metrics import Summary
from servecap.predict.calibrate import Measured
from servecap.predict.runs import row_of
from servecap.record import Record
from servecap.run import Run, Status
from servecap.scenario import ClosedLoop, Scenario, StopRule, Timeouts, WorkloadSpec
from servecap.slo import Slo
from servecap.summarize import summarize

RUNNING_MOST = 256  # users of the sweep's last level, where nobody told what the server computes
PROMPT_MOST = 4096  # tokens; longer prompts cost more time than they tell
_SHORT = 32  # tokens of the prompts where decoding is looked at
_ANSWERS = tuple(range(32, 97, 8))  # of many lengths: users of equal ones would march in step
_FEW = 8  # tokens of an answer, where the prompt is looked at
_ALONE_REQUESTS, _REQUESTS_PER_USER = 10, 4
_DOUBTED = 2  # levels of the sweep in a row that cannot be believed: larger ones cannot either
_LEAST_S = 1.0  # less time is not worth a level
_LIMITED = 0.65  # of the share that decoded at half the users: fewer, and the others wait
_NO_LIMIT = Slo(limits=())

Measure = Callable[[Scenario, Path], Run]


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One short run: so many users without think time, with such prompts and answers (tokens)."""

    purpose: Literal["prefill", "decode", "context"]
    users: int
    prompt_tokens: int
    answers: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.purpose}-{self.users}-users-{self.prompt_tokens}-tokens"

    def workload(self, tokens_per_word: float) -> str:
        """The workload's name; prompts are made of words, which may be several tokens each."""
        words = max(1, round(self.prompt_tokens / tokens_per_word))
        share = f"{100 / len(self.answers):.4f}%"
        parts = [f"fixed:{words}/{answer}" for answer in self.answers]
        return parts[0] if len(parts) == 1 else f"mix:{','.join(share + p for p in parts)}"


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """What the runs came to: rows, and each run that tells nothing, with the reason.

    `max_running`: requests that the server was seen to compute at once; None: no limit was seen.
    """

    rows: tuple[Measured, ...]
    skipped: tuple[tuple[str, str], ...]
    max_running: int | None


def plan(max_running: int, context_tokens: int) -> list[Level]:
    """The levels that tell step times: prompts alone, answers in batches, and a long context.

    Args:
        max_running: requests that the server computes at once; no level has more users.
        context_tokens: the longest prompt and answer together.
    """
    longest = max(_SHORT, min(PROMPT_MOST, context_tokens // 2))
    prompts = [_SHORT]
    while prompts[-1] * 4 < longest:
        prompts.append(prompts[-1] * 4)
    if longest > prompts[-1]:
        prompts.append(longest)
    users = [1]
    while users[-1] * 2 < max_running:
        users.append(users[-1] * 2)
    if max_running > users[-1]:
        users.append(max_running)
    alone = [Level(purpose="prefill", users=1, prompt_tokens=p, answers=(_FEW,)) for p in prompts]
    sweep = [
        Level(purpose="decode", users=n, prompt_tokens=_SHORT, answers=_ANSWERS) for n in users
    ]
    long = Level(
        purpose="context", users=min(4, max_running), prompt_tokens=longest, answers=_ANSWERS
    )
    return [*alone, *sweep, *([long] if longest > _SHORT else [])]


def probe(
    measure: Measure,
    spec: EngineSpec,
    levels: list[Level],
    out: Path,
    *,
    budget_s: float,
    now: Callable[[], float],
    on_level: Callable[[Level, Summary | None, str | None], None],
    seed: int = 0,
) -> Probed:
    """Measures the levels within the budget; runs that cannot be believed are no rows.

    A level may take twice its share of what is left, and is not begun with less than a second.
    The sweep of users ends where more of them only wait, or where two levels cannot be believed.

    Args:
        measure: a scenario and the folder to keep it in -> its run.
        now: seconds on any clock that goes on while *measure* runs.
        on_level: told of each level: its figures (None: not begun), and why it is no row.
    Raises:
        UsageError: a name in *spec* is unknown.
        InvalidRun: not one level could be believed.
        KeyboardInterrupt: a run was interrupted.
    """
    end_s = now() + budget_s
    state = _State(ahead=plans_ahead(spec.policy or default_policy(spec)))
    for number, level in enumerate(levels):
        if state.limit is not None and level.users > state.limit:
            continue
        if level.purpose == "decode" and state.doubted >= _DOUBTED:
            continue
        left_s = end_s - now()
        if left_s < _LEAST_S:
            state.skip(level, "the time was over")
            on_level(level, None, "the time was over")
            continue
        most_s = min(left_s, 2 * left_s / (len(levels) - number))
        scenario = _scenario(level, most_s, state.tokens_per_word, seed + number)
        run = measure(scenario, out / f"{number + 1:02d}-{level.name}")
        if run.header.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        summary = summarize(run)
        row = row_of(run, summary, spec)
        if isinstance(row, str):
            state.skip(level, row)
            state.doubted += level.purpose == "decode"
            on_level(level, summary, row)
            continue
        state.note(level, row, summary, run.records)
        on_level(level, summary, None)
    if not state.rows:
        whys = "; ".join(f"{name}: {why}" for name, why in state.skipped)
        raise InvalidRun(f"no level could be believed: {whys}")
    return Probed(rows=tuple(state.rows), skipped=tuple(state.skipped), max_running=state.limit)


class _State:
    """What the levels have told so far."""

    def __init__(self, *, ahead: bool) -> None:
        self.ahead = ahead  # the server plans steps ahead: newcomers wait for one without a place
        self.rows: list[Measured] = []
        self.skipped: list[tuple[str, str]] = []
        self.tokens_per_word = 1.0
        self.limit: int | None = None
        self.doubted = 0
        # Users, share that decoded, time of a prompt and rate of the level before.
        self._before: tuple[int, float, float, float] | None = None

    def skip(self, level: Level, why: str) -> None:
        self.skipped.append((level.name, why))

    def note(self, level: Level, row: Measured, summary: Summary, records: list[Record]) -> None:
        self.rows.append(row)
        if not self.rows[1:]:  # the first level: how the server counts
            told = [r.prompt_tokens for r in records if r.ok and r.prompt_tokens]
            self.tokens_per_word = max(0.25, fmean(told) / level.prompt_tokens) if told else 1.0
        if level.purpose == "decode":
            self.doubted = 0
            self._look_for_limit(level.users, summary)

    def _look_for_limit(self, users: int, summary: Summary) -> None:
        """Little's law: how many decode at once; where no more do than before, the rest wait.

        Then all places are taken all the time, each for an answer's decoding and its prompt's
        computing; the latter took as long as first tokens did before anybody waited for a place.
        And then the rate cannot have risen by more than so many places allow: if it has, prompts
        took longer for another reason (a machine that has other work, too).
        """
        ttft, e2e = summary.client.get("ttft"), summary.client.get("e2e")
        tpot = summary.client.get("tpot")
        if ttft is None or e2e is None or tpot is None:
            return
        decoding_s = e2e.mean - ttft.mean
        share = summary.qps * decoding_s / users
        if self._before is not None:
            fewer, shared, held_s, rate = self._before
            full = summary.qps <= _LIMITED * users / fewer * rate
            if full and share < _LIMITED * shared:
                places = round(summary.qps * (decoding_s + held_s))
                self.limit = min(max(fewer, places), users)
                self.rows.pop()  # by a server without that limit, which is what it was taken for
        prompt_s = ttft.mean - (tpot.mean if self.ahead else 0.0)
        self._before = users, share, prompt_s, summary.qps


def _scenario(level: Level, most_s: float, tokens_per_word: float, seed: int) -> Scenario:
    requests = max(_ALONE_REQUESTS, _REQUESTS_PER_USER * level.users)
    return Scenario(
        load=ClosedLoop(users=level.users, think_s=(0.0, 0.0)),
        workload=WorkloadSpec(source=level.workload(tokens_per_word)),
        slo=_NO_LIMIT,
        stop=StopRule(requests=requests, max_duration_s=most_s),
        timeouts=Timeouts(),
        seed=seed,
    )
