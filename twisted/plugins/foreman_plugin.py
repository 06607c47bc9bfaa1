"""`twistd foreman`."""

from twisted.application.service import ServiceMaker

foreman = ServiceMaker(  # type: ignore[no-untyped-call]
    "foreman", "foreman.tap", "A durable queue in front of one Ollama, which speaks Ollama itself.", "foreman"
)
