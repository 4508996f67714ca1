"""A URL taken apart, its host looked up, and the headers that go with every request."""

from __future__ import annotations

import os
import re
import socket
import ssl
from urllib.parse import SplitResult, quote, urlsplit

import msgspec

from servecap import __version__
from servecap.errors import EndpointError, UsageError
from servecap.wire.connection import Address

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, section 5.1
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
_OUR_HEADERS = ("connection", "content-length", "host", "transfer-encoding")

_UNIX = "unix://"
_UNIX_PATH_BYTES = 107  # sun_path of Linux, without its end

KEY_VARIABLES = ("SERVECAP_API_KEY", "OPENAI_API_KEY")


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests go. `headers` may hold a key: never print or store them."""

    host: str  # as the Host header says it
    prefix: str  # of every path, "" for none
    addresses: tuple[Address, ...]
    headers: dict[str, str]

    @property
    def local(self) -> bool:
        """Whether it is on this machine, as far as the address tells."""
        first = self.addresses[0]
        if first.family == socket.AF_UNIX:
            return True
        return str(first.sockaddr[0]).startswith(("127.", "::1"))


class Security(msgspec.Struct, frozen=True, kw_only=True):
    """How much is asked of the server's certificate."""

    insecure: bool = False
    ca_file: str | None = None


def resolve(
    url: str,
    *,
    headers: tuple[str, ...] = (),
    security: Security | None = None,
    proxy: str | None = None,
) -> Endpoint:
    """The endpoint behind *url*, a base URL with or without a trailing /v1, or unix:///PATH.

    The API key is taken from the environment (SERVECAP_API_KEY, else OPENAI_API_KEY). A *proxy*
    is used only where it is given: http://host:port.

    Raises:
        UsageError: the URL or a header cannot be read.
        EndpointError: the host is not known.
    """
    if url.startswith(_UNIX):
        return _unix(url, headers, proxy)
    parts = _split(url)
    host = parts.hostname
    assert host is not None
    standard = 443 if parts.scheme == "https" else 80
    port = _port(url, parts) or standard
    tls = _tls(security or Security()) if parts.scheme == "https" else None
    prefix = quote(parts.path.rstrip("/").removesuffix("/v1"), safe="/%:@!$&'()*+,;=~")
    name = f"[{host}]" if ":" in host else _ascii(host)
    shown = name if port == standard else f"{name}:{port}"
    if proxy is None:
        addresses = _addresses(host, port, tls)
    elif tls is None:
        addresses = _proxy_addresses(proxy)
        prefix = f"http://{shown}{prefix}"  # a proxy wants the whole URL (RFC 9112, section 3.2.2)
    else:
        tunnel = f"CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n".encode()
        addresses = tuple(
            msgspec.structs.replace(a, tls=tls, server_name=host, tunnel=tunnel)
            for a in _proxy_addresses(proxy)
        )
    return Endpoint(host=shown, prefix=prefix, addresses=addresses, headers=_headers(headers))


def _unix(url: str, headers: tuple[str, ...], proxy: str | None) -> Endpoint:
    path = url.removeprefix(_UNIX)
    if proxy is not None:
        raise UsageError(f"URL {url!r} is a local socket, which no proxy can reach: leave it away")
    if not path.startswith("/") or len(os.fsencode(path)) > _UNIX_PATH_BYTES:
        raise UsageError(f"URL {url!r} must be unix:// and a path from /, of 107 bytes at most")
    address = Address(family=socket.AF_UNIX, sockaddr=path, server_name="localhost")
    return Endpoint(host="localhost", prefix="", addresses=(address,), headers=_headers(headers))


def _proxy_addresses(proxy: str) -> tuple[Address, ...]:
    parts = _split(proxy)
    if parts.scheme != "http" or parts.path not in ("", "/"):
        raise UsageError(f"proxy {proxy!r} must look like http://host:port")
    assert parts.hostname is not None
    return _addresses(parts.hostname, _port(proxy, parts) or 80, None)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    if "@" in parts.netloc:  # and the message must not show the password
        raise UsageError(f"URL {parts.hostname!r}: give the base URL only, without user and key")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"URL {url!r} must look like http://host:port or https://host")
    if parts.query or parts.fragment:
        raise UsageError(f"URL {url!r}: give the base URL only, without query or fragment")
    return parts


def _port(url: str, parts: SplitResult) -> int | None:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise UsageError(f"URL {url!r} has a port that is not within 1 and 65535")
    return port


def _ascii(host: str) -> str:
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        raise EndpointError(f"host {host!r} is not a valid name: check the URL") from None


def _addresses(host: str, port: int, tls: ssl.SSLContext | None) -> tuple[Address, ...]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "not a valid name"
        raise EndpointError(f"host {host!r} is not known ({why}): check the URL") from None
    return tuple(
        Address(family=family, sockaddr=where, server_name=host, tls=tls)
        for family, _, _, _, where in found
    )


def _tls(security: Security) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=security.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"CA file {security.ca_file!r} cannot be used: {error}") from None
    if security.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _headers(extra: tuple[str, ...]) -> dict[str, str]:
    headers = {
        "User-Agent": f"servecap/{__version__}",
        "Accept": "*/*",
        "Content-Type": "application/json",
    }
    for variable in KEY_VARIABLES:
        if key := os.environ.get(variable):
            if not key.isascii() or not _HEADER_VALUE.fullmatch(key):
                raise UsageError(f"{variable} holds characters that no header may have")
            headers["Authorization"] = f"Bearer {key}"
            break
    for line in extra:
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise UsageError("a --header must look like 'Name: value', without control characters")
        if name.lower() in _OUR_HEADERS:
            raise UsageError(f"--header {name!r} cannot be set: it follows from the request itself")
        headers = {k: v for k, v in headers.items() if k.lower() != name.lower()} | {name: value}
    return headers
