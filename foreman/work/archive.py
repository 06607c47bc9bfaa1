"""What is kept of the jobs, to be read: records, lists, events and artifacts.  Nothing is changed here."""

from __future__ import annotations

from foreman.job import JobState
from foreman.job import Job
from foreman.record import ArtifactReference, History, JobRecord
from foreman.work.database import Database

PAGE = 500
"""Jobs in one list, at most."""


class Archive:
    """Reads the jobs' records.  While the store is not open every call raises `StoreError`."""

    def __init__(self, database: Database, *, inline_max: int) -> None:
        """:param inline_max: bytes up to which an artifact stands in its reference."""
        self._database = database
        self._inline_max = inline_max

    async def record(self, job_id: str) -> JobRecord | None:
        """The job with this public id and everything that is kept of it, sync jobs included; None if there is none."""
        raise NotImplementedError

    async def jobs(
        self, *, state: JobState | None = None, model: str | None = None, after: str | None = None, limit: int = PAGE
    ) -> list[Job]:
        """Jobs of both doors, newest first.

        :param model: its name, compared as Ollama does; None for all.
        :param after: the id of the last job of the page before; one that is unknown by now gives an empty list.
        :param limit: at most `PAGE`.
        """
        raise NotImplementedError

    async def history(self, job_id: str) -> History | None:
        """All that happened to a job, as far as it was async; None if there is no such job."""
        raise NotImplementedError

    async def artifact(self, job_id: str, name: str) -> ArtifactReference | None:
        """What is known of one artifact, `inline` always None; None if there is none."""
        raise NotImplementedError

    async def read_artifact(self, job_id: str, name: str, offset: int, length: int) -> bytes | None:
        """A piece of an artifact; shorter at its end.  None if it is gone."""
        raise NotImplementedError
