"""A URL taken apart, its host looked up, and the headers that go with every request."""

from __future__ import annotations

import os
import socket
import ssl
from urllib.parse import urlsplit

import msgspec

from servecap import __version__
from servecap.errors import EndpointError, UsageError
from servecap.wire.connection import Address

KEY_VARIABLES = ("SERVECAP_API_KEY", "OPENAI_API_KEY")


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests go. `headers` may hold a key: never print or store them."""

    host: str  # as the Host header says it
    prefix: str  # of every path, "" for none
    addresses: tuple[Address, ...]
    headers: dict[str, str]


class Security(msgspec.Struct, frozen=True, kw_only=True):
    """How much is asked of the server's certificate."""

    insecure: bool = False
    ca_file: str | None = None


def resolve(
    url: str,
    *,
    headers: tuple[str, ...] = (),
    security: Security | None = None,
) -> Endpoint:
    """The endpoint behind *url*, a base URL with or without a trailing /v1.

    The API key is taken from the environment (SERVECAP_API_KEY, else OPENAI_API_KEY).

    Raises:
        UsageError: the URL or a header cannot be read.
        EndpointError: the host is not known.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"URL {url!r} must look like http://host:port or https://host")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise UsageError(f"URL {url!r} has a port that is not within 0 and 65535") from None
    if parts.query or parts.fragment or parts.username:
        raise UsageError(f"URL {parts.hostname!r}: give the base URL only, without query or user")
    tls = _tls(security or Security()) if parts.scheme == "https" else None
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    default = port == (443 if tls else 80)
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Endpoint(
        host=name if default else f"{name}:{port}",
        prefix=prefix,
        addresses=_addresses(parts.hostname, port, tls),
        headers=_headers(headers),
    )


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
            if any(c in key for c in "\r\n\0") or not key.isascii():
                raise UsageError(f"{variable} holds characters that no header may have")
            headers["Authorization"] = f"Bearer {key}"
            break
    for line in extra:
        name, colon, value = line.partition(":")
        if not colon or not name.strip() or any(c in line for c in "\r\n\0"):
            raise UsageError("a --header must look like 'Name: value'")
        headers[name.strip()] = value.strip()
    return headers
