"""The Python API: it does what the commands do, and the examples of docs/python.md are true."""

from __future__ import annotations

import asyncio
import html
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import written

from servecap import api
from servecap.emulate.config import EmulatorConfig
from servecap.emulate.launch import running
from servecap.errors import EndpointError, UsageError
from servecap.metrics import Verdict
from servecap.slo import parse

ROOT = Path(__file__).resolve().parents[2]
QUICK: dict[str, Any] = {"think": "0.01", "workload": "fixed:20/10"}

CELLS = """\
model,gpu,tp,scenario,max_users,ttft_s,tpot_s,requests_per_s,output_tokens_per_s
llama-13b,a100-40gb,4,chat,100,1.0,0.05,20,2000
llama-13b,a100-40gb,8,chat,180,1.0,0.05,36,3600
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    config = EmulatorConfig(model="llama-13b", gpu="a100-40gb", tp=4, speed=40)
    with running(config) as found:
        yield found


def quick(url: str, out: Path, **more: Any) -> api.RunFound:
    return api.run(url, users=4, each=3, out=out, **QUICK, **more)


def test_a_run_returns_what_it_keeps(
    url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = quick(url, tmp_path / "run", slo=parse("ttft.p95<2s"), seed=7)
    assert found.path == tmp_path / "run"
    assert found.summary.requests_ok == 12
    assert found.run.scenario.seed == 7
    assert str(found.run.scenario.slo).startswith("ttft.p95<2s")
    assert api.load(found.path).summary.client["e2e"] == found.summary.client["e2e"]
    assert "12 requests" in " ".join(str(found).split())
    assert capfd.readouterr() == ("", "")


def test_a_run_keeps_the_command_that_repeats_it(url: str, tmp_path: Path) -> None:
    found = quick(url, tmp_path / "run", header=["X-Key: sesame"])
    assert found.run.header.command == (
        f"servecap run --url {url} --header 'X-Key: ...' --users 4 --each 3 --workload fixed:20/10 "
        "--think 0.01"
    )
    page = html.unescape((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert f">{found.run.header.command}</pre>" in page
    assert "sesame" not in page


def test_progress_is_told_where_it_is_asked_for(
    url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quick(url, tmp_path / "run", progress="plain")
    out, err = capfd.readouterr()
    assert out == ""
    assert "testing llama-13b" in err


def test_a_notebook_is_no_obstacle(url: str, tmp_path: Path) -> None:
    async def cell() -> api.RunFound:
        return quick(url, tmp_path / "run")

    found = asyncio.run(cell())
    assert found.summary.requests_ok == 12
    assert "<strong>VALID" in found._repr_html_()


def test_a_search_returns_its_levels(url: str, tmp_path: Path) -> None:
    found = api.find(
        url, out=tmp_path / "find", start=1, max_users=2, requests=40, slo="ttft.p95<9s", **QUICK
    )
    assert found.users in (1, 2)
    assert found.search.levels
    assert str(found)
    assert (found.path / "search.json").is_file()


def test_a_plan_is_made_from_a_table_and_from_a_matrix(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text(CELLS)
    (tmp_path / "spec.yaml").write_text("cells:\n  - {import: cells.csv}\n")
    plain = api.plan(tmp_path / "cells.csv", users=1000, gpus_per_node=["8", "a100-40gb=4"])
    matrix = api.matrix(tmp_path / "spec.yaml")
    assert len(matrix.cells) == 2
    assert "llama-13b" in str(matrix)
    again = api.plan(tmp_path / "cells.csv", users=1000)
    assert plain.plan != again.plan
    assert "llama-13b" in str(plain)


def test_places_to_predict_may_be_lists() -> None:
    listed = api.predict(model="llama-13b", gpu=["a30", "a40"], tp=[2, 4]).answers
    assert [(a.gpu, a.tp) for a in listed] == [("A30", 2), ("A30", 4), ("A40", 2), ("A40", 4)]


def test_a_prediction_has_an_interval() -> None:
    (answer,) = api.predict(model="llama-13b", gpu="a30", tp=2).answers
    assert answer.max_users is not None
    assert answer.max_users.low <= answer.max_users.value <= answer.max_users.high


def test_runs_are_compared_by_object_and_by_folder(url: str, tmp_path: Path) -> None:
    one = quick(url, tmp_path / "one")
    found = api.compare(one, tmp_path / "one", metrics=["ttft.mean"], fail_on=["qps<-5%"])
    assert [change.metric for change in found.comparison.changes] == ["ttft.mean", "qps"]
    assert {change.change for change in found.comparison.changes} == {0.0}
    assert found.gates[0].verdict is Verdict.UNSURE
    assert "No difference shown" in str(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"usrs": 4}, "no option 'usrs': did you mean 'users'"),
        ({"as_json": True}, "no option 'as_json'"),
        ({"users": "many"}, "'many' is not a valid integer"),
        ({"users": [1, 2]}, "one value, not several"),
        ({"slo": "ttft<1"}, "give the time a unit"),
        ({"users": 4, "rate": 2.0}, "rate"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        api.run("http://127.0.0.1:9", **options)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_an_error_of_its_own() -> None:
    with pytest.raises(EndpointError, match="no server answers"):
        api.run("http://127.0.0.1:9")


def test_importing_the_package_is_light_and_leads_to_the_api() -> None:
    code = (
        "import sys, servecap; heavy = [m for m in ('numpy', 'click') if m in sys.modules]; "
        "print(heavy, servecap.api.run.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "run"]


def test_examples_of_the_document_run(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    Path("cells.csv").write_text(CELLS)
    for name in ("old-run", "new-run"):
        quick(url, Path(name))
    written.files(Path())["vllm.json"].rename("vllm-result.json")
    for block in blocks:
        # A load test of the default length takes minutes; everything else is as it is written.
        code = block.replace('"http://localhost:8000", users=16', f'"{url}", users=2, each=2')
        exec(compile(code, "docs/python.md", "exec"), {})
