"""The engine model: what one instance of an LLM server does with its requests, in virtual time."""
