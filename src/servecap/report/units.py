"""Numbers and foreign strings as a person reads them. ASCII only; unknown is "n/a"."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import msgspec

from servecap.slo import Limit

UNKNOWN = "n/a"

# The field's term first, the plain one beside it.
TERMS = {
    "ttft": "TTFT (first_token_latency)",
    "ttft_sent": "TTFT since actual send",
    "tpot": "TPOT (avg_token_latency)",
    "e2e": "E2E (response_time)",
    "gap": "ITL (gap between chunks)",
    "lag": "send lag of the client",
    "queue": "queue time",
    "prefill": "prefill time",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "output tokens",
    "error_rate": "error rate",
}
SHORT = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E", "gap": "ITL", "error_rate": "error rate"}


class Unit(msgspec.Struct, frozen=True):
    """A unit of time with the decimals to print: one for a whole row of figures."""

    name: str
    per_s: float
    decimals: int

    def number(self, seconds: float | None) -> str:
        """The figure without its unit; "n/a" when it is unknown or infinite."""
        if seconds is None or not math.isfinite(seconds):
            return UNKNOWN
        return f"{seconds * self.per_s:,.{self.decimals}f}"

    def text(self, seconds: float | None) -> str:
        """The figure with its unit."""
        number = self.number(seconds)
        return number if number == UNKNOWN else f"{number} {self.name}"


def time_unit(typical_s: float | None) -> Unit:
    """The unit in which a value of that size has about three digits.

    >>> time_unit(1.234).text(1.234), time_unit(0.0618).text(0.0618), time_unit(2e-5).text(2e-5)
    ('1.23 s', '61.8 ms', '20 us')
    """
    size = abs(typical_s) if typical_s is not None and math.isfinite(typical_s) else 1.0
    if size >= 0.9995:
        return Unit("s", 1.0, 2 if size < 100 else 1)
    if size >= 1e-4 or size == 0:
        return Unit("ms", 1e3, 0 if size >= 0.0995 else 1 if size >= 0.00995 else 2)
    return Unit("us", 1e6, 0)


def seconds(value_s: float | None) -> str:
    """A time with the unit that suits it.

    >>> seconds(0.25), seconds(90.0), seconds(None)
    ('250 ms', '90.00 s', 'n/a')
    """
    return time_unit(value_s).text(value_s)


def spoken(value_s: float) -> str:
    """Seconds to two digits, as they are said to someone who does not count milliseconds.

    >>> spoken(0.1824), spoken(12.34), spoken(0.0004)
    ('0.18 s', '12 s', '0.0004 s')
    """
    return f"{value_s:.0f} s" if value_s >= 10 else f"{value_s:.2g} s"


def clock(value_s: float | None) -> str:
    """A moment or a length of a run, where a tenth of a second is enough.

    >>> clock(75.04), clock(4000.0)
    ('75.0 s', '4,000.0 s (66.7 min)')
    """
    if value_s is None or not math.isfinite(value_s):
        return UNKNOWN
    return f"{value_s:,.1f} s" + (f" ({value_s / 60:,.1f} min)" if value_s >= 600 else "")


def count(value: float | None, decimals: int | None = None) -> str:
    """A number with thousands separated, to three digits unless *decimals* says otherwise.

    >>> count(12345), count(12.345), count(0.1234), count(float("inf"))
    ('12,345', '12.3', '0.12', 'n/a')
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if decimals is None:
        if isinstance(value, int):
            decimals = 0
        else:
            decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{decimals}f}"


def share(value: float | None) -> str:
    """A share in [0, 1] as a percentage that never rounds to all or nothing when it is neither.

    >>> share(0.0), share(0.0042), share(0.99996), share(1.0), share(0.00001)
    ('0%', '0.4%', '>99.9%', '100%', '<0.1%')
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{value * 100:.1f}".removesuffix(".0") + "%"


def limit(item: Limit) -> str:
    """A limit in words.

    >>> limit(Limit("ttft", "mean", 3.0)), limit(Limit("tpot", "p99", 0.1))
    ('TTFT mean < 3 s', 'TPOT p99 < 100 ms')
    """
    return f"{SHORT.get(item.metric, item.metric)} {item.statistic} < {bound(item.at_most_s)}"


def bound(value_s: float) -> str:
    """A limit's own value, printed as it was asked: no digits that nobody gave.

    >>> bound(3.0), bound(0.1), bound(3.15)
    ('3 s', '100 ms', '3.15 s')
    """
    return f"{value_s:g} s" if value_s >= 1 else f"{value_s * 1e3:g} ms"


def number_word(n: int, noun: str) -> str:
    """A count with its noun in the right number.

    >>> number_word(1, "request"), number_word(2500, "request")
    ('1 request', '2,500 requests')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(parts: Sequence[str]) -> str:
    """Parts joined as in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    if len(parts) < 2:
        return "".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def clean(text: str, most: int = 300) -> str:
    """Text from a server, a prompt or a file, safe to print: no control or hidden characters.

    Line ends become spaces; every other control, format or unassigned character (terminal
    escapes, direction overrides) is spelled out; what is longer than *most* is cut.

    >>> clean("a\\x1b[31mb\\nc")
    'a\\\\x1b[31mb c'
    """
    # Spelling out only makes it longer: what is cut off first could not have been shown.
    seen = "".join(_visible(char) for char in text[: most + 1])
    return seen if len(seen) <= most else seen[: most - 3] + "..."


def clean_lists(lists: Sequence[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Headings with their items, safe to print; what has no items is left away."""
    return [(clean(name), [clean(item, 600) for item in items]) for name, items in lists if items]


def _visible(char: str) -> str:
    if char in "\n\r\t":
        return " "
    category = unicodedata.category(char)
    if category[0] == "C" or category in ("Zl", "Zp"):
        code = ord(char)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return char


def width(text: str) -> int:
    """Columns that the text takes in a terminal: wide East Asian characters take two."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
