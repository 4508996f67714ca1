"""Load from the nodes of a Ray cluster: an actor on each is a worker, told over a connection.

Ray starts the processes and ends them. Requests and records do not pass through it, but through
a TCP connection to each worker, as they do through a socket pair to a forked one: a call of an
actor takes about a millisecond. The connection opens with a secret that went through Ray.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from servecap import __version__, process
from servecap.errors import UsageError
from servecap.pipe import Pipe
from servecap.wire.connection import Address
from servecap.worker import Setup, work
from servecap.workers import Link, Workers

Part = TypeVar("Part")
Result = TypeVar("Result")

START_LIMIT_S = 60.0
_JOIN_LIMIT_S = 5.0
_SECRET_BYTES = 32
_LOOPBACK = ("127.", "::1")


class Opened(msgspec.Struct, frozen=True):
    """Where a worker waits for its parent, and what it is."""

    host: str
    port: int
    version: str
    unreachable: str | None  # why the server under test cannot be reached from there


class Trust(msgspec.Struct, frozen=True):
    """What of a TLS context can be sent to another machine."""

    insecure: bool
    certificates: tuple[bytes, ...]  # DER; none: those of the system

    def context(self) -> ssl.SSLContext:
        data = "".join(ssl.DER_cert_to_PEM_cert(der) for der in self.certificates)
        context = ssl.create_default_context(cadata=data or None)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class Parcel(msgspec.Struct, frozen=True):
    """A `Setup` as it can be sent."""

    setup: Setup
    trust: Trust | None

    @staticmethod
    def of(setup: Setup) -> Parcel:
        context = setup.endpoint.addresses[0].tls
        trust = None
        if context is not None:
            trust = Trust(
                insecure=context.verify_mode == ssl.CERT_NONE,
                certificates=tuple(context.get_ca_certs(binary_form=True)),
            )
        return Parcel(_with_tls(setup, None), trust)

    def opened(self) -> Setup:
        return _with_tls(self.setup, self.trust.context() if self.trust else None)


def _with_tls(setup: Setup, tls: ssl.SSLContext | None) -> Setup:
    addresses = tuple(msgspec.structs.replace(a, tls=tls) for a in setup.endpoint.addresses)
    endpoint = msgspec.structs.replace(setup.endpoint, addresses=addresses)
    return msgspec.structs.replace(setup, endpoint=endpoint)


class LoadActor:
    """A worker on a node; Ray makes an actor of it."""

    def open(self, address: Address) -> Opened:
        """Listen for the parent, on the address by which the node is known to the cluster."""
        host = _own_address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        return Opened(host, self._listener.getsockname()[1], __version__, _unreachable(address))

    def live(self, secret: bytes, parcel: Parcel) -> None:
        """Work for the parent who knows the *secret*, until it closes the connection."""
        sock = _met(self._listener, secret, time.monotonic() + START_LIMIT_S)
        with process.without_gc():
            work(sock, parcel.opened())


def _own_address() -> str:
    """The address by which this machine is known to the cluster."""
    import ray

    util: Any = ray.util
    return str(util.get_node_ip_address())


def _unreachable(address: Address) -> str | None:
    with socket.socket(address.family, socket.SOCK_STREAM) as sock:
        sock.settimeout(5.0)
        try:
            sock.connect(address.sockaddr)
        except OSError as error:
            return error.strerror or str(error)
    return None


def _met(listener: socket.socket, secret: bytes, until_s: float) -> socket.socket:
    """The connection of whoever knows the secret; others are sent away."""
    with listener:
        while (left_s := until_s - time.monotonic()) > 0:
            listener.settimeout(left_s)
            sock, _ = listener.accept()
            sock.settimeout(min(left_s, _JOIN_LIMIT_S))
            try:
                said = sock.recv(len(secret), socket.MSG_WAITALL)
            except OSError:
                said = b""
            if hmac.compare_digest(said, secret):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            sock.close()
    raise TimeoutError("the parent did not connect")


def on_nodes(address: str, count: int | None, setup: Setup) -> Workers:
    """Workers on the nodes of the Ray cluster at *address*, in turn; by default one on each.

    Nodes without a CPU to give are left out.

    Raises:
        UsageError: Ray is missing, the cluster cannot be joined, a node cannot run a worker, or
            reaches the server under another address than we do.
    """
    ray = _joined(address)
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1]
    if not nodes:
        raise UsageError(f"--ray {address}: no node of the cluster has a CPU to give")
    nodes.sort(key=lambda n: (n["NodeManagerAddress"], n["NodeID"]))
    _check_reachable(address, setup, [n["NodeManagerAddress"] for n in nodes])
    chosen = [nodes[i % len(nodes)] for i in range(count or len(nodes))]
    actors = [_actor(ray, node["NodeID"]) for node in chosen]
    try:
        opened = _opened(ray, address, actors, chosen, setup)
        parcel = Parcel.of(setup)
        links = [_link(ray, *pair, parcel) for pair in zip(actors, opened, strict=True)]
        return Workers(_told_apart(links))
    except BaseException as error:
        for actor in actors:
            ray.kill(actor)
        if isinstance(error, RuntimeError | OSError):
            raise UsageError(
                f"--ray {address}: {error}: each node must take connections from this one"
            ) from None
        raise


def spread(address: str, work: Callable[[Part], Result], parts: Sequence[Part]) -> Iterator[Result]:
    """What *work* makes of each part, in order, done on the cores of the Ray cluster there.

    A part whose node dies is done again on another.

    Raises:
        UsageError: Ray is missing, the cluster cannot be joined, or no node can do the work.
    """
    ray = _joined(address)
    task = ray.remote(num_cpus=1)(work)
    try:
        for future in [task.remote(part) for part in parts]:
            yield ray.get(future)
    except ray.exceptions.RayError as error:
        why = str(error).strip().rpartition("\n")[2]
        raise UsageError(
            f"--ray {address}: a node cannot do its part ({why}): "
            f"install servecap[fast,ray] {__version__} on the nodes"
        ) from None


def _joined(address: str) -> Any:
    """Ray, connected to the cluster there."""
    try:
        import ray
    except ImportError:
        raise UsageError(
            f"--ray {address}: Ray is not installed: install servecap[ray], here and on the nodes"
        ) from None
    if "://" in address or address == "local":
        raise UsageError(
            f"--ray {address}: start servecap on a node of the cluster, and give auto, or HOST:PORT"
            " of its head"
        )
    if ray.is_initialized():
        return ray
    if address != "auto":
        _check_head(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        why = str(error).strip().partition("\n")[0].rstrip(".")
        raise UsageError(f"--ray {address}: cannot join the cluster: {why}") from None
    return ray


def _check_head(address: str) -> None:
    """Find out within seconds that nobody is there; Ray takes more than a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--ray {address}: write auto, or HOST:PORT of the cluster's head")
    host = host.strip("[]")
    hosts = [host]
    if host == "localhost" or host.startswith(_LOOPBACK):
        hosts.append(_own_address())  # Ray takes it for that, and its head may listen there only
    why = ""
    for name in hosts:
        try:
            socket.create_connection((name, int(port)), timeout=_JOIN_LIMIT_S).close()
        except OSError as error:
            why = error.strerror or str(error)
        else:
            return
    raise UsageError(f"--ray {address}: no Ray cluster answers there ({why}): check its address")


def _check_reachable(address: str, setup: Setup, nodes: list[str]) -> None:
    """A server that is known by a loopback address is another one on each machine."""
    here = _own_address()
    where = setup.endpoint.addresses[0].sockaddr
    local = isinstance(where, str) or str(where[0]).startswith(_LOOPBACK)
    away = [node for node in nodes if node != here]
    if local and away:
        raise UsageError(
            f"--ray {address}: node {away[0]} cannot reach the server as {setup.endpoint.host}:"
            " give the --url that holds on every node"
        )


def _actor(ray: Any, node_id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return (
        ray.remote(LoadActor)
        .options(
            num_cpus=1,
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
        )
        .remote()
    )


def _opened(
    ray: Any, address: str, actors: list[Any], nodes: list[dict[str, Any]], setup: Setup
) -> list[Opened]:
    """The workers, each found to be up and of our version."""
    to = msgspec.structs.replace(setup.endpoint.addresses[0], tls=None)
    waiting = [actor.open.remote(to) for actor in actors]
    until_s = time.monotonic() + START_LIMIT_S
    opened: list[Opened] = []
    for future, node in zip(waiting, nodes, strict=True):
        name = f"--ray {address}: node {node['NodeManagerAddress']}"
        try:
            found = ray.get(future, timeout=max(0.1, until_s - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            raise UsageError(
                f"{name} started no load process within {START_LIMIT_S:.0f} s: it needs a free CPU"
                " for each (--workers)"
            ) from None
        except ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1].strip()
            raise UsageError(
                f"{name} cannot run a load process ({why}): install servecap[ray] {__version__}"
                " there"
            ) from None
        if found.version != __version__:
            raise UsageError(
                f"{name} has servecap {found.version}, and not {__version__}: install the same"
            )
        if found.unreachable is not None:
            raise UsageError(
                f"{name} cannot reach {setup.endpoint.host} ({found.unreachable}): give the --url"
                " that holds on every node"
            )
        opened.append(found)
    return opened


def _link(ray: Any, actor: Any, opened: Opened, parcel: Parcel) -> Link:
    secret = secrets.token_bytes(_SECRET_BYTES)
    life = actor.live.remote(secret, parcel)
    sock = socket.create_connection((opened.host, opened.port), timeout=_JOIN_LIMIT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(secret)

    def stop() -> None:
        ray.wait([life], timeout=_JOIN_LIMIT_S)
        ray.kill(actor)

    return Link(Pipe(sock), fate=lambda: "is gone", stop=stop, node=opened.host)


def _told_apart(links: list[Link]) -> list[Link]:
    """The links, numbered where several are on one machine."""
    names = [link.node for link in links]
    for number, link in enumerate(links):
        if names.count(link.node) > 1:
            link.node = f"{link.node} (process {names[: number + 1].count(names[number])})"
    return links
