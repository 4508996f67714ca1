"""Reading and writing cells as CSV."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servecap.cell import Capacity, Cell
from servecap.errors import UsageError
from servecap.matrix.table import EXPORTED, parse_csv, read_csv, to_csv

CHAT = Path(__file__).resolve().parents[2] / "../shared/data/matrix_chat.csv"
HEADER = "model,gpu,tp,max_users,ttft_s,tpot_ms"


def one(text: str) -> Cell:
    (cell,) = parse_csv(text, name="t.csv").cells
    return cell


def test_a_row_becomes_a_cell_with_its_place_in_the_file() -> None:
    cell = one(f"{HEADER}\nllama,A30,4,45,2.5,102\n")
    assert cell == Cell(
        model="llama", gpu="A30", tp=4, scenario="default", origin="measured",
        provenance="t.csv, line 2", capacity=Capacity(users=45, users_high=None),
        ttft_s=2.5, tpot_s=0.102,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("header", "values", "ttft", "tpot"),
    [
        ("Model;GPU type;TP;concurrency_users;first_token_latency;avg_token_latency",
         "m;g;1;5;2.5;0.05", 2.5, 0.05),
        ("\ufeffmodel,gpu,tensor_parallel_size,users,first_token_latency_ms,avg_token_latency_ms",
         "m,g,1,5,2500,50", 2.5, 0.05),
        ("tp\tgpu\tmodel\tmax_users\tttft\ttpot_ms", "1\tg\tm\t5\tn/a\t-", None, None),
    ],
)  # fmt: skip
def test_other_names_units_separators_and_orders(
    tmp_path: Path, header: str, values: str, ttft: float | None, tpot: float | None
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n\n{values}\r\n", encoding="utf-8")
    (cell,) = read_csv(path).cells
    assert (cell.model, cell.gpu, cell.tp) == ("m", "g", 1)
    assert cell.capacity == Capacity(users=5, users_high=None)
    assert (cell.ttft_s, cell.tpot_s) == (ttft, tpot)


def test_an_unknown_column_is_left_out_with_a_warning() -> None:
    table = parse_csv(f"{HEADER},colour\nm,g,1,5,1,50,red\n", name="t.csv")
    assert table.warnings == ("t.csv: column 'colour' is not known and was left out",)


def test_a_row_without_users_is_a_cell_without_capacity() -> None:
    cell = one(f"{HEADER}\nm,g,1,,1,50\n")
    assert (cell.capacity, cell.invalid_reason) == (None, "max_users is not given")


def test_a_percentage_may_be_written_as_one() -> None:
    assert one("model,gpu,tp,max_users,error_rate\nm,g,1,5,7%\n").error_rate == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "t.csv: is empty"),
        ("\n\n", "t.csv: is empty"),
        (HEADER, "has a header but no cells"),
        ("model,gpu,max_users\nm,g,5\n", "column 'tp' is missing; found 'model', 'gpu'"),
        ("model,gpu,tp,users,qps,rps\nm,g,1,5,1,1\n", "'qps' and 'rps' mean the same"),
        (f"{HEADER}\nm,g,1,-5,1,50\n", "line 2, column 'max_users': '-5' is not a whole number"),
        (f"{HEADER}\nm,g,1,4.5,1,50\n", "line 2, column 'max_users': '4.5' is not a whole number"),
        (f"{HEADER}\nm,g,0,5,1,50\n", "line 2, column 'tp': '0' is not a whole number of"),
        (f"{HEADER}\nm,g,,5,1,50\n", "line 2, column 'tp': '' is no value"),
        (f"{HEADER}\n ,g,1,5,1,50\n", "line 2, column 'model': ' ' is no value"),
        (f"{HEADER}\nm,g,1,5,1,50\n\nm,h,1,5,fast,50\n", "line 4, column 'ttft_s': 'fast' is not"),
        (f"{HEADER}\nm,g,1,5,nan,50\n", "column 'ttft_s': 'nan' is not a finite number"),
        (f"{HEADER}\nm,g,1,inf,1,50\n", "column 'max_users': 'inf' is not a finite number"),
        (f"{HEADER}\nm,g,1,5,1,0\n", "column 'tpot_ms': '0' is not greater than 0"),
        (f"{HEADER}\nm,g,1,5,-1,50\n", "column 'ttft_s': '-1' is not greater than 0"),
        (f'{HEADER}\n"m\nn",g,1,5,1,50\n', "line 2, column 'model': 'm\\nn' holds a line break"),
        (f'{HEADER}\nm,g,1,5,"2,5",50\n', "column 'ttft_s': '2,5' is not a number"),
        (f"{HEADER}\nm,g,1,5,1\n", "line 2: has 5 fields, the header has 6"),
        (f'{HEADER}\nm,g,1,5,1,"50\n', "is not CSV"),
        (f"{HEADER}\nm,g,1,5,1,50\nM,G,1,6,1,50\n", "line 3: M on G, TP1, default is already"),
        ("model,gpu,tp,users,tpot\nm,g,1,5,58\n", "name the column tpot_ms or tpot_s"),
        ("model,gpu,tp,users,error_rate\nm,g,1,5,7\n", "'7' is not within 0 and 1"),
        ("model,gpu,tp,users,qps\nm,g,1,5,-1\n", "column 'qps': '-1' is below 0"),
        ("model,gpu,tp,users,origin\nm,g,1,5,guessed\n", "is not one of measured, predicted"),
        ("model,gpu,tp,users,tokens_counted\nm,g,1,5,all\n", "is not one of output, total"),
        ("model,gpu,tp,users,users_high\nm,g,1,5,4\n", "column 'users_high': '4' is below"),
        ("model,gpu,tp,users,slo\nm,g,1,5,fast\n", "column 'slo': 'fast' is no SLO"),
    ],
)  # fmt: skip
def test_a_malformed_table_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_csv(text, name="t.csv")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_csv(tmp_path / "no.csv")
    (tmp_path / "bad.csv").write_bytes(b"model\xff\xfe")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_csv(tmp_path / "bad.csv")


@given(st.text(max_size=200))
def test_no_text_at_all_makes_a_traceback(text: str) -> None:
    for body in (text, f"{HEADER}\n{text}", f"{HEADER}\nm,g,1,{text},1,2"):
        try:
            parse_csv(body, name="t.csv")
        except UsageError as error:
            assert str(error).startswith("t.csv")  # noqa: PT017


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).map(
    str.strip
)
names = words.filter(lambda s: s.casefold() not in {"", "-", "n/a", "na", "none", "null"})
figures = st.none() | st.floats(1e-6, 1e6)


@st.composite
def cells(draw: st.DrawFn) -> Cell:
    """Cells without throughput: that is checked when it is read, and may be dropped."""
    users = draw(st.none() | st.integers(0, 10**6))
    capacity = None
    if users is not None:
        capacity = Capacity(
            users=users,
            users_high=draw(st.none() | st.integers(users, 10**7)),
            confidence=draw(st.none() | st.floats(0, 1)),
            limited_by=draw(st.none() | names),
        )
    return Cell(
        model=draw(names),
        gpu=draw(names),
        tp=draw(st.integers(1, 64)),
        scenario=draw(names),
        origin=draw(st.sampled_from(["measured", "predicted"])),
        provenance=draw(names),
        capacity=capacity,
        gpu_memory_gb=draw(figures),
        interconnect=draw(st.none() | names),
        avg_context_tokens=draw(figures),
        avg_output_tokens=draw(figures),
        error_rate=draw(st.none() | st.floats(0, 1)),
        ttft_s=draw(figures),
        tpot_s=draw(figures),
        slo=draw(st.sampled_from([None, "ttft.p99<3s,tpot.mean<100ms,error_rate<1%"])),
        invalid_reason="broken" if capacity is None else None,
        notes=draw(st.lists(names.filter(lambda s: "|" not in s), max_size=3).map(tuple)),
    )


@given(cells())
def test_what_is_written_is_read_back(cell: Cell) -> None:
    assert one(to_csv([cell])) == cell


def test_throughput_that_holds_is_read_back() -> None:
    cell = one(
        f"{HEADER},requests_per_s,avg_context_tokens,total_tokens_per_s\n"
        "m,g,2,140,2.72,89,6.5,464.64,3045\n"
    )
    assert (cell.requests_per_s, cell.total_tokens_per_s, cell.notes) == (6.5, 3045, ())
    assert one(to_csv([cell])) == cell
    assert to_csv([cell]).splitlines()[0] == ",".join(EXPORTED)


@pytest.mark.skipif(not CHAT.is_file(), reason="needs ../shared/data/matrix_chat.csv")
def test_the_chat_table_is_read_and_its_impossible_figures_dropped() -> None:
    table = read_csv(CHAT)
    assert len(table.cells) == 22
    (warning,) = table.warnings
    assert "requests/s of 4 of 22 rows (the first on line 9) contradict their row" in warning
    dropped = {(c.model, c.gpu, c.tp) for c in table.cells if c.requests_per_s is None}
    assert dropped == {
        ("llama-13b", "V100", 4),  # tokens/s say 7.2 requests/s, the column 14.5
        ("llama-13b", "A100", 1),  # 36 requests/s from 90 users
        ("llama-13b", "A100", 8),  # tokens/s 1.5 and 1.7 times what requests/s say
        ("llama-65b", "A100", 8),
    }
    for cell in table.cells:
        if cell.requests_per_s is None:
            assert (cell.output_tokens_per_s, cell.total_tokens_per_s) == (None, None)
            assert "not used" in " ".join(cell.notes) or "neither is used" in " ".join(cell.notes)
