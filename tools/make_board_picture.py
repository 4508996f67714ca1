"""Writes docs/board.svg: what a terminal shows while `servecap find` searches, as it really is.

    python tools/make_board_picture.py [--after 45] [--out docs/board.svg]

An emulated server is started and searched in a terminal of our own; after so many seconds what
stands on it is drawn, in its colours, as text. The figures differ from one time to the next.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path

TARGET = Path(__file__).resolve().parents[1] / "docs" / "board.svg"
COLUMNS, ROWS = 108, 30
CHAR_PX, LINE_PX, PAD_PX = 8.4, 19, 16
SERVER = ("emulate", "--model", "llama-13b", "--gpu", "a30", "--tp", "2", "--port", "0")
SEARCH = ("find", "--output", "60", "--slo", "ttft.mean<500ms,tpot.mean<50ms")
COLOURS = {"31": "#f58a80", "32": "#4fc3b4", "33": "#e5ac55", "34": "#77aef2", "36": "#4fc3b4"}
_WIPED = re.compile(r"\x1b\[(\d+)A\r\x1b\[J")
_STYLE = re.compile(r"\x1b\[([\d;]*)m")


def screen(written: str) -> list[str]:
    """The lines that stand on the terminal after all this was written, with their colour codes."""
    lines: list[str] = [""]
    at = 0
    for wipe in [*_WIPED.finditer(written), None]:
        for text in written[at : wipe.start() if wipe else None].replace("\r\n", "\n").split("\n"):
            lines[-1] += text
            lines.append("")
        lines.pop()
        if wipe is not None:
            del lines[max(0, len(lines) - 1 - int(wipe[1])) :]
            lines.append("")
            at = wipe.end()
    return [line for line in lines if line.strip()]


def svg(lines: list[str]) -> str:
    """The lines as a picture of a terminal."""
    width = round(COLUMNS * CHAR_PX + 2 * PAD_PX)
    height = LINE_PX * len(lines) + 2 * PAD_PX
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="The terminal while servecap find searches">',
        f'<rect width="{width}" height="{height}" rx="10" fill="#111417"/>',
        "<g font-family=\"ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace\" "
        'font-size="14" fill="#e7eaee" xml:space="preserve">',
    ]
    for i, line in enumerate(lines):
        at = f'x="{PAD_PX}" y="{PAD_PX + LINE_PX * i + 14}"'
        out.append(f"<text {at}>{''.join(_pieces(line))}</text>")
    return "\n".join([*out, "</g>", "</svg>"]) + "\n"


def _pieces(line: str) -> Iterator[str]:
    """The line's words, each in its colour; the rest of what a terminal knows is left out."""
    colour = None
    for i, part in enumerate(_STYLE.split(line)):
        if i % 2:
            known = [COLOURS[code] for code in part.split(";") if code in COLOURS]
            colour = known[-1] if known else None
        elif part:
            words = escape(part).replace(" ", "\N{NO-BREAK SPACE}")
            yield f'<tspan fill="{colour}">{words}</tspan>' if colour else words


@contextlib.contextmanager
def emulator() -> Iterator[str]:
    """The URL of a server that is there as long as it is needed."""
    words = [sys.executable, "-m", "servecap", *SERVER]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            yield "http" + server.stderr.readline().partition(" at http")[2].split()[0]
        finally:
            server.terminate()


def watched(command: list[str], after_s: float) -> str:
    """What the command has written to a terminal of its own by then."""
    pid, terminal = pty.fork()
    if pid == 0:
        size = {"COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "xterm-256color"}
        os.execvpe(command[0], command, os.environ | size)
    written, end_s = b"", time.monotonic() + after_s
    try:
        while (left_s := end_s - time.monotonic()) > 0:
            if select.select([terminal], [], [], left_s)[0]:
                written += os.read(terminal, 65536)
    except OSError:  # Linux says so that nobody writes any more
        last = screen(written.decode(errors="replace"))[-1]
        raise SystemExit(f"it ended before there was a picture: {last}") from None
    finally:
        os.close(terminal)  # the command hears that nobody looks any more, and ends
        os.waitpid(pid, 0)
    return written.decode(errors="replace")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--after", type=float, default=45.0)
    options.add_argument("--out", type=Path, default=TARGET)
    given = options.parse_args()
    with emulator() as url, tempfile.TemporaryDirectory() as aside:
        out = str(Path(aside) / "find")
        command = [sys.executable, "-m", "servecap", *SEARCH, "--url", url, "--out", out]
        lines = screen(watched(command, given.after))
    shown = " ".join(word for word in ("servecap", *SEARCH[:1], "--url", url, *SEARCH[1:]))
    given.out.write_text(svg([f"$ {shown}", *lines]), encoding="utf-8")


if __name__ == "__main__":
    main()
