"""Everything that knows Ollama."""
