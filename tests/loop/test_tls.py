"""TLS: a certificate that is verified, one that is not, and what is no TLS at all."""

from __future__ import annotations

import pickle
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
import uvloop
from drive import QUICK, WORKLOAD, ask, measured
from relay import relaying
from scripted import DONE, HELLO, STOP, Call, chunk, serving

from servecap.cluster import Parcel
from servecap.errors import EndpointError
from servecap.probe import TargetSpec
from servecap.record import Outcome
from servecap.scenario import ClosedLoop, Scenario
from servecap.wire.endpoint import Security, resolve
from servecap.wire.openai import OpenAi
from servecap.worker import Setup


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl here to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.fixture
def server_side(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def test_verified_by_its_own_authority(
    certificate: tuple[Path, Path], server_side: ssl.SSLContext
) -> None:
    with serving(tls=server_side) as server:
        trusted = Security(ca_file=str(certificate[0]))
        records = ask(server.url, 5, security=trusted)
        assert server.connections == 1, "kept open and used again"
        many = ask(server.url, 5, at_once=True, security=trusted)
    assert [r.outcome for r in records + many] == [Outcome.OK] * 10
    assert all(r.output_tokens == 2 for r in records)


def test_refused_by_default_and_taken_when_insecure(server_side: ssl.SSLContext) -> None:
    with serving(tls=server_side) as server:
        (bad,) = ask(server.url)
        (good,) = ask(server.url, security=Security(insecure=True))
    assert bad.outcome is Outcome.REFUSED
    assert bad.error is not None
    assert "self-signed" in bad.error.replace(" ", "-")
    assert good.outcome is Outcome.OK


def test_preflight_tells_of_the_certificate(server_side: ssl.SSLContext) -> None:
    with serving(tls=server_side) as server, pytest.raises(EndpointError) as caught:
        measured(server.url, Scenario(load=ClosedLoop(users=1), workload=WORKLOAD))
    assert "self-signed" in str(caught.value).replace(" ", "-")
    assert "\n" not in str(caught.value)


def test_whole_run_over_tls(certificate: tuple[Path, Path], server_side: ssl.SSLContext) -> None:
    load = ClosedLoop(users=4, think_s=(0.0, 0.0), queue=20)
    with serving(tls=server_side) as server:
        target = TargetSpec(url=server.url, security=Security(ca_file=str(certificate[0])))
        run = measured(server.url, Scenario(load=load, workload=WORKLOAD), target=target)
    assert [r.outcome for r in run.records] == [Outcome.OK] * 20


def test_plain_server_spoken_to_in_tls() -> None:
    with serving() as server:
        (record,) = ask(server.url.replace("http:", "https:"))
    assert record.outcome is Outcome.REFUSED
    assert record.error is not None
    assert record.error.startswith("TLS: ")


def test_tls_server_spoken_to_in_plain(server_side: ssl.SSLContext) -> None:
    with serving(tls=server_side) as server:
        (record,) = ask(server.url.replace("https:", "http:"))
    assert record.outcome in (Outcome.REFUSED, Outcome.BROKEN_STREAM)
    assert record.error


@pytest.mark.parametrize("whole", [True, False])
def test_stream_that_ends_with_the_tls_connection(
    whole: bool, server_side: ssl.SSLContext, certificate: tuple[Path, Path]
) -> None:
    async def until_close(call: Call) -> None:
        await call.head("Content-Type: text/event-stream")
        await call.write(HELLO, STOP if whole else b"", DONE if whole else b"")
        call.close()

    with serving(until_close, tls=server_side) as server:
        (record,) = ask(server.url, security=Security(ca_file=str(certificate[0])))
    assert record.outcome is (Outcome.OK if whole else Outcome.BROKEN_STREAM)


def test_kept_tls_connection_that_the_server_closed(
    server_side: ssl.SSLContext, certificate: tuple[Path, Path]
) -> None:
    async def once(call: Call) -> None:
        await call.answer()
        call.close()

    with serving(once, tls=server_side) as server:
        records = ask(server.url, 6, security=Security(ca_file=str(certificate[0])))
    assert [r.outcome for r in records] == [Outcome.OK] * 6


def test_large_answer_over_tls(server_side: ssl.SSLContext, certificate: tuple[Path, Path]) -> None:
    async def large(call: Call) -> None:
        text = b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % (b"x" * 3_000_000)
        await call.stream(text, STOP, ending=chunk(DONE) + b"0\r\n\r\n")

    with serving(large, tls=server_side) as server:
        (record,) = ask(server.url, security=Security(ca_file=str(certificate[0])))
    assert (record.outcome, len(record.chunk_s)) == (Outcome.OK, 1)


def test_tunnel_through_a_proxy(
    certificate: tuple[Path, Path], server_side: ssl.SSLContext
) -> None:
    """The proxy sees where to, and nothing else; the certificate is still the server's."""
    trusted = Security(ca_file=str(certificate[0]))
    with serving(tls=server_side) as server, relaying("tunnel", server.url) as relay:
        records = ask(server.url, 3, security=trusted, proxy=relay.url)
        assert server.connections == 1
        (bad,) = ask(server.url, proxy=relay.url)
    assert [r.outcome for r in records] == [Outcome.OK] * 3
    assert set(relay.lines) == {f"CONNECT 127.0.0.1:{server.port} HTTP/1.1".encode()}
    assert bad.outcome is Outcome.REFUSED
    assert "certificate" in (bad.error or "")


def test_proxy_that_refuses_a_tunnel(server_side: ssl.SSLContext) -> None:
    with serving(tls=server_side) as server, relaying("refuse", server.url) as relay:
        (record,) = ask(server.url, proxy=relay.url)
    assert record.outcome is Outcome.REFUSED
    assert "407" in (record.error or "")


def test_trust_goes_along_to_another_machine(
    certificate: tuple[Path, Path], server_side: ssl.SSLContext
) -> None:
    """What a node of a cluster is sent makes the same TLS connections as here."""

    async def prompt(call: Call) -> None:
        await call.answer()

    with serving(prompt, tls=server_side) as server:
        for security, mode in (
            (Security(ca_file=str(certificate[0])), ssl.CERT_REQUIRED),
            (Security(insecure=True), ssl.CERT_NONE),
        ):
            setup = Setup(
                endpoint=resolve(server.url, security=security),
                api=OpenAi(chat=True),
                model=None,
                stream=True,
                timeouts=QUICK,
                count_tokens=None,
                new_loop=uvloop.new_event_loop,
            )
            there = pickle.loads(pickle.dumps(Parcel.of(setup))).opened()
            (address,) = there.endpoint.addresses
            assert address.tls.verify_mode is mode
            with socket.create_connection(address.sockaddr, timeout=5) as sock:
                address.tls.wrap_socket(sock, server_hostname=address.server_name).close()
