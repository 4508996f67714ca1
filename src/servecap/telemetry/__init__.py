"""What happens around a run: the server's own metrics, GPUs, and the machines at both ends.

A process of its own looks (`sampler`), so that neither its time nor a server that is slow to tell
touches the measurement, and writes to the run's folder line by line.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import msgspec

from servecap.sample import TELEMETRY, end
from servecap.telemetry.sampler import Into, Watch

MOST_SAMPLES = 3600  # of each source in a run, so that a long one's file stays small
_END_S = 2.0


class Sampler:
    """The process that looks; it costs nothing until the first run."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._child: subprocess.Popen[bytes] | None = None
        self._run: tuple[Path, float] | None = None  # that goes on: its folder, and when it began

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Have the process ready before there is any load."""
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "servecap.telemetry.sampler"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the client's to act on
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
            self._tell(self._watch)

    def into(self, folder: Path, longest_s: float) -> None:
        """A run begins now, which is kept in *folder* and lasts so long at most."""
        self.start()
        every_s = max(1.0, longest_s / MOST_SAMPLES)
        path = str((folder / TELEMETRY).resolve())
        self._run = folder, time.monotonic()
        self._tell(Into(path=path, zero_s=self._run[1], every_s=every_s))

    def rest(self) -> None:
        """The run is over."""
        if self._child is not None:
            self._tell(Into(path=None))
        run, self._run = self._run, None
        if run is not None:
            end(run[0], time.monotonic() - run[1])

    def _tell(self, what: object) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):  # a sampler that died is missed in the report only
            self._child.stdin.write(msgspec.json.encode(what) + b"\n")
            self._child.stdin.flush()

    def close(self) -> None:
        """Look no more."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        with contextlib.suppress(OSError):
            child.stdin.close()
        try:
            child.wait(_END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
