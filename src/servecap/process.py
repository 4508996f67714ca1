"""The process that makes load: what it may open, what it leaves off, and where it runs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import platform
import resource
import sys
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from servecap.errors import UsageError
from servecap.scenario import Scenario

_T = TypeVar("_T")
_OTHER_FILES = 64  # open files that are no connections
_OPEN_LOOP_SOCKETS = 20_000


def environment() -> dict[str, str]:
    """What of the client machine may matter to the figures."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
    }


def room_for_sockets(scenario: Scenario) -> None:
    """Every user may need a socket; the limit on open files is raised as far as it may be."""
    users = scenario.users or 0
    wanted = _OTHER_FILES + (users or _OPEN_LOOP_SOCKETS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if users > most - _OTHER_FILES:
        raise UsageError(
            f"{users} users need as many sockets, but this system allows {most} open files: "
            f"raise it (ulimit -Hn {users + _OTHER_FILES}), or test with fewer users"
        )


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """The garbage collector's pauses would be counted as the server's (98 ms at 4096 streams)."""
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def run_async(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of *work* on an event loop of its own, also where one is running already."""

    def alone() -> _T:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(work)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return alone()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(alone).result()


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop that is as fast as can be had."""
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
