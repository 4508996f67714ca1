"""Starting and stopping the emulator: in the foreground, or beside the caller in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from aiohttp import web

from servecap.emulate.config import EmulatorConfig, check
from servecap.emulate.server import Server
from servecap.engine.spec import build
from servecap.errors import UsageError


class Emulator:
    """A running emulator in a thread of its own; `stop` ends it."""

    def __init__(self, config: EmulatorConfig) -> None:
        self.config = config
        self.url = ""
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="servecap-emulator", daemon=True)

    def _run(self) -> None:
        try:
            _run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that started us
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        await _serve_until(self.config, self._stopped, self._on_ready)

    def _on_ready(self, url: str) -> None:
        self.url = url
        self._ready.set()

    def start(self) -> None:
        """Returns when the server answers.

        Raises:
            UsageError: the configuration makes no sense, or the port is taken.
        """
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        """Returns when the server is gone; open streams are cut."""
        if self._loop is not None and self._stopped is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
                self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()


def start(config: EmulatorConfig) -> Emulator:
    """A running emulator; its `url` says where. The caller must `stop` it.

    Raises:
        UsageError: the configuration makes no sense, or the port is taken.
    """
    _check(config)
    emulator = Emulator(config)
    emulator.start()
    return emulator


@contextlib.contextmanager
def running(config: EmulatorConfig) -> Iterator[str]:
    """The URL of an emulator that runs until the block ends.

    Raises:
        UsageError: the configuration makes no sense, or the port is taken.
    """
    emulator = start(config)
    try:
        yield emulator.url
    finally:
        emulator.stop()


def serve(config: EmulatorConfig, on_ready: Callable[[str], None]) -> None:
    """Serves until Ctrl-C or SIGTERM; *on_ready* gets the URL once it answers.

    Raises:
        UsageError: the configuration makes no sense, or the port is taken.
    """
    _check(config)

    async def foreground() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        gc.collect()
        gc.freeze()  # what has been loaded lives as long as the process: never walk it again
        await _serve_until(config, stopped, on_ready)

    _run(foreground())


def _check(config: EmulatorConfig) -> None:
    check(config)
    build(config.spec)  # raises where names are unknown or the model does not fit


async def _serve_until(
    config: EmulatorConfig, stopped: asyncio.Event, on_ready: Callable[[str], None]
) -> None:
    server = Server(config)
    # A handler is cancelled when its client leaves: that is how its place becomes free.
    runner = web.AppRunner(
        server.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1
    )
    await runner.setup()
    site = web.TCPSite(runner, config.host, config.port, backlog=4096)
    steps = asyncio.create_task(server.driver.run())
    try:
        await _listen(site, config)
        on_ready(_url(runner, config.host))
        stop = asyncio.create_task(stopped.wait())
        await asyncio.wait((stop, steps), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if steps.done():
            steps.result()  # it never ends by itself: show why it did
    finally:
        steps.cancel()
        await runner.cleanup()


async def _listen(site: web.TCPSite, config: EmulatorConfig) -> None:
    try:
        await site.start()
    except socket.gaierror as error:
        raise UsageError(
            f"cannot listen on --host {config.host!r} ({error.strerror}): give an address of this "
            "machine, such as 127.0.0.1 or 0.0.0.0"
        ) from None
    except OSError as error:
        where = f"{config.host}:{config.port}"
        why = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(
            f"cannot listen on {where}: {why}; choose another --port (0: any free one)"
        ) from None


def _url(runner: web.AppRunner, host: str) -> str:
    port = runner.addresses[0][1]
    name = f"[{host}]" if ":" in host else host
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '') else name}:{port}"


def _run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(main)


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
