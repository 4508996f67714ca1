"""The API dialects there are, and the names users call them by."""

from __future__ import annotations

from servecap.wire.ollama import Ollama
from servecap.wire.openai import OpenAi
from servecap.wire.sglang import SgLang
from servecap.wire.tgi import Tgi

Api = OpenAi | Tgi | Ollama | SgLang

API_NAMES = (
    "auto",
    "openai-chat",
    "openai-completions",
    "tgi",
    "ollama-chat",
    "ollama-generate",
    "sglang",
)
