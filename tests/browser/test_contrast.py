"""WCAG AA in a real browser: contrast of every text as it is rendered, and use by keyboard."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from test_page import CHROMIUM, Tab, in_browser

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))
import synthetic
from test_html import CELLS, found

from servecap.compare import compare_runs
from servecap.plan import Demand, plan
from servecap.report.html import Compared, write_html
from servecap.summarize import summarize

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"),
]

# Of every text that is shown: its colour over what lies behind it, both as painted. In charts the
# words have a stroke of the card's colour around them, so that the card is what lies behind.
_CONTRASTS = """(() => {
  const parse = text => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement)
      layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const luminance = rgb => {
    const [r, g, b] = rgb.map(c => {
      c /= 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const seen = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement, style = getComputedStyle(element);
    const box = element.getBoundingClientRect();
    if (!node.textContent.trim() || !box.width || !box.height || element.closest('style')) continue;
    const svg = element.closest('svg');
    const below = ground(svg ? svg.parentElement : element);
    const colour = over(parse(svg ? style.fill : style.color), below);
    const [low, high] = [luminance(colour), luminance(below)].sort((a, b) => a - b);
    const px = parseFloat(style.fontSize), bold = parseInt(style.fontWeight) >= 700;
    const large = px >= 24 || (bold && px >= 18.66);
    seen.push([(high + 0.05) / (low + 0.05), large, node.textContent.trim().slice(0, 60)]);
  }
  return seen;
})()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A report with every section and verdict, and a comparison."""
    folder = tmp_path_factory.mktemp("contrast")
    run = synthetic.run(server=True, timings="both", slo="ttft.p99<100ms,e2e.mean<9s", end_s=30)
    other = synthetic.run(seed=2, tpot_s=0.09, error_share=0.4, end_s=30)
    pair = ((run, summarize(run)), (other, summarize(other)))
    write_html(folder / "report.html", runs=pair, search=found(), cells=CELLS,
               plan=plan(CELLS, Demand(10_000)))  # fmt: skip
    write_html(folder / "compare.html", compared=[Compared(compare_runs(*pair), (), pair)])
    return [folder / "report.html", folder / "compare.html"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_keeps_the_contrast_of_wcag_aa(pages: list[Path], dark: bool) -> None:
    async def script(tab: Tab) -> None:
        for page in pages:
            await tab.open(page, 1280, dark=dark)
            await tab.ask("document.querySelectorAll('details').forEach(d => { d.open = true; })")
            seen = await tab.ask(_CONTRASTS)
            assert len(seen) > 100, page.name
            weak = {(text, round(ratio, 2)) for ratio, large, text in seen
                    if ratio < (3.0 if large else 4.5)}  # fmt: skip
            assert not weak, page.name

    in_browser(script)


def test_the_page_is_used_by_keyboard(pages: list[Path]) -> None:
    """Tab reaches links, tables that scroll and the tables of charts, each with a visible mark."""

    async def press(tab: Tab, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            await tab.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                text="\r" if key == "Enter" and kind == "keyDown" else "",
            )  # fmt: skip

    async def script(tab: Tab) -> None:
        await tab.open(pages[0], 360)
        wanted = await tab.ask(
            "[...document.querySelectorAll('a[href], summary, [tabindex]')]"
            ".filter(e => e.checkVisibility()).length"
        )
        marked, opened, reached = 0, False, 0
        for _ in range(wanted + 1):  # a table that is opened can be scrolled, too
            await press(tab, "Tab", 9)
            name, style, width = await tab.ask(
                "(() => { const e = document.activeElement, s = getComputedStyle(e);"
                " return [e.tagName, s.outlineStyle, parseFloat(s.outlineWidth)]; })()"
            )
            if name == "BODY":
                break
            reached += 1
            marked += style != "none" and width >= 2
            if name == "SUMMARY" and not opened:
                await press(tab, "Enter", 13)
                opened = await tab.ask("document.activeElement.parentElement.open")
        assert reached == marked >= wanted > 20
        assert opened, "Enter did not open the table of a chart"

    in_browser(script)
