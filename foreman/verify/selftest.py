"""The self-test: everything is asked directly and through foreman, and the answers are held against each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attrs import frozen

from foreman.verify.compare import differences, shape_differences
from foreman.verify.findings import Finding, Verdict
from foreman.verify.questions import Question, questions
from foreman.verify.timing import timing
from foreman.verify.wire import Answer, NotReached, Place, ask

_PREFLIGHT = ("header allow:", "header access-control-allow-headers:")


class Unusable(Exception):
    """There is nothing to compare: no such model, no token, no foreman; the text is for people."""


@frozen
class Models:
    """Whom the questions name, as the target lists them.

    :ivar embedder: None if the target has no model that says it embeds.
    """

    chats: str
    embedder: str | None


def choose(direct: Place, wanted: str | None) -> Models:
    """Find the models to ask: the wanted one, else one that is loaded, else the smallest.

    :raise Unusable: the target has it not, or no model at all.
    :raise NotReached: the target does not answer as an Ollama.
    """
    listed = sorted(_models(direct, "/api/tags"), key=lambda each: each.get("size", 0))
    embedders = [each["name"] for each in listed if _capabilities(each) == {"embedding"}]
    chats = [each["name"] for each in listed if each["name"] not in embedders]
    if wanted is not None:
        named = [
            each["name"] for each in listed if each["name"].lower() in (wanted.lower(), f"{wanted.lower()}:latest")
        ]
        if not named:
            raise Unusable(f"{direct.url} has no model {wanted!r}")
        return Models(named[0], next(iter(embedders), None))
    if not chats:
        raise Unusable(f"{direct.url} has no model that chats")
    loaded = [each["name"] for each in _models(direct, "/api/ps") if each["name"] in chats]
    return Models([*loaded, *chats][0], next(iter(embedders), None))


def check_places(direct: Place, through: Place) -> None:
    """See that both sides answer, and let us in, and that foreman is what is tested.

    :raise NotReached: one does not; `Unusable`: one wants a token, or no foreman is there.
    """
    _check_ollama(direct)
    health = ask(through, "GET", "/healthz")  # the Ollama itself would pass every check
    if not _is_foremans(health):
        raise Unusable(
            f"--through {through.url} is not a foreman: it answers {health.status} to GET /healthz, "
            "and not as foreman does"
        )
    _check_ollama(through)


def is_foreman(place: Place) -> bool:
    """Whether a foreman answers there.

    :raise NotReached: nobody does.
    """
    return _is_foremans(ask(place, "GET", "/healthz"))


def _is_foremans(health: Answer) -> bool:
    try:
        document = json.loads(health.body)
    except ValueError:
        return False
    return isinstance(document, dict) and {"status", "version", "target", "queue"} <= document.keys()


def _check_ollama(place: Place) -> None:
    answer = ask(place, "GET", "/api/version")
    if answer.status == 401:
        raise Unusable(f"{place.url} wants a token, or another one")
    if answer.status != 200:
        raise NotReached(f"{place.url} does not answer as an Ollama, but {answer.status} to GET /api/version")


def verify(
    direct: Place, through: Place, models: Models, *, tell: Callable[[str], None] = lambda name: None
) -> Iterator[Finding]:
    """Check after check.

    :param tell: called with the name of each check before it begins.
    :raise NotReached: a side does not answer any more.
    """
    ask(direct, "POST", "/api/chat", json.dumps({"model": models.chats}).encode())  # loaded for the first question, too
    for question in questions(models.chats, models.embedder):
        tell(question.name)
        yield compare(direct, through, question)
    tell("timing")
    yield from timing(direct, through, models.chats)


def compare(direct: Place, through: Place, question: Question) -> Finding:
    """Ask both and compare, and ask again before anything is called different.

    :raise NotReached: a side does not answer.
    """
    one, other = _asked(direct, question), _asked(through, question)
    found = differences(one, other, question.method)
    if not found:
        return Finding(question.name, Verdict.IDENTICAL)
    if (own := _own(question, other, found)) is not None:
        return Finding(question.name, Verdict.OWN, (own,))
    again = _asked(direct, question)
    if differences(one, again, question.method):
        found = shape_differences(again, other, question.method)
        if not found:
            return Finding(question.name, Verdict.IDENTICAL, ("by shape: the target does not say the same twice",))
    else:
        # Something may have changed between the two; then they are the same from now on.
        tries = [differences(again, _asked(through, question), question.method) for _ in range(2)]
        if not any(tries):
            return Finding(question.name, Verdict.IDENTICAL, (f"when asked again; at first {found[0]}",))
    return Finding(question.name, Verdict.DIFFERENT, tuple(found))


def _asked(place: Place, question: Question) -> Answer:
    return ask(place, question.method, question.path, question.body, question.headers)


def _own(question: Question, answer: Answer, found: Sequence[str]) -> str | None:
    """What foreman documents of an answer that is not the target's."""
    if question.method == "OPTIONS" and all(each.startswith(_PREFLIGHT) for each in found):
        return "foreman answers preflights itself, and allows pages its own headers, too"
    if question.administers and answer.status == 403 and b"FOREMAN_MODEL_ADMIN" in answer.body:
        return "foreman carries what changes the target with FOREMAN_MODEL_ADMIN=on only"
    if answer.header("x-foreman-degraded") is not None:
        return f"the target took too long, and foreman gave an answer of {answer.header('age')} s ago"
    return None


def _models(place: Place, path: str) -> list[dict[str, Any]]:
    answer = ask(place, "GET", path)
    try:
        return [each for each in json.loads(answer.body)["models"] if isinstance(each["name"], str)]
    except (ValueError, LookupError, TypeError):
        raise NotReached(f"{place.url} does not answer as an Ollama, but {answer.status} to GET {path}") from None


def _capabilities(model: dict[str, Any]) -> set[str]:
    return set(model.get("capabilities") or ())
