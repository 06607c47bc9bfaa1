"""How jobs are written on the wire: their JSON documents, the same in answers and in webhooks.

Values in, plain values out, ready for `orjson.dumps`.
"""

from __future__ import annotations

from typing import Any

import attrs
import orjson

from foreman.job import Job, JobError, JobState
from foreman.record import ArtifactReference, DeliveryState, Event, History, JobRecord, Receipt
from foreman.times import rfc3339


def summary(job: Job, *, max_attempts: int) -> dict[str, Any]:
    """A job as lists have it: what its row tells."""
    return {
        "job_id": job.id,
        "state": job.state,
        "sync": job.sync,
        "model": job.model,
        "endpoint": job.endpoint,
        "attempt": job.attempt,
        "failures": job.failures,
        "max_attempts": max_attempts,
        "created_at": rfc3339(job.created_at),
        "started_at": moment(job.loading_at),
        "completed_at": moment(job.completed_at),
        "error": error(job.error),
        "timings": timings(Receipt.of(job)),
    }


def whole(record: JobRecord, *, max_attempts: int) -> dict[str, Any]:
    """A job with everything that is kept of it."""
    return {
        **summary(record.job, max_attempts=max_attempts),
        "result": result(record),
        "artifacts": artifacts(record),
        "metadata": metadata(record.metadata),
        "webhook": webhook(record),
    }


def history(job_id: str, past: History) -> dict[str, Any]:
    """All that happened to a job."""
    return {
        "job_id": job_id,
        "events": [_event(event) for event in past.events],
        "deliveries": [
            {"sequence": each.sequence, "timestamp": rfc3339(each.at), "status": each.status, "error": each.error}
            for each in past.tries
        ],
    }


def _event(event: Event) -> dict[str, Any]:
    delivery = None
    if event.delivery is not None:
        delivery = {"state": event.delivery, "tries": event.tries, "next_at": moment(event.next_at)}
    return {
        "sequence": event.sequence,
        "state": event.state,
        "previous_state": event.previous_state,
        "timestamp": rfc3339(event.at),
        "attempt": event.attempt,
        "failures": event.failures,
        "error": error(event.error),
        "delivery": delivery,
    }


# -- the parts ---------------------------------------------------------------------------------------------------------


def error(cause: JobError | None) -> dict[str, str] | None:
    """Why a job failed."""
    return None if cause is None else {"code": cause.code, "message": cause.message}


def timings(receipt: Receipt) -> dict[str, Any]:
    """The receipt."""
    return attrs.asdict(receipt)


def metadata(text: str | None) -> orjson.Fragment | None:
    """The caller's own object, as it came."""
    return None if text is None else orjson.Fragment(text)


def result(record: JobRecord) -> orjson.Fragment | None:
    """The native answer of a job that is done; None if it is larger than the inline limit."""
    completion = record.artifacts.get("completion")
    if record.job.state is not JobState.DONE or completion is None or completion.inline is None:
        return None
    try:
        orjson.loads(completion.inline)
    except orjson.JSONDecodeError:
        return None  # a fragment goes out as it is, and would spoil the document around it
    return orjson.Fragment(completion.inline)


def artifacts(record: JobRecord) -> list[dict[str, Any]]:
    """What a job has left, by reference."""
    return [_artifact(record.job.id, reference) for reference in record.artifacts.values()]


def _artifact(job_id: str, reference: ArtifactReference) -> dict[str, Any]:
    return {
        "name": reference.name,
        "content_type": reference.content_type,
        "size": reference.size,
        "sha256": reference.sha256,
        "inline": None if reference.inline is None else _text(reference.inline),
        "url": f"/jobs/{job_id}/artifacts/{reference.name}",
    }


def _text(data: bytes) -> str | None:
    """Bytes as the text they are; None if they are none, since JSON could not carry them unchanged."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def webhook(record: JobRecord) -> dict[str, Any] | None:
    """Whom a job tells, and how many of its events are in which state of delivery."""
    if record.webhook is None:
        return None
    return {"url": record.webhook, **{state.value: record.deliveries.get(state, 0) for state in DeliveryState}}


def moment(ms: int | None) -> str | None:
    """A time that may not have come."""
    return None if ms is None else rfc3339(ms)
