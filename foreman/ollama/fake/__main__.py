"""`python -m foreman.ollama.fake`: the stand-in as a process of its own.

It prints its URL on the first line when it listens, and the URL of its control routes on the second.
"""

# mypy: disallow-untyped-calls=False
# Twisted's HTTP classes are hardly typed.
from __future__ import annotations

import argparse
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import react
from twisted.web.server import Site

from .control import Control
from .models import FakeModel, default_models, parse_models
from .server import FakeOllama


def _models(spec: str) -> tuple[FakeModel, ...]:
    try:
        return parse_models(spec)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m foreman.ollama.fake", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 picks one")
    parser.add_argument("--control-port", type=int, default=0, help="of the control routes; 0 picks one")
    parser.add_argument("--slots", type=int, default=1, help="OLLAMA_MAX_LOADED_MODELS")
    parser.add_argument("--parallel", type=int, default=1, help="OLLAMA_NUM_PARALLEL")
    parser.add_argument("--max-queue", type=int, default=512, help="OLLAMA_MAX_QUEUE")
    parser.add_argument("--frozen", action="store_true", help="constant times in answers")
    parser.add_argument("--gpu", action="store_true", help="models are in video memory")
    parser.add_argument(
        "--models", type=_models, default=default_models(), help="name[,load=S][,prompt=S][,rate=N][,size=N]…;…"
    )
    parser.add_argument("--pullable", type=_models, default=(), help="what /api/pull can fetch, as --models")
    return parser.parse_args(argv)


async def _main(reactor: Any, argv: list[str]) -> None:
    options = _options(argv)
    fake = FakeOllama(
        reactor,
        options.models,
        slots=options.slots,
        parallel=options.parallel,
        max_queue=options.max_queue,
        frozen=options.frozen,
        gpu=options.gpu,
        pullable=options.pullable,
    )
    try:
        await fake.listen(options.port)
        control = reactor.listenTCP(options.control_port, Site(Control(fake).app.resource()), interface="127.0.0.1")
    except CannotListenError as error:
        raise SystemExit(f"cannot listen on {error.interface}:{error.port}: {error.socketError.strerror}") from error
    except OverflowError as error:  # no port has such a number
        raise SystemExit(f"cannot listen: {error}") from error
    sys.stdout.write(f"{fake.url}\nhttp://127.0.0.1:{control.getHost().port}\n")
    sys.stdout.flush()
    await Deferred()  # until a signal


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(_main(reactor, sys.argv[1:])))
