"""`servecap run` and `find` as their users meet them: exit codes, one line, files, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Shell
from scripted import Call, Reply, proper, refused_port, serving

from servecap.store import read_run

QUICK = ("--workload", "fixed:8/2", "--think", "0", "--quiet")
NOWHERE = ("--url", "http://127.0.0.1:9")


def status(code: str, body: bytes) -> Reply:
    async def reply(call: Call) -> None:
        await call.whole(body, status=code)

    return reply


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--users", "0"), "--users 0"),
        (("--users", "-3"), "--users -3"),
        (("--users", "8", "--queue", "5"), "--queue 5 is smaller than --users 8"),
        (("--users", "8", "--rate", "3"), "--rate and --users contradict"),
        (("--rate", "3", "--queue", "5"), "--rate and --queue contradict"),
        (("--rate", "0"), "--rate 0"),
        (("--rate", "nan"), "--rate nan"),
        (("--arrivals", "poisson"), "--rate"),
        (("--queue", "50", "--each", "1"), "--queue and --each"),
        (("--queue", "50", "--duration", "3"), "--queue and --duration"),
        (("--requests", "5", "--duration", "3"), "--duration and --requests"),
        (("--duration", "0"), "--duration 0"),
        (("--duration", "-1"), "--duration -1"),
        (("--ramp", "nan"), "--ramp nan"),
        (("--ramp", "-1"), "--ramp -1"),
        (("--request-timeout", "0"), "--request-timeout 0"),
        (("--slo", "ttft.mean<3"), "unit"),
        (("--slo", "speed<3s"), "speed"),
        (("--slo", ""), "no latency limit"),
        (("--workload", "fixed:0/5"), "fixed:0/5"),
        (("--workload", "chat-em"), "chat-en"),
        (("--workload", "none.json"), "none.json"),
        (("--output", "many"), "many"),
        (("--url", "localhost:8000"), "http://"),
        (("--url", "http://127.0.0.1:99999"), "port"),
        (("--header", "oops"), "Name: value"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_2(
    shell: Shell, words: tuple[str, ...], said: str
) -> None:
    found = shell("run", *NOWHERE, *QUICK, *words)
    assert found.code == 2
    assert said in found.error
    assert found.out == ""
    assert not list(shell.folder.iterdir()), "nothing was begun"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--url", "http://no-such-host.invalid"), 3, "not known"),
        (("--url", f"http://127.0.0.1:{refused_port()}"), 3, "Connection refused"),
        (
            ("--url", "http://x:1", "--proxy", f"http://127.0.0.1:{refused_port()}"),
            3,
            "no server answers at http://x:1 through the proxy http://127.0.0.1:",
        ),
    ],
)
def test_server_that_is_not_there(
    shell: Shell, words: tuple[str, ...], code: int, said: str
) -> None:
    found = shell("run", *words, *QUICK)
    assert found.code == code
    assert said in found.error


@pytest.mark.parametrize(
    ("models", "trial", "words", "said"),
    [
        (status("401 No", b"{}"), proper, (), "SERVECAP_API_KEY"),
        (None, status("401 No", b'{"error":{"message":"bad key"}}'), (), "SERVECAP_API_KEY"),
        (None, proper, ("--model", "gpt-9"), "'gpt-9' is not served here; served: scripted"),
        (
            None,
            status("404 No", b'{"error":{"message":"The model `m` does not exist."}}'),
            (),
            "does not exist",
        ),
        (None, status("429 Many", b'{"error":"overloaded"}'), (), "429"),
        (None, status("500 Oops", b"<html>\nno"), (), "HTTP 500: <html> no"),
        (None, status("200 OK", b'{"choices": ['), (), "malformed JSON"),
        (status("200 OK", b'{"data":[]}'), proper, (), "/v1/models names no model (HTTP 200)"),
        (status("200 OK", b"<html>"), proper, (), "/v1/models names no model (HTTP 200)"),
        (status("302 Found", b""), proper, (), "/v1/models leads elsewhere (HTTP 302"),
        (status("404 No", b""), proper, (), "no known API at http://127.0.0.1:"),
        (status("200 OK", b'{"data":[]}'), proper, ("--api", "openai-chat"), "--model"),
        (None, proper, ("--api", "openai"), "--api 'openai'"),
    ],
)
def test_server_that_refuses_the_first_request(
    shell: Shell, models: Reply | None, trial: Reply, words: tuple[str, ...], said: str
) -> None:
    with serving() as server:
        server.models, server.trial = models, trial
        found = shell("run", "--url", server.url, *QUICK, *words)
        assert not server.asked
    assert found.code == (2 if "--api 'openai'" in said else 3)
    assert said in found.error
    assert not list(shell.folder.iterdir())


def test_datasets_that_cannot_be_used(shell: Shell) -> None:
    for name, text in (("empty.json", ""), ("wrong.json", '{"x": 1}'), ("list.json", "[]")):
        (shell.folder / name).write_text(text)
        found = shell("run", *NOWHERE, "--workload", name, "-q")
        assert found.code == 2
        assert name in found.error
    (shell.folder / "chat.txt").write_text("a question\n")
    found = shell("run", *NOWHERE, "--workload", "chat.txt", "--format", "sharegpt", "-q")
    assert found.code == 2
    assert found.error


def test_run_writes_its_files_and_text(shell: Shell) -> None:
    with serving() as server:
        found = shell(
            "run", "--url", server.url, *QUICK, "--users", "4", "--queue", "40", "--out", "here"
        )
    assert found.err == ""
    assert found.code in (0, 4), "4: this machine was too busy to be believed"
    assert "TTFT" in found.out
    assert "here" in found.out
    names = {path.name for path in Path("here").iterdir()}
    assert {"run.json", "records.jsonl", "summary.json", "report.html"} <= names
    assert len(read_run(Path("here")).records) == 40
    assert json.loads(Path("here/summary.json").read_text())["requests"] == 40


def test_json_is_all_there_is_on_stdout(shell: Shell) -> None:
    words = ("--workload", "fixed:8/2", "--think", "0", "--users", "4", "--queue", "40", "--json")
    with serving() as server:
        found = shell("run", "--url", server.url, *words)
    told = json.loads(found.out)
    assert told["summary"]["requests"] == 40
    assert told["run"]["scenario"]["load"]["users"] == 4
    assert "NaN" not in found.out
    assert "Infinity" not in found.out
    assert Path(told["path"]).is_dir()


def test_exit_codes_follow_the_verdict(shell: Shell) -> None:
    words = (*QUICK, "--users", "4", "--queue", "200", "--json")
    with serving() as server:
        kept = shell("run", "--url", server.url, *words, "--slo", "ttft<9s")
        broken = shell("run", "--url", server.url, *words, "--slo", "ttft<1us")
    for found, verdict, code in ((kept, "pass", 0), (broken, "fail", 1)):
        summary = json.loads(found.out)["summary"]
        assert summary["verdict"] == verdict
        assert found.code == (4 if summary["invalid_reasons"] else code)


def test_key_goes_out_but_is_kept_nowhere(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVECAP_API_KEY", "sk-very-secret")
    with serving() as server:
        found = shell(
            "run", "--url", server.url, *QUICK, "--users", "2", "--each", "1",
            "--header", "X-Other: hidden-too", "--out", "here",
        )  # fmt: skip
    kept = "".join(path.read_text() for path in Path("here").iterdir()) + found.out + found.err
    assert "very-secret" not in kept
    assert "hidden-too" not in kept


def test_output_folder_that_is_taken(shell: Shell) -> None:
    Path("taken").mkdir()
    Path("taken/x").write_text("mine")
    Path("file").write_text("mine")
    for out in ("taken", "file"):
        found = shell("run", *NOWHERE, *QUICK, "--out", out)
        assert found.code == 2
        assert out in found.error
    with serving() as server:
        found = shell("run", "--url", server.url, *QUICK, "--users", "1", "--out", "file/below")
    assert found.code == 2
    assert "file/below" in found.error
    assert Path("taken/x").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--start", "0"), "0"),
        (("--start", "9", "--max-users", "4"), "9"),
        (("--precision", "0%"), "--precision"),
        (("--precision", "much"), "--precision"),
        (("--requests", "5", "--slo", "x"), "'x'"),
    ],
)
def test_find_refuses_what_makes_no_sense(shell: Shell, words: tuple[str, ...], said: str) -> None:
    with serving() as server:
        found = shell("find", "--url", server.url, *QUICK, *words)
        assert not server.asked
    assert found.code == 2
    assert said in found.error


def test_output_below_reports_what_the_server_minds(shell: Shell) -> None:
    """A field that the server refuses is left away, and the user is told."""

    async def strict(call: Call) -> None:
        if b"min_tokens" in call.body:
            await call.whole(b'{"detail":"Extra field: min_tokens"}', status="422 No")
        else:
            await call.answer(16)

    with serving() as server:
        server.trial = strict
        found = shell(
            "run", "--url", server.url, "--workload", "fixed:8/2", "--think", "0",
            "--users", "2", "--each", "1",
        )  # fmt: skip
        assert all(b"min_tokens" not in body for body in server.asked)
    assert "the server refuses 'min_tokens', so it is not sent" in found.err
