"""Makes broken inputs out of good ones: by bytes, by numbers, and by the shape of JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from random import Random
from typing import Any

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_NUMBERS = (
    b"0", b"-1", b"1", b"-0.0", b"0.5", b"1e308", b"1e999", b"-1e308", b"1e-320", b"NaN",
    b"Infinity", b"-Infinity", b"2147483648", b"18446744073709551616", b"9" * 40, b"0x10",
    b"1_0", b"true", b"null", b'""', "٣".encode(),
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 0.5, -0.5, 1e308, 1e-320,
    float("nan"), float("inf"), "", " ", "x", "0", "-1", "1e400", "é\u2028\ud800", "\x00", [], {},
    [[]], [{}], {"": None}, [None], ["x"], [1e308], {"x": {"x": {}}},
)  # fmt: skip
_BYTES = (
    b"\n", b"\r", b"\r\n", b"\r\n\r\n", b"\n\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b"data:",
    b"data: [DONE]\n\n", b"0\r\n\r\n", b"f\r\n", b"[", b"]", b"{", b"}", b'"', b"\\", b"\\ud800",
    b",", b":", b";", b"-", b"  ", b"\t", b"%", b"&a", b"*a", b"!!", b"<<", b"|", b">", b"#", b"'",
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n", b"\x1f\x8b", "\u2028\u0085é".encode(), b"[" * 3000,
)  # fmt: skip


class Mutator:
    """Draws inputs for one target; the same seed draws the same ones."""

    def __init__(self, seeds: Sequence[bytes], rng: Random) -> None:
        self._seeds = seeds
        self._rng = rng
        self._documents = [found for seed in seeds if (found := _document(seed)) is not None]

    def next(self) -> bytes:
        """One input, most often a slightly broken seed."""
        rng = self._rng
        if self._documents and rng.random() < 0.5:
            data = self._reshaped()
            if rng.random() < 0.8:
                return data
        else:
            data = rng.choice(self._seeds)
        for _ in range(1 + int(rng.expovariate(1.0))):
            data = self._broken(data)
        return data

    def _broken(self, data: bytes) -> bytes:
        rng = self._rng
        size = len(data)
        at = rng.randrange(size + 1)
        to = min(size, at + int(rng.expovariate(0.1)))
        match rng.randrange(9):
            case 0 if size:
                bit = 1 << rng.randrange(8)
                at %= size
                return data[:at] + bytes((data[at] ^ bit,)) + data[at + 1 :]
            case 1:
                return data[:at] + data[to:]
            case 2:
                return data[:at] + data[at:to] + data[at:]
            case 3:
                return data[:at] + rng.choice(_BYTES) + data[at:]
            case 4:
                return data[:at] + rng.choice(_BYTES) + data[to:]
            case 5:
                return data[:at]
            case 6:
                other = rng.choice(self._seeds)
                return data[:at] + other[rng.randrange(len(other) + 1) :]
            case 7:
                return data[:at] + rng.randbytes(rng.randrange(9)) + data[to:]
            case _:
                return self._renumbered(data)

    def _renumbered(self, data: bytes) -> bytes:
        """Another number in the place of one."""
        near = self._rng.randrange(len(data) + 1)
        found = _NUMBER.search(data, near) or _NUMBER.search(data)
        if found is None:
            return data
        return data[: found.start()] + self._rng.choice(_NUMBERS) + data[found.end() :]

    def _reshaped(self) -> bytes:
        """A JSON seed with some of its values replaced, removed or moved."""
        rng = self._rng
        lines = rng.choice(self._documents)
        if len(lines) > 1 and rng.random() < 0.5:
            lines = rng.sample(lines, rng.randint(1, min(4, len(lines))))
        spot = rng.randrange(len(lines))
        made = [
            self._other(line, 1 + rng.randrange(4)) if i == spot else line
            for i, line in enumerate(lines)
        ]
        end = "\n" if len(made) > 1 or rng.random() < 0.5 else ""
        text = "\n".join(json.dumps(line, ensure_ascii=rng.random() < 0.7) for line in made) + end
        return text.encode("utf-8", "surrogatepass")

    def _other(self, value: Any, left: int) -> Any:
        """*value* with about one change, somewhere down in it."""
        rng = self._rng
        if not isinstance(value, dict | list) or not value or rng.random() < 0.12:
            return rng.choice(_VALUES)
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        made: Any = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(keys)
        chance = rng.random()
        if chance < 0.08:
            del made[key]
        elif chance < 0.14:
            made[key] = value[rng.choice(keys)]
        elif chance < 0.18 and isinstance(made, list):
            made += made[: rng.randrange(4)]
        else:
            made[key] = self._other(value[key], left)
        return self._other(made, left - 1) if left > 1 and rng.random() < 0.3 else made


def _document(seed: bytes) -> list[Any] | None:
    """The JSON values of a seed, one a line; None: it is no JSON."""
    try:
        return [json.loads(seed)]
    except ValueError:
        pass
    try:
        return [json.loads(line) for line in seed.decode().split("\n") if line.strip()] or None
    except ValueError:
        return None
