"""The process beside a run: it writes what it sees, waits for nobody, leaves with the client."""

from __future__ import annotations

import contextlib
import http.server
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from servecap.sample import TELEMETRY, Sample, end, read
from servecap.telemetry import Sampler
from servecap.telemetry.sampler import Watch
from servecap.telemetry.sources import Exporter, NotThere, look

PAGE = b"llamacpp:requests_processing 4\n"


@contextlib.contextmanager
def pages(answers: dict[str, tuple[int, bytes]]) -> Iterator[tuple[str, list[str | None]]]:
    """A server of pages by path, `/hangs` never answers; and the keys that it was shown."""
    keys: list[str | None] = []
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers.get("Authorization"))
            if self.path == "/hangs":
                over.wait(30)
                return
            status, body = answers[self.path]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", keys
        finally:
            over.set()
            server.shutdown()


def until(folder: Path, enough: int, source: str) -> list[Sample]:
    """So many samples of that source, as soon as they are there."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [s for s in read(folder) if s.source == source]
        if len(found) >= enough:
            return found
        threading.Event().wait(0.05)
    raise AssertionError(f"{source}: {read(folder)}")


def test_samples_come_in_the_run_they_are_of_and_none_between(tmp_path: Path) -> None:
    with pages({"/metrics": (200, PAGE), "/none": (404, b"")}) as (url, _):
        watch = Watch(
            exporters=(
                Exporter(source="server", url=f"{url}/metrics"),
                Exporter(source="node", url=f"{url}/none"),
                Exporter(source="gpu", url=f"{url}/hangs"),
            ),
            pid=os.getpid(),
        )
        with Sampler(watch) as sampler:
            for name in ("a", "b"):
                folder = tmp_path / name
                folder.mkdir()
                sampler.into(folder, 10.0)
                (first, *_) = until(folder, 1, "server")
                assert first.values == {"running": 4}
                assert 0 <= first.at_s < 20
                (gone, *more) = until(folder, 1, "node")
                assert (gone.error, gone.over, more) == ("HTTP 404", True, [])
                assert until(folder, 1, "client")[0].values["load_rss_bytes"] > 1e6
                sampler.rest()
            assert not [s for s in read(folder) if s.source == "gpu"], "it hangs, and holds up none"


def test_it_ends_with_the_client(tmp_path: Path) -> None:
    sampler = Sampler(Watch(pid=os.getpid()))
    sampler.into(tmp_path, 10.0)
    until(tmp_path, 1, "client")
    child = sampler._child
    assert child is not None
    process = psutil.Process(child.pid)
    assert process.nice() > 0
    assert child.stdin is not None
    child.stdin.close()  # as when the client is killed
    child.wait(10)


def test_what_is_written_after_the_end_is_not_of_the_run(tmp_path: Path) -> None:
    """The sampler may be about to write when the run ends: returned and stored must be the same."""
    seen = b'{"at_s":1.0,"source":"client","took_s":0.0}\n'
    (tmp_path / TELEMETRY).write_bytes(seen)
    end(tmp_path, 1.5)
    returned = read(tmp_path)
    with (tmp_path / TELEMETRY).open("ab") as late:
        late.write(seen)
    assert read(tmp_path) == returned
    assert [s.at_s for s in returned] == [1.0]


def test_a_cut_off_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / TELEMETRY).write_bytes(
        b'{"at_s":1.0,"source":"client","took_s":0.0}\n{"at_s":2.0,"sour'
    )
    assert [s.at_s for s in read(tmp_path)] == [1.0]
    assert read(tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [(404, b"", "HTTP 404"), (200, b"<html>hello</html>", "known|Prometheus"), (200, b"", "known")],
)
def test_pages_that_are_no_metrics(status: int, body: bytes, why: str) -> None:
    with (
        pages({"/metrics": (status, body)}) as (url, _),
        pytest.raises(NotThere, match=why),
    ):
        look(Exporter(source="server", url=f"{url}/metrics"))


def test_a_busy_server_is_asked_again() -> None:
    with pages({"/metrics": (503, b"")}) as (url, _), pytest.raises(OSError, match="HTTP 503"):
        look(Exporter(source="server", url=f"{url}/metrics"))


def test_the_key_goes_along() -> None:
    with pages({"/metrics": (200, PAGE)}) as (url, keys):
        exporter = Exporter(
            source="server", url=f"{url}/metrics", headers={"Authorization": "Bearer x"}
        )
        assert look(exporter)[0] == {"running": 4}
    assert keys == ["Bearer x"]
