"""A page inside a notebook is light or dark as the notebook is, whatever the system is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from test_page import CHROMIUM, Tab, in_browser

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))
import synthetic

from servecap.api.found import Reported
from servecap.report.html import write_html
from servecap.summarize import summarize

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"),
]

# How notebooks tell their theme; a cell above holds a frame that is not ours.
NOTEBOOKS = {
    '<body style="color-scheme: dark" data-jp-theme-light="false">': "dark",  # JupyterLab
    '<body style="color-scheme: light" data-jp-theme-light="true">': "light",
    '<body data-jp-theme-light="false">': "dark",  # JupyterLab until 2024
    '<body data-jp-theme-light="true">': "light",
    '<body class="vscode-dark">': "dark",
    '<body class="vscode-light">': "light",
    '<body class="vscode-high-contrast">': "dark",
    '<body class="vscode-high-contrast-light vscode-high-contrast">': "light",
    "<body>": "system",
}
PAGES = {"rgb(247, 247, 245)": "light", "rgb(17, 20, 23)": "dark"}
GROUND = "getComputedStyle(document.querySelector('div > iframe').contentDocument.body)"


@pytest.mark.parametrize("system", ["light", "dark"])
def test_a_page_in_a_notebook_has_its_theme(system: str, tmp_path: Path) -> None:
    one = synthetic.run(end_s=20)
    write_html(tmp_path / "page.html", runs=[(one, summarize(one))])
    shown = Reported((tmp_path / "page.html").read_text(), None, ())._repr_html_()

    async def script(tab: Tab) -> None:
        for domain in ("Page", "Runtime"):
            await tab.call(f"{domain}.enable")
        for number, (body, theme) in enumerate(NOTEBOOKS.items()):
            notebook = tmp_path / f"{number}.html"
            notebook.write_text(f"<!doctype html>{body}<p><iframe></iframe></p>{shown}")
            tab.events.clear()
            await tab.call("Page.navigate", url=notebook.as_uri())
            await tab.wait("Page.loadEventFired")
            wanted = system if theme == "system" else theme
            assert PAGES[await tab.ask(f"{GROUND}.backgroundColor")] == wanted, body
            other = "getComputedStyle(document.querySelector('p > iframe')).colorScheme"
            alone = "getComputedStyle(document.body).colorScheme"
            assert await tab.ask(other) == await tab.ask(alone), body

    in_browser(script, *(["--force-dark-mode"] if system == "dark" else []))
