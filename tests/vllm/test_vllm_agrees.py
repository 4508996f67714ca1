"""`servecap run` and `find` against real vLLM, held against vLLM's own histograms."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import urlsplit

import pytest
from commands import Shell
from histograms import Histogram, earlier_than_server, read_histogram
from vllm_server import Vllm

from servecap import probe
from servecap.measure import measure
from servecap.record import Outcome, Record
from servecap.run import Run
from servecap.store import read_run

pytestmark = pytest.mark.vllm

TTFT = "vllm:time_to_first_token_seconds"
TPOT = "vllm:request_time_per_output_token_seconds"
E2E = "vllm:e2e_request_latency_seconds"
GENERATED = "vllm:request_generation_tokens"
WAIT_S = 60.0  # for metrics that come after the answers
TRIALS = 1  # requests that `run` sends before the load
TOKENS = 48
ROUND_TRIPS, STEPS = 2.0, 4.0  # that a first or last token may be later here than in vLLM

CLIENT: dict[str, Callable[[Record], float | None]] = {
    TTFT: lambda r: r.ttft_sent_s,
    TPOT: lambda r: r.tpot_s,
    E2E: lambda r: r.end_s - r.sent_s,
}


class Watch:
    """Looks at vLLM beside a load: at its metrics before and after, and at round trips.

    Inside, GET /health is timed over and over: it needs no engine, so that it waits for the front
    end, the network and the cores of this machine, as each request and event does.
    """

    def __init__(self, server: Vllm) -> None:
        self._server = server
        self._ended = read_histogram(server.metrics(), GENERATED).count
        self.trips_s: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self.start = self._page(self._ended + TRIALS)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _page(self, ended: int) -> str:
        """The metrics once so many answers are in them, which may be after the last byte came."""
        deadline = time.monotonic() + WAIT_S
        while read_histogram(page := self._server.metrics(), GENERATED).count < ended:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return page

    def gained(self, answers: int) -> dict[str, Histogram]:
        """What vLLM's histograms gained by the load, of which there were so many answers."""
        after = self._page(self._ended + TRIALS + answers)
        names = (*CLIENT, GENERATED)
        return {n: read_histogram(after, n) - read_histogram(self.start, n) for n in names}

    def _look(self) -> None:
        connection = http.client.HTTPConnection(urlsplit(self._server.url).netloc, timeout=60)
        while not self._over.wait(0.02):
            sent_s = time.perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            self.trips_s.append(time.perf_counter() - sent_s)
        connection.close()


def measured(
    shell: Shell, server: Vllm, monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[tuple[Record, ...], dict[str, Histogram], float]:
    """The records of a run, what vLLM's histograms gained by them, and the mean round trip.

    `run` first sends a trial request, which vLLM counts too. The load is held back until it is in
    the metrics and they were read, so that what they gain is the load's to the last request.
    """
    watch = Watch(server)

    def held_back(*args: Any, **options: Any) -> Run:
        with watch:
            return measure(*args, **options)

    monkeypatch.setattr(probe, "measure", held_back)
    said = shell(
        "run", "--url", server.url, *words, "--slo", "ttft<60s,tpot<5s", "--quiet", "--json",
        "--out", "run",
    )  # fmt: skip
    assert said.code in (0, 4), said.err  # 4: this machine was too busy to be believed
    records = tuple(read_run(Path("run")).records)
    return records, watch.gained(len(records)), fmean(watch.trips_s)


@pytest.mark.parametrize(("api", "users"), [("openai-chat", 1), ("openai-chat", 8),
                                            ("openai-completions", 24)])  # fmt: skip
def test_client_agrees_with_vllms_histograms(
    api: str,
    users: int,
    shell: Shell,
    vllm: Vllm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The client is never ahead of the server, and behind by no more than front end and cores are.

    vLLM stamps a request when its front end has read it, and a token when the engine's output is
    back there; the client stamps the request before it is written, and the event when the kernel
    has it. So for each edge of a bucket no more of the client's values lie below it than of the
    server's: that is all that a histogram tells of quantiles. Its sum is exact, so the means are
    compared closer: they differ by the way there and back, of which each waits for this machine as
    a trivial request does, and for steps of the model while the front end has no core. TPOT spans
    two stamps of one kind, so the ways cancel, but for the difference of two of them spread over
    the tokens.
    """
    records, told, trip_s = measured(
        shell, vllm, monkeypatch, "--api", api, "--users", str(users), "--think", "0.02..0.1",
        "--workload", f"fixed:40/{TOKENS}", "--queue", str(max(24, 6 * users)),
    )  # fmt: skip
    assert {r.outcome for r in records} == {Outcome.OK}
    assert {r.output_tokens for r in records} == {TOKENS}
    assert {r.token_source for r in records} == {"server"}
    assert told[GENERATED].count == len(records)
    assert told[GENERATED].sum_s == TOKENS * len(records)

    means = {name: fmean(v for r in records if (v := of(r)) is not None)
             for name, of in CLIENT.items()}  # fmt: skip
    with capsys.disabled():
        print(f"\nround trip of GET /health: mean {1e3 * trip_s:.2f} ms")
        for name, mean_s in means.items():
            low, high = told[name].bucket_of(0.5)
            print(
                f"{api}, {users} users, {name.removeprefix('vllm:')}: client mean "
                f"{1e3 * mean_s:.2f} ms, vLLM {1e3 * told[name].mean_s:.2f} ms "
                f"(its p50 in {1e3 * low:g} to {1e3 * high:g} ms)"
            )
    for name in (TTFT, E2E):
        values = [v for r in records if (v := CLIENT[name](r)) is not None]
        assert earlier_than_server(values, told[name]) <= 0, f"{name}: early"
    seen = json.loads(Path("run/summary.json").read_text())["telemetry"]["server"]
    for name, metric in ((TTFT, "ttft"), (TPOT, "tpot"), (E2E, "e2e")):  # looked at each second
        assert 0 < seen[metric]["count"] <= len(records)
        low, high = told[name].bucket_of(0.0)[0], told[name].bucket_of(1.0)[1]
        assert low <= seen[metric]["mean_s"] <= high
    step_s = told[TPOT].mean_s
    error_s = ROUND_TRIPS * trip_s + STEPS * step_s
    assert means[TTFT] - told[TTFT].mean_s < error_s
    assert means[E2E] - told[E2E].mean_s < error_s
    assert means[TPOT] == pytest.approx(step_s, abs=error_s / (TOKENS - 1))


def test_find_ends_with_a_capacity_that_the_batch_explains(shell: Shell, vllm: Vllm) -> None:
    """16 sequences are batched: TTFT breaks where more users are there at once."""
    load = ("--url", vllm.url, "--workload", "fixed:16/24", "--think", "0.1..0.3", "--quiet",
            "--json")  # fmt: skip
    alone = json.loads(
        shell("run", *load, "--users", "1", "--each", "12", "--slo", "ttft<60s").out
    )["summary"]
    limit_ms = 1e3 * (alone["client"]["ttft"]["mean"] + alone["client"]["e2e"]["mean"])
    said = shell(
        "find", *load, "--slo", f"ttft.mean<{limit_ms:.0f}ms,error_rate<20%", "--start", "8",
        "--max-users", "128", "--precision", "40%", "--requests", "60", "--max-duration", "20",
        "--budget", "180s", "--out", "find",
    )  # fmt: skip
    if said.code == 4:
        pytest.skip(f"this machine was too busy for any level to be believed: {said.err}")
    assert said.code == 0, (said.err, said.out)
    told = json.loads(said.out)
    levels = [(x["users"], x["verdict"], x["summary"]["invalid_reasons"]) for x in told["levels"]]
    capacity = told["capacity"]
    assert 1 <= capacity["users"] < 128, levels
    assert capacity["users_high"] is not None, (told["stop_reason"], levels)
    assert capacity["users_high"] >= capacity["users"]
    assert capacity["limited_by"].startswith("ttft.mean<")
