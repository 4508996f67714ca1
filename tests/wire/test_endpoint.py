"""URLs, headers and certificates: what is taken, and what is refused in one line."""

from __future__ import annotations

import pytest

from servecap.errors import EndpointError, ServecapError, UsageError
from servecap.wire.endpoint import KEY_VARIABLES, Security, resolve


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in KEY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("url", "host", "prefix", "port"),
    [
        ("http://127.0.0.1", "127.0.0.1", "", 80),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", "", 8000),
        ("http://127.0.0.1:8000/", "127.0.0.1:8000", "", 8000),
        ("http://127.0.0.1:8000/v1", "127.0.0.1:8000", "", 8000),
        ("http://127.0.0.1:8000/v1/", "127.0.0.1:8000", "", 8000),
        ("http://127.0.0.1:8000/llm/v1", "127.0.0.1:8000", "/llm", 8000),
        ("http://127.0.0.1/模 型", "127.0.0.1", "/%E6%A8%A1%20%E5%9E%8B", 80),
        ("https://127.0.0.1", "127.0.0.1", "", 443),
        ("http://[::1]:81", "[::1]:81", "", 81),
        ("HTTP://LOCALHOST:82", "localhost:82", "", 82),
    ],
)
def test_url_is_taken_apart(url: str, host: str, prefix: str, port: int) -> None:
    endpoint = resolve(url)
    assert (endpoint.host, endpoint.prefix) == (host, prefix)
    assert {address.sockaddr[1] for address in endpoint.addresses} == {port}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://localhost",
        "http://",
        "http://:8000",
        "http://[::1",
        "http://localhost:0",
        "http://localhost:99999",
        "http://localhost:http",
        "http://localhost/?key=1",
        "http://localhost/#x",
    ],
)
def test_url_that_makes_no_sense_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://user:secret@localhost", "http://:secret@localhost:1"])
def test_password_in_the_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["does-not-exist.invalid", "a" * 70 + ".invalid", "a..b"])
def test_host_that_nobody_knows(host: str) -> None:
    with pytest.raises(EndpointError, match="check the URL"):
        resolve(f"http://{host}")


def test_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    assert resolve("http://127.0.0.1").headers["Authorization"] == "Bearer other"
    monkeypatch.setenv("SERVECAP_API_KEY", "own")
    assert resolve("http://127.0.0.1").headers["Authorization"] == "Bearer own"
    monkeypatch.setenv("SERVECAP_API_KEY", "own\nInjected: 1")
    with pytest.raises(UsageError) as caught:
        resolve("http://127.0.0.1")
    assert "Injected" not in str(caught.value)


def test_own_header_replaces_ours_whatever_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVECAP_API_KEY", "own")
    headers = resolve("http://127.0.0.1", headers=("authorization: Basic x", "X-A: 1: 2")).headers
    assert [v for k, v in headers.items() if k.lower() == "authorization"] == ["Basic x"]
    assert headers["X-A"] == "1: 2"


@pytest.mark.parametrize(
    "line",
    ["novalue", ": x", "Na me: x", "X: a\r\nY: b", "X: 中", "Content-Length: 3", "host: x"],
)
def test_header_that_no_request_may_have(line: str) -> None:
    with pytest.raises(UsageError):
        resolve("http://127.0.0.1", headers=(line,))


def test_ca_file_must_be_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    wrong = tmp_path_factory.mktemp("ca") / "ca.pem"
    for path in (wrong, wrong.parent / "none.pem"):
        wrong.write_text("no certificate")
        with pytest.raises(ServecapError, match="CA file"):
            resolve("https://127.0.0.1", security=Security(ca_file=str(path)))
