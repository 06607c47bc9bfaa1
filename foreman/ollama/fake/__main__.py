"""`python -m foreman.ollama.fake`: the stand-in as a process of its own."""

from __future__ import annotations

import argparse
import sys

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from .models import default_models, parse_models
from .server import FakeOllama


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
        "--models", type=parse_models, default=default_models(), help="name[,load=S][,prompt=S][,rate=N][,size=N]…;…"
    )
    return parser.parse_args(argv)


async def _main(reactor: object, argv: list[str]) -> None:
    options = _options(argv)
    fake = FakeOllama(
        reactor,
        options.models,
        slots=options.slots,
        parallel=options.parallel,
        max_queue=options.max_queue,
        frozen=options.frozen,
        gpu=options.gpu,
    )
    await fake.listen(options.port)
    sys.stdout.write(f"{fake.url}\n")
    sys.stdout.flush()
    await Deferred()  # until a signal


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(_main(reactor, sys.argv[1:])))
