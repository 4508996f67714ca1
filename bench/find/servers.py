"""Servers whose true capacity is known, made of formulas: what a search is measured against.

A server has a mean TTFT and a mean TPOT for each number of users. The values of its requests
scatter log-normally around them, and a part of the scatter wanders slowly, so that requests near
each other in time are alike, as on a real server. The truth follows from the formulas by trying
every number of users.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from servecap.slo import Limit

SHAPES = ("gentle", "cliff", "noisy", "drift", "heavy", "endless")
THINK_S = 2.0
MOST_USERS = 4000
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Server:
    """One server and the limits that it is held to."""

    shape: str
    seed: int
    ttft_s: float  # idle
    tpot_s: float
    knee: float  # users at which the TTFT starts to climb
    climb_s: float  # TTFT per `knee` more users
    batch: float  # users that double the TPOT
    output_tokens: float
    sigma: float  # of the logarithm of a TTFT
    sigma_tpot: float
    wander: float  # share of that variance that is common to neighbours
    memory: float  # requests over which it is, as a share of the users
    drift: float  # standard deviation of the level's own factor
    limits: tuple[Limit, ...]

    def mean_ttft_s(self, users: float) -> float:
        over = max(0.0, users - self.knee) / self.knee
        return self.ttft_s * (1 + users / self.batch) + self.climb_s * over

    def mean_tpot_s(self, users: float) -> float:
        return self.tpot_s * (1 + users / self.batch)

    def response_s(self, users: float) -> float:
        return self.mean_ttft_s(users) + (self.output_tokens - 1) * self.mean_tpot_s(users)

    def cycle_s(self, users: float) -> float:
        return self.response_s(users) + THINK_S

    def requests_per_s(self, users: float) -> float:
        return users / self.cycle_s(users)

    def true_value(self, limit: Limit, users: float) -> float:
        """The limit's statistic, exactly: every request is log-normal around the mean."""
        mean, sigma = self._mean_and_sigma(limit.metric, users)
        if limit.quantile is None:
            return mean
        return mean * math.exp(sigma * NormalDist().inv_cdf(limit.quantile) - sigma**2 / 2)

    def _mean_and_sigma(self, metric: str, users: float) -> tuple[float, float]:
        if metric == "ttft":
            return self.mean_ttft_s(users), self.sigma
        return self.mean_tpot_s(users), self.sigma_tpot

    def holds(self, users: float) -> bool:
        return all(self.true_value(x, users) <= x.at_most_s for x in self.limits)

    def capacity(self) -> int | None:
        """The largest number of users that holds, by trying them all; None: all do."""
        for users in range(1, MOST_USERS + 1):
            if not self.holds(users):
                return users - 1
        return None

    def sample(self, users: float, count: int, rng: np.random.Generator) -> dict[str, Floats]:
        """Values of *count* requests in the steady state, in the order in which they end."""
        shift = rng.normal(0.0, self.drift) if self.drift else 0.0
        found = {}
        for metric in ("ttft", "tpot"):
            mean, sigma = self._mean_and_sigma(metric, users)
            slow = _wandering(count, max(1.0, self.memory * users), rng)
            both = math.sqrt(self.wander) * slow
            both += math.sqrt(1 - self.wander) * rng.standard_normal(count)
            found[metric] = mean * np.exp(sigma * both - sigma**2 / 2 + shift)
        return found


def _wandering(count: int, memory: float, rng: np.random.Generator) -> Floats:
    """A stationary first-order autoregressive series of unit variance."""
    rho = math.exp(-1 / memory)
    noise = rng.standard_normal(count) * math.sqrt(1 - rho**2)
    size = max(1, int(30 * memory))  # rho ** -size stays far from overflow
    out = np.empty(count)
    last = rng.standard_normal()
    for start in range(0, count, size):
        part = noise[start : start + size]
        power = rho ** np.arange(1, len(part) + 1)
        out[start : start + size] = power * (last + np.cumsum(part / power))
        last = out[start + len(part) - 1]
    return out


def server(shape: str, seed: int) -> Server:
    """A random server of that shape; the seed decides everything."""
    rng = random.Random(f"{shape}/{seed}")
    knee = math.exp(rng.uniform(math.log(15), math.log(600)))
    idle_ttft, idle_tpot = rng.uniform(0.08, 0.6), rng.uniform(0.012, 0.04)
    batch = knee * (1e9 if shape == "endless" else rng.uniform(0.7, 6))
    climb = {"gentle": (1, 6), "cliff": (20, 120)}.get(shape, (3, 15))
    sigma = {"noisy": 1.1, "heavy": 1.3}.get(shape, rng.uniform(0.3, 0.7))
    limits = [
        Limit("ttft", rng.choice(["mean", "mean", "p90", "p95", "p99"]), 3.0),
        Limit("tpot", rng.choice(["mean", "mean", "p95"]), 0.1),
    ]
    return Server(
        shape=shape,
        seed=seed,
        ttft_s=idle_ttft,
        tpot_s=idle_tpot,
        knee=knee if shape != "endless" else 1e9,
        climb_s=rng.uniform(*climb),
        batch=batch,
        output_tokens=rng.uniform(80, 400),
        sigma=sigma if shape != "endless" else 0.4,
        sigma_tpot=rng.uniform(0.1, 0.4),
        wander=rng.uniform(0.05, 0.5 if shape == "noisy" else 0.3),
        memory=rng.uniform(0.02, 0.3),
        drift=0.01 if shape == "drift" else 0.0,
        limits=tuple(limits),
    )
