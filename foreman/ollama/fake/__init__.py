"""A stand-in for Ollama 0.32.15, faithful to the byte where it matters, with faults on demand.

`python -m foreman.ollama.fake` runs it as a process.
"""

from .exchange import Record
from .faults import Fault, Faults
from .models import FakeModel, default_models, parse_models, streaming_model
from .scheduler import Load, Overlap
from .server import FakeOllama

__all__ = [
    "FakeModel",
    "FakeOllama",
    "Fault",
    "Faults",
    "Load",
    "Overlap",
    "Record",
    "default_models",
    "parse_models",
    "streaming_model",
]
