"""What is kept of the jobs, to be read: records, lists, events and artifacts.  Nothing is changed here."""

from __future__ import annotations

import sqlite3
from collections import Counter

from foreman.job import Job, JobState
from foreman.ollama.names import normalise
from foreman.record import ArtifactReference, DeliveryState, DeliveryTry, History, JobRecord
from foreman.work import queries
from foreman.work.database import Database
from foreman.work.deliveries import event_of
from foreman.work.moves import job_of

PAGE = 500
"""Jobs in one list, at most."""

_NEWEST = 2**63 - 1


class Archive:
    """Reads the jobs' records.  While the store is not open every call raises `StoreError`."""

    def __init__(self, database: Database, *, inline_max: int) -> None:
        """:param inline_max: bytes up to which an artifact stands in its reference."""
        self._database = database
        self._inline_max = inline_max

    async def record(self, job_id: str) -> JobRecord | None:
        """The job with this public id and everything that is kept of it, sync jobs included; None if there is none."""

        def read(cursor: sqlite3.Cursor) -> JobRecord | None:
            row = cursor.execute(queries.RECORD, (job_id,)).fetchone()
            if row is None:
                return None
            metadata, webhook, expires_at, *columns = row
            job = job_of(columns)
            states = Counter(DeliveryState(state) for (state,) in cursor.execute(queries.DELIVERY_STATES, (job.seq,)))
            artifacts = [
                ArtifactReference(name=name, content_type=content_type, size=size, sha256=sha256, inline=inline)
                for name, content_type, size, sha256, inline in cursor.execute(
                    queries.ARTIFACTS, (self._inline_max, job.seq)
                )
            ]
            return JobRecord(
                job=job,
                metadata=metadata,
                webhook=webhook,
                expires_at=expires_at,
                deliveries=dict(states),
                artifacts={artifact.name: artifact for artifact in artifacts},
            )

        return await self._database.read(read)

    async def jobs(
        self, *, state: JobState | None = None, model: str | None = None, after: str | None = None, limit: int = PAGE
    ) -> list[Job]:
        """Jobs of both doors, newest first.

        :param model: its name, compared as Ollama does; None for all.
        :param after: the id of the last job of the page before; one that is unknown by now gives an empty list.
        :param limit: at most `PAGE`.
        """
        query, filters = queries.LIST, [value for value in (model and normalise(model), state) if value is not None]
        if model is not None:
            query = queries.LIST_NAME if state is None else queries.LIST_NAME_AND_STATE
        elif state is not None:
            query = queries.LIST_STATE

        def read(cursor: sqlite3.Cursor) -> list[Job]:
            before = _NEWEST if after is None else _seq(cursor, after)
            if before is None:
                return []
            return [job_of(row) for row in cursor.execute(query, (*filters, before, min(limit, PAGE)))]

        return await self._database.read(read)

    async def history(self, job_id: str) -> History | None:
        """All that happened to a job, as far as it was async; None if there is no such job."""

        def read(cursor: sqlite3.Cursor) -> History | None:
            seq = _seq(cursor, job_id)
            if seq is None:
                return None
            events = tuple(event_of(row) for row in cursor.execute(queries.EVENTS, (seq,)))
            tries = tuple(
                DeliveryTry(sequence=sequence, at=at, status=status, error=error)
                for sequence, at, status, error in cursor.execute(queries.DELIVERY_TRIES, (seq,))
            )
            return History(events=events, tries=tries)

        return await self._database.read(read)

    async def artifact(self, job_id: str, name: str) -> ArtifactReference | None:
        """What is known of one artifact, `inline` always None; None if there is none."""

        def read(cursor: sqlite3.Cursor) -> ArtifactReference | None:
            row = cursor.execute(queries.ARTIFACT, (job_id, name)).fetchone()
            if row is None:
                return None
            _number, content_type, size, sha256 = row
            return ArtifactReference(name=name, content_type=content_type, size=size, sha256=sha256, inline=None)

        return await self._database.read(read)

    async def read_artifact(self, job_id: str, name: str, offset: int, length: int) -> bytes | None:
        """A piece of an artifact; shorter at its end.  None if it is gone."""

        def read(cursor: sqlite3.Cursor) -> bytes | None:
            row = cursor.execute(queries.ARTIFACT, (job_id, name)).fetchone()
            if row is None:
                return None
            # Piece by piece, never the whole of it in memory, as a query would have it.
            with cursor.connection.blobopen("artifacts", "body", row[0], readonly=True) as blob:
                blob.seek(min(offset, len(blob)))
                return blob.read(length)

        return await self._database.read(read)


def _seq(cursor: sqlite3.Cursor, job_id: str) -> int | None:
    row = cursor.execute(queries.SEQ, (job_id,)).fetchone()
    return None if row is None else row[0]
