"""`twistd foreman`."""

from twisted.application.service import ServiceMaker

foreman = ServiceMaker(
    "foreman", "foreman.tap", "A durable queue in front of one Ollama, which speaks Ollama itself.", "foreman"
)
