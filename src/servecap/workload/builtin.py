"""The data sets that come with servecap; their sources and licences are in data/SOURCES.md."""

from __future__ import annotations

from importlib import resources

import msgspec

from servecap.workload import formats
from servecap.workload.sample import Parsed


class Builtin(msgspec.Struct, frozen=True, kw_only=True):
    """A file in the package's `data` folder and, in one line, what it is."""

    file: str
    origin: str


_DOCQA_EN = Builtin(
    file="docqa-en.json.gz",
    origin=(
        "documents composed of model answers of Arena-Hard (Apache-2.0), each with questions"
        " that one of its sections answers"
    ),
)
BUILTINS = {
    "chat-en": Builtin(
        file="chat-en.jsonl.gz",
        origin=(
            "user prompts of Arena-Hard with model answers cut to the lengths of a chat"
            " (Apache-2.0)"
        ),
    ),
    "chat-zh": Builtin(
        file="chat-zh.jsonl.gz",
        origin="Chinese instructions and model answers of LLaMA-Factory's demo data (Apache-2.0)",
    ),
    "docqa-en": _DOCQA_EN,
    "docqa-zh": Builtin(
        file="docqa-zh.json.gz",
        origin=(
            "Chinese government work reports of LongBench's multifieldqa_zh (MIT), with questions"
            " answered by quoting them"
        ),
    ),
    "docqa": _DOCQA_EN,
}


def load(name: str) -> Parsed:
    """The built-in data set's samples."""
    resource = resources.files("servecap.workload") / "data" / BUILTINS[name].file
    with resources.as_file(resource) as path:
        return formats.load(str(path))
