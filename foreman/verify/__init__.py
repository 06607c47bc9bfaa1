"""`foreman verify`: whether what Ollama says comes through foreman as it was said, on the operator's own network.

It stands outside: it speaks with both sides over sockets of its own and imports nothing of foreman.
"""

from foreman.verify.command import verify

__all__ = ["verify"]
