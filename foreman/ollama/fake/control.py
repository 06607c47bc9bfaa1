"""The control routes of the stand-in as a process, on a port of their own: a sleeping one answers nothing on its first.

`GET /_fake/state`; `POST /_fake/faults` `{"path", "fault", "model", "load", "after", "times"}` (`times` null: until
cleared); `DELETE /_fake/faults`; `POST /_fake/sleep`, `/_fake/wake`, `/_fake/refuse`, `/_fake/accept`, `/_fake/cut`.
"""

# mypy: disallow-untyped-calls=False
# Twisted's HTTP classes are hardly typed.
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import orjson
from attrs import asdict
from klein import Klein
from twisted.web.iweb import IRequest

from .faults import Fault, Rule

if TYPE_CHECKING:
    from .server import FakeOllama


def state(fake: FakeOllama, *, requests: bool = True, bodies: bool = False) -> dict[str, Any]:
    """Counts, loads, overlaps and requests (without headers, and without `bodies` unless wanted) as plain values."""
    shown = [
        {
            "peer": record.peer,
            "method": record.method,
            "path": record.path,
            "status": record.status,
            "outcome": record.outcome,
            "connected_at": record.connected_at,
            "first_byte_at": record.first_byte_at,
            "ended_at": record.ended_at,
            "size": len(record.body),
            "sent": record.sent,
            "crc": record.crc,
            "fault": record.fault,
            **({"body": record.body.decode("utf-8", "replace")} if bodies else {}),
        }
        for record in fake.requests
    ]
    scheduler = fake.scheduler
    return {
        "url": fake.url,
        "asleep": fake.asleep,
        "counts": {
            "requests": len(shown),
            "loads": len(fake.loads),
            "aborted_loads": scheduler.aborted_loads,
            "overlaps": len(fake.overlaps),
            "leaked": fake.leaked,
            "max_waiting": fake.max_waiting,
            "max_at_once": fake.max_at_once,
            "queued": scheduler.queued,
            "connections": len(fake.connections),
        },
        "generating": list(scheduler.generating),
        "loading": scheduler.loading,
        "resident": [runner.model.name for runner, _ in scheduler.resident()],
        "loads": [asdict(load) for load in fake.loads],
        "overlaps": [asdict(overlap) for overlap in fake.overlaps],
        "requests": shown if requests else [],
    }


class Control:
    """The control routes of one FakeOllama."""

    def __init__(self, fake: FakeOllama) -> None:
        self._fake = fake
        self.app = app = Klein()
        app.route("/_fake/state", methods=["GET"])(self.state)
        app.route("/_fake/faults", methods=["POST"])(self.plan)
        app.route("/_fake/faults", methods=["DELETE"])(self.clear)
        for name in ("sleep", "wake", "cut", "refuse", "accept"):
            app.route(f"/_fake/<any({name}):name>", methods=["POST"], endpoint=name)(self.act)

    def _json(self, request: IRequest, value: object) -> bytes:
        request.setHeader(b"content-type", b"application/json")
        return orjson.dumps(value, default=str)

    def state(self, request: IRequest) -> bytes:
        """What has happened so far; `?requests=0` leaves the requests out, `?bodies=1` shows theirs too."""
        args: dict[bytes, list[bytes]] = request.args
        shown = state(self._fake, requests=args.get(b"requests") != [b"0"], bodies=args.get(b"bodies") == [b"1"])
        return self._json(request, shown)

    def plan(self, request: IRequest) -> bytes:
        """Plan a fault."""
        try:
            wanted = json.loads(request.content.read())
            rule = Rule(**{**wanted, "fault": Fault(wanted["fault"])})
        except (ValueError, KeyError, TypeError) as error:
            request.setResponseCode(400)
            return self._json(request, {"error": f"{error}; faults: {', '.join(Fault)}"})
        self._fake.faults.rules.append(rule)
        return self._json(request, {"planned": asdict(rule)})

    def clear(self, request: IRequest) -> bytes:
        """Forget all planned faults."""
        self._fake.faults.clear()
        return self._json(request, {})

    async def act(self, request: IRequest, name: str) -> bytes:
        """Sleep, wake, cut, refuse or accept."""
        if name == "refuse":
            await self._fake.refuse()
        elif name == "accept":
            await self._fake.listen()
        else:
            getattr(self._fake, name)()
        return self._json(request, {name: True})
