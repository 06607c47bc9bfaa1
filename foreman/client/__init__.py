"""foreman's client: a job of the asynchronous face, as pleasant as calling a function.

    from foreman.client import Foreman

    with Foreman("http://127.0.0.1:8080") as foreman:
        print(foreman.run("qwen3:30b", "Why is the sky blue?").text)

`AsyncForeman` is the same for asyncio.  docs/callers.md has an example of each thing.  Importing this needs httpx and
attrs, and nothing of the daemon.
"""

from __future__ import annotations

from foreman.client.aio import AsyncForeman, AsyncJob
from foreman.client.drop_in import async_ollama_client, ollama_client
from foreman.client.errors import (
    ForemanError,
    InvalidSignature,
    JobCancelled,
    JobExpired,
    JobFailed,
    NoSuchJob,
    NotForeman,
    NotReachable,
    QueueFull,
    Rejected,
    Unavailable,
    WaitTimeout,
)
from foreman.client.overview import (
    Health,
    ModelQueue,
    Pause,
    Queue,
    QueuedJob,
    QueueHealth,
    RunningJob,
    TargetHealth,
    WebhooksHealth,
)
from foreman.client.receiver import Receiver
from foreman.client.signatures import verify
from foreman.client.submission import submission
from foreman.client.sync import Foreman, Job
from foreman.client.values import (
    Artifact,
    Chunk,
    DeliveryTry,
    Event,
    EventDelivery,
    History,
    JobInfo,
    JobState,
    Problem,
    Timings,
    Webhook,
    WebhookEvent,
)

__all__ = [
    "Artifact",
    "AsyncForeman",
    "AsyncJob",
    "Chunk",
    "DeliveryTry",
    "Event",
    "EventDelivery",
    "Foreman",
    "ForemanError",
    "Health",
    "History",
    "InvalidSignature",
    "Job",
    "JobCancelled",
    "JobExpired",
    "JobFailed",
    "JobInfo",
    "JobState",
    "ModelQueue",
    "NoSuchJob",
    "NotForeman",
    "NotReachable",
    "Pause",
    "Problem",
    "Queue",
    "QueueFull",
    "QueueHealth",
    "QueuedJob",
    "Receiver",
    "Rejected",
    "RunningJob",
    "TargetHealth",
    "Timings",
    "Unavailable",
    "WaitTimeout",
    "Webhook",
    "WebhookEvent",
    "WebhooksHealth",
    "async_ollama_client",
    "ollama_client",
    "submission",
    "verify",
]
