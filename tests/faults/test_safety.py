"""What must not happen: keys that leak, a service that is overrun, code that comes from a file."""

from __future__ import annotations

import ast
import signal
import socket
import threading
from pathlib import Path

import msgspec
import pytest
from commands import Shell, started
from drive import ask
from scripted import Call, Reply, serving

import servecap
from faults import LIMITS
from servecap.errors import UsageError
from servecap.preflight import Prepared
from servecap.probe import RATE_MOST_RPS, USERS_MOST, Bench
from servecap.record import Outcome, Record
from servecap.run import Status
from servecap.scenario import ClosedLoop, Load, OpenLoop, Scenario, Target
from servecap.schedule import Ramp
from servecap.store import read_run
from servecap.wire.endpoint import HIDDEN, Endpoint, resolve
from servecap.wire.openai import OpenAi
from servecap.workload import source

KEY = "sk-very-secret-0123"
LOAD = ("--workload", "fixed:8/2", "--think", "0", "--users", "2", "--each", "2")
SOURCE = sorted(Path(servecap.__file__).parent.rglob("*.py"))


# keys


def repeats_the_key(code: str) -> Reply:
    """As some services do: "Incorrect API key provided: sk-..."."""

    async def reply(call: Call) -> None:
        said = call.head_bytes.partition(b"uthorization: ")[2].partition(b"\r\n")[0].decode()
        await call.whole(f'{{"error":{{"message":"wrong key: {said}"}}}}'.encode(), status=code)

    return reply


def told(shell: Shell) -> str:
    """Everything that was written below the folder."""
    return "".join(
        path.read_bytes().decode("utf-8", "replace")
        for path in shell.folder.rglob("*")
        if path.is_file() and path.name != "key"
    )


@pytest.mark.parametrize("way", ["environment", "file", "header"])
def test_key_that_the_server_repeats_is_written_nowhere(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    words: tuple[str, ...] = ()
    if way == "environment":
        monkeypatch.setenv("SERVECAP_API_KEY", KEY)
    elif way == "file":
        (shell.folder / "key").write_text(KEY + "\n")
        words = ("--api-key-file", "key")
    else:
        words = ("--header", f"Authorization: Basic {KEY}")
    with serving(repeats_the_key("500 Oops")) as server:
        found = shell("run", "--url", server.url, *LOAD, *words, "--out", "here", "--json")
        server.trial = repeats_the_key("401 No")
        refused = shell("run", "--url", server.url, *LOAD, *words, "--out", "there")
    records = read_run(Path("here")).records
    assert {r.outcome for r in records} == {Outcome.HTTP_ERROR}
    assert all(HIDDEN in (r.error or "") for r in records)
    assert refused.code == 3
    for text in (told(shell), found.out, found.err, refused.out, refused.err):
        assert KEY not in text
    if way == "header":
        assert "--api-key-file" in found.err, "and the user is told of the better way"


def test_key_file_comes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVECAP_API_KEY", "other")
    file = tmp_path / "key"
    file.write_text(f"  {KEY}\n")
    found = resolve("http://127.0.0.1", key_file=str(file))
    assert found.headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe", "键".encode(), b"a\nInjected: 1"])
def test_key_file_that_holds_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="--api-key-file") as caught:
        resolve("http://127.0.0.1", key_file=str(file))
    assert "Injected" not in str(caught.value)
    with pytest.raises(UsageError, match="--api-key-file"):
        resolve("http://127.0.0.1", key_file=str(tmp_path / "none"))


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{KEY}@127.0.0.1", f"me:{KEY}@127.0.0.1:80", f"http://127.0.0.1/v1?key={KEY}",
        f"http://127.0.0.1/#{KEY}", f"ftp://me:{KEY}@host", f"http://me:{KEY}@[::1",
    ],
)  # fmt: skip
def test_key_in_a_url_is_refused_and_not_repeated(shell: Shell, url: str) -> None:
    for words in (("--url", url), ("--url", "http://127.0.0.1:9", "--proxy", url)):
        found = shell("run", *words, *LOAD)
        assert found.code == 2
        assert KEY not in found.err


def test_setup_of_a_worker_is_not_printed_with_its_key() -> None:
    endpoint = resolve("http://127.0.0.1", headers=(f"X-Token: {KEY}",))
    assert endpoint.secrets == (KEY,)
    assert KEY not in endpoint.scrubbed(f"no such token {KEY}!")
    assert endpoint.scrubbed("fine") == "fine"


# load


def bench(*, local: bool, allowed: bool = False) -> Bench:
    endpoint = msgspec.structs.replace(resolve("http://127.0.0.1:9"), local=local)
    trial = Record(
        request_id=0, user=0, planned_s=0.0, sent_s=0.0, end_s=1.0, outcome=Outcome.OK
    )  # fmt: skip
    target = Target(url="http://far", api="openai-chat")
    prepared = Prepared(endpoint=endpoint, api=OpenAi(chat=True), target=target, trial=trial)
    workload = source.load(Scenario(load=ClosedLoop(users=1)).workload)
    return Bench(prepared, workload, None, high_load=allowed)


@pytest.mark.parametrize(
    "load",
    [
        ClosedLoop(users=USERS_MOST + 1),
        OpenLoop(rate_rps=RATE_MOST_RPS + 1),
        OpenLoop(rate_rps=1.0, schedule=Ramp(RATE_MOST_RPS + 1, 60.0)),
    ],
)
def test_load_that_may_be_a_slip_must_be_asked_for_expressly(tmp_path: Path, load: Load) -> None:
    with pytest.raises(UsageError, match="--allow-high-load"):
        bench(local=False).run(Scenario(load=load), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for free in (bench(local=True), bench(local=False, allowed=True)):
        free._check(load)
        assert free.users_most is None
    bench(local=False)._check(ClosedLoop(users=USERS_MOST))
    assert bench(local=False).users_most == USERS_MOST


@pytest.mark.parametrize(
    ("url", "proxy", "local"),
    [
        ("http://127.0.0.1:80", None, True),
        ("http://localhost:80", None, True),
        ("http://[::1]:80", None, True),
        ("unix:///tmp/socket", None, True),
        ("http://10.1.2.3", None, False),
        ("http://192.0.2.1", "http://127.0.0.1:3128", False),
        ("http://localhost", "http://127.0.0.1:3128", True),
    ],
)
def test_server_on_this_machine_is_known_as_such(url: str, proxy: str | None, local: bool) -> None:
    found: Endpoint = resolve(url, proxy=proxy)
    assert found.local is local


# a polite end


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_lets_what_is_in_flight_end_and_a_second_one_drops_it(
    tmp_path: Path, again: bool
) -> None:
    """Four answers take a second or, for whoever presses again, for ever."""
    asked = threading.Semaphore(0)
    release = threading.Event()

    async def slow(call: Call) -> None:
        asked.release()
        await call.answer(first_s=60.0 if again else 1.0)

    out = tmp_path / "run"
    with serving(slow) as server:
        process = started(
            "run", "--url", server.url, "--workload", "fixed:8/2", "--users", "4", "--ramp", "0",
            "--duration", "60", "--out", out, "--quiet",
        )  # fmt: skip
        for _ in range(4):
            assert asked.acquire(timeout=60)
        process.send_signal(signal.SIGINT)
        if again:
            release.wait(0.5)  # nothing sets it: the two signals must not become one
            process.send_signal(signal.SIGINT)
        _, erred = process.communicate(timeout=60)
        count = len(server.asked)
    assert process.returncode == 130
    assert "Traceback" not in erred
    run = read_run(out)
    wanted = Outcome.CANCELLED if again else Outcome.OK
    assert [r.outcome for r in run.records] == [wanted] * 4
    assert count == 4, "nothing was sent any more"
    assert run.header.status is Status.INTERRUPTED
    assert run.header.stop_reason == "ended early by SIGINT"
    ends_s = [r.end_s for r in run.records]
    assert run.header.load_end_s is not None
    assert run.header.load_end_s <= min(ends_s), "they belong to the drain"


# what files and networks may do


FORBIDDEN_CALLS = ("eval", "exec", "compile", "__import__")
FORBIDDEN_MODULES = ("pickle", "marshal", "shelve", "dill", "cloudpickle")
UNSAFE_YAML = ("load", "load_all", "unsafe_load", "full_load", "Loader", "UnsafeLoader")


def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_no_code_comes_from_data() -> None:
    """No eval, no pickle, no YAML that builds objects, no shell."""
    found = []
    for path in SOURCE:
        for node in nodes(path):
            match node:
                case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
                    found.append((path.name, name))
                case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr=name)) if name in (
                    "system",
                    "popen",
                ):
                    found.append((path.name, name))
                case ast.Attribute(value=ast.Name(id="yaml"), attr=name) if name in UNSAFE_YAML:
                    found.append((path.name, f"yaml.{name}"))
                case ast.keyword(arg="shell"):
                    found.append((path.name, "shell="))
                case ast.Import(names=names):
                    found += [(path.name, n.name) for n in names if n.name in FORBIDDEN_MODULES]
                case ast.ImportFrom(module=module) if module in FORBIDDEN_MODULES:
                    found.append((path.name, str(module)))
    assert found == []


def test_servers_of_ours_listen_on_this_machine_only_by_default() -> None:
    from servecap.cli import emulate

    hosts = [p.default for p in emulate.command.params if p.name == "host"]
    assert hosts == ["127.0.0.1"]


def test_certificate_is_verified_unless_told_otherwise() -> None:
    import ssl

    context = resolve("https://127.0.0.1").addresses[0].tls
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_other_user_of_the_port_is_not_disturbed() -> None:
    """A request goes to where it was asked to go: redirects are not followed."""

    async def elsewhere(call: Call) -> None:
        await call.whole(b"", f"Location: http://127.0.0.1:{port}/", status="302 Found")

    with socket.create_server(("127.0.0.1", 0)) as other, serving(elsewhere) as server:
        port = other.getsockname()[1]
        other.setblocking(False)
        (record,) = ask(server.url, timeouts=LIMITS)
        with pytest.raises(BlockingIOError):
            other.accept()
    assert record.outcome is Outcome.HTTP_ERROR
