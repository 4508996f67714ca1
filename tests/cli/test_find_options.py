"""What `find` refuses before it asks the server anything."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from servecap.cli import cli
from servecap.errors import UsageError


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--precision 200%", "--precision 200% must lie within 0% and 100%"),
        ("--precision nan", "--precision nan must lie within"),
        ("--precision x", "--precision 'x' is no share"),
        ("--confidence 0.5", "--confidence 0.5 must lie within 50% and 100%"),
        ("--start nan", "--start nan: users are whole"),
        ("--start 2.5", "--start 2.5: users are whole; a rate needs --rate"),
        ("--start -1", "--start -1 must lie within 1 and --max-users 10000"),
        ("--start 30 --max-users 20", "--start 30 must lie within 1 and --max-users 20"),
        ("--rate --max-rate nan", "--max-rate nan must be more than 0"),
        ("--rate --start nan", "--start nan must be more than 0"),
        ("--gpu gtx-1", "GPU 'gtx-1' is not known"),
    ],
)
def test_numbers_and_names_are_checked_first(words: str, said: str) -> None:
    nowhere = "http://127.0.0.1:1"
    done = CliRunner().invoke(cli, ["find", "--url", nowhere, *words.split()])
    assert isinstance(done.exception, UsageError), done.output
    assert said in str(done.exception)
