"""What a load test would show: figures at a number of users, and the most users under an SLO."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np

from servecap.engine import fast
from servecap.engine.cost import StepCoefficients
from servecap.predict.harness import Harness, Lengths, requests_of, traffic_of
from servecap.predict.place import Place, Tuning
from servecap.slo import Slo

SEEDS = 16
USERS_MAX = 20_000


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the requests that count, and rates; seconds and per second."""

    users: int
    ttft_s: float
    tpot_s: float
    e2e_s: float
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    refused_share: float
    held: tuple[float, ...] = ()  # the SLO's statistics, in its order


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A place under a load test."""

    place: Place
    lengths: Lengths
    harness: Harness

    def room(self, tuning: Tuning) -> int:
        """Tokens whose keys and values fit.

        Raises:
            UsageError: the model does not fit.
        """
        mean = self.lengths.prompt_tokens + self.lengths.output_tokens / 2
        return self.place.kv_tokens(self.harness, tuning, context_tokens=mean)

    def figures(
        self, tuning: Tuning, users: int, *, slo: Slo | None = None, seeds: int = SEEDS
    ) -> Figures:
        """The figures with that many users, as means over *seeds* runs.

        Raises:
            UsageError: the model does not fit.
        """
        cost = self.place.coefficients(tuning)
        room = self.room(tuning)
        front_s = tuning.host.front_s
        runs = [self._run(cost, front_s, room, users, slo, seed) for seed in range(seeds)]
        means: list[float] = np.mean(np.array(runs), axis=0).tolist()
        return Figures(
            users=users,
            ttft_s=means[0],
            tpot_s=means[1],
            e2e_s=means[2],
            requests_per_s=means[3],
            output_tokens_per_s=means[4],
            total_tokens_per_s=means[5],
            refused_share=means[6],
            held=tuple(means[7:]),
        )

    def _run(
        self,
        cost: StepCoefficients,
        front_s: float,
        room: int,
        users: int,
        slo: Slo | None,
        seed: int,
    ) -> list[float]:
        context = self.place.model.max_context_tokens
        policy = self.harness.policy
        traffic = traffic_of(self.harness, self.lengths, users, seed=seed)
        answers = fast.serve(
            cost,
            policy,
            traffic,
            kv_tokens=room,
            max_context_tokens=context,
            instances=self.harness.instances,
            routing=self.harness.routing,
            seed=seed,
        )
        # The front end is in the latencies, not in when the engine has it: see HostCost.
        sent = msgspec.structs.replace(answers, planned_s=answers.planned_s - front_s)
        return _summary(self.harness, traffic, sent, users, slo)


def _summary(
    harness: Harness, traffic: fast.Traffic, answers: fast.Answers, users: int, slo: Slo | None
) -> list[float]:
    count, before = requests_of(harness, users)
    ok = ~np.isnan(answers.end_s)
    if harness.queue is not None:
        chosen = ok
        span_s = float(np.nanmax(answers.end_s)) if ok.any() else np.nan
    elif harness.cycles is not None:
        chosen = ok
        mean_s = float((answers.end_s - answers.planned_s)[ok].mean()) if ok.any() else np.nan
        span_s = float(ok.sum()) * (mean_s + sum(harness.think_s) / 2) / users  # Little's law
    else:  # requests that end between two moments of the steady state
        begin_s, stop_s = answers.planned_s[before], answers.planned_s[count - 1]
        chosen = ok & (answers.end_s > begin_s) & (answers.end_s <= stop_s)
        span_s = float(stop_s - begin_s)
    ttft_s = (answers.first_s - answers.planned_s)[chosen]
    later = traffic.output_tokens[chosen] - 1
    decode_s = (answers.end_s - answers.first_s)[chosen]
    tpot_s = decode_s[later > 0] / later[later > 0]
    e2e_s = (answers.end_s - answers.planned_s)[chosen]
    output = traffic.output_tokens[chosen].sum() / span_s
    total = output + traffic.prompt_tokens[chosen].sum() / span_s
    columns = {"ttft": ttft_s, "tpot": tpot_s, "e2e": e2e_s, "gap": tpot_s,
               "queue": (answers.started_s - answers.planned_s)[chosen]}  # fmt: skip
    held = [_statistic(columns[x.metric], x.quantile) for x in (slo.limits if slo else ())]
    return [
        _mean(ttft_s), _mean(tpot_s), _mean(e2e_s), len(e2e_s) / span_s, float(output),
        float(total), 1 - float(ok.mean()), *held,
    ]  # fmt: skip


def _mean(values: fast.Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _statistic(values: fast.Floats, quantile: float | None) -> float:
    if len(values) == 0:
        return float("inf")
    return float(values.mean() if quantile is None else np.quantile(values, quantile))


def capacity(
    case: Case, tuning: Tuning, slo: Slo, *, seeds: int = SEEDS, users_max: int = USERS_MAX
) -> tuple[int, Figures]:
    """The most users for whom the SLO holds (0 if not even for one), and the figures there.

    A classic run never has more users at work than it has requests: no more are tried.
    Above 400 users to within 0.5%. One seed finds the neighbourhood. There a level is judged by
    the means over all *seeds*; by a few of them where these are far from every limit.

    Raises:
        UsageError: the model does not fit.
    """
    seen: dict[int, Figures] = {}
    users_max = min(users_max, case.harness.queue or users_max)

    def far(users: int, seeds: int) -> float:
        """Log of the worst ratio to a limit: the SLO holds at 0 and below."""
        figures = case.figures(tuning, users, slo=slo, seeds=seeds)
        if seeds == full:
            seen[users] = figures
        if figures.refused_share > slo.error_share_max:
            return _FAR
        worst = max(v / x.at_most_s for v, x in zip(figures.held, slo.limits, strict=True))
        return max(-_FAR, math.log(worst)) if 0 < worst < math.exp(_FAR) else _FAR

    def holds(users: int) -> bool:
        if full > _FEW_SEEDS and abs(few := far(users, _FEW_SEEDS)) > _CLEARLY:
            return few <= 0
        return far(users, full) <= 0

    full = seeds
    users = _near(holds, _rough(lambda n: far(n, 1), users_max), users_max)
    if max(1, users) not in seen:
        far(max(1, users), full)
    return users, seen[max(1, users)]


_FEW_SEEDS, _CLEARLY = 4, 0.2  # four runs: a mean so far off (in log) is not noise
_FAR = 3.0


def _rough(far: Callable[[int], float], limit: int) -> int:
    """About where *far* passes 0: doubling, then between the two by what they say."""
    low, high, below, above = 0, min(8, limit), -_FAR, 0.0
    while (above := far(high)) <= 0:
        if high == limit:
            return limit
        low, high, below = high, min(2 * high, limit), above
    halve = False
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        if not halve and low > 0:  # as if it were a straight line in the logarithms
            share = below / (below - above)
            middle = round(low * (high / low) ** share)
            middle = min(max(middle, low + 1), high - 1)
        width = high - low
        if (found := far(middle)) <= 0:
            low, below = middle, found
        else:
            high, above = middle, found
        halve = high - low > width / 2
    return low


def _near(holds: Callable[[int], bool], guess: int, limit: int) -> int:
    """As `most`, when the answer is near *guess*."""
    step, grain = max(1, guess // 100), max(1, guess // 200)
    low = high = max(1, guess)
    if holds(low):
        high = min(low + step, limit + 1)
        while high <= limit and holds(high):
            step *= 2
            low, high = high, min(high + step, limit + 1)
    else:
        low = max(0, high - step)
        while low > 0 and not holds(low):
            step *= 2
            low, high = max(0, low - step), low
    while high - low > grain:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def most(holds: Callable[[int], bool], limit: int) -> int:
    """The largest number up to *limit* for which *holds*, if it holds below and not above.

    >>> most(lambda n: n < 38, 1000), most(lambda n: False, 10)
    (37, 0)
    """
    low, high = 0, 8
    while high <= limit and holds(high):
        low, high = high, high * 2
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
