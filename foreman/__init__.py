"""foreman: one small daemon in front of one Ollama."""

__version__ = "0.1.0"
