"""A proxy as it is commonly written in Starlette and httpx, which stores nothing: the one to be compared with.

Usage: plain_proxy.py TARGET-PORT PORT, in an environment that has uvicorn, starlette and httpx.
"""

# mypy: ignore-errors
# It lives in an environment of its own.
from __future__ import annotations

import sys

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

HOP_BY_HOP = ("connection", "content-length", "host", "transfer-encoding")


async def carry(request: Request) -> StreamingResponse:
    """Send the request on and stream the answer back."""
    client: httpx.AsyncClient = request.app.state.client
    headers = [(name, value) for name, value in request.headers.items() if name not in HOP_BY_HOP]
    sent = client.build_request(request.method, request.url.path, headers=headers, content=await request.body())
    answer = await client.send(sent, stream=True)
    return StreamingResponse(
        answer.aiter_raw(),
        status_code=answer.status_code,
        headers={name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP},
        background=BackgroundTask(answer.aclose),
    )


app = Starlette(routes=[Route("/{path:path}", carry, methods=["GET", "POST"])])

if __name__ == "__main__":
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    app.state.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{sys.argv[1]}", timeout=600, limits=limits)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
