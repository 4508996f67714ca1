"""Other ways to a server: local sockets and proxies."""

from __future__ import annotations

from pathlib import Path

import pytest
from drive import WORKLOAD, ask, measured
from relay import relaying
from scripted import serving

from servecap.errors import EndpointError, UsageError
from servecap.probe import TargetSpec
from servecap.record import Outcome
from servecap.scenario import ClosedLoop, Scenario
from servecap.wire.endpoint import resolve

QUEUE = Scenario(load=ClosedLoop(users=2, think_s=(0.0, 0.0), queue=6), workload=WORKLOAD)


def test_local_socket(tmp_path: Path) -> None:
    with serving() as server, relaying("plain", server.url, tmp_path / "socket") as relay:
        records = ask(relay.url, 4, at_once=True)
        run = measured(relay.url, QUEUE, target=TargetSpec(url=relay.url))
    assert {r.outcome for r in records} == {Outcome.OK}
    assert all(r.planned_s <= r.sent_s <= r.chunk_s[0] <= r.end_s for r in records)
    assert len(run.records) == 6


def test_local_socket_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match="No such file"):
        measured("", QUEUE, target=TargetSpec(url=f"unix://{tmp_path}/none"))


def test_proxy_is_asked_for_the_whole_url() -> None:
    with serving() as server, relaying("proxy", server.url) as relay:
        run = measured(server.url, QUEUE, target=TargetSpec(url=server.url, proxy=relay.url))
        connections = server.connections
    assert [r.outcome for r in run.records] == [Outcome.OK] * 6
    asked = [line for line in relay.lines if line.startswith(b"POST")]
    expected = f"POST {server.url}/v1/chat/completions HTTP/1.1".encode()
    assert set(asked) == {expected}
    assert connections < len(relay.lines), "connections to the proxy are kept open, too"


@pytest.mark.parametrize("proxy", ["https://h:1", "h:1", "http://h:1/path", "socks5://h:1"])
def test_what_is_no_proxy_is_refused(proxy: str) -> None:
    with pytest.raises(UsageError):
        resolve("http://127.0.0.1:1", proxy=proxy)


def test_local_socket_needs_a_whole_path_and_no_proxy() -> None:
    for url in ("unix://", "unix://relative", "unix:///" + "x" * 120):
        with pytest.raises(UsageError):
            resolve(url)
    with pytest.raises(UsageError, match="proxy"):
        resolve("unix:///tmp/x", proxy="http://127.0.0.1:1")
