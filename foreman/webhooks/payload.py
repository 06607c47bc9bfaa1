"""What a webhook says: the JSON body of an event.

It is made anew from the rows for every try, and says the same each time: an event's own row never changes, nor does a
job that has ended, and of one that has not nothing is told but what the event itself knows.  (Only another
FOREMAN_ARTIFACT_INLINE_MAX after a restart changes what is inlined.)
"""

from __future__ import annotations

from typing import Any

import orjson

from foreman import documents
from foreman.job import JobState
from foreman.record import Delivery, JobRecord
from foreman.times import rfc3339


def webhook_id(delivery: Delivery) -> str:
    """What receivers tell repeats by: the same for every try of an event, over restarts too."""
    return f"{delivery.job_id}-{delivery.event.sequence}"


def body(delivery: Delivery, record: JobRecord | None) -> bytes:
    """The body of an event; what does not apply is null.

    :param record: the job, needed for its final event: only there are `timings`, and if it is done its `result` (null
        over the inline limit) and `artifacts`.
    """
    event = delivery.event
    document: dict[str, Any] = {
        "job_id": delivery.job_id,
        "state": event.state,
        "previous_state": event.previous_state,
        "sequence": event.sequence,
        "timestamp": rfc3339(event.at),
        "model": delivery.model,
        "attempt": event.attempt,
        "failures": event.failures,
        "error": documents.error(event.error),
        "result": None,
        "artifacts": None,
        "metadata": documents.metadata(delivery.metadata),
        "timings": None if record is None else documents.timings(record.receipt),
    }
    if record is not None and event.state is JobState.DONE:
        document |= {"result": documents.result(record), "artifacts": documents.artifacts(record)}
    return orjson.dumps(document)
