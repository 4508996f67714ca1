"""Texts of a matrix spec with placeholders in braces, checked before any server is started."""

from __future__ import annotations

from urllib.parse import urlsplit

from servecap.matrix.document import Document, Path_
from servecap.matrix.job import PLACEHOLDERS, CellJob, Command, Url, placeholders


def check_texts(document: Document, job: CellJob, path: Path_) -> None:
    """Returns if every text with placeholders can be filled in, and every URL is one.

    Raises:
        UsageError: the first that is not, with its place in the file.
    """
    match job.source:
        case Url(url=url):
            _check_url(document, job, (*path, "url"), url, but=("host", "port"))
        case Command() as command:
            for word in command.command:
                check_text(document, (*path, "command"), word)
            for name, value in command.env.items():
                check_text(document, (*path, "env", name), value)
            _check_url(document, job, (*path, "url"), command.url)
            _check_url(document, job, (*path, "ready"), command.ready)


def check_text(document: Document, path: Path_, text: str, *, but: tuple[str, ...] = ()) -> None:
    """Returns if the text holds only known placeholders, and none of *but*.

    Raises:
        UsageError: it holds another, or a brace without partner.
    """
    allowed = [name for name in PLACEHOLDERS if name not in but]
    try:
        wrong = placeholders(text) - set(allowed)
    except ValueError as error:
        raise document.error(path, f"{text!r}: {error} (write {{{{ for a brace)") from None
    if wrong:
        names = ", ".join(f"{{{name}}}" for name in sorted(wrong))
        raise document.error(
            path, f"{text!r} holds {names}; known: {', '.join(allowed)} (write {{{{ for a brace)"
        )


def _check_url(
    document: Document, job: CellJob, path: Path_, text: str, *, but: tuple[str, ...] = ()
) -> None:
    check_text(document, path, text, but=but)
    url = text.format(**job.values("127.0.0.1", 1))
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise document.error(path, f"{url!r} is no URL like http://host:8000")
