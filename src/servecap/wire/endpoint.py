"""A URL taken apart, its host looked up, and the headers that go with every request."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
from pathlib import Path
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

HIDDEN = "[hidden]"
_PLAIN_HEADERS = ("User-Agent", "Accept", "Content-Type")
_SECRET_CHARS = 6  # shorter words would be found everywhere
KEY_VARIABLES = ("SERVECAP_API_KEY", "OPENAI_API_KEY")


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests go. `headers` and `secrets` may hold a key: never print or store them."""

    host: str  # as the Host header says it
    prefix: str  # of every path, "" for none
    addresses: tuple[Address, ...]
    headers: dict[str, str]
    secrets: tuple[str, ...] = ()  # what no text of a server may bring into ours
    proxy: str | None = None  # through which it is reached, without its user
    local: bool = True  # the server is on this machine, as far as its address tells

    def scrubbed(self, text: str) -> str:
        """*text* without our keys: some servers repeat them in their errors."""
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        return text


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
    key_file: str | None = None,
) -> Endpoint:
    """The endpoint behind *url*, a base URL with or without a trailing /v1, or unix:///PATH.

    The API key is that in *key_file*, else in the environment (SERVECAP_API_KEY, OPENAI_API_KEY).
    A *proxy* is used only where it is given: http://host:port.

    Raises:
        UsageError: the URL, a header or the key cannot be read.
        EndpointError: the host is not known.
    """
    sent = _headers(headers, _key(key_file))
    if url.startswith(_UNIX):
        return _unix(url, sent, proxy)
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
    local = _is_local(host) if proxy else all(_is_local(a.sockaddr[0]) for a in addresses)
    return Endpoint(
        host=shown,
        prefix=prefix,
        addresses=addresses,
        headers=sent,
        secrets=_secrets(sent),
        proxy=None if proxy is None else _shown(proxy),
        local=local,
    )


def _is_local(host: str) -> bool:
    """Whether the name or address stands for this machine, as far as can be told from itself."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _unix(url: str, headers: dict[str, str], proxy: str | None) -> Endpoint:
    path = url.removeprefix(_UNIX)
    if proxy is not None:
        raise UsageError(f"URL {url!r} is a local socket, which no proxy can reach: leave it away")
    if not path.startswith("/") or len(os.fsencode(path)) > _UNIX_PATH_BYTES:
        raise UsageError(f"URL {url!r} must be unix:// and a path from /, of 107 bytes at most")
    address = Address(family=socket.AF_UNIX, sockaddr=path, server_name="localhost")
    return Endpoint(
        host="localhost",
        prefix="",
        addresses=(address,),
        headers=headers,
        secrets=_secrets(headers),
    )


def _proxy_addresses(proxy: str) -> tuple[Address, ...]:
    parts = _split(proxy)
    if parts.scheme != "http" or parts.path not in ("", "/"):
        raise UsageError(f"proxy {_shown(proxy)!r} must look like http://host:port")
    assert parts.hostname is not None
    return _addresses(parts.hostname, _port(proxy, parts) or 80, None)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    if "@" in parts.netloc:
        raise UsageError(f"URL {_shown(url)!r}: give the base URL only, without user and key")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"URL {_shown(url)!r} must look like http://host:port or https://host")
    if parts.query or parts.fragment:
        raise UsageError(f"URL {_shown(url)!r}: give the base URL only, without query or fragment")
    return parts


def _shown(url: str) -> str:
    """The URL without what may be a user, a password or a key in it.

    >>> _shown("https://me:secret@host/v1?key=secret")
    'https://host/v1'
    """
    scheme, mark, rest = url.partition("://")
    rest = re.split("[?#]", rest if mark else scheme)[0].rpartition("@")[2]
    return f"{scheme}{mark}{rest}" if mark else rest


def _port(url: str, parts: SplitResult) -> int | None:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise UsageError(f"URL {_shown(url)!r} has a port that is not within 1 and 65535")
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


def _key(file: str | None) -> str | None:
    """The API key that is given, in a file or in the environment."""
    if file is not None:
        try:
            key = Path(file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UsageError(f"--api-key-file {file!r} cannot be read: {error.strerror}") from None
        except (UnicodeDecodeError, ValueError):
            raise UsageError(f"--api-key-file {file!r} holds no text") from None
        if not key:
            raise UsageError(f"--api-key-file {file!r} is empty: it must hold the key")
        return _checked(key, f"--api-key-file {file!r}")
    for variable in KEY_VARIABLES:
        if key := os.environ.get(variable, ""):
            return _checked(key, variable)
    return None


def _checked(key: str, where: str) -> str:
    if not key.isascii() or not _HEADER_VALUE.fullmatch(key):
        raise UsageError(f"{where} holds characters that no header may have")
    return key


def _secrets(headers: dict[str, str]) -> tuple[str, ...]:
    """What of the headers may be secret, longest first: all but our own and what is very short."""
    found: set[str] = set()
    for name, value in headers.items():
        if name not in _PLAIN_HEADERS:
            found |= {value, *value.split()}
    return tuple(sorted((s for s in found if len(s) >= _SECRET_CHARS), key=len, reverse=True))


def _headers(extra: tuple[str, ...], key: str | None) -> dict[str, str]:
    headers = {
        "User-Agent": f"servecap/{__version__}",
        "Accept": "*/*",
        "Content-Type": "application/json",
    }
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    for line in extra:
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise UsageError("a --header must look like 'Name: value', without control characters")
        if name.lower() in _OUR_HEADERS:
            raise UsageError(f"--header {name!r} cannot be set: it follows from the request itself")
        headers = {k: v for k, v in headers.items() if k.lower() != name.lower()} | {name: value}
    return headers
