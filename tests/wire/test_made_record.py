"""The record that an exchange makes."""

from __future__ import annotations

from itertools import pairwise

from replay import REQUEST, Played, response

from servecap.record import (
    Arrival,
    Counts,
    Outcome,
    Record,
    Request,
    ServerTimings,
    Times,
    TokenSource,
)
from servecap.wire.openai import OpenAi


def test_every_field_of_a_record_holds_what_its_name_says() -> None:
    """Records are made by position: no two of these may change places."""
    request = Request(
        request_id=11,
        messages=REQUEST.messages,
        prompt_tokens=12,
        max_output_tokens=13,
        exact_output=True,
        session=14,
        turn=15,
        part=16,
    )
    played = Played(OpenAi(chat=True))
    played.exchange.arrival = Arrival(request, 17, 1.25, attempt=18, first_planned_s=0.5)
    played.exchange.resent = True
    hello = b'data: {"choices":[{"delta":{"content":"hello"}}]}\n\n'
    usage = (
        b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,'
        b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
    )
    timings = (
        b'data: {"choices":[],"timings":{"prompt_ms":30,"predicted_ms":20,"predicted_n":3}}\n\n'
    )
    silent = b'data: {"choices":[{"delta":{"content":""},"finish_reason":"stop"}]}\n\n'
    body = [hello, silent, usage, timings + b"data: [DONE]\n\n"]
    data = response(b"".join(body), headers="Retry-After: 19\r\n")
    edges = [0, *(data.index(part) for part in body[:3]), len(data)]
    parts = [data[a:b] for a, b in pairwise(edges)]
    found = played.push(parts, [2.0, 3.0, 4.0, 5.0]).record
    timings_told = ServerTimings(
        origin="llama.cpp timings", prefill_s=0.03, inference_s=0.05, tpot_s=0.01
    )
    assert found == Record(
        request_id=11,
        user=17,
        planned_s=1.25,
        sent_s=1.5,
        end_s=5.0,
        outcome=Outcome.OK,
        first_token_s=3.0,
        last_token_s=4.0,
        chunk_s=Times([3.0]),
        chunk_tokens=Counts(),
        prompt_tokens=5,
        output_tokens=2,
        cached_tokens=4,
        asked_output_tokens=13,
        exact_output=True,
        token_source=TokenSource.SERVER,
        server=timings_told,
        status=200,
        finish_reason="stop",
        session=14,
        turn=15,
        part=16,
        attempt=18,
        first_planned_s=0.5,
        resent=True,
        retry_after_s=19.0,
    )
