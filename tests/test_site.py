"""The documents as a site: it builds without a warning and asks nothing of other hosts."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOADS = re.compile(
    r'<(?:script|img|iframe)[^>]*\ssrc="?((?:https?:)?//[^" >]+)'
    r'|<link(?=[^>]*rel="?(?:stylesheet|preload|preconnect|icon))'
    r'[^>]*href="?((?:https?:)?//[^" >]+)'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_every_document_is_on_the_site(site: Path) -> None:
    for path in ROOT.glob("docs/*.md"):
        assert (site / f"{path.stem}.html").is_file(), path.name


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert LOADS.findall(page.read_text(encoding="utf-8")) == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8"))


def test_what_would_load_is_seen() -> None:
    assert LOADS.search('<script src="https://a/b.js">')
    assert LOADS.search('<link rel="stylesheet" href="//a/b.css">')
    assert not LOADS.search('<a href="https://a/"><script src="a.js">')


@pytest.mark.parametrize(
    "words", ["TTFT", "TPOT", "concurrent users", "error rate", "SLO", "goodput"]
)
def test_the_glossary_has_the_words_of_the_chinese_page(words: str) -> None:
    glossary = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    row = next(line for line in glossary.splitlines() if line.startswith(f"| {words}"))
    chinese = row.split("|")[3].strip().split("（")[0]
    assert chinese in (ROOT / "src/servecap/report/zh.txt").read_text(encoding="utf-8")
