"""An LLM server without a GPU: the engine model in real time behind HTTP.

`servecap.emulate.launch` starts it, `servecap.emulate.config` says what it is.
"""
