"""The API dialects there are, and the names users call them by."""

from __future__ import annotations

from servecap.wire.openai import OpenAi
from servecap.wire.tgi import Tgi

Api = OpenAi | Tgi

API_NAMES = ("auto", "openai-chat", "openai-completions", "tgi")
