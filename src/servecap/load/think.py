"""How long a user thinks between an answer and the next question."""

from __future__ import annotations

import math
import random

from servecap.scenario import ClosedLoop, Exponential, Lognormal, Measured, OpenLoop


def think_s(load: ClosedLoop | OpenLoop, rng: random.Random) -> float:
    """One think time of the load's distribution, in seconds."""
    match load.think:
        case None:
            return rng.uniform(*(load.think_s or (0.0, 0.0)))
        case Exponential(mean_s=mean_s):
            return rng.expovariate(1 / mean_s) if mean_s else 0.0
        case Lognormal(mean_s=mean_s, cv=cv):
            # mean = exp(mu + sigma^2 / 2) and cv^2 = exp(sigma^2) - 1
            variance = math.log1p(cv * cv)
            if mean_s == 0:
                return 0.0
            return rng.lognormvariate(math.log(mean_s) - variance / 2, math.sqrt(variance))
        case Measured(values_s=values_s):
            return rng.choice(values_s)
