"""Which prompts are sent and how long their answers shall be; `source.load` is the way in."""
