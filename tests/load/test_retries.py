"""Retries: who was turned away is sent again, and nobody else is."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playback import play, record_of, requests

from servecap.load import Feed, OpenArrivals, Retries, Users, change, feed_for
from servecap.load.retries import ASKED_MOST_S, FIRST_PAUSE_S, PAUSE_MOST_S, SPREAD
from servecap.record import NOT_SENT, Arrival, Outcome, Record
from servecap.scenario import ClosedLoop, OpenLoop, Scenario

ALONE = ClosedLoop(users=1, think_s=(2.0, 2.0))


def users(load: ClosedLoop = ALONE) -> Users:
    return Users(load, requests(), seed=0, response_guess_s=0.0)


def failed(
    arrival: Arrival,
    end_s: float,
    outcome: Outcome = Outcome.REFUSED,
    *,
    status: int | None = None,
    asked_s: float | None = None,
    error: str = "reset",
) -> Record:
    return msgspec.structs.replace(
        record_of(arrival, end_s, outcome),
        status=status,
        retry_after_s=asked_s,
        error=error,
        attempt=arrival.attempt,
        first_planned_s=arrival.first_planned_s,
    )


def take(feed: Feed, due_s: float) -> Arrival:
    assert feed.next_s() == pytest.approx(due_s)
    (arrival,) = feed.take(due_s + 1e-9)
    return arrival


def test_the_server_says_when_to_come_again() -> None:
    feed = Retries(users(), 2, seed=0)
    first = take(feed, 0.0)
    feed.done(failed(first, 1.0, Outcome.HTTP_ERROR, status=429, asked_s=7.0))
    second = take(feed, 8.0)
    assert (second.request, second.user) == (first.request, first.user)
    assert (second.attempt, second.planned_s, second.first_planned_s) == (2, 8.0, 0.0)
    feed.done(failed(second, 9.0, Outcome.HTTP_ERROR, status=503, asked_s=0.0))
    third = take(feed, 9.0)
    assert (third.attempt, third.first_planned_s) == (3, 0.0)
    feed.done(failed(third, 10.0))  # that was the last try: the user thinks and goes on
    fresh = take(feed, 12.0)
    assert (fresh.request.request_id, fresh.attempt, fresh.first_planned_s) == (1, 1, None)


def test_no_longer_than_that_is_waited_whatever_the_server_says() -> None:
    feed = Retries(users(), 1, seed=0)
    feed.done(failed(take(feed, 0.0), 1.0, Outcome.HTTP_ERROR, status=503, asked_s=86_400.0))
    assert feed.next_s() == 1.0 + ASKED_MOST_S


def test_pauses_double_up_to_a_bound() -> None:
    feed = Retries(users(), 10, seed=0)
    arrival, now_s = take(feed, 0.0), 0.0
    for number in range(10):
        now_s += 1.0
        feed.done(failed(arrival, now_s))
        due_s = feed.next_s()
        assert due_s is not None
        most_s = min(FIRST_PAUSE_S * 2**number, PAUSE_MOST_S)
        assert (1 - SPREAD) * most_s <= due_s - now_s <= most_s
        arrival, now_s = take(feed, due_s), due_s
    assert arrival.attempt == 11


def test_pauses_are_those_of_the_seed() -> None:
    def pause_s(seed: int) -> float | None:
        feed = Retries(users(), 1, seed=seed)
        feed.done(failed(take(feed, 0.0), 0.0))
        return feed.next_s()

    assert pause_s(3) == pause_s(3) != pause_s(4)


@pytest.mark.parametrize(
    ("outcome", "status", "error"),
    [
        (Outcome.TIMEOUT, None, "no connection within 2 s"),
        (Outcome.BROKEN_STREAM, 200, "cut short"),
        (Outcome.HTTP_ERROR, 500, "Oops"),
        (Outcome.HTTP_ERROR, 400, "too long"),
        (Outcome.HTTP_ERROR, 200, "503: in the stream"),
        (Outcome.REFUSED, None, f"{NOT_SENT} 20 requests were in flight already"),
        (Outcome.CANCELLED, None, ""),
    ],
)
def test_not_tried_again(outcome: Outcome, status: int | None, error: str) -> None:
    feed = Retries(users(), 3, seed=0)
    feed.done(failed(take(feed, 0.0), 1.0, outcome, status=status, error=error))
    assert take(feed, 3.0).request.request_id == 1, "after the think time, the next one"


def test_open_loop_goes_on_while_a_retry_waits() -> None:
    load = OpenLoop(rate_rps=1.0, arrivals="constant")
    feed = Retries(OpenArrivals(load, iter([next(requests())]), seed=0), 1, seed=0)
    first = take(feed, 0.0)
    feed.take(1.0)  # there is no other request
    ends = [feed.finished]
    feed.done(failed(first, 1.5))
    ends.append(feed.finished)
    due_s = feed.next_s()
    assert due_s is not None
    feed.done(record_of(take(feed, due_s), due_s + 1))
    assert [*ends, feed.finished] == [True, False, True]


def test_the_population_changes_around_a_retry() -> None:
    feed = Retries(users(ClosedLoop(users=2, think_s=(2.0, 2.0), ramp_s=0.0)), 1, seed=0)
    gone, stays = feed.take(0.0)
    feed.done(failed(stays, 1.0, asked_s=5.0) if stays.user else failed(gone, 1.0, asked_s=5.0))
    change(feed, ALONE, 2.0)
    again = take(feed, 6.0)
    assert (again.attempt, again.user) == (2, 1)
    feed.done(record_of(again, 7.0))
    assert feed.next_s() is None, "who is too many leaves after the answer"


def test_only_where_it_is_asked_for() -> None:
    plain = feed_for(Scenario(load=ALONE), requests(), response_guess_s=0.0)
    asked = feed_for(Scenario(load=ALONE, retries=1), requests(), response_guess_s=0.0)
    assert isinstance(plain, Users)
    assert isinstance(asked, Retries)


@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 4), st.data())
def test_a_queue_is_worked_off_once(
    number: int, queue: int, retries: int, data: st.DataObject
) -> None:
    """Whatever fails: each request is over once, no user has two in flight, nothing is early."""
    load = ClosedLoop(users=number, think_s=(0.0, 1.0), queue=max(number, queue))
    fails = {n: data.draw(st.integers(0, 6)) for n in range(load.queue or 0)}
    inner = Retries(users(load), retries, seed=0)
    tries: dict[int, list[Arrival]] = {}

    class Failing:
        """Makes the successes of `play` into failures."""

        next_s, take = inner.next_s, inner.take
        finished = property(lambda _: inner.finished)

        def done(self, record: Record) -> None:
            arrival = tries[record.request_id][-1]
            bad = len(tries[record.request_id]) <= fails[record.request_id]
            inner.done(failed(arrival, record.end_s) if bad else record_of(arrival, record.end_s))

    def response_s(arrival: Arrival) -> float:
        tries.setdefault(arrival.request.request_id, []).append(arrival)
        return 0.5

    play(Failing(), response_s)
    assert inner.finished
    assert sorted(tries) == list(range(load.queue or 0))
    for n, made in tries.items():
        assert [a.attempt for a in made] == list(range(1, min(fails[n], retries) + 2))
        assert {a.user for a in made} == {made[0].user}
        assert all(a.first_planned_s == made[0].planned_s for a in made[1:])
