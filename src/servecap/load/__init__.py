"""Who sends what, when: closed-loop users and open-loop arrivals, without clocks or sockets."""

from __future__ import annotations

from collections.abc import Iterator

from servecap.load.arrivals import OpenArrivals, TraceArrivals
from servecap.load.feed import Feed
from servecap.load.open_sessions import OpenSessions
from servecap.load.retries import Retries
from servecap.load.users import Users
from servecap.record import Request
from servecap.scenario import ClosedLoop, Load, OpenLoop, Scenario

__all__ = [
    "Feed",
    "OpenArrivals",
    "OpenSessions",
    "Retries",
    "TraceArrivals",
    "Users",
    "change",
    "feed_for",
]


def feed_for(scenario: Scenario, requests: Iterator[Request], *, response_guess_s: float) -> Feed:
    """The feed that sends *requests* as the scenario's load says, again where they are turned away.

    Args:
        response_guess_s: response time of an idle server in seconds; with the mean think time it
            is the cycle over which users ramp in, unless the scenario sets its own ramp.
    """
    feed = _feed(scenario, requests, response_guess_s)
    return Retries(feed, scenario.retries, seed=scenario.seed) if scenario.retries else feed


def _feed(scenario: Scenario, requests: Iterator[Request], response_guess_s: float) -> Feed:
    match scenario.load:
        case ClosedLoop() as load:
            return Users(load, requests, seed=scenario.seed, response_guess_s=response_guess_s)
        case OpenLoop(arrivals="trace"):
            return TraceArrivals(requests)
        case OpenLoop() as load if load.of_sessions:
            return OpenSessions(load, requests, seed=scenario.seed)
        case OpenLoop() as load:
            return OpenArrivals(load, requests, seed=scenario.seed)


def change(feed: Feed, load: Load, now_s: float) -> None:
    """From *now_s* on, *feed* sends as *load* says, going on from what it did before.

    Raises:
        TypeError: the feed is of another kind, or of one that cannot change.
    """
    match feed, load:
        case (Retries(), _):
            change(feed.feed, load, now_s)
        case (Users(), ClosedLoop()):
            feed.change(load, now_s)
        case (OpenArrivals() | OpenSessions(), OpenLoop()):
            feed.change(load, now_s)
        case _:
            raise TypeError(f"{type(feed).__name__} cannot go on as {load}")
