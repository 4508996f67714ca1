"""Where the search of a measured cell starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from servecap.cli.matrix import first_users
from servecap.matrix.document import parse
from servecap.matrix.job import CellJob
from servecap.matrix.spec import from_document


def job(fields: str = "url: http://h:1", *, gpu: str = "a100-40gb", tp: int = 4) -> CellJob:
    text = f"cells: [{{model: llama-13b, gpu: {gpu}, tp: {tp}, {fields}}}]"
    (found,) = from_document(parse(text, name="t.yaml"), Path()).jobs
    return found


def test_known_hardware_starts_where_the_engine_model_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    four = first_users(job(), quiet=False)
    assert f"the first level has {four}" in capsys.readouterr().err
    assert 8 < first_users(job(tp=1), quiet=True) < four
    assert capsys.readouterr().err == ""
    few = "url: http://h:1, settings: {max_users: 9}"
    assert first_users(job(few), quiet=True) == 9, "never above the most users"


def test_what_the_spec_says_comes_first() -> None:
    assert first_users(job("url: http://h:1, settings: {start: 3}"), quiet=True) == 3


@pytest.mark.parametrize(("fields", "gpu"), [("url: http://h:1", "abacus"), ("emulate: {}", "a30")])
def test_what_is_not_known_or_not_measured_starts_plainly(fields: str, gpu: str) -> None:
    assert first_users(job(fields, gpu=gpu), quiet=True) == 8
    few = first_users(job(f"{fields}, settings: {{max_users: 5}}", gpu=gpu), quiet=True)
    assert few == 5


def test_a_guess_is_no_part_of_the_key() -> None:
    plain, said, other = (
        job(f"url: http://h:1, settings: {{{start}}}") for start in ("seed: 1", "seed: 1, start: 8",
        "seed: 1, start: 9")
    )  # fmt: skip
    assert plain.key == said.key
    assert plain.key != other.key
