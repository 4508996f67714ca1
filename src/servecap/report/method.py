"""What a reader of the page must know about the method, and be careful about."""

from __future__ import annotations

from servecap.verdict import CONFIDENCE

# Term and text, in the order in which they are read.
METHOD: tuple[tuple[str, str], ...] = (
    (
        "Users are not requests in flight",
        "A user sends a request, reads the answer to its end, thinks, and sends the next. "
        "Only the first two keep the server busy, so there are fewer requests in flight than "
        "users. By Little's law users = QPS × (response time + think time); a run for which "
        "this does not hold is INVALID.",
    ),
    (
        "TTFT (first_token_latency)",
        "From the moment a request was meant to be sent to its first token. A client that is "
        "late cannot hide it: its own lag is counted, and is shown under client health.",
    ),
    (
        "TPOT (avg_token_latency)",
        "Time from the first chunk to the last, divided by the tokens after the first chunk. "
        "A chunk may carry several tokens; ITL is the time between chunks as they came.",
    ),
    (
        "E2E (response_time)",
        "From the moment a request was meant to be sent to the end of its answer. By the "
        "server's clock it is what the server calls inference.",
    ),
    (
        "Measured window",
        "Requests count when they ended in the window. The ramp-in of the users is left out "
        "and the drain at the end is cut off, unless the classic rule of a fixed queue was "
        "asked for. Requests still running at the end are in no figure.",
    ),
    (
        "Verdict",
        f"An interval ({CONFIDENCE:.0%}), not a point, is held against each limit. PASS: all "
        "of it is within. FAIL: all of it is beyond. UNSURE: the limit lies inside. Means get"
        " an interval that allows for neighbours in time being alike (batch means); "
        "percentiles get the exact binomial one, and a failed request counts as infinitely "
        "slow. Percentiles are nearest-rank: values that were really seen.",
    ),
    (
        "INVALID",
        "The run ended, but something other than the server shaped its figures: the client "
        "was too slow, the load was not delivered or not steady, prompts came from a cache, "
        "or the figures contradict each other.",
    ),
    (
        "What one run cannot tell",
        "It holds for this model, server, hardware, these prompt and answer lengths and think"
        " times. Other lengths give another capacity. Latencies between the client and a far-"
        "away user are not in it.",
    ),
)
