"""Tables of cells as others write them: what is read, what is left out, and what that says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from servecap import slo as slos
from servecap.cell import Capacity, Cell
from servecap.cli import cli
from servecap.engine import fast
from servecap.errors import UsageError
from servecap.predict import profile, rows
from servecap.predict.answer import answer
from servecap.predict.figures import Case
from servecap.predict.harness import Harness, Lengths
from servecap.predict.place import place

pytestmark = pytest.mark.skipif(
    not fast.COMPILED, reason="numba is not installed: without it these take minutes"
)
ROW = "llama-13b,a40,4,fixed:64/16,80,16"
HEAD = "model,gpu,tp,scenario,avg_context_tokens,avg_output_tokens"
TGI = profile.prior("tgi")


def predict(path: Path, text: str, *more: str, encoding: str = "utf-8") -> Result:
    path.write_bytes(text.encode(encoding))
    return CliRunner().invoke(cli, ["predict", "--cells", str(path), "--queue", "8", *more])


def cells(done: Result) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)["cells"]
    return found


def test_the_same_table_in_other_writings_is_predicted_alike(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    plain = cells(predict(path, f"{HEAD}\n{ROW}\n", "--json"))
    for text, encoding in (
        (f"{HEAD},max_users\r\n\r\n{ROW},\r\n", "utf-8-sig"),
        (f"{HEAD}\n{ROW}\n".replace(",", ";"), "utf-8"),
        (f"{HEAD}\n{ROW}\n".replace(",", "\t"), "utf-16"),
        (f'{HEAD},note\n{ROW},"two\nlines, and more"\n', "utf-8"),
        ("GPU Type,TP,Model,Scenario,Context Tokens,Output Tokens, Max Users \n"
         "a40,4,llama-13b,fixed:64/16,80,16,\n", "utf-8"),
    ):  # fmt: skip
        assert cells(predict(path, text, "--json", encoding=encoding)) == plain, text


def test_rows_may_be_several_loads_of_one_place(tmp_path: Path) -> None:
    text = f"{HEAD},max_users\n{ROW},1\n{ROW},8\n"
    one, eight = cells(predict(tmp_path / "t.csv", text, "--json"))
    assert (one["users"], eight["users"]) == (1, 8)
    assert one["max_users"] == eight["max_users"]
    assert one["requests_per_s"]["value"] < eight["requests_per_s"]["value"]


def test_a_row_that_cannot_be_modelled_leaves_the_others(tmp_path: Path) -> None:
    text = f"{HEAD}\n{ROW}\n{ROW.replace('a40', 'RTX9090')}\n"
    done = predict(tmp_path / "t.csv", text, "--json")
    good, bad = cells(done)
    assert good["max_users"] is not None
    assert bad["max_users"] is None
    assert "'RTX9090' is not known" in bad["impossible"]
    assert "left out: t.csv, line 3: GPU 'RTX9090'" in done.stderr
    text = f"{HEAD},colour\n{ROW.replace('llama-13b', 'x-7b')},red\n"
    done = predict(tmp_path / "t.csv", text)
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).startswith("t.csv, line 2: model 'x-7b' is neither")
    assert "column 'colour' is not known" in done.stderr


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("llama-13b,a40,4,chat,1e12,10,", "more than 1048576 tokens are not simulated"),
        ("llama-13b,a40,4,chat,400,100,1000000000000", "at most 100000 are simulated"),
    ],
)
def test_what_is_too_much_to_simulate_is_told(tmp_path: Path, row: str, message: str) -> None:
    done = predict(tmp_path / "t.csv", f"{HEAD},max_users\n{row}\n")
    assert isinstance(done.exception, UsageError), done.output
    assert message in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tp", "0"], "--tp '0' is not a list of whole numbers from 1"),
        (["--tp", "2", "--prefix-tokens", "9000"], "prompts of 237 tokens cannot all begin"),
    ],
)
def test_options_that_make_no_sense_are_told(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["predict", "--model", "llama-13b", "--gpu", "a30", *arguments])
    assert isinstance(done.exception, UsageError), done.output
    assert message in str(done.exception)


def test_a_capacity_beyond_a_classic_runs_requests_is_that_of_the_steady_state() -> None:
    lengths = Lengths(prompt_tokens=64, output_tokens=4, prompt_spread=0, output_spread=0)
    slo = slos.parse("ttft.mean<30s")
    where = place("llama-13b", "a100-80gb", 1)

    def told(queue: int | None) -> Any:
        case = Case(place=where, lengths=lengths, harness=Harness(engine="vllm", queue=queue))
        return answer(case, profile.prior("vllm"), slo, seeds=1, users_max=3000)

    classic, steady = told(20), told(None)
    assert classic.max_users.value == steady.max_users.value > 20
    assert "20 requests in all never keep more than 20 users at work" in classic.notes[0]


def test_the_text_says_under_which_limits_and_its_columns_stand_below_their_heads(
    tmp_path: Path,
) -> None:
    long = ROW.replace("a40", "RTX-PRO-6000")
    done = predict(tmp_path / "t.csv", f"{HEAD}\n{ROW}\n{long}\n", "--slo", "tpot.mean<90ms")
    first, head, *body = done.output.splitlines()
    assert first.endswith("intervals; tgi, tpot.mean<90ms,error_rate<5%")
    figures = [line for line in body if line.startswith("llama-13b")]
    assert len(figures) == 2
    for line in figures:
        for word in ("GPU", "max users", "TTFT s", "TPOT ms", "requests/s"):
            at = head.index(word)
            assert line[at - 1] == " "
            assert line[at] != " "


def measured(gpu: str = "a40", tp: int = 4, users: int = 100, **more: Any) -> Cell:
    return Cell(
        model="llama-13b",
        gpu=gpu,
        tp=tp,
        scenario="chat",
        origin="measured",
        provenance=f"t.csv, line {users}",
        capacity=Capacity(users=users, users_high=None),
        **{"avg_context_tokens": 400.0, "ttft_s": 1.0} | more,
    )


def test_rows_to_calibrate_with_that_cannot_be_are_left_out_with_the_reason() -> None:
    found, left_out = rows.measured(
        [measured(), measured("gtx-1", users=7), measured("a30", 1, users=8),
         measured(avg_context_tokens=3000.0, users=9)],
        rows.Rules(slo=slos.DEFAULT), tuning=TGI.tuning,
    )  # fmt: skip
    assert [row.users for row in found] == [100]
    gpu, fits, long = left_out
    assert gpu.startswith("t.csv, line 7: GPU 'gtx-1' is not known")
    assert fits.startswith("t.csv, line 8: llama-13b")
    assert "does not fit on 1 x A30" in fits
    assert long == "t.csv, line 9: 3000 tokens a request, but A40 carries at most 2048 of llama-13b"


def test_a_rate_of_nothing_is_no_rate_to_fit_to() -> None:
    (row,), _ = rows.measured(
        [measured(requests_per_s=0.0)], rows.Rules(slo=slos.DEFAULT), tuning=TGI.tuning
    )
    assert row.requests_per_s is None


def test_a_matrix_without_cells_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"cells": []}')
    done = CliRunner().invoke(cli, ["predict", "--cells", str(tmp_path / "m.json")])
    assert isinstance(done.exception, UsageError)
    assert "m.json: holds no cells" in str(done.exception)


def test_loads_of_one_place_and_loads_beyond_the_queue_are_no_capacities() -> None:
    rules = rows.Rules(slo=slos.DEFAULT)
    cells = [measured(users=10), measured(users=20), measured(tp=2, users=30),
             measured(tp=2, users=300, avg_output_tokens=150.0)]  # fmt: skip
    found, _ = rows.measured(cells, rules, tuning=TGI.tuning)
    assert [row.slo is None for row in found] == [True, True, False, True]


@pytest.fixture(scope="module")
def capacities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of a table that tells capacities, and neither TTFT nor TPOT."""
    folder = tmp_path_factory.mktemp("capacities")
    (folder / "cells.csv").write_text(f"{HEAD},max_users\n{ROW},150\n")
    kept = folder / "p.json"
    words = ["calibrate", str(folder / "cells.csv"), "--queue", "8", "--out", str(kept)]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    return kept


def test_a_place_whose_latencies_no_row_told_has_intervals(
    capacities: Path, tmp_path: Path
) -> None:
    done = predict(tmp_path / "t.csv", f"{HEAD}\n{ROW}\n", "--profile", str(capacities), "--json")
    (cell,) = cells(done)
    assert cell["kind"] == "measured"
    for figure in ("max_users", "ttft_s", "tpot_s", "requests_per_s"):
        assert cell[figure]["low"] < cell[figure]["value"] < cell[figure]["high"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["parameters"]["gemm"].update(value=-1), "parameter gemm is -1, outside of"),
        (lambda p: p["parameters"]["kv_room"].update(value=1e300), "kv_room is 1e\\+300"),
        (lambda p: p.update(draws=[[0.1]]), "one of its draws does not tell"),
        (lambda p: p["members"][0].update(logs=[]), "one of its members does not tell"),
        (lambda p: p["members"][0].update(weight=0), "weights of its members"),
    ],
)
def test_a_profile_that_no_fit_has_written_is_refused(
    capacities: Path, tmp_path: Path, change: Any, message: str
) -> None:
    told = json.loads(capacities.read_text())
    told["members"] = [{"weight": 1.0, "cycles": 3, "start_s": 0.0,
                        "logs": [0.0] * len(told["parameters"])}]  # fmt: skip
    kept = tmp_path / "p.json"
    kept.write_text(json.dumps(told))
    profile.load(kept)
    change(told)
    kept.write_text(json.dumps(told))
    with pytest.raises(UsageError, match=message):
        profile.load(kept)


def test_a_folder_that_is_not_there_is_told_before_the_fit(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text(f"{HEAD},max_users\n{ROW},150\n")
    words = ["calibrate", str(tmp_path / "cells.csv"), "--out", str(tmp_path / "no" / "p.json")]
    done = CliRunner().invoke(cli, words)
    assert isinstance(done.exception, UsageError)
    assert "there is no folder" in str(done.exception)
    assert "fitting" not in done.output
