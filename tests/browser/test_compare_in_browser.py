"""The page of a comparison in a real browser, from a phone's width to a large screen."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from test_page import AMISS, CHROMIUM, Tab, in_browser

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))
import synthetic

from servecap.compare import compare_runs
from servecap.report.html import Compared, write_html
from servecap.summarize import summarize

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two comparisons, with hostile names in one of them."""
    first, slow = synthetic.run(seed=1), synthetic.run(seed=2, tpot_s=0.09)
    other = synthetic.run(seed=3, text=synthetic.HOSTILE)
    pairs = [((first, summarize(first)), (run, summarize(run))) for run in (slow, other)]
    path = tmp_path_factory.mktemp("compared") / "compare.html"
    write_html(path, compared=[Compared(compare_runs(*pair), (), pair) for pair in pairs])
    return path


def test_it_is_drawn_can_be_read_and_asks_for_nothing(page: Path) -> None:
    async def script(tab: Tab) -> None:
        for width, dark in ((360, False), (800, False), (1280, True), (1920, False)):
            await tab.open(page, width, dark=dark)
            errors = [e for e in tab.seen("Log.entryAdded") if e["entry"]["level"] == "error"]
            assert errors == tab.seen("Runtime.exceptionThrown") == []
            asked = [e["request"]["url"] for e in tab.seen("Network.requestWillBeSent")]
            assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
            drawn = await tab.ask(
                "[...document.querySelectorAll('figure')].filter(f =>"
                " [...f.querySelectorAll('svg')].some(s => s.getBoundingClientRect().height > 40)"
                ").length"
            )
            assert drawn == 8
            assert await tab.ask(AMISS) == [], width

    in_browser(script)
