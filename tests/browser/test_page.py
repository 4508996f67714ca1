"""The HTML report in a real browser: no errors, no requests, readable on a phone."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))
import synthetic
from test_html import found

from servecap.cell import Capacity, Cell
from servecap.plan import Demand, plan
from servecap.report.html import write_html
from servecap.summarize import summarize

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-port=0",
)  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"),
]

Message = dict[str, Any]
Script = Callable[["Tab"], Any]


class Tab:
    """One page over the DevTools protocol: commands, and every event that came meanwhile."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.events: list[Message] = []

    async def call(self, method: str, **params: Any) -> Message:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            message: Message = await self._socket.receive_json()
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: Message = message["result"]
                return result
            self.events.append(message)

    async def wait(self, method: str) -> None:
        """Returns when the event has come."""
        while not self.seen(method):
            self.events.append(await self._socket.receive_json())

    def seen(self, method: str) -> list[Message]:
        return [event["params"] for event in self.events if event.get("method") == method]

    async def ask(self, expression: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def open(self, path: Path, width: int, *, dark: bool = False, height: int = 900) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        await self.call("Page.navigate", url=path.as_uri())
        await self.wait("Page.loadEventFired")


@asynccontextmanager
async def browser(*more: str) -> AsyncIterator[Tab]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            CHROMIUM, *FLAGS, *more, f"--user-data-dir={profile}", "about:blank",
            stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port = await _port(process)
            drained = asyncio.create_task(_drain(process))
            async with aiohttp.ClientSession() as http:
                async with http.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [t for t in await answer.json() if t["type"] == "page"]
                url = pages[0]["webSocketDebuggerUrl"]
                async with http.ws_connect(url, max_msg_size=0) as socket:
                    yield Tab(socket)
            drained.cancel()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _port(process: asyncio.subprocess.Process) -> str:
    """The port that Chromium says it listens on."""
    assert process.stderr is not None
    async for line in process.stderr:
        if b"DevTools listening on ws://" in line:
            return line.decode().split("://", 1)[1].split("/")[0].rsplit(":", 1)[1]
    raise AssertionError("Chromium ended before it listened")


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    while await process.stderr.read(65536):
        pass


def in_browser(script: Script, *more: str) -> Any:
    """What the script returns; *more* flags of the browser."""

    async def play() -> Any:
        async with asyncio.timeout(90), browser(*more) as tab:
            return await script(tab)

    return asyncio.run(play())


@pytest.fixture(scope="module", params=["en", "zh"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section, long names and hostile text in it."""
    run = synthetic.run(server=True, timings="both", text=synthetic.HOSTILE)
    cells = [
        Cell(
            model="a-model-with-a-rather-long-name-70b", gpu=gpu, tp=tp, scenario="chat",
            origin="measured", provenance="x.csv:1", ttft_s=2.0, tpot_s=0.08, error_rate=0.0,
            capacity=Capacity(users=users, users_high=users), notes=("word" * 60,),
        )
        for gpu, tp, users in (("A100", 4, 450), ("A100", 8, 700), ("H100-NVL-94GB", 2, 300))
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_html(
        path, runs=[(run, summarize(run))], search=found(), cells=cells,
        plan=plan(cells, Demand(10_000)),
        title="A report " + "with-a-title-that-does-not-end" * 4, lang=request.param,
    )  # fmt: skip
    return path


def test_no_errors_no_requests_and_all_charts(page: Path) -> None:
    async def script(tab: Tab) -> None:
        await tab.open(page, 1280)
        errors = [e for e in tab.seen("Log.entryAdded") if e["entry"]["level"] == "error"]
        assert errors == []
        assert tab.seen("Runtime.exceptionThrown") == tab.seen("Runtime.consoleAPICalled") == []
        asked = [e["request"]["url"] for e in tab.seen("Network.requestWillBeSent")]
        assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
        figures = await tab.ask("document.querySelectorAll('figure').length")
        drawn = await tab.ask(
            "[...document.querySelectorAll('figure')].filter(f => [...f.querySelectorAll('svg')]"
            ".some(s => s.getBoundingClientRect().height > 40)).length"
        )
        assert figures == drawn == 14
        assert await tab.ask("document.querySelectorAll('script').length") == 0

    in_browser(script)


# What is amiss on a page as it is laid out. Tables and commands scroll by themselves; words of a
# chart are 11 px high where it is drawn at its own size.
AMISS = """(() => {
  const amiss = [], tell = (what, e) => amiss.push([what, e.outerHTML.slice(0, 90)]);
  const shown = e => e.checkVisibility() && e.getBoundingClientRect().width > 0;
  if (document.documentElement.scrollWidth > innerWidth) amiss.push(['the page scrolls']);
  for (const e of document.querySelectorAll('body *')) {
    if (!shown(e) || e.closest('svg, .scroll, pre')) continue;
    const box = e.getBoundingClientRect();
    if (box.right > innerWidth + 0.5 || box.left < -0.5) tell('outside', e);
    if (getComputedStyle(e).display !== 'inline' && e.scrollWidth > e.clientWidth + 1)
      tell('clipped', e);
  }
  for (const svg of [...document.querySelectorAll('svg')].filter(shown)) {
    const all = svg.getBoundingClientRect();
    const least = innerWidth >= 1280 ? 10 : 9;
    if (all.width / svg.viewBox.baseVal.width * 11 < least) tell('small words', svg);
    const words = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim())
      .map(t => [t.textContent, t.getBoundingClientRect()]);
    words.forEach(([a, p], i) => {
      if (p.left < all.left - 2 || p.right > all.right + 2 || p.bottom > all.bottom + 2)
        amiss.push(['beside the chart', svg.ariaLabel, a]);
      words.slice(i + 1).forEach(([b, q]) => {
        const x = Math.min(p.right, q.right) - Math.max(p.left, q.left);
        const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
        if (x > 1.5 && y > 4) amiss.push(['on each other', svg.ariaLabel, a, b]);
      });
    });
  }
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  for (const id of ids.filter((id, i) => ids.indexOf(id) !== i)) amiss.push(['twice', id]);
  return amiss;
})()"""


def test_all_can_be_read_at_every_width(page: Path) -> None:
    """A phone, both sides of the width at which charts change, a tablet and two desks."""

    async def script(tab: Tab) -> None:
        for width in (360, 784, 785, 800, 1280, 1920):
            await tab.open(page, width)
            assert await tab.ask(AMISS) == [], width

    in_browser(script)


def test_dark_and_light_are_two_pages_from_one_file(page: Path) -> None:
    async def script(tab: Tab) -> None:
        seen = []
        for dark in (False, True):
            await tab.open(page, 1280, dark=dark)
            ground = await tab.ask("getComputedStyle(document.body).backgroundColor")
            words = await tab.ask("getComputedStyle(document.querySelector('svg text')).fill")
            shot = await tab.call("Page.captureScreenshot", format="png")
            assert len(base64.b64decode(shot["data"])) > 20_000
            seen.append((ground, words))
        assert seen == [
            ("rgb(247, 247, 245)", "rgb(91, 99, 109)"), ("rgb(17, 20, 23)", "rgb(160, 169, 180)"),
        ]  # fmt: skip

    in_browser(script)


def test_it_prints(page: Path) -> None:
    async def script(tab: Tab) -> None:
        await tab.open(page, 1280, dark=True)
        data = base64.b64decode((await tab.call("Page.printToPDF"))["data"])
        assert data[:5] == b"%PDF-"
        await tab.call("Emulation.setEmulatedMedia", media="print")
        assert await tab.ask("getComputedStyle(document.body).color") == "rgb(29, 33, 38)"
        await tab.call(  # letter paper less its margins
            "Emulation.setDeviceMetricsOverride",
            width=720, height=950, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        cut = await tab.ask(
            "[...document.querySelectorAll('main *')].filter(e => !e.closest('svg, details')"
            " && e.getBoundingClientRect().right > 721).length"
        )
        assert cut == 0

    in_browser(script)


def test_every_chart_can_be_read_as_a_table(page: Path) -> None:
    async def script(tab: Tab) -> None:
        await tab.open(page, 360)
        told = await tab.ask(
            "JSON.stringify([...document.querySelectorAll('figure details')].map(d => {"
            " d.open = true; return d.querySelector('tbody').rows.length }))"
        )
        assert all(rows > 0 for rows in json.loads(told))
        assert await tab.ask("document.documentElement.scrollWidth") <= 360

    in_browser(script)
