"""The models a FakeOllama serves: what they are called, how long they take and what they say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import cycle, islice
from math import inf
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from foreman.ollama.names import is_valid, normalise

if TYPE_CHECKING:
    from .asks import Ask


def _words(text: str) -> tuple[str, ...]:
    """Words as a model says them, each with the blank before it."""
    return tuple(f" {word}" for word in text.split())


NATO = _words(
    "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec "
    "romeo sierra tango uniform victor whiskey xray yankee zulu"
)


def listed_name(name: str) -> str | None:
    """A name as `/api/tags` has it, its tag included; None for one that Ollama calls invalid (ollama-wire §6)."""
    return normalise(name) if is_valid(name) else None


def _listed_or_error(name: str) -> str:
    listed = listed_name(name)
    if listed is None:
        raise ValueError(f"{name!r} is no model name")
    return listed


@frozen(kw_only=True)
class FakeModel:
    """One model of the stand-in.

    :ivar name: as listed, `tiny-a:latest`; a missing tag is added.
    :ivar size: in bytes, on disk and in memory.
    :ivar load_time: seconds from the start of a load to its end; `prompt_time`: seconds before the first token.
    :ivar token_rate: tokens a second; `inf` for as fast as the client reads.
    :ivar words: the tokens of every answer; a `seed` without `temperature: 0` picks some of them.
    :ivar thinking: tokens said before them, by a model with the capability `thinking`.
    :ivar answer: makes the tokens from the request instead; called again for each request, may be endless.
    :ivar blob: what the scheduler tells models apart by: two names with one blob share a runner.
    """

    name: str = field(converter=_listed_or_error)
    size: int = 550_000
    load_time: float = 0.0
    prompt_time: float = 0.0
    token_rate: float = inf
    capabilities: tuple[str, ...] = ("completion",)
    words: tuple[str, ...] = NATO
    thinking: tuple[str, ...] = ()
    answer: Callable[[Ask], Iterable[str]] | None = None
    context_length: int = 2048
    embedding_length: int = 64
    family: str = "llama"
    parameter_size: str = "144K"
    quantization_level: str = "unknown"
    modified_at: float = 1795222031.525773843
    blob: str = field()

    @blob.default
    def _blob_of_name(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    @property
    def digest(self) -> str:
        """64 hex digits, without `sha256:`; the same for a copy."""
        return hashlib.sha256(f"manifest {self.blob}".encode()).hexdigest()

    @property
    def is_worker(self) -> bool:
        """Whether it does anything but embed."""
        return self.capabilities != ("embedding",)

    @property
    def details(self) -> dict[str, object]:
        """What show, tags and ps say of it; tags adds the lengths."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.family,
            "families": [self.family],
            "parameter_size": self.parameter_size,
            "quantization_level": self.quantization_level,
        }


def streaming_model(name: str, *, tokens: int, token_bytes: int, token_rate: float = inf) -> FakeModel:
    """A model whose every answer is `tokens` tokens of `token_bytes` ASCII bytes each, made as they are read.

    The tokens are numbered: Ollama ends an answer that repeats itself.
    """

    def answer(_: Ask) -> Iterator[str]:
        for number in range(tokens):
            yield f" {number:07d}".ljust(token_bytes, "x")[:token_bytes]

    return FakeModel(name=name, answer=answer, token_rate=token_rate)


def echo(tokens: int) -> Callable[[Ask], Iterable[str]]:
    """An answer that says the words of the prompt, again and again, until it has so many tokens."""

    def answer(ask: Ask) -> Iterator[str]:
        return islice(cycle(_words(ask.prompt)), tokens)

    return answer


def default_models(**changes: object) -> tuple[FakeModel, ...]:
    """The models of the recorded traffic, instant unless `changes` (fields of FakeModel) say otherwise."""
    numbers = _words("one two three four five six seven eight nine ten")
    colours = _words("red orange yellow green blue indigo violet black white grey pink brown")
    signs = (
        " héllo",
        " 世界",
        " 🙂",
        " <b>&amp;</b>",
        " \u2028",
        ' "quoted"',
        " back\\slash",
        " tab\there",
        " \xa0nbsp",
    )
    models = (
        FakeModel(name="mid-b", size=68_010_182, parameter_size="33.99M", embedding_length=512, words=numbers),
        FakeModel(name="mid-a", size=68_142_662, parameter_size="34.05M", embedding_length=512),
        FakeModel(name="tiny-tools", capabilities=("completion", "tools")),
        FakeModel(
            name="tiny-think",
            capabilities=("completion", "thinking"),
            thinking=("hmm", " let", " me", " see", " "),
            answer=lambda ask: ("180", " Tokyo") if ask.think else (" Tokyo",),
        ),
        FakeModel(name="tiny-uni", words=signs),
        FakeModel(name="tiny-rep", words=(" echo",) * 100),
        FakeModel(name="tiny-d", words=tuple(reversed(NATO))),
        FakeModel(name="tiny-b", words=numbers),
        FakeModel(name="tiny-embed", capabilities=("embedding",), family="bert", context_length=512, size=448_598),
        FakeModel(name="tiny-a"),
        FakeModel(name="tiny-c", words=colours),
    )
    newest = 1795222413.391024297
    return tuple(
        evolve(model, **{"modified_at": newest - 60 * place, **changes})  # type: ignore[arg-type]
        for place, model in enumerate(models)
    )


_SPEC: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "load": ("load_time", float),
    "prompt": ("prompt_time", float),
    "rate": ("token_rate", float),
    "size": ("size", lambda text: int(float(text))),
    "capabilities": ("capabilities", lambda text: tuple(text.split("+"))),
    "words": ("words", lambda text: tuple(f" {word}" for word in text.split("+"))),
    "context": ("context_length", int),
    "echo": ("answer", lambda text: echo(int(text))),
}


def parse_models(spec: str) -> tuple[FakeModel, ...]:
    """Models from `name[,key=value]…;name…`.

    Keys: `load`, `prompt` (seconds), `rate` (tokens a second), `size` (bytes), `capabilities` and `words` (joined by
    `+`), `context`, `echo` (so many tokens, the words of the prompt), and `tokens` with `token_bytes` for a model of
    long answers.  A name of the default set starts from that model; `defaults` stands for all of them.

    :raise ValueError: naming what cannot be read.
    """
    known = {model.name: model for model in default_models()}
    models: dict[str, FakeModel] = {}
    for entry in filter(None, (part.strip() for part in spec.split(";"))):
        name, *pairs = (part.strip() for part in entry.split(","))
        if bare := [pair for pair in pairs if "=" not in pair]:
            raise ValueError(f"{entry!r}: {bare[0]!r} is not key=value")
        settings = dict(pair.split("=", 1) for pair in pairs)
        tokens, token_bytes = settings.pop("tokens", None), settings.pop("token_bytes", "8")
        unknown = settings.keys() - _SPEC.keys()
        if unknown:
            raise ValueError(f"{entry!r}: unknown {', '.join(sorted(unknown))}; known: {', '.join(_SPEC)}")
        changes = {_SPEC[key][0]: _SPEC[key][1](text) for key, text in settings.items()}
        if name == "defaults":
            chosen = list(known.values())
        elif tokens is not None:
            chosen = [streaming_model(name, tokens=int(tokens), token_bytes=int(token_bytes))]
        else:
            chosen = [known.get(_listed_or_error(name)) or FakeModel(name=name)]
        models.update({model.name: evolve(model, **changes) for model in chosen})  # type: ignore[arg-type]
    return tuple(models.values())
