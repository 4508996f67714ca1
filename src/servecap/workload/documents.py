"""Prompts that ask about a long document: LongBench, SQuAD, DuReader.

The document comes first and the question last, so that questions about one document share a
prefix (`prefix_key`), as they would in a service. Every function may give several samples for
one record. Raises msgspec.ValidationError where the record has not the format's shape.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

from servecap.record import Message
from servecap.workload.sample import Dropped, Sample

NO_DOCUMENT = Dropped("no document")
_HAN = re.compile("[\u4e00-\u9fff]")


def ask(document: str, question: str, answer: str | None) -> Sample | Dropped:
    """The document, then the question (or a wish for a summary), in the question's language."""
    if not document.strip():
        return NO_DOCUMENT
    chinese = _HAN.search(question or document[:500]) is not None
    match (chinese, bool(question.strip())):
        case (True, True):
            tail = f"问题：{question}\n请根据上面的文字回答。"
        case (True, False):
            tail = "请概括上面的文字。"
        case (False, True):
            tail = f"Question: {question}\nAnswer from the text above."
        case _:
            tail = "Summarise the text above."
    return Sample(
        messages=(Message("user", f"{document}\n\n{tail}"),),
        answer=answer,
        prefix_key=hashlib.sha256(document.encode()).hexdigest()[:16],
        prefix_chars=len(document),
    )


class _LongBench(msgspec.Struct):
    input: str
    context: str
    answers: list[str]


def longbench(value: Any) -> list[Sample | Dropped]:
    """The context with its question; an empty question asks for a summary.

    LongBench has a prompt template of its own per data set; one neutral wording is used here,
    which changes the prompt's length by a few tokens.
    """
    record = msgspec.convert(value, _LongBench)
    return [ask(record.context, record.input, _first(record.answers))]


class _Answer(msgspec.Struct):
    text: str


class _Question(msgspec.Struct):
    question: str
    answers: list[_Answer] = []


class _Paragraph(msgspec.Struct):
    context: str
    qas: list[_Question] = []


class _Article(msgspec.Struct):
    paragraphs: list[_Paragraph]


class _Squad(msgspec.Struct):
    data: list[_Article]


def squad(value: Any, *, whole_article: bool = True) -> list[Sample | Dropped]:
    """One sample a question, about the article's paragraphs joined by blank lines.

    Args:
        whole_article: False asks about the question's own paragraph only (`squad-paragraph`).
    """
    samples: list[Sample | Dropped] = []
    for article in msgspec.convert(value, _Squad).data:
        joined = "\n\n".join(paragraph.context for paragraph in article.paragraphs)
        for paragraph in article.paragraphs:
            document = joined if whole_article else paragraph.context
            samples += [
                ask(document, qa.question, _first([answer.text for answer in qa.answers]))
                for qa in paragraph.qas
            ]
    return samples


class _Document(msgspec.Struct):
    paragraphs: list[str]
    title: str = ""


class _DuReader(msgspec.Struct):
    question: str
    documents: list[_Document]
    answers: list[str] = []


def dureader(value: Any) -> list[Sample | Dropped]:
    """The question about all its documents, each with its title, in the order of the record."""
    record = msgspec.convert(value, _DuReader)
    texts = [
        "\n".join([document.title, *document.paragraphs]).strip() for document in record.documents
    ]
    document = "\n\n".join(text for text in texts if text)
    return [ask(document, record.question, _first(record.answers))]


def _first(answers: list[str]) -> str | None:
    return answers[0] if answers else None
