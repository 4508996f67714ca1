"""Makes the data sets that come with servecap from the sample data beside the repository.

    python tools/make_datasets.py [FOLDER_WITH_THE_SAMPLE_DATA]

The result is the same on every run. Only files under Apache-2.0 and MIT are read; what is taken
from each, and how, is told in src/servecap/workload/data/SOURCES.md. Run it again after a change
here and commit what it writes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from servecap.workload.tokens import Estimate

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "src/servecap/workload/data"
count = Estimate().count

# Long numbers may be someone's telephone; addresses of a company's own reports name people.
PRIVATE = re.compile(r"[0-9]{11}|powerbi\.com|\w@\w+\.\w")

# chat-en: prompts and answers like ShareGPT's, about 240 and 200 tokens in the mean
CHAT_SHORT_PROMPT = 150
CHAT_SHORT, CHAT_LONG = 78, 122
CHAT_ANSWER_MIN, CHAT_ANSWER_MORE, CHAT_ANSWER_MAX = 24, 200, 900
CHAT_ZH = 160
# docqa: documents of about 3000 tokens, answers of about 150
DOC_TOKENS = 3000
DOCS_EN, QUESTIONS_EN = 16, 4
DOCS_ZH, QUESTIONS_ZH = 14, 4
ZH_CHARS = 4600


def main(folder: Path) -> None:
    """Writes the four data sets and prints what each amounts to."""
    arena = list(_pairs(folder / "en_arena_hard_sharegpt.json"))
    _write("chat-en.jsonl.gz", "\n".join(map(_line, chat_en(arena))))
    _write("chat-zh.jsonl.gz", "\n".join(map(_line, chat_zh(folder))))
    _write("docqa-en.json.gz", _line({"data": list(docqa_en(arena))}))
    _write("docqa-zh.json.gz", _line({"data": list(docqa_zh(folder))}))


def chat_en(arena: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Arena-Hard prompts, short and long ones mixed, with answers cut at a sentence's end.

    The models' answers are three times as long as a chat's, so each is cut to a length of its
    own, spread as chat answers are: nearly exponential, many short ones and a long tail.
    """
    usable = [
        (key, prompt, _cut(answer, _chat_limit(key)))
        for key, prompt, answer in _shuffled(arena)
        if 4 <= count(prompt) <= 1000
    ]
    usable = [item for item in usable if count(item[2]) >= 8]
    short = [item for item in usable if count(item[1]) < CHAT_SHORT_PROMPT][:CHAT_SHORT]
    long = [item for item in usable if count(item[1]) >= CHAT_SHORT_PROMPT][:CHAT_LONG]
    return [_conversation(*item) for item in _shuffled(short + long)]


def _chat_limit(key: str) -> int:
    share = (int(hashlib.sha256(f"length {key}".encode()).hexdigest()[:8], 16) + 1) / 2**32
    return min(CHAT_ANSWER_MAX, round(CHAT_ANSWER_MIN - CHAT_ANSWER_MORE * math.log(share)))


def chat_zh(folder: Path) -> list[dict[str, Any]]:
    """The first part of the Chinese file: instructions and answers, not human-human talk."""
    records = json.loads((folder / "zh_chat_sharegpt.json").read_text("utf-8"))
    usable = []
    for record in records:
        turns = record["conversations"]
        lengths = [count(turn["value"]) for turn in turns]
        single = record["id"].startswith("dpo-zh-") and len(turns) in (2, 3)
        single = single and not any(PRIVATE.search(turn["value"]) for turn in turns)
        if single and min(lengths[-2:]) >= 4 and lengths[-2] <= 1000 and sum(lengths) <= 2000:
            usable.append((record["id"], turns))
    return [{"id": key, "conversations": turns} for key, turns in _shuffled(usable)[:CHAT_ZH]]


def docqa_en(arena: list[tuple[str, str, str]]) -> Iterator[dict[str, Any]]:
    """Documents of numbered sections, each section one model answer; see SOURCES.md."""
    pool = [item for item in _shuffled(arena) if "```" not in item[2]]
    asked = [i for i in pool if count(i[1]) <= 120 and 60 <= count(i[2]) <= 300]
    fill = iter([i for i in pool if 400 <= count(i[2]) <= 900])
    for number in range(DOCS_EN):
        targets = asked[number * QUESTIONS_EN : (number + 1) * QUESTIONS_EN]
        sections = [answer.strip() for _, _, answer in targets]
        while sum(map(count, sections)) < DOC_TOKENS - 300:
            sections.append(next(fill)[2].strip())
        sections = [text for _, text in _shuffled([(text, text) for text in sections])]
        document = "\n\n".join(f"Section {i}\n\n{text}" for i, text in enumerate(sections, 1))
        questions = [
            (f"Which section answers the following request? Quote it.\n{prompt}", answer.strip())
            for _, prompt, answer in targets
        ]
        yield _article(f"docqa-en-{number}", document, questions)


def docqa_zh(folder: Path) -> Iterator[dict[str, Any]]:
    """Government work reports, cropped by whole paragraphs, with questions answered by quoting."""
    reports: dict[str, list[tuple[str, str]]] = {}
    lines = (folder / "zh_docqa_longbench_multifieldqa_zh.jsonl").read_text("utf-8").split("\n")
    for record in (json.loads(line) for line in lines if line):
        if re.search("各位代表|政府工作报告", record["context"][:400]):
            found = reports.setdefault(record["context"], [])
            found.append((record["input"], record["answers"][0]))
    for number, (context, asked) in enumerate(list(reports.items())[:DOCS_ZH]):
        paragraphs = [part.strip() for part in context.split("\n") if part.strip()]
        question, answer = asked[0]
        kept = _around(paragraphs, _evidence(paragraphs, question + answer))
        quoted = kept[_evidence(kept, question + answer)]
        questions = [(f"{question}先回答，再引用原文。", f"{answer}\n原文：{_cut(quoted, 200)}")]
        for part in _quotable(kept, quoted)[: QUESTIONS_ZH - 1]:
            start = re.split("[，。：；、]", part)[0]
            questions.append(
                (f"报告中以“{start}”开头的一段说了什么？请引用原文。", _cut(part, 250))
            )
        yield _article(f"docqa-zh-{number}", "\n".join(kept), questions)


def _evidence(paragraphs: list[str], wanted: str) -> int:
    """The paragraph that has most pairs of neighbouring characters in common with *wanted*."""
    pairs = {wanted[i : i + 2] for i in range(len(wanted) - 1)}
    return max(range(len(paragraphs)), key=lambda i: sum(pair in paragraphs[i] for pair in pairs))


def _around(paragraphs: list[str], centre: int) -> list[str]:
    """Whole paragraphs around the centre, up to `ZH_CHARS` characters."""
    low, high = centre, centre + 1
    size = len(paragraphs[centre])
    while low > 0 or high < len(paragraphs):
        before = low > 0 and (centre - low <= high - centre or high == len(paragraphs))
        size += len(paragraphs[low - 1 if before else high])
        if size > ZH_CHARS:
            break
        low, high = (low - 1, high) if before else (low, high + 1)
    return paragraphs[low:high]


def _quotable(paragraphs: list[str], taken: str) -> list[str]:
    """Paragraphs of 100 to 400 characters whose first words are found only there."""
    text = "\n".join(paragraphs)
    fit = []
    for part in paragraphs:
        start = re.split("[，。：；、]", part)[0]
        fits = part != taken and 100 <= len(part) <= 400 and 4 <= len(start) <= 30
        if fits and text.count(start) == 1:
            fit.append(part)
    return [part for _, part in _shuffled([(part, part) for part in fit])]


def _pairs(path: Path) -> Iterator[tuple[str, str, str]]:
    for record in json.loads(path.read_text("utf-8")):
        prompt, answer = (turn["value"] for turn in record["conversations"])
        if not PRIVATE.search(prompt + answer):
            yield record["id"], prompt, answer


def _shuffled(items: list[Any]) -> list[Any]:
    """Ordered by a hash of each item's first field: mixed, but the same on every run."""
    return sorted(items, key=lambda item: hashlib.sha256(item[0].encode()).hexdigest())


def _cut(text: str, limit: int) -> str:
    """The text up to the last line's or sentence's end within *limit* tokens."""
    if count(text) <= limit:
        return text
    ends = [m.end() for m in re.finditer(r"[.!?](?=\s)|[。！？；]|(?=\n)", text)]
    fitting = [end for end in ends if count(text[:end]) <= limit]
    return text[: fitting[-1]].rstrip() if fitting else text[: limit * 3]


def _conversation(key: str, prompt: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return {"id": key, "conversations": turns}


def _article(title: str, document: str, questions: list[tuple[str, str]]) -> dict[str, Any]:
    qas = [
        {"id": f"{title}-{i}", "question": question, "answers": [{"text": answer}]}
        for i, (question, answer) in enumerate(questions)
    ]
    prompts = fmean(count(document + question) for question, _ in questions)
    answers = fmean(count(answer) for _, answer in questions)
    print(f"  {title}: {len(qas)} questions, prompt {prompts:.0f}, answer {answers:.0f}")
    return {"title": title, "paragraphs": [{"context": document, "qas": qas}]}


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _write(name: str, text: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    data = gzip.compress(text.encode(), compresslevel=9, mtime=0)
    (OUT / name).write_bytes(data)
    print(f"{name}: {len(text.encode())} bytes, {len(data)} packed")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0]) if given else ROOT.parent / "shared/data/datasets")
