"""The clients of a round: each makes its planned call, and what follows from it, and logs every exchange."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from chaos.plan import Call, Kind, Plan, Then
from chaos.wire import Entry, exchange

AGAIN = 0.3
"""Seconds between one try and the next of a client with an idempotency key."""


class Load:
    """All clients of a round.

    :ivar log: an entry for every exchange, begun or over.
    :ivar tasks: of the clients.
    """

    def __init__(self, plan: Plan, port: int, receiver_url: Callable[[int], str]) -> None:
        self.log: list[Entry] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self._plan = plan
        self._port = port
        self._receiver_url = receiver_url

    async def run(self) -> None:
        """Start every client at its time; return when the last has started."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for call in self._plan.calls:
            await asyncio.sleep(began + call.at - loop.time())
            self.tasks.add(asyncio.create_task(self._client(call), name=call.tag))

    def _entry(self, call: Call, does: str, **more: Any) -> Entry:
        entry = {"tag": call.tag, "does": does, "model": call.model, "number": len(self.log), **more}
        self.log.append(entry)
        return entry

    async def _client(self, call: Call) -> None:
        if call.kind is Kind.PAGE:
            await exchange(self._port, "GET", call.path, entry=self._entry(call, call.kind))
        elif call.kind is Kind.EMBED:
            body = json.dumps({"model": call.model, "input": f"embed {call.tag} now"}).encode()
            await exchange(self._port, "POST", call.path, body, entry=self._entry(call, call.kind))
        elif call.kind in (Kind.STREAM, Kind.WHOLE):
            await self._sync(call)
        else:
            await self._async(call)

    async def _sync(self, call: Call) -> None:
        entry = self._entry(call, call.kind, unique=True)
        body = _of_its_own_size(call)
        await exchange(self._port, "POST", call.path, body, manner=call.manner, pause=call.pause, entry=entry)

    async def _async(self, call: Call) -> None:
        path, body, headers = self._submission(call)
        tags = [call.tag] if call.kind is not Kind.BATCH else _line_tags(call)
        answered: Entry | None = None
        times = 1 + call.again
        while times:
            unique = call.kind is Kind.RESPOND_ASYNC
            entry = self._entry(call, "submit", tags=tags, key=call.key, unique=unique)
            await exchange(self._port, "POST", path, body, headers, entry=entry)
            if entry["end"] == "whole" and entry["status"] < 500:
                times -= 1
                answered = answered or entry
                entry["ids"] = _ids(entry)
            elif call.key is None:
                return
            await asyncio.sleep(AGAIN if times else 0.0)
        if answered is not None and answered["ids"]:
            await self._then(call, answered["ids"][0])

    async def _then(self, call: Call, job_id: str) -> None:
        await asyncio.sleep(call.pause)
        method, path = {
            Then.NOTHING: ("", ""),
            Then.CANCEL: ("POST", f"/jobs/{job_id}/cancel"),
            Then.DELETE: ("DELETE", f"/jobs/{job_id}"),
            Then.WAIT: ("GET", f"/jobs/{job_id}?wait=10"),
            Then.FOLLOW: ("GET", f"/jobs/{job_id}/stream"),
            Then.REDELIVER: ("POST", f"/jobs/{job_id}/redeliver"),
        }[call.then]
        if method:
            entry = self._entry(call, call.then, job=job_id)
            await exchange(self._port, method, path, entry=entry)

    def _submission(self, call: Call) -> tuple[str, bytes, dict[str, str]]:
        headers = {} if call.key is None else {"Idempotency-Key": call.key}
        if call.kind is Kind.RESPOND_ASYNC:
            return call.path, _of_its_own_size(call), {"Prefer": "respond-async", **headers}
        lines = [self._job(call, tag) for tag in (_line_tags(call) if call.kind is Kind.BATCH else [call.tag])]
        if call.kind is Kind.BATCH:
            headers["Content-Type"] = "application/x-ndjson"
        return "/jobs", b"\n".join(lines), headers

    def _job(self, call: Call, tag: str) -> bytes:
        document = {**_inference(call, tag), "endpoint": call.path, "metadata": {"tag": tag}}
        if call.webhook is not None:
            document["state_webhook_url"] = self._receiver_url(call.webhook)
        if call.expires_in is not None:
            document["expires_in"] = call.expires_in
        return json.dumps(document).encode()


def _line_tags(call: Call) -> list[str]:
    return [f"{call.tag}.{line}" for line in range(1, call.lines + 1)]


def _inference(call: Call, tag: str) -> dict[str, Any]:
    """The body of a call; its prompt says whose it is."""
    document: dict[str, Any] = {"model": call.model}
    prompt = f"chaos {tag} says"
    if call.path == "/api/embed":
        return document | {"input": prompt}
    if call.path == "/api/generate":
        document["prompt"] = prompt
    else:
        document["messages"] = [{"role": "user", "content": prompt}]
    if call.path == "/v1/messages":
        document["max_tokens"] = 100
    if call.options:
        document["options"] = dict(call.options)
    if call.kind is not Kind.STREAM:
        document["stream"] = False
    elif call.path.startswith("/v1"):
        document["stream"] = True
    return document


def _of_its_own_size(call: Call) -> bytes:
    """The body of a call without metadata, whose row is known by its size: no other's is as long."""
    document = _inference(call, call.tag) | {"padding": ""}
    room = 400 + call.number - len(json.dumps(document))
    return json.dumps(document | {"padding": "x" * room}).encode()


def _ids(entry: Entry) -> list[str]:
    document = entry.get("document") or {}
    if "jobs" in document:
        return [job["job_id"] for job in document["jobs"]]
    return [document["job_id"]] if "job_id" in document else []
