"""Parameters of the engine model from measured cells: bounded, with priors, robust."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from servecap.predict.figures import Case, capacity
from servecap.predict.profile import Parameter, Profile, Validity, concerns, with_own
from servecap.slo import Slo

# Noise of a measured figure and the model's own error together, as standard deviations of the
# logarithm: what is to be expected of a row, so that no row and no figure decides alone.
EXPECTED = {"max_users": 0.2, "ttft_s": 0.5, "tpot_s": 0.12, "requests_per_s": 0.2}

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

SEEDS = 2
_ROUNDS = 8
_STEP = 0.08  # of the logarithm, for the derivatives: wider than the simulation's own grain
_SETTLED = 0.05  # of the loss
_LEVERAGE_MOST = 0.9  # of a row: one that alone tells a parameter tells nothing of its own error
_HUBER = 1.5  # from so many expected errors on, a residual pulls with constant force


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A row: where and how it was measured, at how many users, and what came out."""

    case: Case
    users: int
    slo: Slo | None  # under which `users` was the most; None: just a load, not a capacity
    ttft_s: float | None = None
    tpot_s: float | None = None
    requests_per_s: float | None = None
    label: str = ""
    expected: dict[str, float] | None = None  # instead of EXPECTED


def predicted(row: Measured, profile: Profile, *, seeds: int = SEEDS) -> dict[str, float]:
    """The row's figures as the model has them."""
    tuning = profile.tuning(row.case.place.gpu)
    figures = row.case.figures(tuning, row.users, seeds=seeds)
    out = {
        "ttft_s": figures.ttft_s,
        "tpot_s": figures.tpot_s,
        "requests_per_s": figures.requests_per_s,
    }
    if row.slo is not None:
        out["max_users"] = float(capacity(row.case, tuning, row.slo, seeds=seeds)[0])
    return out


def truth(row: Measured) -> dict[str, float]:
    """What was measured of the same."""
    out = {
        "ttft_s": row.ttft_s,
        "tpot_s": row.tpot_s,
        "requests_per_s": row.requests_per_s,
        "max_users": None if row.slo is None else float(row.users),
    }
    return {name: value for name, value in out.items() if value is not None}


def residuals(row: Measured, profile: Profile, *, seeds: int = SEEDS) -> dict[str, float]:
    """log(truth / predicted) of each figure; a capacity of less than one user counts as a half."""
    model = predicted(row, profile, seeds=seeds)
    return {name: math.log(value / max(model[name], 0.5 if name == "max_users" else 1e-9))
            for name, value in truth(row).items()}  # fmt: skip


class _Problem(msgspec.Struct, frozen=True):
    """The parameters' logarithms as a vector, and the loss as a function of it."""

    start: Profile

    @property
    def _priors(self) -> list[Parameter]:
        return list(self.start.parameters.values())

    @property
    def centre(self) -> Vector:
        centre: Vector = np.log([p.value for p in self._priors])
        return centre

    @property
    def _spread(self) -> Vector:
        spread: Vector = np.array([p.spread for p in self._priors])
        return spread

    def bounded(self, x: Vector) -> Vector:
        low = np.log([p.low for p in self._priors])
        high = np.log([p.high for p in self._priors])
        return np.clip(x, low, high)

    def profile(
        self,
        x: Vector,
        spreads: Vector | None = None,
        *,
        name: str | None = None,
        validity: Validity | None = None,
    ) -> Profile:
        """The parameters at *x*, with what is left of their spreads."""
        left = self._spread if spreads is None else spreads
        parameters = {
            key: msgspec.structs.replace(
                prior,
                value=float(math.exp(x[k])),
                spread=float(left[k]),
                identified=bool(left[k] < prior.spread / 2),
            )
            for k, (key, prior) in enumerate(self.start.parameters.items())
        }
        return msgspec.structs.replace(
            self.start,
            name=name or self.start.name,
            parameters=parameters,
            validity=validity or self.start.validity,
        )

    def errors(self, rows: Sequence[Measured], x: Vector) -> list[Vector]:
        """Each row's residuals, in expected errors."""
        profile = self.profile(x)
        return [_errors(row, profile) for row in rows]

    def slopes(self, rows: Sequence[Measured], x: Vector, now: list[Vector]) -> list[Matrix]:
        """Their derivatives by each parameter; parameters of other machines cannot matter."""
        names = list(self.start.parameters)
        found = [np.zeros((len(errors), len(names))) for errors in now]
        for k, name in enumerate(names):
            moved = x.copy()
            moved[k] += _STEP
            profile = self.profile(moved)
            for row, errors, matrix in zip(rows, now, found, strict=True):
                if concerns(name, row.case.place.gpu, row.case.place.tp):
                    matrix[:, k] = (_errors(row, profile) - errors) / _STEP
        return found

    def step(self, x: Vector, errors: Vector, slopes: Matrix, *, damping: float) -> Vector:
        """The damped Newton step."""
        weighted = slopes.T * _weights(errors)
        curvature = weighted @ slopes + np.diag(1 / self._spread**2)
        slope = weighted @ errors + (x - self.centre) / self._spread**2
        scaled = curvature + damping * np.diag(np.diag(curvature))
        return np.asarray(np.linalg.solve(scaled, -slope), np.float64)

    def spreads(self, errors: Vector, slopes: Matrix) -> Vector:
        """Standard deviations that the rows leave to the parameters (Laplace's approximation)."""
        return np.asarray(np.sqrt(np.diag(self.covariance(errors, slopes))), np.float64)

    def covariance(self, errors: Vector, slopes: Matrix) -> Matrix:
        """What the rows and the priors leave to the parameters, by Laplace's approximation."""
        curvature = (slopes.T * _weights(errors)) @ slopes + np.diag(1 / self._spread**2)
        return np.asarray(np.linalg.inv(curvature), np.float64)

    def pull(self, errors: Vector, slopes: Matrix, priors: Vector) -> Vector:
        """Where rows with other errors, and priors moved by so many of their spreads, pull to."""
        weighted = slopes.T * _weights(errors)
        return np.asarray(priors / self._spread - weighted @ errors, np.float64)

    def loss(self, errors: list[Vector], x: Vector) -> float:
        size = np.abs(np.concatenate(errors))
        huber = np.where(size <= _HUBER, size**2 / 2, _HUBER * (size - _HUBER / 2))
        return float(huber.sum() + (((x - self.centre) / self._spread) ** 2).sum() / 2)


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """A finished fit: the profile, and what is needed to see it without some of its rows."""

    profile: Profile
    rows: tuple[Measured, ...]
    problem: _Problem
    x: Vector
    errors: tuple[Vector, ...]  # of each row, in expected errors
    slopes: tuple[Matrix, ...]  # their derivatives

    def without(self, left_out: Sequence[Measured]) -> Profile:
        """About the profile that the other rows alone would give: one step from the optimum.

        Source: the infinitesimal jackknife (Jaeckel, 1972).
        """
        kept = [k for k, row in enumerate(self.rows) if row not in left_out]
        errors = np.concatenate([self.errors[k] for k in kept])
        slopes = np.concatenate([self.slopes[k] for k in kept])
        step = self.problem.step(self.x, errors, slopes, damping=0.0)
        return self.problem.profile(self.problem.bounded(self.x + step))

    def studentised(self) -> Vector:
        """The rows' errors, in expected errors, as they would be had the fit not bent to them.

        Each is divided by the root of 1 less its leverage (Cook & Weisberg, 1982).
        """
        errors, slopes = np.concatenate(self.errors), np.concatenate(self.slopes)
        covariance = self.problem.covariance(errors, slopes)
        leverage = np.einsum("ij,jk,ik->i", slopes, covariance, slopes) * _weights(errors)
        return np.asarray(errors / np.sqrt(1 - np.minimum(leverage, _LEVERAGE_MOST)), np.float64)

    def draws(self, count: int, *, seed: int = 0) -> list[Vector]:
        """Logarithms of the parameters as other rows of the same kind might have told them.

        A bootstrap of the residuals (Efron, 1979): each error is replaced by one drawn from all
        studentised ones, of either sign, and each prior's centre by a draw from that prior, so
        that what no row told stays as unsure as it was; one Newton step leads to the parameters.
        Draws come in pairs that lie opposite each other.
        """
        rng = np.random.default_rng([seed, 1979])
        errors, slopes = np.concatenate(self.errors), np.concatenate(self.slopes)
        covariance, pool = self.problem.covariance(errors, slopes), self.studentised()
        found = []
        for _ in range(count // 2):
            drawn = rng.choice(pool, len(errors)) * rng.choice([-1.0, 1.0], len(errors))
            moved = rng.standard_normal(len(self.x))
            step = covariance @ self.problem.pull(drawn, slopes, moved)
            found += [self.problem.bounded(self.x + sign * step) for sign in (1, -1)]
        return found


def fit(rows: Sequence[Measured], start: Profile, *, name: str) -> Fit:
    """*start* with its parameters moved to where the rows want them, as far as the priors allow.

    Maximum a posteriori in the logarithms of the parameters: Levenberg-Marquardt on residuals
    that are weighted by Huber's function, so that a wrong row pulls no harder than a bad one.

    Source: Marquardt (1963); Huber, Robust Statistics (1981).
    """
    problem = _Problem(start=with_own(start, [row.case.place for row in rows]))
    x = problem.centre
    now = problem.errors(rows, x)
    slopes = problem.slopes(rows, x, now)
    damping = 1.0
    for _ in range(_ROUNDS):
        step = problem.step(x, np.concatenate(now), np.concatenate(slopes), damping=damping)
        trial = problem.bounded(x + np.clip(step, -0.7, 0.7))
        then = problem.errors(rows, trial)
        gain = problem.loss(now, x) - problem.loss(then, trial)
        if gain <= 0:
            damping *= 5
            continue
        x, now, damping = trial, then, damping / 4
        if gain < _SETTLED:
            break
        slopes = problem.slopes(rows, x, now)
    spreads = problem.spreads(np.concatenate(now), np.concatenate(slopes))
    profile = problem.profile(x, spreads, name=name, validity=validity(rows))
    return Fit(
        profile=profile,
        rows=tuple(rows),
        problem=problem,
        x=x,
        errors=tuple(now),
        slopes=tuple(slopes),
    )


def _errors(row: Measured, profile: Profile) -> Vector:
    found = residuals(msgspec.structs.replace(row, slo=None), profile)
    expected = row.expected or EXPECTED
    return np.array([value / expected[figure] for figure, value in found.items()])


def _weights(errors: Vector) -> Vector:
    weights: Vector = np.minimum(1.0, _HUBER / np.maximum(np.abs(errors), 1e-9))
    return weights


def validity(rows: Sequence[Measured]) -> Validity:
    """What the rows cover."""
    contexts = [r.case.lengths.prompt_tokens + r.case.lengths.output_tokens for r in rows]
    return Validity(
        gpus=tuple(sorted({r.case.place.gpu.name for r in rows})),
        models=tuple(sorted({r.case.place.model.name for r in rows})),
        places=tuple(sorted({place_of(r.case) for r in rows})),
        tp_max=max(r.case.place.tp for r in rows),
        in_flight_max=max(map(_in_flight, rows)),
        users_max=max(r.users for r in rows),
        context_tokens=(min(contexts), max(contexts)),
        rows=len(rows),
    )


def place_of(case: Case) -> tuple[str, str, int]:
    """Model, GPU and tensor-parallel degree."""
    return case.place.model.name, case.place.gpu.name, case.place.tp


def _in_flight(row: Measured) -> float:
    """Requests in flight by Little's law; users who do not think are all in flight."""
    thinking = sum(row.case.harness.think_s) / 2 * (row.requests_per_s or 0.0)
    return max(1.0, min(row.users - thinking, row.case.harness.policy.max_running))
