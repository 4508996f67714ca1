"""From bytes on a socket to a `Record`: HTTP, server-sent events and the API dialects."""
