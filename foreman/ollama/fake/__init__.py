"""FakeOllama."""
